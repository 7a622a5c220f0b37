"""kill -9 at any moment, and what the next start makes of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nucleus.audit.verify import Verifier
from nucleus.authority.recovery import Scan
from nucleus.errors import AuditError, DeniedError, NucleusError

from .harness import HASH, Authority, ids

NAMES = ids()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def verified(path: Path) -> None:
    verifier = Verifier()
    verifier.feed(path.read_bytes())
    report = verifier.finish()
    assert report.ok, report.verdict


def spent(state: Path, pod: str = "p1") -> int:
    """What the ledger kept of a closed pod."""
    db = sqlite3.connect(state / "ledger.sqlite3")
    try:
        found, kept = db.execute("SELECT state, spent FROM pods WHERE pod=?", (pod,)).fetchone()
        assert found == "closed"
        assert db.execute("SELECT count(*) FROM reservations").fetchone() == (0,)
        assert db.execute("SELECT count(*) FROM approvals").fetchone() == (0,)
        return int(kept)
    finally:
        db.close()


def test_each_reservation_ends_as_far_as_it_had_come(start: Callable[..., Authority], state: Path) -> None:
    authority = start()
    gate = authority.gate()
    held, tried, settled, done = (next(NAMES) for _ in range(4))
    for name in (held, tried, settled, done):
        gate.reserve(name, 100)
    for name in (tried, settled, done):
        gate.append("intent", reservation=name, reserved=100)
    gate.call("settle", reservation=settled, actual=30)
    gate.call("settle", reservation=done, actual=7)
    gate.append("outcome", reservation=done, reserved=100, charged=7)
    authority.kill()
    start().stop()
    recovered = {
        e["context"]["reservation"]: e["context"]["charged"]
        for e in lines(state / "audit.jsonl")
        if e["event"] == "recovery"
    }
    assert recovered == {tried: 100, settled: 30}
    last = lines(state / "audit.jsonl")[-1]
    assert (last["event"], last["pod"], last["context"]["spent"]) == ("pod.stop", "p1", 137)
    assert spent(state) == 137
    before = (state / "audit.jsonl").read_bytes()
    start().stop()
    assert (state / "audit.jsonl").read_bytes() == before  # and that is the end of it


def test_what_a_power_cut_takes_from_the_ledger_the_log_gives_back(
    start: Callable[..., Authority], state: Path
) -> None:
    authority = start()
    gate = authority.gate()
    first = next(NAMES)
    gate.reserve(first, 100)
    time.sleep(0.5)  # an idle checkpoint folds the WAL into the file
    kept = (state / "ledger.sqlite3").read_bytes()
    gate.append("intent", reservation=first, reserved=100)
    tried, done = next(NAMES), next(NAMES)
    for name in (tried, done):
        gate.reserve(name, 50)
        gate.append("intent", reservation=name, reserved=50)
    for name, charged in ((done, 5), (first, 10)):
        gate.call("settle", reservation=name, actual=charged)
        gate.append("outcome", reservation=name, reserved=50, charged=charged)
    authority.kill()
    # WAL and NORMAL: the last commits may be gone after a power cut; the log was synced.
    (state / "ledger.sqlite3-wal").unlink()
    (state / "ledger.sqlite3").write_bytes(kept)
    start().stop()
    verified(state / "audit.jsonl")
    assert spent(state) == 10 + 5 + 50
    recovered = [e for e in lines(state / "audit.jsonl") if e["event"] == "recovery"]
    assert [e["context"] for e in recovered] == [{"reservation": tried, "reserved": 50, "charged": 50}]


def test_a_lost_ledger_is_survived(start: Callable[..., Authority], state: Path) -> None:
    authority = start()
    gate = authority.gate()
    name = next(NAMES)
    gate.reserve(name, 100)
    gate.append("intent", reservation=name, reserved=100)
    authority.kill()
    for path in state.glob("ledger.sqlite3*"):
        path.unlink()
    start().stop()
    verified(state / "audit.jsonl")
    assert lines(state / "audit.jsonl")[-1]["context"]["charged"] == 100
    size = (state / "audit.jsonl").stat().st_size
    start().stop()
    assert (state / "audit.jsonl").stat().st_size == size


def test_a_torn_line_is_cut_and_said(start: Callable[..., Authority], state: Path) -> None:
    authority = start()
    authority.gate().append("denied")
    authority.kill()
    path = state / "audit.jsonl"
    torn = b'{"v":1,"seq":3,"ti'
    with path.open("ab") as file:
        file.write(torn)
    start().stop()
    verified(path)
    entry = next(e for e in lines(path) if e["event"] == "recovery")
    assert entry["context"]["cut_bytes"] == len(torn)
    assert entry["context"]["cut_sha256"] == hashlib.sha256(torn).hexdigest()
    assert (state / entry["context"]["kept_as"]).read_bytes() == torn


def test_an_edited_log_is_refused_and_left(start: Callable[..., Authority], state: Path) -> None:
    authority = start()
    authority.gate().append("denied")
    authority.kill()
    path = state / "audit.jsonl"
    data = path.read_bytes().replace(b'"denied"', b'"error"', 1)
    path.write_bytes(data)
    files = {p.name for p in state.iterdir()} - {"ledger.sqlite3-wal"}
    with pytest.raises(AuditError) as caught:
        start()
    assert caught.value.rule == "audit.verify"
    assert path.read_bytes() == data
    assert {p.name for p in state.iterdir()} - {"ledger.sqlite3-wal"} == files


def test_a_log_that_lost_its_tail_is_refused(start: Callable[..., Authority], state: Path) -> None:
    authority = start()
    gate = authority.gate()
    for _ in range(3):
        gate.append("denied")
    authority.stop()
    path = state / "audit.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-2]))
    with pytest.raises(AuditError) as caught:
        start()
    assert caught.value.rule == "audit.tail"


def test_a_second_authority_is_refused_and_the_first_goes_on(start: Callable[..., Authority]) -> None:
    first = start()
    gate = first.gate()
    with pytest.raises(AuditError) as caught:
        start()
    assert caught.value.rule == "store.locked"
    assert "another authority" in caught.value.message
    gate.append("denied")


def test_when_the_builder_is_gone_pods_end_and_so_does_it(start: Callable[..., Authority], state: Path) -> None:
    authority = start()
    gate = authority.gate()
    name = next(NAMES)
    gate.reserve(name, 9)
    gate.append("intent", reservation=name, reserved=9)
    assert authority.stop() == 0
    assert [e["event"] for e in lines(state / "audit.jsonl")] == ["pod.start", "intent", "recovery", "pod.stop"]
    assert spent(state) == 9


class Load(threading.Thread):
    """Operations on one gate until the authority dies; remembers what it was told."""

    def __init__(self, gate: Any, token: Callable[[], str]) -> None:
        super().__init__()
        self.gate = gate
        self.token = token
        self.charged: dict[str, int] = {}  # outcome on record
        self.tried: dict[str, int] = {}  # intent on record
        self.burnt: list[str] = []

    def run(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                self.one()

    def one(self) -> None:
        name = next(NAMES)
        token = self.token()
        self.gate.reserve(name, 50, **({"token": token} if token else {}))
        if token:
            self.burnt.append(token)
        self.gate.append("intent", reservation=name, reserved=50)
        self.tried[name] = 50
        self.gate.call("settle", reservation=name, actual=20)
        self.gate.append("outcome", reservation=name, reserved=50, charged=20)
        self.charged[name] = 20


@pytest.mark.parametrize("seed", range(8))
def test_kill_9_at_any_moment(start: Callable[..., Authority], state: Path, seed: int) -> None:
    rng = random.Random(seed)
    burnt: list[str] = []
    total: dict[str, tuple[dict[str, int], dict[str, int]]] = {}
    for turn in range(2):
        authority = start()
        approver = authority.approver()
        tokens = {}
        for pod in (f"p{turn}a", f"p{turn}b"):
            gate = authority.gate(pod)
            for old in burnt:  # nothing of before is good again
                with pytest.raises(DeniedError):
                    gate.reserve(next(NAMES), 1, token=old)
            tokens[pod] = []
            for number in range(3):
                ident = gate.ask(operation_hash=HASH)
                request = next(r for r in approver.call("list")["requests"] if r["pod"] == pod)["request"]
                approver.call("approve", request=request, reason=str(number))
                tokens[pod].append(gate.wait(ident)["token"])
            total[pod] = ({}, {})
            tokens[pod] = (gate, tokens[pod])
        loads = []
        for pod, (gate, given) in tokens.items():
            load = Load(gate, lambda given=given: given.pop() if given else "")
            total[pod] = (load.charged, load.tried)
            loads.append(load)
            load.start()
        time.sleep(rng.uniform(0.0, 0.05))
        os.kill(authority.process.pid, signal.SIGKILL)
        for load in loads:
            load.join()
            burnt += load.burnt
        authority.stop()
    start().stop()
    verified(state / "audit.jsonl")
    check(state, total)


CLIENTS = 16
ROUNDS = int(os.environ.get("NUCLEUS_KILL_ROUNDS", "5"))  # `make kill`: 200


@pytest.mark.timeout(1_800)
def test_kill_9_round_after_round(start: Callable[..., Authority], state: Path) -> None:
    rng = random.Random(7)
    total: dict[str, tuple[dict[str, int], dict[str, int]]] = {}
    for turn in range(ROUNDS):
        authority = start()
        loads = []
        for number in range(CLIENTS):
            pod = f"p{turn}-{number}"
            loads.append(Load(authority.gate(pod), lambda: ""))
            total[pod] = (loads[-1].charged, loads[-1].tried)
        for load in loads:
            load.start()
        time.sleep(rng.uniform(0.0, 0.2))
        os.kill(authority.process.pid, signal.SIGKILL)
        for load in loads:
            load.join()
        authority.stop()
    start().stop()
    verified(state / "audit.jsonl")
    assert sum(len(tried) for _, tried in total.values()) > ROUNDS
    check(state, total)


def check(state: Path, total: dict[str, tuple[dict[str, int], dict[str, int]]]) -> None:
    intents: dict[str, tuple[str, int]] = {}
    ends: dict[str, int] = {}
    for entry in lines(state / "audit.jsonl"):
        context = entry["context"]
        if entry["event"] == "intent":
            assert context["reservation"] not in intents
            intents[context["reservation"]] = (entry["pod"], context["reserved"])
        elif entry["event"] in ("outcome", "recovery") and "reservation" in context:
            assert context["reservation"] not in ends, "resolved twice"
            assert context["charged"] <= intents[context["reservation"]][1]
            ends[context["reservation"]] = context["charged"]
    assert intents.keys() == ends.keys()  # each resolves, once
    for pod, (charged, tried) in total.items():
        assert tried.keys() <= intents.keys()  # what we were told is durable is there
        assert all(ends[name] == amount for name, amount in charged.items())
        assert spent(state, pod) == sum(ends[name] for name, (owner, _) in intents.items() if owner == pod)


def test_the_scan_ignores_what_is_no_reservation() -> None:
    scan = Scan()
    for event in ("intent", "outcome", "recovery"):
        scan.see({"event": event, "pod": "p", "context": {"reservation": "x", "reserved": 1, "charged": 1}})
        scan.see({"event": event, "pod": "p", "context": {"reservation": "a" * 32, "reserved": "1", "charged": True}})
        scan.see({"event": event, "pod": "p", "context": {}})
    assert not scan.intents
    assert not scan.outcomes


def test_a_wrong_configuration_is_answered_and_ends_it(start: Callable[..., Authority], state: Path) -> None:
    for changes in (
        {"state_dir": "relative"},
        {"state_dir": str(state / "none")},
        {"trust_domain": "Not A Domain"},
        {"trust_domain": 7},
        {"uid": -1},
        {"uid": "0"},
        *([{"uid": 0}] if os.geteuid() == 0 else []),
    ):
        with pytest.raises(NucleusError):
            start(**changes)


def test_it_is_unprivileged_before_it_opens_anything(start: Callable[..., Authority], state: Path) -> None:
    authority = start()
    authority.gate()
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{authority.process.pid}/status").read_text().splitlines()
    )
    uid = str(state.stat().st_uid)
    assert status["Uid"].split() == [uid] * 4
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert all(path.stat().st_mode & 0o077 == 0 for path in state.iterdir())
    assert all(str(path.stat().st_uid) == uid for path in state.iterdir())
    if os.geteuid() == 0:
        assert status["Groups"].split() == []
        assert Path(f"/proc/{authority.process.pid}/mem").stat().st_uid == 0  # not dumpable: root's, not its own
        assert Path(f"/proc/{authority.process.pid}/environ").read_bytes() == b""
    else:
        with pytest.raises(PermissionError):  # not dumpable: not even for its own uid
            Path(f"/proc/{authority.process.pid}/environ").read_bytes()
