"""When a request for approval is put to a person at all: caps, and "no" is not asked again.

Promises: at most `MAX_PENDING` requests of a pod wait at a time and at most `MAX_ASKED` are ever put to a person; an
operation that was denied is answered "no" at once for `DENIED_NS`; after `DENIALS` in a row, whatever for, nobody is
asked for `PAUSE_NS`, and twice as long after each further one (a hijacked agent cannot wear a person down by asking for
the same in ever new words).
Memory is bounded. Pure: clocks are passed in, nanoseconds, monotonic.
"""

from __future__ import annotations

from dataclasses import dataclass, field

MAX_PENDING = 16
MAX_ASKED = 200
DENIED_NS = 60_000_000_000
DENIALS = 5
PAUSE_NS = 10_000_000_000
PAUSE_MAX_NS = 600_000_000_000


@dataclass(slots=True)
class AskRules:
    """One pod's session."""

    pending: int = 0
    asked: int = 0
    _denied: dict[str, int] = field(default_factory=dict)  # operation hash -> monotonic ns of the denial
    _in_a_row: int = 0  # denials since the last approval
    _quiet_until_ns: int = 0

    def refusal(self, operation_hash: str, now_ns: int) -> str:
        """Why this request is not put to a person, "" when it is."""
        if self.denied(operation_hash, now_ns):
            return "the same operation was denied less than 60 s ago"
        if now_ns < self._quiet_until_ns:
            return f"{self._in_a_row} requests in a row were denied: nobody is asked for a while"
        if self.pending >= MAX_PENDING:
            return f"{MAX_PENDING} requests of this pod are waiting already"
        if self.asked >= MAX_ASKED:
            return f"this pod has asked {MAX_ASKED} times: start a new one"
        return ""

    def denied(self, operation_hash: str, now_ns: int) -> bool:
        """A person has just said no to exactly this."""
        denied = self._denied.get(operation_hash)
        return denied is not None and now_ns - denied < DENIED_NS

    def opened(self) -> None:
        """A request is put to a person."""
        self.pending += 1
        self.asked += 1

    def closed(self, operation_hash: str, now_ns: int, *, denied: bool, approved: bool = False) -> None:
        """A request is resolved, in whatever way. At most `MAX_ASKED` denials can ever be remembered."""
        self.pending -= 1
        if denied:
            self._denied[operation_hash] = now_ns
            self._in_a_row += 1
            if self._in_a_row >= DENIALS:
                pause = min(PAUSE_NS << min(self._in_a_row - DENIALS, 16), PAUSE_MAX_NS)
                self._quiet_until_ns = now_ns + pause
        elif approved:
            self._in_a_row = 0
