"""Proofs as files that a third party checks offline, with the log's public key alone.

Inclusion (C2SP tlog-proof v1): "c2sp.org/tlog-proof@v1", "extra <base64>", "index <n>", the hashes, an empty line, the
checkpoint. `extra` is the leaf hash (`prove`: nothing of the record is shown) or the record's line itself (`receipt`).
Consistency (ours; there is no standard one): "nucleus/tlog-consistency@v1", the hashes, an empty line, the older
checkpoint, an empty line, the newer.

Promises: strict and bounded parsing; a proof that `check_…` accepts holds for the checkpoint's signer, whatever else
the file says; `extra` is believed only as far as the tree proves it.
Does not: show that nothing came after, or that the signer shows everyone the same log (a witness does).
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from nucleus.audit.checkpoint import Checkpoint
from nucleus.audit.merkle import HASH_BYTES, MAX_SIZE, consistent, included, leaf_hash
from nucleus.audit.note import NOTE_BYTES, Note, VerifierKey, encode, parse, unbase64, verified
from nucleus.audit.record import LINE_BYTES
from nucleus.errors import InvalidError

INCLUSION = "c2sp.org/tlog-proof@v1"
CONSISTENCY = "nucleus/tlog-consistency@v1"
MAX_HASHES = 130
PROOF_BYTES = 2 * LINE_BYTES + 2 * NOTE_BYTES


@dataclass(frozen=True, slots=True)
class Inclusion:
    """A record's place in a signed tree. `extra`: its leaf hash (32 bytes), or its line without LF."""

    index: int
    hashes: tuple[bytes, ...]
    note: Note
    extra: bytes

    @property
    def line(self) -> bytes:
        """The record, of a receipt; b"" otherwise."""
        return b"" if len(self.extra) == HASH_BYTES else self.extra

    @property
    def leaf(self) -> bytes:
        """What is proven to be there."""
        return leaf_hash(self.extra) if self.line else self.extra

    def encode(self) -> bytes:
        """The file."""
        head = (INCLUSION, f"extra {_b64(self.extra)}", f"index {self.index}", *map(_b64, self.hashes))
        return "".join(f"{line}\n" for line in head).encode() + b"\n" + encode(self.note)


@dataclass(frozen=True, slots=True)
class Consistency:
    """That one signed tree is the beginning of another."""

    hashes: tuple[bytes, ...]
    old: Note
    new: Note

    def encode(self) -> bytes:
        """The file."""
        head = "".join(f"{line}\n" for line in (CONSISTENCY, *map(_b64, self.hashes)))
        return head.encode() + b"\n" + encode(self.old) + b"\n" + encode(self.new)


def parse_proof(data: bytes) -> Inclusion | Consistency:
    """Read either. Raises InvalidError."""
    if len(data) > PROOF_BYTES:
        raise InvalidError(f"a proof over {PROOF_BYTES} bytes", rule="audit.proof")
    head, _, rest = data.partition(b"\n\n")
    try:
        kind, *lines = head.decode("ascii").split("\n")
    except UnicodeDecodeError:
        raise InvalidError("not a proof", rule="audit.proof") from None
    if kind == CONSISTENCY:
        texts = rest.split(b"\n\n")
        if len(texts) != 4:
            raise InvalidError("not two checkpoints", rule="audit.proof")
        old, new = b"\n\n".join(texts[:2]) + b"\n", b"\n\n".join(texts[2:])
        return Consistency(_hashes(lines), parse(old), parse(new))
    if kind != INCLUSION or len(lines) < 2 or not lines[0].startswith("extra ") or not lines[1].startswith("index "):
        raise InvalidError("not a proof that names a record", rule="audit.proof")
    extra, number = unbase64(lines[0].removeprefix("extra ")), lines[1].removeprefix("index ")
    if len(extra) < HASH_BYTES or not number.isdigit() or len(number) > 19 or str(int(number)) != number:
        raise InvalidError("not a proof that names a record", rule="audit.proof")
    return Inclusion(int(number), _hashes(lines[2:]), parse(rest), extra)


def check_inclusion(proof: Inclusion, key: VerifierKey) -> Checkpoint:
    """The checkpoint, signed by `key`, that has the record. Raises InvalidError: proves nothing, and why."""
    checkpoint = signed_checkpoint(proof.note, key)
    if proof.index > MAX_SIZE or not included(proof.leaf, proof.index, checkpoint.size, proof.hashes, checkpoint.root):
        raise InvalidError("the record is not in the signed tree", rule="audit.proof")
    return checkpoint


def check_consistency(proof: Consistency, key: VerifierKey) -> tuple[Checkpoint, Checkpoint]:
    """Both checkpoints, signed by `key`, the older one a prefix of the newer. Raises InvalidError."""
    old, new = signed_checkpoint(proof.old, key), signed_checkpoint(proof.new, key)
    if not consistent(old.size, new.size, old.root, new.root, proof.hashes):
        raise InvalidError("the older tree is not the beginning of the newer one", rule="audit.proof")
    return old, new


def signed_checkpoint(note: Note, key: VerifierKey) -> Checkpoint:
    """The checkpoint of this very log. Raises InvalidError: another log's, unsigned, or wrongly signed."""
    checkpoint = Checkpoint.parse(note.text)
    if checkpoint.origin != key.name:
        raise InvalidError(f"a checkpoint of another log, {checkpoint.origin}", rule="audit.checkpoint")
    if not verified(note, key):
        raise InvalidError(f"a checkpoint that {key.name} did not sign", rule="audit.signature")
    return checkpoint


def _hashes(lines: Sequence[str]) -> tuple[bytes, ...]:
    hashes = tuple(map(unbase64, lines))
    if len(hashes) > MAX_HASHES or any(len(value) != HASH_BYTES for value in hashes):
        raise InvalidError("not a proof's hashes", rule="audit.proof")
    return hashes


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
