"""The log's signed checkpoints: a file beside it (`<log>.checkpoints`), and the key that signs them (`audit.key`).

Promises:
 1. What is signed is durable before: the log's records first, then the checkpoint (append, fsync), in this order.
 2. Nothing is signed that is inconsistent with what was signed before: at the start the log must have, at the last
    checkpoint's size, that checkpoint's root; otherwise the start is refused and everything left as it is.
 3. A note that a crash cut in mid-write is cut off. A write that fails is cut back; after a failed sync the file takes
    nothing more until the authority is started again.
 4. A missing or foreign key beside checkpoints is refused: no second key is made silently.
Relies on: being the only writer (the authority holds the state directory's lock).
Does not: decide when (`authority.signing`); check signatures at the start, whose root comparison needs none.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from nucleus.audit.checkpoint import END, Checkpoint, Reader
from nucleus.audit.merkle import Tree
from nucleus.audit.note import Note, encode
from nucleus.errors import AuditError, InvalidError
from nucleus.store.audit_log import FILE
from nucleus.store.note_keys import SigningKey, check_ours, create, load, write_whole

CHECKPOINTS = ".checkpoints"
COSIGNATURES = ".cosignatures"
PUBLIC_KEY = ".vkey"
KEY = "audit.key"
_NOTE_BYTES = 1_024  # a note of ours is shorter
_TAIL_BYTES = 4 * _NOTE_BYTES
_DASH = "\u2014 ".encode()


class Checkpoints:
    """See the module.

    Args:
        directory: the state directory.
        trust_domain: the first part of the origin that a new key gets.

    Raises:
        AuditError: the file or the key is not what this module writes, or cannot be opened.
    """

    def __init__(self, directory: str, trust_domain: str) -> None:
        self.path = os.path.join(directory, FILE + CHECKPOINTS)
        self._public = os.path.join(directory, FILE + PUBLIC_KEY)
        self._broken = ""
        self._published = os.path.exists(self._public)
        self.last: Checkpoint | None = None
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise AuditError(f"{self.path}: {error.strerror}", rule="audit.checkpoints") from error
        try:
            check_ours(self._fd, self.path, "audit.checkpoints")
            self._size = self._read_tail()
            os.fdatasync(self._fd)  # what was just read may not be on the disk yet
            self._key = self._open_key(os.path.join(directory, KEY), trust_domain)
        except OSError as error:
            os.close(self._fd)
            raise AuditError(f"{self.path}: {error.strerror}", rule="audit.checkpoints") from error
        except BaseException:
            os.close(self._fd)
            raise

    @property
    def size(self) -> int:
        """Records that are signed for."""
        return self.last.size if self.last is not None else 0

    def check(self, roots: Mapping[int, bytes], size: int) -> None:
        """Promise 2: compare the log, of `size` records, with the last checkpoint.

        Raises:
            AuditError: rule ``audit.tree``.
        """
        last = self.last
        if last is None or roots.get(last.size) == last.root:
            return
        shorter = f"ends at record {size}, below the checkpoint" if size < last.size else "is not what was signed"
        raise AuditError(
            f"the audit log {shorter} of {last.size} records",
            rule="audit.tree",
            next_step="Look at it with nucleus-audit verify; nothing was overwritten.",
        )

    def sign(self, tree: Tree) -> None:
        """Sign the tree and append the checkpoint: durable on return.

        Raises:
            AuditError: rule ``audit.checkpoints``: it cannot be written; the file is as before.
        """
        if self._broken:
            raise AuditError(self._broken, rule="audit.checkpoints")
        checkpoint = Checkpoint(self._key.name, tree.size, tree.root())
        data = encode(Note(checkpoint.text, (self._key.signature(checkpoint.text),))) + b"\n"
        try:
            if not self._published:
                write_whole(self._public, f"{self._key.public()}\n".encode(), replace=True)
                self._published = True
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as error:
            self._cut_back()
            raise AuditError(f"a checkpoint cannot be written: {error.strerror}", rule="audit.checkpoints") from error
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            self._broken = f"the checkpoints cannot be synced: {error.strerror}"
            self._cut_back()
            raise AuditError(self._broken, rule="audit.checkpoints") from error
        self._size += len(data)
        self.last = checkpoint

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _cut_back(self) -> None:
        try:
            os.ftruncate(self._fd, self._size)
            os.fdatasync(self._fd)
        except OSError as error:
            self._broken = self._broken or f"the checkpoints have a torn tail that cannot be cut: {error.strerror}"

    def _read_tail(self) -> int:
        """Find the last whole note, cut a torn one off; the file's size (3)."""
        size = os.fstat(self._fd).st_size
        if not size:
            return 0
        at = max(0, size - _TAIL_BYTES)
        data = os.pread(self._fd, _TAIL_BYTES, at)
        if at:  # begin behind the first note that ends here: an empty line, and no signature after it
            begin = data.find(END) + 2
            if data.startswith(_DASH, begin):
                begin = data.find(END, begin) + 2
            at, data = at + begin, data[begin:]
        reader = Reader()
        try:
            for _, _, checkpoint in reader.feed(data):
                self.last = checkpoint
        except InvalidError as error:
            raise AuditError(
                f"{self.path}: {error.message}",
                rule="audit.checkpoints",
                next_step="Put it back from a copy; nothing was overwritten.",
            ) from error
        if (at and self.last is None) or reader.torn > _NOTE_BYTES:
            raise AuditError(f"{self.path} does not end in a checkpoint", rule="audit.checkpoints")
        if reader.torn:
            os.ftruncate(self._fd, at + reader.offset)
            os.fsync(self._fd)
        return at + reader.offset

    def _open_key(self, path: str, trust_domain: str) -> SigningKey:
        """Promise 4."""
        key = load(path)
        if key is None and self.last is None:
            return create(path, f"{trust_domain}/audit/{os.urandom(8).hex()}")
        if key is None or (self.last is not None and self.last.origin != key.name):
            raise AuditError(
                f"{path} is not the key of {self.path}",
                rule="audit.key",
                next_step="Put the key back from a copy, or move both away to begin a new series of checkpoints.",
            )
        return key
