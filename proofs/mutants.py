"""Wrong versions of the algebra: each must break a claim, or the claims prove less than they say.

Does not: ship. A mutant stands in `capability` while the claims are tried, and is taken out again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from nucleus.lattice import capability as cap

_meet, _nu, _trifecta = cap.meet, cap.nu, cap.trifecta


def _way_out_forgotten(a: Any, with_legs: cap.Legs = cap.WORST, outside: Any = 0) -> Any:
    out = cap.Legs(with_legs.private, with_legs.untrusted, with_legs.exfiltration[1:])
    live = _trifecta(a, with_legs, outside)
    cleared = a & 0
    for index in out.exfiltration:
        cleared = cleared | ((live & (a >> (2 * index)) & 1) << (cap.UNATTENDED + index))
    return a & ~cleared


def _outside_forgotten(a: Any, with_legs: cap.Legs = cap.WORST, outside: Any = 0) -> Any:
    return _nu(a, with_legs, outside & 0)


def _always_asks(a: Any, with_legs: cap.Legs = cap.WORST, outside: Any = 0) -> Any:
    return _nu(a, with_legs, outside | 7)


def _never_asks(a: Any, with_legs: cap.Legs = cap.WORST, outside: Any = 0) -> Any:
    return a


def _level_lowered(a: Any, with_legs: cap.Legs = cap.WORST, outside: Any = 0) -> Any:
    return _nu(a, with_legs, outside) & ~(_trifecta(a, with_legs, outside) << 1)


def _bit_set(a: Any, with_legs: cap.Legs = cap.WORST, outside: Any = 0) -> Any:
    return _nu(a, with_legs, outside) | (1 << cap.UNATTENDED)


def _neighbour_cleared(a: Any, with_legs: cap.Legs = cap.WORST, outside: Any = 0) -> Any:
    return _nu(a, with_legs, outside) & ~(
        _trifecta(a, with_legs, outside) << (cap.UNATTENDED + cap.INDEX["git_commit"])
    )


def _legs_swapped(a: Any, with_legs: cap.Legs = cap.WORST, outside: Any = 0) -> Any:
    """An outside leg is shifted by one too many: private counts as nothing, untrusted as nothing."""
    return _trifecta(a, with_legs, outside >> 1)


def _union(a: Any, b: Any) -> Any:
    return a | b


def _levels_only(a: Any, b: Any) -> Any:
    """The meet of levels keeps a's unattended bits."""
    return a & (b | ~((1 << cap.UNATTENDED) - 1))


def _backwards(a: Any, b: Any) -> Any:
    return b & ~a == 0


MUTANTS: dict[str, tuple[str, Callable[..., Any]]] = {
    "ν forgets one way out": ("nu", _way_out_forgotten),
    "ν forgets what is live outside": ("nu", _outside_forgotten),
    "ν asks without a cause": ("nu", _always_asks),
    "ν does nothing": ("nu", _never_asks),
    "ν lowers a level": ("nu", _level_lowered),
    "ν sets an unattended bit": ("nu", _bit_set),
    "ν clears git_commit too": ("nu", _neighbour_cleared),
    "the trifecta misreads what is live outside": ("trifecta", _legs_swapped),
    "meet is join": ("meet", _union),
    "meet keeps the left unattended bits": ("meet", _levels_only),
    "≤ is ≥": ("leq", _backwards),
}


@contextmanager
def mutant(name: str) -> Iterator[None]:
    """`capability` with one function replaced."""
    attribute, wrong = MUTANTS[name]
    right = getattr(cap, attribute)
    setattr(cap, attribute, wrong)
    try:
        yield
    finally:
        setattr(cap, attribute, right)
