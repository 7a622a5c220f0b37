"""Reservations: the ledger against a bare SQLite writer that syncs as often, and how long one of them waits.

    python -m bench.ledger [--scale quick] [--laps N] [--postgres URL]

1. a turn of 64 reservations, each with its nonce, committed durably   against   64 bare inserts and 64 bare updates of
   the same rows, committed durably
2. a turn of 64 reservations, as the authority takes them from 64 clients at once: how long the last of them waits

Interleaved, in one run. With --postgres the same ledger there, too (a schema of its own: …&schema=bench).
"""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

from bench.measure import Group, Scale, Suite, arguments, chosen, run, single, text_table
from nucleus.approval.token import nonce_digest
from nucleus.store.engine import Engine, Sqlite
from nucleus.store.ledger import Ledger

CLIENTS = 64


class Ours:
    """A ledger with one pod and room for everything."""

    def __init__(self, engine: Engine) -> None:
        self.ledger = Ledger("", engine)
        self.ledger.load()
        self.name = f"b{os.urandom(6).hex()}"
        self.ledger.begin(durable=True)
        self.ledger.register(self.name, "default", 1)
        self.ledger.open_budget(self.ledger.pods[self.name], 2**53, 0)
        self.ledger.commit()

    def ask(self) -> list[bytes]:
        """Approved nonces, outside of what is measured."""
        self.ledger.begin(durable=False)
        nonces = [os.urandom(32) for _ in range(CLIENTS)]
        for nonce in nonces:
            request = os.urandom(16).hex()
            row = {"pod": self.name, "principal": "p", "operation_hash": "h", "asked_ns": 1, "expires_ns": 2}
            self.ledger.ask(request, nonce, row)
            self.ledger.resolve_ask(request, "approved")
        self.ledger.commit()
        return nonces

    def turn(self, nonces: list[bytes] | None) -> float:
        """Seconds until 64 reservations are committed; durable where nonces burn."""
        names = [os.urandom(16).hex() for _ in range(CLIENTS)]
        started = time.perf_counter()
        self.ledger.begin(durable=nonces is not None)
        pod = self.ledger.pods[self.name]
        for number, name in enumerate(names):
            self.ledger.reserve(pod, name, 10, nonces[number] if nonces is not None else None)
        self.ledger.commit()
        return time.perf_counter() - started


class Bare:
    """The same rows by hand."""

    def __init__(self, path: str) -> None:
        self.db = sqlite3.connect(path, isolation_level=None)
        self.db.execute("PRAGMA locking_mode=EXCLUSIVE")
        self.db.execute("PRAGMA journal_mode=WAL")
        self.db.execute("PRAGMA wal_autocheckpoint=0")
        self.db.execute("PRAGMA synchronous=FULL")
        self.db.execute("CREATE TABLE r (id BLOB PRIMARY KEY, pod, amount, state, charged, logged) WITHOUT ROWID")
        self.db.execute("CREATE TABLE a (request TEXT PRIMARY KEY, nonce BLOB UNIQUE, state) WITHOUT ROWID")

    def turn(self) -> float:
        nonces = [nonce_digest(os.urandom(32)) for _ in range(CLIENTS)]
        self.db.execute("BEGIN")
        for nonce in nonces:
            self.db.execute("INSERT INTO a VALUES (?, ?, 'approved')", (os.urandom(16).hex(), nonce))
        self.db.execute("COMMIT")
        names = [os.urandom(16) for _ in range(CLIENTS)]
        started = time.perf_counter()
        self.db.execute("BEGIN IMMEDIATE")
        for name, nonce in zip(names, nonces, strict=True):
            self.db.execute("INSERT INTO r VALUES (?, 'p', 10, 0, 0, 0)", (name,))
            self.db.execute("UPDATE a SET state='burnt' WHERE nonce=?", (nonce,))
        self.db.execute("COMMIT")
        return time.perf_counter() - started


class Room:
    """The bare writer and ours, in one temporary directory; PostgreSQL's too where `url` names one."""

    def __init__(self, url: str = "") -> None:
        self._made = tempfile.TemporaryDirectory(prefix="nucleus-bench-")
        self.bare = Bare(f"{self._made.name}/bare.sqlite3")
        self.ours = {"SQLite": Ours(Sqlite(f"{self._made.name}/ledger.sqlite3"))}
        if url:
            from nucleus.store.postgres import Postgres

            self.ours["PostgreSQL"] = Ours(Postgres(url))

    def close(self) -> None:
        for one in self.ours.values():
            one.ledger.close()
        self.bare.db.close()
        self._made.cleanup()


def suite_with(url: str) -> Suite:
    """`suite`, with PostgreSQL where `url` names one."""

    @contextmanager
    def made(scale: Scale) -> Iterator[list[Group]]:
        with closing(Room(url)) as room:
            rounds = scale.pick(2, 40, 50)
            durable = [
                (f"ledger, {name}", "ours", lambda one=one: CLIENTS / one.turn(one.ask()))
                for name, one in room.ours.items()
            ]
            durable.append(("bare SQLite, same rows and syncs", "floor", lambda: CLIENTS / room.bare.turn()))
            waits = [
                (f"ledger, {name}", "ours", lambda one=one: one.turn(None) * 1e3) for name, one in room.ours.items()
            ]
            yield [
                single("reservations with nonces, durable", durable, unit="/s", less=False, rounds=rounds),
                single("64 reservations at once: the last waits", waits, rounds=rounds, headline=False),
            ]

    return made


suite = suite_with("")


def main() -> int:
    """Run it and print the table."""
    parser = arguments("bench.ledger", __doc__)
    parser.add_argument("--postgres", default="", help="the URL of one, beside SQLite")
    options = parser.parse_args()
    measured = run({"ledger": suite_with(options.postgres)}, chosen(options))
    print(json.dumps(measured, indent=1) if options.json else text_table(measured))
    return 0


if __name__ == "__main__":
    sys.exit(main())
