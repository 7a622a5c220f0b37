"""The rules of one budget: limit = spent + reserved + free, and each reservation resolves once.

A hold goes one way (after TigerBeetle's two-phase transfers: pending, then post <= reserved, or void):

    reserve -> HELD -> (intent on record) -> INTENT -> settle -> SETTLED -> (outcome on record) -> gone
                 \\-> release -> gone            \\-> charge in full when its holder dies

Promises: a transition that is not in the picture raises and changes nothing; `spent` never exceeds `limit`; nothing is
charged that has no intent on record, and an intent on record is never released.
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
class Account:
    """One pod's budget, in micro-dollars. `reserved` is the sum over holds that are neither settled nor released."""

    limit: int
    spent: int = 0
    reserved: int = 0
    holds: dict[str, Hold] = field(default_factory=dict)

    @property
    def free(self) -> int:
        """What can still be reserved."""
        return self.limit - self.spent - self.reserved

    def check_reserve(self, reservation: str, amount: int) -> None:
        """Raises BudgetError when there is no room, InvalidError when the id is in use."""
        checked(amount, "reservation")
        if reservation in self.holds:
            raise InvalidError("this reservation exists already", rule="budget.reservation")
        if amount > self.free:
            raise BudgetError(
                f"the operation may cost {amount} micro-dollars, {self.free} of {self.limit} are left",
                rule="budget.limit",
                next_step="Raise budget.limit in the policy, or start a new pod.",
            )

    def reserve(self, reservation: str, amount: int) -> None:
        """Hold `amount`."""
        self.check_reserve(reservation, amount)
        self.holds[reservation] = Hold(amount)
        self.reserved += amount

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
        self.reserved -= hold.amount
        self.spent += actual
        hold.phase, hold.charged = Phase.SETTLED, actual

    def check_release(self, reservation: str) -> None:
        """Raises InvalidError unless nothing was tried: no intent on record or on its way there."""
        if self._hold(reservation).phase is not Phase.HELD:
            raise InvalidError("an intent is on record: it is settled, not released", rule="budget.release")

    def release(self, reservation: str) -> None:
        """Give a hold back whole."""
        self.check_release(reservation)
        self.reserved -= self.holds.pop(reservation).amount

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
