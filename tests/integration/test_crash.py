"""kill -9 of the gate at each step of the pipeline: the log verifies, the budget adds up, no nonce lives twice."""

from __future__ import annotations

import shutil
import sqlite3

import pytest

from .held import Held
from .site import Site

PIPELINE = "Authenticate Validate Decide Reserve Append:intent Execute Settle Append:outcome Reply"
STEPS = [f"{when}:{step}" for step in PIPELINE.split() for when in ("before", "after")]
# `sh -c` asks under codegen, so these pass through Ask and carry a token into the reservation.
ASKED = ["before:Ask", "after:Ask", "before:Reserve", "after:Reserve", "after:Append:intent", "after:Execute"]


def ledger(site: Site) -> sqlite3.Connection:
    """A copy of the ledger: the authority has the original for itself."""
    copy = site.directory / "copy.sqlite3"
    for suffix in ("", "-wal"):
        shutil.copy(site.directory / "state" / f"ledger.sqlite3{suffix}", f"{copy}{suffix}")
    return sqlite3.connect(copy)


def check(site: Site, pod: str) -> None:
    verified = site.verify()
    assert verified.returncode == 0, verified.stdout + verified.stderr
    records = [r for r in site.records() if r["pod"] == pod]
    intents = [r["context"]["reservation"] for r in records if r["event"] == "intent"]
    outcomes = [
        r["context"]["reservation"]
        for r in records
        if r["event"] in ("outcome", "recovery") and "reservation" in r["context"]
    ]
    assert sorted(intents) == sorted(outcomes), "each intent has one end on record"
    connection = ledger(site)
    try:
        rows = connection.execute("SELECT state, charged, amount FROM reservations WHERE pod = ?", (pod,)).fetchall()
        (spent,) = connection.execute("SELECT spent FROM pods WHERE pod = ?", (pod,)).fetchone() or (0,)
        assert all(state != 0 for state, _, _ in rows), "no reservation stays open"
        assert all(0 <= charged <= amount for _, charged, amount in rows)
        assert sum(charged for _, charged, _ in rows) in (0, spent)
        nonces = [n for (n,) in connection.execute("SELECT nonce FROM approvals").fetchall()]
        assert len(nonces) == len(set(nonces))
    finally:
        connection.close()
    charged = sum(r["context"].get("charged", 0) for r in records if r["event"] in ("outcome", "recovery"))
    assert charged == spent, "log and ledger agree"


@pytest.fixture(scope="module")
def crash_site() -> Site:  # type: ignore[misc]
    site = Site(0)
    site.write("a.txt", "hello")
    yield site  # type: ignore[misc]
    site.close()


@pytest.mark.parametrize("step", STEPS)
def test_kill_9_at(crash_site: Site, step: str) -> None:
    with Held(crash_site, spec={"test_seam": step}) as held:
        reply = held.operate(kind="run", argv=["true"])
        assert reply == {"kind": "gate_gone"}
    check(crash_site, held.start["pod"])
    assert crash_site.exec("true").returncode == 0, "the next one works"


@pytest.mark.parametrize("step", ASKED)
def test_kill_9_with_an_approval_at(crash_site: Site, step: str) -> None:
    with Held(crash_site, answer="approve", spec={"test_seam": step}) as held:
        assert held.operate(kind="run", argv=["sh", "-c", "eval true"]) == {"kind": "gate_gone"}
    check(crash_site, held.start["pod"])


def test_an_approved_command_runs_once_and_again_only_after_another_yes(crash_site: Site) -> None:
    with Held(crash_site, answer="approve") as held:
        for _ in range(2):
            assert held.operate(kind="run", argv=["sh", "-c", "eval echo yes"])["result"]["stdout"] == "yes\n"
    approvals = [r for r in crash_site.records() if r["event"] == "approval" and r["pod"] == held.start["pod"]]
    assert len(approvals) == 2


def test_a_no_is_a_no(crash_site: Site) -> None:
    with Held(crash_site, answer="deny") as held:
        assert held.operate(kind="run", argv=["sh", "-c", "eval echo yes"])["kind"] == "approval_required"


def test_an_agent_that_is_killed_leaves_nothing(crash_site: Site) -> None:
    from .test_processes import Process

    with Held(crash_site) as held:
        (pod,) = held.status()["pods"]
        held.child.kill()
    for _ in range(200):
        alive = [pid for pid in pod["pids"] if _alive(pid)]
        if not alive:
            break
        import time

        time.sleep(0.02)
    assert not alive, [Process(pid).status for pid in alive]


def _alive(pid: int) -> bool:
    import os

    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
    finally:
        assert os
