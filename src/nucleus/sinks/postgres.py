"""``postgresql://USER@HOST/DATABASE[?schema=nucleus_audit&…]``: a row for each record, by log and number.

The address is as for a ledger (`store.postgres`), without a password: that is the line in the file of --secret.

Promises: a batch is one transaction, committed durably; a record that is there already is not written again, and one
that is there with another hash is refused: so no record twice, none changed. A role that may INSERT and SELECT is
enough once the tables are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from nucleus.errors import AuditError, InvalidError
from nucleus.sinks.base import Entry, Later, Options, Rejected, bad_address, secret_lines
from nucleus.sinks.fields import clean, summary
from nucleus.store.postgres import Target, open_connection, read_target

SCHEMA = "nucleus_audit"
_ANSWER_BYTES = 1_048_576
_COLUMNS = ("event", "pod", "principal", "operation", "outcome", "verdict", "rule", "request", "hash")
_TABLES = (
    "CREATE SCHEMA IF NOT EXISTS {schema}",
    "CREATE TABLE IF NOT EXISTS {schema}.records (log text NOT NULL, seq bigint NOT NULL, time_ns bigint NOT NULL, "
    + ", ".join(f"{name} text NOT NULL" for name in _COLUMNS)
    + ", line text NOT NULL, PRIMARY KEY (log, seq))",
    "CREATE INDEX IF NOT EXISTS records_time ON {schema}.records (time_ns)",
    "CREATE TABLE IF NOT EXISTS {schema}.checkpoints (log text NOT NULL, size bigint NOT NULL, note text NOT NULL, "
    "PRIMARY KEY (log, size))",
)
_NAMES = ("seq", "time_ns", *_COLUMNS, "line")
# One round trip for a batch: each column is an array.
_INSERT = (
    f"INSERT INTO {{schema}}.records (log, {', '.join(_NAMES)}) SELECT :log, * FROM unnest("  # noqa: S608 - our own
    + ", ".join(f"CAST(:{name} AS {'bigint' if name in ('seq', 'time_ns') else 'text'}[])" for name in _NAMES)
    + ") ON CONFLICT DO NOTHING"
)
_SAME = (
    "SELECT count(*) FROM {schema}.records r JOIN unnest(CAST(:seq AS bigint[]), CAST(:line AS text[])) AS u(seq, line)"
    " ON r.seq = u.seq AND r.line = u.line WHERE r.log = :log"
)
_PIN = "INSERT INTO {schema}.checkpoints (log, size, note) VALUES (:log, :size, :note) ON CONFLICT DO NOTHING"
_LATER_CLASSES = ("08", "40", "53", "57", "58", "25006")  # connection, rollback, resources, going away, system, standby


class Table:
    """See the module. Raises InvalidError."""

    batch = 1_000

    def __init__(self, url: str, options: Options) -> None:
        if options.roots:
            raise bad_address("its certificates are named in the address: sslrootcert=FILE")
        secret = secret_lines(options.secret)
        if len(secret) > 1:
            raise InvalidError(f"{options.secret}: one line is wanted, the password", rule="ship.secret")
        try:
            target = read_target(url, SCHEMA)
        except AuditError as error:
            raise bad_address(error.message.partition(": ")[2]) from None
        self._target: Target = target._replace(password=secret[0] if secret else "")
        self._db: Any = None

    def deliver(self, origin: str, entries: Sequence[Entry]) -> None:
        """See `Sink`."""
        columns: dict[str, list[Any]] = {name: [] for name in _NAMES}
        for entry in entries:
            fields = summary(entry.record)
            columns["seq"].append(entry.seq)
            columns["time_ns"].append(entry.record["time_ns"])
            columns["line"].append(entry.line.removesuffix(b"\n").decode("ascii"))
            for name in _COLUMNS:
                columns[name].append(clean(fields[name]))
        lines = {"seq": columns["seq"], "line": columns["line"]}
        same = self._transaction([(_INSERT, {"log": origin, **columns}), (_SAME, {"log": origin, **lines})])
        if same[0][0] != len(entries):
            self._run("ROLLBACK")
            raise Rejected(f"{self._target.shown()} has other records where these belong")
        self._run("COMMIT")

    def pin(self, origin: str, size: int, note: str) -> None:
        """See `Sink`."""
        self._transaction([(_PIN, {"log": origin, "size": size, "note": note})])
        self._run("COMMIT")

    def close(self) -> None:
        """See `Sink`."""
        db, self._db = self._db, None
        if db is not None:
            with suppress(Exception):
                db.close()

    def _transaction(self, statements: list[tuple[str, dict[str, Any]]]) -> Any:
        """Open one and run these; the last one's rows."""
        self._connect()
        self._run("BEGIN; SET LOCAL synchronous_commit TO ON")
        rows: Any = None
        for sql, values in statements:
            rows = self._run(sql.format(schema=self._target.schema), **values)
        return rows

    def _connect(self) -> None:
        if self._db is not None:
            return
        try:
            self._db = open_connection(self._target, _ANSWER_BYTES)
        except AuditError as error:
            raise Later(error.message) from None
        self._run("SET statement_timeout=10000; SET client_min_messages=warning")
        found = self._run("SELECT to_regclass(:name) IS NOT NULL", name=f"{self._target.schema}.checkpoints")
        if not found[0][0]:
            for sql in _TABLES:
                self._run(sql.format(schema=self._target.schema))

    def _run(self, sql: str, **values: Any) -> Any:
        from pg8000.native import DatabaseError, Error

        from nucleus.store.postgres_guard import BROKEN

        try:
            return self._db.run(sql, **values)
        except DatabaseError as error:
            self.close()
            facts = error.args[0] if error.args and isinstance(error.args[0], dict) else {}
            code, said = str(facts.get("C", "")), str(facts.get("M", "refused"))
            kind = Later if code.startswith(_LATER_CLASSES) else Rejected
            raise kind(f"{self._target.shown()}: {said} ({code})") from None
        except (Error, *BROKEN) as error:
            self.close()
            raise Later(f"{self._target.shown()}: {type(error).__name__}") from None
        except BaseException:
            self.close()
            raise
