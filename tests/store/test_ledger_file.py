"""The ledger's file: older ones are brought forward, others are refused and left as they are."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from nucleus.errors import AuditError
from nucleus.store import schema
from nucleus.store.check import check
from nucleus.store.ledger import Ledger

A = bytes.fromhex("aa" * 16)


def version_1(directory: Path) -> Path:
    """A store as the first version wrote it: a running pod with an open and a settled reservation, and a closed one."""
    path = directory / "ledger.sqlite3"
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.executescript(f"BEGIN;{schema.MIGRATIONS[0]}PRAGMA user_version=1;COMMIT;")
    db.execute("INSERT INTO pods VALUES ('p1', 'default', 'open', 1000, 5, 7, 0)")
    db.execute("INSERT INTO pods VALUES ('p0', 'default', 'closed', 1000, 5, 7, 123)")
    db.execute("INSERT INTO reservations VALUES (?, 'p1', 200, 0, 0, 1)", (A,))
    db.execute("INSERT INTO reservations VALUES (?, 'p1', 200, 1, 50, 2)", (A[::-1][:-1] + b"b",))
    db.execute("INSERT INTO meta VALUES ('head', '7 aa 99')")
    db.close()
    return path


def test_a_store_of_the_first_version_is_brought_forward(tmp_path: Path) -> None:
    version_1(tmp_path)
    ledger = Ledger(str(tmp_path))
    ledger.load()
    account = ledger.pods["p1"].account
    assert (account.limit, account.spent, account.reserved) == (1000, 50, 200)
    assert (ledger.pods["p1"].window_ns, ledger.pods["p1"].draws_on) == (5, "")
    assert ledger.knows("p0")
    ledger.close()
    db = sqlite3.connect(tmp_path / "ledger.sqlite3")
    assert db.execute("PRAGMA user_version").fetchone() == (schema.SCHEMA_VERSION,)
    assert db.execute("PRAGMA application_id").fetchone() == (schema.APPLICATION_ID,)
    assert check(db, "x").problems == []
    db.close()
    Ledger(str(tmp_path)).close()  # and again it is what it is


def test_a_migration_that_fails_leaves_the_old_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = version_1(tmp_path)
    steps = (schema.MIGRATIONS[0], schema.MIGRATIONS[1] + "CREATE TABLE meta (again);\n")
    monkeypatch.setattr(schema, "MIGRATIONS", steps)
    with pytest.raises(AuditError) as caught:
        Ledger(str(tmp_path))
    assert caught.value.rule == "ledger.open"
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA user_version").fetchone() == (1,)
    assert db.execute("SELECT count(*) FROM sqlite_master WHERE name='accounts'").fetchone() == (0,)
    assert "account" not in [row[1] for row in db.execute("PRAGMA table_info(pods)")]
    db.close()
    monkeypatch.undo()
    Ledger(str(tmp_path)).close()


def refused(directory: Path, rule: str) -> AuditError:
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    with pytest.raises(AuditError) as caught:
        Ledger(str(directory))
    assert caught.value.rule == rule
    assert caught.value.next_step
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
    return caught.value


def test_a_newer_store_is_refused_and_left(tmp_path: Path) -> None:
    Ledger(str(tmp_path)).close()
    db = sqlite3.connect(tmp_path / "ledger.sqlite3")
    db.execute(f"PRAGMA user_version={schema.SCHEMA_VERSION + 1}")
    db.execute("PRAGMA journal_mode=DELETE")
    db.close()
    assert "newer nucleus" in refused(tmp_path, "ledger.newer").message


@pytest.mark.parametrize("text", [b"x", b"not a database, but long enough to be looked at" * 100, b"\0" * 5000])
def test_a_foreign_file_is_refused_and_left(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "ledger.sqlite3").write_bytes(text)
    refused(tmp_path, "ledger.foreign")


@pytest.mark.parametrize("how", ["PRAGMA application_id=7", "CREATE TABLE users (name)", "PRAGMA user_version=1"])
def test_another_programs_database_is_refused_and_left(tmp_path: Path, how: str) -> None:
    db = sqlite3.connect(tmp_path / "ledger.sqlite3")
    db.execute("CREATE TABLE something (x)")
    db.execute(how)
    db.commit()
    db.close()
    refused(tmp_path, "ledger.foreign")


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "elsewhere").write_bytes(b"")
    (tmp_path / "state/ledger.sqlite3").symlink_to(tmp_path / "elsewhere")
    refused(tmp_path / "state", "ledger.open")
    assert (tmp_path / "elsewhere").read_bytes() == b""


def filled(directory: Path) -> Path:
    ledger = Ledger(str(directory))
    ledger.load()
    ledger.begin(durable=True)
    for number in range(2_000):
        ledger.register(f"pod-{number}", "default", number)
    ledger.commit()
    ledger.close()
    path = directory / "ledger.sqlite3"
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode=DELETE")
    db.close()
    return path


def test_a_damaged_page_is_found_at_the_start(tmp_path: Path) -> None:
    path = filled(tmp_path)
    data = bytearray(path.read_bytes())
    for at in range(8 * 4096, len(data) - 4096, 4096):
        data[at : at + 200] = os.urandom(200)
    path.write_bytes(data)
    refused(tmp_path, "ledger.corrupt")


def test_a_file_that_was_cut_is_found_at_the_start(tmp_path: Path) -> None:
    path = filled(tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2 // 4096 * 4096])
    refused(tmp_path, "ledger.corrupt")


def test_the_check_at_the_start_is_bounded_in_time(tmp_path: Path) -> None:
    db = sqlite3.connect(filled(tmp_path))
    assert schema.quick_check(db, seconds=0)  # given up, not taken for damage
    assert schema.quick_check(db)
    db.close()


def test_an_empty_file_is_a_new_store(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite3").touch()
    Ledger(str(tmp_path)).close()


def test_wrong_sums_are_found_by_a_check(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    ledger.close()
    db = sqlite3.connect(tmp_path / "ledger.sqlite3")
    db.execute("INSERT INTO pods (pod, namespace, state, budget, started_ns) VALUES ('p1', 'd', 'open', 10, 1)")
    db.execute("INSERT INTO reservations VALUES (?, 'p1', 20, 0, 0, 0)", (A,))
    db.execute("INSERT INTO reservations VALUES (?, 'gone', 20, 1, 30, 0)", (b"c" * 16,))
    db.execute("INSERT INTO accounts VALUES ('a/b', 10, 20, 0, 0)")
    problems = " ".join(check(db, "x").problems)
    for found in ("p1: more", "reservations of no open pod", "charged for more", "a/b: more", "a/b: the account above"):
        assert found in problems
    db.close()
