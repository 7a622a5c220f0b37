"""What a place that copies of the log go to has to offer, and what it may answer.

Promises: `opened` refuses an address that has a secret in it, or that would carry records readable over a network.
Does not: read the log, or know what was delivered before (`nucleus.cli.audit_ship` does).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol
from urllib.parse import SplitResult, parse_qs, urlsplit

from nucleus.errors import InvalidError

SECRET_BYTES = 8_192
LOOPBACK = ("localhost", "127.0.0.1", "::1")
REASON_CHARS = 300


class Entry(NamedTuple):
    """A record: its number, its stored bytes with the LF, and what they say."""

    seq: int
    line: bytes
    record: dict[str, Any]


class Later(Exception):
    """It is not delivered; the same may be tried again, after `wait_s` seconds where the other side said so."""

    def __init__(self, message: str, wait_s: int = 0) -> None:
        super().__init__(message[:REASON_CHARS])
        self.wait_s = wait_s


class Rejected(Exception):
    """It is not delivered, and trying again changes nothing."""

    def __init__(self, message: str) -> None:
        super().__init__(message[:REASON_CHARS])


class Sink(Protocol):
    """One place. A call that raises leaves it usable: the next one connects anew."""

    batch: int  # records that are best sent at a time

    def deliver(self, origin: str, entries: Sequence[Entry]) -> None:
        """Hand over consecutive records; on return the other side has acknowledged all of them.

        The same ones may come again, in the same batch.

        Args:
            origin: the log's name, as in its checkpoints.

        Raises:
            Later, Rejected.
        """

    def pin(self, origin: str, size: int, note: str) -> None:
        """Hand over a signed checkpoint of so many records, all of them delivered before. Raises as `deliver`."""

    def close(self) -> None:
        """Let go of the connection."""


class Options(NamedTuple):
    """What goes with an address.

    Args:
        secret: a file of mode 0600 with what proves who we are, "" for none; what is in it depends on the sink.
        roots: a file of certificates that the other side's must be signed by, "" for the system's.
        plaintext: records may go over a network unencrypted.
    """

    secret: str = ""
    roots: str = ""
    plaintext: bool = False


SCHEMES = (
    "file", "postgresql", "s3", "syslog+tls", "syslog+tcp", "syslog+unix", "otlp+https", "otlp+http",
)  # fmt: skip


def opened(url: str, options: Options) -> Sink:
    """The sink at an address; nothing is connected to yet.

    Raises:
        InvalidError: rule ``ship.address``: not an address of a sink; ``ship.secret``: the file cannot be used.
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise bad_address("it cannot be read") from None
    if parts.password or (parts.username and parts.scheme != "postgresql") or parts.fragment:
        raise bad_address("a secret is not for the command line: put it in a file and name that with --secret")
    match parts.scheme:
        case "file":
            from nucleus.sinks.file import File

            return File(parts, options)
        case "postgresql":
            from nucleus.sinks.postgres import Table

            return Table(url, options)
        case "s3":
            from nucleus.sinks.s3 import Bucket

            return Bucket(parts, options)
        case "syslog+tls" | "syslog+tcp" | "syslog+unix":
            from nucleus.sinks.syslog import Syslog

            return Syslog(parts, options)
        case "otlp+https" | "otlp+http":
            from nucleus.sinks.otlp import Collector

            return Collector(parts, options)
    raise bad_address(f"it begins with none of {', '.join(SCHEMES)}")


def bad_address(why: str) -> InvalidError:
    """The refusal of an address; nothing of it is repeated, for it may hold a secret."""
    return InvalidError(
        f"the address of the sink: {why}", rule="ship.address", next_step="`nucleus-audit ship --help`."
    )


def query(parts: SplitResult, known: Sequence[str]) -> dict[str, str]:
    """The options in an address, each once. Raises InvalidError."""
    try:
        found = parse_qs(parts.query, strict_parsing=bool(parts.query), max_num_fields=16)
    except ValueError:
        raise bad_address("what follows its ? cannot be read") from None
    if unknown := set(found) - set(known):
        raise bad_address(f"unknown option {min(unknown)[:40]!r}")
    if any(len(values) != 1 for values in found.values()):
        raise bad_address("an option is there twice")
    return {name: values[0] for name, values in found.items()}


def check_plaintext(host: str, options: Options) -> None:
    """Raises InvalidError: records would be readable on the way."""
    if host not in LOOPBACK and not options.plaintext:
        raise bad_address("records would go over a network unencrypted: take the TLS form, or --plaintext")


def secret_lines(path: str) -> list[str]:
    """What a file of mode 0600 says, line by line; [] for no file named.

    Raises:
        InvalidError: rule ``ship.secret``.
    """
    if not path:
        return []
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidError(f"{path}: {error.strerror}", rule="ship.secret") from None
    with open(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_mode & 0o077 or found.st_size > SECRET_BYTES:
            raise InvalidError(
                f"{path} is not a file of at most {SECRET_BYTES} bytes that is closed to others",
                rule="ship.secret",
                next_step=f"chmod 600 {path}",
            )
        data = file.read(SECRET_BYTES)
    try:
        text = data.decode("ascii")
    except UnicodeDecodeError:
        raise InvalidError(f"{path} is not ASCII", rule="ship.secret") from None
    return [line.strip() for line in text.splitlines() if line.strip()]
