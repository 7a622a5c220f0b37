"""Dollars as people write them, to integer micro-dollars and back: by digits, never by a float.

Promises: what is read is exactly what is written; anything else (a sign, an exponent, ``NaN``, ``Infinity``, a seventh
decimal, digits of another script, more than `MAX_DOLLARS`) is refused. Pure.
"""

from __future__ import annotations

from nucleus.errors import InvalidError

MICRO = 1_000_000
DECIMALS = 6
MAX_DOLLARS = 999_999_999  # a sum of many still fits SQLite's integers


def parse(text: object, what: str = "amount") -> int:
    """Micro-dollars of a decimal text such as ``5``, ``5.00`` or ``0.000001``.

    Raises:
        InvalidError: rule ``budget.amount``.
    """
    if not isinstance(text, str):
        raise _bad(what)
    whole, dot, part = text.partition(".")
    if not _digits(whole) or (dot and not _digits(part)) or len(part) > DECIMALS or len(whole) > len(str(MAX_DOLLARS)):
        raise _bad(what)
    return int(whole) * MICRO + int(part.ljust(DECIMALS, "0") or "0")


def positive(text: object, what: str = "amount") -> int:
    """As `parse`, and more than nothing. Raises InvalidError."""
    if (micro := parse(text, what)) == 0:
        raise InvalidError(f"{what}: more than 0", rule="budget.amount")
    return micro


def dollars(micro: int) -> str:
    """Micro-dollars as dollars, exactly: two decimals at least."""
    sign, micro = ("-", -micro) if micro < 0 else ("", micro)
    text = f"{micro // MICRO}.{micro % MICRO:06d}"
    return sign + text[:-4] + text[-4:].rstrip("0")


def _digits(text: str) -> bool:
    return bool(text) and text.isascii() and text.isdigit()


def _bad(what: str) -> InvalidError:
    return InvalidError(
        f"{what}: not an amount of dollars",
        rule="budget.amount",
        next_step=f'Dollars such as "5.00", without a sign, at most {MAX_DOLLARS}, {DECIMALS} decimals.',
    )
