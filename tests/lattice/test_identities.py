"""`identities` of a policy: who may call, do what, approve, start pods; read strictly, matched exactly, a lattice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nucleus.errors import InvalidError
from nucleus.identity.spiffe_id import SpiffeId
from nucleus.lattice import Context, decide, delegate, leq, meet, parse_policy
from nucleus.lattice import identities as ids
from nucleus.lattice.diff import LOOSER, TIGHTER, diff
from nucleus.lattice.emit import emit
from nucleus.lattice.policy import Policy
from nucleus.model import operation as ops
from nucleus.model.decision import Verdict

HEAD = """version: 1
name: p
capabilities: {read_files: always, git_push: always, run_bash: always, web_fetch: always}
commands: {allow: everything}
hosts: {allow: everything}
tools: {mail/*: {legs: [], level: always}}
network: {allow: [{host: pypi.org, trusted: true}]}
trifecta: session
"""
RELEASE, TEAM = "spiffe://td/ci/release", "spiffe://td/team/*"


def policy(section: str = "", head: str = HEAD) -> Policy:
    return parse_policy(head + (f"identities: {section}\n" if section else ""), "p.yaml")


def asked(found: Policy, operation: Any, caller: str = "", *, own: bool = False) -> tuple[Verdict, str]:
    decision = decide(found, operation, Context(now_ns=1, started_ns=1, caller=caller, own=own))
    return decision.verdict, decision.rule


DENIED = (Verdict.DENY, "identity.operation")


def test_an_operation_is_for_whom_the_policy_names() -> None:
    found = policy(f"{{operations: {{git_push: [{RELEASE}], read_files: [own, '{TEAM}']}}}}")
    assert asked(found, ops.GitPush(ref="main"), RELEASE)[0] is not Verdict.DENY
    for caller in (f"{RELEASE}r", f"{RELEASE}/x", "spiffe://td/ci", "spiffe://other/ci/release", ""):
        assert asked(found, ops.GitPush(ref="main"), caller) == DENIED, caller
    assert asked(found, ops.GitPush(ref="main"), "spiffe://td/ns/default/sa/agent-1", own=True) == DENIED
    read = ops.Read(path="README.md")
    assert asked(found, read, "spiffe://td/ns/default/sa/agent-1", own=True)[0] is Verdict.ALLOW
    assert asked(found, read, "spiffe://td/team/a/b")[0] is Verdict.ALLOW
    for caller in ("spiffe://td/team", "spiffe://td/team/", "spiffe://td/teams/a", "spiffe://td.evil/team/a", RELEASE):
        assert asked(found, read, caller) == DENIED, caller


def test_a_command_needs_who_may_do_what_it_does() -> None:
    found = policy(f"{{operations: {{git_push: [{RELEASE}]}}}}")
    assert asked(found, ops.Run(argv=("git", "push", "origin", "main")), "spiffe://td/x") == DENIED
    assert asked(found, ops.Run(argv=("env", "git", "push")), "spiffe://td/x") == DENIED
    assert asked(found, ops.Run(argv=("git", "push")), RELEASE)[1] != "identity.operation"
    assert asked(found, ops.Run(argv=("ls",)), "spiffe://td/x")[0] is Verdict.ALLOW


def test_tools_and_connections_have_their_callers() -> None:
    found = policy(f"{{operations: {{tools: [{RELEASE}], network: [own]}}}}")
    call = ops.CallTool(server="mail", tool="list")
    assert asked(found, call, RELEASE)[0] is Verdict.ALLOW
    assert asked(found, call, "spiffe://td/x") == DENIED
    connection = ops.Connect(conn=1, host="pypi.org", port=443, protocol="tls", inner="pypi.org")
    assert asked(found, connection, "spiffe://td/ns/default/sa/gateway-1", own=True)[0] is Verdict.ALLOW
    assert asked(found, connection, "spiffe://td/x") == DENIED


def test_nobody_is_a_list_too() -> None:
    found = policy("{operations: {read_files: []}, agents: []}")
    assert asked(found, ops.Read(path="a"), "spiffe://td/x") == DENIED
    assert asked(found, ops.Read(path="a"), own=True) == DENIED
    assert not ids.admits(ids.lists_of(found.identities, ids.AGENTS), "spiffe://td/x", own=True)


@pytest.mark.parametrize(
    ("section", "place", "words"),
    [
        ("{agents: everything}", "9:22", "must be a list"),
        ("{agents: ['*']}", "9:23", "begins with spiffe://"),
        ("{agents: ['spiffe://*/x']}", "9:23", "no wildcard"),
        ("{agents: ['spiffe://td/*/x']}", "9:23", "only the last may be *"),
        ("{agents: ['spiffe://td/x*']}", "9:23", "only the last may be *"),
        ("{agents: ['spiffe://td/a/../b']}", "9:23", "none empty"),
        ("{agents: ['spiffe://td/']}", "9:23", "none empty"),
        ("{agents: ['SPIFFE://td/x']}", "9:23", "begins with spiffe://"),
        ("{agents: ['spiffe://Td/x']}", "9:23", "trust domain"),
        ("{agents: ['spiffe://td:80/x']}", "9:23", "trust domain"),
        ("{approvers: [own]}", "9:26", "no person"),
        ("{pods: [own]}", "9:21", "no person"),
        ("{auditors: []}", "9:14", "unknown key"),
        ("{operations: {push: []}}", "9:27", "unknown key"),
        ("{agents: {all_of: []}}", "9:31", "at least one list"),
        ("[]", "9:13", "must be a mapping"),
    ],
)
def test_what_is_no_list_of_callers_is_refused_with_its_place(section: str, place: str, words: str) -> None:
    with pytest.raises(InvalidError, match=r"p\.yaml") as caught:
        policy(section)
    assert words in caught.value.message
    assert f"p.yaml:{place}:" in caught.value.message


@given(st.text("aZ09.-_/*:%@ é", max_size=12).map("spiffe://td".__add__) | st.text(max_size=20))
def test_an_exact_entry_is_a_spiffe_id_and_nothing_else(text: str) -> None:
    """One grammar, in two rooms."""
    try:
        SpiffeId.parse(text)
        valid = True
    except InvalidError:
        valid = False
    taken = not ids.problem(text, own=False)
    assert taken == valid or (taken and text.endswith("/*"))
    if taken and text.endswith("/*"):
        SpiffeId.parse(text[:-2])


IDS = st.lists(st.sampled_from("abc"), max_size=4).map(lambda parts: "/".join(["spiffe://td", *parts]))
PATTERNS = st.frozensets(IDS | IDS.map(lambda one: f"{one}/*") | st.just(ids.OWN), max_size=3)


@given(PATTERNS, PATTERNS, IDS, st.booleans())
def test_covered_means_admitted(mine: frozenset[str], theirs: frozenset[str], caller: str, own: bool) -> None:
    if all(ids.covered(pattern, theirs) for pattern in mine) and ids.matches(mine, caller, own=own):
        assert ids.matches(theirs, caller, own=own)


@given(st.lists(PATTERNS, max_size=3), st.lists(PATTERNS, max_size=3), IDS, st.booleans())
def test_a_meet_admits_whom_both_admit(
    one: list[frozenset[str]], other: list[frozenset[str]], caller: str, own: bool
) -> None:
    a, b = (replace(policy(), identities=frozenset((ids.AGENTS, each) for each in lists)) for lists in (one, other))
    both = meet(a, b)
    assert leq(both, a)
    assert leq(both, b)
    each = [ids.admits(ids.lists_of(found.identities, ids.AGENTS), caller, own=own) for found in (both, a, b)]
    assert each[0] == (each[1] and each[2])


def test_a_policy_that_says_nothing_admits_the_pods_own_alone() -> None:
    for found in (policy(), replace(policy(), identities=frozenset()), policy("{approvers: []}")):
        lists = ids.lists_of(found.identities, ids.AGENTS)
        assert ids.admits(lists, "spiffe://td/ns/default/sa/agent-1", own=True)
        assert not ids.admits(lists, "spiffe://td/ns/default/sa/agent-1")


def test_it_is_written_down_exactly() -> None:
    a = policy(f"{{agents: [own, '{TEAM}'], approvers: [], operations: {{git_push: [{RELEASE}], tools: [own]}}}}")
    b = policy(f"{{agents: {{all_of: [[own, {RELEASE}], [own]]}}, pods: ['{TEAM}'], operations: {{git_push: []}}}}")
    for found in (a, b, meet(a, b), policy()):
        assert parse_policy(emit(found), "e").identities == found.identities


def test_diff_says_who_is_let_in_and_shows_an_operation() -> None:
    a = policy(f"{{operations: {{read_files: [{RELEASE}]}}}}")
    b = policy(f"{{operations: {{read_files: [{RELEASE}, '{TEAM}']}}}}")
    found = diff(a, b)
    assert found.looser
    (dimension,) = [one for one in found.dimensions if one.relation != "same"]
    assert (dimension.name, dimension.relation) == ("identities", LOOSER)
    assert TEAM in dimension.after
    shown = [one.witness for one in found.witnesses if "identities" in one.dimensions]
    assert shown
    assert shown[0].context.caller.startswith("spiffe://td/team/")
    assert not diff(b, a).looser
    assert diff(b, a).relation == TIGHTER
    assert diff(a, policy()).looser
    assert diff(policy(), policy(f"{{agents: [own, {RELEASE}]}}")).looser
    assert diff(policy("{approvers: []}"), policy("{approvers: [spiffe://td/ann]}")).looser


PARENT = {"base": HEAD + f"identities: {{agents: [own, '{TEAM}'], approvers: ['spiffe://td/people/*']}}\n"}


def test_a_child_names_fewer_and_never_more() -> None:
    def child(section: str) -> Policy:
        return parse_policy(f"version: 1\nname: c\nextends: base\nidentities: {section}\n", "c.yaml", PARENT)

    parent = parse_policy(PARENT["base"], "b")
    for section in (
        "{agents: [own]}",
        "{approvers: [spiffe://td/people/ann]}",
        "{operations: {git_push: [own]}}",
        "{}",
    ):
        assert leq(child(section), parent), section
    assert dict(child("{agents: [own]}").identities)[ids.APPROVERS] == frozenset(("spiffe://td/people/*",))
    for section, place in (
        ("{agents: [spiffe://td/x]}", "4:23"),
        ("{approvers: ['spiffe://td/*']}", "4:26"),
        ("{approvers: [spiffe://td/people]}", "4:26"),
    ):
        with pytest.raises(InvalidError, match="looser than the profile") as caught:
            child(section)
        assert f"c.yaml:{place}:" in caught.value.message, section


def test_a_delegate_keeps_its_parents_callers() -> None:
    parent, wider = (
        policy(f"{{agents: [own], operations: {{read_files: [{RELEASE}]}}}}"),
        policy(f"{{agents: ['{TEAM}']}}"),
    )
    found = delegate(parent, wider)
    assert asked(found, ops.Read(path="a"), "spiffe://td/team/a") == DENIED
    assert not ids.admits(ids.lists_of(found.identities, ids.AGENTS), "spiffe://td/team/a")
