"""Globs as RE2 programs: linear whatever the pattern, one automaton for a whole exclude list.

The language is the policy's: ``*`` and ``?`` stay inside a name, ``**/`` is any number of directories, another ``**``
crosses them, ``[abc]``, ``[a-z]``, ``[!x]`` (an unclosed ``[`` is a literal), no escapes, anchored at both ends.
Promises: caller's text becomes literals and classes only, escaped here; Python's `re` never sees it; an exclude list
ignores case (``.ENV``), as the policy's block lists do.
Relies on: names being text (`nucleus.hands.names`). Does not: enforce. The gate filters every name it is given.
"""

from __future__ import annotations

from functools import lru_cache

import re2

from nucleus.globs import anchored
from nucleus.hands.protocol import HandsError

MAX_MEM = 8 << 20  # bytes of one automaton; a smaller cap backfires (reference measurements)


def options(*, ignore_case: bool = False) -> re2.Options:
    """RE2 options that every pattern here shares."""
    chosen = re2.Options()
    chosen.max_mem = MAX_MEM
    chosen.log_errors = False
    chosen.never_capture = True
    chosen.case_sensitive = not ignore_case
    return chosen


class Glob:
    """One pattern, or a list of them: does it match a whole relative name?"""

    def __init__(self, patterns: tuple[str, ...], *, ignore_case: bool = False) -> None:
        source = "(?s)(?:" + "|".join(dict.fromkeys(_translate(pattern) for pattern in patterns)) + ")"
        try:
            self._program = re2.compile(source, options(ignore_case=ignore_case))
        except re2.error:
            raise HandsError("bad_pattern", "the glob is too large") from None

    def matches(self, name: str) -> bool:
        """Whether `name` matches one of the patterns from end to end."""
        return self._program.fullmatch(name.encode("utf-8")) is not None


class Exclude:
    """A policy's block list: a glob without a slash is a name at any depth, one with a slash starts at the root.

    What is below a match is covered, too: a walk does not go there, and `covers` asks for each directory above.
    """

    def __init__(self, globs: tuple[str, ...], *, ignore_case: bool = True) -> None:
        names: list[str] = []
        rooted: list[str] = []
        for glob in globs:
            text = anchored(glob)
            if text[0] == "/":
                rooted.append(text[1:])
            else:
                names.append(text)
        self._names = Glob(tuple(names), ignore_case=ignore_case) if names else None
        self._anchored = Glob(tuple(rooted), ignore_case=ignore_case) if rooted else None

    def matches(self, path: str) -> bool:
        """Whether a glob matches this very path (not only a directory above it)."""
        if self._names is not None and self._names.matches(path.rpartition("/")[2]):
            return True
        return self._anchored is not None and self._anchored.matches(path)


@lru_cache(maxsize=8)
def excluded(globs: tuple[str, ...]) -> Exclude | None:
    """The matcher of an exclude list; None for an empty one."""
    return Exclude(globs) if globs else None


@lru_cache(maxsize=8)
def allowed(lists: tuple[tuple[str, ...], ...]) -> tuple[Exclude | None, ...]:
    """The matchers of a policy's allow lists (`admits`); an empty list admits nothing."""
    return tuple(Exclude(globs, ignore_case=False) if globs else None for globs in lists)


def admits(lists: tuple[Exclude | None, ...], path: str) -> bool:
    """Whether every allow list covers `path` or a directory above it."""
    return all(covers(globs, path) for globs in lists)


def covers(skip: Exclude | None, path: str) -> bool:
    """Whether an exclude list covers `path` or a directory above it."""
    if skip is None or path == ".":
        return False
    end = len(path)
    while end > 0:
        if skip.matches(path[:end]):
            return True
        end = path.rfind("/", 0, end)
    return False


def _translate(pattern: str) -> str:
    out: list[str] = []
    at, size = 0, len(pattern)
    while at < size:
        character = pattern[at]
        if character == "*":
            end = at
            while end < size and pattern[end] == "*":
                end += 1
            whole = end - at >= 2 and (at == 0 or pattern[at - 1] == "/")
            if whole and end < size and pattern[end] == "/":
                out.append("(?:[^/]+/)*")
                end += 1
            else:
                out.append("[^/]*" if end - at == 1 else ".*")
            at = end
        elif character == "?":
            out.append("[^/]")
            at += 1
        elif character == "[" and (end := _set_end(pattern, at)) > 0:
            out.append(_set(pattern[at + 1 : end]))
            at = end + 1
        else:
            out.append(_literal(character))
            at += 1
    return "".join(out)


def _set_end(pattern: str, at: int) -> int:
    start = at + 2 if pattern[at + 1 : at + 2] in ("!", "^") else at + 1
    return pattern.find("]", start + 1)


def _set(body: str) -> str:
    negated = body[0] in "!^"
    members = body[1:] if negated else body
    ranges: list[str] = []
    at = 0
    while at < len(members):
        low = high = members[at]
        if at + 2 < len(members) and members[at + 1] == "-":
            high = members[at + 2]
            at += 2
        at += 1
        if low <= high:
            ranges.append(f"{_literal(low)}-{_literal(high)}")
    # A "/" is never matched by a set; an empty set matches nothing.
    if negated:
        return f"[^/{''.join(ranges)}]"
    return f"[{''.join(ranges)}]" if ranges else "[^\\x00-\\x{10FFFF}]"


def _literal(character: str) -> str:
    return character if character.isalnum() and character.isascii() else f"\\x{{{ord(character):X}}}"
