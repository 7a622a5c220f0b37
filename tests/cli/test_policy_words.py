"""Operations as words, and words as operations."""

from __future__ import annotations

import pytest

from nucleus.cli.policy_words import context, flags_of, operation, words_of
from nucleus.lattice.exposure import Exposure
from nucleus.lattice.witness import _plain

DEFAULTS = {"egress": False, "trust-workspace": False, "isolation": "", "seen": "", "task": ""}


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
    ],
)
def test_a_context_as_options(words: dict[str, object], flags: list[str]) -> None:
    found = context(DEFAULTS | words)
    assert flags_of(found) == [*flags, "--isolation", "namespaces"]
    assert found.seen == Exposure() or words["seen"]
