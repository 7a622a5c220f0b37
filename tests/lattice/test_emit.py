"""What is written down is what was meant."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from policy_strategies import policies

from nucleus.lattice import Policy, meet, parse_policy
from nucleus.lattice.emit import emit
from nucleus.lattice.policy import EVERYTHING, TimeWindow
from nucleus.store.policies import bundled

BUNDLED = {name: parse_policy(text, name) for name, text in bundled().items()}


def back(policy: Policy) -> Policy:
    return parse_policy(emit(policy), "emitted")


@pytest.mark.parametrize("name", sorted(BUNDLED))
def test_every_profile_comes_back(name: str) -> None:
    assert back(BUNDLED[name]) == BUNDLED[name]


@pytest.mark.parametrize("name", sorted(BUNDLED))
def test_every_meet_of_profiles_comes_back(name: str) -> None:
    for other in BUNDLED.values():
        found = meet(BUNDLED[name], other)
        assert back(found) == found


@given(policies, policies)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_policy_and_any_meet_come_back(a: Policy, b: Policy) -> None:
    assert back(a) == a
    found = meet(a, b)
    assert back(found) == found


@pytest.mark.parametrize("text", ["1s", "59s", "60s", "90m", "16667m", "25h", "30d", "999999s", "7d"])
def test_durations_come_back(text: str) -> None:
    policy = parse_policy(f"version: 1\nname: t\ncapabilities: {{}}\ntime_window: {{duration: {text}}}\n", "t")
    assert back(policy) == policy


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00Z", "1969-12-31T23:59:59Z", "2026-02-28T23:59:59Z"])
def test_moments_come_back(moment: str) -> None:
    text = f'time_window: {{duration: 1h, not_before: "{moment}", not_after: "{moment}"}}\n'
    policy = parse_policy("version: 1\nname: t\ncapabilities: {}\n" + text, "t")
    assert f'not_after: "{moment}"' in emit(policy)
    assert back(policy) == policy


def test_text_is_quoted_whatever_it_is() -> None:
    for text in (
        "null",
        "1",
        "yes",
        "a: b",
        "- x",
        "#",
        "\\",
        '"',
        "'",
        "a\nb",
        "\u202e",
        "\U0001f600",
        "\x1b[1m",
        "%",
    ):
        found = replace(BUNDLED["codegen"], description=text)
        assert back(found) == found
        assert emit(found).isprintable() or "\n" in emit(found)
        assert "\x1b" not in emit(found)


def test_it_reads_well() -> None:
    text = emit(replace(BUNDLED["demo"], time_window=TimeWindow(2_700 * 10**9, 0, EVERYTHING)))
    assert 'block: ["@sensitive"]' in text
    assert "  deny:\n    - {set: interpreters}\n" in text
    assert 'budget: {limit_usd: "2.00"}\ntime_window: {duration: 45m}\n' in text
