"""The seed's three ReDoS classes, what must pass, and that the scan itself cannot be made slow."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nucleus.errors import InvalidError
from nucleus.validate.patterns import scan, validate_pattern


@pytest.mark.parametrize(
    ("pattern", "kind"),
    [
        ("(a+)+", "nested_quantifiers"),
        ("((a+))+", "nested_quantifiers"),
        ("(a*)*", "nested_quantifiers"),
        ("(?:a+)*", "nested_quantifiers"),
        ("(?P<x>a+)+$", "nested_quantifiers"),
        (r"(\w+\s*)+", "nested_quantifiers"),
        ("(a+|b)+", "nested_quantifiers"),
        ("(a{2,})+", "nested_quantifiers"),
        ("(a+){20}", "nested_quantifiers"),
        ("(.*a){12}", "nested_quantifiers"),
        ("(x+x+)+y", "nested_quantifiers"),
        ("(a|a)+", "overlapping_alternation"),
        ("(a|ab)*", "overlapping_alternation"),
        (r"(\d|\w)+", "overlapping_alternation"),
        ("(?i)(a|A)+", "overlapping_alternation"),
        ("([ab]|b)*", "overlapping_alternation"),
        ("(x(a|a)y)+", "overlapping_alternation"),
        ("(a|)+", "overlapping_alternation"),
        ("a{1000,}", "excessive_repetition"),
        ("a{1000}", "excessive_repetition"),
        ("a{1,5000}", "excessive_repetition"),
        ("a{99999999999}", "excessive_repetition"),
        ("(a{100}){100}", "excessive_repetition"),
        (r"(a)\1", "unsupported"),
        (r"(?P<x>a)(?P=x)", "unsupported"),
        ("a(?=b)", "unsupported"),
        ("a(?!b)", "unsupported"),
        ("(?<=a)b", "unsupported"),
        ("(?<!a)b", "unsupported"),
        ("(?>a)", "unsupported"),
        ("a++", "unsupported"),
        ("(", "syntax"),
        (")", "syntax"),
        ("[a", "syntax"),
        ("*a", "syntax"),
        ("a{3,2}", "syntax"),
        ("[z-a]", "syntax"),
        ("a\\", "syntax"),
    ],
)
def test_refused(pattern: str, kind: str) -> None:
    found = scan(pattern)
    assert found is not None
    assert found.kind == kind
    assert 0 <= found.position <= len(pattern)
    assert found.reason


@pytest.mark.parametrize(
    "pattern",
    [
        "a{2,}", "a+?", "(foo|bar)+", r"(?:\d{1,3}\.){3}", r"(\w+\s)+", "(bar|baz)+", "(.|\n)*", "(a|b|c)*d",
        r"(?:[a-z]+\.)+com", r"\bTODO\b", "[^]a]+", "[[:alpha:]_]+", "x{,3}", "{", "a{999}", r"\Q(a+)+\E", "", "^$",
        r"\x41\x{1F600}\p{L}\pN", "(?i)todo", "(?s:.)", r"def \w+\(self(, \w+)*\)", "(a|a)", "(a|a){2}", "(?U)a+",
    ],
)  # fmt: skip
def test_passed(pattern: str) -> None:
    assert scan(pattern) is None


def test_the_error_has_rule_position_and_reason() -> None:
    with pytest.raises(InvalidError) as caught:
        validate_pattern("pattern", "x(a+)+")
    assert caught.value.rule == "patterns.nested_quantifiers"
    assert "pattern:" in caught.value.message
    assert "character 3" in caught.value.message


def test_ignore_case_of_the_operation_counts() -> None:
    assert scan("(a|A)+") is None
    assert scan("(a|A)+", ignore_case=True) is not None


@pytest.mark.parametrize(
    "pattern",
    [
        "(" * 500, "(" * 500 + "a" + ")+" * 250, "(?:" * 39 + "a+" * 200 + ")+" * 39, "(" + "a?b" * 330 + ")+",
        "(?i)(" + "é|" * 400 + ")+", "[" + "a-z" * 300 + "]",
        "|" * 1000, "\\Q" * 400, "a{" * 400, "[[:" * 300, "(?" * 400,
        "(?:" * 39 + "|".join(["a"] * 200) + ")+" * 39,
    ],
)  # fmt: skip
def test_the_scan_is_quick_on_hostile_patterns(pattern: str) -> None:
    start = time.perf_counter()
    scan(pattern)
    assert time.perf_counter() - start < 0.5


@given(st.text(alphabet="ab|()[]{}*+?.\\^$-:<>P=!i,019\nQEpx", max_size=60))
def test_it_never_crashes(pattern: str) -> None:
    found = scan(pattern)
    assert found is None or found.kind


@given(st.text(alphabet="ab|()[]*+?.^$", max_size=24))
def test_what_passes_is_accepted_by_re2(pattern: str) -> None:
    import re2

    if scan(pattern) is None:
        options = re2.Options()
        options.log_errors = False
        re2.compile(pattern, options)
