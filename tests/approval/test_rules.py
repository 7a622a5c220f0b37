from __future__ import annotations

from nucleus.approval.rules import DENIED_NS, MAX_ASKED, MAX_PENDING, AskRules


def test_a_no_is_not_asked_again_for_a_minute() -> None:
    rules = AskRules()
    rules.opened()
    rules.closed("h", 5, denied=True)
    assert "denied" in rules.refusal("h", 5 + DENIED_NS - 1)
    assert rules.refusal("other", 6) == ""
    assert rules.refusal("h", 5 + DENIED_NS) == ""


def test_an_expiry_may_be_asked_again() -> None:
    rules = AskRules()
    rules.opened()
    rules.closed("h", 5, denied=False)
    assert rules.refusal("h", 6) == ""


def test_the_caps() -> None:
    rules = AskRules()
    for _ in range(MAX_PENDING):
        assert rules.refusal("h", 0) == ""
        rules.opened()
    assert "waiting" in rules.refusal("h", 0)
    for _ in range(MAX_ASKED - MAX_PENDING):
        rules.closed("x", 0, denied=False)
        assert rules.refusal("h", 0) == ""
        rules.opened()
    for _ in range(MAX_PENDING):
        rules.closed("x", 0, denied=False)
    assert "start a new one" in rules.refusal("h", 0)
