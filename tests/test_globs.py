"""One spelling of a glob, and three places that read it: the lattice, hands, and the walk over a workspace."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nucleus.globs import anchored
from nucleus.hands.globs import covers, excluded
from nucleus.lattice.paths import path_set
from nucleus.pod.names import matcher


@pytest.mark.parametrize(
    ("glob", "spelled"),
    [
        ("src", "src"), ("src/", "src"), ("*.py", "*.py"), ("**/src", "src"), ("**/**/src/", "src"),
        ("**/src/**", "src"),
        ("src/**", "/src"), ("./src", "/src"), ("./src/**/", "/src"), ("/src", "/src"), ("a/b", "/a/b"),
        ("**/a/b", "/**/a/b"), ("**/**/a/b/**", "/**/a/b"), ("a/**/b", "/a/**/b"), ("secret**", "/**/secret**"),
        ("**/secret**", "/**/secret**"), ("a**b", "/**/a**b"), ("x/a**", "/x/a**"), ("**", "/**"), ("**/**", "/**"),
        ("./**", "/**"), ("/**", "/**"), ("/", "/**"), ("**/*", "*"),
    ],
)  # fmt: skip
def test_one_spelling(glob: str, spelled: str) -> None:
    assert anchored(glob) == spelled
    assert anchored(spelled) == spelled


pieces = st.sampled_from(
    [
        "a",
        "b",
        "ab",
        ".env",
        "*",
        "*.py",
        "a*",
        "?",
        "**",
        "a**",
        "**b",
        "[ab]",
        "[!a]",
        "A",
        "[B-a]",
        "[!A-C]",
        "[A]b",
        "[!]",
    ]
)
globs = st.builds(
    lambda before, parts, after: before + "/".join(parts) + after,
    st.sampled_from(["", "", "", "./", "/", "**/"]),
    st.lists(pieces, min_size=1, max_size=3),
    st.sampled_from(["", "", "/", "/**", "/**/"]),
)
paths = st.lists(st.sampled_from(["a", "b", "ab", ".env", "x.py", "A"]), min_size=1, max_size=4).map("/".join)


@settings(max_examples=3000, deadline=None)
@given(st.lists(globs, min_size=1, max_size=3), paths)
def test_the_three_matchers_agree(some: list[str], path: str) -> None:
    decided = path_set(frozenset(some), True).covers(path)
    assert covers(excluded(tuple(some)), path) == decided
    match = matcher(some)  # a walk asks for every directory on the way
    above = [path[:at] for at in range(len(path) + 1) if at == len(path) or path[at] == "/"]
    assert any(match(name) for name in above) == decided
