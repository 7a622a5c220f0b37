"""glob and grep in the search worker: what the walk finds, by name and by content.

Promises: the walk's (`nucleus.hands.walk`); results in the order of their names, or of their time where asked (newest
first). Hidden files are included. Results stop at `limit`, at `per_file` of one file and at `RESULT_BYTES`, and the
answer says which of them it was. Files over `FILE_BYTES` are passed over, and told; binary files (a NUL in the first
8 KiB), hard links that are not ours and what cannot be read are passed over. grep works line by line: unless
`multiline` is asked for a pattern never matches across a line's end; ``^`` and ``$`` are those of the line, a line is
cut at `LIMITS.line_bytes`, and what is told of a longer match is its lines.
Relies on: running in a process that can be killed; RE2 cannot be interrupted. Does not: know a deadline.
"""

from __future__ import annotations

import heapq
import mmap
import os
from collections.abc import Callable, Iterator
from stat import S_ISREG
from typing import Any, NamedTuple

import re2

from nucleus.hands.globs import Names, options
from nucleus.hands.literals import required
from nucleus.hands.protocol import HandsError, allows, excludes, flag, integer, path, text, wrong
from nucleus.hands.root import Root, is_foreign_link
from nucleus.hands.walk import FILE, Found, Walk
from nucleus.hands.walk import shown as shown  # git's answers name files, too
from nucleus.limits import LIMITS

FILE_BYTES = 16 << 20  # one file that is searched
RESULT_BYTES = LIMITS.output_bytes  # names and lines of one answer, before JSON's escapes
CONTEXT = 20  # lines on each side, as the model says
PROGRAM_SIZE = 100_000  # RE2 instructions of one pattern
_BINARY_LOOK = 8_192
_SAME_LINE = 1_000  # matches that start in one line, of a pattern over many lines
_TELL = 16  # files of one directory between two tellings

Tell = Callable[[int, int], None]  # files and bytes so far


def _silent(files: int, size: int) -> None:
    """Nobody asked how far it is."""


def glob(root: Root, header: dict[str, Any], tell: Tell = _silent) -> dict[str, Any]:
    """Names of files (and of symlinks, not followed) below `path` whose relative name matches `pattern`."""
    pattern = text(header, "pattern", LIMITS.pattern_bytes)
    limit = integer(header, "limit", 1, LIMITS.result_count, LIMITS.result_count)
    sort = text(header, "sort", 8, "name")
    if sort not in ("name", "mtime"):
        raise wrong("sort")
    wanted = Names(pattern)
    walk = _walk(root, header, wanted, pattern, tell)
    names = _newest(walk, wanted, limit) if sort == "mtime" else _by_name(walk, wanted)
    paths: list[str] = []
    used = 0
    for found in names:
        used += len(found)
        if len(paths) == limit or used > RESULT_BYTES:
            walk.limits.add("count" if len(paths) == limit else "bytes")
            break
        paths.append(found)
    answer: dict[str, Any] = {"paths": paths, "truncated": bool(walk.limits)}
    if flag(header, "details"):
        answer |= {"limits": sorted(walk.limits), "files": walk.files}
    return answer


def grep(root: Root, header: dict[str, Any], tell: Tell = _silent) -> dict[str, Any]:
    """Lines that match an RE2 `pattern` in files below `path` whose relative name matches `include`."""
    wish = _wish(header)
    include = text(header, "include", LIMITS.pattern_bytes, "**")
    # As everywhere else that includes are given: a plain name means that name at any depth.
    wanted = Names(include if "/" in include else f"**/{include}") if include != "**" else None
    walk = _walk(root, header, wanted, include, tell)
    search = _Search(wish, tell)
    search.run(walk, wanted)
    limits = search.limits | walk.limits
    answer: dict[str, Any] = {"matches": search.rows, "truncated": bool(limits), "scanned_bytes": search.scanned}
    if flag(header, "details"):
        answer |= {"limits": sorted(limits), "capped": search.capped, "files": search.files}
    return answer


class _Counted(Walk):
    """A walk that counts what it shows."""

    files = 0
    tell: Tell = staticmethod(_silent)


def _walk(root: Root, header: dict[str, Any], wanted: Names | None, pattern: str, tell: Tell) -> _Counted:
    git, ignore = ".git" in pattern.split("/"), flag(header, "gitignore")
    start = path(header, default=".")
    walk = _Counted(root, start, excludes(header), allows(header), wanted, git=git, gitignore=ignore)
    walk.tell = tell
    return walk


def _by_name(walk: _Counted, wanted: Names) -> Iterator[str]:
    for found in walk:
        walk.files += len(found.names)
        walk.tell(walk.files, 0)
        prefix = found.prefix
        for name in wanted.among(found.below, found.names):
            yield prefix + name


def _newest(walk: _Counted, wanted: Names, limit: int) -> list[str]:
    """The `limit` newest, and one more where there is one; of the same time by name."""

    def times() -> Iterator[tuple[int, str]]:
        for found in walk:
            walk.files += len(found.names)
            walk.tell(walk.files, 0)
            for name in wanted.among(found.below, found.names):
                try:
                    status = os.stat(found.raw or name, dir_fd=found.directory, follow_symlinks=False)
                except OSError:
                    continue
                yield -status.st_mtime_ns, found.prefix + name

    return [name for _, name in heapq.nsmallest(limit + 1, times())]


class _Wish(NamedTuple):
    """What a grep looks for in each file."""

    program: Any
    first: tuple[Any, ...]  # literals: a file that holds none of them has no match
    multiline: bool
    context: int
    per_file: int
    limit: int


def _wish(header: dict[str, Any]) -> _Wish:
    pattern = text(header, "pattern", LIMITS.pattern_bytes)
    ignore_case, multiline = flag(header, "ignore_case"), flag(header, "multiline")
    re2.purge()  # its own cache would keep 128 automata of 8 MiB
    literal = options(ignore_case=ignore_case)
    literal.literal = True
    return _Wish(
        _compile(pattern, ignore_case, multiline),
        tuple(re2.compile(one, literal) for one in required(pattern)),
        multiline,
        integer(header, "context", 0, CONTEXT, 0),
        integer(header, "per_file", 1, LIMITS.result_count, LIMITS.result_count),
        integer(header, "limit", 1, LIMITS.result_count, LIMITS.result_count),
    )


def _compile(pattern: str, ignore_case: bool, multiline: bool) -> Any:
    chosen = options(ignore_case=ignore_case)
    chosen.never_nl = not multiline
    try:
        program = re2.compile(f"(?m){pattern}", chosen)
    except re2.error:
        raise HandsError("bad_pattern", "not a valid RE2 pattern, or too large") from None
    if program.programsize > PROGRAM_SIZE:
        raise HandsError("bad_pattern", "the pattern is too large")
    return program


class _Full(Exception):
    """The answer holds what it can hold."""


class _Search:
    """One grep: the rows so far, and the buffer that every file is read into."""

    def __init__(self, wish: _Wish, tell: Tell) -> None:
        self._wish = wish
        self._tell = tell
        self._used = self._count = 0
        self.rows: list[list[str | int]] = []
        self.limits: set[str] = set()
        self.capped: list[str] = []
        self.files = self.scanned = 0

    def run(self, walk: Walk, wanted: Names | None) -> None:
        """Search every file of the walk, until the answer is full."""
        # Anonymous pages: only what files fill is ever backed. One buffer for all saves an allocation for each file.
        buffer = mmap.mmap(-1, FILE_BYTES + 1)
        view = memoryview(buffer)
        try:
            for found in walk:
                names = found.names if wanted is None else wanted.among(found.below, found.names)
                # A directory of many files is searched, and told of, in parts.
                for start in range(0, len(names), _TELL):
                    self._some(found, names[start : start + _TELL], buffer, view)
                    self._tell(self.files, self.scanned)
        except _Full:
            pass

    def _some(self, found: Found, names: list[str], buffer: mmap.mmap, view: memoryview) -> None:
        """Search the files `names` of one directory. Little is done here, for it is done for every file."""
        openat, fstat, readv, close, directory = os.open, os.fstat, os.readv, os.close, found.directory
        programs, target = self._wish.first or (self._wish.program,), (view,)
        for name in names:
            try:
                fd = openat(found.raw or name, FILE, dir_fd=directory)
            except OSError:
                continue
            try:
                status = fstat(fd)
                size = status.st_size
                if not S_ISREG(status.st_mode) or (status.st_nlink > 1 and is_foreign_link(status)):
                    continue
                have = readv(fd, target) if size <= FILE_BYTES else FILE_BYTES + 1
                if have != size:
                    have = self._odd(fd, buffer, view, have)
            except OSError:
                continue
            finally:
                close(fd)
            if have < 0 or buffer.find(b"\0", 0, min(have, _BINARY_LOOK)) >= 0:
                continue
            self.files += 1
            self.scanned += have
            data = view[:have]
            for program in programs:
                if program.search(data) is not None:
                    self._matched(found.prefix + name, bytes(data))
                    break

    def _odd(self, fd: int, buffer: mmap.mmap, view: memoryview, have: int) -> int:
        """Bytes that are in `view` of a file that is too large, changes or is given in parts; -1 to pass it over."""
        while have < len(view) and (more := os.readv(fd, (view[have:],))):
            have += more
        if have <= FILE_BYTES:
            return have
        looked = os.preadv(fd, (view[:_BINARY_LOOK],), 0)
        if buffer.find(b"\0", 0, looked) < 0:
            self.limits.add("size")
        return -1

    def _matched(self, path: str, data: bytes) -> None:
        """A file that may have matches: its rows, or _Full."""
        wish = self._wish
        lines = _many_lines(wish.program, data) if wish.multiline else _lines(wish.program, data)
        done, number, after = 0, 1, 0  # where the line after the last row starts, its number, rows still to follow
        for count, (line, start, end) in enumerate(lines):
            while after and done < start:
                done, number, after = *self._row(path, data, done, number, "context"), after - 1
            if count == wish.per_file:
                self.limits.add("per_file")
                self.capped.append(path)
                return
            if self._count == wish.limit:
                self.limits.add("count")
                raise _Full
            for before in _before(data, start, done, wish.context):
                self._row(path, data, before[0], line - before[1], "context")
            self._row(path, data, start, line, "")
            self._count += 1
            done, number, after = end + 1, line + 1, wish.context
        while after and done < len(data):
            done, number, after = *self._row(path, data, done, number, "context"), after - 1

    def _row(self, path: str, data: bytes, start: int, number: int, kind: str) -> tuple[int, int]:
        newline = data.find(b"\n", start)
        end = newline if newline >= 0 else len(data)
        line = data[start : min(end, start + LIMITS.line_bytes)].rstrip(b"\r")
        self._used += len(path) + len(line)
        if self._used > RESULT_BYTES:
            self.limits.add("bytes")
            raise _Full
        self.rows.append([path, number, shown(line), *([kind] if kind else [])])
        return end + 1, number + 1


def _before(data: bytes, start: int, low: int, count: int) -> list[tuple[int, int]]:
    """(start, how many lines above) of up to `count` lines above `start`, not above `low`; the first one first."""
    found: list[tuple[int, int]] = []
    while len(found) < count and start > low:
        start = data.rfind(b"\n", low, start - 1) + 1 or low
        found.append((start, len(found) + 1))
    found.reverse()
    return found


def _lines(program: Any, data: bytes) -> Iterator[tuple[int, int, int]]:
    """(number from 1, start, end) of each line that matches."""
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
        yield number, first, end
        at = end + 1


def _many_lines(program: Any, data: bytes) -> Iterator[tuple[int, int, int]]:
    """(number from 1, start, end) of each line that a match, which may go over several, touches."""
    at = told = counted = same = 0
    number = 1
    while at < len(data):
        match = program.search(data, at)
        if match is None or match.start() >= len(data):
            return
        start, stop = match.start(), match.end()
        first = max(data.rfind(b"\n", 0, start) + 1, told)
        while first < max(stop, start + 1) and first < len(data):
            newline = data.find(b"\n", first)
            end = newline if newline >= 0 else len(data)
            number += data.count(b"\n", counted, first)
            counted = first
            yield number, first, end
            first = told = end + 1
            same = 0
        same += 1
        at = max(stop, start + 1) if same < _SAME_LINE else max(told, stop, start + 1)
