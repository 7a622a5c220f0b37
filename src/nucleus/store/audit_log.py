"""The audit log's files: append-only JSON lines, durable when `write` returns.

Promises:
 1. `open` verifies the log from the last head that the ledger has on record (or all of it); a log that does not verify
    is refused and left as it is.
 2. A last line that a crash cut in mid-write is set aside in a file of its own and cut off; nothing else ever is.
 3. `write` returns once the bytes are durable (fdatasync). When it fails, they are cut back, so that the log still
    verifies; when that fails too, or the sync does, the log takes nothing more until the authority is started again.
 4. `tree` is the Merkle tree over the lines that are durable: each line is hashed as it was written, not read back.
 5. A file of `SEGMENT_BYTES` (or what `audit.segment-bytes` in the state directory says) is closed between two batches:
    it gets a segment's name (`segments`) and a new file its own. Chain, tree and offsets go on; a crash at any step
    leaves the next start the whole log. When it cannot be done, the file goes on and it is tried again later.
 6. Nothing begins on a disk that is nearly full: only what ends something (`_ENDS`) is taken while less than
    `MARGIN_BYTES` are free, and has room: the blocks of `audit.reserve` are given back to the file system then.
Relies on: being the only writer (the authority holds the state directory's lock).
Does not: remove segments, or show completeness (`audit.verify`).
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, NamedTuple

from nucleus.audit.chain import Head, extend
from nucleus.audit.merkle import Roots, Tree
from nucleus.audit.record import LINE_BYTES, Record
from nucleus.audit.verify import Verifier
from nucleus.errors import AuditError
from nucleus.store.segments import CHUNK, LogFiles, segment_name

FILE = "audit.jsonl"
SETTING = "audit.segment-bytes"
RESERVE = "audit.reserve"
SEGMENT_BYTES = 268_435_456
MIN_SEGMENT_BYTES = 4_096
RESERVE_BYTES = 4_194_304
MARGIN_BYTES = 1_048_576  # free on the file system, besides the reserve
_LATER_BYTES = 1_048_576  # more, before a rotation that failed is tried again
_SHARE = 16  # of a file system, at most, for the reserve; a fourth of that for the margin
_ENDS = frozenset({"outcome", "recovery", "pod.stop"})
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Torn(NamedTuple):
    """What was cut off at the end of the log: its size, SHA-256, and the file that has it now."""

    size: int
    sha256: str
    kept_as: str


class AuditLog:
    """See the module. `head` is durable; `stage` builds on it, `write` makes that durable, `discard` forgets it.

    Args:
        directory: the state directory.
        start: the head on record, from which verification goes on; None verifies everything.
        on_record: called with each record verified at the start.
        tree: the tree at `start`; None makes it from the log, in one pass that hashes and does not verify.
        sizes: where to note the tree's root in `roots`; those below the tree's start are not met.

    Raises:
        AuditError: the log does not verify, is shorter than the head on record, or cannot be opened.
    """

    def __init__(
        self,
        directory: str,
        start: Head | None = None,
        on_record: Callable[[dict[str, Any]], None] | None = None,
        tree: Tree | None = None,
        sizes: Iterable[int] = (),
    ) -> None:
        self.path = os.path.join(directory, FILE)
        self._directory = directory
        self._broken = ""
        self.held = ""  # why nothing is taken for now (`authority.signing`)
        self.torn: Torn | None = None
        try:
            self._fd = self._open(FILE)
        except OSError as error:
            raise AuditError(f"{self.path}: {error.strerror}", rule="audit.open") from error
        self._reserve = -1
        try:
            self._check_file()
            with suppress(FileNotFoundError):
                os.unlink(f"{self.path}.new")  # of a rotation that crashed
            self._segment_bytes = self._setting()
            files = LogFiles(self.path)
            self._base = files.base
            self._first = files.segments[-1].last + 1 if files.segments else 1
            self._rotate_at = self._base + self._segment_bytes
            if start is not None and not start.seq:
                start = None
            if start is None or (tree is not None and tree.size != start.seq):
                tree = None
            roots = Roots(sizes, tree)
            try:
                self.head = self._verify(files, start, on_record, roots)
            finally:
                files.close()
            self.tree, self.roots = roots.tree, roots.at
            self._reserve = self._open(RESERVE)
            # Who died before us may have written what was read just now, and not synced it; the ledger will rely on it.
            os.fdatasync(self._fd)
            self._sync_directory()
        except OSError as error:
            self.close()
            raise AuditError(f"{self.path}: {error.strerror}", rule="audit.open") from error
        except BaseException:
            self.close()
            raise
        self._reserved = False
        self._has_room()
        self._staged: list[bytes] = []
        self._next = self.head

    def stage(self, record: Record) -> Head:
        """Add a record to the batch; the head that it will have. Raises InvalidError; AuditError when broken."""
        if self._broken or self.held:
            raise AuditError(self._broken or self.held, rule="audit.broken")
        if record.event not in _ENDS and not self._has_room():  # 6
            raise AuditError(
                "the disk under the audit log is nearly full: only what has begun is ended",
                rule="audit.full",
                next_step="Make room on the file system of the state directory.",
            )
        self._next, line = extend(self._next, record)
        self._staged.append(line)
        return self._next

    @property
    def staged(self) -> int:
        """Records in the batch."""
        return len(self._staged)

    def discard(self) -> None:
        """Forget the batch."""
        self._staged.clear()
        self._next = self.head

    def write(self) -> None:
        """Append the batch and sync it: all of it or, with an AuditError, nothing."""
        if not self._staged:
            return
        data = b"".join(lines := self._staged.copy())
        written = self._next
        self.discard()
        try:
            self._append(data)
        except OSError as error:
            raise AuditError(f"the audit log cannot be written: {error.strerror}", rule="audit.append") from error
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            # After a failed sync nobody knows what is on the disk: cut back, and take nothing more.
            self._broken = f"the audit log cannot be synced: {error.strerror}"
            self._cut_back()
            raise AuditError(self._broken, rule="audit.append") from error
        self.head = self._next = written
        self.tree.extend([line[:-1] for line in lines])
        if written.offset >= self._rotate_at:
            self._rotate()

    def close(self) -> None:
        """Close the files."""
        for fd in (self._fd, self._reserve):
            if fd >= 0:
                os.close(fd)
        self._fd = self._reserve = -1

    def _append(self, data: bytes) -> None:
        """Raises OSError: nothing of it is there."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except OSError as error:
                if error.errno in _FULL and self._reserved:  # 6
                    self._give_back()
                    continue
                self._cut_back()
                raise

    def _rotate(self) -> None:
        """Promise 5. Each step leaves either the old file under the log's name, or none, or the new one."""
        self._rotate_at = self.head.offset + _LATER_BYTES
        name, new = segment_name(self.path, self._first, self.head.seq, self._base), f"{self.path}.new"
        try:
            fd = self._open(f"{FILE}.new", os.O_EXCL)
        except OSError:
            return
        try:
            if os.path.lexists(name):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
            os.rename(self.path, name)
            try:
                os.rename(new, self.path)
            except OSError:
                os.rename(name, self.path)
                raise
        except OSError as error:
            os.close(fd)
            with suppress(OSError):
                os.unlink(new)
            if not os.path.lexists(self.path):
                self._broken = f"the audit log has lost its name: {error.strerror}"
            return
        os.close(self._fd)
        self._fd, self._base, self._first = fd, self.head.offset, self.head.seq + 1
        self._rotate_at = self._base + self._segment_bytes
        try:
            self._sync_directory()
        except OSError as error:
            self._broken = f"the audit log's directory cannot be synced: {error.strerror}"

    def _has_room(self) -> bool:
        """Promise 6."""
        try:
            found = os.statvfs(self._directory)
        except OSError:
            return False
        free, share = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize // _SHARE
        reserve, margin = min(RESERVE_BYTES, share), min(MARGIN_BYTES, share // 4)
        if self._reserved:
            if free >= margin:
                return True
            self._give_back()
        elif free >= reserve + 2 * margin:  # twice: not to and fro at the margin
            try:
                os.posix_fallocate(self._reserve, 0, max(reserve, 1))
            except OSError:
                self._give_back()
            else:
                self._reserved = True
        return self._reserved

    def _give_back(self) -> None:
        self._reserved = False
        with suppress(OSError):
            os.ftruncate(self._reserve, 0)

    def _open(self, name: str, flags: int = 0) -> int:
        flags |= os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_APPEND if name != RESERVE else 0)
        return os.open(os.path.join(self._directory, name), flags, 0o600)

    def _setting(self) -> int:
        """A file's size, as whoever runs Nucleus may have set it."""
        path = os.path.join(self._directory, SETTING)
        try:
            with open(path, "rb") as file:
                text = file.read(32).strip()
        except FileNotFoundError:
            return SEGMENT_BYTES
        if not text.isdigit() or len(text) > 15 or int(text) < MIN_SEGMENT_BYTES:
            raise AuditError(
                f"{path} is not a number of bytes, {MIN_SEGMENT_BYTES} or more", rule="audit.setting",
                next_step="Write a number into it, or remove it.",
            )  # fmt: skip
        return int(text)

    def _cut_back(self) -> None:
        try:
            os.ftruncate(self._fd, self.head.offset - self._base)
            os.fdatasync(self._fd)
        except OSError as error:
            self._broken = self._broken or f"the audit log has a torn tail that cannot be cut: {error.strerror}"

    def _check_file(self) -> None:
        found = os.fstat(self._fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_nlink != 1:
            raise AuditError(f"{self.path} is not a file of ours alone", rule="audit.open")
        if stat.S_IMODE(found.st_mode) & 0o077:
            raise AuditError(f"{self.path} is open to others", rule="audit.open", next_step=f"chmod 600 {self.path}")

    def _verify(
        self, files: LogFiles, start: Head | None, on_record: Callable[[dict[str, Any]], None] | None, roots: Roots
    ) -> Head:
        """Promises 1 and 2; `roots` is taken to the same place."""
        size = files.size
        if start is not None:
            self._check_start(files, start, size)
        if size == 0:
            return Head()
        verifier = Verifier(start, on_record)
        at = start.offset if start is not None else 0
        self._rebuild(files, roots, start)
        while chunk := files.pread(CHUNK, at):
            at += len(chunk)
            if not verifier.feed(chunk):
                raise self._refused(verifier.finish().verdict, start)
            roots.feed(chunk)
        if verifier.broken:
            raise self._refused(verifier.finish().verdict, start)
        if verifier.torn:
            if verifier.head.offset < self._base:
                raise self._refused("a closed segment ends in mid-line", start)
            self._set_aside(verifier.head, at)
        return verifier.head

    def _rebuild(self, files: LogFiles, roots: Roots, start: Head | None) -> None:
        """The tree up to `start`, unless it was given."""
        if start is None or roots.tree.size:
            return
        at = 0
        while at < start.offset and (chunk := files.pread(min(CHUNK, start.offset - at), at)):
            at += len(chunk)
            roots.feed(chunk)
        if (roots.tree.size, roots.offset) != (start.seq, start.offset):
            raise self._refused(f"record {start.seq} is not where the ledger knows it to be", start)

    def _check_start(self, files: LogFiles, start: Head, size: int) -> None:
        if size < start.offset:
            raise AuditError(
                f"{self.path} lost its tail: the ledger knows of {start.offset} bytes, {size} are there",
                rule="audit.tail",
                next_step="Put the log back from a copy; nothing was overwritten.",
            )
        at = max(0, start.offset - 80)
        tail = files.pread(start.offset - at, at)
        if not tail.endswith(b',"hash":"%b"}\n' % start.hash.encode("ascii")):
            raise self._refused("the record that the ledger knows as the last is another", start)

    def _refused(self, verdict: str, start: Head | None) -> AuditError:
        since = f" (lines counted from record {start.seq + 1})" if start is not None else ""
        return AuditError(
            f"{self.path} does not verify: {verdict}{since}",
            rule="audit.verify",
            next_step="Look at it with nucleus-audit verify; nothing was overwritten.",
        )

    def _set_aside(self, head: Head, size: int) -> None:
        tail = os.pread(self._fd, LINE_BYTES + 1, head.offset - self._base)
        digest = hashlib.sha256(tail).hexdigest()
        name = f"audit.torn-{head.seq + 1}-{digest[:12]}"
        fd = os.open(
            os.path.join(self._directory, name), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        try:
            os.write(fd, tail)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.ftruncate(self._fd, head.offset - self._base)
        os.fsync(self._fd)
        self.torn = Torn(size - head.offset, digest, name)

    def _sync_directory(self) -> None:
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
