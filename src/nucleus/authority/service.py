"""What each kind of peer may ask of the authority, and the answers (docs/design.md).

Security steps, for every frame of a gate:
1. The channel says which pod it is: pod and time are stamped here, a frame that names a pod is refused.
2. Strict fields, each bounded; an unknown operation or field of a record is refused.
3. A reservation is looked up in the channel's own pod: another pod's does not exist for it.
4. An intent must fit a fresh reservation, an outcome its settlement: the log alone can rebuild the ledger.
5. A token is verified and its nonce burnt in the transaction of the reservation.

Promises: a handler checks everything before it changes anything. Relies on: `batch` for when an answer leaves.
Does not: do I/O of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nucleus.authority import budgets, fields, identities, rules
from nucleus.authority.approvals import PRINCIPAL_BYTES, Desk
from nucleus.authority.batch import Batch
from nucleus.authority.budgets import Budgets
from nucleus.authority.clock import Clock
from nucleus.authority.peers import (
    APPROVER,
    GATE,
    IDENTITY,
    POD_WORKLOAD_API,
    VAULT,
    WORKLOAD,
    WORKLOAD_API,
    Channel,
)
from nucleus.authority.people import Lists, People, named
from nucleus.authority.recovery import resolve
from nucleus.authority.rules import Rules
from nucleus.authority.workloads import Workloads
from nucleus.budget.cost import amount as checked
from nucleus.budget.reservation import Phase
from nucleus.errors import AuditError, BudgetError, DeniedError, InvalidError, NucleusError
from nucleus.frames import Frame
from nucleus.store.audit_log import AuditLog
from nucleus.store.ledger import Ledger, PodAccount, account_of

GATE_EVENTS = frozenset({"intent", "outcome", "denied", "invalid", "unauthenticated", "error"})
RECORD_FIELDS = frozenset({
    "event", "request_id", "principal", "operation", "operation_hash", "decision", "outcome", "context",
})  # fmt: skip
TOKEN_BYTES = 16_384
_OWNERS = rules.OPS | budgets.OPS | {"rotate_key"}  # of an approver who may do more than answer
Handler = Callable[["Service", Channel, int, dict[str, Any]], None]


class Service:
    """The authority's state behind its channels.

    Args:
        ledger, log: opened and recovered.
        issuer: signs SVIDs.
        trust_domain: of every name that is given out.
        clock: read once per turn.
        credentials: the directory of the credentials that gateways may fetch; "" for none.
    """

    def __init__(
        self,
        ledger: Ledger,
        log: AuditLog,
        issuer: identities.Issuer,
        trust_domain: str,
        clock: Clock,
        credentials: str = "",
    ) -> None:
        self.ledger = ledger
        self.log = log
        self.batch = Batch(ledger, log)
        self._sessions: dict[str, tuple[str, str, dict[str, Any]]] = {}  # pod -> namespace, session, what it had seen
        self._issuer = issuer
        self._trust_domain = trust_domain
        self._clock = clock
        self._credentials = credentials
        self.rules = Rules()
        self.workloads = Workloads(issuer, trust_domain, self.rules.gates)
        self.people = People(trust_domain, issuer, self.workloads)
        self.desk = Desk(self.people, clock()[1])
        self.budgets = Budgets(ledger)

    def now(self) -> tuple[int, int]:
        """The clocks: nanoseconds since the epoch, monotonic nanoseconds."""
        return self._clock()

    def turn(self, frames: list[tuple[Channel, Frame]]) -> None:
        """Everything that is ready, as one batch."""
        batch = self.batch
        batch.start(*self._clock(), durable=any(self._decides(channel, frame.header) for channel, frame in frames))
        self._guarded(lambda: self.desk.expire(batch))
        for channel, frame in frames:
            self._dispatch(channel, frame)
        batch.finish()

    def _dispatch(self, channel: Channel, frame: Frame) -> None:
        header = frame.header
        ident: int = header["id"]
        try:
            if channel.kind == GATE:
                handler = _GATE.get(str(header.get("op")))
                if handler is None or "pod" in header or frame.body:  # 1, 2
                    raise InvalidError("unknown request of a gate", rule="frames.op")
                handler(self, channel, ident, header)
            elif channel.kind == APPROVER and channel.answers_only and header.get("op") in _OWNERS:
                raise DeniedError("an approver of another user may only answer requests", rule="helper.approver")
            elif channel.kind == APPROVER and header.get("op") in rules.OPS:
                self.rules.approver(channel, ident, header, self.batch)
            elif channel.kind == APPROVER and header.get("op") in budgets.OPS:
                self.budgets.approver(channel, ident, header, self.batch)
            elif channel.kind == APPROVER:
                self.desk.approver(channel, ident, channel.uid, header, self.batch)
            elif channel.kind == WORKLOAD:
                self._workload(channel, ident, header)
            elif channel.kind == VAULT:
                self._vault(channel, ident, header)
            elif channel.kind in (IDENTITY, WORKLOAD_API, POD_WORKLOAD_API):
                self.workloads.handle(channel, ident, header, self.batch)
        except NucleusError as error:
            if isinstance(error, AuditError) and error.rule.startswith("ledger."):
                self.batch.break_off(error)
            channel.fail(ident, error)
        except Exception as error:  # noqa: BLE001 -- a bug of ours ends one channel and one turn, not every pod
            self.batch.break_off(AuditError(f"internal error: {type(error).__name__}", rule="ledger.bug"))
            channel.shut()

    def _decides(self, channel: Channel, header: dict[str, Any]) -> bool:
        """An approval may be decided or spent by it, or money that the log alone would not give back."""
        match header.get("op"):
            case "extend" | "charge":
                return bool(channel.kind == GATE)
            case "budget_charge":
                return bool(channel.kind == APPROVER)
            case "reserve":
                return "token" in header
            case "ask":
                return channel.kind == GATE and self.desk.grants.any(channel.pod)
            case "approve" | "deny":
                return bool(channel.kind == APPROVER)
        return False

    def _guarded(self, change: Callable[[], None]) -> None:
        try:
            change()
        except AuditError as error:
            self.batch.break_off(error)

    # Gates

    def _pod(self, channel: Channel) -> PodAccount:
        pod = self.ledger.pods.get(channel.pod)
        if pod is None:
            raise DeniedError("the pod is closed", rule="pod.closed")
        return pod

    def _open_budget(self, channel: Channel, ident: int, header: dict[str, Any]) -> None:
        limit = checked(header.get("limit"), "limit")
        window_ns = checked(header.get("window_ns"), "window_ns")
        account = self.batch.writes().open_budget(self._pod(channel), limit, window_ns)
        seen = self._sessions[channel.pod][2] if channel.pod in self._sessions else {}
        self.batch.answer(channel, ident, _sums(account) | {"seen": seen})

    def _budget(self, channel: Channel, ident: int, header: dict[str, Any]) -> None:
        self.batch.answer(channel, ident, _sums(account_of(self._pod(channel))))

    def _reserve(self, channel: Channel, ident: int, header: dict[str, Any]) -> None:
        pod = self._pod(channel)
        reservation = fields.reservation(header)
        amount = checked(header.get("amount"), "amount")
        operation_hash = fields.operation_hash(header)
        principal = fields.text(header, "principal", PRINCIPAL_BYTES)
        if _over(pod, self.batch.now_ns):
            raise BudgetError("the budget's time window is over", rule="budget.window")
        nonce = None
        if "token" in header:  # 5
            text = fields.text(header, "token", TOKEN_BYTES)
            nonce = self.desk.check_token(text, operation_hash, principal, pod.pod, self.batch)
        least = checked(header["least"], "least") if "least" in header else None
        held = self.batch.writes().reserve(pod, reservation, amount, nonce, least=least, now_ns=self.batch.now_ns)
        self.batch.answer(channel, ident, {} if least is None else {"held": held})

    def _extend(self, channel: Channel, ident: int, header: dict[str, Any]) -> None:
        pod = self._pod(channel)
        amount, least = checked(header.get("amount"), "amount"), checked(header.get("least"), "least")
        if _over(pod, self.batch.now_ns):
            raise BudgetError("the budget's time window is over", rule="budget.window")
        more = self.batch.writes().extend(pod, fields.reservation(header), amount, least, self.batch.now_ns)
        self.batch.answer(channel, ident, {"held": more})

    def _charge(self, channel: Channel, ident: int, header: dict[str, Any]) -> None:
        pod = self._pod(channel)
        who = str(identities.orchestrator_id(self._trust_domain, pod.namespace, pod.pod))
        if header.get("principal") != who:
            raise DeniedError("only the orchestrator of a pod reports what it used", rule="budget.charge")
        self.budgets.reported(channel, ident, header, who, self.batch)

    def _settle(self, channel: Channel, ident: int, header: dict[str, Any]) -> None:
        actual = checked(header.get("actual"), "actual")
        spent = self.batch.writes().settle(self._pod(channel), fields.reservation(header), actual)  # 3
        self.batch.answer(channel, ident, {"spent": spent})

    def _release(self, channel: Channel, ident: int, header: dict[str, Any]) -> None:
        self.batch.writes().release(self._pod(channel), fields.reservation(header))  # 3
        self.batch.answer(channel, ident, {})

    def _append(self, channel: Channel, ident: int, header: dict[str, Any]) -> None:
        pod = self._pod(channel)
        record = header.get("record")
        if not isinstance(record, dict) or record.keys() != RECORD_FIELDS:  # 2
            raise InvalidError("a record has exactly the fields of docs/design.md", rule="audit.field")
        event = record["event"]
        if not isinstance(event, str) or event not in GATE_EVENTS:
            raise InvalidError("a gate cannot append this event", rule="audit.event")
        if event in ("intent", "outcome"):
            self._append_bound(channel, ident, pod, record)
        else:
            self.batch.answer(channel, ident, self.batch.record(pod=pod.pod, **record), recorded=True)

    def _append_bound(self, channel: Channel, ident: int, pod: PodAccount, record: dict[str, Any]) -> None:
        """Step 4."""
        context = record["context"]
        if not isinstance(context, dict):
            raise InvalidError("context is not an object", rule="audit.field")
        account = account_of(pod)
        reservation = fields.reservation(context)
        outcome = record["event"] == "outcome"
        if outcome:
            account.check_outcome(reservation, context.get("charged"))
        else:
            account.check_intent(reservation, context.get("reserved"))
        place = self.batch.record(pod=pod.pod, **record)
        account.mark(reservation, Phase.STAGED_OUTCOME if outcome else Phase.STAGED_INTENT)

        def then(error: NucleusError | None) -> None:
            if error is not None:
                self.ledger.unstage(pod.pod, reservation)
                return
            if outcome:
                account.finish(reservation)
            else:
                account.mark(reservation, Phase.INTENT)
            self.ledger.on_record(reservation, outcome=outcome)

        self.batch.answer(channel, ident, place, recorded=True, then=then)

    def _ask(self, channel: Channel, ident: int, header: dict[str, Any]) -> None:
        self.desk.ask(channel, ident, self._pod(channel).pod, header, self.batch)

    def _withdraw(self, channel: Channel, ident: int, header: dict[str, Any]) -> None:
        self.desk.withdraw(channel, header.get("target"), self.batch)
        self.batch.answer(channel, ident, {})

    def _svid(self, channel: Channel, ident: int, header: dict[str, Any]) -> None:
        pod = self._pod(channel)
        name = identities.gate_id(self._trust_domain, pod.namespace, pod.pod)
        svid = self._issuer.issue(name, self.batch.now_ns)
        context = {"issued_ns": svid.issued_ns, "expires_ns": svid.expires_ns, "serial": f"{svid.serial:x}"}
        self.batch.record("identity.issued", pod=pod.pod, principal=str(name), operation="svid", context=context)
        self.batch.answer(channel, ident, svid.to_wire(), recorded=True)

    def _revoked(self, channel: Channel, ident: int, header: dict[str, Any]) -> None:
        pod = self._pod(channel)
        names = {
            str(make(self._trust_domain, pod.namespace, pod.pod))
            for make in (identities.gate_id, identities.agent_id, identities.orchestrator_id)
        }
        found = self._issuer.revocations.all(self.batch.now_ns)
        # A policy may name others than the pod's own as callers: their names concern its door, too.
        everybody = header.get("everybody", False) is True
        answer = [one.to_gate() for one in found if everybody or one.serial or one.spiffe_id in names]
        self.batch.answer(channel, ident, {"revoked": answer})

    def _federated(self, channel: Channel, ident: int, header: dict[str, Any]) -> None:
        self._pod(channel)
        self.workloads.foreign.of_gate(channel, ident, header, self.batch)

    def _net_said(self, channel: Channel, ident: int, header: dict[str, Any]) -> None:
        self.rules.said(channel, ident, header, self.batch)

    # Workloads

    def _workload(self, channel: Channel, ident: int, header: dict[str, Any]) -> None:
        from nucleus.identity.workload import handle_workload_request  # weight: pods with an agent only

        assert channel.attested is not None
        pod = self._pod(channel)
        if not channel.attested.take(self.batch.mono_ns):
            channel.shut()  # counted, and said in pod.stop
            return
        reply, record = handle_workload_request(
            header,
            channel.attested.peer,
            channel.attested.listener,
            lambda name: self._issuer.issue(name, self.batch.now_ns),
        )
        self.batch.record(pod=pod.pod, **record)

        def then(error: NucleusError | None) -> None:
            if error is None:
                channel.send(reply)
            else:
                channel.fail(ident, identities.unavailable())

        self.batch.answer(None, 0, None, recorded=True, then=then)

    # Gateways

    def _vault(self, channel: Channel, ident: int, header: dict[str, Any]) -> None:
        """One credential, read anew each time: a change or a removal holds from the next request on."""
        from nucleus.store.credentials import Credentials  # weight: pods whose policy names credentials

        name = header.get("name")
        self._pod(channel)
        if header.get("op") != "credential" or not isinstance(name, str) or name not in channel.names:
            raise DeniedError("this pod's policy does not name that credential", rule="credentials.name")
        found = Credentials(Path(self._credentials)).get(name)
        self.batch.answer(channel, ident, found.to_wire())

    # What the loop and the builder tell

    def register_pod(
        self, pod: str, namespace: str, context: dict[str, Any], owner: int = -1, pods: Lists = ()
    ) -> dict[str, Any]:
        """A new pod: the names of its identities.

        Args:
            owner: the uid of who starts it.
            pods: the lists of its policy that say who may; () for whoever may start one at all.

        Raises:
            NucleusError: there is no such pod; DeniedError: its policy does not name who starts it, on record.
        """
        if pods and not named(pods, self.people.of(owner)):
            self._refuse_pod(pod, namespace, owner, pods)
        if owner >= 0:
            context["owner"] = f"uid:{owner}"
        names = {
            "gate_id": str(identities.gate_id(self._trust_domain, namespace, pod)),
            "agent_id": str(identities.agent_id(self._trust_domain, namespace, pod)),
            "orchestrator_id": str(identities.orchestrator_id(self._trust_domain, namespace, pod)),
        }
        session = str(context.get("session", ""))
        draws_on = self.ledger.accounts.choose(str(context.pop("account", "")), session)
        if draws_on:
            context["account"] = draws_on
        if session:
            if any((namespace, session) == other[:2] for other in self._sessions.values()):
                # What one sees would not reach the other's gate.
                raise InvalidError(
                    "a pod of this session is still running",
                    rule="session.busy",
                    next_step="Wait for it to end, or name another session.",
                )
            from nucleus.authority.sessions import rebuild  # weight: the lattice, for named sessions alone

            seen = rebuild(self.log.path, namespace, session).to_data()
        batch = self.batch
        batch.start(*self._clock(), durable=False)
        ledger = batch.writes()
        try:
            ledger.register(pod, namespace, batch.now_ns, draws_on)
            batch.record("pod.start", pod=pod, context={"namespace": namespace, **context})
        except NucleusError:
            ledger.rollback()
            raise
        failures: list[NucleusError] = []
        batch.answer(None, 0, None, recorded=True, then=lambda error: failures.append(error) if error else None)
        batch.finish()
        if failures:
            if pod in self.ledger.pods:
                self.ledger.begin()
                self.ledger.close_pod(self.ledger.pods[pod])
                self.ledger.commit()
            raise failures[0]
        if session:
            self._sessions[pod] = (namespace, session, seen)
        return names

    def _refuse_pod(self, pod: str, namespace: str, owner: int, pods: Lists) -> None:
        whose = [", ".join(sorted(patterns)) or "nobody" for patterns in pods]
        batch = self.batch
        batch.start(*self._clock(), durable=False)
        context = {"namespace": namespace, "owner": f"uid:{owner}", "pods": whose}
        outcome = {"decision": "deny", "outcome": "denied"}
        batch.record("identity.refused", pod=pod, operation="create_pod", context=context, **outcome)
        batch.answer(None, 0, None, recorded=True)
        batch.finish()
        raise DeniedError(
            f"the policy does not let uid {owner} start a pod",
            rule="identity.pods",
            next_step="`identities.pods` of the policy names who may.",
        )

    def close_pod(self, pod: str, context: dict[str, Any]) -> None:
        """End a pod; its channels are closed. Raises InvalidError: no such pod; AuditError: cannot be recorded."""
        account = self.ledger.pods.get(pod)
        if account is None:
            raise InvalidError("no such pod is open", rule="pod.name")
        resolve(account, self.ledger, self.log, self._clock, stop=context)
        self._sessions.pop(pod, None)
        self.desk.close_pod(pod)

    def lost(self, channel: Channel) -> None:
        """A channel ended: what it left open ends too."""
        self.rules.lost(channel)
        self.budgets.lost(channel)
        self.workloads.lost(channel)
        self.batch.start(*self._clock(), durable=False)
        if channel.kind == APPROVER:
            self._guarded(lambda: self.desk.approver_lost(channel, self.batch))
            self.batch.finish()
        elif channel.kind == GATE:
            self._guarded(lambda: self.desk.gate_lost(channel, self.batch))
            self.desk.grants.close_pod(channel.pod)
            self.batch.finish()
            pod = self.ledger.pods.get(channel.pod)
            if pod is not None:
                try:
                    resolve(pod, self.ledger, self.log, self._clock, stop=None)
                except AuditError:
                    return  # the holds stay, and are resolved when the pod is closed or at the next start


def _over(pod: PodAccount, now_ns: int) -> bool:
    """Whether the time window of the pod's policy has passed."""
    return bool(pod.window_ns and now_ns - pod.started_ns >= pod.window_ns)


def _sums(account: Any) -> dict[str, Any]:
    return {"limit": account.limit, "spent": account.spent, "reserved": account.reserved}


_GATE: dict[str, Handler] = {
    "open_budget": Service._open_budget,
    "budget": Service._budget,
    "reserve": Service._reserve,
    "extend": Service._extend,
    "charge": Service._charge,
    "settle": Service._settle,
    "release": Service._release,
    "append": Service._append,
    "ask": Service._ask,
    "withdraw": Service._withdraw,
    "svid": Service._svid,
    "revoked": Service._revoked,
    "federated": Service._federated,
    "net_said": Service._net_said,
}
