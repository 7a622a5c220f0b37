"""The ledger in PostgreSQL, where it is not as the file: connections that end, servers and URLs that are refused."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.postgres import PASSWORD, Server, keep_in
from nucleus.audit.chain import Head
from nucleus.errors import AuditError, NucleusError
from nucleus.store.check import check
from nucleus.store.engine import read_url
from nucleus.store.ledger import Ledger
from nucleus.store.postgres import Postgres, read_target

A, B, C = "a" * 32, "b" * 32, "c" * 32


class Kept:
    """A ledger with one pod, in a schema of its own."""

    def __init__(self, server: Server, directory: Path) -> None:
        self.server, self.directory = server, directory
        self.schema = keep_in(server, directory)
        self.ledger = Ledger(str(directory))
        self.ledger.load()
        self.ledger.begin(durable=True)
        self.ledger.register("p1", "default", 1)
        self.ledger.open_budget(self.ledger.pods["p1"], 1_000, 0)
        self.ledger.commit()

    def hold(self, name: str, amount: int) -> None:
        self.ledger.begin()
        self.ledger.reserve(self.ledger.pods["p1"], name, amount)
        self.ledger.commit()

    @property
    def reserved(self) -> int:
        account = self.ledger.pods["p1"].account
        assert account is not None
        return account.reserved

    def rows(self) -> str:
        return self.server.sql(f"SELECT encode(id, 'hex'), amount FROM {self.schema}.reservations ORDER BY 1")

    def cut(self) -> None:
        """The server ends our connection."""
        self.server.sql("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name='nucleus'")


@pytest.fixture
def kept(postgres: Server, tmp_path: Path) -> Iterator[Kept]:
    made = Kept(postgres, tmp_path)
    yield made
    made.ledger.close()


def patient(kept: Kept) -> None:
    for _ in range(50):
        kept.ledger.refresh()
        with contextlib.suppress(AuditError):
            kept.ledger.begin()
            kept.ledger.commit()
            return
        time.sleep(0.1)
    raise AssertionError("no connection")


def test_a_connection_that_ends_refuses_and_comes_back_to_what_is_kept(kept: Kept) -> None:
    kept.hold(A, 100)
    kept.ledger.begin()
    kept.ledger.reserve(kept.ledger.pods["p1"], B, 50)
    kept.cut()
    with pytest.raises(AuditError) as caught:
        kept.ledger.commit()
    assert caught.value.rule == "ledger.io"
    with pytest.raises(AuditError):
        kept.ledger.begin()  # nothing is taken before the store was read again
    patient(kept)
    assert kept.reserved == 100
    kept.hold(C, 200)
    assert kept.reserved == 300
    assert kept.rows() == f"{A}|100\n{C}|200"


def test_a_server_that_crashes_keeps_what_was_durable(kept: Kept) -> None:
    kept.ledger.begin(durable=True)
    kept.ledger.reserve(kept.ledger.pods["p1"], A, 100)
    kept.ledger.commit()
    kept.server.stop(immediately=True)
    try:
        with pytest.raises(AuditError):
            kept.hold(B, 1)
        kept.ledger.refresh()  # no server yet: nothing happens, and nothing is raised
        with pytest.raises(AuditError):
            kept.ledger.begin()
    finally:
        kept.server.start()
    patient(kept)
    assert kept.reserved == 100
    assert kept.rows() == f"{A}|100"


def test_durable_waits_for_the_disk_whatever_the_servers_default_is(kept: Kept) -> None:
    kept.server.sql("ALTER ROLE nucleus SET synchronous_commit=off")
    try:
        for durable in (True, False):
            kept.ledger.begin(durable=durable)
            assert kept.ledger.engine.execute("SHOW synchronous_commit").fetchone() == ("on" if durable else "off",)
            kept.ledger.commit()
    finally:
        kept.server.sql("ALTER ROLE nucleus RESET synchronous_commit")


def test_a_transaction_that_failed_is_not_reported_as_committed(kept: Kept) -> None:
    """PostgreSQL answers a COMMIT of one with ROLLBACK, and no error."""
    kept.ledger.begin()
    kept.ledger.reserve(kept.ledger.pods["p1"], A, 100)
    with pytest.raises(AuditError):
        kept.ledger.engine.execute("SELECT nothing FROM nowhere")
    with pytest.raises(AuditError):
        kept.ledger.commit()
    assert (kept.reserved, kept.rows()) == (0, "")
    kept.hold(B, 100)
    assert kept.reserved == 100


def test_there_is_one_writer(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nucleus.store.postgres.LOCK_S", 0.1)
    with pytest.raises(AuditError) as caught:
        Ledger(str(kept.directory))
    assert caught.value.rule == "store.locked"
    kept.hold(A, 100)


def test_who_was_taken_over_never_writes_again(kept: Kept) -> None:
    """Its connection, and with it the lock, was gone for a moment."""
    kept.cut()
    with pytest.raises(AuditError):
        kept.hold(A, 100)
    other = Ledger(str(kept.directory))
    other.close()
    time.sleep(1.1)  # longer than between two attempts
    with pytest.raises(AuditError) as caught:
        kept.ledger.refresh()
    assert caught.value.rule == "store.locked"
    with pytest.raises(AuditError):
        kept.hold(B, 1)
    assert kept.rows() == ""


def test_a_copy_is_a_ledgers_file_and_sound(kept: Kept) -> None:
    kept.hold(A, 100)
    kept.ledger.checkpoint(Head(7, "c" * 64, 99))
    db = sqlite3.connect(":memory:")
    with contextlib.closing(db):
        db.deserialize(kept.ledger.snapshot())
        report = check(db, "copy")
    assert (report.problems, report.pods, report.open_reservations, report.head) == ([], 1, 1, 7)


@pytest.mark.parametrize(
    ("statement", "rule"),
    [
        ("UPDATE {0}.meta SET value='99' WHERE key='schema_version'", "ledger.newer"),
        ("DELETE FROM {0}.meta WHERE key='schema_version'", "ledger.foreign"),
        ("DROP TABLE {0}.pods", "ledger.foreign"),
    ],
)
def test_what_is_not_ours_is_refused_and_left_as_it_is(kept: Kept, statement: str, rule: str) -> None:
    kept.ledger.close()
    kept.server.sql(statement.format(kept.schema))
    tables = f"SELECT tablename FROM pg_tables WHERE schemaname='{kept.schema}' ORDER BY 1"
    before = kept.server.sql(tables)
    with pytest.raises(AuditError) as caught:
        Ledger(str(kept.directory))
    assert caught.value.rule == rule
    assert caught.value.next_step
    assert kept.server.sql(tables) == before


def test_a_server_without_fsync_is_refused(kept: Kept) -> None:
    kept.ledger.close()
    kept.server.sql("ALTER SYSTEM SET full_page_writes=off", "SELECT pg_reload_conf()")
    try:
        time.sleep(0.3)
        with pytest.raises(AuditError) as caught:
            Ledger(str(kept.directory))
        assert caught.value.rule == "ledger.server"
    finally:
        kept.server.sql("ALTER SYSTEM RESET full_page_writes", "SELECT pg_reload_conf()")


def test_a_password_opens_and_is_told_to_nobody(postgres: Server) -> None:
    url = f"postgresql://guarded:{PASSWORD}@/postgres?host={postgres.socket}&schema=guarded_one"
    engine = Postgres(url)
    assert PASSWORD not in engine.path + repr(engine._target) + repr(vars(engine))
    engine.close()
    with pytest.raises(AuditError) as caught:
        Postgres(url.replace(PASSWORD, "wrong-password"))
    assert caught.value.rule == "ledger.connect"
    assert "28P01" in caught.value.message
    assert "wrong-password" not in str(caught.value) + repr(caught.value)


@pytest.mark.parametrize(
    ("change", "word"),
    [("/none?host={0}&user=nucleus", "3D000"), ("/postgres?host={0}/none&user=nucleus", "")],
)
def test_what_cannot_be_reached_says_why(postgres: Server, change: str, word: str) -> None:
    with pytest.raises(AuditError) as caught:
        Postgres("postgresql://" + change.format(postgres.socket))
    assert caught.value.rule == "ledger.connect"
    assert word in caught.value.message


@pytest.mark.parametrize(
    "url",
    [
        "", "mysql://u@h/d", "postgresql://h/d", "postgresql://u@h", "postgresql://u@h/d/e", "postgresql://u@h:0/d",
        "postgresql://u@h:99999/d", "postgresql://u@h/d?sslmode=disable", "postgresql://u@h/d?sslmode=require",
        "postgresql://u@h/d?schema=a-b", 'postgresql://u@h/d?schema=a"b', "postgresql://u@h/d?unknown=1",
        "postgresql://u@[::1/d", "postgresql://u@h/d#x", "postgresql://u:s3cret@h/d?schema=A",
    ],
)  # fmt: skip
def test_a_url_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(NucleusError) as caught:
        read_target(url)
    assert caught.value.rule == "ledger.url"
    assert "s3cret" not in str(caught.value)


def test_a_url_is_read() -> None:
    target = read_target("postgresql://u%40x:p%2Fw@db.example:6000/n?schema=a_1&sslrootcert=/etc/r.pem")
    assert (target.host, target.port, target.database, target.user, target.password, target.verified) == (
        "db.example", 6000, "n", "u@x", "p/w", True,
    )  # fmt: skip
    assert not read_target("postgresql://u@127.0.0.1/n").verified
    assert read_target("postgresql:///n?host=/run/postgresql&user=u").host == "/run/postgresql"


@pytest.mark.parametrize("mode", [0o644, 0o660])
def test_a_url_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "ledger.url"
    path.write_text("postgresql://u@localhost/d")
    path.chmod(mode)
    with pytest.raises(AuditError) as caught:
        read_url(str(tmp_path))
    assert caught.value.rule == "ledger.url"
