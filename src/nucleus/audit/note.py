"""Signed notes and their keys (C2SP signed-note v1.0.0; Ed25519 alone), as bytes in and out.

note = text, each line ending in LF; an empty line; then signature lines "— <key name> <base64(key id || signature)>"
key id = SHA-256(key name || LF || type || public key)[:4];  type 0x01 signs the text, 0x04 is a witness's cosignature
vkey = <key name>+<key id in hex>+<base64(type || public key)>

Promises: parsing is strict and bounded; there is one encoding of a note and of a key; a signature of an unknown key is
passed over, one of a known key that does not verify is an error (the whole note is refused).
Relies on: `cryptography`, imported on the first use of a key.
Does not: know what the text says (`checkpoint`), or keep a private key (`store.note_keys`).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass
from typing import NamedTuple

from nucleus.errors import InvalidError

ED25519 = 0x01
COSIGNATURE = 0x04
NOTE_BYTES = 65_536
MAX_SIGNATURES = 64  # the standard wants at least 16
NAME_BYTES = 512
_PUBLIC_BYTES = 32
# y of the points of order 1, 2, 4 and 8, reduced and not: under such a key one signature can be good for every text
_SMALL_ORDER = frozenset(
    y.to_bytes(32, "little")
    for y in (
        0,
        1,
        (1 << 255) - 20,
        (1 << 255) - 19,
        (1 << 255) - 18,
        0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7,
        0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826,
    )
)
_DASH = "\u2014 "


class Signature(NamedTuple):
    """One signature line: who says to have signed, with which key, and the bytes (for 0x04 with their timestamp)."""

    name: str
    key_id: bytes
    data: bytes


class Note(NamedTuple):
    """A text (its last LF included) and what claims to sign it. Nothing in it counts before `verified`."""

    text: str
    signatures: tuple[Signature, ...]


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A public key with its name. Raises InvalidError: not a name, or not a key."""

    name: str
    type: int
    public: bytes

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.type not in (ED25519, COSIGNATURE) or len(self.public) != _PUBLIC_BYTES:
            raise InvalidError("not an Ed25519 key of a log or a witness", rule="audit.key")
        if self.public[:31] + bytes([self.public[31] & 0x7F]) in _SMALL_ORDER:
            raise InvalidError("a public key of small order", rule="audit.key")

    @property
    def key_id(self) -> bytes:
        """Four bytes that name it in a signature line."""
        return hashlib.sha256(self.name.encode() + b"\n" + bytes([self.type]) + self.public).digest()[:4]

    def verifies(self, message: bytes, signature: bytes) -> bool:
        """The 64 bytes are this key's signature of the message."""
        from cryptography.exceptions import InvalidSignature  # weight
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{_b64(bytes([self.type]) + self.public)}"

    @classmethod
    def parse(cls, text: str) -> VerifierKey:
        """A vkey. Raises InvalidError."""
        name, _, rest = text.partition("+")
        key_id, _, encoded = rest.partition("+")
        data = unbase64(encoded)
        if not data:
            raise InvalidError("not a public key <name>+<id>+<base64>", rule="audit.key")
        key = cls(name, data[0], data[1:])
        if key.key_id.hex() != key_id:
            raise InvalidError("a public key's id does not belong to it", rule="audit.key")
        return key


def check_name(name: str) -> str:
    """A key's name, as it is. Raises InvalidError: empty, long, or with blanks, plus or control characters."""
    if not name or len(name.encode(errors="replace")) > NAME_BYTES or "+" in name or not name.isprintable():
        raise InvalidError("not a name for a key", rule="audit.key")
    if any(character.isspace() for character in name):
        raise InvalidError("not a name for a key", rule="audit.key")
    return name


def encode(note: Note) -> bytes:
    """The note's bytes. Raises InvalidError: it would not read back as itself."""
    lines = "".join(f"{_DASH}{s.name} {_b64(s.key_id + s.data)}\n" for s in note.signatures)
    data = f"{note.text}\n{lines}".encode()
    if parse(data) != note:
        raise InvalidError("not a text that can be signed", rule="audit.note")
    return data


def parse(data: bytes) -> Note:
    """Read a note. Raises InvalidError (rule ``audit.note``)."""
    if len(data) > NOTE_BYTES:
        raise InvalidError(f"a note over {NOTE_BYTES} bytes", rule="audit.note")
    try:
        whole = data.decode()
    except UnicodeDecodeError:
        raise InvalidError("a note is not UTF-8", rule="audit.note") from None
    if any(character < " " and character != "\n" for character in whole):
        raise InvalidError("control characters in a note", rule="audit.note")
    text, blank, rest = whole.rpartition("\n\n")
    lines = rest.split("\n")
    if not blank or not text or lines.pop() != "" or not 0 < len(lines) <= MAX_SIGNATURES:
        raise InvalidError("not a signed note", rule="audit.note")
    return Note(text + "\n", tuple(_signature(line) for line in lines))


def signed_by(note: Note, key: VerifierKey) -> list[Signature]:
    """The signature lines that name this key; none is checked."""
    return [s for s in note.signatures if s.name == key.name and s.key_id == key.key_id]


def verified(note: Note, key: VerifierKey) -> bool:
    """The log's own key signed the text. False: it is not among the signatures.

    Raises:
        InvalidError: rule ``audit.signature``: it is, and the signature is wrong.
    """
    found = signed_by(note, key) if key.type == ED25519 else []
    if not all(key.verifies(note.text.encode(), signature.data) for signature in found):
        raise InvalidError(f"a wrong signature by {key.name}", rule="audit.signature")
    return bool(found)


def unbase64(text: str) -> bytes:
    """Standard base64 in its one spelling, padding included. Raises InvalidError."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidError("not base64", rule="audit.note") from None
    if _b64(data) != text:
        raise InvalidError("not base64 in its one spelling", rule="audit.note")
    return data


def _signature(line: str) -> Signature:
    if not line.startswith(_DASH):
        raise InvalidError("not a signature line", rule="audit.note")
    name, _, encoded = line[len(_DASH) :].partition(" ")
    data = unbase64(encoded)
    if len(data) < 5:
        raise InvalidError("not a signature line", rule="audit.note")
    return Signature(check_name(name), data[:4], data[4:])


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
