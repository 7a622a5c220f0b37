"""What comes back from an execution, and what the caller is told."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from dataclasses import field as _field
from typing import Any


@dataclass(slots=True)
class Meter:
    """What one execution used, measured by the gate (never by hands), also when it fails or is cancelled.

    Args:
        bytes_moved: payload bytes that crossed the gate, both ways.
        duration_ns: by the gate's monotonic clock.
        matches: search results returned.
        extra: micro-dollars beside these, as the gateway measured them (a model's tokens).
        paid_ns: a command whose whole deadline is not paid for may run so long; 0: to its deadline.
        more: buys more time for it; False when there is none.
        bought: micro-dollars that it was given so.
        unpaid: it was told to end, because there was no more.
        output: told what a command writes as it comes: ``stdout`` or ``stderr``, and bytes.
        progress: told how far a search is: files and bytes that it has gone through, never less than before.
    """

    bytes_moved: int = 0
    duration_ns: int = 0
    matches: int = 0
    extra: int = 0
    paid_ns: int = 0
    more: Callable[[], Awaitable[bool]] | None = None
    bought: int = 0
    unpaid: bool = False
    output: Callable[[str, bytes], None] | None = None
    progress: Callable[[int, int], None] | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one execution: the operation's own answer (docs/design.md names its fields)."""

    result: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Redirect:
    """Nothing was done, because a symlink is in the way or a server redirects: `resolved` is to be decided instead.

    Args:
        field: the operation's field that it stands in for.
        resolved: a canonical path, or a URL.
        changes: what else a redirect changes of a request (method, body).
    """

    field: str
    resolved: str
    changes: dict[str, str] = _field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Approval:
    """A human's answer as the authority gave it. `token` is spent by the reservation."""

    verdict: str  # approve | deny | expired | no_approver
    token: str = field(default="", repr=False)
    approver: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the caller is told.

    Args:
        request_id: correlation id, also in every audit record of the request.
        status: ``ok`` or an error family's code.
        reason: one plain, sanitized sentence (errors).
        result: the operation's answer (ok), or what there was of it when the budget ended it.
        audit: sequence number of the closing audit record, 0 when none could be written.
        cost: micro-dollars charged.
        rule, detail, next_step: for the person only; the agent's door drops them.
    """

    request_id: str
    status: str
    reason: str = ""
    result: dict[str, Any] = field(default_factory=dict)
    operation: str = ""
    audit: int = 0
    cost: int = 0
    rule: str = ""
    detail: str = ""
    next_step: str = ""
