"""What the audit log says of an operation, however it ended: who, what, when, and how (root and user)."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .held import Held
from .site import Site
from .test_serve import Served

CLIENT = """
import os
os.environ.update({})
from nucleus.sdk.client import Gate, GateError
try:
    Gate().run(["true"])
except GateError as error:
    print(error.code)
"""


def of_pod(site: Site, held: Held) -> list[dict[str, Any]]:
    return [record for record in site.records() if record["pod"] == held.start["pod"]]


def test_every_end_of_an_operation_is_on_record_with_its_principal_and_reason(site: Site) -> None:
    site.write("a.txt", "hello")
    with Held(site) as held:
        pod = held.start["pod"]
        for operation, event, status in (
            ({"kind": "read", "path": "a.txt"}, "outcome", "ok"),
            ({"kind": "read", "path": ".env"}, "denied", "denied"),
            ({"kind": "read", "path": "x" * 5_000}, "invalid", "invalid_request"),
            ({"kind": "read", "path": "missing"}, "outcome", "operation_failed"),
        ):
            reply = held.operate(**operation)
            record = of_pod(site, held)[-1]
            assert (record["event"], record["outcome"]["status"]) == (event, status)
            assert record["principal"] == f"spiffe://nucleus.local/ns/default/sa/orchestrator-{pod}"
            assert record["request_id"] == reply["request_id"]
            assert record["seq"] == reply["audit"]
            assert status == "ok" or record["outcome"]["reason"]
            assert record["time_ns"] > 10**18
            assert record["mono_ns"] > 0
            assert "x" * 100 not in json.dumps(record)


def test_a_genuine_svid_at_the_wrong_door_is_on_record(site: Site) -> None:
    first, other = Served(site), Served(site)
    try:
        door = {**first.door, "workload": other.door["workload"]}
        names = {"NUCLEUS_GATE": "gate", "NUCLEUS_GATE_ID": "gate_id", "NUCLEUS_WORKLOAD_SOCKET": "workload"}
        with site.script(CLIENT.format({name: door[key] for name, key in names.items()})) as child:
            assert child.communicate(timeout=30)[0] == "unauthenticated\n"
        record = [r for r in site.records() if r["event"] == "unauthenticated"][-1]
        attempted = other.door["gate_id"].replace("gate-", "orchestrator-")
        assert attempted in record["outcome"]["reason"]
        assert first.door["gate_id"].endswith(record["pod"])
    finally:
        first.stop()
        other.stop()


@pytest.mark.parametrize("body", ["{", '{"a":1,"a":2}', "[]"])
def test_a_body_that_is_no_request_is_on_record(site: Site, body: str) -> None:
    agent = f"""
from nucleus.sdk.client import Gate, GateError
try:
    Gate()._exchange("POST", "/v1/read", {body.encode()!r}, 10, None)
except GateError as error:
    print(error.code)
"""
    before = len(site.records())
    done = site.cli("run", "--profile", "codegen", "--workdir", str(site.workspace), "--", "python3", "-c", agent)
    assert done.stdout == "invalid_request\n", done.stderr
    (record,) = [r for r in site.records()[before:] if r["event"] == "invalid"]
    assert "/sa/agent-" in record["principal"]


def test_the_pods_start_names_its_policy_and_the_shared_kernel(site: Site) -> None:
    with Held(site) as held:
        (start,) = of_pod(site, held)
    assert start["event"] == "pod.start"
    assert start["context"]["policy_name"] == "codegen"
    assert len(start["context"]["policy_digest"]) == 64
    isolation = start["context"]["isolation"]
    assert (isolation["backend"], isolation["kernel"]) == ("namespaces", "shared")


def test_no_policy_is_taken_from_the_workspace(site: Site) -> None:
    text = "version: 1\nname: mine\ncapabilities: {run_bash: always}\ncommands: {allow: everything}\n"
    for name in ("policy.yaml", "nucleus.yaml", ".nucleus.yaml", ".nucleus/policy.yaml", "restrictive.yaml"):
        site.write(name, text)
    done = site.cli("exec", "--workdir", str(site.workspace), "--", "true")
    assert done.returncode == 3
    start = [record for record in site.records() if record["event"] == "pod.start"][-1]
    assert start["context"]["policy_name"] == "restrictive"
