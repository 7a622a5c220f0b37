"""Workspace paths, lexically: relative, normalized, inside the root.

Promises: what comes out has no ``.``, ``..``, empty component, leading or trailing slash (the root itself is ``.``),
and no invisible character. Absolute paths below the constant mount point ``/workspace`` are made relative.
Relies on: hands opening it with RESOLVE_NO_SYMLINKS, so that lexical ``..`` and real ``..`` cannot differ.
Does not: touch a file system.
"""

from __future__ import annotations

from nucleus.limits import LIMITS
from nucleus.validate.text import check_size, check_visible, refuse

MOUNT = "/workspace"


def collapse(path: str) -> str | None:
    """Normalize `path` lexically; None when it leaves the workspace."""
    if path.startswith("/"):
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if not parts or parts[0] != MOUNT[1:]:
            return None
        parts = parts[1:]
    else:
        parts = path.split("/")
    out: list[str] = []
    for part in parts:
        if part in ("", "."):
            continue
        if part == "..":
            if not out:
                return None
            out.pop()
        else:
            out.append(part)
    return "/".join(out) or "."


def validate_path(field: str, path: str) -> str:
    """Return the normalized relative path.

    Raises:
        InvalidError: ``limits.path``, ``text.characters``, ``paths.empty`` or ``paths.escape``.
    """
    check_size(field, path, LIMITS.path_bytes, "limits.path")
    if not path:
        refuse(field, "a path cannot be empty", "paths.empty")
    check_visible(field, path)
    normal = collapse(path)
    if normal is None:
        refuse(field, "the path leads out of the workspace", "paths.escape")
    for part in normal.split("/"):
        check_size(field, part, 255, "limits.path")  # NAME_MAX of Linux file systems
    return normal


def validate_glob(field: str, pattern: str) -> str:
    """Return the glob without leading ``./``; same limits as any pattern, and it cannot leave its directory.

    Raises:
        InvalidError: ``limits.pattern``, ``text.characters``, ``patterns.glob`` or ``paths.escape``.
    """
    check_size(field, pattern, LIMITS.pattern_bytes, "limits.pattern")
    check_visible(field, pattern)
    while pattern.startswith("./"):
        pattern = pattern[2:].lstrip("/")
    if not pattern:
        refuse(field, "a glob cannot be empty", "patterns.glob")
    if pattern.startswith("/"):
        refuse(field, "a glob is relative to its directory", "paths.escape")
    if ".." in pattern.split("/"):
        refuse(field, "a glob cannot hold '..'", "paths.escape")
    _check_sets(field, pattern)
    return pattern


def _check_sets(field: str, pattern: str) -> None:
    position = 0
    while (start := pattern.find("[", position)) >= 0:
        # "]" directly after "[" or "[!" is a member of the set.
        first = start + 2 if pattern[start + 1 : start + 2] in ("!", "^") else start + 1
        end = pattern.find("]", first + 1)
        if end < 0:
            refuse(field, f"'[' at {start} is not closed", "patterns.glob")
        if "/" in pattern[start:end]:
            refuse(field, f"the set at {start} holds '/'", "patterns.glob")
        position = end + 1
