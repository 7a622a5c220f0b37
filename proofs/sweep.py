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
from proofs.claims import CONTEXTS, wellformed

WORKERS = 2
_GROUPS = (("git_push", "create_pr"), ("web_fetch", "web_search", "run_bash"))
_WORST = next(name for name, table in CONTEXTS.items() if table == cap.WORST)
Unit = tuple[int, str, int, tuple[int, ...]]  # unattended bits, context, legs outside, levels to choose from
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
    for pattern in patterns():
        yield pattern, _WORST, 0, (cap.NEVER, cap.LOW_RISK, cap.ALWAYS)
    for pattern, context, outside in itertools.product(patterns(), CONTEXTS, range(8)):
        yield pattern, context, outside, (cap.NEVER, cap.ALWAYS)


def elements(pattern: int, levels: tuple[int, ...]) -> Iterable[int]:
    """Every assignment of `levels`, each with the unattended bits of `pattern`."""
    choices = [tuple(level << (2 * i) for level in levels) for i in range(cap.COUNT)]
    return map(sum, itertools.product((pattern,), *choices))


def _unit(unit: Unit) -> tuple[int, Found]:
    pattern, context, outside, levels = unit
    legs = CONTEXTS[context]
    out = sum(1 << i for i in legs.exfiltration)
    keep = ~(out << cap.UNATTENDED)
    spread = tuple((2 * i, i) for i in legs.exfiltration)
    nu, trifecta = cap.nu, cap.trifecta
    states = 0
    for a in elements(pattern, levels):
        states += 1
        x = nu(a, legs, outside)
        law = ""
        if x & ~a:
            law = "deflationary"
        elif x != a:
            enabled = 0
            for place, i in spread:
                enabled |= (a >> place & 1) << i
            if (a ^ x) & keep or not wellformed(x):
                law = "changes nothing but unattended bits of ways out"
            elif x >> cap.UNATTENDED & enabled or not trifecta(a, legs, outside):
                law = "safe, and no needless ask"
            elif nu(x, legs, outside) != x:
                law = "idempotent"
        elif trifecta(a, legs, outside) and any(a >> place & a >> (cap.UNATTENDED + i) & 1 for place, i in spread):
            law = "safe"
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
