"""Private keys that sign notes: the authority's and a witness's, each in a file of its own.

file = "nucleus-note-key/v1 <name> <base64 of the Ed25519 seed>" LF

Promises: a key file is 0600, ours alone, not a link, and whole from the moment that it has its name; no `repr` and no
error shows the seed. Making or loading one costs no import: `cryptography` comes with the first signature.
"""

from __future__ import annotations

import base64
import os
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nucleus.audit.note import ED25519, Signature, VerifierKey, check_name, unbase64
from nucleus.errors import AuditError, InvalidError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_HEAD = "nucleus-note-key/v1"
_FILE_BYTES = 1_024
SEED_BYTES = 32


@dataclass(slots=True)
class SigningKey:
    """A private key with its name. `type`: `note.ED25519` for a log, `note.COSIGNATURE` for a witness."""

    name: str
    type: int
    _seed: bytes = field(repr=False)
    _private: Ed25519PrivateKey | None = field(default=None, repr=False)

    def sign(self, message: bytes) -> bytes:
        """The 64 bytes."""
        return self._key().sign(message)

    def signature(self, text: str) -> Signature:
        """The signature line of a note's text (type 0x01)."""
        return Signature(self.name, self.public().key_id, self.sign(text.encode()))

    def public(self) -> VerifierKey:
        """The public key."""
        return VerifierKey(self.name, self.type, self._key().public_key().public_bytes_raw())

    def _key(self) -> Ed25519PrivateKey:
        if self._private is None:
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # weight

            self._private = Ed25519PrivateKey.from_private_bytes(self._seed)
        return self._private


def load(path: str, type_: int = ED25519) -> SigningKey | None:
    """The key kept in a file; None: there is none.

    Raises:
        AuditError: rule ``audit.key``: open to others, not ours, a link, or not a key.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise AuditError(f"{path}: {error.strerror}", rule="audit.key") from error
    try:
        check_ours(fd, path, "audit.key")
        data = os.read(fd, _FILE_BYTES + 1)
    finally:
        os.close(fd)
    try:
        head, name, encoded = data.decode("utf-8").removesuffix("\n").split(" ")
        seed = unbase64(encoded)
        if head != _HEAD or len(seed) != SEED_BYTES:
            raise ValueError
        return SigningKey(check_name(name), type_, seed)
    except (ValueError, InvalidError):
        raise AuditError(f"{path} is not a key of ours", rule="audit.key") from None  # never what is in it


def create(path: str, name: str, type_: int = ED25519) -> SigningKey:
    """Make a key and its file; durable on return.

    Raises:
        InvalidError: not a name for a key.
        AuditError: rule ``audit.key``: the file is there, or cannot be written.
    """
    key = SigningKey(check_name(name), type_, os.urandom(SEED_BYTES))
    encoded = base64.b64encode(key._seed).decode("ascii")
    try:
        write_whole(path, f"{_HEAD} {name} {encoded}\n".encode(), replace=False)
    except OSError as error:
        raise AuditError(f"{path}: {error.strerror}", rule="audit.key") from error
    return key


def write_whole(path: str, data: bytes, *, replace: bool) -> None:
    """Write a 0600 file that has its name once it is whole and durable. Raises OSError (FileExistsError)."""
    new = f"{path}.new"
    with suppress(FileNotFoundError):
        os.unlink(new)  # of a write that crashed
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(fd, rest) :]
        os.fsync(fd)
    finally:
        os.close(fd)
    if replace:
        os.rename(new, path)
    else:
        try:
            os.link(new, path)
        finally:
            os.unlink(new)
    directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def check_ours(fd: int, path: str, rule: str) -> None:
    """Raises AuditError: not a regular file of ours alone, closed to others."""
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_nlink != 1:
        raise AuditError(f"{path} is not a file of ours alone", rule=rule)
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise AuditError(f"{path} is open to others", rule=rule, next_step=f"chmod 600 {path}")
