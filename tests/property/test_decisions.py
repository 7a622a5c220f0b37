"""The law that counts: a policy that is at most another one never decides more, operation by operation.

It holds between policies that are normalized for the context (`pools.normal`), and for `extends`, which normalizes for
every context. Without normalization it is false, and the example is kept.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nucleus.lattice import Context, Policy, decide, delegate, leq, meet
from nucleus.lattice import capability as cap
from nucleus.lattice.exposure import Exposure
from nucleus.lattice.extends import combine, settled
from nucleus.lattice.policy import EVERYTHING, FLOORS, TimeWindow, ToolRule
from nucleus.model import operation as ops
from nucleus.model.decision import Verdict
from nucleus.validate.operation import validate_operation

from .pools import (
    OPERATIONS,
    RANK,
    WEAK_WRITES,
    batches,
    contexts,
    element,
    exposures,
    normal,
    policies,
    run,
    tightened,
    tool,
)

FAST = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
seeds = st.integers(0, 2**32 - 1)
NOW = Context(now_ns=2, started_ns=1)


def rank(policy: Policy, operation: ops.Base, context: Context) -> int:
    return RANK[decide(policy, operation, context).verdict]


def looser(p: Policy, q: Policy, here: Context, there: Context, more: tuple[ops.Base, ...] = ()) -> list[ops.Base]:
    """The operations, those of the pool and `more`, that p decides more permissively, `here`, than q does `there`."""
    return [x for x in (*OPERATIONS, *more) if rank(p, x, here) < rank(q, x, there)]


# --- monotone in the policy ---


@given(policies, policies, contexts, batches)
@FAST
def test_a_meet_never_decides_more_than_either(
    a: Policy, b: Policy, context: Context, more: tuple[ops.Base, ...]
) -> None:
    a, b = normal(a, context), normal(b, context)
    for p in (meet(a, b), meet(b, a)):
        for q in (a, b):
            assert looser(p, q, context, context, more) == []


@given(policies, policies, contexts)
@FAST
def test_normalizing_the_one_side_is_enough(a: Policy, b: Policy, context: Context) -> None:
    """As in delegation: the parent is normalized, the child is anything."""
    a = normal(a, context)
    assert looser(meet(a, b), a, context, context) == []


@given(policies, seeds, contexts, batches)
@FAST
def test_what_leq_puts_below_never_decides_more(
    a: Policy, seed: int, context: Context, more: tuple[ops.Base, ...]
) -> None:
    """`leq` is sound for decisions, not only for meets."""
    a = normal(a, context)
    below = tightened(a, seed)
    assert leq(below, a)
    assert looser(below, a, context, context, more) == []


@given(policies, contexts)
@FAST
def test_normalizing_changes_no_verdict(a: Policy, context: Context) -> None:
    """ν is what `decide` does anyway, made visible."""
    b = normal(a, context)
    assert [rank(a, x, context) for x in OPERATIONS] == [rank(b, x, context) for x in OPERATIONS]


@given(policies, policies, contexts)
@FAST
def test_extending_never_decides_more_than_the_parent_in_any_context(
    parent: Policy, other: Policy, context: Context
) -> None:
    base = settled(parent)
    child = combine(base, meet(base, other))
    assert looser(child, parent, context, context) == []
    grandchild = combine(settled(child), meet(settled(child), other))
    assert looser(grandchild, child, context, context) == []


@given(policies, policies, contexts)
@FAST
def test_delegating_never_decides_more_without_a_past(parent: Policy, other: Policy, context: Context) -> None:
    """`delegate` normalizes for the widest context, tools included; what was seen is `extends.keep_asks`'s part."""
    context = replace(context, seen=Exposure())
    assert looser(delegate(parent, other), parent, context, context) == []


# --- and in the context ---


@given(policies, contexts, exposures)
@FAST
def test_having_seen_more_never_allows_more(a: Policy, context: Context, more: Exposure) -> None:
    assert looser(a, a, replace(context, seen=context.seen.join(more)), context) == []


@given(policies, contexts, batches)
@FAST
def test_a_way_out_or_an_untrusted_workspace_never_allows_more(
    a: Policy, context: Context, more: tuple[ops.Base, ...]
) -> None:
    for wider in (replace(context, egress=True), replace(context, trusted_workspace=False)):
        assert looser(a, a, wider, context, more) == []


@given(policies, contexts, st.sampled_from((*FLOORS, "")))
@FAST
def test_a_weaker_pod_or_a_shorter_task_never_allows_more(a: Policy, context: Context, rung: str) -> None:
    strongest = replace(context, isolation=FLOORS[-1])
    assert looser(a, a, replace(context, isolation=rung), strongest) == []
    assert looser(a, a, replace(context, task=""), context) == []


# --- what is false without normalization ---


def test_refuted_the_raw_law() -> None:
    """Dropping a leg lifts an ask: the parent asks for a push, the meet with a policy that reads nothing does not."""
    q = Policy("q", cap.pack({"read_files": cap.ALWAYS, "git_push": cap.ALWAYS}), 1, TimeWindow(10))
    r = replace(q, capabilities=cap.pack({"git_push": cap.ALWAYS}))
    p = meet(q, r)
    push = ops.GitPush()
    assert leq(p, q)
    assert decide(q, push, NOW).rule == "trifecta.static"
    assert decide(p, push, NOW).verdict is Verdict.ALLOW
    assert decide(meet(normal(q, NOW), r), push, NOW).rule == "approve.git_push"
    assert decide(delegate(q, r), push, NOW).rule == "approve.git_push"


def test_refuted_the_raw_law_is_not_rarely_false() -> None:
    rng = random.Random(5)
    q = Policy("q", 0, 1, TimeWindow(10), commands_allow=EVERYTHING, hosts_allow=EVERYTHING)
    for _ in range(300):
        a, b = (replace(q, capabilities=element(rng.randrange(6**12))) for _ in range(2))
        if looser(meet(a, b), a, NOW, NOW):
            return
    pytest.fail("no counterexample: is it true by now?")


def test_refuted_the_raw_law_for_tools() -> None:
    """The same with the leg and the way out in declared tools."""
    send = ToolRule("s/send", cap.EXFILTRATION, (), cap.ALWAYS)
    q = Policy(
        "q", cap.pack({"read_files": cap.ALWAYS}), 1, TimeWindow(10), tools=frozenset((frozenset((send,)),)),
    )  # fmt: skip
    p = meet(q, replace(q, capabilities=0))
    assert decide(q, tool("s/send"), NOW).rule == "trifecta.static"
    assert decide(p, tool("s/send"), NOW).verdict is Verdict.ALLOW
    assert decide(meet(normal(q, NOW), p), tool("s/send"), NOW).rule == "tools.approve"


def test_refuted_delegating_keeps_asks_that_hang_on_what_was_seen() -> None:
    """Seen: private. Then web_search was the untrusted leg, and the child drops it; `combine` keeps the ask."""
    caps = cap.pack({"web_search": cap.ALWAYS, "git_push": cap.ALWAYS})
    parent = Policy("q", caps, 1, TimeWindow(10))
    other = replace(parent, capabilities=cap.pack({"git_push": cap.ALWAYS}))
    context = replace(NOW, seen=Exposure(private=("an earlier pod",)))
    assert decide(parent, ops.GitPush(), context).rule == "trifecta.static"
    assert decide(delegate(parent, other), ops.GitPush(), context).verdict is Verdict.ALLOW
    assert decide(combine(settled(parent), delegate(parent, other)), ops.GitPush(), context).verdict is Verdict.ASK


def test_refuted_chains_are_order_free_when_a_child_brings_tools() -> None:
    """Either way the push is no freer than the parent has it; the tool's leg makes it ask only where it comes first."""
    caps = cap.pack({"read_files": cap.ALWAYS, "git_push": cap.ALWAYS})
    bare = frozenset((frozenset[ToolRule](),))
    parent = Policy("q", caps, 1, TimeWindow(10), tools=bare)
    inbox = frozenset((frozenset((ToolRule("s/read", cap.UNTRUSTED, (), cap.ALWAYS),)),))
    a, b = replace(parent, tools=inbox), replace(parent, capabilities=cap.pack({"git_push": cap.ALWAYS}))
    with_legs = cap.legs(egress=False, trusted_workspace=True)
    context = replace(NOW, trusted_workspace=True)
    tool_first = delegate(delegate(parent, a, with_legs), b, with_legs)
    tool_last = delegate(delegate(parent, b, with_legs), a, with_legs)
    assert decide(tool_first, ops.GitPush(), context).verdict is Verdict.ASK
    assert decide(tool_last, ops.GitPush(), context).verdict is Verdict.ALLOW
    assert decide(parent, ops.GitPush(), context).verdict is Verdict.ALLOW


# --- found here, and mended ---


@pytest.mark.parametrize("line", WEAK_WRITES)
def test_an_allow_list_lifts_no_protection(line: str) -> None:
    """The word may be no path, so a miss on the allow list is waived; that it is protected must not be."""
    levels = {"run_bash": cap.ALWAYS, "write_files": cap.ALWAYS}
    q = Policy("q", cap.pack(levels), 1, TimeWindow(10), commands_allow=EVERYTHING)
    p = replace(q, paths_allow=frozenset((frozenset(("src/",)),)))
    operation = validate_operation(run(line))
    assert leq(p, q)
    assert decide(q, operation, NOW).rule == "paths.protected"
    assert decide(p, operation, NOW).verdict is Verdict.DENY


def test_delegating_loses_no_ask_that_hangs_on_a_tool() -> None:
    inbox = ToolRule("s/read", cap.UNTRUSTED, (), cap.ALWAYS)
    caps = cap.pack({"read_files": cap.ALWAYS, "git_push": cap.ALWAYS})
    context = replace(NOW, trusted_workspace=True)
    parent = Policy("q", caps, 1, TimeWindow(10), tools=frozenset((frozenset((inbox,)),)))
    other = replace(parent, capabilities=cap.pack({"git_push": cap.ALWAYS}))
    with_legs = cap.legs(egress=False, trusted_workspace=True)
    assert decide(parent, ops.GitPush(), context).rule == "trifecta.static"
    assert decide(delegate(parent, other, with_legs), ops.GitPush(), context).verdict is Verdict.ASK


def test_delegating_loses_no_ask_of_a_tool() -> None:
    send = ToolRule("s/send", cap.EXFILTRATION, (), cap.ALWAYS)
    parent = Policy(
        "q", cap.pack({"read_files": cap.ALWAYS}), 1, TimeWindow(10), tools=frozenset((frozenset((send,)),))
    )
    assert decide(parent, tool("s/send"), NOW).verdict is Verdict.ASK
    assert decide(delegate(parent, replace(parent, capabilities=0)), tool("s/send"), NOW).verdict is Verdict.ASK


def test_the_pools_interact() -> None:
    """Each verdict, and most rules, do come up: a pool where everything is denied would show nothing."""
    rules: set[str] = set()
    verdicts: dict[Verdict, int] = {}

    @given(policies, contexts)
    @settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def count(p: Policy, context: Context) -> None:
        for operation in OPERATIONS:
            found = decide(p, operation, context)
            verdicts[found.verdict] = verdicts.get(found.verdict, 0) + 1
            rules.update(rule for rule, verdict in found.met if verdict is not Verdict.ALLOW)

    count()
    assert min(verdicts.get(verdict, 0) for verdict in Verdict) > 100, verdicts
    wanted = {
        "paths.block", "paths.allow", "commands.deny", "commands.ask", "commands.allow", "trifecta.static",
        "trifecta.session", "trifecta.provenance", "hosts.ask", "hosts.deny", "tools.undeclared", "tools.approve",
        "identity.operation",
    }  # fmt: skip
    assert wanted <= rules, wanted - rules
