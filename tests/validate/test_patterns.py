"""The seed's three ReDoS classes, what must pass, where it is, and that the scan itself cannot be made slow."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nucleus.errors import InvalidError
from nucleus.validate.pattern_parser import Node, Parser
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
        ("(a+){5}", "nested_quantifiers"),
        ("(a+){20}", "nested_quantifiers"),
        ("(.*a){12}", "nested_quantifiers"),
        ("(x+x+)+y", "nested_quantifiers"),
        ("(x{2,5}|y)+z", "nested_quantifiers"),
        ("((?:a?b?)c*)+", "nested_quantifiers"),
        ("(?:(?:x?|y*)z)+", "nested_quantifiers"),
        ("(?:(?:x?)?z)+", "nested_quantifiers"),
        ("(a?){25}a{25}", "nested_quantifiers"),
        (r"([a-z]+\.?)+@", "nested_quantifiers"),
        (r"^(\[[^\]]*\]|.)*\n*(.*)*$", "overlapping_alternation"),
        (r"(?:[[:space:]]*\n)+", "nested_quantifiers"),
        ("((((a+)b?)c?)d?)*", "nested_quantifiers"),
        ("(a|a)+", "overlapping_alternation"),
        (r"(\d|\w)+", "overlapping_alternation"),
        ("(?i)(a|A)+", "overlapping_alternation"),
        ("([ab]|b)*", "overlapping_alternation"),
        ("(x(a|a)y)+", "overlapping_alternation"),
        (r'"(?:\\.|[^"])*"', "overlapping_alternation"),
        ("(aa|aaa)+", "overlapping_alternation"),
        ("(?:é|[à-ï])+", "overlapping_alternation"),
        ("(?i)(é|É)+", "overlapping_alternation"),
        (r"([\w.]|[\d-])*", "overlapping_alternation"),
        (r"(?:[[:alpha:]]|x)+", "overlapping_alternation"),
        ("(?:(?:|)a)+", "nested_quantifiers"),
        ("a{1000,}", "excessive_repetition"),
        ("a{1000}", "excessive_repetition"),
        ("a{1,5000}", "excessive_repetition"),
        ("a{99999999999}", "excessive_repetition"),
        ("(a{100}){100}", "excessive_repetition"),
        (r"(a)\1", "unsupported"),
        (r"(?<x>a)\k<x>", "unsupported"),
        (r"((a+)+)\1", "unsupported"),
        (r"(?=(a+)+)", "unsupported"),
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
        ("[[:letter:]]", "syntax"),
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
        # one way to match each text, however nested it looks
        "(a|ab)*", "(a|)+", "(a+){2}", "(a?)*", "(?:a?b)+", r'"(?:\\.|[^"\\])*"', r"\w+(?:\.\w+)*", r"(?:\s*,\s*\w+)*",
        "(?:a(?:b(?:c)*)*)*",
        r"(?:[0-9a-f]{1,4}:){7}[0-9a-f]{1,4}", r"\Qab\E+", "(?i)(?:[^a]|a)*", r"(?:\d{1,3}(?:,\d{3})*;)+",
        r"[\w-]+(?:\s+[\w-]+)*",
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


@pytest.mark.parametrize(
    ("pattern", "position"),
    [
        ("(a+)+", 2), ("é(é+)+", 3), ("x(?:b|(a|a))*", 7), ("ab{1000,}", 2), (r"(a)\1", 3), ("x(?<!a)", 1),
        ("a(?>b)", 1),
        ("ab++", 2), ("a)", 1), ("ab[c", 2), ("x(", 1), ("a{3}{4}", 4), (r"foo(\d|,[a-z]+x?)*$", 15),
        ("\U0001f600(x|x)+", 2),
    ],
)  # fmt: skip
def test_the_position_counts_characters(pattern: str, position: int) -> None:
    found = scan(pattern)
    assert found is not None
    assert found.position == position


def test_ignore_case_of_the_operation_counts() -> None:
    assert scan("(a|A)+") is None
    assert scan("(a|A)+", ignore_case=True) is not None


@pytest.mark.parametrize(
    "pattern",
    [
        "(" * 500, "(" * 500 + "a" + ")+" * 250, "(?:" * 39 + "a+" * 200 + ")+" * 39, "(" + "a?b" * 330 + ")+",
        "(?i)(" + "é|" * 400 + ")+", "[" + "a-z" * 300 + "]",
        "|" * 1000, "\\Q" * 400, "a{" * 400, "[[:" * 300, "(?" * 400,
        "(?:" * 39 + "|".join(["a"] * 200) + ")+" * 39, "(" + "".join(f"{chr(0x100 + i)}?" for i in range(340)) + "!)+",
        "(" + "|".join(chr(0x100 + i) for i in range(340)) + ")+",
        "(b" + "".join("|" + "a" * n + "b" for n in range(40)) + ")+",
        "(" + "".join(f"[^{chr(0x100 + i)}]" for i in range(200)) + "|x)+", "(" + "(a|b)" * 160 + "b|a)+",
    ],
)  # fmt: skip
def test_the_scan_is_quick_on_hostile_patterns(pattern: str) -> None:
    took = []
    for _ in range(3):
        start = time.perf_counter()
        scan(pattern)
        took.append(time.perf_counter() - start)
    assert min(took) < 0.1  # 20 ms at rest; the machine may be busy


def ways(node: Node, text: str) -> int:
    """In how many ways does `node` match the whole of `text`, rounds that match nothing left out?"""

    def after(node: Node, starts: dict[int, int]) -> dict[int, int]:
        ends: dict[int, int] = {}
        if node.kind == "empty":
            return starts
        if node.kind == "char":
            for at, count in starts.items():
                if at < len(text) and any(low <= ord(text[at]) <= high for low, high in node.ranges):
                    ends[at + 1] = count
            return ends
        if node.kind == "cat":
            for child in node.children:
                starts = after(child, starts)
            return starts
        if node.kind == "alt":
            for child in node.children:
                add(ends, after(child, starts))
            return ends
        if node.low == 0:
            add(ends, starts)
        for rounds in range(1, (len(text) + node.low if node.high is None else node.high) + 1):
            one: dict[int, int] = {}
            for at, count in starts.items():
                reached = after(node.children[0], {at: count})
                if rounds > max(node.low, 1):
                    reached.pop(at, None)
                add(one, reached)
            starts = one
            if rounds >= node.low:
                add(ends, starts)
            if not starts:
                break
        return ends

    def add(into: dict[int, int], more: dict[int, int]) -> None:
        for at, count in more.items():
            into[at] = into.get(at, 0) + count

    return after(node, {0: 1}).get(len(text), 0)


SYNTAX = st.text(alphabet="ab|()[]{}*+?.\\^$-:<>P=!i,019\nQEpxsé", max_size=60)
LOOPS = st.recursive(
    st.sampled_from(["a", "b", "[ab]", ".", "\\d", "x", "é", "", "\\b", "[a-z]"]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2,}", "{1,3}", "{12}", "*?"])).map(
            lambda p: f"(?:{p[0]}){p[1]}"
        ),
        st.lists(inner, min_size=2, max_size=3).map(lambda branches: f"({'|'.join(branches)})"),
        st.lists(inner, min_size=2, max_size=3).map("".join),
    ),
    max_leaves=8,
)


@given(SYNTAX)
def test_it_never_crashes(pattern: str) -> None:
    found = scan(pattern)
    assert found is None or (found.kind and 0 <= found.position <= len(pattern))


@given(st.text(max_size=40) | SYNTAX | st.text(alphabet="\ud800a(+)\0", max_size=9))
def test_nothing_but_the_documented_error(pattern: str) -> None:
    with contextlib.suppress(InvalidError):
        validate_pattern("pattern", pattern)


@given(LOOPS | SYNTAX)
def test_a_refused_pattern_stays_refused(pattern: str) -> None:
    found = scan(pattern)
    assert scan(pattern) == found
    if found is not None and found.kind != "syntax":  # ")(" is sound once it is in a group
        assert scan(f"({pattern})") is not None
        assert scan(f"(?:{pattern})") is not None
        assert scan(f"(?P<name>{pattern})x") is not None
        if "[^" not in pattern:  # [^a] and A are apart in (?i)
            assert scan(f"(?i){pattern}") is not None
            assert scan(pattern, ignore_case=True) is not None


@given(LOOPS)
def test_a_loop_is_refused_exactly_when_some_text_has_many_ways(pattern: str) -> None:
    """Against counting: what passes has few ways to match any text of `a` and `b`, in a loop of its own."""
    if scan(f"(?:{pattern})*") is None:
        tree = Parser(f"(?:{pattern})*", False).parse()
        for text in ("a" * 14, "ab" * 7, "aab" * 5, "x" * 14, "1" * 14):
            assert ways(tree, text) <= 14**4


@given(st.text(alphabet="ab|()[]*+?.^$", max_size=24) | LOOPS)
def test_what_passes_is_accepted_by_re2(pattern: str) -> None:
    import re2

    if scan(pattern) is None:
        options = re2.Options()
        options.log_errors = False
        re2.compile(pattern, options)


def test_a_pattern_holds_no_nul() -> None:
    with pytest.raises(InvalidError, match="NUL") as caught:
        validate_pattern("pattern", "a\0b")
    assert caught.value.rule == "text.characters"
