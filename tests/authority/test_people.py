"""Whose yes counts, and who may start a pod, by SPIFFE ID, through the real authority process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nucleus.errors import DeniedError, InvalidError, NucleusError

from .harness import PERSON, TRUST_DOMAIN, Authority, ids

NAMES = ids()
ANN = f"spiffe://{TRUST_DOMAIN}/people/ann"
BY_PEOPLE = [[f"spiffe://{TRUST_DOMAIN}/people/*"]]


def records(authority: Authority, event: str = "approval") -> list[dict[str, Any]]:
    return [one for one in map(json.loads, authority.log.read_text().splitlines()) if one["event"] == event]


def register(authority: Authority, name: str = ANN, uid: int = 1000, *more: str) -> str:
    person = authority.attach("identity", uid=0)
    entry = person.call("entry_add", spiffe_id=name, selectors=[f"unix:uid:{uid}", *more])["entry"]
    return str(entry["entry"])


def test_an_entry_of_their_uid_makes_somebody_an_approver(authority: Authority) -> None:
    register(authority)
    gate, approver = authority.gate(), authority.approver()
    ident = gate.ask(approvers=BY_PEOPLE)
    request = approver.event()["request"]
    assert request["approvers"] == BY_PEOPLE
    approver.call("approve", request=request["request"], reason="fine")
    answer = gate.wait(ident)
    assert answer["verdict"] == "approve"
    assert gate.reserve(next(NAMES), 10, token=answer["token"]) == {}
    assert records(authority)[-1]["outcome"] == {"approver": "uid:1000", "identity": ANN, "reason": "fine"}


def test_the_local_name_is_enough(authority: Authority) -> None:
    gate, approver = authority.gate(), authority.approver()
    ident = gate.ask(approvers=[[PERSON, ANN], [f"spiffe://{TRUST_DOMAIN}/user/*"]])
    approver.call("approve", request=approver.event()["request"]["request"], reason="")
    assert gate.wait(ident)["verdict"] == "approve"
    assert records(authority)[-1]["outcome"]["identity"] == PERSON


def test_who_is_not_named_says_no_and_no_yes(authority: Authority) -> None:
    gate = authority.gate()
    named, other = authority.approver(), authority.approver(uid=1001)
    ident = gate.ask(approvers=[[PERSON]])
    request = other.event()["request"]["request"]
    for _ in range(3):
        with pytest.raises(DeniedError) as caught:
            other.call("approve", request=request, reason="me")
        assert caught.value.rule == "approval.identity"
    (refused,) = records(authority)  # once, not each time
    assert refused["decision"]["verdict"] == "refused"
    assert refused["outcome"] == {"approver": "uid:1001", "identity": "", "reason": "me"}
    assert refused["context"]["approvers"] == [PERSON]
    named.call("approve", request=request, reason="")
    assert gate.wait(ident)["verdict"] == "approve"
    ident = gate.ask(operation_hash="cd" * 32, approvers=[[PERSON]])
    other.event()  # the first is resolved
    other.call("deny", request=other.event()["request"]["request"], reason="")
    assert gate.wait(ident)["verdict"] == "deny"


def test_who_is_not_named_is_nobody_present(authority: Authority) -> None:
    gate, named = authority.gate(), authority.approver()
    authority.approver(uid=1001)
    assert gate.wait(gate.ask(approvers=[[ANN]])) == {"verdict": "no_approver"}
    ident = gate.ask(approvers=[[PERSON]])
    named.event()
    named.close()
    assert gate.wait(ident)["verdict"] == "no_approver"


def test_nobody_approves_their_own(authority: Authority) -> None:
    """A local program with an SVID of its own calls a pod; its user is no approver of it, by whatever name."""
    register(authority)
    register(authority, f"spiffe://{TRUST_DOMAIN}/people/boss")
    gate, approver = authority.gate(), authority.approver()
    for lists in ({}, {"approvers": BY_PEOPLE}):
        assert gate.wait(gate.ask(principal=ANN, **lists)) == {"verdict": "no_approver"}  # nobody who counts is there
    other = authority.approver(uid=1001)
    ident = gate.ask(principal=ANN)
    request = approver.event()["request"]["request"]
    with pytest.raises(DeniedError, match="does not count"):
        approver.call("approve", request=request, reason="")
    assert records(authority)[-1]["decision"]["verdict"] == "refused"
    other.call("approve", request=request, reason="")
    assert gate.wait(ident)["verdict"] == "approve"


def test_nobody_approves_what_a_program_of_theirs_asks_by_a_name_of_its_own(authority: Authority) -> None:
    """Of one user: a tool, by its uid and its path, and a person, by the uid alone."""
    register(authority)
    tool = f"spiffe://{TRUST_DOMAIN}/ci/tool"
    register(authority, tool, 1000, "unix:path:/usr/bin/tool")
    gate, approver = authority.gate(), authority.approver()
    for lists in ({}, {"approvers": BY_PEOPLE}):
        assert gate.wait(gate.ask(principal=tool, **lists)) == {"verdict": "no_approver"}
    other = authority.approver(uid=1001)
    ident = gate.ask(principal=tool)
    request = approver.event()["request"]["request"]
    with pytest.raises(DeniedError, match="does not count"):
        approver.call("approve", request=request, reason="")
    other.call("approve", request=request, reason="")
    assert gate.wait(ident)["verdict"] == "approve"


def test_who_is_revoked_approves_no_more(authority: Authority) -> None:
    register(authority)
    gate, approver, person = authority.gate(), authority.approver(), authority.attach("identity", uid=0)
    scopes = [{"kind": "same", "key": "ab" * 32, "shown": "again"}]
    ident = gate.ask(approvers=BY_PEOPLE, scopes=scopes)
    approver.call("approve", request=approver.event()["request"]["request"], reason="", scope="same", times=5)
    assert gate.wait(ident)["verdict"] == "approve"
    ident = gate.ask(approvers=BY_PEOPLE, scopes=scopes)
    assert gate.wait(ident)["verdict"] == "approve"  # by the grant
    assert records(authority)[-1]["outcome"]["identity"] == ANN
    waiting = gate.ask(approvers=BY_PEOPLE, operation_hash="cd" * 32)
    person.call("revoke", what=ANN, reason="left")
    assert gate.wait(gate.ask(approvers=BY_PEOPLE, scopes=scopes))["verdict"] == "no_approver"  # nor does the grant
    with pytest.raises(DeniedError, match="does not count"):
        approver.call("approve", request=approver.call("list")["requests"][0]["request"], reason="")
    approver.close()
    assert gate.wait(waiting)["verdict"] == "no_approver"
    person.call("revoke", what=PERSON, reason="all of it")
    again, other = authority.approver(), authority.approver(uid=1001)
    gate.ask(operation_hash="ef" * 32)  # without a list of approvers, too
    with pytest.raises(DeniedError, match="does not count"):
        again.call("approve", request=again.event()["request"]["request"], reason="")
    person.call("restore", what=PERSON)
    again.call("approve", request=again.call("list")["requests"][0]["request"], reason="")
    person.call("revoke", what=PERSON, reason="again")
    other.close()
    assert gate.wait(gate.ask(operation_hash="ef" * 32))["verdict"] == "no_approver"


@pytest.mark.parametrize("name", ["identity-entries.json", "revocations.json"])
def test_a_damaged_list_makes_nobody_of_everybody(state: Path, start: Callable[..., Authority], name: str) -> None:
    (state / name).write_text("{")
    authority = start()
    gate, approver = authority.gate(), authority.approver()
    assert gate.wait(gate.ask()) == {"verdict": "no_approver"}
    with pytest.raises(NucleusError, match=name):
        authority.register("p2", owner=1000, pods=[[PERSON]])
    approver.close()
    approver = authority.approver()
    assert approver.call("rotate_key")["key"]  # and what needs no name still works
    assert records(authority)[-1]["outcome"]["identity"] == ""


def test_an_entry_with_more_selectors_is_no_proof_of_a_person(authority: Authority) -> None:
    register(authority, ANN, 1000, "unix:path:/usr/bin/true")
    register(authority, ANN, 1000, "unix:gid:1000")
    gate = authority.gate()
    authority.approver()
    assert gate.wait(gate.ask(approvers=BY_PEOPLE)) == {"verdict": "no_approver"}


@pytest.mark.parametrize("path", ["/user/uid/0", "/user/uid", "/user/uid/1000/x", "/ns/default/sa/gateway-p1"])
def test_no_entry_and_no_order_gives_a_persons_name(authority: Authority, path: str) -> None:
    person = authority.attach("identity", uid=0)
    for op, fields in (("entry_add", {"selectors": ["unix:uid:5"]}), ("issue", {})):
        with pytest.raises(InvalidError) as caught:
            person.call(op, spiffe_id=f"spiffe://{TRUST_DOMAIN}{path}", **fields)
        assert caught.value.rule == "identity.reserved"


@pytest.mark.parametrize("lists", ["x", [["a"], "b"], [[1]], [["\u00e9"]], [["x" * 2_049]], [[]] * 65, [["a"] * 65]])
def test_lists_are_read_strictly(authority: Authority, lists: Any) -> None:
    gate = authority.gate()
    authority.approver()
    with pytest.raises(InvalidError):
        gate.wait(gate.ask(approvers=lists))


def test_two_people_are_both_named(authority: Authority) -> None:
    gate = authority.gate()
    one, two, three = (authority.approver(uid=uid) for uid in (1000, 1001, 1002))
    decision = {"rule": "approve.run_bash", "reason": "r", "obligations": ["approval:run_bash", "people:2"]}
    lists = [[PERSON, f"spiffe://{TRUST_DOMAIN}/user/uid/1001"]]
    ident = gate.ask(decision=decision, approvers=lists)
    request = one.event()["request"]["request"]
    assert one.call("approve", request=request, reason="") == {"more": 1}
    with pytest.raises(DeniedError, match="does not count"):
        three.call("approve", request=request, reason="")
    two.call("approve", request=request, reason="")
    assert gate.wait(ident)["verdict"] == "approve"
    found = [(one["decision"]["verdict"], one["outcome"]["identity"].rpartition("/")[2]) for one in records(authority)]
    assert found == [("assent", "1000"), ("refused", ""), ("approve", "1001")]


def test_who_may_start_a_pod(authority: Authority) -> None:
    authority.register("p1", owner=1000, pods=[[PERSON]])
    assert records(authority, "pod.start")[-1]["context"]["owner"] == "uid:1000"
    for owner, lists in ((1001, [[PERSON]]), (1000, [[PERSON], [ANN]]), (1000, [[]]), (1000, [["own"]])):
        with pytest.raises(DeniedError) as caught:
            authority.register("p2", owner=owner, pods=lists)
        assert caught.value.rule == "identity.pods"
    with pytest.raises(DeniedError):
        authority.register("p2", pods=[[PERSON]])  # nobody said who
    assert len(records(authority, "pod.start")) == 1
    refused = records(authority, "identity.refused")
    assert len(refused) == 5
    assert refused[0]["operation"] == "create_pod"
    assert refused[0]["context"]["owner"] == "uid:1001"
    register(authority)
    authority.register("p2", owner=1000, pods=BY_PEOPLE)
    authority.register("p3")
