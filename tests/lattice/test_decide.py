"""The decision function: order, table, trifecta, monotonicity, and each profile's promises."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nucleus.lattice import Context, Policy, decide, decide_path, delegate, leq, meet, normalize, parse_policy
from nucleus.lattice import capability as cap
from nucleus.lattice.policy import EVERYTHING, FLOORS, Argument, CommandRule, TimeWindow
from nucleus.model import operation as ops
from nucleus.model.decision import Decision, Verdict
from nucleus.store.policies import profile_names, profile_text

SECOND = 1_000_000_000
QUIET = Context(now_ns=10, started_ns=5)
EGRESS = Context(now_ns=10, started_ns=5, egress=True)
TRUSTED = Context(now_ns=10, started_ns=5, trusted_workspace=True)
RANK = {Verdict.ALLOW: 0, Verdict.ASK: 1, Verdict.DENY: 2}
HEAD = "version: 1\nname: t\n"


def policy(text: str) -> Policy:
    return parse_policy(HEAD + text, "t")


def profile(name: str) -> Policy:
    return parse_policy(profile_text(name), name)


def by_profile(name: str, operation: ops.Base, context: Context = QUIET) -> Decision:
    return decide(profile(name), operation, context)


READ, SECRET = ops.Read(path="a.py"), ops.Read(path=".env")
FETCH = ops.WebFetch(url="https://example.com/x")


# --- order ---


def test_isolation_floor() -> None:
    p = policy("capabilities: {read_files: always}\nisolation: {floor: gvisor}\n")
    for rung, verdict in (
        ("namespaces", Verdict.DENY),
        ("gvisor", Verdict.ALLOW),
        ("firecracker", Verdict.ALLOW),
        ("x", Verdict.DENY),
    ):
        found = decide(p, READ, Context(now_ns=10, started_ns=5, isolation=rung))
        assert found.verdict is verdict
    assert decide(p, READ, QUIET).rule == "isolation.floor"


@pytest.mark.parametrize(
    ("age", "verdict"), [(0, Verdict.ALLOW), (59, Verdict.ALLOW), (60, Verdict.DENY), (-1, Verdict.DENY)]
)
def test_time_window(age: int, verdict: Verdict) -> None:
    p = policy("capabilities: {read_files: always}\ntime_window: {duration: 1m}\n")
    found = decide(p, READ, Context(now_ns=(100 + age) * SECOND, started_ns=100 * SECOND))
    assert found.verdict is verdict


def test_absolute_window() -> None:
    window = 'time_window: {duration: 1d, not_before: "2026-01-01T00:00:00Z", not_after: "2026-01-02T00:00:00Z"}\n'
    p = policy("capabilities: {read_files: always}\n" + window)
    start = 1_767_225_600 * SECOND
    for now, verdict in ((start - 1, Verdict.DENY), (start, Verdict.ALLOW), (start + 86_400 * SECOND, Verdict.DENY)):
        assert decide(p, READ, Context(now_ns=now, started_ns=now)).verdict is verdict


def test_never_is_denied_with_rule_line_and_next_step() -> None:
    found = by_profile("read_only", ops.Run(argv=("true",)))
    assert (found.verdict, found.rule, found.detail) == (
        Verdict.DENY,
        "capabilities.run_bash",
        "capabilities.run_bash: never",
    )
    assert found.next_step
    assert not found.obligations


def test_block_wins_over_allow_and_case_does_not_matter() -> None:
    p = policy('capabilities: {read_files: always}\npaths: {allow: [".env", src/], block: ["@sensitive"]}\n')
    for path in (".env", ".ENV", "src/.env.local", "src/Secrets/x"):
        found = decide(p, ops.Read(path=path), QUIET)
        assert (found.verdict, found.rule) == (Verdict.DENY, "paths.block")
    assert decide(p, ops.Read(path="src/a.py"), QUIET).verdict is Verdict.ALLOW
    assert decide(p, ops.Read(path="lib/a.py"), QUIET).rule == "paths.allow"


def test_an_empty_allow_list_allows_nothing() -> None:
    p = policy("capabilities: {read_files: always}\npaths: {allow: []}\n")
    for path in ("a", "a/b", "."):
        assert decide(p, ops.Read(path=path), QUIET).rule == "paths.allow"


def test_the_meet_of_disjoint_allow_lists_allows_nothing() -> None:
    a, b = (policy(f"capabilities: {{read_files: always}}\npaths: {{allow: [{x}/]}}\n") for x in ("src", "docs"))
    for path in ("src/a", "docs/a", "x"):
        assert decide(meet(a, b), ops.Read(path=path), QUIET).rule == "paths.allow"


@pytest.mark.parametrize("level", ["low_risk", "always"])
@pytest.mark.parametrize("path", [".git/hooks/x", ".envrc", ".vscode/tasks.json", ".claude/settings.json", ".mcp.json"])
def test_protected_names_are_read_only_whatever_the_policy_says(level: str, path: str) -> None:
    p = policy(
        f"capabilities: {{read_files: always, write_files: {level}, edit_files: {level}, git_commit: {level}}}\n"
        "paths: {block: []}\n"
    )
    for operation in (
        ops.Write(path=path, content=""),
        ops.Edit(path=path, old="a", new="b"),
        ops.GitCommit(message="m", paths=(path,)),
    ):
        assert decide(p, operation, QUIET).rule == "paths.protected"
    assert decide(p, ops.Read(path=path), QUIET).verdict is Verdict.ALLOW


def test_results_of_searches_are_decided_by_name() -> None:
    p = profile("codegen")
    assert decide_path(p, ".env") is not None
    assert decide_path(p, "src/.ENV.local") is not None
    assert decide_path(p, "src/a.py") is None
    assert decide_path(p, ".git/HEAD") is None
    found = decide_path(p, ".git/HEAD", write=True)
    assert found is not None
    assert found.rule == "paths.protected"
    assert decide(p, ops.Grep(pattern="x", path="secrets"), QUIET).rule == "paths.block"
    assert decide(p, ops.Glob(pattern="**/*"), QUIET).verdict is Verdict.ALLOW


def test_a_search_may_start_above_the_allow_list() -> None:
    p = policy("capabilities: {grep_search: always}\npaths: {allow: [src/]}\n")
    assert decide(p, ops.Grep(pattern="x"), QUIET).verdict is Verdict.ALLOW
    assert decide_path(p, "README.md") is not None
    assert decide_path(p, "src/a") is None


# --- the low_risk table ---

LOW = "capabilities: {" + ", ".join(f"{name}: low_risk" for name in cap.NAMES) + "}\n"
ONE = {name: f"capabilities: {{{name}: low_risk}}\n" for name in cap.NAMES}
TABLE: list[tuple[ops.Base, Verdict, str]] = [
    (ops.Read(path="a"), Verdict.ALLOW, ""),
    (ops.Read(path=".env"), Verdict.ASK, "low_risk.sensitive_path"),
    (ops.Write(path="a", content=""), Verdict.ALLOW, ""),
    (ops.Write(path="x.pem", content=""), Verdict.ASK, "low_risk.sensitive_path"),
    (ops.Edit(path="a", old="a", new="b"), Verdict.ALLOW, ""),
    (ops.Glob(pattern="*"), Verdict.ALLOW, ""),
    (ops.Grep(pattern="x"), Verdict.ALLOW, ""),
    (ops.GitStatus(), Verdict.ALLOW, ""),
    (ops.GitDiff(), Verdict.ALLOW, ""),
    (ops.Run(argv=("true",)), Verdict.ALLOW, ""),
    (ops.Run(argv=("nosuch",)), Verdict.ASK, "commands.allow"),
    (ops.GitCommit(message="m"), Verdict.ALLOW, ""),
    (ops.WebSearch(query="q"), Verdict.ALLOW, ""),
    (FETCH, Verdict.ALLOW, ""),
    (ops.WebFetch(url="https://other.org/"), Verdict.ASK, "hosts.allow"),
    (ops.WebFetch(url="https://example.com/", method="POST"), Verdict.ASK, "low_risk.web_fetch"),
    (ops.WebFetch(url="https://example.com/", body="x"), Verdict.ASK, "low_risk.web_fetch"),
    (ops.ManagePods(action="list"), Verdict.ALLOW, ""),
    (ops.ManagePods(action="create", name="a"), Verdict.ASK, "low_risk.manage_pods"),
    (ops.GitPush(), Verdict.ASK, "low_risk.git_push"),
    (ops.CreatePr(title="t"), Verdict.ASK, "low_risk.create_pr"),
]


@pytest.mark.parametrize(
    ("operation", "verdict", "rule"), TABLE, ids=[f"{i}-{o.kind}" for i, (o, _, _) in enumerate(TABLE)]
)  # type: ignore[attr-defined]
def test_low_risk(operation: ops.Base, verdict: Verdict, rule: str) -> None:
    text = ONE[operation.capability] + "paths: {block: []}\nhosts: {allow: [example.com]}\n"
    found = decide(policy(text), operation, QUIET)
    assert found.verdict is verdict, found
    assert found.rule == (rule or f"capabilities.{operation.capability}")
    assert bool(found.obligations) == (verdict is Verdict.ASK)


def test_always_reads_what_looks_sensitive_unless_blocked() -> None:
    assert (
        decide(policy("capabilities: {read_files: always}\npaths: {block: []}\n"), SECRET, QUIET).verdict
        is Verdict.ALLOW
    )
    assert decide(policy("capabilities: {read_files: always}\n"), SECRET, QUIET).rule == "paths.block"  # the default


def test_hosts() -> None:
    p = policy(
        ONE["web_fetch"] + "hosts: {allow: ['*.example.com'], ask: [ask.example.com], deny: [bad.example.com]}\n"
    )
    for host, rule in (
        ("a.example.com", "capabilities.web_fetch"), ("A.EXAMPLE.com.", "capabilities.web_fetch"), ("example.com",
        "hosts.allow"),
        ("evilexample.com", "hosts.allow"), ("ask.example.com", "hosts.ask"), ("bad.example.com", "hosts.deny"),
    ):  # fmt: skip
        assert decide(p, ops.WebFetch(url=f"https://{host}/"), QUIET).rule == rule, host


def test_an_empty_host_list_lets_nothing_out_unattended() -> None:
    for level in ("low_risk", "always"):
        p = policy(f"capabilities: {{web_fetch: {level}}}\nhosts: {{allow: []}}\n")
        assert decide(p, FETCH, QUIET).rule == "hosts.allow"


# --- approve and trifecta ---


def test_approve_asks_and_names_the_obligation() -> None:
    found = by_profile("fix_issue", ops.Run(argv=("true",)))
    assert (found.verdict, found.rule, found.obligations) == (Verdict.ASK, "approve.run_bash", ("approval:run_bash",))


def test_trifecta_asks_for_every_way_out_and_only_then() -> None:
    p = policy(
        "capabilities: {read_files: always, web_fetch: always, git_push: always, run_bash: always}\n"
        "hosts: {allow: everything}\n"
    )
    for operation in (FETCH, ops.WebFetch(url="https://x/", method="POST", body="b"), ops.GitPush()):
        for context in (QUIET, EGRESS, TRUSTED):
            found = decide(p, operation, context)
            assert (found.verdict, found.rule) == (Verdict.ASK, "trifecta.static")
            assert "private: read_files" in found.detail
    assert decide(p, READ, EGRESS).verdict is Verdict.ALLOW
    # Without egress only run_bash's own leg goes.
    assert decide(p, ops.Run(argv=("true",)), QUIET).verdict is Verdict.ALLOW
    assert decide(p, ops.Run(argv=("true",)), EGRESS).rule == "trifecta.static"


def test_trusting_the_workspace_takes_a_leg_away() -> None:
    p = policy("capabilities: {read_files: always, git_push: always}\n")
    assert decide(p, ops.GitPush(), QUIET).rule == "trifecta.static"
    assert decide(p, ops.GitPush(), TRUSTED).verdict is Verdict.ALLOW


def test_a_denial_is_reported_before_an_ask() -> None:
    p = policy("capabilities: {read_files: always, web_fetch: always}\nhosts: {deny: [example.com]}\n")
    assert decide(p, FETCH, QUIET).rule == "hosts.deny"


@pytest.mark.parametrize("name", ["web_research", "pr_review"])
@pytest.mark.parametrize("context", [QUIET, EGRESS], ids=["quiet", "egress"])
def test_research_profiles_do_not_leak(name: str, context: Context) -> None:
    """Lesson: a POST body or a free URL was no exfiltration leg."""
    for operation in (FETCH, ops.WebFetch(url="https://x/", method="POST", body="b"), ops.WebSearch(query="q")):
        assert by_profile(name, operation, context).verdict is Verdict.ASK


# --- profiles ---


def test_there_are_the_profiles_that_people_know() -> None:
    assert set(profile_names()) == {
        "default", "permissive", "restrictive", "read_only", "filesystem_readonly", "network_only", "web_research",
        "code_review", "edit_only", "local_dev", "codegen", "fix_issue", "release", "demo", "database_client",
        "pr_review", "pr_approve", "orchestrator", "learn",
    }  # fmt: skip


@pytest.mark.parametrize("name", profile_names())
def test_each_profile_is_named_described_and_safe(name: str) -> None:
    p = profile(name)
    assert p.name == name
    assert p.description
    assert 0 < p.budget_limit <= 50_000_000
    if name != "permissive":
        for operation in (SECRET, ops.Glob(pattern="*", path="secrets"), ops.Grep(pattern="x", path=".ssh")):
            assert decide(p, operation, QUIET).verdict is Verdict.DENY
    for context in (QUIET, EGRESS):
        x = cap.nu(p.capabilities, cap.legs(egress=context.egress, trusted_workspace=False))
        for operation in (FETCH, ops.GitPush(), ops.CreatePr(title="t"), ops.WebSearch(query="q")):
            if decide(p, operation, context).verdict is Verdict.ALLOW:
                assert not cap.trifecta(x)
    assert decide(p, ops.Run(argv=("curl", "https://x/")), EGRESS).verdict is not Verdict.ALLOW


def test_codegen_without_egress_works_unattended() -> None:
    for argv in (("python3", "-c", "print(6*7)"), ("python3", "-m", "unittest"), ("true",), ("git", "status")):
        assert by_profile("codegen", ops.Run(argv=argv)).verdict is Verdict.ALLOW
    assert by_profile("codegen", ops.Write(path="a.py", content="")).verdict is Verdict.ALLOW
    assert by_profile("codegen", ops.GitCommit(message="m")).verdict is Verdict.ALLOW
    assert by_profile("codegen", ops.GitPush()).verdict is Verdict.DENY


def test_demo_denies_interpreters() -> None:
    for argv in (("python3", "x.py"), ("env", "bash", "-c", "ls"), ("/usr/bin/perl", "x"), ("python3.12", "x")):
        assert by_profile("demo", ops.Run(argv=argv)).rule == "commands.deny"


# --- the algebra of policies, and monotonicity ---

globs = st.frozensets(st.sampled_from(["src/", "*.py", ".env*", "**/a", "docs"]), max_size=3)
rules = st.sampled_from(
    [
        CommandRule("git"), CommandRule("git", args=(Argument("literal", ("push",)),)), CommandRule(group="ordinary"),
        CommandRule("bash"), CommandRule(group="interpreters"), CommandRule("*"), CommandRule("ls", rest="none"),
    ]
)  # fmt: skip
rule_sets = st.frozensets(rules, max_size=3)
host_sets = st.frozensets(st.sampled_from(["a.com", "*.a.com", "b.org"]), max_size=2)


def allow(sets: Any) -> Any:
    return st.just(EVERYTHING) | st.frozensets(sets, min_size=1, max_size=2)


policies = st.builds(
    Policy,
    name=st.just("p"),
    capabilities=st.builds(
        cap.pack,
        st.fixed_dictionaries({name: st.sampled_from([0b00, 0b01, 0b11]) for name in cap.NAMES}),
        st.frozensets(st.sampled_from(cap.NAMES), max_size=4),
    ),
    budget_limit=st.integers(0, 10),
    time_window=st.builds(TimeWindow, st.integers(1, 20), st.integers(0, 12), st.just(EVERYTHING) | st.integers(0, 20)),
    paths_allow=allow(globs),
    paths_block=globs,
    commands_allow=allow(rule_sets),
    commands_ask=rule_sets,
    commands_deny=rule_sets,
    hosts_allow=allow(host_sets),
    hosts_ask=host_sets,
    hosts_deny=host_sets,
    isolation_floor=st.sampled_from(FLOORS),
)  # fmt: skip
operations = st.one_of(
    st.sampled_from([operation for operation, _, _ in TABLE]),
    st.builds(
        lambda argv: ops.Run(argv=argv),
        st.sampled_from(
            [
                ("ls",), ("ls", "x"), ("git", "push"), ("env", "git", "status"), ("bash", "-c", "git push"),
                ("python3", "x"),
                ("env", "LD_PRELOAD=x", "ls"), ("cat", ".env"), ("touch", "a"), ("curl", "https://a.com/"),
                ("./x",), ("timeout", "5", "bash"),
            ]
        ),
    ),
)  # fmt: skip
contexts = st.builds(
    Context, now_ns=st.just(10), started_ns=st.just(5), egress=st.booleans(), trusted_workspace=st.booleans(),
    isolation=st.sampled_from(FLOORS),
)  # fmt: skip


@given(policies, policies, policies)
def test_laws_of_policies(a: Policy, b: Policy, c: Policy) -> None:
    assert leq(meet(a, b), a)
    assert leq(meet(a, b), b)
    assert leq(a, a)
    assert meet(a, b) == meet(b, a)
    assert meet(a, meet(b, c)) == meet(meet(a, b), c)
    assert meet(a, a) == a
    assert not (leq(c, a) and leq(c, b)) or leq(c, meet(a, b))
    assert leq(normalize(a), a)
    assert leq(delegate(a, b), normalize(a))
    assert leq(delegate(a, b), b)


@settings(max_examples=600)
@given(policies, policies, operations, contexts)
def test_decisions_are_monotone_between_normalized_policies(
    a: Policy, b: Policy, operation: ops.Base, context: Context
) -> None:
    with_legs = cap.legs(egress=context.egress, trusted_workspace=context.trusted_workspace)
    x, y = normalize(a, with_legs), normalize(b, with_legs)
    tight = decide(meet(x, y), operation, context)
    assert RANK[tight.verdict] >= max(RANK[decide(z, operation, context).verdict] for z in (x, y))


@given(policies, operations, contexts)
def test_every_decision_is_well_formed(p: Policy, operation: ops.Base, context: Context) -> None:
    found = decide(p, operation, context)
    assert found.rule
    assert found.reason
    assert bool(found.obligations) == (found.verdict is Verdict.ASK)
    assert found.verdict is Verdict.ALLOW or found.next_step
    assert "example.com" not in found.reason


def test_a_child_never_gets_more_than_its_normalized_parent() -> None:
    parent = profile("codegen")
    child = delegate(parent, profile("permissive"))
    assert leq(child, normalize(parent))
    assert decide(child, SECRET, QUIET).verdict is Verdict.DENY
    assert decide(child, ops.GitPush(), QUIET).verdict is Verdict.DENY
