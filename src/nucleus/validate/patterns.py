"""A static scan of callers' regular expressions for the seed's three classes of catastrophic backtracking.

 1. nested quantifiers      ``(a+)+``, ``((a+))+``, ``(\\w+\\s*)+``
 2. overlapping alternation ``(a|a)+``, ``(\\d|\\w)*``
 3. excessive repetition    ``a{1000,}``, and products of nested counts beyond it

Promises: what a backtracking engine can take exponential time on, within a loop, is refused (`ambiguity` decides), and
what it cannot is not, with few exceptions; what RE2 lacks is refused as unsupported (`pattern_parser`). Each finding
has a position and a reason. The work is bounded; the caller's pattern never reaches Python's ``re``.
Does not: prove linear time (RE2 with a deadline does the running), or find polynomial blow-up.
"""

from __future__ import annotations

from nucleus.errors import InvalidError
from nucleus.limits import LIMITS
from nucleus.validate.ambiguity import Meter, check_loop
from nucleus.validate.pattern_parser import EXCESSIVE, Finding, Node, Parser, Refused
from nucleus.validate.text import byte_length, check_size

__all__ = ["EXCESSIVE", "Finding", "scan", "validate_pattern"]

_LOOP = (
    5  # a bounded repetition of at least so many rounds counts as a loop; fewer cost false refusals of IPv4 patterns
)


def validate_pattern(name: str, pattern: str, *, ignore_case: bool = False) -> None:
    """Check a regular expression.

    Raises:
        InvalidError: ``limits.pattern``, or ``patterns.<kind>`` with position (in characters from 0) and reason.
    """
    check_size(name, pattern, LIMITS.pattern_bytes, "limits.pattern")
    byte_length(name, pattern)
    if "\0" in pattern:
        raise InvalidError(f"{name}: holds NUL (at character {pattern.index(chr(0))})", rule="text.characters")
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
        tree = Parser(pattern, ignore_case or _asks_ignore_case(pattern)).parse()
        _check_counts(tree, 1)
        _check_loops(tree, Meter())
    except Refused as refused:
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


def _check_counts(node: Node, rounds: int) -> None:
    """Class 3. `rounds`: the product of the counts above."""
    if node.kind == "rep":
        count = max(node.low, 1) if node.high is None else node.high
        if count >= EXCESSIVE or rounds * max(count, 1) > EXCESSIVE:
            raise Refused("excessive_repetition", node.position, f"repetition of {EXCESSIVE} or more")
        rounds *= max(count, 1)
    for child in node.children:
        _check_counts(child, rounds)


def _check_loops(node: Node, meter: Meter) -> None:
    """Classes 1 and 2, in the outermost loops: each holds the loops within it."""
    if node.kind == "rep" and (node.high is None or node.high >= _LOOP):
        if node.low >= _LOOP and _can_be_empty(node.children[0]):
            raise Refused("nested_quantifiers", node.position, "a count of what may be empty, such as (a?){10}a{10}")
        check_loop(node, meter)
        return
    for child in node.children:
        _check_loops(child, meter)


def _can_be_empty(node: Node) -> bool:
    if node.kind == "cat":
        return all(_can_be_empty(child) for child in node.children)
    if node.kind == "alt":
        return any(_can_be_empty(child) for child in node.children)
    if node.kind == "rep":
        return node.low == 0 or _can_be_empty(node.children[0])
    return node.kind == "empty"
