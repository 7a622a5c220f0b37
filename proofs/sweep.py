"""The laws of one element on CPython's ints, for every assignment of levels: no solver, no sampling.

3^12 assignments x 8 patterns of unattended bits (git_push and create_pr; the web and run_bash; the others) in the
widest context; then, with levels reduced to enabled or not, the same patterns in all 32 places: four leg tables times
eight sets of legs outside.
Promises: calls `capability.nu` and `trifecta` as production does. Two processes share the work.
Does not: cover pairs of elements (4.8e18: Z3 does), or every pattern of unattended bits (ν clears each by itself).
"""

from __future__ import annotations

import itertools
import multiprocessing
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from nucleus.lattice import capability as cap
from proofs.claims import CONTEXTS

WORKERS = 2
_GROUPS = (("git_push", "create_pr"), ("web_fetch", "web_search", "run_bash"))
_WORST = next(name for name, table in CONTEXTS.items() if table == cap.WORST)
Unit = tuple[
    tuple[int, ...], str, int, tuple[int, ...]
]  # the first levels, context, legs outside, levels to choose from
Found = tuple[str, int, str, int] | None


@dataclass(frozen=True, slots=True)
class Swept:
    """How many states were tried, and the first that broke a law: (law, element, context, legs outside)."""

    states: int
    milliseconds: float
    broken: Found


def patterns() -> tuple[int, ...]:
    """Eight sets of unattended bits."""
    groups = [sum(1 << (cap.UNATTENDED + cap.INDEX[name]) for name in group) for group in _GROUPS]
    groups.append((cap.TOP >> cap.UNATTENDED << cap.UNATTENDED) & ~sum(groups))
    return tuple(sum(chosen) for size in range(4) for chosen in itertools.combinations(groups, size))


def units() -> Iterator[Unit]:
    for low in itertools.product((cap.NEVER, cap.LOW_RISK, cap.ALWAYS), repeat=2):
        yield low, _WORST, 0, (cap.NEVER, cap.LOW_RISK, cap.ALWAYS)
    for context, outside in itertools.product(CONTEXTS, range(8)):
        yield (), context, outside, (cap.NEVER, cap.ALWAYS)


def levels(first: tuple[int, ...], choice: tuple[int, ...]) -> Iterable[int]:
    """Every assignment of levels that begins with `first`."""
    given = sum(level << (2 * i) for i, level in enumerate(first))
    choices = [tuple(level << (2 * i) for level in choice) for i in range(len(first), cap.COUNT)]
    return map(sum, itertools.product((given,), *choices))


def _unit(unit: Unit) -> tuple[int, Found]:
    first, context, outside, choice = unit
    legs, every = CONTEXTS[context], patterns()
    out = sum(1 << (cap.UNATTENDED + i) for i in legs.exfiltration)
    places = tuple((2 * i, cap.UNATTENDED + i) for i in legs.exfiltration)
    nu = cap.nu
    states = 0
    for base in levels(first, choice):
        live = cap.trifecta(base, legs, outside)  # by the levels alone
        asked = sum((base >> place & live) << bit for place, bit in places)
        for pattern in every:
            a = base | pattern
            states += 1
            x = nu(a, legs, outside)
            if x == a:
                # Nothing was cleared: nothing was to be.
                law = "safe" if a & asked else ""
            elif x & ~a or (a ^ x) & ~out:
                law = "deflationary, and changes nothing but unattended bits of ways out"
            elif x & asked or not live or (a ^ x) & ~asked:
                law = "safe, and no needless ask"
            else:
                law = "" if nu(x, legs, outside) == x else "idempotent"
            if law:
                return states, (law, a, context, outside)
    return states, None


def sweep() -> Swept:
    """Run it. Uses `WORKERS` processes."""
    started = time.perf_counter()
    with multiprocessing.get_context("fork").Pool(WORKERS) as pool:
        parts = pool.map(_unit, units(), chunksize=1)
    broken = next((found for _, found in parts if found is not None), None)
    return Swept(sum(states for states, _ in parts), (time.perf_counter() - started) * 1e3, broken)
