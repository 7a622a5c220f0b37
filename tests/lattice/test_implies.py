"""One entry covers another: never claimed where it does not hold, and found where people expect it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_strategies import rule_sets, rules

from nucleus.lattice.compiled import Rules
from nucleus.lattice.decision import caught
from nucleus.lattice.implies import admitted, canonical_glob, caught_by, glob_covered, host_covered
from nucleus.lattice.paths import path_set
from nucleus.lattice.policy import Argument, CommandRule


@pytest.mark.parametrize(
    ("glob", "globs"),
    [
        ("src/", ["src"]), ("src/**", ["src/"]), ("./src/a", ["src/"]), ("src/**/*.py", ["src/"]), ("x", ["**"]),
        ("a.py", ["*.py"]), ("src/a.py", ["*.py"]), ("src/*.py", ["*.py"]), ("test_*.py", ["*.py"]), ("**/a", ["a"]),
        ("secrets/x/y", ["secrets/"]), (".env.local", [".env*"]), (".env.*", [".env*"]), ("/src", ["src"]),
        ("/src", ["/src/"]), ("/src/x", ["src/"]), ("a/b/*.c", ["a/b"]), ("**", ["**"]),
    ],
)  # fmt: skip
def test_globs_covered(glob: str, globs: list[str]) -> None:
    assert glob_covered(glob, frozenset(globs))


@pytest.mark.parametrize(
    ("glob", "globs"),
    [
        ("src", ["src/a"]), ("**", ["*.py"]), ("*.py", ["test_*.py"]), ("src", ["/src"]), ("x", ["/x/"]), ("a", []),
        ("**/a/b", ["a/b"]), ("*", ["*.py"]), ("a[.]py", ["*.py"]), ("SRC", ["src"]), ("a/**", ["a/b"]), ("**", ["*"]),
    ],
)  # fmt: skip
def test_globs_not_covered(glob: str, globs: list[str]) -> None:
    assert not glob_covered(glob, frozenset(globs))


def test_case_is_ignored_where_it_is_in_the_list() -> None:
    assert glob_covered("SRC/a", frozenset({"src/"}), fold=True)
    assert canonical_glob("./A/**/", fold=True) == "/a"


pieces = st.sampled_from(["a", "b", ".env", "*", "*.py", "a*", "?", "**", "[ab]", "x.py", "src"])
some_globs = st.lists(pieces, min_size=1, max_size=3).map("/".join) | pieces.map(lambda text: f"/{text}")
paths = st.lists(st.sampled_from(["a", "b", "ab", ".env", "x.py", "src", "A", "a.py"]), min_size=1, max_size=4).map(
    "/".join
)


@settings(max_examples=1500, deadline=None)
@given(some_globs, st.frozensets(some_globs, min_size=1, max_size=3), paths, st.booleans())
def test_what_is_said_of_globs_holds(glob: str, globs: frozenset[str], path: str, fold: bool) -> None:
    if glob_covered(glob, globs, fold=fold) and path_set(frozenset((glob,)), fold).find(path) is not None:
        assert path_set(globs, fold).find(path) is not None


def test_hosts() -> None:
    assert host_covered("a.b", ["a.b"])
    assert host_covered("x.a.b", ["*.a.b"])
    assert host_covered("*.x.a.b", ["*.a.b"])
    for host, line in (("a.b", "*.a.b"), ("*.a.b", "a.b"), ("*.b", "*.a.b"), ("evil-a.b", "*.a.b"), ("xa.b", "a.b")):
        assert not host_covered(host, [line]), (host, line)


GIT = CommandRule("git")
PUSH = CommandRule("git", args=(Argument("literal", ("push",)),))


def test_allow_rules() -> None:
    assert admitted(PUSH, [GIT], flagged=True)
    assert not admitted(GIT, [PUSH], flagged=True)
    assert admitted(GIT, [CommandRule(group="ordinary")], flagged=False)
    # `git -c x` is on no set's list, and on its own rule's.
    assert not admitted(GIT, [CommandRule(group="ordinary")], flagged=True)
    assert admitted(CommandRule(group="shells"), [CommandRule(group="interpreters")], flagged=True)
    assert not admitted(CommandRule(group="network"), [CommandRule(group="ordinary")], flagged=True)
    assert admitted(CommandRule(group="network"), [CommandRule("*")], flagged=True)
    assert not admitted(CommandRule("*"), [CommandRule(group="ordinary")], flagged=False)


def test_catching_rules() -> None:
    assert caught_by(PUSH, [GIT])
    assert caught_by(CommandRule("git", args=(Argument("word"), Argument("literal", ("push",)))), [PUSH])
    assert not caught_by(GIT, [PUSH])
    assert caught_by(CommandRule("bash"), [CommandRule(group="interpreters")])


argvs = st.tuples(
    st.sampled_from(["git", "ls", "bash", "./x.sh", "python3", "python3.11", "curl"]),
    st.lists(st.sampled_from(["push", "a", "b c", "1", "-x", "../y", "- \"'\\ü"]), max_size=3).map(tuple),
)


@settings(max_examples=800, deadline=None)
@given(rules, rule_sets, argvs)
def test_what_is_said_of_rules_holds(
    rule: CommandRule, others: frozenset[CommandRule], argv: tuple[str, tuple[str, ...]]
) -> None:
    program, args = argv
    if rule.admits(program, args) and admitted(rule, others, flagged=True):
        assert any(other.admits(program, args) for other in others)
    if caught_by(rule, others) and (rule.admits(program, args) or caught(Rules(frozenset((rule,))), program, args)):
        assert caught(Rules(others), program, args) is not None
