"""Globs as RE2 programs: linear whatever the pattern, one automaton for a whole exclude list.

The language is the policy's: ``*`` and ``?`` stay inside a name, ``**/`` is any number of directories, another ``**``
crosses them, ``[abc]``, ``[a-z]``, ``[!x]`` (an unclosed ``[`` is a literal), no escapes, anchored at both ends.
Promises: caller's text becomes literals and classes only, escaped here; Python's `re` never sees it; an exclude list
ignores case (``.ENV``), as the policy's block lists do; a whole directory's names are asked for at once (`any_of`),
name by name only where one of them is met.
Relies on: names being text without NUL. Does not: enforce. The gate filters every name it is given.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

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
        source = "(?:" + "|".join(dict.fromkeys(_translate(pattern) for pattern in patterns)) + ")"
        self._options = options(ignore_case=ignore_case)
        self._source = source
        self._among: Any = None
        try:
            self._program = re2.compile(source, self._options)
        except re2.error:
            raise HandsError("bad_pattern", "the glob is too large") from None

    def matches(self, name: str) -> bool:
        """Whether `name` matches one of the patterns from end to end."""
        return self._program.fullmatch(name.encode("utf-8")) is not None

    def any_of(self, block: bytes) -> bool:
        """Whether one of the names in `block` (a NUL before, between and after them) matches; a "/" may end a name."""
        if self._among is None:
            try:
                self._among = re2.compile(f"\\x00{self._source}/?\\x00", self._options)
            except re2.error:  # a hair too large: every name is asked for on its own
                self._among = re2.compile("", self._options)
        return self._among.search(block) is not None


class Names:
    """The one glob of a search, over the names of a directory: the usual shapes without RE2.

    Attributes:
        fixed: the leading directories without a special character: nothing else needs walking.
        depth: how many directories below the start a match can be; None without a bound.
    """

    def __init__(self, pattern: str) -> None:
        *directories, leaf = pattern.split("/")
        self.fixed: list[str] = []
        for part in directories:
            if any(special in part for special in "*?["):
                break
            self.fixed.append(part)
        self.depth = None if "**" in pattern else len(directories)
        self._glob = Glob((pattern,))
        self._every = pattern == "**" or (leaf == "*" and directories == ["**"])
        rest = leaf[1:]
        plain = directories in ([], ["**"]) and leaf[:1] == "*" and rest and not any(mark in rest for mark in "*?[")
        self._ending = rest if plain else ""

    def among(self, below: str, names: list[str]) -> list[str]:
        """Those of `names`, all in the directory `below` (empty, or with a "/" behind), that match."""
        if self._every:
            return names
        if self._ending:
            ending = self._ending
            return [name for name in names if name.endswith(ending)]
        matches = self._glob.matches
        return [name for name in names if matches(below + name)]


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

    def any_of(self, prefix: str, names: list[str], block: bytes) -> bool:
        """Whether a glob matches one of `names` in the directory `prefix`.

        Args:
            prefix: empty, or with a "/" behind it.
            names: directories with a "/" behind them.
            block: the names, as `Glob.any_of` wants them.
        """
        if self._names is not None and self._names.any_of(block):
            return True
        if self._anchored is None:
            return False
        return self._anchored.any_of((("\0" + prefix).join(("", *names)) + "\0").encode("utf-8") if prefix else block)


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
                out.append("(?:[^/\\x00]+/)*")
                end += 1
            else:
                out.append("[^/\\x00]*" if end - at == 1 else "[^\\x00]*")
            at = end
        elif character == "?":
            out.append("[^/\\x00]")
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
        return f"[^/\\x00{''.join(ranges)}]"
    return f"[{''.join(ranges)}]" if ranges else "[^\\x00-\\x{10FFFF}]"


def _literal(character: str) -> str:
    return character if character.isalnum() and character.isascii() else f"\\x{{{ord(character):X}}}"
