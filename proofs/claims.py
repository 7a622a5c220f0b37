"""The claims, each once: functions over elements and places that take Python ints and Z3 bit-vectors alike.

A claim's parameters are its quantifiers: `a b c` are elements (well-formed, any of the 3^12 x 2^12), `here`, `wider`
places: one of the four leg tables and three bits of legs that are live outside the twelve capabilities. Where a claim
has both, `wider` has all legs of `here`, or more. It returns a `Law`: whenever all of `assume` holds, so does all of
`conclude`. No connective is needed besides, so nothing has to be written twice.
What is proved holds for all well-formed elements; what is refuted fails even on those that a policy file can say.
Promises: calls `nucleus.lattice.capability` by its own names (`cap.nu`), never a copy.
Does not: know Z3, or draw values (`prove`, `sweep`, and the property tests do).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from nucleus.lattice import capability as cap

LOW_BITS = sum(1 << (2 * index) for index in range(cap.COUNT))
CONTEXTS: dict[str, cap.Legs] = {
    f"{'egress' if egress else 'no egress'}, {'trusted' if trusted else 'untrusted'} workspace": cap.legs(
        egress=egress, trusted_workspace=trusted
    )
    for egress in (False, True)
    for trusted in (True, False)
}


@dataclass(frozen=True, slots=True)
class Place:
    """What ν depends on besides the element. `outside`: 0..7."""

    legs: cap.Legs
    outside: Any

    def nu(self, a: Any) -> Any:
        return cap.nu(a, self.legs, self.outside)

    def live(self, a: Any) -> Any:
        return cap.trifecta(a, self.legs, self.outside)


class Law(NamedTuple):
    """If all of `assume`, then all of `conclude`."""

    assume: tuple[Any, ...]
    conclude: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Claim:
    """`holds`: it is to be proved; otherwise it is to be refuted. `variables`: the names of its parameters."""

    name: str
    holds: bool
    law: Callable[..., Law]
    variables: tuple[str, ...]

    @property
    def elements(self) -> tuple[str, ...]:
        return tuple(name for name in self.variables if len(name) == 1)

    @property
    def places(self) -> tuple[str, ...]:
        return tuple(name for name in self.variables if len(name) > 1)


CLAIMS: list[Claim] = []


def _claim(name: str, *, holds: bool = True) -> Callable[[Callable[..., Law]], Callable[..., Law]]:
    def register(law: Callable[..., Law]) -> Callable[..., Law]:
        CLAIMS.append(Claim(name, holds, law, tuple(inspect.signature(law).parameters)))
        return law

    return register


def always(*conclude: Any) -> Law:
    return Law((), conclude)


def wellformed(a: Any) -> Any:
    """No level is the non-thermometer 10 and nothing is above the width; `capability.is_wellformed`, no branch."""
    return ((a >> 1) & ~a & LOW_BITS) | (a & ~cap.TOP) == 0


def sayable(a: Any) -> tuple[Any, ...]:
    """A policy can say it: what is never allowed is not unattended either (`capability.pack`)."""
    return tuple((a >> (cap.UNATTENDED + i)) & ~(a >> (2 * i)) & 1 == 0 for i in range(cap.COUNT))


def within(legs: cap.Legs, wider: cap.Legs) -> bool:
    """Has `wider` each leg of `legs`?"""
    return (
        set(legs.private) <= set(wider.private)
        and set(legs.untrusted) <= set(wider.untrusted)
        and set(legs.exfiltration) <= set(wider.exfiltration)
    )


def no_unattended_way_out(a: Any, legs: cap.Legs) -> tuple[Any, ...]:
    """For each exfiltration capability: not both enabled and unattended."""
    return tuple((a >> (2 * i)) & (a >> (cap.UNATTENDED + i)) & 1 == 0 for i in legs.exfiltration)


def delegate(parent: Any, child: Any, here: Place) -> Any:
    """`policy.delegate`, as far as capabilities go."""
    return cap.meet(here.nu(parent), child)


# --- a lattice ---


@_claim("meet is commutative, associative and idempotent")
def _(a: Any, b: Any, c: Any) -> Law:
    return always(
        cap.meet(a, b) == cap.meet(b, a),
        cap.meet(a, cap.meet(b, c)) == cap.meet(cap.meet(a, b), c),
        cap.meet(a, a) == a,
    )


@_claim("meet is a lower bound")
def _(a: Any, b: Any) -> Law:
    return always(cap.leq(cap.meet(a, b), a), cap.leq(cap.meet(a, b), b))


@_claim("meet is the greatest lower bound")
def _(a: Any, b: Any, c: Any) -> Law:
    return Law((cap.leq(c, a), cap.leq(c, b)), (cap.leq(c, cap.meet(a, b)),))


@_claim("join is commutative, associative and idempotent")
def _(a: Any, b: Any, c: Any) -> Law:
    return always(
        cap.join(a, b) == cap.join(b, a),
        cap.join(a, cap.join(b, c)) == cap.join(cap.join(a, b), c),
        cap.join(a, a) == a,
    )


@_claim("join is an upper bound")
def _(a: Any, b: Any) -> Law:
    return always(cap.leq(a, cap.join(a, b)), cap.leq(b, cap.join(a, b)))


@_claim("join is the least upper bound")
def _(a: Any, b: Any, c: Any) -> Law:
    return Law((cap.leq(a, c), cap.leq(b, c)), (cap.leq(cap.join(a, b), c),))


@_claim("absorption")
def _(a: Any, b: Any) -> Law:
    return always(cap.meet(a, cap.join(a, b)) == a, cap.join(a, cap.meet(a, b)) == a)


@_claim("distributivity")
def _(a: Any, b: Any, c: Any) -> Law:
    return always(
        cap.meet(a, cap.join(b, c)) == cap.join(cap.meet(a, b), cap.meet(a, c)),
        cap.join(a, cap.meet(b, c)) == cap.meet(cap.join(a, b), cap.join(a, c)),
    )


@_claim("≤ is reflexive, and bounded by BOTTOM and TOP")
def _(a: Any) -> Law:
    return always(cap.leq(a, a), cap.leq(cap.BOTTOM, a), cap.leq(a, cap.TOP))


@_claim("≤ is antisymmetric")
def _(a: Any, b: Any) -> Law:
    return Law((cap.leq(a, b), cap.leq(b, a)), (a == b,))


@_claim("≤ is transitive")
def _(a: Any, b: Any, c: Any) -> Law:
    return Law((cap.leq(a, b), cap.leq(b, c)), (cap.leq(a, c),))


@_claim("a ≤ b implies meet(a, b) = a and join(a, b) = b")
def _(a: Any, b: Any) -> Law:
    return Law((cap.leq(a, b),), (cap.meet(a, b) == a, cap.join(a, b) == b))


@_claim("meet(a, b) = a implies a ≤ b")
def _(a: Any, b: Any) -> Law:
    return Law((cap.meet(a, b) == a,), (cap.leq(a, b),))


@_claim("meet and join preserve well-formedness")
def _(a: Any, b: Any) -> Law:
    return always(wellformed(cap.meet(a, b)), wellformed(cap.join(a, b)))


# --- ν ---


@_claim("ν preserves well-formedness")
def _(a: Any, here: Place) -> Law:
    return always(wellformed(here.nu(a)))


@_claim("ν is deflationary")
def _(a: Any, here: Place) -> Law:
    return always(cap.leq(here.nu(a), a))


@_claim("ν is idempotent")
def _(a: Any, here: Place) -> Law:
    return always(here.nu(here.nu(a)) == here.nu(a))


@_claim("ν changes nothing but unattended bits of ways out, so no leg of the trifecta")
def _(a: Any, here: Place) -> Law:
    others = cap.TOP & ~sum(1 << (cap.UNATTENDED + i) for i in here.legs.exfiltration)
    return always((a ^ here.nu(a)) & others == 0, here.live(here.nu(a)) == here.live(a))


@_claim("safety: all legs live, then no enabled way out is unattended in ν(a)")
def _(a: Any, here: Place) -> Law:
    return Law((here.live(a) == 1,), no_unattended_way_out(here.nu(a), here.legs))


@_claim("no needless ask: a leg missing, then ν(a) = a")
def _(a: Any, here: Place) -> Law:
    return Law((here.live(a) == 0,), (here.nu(a) == a,))


@_claim("the trifecta is live exactly when each leg is enabled or live outside")
def _(a: Any, here: Place) -> Law:
    each: Any = 1
    for leg, indices in enumerate((here.legs.private, here.legs.untrusted, here.legs.exfiltration)):
        found = here.outside >> leg
        for i in indices:
            found = found | (a >> (2 * i))
        each = each & found
    return always(each & 1 == here.live(a))


@_claim("the trifecta bit is 0 or 1 and monotone in the element")
def _(a: Any, b: Any, here: Place) -> Law:
    return Law((cap.leq(a, b),), (cap.leq(here.live(a), here.live(b)), cap.leq(here.live(b), 1)))


@_claim("Fix(ν) is closed under meet")
def _(a: Any, b: Any, here: Place) -> Law:
    both = cap.meet(a, b)
    return Law((here.nu(a) == a, here.nu(b) == b), (here.nu(both) == both,))


@_claim("Fix(ν) is a down-set: below a fixed point all are fixed")
def _(a: Any, b: Any, here: Place) -> Law:
    return Law((cap.leq(a, b), here.nu(b) == b), (here.nu(a) == a,))


@_claim("ν is monotone on fixed points")
def _(a: Any, b: Any, here: Place) -> Law:
    return Law((cap.leq(a, b), here.nu(b) == b), (cap.leq(here.nu(a), here.nu(b)),))


# --- delegation ---


@_claim("a delegate never exceeds ν(parent), and is a fixed point")
def _(a: Any, b: Any, here: Place) -> Law:
    child = delegate(a, b, here)
    return always(cap.leq(child, here.nu(a)), cap.leq(child, b), here.nu(child) == child)


@_claim("delegation chains are order-free")
def _(a: Any, b: Any, c: Any, here: Place) -> Law:
    return always(delegate(delegate(a, b, here), c, here) == delegate(delegate(a, c, here), b, here))


# --- the context ---


@_claim("a wider context never makes ν looser")
def _(a: Any, here: Place, wider: Place) -> Law:
    return always(cap.leq(wider.nu(a), here.nu(a)), cap.leq(here.live(a), wider.live(a)))


@_claim("a fixed point of a wider context is one here")
def _(a: Any, here: Place, wider: Place) -> Law:
    return Law((wider.nu(a) == a,), (here.nu(a) == a,))


@_claim("what decide() sees of a delegate, in any context, is at most what it sees of ν(parent)")
def _(a: Any, b: Any, here: Place, wider: Place) -> Law:
    # The parent is normalized here; the child declares more tools or has seen more.
    return always(cap.leq(wider.nu(delegate(a, b, here)), here.nu(here.nu(a))))


# --- what is false, and why delegation normalizes first ---


@_claim("ν is monotone", holds=False)
def _(a: Any, b: Any, here: Place) -> Law:
    return Law((cap.leq(a, b),), (cap.leq(here.nu(a), here.nu(b)),))


@_claim("ν preserves meet", holds=False)
def _(a: Any, b: Any, here: Place) -> Law:
    return always(here.nu(cap.meet(a, b)) == cap.meet(here.nu(a), here.nu(b)))


@_claim("ν(· ∧ ·) is associative on raw elements", holds=False)
def _(a: Any, b: Any, c: Any, here: Place) -> Law:
    left = here.nu(cap.meet(here.nu(cap.meet(a, b)), c))
    return always(left == here.nu(cap.meet(a, here.nu(cap.meet(b, c)))))


@_claim("the join of fixed points is fixed", holds=False)
def _(a: Any, b: Any, here: Place) -> Law:
    both = cap.join(a, b)
    return Law((here.nu(a) == a, here.nu(b) == b), (here.nu(both) == both,))


@_claim("normalizing after the meet is enough: ν(parent ∧ child) ≤ ν(parent)", holds=False)
def _(a: Any, b: Any, here: Place) -> Law:
    return always(cap.leq(here.nu(cap.meet(a, b)), here.nu(a)))


@_claim("a fixed point here is one of a wider context", holds=False)
def _(a: Any, here: Place, wider: Place) -> Law:
    return Law((here.nu(a) == a,), (wider.nu(a) == a,))
