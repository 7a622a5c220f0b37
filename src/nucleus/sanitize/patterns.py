"""A pattern that is compiled when it is first used: the rule set costs no start-up, and most of it is never used.

Relies on `re`, whose engine backtracks: each pattern of this room is linear by its form (tests scan and time them all).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re


class Pattern:
    """Like `re.compile(pattern)`, later."""

    search: Callable[..., re.Match[str] | None]
    match: Callable[..., re.Match[str] | None]
    finditer: Callable[..., Iterator[re.Match[str]]]
    sub: Callable[..., str]

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern

    def __getattr__(self, name: str) -> object:
        if name not in ("search", "match", "finditer", "sub"):
            raise AttributeError(name)
        import re  # late

        made = re.compile(self.pattern)
        self.search, self.match, self.finditer, self.sub = made.search, made.match, made.finditer, made.sub
        return getattr(made, name)
