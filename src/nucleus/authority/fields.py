"""Strict readers of what a channel sent: each returns a value of the right type within its bound, or InvalidError."""

from __future__ import annotations

import json
import re
from typing import Any

from nucleus.errors import InvalidError

_ID = re.compile(r"[0-9a-f]{32}")
_HASH = re.compile(r"[0-9a-f]{64}")
_POD = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


def text(header: dict[str, Any], name: str, limit: int, *, default: str | None = None) -> str:
    """A string of at most `limit` bytes of UTF-8, no lone surrogates."""
    value = header.get(name, default)
    if not isinstance(value, str):
        raise InvalidError(f"{name} is not text", rule="frames.field")
    try:
        size = len(value) if value.isascii() else len(value.encode("utf-8"))
    except UnicodeEncodeError:
        raise InvalidError(f"{name} is not UTF-8", rule="frames.field") from None
    if size > limit:
        raise InvalidError(f"{name} exceeds {limit} bytes", rule="frames.field")
    return value


def facts(header: dict[str, Any], name: str, limit: int) -> dict[str, Any]:
    """An object of at most `limit` bytes as JSON."""
    value = header.get(name)
    if not isinstance(value, dict) or len(json.dumps(value)) > limit:
        raise InvalidError(f"{name} is not an object of at most {limit} bytes", rule="frames.field")
    return value


def reservation(header: dict[str, Any]) -> str:
    """A reservation's id: 32 lower-case hex digits."""
    return _matching(header, "reservation", _ID, "32 hex digits")


def operation_hash(header: dict[str, Any]) -> str:
    """An operation's hash: 64 lower-case hex digits."""
    return _matching(header, "operation_hash", _HASH, "64 hex digits")


def pod(header: dict[str, Any]) -> str:
    """A pod's name: a DNS label, so that it is one SPIFFE path segment."""
    return _matching(header, "pod", _POD, "a DNS label")


def uid(header: dict[str, Any]) -> int:
    """A user id."""
    value = header.get("uid")
    if type(value) is not int or not 0 <= value < 0xFFFFFFFF:
        raise InvalidError("uid is not a user id", rule="frames.field")
    return value


def _matching(header: dict[str, Any], name: str, pattern: re.Pattern[str], form: str) -> str:
    value = header.get(name)
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise InvalidError(f"{name} is not {form}", rule="frames.field")
    return value
