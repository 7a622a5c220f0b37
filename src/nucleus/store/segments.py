"""The log as the files that it is in: closed segments, in order, and the one that is being written.

`audit.jsonl` is written. Once it is big enough it gets the name of a segment, `audit-<first>-<last>.<base>.jsonl`:
the sequence numbers of its first and last record, and how many bytes of the log are before it. So a place in the log is
one number whatever file it is in, and stays so when old segments are moved away.

Promises: reading goes through all files in order, in pieces, with one descriptor open; a rotation in the middle of it
loses nothing and repeats nothing; names are only where to look: that records follow one another is for `audit.verify`.
Does not: write (`audit_log`), or verify.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from nucleus.errors import AuditError

CHUNK = 1 << 20
_SUFFIX = ".jsonl"
_NAME = re.compile(r"-([0-9]{12})-([0-9]{12})\.([0-9]{15})\.jsonl")
_TRIES = 8


class Segment(NamedTuple):
    """A closed file of the log: its path, its first and last record's number, the log's bytes before it."""

    path: str
    first: int
    last: int
    base: int


def segment_name(path: str, first: int, last: int, base: int) -> str:
    """The name that the log at `path` gets when it is closed."""
    return f"{path.removesuffix(_SUFFIX)}-{first:012d}-{last:012d}.{base:015d}{_SUFFIX}"


def closed(path: str) -> list[Segment]:
    """The closed segments of the log at `path`, in order. Raises OSError."""
    directory, name = os.path.split(path)
    if not name.endswith(_SUFFIX):
        return []
    stem = name.removesuffix(_SUFFIX)
    found = []
    for entry in os.listdir(directory or "."):
        if entry.startswith(stem) and (match := _NAME.fullmatch(entry, len(stem))):
            found.append(Segment(os.path.join(directory, entry), *map(int, match.groups())))
    return sorted(found, key=lambda segment: (segment.first, segment.last, segment.base))


def gaps(segments: list[Segment]) -> list[str]:
    """What the names say is missing before or between closed segments, in words."""
    missing, after = [], 0
    for segment in segments:
        if segment.first > after + 1:
            missing.append(f"the segment with records {after + 1} to {segment.first - 1} is not there")
        after = max(after, segment.last)
    return missing


class LogFiles:
    """The log at `path`, as it is now: closed segments, then what has been written of the current one.

    Args:
        path: of the file that is being written.
        ahead: open all of the newest so many segments at once (for a process that is about to lose the right to).

    Raises:
        OSError: it cannot be read.
        AuditError: rule ``audit.segment``: one of its files is no regular file.
    """

    def __init__(self, path: str, ahead: int = 0) -> None:
        self.path = path
        self._open: dict[str, int] = {}
        try:
            for _ in range(_TRIES):
                self._live = _open(path)
                self.segments = closed(path)
                if not self.segments or not _same(self.segments[-1].path, self._live):
                    break
                os.close(self._live)  # it was closed between our two looks
            else:
                raise AuditError(f"{path} is rotated faster than it can be read", rule="audit.segment")
            for segment in self.segments[-ahead:] if ahead else []:
                self._open[segment.path] = _open(segment.path)
        except BaseException:
            for fd in self._open.values():
                os.close(fd)
            raise
        self._keep = bool(ahead)
        self.base = 0
        if self.segments:
            last = self.segments[-1]
            self.base = last.base + self._size(last)

    @property
    def size(self) -> int:
        """Bytes of the log, in all files."""
        return self.base + os.fstat(self._live).st_size

    def moved(self) -> bool:
        """The file under the log's name is another one by now: it was rotated, or replaced."""
        return not _same(self.path, self._live)

    def where(self, at: int) -> str:
        """The path of the file that has this byte of the log."""
        return next((s.path for s in reversed(self.segments) if s.base <= at < self.base), self.path)

    def file_start(self, at: int) -> int:
        """Where the file begins that has the byte before `at`. Raises AuditError: it is missing."""
        if at > self.base:
            return self.base
        for segment in reversed(self.segments):
            if segment.base < at:
                return segment.base
        raise self._hole(at - 1)

    def line_before(self, at: int, limit: int) -> bytes:
        """The line that ends with the LF before `at`, without it, of at most `limit` bytes. Raises as `pread`."""
        start = max(self.file_start(at), at - limit - 1)
        data = b""
        while start + len(data) < at:
            data += self.pread(at - start - len(data), start + len(data)) or b"\0"
        return data.removesuffix(b"\n").rpartition(b"\n")[2]

    def pread(self, count: int, at: int) -> bytes:
        """Up to `count` bytes of the log from `at` on, of one file; b"" at the end.

        Raises:
            AuditError: rule ``audit.segment``: the file with this place is missing, or shorter than it was.
            OSError: it cannot be read.
        """
        if at >= self.base:
            return os.pread(self._live, count, at - self.base)
        segment = next((s for s in reversed(self.segments) if s.base <= at), None)
        data = os.pread(self._fd(segment), count, at - segment.base) if segment is not None else b""
        if not data:
            raise self._hole(at)
        return data

    def chunks(self) -> Iterator[tuple[str, bytes]]:
        """Every file's bytes, in order, with its path, and b"" at the end of each."""
        for path in [segment.path for segment in self.segments] + [self.path]:
            at = 0
            fd = self._fd(path)
            while chunk := os.pread(fd, CHUNK, at):
                yield path, chunk
                at += len(chunk)
            yield path, b""

    def total(self) -> int:
        """Bytes in the files that are there."""
        return sum(map(self._size, self.segments)) + os.fstat(self._live).st_size

    def __enter__(self) -> LogFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def lines(self, at: int, limit: int) -> Iterator[bytes]:
        """The lines from `at` on, each with its LF but perhaps the last; one over `limit` bytes comes in parts."""
        rest = b""
        while chunk := self.pread(CHUNK, at):
            at += len(chunk)
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                yield line + b"\n"
            if len(rest) > limit:
                yield rest
                rest = b""
        if rest:
            yield rest

    def close(self) -> None:
        """Close what is open."""
        for fd in (*self._open.values(), self._live):
            os.close(fd)
        self._open.clear()

    def _hole(self, at: int) -> AuditError:
        return AuditError(
            f"{self.path}: byte {at} of the log is in no file: a segment is missing or was cut",
            rule="audit.segment",
            next_step="Put the segment back from a copy.",
        )

    def _size(self, segment: Segment) -> int:
        fd = self._open.get(segment.path)
        return os.fstat(fd).st_size if fd is not None else os.stat(segment.path).st_size

    def _fd(self, segment: Segment | str) -> int:
        path = segment if isinstance(segment, str) else segment.path
        if path == self.path:
            return self._live
        if path not in self._open:
            if not self._keep:
                for fd in self._open.values():
                    os.close(fd)
                self._open.clear()
            self._open[path] = _open(path)
        return self._open[path]


def _open(path: str) -> int:
    # O_NONBLOCK: a pipe or device in the log's place is an error, not a wait.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise AuditError(f"{path} is not a regular file", rule="audit.segment")
    return fd


def _same(path: str, fd: int) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.stat(path), os.fstat(fd))
    return False
