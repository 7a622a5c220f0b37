"""The HTTP API as an OpenAPI 3.1 document, made from what validates and answers it: models, error families, limits.

Promises: every route of `server.app`, every field that a body may have and every status that it answers with is in it.
What a result holds is the operation's own (docs/design.md): an object here.
Does not: say who may call (mutual TLS 1.3 and the policy do).
"""

from __future__ import annotations

from typing import Any

from nucleus.errors import FAMILIES
from nucleus.limits import LIMITS
from nucleus.model.operation import OPERATIONS, Base

STREAMED = {
    "run": "lines {stream, text}, then the reply",
    "glob": "lines {progress: {files, bytes}} of a search that takes long, then the reply",
}
STREAMED["grep"] = STREAMED["glob"]


def document() -> dict[str, Any]:
    """The document, plain JSON data; the same each time."""
    paths: dict[str, Any] = {
        "/v1/health": {"get": _get("health", "The caller's identity, as the gate has verified it.", _HEALTH)},
        "/v1/tools": {"get": _get("tools", "The external tools that the policy does not rule out.", _TOOLS)},
        "/v1/openapi.json": {"get": _get("openapi", "This document.", {"type": "object"})},
        "/v1/charge": {"post": _charge()},
    }
    schemas: dict[str, Any] = {"Reply": _REPLY, "Refusal": _refusal()}
    for model in OPERATIONS:
        kind = str(model.model_fields["kind"].default)
        schemas[kind] = _body(model, schemas)
        paths[f"/v1/{kind}"] = {"post": _operation(kind, model)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Nucleus gate",
            "version": "1",
            "description": "One POST per operation, over mutual TLS 1.3 with X.509-SVIDs. A body is at most "
            f"{LIMITS.request_bytes} bytes of JSON, not compressed, without duplicate keys.",
        },
        "security": [{"svid": []}],
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"svid": {"type": "mutualTLS"}}},
    }


_HEALTH = {
    "type": "object", "required": ["status", "principal"],
    "properties": {"status": {"const": "ok"}, "principal": {"type": "string"}},
}  # fmt: skip
_TOOLS = {
    "type": "object", "required": ["tools"],
    "properties": {"tools": {"type": "array", "items": {"type": "object", "required": ["server", "name"]}}},
}  # fmt: skip
_REPLY = {
    "type": "object", "required": ["request_id", "status", "result", "audit", "cost"], "additionalProperties": False,
    "properties": {
        "request_id": {"type": "string", "description": "also in every audit record of the request"},
        "status": {"const": "ok"},
        "result": {"type": "object"},
        "audit": {"type": "integer", "description": "sequence number of the closing audit record"},
        "cost": {"type": "integer", "description": "micro-dollars"},
        "http_status": {"type": "integer", "description": "of the last line of a stream alone"},
    },
}  # fmt: skip


def _refusal() -> dict[str, Any]:
    """The error body; ``kind`` is a family's code, or what HTTP itself refuses."""
    codes = sorted({family.code for family in FAMILIES} | {"not_found"})
    return {
        "type": "object", "required": ["error", "kind"], "additionalProperties": False,
        "properties": {
            "error": {"type": "string", "description": "one plain sentence"},
            "kind": {"enum": codes},
            "request_id": {"type": "string"},
            "operation": {"type": "string"},
            "audit": {"type": "integer"},
            "result": {"type": "object", "description": "what a command wrote before its budget ended"},
            "http_status": {"type": "integer", "description": "of the last line of a stream alone"},
        },
    }  # fmt: skip


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _refusals() -> dict[str, Any]:
    """A response for each status that a refusal can have."""
    found: dict[int, list[str]] = {404: ["not_found"], 405: ["not_found"], 413: ["invalid_request"]}
    for family in FAMILIES:
        found.setdefault(family.http_status, []).append(family.code)
    return {
        str(status): {
            "description": ", ".join(sorted(codes)),
            "content": _json({"$ref": "#/components/schemas/Refusal"}),
        }
        for status, codes in sorted(found.items())
    }


def _get(name: str, summary: str, schema: dict[str, Any]) -> dict[str, Any]:
    answers = {"200": {"description": "ok", "content": _json(schema)}, **_refusals()}
    return {"operationId": name, "summary": summary, "responses": answers}


def _charge() -> dict[str, Any]:
    body = {
        "type": "object", "required": ["id", "micro_dollars"], "additionalProperties": False,
        "properties": {
            "id": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._:-]{0,63}$"},
            "micro_dollars": {"type": "integer", "minimum": 1},
            "reason": {"type": "string", "maxLength": 1_024},
        },
    }  # fmt: skip
    answer = {"type": "object", "required": ["charged", "unpaid"]}
    return {
        "operationId": "charge",
        "summary": "What an orchestrator used elsewhere, charged to this pod once for an id.",
        "requestBody": {"required": True, "content": _json(body)},
        "responses": {"200": {"description": "ok", "content": _json(answer)}, **_refusals()},
    }


def _operation(kind: str, model: type[Base]) -> dict[str, Any]:
    reply = _json({"$ref": "#/components/schemas/Reply"})
    if kind in STREAMED:
        lines = {"type": "string", "description": STREAMED[kind]}
        reply["application/x-ndjson"] = {"schema": lines}
    return {
        "operationId": kind,
        "summary": (model.__doc__ or "").strip().partition("\n")[0],
        "requestBody": {"required": True, "content": _json({"$ref": f"#/components/schemas/{kind}"})},
        "responses": {"200": {"description": "done", "content": reply}, **_refusals()},
    }


def _body(model: type[Base], schemas: dict[str, Any]) -> dict[str, Any]:
    """A model's own schema: ``kind`` may be left out, what the gate fills in may not be given."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(schema.pop("$defs", {}))
    for name in model.resolved:
        schema["properties"].pop(name, None)
    schema.pop("title", None)
    for field in schema["properties"].values():
        field.pop("title", None)
    return schema
