"""A static scan of caller's regular expressions for the seed's three classes of catastrophic backtracking.

 1. nested quantifiers      ``(a+)+``, ``((a+))+``, ``(\\w+\\s*)+``
 2. overlapping alternation ``(a|a)+``, ``(\\d|\\w)*``
 3. excessive repetition    ``a{1000,}``, and products of nested counts beyond it

Promises: a hand-written parser of RE2's syntax with bounded depth; linear tree, quadratic only in the branches of one
alternation; the caller's pattern never reaches Python's ``re``. What RE2 lacks (lookaround, back-references,
possessive and atomic groups) is refused as unsupported. Each finding has a position and a reason.
How: a repeated body is refused when something variable inside it can meet itself across two rounds without a mandatory
character between them that it cannot match itself (so ``(?:\\d{1,3}\\.)+`` and ``(foo|bar)+`` pass).
Does not: prove linear time (RE2 with a deadline does the running), or find polynomial blow-up outside loops.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Never

from nucleus.errors import InvalidError
from nucleus.limits import LIMITS
from nucleus.validate.text import byte_length, check_size

EXCESSIVE = 1_000  # repetitions
_LOOP = 10  # a bounded repetition of at least so many rounds counts as a loop
_DEPTH = 40
_TOP = 0x10FFFF

Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """Why a pattern is refused. `kind`: nested_quantifiers, overlapping_alternation, excessive_repetition,
    unsupported or syntax; `position` counts characters from 0."""

    kind: str
    position: int
    reason: str


class _Refused(Exception):
    def __init__(self, kind: str, position: int, reason: str) -> None:
        super().__init__(reason)
        self.finding = Finding(kind, position, reason)


@dataclass(slots=True)
class _Node:
    """One syntax node. kind: char (ranges), empty, cat, alt, rep (low, high; None is unbounded)."""

    kind: str
    position: int
    ranges: Ranges = ()
    children: list[_Node] = field(default_factory=list)
    low: int = 1
    high: int | None = 1


def validate_pattern(name: str, pattern: str, *, ignore_case: bool = False) -> None:
    """Check a regular expression.

    Raises:
        InvalidError: ``limits.pattern``, or ``patterns.<kind>`` with position and reason.
    """
    check_size(name, pattern, LIMITS.pattern_bytes, "limits.pattern")
    byte_length(name, pattern)
    finding = scan(pattern, ignore_case=ignore_case)
    if finding is not None:
        raise InvalidError(
            f"{name}: {finding.reason} (at character {finding.position})",
            rule=f"patterns.{finding.kind}",
            next_step="Rewrite the pattern, or search in several steps.",
        )


def scan(pattern: str, *, ignore_case: bool = False) -> Finding | None:
    """The first dangerous, unsupported or malformed place of `pattern`, or None."""
    try:
        tree = _Parser(pattern, ignore_case or _asks_ignore_case(pattern)).parse()
        _judge(tree, 1, False)
    except _Refused as refused:
        return refused.finding
    return None


def _asks_ignore_case(pattern: str) -> bool:
    position = pattern.find("(?")
    while position >= 0:
        flags = pattern[position + 2 : position + 8]
        for letter in flags:
            if letter == "i":
                return True
            if letter not in "msU-":
                break
        position = pattern.find("(?", position + 2)
    return False


# --- character sets: sorted tuples of inclusive ranges ---


def _merge(ranges: list[tuple[int, int]]) -> Ranges:
    out: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if out and low <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(out[-1][1], high))
        else:
            out.append((low, high))
    return tuple(out)


def _negate(ranges: Ranges) -> Ranges:
    out, start = [], 0
    for low, high in ranges:
        if low > start:
            out.append((start, low - 1))
        start = high + 1
    if start <= _TOP:
        out.append((start, _TOP))
    return tuple(out)


def _meet(a: Ranges, b: Ranges) -> bool:
    i = j = 0
    while i < len(a) and j < len(b):
        if a[i][1] < b[j][0]:
            i += 1
        elif b[j][1] < a[i][0]:
            j += 1
        else:
            return True
    return False


def _both_cases(ranges: Ranges) -> Ranges:
    out = list(ranges)
    for low, high in ranges:
        for start, shift in ((65, 32), (97, -32)):
            first, last = max(low, start), min(high, start + 25)
            if first <= last:
                out.append((first + shift, last + shift))
        for code in range(max(low, 128), min(high, 128 + 0x2000) + 1):
            if high - low > 64:
                break
            out.extend((ord(c), ord(c)) for c in (chr(code).lower(), chr(code).upper()) if len(c) == 1)
    return _merge(out)


_DIGIT: Ranges = ((48, 57),)
_WORD: Ranges = ((48, 57), (65, 90), (95, 95), (97, 122))
_SPACE: Ranges = ((9, 10), (12, 13), (32, 32))
_ANY: Ranges = ((0, _TOP),)
_DOT: Ranges = ((0, 9), (11, _TOP))
# Unicode classes are taken coarsely: every non-ASCII character and the ASCII ones they could hold.
_CLASSES = {
    "d": _DIGIT, "D": _negate(_DIGIT), "w": _WORD, "W": _negate(_WORD), "s": _SPACE, "S": _negate(_SPACE),
    "C": _ANY,
}  # fmt: skip
_CONTROL = {"a": 7, "f": 12, "t": 9, "n": 10, "r": 13, "v": 11}
_POSIX: dict[str, Ranges] = {
    "alnum": ((48, 57), (65, 90), (97, 122)), "alpha": ((65, 90), (97, 122)), "ascii": ((0, 127),),
    "blank": ((9, 9), (32, 32)), "cntrl": ((0, 31), (127, 127)), "digit": _DIGIT, "graph": ((33, 126),),
    "lower": ((97, 122),), "print": ((32, 126),), "punct": ((33, 47), (58, 64), (91, 96), (123, 126)),
    "space": ((9, 13), (32, 32)), "upper": ((65, 90),), "word": _WORD, "xdigit": ((48, 57), (65, 70), (97, 102)),
}  # fmt: skip


class _Parser:
    """Recursive descent over RE2's syntax; never backtracks."""

    def __init__(self, text: str, ignore_case: bool) -> None:
        self.text = text
        self.at = 0
        self.ignore_case = ignore_case
        self.any_newline = False

    def parse(self) -> _Node:
        node = self._alternation(0)
        if self.at < len(self.text):
            self._fail("unbalanced ')'")
        return node

    def _fail(self, reason: str, kind: str = "syntax", position: int | None = None) -> Never:
        raise _Refused(kind, self.at if position is None else position, reason)

    def _peek(self, text: str) -> bool:
        return self.text.startswith(text, self.at)

    def _alternation(self, depth: int) -> _Node:
        if depth > _DEPTH:
            self._fail(f"groups nest deeper than {_DEPTH}")
        start = self.at
        branches = [self._concatenation(depth)]
        while self._peek("|"):
            self.at += 1
            branches.append(self._concatenation(depth))
        return branches[0] if len(branches) == 1 else _Node("alt", start, children=branches)

    def _concatenation(self, depth: int) -> _Node:
        node = _Node("cat", self.at)
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            if self._peek("\\Q"):
                node.children.extend(self._quoted())
                continue
            node.children.append(self._quantified(self._atom(depth)))
        return node

    def _quoted(self) -> list[_Node]:
        start = self.at + 2
        end = self.text.find("\\E", start)
        stop = len(self.text) if end < 0 else end
        self.at = len(self.text) if end < 0 else end + 2
        return [self._char(((ord(c), ord(c)),), start + i) for i, c in enumerate(self.text[start:stop])]

    def _char(self, ranges: Ranges, position: int) -> _Node:
        return _Node("char", position, ranges=_both_cases(ranges) if self.ignore_case else ranges)

    def _atom(self, depth: int) -> _Node:
        start, character = self.at, self.text[self.at]
        if character == "(":
            return self._group(depth)
        if character == "[":
            return self._char(self._class(), start)
        if character in "*+?":
            self._fail("nothing to repeat")
        self.at += 1
        if character == ".":
            return self._char(_ANY if self.any_newline else _DOT, start)
        if character in "^$":
            return _Node("empty", start)
        if character == "\\":
            ranges = self._escape(False)
            return _Node("empty", start) if ranges is None else self._char(ranges, start)
        return self._char(((ord(character), ord(character)),), start)

    def _group(self, depth: int) -> _Node:
        start = self.at
        self.at += 1
        if self._peek("?"):
            self._group_head(start)
            if self.text[self.at - 1] == ")":  # (?i) and the like: flags alone
                return _Node("empty", start)
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

    def _quantified(self, atom: _Node) -> _Node:
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
            node = _Node("rep", position, children=[node], low=low, high=high)
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
        if letter in _CLASSES:
            return _CLASSES[letter]
        if letter in _CONTROL:
            return ((_CONTROL[letter], _CONTROL[letter]),)
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
        return _ANY

    def _hexadecimal(self, start: int) -> Ranges:
        if self._peek("{"):
            end = self.text.find("}", self.at)
            digits, after = self.text[self.at + 1 : max(end, self.at)], end + 1
        else:
            digits, after = self.text[self.at : self.at + 2], self.at + 2
        if not 0 < len(digits) <= 6 or not all(c in "0123456789abcdefABCDEF" for c in digits):
            self._fail("malformed \\x escape", position=start)
        value = int(digits, 16)
        if value > _TOP:
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
        merged = _merge(ranges)
        return _negate(merged) if negated else merged

    def _ends_with_dash(self) -> bool:
        return self.text.startswith("-]", self.at)

    def _member(self, start: int) -> Ranges:
        if self.at >= len(self.text):
            self._fail("'[' is not closed", position=start)
        if self._peek("[:"):
            end = self.text.find(":]", self.at)
            name = self.text[self.at + 2 : max(end, self.at)]
            if end > 0 and name.removeprefix("^") in _POSIX:
                self.at = end + 2
                found = _POSIX[name.removeprefix("^")]
                return _negate(found) if name.startswith("^") else found
        character = self.text[self.at]
        self.at += 1
        if character == "\\":
            return self._escape(True) or ()
        return ((ord(character), ord(character)),)


# --- the judgement ---


def _judge(node: _Node, rounds: int, looping: bool) -> None:
    """Walk the tree. `rounds`: product of the counts above; `looping`: some repetition above is a loop."""
    if node.kind == "rep":
        count = node.high if node.high is not None else max(node.low, 1)
        if max(node.low, count) >= EXCESSIVE or rounds * max(count, 1) > EXCESSIVE:
            raise _Refused("excessive_repetition", node.position, f"repetition of {EXCESSIVE} or more")
        loop = node.high is None or node.high >= _LOOP
        if loop:
            _check_body(node.children[0], [])
        _judge(node.children[0], rounds * max(count, 1), looping or loop)
        return
    if node.kind == "alt" and looping:
        _check_branches(node)
    for child in node.children:
        _judge(child, rounds, looping)


def _check_body(node: _Node, around: list[_Node]) -> None:
    """Class 1: `around` is everything that a round must pass besides `node`."""
    if node.kind == "rep":
        variable = node.low != node.high
        mine = _alphabet(node.children[0])
        if variable and not any(_separates(other, mine) for other in around):
            raise _Refused("nested_quantifiers", node.position, "nested quantifiers such as (a+)+ can run away")
        # Within one round of the inner repetition only its own body counts; its own loop is judged separately.
        if not (node.high is None or node.high >= _LOOP):
            _check_body(node.children[0], around)
        return
    if node.kind == "cat":
        for index, child in enumerate(node.children):
            _check_body(child, around + node.children[:index] + node.children[index + 1 :])
    elif node.kind == "alt":
        for child in node.children:
            _check_body(child, around)


def _separates(node: _Node, mine: Ranges) -> bool:
    """Does every match of `node` hold a character outside `mine`?"""
    if node.kind == "char":
        return not _meet(node.ranges, mine)
    if node.kind == "cat":
        return any(_separates(child, mine) for child in node.children)
    if node.kind == "alt":
        return all(_separates(child, mine) for child in node.children)
    return node.kind == "rep" and node.low >= 1 and _separates(node.children[0], mine)


def _alphabet(node: _Node) -> Ranges:
    if node.kind == "char":
        return node.ranges
    return _merge([pair for child in node.children for pair in _alphabet(child)])


def _check_branches(node: _Node) -> None:
    """Class 2: one branch can begin with what another one is."""
    lines = [_line(child) for child in node.children]
    for i, one in enumerate(lines):
        for other in lines[i + 1 :]:
            # zip stops at the shorter: a branch that is a prefix of another overlaps it.
            if all(_meet(a, b) for a, b in zip(one, other, strict=False)):
                raise _Refused(
                    "overlapping_alternation",
                    node.position,
                    "repeated alternatives that match the same text, such as (a|a)+",
                )


def _line(node: _Node) -> list[Ranges]:
    """The sets of the first characters of every match of `node`, as far as they are at fixed places."""
    out: list[Ranges] = []
    _extend(node, out)
    return out


def _extend(node: _Node, out: list[Ranges]) -> bool:
    """Append; False where the fixed part ends."""
    if node.kind == "char":
        out.append(node.ranges)
        return len(out) < 64
    if node.kind == "empty":
        return True
    if node.kind == "cat":
        return all(_extend(child, out) for child in node.children)
    if node.kind == "alt":
        lines = [_line(child) for child in node.children]
        for column in range(min(len(line) for line in lines)):
            out.append(_merge([pair for line in lines for pair in line[column]]))
        return False
    for _ in range(min(node.low, 64)):
        if not _extend(node.children[0], out):
            return False
    return node.low == node.high
