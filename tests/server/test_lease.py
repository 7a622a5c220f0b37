"""A command that is not paid for to its deadline: what is asked for when, and what a pod that does not end gets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from nucleus.budget.cost import actual, least_of_command, paid_ns, upper_bound
from nucleus.errors import BudgetError
from nucleus.limits import LIMITS
from nucleus.model.receipt import Meter
from nucleus.server import lease
from nucleus.server.lease import Lease, paid_for

SECOND = 10**9


class Authority:
    """Gives what it was told to give, call by call; 0 is a refusal."""

    def __init__(self, *gives: int) -> None:
        self.gives = list(gives)
        self.asked: list[tuple[int, int]] = []

    async def extend(self, reservation: str, amount: int, least: int) -> int:
        self.asked.append((amount, least))
        if not self.gives or not (got := self.gives.pop(0)):
            raise BudgetError("no room", rule="budget.limit")
        return got


def test_what_is_held_pays_for_ending_it_too() -> None:
    for held in range(least_of_command(), 3_000, 7):
        longest = paid_ns(held) + LIMITS.grace_ns
        assert actual("run", duration_ns=longest) <= held
    assert paid_ns(least_of_command()) == SECOND
    assert paid_ns(0) == 0
    whole = upper_bound("run", timeout_ms=90_000)
    assert paid_ns(whole) >= 90 * SECOND


def test_more_is_asked_for_until_the_whole_deadline_is_paid_for() -> None:
    authority = Authority(100, 0, 300)
    meter = Meter(paid_ns=SECOND)
    bought = Lease(authority, "a" * 32, 250, 400)  # type: ignore[arg-type]

    async def scene() -> None:
        assert await bought.more(meter)
        assert (meter.bought, meter.paid_ns) == (100, paid_ns(350))
        assert not await bought.more(meter)
        assert await bought.more(meter)
        assert (meter.bought, meter.paid_ns) == (400, 0)

    asyncio.run(scene())
    assert authority.asked == [(400, 50), (300, 50), (300, 50)]


def waited(meter: Meter, work: Callable[[list[str]], Awaitable[None]]) -> list[str]:
    """`work` under a lease; what happened, and how it ended."""
    said: list[str] = []

    async def scene() -> None:
        try:
            async with asyncio.timeout(5) as deadline, paid_for(meter, deadline, lambda: said.append("stop")):
                await work(said)
                said.append("done")
        except TimeoutError:
            said.append("timeout")
        assert len(asyncio.all_tasks()) == 1  # nothing of it is left

    asyncio.run(scene())
    return said


async def obedient(said: list[str]) -> None:
    while "stop" not in said:  # noqa: ASYNC110 - a pod is polled by nobody, but this is one
        await asyncio.sleep(0.005)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "AHEAD_S", 0.02)


def test_without_more_it_is_told_to_end_when_the_time_is_up() -> None:
    meter, authority = Meter(paid_ns=SECOND // 10), Authority()
    meter.more = lambda: Lease(authority, "a", 250, 100).more(meter)  # type: ignore[arg-type]
    assert waited(meter, obedient) == ["stop", "done"]
    assert meter.unpaid
    assert len(authority.asked) == 2  # ahead, and once more at the end


def test_what_ends_in_time_is_left_alone() -> None:
    meter = Meter(paid_ns=SECOND)
    meter.more = lambda: Lease(Authority(), "a", 250, 100).more(meter)  # type: ignore[arg-type]
    assert waited(meter, lambda _: asyncio.sleep(0.01)) == ["done"]
    assert not meter.unpaid


def test_once_all_is_paid_for_nothing_watches_it() -> None:
    meter = Meter(paid_ns=SECOND // 20)
    meter.more = lambda: Lease(Authority(100), "a", 250, 100).more(meter)  # type: ignore[arg-type]
    assert waited(meter, lambda _: asyncio.sleep(0.15)) == ["done"]
    assert (meter.paid_ns, meter.unpaid) == (0, False)


def test_a_pod_that_does_not_end_is_not_waited_for() -> None:
    meter = Meter(paid_ns=SECOND // 20)
    meter.more = lambda: Lease(Authority(), "a", 250, 100).more(meter)  # type: ignore[arg-type]
    began = time.monotonic()
    assert waited(meter, lambda _: asyncio.sleep(60)) == ["stop", "timeout"]
    assert time.monotonic() - began < LIMITS.grace_ns / 1e9 + 1
