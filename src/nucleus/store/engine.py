"""What the ledger is kept in: an SQLite file of the state directory, or a PostgreSQL database that a URL names.

Promises, of either: a batch is one transaction; one begun `durable` is on the disk when `commit` returns, any other
survives kill -9; an error is `AuditError` (rule ``ledger.io``) and nothing of the transaction counts; there is one
writer, and a second one is refused.
Relies on: SQL that both read: ``?``, ON CONFLICT, CAST, no sums.
Does not: know what the rows mean.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator
from typing import Any, Protocol

from nucleus.errors import AuditError
from nucleus.store.schema import open_file

FILE = "ledger.sqlite3"
URL_FILE = "ledger.url"  # in the state directory: where the ledger is, when it is not the file
URL_BYTES = 4_096
SET_META = "INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value=excluded.value"


class Rows(Protocol):
    """The answer to a statement."""

    @property
    def rowcount(self) -> int:
        """Rows that were changed."""
        ...

    def fetchone(self) -> Any:
        """The next row, or None."""
        ...

    def fetchall(self) -> list[Any]:
        """All rows that are left."""
        ...

    def __iter__(self) -> Iterator[Any]: ...


class Engine(Protocol):
    """See the module. `path` is what people are told."""

    path: str

    def execute(self, sql: str, values: tuple[Any, ...] = ()) -> Rows:
        """One statement."""
        ...

    def begin(self, *, durable: bool) -> None:
        """Open the transaction."""
        ...

    def commit(self) -> None:
        """Close it; when this raises, it has to be rolled back, and whether it counts is for the database to say."""
        ...

    def rollback(self) -> None:
        """Undo it, where there is one."""
        ...

    def refresh(self) -> bool:
        """A connection that was lost is made again; whether there is one. Raises AuditError: never again."""
        ...

    def fold(self) -> None:
        """After a checkpoint: what can be tidied up is."""
        ...

    def snapshot(self) -> bytes:
        """A consistent copy, between two batches, as an SQLite file."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


def open_engine(directory: str) -> Engine:
    """The engine of a state directory.

    Raises:
        AuditError: as `store.schema.open_file` and `store.postgres.Postgres`.
    """
    url = read_url(directory)
    if url:
        from nucleus.store.postgres import Postgres  # weight: only where it is asked for

        return Postgres(url)
    return Sqlite(os.path.join(directory, FILE))


def read_url(directory: str) -> str:
    """What the state directory's `URL_FILE` says; "" where there is none.

    Raises:
        AuditError: rule ``ledger.url``: it is not a small regular file that others can neither read nor write.
    """
    path = os.path.join(directory, URL_FILE)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise _bad_file(path, error.strerror or "") from None
    with open(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_mode & 0o077 or found.st_size > URL_BYTES:
            raise _bad_file(path, f"not a file of mode 0600 and at most {URL_BYTES} bytes")
        data = file.read(URL_BYTES)
    try:
        return data.decode("ascii").strip()
    except UnicodeDecodeError:
        raise _bad_file(path, "not ASCII") from None


def _bad_file(path: str, why: str) -> AuditError:
    step = "`nucleus ledger use` writes it, from a URL on its standard input."
    return AuditError(f"{path}: {why}", rule="ledger.url", next_step=step)


class Sqlite:
    """The file, through one connection that nobody shares (exclusive locking mode).

    Raises:
        AuditError: as `store.schema.open_file`.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.db = open_file(path)
        self._durable: bool | None = None

    def execute(self, sql: str, values: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        """One statement."""
        try:
            return self.db.execute(sql, values)
        except sqlite3.Error as error:
            raise AuditError(f"the ledger cannot be written: {error}", rule="ledger.io") from error

    def begin(self, *, durable: bool) -> None:
        """Open the transaction. SQLite cannot change `synchronous` inside one, so it has to be known beforehand."""
        if self._durable is not durable:
            self.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            self._durable = durable
        self.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """Close it."""
        self.execute("COMMIT")

    def rollback(self) -> None:
        """Undo it."""
        if self.db.in_transaction:
            self.execute("ROLLBACK")

    def refresh(self) -> bool:
        """A file is there."""
        return True

    def fold(self) -> None:
        """Bring the WAL into the file."""
        self.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def snapshot(self) -> bytes:
        """By SQLite's backup."""
        copy = sqlite3.connect(":memory:")
        try:
            self.db.backup(copy)
            return bytes(copy.serialize())
        except sqlite3.Error as error:
            raise AuditError(f"the ledger cannot be read: {error}", rule="ledger.io") from error
        finally:
            copy.close()

    def close(self) -> None:
        """Close the file."""
        self.db.close()
