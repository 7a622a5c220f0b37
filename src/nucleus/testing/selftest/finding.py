"""A probe's finding and a list of them: the words of `nucleus selftest`.

Promises: a probe that raises anything is a finding, never the selftest's end; what was not tried, or not answered as
foreseen, is ``not checked`` and never ``holds``; the report's exit code is 1 as soon as one thing does not hold.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from nucleus.errors import NucleusError, SandboxError
from nucleus.testing.conformance.bed import FailedError, NotHereError

Verdict = Literal["holds", "does not hold", "allowed by your policy", "not checked"]
HOLDS: Verdict = "holds"
OPEN: Verdict = "does not hold"
ALLOWED: Verdict = "allowed by your policy"
UNCHECKED: Verdict = "not checked"
VERDICTS: tuple[Verdict, ...] = (HOLDS, OPEN, ALLOWED, UNCHECKED)
EVIDENCE_CHARACTERS = 300


class AllowedError(Exception):
    """What was tried worked, and the person's policy says that it may."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of one probe.

    Args:
        id: ``group.name``, the same in every run.
        tried: in plain words.
        layer: what is to stop it.
        evidence: how it was answered: an errno, a rule, an exit code, or why it could not be tried.
    """

    id: str
    tried: str
    verdict: Verdict
    layer: str
    evidence: str = ""
    milliseconds: int = 0


@dataclass(slots=True)
class Findings:
    """A list that fills itself. tell: called with each finding as it comes; until: monotonic seconds."""

    tell: Callable[[Finding], None]
    until: float
    all: list[Finding] = field(default_factory=list)

    def add(
        self, ident: str, tried: str, layer: str, verdict: Verdict, evidence: object, milliseconds: int = 0
    ) -> None:
        """Enter what was found."""
        found = Finding(ident, tried, verdict, layer, str(evidence)[:EVIDENCE_CHARACTERS], milliseconds)
        self.all.append(found)
        self.tell(found)

    def attempt(self, ident: str, tried: str, layer: str, work: Callable[[], object]) -> None:
        """Carry out one probe. What `work` returns is the evidence that it holds."""
        if time.monotonic() > self.until:
            self.add(ident, tried, layer, UNCHECKED, "the selftest's time was up")
            return
        began, verdict, evidence = time.monotonic_ns(), HOLDS, ""
        try:
            evidence = str(work() or "")
        except FailedError as error:
            verdict, evidence = OPEN, str(error)
        except AllowedError as error:
            verdict, evidence = ALLOWED, str(error)
        except NotHereError as error:
            verdict, evidence = UNCHECKED, str(error)
        except NucleusError as error:
            verdict, evidence = UNCHECKED, f"{error.code}: {error}"
        except Exception as error:  # noqa: BLE001 -- an answer that no probe foresaw shows nothing
            verdict, evidence = UNCHECKED, f"{type(error).__name__}: {error}"
        self.add(ident, tried, layer, verdict, evidence, (time.monotonic_ns() - began) // 1_000_000)


@dataclass(frozen=True, slots=True)
class Report:
    """The findings of one run. limits: what this machine cannot enforce, each with what to do about it."""

    policy: str
    isolation: dict[str, Any]
    findings: tuple[Finding, ...]
    limits: tuple[str, ...]
    seconds: float

    def count(self, verdict: Verdict) -> int:
        """How many."""
        return sum(found.verdict == verdict for found in self.findings)

    @property
    def exit_code(self) -> int:
        """0: all that was tried holds; 1: something does not; 6: something could not be checked."""
        if self.count(OPEN):
            return 1
        return SandboxError.exit_code if self.count(UNCHECKED) or not self.count(HOLDS) else 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "exit_code": self.exit_code,
            "policy": self.policy,
            "isolation": self.isolation,
            "counts": {verdict.replace(" ", "_"): self.count(verdict) for verdict in VERDICTS},
            "cannot_enforce": list(self.limits),
            "seconds": round(self.seconds, 1),
            "findings": [asdict(found) for found in self.findings],
        }

    def lines(self) -> list[str]:
        """The end, for a person: what is not as it should be, each in full, then the sum."""
        rows: list[str] = []
        for verdict in (OPEN, ALLOWED, UNCHECKED):
            members = [found for found in self.findings if found.verdict == verdict]
            if members:
                rows += ["", f"{verdict.capitalize()}:"]
                rows += [f"  {found.id}: {found.tried} ({found.layer}): {found.evidence}" for found in members]
        if self.limits:
            rows += ["", "What this machine cannot enforce:", *(f"  {line}" for line in self.limits)]
        counts = ", ".join(f"{self.count(verdict)} {verdict}" for verdict in VERDICTS if self.count(verdict))
        return [*rows, "", f"{self.policy}: {counts or 'nothing was tried'} ({self.seconds:.0f} s)."]
