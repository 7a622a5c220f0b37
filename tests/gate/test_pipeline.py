"""The pipeline as a playbook: effect in, result out, no I/O at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nucleus.budget import cost
from nucleus.errors import AuditError, BudgetError, InvalidError, NucleusError, OperationError, UnauthenticatedError
from nucleus.gate import effects as fx
from nucleus.gate.pipeline import Gate, Request, handle
from nucleus.model.decision import Decision, Verdict
from nucleus.model.operation import GitPush, Read, Run, operation_hash
from nucleus.model.principal import Principal
from nucleus.model.receipt import Approval, Outcome, Redirect, Reply

WHO = Principal("spiffe://nucleus.local/ns/default/sa/agent", "x509-svid", "agent")
READ = Read(path="a.txt")
ALLOW = Decision(Verdict.ALLOW, "capabilities.read_files", "allowed")
ASK = Decision(Verdict.ASK, "approve.run_bash", "run_bash needs a human", obligations=("approval:run_bash",))
DENY = Decision(Verdict.DENY, "paths.block", "the path is blocked", detail="**/.env*", next_step="edit the policy")
REQUEST = Request("r1", "b1", {"kind": "read", "path": "a.txt"})


class Play:
    """Answers effects from a script by effect name; records what it saw."""

    def __init__(self, **script: Any) -> None:
        self.script = {
            "Authenticate": WHO, "Validate": READ, "Decide": ALLOW, "Reserve": None, "Append:intent": 7,
            "Execute": Outcome({"content": "hello"}), "Settle": None, "Append:outcome": 8, "Release": None,
            "Ask": Approval("approve", token="t", approver="uid:0"), "Reply": None,
        } | script  # fmt: skip
        self.seen: list[fx.Effect] = []

    def run(self, gate: Gate | None = None) -> Reply:
        steps = handle(REQUEST, gate or Gate())
        try:
            effect = next(steps)
            while True:
                self.seen.append(effect)
                name = type(effect).__name__
                name = f"{name}:{effect.step}" if isinstance(effect, fx.Append) else name
                answer = self.script.get(name, 9)
                if isinstance(answer, list):
                    answer = answer.pop(0)
                if isinstance(answer, Callable):  # type: ignore[arg-type]
                    answer = answer(effect)
                effect = steps.throw(answer) if isinstance(answer, Exception) else steps.send(answer)
        except StopIteration as stop:
            return stop.value

    @property
    def names(self) -> list[str]:
        return [f"Append:{e.step}" if isinstance(e, fx.Append) else type(e).__name__ for e in self.seen]

    def appended(self, step: str) -> dict[str, Any]:
        return next(e.record for e in self.seen if isinstance(e, fx.Append) and e.step == step)


def test_the_whole_path_in_order() -> None:
    play = Play()
    reply = play.run()
    steps = "Authenticate Validate Decide Reserve Append:intent Execute Settle Append:outcome Reply"
    assert play.names == steps.split()
    assert reply.status == "ok"
    assert reply.audit == 8
    assert reply.result == {"content": "hello"}


def test_the_grant_is_bound_to_the_operation_and_to_nothing_else() -> None:
    play = Play()
    play.run()
    execute = next(e for e in play.seen if isinstance(e, fx.Execute))
    assert execute.grant.operation_hash == operation_hash(READ)
    with pytest.raises(NucleusError, match="another operation"):
        execute.grant.spend(Read(path="b.txt"))
    with pytest.raises(NucleusError, match="already spent"):
        execute.grant.spend(READ)


@pytest.mark.parametrize(
    ("script", "code", "event"),
    [
        ({"Authenticate": UnauthenticatedError("who?")}, "unauthenticated", "unauthenticated"),
        ({"Validate": InvalidError("field path: too long")}, "invalid_request", "invalid"),
        ({"Decide": DENY}, "denied", "denied"),
        ({"Decide": ASK, "Ask": Approval("deny", approver="uid:0")}, "approval_required", "denied"),
        ({"Decide": ASK, "Ask": Approval("no_approver")}, "approval_required", "denied"),
        ({"Decide": ASK, "Ask": Approval("expired")}, "approval_required", "denied"),
        ({"Reserve": BudgetError("empty")}, "budget_exhausted", "denied"),
        ({"Decide": ASK, "Ask": fx.ClientGone()}, "operation_failed", "error"),
    ],
)
def test_every_refusal_appends_once_and_never_executes(script: dict[str, Any], code: str, event: str) -> None:
    play = Play(**script)
    reply = play.run()
    assert reply.status == code
    assert "Execute" not in play.names
    assert "Append:intent" not in play.names
    assert play.names.count(f"Append:{event}") == 1
    assert play.names[-1] == "Reply"
    assert reply.audit == 9


def test_an_intent_that_cannot_be_recorded_refuses_and_releases() -> None:
    play = Play(**{"Append:intent": AuditError("disk full")})
    reply = play.run()
    assert reply.status == "audit_unavailable"
    assert "Execute" not in play.names
    assert "Release" in play.names


def test_a_result_whose_outcome_cannot_be_recorded_is_not_given_out() -> None:
    play = Play(**{"Append:outcome": AuditError("disk full")})
    reply = play.run()
    assert reply.status == "audit_unavailable"
    assert reply.result == {}
    assert "Settle" in play.names


@pytest.mark.parametrize("failure", [OperationError("no such file"), fx.ClientGone(), BudgetError("x")])
def test_every_failure_of_the_execution_settles_and_appends(failure: Exception) -> None:
    play = Play(Execute=failure)
    reply = play.run()
    assert reply.status != "ok"
    assert play.names[-4:] == ["Execute", "Settle", "Append:outcome", "Reply"]
    assert play.appended("outcome")["outcome"]["status"] == reply.status


def test_an_approval_is_followed_by_a_second_decision_and_its_token_by_the_reservation() -> None:
    play = Play(Decide=ASK)
    assert play.run().status == "ok"
    assert play.names[2:6] == ["Decide", "Ask", "Decide", "Reserve"]
    reserve = next(e for e in play.seen if isinstance(e, fx.Reserve))
    assert reserve.token == "t"
    assert play.appended("intent")["decision"]["approver"] == "uid:0"


def test_a_yes_never_lifts_a_denial_that_came_during_the_wait() -> None:
    play = Play(Decide=[ASK, DENY])
    assert play.run().status == "denied"
    assert "Reserve" not in play.names


def test_a_yes_is_for_what_was_asked_and_for_no_more() -> None:
    """While a person read, the session saw something: more would have to be asked now."""
    more = Decision(
        Verdict.ASK, ASK.rule, ASK.reason, obligations=ASK.obligations,
        met=((ASK.rule, Verdict.ASK), ("trifecta.session", Verdict.ASK)),
    )  # fmt: skip
    play = Play(Decide=[ASK, more])
    assert play.run().status == "approval_required"
    assert "Reserve" not in play.names
    assert Play(Decide=[more, ASK]).run().status == "ok"


def test_an_ask_offers_the_scopes_of_its_operation() -> None:
    play = Play(Decide=ASK)
    play.run()
    ask = next(e for e in play.seen if isinstance(e, fx.Ask))
    assert [scope.kind for scope in ask.scopes] == ["same", "path"]


def test_the_token_is_in_no_record_and_no_repr() -> None:
    play = Play(Decide=ASK, Ask=Approval("approve", token="TOKENVALUE", approver="uid:0"))
    play.run()
    text = repr(play.seen) + repr([e.record for e in play.seen if isinstance(e, fx.Append)])
    assert "TOKENVALUE" not in text


def test_a_symlink_is_decided_again_by_the_name_it_resolves_to() -> None:
    link = Read(path="notes.txt")
    secret = Read(path=".env")
    play = Play(
        Validate=[link, secret],
        Decide=lambda e: DENY if e.operation.path == ".env" else ALLOW,
        Execute=Redirect("path", ".env"),
    )
    reply = play.run()
    assert reply.status == "denied"
    assert reply.rule == "paths.block"
    assert play.names.count("Execute") == 1
    assert play.appended("outcome")["context"]["resolved"] == ".env"


def test_a_symlink_to_an_allowed_name_is_executed_under_a_second_grant() -> None:
    play = Play(
        Validate=[Read(path="link"), Read(path="real")],
        Execute=[Redirect("path", "real"), Outcome({"content": "x"})],
    )
    assert play.run().status == "ok"
    grants = [e.grant for e in play.seen if isinstance(e, fx.Execute)]
    assert grants[0].operation_hash != grants[1].operation_hash


def test_a_path_that_keeps_changing_ends() -> None:
    play = Play(Validate=[Read(path="a"), Read(path="b")], Execute=[Redirect("path", "b"), Redirect("path", "c")])
    assert play.run().status == "operation_failed"


def test_egress_operations_are_decided_and_then_have_no_way_out() -> None:
    play = Play(Validate=GitPush(), Decide=ASK)
    assert play.run().status == "no_egress"
    assert "Ask" not in play.names
    play = Play(Validate=GitPush(), Decide=DENY)
    assert play.run().status == "denied"


def test_a_command_reserves_its_own_timeout_and_pays_what_it_used() -> None:
    def spend(effect: fx.Execute) -> Outcome:
        effect.meter.duration_ns = 1_500_000_000
        return Outcome({"exit_code": 0})

    play = Play(Validate=Run(argv=("true",), timeout_ms=10_000), Execute=spend)
    reply = play.run()
    reserve = next(e for e in play.seen if isinstance(e, fx.Reserve))
    settle = next(e for e in play.seen if isinstance(e, fx.Settle))
    assert 0 < settle.actual < reserve.amount
    assert reply.cost == settle.actual


def test_the_reply_is_sanitized_and_the_person_keeps_the_rule() -> None:
    play = Play(Execute=OperationError("cannot open /var/lib/nucleus/x and /etc/passwd", rule="hands.io"))
    reply = play.run()
    assert "/etc/passwd" not in reply.reason
    assert "/var/lib" not in reply.reason
    assert reply.rule == "hands.io"


def test_contents_are_not_in_the_log() -> None:
    from nucleus.model.operation import Write

    play = Play(Validate=Write(path="a", content="PRIVATE"))
    play.run()
    assert "PRIVATE" not in repr(play.appended("intent"))
    assert play.appended("intent")["operation"]["content"] == "<7 bytes>"


RUN = Run(argv=("make",), timeout_ms=60_000)
PARTIAL = Outcome({"exit_code": None, "signal": 9, "stdout": "so far", "stderr": ""})


def test_a_command_takes_what_there_is_and_says_how_long_that_pays() -> None:
    def run(effect: fx.Execute) -> Outcome:
        assert (effect.held, effect.meter.paid_ns) == (400, cost.paid_ns(400))
        assert effect.short == cost.upper_bound("run", timeout_ms=60_000) - 400
        effect.meter.bought = 100
        effect.meter.unpaid = True
        effect.meter.duration_ns = 10**12
        return PARTIAL

    play = Play(Validate=RUN, Reserve=[BudgetError("short", rule="budget.account"), 400], Execute=run)
    reply = play.run()
    reserves = [effect for effect in play.seen if isinstance(effect, fx.Reserve)]
    assert [effect.least for effect in reserves] == [0, cost.least_of_command()]
    assert (reply.status, reply.rule, reply.cost) == ("budget_exhausted", "budget.exhausted", 500)
    assert reply.result["stdout"] == "so far"
    assert play.appended("intent")["context"]["reserved"] == 400
    assert play.appended("outcome")["context"] == {"reservation": "b1", "reserved": 500, "charged": 500}
    assert play.appended("outcome")["outcome"]["status"] == "budget_exhausted"


def test_a_command_that_ended_by_itself_just_then_has_ended_well() -> None:
    def run(effect: fx.Execute) -> Outcome:
        effect.meter.unpaid = True
        return Outcome({"exit_code": 0, "signal": None, "stdout": "all", "stderr": ""})

    assert (
        Play(Validate=RUN, Reserve=[BudgetError("short", rule="budget.limit"), 400], Execute=run).run().status == "ok"
    )


@pytest.mark.parametrize("rule", ["budget.window", "budget.open", ""])
def test_a_budget_that_is_over_is_not_asked_for_less(rule: str) -> None:
    play = Play(Validate=RUN, Reserve=BudgetError("over", rule=rule))
    assert play.run().status == "budget_exhausted"
    assert play.names.count("Reserve") == 1


def test_only_a_command_takes_less_than_it_may_cost() -> None:
    play = Play(Reserve=BudgetError("short", rule="budget.limit"))
    assert play.run().status == "budget_exhausted"
    assert play.names.count("Reserve") == 1
