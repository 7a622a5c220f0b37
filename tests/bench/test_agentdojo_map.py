"""The tool map of the AgentDojo benchmark: strict, and every tool of the four suites has its line."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from nucleus.lattice import capability as cap

_BENCH = Path(__file__).resolve().parents[2] / "bench" / "agentdojo"


@pytest.fixture(scope="module")
def toolmap() -> ModuleType:
    # By its place: `bench` is no installed package, and this directory has the same name.
    spec = importlib.util.spec_from_file_location("agentdojo_toolmap", _BENCH / "toolmap.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def _written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "map.yaml"
    path.write_text(text)
    return path


def test_a_line_becomes_a_rule(toolmap: ModuleType, tmp_path: Path) -> None:
    path = _written(tmp_path, "mail: {send: {legs: [exfiltration, state], destination: [to]}, look: {}}")
    read = toolmap.read(path).suites["mail"]
    assert read["send"].legs == cap.EXFILTRATION | cap.STATE
    assert read["send"].destination == ("to",)
    assert read["send"].name == "mail/send"
    assert read["look"].legs == 0
    assert toolmap.read(path).table("other") == frozenset()


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("[]", "map.yaml: not a mapping"),
        ("mail: 1", "map.yaml: mail: not a mapping"),
        ("mail: {send: 1}", "mail.send: not a mapping"),
        ("mail: {send: {leg: []}}", "mail.send: unknown key 'leg'"),
        ("mail: {send: {legs: [out]}}", "mail.send.legs: unknown leg 'out'"),
        ("mail: {send: {legs: private}}", "mail.send.legs: not a list"),
        ("mail: {send: {destination: [1]}}", "mail.send.destination: not a list"),
        ("mail: {send: {}, send: {legs: [state]}}", "a key stands twice"),
        ("mail: {send: ", "map.yaml: "),
        ("mail: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
    ],
)
def test_an_error_names_its_place(toolmap: ModuleType, tmp_path: Path, text: str, place: str) -> None:
    with pytest.raises(toolmap.MapError) as caught:
        toolmap.read(_written(tmp_path, text))
    assert place in str(caught.value)


def test_a_map_has_to_fit_its_suite(toolmap: ModuleType, tmp_path: Path) -> None:
    path = _written(tmp_path, "mail: {send: {legs: [state], destination: [to]}}")
    tools = toolmap.read(path)
    toolmap.check(tools, "mail", {"send": frozenset({"to", "text"})}, path)
    with pytest.raises(toolmap.MapError, match="no such tool 'send'"):
        toolmap.check(tools, "mail", {"post": frozenset()}, path)
    with pytest.raises(toolmap.MapError, match="no such argument 'to'; known: text"):
        toolmap.check(tools, "mail", {"send": frozenset({"text"})}, path)


def test_the_shipped_map_declares_a_destination_wherever_something_leaves(toolmap: ModuleType) -> None:
    suites = toolmap.read(_BENCH / "tools.yaml").suites
    assert {name: len(tools) for name, tools in suites.items()} == {
        "workspace": 24, "slack": 11, "travel": 28, "banking": 11,
    }  # fmt: skip
    bare = [
        rule.name for tools in suites.values() for rule in tools.values()
        if rule.legs & (cap.EXFILTRATION | cap.STATE) and not rule.destination
    ]  # fmt: skip
    assert bare == []


def test_the_map_holds_no_rule_for_a_task() -> None:
    text = (_BENCH / "tools.yaml").read_text()
    assert "task_" not in text
    assert yaml.safe_load(text)
