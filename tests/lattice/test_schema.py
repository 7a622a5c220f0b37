"""The JSON Schema and the loader agree, but for what JSON Schema cannot say."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from policy_strategies import policies

from nucleus.errors import InvalidError
from nucleus.lattice import Policy, parse_policy
from nucleus.lattice.emit import emit
from nucleus.lattice.schema import LAXER, policy_schema
from nucleus.store.policies import bundled

jsonschema = pytest.importorskip("jsonschema", reason="jsonschema comes with the development dependencies")
COMMITTED = Path(__file__).resolve().parents[2] / "docs" / "policy.schema.json"
BUNDLED = bundled()
HEAD = "version: 1\nname: t\ncapabilities: {}\n"


class Plain(yaml.SafeLoader):
    """YAML as editors read it: times are text."""


Plain.yaml_implicit_resolvers = {
    key: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:timestamp"]
    for key, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
VALIDATOR = jsonschema.Draft202012Validator(policy_schema())


def by_schema(text: str) -> bool:
    return bool(VALIDATOR.is_valid(yaml.load(text, Plain)))


def by_loader(text: str) -> bool:
    try:
        parse_policy(text, "t", BUNDLED)
    except InvalidError:
        return False
    return True


def test_the_committed_schema_is_the_one_that_is_made() -> None:
    jsonschema.Draft202012Validator.check_schema(policy_schema())
    assert json.loads(COMMITTED.read_text()) == policy_schema()


@pytest.mark.parametrize("name", sorted(BUNDLED))
def test_every_profile_fits(name: str) -> None:
    assert by_schema(BUNDLED[name])
    assert by_schema(emit(parse_policy(BUNDLED[name], name)))


GOOD = [
    "", "description: 5\n", "approve: [git_push]\n", "paths: {}\n", "paths: {allow: everything}\n",
    "paths: {allow: {all_of: [[a], ['b/', 5]]}, block: ['@sensitive', './x', 'a[]b]']}\n", "commands: {}\n",
    "commands: {allow: [{set: shells, match: [sh x]}], deny: [{program: git, args: [push, 5, {one_of: [a, 1]}, "
    "{type: path}], rest: none, not_match: [git x, [git, 1]]}], ask: []}\n",
    "hosts: {allow: ['*.a.com', A.b, x.], ask: [], deny: [a-b_c]}\n", "hosts: {allow: {all_of: [[a.b]]}}\n",
    "tools: {}\n", "tools: {a/b: {legs: []}, a/*: {level: never}, 'a/ü.x': {legs: [state], destination: [to, 5], "
    "level: always, approve: true}}\n", "tools: {all_of: [{}, {a/b: {legs: [private]}}]}\n",
    "budget: {limit_usd: '0.5'}\n", "budget: {limit_usd: '999999.999999'}\n", "time_window: {duration: 90m}\n",
    "time_window: {duration: 000001h, not_before: '2026-01-31T12:00:00Z', not_after: 2027-01-31T12:00:00Z}\n",
    "isolation: {floor: firecracker}\n", "trifecta: all\n", "trifecta: [session, static]\n",
]  # fmt: skip
GOOD_CHILDREN = [
    "extends: codegen\n", "extends: codegen\ncapabilities: {run_bash: never}\n",
    "extends: codegen\ntime_window: {not_after: '2027-01-31T12:00:00Z'}\n",
]  # fmt: skip
BAD = [
    "inherits: x\n", "description: [x]\n", "approve: git_push\n", "approve: [push]\n", "paths: []\n", "paths: ~\n",
    "paths: {allow: all}\n", "paths: {allow: {all_of: []}}\n", "paths: {allow: {all_of: [everything]}}\n",
    "paths: {allow: {}}\n", "paths: {block: everything}\n", "paths: {block: [/etc]}\n", "paths: {block: [a/../b]}\n",
    "paths: {block: ['./']}\n", "paths: {block: ['']}\n", "paths: {block: [~]}\n", "commands: {allow: [git]}\n",
    "commands: {allow: [{}]}\n", "commands: {allow: [{set: all}]}\n", "commands: {allow: [{set: shells, args: []}]}\n",
    "commands: {allow: [{program: a b}]}\n", "commands: {allow: [{program: a, rest: some}]}\n",
    "commands: {allow: [{program: a, args: [[x]]}]}\n", "commands: {allow: [{program: a, args: [{}]}]}\n",
    "commands: {allow: [{program: a, args: [{type: regex}]}]}\n", "commands: {allow: [{program: a, match: a}]}\n",
    "commands: {allow: [{program: a, match: [[]]}]}\n", "commands: {allow: [{program: a, match: ['']}]}\n",
    "commands: {allow: [{program: a, args: [{type: word, one_of: [a]}]}]}\n", "commands: {block: []}\n",
    "hosts: {allow: ['*']}\n", "hosts: {allow: [a..b]}\n", "hosts: {allow: ['http://x']}\n", "hosts: {ask: ['*.']}\n",
    "hosts: {allow: ['a.*']}\n", "tools: []\n", "tools: {a: {legs: []}}\n", "tools: {a/b: {}}\n",
    "tools: {a/b: {level: always}}\n", "tools: {a/b: {legs: [x]}}\n", "tools: {a/b: {legs: [], approve: 'true'}}\n",
    "tools: {a/b: {legs: [], level: high}}\n", "tools: {a/b: {legs: [], destination: [x, x]}}\n",
    "tools: {A/b: {legs: []}}\n", "tools: {a/b*: {legs: []}}\n", "tools: {all_of: []}\n", "budget: {}\n",
    "budget: {limit_usd: 5.00}\n", "budget: {limit_usd: 5}\n", "budget: {limit_usd: '-1'}\n",
    "budget: {limit_usd: '1.0000001'}\n", "budget: {limit_usd: '1.'}\n", "budget: {limit_usd: '١'}\n",
    "time_window: {}\n", "time_window: {duration: 1.5h}\n", "time_window: {duration: 0h}\n",
    "time_window: {duration: 90}\n", "time_window: {duration: 1h, not_after: tomorrow}\n", "isolation: {}\n",
    "isolation: {floor: none}\n", "trifecta: off\n", "trifecta: []\n", "trifecta: [all]\n", "extends: 5\n",
]  # fmt: skip
BAD_WHOLE = [
    "[]", "x", "{}", "version: 1\nname: t\n", "version: 2\nname: t\ncapabilities: {}\n",
    "version: '1'\nname: t\ncapabilities: {}\n", "version: 1\nname: A b\ncapabilities: {}\n",
    "version: 1\ncapabilities: {}\n", "version: 1\nname: t\ncapabilities: {read: always}\n",
    "version: 1\nname: t\ncapabilities: {read_files: 1}\n", "version: 1\nname: t\ncapabilities: {read_files: true}\n",
]  # fmt: skip


@pytest.mark.parametrize(
    "text", [*(HEAD + text for text in GOOD), *("version: 1\nname: t\n" + t for t in GOOD_CHILDREN)]
)
def test_both_take_it(text: str) -> None:
    parse_policy(text, "t", BUNDLED)
    VALIDATOR.validate(yaml.load(text, Plain))


@pytest.mark.parametrize("text", [*(HEAD + text for text in BAD), *BAD_WHOLE])
def test_both_refuse_it(text: str) -> None:
    assert (by_loader(text), by_schema(text)) == (False, False)


@pytest.mark.parametrize(
    "text",
    [
        HEAD + "name: u\n", HEAD + "version: 1.0\n".replace("version", "# version"),
        "version: 1.0\nname: t\ncapabilities: {}\n", HEAD + "budget: {limit_usd: 08}\n",
        HEAD + "tools: {a/b: {legs: [], approve: yes}}\n", HEAD + "time_window: {duration: 31d}\n",
        HEAD + "time_window: {duration: 1h, not_after: '2026-13-31T12:00:00Z'}\n", HEAD + "paths: {block: ['a[b']}\n",
        HEAD + "commands: {deny: [{program: rm, match: [ls]}]}\n",
        "version: 1\nname: t\nextends: codegen\ncapabilities: {git_push: always}\n",
    ],
)  # fmt: skip
def test_what_only_the_loader_refuses(text: str) -> None:
    """`LAXER`, a sample of each line."""
    assert len(LAXER) == 6
    assert by_schema(text)
    assert by_loader(text) is ("# version" in text)


def spots(data: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    out = [at]
    for key, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        out += spots(value, (*at, key))
    return out


VALUES: list[Any] = [
    None, 0, 1, 5.5, True, "", "x", "never", "everything", "*", "a/b", "5.00", "1h", [], ["x"], [[]], {},
    {"all_of": [[]]}, {"program": "x"}, {"legs": []}, {"a/b": {"legs": []}}, [{"set": "shells"}],
]  # fmt: skip


@given(policies, st.data())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_the_schema_refuses_the_loader_refuses(policy: Policy, data: st.DataObject) -> None:
    document = yaml.load(emit(policy), Plain)
    assert VALIDATOR.is_valid(document)
    changed = copy.deepcopy(document)
    at = data.draw(st.sampled_from(spots(document)[1:]))
    holder = changed
    for key in at[:-1]:
        holder = holder[key]
    if data.draw(st.booleans()):
        holder[at[-1]] = data.draw(st.sampled_from(VALUES))
    else:
        del holder[at[-1]]
    text = yaml.safe_dump(changed, allow_unicode=True)
    assert by_schema(text) or not by_loader(text), text
