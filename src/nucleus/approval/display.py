"""What a person is shown, so that it cannot lie: no control, bidirectional, invisible or line-breaking character.

Promises: each such character comes out as a visible ``\\uXXXX`` escape (a backslash as ``\\\\``, so that none can be
forged); a line stays one line; sizes are bounded and a cut is marked. Pure.
Does not: catch look-alike letters; letters of other scripts are shown as they are.
"""

from __future__ import annotations

import unicodedata

MAX_LINES = 64
MAX_LINE = 16_384  # characters
MAX_TOTAL = 32_768  # characters of all lines
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
# Spaces that are not the space, and characters that render as nothing though their category says letter or mark.
_ALSO = frozenset("\u00a0\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u3164\uffa0\u2800") | {
    chr(c) for c in (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))
}


def escape(text: str) -> str:
    """`text` with everything that a terminal would not show as itself made visible."""
    if text.isascii() and text.isprintable() and "\\" not in text:
        return text
    return "".join(map(_shown, text))


def _shown(c: str) -> str:
    if c == "\\":
        return "\\\\"
    if " " <= c <= "~":
        return c
    category = unicodedata.category(c)
    if category in _HIDDEN or c in _ALSO or category == "Zs":
        return f"\\u{ord(c):04x}" if ord(c) < 0x10000 else f"\\U{ord(c):08x}"
    return c


def fits(lines: list[str]) -> bool:
    """Whether `escape_lines` would show all of it. What a person cannot see whole is not theirs to approve."""
    if len(lines) > MAX_LINES or any(len(line) > MAX_LINE for line in lines):
        return False
    sizes = [len(escape(line)) for line in lines]
    return max(sizes, default=0) <= MAX_LINE and sum(sizes) <= MAX_TOTAL


def escape_lines(lines: list[str]) -> list[str]:
    """The lines escaped and bounded; what is cut is said in the line's place."""
    shown: list[str] = []
    total = 0
    for line in lines[:MAX_LINES]:
        text = escape(line[:MAX_LINE])
        if len(line) > MAX_LINE or len(text) > MAX_LINE:
            text = f"{text[:MAX_LINE]} … (cut: {len(line)} characters)"
        total += len(text)
        if total > MAX_TOTAL:
            shown.append("… (cut: too much to show)")
            return shown
        shown.append(text)
    if len(lines) > MAX_LINES:
        shown.append(f"… (cut: {len(lines)} lines)")
    return shown
