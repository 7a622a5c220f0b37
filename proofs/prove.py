"""Each claim in each context, given to Z3 as "assumptions, and not the conclusion, over 36-bit vectors".

Promises: a proved claim's assumptions were found satisfiable too, so nothing is proved of nothing; a counterexample is
run again on Python ints, where it must fail as well, and is made as small as it gets before it is shown.
Relies on: Z3, for "proved" only; a refutation stands on the ints.
Does not: print, or decide what a failure means (`__main__`).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import z3  # type: ignore[import-not-found,unused-ignore]  # in .venv-prove only

from nucleus.lattice import capability as cap
from proofs.claims import CONTEXTS, Claim, Law, Place, sayable, wellformed, within

TIMEOUT_MS = 30_000
_OUTSIDE = {"private": cap.PRIVATE, "untrusted": cap.UNTRUSTED, "exfiltration": cap.EXFILTRATION}


@dataclass(frozen=True, slots=True)
class Outcome:
    """`verdict`: proved, refuted, vacuous, unknown or mismatch. `counterexample`: for refuted, in words."""

    claim: Claim
    verdict: str
    contexts: int
    milliseconds: float
    counterexample: tuple[str, ...] = ()

    @property
    def expected(self) -> bool:
        return self.verdict == ("proved" if self.claim.holds else "refuted")


def settings(claim: Claim) -> Iterator[tuple[str, ...]]:
    """The contexts, by name, that the claim's places can be in; `wider` never has a leg less than `here`."""
    for names in itertools.product(CONTEXTS, repeat=len(claim.places)):
        if len(names) < 2 or within(CONTEXTS[names[0]], CONTEXTS[names[1]]):
            yield names


def run(claim: Claim) -> Outcome:
    """Try `claim` in every context. One verdict for all: a claim that holds here and not there is `unknown`."""
    started = time.perf_counter()
    verdicts: dict[str, tuple[str, ...]] = {}
    count = 0
    for names in settings(claim):
        count += 1
        verdict, example = _in_context(claim, names)
        verdicts.setdefault(verdict, example)
    verdict = "refuted" if claim.holds and "refuted" in verdicts else next(iter(verdicts))
    if len(verdicts) > 1 and verdict != "refuted":
        verdict = "unknown"
    return Outcome(claim, verdict, count, (time.perf_counter() - started) * 1e3, verdicts.get("refuted", ()))


def _in_context(claim: Claim, names: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    elements = {name: z3.BitVec(name, cap.WIDTH) for name in claim.elements}
    outsides = {name: z3.BitVec(name, cap.WIDTH) for name in claim.places}
    law = apply(claim, elements, outsides, names)
    solver = z3.Solver()
    solver.set("timeout", TIMEOUT_MS)
    solver.add(*(wellformed(a) for a in elements.values()), *(z3.ULE(o, 7) for o in outsides.values()), *law.assume)
    if not claim.holds:
        solver.add(*(condition for a in elements.values() for condition in sayable(a)))
    if solver.check() != z3.sat:
        return "vacuous", ()
    solver.add(z3.Not(z3.And(*law.conclude)))
    answer = solver.check()
    if answer == z3.unsat:
        return "proved", ()
    if answer != z3.sat:
        return "unknown", ()
    model = solver.model()
    values = {
        name: model.eval(variable, model_completion=True).as_long() for name, variable in (elements | outsides).items()
    }
    if not violated(claim, values, names):
        return "mismatch", ()  # Z3 and Python disagree on an operator: nothing may be concluded
    return "refuted", describe(claim, smallest(claim, values, names), names)


def apply(claim: Claim, elements: dict[str, Any], outsides: dict[str, Any], names: tuple[str, ...]) -> Law:
    """The claim's law on these values; the order of the places' outside legs is one more assumption."""
    places = {name: Place(CONTEXTS[context], outsides[name]) for name, context in zip(claim.places, names, strict=True)}
    law = claim.law(**elements, **places)
    if len(places) == 2:
        return Law((*law.assume, cap.leq(outsides["here"], outsides["wider"])), law.conclude)
    return law


def violated(claim: Claim, values: dict[str, int], names: tuple[str, ...]) -> bool:
    """Do these ints break the claim in CPython's own arithmetic?"""
    elements = {name: values[name] for name in claim.elements}
    if not all(cap.is_wellformed(a) and (claim.holds or all(sayable(a))) for a in elements.values()):
        return False
    law = apply(claim, elements, {name: values[name] for name in claim.places}, names)
    return all(law.assume) and not all(law.conclude)


def smallest(claim: Claim, values: dict[str, int], names: tuple[str, ...]) -> dict[str, int]:
    """Fewer bits, as long as the claim stays broken: first the same bit of all, then of one."""
    groups = [tuple(claim.elements), *((name,) for name in claim.elements), *((name,) for name in claim.places)]
    again = True
    while again:
        again = False
        # Whole levels (11 to 00) before single bits, so that no step is stuck on the thermometer.
        for group, mask in itertools.product(groups, _masks()):
            fewer = values | {name: values[name] & ~mask for name in group}
            if fewer != values and violated(claim, fewer, names):
                values, again = fewer, True
    return values


def _masks() -> tuple[int, ...]:
    both = tuple(0b11 << (2 * i) | 1 << (cap.UNATTENDED + i) for i in range(cap.COUNT))
    return both + tuple(0b11 << (2 * i) for i in range(cap.COUNT)) + tuple(1 << i for i in range(cap.WIDTH))


def describe(claim: Claim, values: dict[str, int], names: tuple[str, ...]) -> tuple[str, ...]:
    """A counterexample in the words of a policy."""
    out = [f"{name} = {{{element(values[name])}}}" for name in claim.elements]
    for name, context in zip(claim.places, names, strict=True):
        live = [leg for leg, bit in _OUTSIDE.items() if values[name] & bit]
        out.append(f"{name}: {context}" + (f"; live outside: {', '.join(live)}" if live else ""))
    return tuple(out)


def element(a: int) -> str:
    """`read_files: low_risk (asks)` for each capability above never."""
    parts = []
    for name in cap.NAMES:
        if (level := cap.level(a, name)) != cap.NEVER:
            parts.append(f"{name}: {cap.LEVEL_NAMES[level]}{'' if cap.unattended(a, name) else ' (asks)'}")
        elif cap.unattended(a, name):
            parts.append(f"{name}: never (unattended)")
    return ", ".join(parts)
