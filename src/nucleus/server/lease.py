"""A command for whose whole deadline the budget does not hold enough: it runs as long as it is paid for.

 1. Before what is held is used up, more is asked for, as much as there is; once more at its end (a person may have
    topped it up, another operation may have given back).
 2. Where there is no more the command is told to end, and what it has written so far is its answer.
 3. Whoever does not end then is not waited for longer than the grace, which is paid for as well.

Promises: what a command costs never exceeds what is held for it. Relies on: `budget.cost.paid_ns` leaving room for 3.
Does not: kill; it says when.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from nucleus.budget import cost as cost_model
from nucleus.errors import NucleusError
from nucleus.limits import LIMITS
from nucleus.model.receipt import Meter
from nucleus.server.authority import Authority

AHEAD_S = 1.0  # before its end


class Lease:
    """What buys more time for one command.

    Args:
        reservation: its hold.
        held: micro-dollars so far.
        short: how much more its whole deadline would take.
    """

    def __init__(self, authority: Authority, reservation: str, held: int, short: int) -> None:
        self._authority = authority
        self._reservation = reservation
        self._held = held
        self._short = short

    async def more(self, meter: Meter) -> bool:
        """Ask for what is missing, or as much of it as there is; the meter says for how long that pays."""
        try:
            least = min(self._short, cost_model.DEFAULT.command_second)
            got = await self._authority.extend(self._reservation, self._short, least)
        except NucleusError:
            return False
        self._held += got
        self._short -= got
        meter.bought += got
        meter.paid_ns = cost_model.paid_ns(self._held) if self._short > 0 else 0
        return True


@asynccontextmanager
async def paid_for(meter: Meter | None, deadline: asyncio.Timeout, stop: Callable[[], None]) -> AsyncIterator[None]:
    """Around the wait for a command's answer. `stop` tells it to end; `deadline` is that of the wait."""
    if meter is None or not meter.paid_ns or meter.more is None:
        yield
        return
    watch = asyncio.ensure_future(_watch(meter, deadline, stop))
    try:
        yield
    finally:
        watch.cancel()
        await asyncio.wait([watch])


async def _watch(meter: Meter, deadline: asyncio.Timeout, stop: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert meter.more is not None
    ahead = AHEAD_S
    while meter.paid_ns:
        await asyncio.sleep(max(0.0, began + meter.paid_ns / 1e9 - ahead - loop.time()))
        if await meter.more():  # 1
            ahead = AHEAD_S
        elif ahead:
            ahead = 0.0
        else:
            meter.unpaid = True
            stop()  # 2
            deadline.reschedule(loop.time() + LIMITS.grace_ns / 1e9)  # 3
            return
