"""Approvals through the real process: gate, person, token, reservation."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Callable
from typing import Any

import pytest

from nucleus.approval.rules import MAX_PENDING
from nucleus.errors import DeniedError, InvalidError, NucleusError

from .harness import HASH, PERSON, WHO, Authority, Client, ids

NAMES = ids()


def pending(approver: Client) -> str:
    event = approver.event()
    assert event["event"] == "request", event
    return str(event["request"]["request"])


def approved(gate: Client, approver: Client, **fields: Any) -> str:
    ident = gate.ask(**fields)
    approver.call("approve", request=pending(approver), reason="fine")
    answer = gate.wait(ident)
    assert answer["verdict"] == "approve"
    return str(answer["token"])


def test_a_yes_becomes_one_reservation(authority: Authority) -> None:
    gate, approver = authority.gate(), authority.approver()
    ident = gate.ask()
    event = approver.event()
    request = event["request"]
    assert request["pod"] == "p1"
    assert request["operation"] == "run"
    assert request["operation_hash"] == HASH
    assert request["display"] == ["operation: run", 'argv: ["make"]']
    assert 299_000 < request["remaining_ms"] <= 300_000
    assert approver.call("list")["requests"][0]["request"] == request["request"]
    assert approver.call("show", request=request["request"])["request"]["display"] == request["display"]
    assert approver.call("approve", request=request["request"], reason="looks\u202egood") == {}
    answer = gate.wait(ident)
    assert answer["approver"] == "uid:1000"
    assert answer["reason"] == "looks\\u202egood"
    assert gate.reserve(next(NAMES), 10, token=answer["token"]) == {}
    with pytest.raises(DeniedError):
        gate.reserve(next(NAMES), 10, token=answer["token"])
    assert approver.event() == {
        "event": "resolved", "request": request["request"], "verdict": "approve", "approver": "uid:1000",
    }  # fmt: skip
    entry = json.loads(authority.log.read_bytes().splitlines()[-1])
    assert entry["event"] == "approval"
    assert entry["operation_hash"] == HASH
    assert entry["outcome"] == {"approver": "uid:1000", "identity": PERSON, "reason": "looks\\u202egood"}
    assert entry["decision"]["verdict"] == "approve"
    assert entry["context"]["request"] == request["request"]
    assert answer["token"] not in authority.log.read_text()


def test_a_token_is_for_its_operation_principal_and_pod(authority: Authority) -> None:
    gate, other, approver = authority.gate("p1"), authority.gate("p2"), authority.approver()
    token = approved(gate, approver)
    base = {"amount": 1, "operation_hash": HASH, "principal": WHO, "token": token}
    for client, change in (
        (other, {}),
        (gate, {"operation_hash": "cd" * 32}),
        (gate, {"principal": WHO + "x"}),
        (gate, {"token": token[:-1] + ("0" if token[-1] != "0" else "1")}),
        (gate, {"token": ""}),
    ):
        with pytest.raises(DeniedError):
            client.call("reserve", reservation=next(NAMES), **{**base, **change})
    gate.call("reserve", reservation=next(NAMES), **base)


def test_two_reservations_in_one_breath_spend_one_token_once(authority: Authority) -> None:
    gate, approver = authority.gate(), authority.approver()
    token = approved(gate, approver)
    fields = {"amount": 1, "operation_hash": HASH, "principal": WHO, "token": token}
    idents = [gate.send("reserve", reservation=next(NAMES), **fields) for _ in range(20)]
    granted = 0
    for ident in idents:
        try:
            gate.wait(ident)
            granted += 1
        except DeniedError:
            pass
    assert granted == 1


def test_a_token_whose_reservation_found_no_room_is_still_good(authority: Authority) -> None:
    gate, approver = authority.gate(limit=100), authority.approver()
    token = approved(gate, approver)
    with pytest.raises(NucleusError, match="micro-dollars"):
        gate.reserve(next(NAMES), 101, token=token)
    gate.reserve(next(NAMES), 100, token=token)


def test_a_restart_voids_every_token(start: Callable[..., Authority]) -> None:
    authority = start()
    gate, approver = authority.gate(), authority.approver()
    token = approved(gate, approver)
    authority.kill()
    gate = start().gate("p2")
    with pytest.raises(DeniedError):
        gate.reserve(next(NAMES), 1, token=token)


def test_no_approver_is_a_no_at_once(authority: Authority) -> None:
    gate = authority.gate()
    assert gate.wait(gate.ask()) == {"verdict": "no_approver"}
    idle = authority.approver(watch=False)
    assert idle.call("list") == {"requests": []}
    assert gate.wait(gate.ask()) == {"verdict": "no_approver"}  # one who only looks is not there to answer
    idle.call("present")
    ident = gate.ask()
    assert idle.call("list")["requests"]
    idle.close()
    assert gate.wait(ident)["verdict"] == "no_approver"


def test_a_no_is_recorded_and_not_asked_again(authority: Authority) -> None:
    gate, approver = authority.gate(), authority.approver()
    ident = gate.ask()
    approver.call("deny", request=pending(approver), reason="no")
    answer = gate.wait(ident)
    assert (answer["verdict"], answer["approver"], answer["reason"]) == ("deny", "uid:1000", "no")
    assert "token" not in answer
    entry = json.loads(authority.log.read_bytes().splitlines()[-1])
    assert entry["decision"]["verdict"] == "deny"
    again = gate.wait(gate.ask())
    assert again["verdict"] == "deny"
    assert "less than 60 s" in again["reason"]
    gate.ask(operation_hash="cd" * 32)
    assert approver.call("list")["requests"][0]["operation_hash"] == "cd" * 32


def test_an_answer_counts_once(authority: Authority) -> None:
    gate, one, two = authority.gate(), authority.approver(), authority.approver()
    ident = gate.ask()
    request = pending(one)
    pending(two)
    first, second = one.send("deny", request=request, reason=""), two.send("approve", request=request, reason="")
    outcomes = []
    for client, sent in ((one, first), (two, second)):
        try:
            client.wait(sent)
            outcomes.append(client)
        except InvalidError:
            pass
    assert len(outcomes) == 1
    assert gate.wait(ident)["verdict"] == ("deny" if outcomes == [one] else "approve")


def test_what_a_pod_asks_for_is_capped(authority: Authority) -> None:
    gate, approver = authority.gate(), authority.approver()
    for number in range(MAX_PENDING):
        gate.ask(operation_hash=f"{number:064x}")
    answer = gate.wait(gate.ask())
    assert answer["verdict"] == "deny"
    assert "waiting" in answer["reason"]
    assert len(approver.call("list")["requests"]) == MAX_PENDING
    other = authority.gate("p2")
    other.ask()
    assert len(approver.call("list")["requests"]) == MAX_PENDING + 1


def test_a_withdrawn_request_and_a_lost_gate_are_gone(authority: Authority) -> None:
    gate, approver = authority.gate(), authority.approver()
    ident = gate.ask()
    request = pending(approver)
    gate.call("withdraw", target=ident)
    assert approver.event()["verdict"] == "withdrawn"
    with pytest.raises(InvalidError):
        approver.call("approve", request=request, reason="")
    gate.ask()
    pending(approver)
    gate.close()
    assert approver.event()["verdict"] == "withdrawn"
    assert approver.call("list") == {"requests": []}


def test_another_gate_cannot_withdraw_it(authority: Authority) -> None:
    gate, other, approver = authority.gate("p1"), authority.gate("p2"), authority.approver()
    ident = gate.ask()
    pending(approver)
    other.call("withdraw", target=ident)
    assert len(approver.call("list")["requests"]) == 1


def test_what_is_shown_cannot_play_tricks(authority: Authority) -> None:
    gate, approver = authority.gate(), authority.approver()
    gate.ask(
        display=["argv: ls\x1b[2K\nallow? y", "x\u202e" * 20_000],
        decision={"rule": "r\x07", "reason": "a\nb", "obligations": ["x\r", 7]},
        operation={"kind": "\u202erun"},
        principal=WHO + "\u200b",
    )
    request = approver.event()["request"]
    text = json.dumps(request, ensure_ascii=False)
    assert not any(c in text for c in "\x1b\x07\u202e\u200b")
    assert request["display"][0] == "argv: ls\\u001b[2K\\u000aallow? y"
    assert "cut" in request["display"][1]
    assert request["decision"]["obligations"] == ["x\\u000d", "7"]


@pytest.mark.parametrize(
    "fields",
    [
        {"display": []},
        {"display": "x"},
        {"display": [1]},
        {"decision": "x"},
        {"operation": None},
        {"operation_hash": "x"},
        {"principal": 1},
    ],
)
def test_an_ask_that_is_none_is_refused(authority: Authority, fields: dict[str, Any]) -> None:
    gate, approver = authority.gate(), authority.approver()
    with pytest.raises(InvalidError):
        gate.wait(gate.ask(**fields))
    assert approver.call("list") == {"requests": []}


def test_an_approver_can_do_nothing_else(authority: Authority) -> None:
    authority.gate()
    approver = authority.approver()
    for op, fields in (
        ("budget", {}),
        ("reserve", {}),
        ("append", {}),
        ("ask", {}),
        ("svid", {}),
        ("approve", {"request": "nope", "reason": ""}),
        ("show", {"request": "nope"}),
        ("show", {}),
        ("approve", {"request": 1}),
    ):
        with pytest.raises(InvalidError):
            approver.call(op, **fields)


def test_a_reason_is_bounded(authority: Authority) -> None:
    gate, approver = authority.gate(), authority.approver()
    gate.ask()
    with pytest.raises(InvalidError):
        approver.call("approve", request=pending(approver), reason="x" * 1_025)


def test_an_approval_that_cannot_be_recorded_is_a_no(in_process: Any) -> None:
    service, gate, approver = in_process
    service.frame(gate, 1, op="ask")
    request = approver.seen[-1]["request"]["request"]

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (service.log.head.offset + 50, hard))
    try:
        service.ledger.commit = lambda: None  # its file is longer than the log's limit; what fails here is the log
        service.frame(approver, 2, op="approve", request=request, reason="")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    del service.ledger.commit
    assert approver.seen[-1]["error"]["code"] == "audit_unavailable"
    assert gate.seen[-1]["ok"]["verdict"] == "deny"
    assert "token" not in gate.seen[-1]["ok"]


def test_requests_and_tokens_expire_by_both_clocks(in_process: Any) -> None:
    service, gate, approver = in_process
    minute = 60 * 10**9
    for wall, mono in ((6 * minute, 0), (0, 6 * minute)):
        service.frame(gate, 1, op="ask")
        request = approver.seen[-1]["request"]["request"]
        service.pass_time(wall, mono)
        service.frame(approver, 2, op="approve", request=request, reason="")
        assert gate.seen[-1]["ok"]["verdict"] == "expired"
        assert any("error" in frame for frame in approver.seen[-3:])
    for wall, mono in ((minute, 0), (0, minute), (-minute, 0)):
        service.frame(gate, 1, op="ask")
        request = approver.seen[-1]["request"]["request"]
        service.frame(approver, 2, op="approve", request=request, reason="")
        token = gate.seen[-1]["ok"]["token"]
        service.pass_time(wall, mono)
        service.frame(
            gate, 3, op="reserve", reservation=os.urandom(16).hex(), amount=1, operation_hash=HASH, principal=WHO,
            token=token,
        )  # fmt: skip
        assert gate.seen[-1]["error"]["rule"] == "approval.expired"


def test_no_secret_is_in_a_repr(in_process: Any) -> None:
    service, gate, _ = in_process
    service.frame(gate, 1, op="ask")
    text = repr(service.desk) + repr(service.desk.keys) + repr(service.desk.keys._current) + repr(service.desk._waiting)
    assert service.desk.keys._current.key.hex() not in text
    assert repr(service.desk.keys._current.key) not in text
    for request in service.desk._waiting.values():
        assert repr(request.nonce) not in text


def test_an_approver_of_one_pod_is_nobody_for_another(authority: Authority) -> None:
    first, second = authority.gate("p1"), authority.gate("p2")
    approver = authority.approver(watch=False)
    assert approver.call("watch", pod="p1") == {"requests": []}
    assert second.wait(second.ask()) == {"verdict": "no_approver"}
    ident = first.ask()
    request = approver.event()["request"]
    assert request["pod"] == "p1"
    approver.call("approve", request=request["request"], reason="")
    assert first.wait(ident)["verdict"] == "approve"


def test_another_key_from_one_moment_on(authority: Authority) -> None:
    gate, approver = authority.gate(), authority.approver()
    before = approved(gate, approver)
    approver.event()
    said = approver.call("rotate_key", reason="a habit")
    after = approved(gate, approver, operation_hash="cd" * 32)
    record = next(
        one
        for one in map(json.loads, authority.log.read_text().splitlines())
        if one["decision"] == {"verdict": "rotate_key"}
    )
    assert record["outcome"] == {"approver": "uid:1000", "identity": PERSON, "reason": "a habit"}
    assert record["context"]["new"] == said["key"] != record["context"]["old"]
    assert bytes.fromhex(after.partition(".")[0]).endswith(said["key"].encode())
    assert bytes.fromhex(before.partition(".")[0]).endswith(record["context"]["old"].encode())
    assert gate.reserve(next(NAMES), 10, token=before) == {}
    with pytest.raises(DeniedError):
        gate.reserve(next(NAMES), 10, token=before)  # and still once
    fields = {"reservation": next(NAMES), "amount": 10, "operation_hash": "cd" * 32, "principal": WHO}
    assert gate.call("reserve", token=after, **fields) == {}
    for _ in range(6):
        approver.call("rotate_key")
    with pytest.raises(InvalidError, match="keys are held"):
        approver.call("rotate_key")


def test_who_may_only_answer_changes_no_key(authority: Authority) -> None:
    other = authority.attach("approver", uid=1001, answers_only=True)
    with pytest.raises(DeniedError, match="may only answer"):
        other.call("rotate_key")
