"""When a request for approval is put to a person at all: caps, and "no" is not asked again.

Promises: at most `MAX_PENDING` requests of a pod wait at a time and at most `MAX_ASKED` are ever put to a person; an
operation that was denied is answered "no" at once for `DENIED_NS` (a hijacked agent cannot wear a person down).
Memory is bounded. Pure: clocks are passed in, nanoseconds, monotonic.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MAX_PENDING = 16
MAX_ASKED = 200
DENIED_NS = 60_000_000_000


@dataclass(slots=True)
class AskRules:
    """One pod's session."""

    pending: int = 0
    asked: int = 0
    _denied: dict[str, int] = field(default_factory=dict)  # operation hash -> monotonic ns of the denial

    def refusal(self, operation_hash: str, now_ns: int) -> str:
        """Why this request is not put to a person, "" when it is."""
        denied = self._denied.get(operation_hash)
        if denied is not None and now_ns - denied < DENIED_NS:
            return "the same operation was denied less than 60 s ago"
        if self.pending >= MAX_PENDING:
            return f"{MAX_PENDING} requests of this pod are waiting already"
        if self.asked >= MAX_ASKED:
            return f"this pod has asked {MAX_ASKED} times: start a new one"
        return ""

    def opened(self) -> None:
        """A request is put to a person."""
        self.pending += 1
        self.asked += 1

    def closed(self, operation_hash: str, now_ns: int, *, denied: bool) -> None:
        """A request is resolved, in whatever way. At most `MAX_ASKED` denials can ever be remembered."""
        self.pending -= 1
        if denied:
            self._denied[operation_hash] = now_ns
