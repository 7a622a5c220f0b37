"""How a log has grown since somebody looked at it last: what was signed meanwhile, and that it is a continuation.

Steps of a look:
 0. the last record that was seen is still where it was, byte for byte, or it is a `fork`
 1. new checkpoints are read; each is of the log, signed by the key that was pinned at the first look
 2. sizes do not go back (`rewind`), and none contradicts what was seen (`fork`)
 3. the log's new lines are hashed onto the tree that was kept: at each checkpoint's size the roots are equal, or it is
    a `fork`; a log that ends before is a `shrink`

Promises: what `grown` returns is durable in the log (it is signed only then) and has all that was seen before as its
beginning; a refusal changes nothing.
Relies on: its caller to keep `Seen` before relying on it.
Does not: read older lines again.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass, field
from typing import Any

from nucleus.audit.checkpoint import Checkpoint, Reader
from nucleus.audit.merkle import Roots, Tree, leaf_hash
from nucleus.audit.note import ED25519, NOTE_BYTES, Note, VerifierKey, encode, parse
from nucleus.audit.proof import signed_checkpoint
from nucleus.audit.record import LINE_BYTES
from nucleus.errors import InvalidError
from nucleus.store.checkpoints import CHECKPOINTS, PUBLIC_KEY
from nucleus.store.segments import LogFiles

_CHUNK = 1 << 20


class Refused(Exception):
    """This is not growth. `code`: fork, rewind, shrink, signature or key."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(slots=True)
class Seen:
    """What was seen last.

    `offset`: bytes of the log up to there; `leaf`: of the last record, in hex; `read`: bytes of the file of checkpoints
    that were looked at; `note`: the checkpoint (a witness keeps it as it was cosigned).
    """

    log_key: str = ""
    tree: Tree = field(default_factory=Tree)
    offset: int = 0
    leaf: str = ""
    read: int = 0
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """As it is kept."""
        return {
            "v": 1, "log_key": self.log_key, "tree": self.tree.pack(), "offset": self.offset, "leaf": self.leaf,
            "read": self.read, "note": self.note,
        }  # fmt: skip

    def encode(self) -> bytes:
        """A file of it."""
        return json.dumps(self.as_dict(), indent=1).encode() + b"\n"

    @classmethod
    def from_dict(cls, body: Any) -> Seen:
        """Raises InvalidError: rule ``audit.seen``: it is not what `as_dict` makes."""
        try:
            leaf, note = str(body["leaf"]), str(body["note"])
            seen = cls(str(body["log_key"]), Tree.unpack(body["tree"]), body["offset"], leaf, body["read"], note)
            if body["v"] != 1 or any(type(at) is not int or at < 0 for at in (seen.offset, seen.read)):
                raise ValueError
            if seen.note:
                checkpoint = Checkpoint.parse(parse(seen.note.encode()).text)
                if (checkpoint.size, checkpoint.root) != (seen.tree.size, seen.tree.root()):
                    raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, InvalidError):
            raise InvalidError("what was kept of an earlier look is not what is written", rule="audit.seen") from None
        return seen

    @classmethod
    def decode(cls, data: bytes) -> Seen:
        """Raises InvalidError."""
        try:
            return cls.from_dict(json.loads(data))
        except (ValueError, RecursionError):
            raise InvalidError("what was kept of an earlier look is not JSON", rule="audit.seen") from None


class Files:
    """The log's files, opened with the privileges that there are then.

    The file of checkpoints is read as far as it went before the log was opened: what is signed there is in the log.

    Args:
        path: of the log.
        ahead: see `LogFiles`.

    Raises:
        InvalidError: one of them is not a regular file.
        AuditError, OSError: cannot be opened.
    """

    def __init__(self, path: str, ahead: int = 0) -> None:
        self.checkpoints = open_regular(path + CHECKPOINTS, os.O_RDONLY)
        try:
            self.end = os.fstat(self.checkpoints).st_size
            self.key = _beside(path + PUBLIC_KEY)
            self.log = LogFiles(path, ahead)
        except BaseException:
            os.close(self.checkpoints)
            raise

    def close(self) -> None:
        """Close them."""
        os.close(self.checkpoints)
        self.log.close()


def append_note(fd: int, note: bytes) -> None:
    """Append a signed note to a file of such, durable on return; what a crash cut is cut off, and none is there twice.

    Raises:
        InvalidError: the file is not one of checkpoints.
        OSError: cannot be read or written; what was written of it is cut off the next time.
    """
    data = note + b"\n"
    end = os.fstat(fd).st_size
    if os.pread(fd, len(data), max(0, end - len(data))) == data:
        return
    reader, at, last = Reader(), 0, b""
    while chunk := os.pread(fd, _CHUNK, at):
        at += len(chunk)
        for whole, _, _ in reader.feed(chunk):
            last = whole
    if reader.torn:
        os.ftruncate(fd, reader.offset)
    if last == note:
        return
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]
    os.fsync(fd)


def open_regular(path: str, flags: int) -> int:
    """A descriptor of a file that is no link, pipe or device. Raises InvalidError, OSError."""
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise InvalidError(f"{path} is not a regular file", rule="audit.file")
    return fd


def _beside(path: str) -> VerifierKey | None:
    """The public key in a file; None where there is none."""
    try:
        with open(path, "rb") as file:
            key = VerifierKey.parse(file.read(NOTE_BYTES).decode("utf-8", "replace").strip())
    except (OSError, InvalidError):
        return None
    return key if key.type == ED25519 else None


class Growth:
    """See the module. `files` are the caller's to close; `key`: the log's, pinned."""

    def __init__(self, files: Files, key: VerifierKey, seen: Seen) -> None:
        self._log = files.log
        self._checkpoints, self._end = files.checkpoints, files.end
        self._key = key
        self.seen = seen

    def look(self) -> tuple[Note, Seen] | None:
        """Steps 0 to 3: the newest checkpoint and the state after it, for the caller to keep; None: nothing is new.

        Raises:
            Refused: it is not growth.
            InvalidError, AuditError, OSError: it cannot be read.
        """
        self._check_last()
        new, read = self._new_checkpoints()
        if not new:
            return None
        seen = self._grown([checkpoint for _, checkpoint in new], read)
        seen.note = encode(new[-1][0]).decode()
        return new[-1][0], seen

    def _check_last(self) -> None:
        """Step 0."""
        size, offset = self.seen.tree.size, self.seen.offset
        if self._log.size < offset:
            raise Refused("shrink", f"the log is shorter than at the {size} records that were seen")
        if size and leaf_hash(self._log.line_before(offset, LINE_BYTES)).hex() != self.seen.leaf:
            raise Refused("fork", f"record {size} is not the one that was seen")

    def _new_checkpoints(self) -> tuple[list[tuple[Note, Checkpoint]], int]:
        """Steps 1 and 2: those beyond what was seen, each size once, and up to where their file was read."""
        new: list[tuple[Note, Checkpoint]] = []
        fd, size = self._checkpoints, self.seen.tree.size
        highest, at = size, self.seen.read
        if self._end < at:
            raise Refused("rewind", f"the checkpoints end before that of the {size} records that were seen")
        reader = Reader(at)
        try:
            while chunk := os.pread(fd, min(_CHUNK, self._end - at), at):
                at += len(chunk)
                for _, note, checkpoint in reader.feed(chunk):
                    if checkpoint.size < highest:
                        raise Refused("rewind", f"checkpoints go back from {highest} to {checkpoint.size}")
                    highest = checkpoint.size
                    signed_checkpoint(note, self._key)
                    same = new[-1][1] if new else Checkpoint("", size, self.seen.tree.root())
                    if checkpoint.size > same.size:
                        new.append((note, checkpoint))
                    elif checkpoint.root != same.root:
                        raise Refused("fork", f"two trees of {checkpoint.size} records are signed")
        except InvalidError as error:
            raise Refused("signature", error.message) from None
        return new, reader.offset

    def _grown(self, checkpoints: list[Checkpoint], read: int) -> Seen:
        """Step 3: the state after these."""
        roots = Roots([checkpoint.size for checkpoint in checkpoints], self.seen.tree.copy())
        last, start = checkpoints[-1].size, self.seen.offset
        at, rest, final = start, b"", b""
        while roots.tree.size < last and (chunk := self._log.pread(_CHUNK, at)):
            at += len(chunk)
            lines = (rest + chunk).split(b"\n")
            rest = lines.pop()
            if len(rest) > LINE_BYTES:
                raise Refused("fork", "the log has a line that is none of ours")
            lines = lines[: last - roots.tree.size]
            final = lines[-1] if lines else final
            roots.feed(b"".join(line + b"\n" for line in lines))
        before = self.seen.tree.size
        for checkpoint in checkpoints:
            root = roots.at.get(checkpoint.size)
            if root is None:
                raise Refused("shrink", f"the log ends at record {roots.tree.size}, {checkpoint.size} are signed")
            if root != checkpoint.root:
                raise Refused("fork", f"the signed tree of {checkpoint.size} records does not grow from {before}")
            before = checkpoint.size
        leaf = leaf_hash(final).hex()
        return Seen(self.seen.log_key, roots.tree, start + roots.offset, leaf, read)


def pinned(seen: Seen, chosen: VerifierKey | None, found: VerifierKey | None) -> VerifierKey:
    """The log's key: the one named now, or at the first look, or found beside the log then.

    Raises:
        InvalidError: there is none.
        Refused: code ``key``: it is not the one of the first look.
    """
    key = chosen or (VerifierKey.parse(seen.log_key) if seen.log_key else found)
    if key is None:
        raise InvalidError("there is no public key beside the log: name it with --log-key", rule="cli.option")
    if seen.log_key not in ("", str(key)):
        raise Refused("key", "the log's key is not the one of the first run")
    seen.log_key = str(key)
    return key
