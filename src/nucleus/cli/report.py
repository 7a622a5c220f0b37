"""The closing summary of a run, counted from the audit log itself: what it says is what is on record.

Promises: only records of the pod in question are counted; a line that is no record is counted as unreadable, never
skipped in silence; integers only. Reads from a given offset, so the cost is that of this run and not of the log.
Does not: verify the chain: `nucleus audit verify` does, and the summary says where the log is.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any

from nucleus.errors import AuditError
from nucleus.store.segments import LogFiles

LOG = "audit.jsonl"
_LINE = 4_194_304  # bytes of one line at most
_REFUSED = frozenset({"denied", "invalid", "unauthenticated", "identity.refused"})


@dataclass(slots=True)
class Summary:
    """What one pod did. Money in micro-dollars."""

    pod: str
    log: str
    isolation: dict[str, Any] = field(default_factory=dict)
    exit_code: int = 0
    operations: int = 0
    denied: int = 0
    asked: int = 0
    charged: int = 0
    budget: int = 0
    unmediated: bool = False
    records: int = 0
    unreadable: int = 0
    problem: str = ""
    set_aside: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {name: getattr(self, name) for name in self.__slots__}

    def lines(self) -> str:
        """For a person."""
        rows = [f"pod {self.pod} ended with exit code {self.exit_code}"]
        if self.problem:
            rows.append(f"audit log {self.log}: {self.problem}")
        else:
            spent = f"charged {dollars(self.charged)} of {dollars(self.budget)}"
            rows.append(f"operations {self.operations}, denied {self.denied}, asked {self.asked}, {spent}")
            rows.append(f"audit: {self.records} records in {self.log}")
            if self.unreadable:
                rows.append(f"audit: {self.unreadable} lines are no records; run `nucleus audit verify`")
        rows += [f"workspace: {line}" for line in self.set_aside]
        rows.append(isolation_line(self.isolation))
        if self.unmediated:
            rows.append("advisory: --share-workspace: what the agent's own tools read is not in the log")
        return "".join(f"nucleus: {row}\n" for row in rows)


def dollars(micro: int) -> str:
    """Micro-dollars as dollars, exactly."""
    return f"${micro // 1_000_000}.{micro % 1_000_000:06d}"


def isolation_line(isolation: dict[str, Any]) -> str:
    """The backend, whose kernel it is, what this machine could not give, and what else there is to know."""
    line = f"isolation: {isolation.get('backend', 'unknown')}, kernel {isolation.get('kernel', 'unknown')}"
    for name in ("missing", "notes"):
        values = isolation.get(name)
        if isinstance(values, list) and values:
            line += f"; {name}: {', '.join(map(str, values))}"
    return line


def position(state_dir: str) -> int:
    """Where the log ends now, 0 when there is none that we can see."""
    try:
        with LogFiles(os.path.join(state_dir, LOG)) as log:
            return log.size
    except (OSError, AuditError):
        return 0


def summarize(state_dir: str, offset: int, pod: str) -> Summary:
    """Count the records of `pod` behind `offset`. Never raises for what the log holds or lacks."""
    summary = Summary(pod, os.path.join(state_dir, LOG))
    try:
        with LogFiles(summary.log) as log:
            if log.size < offset:
                summary.problem = "it is shorter than it was when the pod started"
                return summary
            for line in log.lines(offset, _LINE):
                _count(summary, line)
    except OSError as error:
        summary.problem = error.strerror or type(error).__name__
    except AuditError as error:
        summary.problem = error.message
    return summary


def _count(summary: Summary, line: bytes) -> None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        summary.unreadable += 1
        return
    if not isinstance(record, dict):
        summary.unreadable += 1
        return
    if record.get("pod") != summary.pod:
        return
    summary.records += 1
    event = record.get("event")
    if event == "intent":
        summary.operations += 1
    elif event in _REFUSED:
        summary.operations += 1
        summary.denied += 1
    elif event == "outcome":
        charged = _part(record, "context").get("charged")
        if isinstance(charged, int) and not isinstance(charged, bool):
            summary.charged += charged
    # One `ask` decision ends in exactly one of these two: it ran, or it was refused.
    if event in ("intent", "denied") and _part(record, "decision").get("verdict") == "ask":
        summary.asked += 1


def _part(record: dict[str, Any], name: str) -> dict[str, Any]:
    value = record.get(name)
    return value if isinstance(value, dict) else {}
