"""What an operation may cost at most, and what it did cost (the seed's "Cost Model" table), in integer micro-dollars.

| operation         | cost basis                      | kinds                                                |
|-------------------|---------------------------------|------------------------------------------------------|
| command execution | base + per second begun         | run, git_status, git_diff, git_commit                |
| file I/O          | per KB begun, read or written   | read, write, edit                                    |
| network request   | per request                     | web_search, git_push, create_pr, manage_pods, tool   |
| network transfer  | per request + per KB begun      | connect, web_fetch                                   |
| search            | per result                      | glob, grep                                           |

Promises: `actual` never exceeds `upper_bound` for the same operation, as long as what was measured is within the bounds
that were given; a command's bound is by its own deadline, not by what is left of a window. Only non-negative integers:
anything else (a float, a bool, NaN, an overflow) is refused, an unknown kind too.
Does not: measure. The gate does, never hands.
"""

from __future__ import annotations

from dataclasses import dataclass

from nucleus.errors import InvalidError
from nucleus.limits import LIMITS

MAX_AMOUNT = (1 << 62) - 1  # micro-dollars; fits SQLite's integers with room for a sum
KB = 1_024
NS_PER_S = 1_000_000_000
# git's commands have a fixed deadline of their own: the gate's for searches, with its patience.
GIT_DEADLINE_MS = LIMITS.search_timeout_ms + 5 * (LIMITS.grace_ns // 1_000_000)
_COMMANDS = frozenset({"run", "git_status", "git_diff", "git_commit"})
_FILES = frozenset({"read", "write", "edit"})
_TRANSFERS = frozenset({"connect", "web_fetch"})
_NETWORK = frozenset({"web_search", "git_push", "create_pr", "manage_pods", "tool"})
_SEARCHES = frozenset({"glob", "grep"})


def amount(value: object, what: str) -> int:
    """`value` when it is an int of 0 to `MAX_AMOUNT`. Raises InvalidError otherwise (bool and float included)."""
    if type(value) is not int or not 0 <= value <= MAX_AMOUNT:
        raise InvalidError(f"{what}: not an integer from 0 to {MAX_AMOUNT}", rule="budget.amount")
    return value


@dataclass(frozen=True, slots=True)
class CostModel:
    """Prices in micro-dollars."""

    command_base: int = 100
    command_second: int = 50
    file_kb: int = 1
    network_request: int = 500
    network_kb: int = 1
    search_result: int = 2

    def __post_init__(self) -> None:
        for name in self.__slots__:
            amount(getattr(self, name), f"cost model: {name}")


DEFAULT = CostModel()


def upper_bound(
    kind: str,
    *,
    timeout_ms: int = 0,
    bytes_in: int = 0,
    limit: int = 0,
    max_bytes: int = 0,
    model: CostModel = DEFAULT,
) -> int:
    """What to reserve.

    Args:
        kind: the operation's kind.
        timeout_ms: a command's own deadline; 0 for git, whose deadline is fixed.
        bytes_in: what the operation carries in (content, old, new ...).
        limit: results that a search may return.
        max_bytes: what it may bring out.

    Raises:
        InvalidError: an unknown kind, or a number that is not a non-negative int within bounds.
    """
    for value in (timeout_ms, bytes_in, limit, max_bytes):
        amount(value, "cost")
    if kind in _COMMANDS:
        deadline_ns = (timeout_ms or GIT_DEADLINE_MS) * 1_000_000 + LIMITS.grace_ns
        return _sum(model.command_base, model.command_second * _ceil(deadline_ns, NS_PER_S))
    if kind in _FILES:
        return _sum(model.file_kb * max(1, _ceil(bytes_in + max_bytes, KB)))
    if kind in _TRANSFERS:
        return _sum(model.network_request, model.network_kb * _ceil(bytes_in + max_bytes, KB))
    if kind in _NETWORK:
        return model.network_request
    if kind in _SEARCHES:
        return _sum(model.search_result * max(1, limit))
    raise InvalidError("no cost is known for this kind of operation", rule="budget.kind")


def least_of_command(model: CostModel = DEFAULT) -> int:
    """The smallest reservation that a command is begun with: one second of it, and what ending it may take."""
    return upper_bound("run", timeout_ms=1_000, model=model)


def paid_ns(held: int, model: CostModel = DEFAULT) -> int:
    """How long a command may run that has `held` reserved, so that ending it is paid for too."""
    if not model.command_second:
        return LIMITS.run_timeout_max_ms * 1_000_000
    seconds = max(0, amount(held, "cost") - model.command_base) // model.command_second
    return max(0, seconds * NS_PER_S - LIMITS.grace_ns)


def actual(
    kind: str, *, duration_ns: int = 0, bytes_moved: int = 0, matches: int = 0, model: CostModel = DEFAULT
) -> int:
    """What to settle, from what the gate measured.

    Args:
        kind: the operation's kind.
        duration_ns: by the gate's monotonic clock; each second begun counts.
        bytes_moved: payload bytes both ways; each KB begun counts, an empty file as one.
        matches: results returned; none counts as one.

    Raises:
        InvalidError: as `upper_bound`.
    """
    for value in (duration_ns, bytes_moved, matches):
        amount(value, "cost")
    if kind in _COMMANDS:
        return _sum(model.command_base, model.command_second * _ceil(duration_ns, NS_PER_S))
    if kind in _FILES:
        return _sum(model.file_kb * max(1, _ceil(bytes_moved, KB)))
    if kind in _TRANSFERS:
        return _sum(model.network_request, model.network_kb * _ceil(bytes_moved, KB))
    if kind in _NETWORK:
        return model.network_request
    if kind in _SEARCHES:
        return _sum(model.search_result * max(1, matches))
    raise InvalidError("no cost is known for this kind of operation", rule="budget.kind")


def _ceil(value: int, unit: int) -> int:
    return -(-value // unit)


def _sum(*parts: int) -> int:
    return amount(sum(parts), "cost")
