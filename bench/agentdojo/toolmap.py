"""The tool map: which legs of the trifecta each tool of a suite is, and which of its arguments are destinations.

    SUITE:
      TOOL: {legs: [private, untrusted, exfiltration, state], destination: [ARGUMENT, ...], names: [FIELD, ...], members: [FIELD, ...]}

A tool that the map does not name is undeclared: it counts as every leg and asks each time. Legs are what the tool can do
by what it is (its documentation), whatever a task uses it for:
private (its answer holds the user's own data), untrusted (its answer holds text that others can write),
exfiltration (what it is given reaches somebody else), state (it changes something outside).
names, members (optional): fields of an untrusted tool's answer that only the service or the user sets, and those in
which the service names none but the user's own people (`lattice.session`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nucleus.lattice import capability as cap
from nucleus.lattice.policy import ToolRule


class MapError(Exception):
    """The map is wrong; the text names the place."""


@dataclass(frozen=True)
class ToolMap:
    """Suite -> tool -> rule."""

    suites: dict[str, dict[str, ToolRule]]

    def table(self, suite: str) -> frozenset[ToolRule]:
        """The rules of one suite."""
        return frozenset(self.suites.get(suite, {}).values())


def read(path: Path) -> ToolMap:
    """Parse a map. Raises MapError."""
    try:
        data = yaml.load(path.read_text(), Loader=_Strict)  # a SafeLoader
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise MapError(f"{path}: {error}") from None
    return ToolMap({suite: _suite(suite, tools, path) for suite, tools in _mapping(data, str(path)).items()})


class _Strict(yaml.SafeLoader):
    """A key that stands twice is an error, not the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        made: dict[Any, Any] = super().construct_mapping(node, deep)
        if len(made) != len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a key stands twice", node.start_mark)
        return made


def server(suite: str) -> str:
    """A suite's name as the name of a tool server."""
    return re.sub(r"[^a-z0-9_-]", "-", suite.lower())[:63]


def check(tools: ToolMap, suite: str, known: dict[str, frozenset[str]], path: Path) -> None:
    """Does the map fit the suite? Raises MapError.

    Args:
        known: the suite's tools, and the arguments of each.
    """
    for tool, rule in tools.suites.get(suite, {}).items():
        if tool not in known:
            raise MapError(f"{path}: {suite}: no such tool {tool!r}; known: {', '.join(sorted(known))}")
        if strange := sorted(set(rule.destination) - known[tool]):
            there = ", ".join(sorted(known[tool])) or "none"
            raise MapError(f"{path}: {suite}.{tool}.destination: no such argument {strange[0]!r}; known: {there}")


def _suite(suite: str, tools: object, path: Path) -> dict[str, ToolRule]:
    return {tool: _rule(suite, tool, facts, path) for tool, facts in _mapping(tools, f"{path}: {suite}").items()}


def _rule(suite: str, tool: str, facts: object, path: Path) -> ToolRule:
    where = f"{path}: {suite}.{tool}"
    facts = _mapping(facts, where)
    if unknown := set(facts) - {"legs", "destination", "names", "members"}:
        raise MapError(f"{where}: unknown key {sorted(unknown)[0]!r}")
    legs = 0
    for name in _texts(facts.get("legs", []), f"{where}.legs"):
        if name not in cap.LEG_NAMES:
            raise MapError(f"{where}.legs: unknown leg {name!r}; known: {', '.join(cap.LEG_NAMES)}")
        legs |= cap.LEG_NAMES[name]
    destination = tuple(_texts(facts.get("destination", []), f"{where}.destination"))
    names, members = (tuple(_texts(facts.get(key, []), f"{where}.{key}")) for key in ("names", "members"))
    return ToolRule(f"{server(suite)}/{tool}", legs, destination, cap.ALWAYS, names=names, members=members)


def _mapping(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise MapError(f"{where}: not a mapping of names")
    return value


def _texts(value: object, where: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise MapError(f"{where}: not a list of names")
    return value
