"""The benchmark's operations get the verdicts they name, from Nucleus alone; the peers are compared when it runs."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from nucleus.lattice.decision import decide
from nucleus.lattice.load import parse_policy

_PATH = Path(__file__).resolve().parents[2] / "bench" / "decision" / "cases.py"


@pytest.fixture(scope="module")
def cases() -> ModuleType:
    # By its place: `bench` is no installed package, and this directory has the same name.
    spec = importlib.util.spec_from_file_location("decision_bench_cases", _PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_case_gets_its_verdict(cases: ModuleType) -> None:
    policy = parse_policy(cases.POLICY, "bench")
    for name, group in cases.groups().items():
        assert len(group) >= 100
        for case in group:
            assert case.verdict == name.split()[1]
            decision = decide(policy, case.operation, cases.CONTEXT)
            assert decision.verdict == case.verdict, (name, case.operation, decision)


def test_no_operation_of_a_group_repeats(cases: ModuleType) -> None:
    for group in cases.groups().values():
        assert len({case.operation for case in group if case.operation.capability != "tools"}) == len(group)


def test_the_facts_given_to_peers_are_those_of_the_operation(cases: ModuleType) -> None:
    for group in cases.groups().values():
        for case in group:
            if case.action == "run_bash":
                assert case.command == " ".join(case.operation.argv)
                assert case.path == "." or case.path in case.operation.argv
            elif case.action == "web_fetch":
                assert f"//{case.host}/" in case.operation.url
            else:
                assert case.path == case.operation.path
