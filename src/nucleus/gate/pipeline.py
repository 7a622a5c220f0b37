"""The gate: one generator per request, sans-I/O, through which every side effect of an agent goes.

`handle(request)` yields effects (`gate.effects`) and is sent their results:

 1. Authenticate            who asks
 2. Validate                what is asked, strictly parsed and bounded
 3. Decide                  the one decision function
 4. Ask, then Decide again  where the decision is `ask`: a human, and the decision once more after the wait
 5. Reserve                 the upper bound of the cost (and the approval's nonce, in the same transaction); for a
                            command, where there is less, what there is: it runs as long as that pays for
 6. Append(intent)          durable before the effect
 7. Execute(Grant)          the grant is bound to the operation's hash and spent once
 8. Settle                  what it really cost
 9. Append(outcome)
10. Reply                   sanitized

Promises: every exit, errors and a client that hangs up included, resolves the reservation and appends a record; when an
append fails before the effect, the operation does not run; when it fails after the effect, no result is given out.
A symlink in the way of a path is not followed: the name it resolves to goes through step 3 again (`Redirect`).
Relies on: the driver, which interprets the effects in order and throws errors in.
Does not: read a clock, make an id, or touch a descriptor; they are in `Request`.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

from nucleus.approval.scope import answers
from nucleus.budget import cost as cost_model
from nucleus.errors import (
    ApprovalRequiredError,
    AuditError,
    BudgetError,
    DeniedError,
    InvalidError,
    NoEgressError,
    NucleusError,
    OperationError,
    UnauthenticatedError,
)
from nucleus.gate import effects as fx
from nucleus.gate.display import display_lines
from nucleus.gate.scopes import offered
from nucleus.lattice.exposure import NOTHING
from nucleus.lattice.session import Session
from nucleus.limits import LIMITS
from nucleus.model.decision import Decision, Verdict
from nucleus.model.grant import mint
from nucleus.model.operation import Base, CallTool, Run, WebFetch, operation_hash
from nucleus.model.principal import Principal
from nucleus.model.receipt import Approval, Meter, Outcome, Redirect, Reply
from nucleus.sanitize import sanitize

Steps = Generator[fx.Effect, Any, Reply]
REDIRECTS = 5  # of one fetch


@dataclass(frozen=True, slots=True)
class Request:
    """One request as a door received it.

    Args:
        request_id: unique, made by the door.
        reservation: unique id for the budget hold, made by the door.
        raw: the parsed JSON object ``{kind, ...}``, not yet validated.
    """

    request_id: str
    reservation: str
    raw: dict[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Gate:
    """What the pipeline knows of its pod.

    Args:
        egress: the kinds of egress operations that the pod's gateway carries; none without one.
        tools: external tools are attached.
        session: what this session has seen, and which destinations it knows; fed here, read by the decision.
    """

    egress: frozenset[str] = frozenset()
    session: Session | None = None
    tools: bool = False


@dataclass(slots=True)
class _State:
    """What one request has become so far; feeds its audit records."""

    request: Request
    principal: Principal | None = None
    operation: Base | None = None
    digest: str = ""
    logged: dict[str, Any] = field(default_factory=dict)
    decision: Decision | None = None
    approver: str = ""
    reserved: int = 0
    short: int = 0  # that its upper bound is more than that
    charged: int = 0
    meter: Meter = field(default_factory=Meter)
    context: dict[str, Any] = field(default_factory=dict)


def handle(request: Request, gate: Gate) -> Steps:
    """Drive one request from its bytes to its reply. See the module for the steps."""
    state = _State(request)
    try:
        state.principal = yield fx.Authenticate()
        operation = yield fx.Validate(request.raw)
        if operation.resolved and operation.egress:
            operation = yield from _resolve(state, gate, operation)
        state.operation, state.digest, state.logged = operation, operation_hash(operation), _loggable(operation)
        operation, token = yield from _decide(state, gate, operation)
    except (NucleusError, fx.ClientGone) as error:
        return (yield from _refuse(state, error))
    return (yield from _carry_out(state, gate.session, operation, token))


def _resolve(state: _State, gate: Gate, operation: Base) -> Generator[fx.Effect, Any, Base]:
    """Before step 3, for what names something that only the pod knows: what it is decided and shown by.

    Nothing is looked up for what would be refused whatever it is.
    """
    state.operation, state.digest, state.logged = operation, operation_hash(operation), _loggable(operation)
    decision: Decision = yield fx.Decide(operation, _known(state))
    if decision.verdict is not Verdict.DENY and _kind(state) in gate.egress:
        found: Base = yield fx.Resolve(operation)
        return found
    return operation


def _decide(state: _State, gate: Gate, operation: Base) -> Generator[fx.Effect, Any, tuple[Base, str]]:
    """Steps 3 and 4. Returns what was decided on, and the approval token, "" when none is needed."""
    state.decision = decision = yield fx.Decide(operation, _known(state))
    if decision.verdict is Verdict.DENY:
        raise DeniedError(decision.reason, rule=decision.rule, next_step=decision.next_step)
    if operation.egress and _kind(state) not in gate.egress:
        # Decided, and nobody is asked for what cannot be carried.
        step = (
            "Name who does it in `network.allow`, e.g. {service: searxng | git | github, host: HOST, credential: NAME}."
        )
        raise NoEgressError("no egress in this pod for that", rule="pod.egress", next_step=step)
    if isinstance(operation, CallTool) and not gate.tools:
        raise OperationError("no external tool is attached to this pod", rule="tools.none")
    if decision.verdict is Verdict.ALLOW:
        return operation, ""
    if isinstance(operation, Run):
        # The yes is to what the named files hold now, too.
        operation = yield fx.Resolve(operation)
        state.operation, state.digest, state.logged = operation, operation_hash(operation), _loggable(operation)
    policy = gate.session.policy if gate.session is not None else None
    approval: Approval = yield fx.Ask(
        operation,
        _known(state),
        decision,
        display_lines(operation, decision.detail),
        offered(operation, state.digest, decision, policy),
    )
    state.approver = approval.approver
    if approval.verdict != "approve":
        why = {"no_approver": "no approver is present", "expired": "the approval request expired"}
        obligations = ", ".join(decision.obligations)
        raise ApprovalRequiredError(
            f"{decision.reason}; needs {obligations}: {why.get(approval.verdict, 'the approver said no')}",
            rule=decision.rule,
            next_step="Answer in a second terminal: `nucleus approvals watch`; or change the policy."
            if approval.verdict == "no_approver"
            else decision.next_step,
        )
    # The wait may have outlived the time window: decide again; a human's yes never lifts a denial.
    state.decision = again = yield fx.Decide(operation, _known(state))
    if again.verdict is Verdict.DENY:
        raise DeniedError(again.reason, rule=again.rule, next_step=again.next_step)
    if again.verdict is Verdict.ASK and not answers(decision, again):
        # Meanwhile the session saw something: the yes was to less than what would have to be asked now.
        raise ApprovalRequiredError(
            f"{again.reason}; this came up while the approval was waited for",
            rule=again.rule,
            next_step="Ask for it once more.",
        )
    return operation, approval.token


def _carry_out(state: _State, session: Session | None, operation: Base, token: str) -> Steps:
    """Steps 5 to 10."""
    try:
        state.reserved = _upper_bound(operation)
        try:
            yield from _begin(state, session, operation, token)
        except BudgetError as error:
            if not isinstance(operation, Run) or error.rule not in _SHORT:
                raise
            yield from _begin(state, session, operation, token, cost_model.least_of_command())
    except (NucleusError, fx.ClientGone) as error:
        return (yield from _refuse(state, error))
    outcome: Outcome | None = None
    failure: NucleusError | None = None
    try:
        outcome = yield from _execute(state, session, operation)
    except NucleusError as error:
        failure = error
    except fx.ClientGone:
        failure = OperationError("cancelled: the caller went away", rule="client.gone")
    if state.meter.unpaid and (outcome is None or outcome.result.get("exit_code") is None):
        failure = BudgetError(
            "the command was stopped: the budget is used up",
            rule="budget.exhausted",
            next_step="`nucleus budget show`; `nucleus budget top-up`; or raise budget.limit_usd in the policy.",
        )
    return (yield from _close(state, operation, outcome, failure))


# A reservation that was refused by these held nothing, and a smaller one may be had.
_SHORT = ("budget.limit", "budget.account")


def _begin(
    state: _State, session: Session | None, operation: Base, token: str, least: int = 0
) -> Generator[fx.Effect, Any, None]:
    """Steps 5 and 6; with `least`, what there is, if it is so much."""
    reservation = state.request.reservation
    held = yield fx.Reserve(reservation, state.reserved, state.digest, _known(state), token, least)
    if least:
        state.reserved, state.short = held, state.reserved - held
        if state.short:
            state.meter.paid_ns = cost_model.paid_ns(held)
    try:
        state.context = {"reservation": reservation, "reserved": state.reserved}
        ahead = session.ahead(operation) if session is not None else NOTHING
        if ahead != NOTHING:
            # On record before it happens: a session that comes back is rebuilt from these.
            state.context["exposes"] = ahead.to_data()
        yield fx.Append("intent", _record(state, "intent", {}))
        state.context.pop("exposes", None)
    except (NucleusError, fx.ClientGone):
        # Nothing has run: the hold goes back whole. A log that cannot take the intent refuses the operation.
        yield from _quietly(fx.Release(reservation))
        raise


def _execute(state: _State, session: Session | None, operation: Base) -> Generator[fx.Effect, Any, Outcome]:
    """Step 7, and once more for the name that a symlink resolved to, or each URL that a server redirects to."""
    if session is not None:
        session.before(operation)
    result = yield fx.Execute(mint(operation), operation, state.meter, state.reserved, state.short)
    target = operation
    hops, how = (REDIRECTS, "a redirect") if isinstance(operation, WebFetch) else (1, "a symlink")
    for _ in range(hops):
        if isinstance(result, Outcome):
            break
        assert isinstance(result, Redirect)
        target = yield fx.Validate(_redirected(target, result))
        decision: Decision = yield fx.Decide(target, _known(state))
        state.context["resolved"] = result.resolved
        # A human approved the name that was shown, not what it points to: anything but allow ends here.
        if decision.verdict is not Verdict.ALLOW:
            state.decision = decision
            raise DeniedError(f"{decision.reason} (through {how})", rule=decision.rule, next_step=decision.next_step)
        result = yield fx.Execute(mint(target), target, state.meter)
    if not isinstance(result, Outcome):
        if isinstance(operation, WebFetch):
            raise OperationError(f"more than {REDIRECTS} redirects", rule="network.redirects")
        raise OperationError("the path keeps changing", rule="paths.race")
    if session is not None:
        session.after(target, result.result)
    return result


def _close(state: _State, operation: Base, outcome: Outcome | None, failure: NucleusError | None) -> Steps:
    """Steps 8 to 10 for whatever came out of the execution."""
    state.reserved += state.meter.bought
    if state.meter.bought:
        state.context["reserved"] = state.reserved
    state.charged = actual = _actual(operation, state)
    summary = {**_summary(outcome, failure), "duration_ns": state.meter.duration_ns}
    try:
        yield fx.Settle(state.request.reservation, actual)
        sequence = yield fx.Append("outcome", _record(state, "outcome", summary))
    except (NucleusError, fx.ClientGone) as error:
        # The effect has happened and is not on record: say nothing of its result (fail closed).
        failed = AuditError("the outcome could not be recorded", rule="audit.append") if outcome else error
        return (yield from _reply_error(state, failed, 0))
    if failure is not None:
        # What a command wrote before the budget ended it is its caller's.
        partial = outcome.result if outcome is not None else {}
        return (yield from _reply_error(state, failure, sequence, partial))
    assert outcome is not None
    # How much was withheld is for the record: told to the agent it would say what hidden files hold.
    result = {name: value for name, value in outcome.result.items() if name != "withheld"}
    body = Reply(state.request.request_id, "ok", result=result, operation=_kind(state), audit=sequence, cost=actual)
    yield fx.Reply(body)
    return body


def _refuse(state: _State, error: NucleusError | fx.ClientGone) -> Steps:
    """The exit of everything that never ran: one record, one reply."""
    if isinstance(error, fx.ClientGone):
        error = OperationError("cancelled: the caller went away", rule="client.gone")
    events: tuple[tuple[type[NucleusError], str], ...] = (
        (UnauthenticatedError, "unauthenticated"),
        (InvalidError, "invalid"),
        (OperationError, "error"),
        (AuditError, "error"),
    )
    event = next((name for family, name in events if isinstance(error, family)), "denied")
    sequence = 0
    try:
        sequence = yield fx.Append(event, _record(state, event, _failure_summary(error)))
    except (NucleusError, fx.ClientGone):
        if not isinstance(error, AuditError):
            error = AuditError("the refusal could not be recorded", rule="audit.append")
    return (yield from _reply_error(state, error, sequence))


def _reply_error(
    state: _State, error: NucleusError | fx.ClientGone, sequence: int, partial: dict[str, Any] | None = None
) -> Steps:
    if isinstance(error, fx.ClientGone):
        error = OperationError("cancelled: the caller went away", rule="client.gone")
    decision = state.decision
    body = Reply(
        state.request.request_id,
        error.code,
        reason=sanitize(error.message),
        result=partial or {},
        operation=_kind(state),
        audit=sequence,
        cost=state.charged,
        rule=error.rule,
        detail=decision.detail if decision is not None and decision.rule == error.rule else "",
        next_step=error.next_step,
    )
    yield fx.Reply(body)
    return body


def _quietly(effect: fx.Effect) -> Generator[fx.Effect, Any, None]:
    """Yield an effect of an exit that is already failing; the authority reconciles what it misses."""
    try:
        yield effect
    except (NucleusError, fx.ClientGone):
        return


def _known(state: _State) -> Principal:
    assert state.principal is not None
    return state.principal


def _kind(state: _State) -> str:
    return str(getattr(state.operation, "kind", "")) if state.operation is not None else ""


def _redirected(operation: Base, redirect: Redirect) -> dict[str, Any]:
    raw = operation.model_dump(mode="json")
    if isinstance(operation, WebFetch) and redirect.field == "url":
        return {**raw, "url": redirect.resolved, **redirect.changes}
    if redirect.field not in operation.path_fields or not isinstance(raw.get(redirect.field), str):
        raise OperationError("a symlink is in the way", rule="paths.symlink")
    return {**raw, redirect.field: redirect.resolved}


# What a file's content or a command's input looks like in the log: its size and digest are in the operation hash, and
# the text itself may be private or huge.
_BULKY = ("content", "old", "new", "stdin", "body")


def _loggable(operation: Base) -> dict[str, Any]:
    raw = operation.model_dump(mode="json")
    return {
        name: f"<{len(value.encode('utf-8', 'surrogatepass'))} bytes>"
        if name in _BULKY and name not in operation.resolved and isinstance(value, str) and len(value) > 0
        else value
        for name, value in raw.items()
    }


def _record(state: _State, event: str, outcome: dict[str, Any]) -> dict[str, Any]:
    """One audit record (docs/design.md); the authority adds sequence, time, pod and hashes."""
    decision = state.decision
    return {
        "event": event,
        "request_id": state.request.request_id,
        "principal": state.principal.spiffe_id if state.principal else "",
        "operation": state.logged,
        "operation_hash": state.digest,
        "decision": {
            "verdict": decision.verdict.value,
            "rule": decision.rule,
            "detail": decision.detail,
            "obligations": list(decision.obligations),
            "approver": state.approver,
        }
        if decision is not None
        else {},
        "outcome": outcome,
        "context": {**state.context, **({"charged": state.charged} if event == "outcome" else {})},
    }


def _failure_summary(error: NucleusError) -> dict[str, Any]:
    return {"status": error.code, "rule": error.rule, "reason": error.message[:2000]}


def _summary(outcome: Outcome | None, failure: NucleusError | None) -> dict[str, Any]:
    if failure is not None:
        return _failure_summary(failure)
    assert outcome is not None
    kept = (
        "exit_code",
        "signal",
        "timed_out",
        "bytes",
        "size",
        "replaced",
        "commit",
        "truncated",
        "withheld",
        "is_error",
        "up",
        "down",
        "ended",
        "credential",
        "content_type",
        "ref",
        "old",
        "new",
        "number",
    )
    return {"status": "ok", **{name: outcome.result[name] for name in kept if name in outcome.result}}


def _upper_bound(operation: Base) -> int:
    timeout_ms = operation.timeout_ms if isinstance(operation, Run) else 0
    limit = int(getattr(operation, "limit", 0))
    return int(getattr(operation, "upper", 0)) + cost_model.upper_bound(
        str(getattr(operation, "kind", "")),
        timeout_ms=timeout_ms,
        bytes_in=sum(len(str(getattr(operation, name, "")).encode("utf-8", "surrogatepass")) for name in _BULKY),
        limit=limit,
        max_bytes=_max_bytes(operation),
    )


def _max_bytes(operation: Base) -> int:
    kind = getattr(operation, "kind", "")
    if kind == "read":
        return int(getattr(operation, "limit", LIMITS.read_bytes))
    if kind == "edit":
        return LIMITS.content_bytes
    if kind == "run":
        return 2 * LIMITS.output_bytes
    if kind == "connect":
        return LIMITS.connection_bytes
    if kind == "web_fetch":
        # What comes back is counted as it is given to the agent; raw bytes are a third longer in base64.
        return 2 * int(getattr(operation, "limit", 0))
    return 0


def _actual(operation: Base, state: _State) -> int:
    """What it cost as measured, also for a failure or a cancelled run; never more than was reserved."""
    measured = cost_model.actual(
        str(getattr(operation, "kind", "")),
        duration_ns=state.meter.duration_ns,
        bytes_moved=state.meter.bytes_moved,
        matches=state.meter.matches,
    )
    return min(state.reserved, measured + state.meter.extra)
