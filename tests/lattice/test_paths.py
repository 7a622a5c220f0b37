"""Globs against an independent, slow matcher; the sensitive and protected sets; linear time."""

from __future__ import annotations

import time
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nucleus.lattice.paths import PROTECTED, SENSITIVE, glob_match, is_protected, is_sensitive, path_set


def slow(pattern: str, path: str) -> bool:
    """The definition, by recursion: `**/` is nothing or whole directories, other `**` anything, `*` within a name."""

    @cache
    def at(i: int, j: int) -> bool:
        if i == len(pattern):
            return j == len(path)
        if pattern[i] == "*":
            end = i
            while end < len(pattern) and pattern[end] == "*":
                end += 1
            whole = end - i >= 2 and (i == 0 or pattern[i - 1] == "/") and pattern[end : end + 1] == "/"
            if whole:
                starts = [j] + [k + 1 for k in range(j, len(path)) if path[k] == "/" and k > j]
                # A directory's name is not empty.
                return any(at(end + 1, k) for k in starts if "//" not in "/" + path[j:k])
            for k in range(j, len(path) + 1):
                if at(end, k):
                    return True
                if k < len(path) and path[k] == "/" and end - i == 1:
                    return False
            return False
        if j == len(path):
            return False
        if pattern[i] == "?":
            return path[j] != "/" and at(i + 1, j + 1)
        return pattern[i] == path[j] and at(i + 1, j + 1)

    return at(0, 0)


names = st.text(alphabet="ab", min_size=1, max_size=3)
paths = st.lists(names, min_size=1, max_size=4).map("/".join)


@settings(max_examples=400)
@given(st.lists(st.sampled_from(["**/", "*", "**", "a", "b", "?", "/"]), max_size=7).map("".join), paths)
def test_the_automaton_agrees_with_the_definition(pattern: str, path: str) -> None:
    if "//" not in pattern:
        assert glob_match(pattern, path) == slow(pattern, path)


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("**/*.py", "a.py", True), ("**/*.py", "a/b/c.py", True), ("*.py", "a/b.py", False), ("a/**", "a/b/c", True),
        ("a/**/b", "a/b", True), ("a/**/b", "a/xb", False), ("[a-c]?", "bz", True), ("[!a]x", "ax", False),
        ("[!a]x", "/x", False), ("[]]", "]", True), ("[", "[", True), ("**", "a/b", True), ("", "", True),
        ("a.b", "axb", False), ("a+", "a+", True), ("(a|b)", "a", False),
    ],
)  # fmt: skip
def test_globs(pattern: str, path: str, matches: bool) -> None:
    assert glob_match(pattern, path) is matches


def test_case_can_be_ignored() -> None:
    assert glob_match("*.PEM", "x.pem", ignore_case=True)
    assert not glob_match("*.PEM", "x.pem")


@pytest.mark.parametrize(("pattern", "path"), [("*a" * 500 + "b", "a" * 4096), ("**/" * 300 + "b", "a/" * 2047 + "a")])
def test_matching_is_linear(pattern: str, path: str) -> None:
    start = time.perf_counter()
    assert not glob_match(pattern, path)
    assert time.perf_counter() - start < 0.25


@pytest.mark.parametrize(
    "path",
    [
        ".env", ".ENV", ".Env.local", "a/b/.env", "prod.env", "x.pem", "deep/er/server.KEY", "secrets", "secrets/a/b",
        "a/secrets/b", ".ssh/config", "credentials", "credentials.json", ".aws/config", ".git/config",
        "sub/.git/config",
        "id_rsa", "id_rsa.pub", "id_ed25519", ".npmrc", ".pypirc", "token", "token.txt", ".token", "api_token.json",
        "db-password.txt", "passwords.csv", "PASSWORD",
    ],
)  # fmt: skip
def test_sensitive(path: str) -> None:
    assert is_sensitive(path) in SENSITIVE


@pytest.mark.parametrize(
    "path",
    [
        "tokenizer.rs", "token.py", "password_reset.html", "tokens.go", "exec.py", "chmod.c",
        "README.md", "env.py", "environment", "keys.py", "monkey", "secretsanta.py", "src/credential.rs", ".",
    ],
)  # fmt: skip
def test_not_sensitive(path: str) -> None:
    assert is_sensitive(path) is None


@pytest.mark.parametrize(
    "path",
    [
        ".git", ".git/hooks/pre-commit", ".GIT/config", "sub/.git/HEAD", ".envrc", ".vscode/settings.json", ".claude/x",
        ".mcp.json", ".idea/x", ".husky/pre-push", ".pre-commit-config.yaml", "a/.envrc",
    ],
)  # fmt: skip
def test_protected(path: str) -> None:
    assert is_protected(path) in PROTECTED


@pytest.mark.parametrize("path", [".github/workflows/ci.yml", ".gitignore", "src/git/x.py", "a.envrc.txt", "."])
def test_not_protected(path: str) -> None:
    assert is_protected(path) is None


@pytest.mark.parametrize(
    ("glob", "path", "covered"),
    [
        ("src/", "src/a/b", True), ("src/", "src", True), ("src/**", "src", True), ("src", "lib/src/x", True),
        ("src/a", "x/src/a", False), ("**/src/a", "x/src/a/b", True), ("*.md", "a/b.md", True), ("**", "x/y", True),
        ("**", ".", True), ("docs/*.md", "docs/a.md", True), ("docs/*.md", "docs/x/a.md", False), ("a?c", "x/abc",
        True),
    ],
)  # fmt: skip
def test_policy_globs(glob: str, path: str, covered: bool) -> None:
    assert (path_set(frozenset({glob}), False).find(path) is not None) is covered
