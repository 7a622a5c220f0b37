"""Wider answers through the real process: what is counted, what ends a grant, and what it never answers."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from typing import Any

import pytest

from nucleus.approval.rules import DENIALS
from nucleus.authority.grants import MAX_GRANTS
from nucleus.errors import DeniedError, InvalidError

from .harness import PERSON, WHO, Authority, Client, ids
from .test_approvals import pending

NAMES = ids()
PATH, SAME = "11" * 32, "22" * 32
HOUR = 3_600 * 10**9


def offers(path: str = PATH, same: str = SAME) -> list[dict[str, str]]:
    return [
        {"kind": "same", "key": same, "shown": "exactly this write again"},
        {"kind": "path", "key": path, "shown": 'write to "notes.txt", any content'},
    ]


def ask(gate: Client, number: int, **fields: Any) -> int:
    """The `number`th content for the same path."""
    body = {"scopes": offers(same=f"{number:064x}"), "operation_hash": f"{number:064x}", **fields}
    return gate.ask(operation={"kind": "write"}, **body)


def grant(gate: Client, approver: Client, times: int, number: int = 1, **fields: Any) -> dict[str, Any]:
    """Ask, and answer with a path grant; the approver's answer."""
    ident = ask(gate, number, **fields)
    answer = approver.call("approve", request=pending(approver), reason="", scope="path", times=times)
    assert gate.wait(ident)["verdict"] == "approve"
    assert approver.event()["event"] == "resolved"
    found: dict[str, Any] = answer["grant"]
    return found


def entries(authority: Authority) -> list[dict[str, Any]]:
    return [json.loads(line) for line in authority.log.read_bytes().splitlines()]


def waits(approver: Client) -> int:
    return len(approver.call("list")["requests"])


def test_it_answers_as_often_as_was_said_each_time_with_a_token_of_its_own(authority: Authority) -> None:
    gate, approver = authority.gate(), authority.approver()
    made = grant(gate, approver, 3)
    assert (made["times"], made["left"], made["scope"]) == (3, 2, "path")
    assert made["shown"] == 'write to "notes.txt", any content'
    assert 3_599_000 < made["remaining_ms"] <= 3_600_000
    approver.close()  # nobody is there any more: the person said three times
    tokens = []
    for number in (2, 3):
        answer = gate.wait(ask(gate, number))
        assert (answer["verdict"], answer["approver"]) == ("approve", "uid:1000")
        assert answer["reason"] == f"grant {made['grant']}, {number} of 3"
        tokens.append(answer["token"])
    assert gate.wait(ask(gate, 4)) == {"verdict": "no_approver"}
    for token, wrong, right in ((tokens[0], 3, 2), (tokens[1], 2, 3)):
        fields = {"amount": 1, "principal": WHO, "token": token}
        with pytest.raises(DeniedError):  # bound to the operation that it was minted for
            gate.call("reserve", reservation=next(NAMES), operation_hash=f"{wrong:064x}", **fields)
        gate.call("reserve", reservation=next(NAMES), operation_hash=f"{right:064x}", **fields)
        with pytest.raises(DeniedError):
            gate.call("reserve", reservation=next(NAMES), operation_hash=f"{right:064x}", **fields)
    found = [entry for entry in entries(authority) if entry["event"] == "approval"]
    assert [entry["context"]["grant"]["number"] for entry in found] == [1, 2, 3]
    for number, entry in enumerate(found, 1):
        assert entry["operation_hash"] == f"{number:064x}"
        assert entry["outcome"]["approver"] == "uid:1000"
        record = entry["context"]["grant"]
        assert (record["grant"], record["times"], record["key"]) == (made["grant"], 3, PATH)
    text = authority.log.read_text()
    assert not any(token in text for token in tokens)


def test_a_burst_gets_no_more_than_was_said(authority: Authority) -> None:
    gate, approver = authority.gate(), authority.approver()
    grant(gate, approver, 5)
    idents = [
        gate.send(
            "ask", operation={"kind": "write"}, operation_hash=f"{number:064x}", principal=WHO, display=["x"],
            decision={"rule": "r", "reason": "why"}, scopes=offers(same=f"{number:064x}"),
        )
        for number in range(2, 14)
    ]  # fmt: skip
    assert [gate.wait(ident)["verdict"] for ident in idents[:4]] == ["approve"] * 4
    gate.call("budget")
    assert not gate.answers
    assert waits(approver) == 8


def test_it_is_for_its_pod_principal_and_key_alone(authority: Authority) -> None:
    gate, other, approver = authority.gate("p1"), authority.gate("p2"), authority.approver()
    grant(gate, approver, 9)
    for number, (client, fields) in enumerate(
        (
            (other, {}),
            (gate, {"principal": WHO + "x"}),
            (gate, {"scopes": offers(path="33" * 32)}),  # another path, kind, rule or obligation is another key
            (gate, {"scopes": []}),
        ),
        2,
    ):
        before = waits(approver)
        ask(client, number, **fields)
        assert waits(approver) == before + 1
    assert approver.call("grants")["grants"][0]["left"] == 8
    assert gate.wait(ask(gate, 9))["verdict"] == "approve"


@pytest.mark.parametrize(
    ("answer", "rule"),
    [
        ({"scope": "host", "times": 2}, "approval.scope"),  # not on offer
        ({"scope": "everything", "times": 2}, "approval.scope"),
        ({"scope": "path"}, "approval.times"),
        ({"scope": "path", "times": 0}, "approval.times"),
        ({"scope": "path", "times": 101}, "approval.times"),
        ({"scope": "path", "times": True}, "approval.times"),
        ({"scope": "path", "times": "2"}, "approval.times"),
        ({"times": 2}, "frames.field"),
    ],
)
def test_an_answer_wider_than_shown_is_refused_and_the_request_waits_on(
    authority: Authority, answer: dict[str, Any], rule: str
) -> None:
    gate, approver = authority.gate(), authority.approver()
    ident = ask(gate, 1)
    request = pending(approver)
    with pytest.raises(InvalidError) as caught:
        approver.call("approve", request=request, reason="", **answer)
    assert caught.value.rule == rule
    assert approver.call("grants") == {"grants": []}
    approver.call("approve", request=request, reason="")
    assert gate.wait(ident)["verdict"] == "approve"
    ask(gate, 1)
    assert waits(approver) == 1  # once is once


@pytest.mark.parametrize(
    "scopes",
    [
        "x", [1], [{}], [{"kind": "path", "key": PATH}], [{"kind": "all", "key": PATH, "shown": "x"}],
        [{"kind": "path", "key": "x", "shown": "x"}], [{"kind": "path", "key": PATH.replace("1", "A"), "shown": "x"}],
        [{"kind": "path", "key": PATH, "shown": ""}], [{"kind": "path", "key": PATH, "shown": "x" * 801}],
        [{"kind": ["path"], "key": PATH, "shown": "x"}], offers() + offers(), offers() * 3,
    ],
)  # fmt: skip
def test_an_offer_that_is_none_is_refused(authority: Authority, scopes: Any) -> None:
    gate, approver = authority.gate(), authority.approver()
    with pytest.raises(InvalidError):
        gate.wait(gate.ask(scopes=scopes))
    assert waits(approver) == 0


def test_what_is_offered_cannot_play_tricks(authority: Authority) -> None:
    gate, approver = authority.gate(), authority.approver()
    gate.ask(scopes=[{"kind": "path", "key": PATH, "shown": 'write to "a\u202e\x1b[2K\nb"'}])
    shown = approver.event()["request"]["scopes"]
    assert shown == [{"kind": "path", "shown": 'write to "a\\u202e\\u001b[2K\\u000ab"'}]


def test_revoked_is_over_and_on_record(authority: Authority) -> None:
    gate, approver = authority.gate(), authority.approver()
    made = grant(gate, approver, 9)
    assert gate.wait(ask(gate, 2))["verdict"] == "approve"
    told = approver.event()
    assert (told["event"], told["grant"]["left"]) == ("granted", 7)
    assert approver.call("revoke", grant=made["grant"], reason="enough") == {}
    entry = entries(authority)[-1]
    assert (entry["event"], entry["decision"]["verdict"]) == ("approval", "revoke")
    assert entry["outcome"] == {"approver": "uid:1000", "identity": PERSON, "reason": "enough"}
    assert (entry["context"]["grant"]["grant"], entry["context"]["grant"]["number"]) == (made["grant"], 2)
    assert approver.call("grants") == {"grants": []}
    ask(gate, 3)
    assert waits(approver) == 1
    with pytest.raises(InvalidError):
        approver.call("revoke", grant=made["grant"], reason="")


def test_a_no_to_the_same_key_ends_it(authority: Authority) -> None:
    gate, approver = authority.gate(), authority.approver()
    first, second = ask(gate, 1), ask(gate, 2)
    one, two = pending(approver), pending(approver)
    approver.call("approve", request=one, reason="", scope="path", times=9)
    assert gate.wait(first)["verdict"] == "approve"
    approver.call("deny", request=two, reason="")
    assert gate.wait(second)["verdict"] == "deny"
    assert len(entries(authority)[-1]["context"]["revoked"]) == 1
    ask(gate, 3)
    assert waits(approver) == 1


def test_what_was_just_denied_is_not_answered_by_a_grant(authority: Authority) -> None:
    gate, approver = authority.gate(), authority.approver()
    ident = ask(gate, 7)
    approver.call("deny", request=pending(approver), reason="")
    assert gate.wait(ident)["verdict"] == "deny"
    assert approver.event()["event"] == "resolved"
    made = grant(gate, approver, 9)
    assert "denied less than 60 s" in gate.wait(ask(gate, 7))["reason"]
    assert approver.call("grants")["grants"][0]["left"] == made["left"]


def test_a_grant_is_no_way_around_the_caps(authority: Authority) -> None:
    """What a grant answers counts as no prompt; what it does not answer is paused as ever."""
    gate, approver = authority.gate(), authority.approver()
    grant(gate, approver, 50)
    for number in range(100, 100 + DENIALS):
        ident = ask(gate, number, scopes=[])
        approver.call("deny", request=approver.call("list")["requests"][0]["request"], reason="")
        gate.wait(ident)
    assert "in a row" in gate.wait(ask(gate, 200, scopes=[]))["reason"]
    assert gate.wait(ask(gate, 2))["verdict"] == "approve"
    assert "in a row" in gate.wait(ask(gate, 201, scopes=[]))["reason"]


def test_a_pods_grants_are_bounded(authority: Authority) -> None:
    gate, approver = authority.gate(), authority.approver()
    for number in range(1, MAX_GRANTS + 1):
        grant(gate, approver, 2, number, scopes=offers(path=f"{number:064x}"))
    ask(gate, 999, scopes=offers(path="ee" * 32))
    request = pending(approver)
    with pytest.raises(InvalidError) as caught:
        approver.call("approve", request=request, reason="", scope="path", times=2)
    assert caught.value.rule == "approval.grants"
    approver.call("approve", request=request, reason="")


def test_it_ends_with_its_gate_and_its_pod(authority: Authority) -> None:
    gate, approver = authority.gate(), authority.approver()
    grant(gate, approver, 9)
    authority.order("close_pod", pod="p1", reason="done")
    assert approver.call("grants") == {"grants": []}
    second = authority.gate("p2")
    grant(second, approver, 9)
    second.close()
    for _ in range(200):
        if approver.call("grants") == {"grants": []}:
            break
    assert approver.call("grants") == {"grants": []}


def test_a_restart_forgets_it(start: Callable[..., Authority]) -> None:
    authority = start()
    gate, approver = authority.gate(), authority.approver()
    grant(gate, approver, 9)
    answer = gate.wait(ask(gate, 2))
    authority.kill()  # between a grant's token and its reservation
    again = start()
    gate = again.gate("p2")
    with pytest.raises(DeniedError):
        gate.call("reserve", reservation=next(NAMES), amount=1, operation_hash=f"{2:064x}", principal=WHO,
                  token=answer["token"])  # fmt: skip
    assert gate.wait(ask(gate, 3)) == {"verdict": "no_approver"}
    assert again.approver().call("grants") == {"grants": []}


# In process: clocks and disks in our hand


def given(service: Any, gate: Any, approver: Any, times: int = 9) -> None:
    service.frame(gate, 1, op="ask", scopes=offers())
    request = next(e["request"]["request"] for e in reversed(approver.seen) if e.get("event") == "request")
    service.frame(approver, 2, op="approve", request=request, reason="", scope="path", times=times)
    assert gate.seen[-1]["ok"]["verdict"] == "approve"


def again(service: Any, gate: Any, ident: int) -> Any:
    """The answer to another ask with the same key, None while it waits for a person."""
    before = len(gate.seen)
    service.frame(gate, ident, op="ask", operation_hash=f"{ident:064x}", scopes=offers())
    return gate.seen[-1] if len(gate.seen) > before else None


@pytest.mark.parametrize(("wall", "mono"), [(HOUR, 0), (0, HOUR)])
def test_it_ends_after_an_hour_by_either_clock(in_process: Any, wall: int, mono: int) -> None:
    service, gate, approver = in_process
    given(service, gate, approver)
    service.pass_time(max(0, wall - 1), max(0, mono - 1))
    assert again(service, gate, 3)["ok"]["verdict"] == "approve"
    service.pass_time(bool(wall), bool(mono))
    assert again(service, gate, 4) is None
    service.frame(approver, 5, op="grants")
    assert approver.seen[-1]["ok"] == {"grants": []}


def test_what_cannot_be_recorded_mints_nothing_and_gives_nothing_back(in_process: Any) -> None:
    """The record comes before the token, and the count before the record."""
    service, gate, approver = in_process
    given(service, gate, approver, 3)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (service.log.head.offset + 50, hard))
    try:
        service.ledger.commit = lambda: None  # its file is longer than the log's limit; what fails here is the log
        assert again(service, gate, 3)["error"]["code"] == "audit_unavailable"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        del service.ledger.commit
    assert not any("token" in frame.get("ok", {}) for frame in gate.seen[-1:])
    service.frame(approver, 9, op="grants")
    assert [found["left"] for found in approver.seen[-1]["ok"]["grants"]] == [1]


def test_the_record_is_on_the_disk_when_the_token_leaves(in_process: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    service, gate, approver = in_process
    given(service, gate, approver)
    order = []
    write, answer = service.log.write, gate.answer
    monkeypatch.setattr(service.log, "write", lambda: (write(), order.append("durable"))[0])
    monkeypatch.setattr(gate, "answer", lambda ident, ok: (order.append("token" in ok), answer(ident, ok))[1])
    again(service, gate, 3)
    assert order == ["durable", True]


def test_a_grant_that_cannot_be_recorded_is_none(in_process: Any) -> None:
    service, gate, approver = in_process
    service.frame(gate, 1, op="ask", scopes=offers())
    request = approver.seen[-1]["request"]["request"]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (service.log.head.offset + 50, hard))
    try:
        service.ledger.commit = lambda: None
        service.frame(approver, 2, op="approve", request=request, reason="", scope="path", times=9)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        del service.ledger.commit
    assert gate.seen[-1]["ok"]["verdict"] == "deny"
    service.frame(approver, 3, op="grants")
    assert approver.seen[-1]["ok"] == {"grants": []}
