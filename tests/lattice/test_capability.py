"""The laws of the capability lattice: what holds, and what we say does not."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from nucleus.lattice import capability as cap

levels = st.sampled_from([cap.NEVER, cap.LOW_RISK, cap.ALWAYS])


@st.composite
def elements(draw: st.DrawFn) -> int:
    chosen = {name: draw(levels) for name in cap.NAMES}
    return cap.pack(chosen, draw(st.frozensets(st.sampled_from(cap.NAMES))))


legs = st.builds(cap.legs, egress=st.booleans(), trusted_workspace=st.booleans())


@given(elements(), elements(), elements())
def test_lattice_laws(a: int, b: int, c: int) -> None:
    assert cap.meet(a, b) == cap.meet(b, a)
    assert cap.meet(a, cap.meet(b, c)) == cap.meet(cap.meet(a, b), c)
    assert cap.meet(a, a) == a
    assert cap.meet(a, cap.join(a, b)) == a
    assert cap.join(a, cap.meet(a, b)) == a
    assert cap.leq(cap.meet(a, b), a)
    assert not (cap.leq(c, a) and cap.leq(c, b)) or cap.leq(c, cap.meet(a, b))
    assert cap.leq(a, b) == (cap.meet(a, b) == a)
    assert cap.is_wellformed(cap.meet(a, b))
    assert cap.is_wellformed(cap.join(a, b))


@given(elements(), elements(), legs)
def test_nu_is_deflationary_idempotent_and_its_fixed_points_are_closed_under_meet(
    a: int, b: int, with_legs: cap.Legs
) -> None:
    x, y = cap.nu(a, with_legs), cap.nu(b, with_legs)
    assert cap.leq(x, a)
    assert cap.nu(x, with_legs) == x
    assert cap.nu(cap.meet(x, y), with_legs) == cap.meet(x, y)


@given(elements(), legs)
def test_safety_no_unattended_way_out_with_the_trifecta_live(a: int, with_legs: cap.Legs) -> None:
    x = cap.nu(a, with_legs)
    if cap.trifecta(a, with_legs):
        for index in with_legs.exfiltration:
            name = cap.NAMES[index]
            assert cap.level(x, name) == cap.NEVER or not cap.unattended(x, name)


@given(elements(), elements(), legs)
def test_a_delegate_never_exceeds_its_normalized_parent(parent: int, child: int, with_legs: cap.Legs) -> None:
    assert cap.leq(cap.meet(cap.nu(parent, with_legs), child), cap.nu(parent, with_legs))


def test_nu_is_not_monotone_and_does_not_preserve_meet() -> None:
    """Expected to be refuted: dropping a leg lifts an ask."""
    a = cap.pack({"read_files": cap.ALWAYS, "git_push": cap.ALWAYS})
    b = cap.pack({"read_files": cap.ALWAYS, "git_push": cap.ALWAYS, "web_fetch": cap.ALWAYS})
    trusted = cap.legs(egress=True, trusted_workspace=True)
    assert cap.leq(a, b)
    assert not cap.leq(cap.nu(a, trusted), cap.nu(b, trusted))
    assert cap.nu(cap.meet(a, b), trusted) != cap.meet(cap.nu(a, trusted), cap.nu(b, trusted))


def test_legs_follow_the_context() -> None:
    bash = cap.pack({"run_bash": cap.ALWAYS})
    assert cap.trifecta(bash, cap.legs(egress=True, trusted_workspace=True)) == 1
    assert cap.trifecta(bash, cap.legs(egress=False, trusted_workspace=False)) == 0
    reader = cap.pack({"read_files": cap.ALWAYS, "git_push": cap.LOW_RISK})
    assert cap.trifecta(reader, cap.legs(egress=False, trusted_workspace=False)) == 1
    assert cap.trifecta(reader, cap.legs(egress=False, trusted_workspace=True)) == 0
    for egress, trusted in itertools.product((False, True), repeat=2):
        assert set(cap.legs(egress=egress, trusted_workspace=trusted).exfiltration) <= set(cap.WORST.exfiltration)


def test_packing_is_faithful() -> None:
    for name in cap.NAMES:
        for level in (cap.NEVER, cap.LOW_RISK, cap.ALWAYS):
            a = cap.pack({name: level})
            assert cap.level(a, name) == level
            assert cap.unattended(a, name) == (level != cap.NEVER)
            assert not cap.unattended(cap.pack({name: level}, frozenset({name})), name)
    assert cap.WIDTH == 36
    assert len(cap.NAMES) == 12
