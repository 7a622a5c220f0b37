"""The host's credentials: one file each in the state directory, read for a gateway at the moment that it needs one.

 1. The directory is 0700 and a file 0600, plain and small, both of the state directory's owner (ours; the authority's
    where we are root); anything else is refused, never mended.
 2. A file is replaced as a whole (temporary, fsync, rename, fsync of the directory).
 3. A value is one line of 6 to 8,192 bytes without control characters: it is going to be a header. A key has several.

Promises: no value in a repr, an error, a log line or an argument; `names` reads none out. Relies on: the state
directory being the person's own (root's, or hers). Does not: encrypt: who can read this directory is the person.
"""

from __future__ import annotations

import base64
import json
import os
import stat
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nucleus.errors import InvalidError, SandboxError

KINDS = ("bearer", "basic", "header", "key", "ssh")
CLIENT = "client"  # in a rule it means: what the client sends
FILE_BYTES = 16_384
LEAST, MOST = 6, 8_192  # bytes of a value: a shorter one could not be kept out of answers
_FIRST = frozenset("abcdefghijklmnopqrstuvwxyz")
_NAME = _FIRST | frozenset("0123456789_.-")
_TOKEN = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
_HOPS = frozenset((
    "connection", "content-length", "expect", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade",
))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Credential:
    """One credential.

    Args:
        kind: ``bearer`` and ``basic`` (Authorization), ``header`` (the named one), ``key`` (its user knows the header),
            ``ssh`` (a private key, which signs in the gateway alone).
        value: the secret.
        user: of ``basic``.
        header: of ``header``.

    Raises:
        InvalidError: rule ``credentials.*``; never with the value.
    """

    kind: str
    value: str = field(repr=False)
    user: str = ""
    header: str = ""
    created_ns: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidError(f"a credential's kind is one of {', '.join(KINDS)}", rule="credentials.kind")
        size = len(self.value.encode("utf-8", "surrogatepass"))
        if not LEAST <= size <= MOST:
            raise InvalidError(f"a credential has {LEAST} to {MOST} bytes", rule="credentials.value")
        lines = self.value.split("\n") if self.kind == "ssh" else [self.value]
        if not all(line.isprintable() and line.isascii() for line in lines) or self.value != self.value.strip():
            raise InvalidError(
                "a credential is printable ASCII, one line of it but for an SSH key", rule="credentials.value"
            )
        if (self.kind == "basic") != bool(self.user) or ":" in self.user or not _plain(self.user):
            raise InvalidError("`basic`, and it alone, has a user (without a colon)", rule="credentials.user")
        lower = self.header.lower()
        if (self.kind == "header") != bool(lower) or not set(lower) <= _TOKEN or lower in _HOPS:
            raise InvalidError(
                "`header`, and it alone, names a header (none of the connection's)", rule="credentials.header"
            )

    def headers(self) -> tuple[tuple[bytes, bytes], ...]:
        """The lines that carry it; none for a ``key``."""
        if self.kind == "bearer":
            return ((b"Authorization", b"Bearer " + self.value.encode()),)
        if self.kind == "basic":
            return ((b"Authorization", b"Basic " + self._pair()),)
        return ((self.header.encode(), self.value.encode()),) if self.kind == "header" else ()

    def secrets(self) -> tuple[bytes, ...]:
        """What must not come back in an answer."""
        if self.kind == "ssh":
            return ()  # it never goes out
        return (self.value.encode(), *([self._pair()] if self.kind == "basic" else []))

    def _pair(self) -> bytes:
        return base64.b64encode(f"{self.user}:{self.value}".encode())

    def to_wire(self) -> dict[str, Any]:
        """For the one who is to use it, on a channel of their own."""
        return {"kind": self.kind, "value": self.value, "user": self.user, "header": self.header}

    @classmethod
    def from_wire(cls, data: dict[str, Any]) -> Credential:
        """What `to_wire` made. Raises InvalidError."""
        names = ("kind", "value", "user", "header")
        if data.keys() != set(names) or not all(isinstance(data[name], str) for name in names):
            raise InvalidError("not a credential", rule="credentials.format")
        return cls(**data)


@dataclass(frozen=True, slots=True)
class Info:
    """What may be shown of a credential."""

    name: str
    kind: str
    user: str
    header: str
    created_ns: int


class Credentials:
    """The credentials of one state directory.

    Args:
        directory: made when the first is set; its parent exists.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def get(self, name: str) -> Credential:
        """One credential.

        Raises:
            InvalidError: rule ``credentials.unknown`` or ``credentials.format``.
            SandboxError: rule ``credentials.mode``: somebody else could read or have written it.
        """
        check_name(name)
        try:
            directory = self._open()
        except FileNotFoundError:
            raise _unknown(name) from None
        try:
            return _read(directory, name)
        finally:
            os.close(directory)

    def set(self, name: str, credential: Credential) -> None:
        """Keep one, in place of what had the name. Raises as `get`, and OSError."""
        check_name(name)
        with suppress(FileExistsError):
            self._directory.mkdir(0o700)
            self._directory.chmod(0o700)  # whatever the umask
            os.chown(self._directory, *self._owner())
        directory = self._open()
        temporary = f".{name}.{os.getpid()}.{time.monotonic_ns()}"
        try:
            data = {"version": 1, "created_ns": time.time_ns(), **credential.to_wire()}
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)
            try:
                os.fchmod(fd, 0o600)
                os.fchown(fd, *self._owner())
                os.write(fd, json.dumps(data).encode())
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
            os.fsync(directory)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=directory)
            raise
        finally:
            os.close(directory)

    def remove(self, name: str) -> None:
        """Forget one: the next request that needs it is refused. Raises as `get`."""
        check_name(name)
        try:
            directory = self._open()
        except FileNotFoundError:
            raise _unknown(name) from None
        try:
            os.unlink(name, dir_fd=directory)
            os.fsync(directory)
        except FileNotFoundError:
            raise _unknown(name) from None
        finally:
            os.close(directory)

    def names(self) -> list[Info]:
        """All of them, by name, without their values."""
        try:
            directory = self._open()
        except FileNotFoundError:
            return []
        try:
            found = []
            for name in sorted(os.listdir(directory)):
                if not name.startswith("."):  # a write that was killed
                    one = _read(directory, name)
                    found.append(Info(name, one.kind, one.user, one.header, one.created_ns))
            return found
        finally:
            os.close(directory)

    def _owner(self) -> tuple[int, int]:
        """Uid and gid of the state directory, which has to be ours, or we root."""
        about = self._directory.parent.stat(follow_symlinks=False)
        if os.geteuid() not in (0, about.st_uid):
            raise SandboxError("the state directory is somebody else's", rule="credentials.mode")
        return about.st_uid, about.st_gid

    def _open(self) -> int:
        """Step 1 for the directory."""
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _ours(os.fstat(fd), "the directory of the credentials", self._owner()[0])
        except BaseException:
            os.close(fd)
            raise
        return fd


def check_name(name: str) -> None:
    """Raises InvalidError, rule ``credentials.name``."""
    if not name or len(name) > 63 or name[0] not in _FIRST or not set(name) <= _NAME:
        raise InvalidError("a credential's name is such as github-token: a-z, 0-9, -_. inside", rule="credentials.name")
    if name == CLIENT:
        raise InvalidError("`client` means what a client sends itself", rule="credentials.name")


def _read(directory: int, name: str) -> Credential:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        raise _unknown(name) from None
    except OSError as error:
        raise SandboxError(f"credential {name}: {error.strerror}", rule="credentials.mode") from None
    try:
        about = os.fstat(fd)
        _ours(about, f"credential {name}", os.fstat(directory).st_uid)
        if not stat.S_ISREG(about.st_mode) or about.st_size > FILE_BYTES:
            raise SandboxError(f"credential {name} is not a small plain file", rule="credentials.mode")
        data = os.read(fd, FILE_BYTES + 1)
    finally:
        os.close(fd)
    try:
        raw = json.loads(data)
        if raw.pop("version") != 1:
            raise ValueError
        created = int(raw.pop("created_ns"))
        found = Credential.from_wire(raw)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise InvalidError(
            f"credential {name} cannot be read",
            rule="credentials.format",
            next_step=f"Set it again: `nucleus credentials set {name}`.",
        ) from None
    return Credential(found.kind, found.value, found.user, found.header, created)


def _ours(about: os.stat_result, what: str, owner: int) -> None:
    if about.st_uid != owner or stat.S_IMODE(about.st_mode) & 0o077:
        raise SandboxError(
            f"{what} can be read or changed by others", rule="credentials.mode", next_step="Make it 0700 (files 0600)."
        )


def _unknown(name: str) -> InvalidError:
    return InvalidError(
        f"there is no credential {name}",
        rule="credentials.unknown",
        next_step=f"Set it on the host: `nucleus credentials set {name}`.",
    )


def _plain(text: str) -> bool:
    return len(text) <= 256 and text.isascii() and (text.isprintable() or not text)
