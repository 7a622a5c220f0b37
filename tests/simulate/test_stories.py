"""The simulator's stories, some of them; and that it sees what it is there to see."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from simulate.__main__ import CHANCES
from simulate.faults import FaultyOs
from simulate.story import Story, Violated

from nucleus.authority import recovery
from nucleus.budget.reservation import Phase, reconcile
from nucleus.store.ledger import Ledger

STEPS = 700


def tell(top: Path, seed: str, crash: int, fail: int, steps: int = STEPS) -> Story:
    story = Story(seed, top, crash=crash, fail=fail)
    story.run(steps)
    return story


@pytest.mark.parametrize(("crash", "fail"), CHANCES)
def test_whatever_fails_the_promises_hold(crash: int, fail: int, tmp_path: Path) -> None:
    story = tell(tmp_path, f"test-{crash}-{fail}", crash, fail)
    assert story.counts["effects"] > 20
    assert (story.disk.crashes > 1) == bool(crash) or story.starts > 1


def test_one_seed_is_one_story(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    first.mkdir()
    second.mkdir()
    one, two = tell(first, "same", 300, 300), tell(second, "same", 300, 300)
    assert (one.counts, one.starts, one.disk.calls) == (two.counts, two.starts, two.disk.calls)


def caught(top: Path, crash: int = 0, fail: int = 0) -> str:
    """What is said of a broken authority; several stories, as the seed has it."""
    for number in range(30):
        directory = top / str(number)
        directory.mkdir()
        try:
            tell(directory, f"mutant-{number}", crash, fail)
        except Violated as violated:
            return str(violated)
    return ""


def test_a_token_that_does_not_burn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    execute = Ledger._execute

    def forgetful(self: Ledger, sql: str, values: tuple[Any, ...] = ()) -> Any:
        return execute(self, "SELECT 1" if "'burnt'" in sql else sql, () if "'burnt'" in sql else values)

    monkeypatch.setattr(Ledger, "_execute", forgetful)
    assert "taken twice" in caught(tmp_path)


def test_a_settlement_that_keeps_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle = Ledger.settle

    def greedy(self: Ledger, pod: Any, reservation: str, actual: int) -> int:
        pod.account.reserved += 1
        return settle(self, pod, reservation, actual)

    monkeypatch.setattr(Ledger, "settle", greedy)
    assert "the file says" in caught(tmp_path) or "reserved" in caught(tmp_path / "x")


def test_an_append_that_is_not_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FaultyOs, "fdatasync", lambda self, fd: None)
    assert caught(tmp_path, crash=300)


def test_a_crash_that_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An intent without an outcome counts as nothing: its reservation never ends."""

    def generous(hold: Any, outcome: int | None, *, intent: bool) -> Any:
        found = reconcile(hold, outcome, intent=intent)
        return found if hold.phase is not Phase.INTENT else replace(found, charged=None, record=False)

    monkeypatch.setattr(recovery, "reconcile", generous)
    assert "resolved 0 times" in caught(tmp_path, crash=300)


def test_a_recovery_that_forgets_what_it_has_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_record = Ledger.on_record

    def forgetful(self: Ledger, reservation: str, *, outcome: bool) -> None:
        if not outcome:
            on_record(self, reservation, outcome=outcome)

    monkeypatch.setattr(Ledger, "on_record", forgetful)
    assert "resolved 2 times" in caught(tmp_path)
