"""Operations as words, and words as operations."""

from __future__ import annotations

import pytest

from nucleus.cli.policy_words import context, flags_of, operation, words_of
from nucleus.errors import InvalidError
from nucleus.lattice.exposure import Exposure
from nucleus.lattice.witness import _plain

DEFAULTS = {"egress": False, "trust-workspace": False, "isolation": "", "seen": "", "task": "", "as": ""}


def test_words_come_back() -> None:
    for candidate in _plain():
        again = operation(words_of(candidate))
        assert words_of(again) == words_of(candidate)
        contents = {"content", "old", "new", "message", "body"}
        kept = set(type(candidate).model_fields) - contents
        assert all(getattr(again, name) == getattr(candidate, name) for name in kept), candidate


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        ({}, []),
        ({"egress": True, "seen": "private"}, ["--egress", "--seen", "private"]),
        ({"trust-workspace": True, "seen": "untrusted,steered"}, ["--trust-workspace", "--seen", "untrusted,steered"]),
        ({"task": "a b"}, ["--task", "a b"]),
        ({"as": "spiffe://td/a"}, ["--as", "spiffe://td/a"]),
    ],
)
def test_a_context_as_options(words: dict[str, object], flags: list[str]) -> None:
    found = context(DEFAULTS | words)
    assert flags_of(found) == [*flags, "--isolation", "namespaces"]
    assert found.seen == Exposure() or words["seen"]


@pytest.mark.parametrize(
    ("line", "argv"),
    [
        ("git push origin main", ("git", "push", "origin", "main")),
        ("git commit -m 'two words'", ("git", "commit", "-m", "two words")),
        ("make test | tee log", ("sh", "-c", "make test | tee log")),
        ("make", ("make",)),
    ],
)
def test_a_command_may_be_asked_for_as_one_line(line: str, argv: tuple[str, ...]) -> None:
    assert operation(["run", line]).argv == argv  # type: ignore[attr-defined]


def test_a_line_with_an_open_quote_is_an_error() -> None:
    with pytest.raises(InvalidError, match="quot"):
        operation(["run", "echo 'x y"])
