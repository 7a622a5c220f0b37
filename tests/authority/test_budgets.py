"""Budgets at the real authority: who may change them, what is recorded first, what a crash or an old copy leaves."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nucleus.authority.peers import APPROVER
from nucleus.errors import AuditError, BudgetError, DeniedError, InvalidError, NucleusError
from nucleus.store.check import check

from .conftest import Ear, TestService
from .harness import TRUST_DOMAIN, Authority, Client, ids

NAMES = ids()
ENTRIES = map("e{}".format, iter(range(10**6)))


def lines(state: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (state / "audit.jsonl").read_bytes().splitlines()]


def changes(state: Path) -> list[dict[str, Any]]:
    return [line["context"] for line in lines(state) if line["event"] == "budget.changed"]


def sums(state: Path) -> dict[str, tuple[int, int]]:
    """Account -> limit, spent, of a ledger that nobody has open; which has to be sound."""
    db = sqlite3.connect(state / "ledger.sqlite3")
    try:
        assert check(db, "x").problems == []
        return {name: (budget, spent) for name, budget, spent in db.execute("SELECT name, budget, spent FROM accounts")}
    finally:
        db.close()


def create(person: Client, account: str, amount: int, **fields: Any) -> dict[str, Any]:
    return person.call("budget_create", entry=next(ENTRIES), account=account, amount=amount, **fields)


def gate_of(authority: Authority, pod: str, account: str, **fields: Any) -> Client:
    authority.register(pod, account=account, **fields)
    return authority.gate(pod, register=False)


def spend(gate: Client, amount: int) -> None:
    name = next(NAMES)
    gate.reserve(name, amount)
    gate.append("intent", reservation=name, reserved=amount)
    gate.call("settle", reservation=name, actual=amount)
    gate.append("outcome", reservation=name, reserved=amount, charged=amount)


def free(person: Client, account: str) -> int:
    one = next(one for one in person.call("budget_show")["accounts"] if one["account"] == account)
    return int(one["limit"] - one["spent"] - one["reserved"])


def test_two_teams_of_an_organization(authority: Authority, state: Path) -> None:
    person = authority.approver(watch=False)
    create(person, "acme", 1_000)
    create(person, "acme/a", 700)
    create(person, "acme/b", 700)
    first, second = gate_of(authority, "p1", "acme/a"), gate_of(authority, "p2", "acme/b")
    spend(first, 600)
    with pytest.raises(BudgetError) as caught:
        second.reserve(next(NAMES), 401)
    assert caught.value.rule == "budget.account"
    spend(second, 400)
    assert (free(person, "acme"), free(person, "acme/a"), free(person, "acme/b")) == (0, 100, 300)
    started = [line["context"]["account"] for line in lines(state) if line["event"] == "pod.start"]
    assert started == ["acme/a", "acme/b"]


def test_a_top_up_holds_for_a_running_pod_at_once_and_says_who(authority: Authority, state: Path) -> None:
    person = authority.approver(watch=False)
    create(person, "acme", 100)
    gate = gate_of(authority, "p1", "acme")
    with pytest.raises(BudgetError):
        gate.reserve(next(NAMES), 150)
    asked = {"entry": "t1", "account": "acme", "amount": 50, "reason": "the sprint is long"}
    assert person.call("budget_top_up", **asked) == {"account": "acme", "limit": 150}
    spend(gate, 150)
    assert person.call("budget_top_up", **asked)["again"]
    with pytest.raises(BudgetError):
        gate.reserve(next(NAMES), 1)
    with pytest.raises(InvalidError) as caught:
        person.call("budget_top_up", **{**asked, "amount": 51})
    assert caught.value.rule == "budget.entry"
    record = [line for line in lines(state) if line["event"] == "budget.changed"][-1]
    assert record["principal"] == "uid:1000"
    assert record["context"]["reason"] == "the sprint is long"
    history = person.call("budget_history", account="acme")["entries"]
    assert [(one["change"], one["amount"], one["who"]) for one in history] == [
        ("top-up", 50, "uid:1000"), ("create", 100, "uid:1000"),
    ]  # fmt: skip


def test_a_pod_can_be_topped_up_itself(authority: Authority) -> None:
    person = authority.approver(watch=False)
    gate = authority.gate("p1", limit=100)
    spend(gate, 100)
    assert person.call("budget_top_up", entry="t", pod="p1", amount=50)["limit"] == 150
    spend(gate, 50)
    with pytest.raises(InvalidError):
        person.call("budget_top_up", entry="u", pod="none", amount=50)


def test_a_report_from_outside_is_charged_once_and_as_far_as_there_is_room(authority: Authority, state: Path) -> None:
    person = authority.approver(watch=False)
    create(person, "acme", 100)
    gate = gate_of(authority, "p1", "acme")
    asked = {"entry": "usage:r-1", "pod": "p1", "amount": 70, "reason": "gpt"}
    assert person.call("budget_charge", **asked) == {"charged": 70, "unpaid": 0, "free": 30}
    assert person.call("budget_charge", **asked) == {"charged": 70, "unpaid": 0, "free": 30, "again": True}
    assert person.call("budget_charge", **{**asked, "entry": "usage:r-2"}) == {"charged": 30, "unpaid": 40, "free": 0}
    with pytest.raises(BudgetError):
        gate.reserve(next(NAMES), 1)
    assert [(one["amount"], one["charged"]) for one in changes(state)] == [(100, 0), (70, 70), (70, 30)]
    authority.order("close_pod", pod="p1", reason="done")
    person.call("budget_top_up", entry="t", account="acme", amount=10)
    assert person.call("budget_charge", entry="late", pod="p1", amount=4)["charged"] == 4  # a bill that comes late
    with pytest.raises(InvalidError):
        person.call("budget_charge", entry="x", pod="none", amount=4)
    assert lines(state)[-3]["context"]["spent"] == 100
    authority.stop()
    assert sums(state) == {"acme": (110, 104)}


@pytest.mark.parametrize("op", ["budget_create", "budget_top_up", "budget_charge", "budget_default", "budget_show",
                                "budget_history", "ledger_copy", "ledger_read"])  # fmt: skip
def test_a_gate_cannot(authority: Authority, op: str) -> None:
    gate = authority.gate()
    with pytest.raises(InvalidError) as caught:
        gate.call(op, entry="e", account="acme", amount=10**6)
    assert caught.value.rule == "frames.op"
    with pytest.raises(InvalidError):  # nor name an account, or another limit
        gate.call("open_budget", limit=10**9, window_ns=0, account="acme")


def test_who_may_only_answer_requests_changes_no_budget(authority: Authority) -> None:
    other = authority.attach("approver", uid=1001, answers_only=True)
    assert other.call("list") == {"requests": []}
    for op in ("budget_create", "budget_show", "ledger_copy", "net_state"):
        with pytest.raises(DeniedError):
            other.call(op, entry="e", account="acme", amount=10)


@pytest.mark.parametrize(
    "fields",
    [{"amount": -1}, {"amount": 1.5}, {"amount": True}, {"amount": "5"}, {"amount": 1 << 70}, {"amount": 10**16},
     {"account": "Acme"}, {"account": "none/x"}, {"entry": ""}, {"entry": "a b"}, {"entry": 5}, {"window_ns": -1},
     {"window_ns": 10**19}, {"reason": "x" * 2_000}, {"pod": "p1"}],
)  # fmt: skip
def test_what_is_wrong_is_refused_and_not_on_record(authority: Authority, state: Path, fields: dict[str, Any]) -> None:
    person = authority.approver(watch=False)
    with pytest.raises(InvalidError):
        person.call("budget_create", **{"entry": "e", "account": "acme", "amount": 5, **fields})
    assert changes(state) == []
    assert person.call("budget_show")["accounts"] == []


def test_the_default_account_is_of_pods_that_name_none(authority: Authority) -> None:
    person = authority.approver(watch=False)
    create(person, "acme", 100)
    create(person, "acme@nightly", 40)
    person.call("budget_default", entry="d", account="acme")
    spend(authority.gate("p1"), 30)
    with pytest.raises(BudgetError):
        gate_of(authority, "p2", "", session="nightly").reserve(next(NAMES), 41)
    assert free(person, "acme") == 70
    with pytest.raises(InvalidError):
        authority.register("p3", account="none")
    with pytest.raises(InvalidError):
        authority.register("p4", account="No Name")
    person.call("budget_default", entry="d2")
    spend(authority.gate("p5"), 100)


def test_extending_what_runs(authority: Authority) -> None:
    person = authority.approver(watch=False)
    create(person, "acme", 100)
    gate = gate_of(authority, "p1", "acme")
    name = next(NAMES)
    assert gate.reserve(name, 500, least=50) == {"held": 100}
    with pytest.raises(InvalidError):
        gate.call("extend", reservation=name, amount=10, least=1)  # nothing runs on it so far
    gate.append("intent", reservation=name, reserved=100)
    with pytest.raises(BudgetError):
        gate.call("extend", reservation=name, amount=10, least=1)
    person.call("budget_top_up", entry="t", account="acme", amount=30)
    assert gate.call("extend", reservation=name, amount=400, least=1) == {"held": 30}
    gate.call("settle", reservation=name, actual=125)
    gate.append("outcome", reservation=name, reserved=130, charged=125)
    assert free(person, "acme") == 5


def test_a_holder_that_dies_is_charged_once_at_every_level(start: Callable[..., Authority], state: Path) -> None:
    authority = start()
    person = authority.approver(watch=False)
    create(person, "acme", 1_000)
    create(person, "acme/a", 1_000)
    gate = gate_of(authority, "p1", "acme/a")
    held, tried, longer = (next(NAMES) for _ in range(3))
    for name in (held, tried, longer):
        gate.reserve(name, 100)
    for name in (tried, longer):
        gate.append("intent", reservation=name, reserved=100)
    gate.call("extend", reservation=longer, amount=50, least=50)
    gate.close()  # it is gone: the one before its intent comes back, the others are charged in full
    time.sleep(0.2)
    assert (free(person, "acme"), free(person, "acme/a")) == (750, 750)
    second = gate_of(authority, "p2", "acme")
    last = next(NAMES)
    second.reserve(last, 10)
    second.append("intent", reservation=last, reserved=10)
    authority.kill()
    start().stop()
    assert sums(state) == {"acme": (1_000, 260), "acme/a": (1_000, 250)}
    start().stop()
    assert sums(state) == {"acme": (1_000, 260), "acme/a": (1_000, 250)}


def busy(authority: Authority, turn: int) -> None:
    """One pod's life, and what a person does meanwhile."""
    person = authority.approver(watch=False)
    gate = gate_of(authority, f"p{turn}", "acme/a")
    spend(gate, 100)
    person.call("budget_top_up", entry=f"top-{turn}", account="acme", amount=7)
    person.call("budget_charge", entry=f"bill-{turn}", pod=f"p{turn}", amount=20)
    authority.order("close_pod", pod=f"p{turn}", reason="done")


@pytest.mark.parametrize("lost", ["an older copy", "all of it"])
def test_what_the_ledger_lost_the_log_gives_back(start: Callable[..., Authority], state: Path, lost: str) -> None:
    authority = start()
    person = authority.approver(watch=False)
    create(person, "acme", 10_000)
    create(person, "acme/a", 5_000)
    busy(authority, 1)
    authority.stop()
    ledger = state / "ledger.sqlite3"
    copy = ledger.read_bytes()
    authority = start()
    busy(authority, 2)
    spend(gate := gate_of(authority, "p3", "acme"), 1_000)
    name = next(NAMES)
    gate.reserve(name, 300)
    gate.append("intent", reservation=name, reserved=300)
    authority.kill()
    for path in state.glob("ledger.sqlite3*"):
        owner = path.stat()
        path.unlink()
    if lost == "an older copy":
        ledger.write_bytes(copy)
        ledger.chmod(0o600)
        shutil.chown(ledger, owner.st_uid, owner.st_gid)
    for _ in range(2):  # and the second start finds nothing to do
        start().stop()
        assert sums(state) == {"acme": (10_014, 1_540), "acme/a": (5_000, 240)}
        told = [line["context"] for line in lines(state) if "behind" in line["outcome"].get("status", "")]
        assert told == [{"pods": 2, "entries": 2} if lost == "an older copy" else {"pods": 3, "entries": 6}]


def test_a_ledger_that_is_ahead_of_the_log_is_refused(start: Callable[..., Authority], state: Path) -> None:
    authority = start()
    authority.gate().append("denied")
    authority.stop()
    kept = (state / "audit.jsonl").read_bytes()
    authority = start()
    authority.gate("p2").append("denied")
    authority.stop()
    (state / "audit.jsonl").write_bytes(kept)
    with pytest.raises(AuditError) as caught:
        start()
    assert caught.value.rule == "audit.tail"


def test_a_damaged_ledger_is_refused_and_said(start: Callable[..., Authority], state: Path) -> None:
    start().stop()
    path = state / "ledger.sqlite3"
    path.write_bytes(b"something else" * 1_000)
    with pytest.raises(AuditError) as caught:
        start()
    assert caught.value.rule == "ledger.foreign"
    assert path.read_bytes() == b"something else" * 1_000


# In process, where the disk can be full


@pytest.fixture
def person(in_process: tuple[TestService, Ear, Ear]) -> tuple[TestService, Ear]:
    service, _, _ = in_process
    return service, Ear(APPROVER, uid=7)


def no_log(service: TestService, monkeypatch: pytest.MonkeyPatch) -> None:
    def write() -> None:
        service.log.discard()
        raise AuditError("full", rule="audit.append")

    monkeypatch.setattr(service.log, "write", write)


def test_a_top_up_that_cannot_be_recorded_does_not_hold(
    person: tuple[TestService, Ear], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, ear = person
    service.frame(ear, 1, op="budget_create", entry="c", account="acme", amount=10)
    no_log(service, monkeypatch)
    service.frame(ear, 2, op="budget_top_up", entry="t", account="acme", amount=10)
    assert ear.seen[-1]["error"]["rule"] == "audit.append"
    assert service.ledger.accounts.pools["acme"].limit == 10
    monkeypatch.undo()
    service.frame(ear, 3, op="budget_top_up", entry="t", account="acme", amount=10)
    assert ear.seen[-1]["ok"] == {"account": "acme", "limit": 20}


def test_a_charge_that_cannot_be_recorded_is_charged_and_recorded_when_it_is_asked_for_again(
    person: tuple[TestService, Ear], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, ear = person
    no_log(service, monkeypatch)
    service.frame(ear, 1, op="budget_charge", entry="c", pod="p1", amount=10)
    assert ear.seen[-1]["error"]["rule"] == "audit.append"
    assert service.ledger.pods["p1"].account.spent == 10
    monkeypatch.undo()
    for ident in (2, 3):
        service.frame(ear, ident, op="budget_charge", entry="c", pod="p1", amount=10)
        assert ear.seen[-1]["ok"]["charged"] == 10
    assert service.ledger.pods["p1"].account.spent == 10
    with open(service.log.path) as log:
        assert log.read().count('"budget.changed"') == 1


def test_what_the_ledger_cannot_keep_holds_from_the_next_start_on(
    person: tuple[TestService, Ear], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, ear = person
    service.frame(ear, 1, op="budget_create", entry="c", account="acme", amount=10)

    def full(_: Any) -> bool:
        raise AuditError("disk full", rule="ledger.io")

    monkeypatch.setattr(service.ledger.accounts, "apply", full)
    service.frame(ear, 2, op="budget_top_up", entry="t", account="acme", amount=10)
    assert ear.seen[-1]["error"]["rule"] == "ledger.io"
    assert service.ledger.accounts.pools["acme"].limit == 10
    service.frame(ear, 3, op="budget_show")
    assert "ok" in ear.seen[-1]


def test_the_same_twice_in_one_turn_is_done_once(person: tuple[TestService, Ear]) -> None:
    from nucleus.frames import Frame

    service, ear = person
    asked = {"op": "budget_create", "account": "acme", "amount": 10}
    service.turn([(ear, Frame({"id": n, "entry": f"c{n}", **asked})) for n in (1, 2)])  # type: ignore[list-item]
    bill = {"op": "budget_charge", "pod": "p1", "amount": 10, "entry": "b"}
    service.turn([(ear, Frame({"id": n, **bill})) for n in (3, 4)])  # type: ignore[list-item]
    answers = {one["id"]: one for one in ear.seen}
    assert answers[1]["ok"] == {"account": "acme", "limit": 10}
    assert answers[2]["error"]["rule"] == answers[4]["error"]["rule"] == "budget.busy"
    assert answers[3]["ok"]["charged"] == service.ledger.pods["p1"].account.spent == 10


@pytest.mark.parametrize("seed", range(6))
def test_kill_9_at_any_moment_leaves_the_sums_of_the_log(
    start: Callable[..., Authority], state: Path, seed: int
) -> None:
    """Pods of two teams and a person who tops up and charges, until the process is gone; twice."""
    rng = random.Random(seed)
    told: dict[str, int] = {}
    for turn in range(2):
        authority = start()
        person = authority.approver(watch=False)
        if not turn:
            for name in ("acme", "acme/a", "acme/b"):
                create(person, name, 10**6)
        loads = [
            threading.Thread(
                target=until_it_is_gone, args=(spend, gate_of(authority, f"p{turn}{team}", f"acme/{team}"), 9)
            )
            for team in ("a", "b")
        ]
        loads.append(threading.Thread(target=until_it_is_gone, args=(bill, person, f"p{turn}a", told)))
        for load in loads:
            load.start()
        time.sleep(rng.uniform(0.0, 0.06))
        os.kill(authority.process.pid, signal.SIGKILL)
        for load in loads:
            load.join()
        authority.stop()
    start().stop()
    spent, topped = {"acme": 0, "acme/a": 0, "acme/b": 0}, 0
    accounts = {}
    ended: set[str] = set()
    for line in lines(state):
        context = line["context"]
        if line["event"] == "pod.start":
            accounts[line["pod"]] = context["account"]
        if line["event"] in ("outcome", "recovery") and "reservation" in context:
            assert context["reservation"] not in ended
            ended.add(context["reservation"])
        elif line["event"] != "budget.changed":
            continue
        if context.get("change") == "top-up":
            topped += context["amount"]
        if "charged" in context and line["pod"]:
            spent[accounts[line["pod"]]] += context["charged"]
            spent["acme"] += context["charged"]
    kept = sums(state)
    assert {name: (10**6 + (topped if name == "acme" else 0), spent[name]) for name in kept} == kept
    recorded = {one["entry"]: one["amount"] for one in changes(state)}
    assert len(recorded) == len(changes(state)), "an entry is on record twice"
    assert told.items() <= recorded.items()  # what was answered is there


def until_it_is_gone(work: Callable[..., None], *arguments: Any) -> None:
    with contextlib.suppress(OSError, EOFError):
        while True:
            work(*arguments)


def bill(person: Client, pod: str, told: dict[str, int]) -> None:
    for op, target in (("budget_charge", {"pod": pod}), ("budget_top_up", {"account": "acme"})):
        entry = next(ENTRIES)
        person.call(op, entry=entry, amount=3, **target)
        told[entry] = 3


def test_a_gate_reports_what_its_own_pods_orchestrator_used_and_nothing_else(authority: Authority, state: Path) -> None:
    first, second = authority.gate("p1", limit=100), authority.gate("p2", limit=100)
    who = f"spiffe://{TRUST_DOMAIN}/ns/default/sa/orchestrator-p1"
    asked = {"entry": "u1", "amount": 30, "reason": "", "principal": who}
    assert first.call("charge", **asked) == {"charged": 30, "unpaid": 0, "free": 70}
    assert first.call("charge", **asked)["again"]
    record = lines(state)[-1]
    assert (record["event"], record["pod"], record["principal"]) == ("budget.changed", "p1", who)
    for gate, fields in (
        (second, {}),
        (first, {"principal": f"spiffe://{TRUST_DOMAIN}/ns/default/sa/agent-p1"}),
        (first, {"pod": "p2"}),
        (first, {"account": "acme"}),
        (first, {"amount": 31}),
        (first, {"entry": "u2", "amount": -1}),
        (first, {"entry": "u2", "amount": 0}),
    ):
        with pytest.raises(NucleusError):
            gate.call("charge", **{**asked, **fields})
    assert first.call("budget")["spent"] == 30
    assert second.call("budget")["spent"] == 0
