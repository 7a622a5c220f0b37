"""The audit log's file: append-only JSON lines, durable when `write` returns.

Promises:
 1. `open` verifies the log from the last head that the ledger has on record (or all of it); a log that does not verify
    is refused and left as it is.
 2. A last line that a crash cut in mid-write is set aside in a file of its own and cut off; nothing else ever is.
 3. `write` returns once the bytes are durable (fdatasync). When it fails, they are cut back, so that the log still
    verifies; when that fails too, or the sync does, the log takes nothing more until the authority is started again.
 4. `tree` is the Merkle tree over the lines that are durable: each line is hashed as it was written, not read back.
Relies on: being the only writer (the authority holds the state directory's lock).
Does not: rotate, or show completeness (`audit.verify`).
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from nucleus.audit.chain import Head, extend
from nucleus.audit.merkle import Roots, Tree
from nucleus.audit.record import LINE_BYTES, Record
from nucleus.audit.verify import Verifier
from nucleus.errors import AuditError

_CHUNK = 1 << 20
FILE = "audit.jsonl"


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
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise AuditError(f"{self.path}: {error.strerror}", rule="audit.open") from error
        try:
            self._check_file()
            if start is not None and not start.seq:
                start = None
            if start is None or (tree is not None and tree.size != start.seq):
                tree = None
            roots = Roots(sizes, tree)
            self.head = self._verify(start, on_record, roots)
            self.tree, self.roots = roots.tree, roots.at
            self._sync_directory()
        except BaseException:
            os.close(self._fd)
            raise
        self._staged: list[bytes] = []
        self._next = self.head

    def stage(self, record: Record) -> Head:
        """Add a record to the batch; the head that it will have. Raises InvalidError; AuditError when broken."""
        if self._broken or self.held:
            raise AuditError(self._broken or self.held, rule="audit.broken")
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
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            self._cut_back()
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

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _cut_back(self) -> None:
        try:
            os.ftruncate(self._fd, self.head.offset)
            os.fdatasync(self._fd)
        except OSError as error:
            self._broken = self._broken or f"the audit log has a torn tail that cannot be cut: {error.strerror}"

    def _check_file(self) -> None:
        found = os.fstat(self._fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_nlink != 1:
            raise AuditError(f"{self.path} is not a file of ours alone", rule="audit.open")
        if stat.S_IMODE(found.st_mode) & 0o077:
            raise AuditError(f"{self.path} is open to others", rule="audit.open", next_step=f"chmod 600 {self.path}")

    def _verify(self, start: Head | None, on_record: Callable[[dict[str, Any]], None] | None, roots: Roots) -> Head:
        """Promises 1 and 2; `roots` is taken to the same place."""
        size = os.fstat(self._fd).st_size
        if start is not None:
            self._check_start(start, size)
        if size == 0:
            return Head()
        verifier = Verifier(start, on_record)
        at = start.offset if start is not None else 0
        self._rebuild(roots, start)
        while chunk := os.pread(self._fd, _CHUNK, at):
            at += len(chunk)
            if not verifier.feed(chunk):
                raise self._refused(verifier.finish().verdict, start)
            roots.feed(chunk)
        if verifier.torn:
            self._set_aside(verifier.head, at)
        return verifier.head

    def _rebuild(self, roots: Roots, start: Head | None) -> None:
        """The tree up to `start`, unless it was given."""
        if start is None or roots.tree.size:
            return
        at = 0
        while chunk := os.pread(self._fd, min(_CHUNK, start.offset - at), at):
            at += len(chunk)
            roots.feed(chunk)
        if (roots.tree.size, roots.offset) != (start.seq, start.offset):
            raise self._refused(f"record {start.seq} is not where the ledger knows it to be", start)

    def _check_start(self, start: Head, size: int) -> None:
        if size < start.offset:
            raise AuditError(
                f"{self.path} lost its tail: the ledger knows of {start.offset} bytes, {size} are there",
                rule="audit.tail",
                next_step="Put the log back from a copy; nothing was overwritten.",
            )
        tail = os.pread(self._fd, min(80, start.offset), max(0, start.offset - 80))
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
        tail = os.pread(self._fd, LINE_BYTES + 1, head.offset)
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
        os.ftruncate(self._fd, head.offset)
        os.fsync(self._fd)
        self.torn = Torn(size - head.offset, digest, name)

    def _sync_directory(self) -> None:
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
