"""What a pattern cannot match without: literal text that a file is looked through for first.

Promises: sound, not complete. `required` returns texts of which every match holds at least one; whenever it is not
sure it returns nothing, and the pattern itself has to look. Why: RE2 finds a literal five times as fast as it runs an
automaton, and most files hold none.
Relies on: RE2 having accepted the pattern. Does not: parse it fully, or decide what may run; the gate did.
"""

from __future__ import annotations

BRANCHES = 4  # each is one more pass
_SHORTEST = 3
_COMMON = " etaonirslcdpmufhg.,_()bvy=xw"  # of source text and prose, the most common first
_ENDS = 1_024  # pairs that are weighed
_TELLING = 8  # characters that are kept: a shorter text is in too many files
_LEVELS = 3  # of groups that are looked into
_SPECIAL = frozenset("\\^$.|?*+()[]{}")


def required(pattern: str) -> tuple[str, ...]:
    """Literals of which every match of `pattern` holds one; () when none are known."""
    # Flags change what a letter means, and an escaped parenthesis opens no group.
    if "(?" in pattern.replace("(?:", "") or "\\Q" in pattern or "\\(?" in pattern:
        return ()
    found = _alternatives(pattern.replace("(?:", "("), 0)
    if found is None or len(found) > BRANCHES or _shortest(found) < _SHORTEST:
        return ()
    return tuple(_rare(text) for text in found)


def _rare(text: str) -> str:
    """The part of `text` whose two ends are rarest: RE2 looks for these first, many bytes at a time."""
    size = len(text)
    least = max(min(size, _TELLING), size * 2 // 3)
    ends = [(first, last) for first in range(size) for last in range(first + least - 1, size)][:_ENDS]
    first, last = max(ends, key=lambda end: (_rarity(text[end[0]]) + _rarity(text[end[1]]), end[1] - end[0]))
    return text[first : last + 1]


def _rarity(character: str) -> int:
    at = _COMMON.find(character)
    return at if at >= 0 else len(_COMMON)


def _shortest(texts: tuple[str, ...]) -> int:
    return min(map(len, texts), default=0)


def _alternatives(pattern: str, level: int) -> tuple[str, ...] | None:
    """One literal of each alternative; None when not sure. `level`: of the groups around."""
    branches: list[list[tuple[str, ...]]] = [[]]  # of each alternative: sets of which it holds one
    run = ""
    at = 0
    while at < len(pattern):
        character = pattern[at]
        literal, group = "", ""
        if character == "\\":
            at += 1
            literal = pattern[at : at + 1]
            if not literal or literal.isalnum():
                if literal not in tuple("dDwWsSbBAzntrfv"):
                    return None  # \x41, \pL, \123, \C: what follows belongs to it
                literal = ""
        elif character in "[(":
            end = _class_end(pattern, at) if character == "[" else _group_end(pattern, at)
            if end is None:
                return None
            group = pattern[at + 1 : end] if character == "(" else ""
            at = end
        elif character not in _SPECIAL:
            literal = character
        elif character in ")]{}":
            return None  # a count, or a bracket that is none
        at += 1
        optional = pattern[at : at + 1] in ("*", "?", "{")
        if literal and not optional:
            run += literal
            if pattern[at : at + 1] != "+":
                continue
        if run:
            branches[-1].append((run,))
            run = ""
        if group and not optional and level < _LEVELS and (inner := _alternatives(group, level + 1)) is not None:
            branches[-1].append(inner)
        if character == "|":
            branches.append([])
    if run:
        branches[-1].append((run,))
    best = [max(branch, key=lambda one: (_shortest(one), -len(one)), default=("",)) for branch in branches]
    return tuple(text for one in best for text in one)


def _group_end(pattern: str, at: int) -> int | None:
    """Where the group at `at` ends (its ")"); None when not sure."""
    depth = 0
    while at < len(pattern):
        if pattern[at] == "[":
            end = _class_end(pattern, at)
            if end is None:
                return None
            at = end
        elif pattern[at] == "\\":
            at += 1
        elif pattern[at] in "()":
            depth += 1 if pattern[at] == "(" else -1
            if not depth:
                return at
        at += 1
    return None


def _class_end(pattern: str, at: int) -> int | None:
    """Where the class at `at` ends (its "]"); None when not sure."""
    at += 2 if pattern[at + 1 : at + 2] == "^" else 1
    first = at
    while at < len(pattern):
        if pattern[at] == "[":
            return None  # [[:alpha:]]
        if pattern[at] == "]" and at > first:
            return at
        at += 2 if pattern[at] == "\\" else 1
    return None
