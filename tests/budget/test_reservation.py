"""The rules of one budget, against a model, in whatever order anybody tries."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from nucleus.budget.reservation import Account, Hold, Phase, Pool, Verdict, reconcile
from nucleus.errors import BudgetError, InvalidError, NucleusError

LIMIT = 1_000


class Budget(RuleBasedStateMachine):
    """Attempts anything; keeps its own sum of what was charged and held."""

    names = Bundle("names")

    def __init__(self) -> None:
        super().__init__()
        self.account = Account(LIMIT)
        self.held: dict[str, int] = {}
        self.charged: dict[str, int] = {}
        self.number = 0

    def attempt(self, change: object, *arguments: object) -> bool:
        before = (self.account.spent, self.account.reserved, repr(self.account.holds))
        try:
            change(*arguments)  # type: ignore[operator]
        except NucleusError:
            assert before == (self.account.spent, self.account.reserved, repr(self.account.holds))
            return False
        return True

    @rule(target=names, amount=st.integers(0, 600))
    def reserve(self, amount: int) -> str:
        self.number += 1
        name = str(self.number)
        fits = sum(self.held.values()) + sum(self.charged.values()) + amount <= LIMIT
        assert self.attempt(self.account.reserve, name, amount) == fits
        if fits:
            self.held[name] = amount
        return name

    @rule(name=names, amount=st.integers(0, 600))
    def again(self, name: str, amount: int) -> None:
        if name in self.account.holds:
            assert not self.attempt(self.account.reserve, name, amount)

    @rule(name=names, works=st.booleans())
    def intent(self, name: str, works: bool) -> None:
        if self.attempt(self.account.check_intent, name, self.held.get(name, -1)):
            self.account.mark(name, Phase.STAGED_INTENT)
            self.account.mark(name, Phase.INTENT if works else Phase.HELD)

    @rule(name=names, actual=st.integers(0, 600))
    def settle(self, name: str, actual: int) -> None:
        if self.attempt(self.account.settle, name, actual):
            assert name not in self.charged
            assert actual <= self.held.pop(name)
            self.charged[name] = actual

    @rule(name=names)
    def release(self, name: str) -> None:
        if self.attempt(self.account.release, name):
            assert name not in self.charged
            del self.held[name]

    @rule(name=names)
    def outcome(self, name: str) -> None:
        if self.attempt(self.account.check_outcome, name, self.charged.get(name, -1)):
            self.account.mark(name, Phase.STAGED_OUTCOME)
            self.account.finish(name)
            assert name not in self.account.holds

    @invariant()
    def sums(self) -> None:
        account = self.account
        assert account.limit == account.spent + account.reserved + account.free == LIMIT
        assert account.spent == sum(self.charged.values())
        assert account.reserved == sum(self.held.values())
        assert account.free >= 0


Budget.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestBudget = Budget.TestCase


def test_no_room_is_a_budget_error_and_the_exact_rest_fits() -> None:
    account = Account(100)
    account.reserve("a", 60)
    with pytest.raises(BudgetError):
        account.reserve("b", 41)
    account.reserve("c", 40)
    assert account.free == 0


def test_nothing_is_charged_without_an_intent_and_no_intent_is_released() -> None:
    account = Account(100)
    account.reserve("a", 50)
    with pytest.raises(InvalidError):
        account.settle("a", 1)
    account.mark("a", Phase.INTENT)
    with pytest.raises(InvalidError):
        account.release("a")
    with pytest.raises(InvalidError):
        account.settle("a", 51)
    account.settle("a", 50)
    with pytest.raises(InvalidError):
        account.settle("a", 50)


@pytest.mark.parametrize(
    ("hold", "outcome", "intent", "verdict"),
    [
        (Hold(50), None, False, Verdict(None, False)),
        (Hold(50), None, True, Verdict(50, True)),
        (Hold(50, Phase.INTENT), None, True, Verdict(50, True)),
        (Hold(50, Phase.INTENT), 20, True, Verdict(20, False)),
        (Hold(50, Phase.INTENT), 80, True, Verdict(50, False)),
        (Hold(50, Phase.SETTLED, 30), None, True, Verdict(30, True)),
        (Hold(50, Phase.SETTLED, 30), 30, True, Verdict(30, False)),
    ],
)
def test_the_crash_rules(hold: Hold, outcome: int | None, intent: bool, verdict: Verdict) -> None:
    assert reconcile(hold, outcome, intent=intent) == verdict


def nested(*limits: int) -> Account:
    """A pod's account below pools; the first limit is the pod's."""
    pools = tuple(Pool(f"level{number}", limit) for number, limit in enumerate(limits[1:]))
    return Account(limits[0], above=pools)


def test_a_hold_is_at_every_level_or_at_none() -> None:
    account = nested(100, 1_000, 50)
    with pytest.raises(BudgetError) as caught:
        account.reserve("a" * 32, 60)
    assert caught.value.rule == "budget.account"
    assert "level1" in caught.value.next_step
    assert "level1" not in caught.value.message  # which the agent is told
    assert [level.reserved for level in (account, *account.above)] == [0, 0, 0]
    account.reserve("a" * 32, 50)
    assert [level.reserved for level in (account, *account.above)] == [50, 50, 50]
    account.mark("a" * 32, Phase.INTENT)
    account.settle("a" * 32, 20)
    assert [(level.reserved, level.spent) for level in (account, *account.above)] == [(0, 20)] * 3
    account.reserve("b" * 32, 30)
    account.release("b" * 32)
    assert [(level.reserved, level.spent) for level in (account, *account.above)] == [(0, 20)] * 3


def test_with_a_least_a_hold_takes_what_there_is() -> None:
    account = nested(100, 70)
    assert account.check_reserve("a" * 32, 90, 50) == 70
    assert account.check_reserve("a" * 32, 60, 50) == 60
    assert account.check_reserve("a" * 32, 30, 50) == 30
    with pytest.raises(BudgetError):
        account.check_reserve("a" * 32, 90, 71)


def test_only_what_runs_is_extended() -> None:
    account = nested(100, 70)
    account.reserve("a" * 32, 50)
    with pytest.raises(InvalidError):
        account.extend("a" * 32, 10)
    account.mark("a" * 32, Phase.INTENT)
    assert account.check_extend("a" * 32, 100, 1) == 20
    account.extend("a" * 32, 20)
    with pytest.raises(BudgetError):
        account.check_extend("a" * 32, 100, 1)
    account.settle("a" * 32, 70)
    assert account.above[0].spent == 70


def test_a_window_begins_again_and_what_is_held_stays_held() -> None:
    pool = Pool("acme", 100, 60, 30, window_ns=10, since_ns=100)
    assert not pool.roll(109)
    assert not pool.roll(5)  # a clock that went back gives nothing
    assert pool.roll(137)
    assert (pool.since_ns, pool.spent, pool.reserved) == (130, 0, 30)
