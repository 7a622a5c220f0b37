"""What a proposal is learnt from, and what each of its lines rests on.

Does not: read a log (`cli.learn` does), or conclude anything.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Event:
    """One operation of the log.

    Args:
        seq: its record: the intent, or the refusal.
        at_ns: when, wall clock.
        kind: of the operation, "" where there is none.
        operation: as it was decided; None where it is not on record whole.
        accepted: the base allowed it, or a person did.
        approver, approval: who said yes (``uid:0``) and the record of it; "" and 0 where the base allowed it.
        rule, reason: of a refusal.
        by_policy: refused by the policy or for want of a yes, not by a budget or an error.
        unanswered: refused because nobody answered.
    """

    seq: int
    at_ns: int
    kind: str
    operation: Any
    accepted: bool
    approver: str = ""
    approval: int = 0
    rule: str = ""
    reason: str = ""
    by_policy: bool = True
    unanswered: bool = False

    @property
    def identity(self) -> str:
        """Equal for operations that the log cannot tell apart."""
        data = None if self.operation is None else self.operation.model_dump(mode="json")
        return json.dumps(data if data is not None else self.seq, sort_keys=True)

    def shown(self) -> str:
        """One line for a person, not escaped."""
        if self.operation is None:
            return self.kind or "a request that is no operation"
        if self.kind == "run":
            return f"run {json.dumps(list(self.operation.argv), ensure_ascii=False)}"
        if self.kind == "tool":
            return f"tool {self.operation.server}/{self.operation.tool}"
        for name in ("path", "url", "query", "remote", "title", "action", "message"):
            if value := getattr(self.operation, name, ""):
                return f"{self.kind} {value}"
        return self.kind


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a proposal: the value, what it rests on, and what else a person should know of it."""

    value: Any
    events: list[Event] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """The pod, as its records say.

    Args:
        started_ns, ended_ns: the pod's start and its last operation, wall clock.
        spent, held: micro-dollars: charged in all, and the most that was reserved at one time.
        unread: records of requests that were no operation, or whose operation is not on record whole.
    """

    pod: str
    base: str
    digest: str
    started_ns: int
    ended_ns: int
    spent: int = 0
    held: int = 0
    egress: bool = False
    trusted_workspace: bool = False
    isolation: str = "namespaces"
    task: str = ""
    shared: bool = False
    unread: int = 0
