"""A grant that was given before the session saw something answers nothing that the session would be asked after it."""

from __future__ import annotations

from dataclasses import replace

from nucleus.gate.scopes import offered
from nucleus.lattice import Context, decide, parse_policy
from nucleus.lattice import capability as cap
from nucleus.lattice.policy import ToolRule
from nucleus.lattice.session import Session
from nucleus.model.decision import Decision, Verdict
from nucleus.model.operation import CallTool, Read, operation_hash
from nucleus.validate import validate_operation

SEND = CallTool(server="mail", tool="send", arguments={"to": ["boss@x.org"], "text": "done"})
POLICY = replace(
    parse_policy("version: 1\nname: t\ncapabilities: {read_files: always}\n", "t"),
    trifecta="session",
    tools=frozenset((
        frozenset((ToolRule("mail/send", cap.EXFILTRATION | cap.STATE, ("to",), cap.ALWAYS, approve=True),)),
    )),
)  # fmt: skip


def keys(session: Session, operation: CallTool) -> tuple[Decision, set[str]]:
    context = Context(now_ns=1, started_ns=0, egress=True, seen=session.seen, knowledge=session.knowledge)
    checked = validate_operation(operation)
    decision = decide(POLICY, checked, context)
    assert decision.verdict is Verdict.ASK
    return decision, {scope.key for scope in offered(checked, operation_hash(checked), decision, session.policy)}


def test_what_the_session_saw_since_makes_another_question_of_it() -> None:
    session = Session(POLICY, egress=True)
    before, granted = keys(session, SEND)
    other = CallTool(server="mail", tool="send", arguments={"to": ["boss@x.org"], "text": "and the rest"})
    assert keys(session, other)[1] & granted  # the same recipients, another text
    stolen = CallTool(server="mail", tool="send", arguments={"to": ["boss@x.org", "eve@y.org"], "text": "done"})
    assert not keys(session, stolen)[1] & granted
    session.before(Read(path="README.md"))  # an untrusted workspace: private and untrusted at once
    after, now = keys(session, SEND)
    assert before.rule == after.rule == "tools.approve"
    assert ("trifecta.session", Verdict.ASK) in after.met
    assert not now & granted
