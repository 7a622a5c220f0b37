"""`extends`: what is left out is the parent's, what is looser is refused with its place, no ask is lost."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from policy_strategies import contexts, operations, policies

from nucleus.errors import InvalidError
from nucleus.lattice import Context, Policy, decide, delegate, leq, load_policy, meet, normalize, parse_policy
from nucleus.lattice import capability as cap
from nucleus.lattice.exposure import Exposure
from nucleus.lattice.extends import combine, settled
from nucleus.model import operation as ops
from nucleus.model.decision import Verdict
from nucleus.store.policies import bundled

BUNDLED = bundled()
HEAD = "version: 1\nname: t\n"
RANK = {Verdict.ALLOW: 0, Verdict.ASK: 1, Verdict.DENY: 2}
QUIET = Context(now_ns=10, started_ns=5)


def child(text: str, profiles: dict[str, str] | None = None) -> Policy:
    return parse_policy(HEAD + text, "file.yaml", BUNDLED if profiles is None else profiles)


@pytest.mark.parametrize(
    ("text", "place", "problem"),
    [
        ("extends: codegen\ncapabilities: {git_push: low_risk}\n", "4:26", "codegen says: never"),
        ("extends: codegen\ncapabilities: {run_bash: always}\n", "4:26", "codegen says: low_risk"),
        ("extends: codegen\nbudget: {limit_usd: '5.000001'}\n", "4:21", "codegen says: 5.00"),
        ("extends: codegen\ntime_window: {duration: 61m}\n", "4:25", "codegen says: 1h"),
        ("extends: codegen\nhosts: {allow: [a.com]}\n", "4:17", "codegen says: nothing"),
        ("extends: codegen\nhosts: {allow: everything}\n", "4:16", "codegen says: a list"),
        ("extends: codegen\npaths:\n  allow: [src/, .env]\n", "5:17", "codegen says: paths.block"),
        ("extends: codegen\ncommands: {allow: everything}\n", "4:19", "codegen says: a list"),
        ("extends: codegen\ncommands: {allow: [{program: ls}, {program: psql}]}\n", "4:35", "codegen says: set ord"),
        ("extends: codegen\ncommands: {allow: [{set: network}]}\n", "4:20", "codegen says: set ordinary"),
        ("extends: demo\ncommands: {allow: [{program: python3}]}\n", "4:20", "demo says: commands.deny"),
        ("extends: codegen\ntools: {m/x: {legs: []}}\n", "4:9", "every call asks"),
        ("extends: nope\n", "3:10", "no bundled profile is named 'nope'; there are: code_review"),
        ("extends: ./codegen.yaml\n", "3:10", "no bundled profile"),
        ("extends: [codegen]\n", "3:10", "text"),
        ("extends: ''\n", "3:10", "no bundled profile"),
    ],
)
def test_looser_is_refused_with_its_place(text: str, place: str, problem: str) -> None:
    with pytest.raises(InvalidError) as caught:
        child(text)
    assert caught.value.rule == "policy.schema"
    assert caught.value.message.startswith(f"file.yaml:{place}: ")
    assert problem in caught.value.message


PARENT = """\
version: 1
name: base
capabilities: {read_files: always, run_bash: low_risk, web_fetch: always, git_push: always}
approve: [git_push]
paths: {allow: [src/, "*.md", "docs/**"], block: [data/]}
commands: {allow: [{program: git, args: [{one_of: [log, push]}]}, {program: ls, rest: paths}], ask: [{program: rm}]}
hosts: {allow: ["*.a.com"], ask: [x.a.com], deny: [y.a.com]}
tools:
  mail/send: {legs: [exfiltration], destination: [to], level: always}
  mail/*: {legs: [private], approve: true}
budget: {limit_usd: "2.00"}
time_window: {duration: 1h, not_before: "2026-01-01T00:00:00Z", not_after: "2027-01-01T00:00:00Z"}
isolation: {floor: gvisor}
trifecta: session
"""


def of_parent(text: str) -> Policy:
    return child("extends: base\n" + text, {"base": PARENT})


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('time_window: {not_before: "2025-12-31T23:59:59Z"}\n', "4:27"),
        ('time_window: {not_after: "2027-01-01T00:00:01Z"}\n', "4:26"),
        ("isolation: {floor: namespaces}\n", "4:20"),
        ("paths: {allow: [lib/]}\n", "4:17"),
        ("paths: {allow: [src/, x.txt]}\n", "4:23"),
        ("paths: {allow: everything}\n", "4:16"),
        ("paths: {allow: ['**']}\n", "4:17"),
        ("paths: {allow: {all_of: [['**'], [lib/]]}}\n", "4:27"),
        ("hosts: {allow: [a.com]}\n", "4:17"),
        ("hosts: {allow: ['*.com']}\n", "4:17"),
        ("hosts: {allow: [x.a.com]}\n", "4:17"),
        ("hosts: {allow: [y.a.com]}\n", "4:17"),
        ("commands: {allow: [{program: git}]}\n", "4:20"),
        ("commands: {allow: [{program: git, args: [{one_of: [log, reset]}]}]}\n", "4:20"),
        ("commands: {allow: [{program: ls}]}\n", "4:20"),
        ("commands: {allow: [{program: '*'}]}\n", "4:20"),
        ("tools: {mail/send: {legs: [exfiltration], level: always}, mail/*: {legs: []}}\n", "4:59"),
        ("tools: {mail/send: {legs: [], destination: [to], level: always}}\n", "4:9"),
        ("tools: {mail/send: {legs: [exfiltration], destination: [cc], level: always}}\n", "4:9"),
        ("tools: {mail/*: {legs: [private], approve: true}}\n", "4:9"),
        ("tools: {other/x: {legs: [private]}}\n", "4:9"),
    ],
)
def test_each_field_of_a_parent_is_a_limit(text: str, place: str) -> None:
    with pytest.raises(InvalidError) as caught:
        of_parent(text)
    assert caught.value.message.startswith(f"file.yaml:{place}: ")
    assert "looser than the profile that this policy extends; base says: " in caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        "", "capabilities: {}\n", "capabilities: {run_bash: never, git_push: low_risk}\n", "approve: [read_files]\n",
        "approve: []\n", "paths: {allow: [src/lib/, README.md, 'docs/x', 'src/**/*.py', 'a/b.md']}\n",
        "paths: {allow: {all_of: [['**'], [src/x]]}}\n", "paths: {allow: [], block: [x]}\n", "paths: {block: []}\n",
        "hosts: {allow: [b.a.com, '*.b.a.com'], deny: [c.a.com]}\n", "hosts: {allow: []}\n",
        "commands: {allow: [{program: git, args: [log, -1], rest: none}, {program: ls, args: [x], rest: paths}]}\n",
        "commands: {deny: [{program: ls}]}\n", "budget: {limit_usd: '2.00'}\n", "time_window: {duration: 60m}\n",
        'time_window: {not_before: "2026-02-01T00:00:00Z"}\n', "isolation: {floor: qemu}\n", "trifecta: provenance\n",
        "tools: {mail/read: {level: never}}\n", "tools: {mail/*: {level: never}}\n",
        "tools: {other/*: {level: never}}\n",
        "tools: {mail/send: {legs: [exfiltration, state, private], level: low_risk}}\n",
    ],
)  # fmt: skip
def test_tighter_or_the_same_is_taken(text: str) -> None:
    parent = parse_policy(PARENT, "base")
    assert leq(of_parent(text), parent)


def test_what_is_left_out_is_the_parents() -> None:
    parent = parse_policy(PARENT, "base")
    assert replace(of_parent(""), name="base") == parent
    for name, text in BUNDLED.items():
        found, parent = child(f"extends: {name}\n"), parse_policy(text, name)
        same = replace(parent, name="t", description="", capabilities=found.capabilities)
        assert found == same
        assert found.capabilities == cap.nu(parent.capabilities, cap.legs(egress=False, trusted_workspace=False))


def test_lists_of_both_stay_in_force() -> None:
    found = of_parent("paths: {allow: [src/], block: [src/private/]}\nhosts: {deny: [z.a.com]}\n")
    assert found.paths_block == {"data/", "src/private/"}
    assert found.hosts_deny == {"y.a.com", "z.a.com"}
    assert found.paths_allow == {frozenset({"src/", "*.md", "docs/**"}), frozenset({"src/"})}
    assert found.trifecta == "session"
    assert of_parent("trifecta: static\n").trifecta == "session+static"


def test_a_tool_that_the_child_does_not_name_is_as_in_the_parent() -> None:
    found = of_parent("tools: {mail/send: {legs: [exfiltration], destination: [to], level: low_risk}}\n")
    expected = {
        ("mail", "send"): "low_risk.tools", ("mail", "x"): "tools.approve", ("other", "x"): "tools.undeclared",
    }  # fmt: skip
    context = replace(QUIET, isolation="qemu", now_ns=10**9 * 1_780_000_000, started_ns=10**9 * 1_780_000_000)
    for (server, tool), rule in expected.items():
        assert decide(found, ops.CallTool(server=server, tool=tool), context).rule == rule
    found = of_parent("tools: {mail/*: {level: never}}\n")
    assert decide(found, ops.CallTool(server="mail", tool="send"), context).rule == "tools.level"


def test_a_set_of_the_parent_covers_its_programs_and_keeps_its_condition() -> None:
    found = child("extends: codegen\ncommands: {allow: [{program: make}]}\n")
    assert decide(found, ops.Run(argv=("make",)), QUIET).verdict is Verdict.ALLOW
    assert decide(found, ops.Run(argv=("make", "--eval", "x")), QUIET).rule == "commands.allow"
    assert decide(found, ops.Run(argv=("ls",)), QUIET).rule == "commands.allow"


def test_leaving_out_a_leg_loses_no_ask() -> None:
    parent = "version: 1\nname: base\ncapabilities: {read_files: always, git_push: always}\n"
    found = child("extends: base\ncapabilities: {read_files: never}\n", {"base": parent})
    assert decide(parse_policy(parent, "base"), ops.GitPush(), QUIET).rule == "trifecta.static"
    assert decide(found, ops.GitPush(), QUIET).rule == "approve.git_push"


def test_an_ask_for_a_tool_is_not_lost_with_a_leg() -> None:
    parent = (
        "version: 1\nname: base\ncapabilities: {read_files: always}\n"
        "tools: {mail/send: {legs: [exfiltration], level: always}}\n"
    )
    found = child("extends: base\ncapabilities: {read_files: never}\n", {"base": parent})
    call = ops.CallTool(server="mail", tool="send")
    assert decide(parse_policy(parent, "base"), call, QUIET).rule == "trifecta.static"
    assert decide(found, call, QUIET).rule == "tools.approve"


def test_an_ask_that_hangs_on_what_was_seen_is_not_lost() -> None:
    parent = "version: 1\nname: base\ncapabilities: {web_search: always, git_push: always}\n"
    found = child("extends: base\ncapabilities: {web_search: never}\n", {"base": parent})
    seen = replace(QUIET, seen=Exposure(private=("an earlier pod",)))
    assert decide(parse_policy(parent, "base"), ops.GitPush(), seen).verdict is Verdict.ASK
    assert decide(found, ops.GitPush(), seen).verdict is Verdict.ASK


def test_codegen_extended_still_runs_commands_unattended_without_egress() -> None:
    found = child("extends: codegen\nbudget: {limit_usd: '1.00'}\n")
    assert decide(found, ops.Run(argv=("true",)), QUIET).verdict is Verdict.ALLOW
    assert decide(found, ops.Run(argv=("true",)), replace(QUIET, egress=True)).rule == "trifecta.static"


def test_chains_are_short_and_no_circle() -> None:
    def link(name: str, above: str) -> str:
        return f"version: 1\nname: {name}\nextends: {above}\n"

    chain = {"p0": PARENT.replace("name: base", "name: p0")} | {
        f"p{i}": link(f"p{i}", f"p{i - 1}") for i in range(1, 6)
    }
    loaded = load_policy(link("t", "p3"), "file.yaml", chain)
    assert loaded.lineage == ("p3", "p2", "p1", "p0")
    with pytest.raises(InvalidError, match=r"^profile p1:3:10: extends: more than 4 profiles deep"):
        load_policy(link("t", "p4"), "file.yaml", chain)
    circle = {"a": link("a", "b"), "b": link("b", "a")}
    with pytest.raises(InvalidError, match=r"^profile b:3:10: extends: a -> b -> a is a circle"):
        load_policy(link("t", "a"), "file.yaml", circle)


def test_the_digest_names_the_parents_text_too() -> None:
    text = HEAD + "extends: codegen\n"
    one = load_policy(text, "t", BUNDLED)
    other = load_policy(text, "t", BUNDLED | {"codegen": BUNDLED["codegen"] + "# changed\n"})
    assert one.policy == other.policy
    assert one.digest != other.digest
    plain = HEAD + "capabilities: {}\n"
    assert load_policy(plain, "t", BUNDLED).digest == load_policy(plain, "t").digest


@given(policies, policies, operations, contexts)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_child_never_decides_more_than_its_parent(
    parent: Policy, other: Policy, operation: ops.Base, context: Context
) -> None:
    base = settled(parent)
    found = combine(base, meet(base, other))
    assert leq(found, parent)
    assert leq(found, base)
    mine, theirs = decide(found, operation, context), decide(parent, operation, context)
    assert RANK[mine.verdict] >= RANK[theirs.verdict], (mine, theirs)


@given(st.sampled_from(sorted(BUNDLED)), st.frozensets(st.sampled_from(cap.NAMES)), operations, contexts)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_profile_loses_an_ask_by_leaving_capabilities_out(
    name: str, dropped: frozenset[str], operation: ops.Base, context: Context
) -> None:
    parent = parse_policy(BUNDLED[name], name)
    levels = ", ".join(f"{item}: never" for item in sorted(dropped))
    found = child(f"extends: {name}\ncapabilities: {{{levels}}}\n")
    assert RANK[decide(found, operation, context).verdict] >= RANK[decide(parent, operation, context).verdict]


@given(policies, policies)
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_it_is_delegation(parent: Policy, other: Policy) -> None:
    """But for run_bash, whose ask cannot be lost, the child is at most what `delegate` would make of it."""
    parent = replace(parent, trifecta="static")
    base = settled(parent)
    mine = combine(base, meet(base, other)).capabilities | 1 << (cap.UNATTENDED + cap.INDEX["run_bash"])
    theirs = delegate(normalize(parent), other).capabilities | 1 << (cap.UNATTENDED + cap.INDEX["run_bash"])
    assert cap.leq(mine, theirs)
