"""Random policies that a file could hold, random operations and contexts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from nucleus.lattice import Context
from nucleus.lattice import capability as cap
from nucleus.lattice.exposure import NOTHING, Exposure
from nucleus.lattice.policy import BY_TWO, EVERYTHING, FLOORS, Argument, CommandRule, Policy, TimeWindow, ToolRule
from nucleus.model import operation as ops

NS = 1_000_000_000
GLOBS = ["src/", "*.py", ".env*", "**/a", "docs", "src/*.py", "a[b-d]e", "?x", "**"]
HOSTS = ["a.com", "*.a.com", "b.org", "x.a.com"]
SERVERS = ["mail/send", "mail/*", "mail/read", "cal/add"]

globs = st.frozensets(st.sampled_from(GLOBS), max_size=3)
arguments = st.sampled_from(
    [
        Argument("literal", ("push",)), Argument("literal", ("a", "b c")), Argument("word"), Argument("integer"),
        Argument("path"), Argument("literal", ("- \"'\\ü",)), Argument("literal", ()),
    ]
)  # fmt: skip
rules = st.builds(
    CommandRule,
    program=st.sampled_from(["git", "ls", "bash", "*", "./x.sh", "python3"]),
    args=st.lists(arguments, max_size=2).map(tuple),
    rest=st.sampled_from(["any", "none", "paths"]),
) | st.builds(CommandRule, group=st.sampled_from(["ordinary", "interpreters", "shells", "network"]))
rule_sets = st.frozensets(rules, max_size=3)
host_sets = st.frozensets(st.sampled_from(HOSTS), max_size=2)
levels = st.sampled_from([cap.NEVER, cap.LOW_RISK, cap.ALWAYS])
tables = st.lists(
    st.builds(
        ToolRule,
        name=st.sampled_from(SERVERS),
        legs=st.integers(0, 15),
        destination=st.sampled_from([(), ("to",), ("to", "cc")]),
        level=levels,
        approve=st.booleans(),
        names=st.sampled_from([(), ("id",), ("id", "iban")]),
    ),
    max_size=3,
    unique_by=lambda rule: rule.name,
).map(frozenset)
modes = st.lists(st.sampled_from(["static", "session", "provenance"]), min_size=1, unique=True).map(
    lambda found: "+".join(sorted(found))
)


def allow(sets: Any) -> Any:
    return st.just(EVERYTHING) | st.frozensets(sets, min_size=1, max_size=2)


def by_file(policy: Policy) -> Policy:
    """As a file says it: what two people answer for asks."""
    asked = sum(1 << (cap.UNATTENDED + cap.INDEX[name]) for name in policy.two_people if name in cap.INDEX)
    return replace(policy, capabilities=policy.capabilities & ~asked)


PEOPLE = ("spiffe://a/x", "spiffe://a/x/y", "spiffe://a/x/*", "spiffe://a/*", "spiffe://b/x", "spiffe://b")
people = st.frozensets(st.sampled_from(PEOPLE), max_size=3)
callers = st.frozensets(st.sampled_from((*PEOPLE, "own")), max_size=3)
identities = st.frozensets(
    st.tuples(st.sampled_from(("approvers", "pods")), people)
    | st.tuples(
        st.sampled_from(("agents", "operations.read_files", "operations.tools", "operations.run_bash")), callers
    ),
    max_size=4,
)

policies = st.builds(
    Policy,
    name=st.just("p"),
    description=st.text(max_size=20).filter(lambda text: all(not "\ud800" <= c <= "\udfff" for c in text)),
    capabilities=st.builds(
        cap.pack,
        st.fixed_dictionaries(dict.fromkeys(cap.NAMES, levels)),
        st.frozensets(st.sampled_from(cap.NAMES), max_size=4),
    ),
    budget_limit=st.integers(0, 20_000_000),
    time_window=st.builds(
        TimeWindow,
        st.integers(1, 100).map(lambda s: s * NS),
        st.integers(0, 12).map(lambda s: s * NS),
        st.just(EVERYTHING) | st.integers(0, 2_000_000_000).map(lambda s: s * NS),
    ),
    paths_allow=allow(globs | st.just(frozenset(("/docs", "src/")))),
    paths_block=globs,
    commands_allow=allow(rule_sets),
    commands_ask=rule_sets,
    commands_deny=rule_sets,
    hosts_allow=allow(host_sets),
    hosts_ask=host_sets,
    hosts_deny=host_sets,
    isolation_floor=st.sampled_from(FLOORS),
    trifecta=modes,
    tools=st.frozensets(tables, min_size=1, max_size=2),
    two_people=st.frozensets(st.sampled_from(BY_TWO), max_size=2),
    identities=identities,
).map(by_file)

operations: Any = st.one_of(
    st.builds(
        lambda kind, path: {"read": ops.Read(path=path), "write": ops.Write(path=path, content="")}[kind],
        st.sampled_from(["read", "write"]),
        st.sampled_from(["src/a.py", "a.py", ".env", "docs/x", "abe", "ax", "README", "SRC/x"]),
    ),
    st.builds(
        lambda argv: ops.Run(argv=argv),
        st.sampled_from(
            [
                ("ls",), ("ls", "x"), ("git", "push"), ("env", "git", "status"), ("bash", "-c", "git push"),
                ("python3", "x"), ("env", "LD_PRELOAD=x", "ls"), ("cat", ".env"), ("touch", "a"),
                ("curl", "https://a.com/"), ("./x.sh",), ("timeout", "5", "bash"), ("make", "--eval", "x"),
            ]
        ),
    ),
    st.sampled_from(
        [
            ops.WebFetch(url="https://a.com/"), ops.WebFetch(url="https://x.a.com/q?a=b"), ops.GitStatus(),
            ops.WebFetch(url="https://b.org/", method="POST", body="x"), ops.WebSearch(query="q"), ops.GitPush(),
            ops.CreatePr(title="t"), ops.ManagePods(action="create", name="x"), ops.ManagePods(action="list"),
            ops.GitCommit(message="m"), ops.CallTool(server="mail", tool="send", arguments={"to": "a@b.c"}),
            ops.CallTool(server="mail", tool="read"), ops.CallTool(server="cal", tool="add"),
            ops.CallTool(server="other", tool="x"),
        ]
    ),
)  # fmt: skip
exposures = st.sampled_from(
    [NOTHING, Exposure(private=("x",)), Exposure(untrusted=("x",)), Exposure(("x",), ("y",), True)]
)
contexts = st.builds(
    Context,
    now_ns=st.just(10 * NS),
    started_ns=st.just(5 * NS),
    egress=st.booleans(),
    trusted_workspace=st.booleans(),
    isolation=st.sampled_from(["firecracker", *FLOORS]),
    seen=exposures,
    task=st.sampled_from(["", "write to a@b.c about origin on main"]),
)
