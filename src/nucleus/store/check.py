"""A copy of the ledger, looked at: whether the file is whole and its sums are what its rows say.

Promises: nothing is written; every finding is a line. Relies on: having the copy for itself.
Does not: compare with the audit log; the authority does at each start (`authority.recovery`).
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field

from nucleus.budget import names
from nucleus.store.schema import SCHEMA_VERSION, inspect

_SHOWN = 20


@dataclass(slots=True)
class Report:
    """What was found; `problems` empty: it is sound. `head`: the audit log's record that it goes up to."""

    version: int = 0
    pods: int = 0
    running: int = 0
    open_reservations: int = 0
    accounts: int = 0
    entries: int = 0
    head: int = 0
    problems: list[str] = field(default_factory=list)


def check(db: sqlite3.Connection, path: str) -> Report:
    """Look at all of it.

    Raises:
        AuditError: it is no ledger, or a newer program's.
    """
    report = Report(version=inspect(db, path))
    try:
        rows = [row[0] for row in db.execute(f"PRAGMA integrity_check({_SHOWN})")]
        report.problems += [str(row) for row in rows if row != "ok"]
        if not report.problems:
            _count(db, report)
            _sums(db, report)
            if report.version == SCHEMA_VERSION:
                _accounts(db, report)
    except sqlite3.DatabaseError as error:
        report.problems.append(str(error))
    return report


def _one(db: sqlite3.Connection, sql: str) -> int:
    return int(db.execute(sql).fetchone()[0] or 0)


def _count(db: sqlite3.Connection, report: Report) -> None:
    report.pods = _one(db, "SELECT count(*) FROM pods")
    report.running = _one(db, "SELECT count(*) FROM pods WHERE state='open'")
    report.open_reservations = _one(db, "SELECT count(*) FROM reservations WHERE state=0")
    row = db.execute("SELECT value FROM meta WHERE key='head'").fetchone()
    report.head = int(str(row[0]).split(" ")[0]) if row is not None else 0


def _sums(db: sqlite3.Connection, report: Report) -> None:
    for text, where in (
        ("reservations of no open pod", "pod NOT IN (SELECT pod FROM pods WHERE state='open')"),
        ("reservations in no known state", "state NOT IN (0, 1, 2) OR logged NOT IN (0, 1, 2)"),
        (
            "reservations charged for more than they hold",
            "charged < 0 OR charged > amount OR (state<>1 AND charged<>0)",
        ),
    ):
        if found := _one(db, f"SELECT count(*) FROM reservations WHERE {where}"):  # noqa: S608 -- our own text
            report.problems.append(f"{found} {text}")
    over = db.execute(
        "SELECT p.pod FROM pods p WHERE p.state='open' AND p.spent + (SELECT coalesce(sum(CASE state WHEN 0 THEN amount"
        " ELSE charged END), 0) FROM reservations r WHERE r.pod=p.pod) > coalesce(p.budget, 0)"
    ).fetchmany(_SHOWN)
    report.problems += [f"{pod}: more is spent and reserved than its budget" for (pod,) in over]


def _accounts(db: sqlite3.Connection, report: Report) -> None:
    report.entries = _one(db, "SELECT count(*) FROM entries")
    sums = {name: [budget, spent] for name, budget, spent in db.execute("SELECT name, budget, spent FROM accounts")}
    report.accounts = len(sums)
    for name in sums:
        if (above := names.above(name)) and above not in sums:
            report.problems.append(f"{name}: the account above it is missing")
    held = db.execute(
        "SELECT p.account, sum(r.amount) FROM reservations r JOIN pods p USING (pod)"
        " WHERE r.state=0 AND p.account<>'' GROUP BY p.account"
    ).fetchall()
    for name, amount in held:
        for level in names.levels(name):
            if level in sums:
                sums[level][1] += amount
    report.problems += [
        f"{name}: more is spent and reserved than its limit" for name, (b, used) in sums.items() if used > b
    ]
