"""Characters that a person would not see, or that would move what they see, are written out as escapes.

Promises: what comes back is printable text with new lines and tabs; C0, C1, bidirectional, zero-width, line- and
paragraph-separator characters, lone surrogates and private use come back as ``\\u202e`` or ``\\U000e0001``, visible and
harmless in a terminal, a log and a web page. At most 10 characters for one. Linear.
Does not: transliterate look-alikes, which a person does see.
"""

from __future__ import annotations

from nucleus.sanitize.patterns import Pattern

# An escape ends in letters or digits that are no part of the word behind it: colours, and \\n and \\u0041 written out.
ANSI = Pattern(r"(?:\x1b|\\{1,4}(?:u001b|x1b|033|e))\[[0-9;?]{0,16}[A-Za-z]$")
ESCAPE = Pattern(r"\\{1,4}(?:[abfnrtv0]|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{3})$")
# Default-ignorable code points that `str.isprintable` lets pass: they take no room on a screen (Unicode 15.1,
# DerivedCoreProperties, Default_Ignorable_Code_Point; the format characters among them are not printable anyway).
_ASCII = {c: f"\\u{c:04x}" for c in (*range(9), *range(11, 32), 127)}
_PLAIN = bytes(range(32, 127)) + b"\n\t"
_UNSEEN = ("\u034f", "\u115f", "\u1160", "\u17b4", "\u17b5", "\u180b", "\u180c", "\u180d", "\u180f", "\u3164", "\uffa0")


def printable(text: str) -> str:
    """`text` with every unseen character written out; new lines and tabs stay. The same object when there is none."""
    if text.isascii():
        if text.isprintable() or not text.encode().translate(None, _PLAIN):
            return text
        return text.translate(_ASCII)
    elif all(map(_seen, set(text))):
        return text
    return "".join([c if _seen(c) else _escaped(c) for c in text])


def in_word(text: str, start: int) -> bool:
    """Whether a letter, digit or underscore right before `start` belongs to the same word.

    Not behind an escape, and not in scripts that are written without blanks, where a word may follow directly.
    """
    before = text[start - 1 : start]
    if before != "_" and (not before.isalnum() or before >= "\u2e80"):
        return False
    return not after_escape(text, start)


def after_escape(text: str, start: int) -> bool:
    """Whether what stands right before `start` is an escape, and no letter of the same word."""
    head = text[max(start - 24, 0) : start]
    return ANSI.search(head) is not None or ESCAPE.search(head) is not None


def _seen(c: str) -> bool:
    if c in "\n\t":
        return True
    return c.isprintable() and not (c in _UNSEEN or "\ufe00" <= c <= "\ufe0f" or "\U000e0000" <= c <= "\U000e0fff")


def _escaped(c: str) -> str:
    return f"\\u{ord(c):04x}" if ord(c) <= 0xFFFF else f"\\U{ord(c):08x}"
