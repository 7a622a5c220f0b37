"""Bytes to raw requests and replies to bytes: the only place where the gate's doors parse JSON.

Promises: size, depth, duplicate keys, non-finite numbers and lone surrogates are refused before a model sees the value.
The agent's door gets the code and the plain reason; the rule, the deciding line and the next step only the person's.
"""

from __future__ import annotations

import json
from typing import Any, Never

from pydantic import TypeAdapter, ValidationError

from nucleus.errors import InvalidError, NucleusError, by_code
from nucleus.limits import LIMITS
from nucleus.model.operation import ADAPTER, CONNECT, Base
from nucleus.model.receipt import Reply
from nucleus.validate import validate_operation


def parse_object(data: bytes) -> dict[str, Any]:
    """Parse one JSON object. Raises InvalidError (rule ``json.*`` or ``limits.request``)."""
    if len(data) > LIMITS.request_bytes:
        raise InvalidError(f"body of {len(data)} bytes, limit {LIMITS.request_bytes}", rule="limits.request")
    try:
        text = data.decode("utf-8", "strict")
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise InvalidError("body is not UTF-8", rule="json.utf8") from None
    except RecursionError:
        raise InvalidError(f"JSON deeper than {LIMITS.json_depth}", rule="json.depth") from None
    except ValueError as error:
        raise InvalidError(f"body is not JSON: {str(error)[:120]}", rule="json.syntax") from None
    if not isinstance(value, dict):
        raise InvalidError("body is not a JSON object", rule="json.object")
    _check_depth(value)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise InvalidError("duplicate key in JSON object", rule="json.duplicate")
    return result


def _no_constant(name: str) -> Never:
    raise InvalidError(f"{name} is not a JSON number", rule="json.number")


def _check_depth(value: object) -> None:
    level: list[object] = [value]
    for _ in range(LIMITS.json_depth):
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise InvalidError(f"JSON deeper than {LIMITS.json_depth}", rule="json.depth")


def parse_operation(raw: dict[str, Any]) -> Base:
    """Parse and validate one operation. Raises InvalidError that names the field, never its value."""
    return _parse(ADAPTER, raw)


def parse_connect(raw: dict[str, Any]) -> Base:
    """`parse_operation` for what the pod's gateway asks; no door takes it."""
    return _parse(CONNECT, raw)


def _parse(adapter: TypeAdapter[Any], raw: dict[str, Any]) -> Base:
    try:
        operation = adapter.validate_python(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        name = ".".join(str(part) for part in first["loc"][1:] or first["loc"]) or "kind"
        raise InvalidError(f"field {name[:80]}: {first['msg'][:200]}", rule="schema") from None
    return validate_operation(operation)


def reply_object(reply: Reply, *, person: bool) -> dict[str, Any]:
    """The reply as a JSON object. `person`: the inherited channel, which also gets rule, detail and next step."""
    if reply.status == "ok":
        return {
            "request_id": reply.request_id,
            "status": "ok",
            "result": reply.result,
            "audit": reply.audit,
            "cost": reply.cost,
        }
    body: dict[str, Any] = {
        "error": reply.reason,
        "kind": reply.status,
        "request_id": reply.request_id,
        "operation": reply.operation,
        "audit": reply.audit,
    }
    if reply.result:
        body["result"] = reply.result
    if person:
        body.update(rule=reply.rule, detail=reply.detail, next_step=reply.next_step)
    return body


def http_status(reply: Reply) -> int:
    """The seed's status of a reply: 200, or its error family's."""
    return 200 if reply.status == "ok" else by_code(reply.status).http_status


def error_object(error: NucleusError) -> dict[str, Any]:
    """An error as it travels on our inherited channels."""
    return {"code": error.code, "message": error.message, "rule": error.rule, "next_step": error.next_step}


def error_from(value: object) -> NucleusError:
    """The error of a channel's ``error`` object; anything malformed is an internal error."""
    if not isinstance(value, dict):
        return NucleusError("malformed error on a channel")
    text = {name: str(value.get(name, ""))[:2000] for name in ("code", "message", "rule", "next_step")}
    return by_code(text["code"])(text["message"], rule=text["rule"], next_step=text["next_step"])
