"""Text for people: complete, and the sensitive set under its name."""

from __future__ import annotations

import json

from nucleus.lattice import capability as cap
from nucleus.lattice import parse_policy
from nucleus.lattice.explain import dollars, duration, explain_decision, explain_policy, policy_data
from nucleus.model.decision import Decision, Verdict
from nucleus.store.policies import profile_names, profile_text


def test_every_profile_can_be_shown() -> None:
    for name in profile_names():
        p = parse_policy(profile_text(name), name)
        text = explain_policy(p)
        assert all(capability in text for capability in cap.NAMES)
        json.dumps(policy_data(p))
    assert "@sensitive" in explain_policy(parse_policy(profile_text("codegen"), "c"))


def test_units() -> None:
    assert [dollars(x) for x in (5_000_000, 500_000, 1, 1_230_000)] == ["5.00", "0.50", "0.000001", "1.23"]
    assert [duration(x * 10**9) for x in (3600, 600, 5400, 59, 86400)] == ["1h", "10m", "90m", "59s", "1d"]


def test_a_decision_has_all_its_lines() -> None:
    text = explain_decision(Decision(Verdict.ASK, "r.x", "why", "line", "step", ("approval:run_bash",)))
    assert text.splitlines() == [
        "ask: why",
        "  rule: r.x",
        "  line: line",
        "  needs: approval:run_bash",
        "  next: step",
    ]


def test_the_rules_that_were_met_are_listed_in_order_and_the_decisive_one_is_marked() -> None:
    met = (("a", Verdict.ALLOW), ("b", Verdict.ASK), ("c", Verdict.DENY), ("c", Verdict.DENY))
    text = explain_decision(Decision(Verdict.DENY, "c", "why", met=met))
    assert text.splitlines()[2:] == [
        "  rules met, in order:",
        "    allow  a",
        "    ask    b",
        "  > deny   c  (decides)",
        "    deny   c",
    ]
