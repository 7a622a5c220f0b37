"""Checkpoints (C2SP tlog-checkpoint), cosignatures (tlog-cosignature v1), and files of either.

text = origin LF size LF base64(root) LF [extension lines]; a note of it is signed by the log.
A cosignature (type 0x04) signs "cosignature/v1" LF "time <seconds>" LF text: the witness saw it grow up to here.
A file holds notes one after the other, an empty line behind each.

Promises: one spelling of each; a note that is not whole at the end of a file is told apart from one that is wrong.
Does not: sign (`store.note_keys` does), or compare a root with a log (`merkle`, `cli.audit_tree`).
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass

from nucleus.audit.merkle import HASH_BYTES, MAX_SIZE
from nucleus.audit.note import COSIGNATURE, NOTE_BYTES, Note, Signature, VerifierKey, parse, signed_by, unbase64
from nucleus.errors import InvalidError

END = b"\n\n"
_TIME_BYTES = 8
_SIGNATURE_BYTES = 64


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A log's tree at one size."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """What is signed."""
        root = base64.b64encode(self.root).decode("ascii")
        return "".join(f"{line}\n" for line in (self.origin, str(self.size), root, *self.extensions))

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """Read a note's text. Raises InvalidError (rule ``audit.checkpoint``)."""
        *lines, last = text.split("\n")
        if last or len(lines) < 3 or not all(lines):
            raise InvalidError("not a checkpoint: three lines or more, none empty", rule="audit.checkpoint")
        origin, size, root = lines[:3]
        if not (size.isascii() and size.isdigit()) or len(size) > 19 or int(size) > MAX_SIZE:
            raise InvalidError("a checkpoint's size is not a number", rule="audit.checkpoint")
        found = cls(origin, int(size), unbase64(root), tuple(lines[3:]))
        if len(found.root) != HASH_BYTES or found.text != text:
            raise InvalidError("not a checkpoint in its one spelling", rule="audit.checkpoint")
        return found


def cosigned_message(text: str, seconds: int) -> bytes:
    """What a witness signs: the checkpoint's text and the time, in seconds since the epoch."""
    return f"cosignature/v1\ntime {seconds}\n{text}".encode()


def cosignature(key: VerifierKey, seconds: int, signature: bytes) -> Signature:
    """A witness's signature line."""
    return Signature(key.name, key.key_id, seconds.to_bytes(_TIME_BYTES, "big") + signature)


def cosigned(note: Note, key: VerifierKey) -> int:
    """The time at which this witness cosigned, in seconds since the epoch; 0: it is not among the signatures.

    Raises:
        InvalidError: rule ``audit.signature``: it is, and the cosignature is wrong.
    """
    latest = 0
    for found in signed_by(note, key):
        seconds = int.from_bytes(found.data[:_TIME_BYTES], "big")
        message = cosigned_message(note.text, seconds)
        whole = len(found.data) == _TIME_BYTES + _SIGNATURE_BYTES and key.type == COSIGNATURE
        if not whole or not 0 < seconds <= MAX_SIZE or not key.verifies(message, found.data[_TIME_BYTES:]):
            raise InvalidError(f"a wrong cosignature by {key.name}", rule="audit.signature")
        latest = max(latest, seconds)
    return latest


class Reader:
    """A file of notes, in pieces. `offset`: where the last whole note ended."""

    def __init__(self, offset: int = 0) -> None:
        self.offset = offset
        self._rest = b""

    def feed(self, chunk: bytes) -> Iterator[tuple[bytes, Note, Checkpoint]]:
        """Each whole note: its bytes, itself, and its checkpoint. Raises InvalidError: one that is neither."""
        self._rest += chunk
        while (blank := self._rest.find(END)) >= 0 and (end := self._rest.find(END, blank + 2)) >= 0:
            data = self._rest[: end + 1]
            note = parse(data)
            yield data, note, Checkpoint.parse(note.text)
            self._rest = self._rest[end + 2 :]
            self.offset += end + 2
        if len(self._rest) > NOTE_BYTES:
            raise InvalidError(f"a note over {NOTE_BYTES} bytes", rule="audit.note")

    @property
    def torn(self) -> int:
        """Bytes after the last whole note."""
        return len(self._rest)
