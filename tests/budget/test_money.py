from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nucleus.budget import money, names
from nucleus.errors import InvalidError


@pytest.mark.parametrize(
    ("text", "micro"),
    [("5", 5_000_000), ("5.00", 5_000_000), ("0.000001", 1), ("0", 0), ("007.5", 7_500_000),
     ("999999999", 999999999 * 10**6)],
)  # fmt: skip
def test_dollars_are_read_by_their_digits(text: str, micro: int) -> None:
    assert money.parse(text) == micro


@pytest.mark.parametrize(
    "text",
    ["", ".", "5.", ".5", "-1", "+1", "1e3", "1e400", "NaN", "inf", "Infinity", "1_000", "1,0", " 1", "1 ", "0.0000001",
     "1000000000", "٣", "1.٣", "0x10", "1.2.3", 5, 5.0, True, None, b"5", float("nan")],
)  # fmt: skip
def test_what_is_no_amount_is_refused(text: object) -> None:
    with pytest.raises(InvalidError) as caught:
        money.parse(text)
    assert caught.value.rule == "budget.amount"


def test_nothing_is_no_positive_amount() -> None:
    with pytest.raises(InvalidError):
        money.positive("0.000000")


@given(st.integers(0, money.MAX_DOLLARS * money.MICRO))
def test_what_is_written_is_read_back(micro: int) -> None:
    assert money.parse(money.dollars(micro)) == micro
    assert money.dollars(-micro) == (f"-{money.dollars(micro)}" if micro else "0.00")


@given(st.text(max_size=12))
def test_any_text_is_an_amount_or_refused(text: str) -> None:
    try:
        assert 0 <= money.parse(text) <= money.MAX_DOLLARS * money.MICRO + 999_999
    except InvalidError:
        pass


def test_an_account_draws_on_all_above_it() -> None:
    assert names.levels("acme/research@nightly") == ["acme/research@nightly", "acme/research", "acme"]
    assert names.check("acme/a-1") == "acme/a-1"


@pytest.mark.parametrize(
    "name",
    ["", "/", "acme/", "/acme", "a//b", "Acme", "a b", "a@b@c", "@a", "a@", "a@b/c", "-a", "a-", "a.b", "ä", "a" * 64,
     "a\n", "/".join("a" * 9), 5, None],
)  # fmt: skip
def test_a_name_has_one_spelling(name: object) -> None:
    with pytest.raises(InvalidError):
        names.check(name)
