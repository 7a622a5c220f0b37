"""The rules of a budget: limit = spent + reserved + free at every level, and each reservation resolves once.

A hold goes one way (after TigerBeetle's two-phase transfers: pending, then post <= reserved, or void):

    reserve -> HELD -> (intent on record) -> INTENT -> settle -> SETTLED -> (outcome on record) -> gone
                 \\-> release -> gone            \\-> charge in full when its holder dies

Budgets nest: a pod's account draws on the `Pool`s above it (session, team, organization). A hold is there at all levels
or at none, and what is settled, released or charged is so at all of them, by the one method `move`.

Promises: a transition that is not in the picture raises and changes nothing; `spent` never exceeds `limit`, at no
level; nothing is charged that has no intent on record, and an intent on record is never released.
Relies on: the caller for uniqueness of ids over a budget's whole life (the ledger's primary key), and for durability.
Does not: know clocks or files; not thread-safe.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from nucleus.budget.cost import amount as checked
from nucleus.errors import BudgetError, InvalidError


class Phase(IntEnum):
    """Where a hold is. STAGED_*: its record is in the batch that is being written."""

    HELD = 0
    STAGED_INTENT = 1
    INTENT = 2
    SETTLED = 3
    STAGED_OUTCOME = 4


@dataclass(slots=True)
class Hold:
    """One reservation that has not come to its end."""

    amount: int
    phase: Phase = Phase.HELD
    charged: int = 0


@dataclass(slots=True)
class Pool:
    """A budget that pods draw on together, in micro-dollars.

    Args:
        name: as `budget.names`.
        window_ns: `limit` is for so long, then for so long again; 0: for good.
        since_ns: when the present window began, nanoseconds since the epoch.
    """

    name: str
    limit: int
    spent: int = 0
    reserved: int = 0
    window_ns: int = 0
    since_ns: int = 0

    @property
    def free(self) -> int:
        """What can still be reserved here."""
        return self.limit - self.spent - self.reserved

    def begun(self, now_ns: int) -> int:
        """When the window that `now_ns` lies in began; a clock that went back changes nothing."""
        if not self.window_ns or now_ns < self.since_ns + self.window_ns:
            return self.since_ns
        return now_ns - (now_ns - self.since_ns) % self.window_ns

    def roll(self, now_ns: int) -> bool:
        """A new window: nothing is spent in it so far; what is held stays held. Whether there is one."""
        begun = self.begun(now_ns)
        if begun == self.since_ns:
            return False
        self.since_ns, self.spent = begun, 0
        return True


@dataclass(slots=True)
class Account:
    """One pod's budget, in micro-dollars. `reserved` is the sum over holds that are neither settled nor released.

    `above`: the pools that it draws on, the nearest first.
    """

    limit: int
    spent: int = 0
    reserved: int = 0
    holds: dict[str, Hold] = field(default_factory=dict)
    above: tuple[Pool, ...] = ()

    @property
    def free(self) -> int:
        """What can still be reserved, here and above."""
        return min([self.limit - self.spent - self.reserved, *(pool.free for pool in self.above)])

    def move(self, held: int, spent: int) -> None:
        """Change what is held and what is spent, at every level."""
        self.reserved += held
        self.spent += spent
        for pool in self.above:
            pool.reserved += held
            pool.spent += spent

    def check_reserve(self, reservation: str, amount: int, least: int | None = None) -> int:
        """What a reservation would hold: `amount`, or with `least` as much of it as there is, but no less than that.

        Raises:
            BudgetError: there is no room; rule ``budget.limit``, or ``budget.account`` where a pool is the reason.
            InvalidError: the id is in use.
        """
        checked(amount, "reservation")
        if reservation in self.holds:
            raise InvalidError("this reservation exists already", rule="budget.reservation")
        return self._room(amount, least)

    def _room(self, amount: int, least: int | None) -> int:
        held = amount if least is None else min(amount, max(checked(least, "least"), self.free))
        if held <= self.free:
            return held
        left = self.limit - self.spent - self.reserved
        if held > left:
            raise BudgetError(
                f"the operation may cost {held} micro-dollars, {left} of {self.limit} are left",
                rule="budget.limit",
                next_step="Raise budget.limit_usd in the policy, or `nucleus budget top-up --pod POD AMOUNT`.",
            )
        short = next(pool for pool in self.above if held > pool.free)
        # The name is for the person: what the agent is told says nothing of who else draws on it.
        raise BudgetError(
            f"the operation may cost {held} micro-dollars, less is left of a budget that this pod shares",
            rule="budget.account",
            next_step=f"`nucleus budget show {short.name}`; `nucleus budget top-up {short.name} AMOUNT`.",
        )

    def reserve(self, reservation: str, amount: int) -> None:
        """Hold `amount`."""
        self.check_reserve(reservation, amount)
        self.holds[reservation] = Hold(amount)
        self.move(amount, 0)

    def check_extend(self, reservation: str, amount: int, least: int) -> int:
        """How much more a hold whose operation runs would get: up to `amount`, at least `least`.

        Raises:
            BudgetError: there is no room.
            InvalidError: nothing runs on it.
        """
        checked(amount, "extension")
        if self._hold(reservation).phase is not Phase.INTENT:
            raise InvalidError("settled already, or its intent is not on record", rule="budget.extend")
        return self._room(amount, least)

    def extend(self, reservation: str, amount: int) -> None:
        """Hold `amount` more."""
        self.check_extend(reservation, amount, amount)
        self.holds[reservation].amount += amount
        self.move(amount, 0)

    def check_intent(self, reservation: str, amount: object) -> None:
        """An intent may be recorded for a fresh hold of exactly this amount, once."""
        hold = self._hold(reservation)
        if hold.phase is not Phase.HELD or amount != hold.amount or type(amount) is not int:
            raise InvalidError("the intent does not fit its reservation", rule="budget.intent")

    def check_outcome(self, reservation: str, charged: object) -> None:
        """An outcome may be recorded for a settled hold with what was charged, once."""
        hold = self._hold(reservation)
        if hold.phase is not Phase.SETTLED or charged != hold.charged or type(charged) is not int:
            raise InvalidError("the outcome does not fit its settlement", rule="budget.outcome")

    def check_settle(self, reservation: str, actual: int) -> None:
        """Raises InvalidError unless a hold with its intent on record can be resolved for `actual` <= its amount."""
        checked(actual, "settlement")
        hold = self._hold(reservation)
        if hold.phase is not Phase.INTENT:
            raise InvalidError("settled already, or its intent is not on record", rule="budget.settle")
        if actual > hold.amount:
            raise InvalidError(f"{actual} is more than the {hold.amount} reserved", rule="budget.settle")

    def settle(self, reservation: str, actual: int) -> None:
        """Charge `actual`, return the rest."""
        self.check_settle(reservation, actual)
        hold = self.holds[reservation]
        self.move(-hold.amount, actual)
        hold.phase, hold.charged = Phase.SETTLED, actual

    def check_release(self, reservation: str) -> None:
        """Raises InvalidError unless nothing was tried: no intent on record or on its way there."""
        if self._hold(reservation).phase is not Phase.HELD:
            raise InvalidError("an intent is on record: it is settled, not released", rule="budget.release")

    def release(self, reservation: str) -> None:
        """Give a hold back whole."""
        self.check_release(reservation)
        self.move(-self.holds.pop(reservation).amount, 0)

    def mark(self, reservation: str, phase: Phase) -> None:
        """Note that a record was staged, written, or failed to be (a step forward or back)."""
        self._hold(reservation).phase = phase

    def finish(self, reservation: str) -> None:
        """The outcome is on record: the hold has come to its end."""
        if self._hold(reservation).phase is not Phase.STAGED_OUTCOME:
            raise InvalidError("no outcome of it was staged", rule="budget.outcome")
        del self.holds[reservation]

    def _hold(self, reservation: str) -> Hold:
        hold = self.holds.get(reservation)
        if hold is None:
            raise InvalidError("no such open reservation of this pod", rule="budget.reservation")
        return hold


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a hold whose holder is gone ends. `charged` is None for a release; `record`: append a recovery record."""

    charged: int | None
    record: bool


def reconcile(hold: Hold, outcome: int | None, *, intent: bool) -> Verdict:
    """The crash rules: before its intent nothing, after it everything, and what the log says where it says so.

    Args:
        hold: as the ledger has it.
        outcome: what the log says was charged, or None.
        intent: an intent is on record.
    """
    if outcome is not None:
        return Verdict(min(outcome, hold.amount), record=False)
    if hold.phase >= Phase.SETTLED:
        return Verdict(hold.charged, record=True)
    if intent:
        return Verdict(hold.amount, record=True)
    return Verdict(None, record=False)
