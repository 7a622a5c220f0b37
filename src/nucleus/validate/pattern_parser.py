"""A parser of RE2's syntax, for the scan in `patterns`: text to a tree of `Node`.

Promises: recursive descent that never goes back; nesting at most `_DEPTH`; what RE2 lacks (lookaround,
back-references, possessive quantifiers, atomic groups, …) is refused as unsupported, by name; every refusal has the
position, in characters from 0. Cautious where it is not exact: ``(?i)`` and ``(?s)`` anywhere hold for all that follows
(``(?i)`` also for what comes before), ``\\p{…}`` is every character.
Does not: build anything to match with; RE2 does, and may still refuse (an unknown property, too large a program).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Never

from nucleus.validate import charsets
from nucleus.validate.charsets import Ranges

EXCESSIVE = 1_000  # repetitions
_DEPTH = 40


@dataclass(frozen=True, slots=True)
class Finding:
    """Why a pattern is refused. `kind`: nested_quantifiers, overlapping_alternation, excessive_repetition, too_complex,
    unsupported or syntax; `position` counts characters (code points) from 0."""

    kind: str
    position: int
    reason: str


class Refused(Exception):
    """Ends the scan."""

    def __init__(self, kind: str, position: int, reason: str) -> None:
        super().__init__(reason)
        self.finding = Finding(kind, position, reason)


@dataclass(slots=True, eq=False)
class Node:
    """One syntax node. kind: char (ranges), empty, cat, alt, rep (low, high; None is unbounded)."""

    kind: str
    position: int
    ranges: Ranges = ()
    children: list[Node] = field(default_factory=list)
    low: int = 1
    high: int | None = 1


class Parser:
    """Recursive descent over RE2's syntax; never backtracks."""

    def __init__(self, text: str, ignore_case: bool) -> None:
        self.text = text
        self.at = 0
        self.ignore_case = ignore_case
        self.any_newline = False

    def parse(self) -> Node:
        node = self._alternation(0)
        if self.at < len(self.text):
            self._fail("unbalanced ')'")
        return node

    def _fail(self, reason: str, kind: str = "syntax", position: int | None = None) -> Never:
        raise Refused(kind, self.at if position is None else position, reason)

    def _peek(self, text: str) -> bool:
        return self.text.startswith(text, self.at)

    def _alternation(self, depth: int) -> Node:
        if depth > _DEPTH:
            self._fail(f"groups nest deeper than {_DEPTH}")
        start = self.at
        branches = [self._concatenation(depth)]
        while self._peek("|"):
            self.at += 1
            branches.append(self._concatenation(depth))
        return branches[0] if len(branches) == 1 else Node("alt", start, children=branches)

    def _concatenation(self, depth: int) -> Node:
        node = Node("cat", self.at)
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            if self._peek("\\Q"):
                literals = self._quoted()
                node.children.extend(literals[:-1])
                if literals:
                    node.children.append(self._quantified(literals[-1]))
                continue
            node.children.append(self._quantified(self._atom(depth)))
        return node

    def _quoted(self) -> list[Node]:
        start = self.at + 2
        end = self.text.find("\\E", start)
        stop = len(self.text) if end < 0 else end
        self.at = len(self.text) if end < 0 else end + 2
        return [self._char(((ord(c), ord(c)),), start + i) for i, c in enumerate(self.text[start:stop])]

    def _char(self, ranges: Ranges, position: int) -> Node:
        return Node("char", position, ranges=charsets.both_cases(ranges) if self.ignore_case else ranges)

    def _atom(self, depth: int) -> Node:
        start, character = self.at, self.text[self.at]
        if character == "(":
            return self._group(depth)
        if character == "[":
            return Node("char", start, ranges=self._class())
        if character in "*+?":
            self._fail("nothing to repeat")
        self.at += 1
        if character == ".":
            return self._char(charsets.ANY if self.any_newline else charsets.DOT, start)
        if character in "^$":
            return Node("empty", start)
        if character == "\\":
            ranges = self._escape(False)
            return Node("empty", start) if ranges is None else self._char(ranges, start)
        return self._char(((ord(character), ord(character)),), start)

    def _group(self, depth: int) -> Node:
        start = self.at
        self.at += 1
        if self._peek("?"):
            self._group_head(start)
            if self.text[self.at - 1] == ")":  # (?i) and the like: flags alone
                return Node("empty", start)
        node = self._alternation(depth + 1)
        if not self._peek(")"):
            self._fail("'(' is not closed", position=start)
        self.at += 1
        return node

    def _group_head(self, start: int) -> None:
        """Skip what follows "(" up to the body; refuse what RE2 does not have."""
        for text, what in (
            ("?=", "lookahead"), ("?!", "lookahead"), ("?<=", "lookbehind"), ("?<!", "lookbehind"),
            ("?>", "an atomic group"), ("?(", "a conditional"), ("?#", "a comment group"), ("?P=", "a back-reference"),
            ("?P>", "recursion"), ("?R", "recursion"), ("?&", "recursion"), ("?|", "a branch reset"),
        ):  # fmt: skip
            if self._peek(text):
                self._fail(f"{what} is not supported", "unsupported", start)
        if self._peek("?P<") or self._peek("?<"):
            self.at = self.text.index("<", self.at) + 1
            end = self.text.find(">", self.at)
            if end < 0 or not self.text[self.at : end].isidentifier():
                self._fail("malformed group name")
            self.at = end + 1
            return
        self.at += 1
        while self.at < len(self.text) and self.text[self.at] in "imsU-":
            self.any_newline |= self.text[self.at] == "s"
            self.at += 1
        if not (self._peek(":") or self._peek(")")):
            self._fail("unknown group or flag", "unsupported", start)
        self.at += 1

    def _quantified(self, atom: Node) -> Node:
        node = atom
        applied = 0
        while (bounds := self._quantifier()) is not None:
            position, low, high = bounds
            if applied:
                self._fail("a quantifier on a quantifier", "unsupported", position)
            applied += 1
            if self._peek("?"):
                self.at += 1  # lazy
            elif self._peek("+"):
                self._fail("a possessive quantifier is not supported", "unsupported", position)
            node = Node("rep", position, children=[node], low=low, high=high)
        return node

    def _quantifier(self) -> tuple[int, int, int | None] | None:
        start = self.at
        symbol = self.text[start : start + 1]
        if symbol and symbol in "*+?":
            self.at += 1
            return start, 1 if symbol == "+" else 0, 1 if symbol == "?" else None
        if symbol != "{":
            return None
        end = self.text.find("}", start)
        low, comma, high = self.text[start + 1 : max(end, start)].partition(",")
        digits = all(part.isascii() and part.isdigit() for part in (low, high) if part)
        if end < 0 or not low or not digits:
            return None  # a literal brace, as in RE2
        if len(low) > 6 or len(high) > 6:
            self._fail(f"repetition of {EXCESSIVE} or more", "excessive_repetition", start)
        self.at = end + 1
        least = int(low)
        most = (int(high) if high else None) if comma else least
        if most is not None and most < least:
            self._fail("repetition bounds are reversed", position=start)
        return start, least, most

    def _escape(self, in_class: bool) -> Ranges | None:
        """After a backslash; None is a zero-width assertion."""
        start = self.at - 1
        if self.at >= len(self.text):
            self._fail("a trailing backslash", position=start)
        letter = self.text[self.at]
        self.at += 1
        if letter in charsets.CLASSES:
            return charsets.CLASSES[letter]
        if letter in charsets.CONTROL:
            return ((charsets.CONTROL[letter], charsets.CONTROL[letter]),)
        if letter in "pP":
            return self._property(start)
        if letter == "x":
            return self._hexadecimal(start)
        if letter.isascii() and letter.isdigit():
            return self._octal(letter, start)
        if letter in "bBAz" and not in_class:
            return None
        if letter.isascii() and letter.isalnum():
            what = "a back-reference" if letter in "kg" else f"the escape '\\{letter}'"
            self._fail(f"{what} is not supported", "unsupported", start)
        return ((ord(letter), ord(letter)),)

    def _octal(self, letter: str, start: int) -> Ranges:
        digits = letter
        while len(digits) < 3 and self.text[self.at : self.at + 1] and self.text[self.at] in "01234567":
            digits += self.text[self.at]
            self.at += 1
        if letter != "0" and not (len(digits) == 3 and set(digits) <= set("01234567")):
            self._fail("a back-reference is not supported", "unsupported", start)
        value = int(digits, 8)
        return ((value, value),)

    def _property(self, start: int) -> Ranges:
        if self._peek("{"):
            end = self.text.find("}", self.at)
            if end < 0 or end - self.at > 32:
                self._fail("malformed \\p{…}", position=start)
            self.at = end + 1
        else:
            self.at += 1
        return charsets.ANY

    def _hexadecimal(self, start: int) -> Ranges:
        if self._peek("{"):
            end = self.text.find("}", self.at)
            digits, after = self.text[self.at + 1 : max(end, self.at)], end + 1
        else:
            digits, after = self.text[self.at : self.at + 2], self.at + 2
        if not 0 < len(digits) <= 6 or not all(c in "0123456789abcdefABCDEF" for c in digits):
            self._fail("malformed \\x escape", position=start)
        value = int(digits, 16)
        if value > charsets.TOP:
            self._fail("malformed \\x escape", position=start)
        self.at = after
        return ((value, value),)

    def _class(self) -> Ranges:
        start = self.at
        self.at += 1
        negated = self._peek("^")
        self.at += int(negated)
        ranges: list[tuple[int, int]] = []
        first = True
        while first or not self._peek("]"):
            first = False
            if self.at >= len(self.text):
                self._fail("'[' is not closed", position=start)
            low = self._member(start)
            if len(low) != 1 or low[0][0] != low[0][1] or not self._peek("-") or self._ends_with_dash():
                ranges.extend(low)
                continue
            self.at += 1
            high = self._member(start)
            if len(high) != 1 or high[0][0] != high[0][1] or high[0][0] < low[0][0]:
                self._fail("a bad range in a class", position=start)
            ranges.append((low[0][0], high[0][0]))
        self.at += 1
        merged = charsets.merge(ranges)
        if self.ignore_case:
            merged = charsets.both_cases(merged)
        return charsets.negate(merged) if negated else merged

    def _ends_with_dash(self) -> bool:
        return self.text.startswith("-]", self.at)

    def _member(self, start: int) -> Ranges:
        if self.at >= len(self.text):
            self._fail("'[' is not closed", position=start)
        if self._peek("[:"):
            end = self.text.find(":]", self.at)
            name = self.text[self.at + 2 : max(end, self.at)]
            if end > 0:
                found = charsets.POSIX.get(name.removeprefix("^"))
                if found is None:
                    self._fail("an unknown class name", position=self.at)
                self.at = end + 2
                return charsets.negate(found) if name.startswith("^") else found
        character = self.text[self.at]
        self.at += 1
        if character == "\\":
            return self._escape(True) or ()
        return ((ord(character), ord(character)),)
