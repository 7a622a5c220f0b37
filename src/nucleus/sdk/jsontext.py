"""JSON texts by the interpreter's own scanner, without the package around it.

Promises: the texts that `json.dumps(value, separators=(",", ":"))` would make, and the values that `json.loads` would
read (a test compares them); a malformed text, NaN and Infinity are a ValueError. Where this interpreter's scanner is
another, `json` itself is used. Why: `json` imports re, enum, functools and collections, 7 ms of the launcher's 24.
Does not: bound sizes; the callers do, before they parse.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Scan = Callable[[str, int], "tuple[Any, int]"]

_BLANKS = " \t\r\n"


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


class _Rules:
    """What the scanner asks for."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = staticmethod(_no_constant)


def _scanner() -> Scan:
    from _json import make_scanner

    rules: Any = _Rules()
    scan: Scan = make_scanner(rules)
    text = '{"a":[1,-2.5,"\\u00e9",null,true]}'
    if scan(text, 0) != ({"a": [1, -2.5, "\u00e9", None, True]}, len(text)):
        raise ImportError("another scanner")
    return scan


try:
    from _json import encode_basestring, encode_basestring_ascii

    _scan = _scanner()
except (ImportError, TypeError, AttributeError):  # another interpreter than CPython
    from json.decoder import JSONDecoder
    from json.encoder import encode_basestring, encode_basestring_ascii

    _decoder: Any = JSONDecoder(parse_constant=_no_constant)
    _scan = _decoder.scan_once


def loads(data: bytes | str) -> Any:
    """The value of one JSON text (bytes: UTF-8). Raises ValueError, RecursionError."""
    text = (data if isinstance(data, str) else data.decode("utf-8")).strip(_BLANKS)
    try:
        value, end = _scan(text, 0)
    except StopIteration:
        raise ValueError("no JSON value") from None
    if end != len(text):
        raise ValueError("more than one JSON value")
    return value


def dumps(value: Any, *, ascii_only: bool = True) -> str:
    """The text of a value made of dict (with str keys), list, tuple, str, int, float, bool and None.

    Raises:
        TypeError: another type. ValueError: NaN or infinite. RecursionError.
    """
    return _text(value, encode_basestring_ascii if ascii_only else encode_basestring)


def _text(value: Any, quoted: Callable[[str], str]) -> str:
    if isinstance(value, str):
        return quoted(value)
    if value is None:
        return "null"
    if value is True:
        return "true"
    if value is False:
        return "false"
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, dict):
        if any(not isinstance(key, str) for key in value):
            raise TypeError("a JSON object's keys are texts")
        return "{" + ",".join([f"{quoted(key)}:{_text(item, quoted)}" for key, item in value.items()]) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join([_text(item, quoted) for item in value]) + "]"
    if isinstance(value, float):
        if value - value != 0.0:
            raise ValueError("not a finite number")
        return float.__repr__(value)
    raise TypeError(f"{type(value).__name__} is no JSON")
