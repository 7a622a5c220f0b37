"""A literal that is looked for first must be in every match."""

from __future__ import annotations

import random

import pytest
import re2

from nucleus.hands.globs import options
from nucleus.hands.literals import required


@pytest.mark.parametrize(
    ("pattern", "literals"),
    [
        ("needle", ("needle",)),
        ("[a-z]+_hay =", ("_hay =",)),
        ("(?:zebra|needle)_in", ("zebra", "needle")),
        ("foo|barz", ("foo", "barz")),
        (r"fn\s+main\(", ("main(",)),
        ("colou?r", ("colo",)),
        ("abc+d", ("abc",)),
        ("xyzab*", ("xyza",)),
        ("(abc)?defg", ("defg",)),
        ("(abc)+", ("abc",)),
        ("(abcdef)*x", ()),
        ("abc|", ()),
        ("abc|d*", ()),
        ("(?i)abc", ()),
        ("abc(?i)def", ()),
        (r"\Qabc\E", ()),
        (r"\x41bcd", ()),
        (r"\pLbcd", ()),
        ("a{3}bcd", ()),
        ("a{0}bcd", ()),
        ("[[:alpha:]]bcd", ()),
        ("ab", ()),
        (r"\(?:abcd", ()),
        (r"[(?:]abcd", ("abcd",)),
        ("", ()),
        (r"[\]abc]defg", ("defg",)),
        ("[]abc]defg", ("defg",)),
        ("[^]abc]defg", ("defg",)),
        (r"abc\\def", ("abc\\def",)),
        ("aaa|bbb|ccc|ddd|eee", ()),
        ("(aaa|(bbb|ccc)d)", ("aaa", "bbb", "ccc")),
    ],
)
def test_what_a_pattern_needs(pattern: str, literals: tuple[str, ...]) -> None:
    assert required(pattern) == literals


def test_no_match_is_lost() -> None:
    """Random patterns on random texts: wherever RE2 finds a match, one of the literals is there."""
    chance = random.Random(5)
    atoms = (
        "abc",
        "ab",
        "a",
        "cab",
        ".",
        "[ab]",
        "[^c]",
        "(abc|bca)",
        "(?:aab|b)",
        "(cab)",
        r"\w",
        r"\.",
        "|",
        "^",
        "c$",
    )
    marks = ("", "", "", "", "*", "+", "?", "{1,2}", "{0}", "+?", "??")
    tried = 0
    for _ in range(20_000):
        pattern = "".join(chance.choice(atoms) + chance.choice(marks) for _ in range(chance.randrange(1, 5)))
        fold = chance.random() < 0.2
        literals = required(pattern)
        if not literals:
            continue
        try:
            program = re2._Regexp(f"(?m){pattern}", options(ignore_case=fold))
        except re2.error:
            continue
        text = "".join(chance.choice(("abc", "bca", "cab", "aab", "a", "B", "C", ".", "\n")) for _ in range(16))
        for match in program.finditer(text.encode()):
            found = match.group().decode()
            shown = found.lower() if fold else found
            assert any((one.lower() if fold else one) in shown for one in literals), (pattern, text)
            tried += 1
    assert tried > 500
