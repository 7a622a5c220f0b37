"""Nested budgets on file: any interleaving of what gates and people do, with crashes in between, keeps the sums."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from integration.postgres import Server, keep_in
from nucleus.audit.chain import Head
from nucleus.budget.reservation import Phase, reconcile
from nucleus.errors import AuditError, BudgetError, InvalidError, NucleusError
from nucleus.store.budgets import CHARGE, CREATE, TOP_UP, Entry
from nucleus.store.check import check
from nucleus.store.ledger import Ledger

DAY = 86_400 * 10**9


def entry(name: str, change: str, **values: Any) -> Entry:
    given = {
        "account": "",
        "pod": "",
        "amount": 0,
        "charged": 0,
        "window_ns": 0,
        "who": "uid:0",
        "reason": "",
        **values,
    }
    return Entry(name, given.pop("time_ns", 1), change, **given)


def create(ledger: Ledger, account: str, amount: int, **values: Any) -> None:
    ledger.begin()
    assert ledger.accounts.apply(
        entry(f"make-{account.replace('/', '.')}", CREATE, account=account, amount=amount, **values)
    )
    ledger.commit()


@pytest.fixture
def ledger(tmp_path: Path, prepare: Callable[[Path], None]) -> Iterator[Ledger]:
    prepare(tmp_path)
    ledger = Ledger(str(tmp_path))
    ledger.load()
    create(ledger, "acme", 1_000)
    create(ledger, "acme/team", 500)
    ledger.begin()
    for name in ("p1", "p2"):
        ledger.register(name, "default", 1, "acme/team")
        ledger.open_budget(ledger.pods[name], 400, 0)
    ledger.register("p3", "default", 1, "acme")
    ledger.open_budget(ledger.pods["p3"], 5_000, 0)
    ledger.commit()
    yield ledger
    ledger.close()


def name(number: int) -> str:
    return f"{number:032x}"


def sums(ledger: Ledger, account: str) -> tuple[int, int]:
    pool = ledger.accounts.pools[account]
    return pool.spent, pool.reserved


def test_two_pods_share_what_their_team_has(ledger: Ledger) -> None:
    ledger.begin()
    ledger.reserve(ledger.pods["p1"], name(1), 400)
    with pytest.raises(BudgetError) as caught:
        ledger.reserve(ledger.pods["p2"], name(2), 101)
    assert caught.value.rule == "budget.account"
    ledger.reserve(ledger.pods["p2"], name(2), 100)
    with pytest.raises(BudgetError):
        ledger.reserve(ledger.pods["p3"], name(3), 501)
    ledger.reserve(ledger.pods["p3"], name(3), 500)
    ledger.commit()
    assert sums(ledger, "acme/team") == (0, 500)
    assert sums(ledger, "acme") == (0, 1_000)


def test_accounts_come_back_as_they_were(ledger: Ledger, tmp_path: Path) -> None:
    ledger.begin()
    for number, pod in enumerate(("p1", "p2", "p3")):
        ledger.reserve(ledger.pods[pod], name(number), 100)
        ledger.pods[pod].account.mark(name(number), Phase.INTENT)
    ledger.settle(ledger.pods["p1"], name(0), 30)
    ledger.close_pod(ledger.pods["p2"])
    ledger.commit()
    other = again(ledger, tmp_path)
    assert sums(other, "acme/team") == (30, 0)
    assert sums(other, "acme") == (30, 100)
    assert other.pods["p1"].draws_on == "acme/team"
    other.close()


def again(ledger: Ledger, tmp_path: Path) -> Ledger:
    ledger.close()
    other = Ledger(str(tmp_path))
    other.load()
    return other


def test_what_is_rolled_back_is_rolled_back_at_every_level(ledger: Ledger) -> None:
    ledger.begin()
    ledger.reserve(ledger.pods["p1"], name(1), 100)
    ledger.commit()
    ledger.pods["p1"].account.mark(name(1), Phase.INTENT)
    ledger.on_record(name(1), outcome=False)
    ledger.begin()
    ledger.settle(ledger.pods["p1"], name(1), 60)
    ledger.charge(entry("c", CHARGE, pod="p2", amount=70), 2)
    ledger.accounts.apply(entry("t", TOP_UP, account="acme", amount=70))
    ledger.rollback()
    assert sums(ledger, "acme/team") == (0, 100)
    assert sums(ledger, "acme") == (0, 100)
    assert ledger.accounts.pools["acme"].limit == 1_000
    assert ledger.accounts.find("c") is None


def test_a_top_up_holds_at_once_and_once(ledger: Ledger, tmp_path: Path) -> None:
    ledger.begin()
    ledger.reserve(ledger.pods["p1"], name(1), 400)
    ledger.reserve(ledger.pods["p2"], name(2), 100)
    top_up = entry("t", TOP_UP, account="acme/team", amount=50)
    assert ledger.accounts.apply(top_up)
    assert not ledger.accounts.apply(top_up)
    ledger.reserve(ledger.pods["p2"], name(3), 50)
    more = entry("p", TOP_UP, pod="p3", amount=10)
    assert ledger.top_up(more)
    assert not ledger.top_up(more)
    assert ledger.open_budget(ledger.pods["p3"], 5_000, 0).limit == 5_010  # the gate's own number is what it was
    ledger.commit()
    other = again(ledger, tmp_path)
    assert (other.accounts.pools["acme/team"].limit, other.pods["p3"].account.limit) == (550, 5_010)
    other.close()


def test_a_charge_takes_what_there_is(ledger: Ledger, tmp_path: Path) -> None:
    ledger.begin()
    done = ledger.charge(entry("a", CHARGE, pod="p3", amount=900), 2)
    assert (done.charged, done.account) == (900, "acme")
    short = ledger.charge(entry("b", CHARGE, pod="p1", amount=300), 2)
    assert short.charged == 100  # of the organization's
    with pytest.raises(InvalidError):
        ledger.charge(entry("b", CHARGE, pod="p2", amount=300), 2)
    with pytest.raises(InvalidError):
        ledger.charge(entry("c", CHARGE, pod="nobody", amount=300), 2)
    ledger.commit()
    assert sums(ledger, "acme") == (1_000, 0)
    assert sums(ledger, "acme/team") == (100, 0)
    other = again(ledger, tmp_path)
    assert (other.pods["p1"].account.spent, other.pods["p3"].account.spent) == (100, 900)
    other.begin()
    other.close_pod(other.pods["p1"])
    assert other.charge(entry("d", CHARGE, pod="p1", amount=5), 2).charged == 0  # over, and still counted
    other.commit()
    other.close()


def test_a_window_begins_again_on_file_too(ledger: Ledger, tmp_path: Path) -> None:
    create(ledger, "daily", 100, window_ns=DAY, time_ns=DAY)
    ledger.begin()
    ledger.register("p4", "default", 1, "daily")
    ledger.open_budget(ledger.pods["p4"], 5_000, 0)
    pod = ledger.pods["p4"]
    for number in range(2):
        ledger.reserve(pod, name(number), 50, now_ns=DAY + 5)
        pod.account.mark(name(number), Phase.INTENT)
    ledger.settle(pod, name(0), 50)
    with pytest.raises(BudgetError):
        ledger.reserve(pod, name(2), 1, now_ns=2 * DAY - 1)
    ledger.reserve(pod, name(2), 50, now_ns=3 * DAY + 7)
    with pytest.raises(BudgetError):
        ledger.reserve(pod, name(3), 1, now_ns=3 * DAY + 7)  # what is held of the window before still is
    ledger.commit()
    other = again(ledger, tmp_path)
    pool = other.accounts.pools["daily"]
    assert (pool.spent, pool.reserved, pool.since_ns) == (0, 100, 3 * DAY)
    other.close()


def test_a_session_has_an_account_of_its_own_where_there_is_one(ledger: Ledger) -> None:
    create(ledger, "acme/team@nightly", 10)
    assert ledger.accounts.choose("acme/team", "nightly") == "acme/team@nightly"
    assert ledger.accounts.choose("acme/team", "other") == "acme/team"
    assert ledger.accounts.choose("", "nightly") == ""
    with pytest.raises(InvalidError):
        ledger.accounts.choose("acme/none", "")
    for bad in ("acme", "none/team", "acme//x", "acme/none@x"):
        with pytest.raises(InvalidError):
            ledger.accounts.check_create(bad)
    assert [pool.name for pool in ledger.accounts.chain("acme/team@nightly")] == [
        "acme/team@nightly",
        "acme/team",
        "acme",
    ]


def test_a_missing_account_is_not_without_limit(ledger: Ledger) -> None:
    del ledger.accounts.pools["acme"]
    with pytest.raises(AuditError):
        ledger.accounts.chain("acme/team")


class Interleavings(RuleBasedStateMachine):
    """Gates and people in any order, batches that are undone, and kill -9; against sums kept apart."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.mkdtemp(prefix="ledger-")
        self.prepare()
        self.ledger = Ledger(self.directory)
        self.ledger.load()
        self.now = DAY
        self.number = 0
        self.spent = dict.fromkeys(("acme", "acme/a", "acme/b", "acme/a@s"), 0)  # in windows that do not end
        self.live: dict[str, str] = {}  # reservation -> pod
        self.ended: set[str] = set()

    def teardown(self) -> None:
        self.ledger.close()
        shutil.rmtree(self.directory)

    @initialize()
    def made(self) -> None:
        for account, amount in (("acme", 900), ("acme/a", 500), ("acme/b", 600), ("acme/a@s", 300)):
            create(self.ledger, account, amount)
        self.ledger.begin()
        for pod, account in (("p1", "acme/a"), ("p2", "acme/a@s"), ("p3", "acme/b"), ("p4", "")):
            self.ledger.register(pod, "default", 1, account)
            self.ledger.open_budget(self.ledger.pods[pod], 400, 0)
        self.ledger.commit()

    def tried(self, change: Any) -> Any:
        """One batch; what is refused changes nothing."""
        self.ledger.begin()
        try:
            return change()
        except (BudgetError, InvalidError):
            return None
        finally:
            self.ledger.commit()

    def counted(self, pod: str, amount: int) -> None:
        for pool in self.ledger.pods[pod].account.above:
            self.spent[pool.name] += amount

    @rule(
        pod=st.sampled_from(("p1", "p2", "p3", "p4")), amount=st.integers(0, 450), least=st.none() | st.integers(0, 300)
    )
    def reserve(self, pod: str, amount: int, least: int | None) -> None:
        self.number += 1
        reservation = name(self.number)
        account = self.ledger.pods[pod].account
        free = account.free
        held = self.tried(lambda: self.ledger.reserve(self.ledger.pods[pod], reservation, amount, least=least))
        wanted = amount if least is None or free >= amount else free if free >= least else None
        if wanted is None or wanted > free:
            assert held is None
        else:
            assert held == wanted
            self.live[reservation] = pod

    def some(self, data: Any) -> str | None:
        return data.draw(st.sampled_from(sorted(self.live))) if self.live else None

    @rule(data=st.data())
    def intent(self, data: Any) -> None:
        if (reservation := self.some(data)) is not None:
            hold = self.ledger.pods[self.live[reservation]].account.holds[reservation]
            if hold.phase is Phase.HELD:
                hold.phase = Phase.INTENT
                self.ledger.on_record(reservation, outcome=False)

    @rule(data=st.data(), actual=st.integers(0, 450))
    def settle(self, data: Any, actual: int) -> None:
        if (reservation := self.some(data)) is not None:
            pod = self.live[reservation]
            if self.tried(lambda: self.ledger.settle(self.ledger.pods[pod], reservation, actual)) is not None:
                self.resolved(reservation)
                self.counted(pod, actual)

    @rule(data=st.data())
    def release(self, data: Any) -> None:
        if (reservation := self.some(data)) is not None:
            pod = self.ledger.pods[self.live[reservation]]
            held = pod.account.holds[reservation].phase is Phase.HELD
            self.tried(lambda: self.ledger.release(pod, reservation))
            if held:
                self.resolved(reservation)

    @rule(data=st.data(), amount=st.integers(0, 300), least=st.integers(0, 300))
    def extend(self, data: Any, amount: int, least: int) -> None:
        if (reservation := self.some(data)) is not None:
            self.tried(lambda: self.ledger.extend(self.ledger.pods[self.live[reservation]], reservation, amount, least))

    def resolved(self, reservation: str) -> None:
        assert reservation not in self.ended
        self.ended.add(reservation)
        del self.live[reservation]

    @rule(account=st.sampled_from(("acme", "acme/a", "acme/b", "acme/a@s")), amount=st.integers(1, 200))
    def top_up(self, account: str, amount: int) -> None:
        self.number += 1
        self.tried(lambda: self.ledger.accounts.apply(entry(f"t{self.number}", TOP_UP, account=account, amount=amount)))

    @rule(pod=st.sampled_from(("p1", "p2", "p3", "p4")), amount=st.integers(1, 300), twice=st.booleans())
    def charge(self, pod: str, amount: int, twice: bool) -> None:
        self.number += 1
        asked = entry(f"c{self.number}", CHARGE, pod=pod, amount=amount)
        free = self.ledger.pods[pod].account.free
        done = self.tried(lambda: self.ledger.charge(asked, 1))
        assert done.charged == min(amount, free)
        self.counted(pod, done.charged)
        if twice:
            assert self.tried(lambda: self.ledger.charge(asked, 1)) is None

    @rule(data=st.data())
    def a_batch_is_undone(self, data: Any) -> None:
        self.ledger.begin()
        for pod in self.ledger.pods.values():
            self.number += 1
            try:
                self.ledger.reserve(pod, name(self.number), data.draw(st.integers(0, 100)))
                self.ledger.charge(entry(f"u{self.number}", CHARGE, pod=pod.pod, amount=50), 1)
            except NucleusError:
                pass
        self.ledger.rollback()

    @rule()
    def checkpoint(self) -> None:
        self.ledger.checkpoint(Head())

    @rule()
    def kill_9(self) -> None:
        """What memory knew alone is gone; another process ends what was open by the crash rules, and the pods go on."""
        intents = {
            reservation
            for reservation, pod in self.live.items()
            if self.ledger.pods[pod].account.holds[reservation].phase >= Phase.INTENT
        }
        self.die()
        self.ledger = Ledger(self.directory)
        self.ledger.load()
        self.ledger.begin()
        for reservation, pod in tuple(self.live.items()):
            hold = self.ledger.pods[pod].account.holds[reservation]
            verdict = reconcile(hold, None, intent=reservation in intents)
            self.ledger.force(self.ledger.pods[pod], reservation, hold, verdict.charged)
            self.counted(pod, verdict.charged or 0)
            self.resolved(reservation)
        self.ledger.commit()

    def prepare(self) -> None:
        """Before the ledger is opened."""

    def die(self) -> None:
        """Let go of the store as kill -9 does."""
        copy = f"{self.directory}/after"
        os.mkdir(copy)
        for suffix in ("", "-wal"):
            shutil.copy(f"{self.directory}/ledger.sqlite3{suffix}", f"{copy}/ledger.sqlite3{suffix}")
        self.ledger.close()
        for suffix in ("", "-wal"):
            shutil.move(f"{copy}/ledger.sqlite3{suffix}", f"{self.directory}/ledger.sqlite3{suffix}")
        os.rmdir(copy)

    @invariant()
    def never_more_than_the_limit(self) -> None:
        for pod in self.ledger.pods.values():
            account = pod.account
            assert 0 <= account.spent + account.reserved <= account.limit
        for pool in self.ledger.accounts.pools.values():
            assert pool.spent >= 0
            assert pool.reserved >= 0
            assert pool.spent + pool.reserved <= pool.limit

    @invariant()
    def every_level_has_what_is_beneath_it(self) -> None:
        for pool in self.ledger.accounts.pools.values():
            assert pool.spent == self.spent[pool.name]
            beneath = [pod.account for pod in self.ledger.pods.values() if pool in pod.account.above]
            assert pool.reserved == sum(account.reserved for account in beneath)

    @invariant()
    def the_file_says_the_same(self) -> None:
        assert self.problems() == []

    def problems(self) -> list[str]:
        """What `nucleus ledger check` would say."""
        return check(self.ledger.engine.db, "x").problems


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


class InPostgres(Interleavings):
    """The same, kept in PostgreSQL."""

    def prepare(self) -> None:
        keep_in(Server.running, self.directory)

    def die(self) -> None:
        self.ledger.engine._db._usock.shutdown(2)
        self.ledger.close()

    def problems(self) -> list[str]:
        """Of a copy."""
        with contextlib.closing(sqlite3.connect(":memory:")) as db:
            db.deserialize(self.ledger.snapshot())
            return check(db, "x").problems


TestInPostgres = pytest.mark.usefixtures("postgres")(InPostgres.TestCase)
TestInPostgres.settings = settings(max_examples=10, stateful_step_count=40, deadline=None)
