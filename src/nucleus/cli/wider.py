"""Answers wider than "this once", as a person reads, types and confirms them (docs/design.md, "Wider answers").

Promises: nothing wider than once is sent without the scope's own line having been shown and a second, typed yes to it;
what is typed names a scope that this request offers, and a count from 1 to 100, or it is no wider answer.
Does not: read a terminal or send (`prompt`, `approvals`).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LETTERS = {"same": "s", "path": "p", "command": "c", "host": "h", "tool": "t", "remote": "r"}
USUAL = 5  # times, where no number is typed
MOST = 100  # nucleus.approval.scope.MAX_TIMES


class Wider:
    """What was chosen. kind: the scope's; shown: its line as the authority escaped it; times: with this operation."""

    def __init__(self, kind: str, shown: str, times: int) -> None:
        self.kind, self.shown, self.times = kind, shown, times

    def text(self) -> str:
        """What the second yes is said to."""
        return f"a wider answer, for at most 1 h: {self.shown}"

    def question(self) -> str:
        """The second question."""
        return f"allow this {self.times} times, this one included? [y/N] "

    def fields(self) -> dict[str, Any]:
        """What ``approve`` carries besides."""
        return {"scope": self.kind, "times": self.times}


def offers(request: dict[str, Any]) -> list[tuple[str, str]]:
    """(kind, line) of each scope of `request` that we know a letter for."""
    scopes = request.get("scopes")
    found = []
    for scope in scopes if isinstance(scopes, list) else ():
        if isinstance(scope, dict) and scope.get("kind") in LETTERS and isinstance(scope.get("shown"), str):
            found.append((scope["kind"], scope["shown"].replace("\n", "\\n")))
    return found


def choices(request: dict[str, Any]) -> list[str]:
    """The lines above the question: what can be typed."""
    lines = ["  [y] once  [n] no"]
    for kind, shown in offers(request):
        letter = LETTERS[kind]
        lines.append(f"  [{letter}] {USUAL} times ({letter} 20: 20 times): {shown}")
    return lines if len(lines) > 1 else []


def chosen(request: dict[str, Any], typed: str) -> Wider | None:
    """The wider answer that `typed` names, or None."""
    words = typed.lower().split()
    if not 1 <= len(words) <= 2:
        return None
    count = words[1] if len(words) == 2 else str(USUAL)
    if not (count.isascii() and count.isdigit() and len(count) <= 3 and 1 <= int(count) <= MOST):
        return None
    return next((Wider(kind, shown, int(count)) for kind, shown in offers(request) if LETTERS[kind] == words[0]), None)


def grant_line(grant: object) -> str:
    """A grant on one line."""
    grant = grant if isinstance(grant, dict) else {}
    times, left = grant.get("times"), grant.get("left")
    used = times - left if isinstance(times, int) and isinstance(left, int) else "?"
    line = f"{grant.get('grant')}  {grant.get('pod')}  {used} of {times}: {grant.get('shown')}"
    return line.replace("\n", "\\n")
