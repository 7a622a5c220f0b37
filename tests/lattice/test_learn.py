"""The tightest policy for what was accepted: nothing more, nothing that was refused, and it reads back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nucleus.errors import InvalidError
from nucleus.lattice import capability as cap
from nucleus.lattice.decision import Context, decide
from nucleus.lattice.learn import Proposal, learn
from nucleus.lattice.learn_evidence import Event, Facts
from nucleus.lattice.learn_text import text_of
from nucleus.lattice.load import parse_policy
from nucleus.lattice.paths import SENSITIVE
from nucleus.lattice.policy import MICRO, Policy
from nucleus.model.decision import Verdict
from nucleus.model.operation import ADAPTER
from nucleus.store.policies import profile_text

BASE = parse_policy(profile_text("learn"), "learn")
S = 1_000_000_000
FACTS = Facts("p-1", "profile learn", "0" * 64, 1000 * S, 1042 * S, spent=12_345, held=100)


def op(kind: str, **fields: Any) -> Any:
    return ADAPTER.validate_python({"kind": kind, **fields})


class Log:
    """Events as they come: `yes` by a person, `by_base`, `no`."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def _add(self, operation: Any, accepted: bool, **more: Any) -> Log:
        seq = 10 + 2 * len(self.events)
        self.events.append(Event(seq, 1000 * S + seq, operation.kind, operation, accepted, **more))
        return self

    def by_base(self, kind: str, **fields: Any) -> Log:
        return self._add(op(kind, **fields), True)

    def yes(self, kind: str, **fields: Any) -> Log:
        return self._add(op(kind, **fields), True, approver="uid:0", approval=9 + 2 * len(self.events))

    def run(self, *argv: str, **fields: Any) -> Log:
        return self.yes("run", argv=argv, **fields)

    def no(self, kind: str, **fields: Any) -> Log:
        return self._add(op(kind, **fields), False, rule="approve.x", reason="the approver said no")

    def nobody(self, kind: str, **fields: Any) -> Log:
        return self._add(op(kind, **fields), False, rule="approve.x", reason="nobody", unanswered=True)


def learnt(log: Log, base: Policy = BASE, facts: Facts = FACTS) -> tuple[Proposal, str]:
    """The proposal and its text, which reads back, and whose refusals hold."""
    found = learn(base, log.events, facts)
    text = text_of(found, facts)
    assert parse_policy(text, "learned") == found.policy
    assert len(found.allowed) + len(found.still) + len(found.uncovered) == sum(e.accepted for e in log.events)
    context = Context(facts.started_ns + 1, facts.started_ns, facts.egress, facts.trusted_workspace)
    approved = {event.identity for event in log.events if event.accepted}
    for event in found.refused:
        if not (event.unanswered and event.identity in approved):
            assert decide(found.policy, event.operation, context).verdict is not Verdict.ALLOW, event
    return found, text


def says(policy: Policy, kind: str, facts: Facts = FACTS, **fields: Any) -> str:
    context = Context(facts.started_ns + 1, facts.started_ns, facts.egress, facts.trusted_workspace)
    return str(decide(policy, op(kind, **fields), context).verdict.value)


def everyday() -> Log:
    log = Log().by_base("read", path="README.md").by_base("read", path="docs/notes.md").by_base("grep", pattern="x")
    log.yes("write", path="src/new.py", content="x").yes("edit", path="README.md", old="a", new="b")
    log.run("pytest", "-q", "tests/test_a.py").run("git", "status", "--short").run("cat", "docs/notes.md")
    return log.yes("git_commit", message="done").by_base("git_status")


def test_what_was_accepted_is_allowed_and_another_piece_of_work_is_not() -> None:
    found, text = learnt(everyday())
    assert not found.still
    assert not found.uncovered
    policy = found.policy
    assert says(policy, "read", path="docs/notes.md") == "allow"
    for kind, fields, verdict in (
        ("read", {"path": "docs/other.md"}, "deny"),
        ("read", {"path": "sub/README.md"}, "deny"),  # a name at the root is that name at the root
        ("write", {"path": "src/other.py", "content": "x"}, "deny"),
        ("run", {"argv": ["pytest", "-q"]}, "ask"),
        ("run", {"argv": ["pytest", "-q", "tests/test_a.py", "-x"]}, "ask"),
        ("run", {"argv": ["git", "push"]}, "deny"),
        ("run", {"argv": ["rm", "README.md"]}, "ask"),
        ("web_fetch", {"url": "https://example.com/"}, "deny"),
    ):
        assert says(policy, kind, **fields) == verdict, (kind, fields)
    assert "approve" not in text.replace("approved", "")
    assert (
        '- "./docs/notes.md"  # read 1, run 1: 1 allowed by the base (seq 12); 1 approved by uid:0 (seq 24), ' in text
    )
    assert 'match: [["git", "status", "--short"]]' in text
    assert "A search shows only what is on this list" in text


def allow_lines(policy: Policy) -> list[tuple[str, Policy]]:
    """The policy with one line of an allow list, or one capability, taken out."""
    out = []
    for name in ("paths_allow", "commands_allow", "hosts_allow", "tools"):
        (entries,) = getattr(policy, name)
        out += [(str(entry), replace(policy, **{name: frozenset((entries - {entry},))})) for entry in entries]
    for name, index in cap.INDEX.items():
        level = cap.level(policy.capabilities, name)
        if level != cap.NEVER:
            lower = level >> 1
            bits = policy.capabilities & ~(0b11 << (2 * index)) | (lower << (2 * index))
            out.append((name, replace(policy, capabilities=bits)))
    return out


RANK = {Verdict.ALLOW: 0, Verdict.ASK: 1, Verdict.DENY: 2}


def assert_tight(log: Log, policy: Policy) -> None:
    accepted = [event for event in log.events if event.accepted]
    context = Context(FACTS.started_ns + 1, FACTS.started_ns)
    for line, less in allow_lines(policy):
        assert any(
            RANK[decide(less, event.operation, context).verdict]
            > RANK[decide(policy, event.operation, context).verdict]
            for event in accepted
        ), f"nothing needs {line}"


def test_every_line_is_needed() -> None:
    log = everyday().run("bash", "-c", "make all").run("cat", "a/1.txt", "a/2.txt").run("cat", "a/3.txt")
    assert_tight(log, learnt(log)[0].policy)


_NAMES = st.sampled_from(["a", "b", "src/a.py", "src/b.py", "src/c.py", "src/d.rs", "src/sub/e.py", "x y", "q[1]", "*"])
_WORDS = st.sampled_from(["-q", "status", "src/a.py", "src/b.py", "src/c.py", "a", "", "log", "build", "--x=src/a.py"])
_OPERATIONS = st.one_of(
    _NAMES.map(lambda path: op("read", path=path)),
    _NAMES.map(lambda path: op("write", path=path, content="x")),
    _NAMES.map(lambda path: op("grep", pattern="x", path=path)),
    st.just(op("git_status")),
    st.just(op("git_commit", message="m")),
    st.tuples(
        st.sampled_from(["git", "cat", "make", "python3", "bash", "env", "./x.sh"]), st.lists(_WORDS, max_size=4)
    ).map(lambda words: op("run", argv=[words[0], *words[1]])),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(_OPERATIONS, st.integers(0, 3)), max_size=12))
def test_whatever_was_said_it_is_tight_covers_it_and_nothing_refused(said: list[tuple[Any, int]]) -> None:
    log = Log()
    for operation, answer in said:
        # The base decides first: what it denies nobody can accept.
        denied = decide(BASE, operation, Context(1, 0)).verdict is Verdict.DENY
        if denied or answer == 0:
            log._add(operation, False, rule="x", unanswered=answer == 0 and not denied and len(said) % 2 == 0)
        else:
            log._add(operation, True, approver="uid:0", approval=1)
    found, _ = learnt(log)
    assert not found.uncovered
    assert_tight(log, found.policy)


def test_a_directory_is_folded_from_three_different_files_on() -> None:
    log = Log()
    for name in ("a", "b", "a", "b"):
        log.by_base("read", path=f"src/{name}.py")
    assert learnt(log)[0].policy.paths_allow == frozenset((frozenset(("src/a.py", "src/b.py")),))
    found, text = learnt(log.by_base("read", path="src/c.py"))
    assert found.policy.paths_allow == frozenset((frozenset(("src/*.py",)),))
    assert "3 different files of this directory, such as src/a.py, src/b.py, src/c.py" in text
    assert says(found.policy, "read", path="src/d.py") == "allow"
    assert says(found.policy, "read", path="src/d.rs") == "deny"
    assert says(found.policy, "read", path="lib/src/d.py") == "deny"
    found, _ = learnt(log.by_base("read", path="src/Makefile"))
    assert says(found.policy, "read", path="src/any/thing") == "allow"
    assert says(found.policy, "read", path="lib/src/thing") == "deny"
    log.by_base("read", path="src/deep/er.rs")
    assert learnt(log)[0].policy.paths_allow == frozenset((frozenset(("/src/",)),))
    # A base that lists files itself is not left.
    listed = replace(BASE, paths_allow=frozenset((frozenset(("src/[abc].py", "src/Makefile", "src/deep")),)))
    assert says(learnt(log, listed)[0].policy, "read", path="src/d.py") == "deny"


def test_words_of_a_command_are_generalized_where_they_are_paths_and_nowhere_else() -> None:
    log = Log()
    for name in ("a", "b", "c"):
        log.run("ruff", "check", f"src/{name}.py")
    log.run("make", "test").run("make", "lint").run("make", "all").run("python3", "src/a.py").run("python3", "src/b.py")
    log.run("python3", "src/c.py").run("wc", "src/a.py").run("wc", "src/a.py", "src/b.py", "src/c.py")
    found, text = learnt(log)
    assert '{program: "ruff", args: ["check", {type: path}], rest: none' in text
    assert '{program: "wc", args: [{type: path}], rest: paths' in text
    assert says(found.policy, "run", argv=["ruff", "check", "src/d.py"]) == "allow"
    assert says(found.policy, "run", argv=["ruff", "check", "lib/d.py"]) == "deny"
    for argv in (["make", "install"], ["make"], ["python3", "src/d.py"], ["python3", "-c", "x"], ["ruff", "src/a.py"],
                 ["ruff", "check", "--fix"], ["ruff", "check", "src/a.py", "src/b.py"]):  # fmt: skip
        assert says(found.policy, "run", argv=argv) == "ask", argv
    assert_tight(log, found.policy)


def test_up_to_two_words_are_named() -> None:
    found, text = learnt(Log().run("cat", "src/a.py").run("cat", "src/b.py"))
    assert '{program: "cat", args: [{one_of: ["src/a.py", "src/b.py"]}], rest: none' in text
    # Two places that vary together are two rules: no combination that nobody saw.
    found, _ = learnt(Log().run("cp", "src/a.py", "lib/a.py").run("cp", "src/b.py", "lib/b.py"))
    assert says(found.policy, "run", argv=["cp", "src/a.py", "lib/b.py"]) == "ask"
    assert says(found.policy, "run", argv=["cp", "src/b.py", "lib/b.py"]) == "allow"


def test_a_level_is_raised_only_where_low_risk_would_ask_and_the_file_says_why() -> None:
    found, text = learnt(Log().run("make", "test"))
    assert cap.level(found.policy.capabilities, "run_bash") == cap.LOW_RISK
    found, text = learnt(Log().run("make", "test").run("bash", "-c", "make test | tail -1"))
    assert cap.level(found.policy.capabilities, "run_bash") == cap.ALWAYS
    assert "  # WARNING always, because at low_risk record 12 would ask (low_risk.run_bash); run 2" in text
    assert says(found.policy, "run", argv=["bash", "-c", "make all | tail -1"]) == "ask"


def test_a_sensitive_file_that_was_accepted_is_named_with_a_warning_and_no_other_is_opened() -> None:
    base = replace(BASE, paths_block=frozenset())
    found, text = learnt(Log().yes("read", path="config/.env"), base)
    assert not found.still
    assert found.policy.paths_block == frozenset(SENSITIVE) - {".env*", "*.env"}
    assert "# WARNING .env* looks sensitive and is not blocked" in text
    assert cap.level(found.policy.capabilities, "read_files") == cap.ALWAYS
    assert says(found.policy, "read", path=".env") == "deny"


def test_what_was_refused_takes_back_what_would_cover_it() -> None:
    log = Log()
    for name in ("a", "b", "c"):
        log.yes("write", path=f"src/{name}.py", content="x")
    found, text = learnt(log.no("write", path="src/d.py", content="x"))
    assert not found.still
    assert "# Refused, and not covered:" in text
    assert "refused: write src/d.py (seq 16)" in text
    assert found.policy.paths_allow == frozenset((frozenset(("src/a.py", "src/b.py", "src/c.py")),))
    # Reading was allowed and writing refused: the lists know no difference, so each write asks.
    found, text = learnt(log.by_base("read", path="README.md").no("write", path="README.md", content="x"))
    assert len(found.still) == 3
    assert "approve:\n  - write_files  # record 20 was refused" in text
    # The same command, once yes and once no.
    found, _ = learnt(Log().run("make", "test").run("make", "lint").no("run", argv=["make", "test"]))
    assert [event.shown() for event, _ in found.still] == ['run ["make", "test"]']
    assert says(found.policy, "run", argv=["make", "lint"]) == "allow"


def test_that_nobody_answered_at_first_is_no_refusal_of_what_was_approved_later() -> None:
    log = Log().nobody("write", path="a.txt", content="x").nobody("write", path="b.txt", content="x")
    found, _ = learnt(log.yes("write", path="a.txt", content="x"))
    assert not found.still
    assert says(found.policy, "write", path="b.txt", content="x") == "deny"
    assert (
        says(learnt(log.no("write", path="a.txt", content="x"))[0].policy, "write", path="a.txt", content="x") == "ask"
    )


def test_the_trifecta_still_asks_and_the_file_says_why() -> None:
    facts = replace(FACTS, egress=True)
    log = Log().by_base("read", path="README.md").yes("web_fetch", url="https://example.com/a")
    found, text = learnt(log, facts=facts)
    assert [event.kind for event, _ in found.still] == ["web_fetch"]
    assert (
        "still asks: web_fetch https://example.com/a (seq 12), because trifecta.static: web_fetch could carry" in text
    )
    assert cap.level(found.policy.capabilities, "web_fetch") == cap.LOW_RISK
    # Without private data in reach the host alone decides.
    alone = Log().yes("web_fetch", url="https://example.com/a")
    found, _ = learnt(alone, facts=facts)
    assert not found.still
    assert says(found.policy, "web_fetch", facts, url="https://example.com/b") == "allow"
    assert says(found.policy, "web_fetch", facts, url="https://other.example.com/") == "ask"


def test_tools_are_declared_as_the_base_declares_them_and_never_guessed() -> None:
    base = parse_policy(
        profile_text("learn")
        + "tools:\n  mail/search: {legs: [private], approve: true}\n  mail/send: {legs: [state], approve: true}\n"
        "  bank/*: {level: never}\n",
        "base",
    )
    log = Log()
    for tool in ("search", "send", "list"):
        log.yes("tool", server="mail", tool=tool, arguments={})
    found, text = learnt(log, base)
    assert [event.shown() for event, _ in found.still] == ["tool mail/list"]
    assert '"mail/search": {legs: [private], level: low_risk}' in text
    assert '"mail/send": {legs: [state], level: always}\n' in text
    assert "  # always, because at low_risk record 12 would ask (low_risk.tools); tool 1" in text
    assert '# "mail/list": {legs: [...]}: a person has to say which legs it has' in text
    assert says(found.policy, "tool", server="bank", tool="pay") == "deny"
    found, _ = learnt(log.no("tool", server="mail", tool="search", arguments={"q": "x"}), base)
    assert says(found.policy, "tool", server="mail", tool="search") == "ask"


def test_limits_are_measured_and_never_above_the_bases() -> None:
    policy = learnt(everyday())[0].policy
    assert policy.budget_limit == 30_000  # 2 x 12,345 + 100, in whole cents
    assert policy.time_window.duration_ns == 120 * S
    policy = learnt(everyday(), facts=replace(FACTS, spent=4 * MICRO, ended_ns=6000 * S))[0].policy
    assert policy.budget_limit == BASE.budget_limit
    assert policy.time_window.duration_ns == BASE.time_window.duration_ns


def test_what_the_base_denies_stays_denied() -> None:
    base = replace(
        parse_policy(
            profile_text("learn").replace("    - set: ordinary\n", "    - set: ordinary\n  deny: [{program: rm}]\n"
            "  ask: [{program: make}, {program: git, args: [tag]}]\n")
            + "hosts: {deny: [bad.example], ask: ['*.example']}\n",
            "base",
        ),
        paths_block=frozenset((*SENSITIVE, "data/")),
    )  # fmt: skip
    found, text = learnt(Log().run("make").yes("web_fetch", url="https://a.example/"), base)
    assert found.policy.commands_deny == base.commands_deny
    assert {str(rule) for rule in found.policy.commands_ask} == {"git tag"}
    assert (found.policy.hosts_deny, found.policy.hosts_ask) == ({"bad.example"}, frozenset())
    assert "data/" in found.policy.paths_block
    assert "# the base asks for `make`" in text


@pytest.mark.parametrize(
    "evil", ["\n- '**'", "\n  allow: everything #", "\x85- x", "\u2028- x", '"]', "# x", "\t", "a\u202eb"]
)
def test_what_an_agent_calls_things_begins_no_line(evil: str) -> None:
    log = Log().run("echo", evil).run(f"./x{evil}").no("run", argv=["rm", evil]).by_base("grep", pattern=evil)
    log.by_base("git_commit", message=evil).no("git_commit", message=f"no {evil}")
    _, text = learnt(log)  # reads back as it was meant, or it would have raised
    assert all(line.isprintable() for line in text.split("\n"))
    known = ("#", "version", "name", "description", "capabilities", "approve", "paths", "commands", "hosts", "tools",
             "budget", "time_window", "isolation", "trifecta", " ")  # fmt: skip
    assert all(line.startswith(known) for line in text.split("\n") if line)


def test_odd_names_are_named_exactly() -> None:
    log = Log()
    for path in ("@x", "a[1]", "*", "**", "d/?", "-", "x y", "é"):
        log.by_base("read", path=path)
    found, _ = learnt(log)
    assert not found.uncovered
    for path in ("a1", "b", "d/e", "y/@x"):
        assert says(found.policy, "read", path=path) == "deny"


def test_much_evidence_loses_comments_and_no_rule() -> None:
    log = Log()
    for number in range(700):
        log.by_base("read", path=f"d{number}/f{number}.txt")
        log.no("write", path=f"e{number}", content="x")
    found, text = learnt(log)
    assert len(text.encode()) <= 65_536
    assert len(found.allowed) == 700


def test_too_much_is_an_error() -> None:
    log = Log()
    for number in range(400):
        log.by_base("read", path=f"{number}/" + "x" * 200)
    with pytest.raises(InvalidError, match="no policy file can hold"):
        learnt(log)


def test_nothing_accepted_is_a_policy_that_allows_nothing() -> None:
    found, _ = learnt(Log().no("run", argv=["true"]))
    assert found.policy.capabilities == cap.BOTTOM
    assert says(found.policy, "run", argv=["true"]) == "deny"


def test_what_had_been_seen_by_then_counts() -> None:
    base = replace(BASE, trifecta="session")
    facts = replace(FACTS, egress=True)
    log = Log().yes("web_fetch", url="https://a.example/").by_base("read", path="a").by_base("read", path="b")
    found, _ = learnt(log, base, facts)
    assert found.policy.trifecta == "session"
    assert not found.still
    found, text = learnt(log.yes("web_fetch", url="https://a.example/?q=b"), base, facts)
    assert [event.seq for event, _ in found.still] == [16]
    assert "(seq 16), because trifecta.session" in text
