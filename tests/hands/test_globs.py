"""The glob language: one table, and no pattern that costs more than its length."""

from __future__ import annotations

import time

import pytest

from nucleus.hands.globs import Glob, covers, excluded


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("*.py", ["a.py", ".py", "a\n.py"], ["d/a.py", "a.pyc", "a.PY"]),
        ("**/*.py", ["a.py", "d/a.py", "d/e/a.py"], ["a.pyc"]),
        ("**", ["a", "d/e", ".hidden"], []),
        ("src/**", ["src/a", "src/b/c"], ["src", "xsrc/a"]),
        ("src/**/x", ["src/x", "src/a/x", "src/a/b/x"], ["src/ax", "x"]),
        ("a**b", ["ab", "a/x/b"], ["ba"]),
        ("?", ["a", "é", "日"], ["/", "ab", ""]),
        ("[ab]", ["a", "b"], ["c", "ab"]),
        ("[!ab]", ["c"], ["a", "/"]),
        ("[^a-c]x", ["dx"], ["ax", "/x"]),
        ("[]]", ["]"], ["["]),
        ("[a-]", ["a", "-"], ["b"]),
        ("[z-a]", [], ["a", "z", "-"]),
        ("[", ["["], []),
        ("a.b+(c)|d$^\\", ["a.b+(c)|d$^\\"], ["aXb", "d"]),
        ("\\d", ["\\d"], ["1", "d"]),
        ("(?i)a", ["(xi)a"], ["a", "A"]),
    ],
)
def test_the_language(pattern: str, yes: list[str], no: list[str]) -> None:
    glob = Glob((pattern,))
    assert [name for name in yes if not glob.matches(name)] == []
    assert [name for name in no if glob.matches(name)] == []


def test_an_exclude_list_ignores_case_and_covers_what_is_below() -> None:
    skip = excluded((".env*", "**/key", "secrets/", "./private/**", "top/only", "/root.txt", "**/.git/config"))
    inside = (".env", "a/.ENV.local", "secrets", "a/Secrets/b/c", "top/only", "top/only/x", "x/key", "private/x")
    for name in (*inside, "root.txt", ".git/config", "a/.git/config"):
        assert covers(skip, name), name
    for name in ("env", "a/secretsx", "x/top/only", ".", "a/root.txt", "keys", ".git"):
        assert not covers(skip, name), name
    assert not covers(excluded(()), "anything")


def test_long_lists_and_hostile_patterns_are_quick() -> None:
    started = time.monotonic()
    skip = excluded(tuple(f"**/*{word}{number}*.t?t" for word in ("token", "pass") for number in range(300)))
    for _ in range(1_000):
        assert not covers(skip, "src/some/ordinary/name.py")
    assert not Glob(("*a" * 500,)).matches("a" * 4_000 + "b")
    assert not Glob(("**/" * 300 + "x",)).matches("a/" * 2_000)
    assert time.monotonic() - started < 2


def test_the_exclude_list_agrees_with_the_policy() -> None:
    """The gate's block list is the enforcement; this one must not drift from it."""
    from nucleus.lattice.paths import SENSITIVE, path_set

    globs = (*SENSITIVE, "a/*/b", "**/x/**/y", "top/", "[ab]c?", "q**r", "./z", "**")[:-1]
    ours, theirs = excluded(globs), path_set(frozenset(globs), True)
    names = [
        "a/1/b", "a/1/2/b", "x/y", "x/1/y/z", "top/x", "n/top/x", "bcd", "n/acX/1", "q/r", "qr", "z", "n/z", ".env",
        "src/a.py", "token.txt", "my_token.json", "tokenizer.rs", "x/.Git/Config", ".git/hooks/x", "ID_RSA.pub",
        "n/.aws/x/y", "k.pem",
    ]  # fmt: skip
    assert {name for name in names if covers(ours, name)} == {name for name in names if theirs.find(name)}
