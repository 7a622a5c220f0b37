from __future__ import annotations

import json

from .harness import Authority, ids


def test_one_operation(authority: Authority) -> None:
    gate = authority.gate(limit=1000)
    name = next(ids())
    assert gate.reserve(name, 600) == {}
    assert gate.call("budget") == {"limit": 1000, "spent": 0, "reserved": 600}
    intent = gate.append("intent", reservation=name, reserved=600)
    assert gate.call("settle", reservation=name, actual=100) == {"spent": 100}
    outcome = gate.append("outcome", reservation=name, reserved=600, charged=100)
    assert outcome["seq"] == intent["seq"] + 1
    assert gate.call("budget") == {"limit": 1000, "spent": 100, "reserved": 0}
    lines = [json.loads(line) for line in authority.log.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["pod.start", "intent", "outcome"]
    assert {line["pod"] for line in lines} == {"p1"}
