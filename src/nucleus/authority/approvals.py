"""The approval desk: requests that wait for a person, who is there to answer, and the tokens that a yes becomes.

Security steps:
1. A request is put to a person only while one is present (`watch` or `present`); otherwise the answer is no, at once.
2. Caps, and "no" is not asked again (`approval.rules`).
3. What is shown is escaped (`requests`); the answer is bound to the operation's hash, not to what was shown.
4. A decision counts once its record is durable; a decision that cannot be recorded is a no.
5. A token is minted after that, for this operation, principal and pod; it goes to the gate that asked and nowhere else.
6. Requests and tokens expire by the wall clock *and* by the monotonic clock.
7. A wider answer (`grants`) answers a later ask of the same pod, principal and key at once, present or not: its count
   goes down first, then 4 and 5 as for any yes: one record and one single-use token for each operation.
8. Whose yes counts: where the policy names approvers, a user whose SPIFFE ID (`people`) is on each list, and never who
   asked. Who is revoked says no yes at all. A yes that does not count is on record, once for each request and user.
9. Where two people are needed the first yes is recorded (``assent``) and kept; the second has to be another uid's.
   Nothing wider is on offer there. A no of either ends it.

Promises: the keys (`approval.keys`) and the nonces are random and live in this process's memory only.
Relies on: the builder, which says whose uid an approver's channel is. Does not: know what an operation means.
"""

from __future__ import annotations

import os
from typing import Any

from nucleus.approval import display, token
from nucleus.approval.keys import Keys
from nucleus.approval.rules import AskRules
from nucleus.authority import fields, requests
from nucleus.authority.batch import Batch
from nucleus.authority.grants import Grant, Grants
from nucleus.authority.people import People, named
from nucleus.authority.requests import PRINCIPAL_BYTES, Request
from nucleus.authority.streams import Stream
from nucleus.errors import AuditError, DeniedError, InvalidError, NucleusError
from nucleus.limits import LIMITS

MAX_WAITING = 48  # requests of all pods together
__all__ = ["MAX_WAITING", "PRINCIPAL_BYTES", "Desk"]


class Desk:
    """See the module.

    Args:
        people: who a local user is.
        mono_ns: the monotonic clock, nanoseconds.
    """

    def __init__(self, people: People, mono_ns: int) -> None:
        self._people = people
        self.keys = Keys(lambda size: os.urandom(size), mono_ns)
        self._waiting: dict[str, Request] = {}
        self._rules: dict[str, AskRules] = {}
        self._good_until: dict[str, dict[bytes, int]] = {}  # pod -> nonce -> monotonic end
        self._present: dict[Stream, str] = {}  # stream -> the pod that it answers for, "" for all
        self._watching: dict[Stream, str] = {}
        self._uids: dict[Stream, int] = {}  # of those who are present
        self.grants = Grants()

    def __repr__(self) -> str:
        return f"<Desk, {len(self._waiting)} waiting>"

    # The gate's side

    def ask(self, gate: Stream, ident: int, pod: str, header: dict[str, Any], batch: Batch) -> None:
        """Put a request to a person, or answer at once: no, or what a grant says."""
        request = requests.read(gate, ident, pod, header, batch)
        rules = self._rules.setdefault(pod, AskRules())
        if not rules.denied(request.operation_hash, batch.mono_ns):
            grant = self.grants.match(pod, request.principal, request.keys, batch.now_ns, batch.mono_ns)
            if grant is not None and self._counts(request, grant.uid):
                self._by_grant(request, grant, batch)  # 7
                return
        if not self._attended(request):  # 1
            batch.answer(gate, ident, {"verdict": "no_approver"})
            return
        refusal = rules.refusal(request.operation_hash, batch.mono_ns)  # 2
        if not refusal and len(self._waiting) >= MAX_WAITING:
            refusal = "too many requests are waiting"
        if refusal:
            batch.answer(gate, ident, {"verdict": "deny", "approver": "", "reason": refusal})
            return
        batch.writes().ask(request.request, request.nonce, request.row())
        rules.opened()
        self._waiting[request.request] = request

        def then(error: NucleusError | None) -> None:
            if error is not None:
                self._drop(request, batch.mono_ns)
            elif request.request in self._waiting:
                self._push(request.pod, {"event": "request", "request": request.shown(batch.mono_ns)})

        batch.answer(gate, ident, None, then=then)

    def _by_grant(self, request: Request, grant: Grant, batch: Batch) -> None:
        """Step 7. Where the record cannot be written the gate is told so, and the count stays where it is."""
        number = grant.take()
        reason = f"grant {grant.grant}, {number} of {grant.times}"
        on_record = {"grant": grant.on_record(number)}
        self._record(request, "approve", grant.uid, self._counts(request, grant.uid), reason, batch, on_record)
        batch.writes().ask(request.request, request.nonce, request.row())
        batch.writes().resolve_ask(request.request, "approved", grant.approver, reason, batch.now_ns)

        def then(error: NucleusError | None) -> None:
            if error is not None:
                return
            body = {"verdict": "approve", "approver": grant.approver, "reason": reason}
            request.gate.answer(request.ident, {**body, "token": self._mint(request, batch)})
            self._push(request.pod, {"event": "granted", "grant": grant.shown(batch.mono_ns)})

        batch.answer(request.gate, request.ident, None, recorded=True, then=then)

    def withdraw(self, gate: Stream, target: object, batch: Batch) -> None:
        """The gate no longer wants the answer to its ask `target`."""
        for request in [r for r in self._waiting.values() if r.gate is gate and r.ident == target]:
            self._end(request, "withdrawn", batch)

    def gate_lost(self, gate: Stream, batch: Batch) -> None:
        """Nobody is there to hear the answers."""
        for request in [r for r in self._waiting.values() if r.gate is gate]:
            self._end(request, "withdrawn", batch)

    def check_token(self, text: str, operation_hash: str, principal: str, pod: str, batch: Batch) -> bytes:
        """The nonce of a token that is good for exactly this. Raises DeniedError."""
        claims = self.keys.verify(
            text,
            operation_hash=operation_hash,
            principal=principal,
            pod=pod,
            now_ns=batch.now_ns,
            mono_ns=batch.mono_ns,
        )
        end = self._good_until.get(pod, {}).get(claims.nonce)
        if end is None or batch.mono_ns >= end:  # 6
            raise DeniedError("the approval has expired", rule="approval.expired")
        return claims.nonce

    def close_pod(self, pod: str) -> None:
        """Forget a pod; its gate is gone."""
        self._rules.pop(pod, None)
        self._good_until.pop(pod, None)
        self.grants.close_pod(pod)

    # The approver's side

    def approver_lost(self, stream: Stream, batch: Batch) -> None:
        """The channel closed: not present any more. When it was the last, nobody is there to say yes."""
        self._watching.pop(stream, None)
        self._uids.pop(stream, None)
        if self._present.pop(stream, None) is not None:
            for request in tuple(self._waiting.values()):
                if not self._attended(request):
                    self._end(request, "no_approver", batch)

    def _attended(self, request: Request) -> bool:
        """Somebody is present for its pod whose yes would count."""
        here = (stream for stream, scope in self._present.items() if scope in ("", request.pod))
        return any(self._counts(request, self._uids[stream]) for stream in here)

    def _counts(self, request: Request, uid: int) -> str:
        """Step 8: the SPIFFE ID by which this user's yes counts, "" where it does not."""
        try:
            if request.principal in self._people.may_be(uid):
                return ""
        except NucleusError:
            return ""
        names = self._names(uid)
        return named(request.approvers, names) if request.approvers else next(iter(names), "")

    def _names(self, uid: int) -> tuple[str, ...]:
        """Who a user is; nobody, where that cannot be found out: a no and the end of a channel need no name."""
        try:
            return self._people.of(uid)
        except NucleusError:
            return ()

    def _refuse(self, request: Request, uid: int, reason: str, batch: Batch) -> DeniedError:
        """What is said to somebody whose yes does not count. Raises NucleusError: who they are cannot be found out."""
        self._people.of(uid)
        if uid not in request.refused:
            request.refused.add(uid)
            whose = [", ".join(sorted(patterns)) or "nobody" for patterns in request.approvers]
            self._record(request, "refused", uid, "", reason, batch, {"approvers": whose} if whose else {})
        return DeniedError(
            "your yes does not count for this request",
            rule="approval.identity",
            next_step="Its policy names who may approve (`nucleus approvals show`), and nobody approves their own.",
        )

    def approver(self, stream: Stream, ident: int, uid: int, header: dict[str, Any], batch: Batch) -> None:
        """One request of an approver."""
        match header.get("op"):
            case "list":
                batch.answer(stream, ident, self._list(batch))
            case "watch":
                self._uids[stream] = uid
                self._present[stream] = self._watching[stream] = scope = _scope(header)
                batch.answer(stream, ident, self._list(batch, scope))
            case "present":
                self._uids[stream] = uid
                self._present[stream] = _scope(header)
                batch.answer(stream, ident, {})
            case "show":
                batch.answer(stream, ident, {"request": self._find(header).shown(batch.mono_ns)})
            case "approve":
                self._decide(stream, ident, uid, header, True, batch)
            case "deny":
                self._decide(stream, ident, uid, header, False, batch)
            case "grants":
                standing = self.grants.standing(batch.now_ns, batch.mono_ns)
                batch.answer(stream, ident, {"grants": [grant.shown(batch.mono_ns) for grant in standing]})
            case "rotate_key":
                self._rotate(stream, ident, uid, header, batch)
            case "revoke":
                self._revoke(stream, ident, uid, header, batch)
            case _:
                raise InvalidError("unknown request of an approver", rule="frames.op")

    def _list(self, batch: Batch, scope: str = "") -> dict[str, Any]:
        waiting = [request for request in self._waiting.values() if scope in ("", request.pod)]
        return {"requests": [request.shown(batch.mono_ns) for request in waiting]}

    def _find(self, header: dict[str, Any]) -> Request:
        request = self._waiting.get(fields.text(header, "request", 64))
        if request is None:
            raise InvalidError("no such request is waiting", rule="approval.request")
        return request

    def _decide(self, stream: Stream, ident: int, uid: int, header: dict[str, Any], yes: bool, batch: Batch) -> None:
        request = self._find(header)
        reason = display.escape(fields.text(header, "reason", LIMITS.reason_bytes, default=""))
        approver = f"uid:{uid}"
        if self._expired(request, batch):  # 6
            self._end(request, "expired", batch)
            raise InvalidError("the request has expired", rule="approval.request")
        name = self._counts(request, uid)
        if yes and not name:  # 8
            refusal = self._refuse(request, uid, reason, batch)
            batch.answer(None, 0, None, recorded=True, then=lambda error: stream.fail(ident, error or refusal))
            return
        if yes and len(request.assents) + 1 < request.people:  # 9
            self._assent(stream, ident, request, uid, name, reason, batch)
            return
        if yes and any(who == approver for who, _ in request.assents):  # 9
            raise _second(approver)
        verdict = "approve" if yes else "deny"
        grant = self.grants.new(request, header, uid, batch) if yes else None
        on_record: dict[str, Any] = {"grant": grant.on_record(1)} if grant is not None else {}
        if not yes and (ended := self.grants.denied(request.pod, request.principal, request.keys)):
            on_record = {"revoked": ended}
        if request.assents:
            on_record["assents"] = [{"approver": who, "reason": why} for who, why in request.assents]
        self._record(request, verdict, uid, name, reason, batch, on_record)
        if yes:
            approver = ", ".join((*(who for who, _ in request.assents), approver))
        state = "approved" if yes else "denied"
        if not batch.writes().resolve_ask(request.request, state, approver, reason, batch.now_ns):
            raise AuditError("the ledger lost a request", rule="ledger.state")
        self._drop(request, batch.mono_ns, denied=not yes, approved=yes)

        def then(error: NucleusError | None) -> None:
            body = {"verdict": verdict, "approver": approver, "reason": reason}
            if error is not None:  # 4
                body = {"verdict": "deny", "approver": "", "reason": "the decision could not be recorded"}
            elif yes:  # 5
                body["token"] = self._mint(request, batch)
                if grant is not None:
                    self.grants.add(grant)
            request.gate.answer(request.ident, body)
            self._resolved(request, str(body["verdict"]), approver)

        answer = {"grant": grant.shown(batch.mono_ns)} if grant is not None else {}
        batch.answer(stream, ident, answer, recorded=True, then=then)

    def _assent(
        self, stream: Stream, ident: int, request: Request, uid: int, name: str, reason: str, batch: Batch
    ) -> None:
        """Step 9, the first yes. It counts once its record is durable."""
        approver = f"uid:{uid}"
        self._record(request, "assent", uid, name, reason, batch, {})

        def then(error: NucleusError | None) -> None:
            if error is None and request.request in self._waiting and not request.assents:
                request.assents.append((approver, reason))
                self._push(request.pod, {"event": "assent", "request": request.request, "approver": approver})

        batch.answer(stream, ident, {"more": request.people - 1}, recorded=True, then=then)

    def _revoke(self, stream: Stream, ident: int, uid: int, header: dict[str, Any], batch: Batch) -> None:
        """Ended at once, whether or not the record can be written."""
        reason = display.escape(fields.text(header, "reason", LIMITS.reason_bytes, default=""))
        grant = self.grants.revoke(fields.text(header, "grant", 64), batch.now_ns, batch.mono_ns)
        batch.record(
            "approval",
            pod=grant.pod,
            principal=grant.principal,
            operation={"kind": grant.operation},
            decision={"verdict": "revoke", "rule": grant.rule, "obligations": grant.obligations},
            outcome={"approver": f"uid:{uid}", "identity": next(iter(self._names(uid)), ""), "reason": reason},
            context={"grant": grant.on_record(grant.times - grant.left)},
        )
        batch.answer(stream, ident, {}, recorded=True)

    def _rotate(self, stream: Stream, ident: int, uid: int, header: dict[str, Any], batch: Batch) -> None:
        """Another key mints from now on, whether or not the record can be written; what is out stays good for 30 s."""
        reason = display.escape(fields.text(header, "reason", LIMITS.reason_bytes, default=""))
        old = self.keys.key_id
        self.keys.rotate(batch.mono_ns)
        batch.record(
            "approval",
            decision={"verdict": "rotate_key"},
            outcome={"approver": f"uid:{uid}", "identity": next(iter(self._names(uid)), ""), "reason": reason},
            context={"old": old, "new": self.keys.key_id},
        )
        batch.answer(stream, ident, {"key": self.keys.key_id}, recorded=True)

    def _record(
        self,
        request: Request,
        verdict: str,
        uid: int,
        name: str,
        reason: str,
        batch: Batch,
        more: dict[str, Any],
    ) -> None:
        batch.record(
            "approval",
            pod=request.pod,
            principal=request.principal,
            operation={"kind": request.kind},
            operation_hash=request.operation_hash,
            decision={"verdict": verdict, "rule": request.rule, "obligations": request.obligations},
            outcome={"approver": f"uid:{uid}", "identity": name, "reason": reason},
            context={"request": request.request, "asked_ns": request.asked_ns, **more},
        )

    def _mint(self, request: Request, batch: Batch) -> str:
        claims = token.Claims(
            request.operation_hash,
            request.principal,
            request.pod,
            request.nonce,
            batch.now_ns,
            batch.now_ns + token.TTL_NS,
            self.keys.key_id,
        )
        good = {nonce: end for nonce, end in self._good_until.get(request.pod, {}).items() if end > batch.mono_ns}
        self._good_until[request.pod] = {**good, request.nonce: batch.mono_ns + token.TTL_NS}
        return self.keys.mint(claims, batch.mono_ns)

    # Time

    def next_deadline_ns(self) -> int | None:
        """When the next request expires, monotonic. They expire in the order in which they were asked."""
        first = next(iter(self._waiting.values()), None)
        return first.deadline_ns if first is not None else None

    def expire(self, batch: Batch) -> None:
        """End what has waited too long: requests, and the key that mints."""
        self.keys.maintain(batch.mono_ns)
        for request in [r for r in self._waiting.values() if self._expired(r, batch)]:
            self._end(request, "expired", batch)

    def _expired(self, request: Request, batch: Batch) -> bool:
        return batch.mono_ns >= request.deadline_ns or batch.now_ns >= request.expires_ns

    def _end(self, request: Request, verdict: str, batch: Batch) -> None:
        """Expired or withdrawn: a no that nobody said. The gate's own record says so in the log."""
        batch.writes().resolve_ask(request.request, verdict, now_ns=batch.now_ns)
        self._drop(request, batch.mono_ns)

        def then(_: NucleusError | None) -> None:
            request.gate.answer(request.ident, {"verdict": verdict, "approver": "", "reason": ""})
            self._resolved(request, verdict, "")

        batch.answer(None, 0, None, then=then)

    def _drop(self, request: Request, mono_ns: int, *, denied: bool = False, approved: bool = False) -> None:
        if self._waiting.pop(request.request, None) is not None and request.pod in self._rules:
            self._rules[request.pod].closed(request.operation_hash, mono_ns, denied=denied, approved=approved)

    def _resolved(self, request: Request, verdict: str, approver: str) -> None:
        event = {"event": "resolved", "request": request.request, "verdict": verdict, "approver": approver}
        self._push(request.pod, event)

    def _push(self, pod: str, event: dict[str, Any]) -> None:
        for stream, scope in tuple(self._watching.items()):
            if scope in ("", pod):
                stream.send(event)


def _second(approver: str) -> InvalidError:
    return InvalidError(
        f"{approver} has said yes already: this needs two people",
        rule="approval.second",
        next_step="Somebody else has to approve it.",
    )


def _scope(header: dict[str, Any]) -> str:
    """The pod that an approver answers for; "" for all."""
    return fields.pod(header) if "pod" in header else ""
