"""Warnings: what can never matter is named, and nothing else."""

from __future__ import annotations

import pytest

from nucleus.lattice import parse_policy
from nucleus.lattice.lint import warnings
from nucleus.store.policies import bundled

NOW = 1_790_000_000 * 10**9
HEAD = "version: 1\nname: t\ncapabilities: {run_bash: low_risk, web_fetch: low_risk}\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("isolation: {floor: firecracker}\n", "isolation.floor: firecracker is not in this version"),
        ('time_window: {duration: 1h, not_after: "2026-01-01T00:00:00Z"}\n', "not_after has passed"),
        (
            'time_window: {duration: 1h, not_before: "2027-01-02T00:00:00Z", not_after: "2027-01-01T00:00:00Z"}\n',
            "not_after is not after not_before",
        ),
        ('budget: {limit_usd: "0"}\n', "nothing that costs"),
        ("paths: {allow: [src/, .env.local]}\n", "paths.allow: .env.local never matters: paths.block covers it"),
        ("paths: {allow: []}\n", "an empty list"),
        ("hosts: {allow: [x.a.com], deny: ['*.a.com']}\n", "hosts.allow: x.a.com never matters: hosts.deny"),
        ("hosts: {allow: [a.com], ask: [a.com]}\n", "hosts.allow: a.com never matters: hosts.ask"),
        ("hosts: {ask: [a.com], deny: [a.com]}\n", "hosts.ask: a.com never matters: hosts.deny"),
        ("commands: {allow: [{program: rm}], ask: [{program: rm}]}\n", "commands.allow: rm never matters"),
        ("commands: {ask: [{program: bash}], deny: [{set: shells}]}\n", "commands.ask: bash never matters"),
    ],
)
def test_warned(text: str, expected: str) -> None:
    found = warnings(parse_policy(HEAD + text, "t"), NOW)
    assert len(found) == 1, found
    assert expected in found[0]


def test_lists_without_their_capability() -> None:
    text = "version: 1\nname: t\ncapabilities: {}\ncommands: {deny: [{program: x}]}\nhosts: {deny: [a.com]}\n"
    assert [line.partition(" ")[0] for line in warnings(parse_policy(text, "t"), NOW)] == [
        "commands.deny",
        "hosts.deny",
    ]


@pytest.mark.parametrize("name", sorted(bundled()))
def test_the_profiles_have_none(name: str) -> None:
    assert warnings(parse_policy(bundled()[name], name), NOW) == []


def test_an_entry_that_matters_is_not_named() -> None:
    text = (
        "paths: {allow: [src/]}\nhosts: {allow: ['*.a.com'], ask: [x.a.com]}\n"
        "commands: {allow: [{program: git}], deny: [{program: git, args: [push]}]}\n"
    )
    assert warnings(parse_policy(HEAD + text, "t"), NOW) == []
