"""The policy format as a JSON Schema (draft 2020-12), for editors and CI.

Promises: made from the same names and tables as the loader; `docs/policy.schema.json` is its output (a test compares).
What it refuses, the loader refuses. The loader refuses more, which JSON Schema cannot say: see `LAXER`.
Does not: take part in loading. A policy is valid when `load` says so.
"""

from __future__ import annotations

from typing import Any

from nucleus.lattice import capability as cap
from nucleus.lattice import tables
from nucleus.lattice.identities import MAX_LIST
from nucleus.lattice.load_network import MODELS, SERVICES
from nucleus.lattice.network import METHODS, PROTOCOLS
from nucleus.lattice.policy import BY_TWO, BY_WHOM, FLOORS, MODES

ID = "https://json-schema.org/draft/2020-12/schema"
# What the loader refuses and the schema lets pass.
LAXER = (
    "duplicate keys, anchors, aliases, tags, several documents, depth and size of the text",
    "money without quotes that YAML takes for text; version 1.0; booleans written yes or on",
    "time windows over 30 days, and moments that no calendar has",
    "globs with an unclosed set, or that name nothing; hosts over 253 characters; invisible characters",
    "examples (match, not_match) that do not hold, or that hold quotes",
    "everything that is looser than the profile that a policy extends",
)

# A word of a list may look like a number or a boolean to YAML.
_SCALAR = ["string", "number", "boolean"]
_GLOB = {
    "type": _SCALAR, "minLength": 1, "maxLength": 1024,
    "not": {"type": "string", "pattern": "^(\\./)*/|(^|/)\\.\\.(/|$)|^(\\./*)+$"},
}  # fmt: skip
_HOST = {"type": _SCALAR, "pattern": "^(\\*\\.)?[A-Za-z0-9_-]+(\\.[A-Za-z0-9_-]+)*\\.?$"}
_WORD = {"type": _SCALAR}
_PRICE = {"type": ["string", "integer"], "pattern": "^[0-9]{1,10}$", "minimum": 0, "maximum": 9_999_999_999}
_LEVEL = {"enum": list(cap.LEVELS)}
_MOMENT = {"type": "string", "pattern": "^[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}T[0-9]{1,2}:[0-9]{1,2}:[0-9]{1,2}Z$"}
_TOOL = "^[a-z0-9_-]{1,63}/(\\*|[^/ *]{1,128})$"


def _object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {
        "type": "object", "additionalProperties": False, "properties": properties,
        **({"required": list(required)} if required else {}),
    }  # fmt: skip


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/$defs/{name}"}


def _allow(items: dict[str, Any], description: str) -> dict[str, Any]:
    every = _object({"all_of": {**_list(_list(items)), "minItems": 1}}, "all_of")
    return {"description": description, "anyOf": [{"const": "everything"}, _list(items), every]}


def _rule() -> dict[str, Any]:
    examples = {"match": _list(_ref("example")), "not_match": _list(_ref("example"))}
    program = {
        "description": "a system program's name, a path as it is called, or *",
        "type": _SCALAR, "pattern": "^[^ ]+$",
    }  # fmt: skip
    rest = {"enum": ["any", "none", "paths"]}
    return {
        "anyOf": [
            _object({"set": {"enum": list(tables.SETS)}, **examples}, "set"),
            _object({"program": program, "args": _list(_ref("argument")), "rest": rest, **examples}, "program"),
        ]
    }


def _tool() -> dict[str, Any]:
    properties = {
        "legs": _list({"enum": list(cap.LEG_NAMES)}),
        "destination": {**_list({**_WORD, "minLength": 1}), "uniqueItems": True},
        "level": {**_LEVEL, "default": "low_risk"},
        "approve": {"type": "boolean", "default": False},
        "names": {**_list({**_WORD, "minLength": 1}), "uniqueItems": True},
        "members": {**_list({**_WORD, "minLength": 1}), "uniqueItems": True},
    }
    return {
        **_object(properties),
        "anyOf": [{"required": ["legs"]}, {"properties": {"level": {"const": "never"}}, "required": ["level"]}],
    }


def _connection() -> dict[str, Any]:
    """An entry of ``network.allow``."""
    http = {"methods": {**_list({"enum": list(METHODS)}), "minItems": 1}}
    http["paths"] = {**_list({"type": "string", "pattern": "^/", "maxLength": 1_024}), "minItems": 1}
    properties = {
        "host": {"type": "string", "minLength": 1},
        "port": {"type": ["string", "integer"], "pattern": "^[0-9]{1,5}$", "minimum": 1, "maximum": 65_535},
        "protocol": {"enum": list(PROTOCOLS)},
        **http,
        "trusted": {"type": "boolean", "default": False},
        "approve": {"type": "boolean", "default": False},
        "credential": {"type": "string", "pattern": "^[a-z][a-z0-9_.-]{0,62}$"},
        "model": {"enum": list(MODELS)},
        "service": {"enum": list(SERVICES)},
        "host_key": {"type": "string", "pattern": "^(ssh|ecdsa)-", "maxLength": 2_049},
        "price": _object(
            {name: {**_PRICE} for name in ("input", "output", "cache_read", "cache_write")}, "input", "output"
        ),
    }
    rule = {
        **_object(properties),
        "anyOf": [{"required": ["host"]}, {"required": ["model"]}, {"required": ["service"]}],
    }
    return {"anyOf": [{"type": "string", "minLength": 1}, rule]}


def _definitions() -> dict[str, Any]:
    table = {
        "type": "object", "patternProperties": {_TOOL: _ref("tool")}, "additionalProperties": False,
    }  # fmt: skip
    one_of = _object({"one_of": _list(_WORD)}, "one_of")
    typed = _object({"type": {"enum": ["word", "integer", "path"]}}, "type")
    return {
        "argument": {"anyOf": [_WORD, one_of, typed]},
        "example": {"anyOf": [{**_WORD, "pattern": "[^ ]"}, {**_list(_WORD), "minItems": 1}]},
        "callers": _callers(own=True),
        "connection": _connection(),
        "people": _callers(own=False),
        "rule": _rule(),
        "tool": _tool(),
        "tools": table,
    }


def _connections() -> dict[str, Any]:
    entry = _ref("connection")
    every = _object({"all_of": {**_list(_list(entry)), "minItems": 1}}, "all_of")
    return {"description": "left out: nothing, and no gateway", "anyOf": [_list(entry), every]}


def _callers(own: bool) -> dict[str, Any]:
    """A list of SPIFFE IDs, or several that all have to admit."""
    segments = r"(/(?!\.{1,2}(/|$))[A-Za-z0-9._-]+)*"
    one = rf"spiffe://[a-z0-9._-]{{1,255}}{segments}(/\*)?"
    item = {"type": "string", "maxLength": 2_048, "pattern": f"^({'own|' if own else ''}{one})$"}
    items = {**_list(item), "maxItems": MAX_LIST}
    return {"anyOf": [items, _object({"all_of": {**_list(items), "minItems": 1}}, "all_of")]}


def _identities() -> dict[str, Any]:
    def listed(name: str, description: str) -> dict[str, Any]:
        return {**_ref(name), "description": description}

    every = listed("callers", "who may; left out: every caller")
    return _object({
        "agents": listed("callers", "who may call; left out: [own]"),
        "approvers": listed("people", "whose yes counts; left out: whoever may approve on this host"),
        "pods": listed("people", "who may start a pod under this policy; left out: whoever may start one"),
        "operations": _object(dict.fromkeys(BY_WHOM, every)),
    })  # fmt: skip


def policy_schema() -> dict[str, Any]:
    """The schema as plain data."""
    modes = [name for name, found in MODES.items() if len(found) == 1]
    capabilities = _object({name: _ref("level") for name in cap.NAMES})
    commands = {
        "allow": _allow(_ref("rule"), "left out: the ordinary set"),
        "ask": _list(_ref("rule")), "deny": _list(_ref("rule")),
    }  # fmt: skip
    hosts = {"allow": _allow(_ref("host"), "left out: none"), "ask": _list(_ref("host")), "deny": _list(_ref("host"))}
    every = _object({"all_of": {**_list(_ref("tools")), "minItems": 1}}, "all_of")
    window = {
        "duration": {"type": "string", "pattern": "^0*[1-9][0-9]*[smhd]$", "maxLength": 7},
        "not_before": _MOMENT, "not_after": _MOMENT,
    }  # fmt: skip
    properties = {
        "version": {"const": 1},
        "name": {"type": ["string", "integer"], "pattern": "^[a-z0-9_-]{1,63}$"},
        "description": _WORD,
        "extends": {"description": "a bundled profile; nothing here may be looser", "type": "string", "minLength": 1},
        "capabilities": {**capabilities, "description": "what is not named is never, or as in the profile extended"},
        "approve": _list({"enum": list(cap.NAMES)}),
        "two_people": {
            **_list({"enum": list(BY_TWO)}),
            "description": "two different people say yes: to every use of a capability, to what asks of the others",
        },
        "paths": _object({
            "allow": _allow(_ref("glob"), "left out: everything"),
            "block": _list(_ref("glob")),
        }),
        "commands": _object(commands),
        "hosts": _object(hosts),
        "network": _object({"allow": _connections()}),
        "tools": {"anyOf": [_ref("tools"), every]},
        "budget": _object(
            {"limit_usd": {"type": "string", "pattern": "^[0-9]{1,6}(\\.[0-9]{1,6})?$"}}, "limit_usd"
        ),
        "time_window": _object(window),
        "isolation": _object({"floor": {"enum": list(FLOORS)}}, "floor"),
        "identities": _identities(),
        "trifecta": {"anyOf": [{"enum": list(MODES)}, {**_list({"enum": modes}), "minItems": 1}]},
    }  # fmt: skip
    alone = {
        "required": ["capabilities"],
        "properties": {"time_window": {"required": ["duration"]}},
    }  # fmt: skip
    return {
        "$schema": ID,
        "title": "Nucleus policy, version 1",
        **_object(properties, "version", "name"),
        "anyOf": [{"required": ["extends"]}, alone],
        "$defs": {"glob": _GLOB, "host": _HOST, "level": _LEVEL, **_definitions()},
    }
