"""A check, its outcome, and how a list of outcomes is shown: the frame of the conformance suite.

Promises: a check that raises anything is an outcome, never the suite's end; what cannot be tried here is said to be so,
with why, and is no pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from nucleus.errors import NucleusError
from nucleus.testing.conformance.bed import FailedError, NotHereError

Verdict = Literal["passed", "failed", "not here"]
REASON_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one check; `reason` is empty for a plain pass."""

    check: str
    verdict: Verdict
    reason: str = ""
    milliseconds: int = 0


@dataclass(frozen=True, slots=True)
class Check:
    """One promise, tried.

    Args:
        name: ``topic.promise``.
        work: raises FailedError or NotHereError; what it returns is what was found, for the table.
        short: it is part of the short form.
    """

    name: str
    work: Callable[[Any], str | None]
    short: bool


class Checks:
    """A list of checks that fills itself: ``@checks("topic.promise")``."""

    def __init__(self) -> None:
        self.all: list[Check] = []

    def __call__(self, name: str, *, short: bool = False) -> Callable[[Callable[[Any], str | None]], Any]:
        """Enter a function as the check `name`."""

        def enter(work: Callable[[Any], str | None]) -> Callable[[Any], str | None]:
            self.all.append(Check(name, work, short))
            return work

        return enter


def expect(holds: object, reason: object) -> None:
    """Fail the check unless it holds. Raises FailedError."""
    if not holds:
        raise FailedError(str(reason))


def carry_out(check: Check, subject: Any) -> Outcome:
    """Run one check."""
    import time

    began = time.monotonic_ns()
    verdict: Verdict = "passed"
    try:
        reason = check.work(subject) or ""
    except NotHereError as error:
        verdict, reason = "not here", str(error)
    except (FailedError, NucleusError) as error:
        verdict, reason = "failed", str(error)
    except Exception as error:  # noqa: BLE001 -- an answer that no check foresaw is a finding
        verdict, reason = "failed", f"{type(error).__name__}: {error}"
    return Outcome(check.name, verdict, reason[:REASON_CHARACTERS], (time.monotonic_ns() - began) // 1_000_000)


@dataclass(frozen=True, slots=True)
class Report:
    """The outcomes of one backend. `isolation` is what the builder says of its pods."""

    backend: str
    isolation: dict[str, Any]
    outcomes: tuple[Outcome, ...]

    def count(self, verdict: Verdict) -> int:
        """How many."""
        return sum(outcome.verdict == verdict for outcome in self.outcomes)

    @property
    def conforms(self) -> bool:
        """Nothing failed, and something passed."""
        return not self.count("failed") and bool(self.count("passed"))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "backend": self.backend,
            "isolation": self.isolation,
            "conforms": self.conforms,
            "passed": self.count("passed"),
            "failed": self.count("failed"),
            "not_here": self.count("not here"),
            "checks": [asdict(outcome) for outcome in self.outcomes],
        }

    def lines(self, *, failed_only: bool = False) -> list[str]:
        """For a person: a table, then the sum."""
        shown: Sequence[Outcome] = [o for o in self.outcomes if not failed_only or o.verdict != "passed"]
        width = max((len(outcome.check) for outcome in shown), default=0)
        rows = [f"{o.check:<{width}}  {o.verdict:<8}  {o.reason}".rstrip() for o in shown]
        counts = f"{self.count('passed')} passed, {self.count('failed')} failed, {self.count('not here')} not here"
        return [*rows, f"{self.backend}: {counts}"]
