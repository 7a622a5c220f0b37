"""What changes: proved where it is called tighter, shown where it is called looser."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from policy_strategies import contexts, operations, policies

from nucleus.lattice import Context, Policy, decide, meet, parse_policy
from nucleus.lattice.diff import INCOMPARABLE, LOOSENS, LOOSER, SAME, TIGHTER, Diff, diff, dimensions
from nucleus.lattice.witness import rank
from nucleus.model import operation as ops
from nucleus.model.decision import Verdict
from nucleus.store.policies import bundled

BUNDLED = {name: parse_policy(text, name) for name, text in bundled().items()}
RANK = {Verdict.ALLOW: 0, Verdict.ASK: 1, Verdict.DENY: 2}
A = """\
version: 1
name: a
capabilities: {read_files: always, write_files: low_risk, run_bash: low_risk, web_fetch: low_risk, git_push: always,
  glob_search: always}
approve: [write_files]
paths: {allow: [src/, "*.md"], block: ["@sensitive", data/]}
commands: {allow: [{set: ordinary}, {program: psql, args: [-f, {type: path}], rest: none}], ask: [{program: ls}],
  deny: [{program: make, args: [deploy]}]}
hosts: {allow: ["*.a.com"], ask: [x.a.com], deny: [y.a.com]}
tools: {mail/send: {legs: [exfiltration, state], destination: [to], level: always}, mail/read: {legs: [private]}}
budget: {limit_usd: "2.00"}
time_window: {duration: 1h, not_before: "2026-01-01T00:00:00Z", not_after: "2027-01-01T00:00:00Z"}
isolation: {floor: gvisor}
trifecta: session
"""


def policy(text: str) -> Policy:
    return parse_policy(text, "t")


def changed(old: str, new: str) -> Diff:
    assert old in A
    return diff(policy(A), policy(A.replace(old, new)))


def check_witnesses(found: Diff, a: Policy, b: Policy) -> None:
    for shown in found.witnesses:
        witness = shown.witness
        assert decide(a, witness.operation, witness.context) == witness.before
        assert decide(b, witness.operation, witness.context) == witness.after
        assert rank(witness.after) < rank(witness.before)


LOOSENINGS = [
    ("read_files: always, write", "read_files: always, edit_files: low_risk, write", "capabilities.edit_files"),
    ("write_files: low_risk", "write_files: always", "capabilities.write_files"),
    ("approve: [write_files]", "approve: []", "capabilities.write_files"),
    ('[src/, "*.md"]', '[src/, "*.md", docs/]', "paths.allow"),
    ('[src/, "*.md"]', "everything", "paths.allow"),
    ('["@sensitive", data/]', '["@sensitive"]', "paths.block"),
    ('["@sensitive", data/]', "[data/]", "paths.block"),
    ("{set: ordinary}, ", "{set: ordinary}, {program: nosuch}, ", "commands.allow"),
    ("{set: ordinary}, ", "{set: ordinary}, {program: make}, ", "commands.allow"),
    ("rest: none", "rest: any", "commands.allow"),
    ("ask: [{program: ls}]", "ask: []", "commands.ask"),
    ("ask: [{program: ls}]", "ask: [{program: ls, args: [-r]}]", "commands.ask"),
    ("args: [deploy]", "args: [deploy, now]", "commands.deny"),
    ('["*.a.com"]', '["*.a.com", b.com]', "hosts.allow"),
    ("ask: [x.a.com]", "ask: []", "hosts.ask"),
    ("deny: [y.a.com]", "deny: []", "hosts.deny"),
    ("mail/read: {legs: [private]}", "mail/read: {legs: []}", "tools"),
    ("mail/read:", "mail/*: {legs: []}, mail/read:", "tools"),
    ("duration: 1h", "duration: 61m", "time_window"),
    ('not_before: "2026-01-01T00:00:00Z", ', "", "time_window"),
    ("2027-01-01", "2027-01-02", "time_window"),
    ("floor: gvisor", "floor: namespaces", "isolation.floor"),
    ("trifecta: session", "trifecta: static", "trifecta"),
    ("trifecta: session", "trifecta: provenance", "trifecta"),
]  # fmt: skip
# What leaves no operation that shows it: legs count in what other operations may do, not by themselves.
# A person is asked all the same: by `approve`, and for whatever leaves its program's job.
UNSHOWN = (
    "mail/read: {legs: []}", "trifecta: static", "write_files: always", "{set: ordinary}, {program: make}, ",
)  # fmt: skip


@pytest.mark.parametrize(("old", "new", "name"), LOOSENINGS)
def test_each_loosening_is_found_and_shown(old: str, new: str, name: str) -> None:
    found = changed(old, new)
    (dimension,) = (item for item in found.dimensions if item.name == name)
    assert dimension.relation in LOOSENS
    assert found.looser
    if new not in UNSHOWN:
        assert found.shows(dimension), [item.witness.before.rule for item in found.witnesses]
    check_witnesses(found, policy(A), policy(A.replace(old, new)))


@pytest.mark.parametrize(("new", "old", "name"), LOOSENINGS[:-2])
def test_the_other_way_is_tighter(old: str, new: str, name: str) -> None:
    found = diff(policy(A.replace(new, old)), policy(A))
    (dimension,) = (item for item in found.dimensions if item.name == name)
    assert dimension.relation == TIGHTER
    assert not found.looser
    assert found.relation == TIGHTER
    assert found.witnesses == ()


def test_a_higher_level_is_shown_by_what_low_risk_asks_for() -> None:
    text = (
        "version: 1\nname: a\ncapabilities: {run_bash: low_risk, read_files: always, write_files: low_risk}\n"
        "commands: {allow: [{program: find}]}\npaths: {block: []}\n"
    )
    for name, operation in (
        ("run_bash", ops.Run(argv=("find", "-exec"))),
        ("write_files", ops.Write(path=".env", content="")),
    ):
        found = diff(policy(text), policy(text.replace(f"{name}: low_risk", f"{name}: always")))
        assert [shown.witness.operation for shown in found.lost_asks][:1] == [operation]
        assert found.lost_asks[0].dimensions == (f"capabilities.{name}",)


def test_a_budget_needs_no_operation() -> None:
    found = changed('"2.00"', '"2.000001"')
    assert [item.name for item in found.dimensions if item.relation == LOOSER] == ["budget"]
    assert found.relation == LOOSER


def test_nothing_changes() -> None:
    found = diff(policy(A), policy(A.replace("name: a", "name: b")))
    assert found.relation == SAME
    assert not found.looser
    # The same lists in other words.
    same = A.replace("[src/,", "[src/, ./src/, src/**, '**/src/**',").replace("data/]", "DATA]")
    assert diff(policy(A), policy(same)).relation == SAME


def test_leaving_out_a_leg_loses_an_ask() -> None:
    a = policy("version: 1\nname: a\ncapabilities: {read_files: always, web_fetch: always, git_push: always}\n")
    b = policy("version: 1\nname: b\ncapabilities: {web_fetch: never, git_push: always, read_files: never}\n")
    found = diff(a, b)
    assert {item.name: item.relation for item in found.dimensions if item.relation != SAME} == {
        "capabilities.read_files": TIGHTER,
        "capabilities.web_fetch": TIGHTER,
        "capabilities.git_push": LOOSER,
    }
    assert found.relation == INCOMPARABLE
    assert found.looser
    (shown, *_) = found.lost_asks
    assert shown.witness.operation == ops.GitPush()
    assert shown.witness.before.rule == "trifecta.static"
    assert shown.dimensions == ("capabilities.git_push",)
    check_witnesses(found, a, b)


def test_forbidding_a_tool_that_was_a_leg_loses_an_ask() -> None:
    text = "version: 1\nname: a\ncapabilities: {git_push: always}\ntools: {m/r: {legs: [private, untrusted]}}\n"
    found = diff(policy(text), policy(text.replace("legs: [private, untrusted]", "level: never")))
    assert [shown.witness.operation for shown in found.lost_asks][:1] == [ops.GitPush()]
    assert found.looser


def test_a_tools_own_ask_is_not_lost_unseen() -> None:
    text = (
        "version: 1\nname: a\ncapabilities: {read_files: always}\n"
        "tools: {m/send: {legs: [exfiltration], level: always}}\n"
    )
    found = diff(policy(text), policy(text.replace("read_files: always", "read_files: never")))
    (dimension,) = (item for item in found.dimensions if item.name == "tools")
    assert dimension.relation in LOOSENS
    assert found.shows(dimension)


def test_modes_are_incomparable_and_their_lost_asks_are_shown() -> None:
    text = "version: 1\nname: a\ncapabilities: {read_files: always, web_search: always, git_push: always}\ntrifecta: "
    modes = {mode: policy(f"{text}{mode}\n") for mode in ("static", "session", "provenance", "all")}
    for a, b in (("static", "session"), ("static", "provenance"), ("session", "provenance"), ("session", "static")):
        found = diff(modes[a], modes[b])
        (dimension,) = (item for item in found.dimensions if item.name == "trifecta")
        assert dimension.relation == INCOMPARABLE
        assert found.looser
        check_witnesses(found, modes[a], modes[b])
    assert diff(modes["static"], modes["all"]).relation == TIGHTER
    assert diff(modes["static"], modes["session"]).shows(
        next(item for item in diff(modes["static"], modes["session"]).dimensions if item.name == "trifecta")
    )


def test_an_ask_that_becomes_a_denial_is_tighter() -> None:
    found = diff(
        policy(A), policy(A.replace("ask: [{program: ls}],", "ask: [],").replace("deny: [{", "deny: [{program: ls}, {"))
    )
    assert found.relation == TIGHTER
    found = diff(policy(A), policy(A.replace("ask: [x.a.com], deny: [y.a.com]", "deny: ['*.a.com']")))
    assert not found.looser


def test_conjunctions() -> None:
    one = policy(A)
    both = meet(one, policy(A.replace('[src/, "*.md"]', "[src/lib/, docs/]")))
    assert diff(one, both).relation == TIGHTER
    assert diff(both, one).relation == LOOSER
    assert diff(both, one).shows(next(item for item in diff(both, one).dimensions if item.name == "paths.allow"))


@pytest.mark.parametrize("name", sorted(BUNDLED))
def test_profiles_against_the_strictest(name: str) -> None:
    assert diff(BUNDLED[name], BUNDLED[name]).relation == SAME
    found = diff(BUNDLED["restrictive"], BUNDLED[name])
    check_witnesses(found, BUNDLED["restrictive"], BUNDLED[name])
    assert found.looser == (name != "restrictive")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(policies, policies, operations, contexts)
def test_what_is_called_tighter_decides_at_most_as_much(
    a: Policy, other: Policy, operation: ops.Base, context: Context
) -> None:
    for b in (
        meet(a, other),
        replace(a, capabilities=meet(a, other).capabilities),
        replace(other, trifecta=a.trifecta),
    ):
        if any(item.relation in LOOSENS for item in dimensions(a, b)):
            continue
        assert RANK[decide(b, operation, context).verdict] >= RANK[decide(a, operation, context).verdict]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(policies, policies)
def test_any_two_policies_can_be_compared(a: Policy, b: Policy) -> None:
    check_witnesses(diff(a, b), a, b)


def test_two_people_who_become_one() -> None:
    one, two = A + "approve: [git_push]\n", A + "two_people: [git_push]\n"
    one, two = (text.replace("approve: [write_files]\n", "", 1) for text in (one, two))
    found = diff(policy(two), policy(one))
    assert [(one.name, one.relation) for one in found.dimensions if one.relation != SAME] == [("two_people", LOOSER)]
    shown = [shown for shown in found.witnesses if shown.dimensions == ("two_people",)]
    assert shown
    assert not shown[0].witness.lost_ask
    assert diff(policy(one), policy(two)).relation == TIGHTER


def test_two_people_ask_for_every_use() -> None:
    found = policy(A.replace("approve: [write_files]\n", "two_people: [read_files, tools]\n", 1))
    read = decide(
        found,
        ops.Read(path="README.md"),
        Context(now_ns=1767225601 * 10**9, started_ns=1767225601 * 10**9, isolation="gvisor"),
    )
    assert (read.verdict, read.obligations) == (Verdict.ASK, ("approval:read_files", "people:2"))
    sent = decide(
        found,
        ops.CallTool(server="other", tool="x"),
        Context(now_ns=1767225601 * 10**9, started_ns=1767225601 * 10**9, isolation="gvisor"),
    )
    assert sent.obligations == ("approval:tools", "people:2")
