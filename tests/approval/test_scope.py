"""Scopes: what a wider answer covers, and that its line and its key say the same."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from nucleus.approval import display
from nucleus.approval.scope import KINDS, MAX_OFFERED, MAX_SHOWN, Scope, answers, scopes
from nucleus.gate.scopes import offered
from nucleus.lattice import Policy, parse_policy
from nucleus.lattice import capability as cap
from nucleus.lattice.policy import ToolRule
from nucleus.model.decision import Decision, Verdict
from nucleus.model.operation import (
    Base,
    CallTool,
    CreatePr,
    Edit,
    GitCommit,
    GitPush,
    ManagePods,
    Read,
    Run,
    WebFetch,
    WebSearch,
    Write,
    operation_hash,
)  # fmt: skip
from nucleus.validate import validate_operation

ASK = Decision(
    Verdict.ASK, "approve.x", "needs a human", obligations=("approval:x",), met=(("approve.x", Verdict.ASK),)
)
TOOLS = replace(
    parse_policy("version: 1\nname: t\ncapabilities: {}\n", "t"),
    tools=frozenset((frozenset((
        ToolRule("mail/send", cap.EXFILTRATION | cap.STATE, ("to", "cc")),
        ToolRule("mail/search", cap.PRIVATE | cap.UNTRUSTED, approve=True),
    )),)),
)  # fmt: skip


def offer(operation: Base, decision: Decision = ASK, policy: Policy | None = None) -> dict[str, Scope]:
    operation = validate_operation(operation)
    found = offered(operation, operation_hash(operation), decision, policy)
    assert len(found) <= MAX_OFFERED
    assert {scope.kind for scope in found} <= set(KINDS)
    assert all(len(scope.key) == 64 and len(scope.shown) <= MAX_SHOWN for scope in found)
    return {scope.kind: scope for scope in found}


def covers(kind: str, given: Base, asked: Base, policy: Policy | None = None) -> bool:
    """Whether a grant for `given` would answer `asked`."""
    keys = {scope.key for scope in offer(asked, policy=policy).values()}
    return offer(given, policy=policy)[kind].key in keys


W = Write(path="notes.txt", content="a")


@pytest.mark.parametrize(
    ("kind", "given", "asked", "covered"),
    [
        ("same", W, Write(path="notes.txt", content="a"), True),
        ("same", W, Write(path="notes.txt", content="b"), False),
        ("path", W, Write(path="notes.txt", content="b"), True),
        ("path", W, Write(path="notes.txt", content="YQ==", encoding="base64"), True),
        ("path", W, Write(path="./sub/..//notes.txt", content="b"), True),  # the same file: validation says so
        ("path", W, Write(path="notes.txt/../secret", content="b"), False),
        ("path", W, Write(path="Notes.txt", content="a"), False),
        ("path", W, Write(path="notes.txt2", content="a"), False),
        ("path", W, Write(path="sub/notes.txt", content="a"), False),
        ("path", W, Write(path="note\u0455.txt", content="a"), False),
        ("path", W, Edit(path="notes.txt", old="a", new="b"), False),
        ("path", W, Read(path="notes.txt"), False),
        ("path", Read(path="x"), Read(path="x", offset=7), True),
        ("command", Run(argv=("make", "x")), Run(argv=("make", "x"), timeout_ms=5), True),
        ("command", Run(argv=("make", "x")), Run(argv=("make", "x"), stdin="i"), False),
        ("command", Run(argv=("make", "x")), Run(argv=("make", "x"), cwd="d"), False),
        ("command", Run(argv=("make", "x")), Run(argv=("make x",)), False),
        ("command", Run(argv=("make", "x")), Run(argv=("make", "x", "")), False),
        ("same", Run(argv=("make", "x")), Run(argv=("make", "x"), timeout_ms=5), False),
        ("host", WebFetch(url="https://a.org/x"), WebFetch(url="https://A.org:443/y?z", method="HEAD"), True),
        ("host", WebFetch(url="https://a.org/x"), WebFetch(url="http://a.org/x"), False),
        ("host", WebFetch(url="https://a.org/x"), WebFetch(url="https://a.org:444/x"), False),
        ("host", WebFetch(url="https://a.org/x"), WebFetch(url="https://b.a.org/x"), False),
        ("host", WebFetch(url="https://a.org/x"), WebFetch(url="https://a.org/x", method="POST"), False),
        ("host", WebFetch(url="https://a.org/x"), WebFetch(url="https://a.org/x", body="b"), False),
        ("remote", GitPush(), GitPush(), True),
        ("remote", GitPush(), GitPush(ref="main"), False),
        ("remote", GitPush(), GitPush(remote="other"), False),
    ],
)  # fmt: skip
def test_what_a_scope_covers(kind: str, given: Base, asked: Base, covered: bool) -> None:
    assert covers(kind, given, asked) is covered


def test_what_is_offered() -> None:
    for operation, kinds in (
        (W, ["same", "path"]),
        (Run(argv=("x",)), ["same", "command"]),
        (WebFetch(url="https://a.org/"), ["same", "host"]),
        (WebFetch(url="https://a.org/", method="POST", body="b"), ["same"]),
        (GitPush(), ["remote"]),  # the same words push something else each time: the line says so
        (GitCommit(message="m"), ["same"]),
        (CreatePr(title="t"), ["same"]),
        (WebSearch(query="q"), ["same"]),
        (ManagePods(action="create", name="x"), ["same"]),
    ):
        assert list(offer(operation)) == kinds


def tool(name: str = "send", **arguments: Any) -> CallTool:
    return CallTool(server="mail", tool=name, arguments=arguments)


@pytest.mark.parametrize(
    ("asked", "covered"),
    [
        (tool(to=["a@x"], text="other"), True),
        (tool(to=["a@x"], cc=["b@x"], text="t"), False),
        (tool(to=["a@x"], cc=[], text="t"), False),
        (tool(to=["a@x", "b@x"], text="t"), False),
        (tool(to="a@x", text="t"), False),
        (tool("search", to=["a@x"]), False),
        (CallTool(server="other", tool="send", arguments={"to": ["a@x"]}), False),
    ],
)
def test_a_tool_with_its_destinations(asked: CallTool, covered: bool) -> None:
    assert covers("tool", tool(to=["a@x"], text="t"), asked, TOOLS) is covered


def test_a_tool_whose_destination_nobody_declared_or_gave_is_not_offered_wider() -> None:
    for operation, policy in (
        (tool(to=["a@x"]), None),
        (tool("undeclared", to=["a@x"]), TOOLS),
        (tool("search", to=["a@x"]), TOOLS),
        (tool(to=[], text="t"), TOOLS),
        (tool(text="t"), TOOLS),
    ):
        assert list(offer(operation, policy=policy)) == ["same"]


def test_a_yes_for_one_reason_answers_no_other() -> None:
    """The session has seen untrusted content since, or the policy asks by another rule: another key."""
    two = Decision(
        Verdict.ASK, "approve.x", "r", obligations=("approval:x",),
        met=(("approve.x", Verdict.ASK), ("paths", Verdict.ALLOW), ("trifecta.session", Verdict.ASK)),
    )  # fmt: skip
    further = Decision(Verdict.ASK, "approve.x", "r", obligations=("approval:x", "approval:git_push"), met=ASK.met)
    other = Decision(Verdict.ASK, "hosts.ask", "r", obligations=("approval:x",), met=(("hosts.ask", Verdict.ASK),))
    allowed = Decision(
        Verdict.ASK, "approve.x", "worded otherwise", "detail", obligations=("approval:x",),
        met=(("capabilities.x", Verdict.ALLOW), ("approve.x", Verdict.ASK)),
    )  # fmt: skip
    for kind in ("same", "path"):
        keys = [offer(W, decision)[kind].key for decision in (ASK, two, further, other)]
        assert len(set(keys)) == 4
        assert offer(W, allowed)[kind].key == keys[0]
    assert answers(two, ASK)
    assert not answers(ASK, two)
    assert not answers(ASK, further)
    assert not answers(ASK, other)
    assert answers(ASK, allowed)


TRICKS = [
    "a",
    "a b",
    'a", any content',
    "a\\u0062",
    "a\\",
    "a\u202eb",
    "a\nb",
    "b\nwrite to a",
    "ä",
    "a\u0308",
    "\ud800",
]


def test_no_two_scopes_look_the_same() -> None:
    """What is shown is what is matched: other values, another line, escaped as the authority escapes it."""
    found: dict[str, str] = {}
    operations: list[Base] = [kind(path=text, **more) for text in TRICKS for kind, more in (  # type: ignore[operator]
        (Read, {}), (Write, {"content": "x"}), (Edit, {"old": "a", "new": "b"}),
    )]  # fmt: skip
    operations += [Run(argv=pair, cwd=cwd) for pair in itertools.product(TRICKS, repeat=2) for cwd in (".", "a")]
    operations += [Run(argv=("a", "a"), stdin=text) for text in TRICKS]
    operations += [GitPush(remote=a, ref=b) for a, b in itertools.product(TRICKS, repeat=2)]
    operations += [tool(to=text) for text in TRICKS]
    for operation in operations:
        values = {"to": operation.arguments["to"]} if isinstance(operation, CallTool) else None
        scope = scopes(operation, "0" * 64, ASK, destinations=values)[-1]
        line = display.escape(scope.shown)
        assert "\n" not in line
        assert "\u202e" not in line
        assert found.setdefault(line, scope.key) == scope.key
    assert len(found) == len({*found.values()}) == len(operations)


def test_what_cannot_be_shown_whole_is_not_offered() -> None:
    assert list(offer(Run(argv=("x" * MAX_SHOWN,)))) == ["same"]
    assert list(offer(Write(path="d/" * 500 + "x", content=""))) == ["same"]
    assert "SHA-256" in offer(Run(argv=("sh",), stdin="true"))["command"].shown
