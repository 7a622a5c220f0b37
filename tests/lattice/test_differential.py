"""`decide` against a second one that was written from the specification (`reference`): no case may differ.

The comparison is shown to have teeth: each of a list of small wrong changes to the product is found by it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.compare import Tally, compare, described, wrong
from reference.generators import case
from reference.mutants import MUTANTS, Mutant, found

from nucleus.lattice import Context, decide, parse_policy
from nucleus.lattice import capability as cap
from nucleus.lattice.commands import analyse
from nucleus.lattice.policy import CommandRule
from nucleus.model import operation as ops

SEEDS, CASES = range(40), 2500  # 100 000 cases
TOTAL = Tally()


@pytest.mark.parametrize("seed", SEEDS)
def test_product_and_reference_agree(seed: int) -> None:
    tally = compare(seed, CASES)
    assert not tally.disagreements, "\n".join(tally.kept[:1])
    assert tally.cases == CASES
    TOTAL.cases += tally.cases
    TOTAL.rules += tally.rules
    TOTAL.verdicts += tally.verdicts
    TOTAL.kinds += tally.kinds


def test_the_cases_were_many_and_of_every_sort() -> None:
    if TOTAL.cases != len(SEEDS) * CASES:
        pytest.skip("the other tests of this module were not all selected, or one of them failed")
    assert TOTAL.cases >= 100_000
    kinds = {str(kind.model_fields["kind"].default) for kind in ops.OPERATIONS}
    assert len(kinds) == 15
    assert all(TOTAL.kinds[kind] >= 1000 for kind in kinds), TOTAL.kinds
    assert all(TOTAL.verdicts[verdict] >= 15_000 for verdict in ("allow", "ask", "deny")), TOTAL.verdicts
    few = {rule: TOTAL.rules[rule] for rule in every_rule() if TOTAL.rules[rule] < 5}
    assert not few, few


def every_rule() -> list[str]:
    """The rules that decide: a case of each has to be among them."""
    attended = [f"approve.{name}" for name in cap.NAMES]
    never = [f"capabilities.{name}" for name in cap.NAMES]
    risks = "sensitive_path run_bash tools web_fetch git_push create_pr manage_pods"
    return [
        "isolation.floor", "time_window", *never, "paths.block", "paths.allow", "paths.protected",
        "commands.deny", "commands.ask", "commands.allow", "commands.credentials", "hosts.deny", "hosts.ask",
        "hosts.allow", *attended,
        "trifecta.static", "trifecta.session", "trifecta.provenance", *(f"low_risk.{name}" for name in risks.split()),
        "tools.undeclared", "tools.level", "tools.approve",
    ]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 2**32), st.integers(0, 2**32))
def test_cases_that_are_new_each_time(policies: int, operations: int, contexts: int) -> None:
    made = case(policies, operations, contexts)
    assert not wrong(made, decide(made.policy, made.operation, made.context)), described(made)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.module}: {mutant.what}")
def test_a_wrong_change_is_found(mutant: Mutant) -> None:
    assert found(mutant)


def test_a_mutant_leaves_no_trace() -> None:
    assert found(MUTANTS[0])
    assert not compare(1, 500).disagreements


def test_the_long_run_runs() -> None:
    command = [sys.executable, "-m", "tests.lattice.reference", "--cases", "300", "--seed", "77"]
    run = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "300 cases, 0 disagreements" in run.stdout


# --- what the comparison has found ---


def rule_of(text: str, operation: ops.Base) -> str:
    policy = parse_policy(f"version: 1\nname: t\n{text}", "t")
    return decide(policy, operation, Context(now_ns=10, started_ns=5)).rule


@pytest.mark.parametrize("glob", ["src/**", "./src/**"])
def test_a_glob_with_a_slash_starts_at_the_root(glob: str) -> None:
    text = f'capabilities: {{read_files: always}}\npaths: {{allow: ["{glob}"]}}\n'
    assert rule_of(text, ops.Read(path="vendor/src/x.py")) == "paths.allow"
    assert rule_of(text, ops.Read(path="src/x.py")) != "paths.allow"


@pytest.mark.parametrize("glob", ["**/secret**", "secret**"])
def test_a_name_with_two_stars_is_blocked_at_any_depth(glob: str) -> None:
    text = f'capabilities: {{read_files: always}}\npaths: {{block: ["{glob}"]}}\n'
    assert rule_of(text, ops.Read(path="x/secret1")) == "paths.block"


@pytest.mark.parametrize("program", ["git2", "rm2", "go1.22"])
def test_only_an_interpreter_has_a_version(program: str) -> None:
    assert rule_of("capabilities: {run_bash: low_risk}\n", ops.Run(argv=(program, "x"))) == "commands.allow"


@pytest.mark.parametrize("shell", ["zsh5", "ksh93", "bash5"])
def test_a_shell_with_a_version_is_a_shell(shell: str) -> None:
    assert rule_of("capabilities: {run_bash: low_risk}\n", ops.Run(argv=(shell, "-c", "git push"))) in (
        "capabilities.git_push", "commands.allow",
    )  # fmt: skip


@pytest.mark.parametrize("program", ["node18", "tclsh8.6", "julia1.9"])
def test_an_interpreter_with_a_version_runs_code(program: str) -> None:
    assert CommandRule(group="interpreters").names(program)
    assert analyse((program, "x")).runs_code
