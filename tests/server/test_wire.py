"""The gate's doors parse JSON in one place: what it refuses, and what it says."""

from __future__ import annotations

import json

import pytest

from nucleus.errors import InvalidError
from nucleus.limits import LIMITS
from nucleus.model.operation import ADAPTER, OPERATIONS, Run, operation_hash
from nucleus.model.receipt import Reply
from nucleus.server.wire import http_status, parse_object, parse_operation, reply_object


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b"", "json.syntax"),
        (b"[]", "json.object"),
        (b"{", "json.syntax"),
        (b'{"a":1,"a":2}', "json.duplicate"),
        (b'{"a":{"b":1,"b":2}}', "json.duplicate"),
        (b'{"a":NaN}', "json.number"),
        (b'{"a":-Infinity}', "json.number"),
        (b'{"a":"\xff"}', "json.utf8"),
        (b'{"a":' + b"[" * 20 + b"]" * 20 + b"}", "json.depth"),
        (b"[" * 100_000, "json.depth"),
        (b" " * (LIMITS.request_bytes + 1), "limits.request"),
    ],
)
def test_refused_before_any_model_sees_it(data: bytes, rule: str) -> None:
    with pytest.raises(InvalidError) as caught:
        parse_object(data)
    assert caught.value.rule == rule


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {"kind": "format_disk"},
        {"kind": "read"},
        {"kind": "read", "path": 7},
        {"kind": "read", "path": "a", "offset": "1"},
        {"kind": "read", "path": "a", "offset": -1},
        {"kind": "read", "path": "a", "token": "x"},
        {"kind": "run", "argv": []},
        {"kind": "run", "argv": "true"},
        {"kind": "run", "argv": ["true", 1]},
        {"kind": "run", "argv": ["true"], "timeout_ms": 10**12},
        {"kind": "edit", "path": "a", "old": "", "new": "x"},
        {"kind": "write", "path": "a", "content": "x", "encoding": "utf-16"},
    ],
)
def test_models_are_strict_and_errors_name_the_field_not_the_value(raw: dict[str, object]) -> None:
    with pytest.raises(InvalidError) as caught:
        parse_operation({**raw, "secret": "VALUE"} if raw.get("kind") == "read" and "path" not in raw else raw)
    assert caught.value.rule in {"schema", "limits.argv"}
    assert "VALUE" not in caught.value.message


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(InvalidError):
        parse_operation(parse_object(b'{"kind":"read","path":"a\\ud800"}'))


def test_every_operation_is_in_the_adapter_and_has_a_capability() -> None:
    capabilities = {model.capability for model in OPERATIONS}
    assert len(capabilities - {"tools"}) == 12  # external tools are decided by what the policy declares of them
    for model in OPERATIONS:
        kind = model.model_fields["kind"].default
        assert f'"{kind}"' in json.dumps(ADAPTER.json_schema())


def test_the_hash_covers_every_field() -> None:
    base = Run(argv=("a", "b"))
    others = [
        Run(argv=("a b",)),
        Run(argv=("a", "b"), cwd="x"),
        Run(argv=("a", "b"), stdin="y"),
        Run(argv=("a", "b"), timeout_ms=1),
    ]
    assert len({operation_hash(op) for op in [base, *others]}) == 5


def test_the_agent_gets_code_and_reason_the_person_the_rule() -> None:
    reply = Reply("r", "denied", reason="blocked", operation="read", audit=3, rule="paths.block", detail="**/.env*")
    assert reply_object(reply, person=False) == {
        "error": "blocked", "kind": "denied", "request_id": "r", "operation": "read", "audit": 3,
    }  # fmt: skip
    assert reply_object(reply, person=True)["rule"] == "paths.block"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("ok", 200), ("invalid_request", 400), ("unauthenticated", 401), ("budget_exhausted", 402), ("denied", 403),
        ("approval_required", 403), ("operation_failed", 422), ("no_egress", 503), ("audit_unavailable", 503),
    ],
)  # fmt: skip
def test_http_statuses(code: str, status: int) -> None:
    assert http_status(Reply("r", code)) == status
