"""The strict schema: each refusal has a place, defaults are safe, money is an integer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nucleus.errors import InvalidError
from nucleus.lattice import capability as cap
from nucleus.lattice import parse_policy, policy_digest
from nucleus.lattice.paths import PROTECTED, SENSITIVE
from nucleus.lattice.policy import EVERYTHING, ORDINARY
from nucleus.limits import LIMITS

HEAD = "version: 1\nname: t\n"
CAPS = "capabilities: {read_files: always}\n"


@pytest.mark.parametrize(
    ("text", "place", "problem"),
    [
        ("", "1:1", "empty"),
        ("[]", "1:1", "mapping"),
        ("x", "1:1", "mapping"),
        (HEAD, "1:1", "'capabilities'"),
        ("version: 2\nname: t\n" + CAPS, "1:10", "version"),
        ('version: "1"\nname: t\n' + CAPS, "1:10", "version"),
        ("version: 1.0\nname: t\n" + CAPS, "1:10", "version"),
        ("version: 1\nname: A b\n" + CAPS, "2:7", "name"),
        (HEAD + CAPS + "extends: x\n", "4:10", "no bundled profile"),
        (HEAD + CAPS + "name: u\n", "4:1", "duplicate key 'name'"),
        (HEAD + "capabilities: {read: always}\n", "3:16", "unknown key 'read'"),
        (HEAD + "capabilities: {read_files: maybe}\n", "3:28", "never, low_risk, always"),
        (HEAD + "capabilities: {read_files: true}\n", "3:28", "one of"),
        (HEAD + "capabilities: {read_files: [always]}\n", "3:28", "text"),
        (HEAD + CAPS + "approve: read_files\n", "4:10", "list"),
        (HEAD + CAPS + "approve: [reading]\n", "4:11", "one of"),
        (HEAD + CAPS + "paths: {allow: all}\n", "4:16", "list"),
        (HEAD + CAPS + "paths:\n  block: [../x]\n", "5:11", "'..'"),
        (HEAD + CAPS + "paths:\n  block: [/etc]\n", "5:11", "relative"),
        (HEAD + CAPS + "paths: {block: ['@secret']}\n", "4:17", "unknown set"),
        (HEAD + CAPS + "paths: {allow: ['@sensitive']}\n", "4:17", "unknown set"),
        (HEAD + CAPS + "paths: {allow: ['.']}\n", "4:17", "'**'"),
        (HEAD + CAPS + "commands: {allow: [git]}\n", "4:20", "mapping"),
        (HEAD + CAPS + "commands: {allow: [{args: [a]}]}\n", "4:20", "'program'"),
        (HEAD + CAPS + "commands: {allow: [{set: all}]}\n", "4:26", "one of"),
        (HEAD + CAPS + "commands: {allow: [{set: shells, program: x}]}\n", "4:20", "not both"),
        (HEAD + CAPS + "commands: {deny: [{program: git push}]}\n", "4:29", "one word"),
        (HEAD + CAPS + "commands: {deny: [{program: git, args: [{type: regex}]}]}\n", "4:48", "one of"),
        (HEAD + CAPS + "commands: {deny: [{program: git, rest: some}]}\n", "4:40", "one of"),
        (HEAD + CAPS + "hosts: {allow: ['http://x']}\n", "4:17", "host"),
        (HEAD + CAPS + "hosts: {allow: ['*']}\n", "4:17", "host"),
        (HEAD + CAPS + "budget: {limit_usd: 5.00}\n", "4:21", "quoted"),
        (HEAD + CAPS + 'budget: {limit_usd: "-1"}\n', "4:21", "dollars"),
        (HEAD + CAPS + 'budget: {limit_usd: "1e3"}\n', "4:21", "dollars"),
        (HEAD + CAPS + 'budget: {limit_usd: "1.0000001"}\n', "4:21", "dollars"),
        (HEAD + CAPS + 'budget: {limit_usd: "٣"}\n', "4:21", "dollars"),
        (HEAD + CAPS + "budget: {}\n", "4:9", "limit_usd"),
        (HEAD + CAPS + "time_window: {duration: 1.5h}\n", "4:25", "whole number"),
        (HEAD + CAPS + "time_window: {duration: 0h}\n", "4:25", "whole number"),
        (HEAD + CAPS + "time_window: {duration: 99999d}\n", "4:25", "30d"),
        (HEAD + CAPS + "time_window: {duration: 1h, not_after: 2026}\n", "4:40", "time"),
        (HEAD + CAPS + "isolation: {floor: none}\n", "4:20", "one of"),
        (HEAD + CAPS + "inherits: x\n", "4:1", "unknown key 'inherits'"),
        (HEAD + CAPS + "trifecta: []\n", "4:11", "at least one"),
        (HEAD + CAPS + "trifecta: [static, all]\n", "4:20", "one of"),
        (HEAD + CAPS + "trifecta: off\n", "4:11", "one of"),
        (HEAD + CAPS + "description: &a x\n", "4:14", "anchors"),
        (HEAD + CAPS + "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "4:4", "anchors"),  # a bomb never starts
        (HEAD + "capabilities: *a\n", "3:15", "anchors"),
        (HEAD + CAPS + "description: !!python/object:os.system x\n", "4:14", "tags"),
        (HEAD + CAPS + "description: !!str x\n", "4:14", "tags"),
        (HEAD + CAPS + "<<: {a: b}\n", "4:1", "plain text"),
        (HEAD + CAPS + "? [a]\n: b\n", "4:3", "plain text"),
        (HEAD + CAPS + "---\nx: 1\n", "4:1", "more than one document"),
        ("%YAML 1.1\n---\n" + HEAD + CAPS, "1:1", "directives"),
        (HEAD + CAPS + "description: 'x\n", "5:1", "not YAML"),
        (HEAD + "\tcapabilities: x\n", "3:1", "not YAML"),
        (HEAD + CAPS + "description: a\x07b\n", "4:15", "U+0007"),
        (HEAD + CAPS + "description: \ud800\n", "", "Unicode"),
        ("[" * 200, "1:14", "too deep"),
        ("a: " + "[" * 5000, "", ""),
        ("#" * (LIMITS.policy_bytes + 1), "1:1", "too long"),
        ("# " + "é" * (LIMITS.policy_bytes // 2), "1:1", "too long"),
        ("- a\n" * 9000, "", "too many"),
    ],
)  # fmt: skip
def test_refused_with_a_place(text: str, place: str, problem: str) -> None:
    with pytest.raises(InvalidError) as caught:
        parse_policy(text, "file.yaml")
    assert caught.value.rule == "policy.schema"
    assert caught.value.message.startswith(f"file.yaml:{place}")
    assert problem in caught.value.message


def test_what_is_not_said_is_safe() -> None:
    p = parse_policy(HEAD + "capabilities: {}\n", "t")
    assert p.capabilities == cap.BOTTOM
    assert p.paths_block == frozenset(SENSITIVE)
    assert p.paths_allow is EVERYTHING
    assert p.commands_allow == frozenset({frozenset({ORDINARY})})
    assert p.hosts_allow == frozenset({frozenset()})
    assert (p.budget_limit, p.window_ns, p.isolation_floor, p.trifecta) == (
        1_000_000,
        3_600 * 10**9,
        "namespaces",
        "static",
    )
    assert set(p.hidden_globs()) == set(SENSITIVE)
    assert p.protected_globs() == PROTECTED


@pytest.mark.parametrize(
    ("text", "micro"), [("5.00", 5_000_000), ("0.5", 500_000), ("0.000001", 1), ("12", 12_000_000), ("0", 0)]
)
def test_money_is_exact(text: str, micro: int) -> None:
    assert parse_policy(HEAD + CAPS + f'budget: {{limit_usd: "{text}"}}\n', "t").budget_limit == micro


def test_everything_is_explicit() -> None:
    text = "paths: {allow: everything, block: []}\ncommands: {allow: everything}\nhosts: {allow: everything}\n"
    p = parse_policy(HEAD + CAPS + text, "t")
    assert p.paths_allow is EVERYTHING
    assert p.commands_allow is EVERYTHING
    assert p.hosts_allow is EVERYTHING
    assert p.paths_block == frozenset()


def test_approve_clears_the_unattended_bit() -> None:
    p = parse_policy(HEAD + "capabilities: {git_push: always}\napprove: [git_push]\n", "t")
    assert not cap.unattended(p.capabilities, "git_push")


def test_digest() -> None:
    assert policy_digest("a") == "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"


@given(st.text(alphabet="ab:- \n[]{}&*!?|>'\"#%@,version1name", max_size=80))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        parse_policy(text, "t")
    except InvalidError:
        pass
