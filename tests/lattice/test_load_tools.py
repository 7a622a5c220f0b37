"""Declared tools: read exactly, refused with a place; and the modes of the trifecta."""

from __future__ import annotations

import pytest

from nucleus.errors import InvalidError
from nucleus.lattice import capability as cap
from nucleus.lattice import parse_policy
from nucleus.lattice.policy import ToolRule

HEAD = "version: 1\nname: t\ncapabilities: {}\n"


def test_tools() -> None:
    text = """\
tools:
  mail/send_email: {legs: [exfiltration, state], destination: [recipients, cc, bcc], level: always}
  mail/search: {legs: [private, untrusted], level: always}
  calendar/*: {legs: [private, untrusted, state]}
  bank/pay: {legs: [], approve: true}
  bank/Close.All-2: {level: never}
"""
    (table,) = parse_policy(HEAD + text, "t").tools
    assert table == {
        ToolRule("mail/send_email", cap.EXFILTRATION | cap.STATE, ("recipients", "cc", "bcc"), cap.ALWAYS),
        ToolRule("mail/search", cap.PRIVATE | cap.UNTRUSTED, (), cap.ALWAYS),
        ToolRule("calendar/*", cap.PRIVATE | cap.UNTRUSTED | cap.STATE, (), cap.LOW_RISK),
        ToolRule("bank/pay", 0, (), cap.LOW_RISK, True),
        ToolRule("bank/Close.All-2", 0, (), cap.NEVER),
    }


def test_a_conjunction_of_tables() -> None:
    found = parse_policy(HEAD + "tools: {all_of: [{a/b: {legs: [private]}}, {a/*: {level: never}}]}\n", "t")
    assert found.tools == {frozenset({ToolRule("a/b", cap.PRIVATE)}), frozenset({ToolRule("a/*", 0, (), cap.NEVER)})}
    assert parse_policy(HEAD + "tools: {}\n", "t").tools == {frozenset()} == parse_policy(HEAD, "t").tools


@pytest.mark.parametrize(
    ("text", "place", "problem"),
    [
        ("tools: []\n", "4:8", "mapping"),
        ("tools: x\n", "4:8", "mapping"),
        ("tools: {mail: {legs: []}}\n", "4:9", "server/tool"),
        ("tools: {all_of: []}\n", "4:17", "at least one"),
        ("tools: {all_of: x}\n", "4:17", "must be a list"),
        ("tools: {all_of: [[]]}\n", "4:18", "mapping"),
        ("tools: {all_of: [{}], a/b: {legs: []}}\n", "4:23", "unknown key 'a/b'"),
        ("tools: {Mail/x: {legs: []}}\n", "4:9", "server/tool"),
        ("tools: {/x: {legs: []}}\n", "4:9", "server/tool"),
        ("tools: {a/: {legs: []}}\n", "4:9", "server/tool"),
        ("tools: {a/b/c: {legs: []}}\n", "4:9", "server/tool"),
        ("tools: {a/b*: {legs: []}}\n", "4:9", "server/tool"),
        ("tools: {'a/b c': {legs: []}}\n", "4:9", "server/tool"),
        ("tools: {'*/b': {legs: []}}\n", "4:9", "server/tool"),
        ('tools: {"a/b\\u202e": {legs: []}}\n', "4:9", "invisible"),
        (f"tools: {{a/{'x' * 129}: {{legs: []}}}}\n", "4:9", "128 bytes"),
        ("tools: {a/b: {}}\n", "4:14", "needs the key 'legs'"),
        ("tools: {a/b: {level: always}}\n", "4:14", "needs the key 'legs'"),
        ("tools: {a/b: {legs: private}}\n", "4:21", "must be a list"),
        ("tools: {a/b: {legs: [secret]}}\n", "4:22", "private, untrusted, exfiltration, state"),
        ("tools: {a/b: {legs: [], level: high}}\n", "4:32", "one of never, low_risk, always"),
        ("tools: {a/b: {legs: [], approve: yes}}\n", "4:34", "true or false"),
        ("tools: {a/b: {legs: [], approve: 'true'}}\n", "4:34", "true or false"),
        ("tools: {a/b: {legs: [], destination: to}}\n", "4:38", "must be a list"),
        ("tools: {a/b: {legs: [], destination: [to, to]}}\n", "4:43", "each once"),
        ("tools: {a/b: {legs: [], destination: ['']}}\n", "4:39", "each once"),
        ("tools: {a/b: {legs: [], arguments: {}}}\n", "4:25", "unknown key 'arguments'"),
        ("tools: {a/b: {legs: []}, a/b: {legs: []}}\n", "4:26", "duplicate key 'a/b'"),
        ("trifecta: {static: true}\n", "4:11", "must be a list"),
        ("trifecta: [none]\n", "4:12", "one of static, session, provenance"),
        ("paths: {allow: {all_of: []}}\n", "4:25", "at least one list"),
        ("paths: {allow: {all_of: [everything]}}\n", "4:26", "must be a list"),
        ("paths: {allow: {any_of: [[a]]}}\n", "4:17", "unknown key 'any_of'"),
        ("paths: {block: {all_of: [[a]]}}\n", "4:16", "must be a list"),
        ("hosts: {allow: {all_of: [[a..b]]}}\n", "4:27", "host"),
        ("hosts: {allow: [.a.com]}\n", "4:17", "host"),
        ("commands: {allow: {all_of: [[x]]}}\n", "4:30", "mapping"),
        ("commands: {allow: {}}\n", "4:19", "'all_of'"),
    ],
)  # fmt: skip
def test_refused_with_a_place(text: str, place: str, problem: str) -> None:
    with pytest.raises(InvalidError) as caught:
        parse_policy(HEAD + text, "file.yaml")
    assert caught.value.rule == "policy.schema"
    assert caught.value.message.startswith(f"file.yaml:{place}: "), caught.value.message
    assert problem in caught.value.message


def test_conjunctions_of_lists() -> None:
    text = (
        "paths: {allow: {all_of: [[src/], [a, b], []]}}\nhosts: {allow: {all_of: [['*.a.com']]}}\n"
        "commands: {allow: {all_of: [[{set: ordinary}], [{program: git}]]}}\n"
    )
    found = parse_policy(HEAD + text, "t")
    assert found.paths_allow == {frozenset({"src/"}), frozenset({"a", "b"}), frozenset()}
    assert found.hosts_allow == {frozenset({"*.a.com"})}
    assert not isinstance(found.commands_allow, frozenset) or len(found.commands_allow) == 2


@pytest.mark.parametrize(
    ("text", "modes"),
    [
        ("static", "static"), ("session", "session"), ("provenance", "provenance"), ("all", "provenance+static"),
        ("[session]", "session"), ("[static, session]", "session+static"), ("[static, static]", "static"),
        ("[session, provenance, static]", "provenance+session+static"),
    ],
)  # fmt: skip
def test_modes(text: str, modes: str) -> None:
    assert parse_policy(HEAD + f"trifecta: {text}\n", "t").trifecta == modes
