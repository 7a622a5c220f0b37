"""Which destinations are known: spelling aside, whole words and nothing but whole words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nucleus.lattice.provenance import CAPACITY, Knowledge, values, words

TASK = (
    "Please mail Mark Davies <Mark.Davies@Hotmail.com> and bob@example.org, post it in #general, "
    "then look at https://www.Example.com/docs/Page?x=1 and at docs.python.org. Delete ID '13' and #21 by June 14! "
    "Tell Alice's team."
)


@pytest.mark.parametrize(
    "destination",
    [
        "mark.davies@hotmail.com", "MARK.DAVIES@HOTMAIL.COM", "mailto:mark.davies@hotmail.com", "bob@example.org",
        "Mark Davies <mark.davies@hotmail.com>", "general", "#general", "Alice", "@alice", "13", "21", "#21",
        "https://www.example.com/docs/page?x=1", "http://example.com/docs/Page?x=1", "docs.python.org",
        "https://docs.python.org/", "http://docs.python.org:80", "mark davies", "ｂｏｂ@example.org",
    ],
)  # fmt: skip
def test_known_in_any_spelling(destination: str) -> None:
    assert Knowledge(TASK).origin(destination) == "the task"


@pytest.mark.parametrize(
    "destination",
    [
        "bob", "example.org", "bob@example.org.evil.com", "notbob@example.org", "hotmail.com",
        "davies@hotmail.com",
        "https://www.example.com/", "example.com", "https://example.com/docs/page?x=1&y=2", "https://example.com/docs/",
        "https://docs.python.org/secret", "https://docs.python.org:8443/", "ftp://docs.python.org", "gen", "generals",
        "evil.com", "1", "3", "14", "#14", "a", "s", "", "   ", "davies mark", "bob@example.org mallory@evil.com",
        "https://docs.python.org@evil.com/", "evil-docs.python.org", "bоb@example.org", "\0", "general\0evil",
    ],
)  # fmt: skip
def test_anything_else_is_not(destination: str) -> None:
    assert Knowledge(TASK).origin(destination) is None


def test_a_single_word_of_a_name_is_a_word_of_the_task() -> None:
    # "Mark" stands in the task as itself: a word, not a part of one.
    assert Knowledge(TASK).origin("mark") == "the task"


def test_the_agents_own_words_are_not_learnt_and_leave_a_gap() -> None:
    knowledge = Knowledge()
    knowledge.learn("tool a/b", "no result for mallory@evil.com in ann 1 team", frozenset({"mallory@evil.com", "1"}))
    assert knowledge.origin("mallory@evil.com") is None
    assert knowledge.origin("ann team") is None
    assert knowledge.origin("ann") == "tool a/b"


def test_a_value_is_known_as_a_whole() -> None:
    knowledge = Knowledge()
    knowledge.learn_value("tool a/b", "Ann Lee <ann@example.org>")
    knowledge.learn_value("tool a/b", "mallory 1", frozenset({"mallory"}))
    assert knowledge.origin("ann lee ann@example.org") == "tool a/b"
    for part in ("ann", "ann@example.org", "ann lee", "mallory 1"):
        assert knowledge.origin(part) is None


def test_nothing_is_learnt_beyond_the_capacity() -> None:
    knowledge = Knowledge()
    knowledge.learn("tool a/b", "x " * CAPACITY)
    knowledge.learn("tool a/b", "late@example.org")
    assert knowledge.origin("late@example.org") == "tool a/b"  # the text that was too long took no room
    knowledge.learn("tool a/b", "x" * (CAPACITY - 100))
    knowledge.learn("tool a/b", "y" * 200)
    assert knowledge.origin("y" * 200) is None


def test_values_are_the_leaves() -> None:
    assert values({"a": ["x", None, {"b": 3}], "c": "", "d": True, "e": "  "}) == ["x", "3"]
    assert values(None) == [] == values([]) == values("")


@given(st.text(max_size=60), st.text(max_size=20), st.text(max_size=60))
def test_a_word_that_does_not_occur_whole_is_never_known(before: str, destination: str, after: str) -> None:
    knowledge = Knowledge(f"{before} {after}")
    if knowledge.origin(destination) is not None:
        text, wanted = words(f"{before} {after}"), words(destination)
        assert any(text[i : i + len(wanted)] == wanted for i in range(len(text)))


@given(st.text(max_size=80))
def test_any_text_can_be_taken_in(text: str) -> None:
    knowledge = Knowledge(text)
    for word in words(text):
        bare = len(word) == 1 or word.isdigit()  # one letter, and a number of nothing, name nothing
        assert bare or knowledge.origin(word) == "the task" or words(word) != [word]
