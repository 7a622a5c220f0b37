"""What the process behind a pod's Workload API may ask of the real authority: what is that pod's, and nothing else."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from cryptography import x509

from nucleus.authority.peers import POD_READ_BURST, WORKLOAD_BURST
from nucleus.errors import BudgetError, DeniedError, InvalidError, NucleusError

from .harness import Authority, Client

UID = 4_711
AGENT = "spiffe://nucleus.local/ns/default/sa/agent-p1"


def facts(uid: int = UID, **changes: Any) -> dict[str, Any]:
    return {"uid": uid, "gid": 0, "groups": [], "path": None, "sha256": None, "pod": None, "pid": 77, **changes}


def served(authority: Authority, pod: str = "p1", whose: str = "agent") -> Client:
    return authority.attach("pod_workload_api", pod=pod, uid=UID, whose=whose)


def records(authority: Authority) -> list[dict[str, Any]]:
    return [json.loads(line) for line in authority.log.read_bytes().splitlines()]


def test_the_pods_identity_in_each_form_on_record(authority: Authority) -> None:
    authority.register()
    api = served(authority)
    (svid,) = api.call("x509", facts=facts())["svids"]
    assert svid["spiffe_id"] == AGENT
    leaf = x509.load_der_x509_certificate(base64.b64decode(svid["chain"]))
    assert f"{leaf.serial_number:x}" == svid["serial"]
    issued = records(authority)[-1]
    assert (issued["event"], issued["pod"], issued["principal"]) == ("identity.issued", "p1", AGENT)
    assert issued["context"]["pid"] == 77
    (token,) = api.call("jwt", facts=facts(), audience=["a"])["svids"]
    assert token["spiffe_id"] == AGENT
    assert records(authority)[-1]["operation"] == "fetch_jwt_svid"
    assert api.call("bundles", facts=facts())["trust_domain"] == "nucleus.local"


def test_an_orchestrators_is_the_orchestrators(authority: Authority) -> None:
    authority.register()
    (svid,) = served(authority, whose="orchestrator").call("x509", facts=facts())["svids"]
    assert svid["spiffe_id"] == AGENT.replace("agent", "orchestrator")


@pytest.mark.parametrize("op", ["x509", "look", "bundles", "jwt"])
def test_another_uid_gets_nothing_and_that_is_on_record(authority: Authority, op: str) -> None:
    authority.register()
    api = served(authority)
    with pytest.raises(DeniedError):
        api.call(op, facts=facts(UID + 1), audience=["a"])
    api.call("state")  # a refusal is answered in the turn in which it is recorded
    refused = records(authority)[-1]
    assert (refused["event"], refused["pod"]) == ("identity.refused", "p1")
    assert refused["context"]["uid"] == UID + 1


@pytest.mark.parametrize("asked", [AGENT.replace("p1", "p2"), AGENT.replace("agent", "gate"), AGENT + "x"])
@pytest.mark.parametrize("op", ["x509", "look", "jwt"])
def test_another_id_is_refused_and_on_record(authority: Authority, op: str, asked: str) -> None:
    authority.register()
    authority.register("p2")
    api = served(authority)
    with pytest.raises(DeniedError):
        api.call(op, facts=facts(), spiffe_id=asked, audience=["a"])
    api.call("state")
    assert records(authority)[-1]["event"] == "identity.refused"


def test_what_it_says_of_a_pod_a_path_or_a_group_counts_for_nothing(authority: Authority) -> None:
    authority.register()
    authority.register("p2")
    person = authority.attach("identity", uid=0)
    other = "spiffe://nucleus.local/registered"
    person.call("entry_add", spiffe_id=other, selectors=[f"unix:uid:{UID}"])
    lie = facts(pod="p2", path="/usr/bin/x", sha256="ab" * 32, groups=[0])
    (svid,) = served(authority).call("x509", facts=lie)["svids"]
    assert svid["spiffe_id"] == AGENT
    assert records(authority)[-1]["pod"] == "p1"


@pytest.mark.parametrize("op", ["refused", "entries", "entry_add", "issue", "revoke", "show", "svid", "append", ""])
def test_nothing_but_the_four_questions(authority: Authority, op: str) -> None:
    authority.register()
    api = served(authority)
    with pytest.raises(InvalidError):
        api.call(op, facts=facts(), reason="x", spiffe_id=AGENT)
    assert api.call("state")["version"]


@pytest.mark.parametrize("changed", [{"uid": -1}, {"uid": "0"}, {"more": 1}, {"groups": 7}])
def test_facts_that_are_none(authority: Authority, changed: dict[str, Any]) -> None:
    authority.register()
    with pytest.raises(InvalidError):
        served(authority).call("x509", facts=facts() | changed)


def test_one_for_each_pod_the_last_counts(authority: Authority) -> None:
    authority.register()
    first, second = served(authority), served(authority)
    with pytest.raises((EOFError, OSError)):
        first.call("x509", facts=facts())
    assert second.call("x509", facts=facts())["svids"]
    with pytest.raises(NucleusError):
        served(authority, pod="nope")
    with pytest.raises(NucleusError):
        served(authority, whose="gate")


def test_revocations_are_told_and_hold(authority: Authority) -> None:
    authority.register()
    api = served(authority)
    api.call("state")
    answer = api.call("x509", facts=facts())
    (svid,) = answer["svids"]
    person = authority.attach("identity", uid=0)
    person.call("revoke", what=svid["serial"], reason="test")
    assert api.receive() == {"id": 0, "event": "changed"}
    looked = api.call("look", facts=facts(), serials=[svid["serial"]])
    assert looked["digest"] != answer["digest"]
    person.call("revoke", what=AGENT, reason="test")
    assert api.receive() == {"id": 0, "event": "changed"}
    for op in ("x509", "look", "bundles", "jwt"):
        with pytest.raises(DeniedError):
            api.call(op, facts=facts(), audience=["a"])


def test_the_rate_is_the_pods_whoever_asks_and_what_was_over_is_said(authority: Authority) -> None:
    authority.register()
    issued = over = 0
    for _ in range(3):
        api = served(authority)
        for _ in range(WORKLOAD_BURST):
            try:
                api.call("x509", facts=facts())
                issued += 1
            except BudgetError:
                over += 1
        api.close()
    assert WORKLOAD_BURST <= issued < WORKLOAD_BURST + 10
    api = served(authority)
    for _ in range(POD_READ_BURST + 60):
        try:
            api.call("state")
        except BudgetError:
            over += 1
    authority.order("close_pod", pod="p1", reason="test")
    assert records(authority)[-1]["context"]["workload_requests_refused"] == over
    with pytest.raises((EOFError, OSError)):
        api.call("state")
