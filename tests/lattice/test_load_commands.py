"""Command rules, and the examples that are checked against them when a policy is loaded."""

from __future__ import annotations

import pytest

from nucleus.errors import InvalidError
from nucleus.lattice import parse_policy
from nucleus.lattice.policy import Argument, CommandRule
from nucleus.store.policies import bundled

HEAD = "version: 1\nname: t\ncapabilities: {}\n"


@pytest.mark.parametrize(
    "text",
    [
        "deny: [{program: git, args: [push], match: [git push, [git, -C, x, push], [env, A=1, git, push]]}]",
        "deny: [{program: git, args: [push], match: ['sh -c git push', [bash, -c, git push]]}]",
        "deny: [{program: git, args: [push], not_match: [git status, git, [echo, git push]]}]",
        "ask: [{program: rm, match: [rm x, timeout 5 rm x, /bin/rm x], not_match: [ls rm]}]",
        "ask: [{program: '*', match: [anything at all]}]",
        "deny: [{set: interpreters, match: [python3.11 x.py, env bash -c ls], not_match: [ls]}]",
        "allow: [{set: ordinary, match: [ls -l, nice make], not_match: [bash -c ls, find . -delete, nosuch]}]",
        "allow: [{program: find, match: [find . -delete]}]",
        "allow: [{program: git, args: [log], rest: none, match: [git log], not_match: [git log -p, git]}]",
        "allow: [{program: psql, args: [-f, {type: path}], match: [psql -f a.sql], not_match: [psql -f -x]}]",
        "allow: [{program: head, args: [-n, {type: integer}], match: [head -n 5 a], not_match: [head -n x]}]",
        "allow: [{program: ./build.sh, match: [./build.sh all], not_match: [build.sh all]}]",
        "allow: [{program: printf, args: [''], match: [[printf, '']], not_match: [printf x]}]",
        "allow: [{program: ls, match: []}]",
    ],
)
def test_examples_that_hold(text: str) -> None:
    parse_policy(HEAD + f"commands: {{{text}}}\n", "t")


@pytest.mark.parametrize(
    ("text", "place", "problem"),
    [
        (
            "deny:\n    - program: git\n      args: [push]\n      match:\n        - git push\n        - git status\n",
            "10:11",
            "commands.deny: match: the rule `git push` does not catch this example, read as 'git status'",
        ),
        (
            "ask: [{program: git, args: [push], not_match: [timeout 5 git push]}]\n",
            "5:50",
            "commands.ask: not_match: the rule `git push` catches this example, read as 'timeout 5 git push, git push'",
        ),
        (
            "allow: [{program: git, args: [log], rest: none, match: [git log -p]}]\n",
            "5:59",
            "commands.allow: match: the rule `git log (rest: none)` does not admit this example, read as 'git log -p'",
        ),
        (
            "allow: [{set: ordinary, match: [find . -delete]}]\n",
            "5:35",
            "read as 'find . -delete'; no set admits it, because find -delete runs or removes more than it says",
        ),
        ("allow: [{set: ordinary, not_match: [ls]}]\n", "5:39", "the rule `set ordinary` admits this example"),
        ("allow: [{set: shells, match: ls}]\n", "5:32", "match must be a list"),
        ("allow: [{set: shells, match: [{a: b}]}]\n", "5:33", "must be text"),
        ("allow: [{set: shells, match: [[]]}]\n", "5:33", "at least a program"),
        ("allow: [{set: shells, match: ['  ']}]\n", "5:33", "at least a program"),
        ("allow: [{set: shells, match: [['', x]]}]\n", "5:33", "at least a program"),
        ("allow: [{set: shells, match: [[[sh]]]}]\n", "5:34", "text"),
        ("allow: [{set: shells, match: [sh -c 'git push']}]\n", "5:33", "quotes are not read"),
        ('allow: [{set: shells, match: ["sh a\\0b"]}]\n', "5:33", "NUL"),
        ("allow: [{set: shells, args: [x]}]\n", "5:11", "not both"),
        ("allow: [{set: shells, matches: []}]\n", "5:25", "unknown key 'matches'"),
        ("allow: [{match: [x]}]\n", "5:11", "needs 'program' or 'set'"),
    ],
)
def test_refused_with_a_place(text: str, place: str, problem: str) -> None:
    with pytest.raises(InvalidError) as caught:
        parse_policy(HEAD + "commands:\n  " + text, "file.yaml")
    assert caught.value.rule == "policy.schema"
    assert caught.value.message.startswith(f"file.yaml:{place}: "), caught.value.message
    assert problem in caught.value.message


def test_examples_leave_nothing_behind() -> None:
    plain = parse_policy(HEAD + "commands: {deny: [{program: git, args: [push]}]}\n", "t")
    assert plain == parse_policy(HEAD + "commands: {deny: [{program: git, args: [push], match: [git push]}]}\n", "t")
    assert plain.commands_deny == {CommandRule("git", args=(Argument("literal", ("push",)),))}


def test_examples_of_a_parent_are_checked_as_its_own() -> None:
    parent = "version: 1\nname: p\ncapabilities: {}\ncommands: {deny: [{program: rm, match: [ls]}]}\n"
    with pytest.raises(InvalidError, match=r"^profile p:4:41: "):
        parse_policy("version: 1\nname: t\nextends: p\n", "t", bundled() | {"p": parent})
