from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nucleus.approval.display import MAX_LINE, MAX_LINES, MAX_TOTAL, escape, escape_lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ls -l", "ls -l"),
        ("größe 大", "größe 大"),
        ("a\x1b[2Kb", "a\\u001b[2Kb"),
        ("a\nb\rc\td", "a\\u000ab\\u000dc\\u0009d"),
        ("gpj.\u202eexe", "gpj.\\u202eexe"),
        ("a\u200bb\ufeffc", "a\\u200bb\\ufeffc"),
        ("a\u00a0b\u2003c\u3164d", "a\\u00a0b\\u2003c\\u3164d"),
        ("\u2028\u2029\x85\x9b", "\\u2028\\u2029\\u0085\\u009b"),
        ("\U000e0041\ud800", "\\U000e0041\\ud800"),
        ("a\ufe0fb\U000e0100", "a\\ufe0fb\\U000e0100"),
        ("C:\\u001b", "C:\\\\u001b"),
    ],
)
def test_nothing_hides(text: str, shown: str) -> None:
    assert escape(text) == shown


@given(st.text())
def test_what_is_shown_is_printable_one_line_and_unambiguous(text: str) -> None:
    shown = escape(text)
    assert all(unicodedata.category(c)[0] != "C" and c not in "\n\r\u2028\u2029" for c in shown)
    # Reversible, so no two texts look the same.
    assert shown.encode("utf-8").decode("utf-8") == shown
    assert escape(text + "x") != shown


@given(st.text(), st.text())
def test_no_two_texts_look_the_same(one: str, other: str) -> None:
    assert (escape(one) == escape(other)) == (one == other)


def test_sizes_are_bounded_and_cuts_are_said() -> None:
    shown = escape_lines(["\x00" * (MAX_LINE + 1)])
    assert "cut" in shown[0]
    assert len(shown[0]) < MAX_LINE + 100
    assert "cut" in escape_lines(["x"] * (MAX_LINES + 1))[-1]
    shown = escape_lines(["x" * MAX_LINE] * 50)
    assert sum(map(len, shown)) <= MAX_TOTAL + 100
    assert "cut" in shown[-1]
