from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nucleus.budget.cost import DEFAULT, GIT_DEADLINE_MS, KB, MAX_AMOUNT, CostModel, actual, amount, upper_bound
from nucleus.errors import InvalidError
from nucleus.limits import LIMITS

KINDS = {
    "read", "write", "edit", "glob", "grep", "run", "git_status", "git_diff", "git_commit", "web_fetch", "web_search",
    "git_push", "create_pr", "manage_pods", "tool",
}  # fmt: skip
SECOND = 1_000_000_000


def test_every_operation_has_a_price() -> None:
    from nucleus.model.operation import OPERATIONS

    assert {operation.model_fields["kind"].default for operation in OPERATIONS} == KINDS
    for kind in KINDS:
        assert upper_bound(kind, timeout_ms=0, bytes_in=0, limit=0, max_bytes=0) > 0
        assert actual(kind, duration_ns=0, bytes_moved=0, matches=0) > 0


def test_the_four_rows() -> None:
    assert actual("run", duration_ns=int(2.1 * SECOND)) == 100 + 3 * 50
    assert actual("read", bytes_moved=10 * KB + 1) == 11
    assert actual("web_fetch") == 500
    assert actual("grep", matches=7) == 14


def test_a_command_reserves_its_own_timeout_not_a_window() -> None:
    assert upper_bound("run", timeout_ms=10_000) == 100 + 12 * 50  # and the gate's patience of 2 s
    assert upper_bound("git_diff") == 100 + (GIT_DEADLINE_MS // 1000 + 2) * 50


@given(
    st.sampled_from(sorted(KINDS)),
    st.integers(1, LIMITS.run_timeout_max_ms),
    st.integers(0, LIMITS.content_bytes),
    st.integers(0, LIMITS.read_bytes),
    st.integers(1, LIMITS.result_count),
    st.data(),
)
def test_actual_never_exceeds_the_bound(
    kind: str, timeout_ms: int, bytes_in: int, max_bytes: int, limit: int, data: st.DataObject
) -> None:
    bound = upper_bound(kind, timeout_ms=timeout_ms, bytes_in=bytes_in, limit=limit, max_bytes=max_bytes)
    deadline = (timeout_ms if kind == "run" else min(timeout_ms, GIT_DEADLINE_MS)) * 1_000_000 + LIMITS.grace_ns
    used = actual(
        kind,
        duration_ns=data.draw(st.integers(0, deadline)),
        bytes_moved=data.draw(st.integers(0, bytes_in + max_bytes)),
        matches=data.draw(st.integers(0, limit)),
    )
    assert 0 < used <= bound


@pytest.mark.parametrize("value", [-1, 1.0, float("nan"), float("inf"), True, None, "1", MAX_AMOUNT + 1])
def test_only_bounded_integers(value: Any) -> None:
    with pytest.raises(InvalidError):
        amount(value, "x")
    with pytest.raises(InvalidError):
        upper_bound("run", timeout_ms=value)
    with pytest.raises(InvalidError):
        actual("read", bytes_moved=value)
    with pytest.raises(InvalidError):
        CostModel(command_base=value)


def test_an_overflow_and_an_unknown_kind_are_refused() -> None:
    with pytest.raises(InvalidError):
        upper_bound("glob", limit=MAX_AMOUNT)
    with pytest.raises(InvalidError):
        upper_bound("free_lunch")
    with pytest.raises(InvalidError):
        actual("free_lunch")


def test_the_model_is_frozen() -> None:
    with pytest.raises(AttributeError):
        DEFAULT.command_base = 0  # type: ignore[misc]
