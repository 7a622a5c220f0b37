"""The ledger's file: which it is, whether it is whole, and how an older one becomes one of today's.

Steps of `open_file`:
 1. The first hundred bytes are read, no more: a file that is no SQLite database, or one of another program, or of a
    newer schema, is refused before anything could be written to it.
 2. Locked for this process (exclusive locking mode), then the same again through SQLite (what its WAL holds counts),
    and `quick_check` for at most `CHECK_SECONDS`: what is found broken by then is refused.
 3. An older schema is brought forward, all steps in one transaction; a new file gets all of them.

Promises: a refusal names its rule and the next step, and has overwritten nothing; there is no way back (a migrated file
is refused by an older program, by its version).
Does not: judge what the rows say (`store.check`).
"""

from __future__ import annotations

import os
import sqlite3
import time

from nucleus.errors import AuditError

APPLICATION_ID = 0x4E75636C  # "Nucl"; version 1 had none
CHECK_SECONDS = 1.0
_MAGIC = b"SQLite format 3\0"
_HEADER = 100
_TABLES_1 = {"meta", "pods", "reservations", "approvals"}
_V1 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE pods (
  pod TEXT PRIMARY KEY, namespace TEXT NOT NULL, state TEXT NOT NULL, budget INTEGER, window_ns INTEGER,
  started_ns INTEGER NOT NULL, spent INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE reservations (
  id BLOB PRIMARY KEY, pod TEXT NOT NULL, amount INTEGER NOT NULL, state INTEGER NOT NULL, charged INTEGER NOT NULL,
  logged INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE approvals (
  request TEXT PRIMARY KEY, pod TEXT NOT NULL, principal TEXT NOT NULL, operation_hash TEXT NOT NULL,
  nonce BLOB NOT NULL UNIQUE, asked_ns INTEGER NOT NULL, expires_ns INTEGER NOT NULL, state TEXT NOT NULL,
  approver TEXT NOT NULL DEFAULT '', reason TEXT NOT NULL DEFAULT '', decided_ns INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
"""
# accounts: what pods draw on together. entries: what a person did to a budget, by an id of their choice; `logged`: the
# audit log is known to have it.
_V2 = """
ALTER TABLE pods ADD COLUMN account TEXT NOT NULL DEFAULT '';
ALTER TABLE pods ADD COLUMN granted INTEGER NOT NULL DEFAULT 0;
CREATE TABLE accounts (
  name TEXT PRIMARY KEY, budget INTEGER NOT NULL, spent INTEGER NOT NULL DEFAULT 0, window_ns INTEGER NOT NULL,
  since_ns INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE entries (
  id TEXT PRIMARY KEY, number INTEGER NOT NULL UNIQUE, time_ns INTEGER NOT NULL, change TEXT NOT NULL,
  account TEXT NOT NULL, pod TEXT NOT NULL, amount INTEGER NOT NULL, charged INTEGER NOT NULL,
  window_ns INTEGER NOT NULL, who TEXT NOT NULL, reason TEXT NOT NULL, logged INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX entries_unlogged ON entries (logged) WHERE logged = 0;
"""
MIGRATIONS = (_V1, _V2)  # the n-th leads from version n to n + 1; never changed once released
SCHEMA_VERSION = len(MIGRATIONS)


def open_file(path: str) -> sqlite3.Connection:
    """The ledger at `path`, ready for use, its caller's to close.

    Raises:
        AuditError: rule ``ledger.foreign``, ``ledger.newer``, ``ledger.corrupt`` or ``ledger.open``.
    """
    _look(path)  # 1
    db = None
    try:
        db = sqlite3.connect(path, isolation_level=None, cached_statements=64)
        db.execute("PRAGMA locking_mode=EXCLUSIVE")  # 2
        version = inspect(db, path)
        if not quick_check(db):
            raise corrupt(path)
        for pragma in ("journal_mode=WAL", "wal_autocheckpoint=0", "secure_delete=OFF"):
            db.execute(f"PRAGMA {pragma}")
        if version < SCHEMA_VERSION:
            migrate(db, version)  # 3
        os.chmod(path, 0o600)
        return db
    except sqlite3.Error as error:
        if db is not None:
            db.close()
        if isinstance(error, sqlite3.DatabaseError) and _is_corrupt(error):
            raise corrupt(path, str(error)) from error
        raise _unusable(path, str(error)) from error
    except BaseException:
        if db is not None:
            db.close()
        raise


def _look(path: str) -> None:
    """Step 1, on the file's own bytes (the SQLite file format, section 1.3)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _unusable(path, error.strerror or "") from error
    try:
        header = os.pread(fd, _HEADER, 0)
    finally:
        os.close(fd)
    if not header:
        return  # made, and not written before the power went
    if len(header) < _HEADER or not header.startswith(_MAGIC):
        raise _foreign(path)
    _judge(path, int.from_bytes(header[60:64], "big"), int.from_bytes(header[68:72], "big"))


def inspect(db: sqlite3.Connection, path: str) -> int:
    """The version of an open file; 0 for one that is new and empty.

    Raises:
        AuditError: it is not a ledger, or one of a newer program.
    """
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (application,) = db.execute("PRAGMA application_id").fetchone()
    _judge(path, version, application)
    tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type='table'")}
    wanted = set() if version == 0 else _TABLES_1
    if not wanted <= tables or (version == 0 and tables) or (version > 1 and application != APPLICATION_ID):
        raise _foreign(path)
    return int(version)


def _judge(path: str, version: int, application: int) -> None:
    if application not in (0, APPLICATION_ID):
        raise _foreign(path)
    if version > SCHEMA_VERSION:
        raise AuditError(
            f"{path} was written by a newer nucleus: schema {version}, this one knows {SCHEMA_VERSION}",
            rule="ledger.newer",
            next_step="Run the newer nucleus, or name another state directory with NUCLEUS_STATE; nothing was changed.",
        )


def migrate(db: sqlite3.Connection, version: int) -> None:
    """Bring a store of `version` to today's in one transaction: all of it or nothing."""
    db.execute("BEGIN EXCLUSIVE")
    try:
        for step in MIGRATIONS[version:]:
            for statement in step.split(";\n"):
                if statement.strip():
                    db.execute(statement)
        db.execute(f"PRAGMA application_id={APPLICATION_ID}")
        db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def quick_check(db: sqlite3.Connection, *, seconds: float = CHECK_SECONDS) -> bool:
    """Whether nothing is found broken within `seconds`; a file that takes longer is used, as any large database is."""
    deadline = time.monotonic() + seconds
    db.set_progress_handler(lambda: int(time.monotonic() > deadline), 10_000)
    try:
        return bool(db.execute("PRAGMA quick_check(1)").fetchone() == ("ok",))
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
            raise
        return True
    finally:
        db.set_progress_handler(None, 0)


def corrupt(path: str, why: str = "") -> AuditError:
    """The refusal of a broken file."""
    return AuditError(
        f"{path} is damaged{': ' + why if why else ''}",
        rule="ledger.corrupt",
        next_step="Put a copy of `nucleus ledger backup` in its place, or move ledger.sqlite3* away: what the audit log"
        " has is put back from there. Nothing was overwritten.",
    )


def _is_corrupt(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT)


def _unusable(path: str, why: str) -> AuditError:
    step = "Look at the file's owner, its mode and the disk; nothing was overwritten."
    return AuditError(f"{path}: {why}", rule="ledger.open", next_step=step)


def _foreign(path: str) -> AuditError:
    return AuditError(
        f"{path} is not a ledger of nucleus",
        rule="ledger.foreign",
        next_step="Move it away, or name another state directory with NUCLEUS_STATE; nothing was overwritten.",
    )
