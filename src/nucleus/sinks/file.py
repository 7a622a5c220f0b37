"""``file:/PATH``: the log's lines as they are stored, in one file; ``PATH.checkpoints`` has the checkpoints.

Promises: no line twice and none left out: what the file ends with is compared, and gone on from; a torn last line is
cut off; durable (fdatasync) on return. `nucleus-audit verify PATH` reads the copy as it does the log.
Does not: rotate. A file that was moved away is begun anew where the last one ended.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Sequence
from urllib.parse import SplitResult, unquote

from nucleus.audit.record import LINE_BYTES
from nucleus.errors import InvalidError
from nucleus.sinks.base import Entry, Later, Options, Rejected, bad_address
from nucleus.store.checkpoints import CHECKPOINTS
from nucleus.store.growth import append_note, open_regular


class File:
    """See the module. Raises InvalidError: not an absolute path."""

    batch = 1_000

    def __init__(self, parts: SplitResult, options: Options) -> None:
        self._path = unquote(parts.path)
        if parts.netloc or parts.query or not self._path.startswith("/") or self._path.endswith("/"):
            raise bad_address("file:/PATH/OF/A/FILE")
        if options.secret or options.roots:
            raise bad_address("a file needs neither --secret nor --roots")

    def deliver(self, origin: str, entries: Sequence[Entry]) -> None:
        """See `Sink`."""
        try:
            fd = _opened(self._path)
            try:
                self._append(fd, entries)
            finally:
                os.close(fd)
        except OSError as error:
            raise Later(f"{self._path}: {error.strerror}") from error

    def pin(self, origin: str, size: int, note: str) -> None:
        """See `Sink`."""
        path = self._path + CHECKPOINTS
        try:
            fd = _opened(path)
            try:
                append_note(fd, note.encode())
            finally:
                os.close(fd)
        except InvalidError as error:
            raise Rejected(f"{path}: {error.message}") from None
        except OSError as error:
            raise Later(f"{path}: {error.strerror}") from error

    def close(self) -> None:
        """Nothing is kept open: the file may be moved away between two batches."""

    def _append(self, fd: int, entries: Sequence[Entry]) -> None:
        end = os.fstat(fd).st_size
        tail = os.pread(fd, LINE_BYTES + 1, max(0, end - LINE_BYTES - 1))
        whole = tail.rfind(b"\n") + 1
        torn = tail[whole:]
        like = b"".join(entries[0].line.partition(b'"seq":')[:2])  # what every record begins with
        if torn[: len(like)] != like[: len(torn)] or (end > len(tail) and not whole):
            raise Rejected(f"{self._path} does not end in a record")
        last = tail[:whole].removesuffix(b"\n").rpartition(b"\n")[2]
        rest = list(entries)
        if last:
            try:
                seq = json.loads(last)["seq"]
            except (ValueError, KeyError, TypeError, RecursionError):
                raise Rejected(f"{self._path} does not end in a record") from None
            same = [entry for entry in entries if entry.seq == seq]
            if type(seq) is not int or (same and same[0].line != last + b"\n") or seq > entries[-1].seq:
                raise Rejected(f"{self._path} ends with another record than the log has there")
            if seq < entries[0].seq - 1:
                raise Rejected(f"{self._path} ends with record {seq}, and {entries[0].seq} is the next to be sent")
            rest = [entry for entry in entries if entry.seq > seq]
        if torn:
            os.ftruncate(fd, end - len(torn))
        if rest:
            _written(fd, b"".join(entry.line for entry in rest))


def _opened(path: str) -> int:
    try:
        fd = open_regular(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    except InvalidError as error:
        raise Rejected(error.message) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise Later(f"{path} is being written by another process") from None
    return fd


def _written(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]
    os.fdatasync(fd)
