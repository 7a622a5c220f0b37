"""The whole `Policy` product is a lattice's lower half: meet is a greatest lower bound, in every dimension."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nucleus.lattice import Policy, delegate, leq, meet, normalize
from nucleus.lattice import capability as cap
from nucleus.lattice.extends import combine, settled

from .pools import policies, tightened

FAST = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
seeds = st.integers(0, 2**32 - 1)


def same(a: Policy, b: Policy) -> bool:
    """Equal but for names."""
    return replace(a, name="", description="") == replace(b, name="", description="")


@given(policies, policies, policies)
@FAST
def test_meet_is_commutative_associative_and_idempotent(a: Policy, b: Policy, c: Policy) -> None:
    assert same(meet(a, b), meet(b, a))
    assert same(meet(a, meet(b, c)), meet(meet(a, b), c))
    assert same(meet(a, a), a)


@given(policies, policies, seeds)
@FAST
def test_meet_is_the_greatest_lower_bound(a: Policy, b: Policy, seed: int) -> None:
    both = meet(a, b)
    assert leq(both, a)
    assert leq(both, b)
    below = tightened(both, seed)
    assert leq(below, both)
    # Whatever is below both is below their meet; `below` is made to be so, `other` may be.
    for x in (below, tightened(meet(b, a), seed + 1), tightened(a, seed), tightened(b, seed)):
        assert not (leq(x, a) and leq(x, b)) or leq(x, both)


@given(policies, seeds)
@FAST
def test_leq_is_a_preorder_and_sees_each_tightening(a: Policy, seed: int) -> None:
    below = tightened(a, seed)
    lowest = tightened(below, seed + 1)
    assert leq(a, a)
    assert leq(below, a)
    assert leq(lowest, below)
    assert leq(lowest, a)
    assert not leq(a, below) or leq(below, a)


@given(policies, policies)
@FAST
def test_leq_in_every_dimension(a: Policy, b: Policy) -> None:
    """One field taken from b: at most a exactly when that field is; so no field is forgotten by leq or meet."""
    both = meet(a, b)
    for name in DIMENSIONS:
        mixed = replace(a, **{name: getattr(b, name)})
        tight = replace(a, **{name: getattr(both, name)})
        assert leq(tight, a), name
        assert leq(tight, mixed), name
        assert leq(mixed, a) or not leq(b, a), name


DIMENSIONS = (
    "capabilities", "budget_limit", "time_window", "paths_allow", "paths_block", "commands_allow", "commands_ask",
    "commands_deny", "hosts_allow", "hosts_ask", "hosts_deny", "isolation_floor", "trifecta", "tools",
    "network", "two_people", "identities",
)  # fmt: skip


def test_every_field_is_a_dimension() -> None:
    assert {*DIMENSIONS, "name", "description"} == set(Policy.__dataclass_fields__)


@given(policies, policies, policies, st.sampled_from((False, True)), st.sampled_from((False, True)))
@FAST
def test_a_delegate_never_exceeds_its_normalized_parent(
    parent: Policy, a: Policy, b: Policy, egress: bool, trusted: bool
) -> None:
    with_legs = cap.legs(egress=egress, trusted_workspace=trusted)
    child = delegate(parent, a, with_legs)
    assert leq(child, normalize(parent, with_legs))
    assert leq(child, parent)
    assert leq(child, a)
    again = delegate(child, b, with_legs)
    assert leq(again, child)
    assert leq(again, b)


@given(policies, policies, policies, st.sampled_from(("static", "provenance+static")))
@FAST
def test_chains_of_delegation_are_order_free_among_the_same_tools(
    parent: Policy, a: Policy, b: Policy, mode: str
) -> None:
    """A child that brings tools of its own brings legs, and may be asked for more: then order counts.

    So with lists of connections, whose asks `leq` compares list by list.
    """
    same = {"tools": parent.tools, "network": parent.network, "trifecta": mode}
    parent, a, b = (replace(each, **same) for each in (parent, a, b))
    one, other = delegate(delegate(parent, a), b), delegate(delegate(parent, b), a)
    assert leq(one, other)
    assert leq(other, one)
    assert leq(delegate(parent, a), normalize(delegate(parent, a)))


@given(policies, policies)
@FAST
def test_extending_never_exceeds_the_parent(parent: Policy, a: Policy) -> None:
    base = settled(parent)
    found = combine(base, meet(base, a))
    assert leq(base, parent)
    assert leq(found, base)
    assert leq(found, a)
    assert settled(base) == base
