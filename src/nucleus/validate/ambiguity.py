"""Can a loop match one text in exponentially many ways? Then a backtracking engine can run away on it.

Promises: exact for what the tree says, up to three cautions below; `WORK` bounds the steps, and with them the time;
a loop that needs more is refused as too complex. Pure, deterministic.
How:

 1. The loop becomes its position automaton (Glushkov): a state per character of the pattern, edges without empty moves,
    each edge counted once or "more than once". Small counts are unrolled, `x{n,m}` beyond `_COPIES` is taken as `x+`.
 2. Within a loop every state reaches every other one. So it is exponentially ambiguous exactly when an edge is there
    more than once (``(a+)+``), or when two edges part on a common character, into two states that one text can lead
    back to a common state (``(a|a)+``, ``(\\w+\\s*)+``). The pairs of states are searched for that (Weber and Seidl's
    criterion of exponential ambiguity).

Cautious, that is refusing more than it must: assertions (``^ $ \\b``) are taken to hold; a count of five or more rounds
is a loop; whether anything after the loop can fail is not asked. Does not: find polynomial blow-up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nucleus.validate.charsets import Ranges, meet
from nucleus.validate.pattern_parser import Node, Refused

WORK = 20_000  # steps for one pattern
_COPIES = 64  # positions that unrolling one counted repetition may add


@dataclass(slots=True)
class _Part:
    """A sub-expression's entries and exits. Masks of states: `first` and `last` at least one way, the others more.

    `empty`: 0, 1 or 2 (more) ways to match nothing.
    """

    empty: int = 1
    first: int = 0
    first_more: int = 0
    last: int = 0
    last_more: int = 0


class Meter:
    """The steps left for one pattern."""

    def __init__(self) -> None:
        self.left = WORK

    def spend(self, position: int, steps: int = 1) -> None:
        self.left -= steps
        if self.left < 0:
            raise Refused("too_complex", position, "a loop too intricate to be shown harmless")


def check_loop(loop: Node, meter: Meter) -> None:
    """Raises Refused when the body of `loop`, repeated, is exponentially ambiguous, at what makes it so."""
    if any(node.kind in ("rep", "alt") for node in _below(loop.children[0])):
        _Automaton(loop, meter).check()


def _below(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children:
        yield from _below(child)


class _Automaton:
    def __init__(self, loop: Node, meter: Meter) -> None:
        self.loop = loop
        self.meter = meter
        self.above: list[Node] = [loop]
        self.paths: list[tuple[Node, ...]] = []  # of each state: the nodes above it, outermost first
        self.ranges: list[Ranges] = []
        self.follow: list[int] = []  # of each state: a mask of states
        self.more: list[int] = []  # those among them that are reached in more than one way
        self.meetings: dict[Ranges, int] = {}
        self.sizes: dict[Node, int] = {}
        whole = self._build(loop.children[0])
        self._join(whole, whole)

    def check(self) -> None:
        for state, more in enumerate(self.more):
            if more:
                self._blame(state, _lowest(more))
        seen: set[tuple[int, int]] = set()
        for mask in dict.fromkeys(self.follow):
            for parting in self._pairs(mask, mask, parting=True):
                if self._can_meet(parting, seen):
                    self._blame(*parting)

    def _can_meet(self, start: tuple[int, int], seen: set[tuple[int, int]]) -> bool:
        """Can one text lead the two states of `start` back to a common one? `seen`: pairs known not to get there."""
        if start in seen:
            return False
        seen.add(start)
        waiting = [start]
        while waiting:
            one, other = waiting.pop()
            for reached in self._pairs(self.follow[one], self.follow[other]):
                if reached[0] == reached[1]:
                    return True
                if reached not in seen:
                    seen.add(reached)
                    waiting.append(reached)
        return False

    def _pairs(self, left: int, right: int, *, parting: bool = False) -> Iterator[tuple[int, int]]:
        """Pairs of states, one of each mask, that a common character leads to. `parting`: unequal ones only."""
        while left:
            one = _lowest(left)
            left &= left - 1
            others = right & self._met(one)
            self.meter.spend(self.loop.position, 1 + others.bit_count())
            while others:
                other = _lowest(others)
                others &= others - 1
                if not parting or one < other:
                    yield (one, other) if one < other else (other, one)

    def _met(self, state: int) -> int:
        """The states whose characters meet those of `state`."""
        mine = self.ranges[state]
        found = self.meetings.get(mine)
        if found is None:
            self.meter.spend(self.loop.position, len(self.ranges) // 4 + 1)
            known: dict[Ranges, bool] = {}
            found = 0
            for index, theirs in enumerate(self.ranges):
                hit = known.get(theirs)
                if hit is None:
                    hit = known[theirs] = meet(mine, theirs)
                found |= hit << index
            self.meetings[mine] = found
        return found

    def _blame(self, one: int, other: int) -> None:
        """Refuse, at the node that makes the two ways."""
        ours, theirs = self.paths[one], self.paths[other]
        common = [a for a, b in zip(ours, theirs, strict=False) if a is b]
        alternatives = common[-1] if common[-1].kind == "alt" else None
        inner = [node for node in (*ours[1:], *theirs[1:]) if node.kind == "rep" and node.low != node.high]
        if alternatives is None and not inner:
            alternatives = next((node for node in (*ours, *theirs) if node.kind == "alt"), None)
        if alternatives is not None:
            raise Refused(
                "overlapping_alternation",
                alternatives.position,
                "repeated alternatives that match the same text, such as (a|a)+",
            )
        culprit = max(inner, key=lambda node: node.position) if inner else self.loop
        raise Refused("nested_quantifiers", culprit.position, "nested quantifiers such as (a+)+ can run away")

    # --- building ---

    def _build(self, node: Node) -> _Part:
        self.above.append(node)
        if node.kind == "char":
            part = self._state(node)
        elif node.kind == "cat":
            part = _Part()
            for child in node.children:
                part = self._chain(part, self._build(child))
        elif node.kind == "alt":
            part = _Part(empty=0)
            for child in node.children:
                part = _either(part, self._build(child))
        elif node.kind == "rep":
            part = self._repeat(node)
        else:
            part = _Part()
        self.above.pop()
        return part

    def _state(self, node: Node) -> _Part:
        self.meter.spend(node.position)
        bit = 1 << len(self.ranges)
        self.ranges.append(node.ranges)
        self.paths.append(tuple(self.above))
        self.follow.append(0)
        self.more.append(0)
        return _Part(0, bit, 0, bit, 0)

    def _repeat(self, node: Node) -> _Part:
        body, low, high = node.children[0], node.low, node.high
        copies = max(low, 1) if high is None else high
        if copies > 1 and copies * self._size(body) > _COPIES:
            low, high, copies = min(low, 1), None, 1
        if high == 0:
            return _Part()
        if high is None:
            part = self._build(body)
            self._join(part, part)
            if low == 0:
                return _maybe(part)
            rest, mandatory = part, low - 1
        else:
            rest, mandatory = _Part(), low
            for _ in range(high - low):
                rest = _maybe(self._chain(self._build(body), rest))
        for _ in range(mandatory):
            rest = self._chain(self._build(body), rest)
        return rest

    def _size(self, node: Node) -> int:
        size = self.sizes.get(node)
        if size is None:
            size = 1 if node.kind == "char" else sum(self._size(child) for child in node.children)
            if node.kind == "rep":
                size *= max(node.low, 1) if node.high is None else node.high
            self.sizes[node] = size
        return size

    def _chain(self, left: _Part, right: _Part) -> _Part:
        self._join(left, right)
        empty = min(2, left.empty * right.empty)
        first, first_more = _add(left.first, left.first_more, *_times(left.empty, right.first, right.first_more))
        last, last_more = _add(right.last, right.last_more, *_times(right.empty, left.last, left.last_more))
        return _Part(empty, first, first_more, last, last_more)

    def _join(self, left: _Part, right: _Part) -> None:
        ends = left.last
        self.meter.spend(self.loop.position, 1 + ends.bit_count())
        while ends:
            state = _lowest(ends)
            ends &= ends - 1
            more = right.first if left.last_more >> state & 1 else right.first_more
            self.follow[state], self.more[state] = _add(self.follow[state], self.more[state], right.first, more)


def _lowest(mask: int) -> int:
    return (mask & -mask).bit_length() - 1


def _add(a: int, a_more: int, b: int, b_more: int) -> tuple[int, int]:
    return a | b, a_more | b_more | (a & b)


def _times(ways: int, mask: int, more: int) -> tuple[int, int]:
    if ways == 0:
        return 0, 0
    return mask, mask if ways > 1 else more


def _either(a: _Part, b: _Part) -> _Part:
    first, first_more = _add(a.first, a.first_more, b.first, b.first_more)
    last, last_more = _add(a.last, a.last_more, b.last, b.last_more)
    return _Part(min(2, a.empty + b.empty), first, first_more, last, last_more)


def _maybe(part: _Part) -> _Part:
    return _Part(min(2, 1 + part.empty), part.first, part.first_more, part.last, part.last_more)
