"""Sets of characters as sorted, disjoint, inclusive ranges of code points, and the named ones of RE2.

Promises: pure functions, linear in the ranges (`both_cases`: in the code points, at most 64 of one range).
Does not: know Unicode properties; ``\\p{…}`` is taken as every character.
"""

from __future__ import annotations

Ranges = tuple[tuple[int, int], ...]
TOP = 0x10FFFF
_CASED = 0x2000  # above it few letters have two cases, and none that code is searched for


def merge(ranges: list[tuple[int, int]]) -> Ranges:
    """The union."""
    out: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if out and low <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(out[-1][1], high))
        else:
            out.append((low, high))
    return tuple(out)


def negate(ranges: Ranges) -> Ranges:
    """Every other character."""
    out, start = [], 0
    for low, high in ranges:
        if low > start:
            out.append((start, low - 1))
        start = high + 1
    if start <= TOP:
        out.append((start, TOP))
    return tuple(out)


def meet(a: Ranges, b: Ranges) -> bool:
    """Is some character in both?"""
    i = j = 0
    while i < len(a) and j < len(b):
        if a[i][1] < b[j][0]:
            i += 1
        elif b[j][1] < a[i][0]:
            j += 1
        else:
            return True
    return False


def both_cases(ranges: Ranges) -> Ranges:
    """With the other case of each letter."""
    out = list(ranges)
    for low, high in ranges:
        for start, shift in ((65, 32), (97, -32)):
            first, last = max(low, start), min(high, start + 25)
            if first <= last:
                out.append((first + shift, last + shift))
        if high - low > 64:
            continue
        for code in range(max(low, 128), min(high, 128 + _CASED) + 1):
            out.extend((ord(c), ord(c)) for c in (chr(code).lower(), chr(code).upper()) if len(c) == 1)
    return merge(out)


DIGIT: Ranges = ((48, 57),)
WORD: Ranges = ((48, 57), (65, 90), (95, 95), (97, 122))
SPACE: Ranges = ((9, 13), (32, 32))
ANY: Ranges = ((0, TOP),)
DOT: Ranges = ((0, 9), (11, TOP))
# ASCII, as in RE2; but \s holds the vertical tab, as in every engine that backtracks.
CLASSES = {
    "d": DIGIT, "D": negate(DIGIT), "w": WORD, "W": negate(WORD), "s": SPACE, "S": negate(SPACE), "C": ANY,
}  # fmt: skip
CONTROL = {"a": 7, "f": 12, "t": 9, "n": 10, "r": 13, "v": 11}
POSIX: dict[str, Ranges] = {
    "alnum": ((48, 57), (65, 90), (97, 122)), "alpha": ((65, 90), (97, 122)), "ascii": ((0, 127),),
    "blank": ((9, 9), (32, 32)), "cntrl": ((0, 31), (127, 127)), "digit": DIGIT, "graph": ((33, 126),),
    "lower": ((97, 122),), "print": ((32, 126),), "punct": ((33, 47), (58, 64), (91, 96), (123, 126)),
    "space": ((9, 13), (32, 32)), "upper": ((65, 90),), "word": WORD, "xdigit": ((48, 57), (65, 70), (97, 102)),
}  # fmt: skip
