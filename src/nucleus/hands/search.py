"""glob and grep: one walk by directory descriptors, in the search worker.

Promises: no symlink is followed, at the start or below it; what the exclude list covers, or an allow list does not, is
neither listed nor opened nor counted;
results are in the order of their names, whatever the directory's order; `.git` directories are left out unless the
start, the pattern or `include` names one. Hidden files are included. Results stop at `limit` and at `RESULT_BYTES`;
files over `FILE_BYTES`, binary files (a NUL in the first 8 KiB), hard links that are not ours and what cannot be read
are passed over. Names that are not UTF-8 are shown, and matched, with ``\\xNN`` for each wrong byte; such a name
cannot be sent back. grep works line by line: a pattern never matches across a line's end, ``^`` and ``$`` are those
of the line, a line is cut at `LIMITS.line_bytes`.
Relies on: running in a process that can be killed; RE2 cannot be interrupted. Does not: know a deadline.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import re2

from nucleus.hands.globs import Glob, admits, allowed, covers, excluded, options
from nucleus.hands.protocol import HandsError, allows, excludes, flag, integer, path, text
from nucleus.hands.root import Root, check_regular, is_foreign_link
from nucleus.limits import LIMITS

FILE_BYTES = 16 << 20  # one file that is searched
RESULT_BYTES = LIMITS.output_bytes  # names and lines of one answer, before JSON's escapes
PROGRAM_SIZE = 100_000  # RE2 instructions of one pattern
_BINARY_LOOK = 8_192
_DEPTH = 128  # directories below each other: each holds a descriptor
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Found(NamedTuple):
    """A name of the walk. `directory` is only valid until the next one is asked for."""

    path: str  # from the workspace's root
    relative: str  # from the start of the search
    raw: bytes
    directory: int


def shown(raw: bytes) -> str:
    """A file name as text."""
    return raw.decode("utf-8", "backslashreplace")


def glob(root: Root, header: dict[str, Any]) -> dict[str, Any]:
    """Names of files (and of symlinks, not followed) below `path` whose relative name matches `pattern`."""
    pattern = text(header, "pattern", LIMITS.pattern_bytes)
    limit = integer(header, "limit", 1, LIMITS.result_count, LIMITS.result_count)
    wanted = Glob((pattern,))
    start = path(header, default=".")
    paths: list[str] = []
    used = 0
    for found in walk(root, start, excludes(header), pattern, allows(header)):
        if not wanted.matches(found.relative):
            continue
        used += len(found.path)
        if len(paths) == limit or used > RESULT_BYTES:
            return {"paths": paths, "truncated": True}
        paths.append(found.path)
    return {"paths": paths, "truncated": False}


def grep(root: Root, header: dict[str, Any]) -> dict[str, Any]:
    """Lines that match an RE2 `pattern` in files below `path` whose relative name matches `include`."""
    program = _compile(text(header, "pattern", LIMITS.pattern_bytes), flag(header, "ignore_case"))
    include = text(header, "include", LIMITS.pattern_bytes, "**")
    limit = integer(header, "limit", 1, LIMITS.result_count, LIMITS.result_count)
    # As everywhere else that includes are given: a plain name means that name at any depth.
    wanted = Glob((include if "/" in include else f"**/{include}",)) if include != "**" else None
    matches: list[list[str | int]] = []
    used = scanned = 0
    for found in walk(root, path(header, default="."), excludes(header), include, allows(header)):
        if wanted is not None and not wanted.matches(found.relative):
            continue
        data = _contents(found)
        scanned += len(data)
        for number, line in _lines(program, data):
            used += len(found.path) + len(line)
            if len(matches) == limit or used > RESULT_BYTES:
                return {"matches": matches, "truncated": True, "scanned_bytes": scanned}
            matches.append([found.path, number, line.decode("utf-8", "backslashreplace")])
    return {"matches": matches, "truncated": False, "scanned_bytes": scanned}


def walk(
    root: Root, start: str, exclude: tuple[str, ...], pattern: str, allow: tuple[tuple[str, ...], ...] = ()
) -> Iterator[Found]:
    """Every name below `start` that is no directory, in the order of the names, excluded ones left out."""
    skip, only = excluded(exclude), allowed(allow)
    if covers(skip, start):
        return
    with_git = ".git" in start.split("/") or ".git" in pattern.split("/")
    prefix = "" if start == "." else start + "/"
    fixed = _fixed_directories(pattern)
    here = root.open(start, os.O_PATH)
    os.close(here)
    try:
        first = root.open_directory(start, os.O_RDONLY)
    except HandsError as error:
        if error.code != "not_found":
            raise
        if admits(only, start):
            yield from _single(root, start)
        return
    stack = [(first, "", _names(first))]
    try:
        while stack:
            directory, below, names = stack[-1]
            if not names:
                stack.pop()
                os.close(directory)
                continue
            raw, is_directory = names.pop()
            relative = below + shown(raw)
            if skip is not None and skip.matches(prefix + relative):
                continue
            if not is_directory:
                if admits(only, prefix + relative):
                    yield Found(prefix + relative, relative, raw, directory)
            elif (with_git or raw != b".git") and len(stack) < _DEPTH and _may_hold(fixed, relative):
                try:
                    inner = os.open(raw, _DIRECTORY, dir_fd=directory)
                except OSError:
                    continue
                stack.append((inner, relative + "/", _names(inner)))
    finally:
        for directory, _, _ in stack:
            os.close(directory)


def _single(root: Root, start: str) -> Iterator[Found]:
    """`start` is a file: it is the only result, under its own name."""
    before, _, leaf = start.rpartition("/")
    directory = root.open_directory(before or ".", os.O_RDONLY)
    try:
        yield Found(start, leaf, leaf.encode("utf-8"), directory)
    finally:
        os.close(directory)


def _names(directory: int) -> list[tuple[bytes, bool]]:
    """The names of a directory, last one first (they are popped), directories sorted as if they ended in "/"."""
    rows: list[tuple[bytes, bytes, bool]] = []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                raw = os.fsencode(entry.name)
                try:
                    is_directory = entry.is_dir(follow_symlinks=False)
                except OSError:
                    continue
                rows.append((raw + b"/" if is_directory else raw, raw, is_directory))
    except OSError:
        return []
    rows.sort(reverse=True)
    return [(raw, is_directory) for _, raw, is_directory in rows]


def _fixed_directories(pattern: str) -> list[str]:
    """The leading directories of a glob that hold no special character: nothing else needs walking."""
    fixed: list[str] = []
    for part in pattern.split("/")[:-1]:
        if any(special in part for special in "*?["):
            break
        fixed.append(part)
    return fixed


def _may_hold(fixed: list[str], relative: str) -> bool:
    return all(wanted == part for wanted, part in zip(fixed, relative.split("/"), strict=False))


def _compile(pattern: str, ignore_case: bool) -> Any:
    chosen = options(ignore_case=ignore_case)
    chosen.never_nl = True
    re2.purge()  # its own cache would keep 128 automata of 8 MiB
    try:
        program = re2.compile(f"(?m){pattern}", chosen)
    except re2.error:
        raise HandsError("bad_pattern", "not a valid RE2 pattern, or too large") from None
    if program.programsize > PROGRAM_SIZE:
        raise HandsError("bad_pattern", "the pattern is too large")
    return program


def _contents(found: Found) -> bytes:
    """The file's bytes; empty when it is passed over."""
    try:
        fd = os.open(found.raw, _FILE, dir_fd=found.directory)
    except OSError:
        return b""
    try:
        status = os.fstat(fd)
        check_regular(status)
        if status.st_size > FILE_BYTES or is_foreign_link(status):
            return b""
        head = os.read(fd, _BINARY_LOOK)
        if b"\0" in head:
            return b""
        parts = [head]
        have = len(head)
        while part := os.read(fd, 1 << 20):
            parts.append(part)
            have += len(part)
            if have > FILE_BYTES:
                return b""
        return b"".join(parts)
    except (OSError, HandsError):
        return b""
    finally:
        os.close(fd)


def _lines(program: Any, data: bytes) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line) of each line that matches."""
    at = counted = 0
    number = 1
    while at < len(data):
        match = program.search(data, at)
        if match is None or match.start() >= len(data):
            return
        first = data.rfind(b"\n", 0, match.start()) + 1
        newline = data.find(b"\n", match.start())
        end = newline if newline >= 0 else len(data)
        number += data.count(b"\n", counted, first)
        counted = first
        yield number, data[first : min(end, first + LIMITS.line_bytes)].rstrip(b"\r")
        at = end + 1
