"""The MCP tools say exactly what the models say."""

from __future__ import annotations

from typing import Any

import pytest

from nucleus.model.operation import OPERATIONS, Base
from nucleus.sdk.tools import NAMES, TOOLS

_FACTS = ("type", "enum", "default", "minimum", "maximum", "minLength", "minItems")


def _facts(field: dict[str, Any]) -> dict[str, Any]:
    """What a schema says of a field, without the words around it."""
    facts = {key: field[key] for key in _FACTS if key in field}
    if facts["type"] == "array":
        facts["items"] = field["items"]["type"]
    return facts


def _kind(model: type[Base]) -> str:
    return str(model.model_fields["kind"].default)


# An external tool is listed by its own name (`server__tool`), with its server's schema: tests/integration.
OURS = [model for model in OPERATIONS if _kind(model) != "tool"]


def test_one_tool_per_operation() -> None:
    assert {_kind(model) for model in OURS} == NAMES == {tool["name"] for tool in TOOLS}


@pytest.mark.parametrize("model", OURS, ids=_kind)
def test_schema_is_the_models(model: type[Base]) -> None:
    tool = next(tool for tool in TOOLS if tool["name"] == _kind(model))
    ours, theirs = tool["inputSchema"], model.model_json_schema()
    fields = {name: field for name, field in theirs["properties"].items() if name not in ("kind", *model.resolved)}
    assert {name: _facts(field) for name, field in ours["properties"].items()} == {
        name: _facts(field) for name, field in fields.items()
    }
    assert set(ours.get("required", [])) == set(theirs.get("required", [])) - {"kind"}
    assert ours["additionalProperties"] is theirs["additionalProperties"] is False


@pytest.mark.parametrize("model", OURS, ids=_kind)
def test_annotations_agree_with_the_model(model: type[Base]) -> None:
    hints = next(tool for tool in TOOLS if tool["name"] == _kind(model))["annotations"]
    assert hints["readOnlyHint"] is (not model.effect and _kind(model) != "web_fetch")
    assert hints["openWorldHint"] is (model.egress and _kind(model) != "manage_pods")
