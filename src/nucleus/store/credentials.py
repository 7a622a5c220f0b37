"""The host's credentials: one file each in the state directory, read for a gateway at the moment that it needs one.

 1. The directory is 0700 and a file 0600, plain and small, both of the state directory's owner (ours; the authority's
    where we are root); anything else is refused, never mended.
 2. A file is replaced as a whole (temporary, fsync, rename, fsync of the directory): who reads has the old or the new.
 3. A value is one line of 6 to 8,192 bytes without control characters: it is going to be a header. A key has several.

Promises: no value in a repr, a pickle, an error (nor its cause), a log line or an argument; `names` reads none out.
Relies on: the state directory being the person's own (root's, or hers). Does not: encrypt: who can read this directory
is the person. A write that was killed leaves its temporary, which no name reads, until the credential is removed.
"""

from __future__ import annotations

import base64
import json
import os
import re
import stat
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nucleus.errors import InvalidError, SandboxError

KINDS = ("bearer", "basic", "header", "key", "ssh")
CLIENT = "client"  # in a rule it means: what the client sends
FILE_BYTES = 20_480  # the longest value, each byte of it escaped, and what describes it
LEAST, MOST = 6, 8_192  # bytes of a value: a shorter one could not be kept out of answers
_FIRST = frozenset("abcdefghijklmnopqrstuvwxyz")
_NAME = _FIRST | frozenset("0123456789_.-")
_TOKEN = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
_HOPS = frozenset((
    "connection", "content-length", "expect", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade",
))  # fmt: skip
_TEMPORARY = re.compile(r"\.(.+)\.[0-9]+\.[0-9]+\Z")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


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
        if (self.kind == "header") != bool(self.header) or not _header(self.header):
            raise InvalidError(
                "`header`, and it alone, names a header (none of the connection's)", rule="credentials.header"
            )

    def __reduce__(self) -> str:
        raise TypeError("a credential is not pickled or copied")

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
            SandboxError: rule ``credentials.mode``: somebody else could read or have written it, or we cannot.
        """
        check_name(name)
        try:
            directory = self._open()
        except FileNotFoundError:
            raise _unknown(name) from None
        try:
            found = _read(directory, name)
        finally:
            os.close(directory)
        if found is None:
            raise _unknown(name)
        return found

    def set(self, name: str, credential: Credential) -> None:
        """Keep one, in place of what had the name.

        Raises:
            InvalidError, SandboxError: as `get`; rule ``credentials.write``: a full disk, say. The old one is kept.
        """
        check_name(name)
        try:
            with suppress(FileExistsError):
                self._directory.mkdir(0o700)
            self._adopt()
            directory = self._open()
            try:
                self._replace(directory, name, credential)
            finally:
                os.close(directory)
        except OSError as error:
            raise SandboxError(
                f"credential {name} was not written: {error.strerror}", rule="credentials.write"
            ) from None

    def remove(self, name: str) -> None:
        """Forget one, and what killed writes left of it: the next request that needs it is refused. Raises as `set`."""
        check_name(name)
        try:
            directory = self._open()
        except FileNotFoundError:
            raise _unknown(name) from None
        try:
            for left in os.listdir(directory):
                if (found := _TEMPORARY.match(left)) and found[1] == name:
                    with suppress(FileNotFoundError):
                        os.unlink(left, dir_fd=directory)
            os.unlink(name, dir_fd=directory)
            os.fsync(directory)
        except FileNotFoundError:
            raise _unknown(name) from None
        except OSError as error:
            raise SandboxError(
                f"credential {name} was not removed: {error.strerror}", rule="credentials.write"
            ) from None
        finally:
            os.close(directory)

    def names(self) -> list[Info]:
        """All of them, by name, without their values; what could have no credential's name is passed over."""
        try:
            directory = self._open()
        except FileNotFoundError:
            return []
        try:
            found = []
            for name in sorted(os.listdir(directory)):
                if _is_name(name) and (one := _read(directory, name)) is not None:
                    found.append(Info(name, one.kind, one.user, one.header, one.created_ns))
            return found
        finally:
            os.close(directory)

    def _replace(self, directory: int, name: str, credential: Credential) -> None:
        """Step 2."""
        left = json.dumps({"version": 1, "created_ns": time.time_ns(), **credential.to_wire()}).encode()
        temporary = f".{name}.{os.getpid()}.{time.monotonic_ns()}"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)
        try:
            try:
                os.fchmod(fd, 0o600)  # whatever the umask
                if os.geteuid() == 0:
                    os.fchown(fd, *self._owner())
                while left:  # a disk with little room left takes a part
                    left = left[os.write(fd, left) :]
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
            os.fsync(directory)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=directory)
            raise

    def _adopt(self) -> None:
        """As root: a directory that root just made, closed and empty, is given to the state directory's owner."""
        if os.geteuid() != 0:
            return
        try:
            fd = os.open(self._directory, _DIRECTORY)
        except OSError:
            return  # `_open` says what it is
        try:
            about = os.fstat(fd)
            if about.st_uid == 0 and not about.st_mode & 0o077 and not os.listdir(fd):
                os.fchown(fd, *self._owner())
        finally:
            os.close(fd)

    def _owner(self) -> tuple[int, int]:
        """Uid and gid of the state directory, which has to be ours, or we root."""
        about = self._directory.parent.stat(follow_symlinks=False)
        if os.geteuid() not in (0, about.st_uid):
            raise SandboxError("the state directory is somebody else's", rule="credentials.mode")
        return about.st_uid, about.st_gid

    def _open(self) -> int:
        """Step 1 for the directory. Raises FileNotFoundError: there is none yet."""
        try:
            fd = os.open(self._directory, _DIRECTORY)
        except FileNotFoundError:
            raise
        except OSError as error:  # a symlink, a file, another's
            raise SandboxError(f"the directory of the credentials: {error.strerror}", rule="credentials.mode") from None
        try:
            _ours(os.fstat(fd), "the directory of the credentials", self._owner()[0])
        except BaseException:
            os.close(fd)
            raise
        return fd


def check_name(name: str) -> None:
    """Raises InvalidError, rule ``credentials.name``."""
    if name != CLIENT and not _is_name(name):
        raise InvalidError("a credential's name is such as github-token: a-z, 0-9, -_. inside", rule="credentials.name")
    if name == CLIENT:
        raise InvalidError("`client` means what a client sends itself", rule="credentials.name")


def _is_name(name: str) -> bool:
    return 0 < len(name) < 64 and name[0] in _FIRST and set(name) <= _NAME and name != CLIENT


def _read(directory: int, name: str) -> Credential | None:
    """None: there is none of this name."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return None
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
    if (found := _parsed(data)) is None:
        raise InvalidError(
            f"credential {name} cannot be read",
            rule="credentials.format",
            next_step=f"Set it again: `nucleus credentials set {name}`.",
        )
    return found


def _parsed(data: bytes) -> Credential | None:
    """None for what `set` did not write. No exception leaves here: a JSON error's context would hold the text."""
    try:
        raw = json.loads(data.decode("ascii"), object_pairs_hook=_unique)
        version, created = raw.pop("version"), raw.pop("created_ns")
        if (type(version), type(created), version) != (int, int, 1) or created < 0:
            return None
        made = Credential.from_wire(raw)
        return Credential(made.kind, made.value, made.user, made.header, created)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, InvalidError):
        return None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError
    return found


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


def _header(name: str) -> bool:
    lower = name.lower()
    return _plain(name) and set(lower) <= _TOKEN and lower not in _HOPS  # plain first: the Kelvin sign's lower is k


def _plain(text: str) -> bool:
    return len(text) <= 256 and text.isascii() and (text.isprintable() or not text)
