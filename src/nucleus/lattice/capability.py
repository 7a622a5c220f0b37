"""Twelve capabilities in one int, and the algebra on it.

Layout (36 bits): bits 2i and 2i+1 are capability i's level as a thermometer (00 never, 01 low_risk, 11 always); bit
24+i is its *unattended* bit (cleared: a person must say yes). So meet is ``&``, join is ``|``, a ≤ b is
``a & ~b == 0``.
Promises: `meet`, `join`, `leq` and `nu` are straight-line bit arithmetic, no branch on a bit, so the same functions run
on ints in production and on Z3 bit-vectors in proofs. ν (`nu`) clears the unattended bit of each enabled
exfiltration capability when all three trifecta legs are live; a leg may also be live outside the twelve (tools, what a
session has seen).
What holds: ν is deflationary and idempotent; its fixed points are closed under meet. What does not: ν is not
monotone and does not preserve meet on raw elements; after a join, normalize again.
Does not: know operations, paths or contexts beyond the two facts that shape the legs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

NAMES: tuple[str, ...] = (
    "read_files", "write_files", "edit_files", "run_bash", "glob_search", "grep_search",
    "web_search", "web_fetch", "git_commit", "git_push", "create_pr", "manage_pods",
)  # fmt: skip
INDEX: dict[str, int] = {name: index for index, name in enumerate(NAMES)}
COUNT = len(NAMES)
WIDTH = 3 * COUNT
UNATTENDED = 2 * COUNT  # position of the first unattended bit

NEVER, LOW_RISK, ALWAYS = 0b00, 0b01, 0b11
LEVELS: dict[str, int] = {"never": NEVER, "low_risk": LOW_RISK, "always": ALWAYS}
LEVEL_NAMES: dict[int, str] = {value: name for name, value in LEVELS.items()}

# The legs of the trifecta as bits, and one more fact about an operation: it changes something outside the pod.
PRIVATE, UNTRUSTED, EXFILTRATION, STATE = 1, 2, 4, 8
LEG_NAMES: dict[str, int] = {
    "private": PRIVATE, "untrusted": UNTRUSTED, "exfiltration": EXFILTRATION, "state": STATE,
}  # fmt: skip

BOTTOM = 0
TOP = (1 << WIDTH) - 1


@dataclass(frozen=True, slots=True)
class Legs:
    """Which capabilities (indices) are which leg of the trifecta."""

    private: tuple[int, ...]
    untrusted: tuple[int, ...]
    exfiltration: tuple[int, ...]


def _indices(*names: str) -> tuple[int, ...]:
    return tuple(INDEX[name] for name in names)


_PRIVATE = ("read_files", "glob_search", "grep_search")
_UNTRUSTED = ("web_fetch", "web_search", "run_bash")
_EXFILTRATION = ("git_push", "create_pr", "web_fetch", "web_search")
# manage_pods is no leg: a child pod never exceeds nu(parent), so it brings no way out that the parent lacks.


def legs(*, egress: bool, trusted_workspace: bool) -> Legs:
    """The legs in one context.

    Args:
        egress: the pod has a way out; without one only run_bash's exfiltration leg goes.
        trusted_workspace: the user vouches for the workspace; otherwise reading it is untrusted content too.
    """
    return Legs(
        private=_indices(*_PRIVATE, "run_bash"),
        untrusted=_indices(*_UNTRUSTED, *(() if trusted_workspace else _PRIVATE)),
        exfiltration=_indices(*_EXFILTRATION, *(("run_bash",) if egress else ())),
    )


WORST = legs(egress=True, trusted_workspace=False)


# --- the algebra; `Any` because these also take Z3 bit-vectors ---


def meet(a: Any, b: Any) -> Any:
    """Greatest lower bound."""
    return a & b


def join(a: Any, b: Any) -> Any:
    """Least upper bound. Not closed under normalization: call `nu` on the result."""
    return a | b


def leq(a: Any, b: Any) -> Any:
    """a ≤ b: every permission of a is one of b."""
    return a & ~b == 0


def _any_enabled(a: Any, indices: tuple[int, ...]) -> Any:
    """1 when some capability of `indices` is above never, else 0."""
    live = a & 0
    for index in indices:
        live = live | (a >> (2 * index))
    return live & 1


def trifecta(a: Any, with_legs: Legs = WORST, outside: Any = 0) -> Any:
    """1 when all three legs are live, else 0. `outside`: legs (bits) that are live besides the twelve capabilities."""
    return (
        (_any_enabled(a, with_legs.private) | outside)
        & (_any_enabled(a, with_legs.untrusted) | (outside >> 1))
        & (_any_enabled(a, with_legs.exfiltration) | (outside >> 2))
        & 1
    )


def nu(a: Any, with_legs: Legs = WORST, outside: Any = 0) -> Any:
    """Normalize: with the trifecta live, no enabled exfiltration capability stays unattended.

    Args:
        a: an element.
        with_legs: which capability is which leg.
        outside: 0..7, bits `PRIVATE`, `UNTRUSTED`, `EXFILTRATION`: legs that are live by other means (declared tools,
            what the session has already seen).
    """
    live = trifecta(a, with_legs, outside)
    cleared = a & 0
    for index in with_legs.exfiltration:
        cleared = cleared | ((live & (a >> (2 * index)) & 1) << (UNATTENDED + index))
    return a & ~cleared


# --- reading and writing one element (ints only) ---


def level(a: int, name: str) -> int:
    """NEVER, LOW_RISK or ALWAYS."""
    return (a >> (2 * INDEX[name])) & 0b11


def unattended(a: int, name: str) -> bool:
    """May it run without a person?"""
    return bool((a >> (UNATTENDED + INDEX[name])) & 1)


def pack(levels: dict[str, int], approve: frozenset[str] = frozenset()) -> int:
    """One element from levels by name (missing: never); those in `approve` need a person."""
    out = 0
    for name, value in levels.items():
        index = INDEX[name]
        attended = name in approve or value == NEVER
        out |= (value << (2 * index)) | ((0 if attended else 1) << (UNATTENDED + index))
    return out


def is_wellformed(a: int) -> bool:
    """No level is the non-thermometer 10, nothing above the width."""
    return 0 <= a <= TOP and all((a >> (2 * i)) & 0b11 != 0b10 for i in range(COUNT))
