"""Checks on one string: size in bytes of UTF-8, and which characters it may hold.

Promises: a string that passes can be encoded as UTF-8 and is not longer than its limit; a *name* (path, glob, URL,
ref) holds nothing that a person cannot see (NUL, control, bidirectional, zero-width characters). Errors name the field,
the limit and what was got, never the value.
Does not: look at files, or judge meaning.
"""

from __future__ import annotations

import unicodedata
from typing import Never

from nucleus.errors import InvalidError

_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_LAYOUT = frozenset("\n\r\t")


def refuse(field: str, problem: str, rule: str) -> Never:
    """Raise the InvalidError of `field`."""
    raise InvalidError(f"{field}: {problem}", rule=rule)


def byte_length(field: str, value: str) -> int:
    """Length in bytes of UTF-8. Raises InvalidError on a lone surrogate."""
    if value.isascii():
        return len(value)
    try:
        return len(value.encode("utf-8"))
    except UnicodeEncodeError as error:
        refuse(field, f"a lone surrogate at character {error.start} is not text", "text.surrogate")


def check_size(field: str, value: str, limit: int, rule: str) -> int:
    """Return the length in bytes. Raises InvalidError (field, limit, got) when it exceeds `limit`."""
    # A character is at least one byte: do not encode what is too long already.
    got = len(value) if len(value) > limit else byte_length(field, value)
    if got > limit:
        refuse(field, f"too long: limit {limit} bytes, got {'at least ' if len(value) > limit else ''}{got}", rule)
    return got


def check_visible(field: str, value: str) -> None:
    """Raises InvalidError on any character that a person cannot see (a plain blank is fine)."""
    if value.isprintable():
        return
    for position, character in enumerate(value):
        if unicodedata.category(character) in _INVISIBLE:
            name = "NUL" if character == "\0" else f"U+{ord(character):04X}"
            refuse(field, f"character {name} at {position} is not allowed", "text.characters")


def check_prose(field: str, value: str) -> None:
    """For messages: new lines and tabs pass, other control and bidirectional characters do not."""
    if value.isprintable():
        return
    for position, character in enumerate(value):
        if character in _BIDI or (unicodedata.category(character) in {"Cc", "Cs"} and character not in _LAYOUT):
            refuse(field, f"character U+{ord(character):04X} at {position} is not allowed", "text.characters")
