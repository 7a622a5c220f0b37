from __future__ import annotations

import multiprocessing
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nucleus.audit.chain import Head
from nucleus.budget.reservation import Phase
from nucleus.errors import AuditError, BudgetError, DeniedError, InvalidError, SandboxError
from nucleus.store import lock as module
from nucleus.store.ledger import Ledger
from nucleus.store.lock import lock_state

A, B = "a" * 32, "b" * 32


@pytest.fixture
def ledger(tmp_path: Path, prepare: Callable[[Path], None]) -> Iterator[Ledger]:
    tmp_path.chmod(0o700)
    prepare(tmp_path)
    ledger = Ledger(str(tmp_path))
    ledger.load()
    ledger.begin()
    ledger.register("p1", "default", 1)
    ledger.open_budget(ledger.pods["p1"], 1000, 0)
    ledger.commit()
    yield ledger
    ledger.close()


def again(ledger: Ledger, tmp_path: Path) -> Ledger:
    """The same file as another process would find it."""
    ledger.close()
    other = Ledger(str(tmp_path))
    other.load()
    return other


def hold(ledger: Ledger, name: str, amount: int, *, intent: bool = True) -> None:
    ledger.begin()
    ledger.reserve(ledger.pods["p1"], name, amount)
    ledger.commit()
    if intent:
        ledger.pods["p1"].account.mark(name, Phase.INTENT)
        ledger.on_record(name, outcome=False)


def test_it_comes_back_as_it_was(ledger: Ledger, tmp_path: Path) -> None:
    hold(ledger, A, 600)
    ledger.begin()
    ledger.settle(ledger.pods["p1"], A, 100)
    ledger.commit()
    hold(ledger, B, 200, intent=False)
    ledger.checkpoint(Head(7, "c" * 64, 99))
    other = again(ledger, tmp_path)
    account = other.pods["p1"].account
    assert (account.limit, account.spent, account.reserved) == (1000, 100, 200)
    assert account.holds[B].phase is Phase.HELD
    assert account.holds[A].phase is Phase.SETTLED
    assert other.head() == Head(7, "c" * 64, 99)
    other.close()


def test_a_rolled_back_batch_leaves_database_and_memory(ledger: Ledger) -> None:
    hold(ledger, A, 600)
    ledger.begin()
    ledger.settle(ledger.pods["p1"], A, 100)
    ledger.reserve(ledger.pods["p1"], B, 50)
    ledger.register("p2", "default", 1)
    ledger.rollback()
    account = ledger.pods["p1"].account
    assert (account.spent, account.reserved) == (0, 600)
    assert account.holds.keys() == {A}
    assert account.holds[A].phase is Phase.INTENT  # what the log has on record is not forgotten
    assert "p2" not in ledger.pods


def test_an_id_is_used_once_in_a_pods_life(ledger: Ledger) -> None:
    hold(ledger, A, 10, intent=False)
    ledger.begin()
    ledger.release(ledger.pods["p1"], A)
    with pytest.raises(InvalidError):
        ledger.reserve(ledger.pods["p1"], A, 10)
    with pytest.raises(InvalidError):
        ledger.release(ledger.pods["p1"], A)
    ledger.commit()
    assert ledger.pods["p1"].account.free == 1000


def test_a_pods_name_is_used_once(ledger: Ledger) -> None:
    ledger.begin()
    ledger.close_pod(ledger.pods["p1"])
    with pytest.raises(InvalidError):
        ledger.register("p1", "default", 2)
    ledger.commit()


def test_a_budget_cannot_be_raised_by_opening_it_again(ledger: Ledger) -> None:
    ledger.begin()
    assert ledger.open_budget(ledger.pods["p1"], 1000, 0).limit == 1000
    with pytest.raises(InvalidError):
        ledger.open_budget(ledger.pods["p1"], 2000, 0)
    ledger.register("p2", "default", 1)
    with pytest.raises(BudgetError):
        ledger.reserve(ledger.pods["p2"], A, 0)
    ledger.commit()


def ask(ledger: Ledger, nonce: bytes, pod: str = "p1") -> None:
    row: dict[str, Any] = {"pod": pod, "principal": "x", "operation_hash": "h", "asked_ns": 1, "expires_ns": 2}
    ledger.begin()
    ledger.ask(nonce.hex()[:8], nonce, row)
    ledger.commit()


def test_a_nonce_burns_with_its_reservation_and_once(ledger: Ledger, tmp_path: Path) -> None:
    nonce = bytes(32)
    ask(ledger, nonce)
    pod = ledger.pods["p1"]
    ledger.begin(durable=True)
    with pytest.raises(DeniedError):
        ledger.reserve(pod, A, 10, nonce)  # nobody approved it
    assert ledger.resolve_ask("00000000", "approved", "uid:0")
    assert not ledger.resolve_ask("00000000", "denied")
    with pytest.raises(BudgetError):
        ledger.reserve(pod, A, 5000, nonce)
    ledger.reserve(pod, A, 10, nonce)  # a reservation that failed has not burnt it
    with pytest.raises(DeniedError):
        ledger.reserve(pod, B, 10, nonce)
    ledger.commit()
    other = again(ledger, tmp_path)
    other.begin()
    with pytest.raises(DeniedError):
        other.reserve(other.pods["p1"], B, 10, nonce)
    other.commit()
    other.close()


def test_another_pods_nonce_is_none(ledger: Ledger) -> None:
    nonce = bytes(32)
    ask(ledger, nonce)
    ledger.begin()
    ledger.resolve_ask("00000000", "approved")
    ledger.register("p2", "default", 1)
    ledger.open_budget(ledger.pods["p2"], 1000, 0)
    with pytest.raises(DeniedError):
        ledger.reserve(ledger.pods["p2"], A, 10, nonce)
    ledger.commit()


def test_the_nonce_is_hashed_at_rest(ledger: Ledger, tmp_path: Path) -> None:
    nonce = os.urandom(32)
    ask(ledger, nonce)
    ledger.checkpoint(Head())
    assert all(nonce not in path.read_bytes() for path in tmp_path.iterdir())
    assert nonce not in ledger.engine.snapshot()


@pytest.mark.parametrize("prepare", ["sqlite"], indirect=True)
def test_a_full_disk_refuses_and_changes_nothing(ledger: Ledger) -> None:
    hold(ledger, A, 100)
    (pages,) = ledger.engine.execute("PRAGMA page_count").fetchone()
    ledger.engine.execute(f"PRAGMA max_page_count={pages}")

    def fill() -> None:
        for number in range(1_000):
            ledger.begin()
            ledger.reserve(ledger.pods["p1"], f"{number:032x}", 0)

    with pytest.raises(AuditError) as caught:
        fill()
    assert caught.value.rule == "ledger.io"
    ledger.rollback()
    assert ledger.pods["p1"].account.reserved == 100


def test_the_file_is_ours_and_of_this_version(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path))
    assert Path(ledger.path).stat().st_mode & 0o077 == 0
    ledger.close()
    with sqlite3.connect(ledger.path) as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(AuditError):
        Ledger(str(tmp_path))
    Path(ledger.path).write_bytes(b"not a database, but long enough to be looked at" * 100)
    with pytest.raises(AuditError):
        Ledger(str(tmp_path))


def take(directory: str, answers: Any) -> None:
    module.LOCK_SECONDS = 0.05
    try:
        os.close(lock_state(directory))
        answers.put("mine")
    except AuditError as error:
        answers.put(error.rule)


def test_one_process_owns_the_state(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    seen = []
    lock = lock_state(str(tmp_path))
    for _ in range(2):
        process = context.Process(target=take, args=(str(tmp_path), answers))
        process.start()
        process.join()
        process.close()
        seen.append(answers.get())
        if lock >= 0:
            os.close(lock)
            lock = -1
    answers.close()
    assert seen == ["store.locked", "mine"]


def test_a_state_directory_open_to_others_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(SandboxError):
        lock_state(str(tmp_path))
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(SandboxError):
        lock_state(str(tmp_path / "link"))
