"""The long run: ``python -m tests.lattice.reference --cases 1000000`` and ``--mutants``."""

from __future__ import annotations

import argparse
import sys
import time

from .compare import compare
from .mutants import MUTANTS, found

BATCH = 5000


def run(cases: int, first: int) -> int:
    started, done, wrong, seed = time.monotonic(), 0, 0, first
    rules: dict[str, int] = {}
    while done < cases:
        tally = compare(seed, min(BATCH, cases - done))
        done, wrong, seed = done + tally.cases, wrong + tally.disagreements, seed + 1
        for rule, count in tally.rules.items():
            rules[rule] = rules.get(rule, 0) + count
        for kept in tally.kept[:1]:
            print(f"seed {seed - 1}: {kept}\n")
    seconds = time.monotonic() - started
    print(f"{done} cases, {wrong} disagreements, {len(rules)} deciding rules, {seconds:.1f} s")
    return 1 if wrong else 0


def mutants() -> int:
    missed = 0
    for mutant in MUTANTS:
        cases = found(mutant)
        print(f"{cases or 'missed':>7}  {mutant.module}: {mutant.what}")
        missed += not cases
    print(f"{len(MUTANTS) - missed} of {len(MUTANTS)} found")
    return 1 if missed else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lattice.reference", description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=10_000, help="the first seed; the tests take 0 to 39")
    parser.add_argument("--mutants", action="store_true", help="after how many cases each wrong change is found")
    given = parser.parse_args()
    return mutants() if given.mutants else run(given.cases, given.seed)


if __name__ == "__main__":
    sys.exit(main())
