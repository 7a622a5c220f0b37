"""The words of "gate ⇄ hands" (docs/design.md): error codes, and strict reading of a request's fields.

Promises: an answer carries only a code of `CODES` and a short message of ours without any path; a field of the wrong
type or size is a `protocol` error before anything is done with it. Does not: decide. Every request was decided by the
gate.
"""

from __future__ import annotations

import errno
from typing import Any

from nucleus.limits import LIMITS

CODES = frozenset((
    "symlink", "not_found", "not_a_file", "is_a_directory", "exists", "escape", "hard_link", "too_large", "no_match",
    "count_mismatch", "bad_pattern", "timeout", "permission", "not_executable", "io", "protocol",
))  # fmt: skip
_BY_ERRNO = {
    errno.ENOENT: "not_found",
    errno.ENOTDIR: "not_found",
    errno.ENAMETOOLONG: "not_found",
    errno.ENXIO: "not_a_file",
    errno.ENODEV: "not_a_file",
    errno.EISDIR: "is_a_directory",
    errno.EEXIST: "exists",
    errno.EXDEV: "escape",
    errno.EFBIG: "too_large",
    errno.EACCES: "permission",
    errno.EPERM: "permission",
    errno.EROFS: "permission",
    errno.EBUSY: "permission",  # the name is a mount point: it is shown read-only or hidden
}
EXCLUDE_COUNT = 8_192  # globs of one exclude list
ALLOW_LISTS = 64  # one for each policy that was met


class HandsError(Exception):
    """An answer with an error. `extra` goes beside code and message (`resolved`, `found`)."""

    def __init__(self, code: str, message: str, **extra: Any) -> None:
        assert code in CODES
        super().__init__(message)
        self.code = code
        self.message = message
        self.extra = extra

    def as_dict(self) -> dict[str, Any]:
        """As it goes on the wire."""
        return {"code": self.code, "message": self.message, **self.extra}


def from_oserror(error: OSError) -> HandsError:
    """The code of an errno; the message is the errno's name, never the path."""
    number = error.errno or 0
    return HandsError(_BY_ERRNO.get(number, "io"), errno.errorcode.get(number, "EIO"))


def wrong(name: str) -> HandsError:
    """A field that does not have its type or is outside its bounds."""
    return HandsError("protocol", f"{name}: missing, of the wrong type or out of bounds")


def text(header: dict[str, Any], name: str, limit: int, default: str | None = None) -> str:
    """A string of at most `limit` bytes of UTF-8, without NUL."""
    value = header.get(name, default)
    if not isinstance(value, str) or len(value) > limit or "\0" in value:
        raise wrong(name)
    try:
        if len(value.encode("utf-8")) > limit:
            raise wrong(name)
    except UnicodeEncodeError:
        raise wrong(name) from None
    return value


def integer(header: dict[str, Any], name: str, low: int, high: int, default: int | None = None) -> int:
    """An integer from `low` to `high` (a bool is none)."""
    value = header.get(name, default)
    if type(value) is not int or not low <= value <= high:
        raise wrong(name)
    return value


def flag(header: dict[str, Any], name: str) -> bool:
    """A bool; absent is False."""
    value = header.get(name, False)
    if type(value) is not bool:
        raise wrong(name)
    return value


def texts(header: dict[str, Any], name: str, count: int, limit: int) -> tuple[str, ...]:
    """A list of at most `count` strings of at most `limit` bytes each; absent is empty."""
    value = header.get(name, [])
    if not isinstance(value, list) or len(value) > count:
        raise wrong(name)
    return tuple(text({name: item}, name, limit) for item in value)


def path(header: dict[str, Any], name: str = "path", default: str | None = None) -> str:
    """A relative path without empty parts, ``.`` or ``..`` (the root itself is ``.``)."""
    value = text(header, name, LIMITS.path_bytes, default)
    if value == ".":
        return value
    parts = value.split("/")
    if ".." in parts or value.startswith("/"):
        raise HandsError("escape", f"{name}: leaves the workspace")
    if "" in parts or "." in parts:
        raise HandsError("protocol", f"{name}: not normalized")
    return value


def excludes(header: dict[str, Any]) -> tuple[str, ...]:
    """The `exclude` globs of a request."""
    return texts(header, "exclude", EXCLUDE_COUNT, LIMITS.pattern_bytes)


def allows(header: dict[str, Any]) -> tuple[tuple[str, ...], ...]:
    """The `allow` lists of a request; absent: everything."""
    value = header.get("allow", [])
    if not isinstance(value, list) or len(value) > ALLOW_LISTS:
        raise wrong("allow")
    return tuple(texts({"allow": item}, "allow", EXCLUDE_COUNT, LIMITS.pattern_bytes) for item in value)
