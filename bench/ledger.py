"""Reservations: the ledger against a bare SQLite writer that syncs as often, and how long one of them waits.

    python -m bench.ledger [--rounds N] [--postgres URL]

1. a turn of 64 reservations, each with its nonce, committed durably   against   64 bare inserts and 64 bare updates of
   the same rows, committed durably
2. a turn of 64 reservations, as the authority takes them from 64 clients at once: how long the last of them waits

Interleaved, in one run. With --postgres the same ledger there, too (a schema of its own: …&schema=bench).
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import statistics
import sys
import tempfile
import time

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


def main() -> int:
    """Run it and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--postgres", default="")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nucleus-bench-") as made:
        bare = Bare(f"{made}/bare.sqlite3")
        ours = {"SQLite": Ours(Sqlite(f"{made}/ledger.sqlite3"))}
        if options.postgres:
            from nucleus.store.postgres import Postgres

            ours["PostgreSQL"] = Ours(Postgres(options.postgres))
        floor: list[float] = []
        burnt: dict[str, list[float]] = {name: [] for name in ours}
        plain: dict[str, list[float]] = {name: [] for name in ours}
        for number in range(options.rounds + 5):
            kept = number >= 5
            value = bare.turn()
            floor += [value] * kept
            for name, one in ours.items():
                values = one.turn(one.ask()), one.turn(None)
                if kept:
                    burnt[name].append(values[0])
                    plain[name].append(values[1])
        each = CLIENTS / statistics.median(floor)
        print(f"bare SQLite writer: {each:9.0f} reservations with nonces per second, durable")
        for name in ours:
            rate = CLIENTS / statistics.median(burnt[name])
            waits = sorted(plain[name])
            print(
                f"{name + ':':<19} {rate:9.0f} ({100 * rate / each:.0f} %); without nonces, 64 at once:"
                f" p50 {1e3 * statistics.median(waits):.1f} ms, p99 {1e3 * waits[int(len(waits) * 0.99)]:.1f} ms"
            )
        for one in ours.values():
            one.ledger.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
