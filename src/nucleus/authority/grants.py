"""Wider answers: what a person allowed more than once, counted down here, in memory alone.

Security steps:
1. A grant is for one pod, one principal and one key (`approval.scope`): that scope, asked for these reasons.
2. Its count goes down when it is taken, before anything else happens, and nothing ever gives it back.
3. It ends by count, by the wall clock *and* by the monotonic clock, by revocation, by a no to the same key, with its
   gate and with its pod. A new authority knows none: every end is a question to a person.

Promises: bounded; `match` finds nothing that has ended. It holds while nobody is present: the person said how often.
Does not: mint, record or ask (`approvals`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from nucleus.approval import display, scope
from nucleus.authority import fields
from nucleus.authority.batch import Batch
from nucleus.authority.requests import Request
from nucleus.errors import InvalidError

MAX_GRANTS = 32  # of a pod


@dataclass(slots=True)
class Grant:
    """One wider answer. `expires_ns`: wall clock; `deadline_ns`: monotonic. The texts are escaped."""

    grant: str
    pod: str
    principal: str
    key: str
    operation: str
    scope: str
    text: str
    times: int
    uid: int
    given_ns: int
    expires_ns: int
    deadline_ns: int
    rule: str
    obligations: list[str] = field(default_factory=list)
    left: int = 0

    @property
    def approver(self) -> str:
        """Who gave it, as records have it."""
        return f"uid:{self.uid}"

    def take(self) -> int:
        """One less; which of the `times` this is."""
        self.left -= 1  # 2
        return self.times - self.left

    def over(self, now_ns: int, mono_ns: int) -> bool:
        """Whether it has ended by itself."""
        return self.left <= 0 or now_ns >= self.expires_ns or mono_ns >= self.deadline_ns  # 3

    def shown(self, mono_ns: int) -> dict[str, Any]:
        """As an approver sees it."""
        return {
            "grant": self.grant,
            "pod": self.pod,
            "principal": display.escape(self.principal),
            "operation": self.operation,
            "scope": self.scope,
            "shown": self.text,
            "decision": {"rule": self.rule, "obligations": self.obligations},
            "times": self.times,
            "left": self.left,
            "approver": self.approver,
            "given_ns": self.given_ns,
            "expires_ns": self.expires_ns,
            "remaining_ms": max(0, (self.deadline_ns - mono_ns) // 1_000_000),
        }

    def on_record(self, number: int) -> dict[str, Any]:
        """As the audit log has it; `number` of `times` is the one that is spoken of."""
        return {
            "grant": self.grant,
            "scope": self.scope,
            "shown": self.text,
            "key": self.key,
            "number": number,
            "times": self.times,
            "expires_ns": self.expires_ns,
        }


class Grants:
    """Every grant of every pod."""

    def __init__(self) -> None:
        self._pods: dict[str, list[Grant]] = {}

    def __repr__(self) -> str:
        return f"<Grants of {len(self._pods)} pods>"

    def any(self, pod: str) -> bool:
        """Whether an ask of `pod` may be answered by a grant."""
        return pod in self._pods

    def new(self, request: Request, header: dict[str, Any], uid: int, batch: Batch) -> Grant | None:
        """The grant that an answer makes, counted from the request's own operation on; None for a plain "once".

        Raises:
            InvalidError: that scope is not on offer, no such count, or the pod has as many grants as it may have.
        """
        if "scope" not in header and "times" not in header:
            return None
        kind, times = fields.text(header, "scope", 16), header.get("times")
        chosen = next((one for one in request.scopes if one.kind == kind), None)
        if chosen is None:
            raise InvalidError("this request does not offer that scope", rule="approval.scope")
        if type(times) is not int or not 1 <= times <= scope.MAX_TIMES:
            raise InvalidError(f"times is 1 to {scope.MAX_TIMES}", rule="approval.times")
        self._forget(batch.now_ns, batch.mono_ns)
        if len(self._pods.get(request.pod, ())) >= MAX_GRANTS:
            raise InvalidError(
                f"this pod has {MAX_GRANTS} grants already",
                rule="approval.grants",
                next_step="Approve it once, or revoke one: `nucleus approvals grants`.",
            )
        return Grant(
            grant=os.urandom(6).hex(),
            pod=request.pod,
            principal=request.principal,
            key=chosen.key,
            operation=request.kind,
            scope=kind,
            text=chosen.text,
            times=times,
            uid=uid,
            given_ns=batch.now_ns,
            expires_ns=batch.now_ns + scope.TTL_NS,
            deadline_ns=batch.mono_ns + scope.TTL_NS,
            rule=request.rule,
            obligations=request.obligations,
            left=times - 1,
        )

    def add(self, grant: Grant) -> None:
        """From now on it answers: its record is durable."""
        if grant.left:
            self._pods.setdefault(grant.pod, []).append(grant)

    def match(self, pod: str, principal: str, keys: Iterable[str], now_ns: int, mono_ns: int) -> Grant | None:
        """The oldest grant that covers this, or None."""
        wanted = frozenset(keys)
        for grant in self._pods.get(pod, ()):
            if grant.principal == principal and grant.key in wanted and not grant.over(now_ns, mono_ns):  # 1, 3
                return grant
        return None

    def standing(self, now_ns: int, mono_ns: int) -> list[Grant]:
        """All that have not ended."""
        self._forget(now_ns, mono_ns)
        return [grant for grants in self._pods.values() for grant in grants]

    def revoke(self, ident: str, now_ns: int, mono_ns: int) -> Grant:
        """End one. Raises InvalidError: there is none of this name."""
        for grant in self.standing(now_ns, mono_ns):
            if grant.grant == ident:
                self._keep(grant.pod, [other for other in self._pods[grant.pod] if other is not grant])
                return grant
        raise InvalidError("no such grant", rule="approval.grant")

    def denied(self, pod: str, principal: str, keys: Iterable[str]) -> list[str]:
        """A no to these keys ends what was granted for them; their names."""
        refused = frozenset(keys)
        grants = self._pods.get(pod, [])
        ended = [grant for grant in grants if grant.principal == principal and grant.key in refused]
        self._keep(pod, [grant for grant in grants if grant not in ended])
        return [grant.grant for grant in ended]

    def close_pod(self, pod: str) -> None:
        """The pod, or its gate, is gone."""
        self._pods.pop(pod, None)

    def _forget(self, now_ns: int, mono_ns: int) -> None:
        for pod, grants in tuple(self._pods.items()):
            self._keep(pod, [grant for grant in grants if not grant.over(now_ns, mono_ns)])

    def _keep(self, pod: str, grants: list[Grant]) -> None:
        if grants:
            self._pods[pod] = grants
        else:
            self._pods.pop(pod, None)
