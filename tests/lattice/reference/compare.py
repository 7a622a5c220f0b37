"""Both decisions of one case, and what differs between them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from nucleus.lattice import decide
from nucleus.model.decision import Decision, Verdict

from . import reference
from .generators import Case, cases

KEPT = 20  # disagreements that a tally keeps in full


@dataclass
class Tally:
    """What a run of cases came to."""

    cases: int = 0
    disagreements: int = 0
    kept: list[str] = field(default_factory=list)
    rules: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)


def difference(found: Decision, expected: reference.Outcome, tables: int = 1) -> str:
    """What differs, "" for nothing: verdict, rule, obligations, and every rule that found something.

    After a denial the product may leave later questions unasked. With several tables of tools any of the gravest rules
    may be the one that is reported.
    """
    met = {(rule, str(verdict)) for rule, verdict in found.met if verdict is not Verdict.ALLOW}
    same = (
        found.verdict.value == expected.verdict
        and (found.rule == expected.rule or (tables > 1 and (found.rule, expected.verdict) in expected.why))
        and frozenset(found.obligations) == expected.obligations
        and (found.rule, found.verdict) in found.met
        and (met <= set(expected.why) if expected.verdict == "deny" else met == set(expected.why))
    )
    if same:
        return ""
    return f"found {found.verdict} {found.rule} {found.obligations} {found.met}, expected {expected}"


def wrong(case: Case, found: Decision) -> str:
    """What is wrong with a decision, "" for nothing."""
    expected = reference.decide(case.rules, case.asked, case.moment)
    return difference(found, expected, len(case.rules.tables) if case.asked.kind == "tool" else 1)


def compare(seed: int, count: int, stop: bool = False) -> Tally:
    """Run `count` cases of `seed`; `stop` at the first disagreement."""
    tally = Tally()
    for case in cases(seed, count):
        found = decide(case.policy, case.operation, case.context)
        tally.cases += 1
        tally.rules[found.rule] += 1
        tally.verdicts[found.verdict.value] += 1
        tally.kinds[case.asked.kind] += 1
        difference = wrong(case, found)
        if difference:
            tally.disagreements += 1
            if len(tally.kept) < KEPT:
                tally.kept.append(f"{difference}\n{described(case)}")
            if stop:
                break
    return tally


def described(case: Case) -> str:
    command: Any = case.asked.command
    words = {name: getattr(command, name) for name in type(command).__slots__} if command else ""
    return f"  {case.operation!r}\n  {words}\n  {case.moment}\n  {case.rules}"
