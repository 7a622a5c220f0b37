"""The ledger in PostgreSQL, in a schema of its own.

Steps of a connection:
 1. The URL is read; one that would send rows or a password over a network without verified TLS is refused.
 2. Connected and authenticated within `CONNECT_S`; every statement has a deadline at the server, and each wait for the
    server one here, after which the connection is not used again.
 3. An advisory lock of the server, held as long as the connection, makes this the one writer; a second one is refused.
 4. The schema is made, or looked at: another program's, or a newer one's, is refused before anything is written; an
    older one is brought forward in one transaction, by the same steps as the file's (`store.schema`).
 5. A mark of this process is kept. A connection that was lost is made again with steps 2 to 4, and only while the mark
    is still there: whoever took the ledger over meanwhile has changed it, and this process never writes again.

Promises: `store.engine`'s. A commit of which no answer came is reported as failed: the ledger reads what counts.
Durable commits wait for `synchronous_commit`, whatever the server's default; the others may be lost by a crash of the
server (not of ours), and never out of order.
Relies on: pg8000 for the protocol; the server's own durability (`fsync`, `full_page_writes` on: looked at).
Does not: let two authorities share one schema.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

from nucleus.errors import AuditError
from nucleus.store.engine import SET_META
from nucleus.store.schema import MIGRATIONS, SCHEMA_VERSION, migrate

CONNECT_S = 5.0
STATEMENT_MS = 10_000
ANSWER_BYTES = 1 << 30  # a ledger's own rows
REPLY_S = 15.0  # more than the server's own deadline
RETRY_S = 1.0  # between two attempts to connect again
LOCK_S = 2.0  # how long to wait for an authority that is just ending
TABLES = ("meta", "pods", "reservations", "approvals", "accounts", "entries")
_LOCAL = ("localhost", "127.0.0.1", "::1")
_MARK = "owner"
_VERSION = "schema_version"
_OPTIONS = ("host", "port", "user", "schema", "sslmode", "sslrootcert", "sslcert", "sslkey")


class Target(NamedTuple):
    """Where a URL leads. `password` and `key` are in no repr of ours."""

    host: str  # a name, an address, or the directory of a unix socket
    port: int
    database: str
    user: str
    password: str
    schema: str
    verified: bool  # by TLS
    roots: str
    certificate: str
    key: str

    def __repr__(self) -> str:
        return self.shown()

    def shown(self) -> str:
        """For people, without secrets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"postgresql://{self.user}@{host}:{self.port}/{self.database}, schema {self.schema}"


def read_target(url: str, schema: str = "nucleus") -> Target:
    """Step 1.

    ``postgresql://USER[:PASSWORD]@HOST[:PORT]/DATABASE[?schema=nucleus&sslmode=verify-full&sslrootcert=FILE…]``; a unix
    socket by ``host=/DIRECTORY`` among the options, as libpq has it.

    Raises:
        AuditError: rule ``ledger.url``.
    """
    try:
        parts = urlsplit(url)
        port, host, user, password = parts.port, parts.hostname or "", parts.username or "", parts.password or ""
        options = {key: value[-1] for key, value in parse_qs(parts.query, strict_parsing=bool(parts.query)).items()}
    except ValueError:
        raise bad_url("it cannot be read") from None
    if parts.scheme not in ("postgresql", "postgres") or parts.fragment:
        raise bad_url("it is not postgresql://user@host/database")
    if unknown := set(options) - set(_OPTIONS):
        raise bad_url(f"unknown option {min(unknown)[:40]!r}")
    host = options.get("host", host) or "localhost"
    given_port = options.get("port", str(5432 if port is None else port))
    user = options.get("user", unquote(user))
    database = unquote(parts.path.removeprefix("/"))
    schema = options.get("schema", schema)
    if not user or not database or "/" in database:
        raise bad_url("it names no user or no database")
    if not given_port.isdecimal() or not 0 < int(given_port) < 65_536:
        raise bad_url("its port is no number")
    if not (schema.isascii() and schema.replace("_", "").isalnum() and schema == schema.lower() and len(schema) <= 40):
        raise bad_url("a schema is at most 40 of a-z, 0-9 and _")
    local = host.startswith("/") or host in _LOCAL
    mode = options.get("sslmode", "disable" if local else "verify-full")
    if mode not in ("verify-full", "disable") or (mode == "disable" and not local):
        raise bad_url("over a network it needs sslmode=verify-full")
    return Target(
        host, int(given_port), database, user, unquote(password), schema, mode == "verify-full",
        options.get("sslrootcert", ""), options.get("sslcert", ""), options.get("sslkey", ""),
    )  # fmt: skip


def bad_url(why: str) -> AuditError:
    """The refusal of a URL; nothing of it is repeated, for it may hold a password."""
    step = "Write it again: `nucleus ledger use`, the URL on its standard input."
    return AuditError(f"the ledger's URL: {why}", rule="ledger.url", next_step=step)


class _Rows:
    """An answer that has come in whole."""

    __slots__ = ("_rows", "rowcount")

    def __init__(self, rows: list[Any] | None, count: int) -> None:
        self._rows = iter(rows or ())
        self.rowcount = count

    def fetchone(self) -> Any:
        row = next(self._rows, None)
        return None if row is None else tuple(row)

    def fetchall(self) -> list[Any]:
        return [tuple(row) for row in self._rows]

    def __iter__(self) -> Iterator[Any]:
        return map(tuple, self._rows)


class _Connection(Protocol):
    """What is used of `pg8000.native.Connection`."""

    row_count: int

    def run(self, sql: str) -> list[Any] | None: ...
    def prepare(self, sql: str) -> Any: ...
    def close(self) -> None: ...


class Postgres:
    """See the module.

    Raises:
        AuditError: rules ``ledger.url``, ``ledger.connect``, ``ledger.server``, ``store.locked``, ``ledger.foreign``,
            ``ledger.newer``.
    """

    def __init__(self, url: str) -> None:
        self._target = read_target(url)
        self.path = self._target.shown()
        self._db: _Connection | None = None
        self._statements: dict[str, Any] = {}
        self._inside = self._failed = False
        self._tried = 0.0
        self._mark = os.urandom(16).hex()
        self._connect()
        with self._transaction():
            self.execute(SET_META, (_MARK, self._mark))  # 5

    # The engine

    def execute(self, sql: str, values: tuple[Any, ...] = ()) -> _Rows:
        """One statement, prepared once on each connection."""
        from pg8000.native import DatabaseError, Error

        from nucleus.store.postgres_guard import BROKEN

        db = self._alive()
        try:
            if not values:
                return _Rows(db.run(sql), db.row_count)
            statement = self._statements.get(sql)
            if statement is None:
                statement = self._statements[sql] = db.prepare(_named(sql))
            rows = statement.run(**{f"p{number}": value for number, value in enumerate(values)})
            return _Rows(rows, statement._context.row_count)
        except DatabaseError as error:
            self._failed = True
            facts = error.args[0] if error.args and isinstance(error.args[0], dict) else {}
            if str(facts.get("C", "")).startswith(("57P", "08")):  # the server is going away
                self._lose()
            raise _refused(facts) from None
        except (Error, *BROKEN) as error:
            # In the middle of an answer, perhaps: what comes next on this connection could be an answer to something
            # else.
            self._lose()
            raise AuditError(f"the ledger's database is gone: {type(error).__name__}", rule="ledger.io") from None

    def begin(self, *, durable: bool) -> None:
        """Open the transaction."""
        self._failed = False
        self.execute(f"BEGIN; SET LOCAL synchronous_commit TO {'ON' if durable else 'OFF'}")
        self._inside = True

    def commit(self) -> None:
        """Close it. PostgreSQL answers a COMMIT of a failed transaction by undoing it, and calls that no error."""
        if self._failed or not self._inside:
            raise AuditError("the ledger's transaction failed", rule="ledger.io")
        self.execute("COMMIT")
        self._inside = False

    def rollback(self) -> None:
        """Undo it; a connection that is gone has done so by itself."""
        inside, self._inside = self._inside, False
        if inside and self._db is not None:
            self.execute("ROLLBACK")

    def refresh(self) -> bool:
        """Step 5: at most one attempt in `RETRY_S`."""
        if self._db is not None:
            return True
        if time.monotonic() - self._tried < RETRY_S:
            return False
        try:
            self._connect()
            row = self.execute("SELECT value FROM meta WHERE key=?", (_MARK,)).fetchone()
        except AuditError as error:
            self._lose()
            if error.rule in ("ledger.foreign", "ledger.newer"):
                raise
            return False
        if row != (self._mark,):
            self._lose()
            raise AuditError("another authority has taken the ledger over", rule="store.locked")
        return True

    def fold(self) -> None:
        """The server does."""

    def snapshot(self) -> bytes:
        """Its rows as an SQLite file: what `nucleus ledger check` reads, and what a ledger can be put back from."""
        copy = sqlite3.connect(":memory:", isolation_level=None)
        try:
            migrate(copy, 0)
            self.begin(durable=False)
            try:
                self.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
                for table in TABLES:
                    names = [name for _, name, *_ in copy.execute(f"PRAGMA table_info({table})")]
                    rows = self.execute(f"SELECT {', '.join(names)} FROM {table}").fetchall()  # noqa: S608 - our own
                    places = ", ".join("?" * len(names))
                    copy.executemany(f"INSERT INTO {table} ({', '.join(names)}) VALUES ({places})", rows)  # noqa: S608
            finally:
                self.rollback()
            copy.execute("DELETE FROM meta WHERE key IN (?, ?)", (_MARK, _VERSION))
            return bytes(copy.serialize())
        except sqlite3.Error as error:
            raise AuditError(f"the ledger cannot be copied: {error}", rule="ledger.io") from error
        finally:
            copy.close()

    def close(self) -> None:
        """Let the connection, and the lock with it, go."""
        self._lose()

    # The connection

    def _alive(self) -> _Connection:
        if self._db is None:
            raise AuditError("the ledger's database cannot be reached", rule="ledger.io")
        return self._db

    def _lose(self) -> None:
        db, self._db = self._db, None
        self._statements.clear()
        self._inside = False
        if db is not None:
            with suppress(Exception):
                db.close()

    def _connect(self) -> None:
        self._tried = time.monotonic()
        self._db = open_connection(self._target)  # 2
        try:
            self.execute(
                f"SET statement_timeout={STATEMENT_MS}; SET lock_timeout={STATEMENT_MS};"
                f"SET idle_in_transaction_session_timeout={6 * STATEMENT_MS};"
                "SET tcp_keepalives_idle=10; SET tcp_keepalives_interval=5; SET tcp_keepalives_count=3;"
                "SET client_min_messages=warning; SET default_transaction_isolation='read committed'"
            )
            for setting in ("fsync", "full_page_writes"):
                if self.execute(f"SHOW {setting}").fetchone() != ("on",):
                    step = f"Set {setting} = on in postgresql.conf; a ledger must survive a power cut."
                    raise AuditError(f"the server runs with {setting} off", rule="ledger.server", next_step=step)
            self._lock()  # 3
            self._schema()  # 4
        except BaseException:
            self._lose()
            raise

    def _lock(self) -> None:
        deadline = time.monotonic() + LOCK_S
        name = f"nucleus ledger {self._target.database} {self._target.schema}"
        while self.execute("SELECT pg_try_advisory_lock(hashtextextended(?, 0))", (name,)).fetchone() != (True,):
            if time.monotonic() > deadline:
                raise AuditError(
                    f"another authority uses {self.path}",
                    rule="store.locked",
                    next_step="Stop that one, or give this one a schema of its own (…?schema=NAME).",
                )
            time.sleep(0.05)

    def _schema(self) -> None:
        name = self._target.schema
        tables = {row[0] for row in self.execute("SELECT tablename FROM pg_tables WHERE schemaname=?", (name,))}
        if tables and not set(TABLES[:4]) <= tables:
            raise _foreign(self.path)
        if not tables:
            with self._transaction():
                self.execute(f"CREATE SCHEMA IF NOT EXISTS {name}")
        self.execute(f"SET search_path TO {name}")
        version = 0
        if tables:
            row = self.execute("SELECT value FROM meta WHERE key=?", (_VERSION,)).fetchone()
            if row is None or not str(row[0]).isdecimal():
                raise _foreign(self.path)
            version = int(row[0])
        if version > SCHEMA_VERSION:
            raise AuditError(
                f"{self.path} was written by a newer nucleus: schema {version}, this one knows {SCHEMA_VERSION}",
                rule="ledger.newer",
                next_step="Run the newer nucleus, or name another schema (…?schema=NAME); nothing was changed.",
            )
        if version < SCHEMA_VERSION:
            with self._transaction():
                for step in MIGRATIONS[version:]:
                    self.execute(_ddl(step))
                self.execute(SET_META, (_VERSION, str(SCHEMA_VERSION)))

    def _transaction(self) -> _Transaction:
        return _Transaction(self)


class _Transaction:
    """A durable transaction as a ``with`` block."""

    def __init__(self, engine: Postgres) -> None:
        self._engine = engine

    def __enter__(self) -> None:
        self._engine.begin(durable=True)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._engine.commit()
        else:
            with suppress(AuditError):
                self._engine.rollback()


def open_connection(target: Target, most: int = ANSWER_BYTES) -> _Connection:
    """Step 2, without a schema or a lock. `most`: bytes of an answer. Raises AuditError: rule ``ledger.connect``."""
    try:
        from pg8000.native import DatabaseError, Error

        from nucleus.store.postgres_guard import BROKEN, Guarded
    except ImportError:
        step = "`pip install 'nucleus[postgres]'`."
        raise AuditError("pg8000 is not installed", rule="ledger.connect", next_step=step) from None
    where: dict[str, Any] = {"host": target.host, "port": target.port}
    if target.host.startswith("/"):
        where = {"unix_sock": f"{target.host}/.s.PGSQL.{target.port}"}
    elif target.verified:
        where["ssl_context"] = _context(target)
    try:
        db: Any = Guarded(
            target.user, secret=bool(target.password) and not target.verified, most=most, database=target.database,
            password=target.password or None, timeout=CONNECT_S, application_name="nucleus", **where,
        )  # fmt: skip
        db._usock.settimeout(REPLY_S)
        found: _Connection = db
        return found
    except (Error, *BROKEN) as error:
        # After a refusal pg8000 says good-bye, to a server that has hung up: that error hides the first one.
        first: BaseException = error
        while not isinstance(first, DatabaseError) and first.__context__ is not None:
            first = first.__context__
        facts = first.args[0] if isinstance(first, DatabaseError) and first.args else None
        if isinstance(facts, dict):
            why = f"{facts.get('M', 'refused')} ({facts.get('C', '?')})"
        else:
            said = str(error.__cause__ or "") or (str(error) if isinstance(error, Error) else "")
            why = getattr(error, "strerror", None) or said or type(error).__name__
    step = "Look at the server, and at `nucleus ledger use` for what the URL has."
    raise AuditError(f"{target.shown()}: {why}", rule="ledger.connect", next_step=step)


def _context(target: Target) -> Any:
    import ssl

    try:
        context = ssl.create_default_context(cafile=target.roots or None)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        if target.certificate:
            context.load_cert_chain(target.certificate, target.key or None)
        return context
    except (OSError, ValueError) as error:
        raise bad_url(f"its certificates cannot be read ({type(error).__name__})") from None


def _named(sql: str) -> str:
    """``?`` as pg8000 has it: none of our statements has one that is no place for a value."""
    first, *rest = sql.split("?")
    return first + "".join(f":p{number}{part}" for number, part in enumerate(rest))


def _ddl(step: str) -> str:
    """A step of the file's migrations as PostgreSQL has it."""
    for ours, theirs in (
        ("WITHOUT ROWID", ""),
        ("INTEGER", "BIGINT"),
        ("BLOB", "BYTEA"),
        ("KEY, value)", "KEY, value TEXT)"),
    ):
        step = step.replace(ours, theirs)
    return step


def _refused(facts: dict[str, str]) -> AuditError:
    return AuditError(
        f"the ledger cannot be written: {facts.get('M', 'refused')} ({facts.get('C', '?')})", rule="ledger.io"
    )


def _foreign(path: str) -> AuditError:
    return AuditError(
        f"{path} is not a ledger of nucleus",
        rule="ledger.foreign",
        next_step="Name another schema (…?schema=NAME); nothing was overwritten.",
    )
