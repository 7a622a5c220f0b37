"""A request for a person's approval, as the gate sent it: read strictly, escaped for whoever looks at it.

Promises: everything that a person is shown of it went through `approval.display`; what an answer is bound to is the
operation's hash, the principal, the pod and a nonce of our own, none of which is shown text.
Does not: judge it, keep it, or answer it (`approvals`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from nucleus.approval import display, scope, token
from nucleus.authority import fields
from nucleus.authority.batch import Batch
from nucleus.authority.people import Lists, read_lists
from nucleus.authority.streams import Stream
from nucleus.errors import InvalidError
from nucleus.limits import LIMITS
from nucleus.model.decision import TWO_PEOPLE

PRINCIPAL_BYTES = 2_048
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class Offered:
    """A scope as the gate offers it, its line escaped."""

    kind: str
    key: str
    text: str


@dataclass(slots=True)
class Request:
    """One request that waits. Times in nanoseconds; `deadline_ns` is monotonic."""

    request: str
    pod: str
    gate: Stream
    ident: int
    principal: str
    operation_hash: str
    kind: str
    rule: str
    reason: str
    obligations: list[str]
    display: list[str]
    asked_ns: int
    expires_ns: int
    deadline_ns: int
    nonce: bytes = field(repr=False)
    scopes: list[Offered] = field(default_factory=list)
    people: int = 1
    approvers: Lists = ()  # whose yes counts; (): whoever may approve
    refused: set[int] = field(default_factory=set)  # uids whose yes did not count, on record once
    assents: list[tuple[str, str]] = field(default_factory=list)  # who has said yes so far, and why

    @property
    def keys(self) -> list[str]:
        """What a grant may be matched by."""
        return [one.key for one in self.scopes]

    def row(self) -> dict[str, Any]:
        """As the ledger has it."""
        names = ("pod", "principal", "operation_hash", "asked_ns", "expires_ns")
        return {name: getattr(self, name) for name in names}

    def shown(self, mono_ns: int) -> dict[str, Any]:
        """As an approver sees it."""
        return {
            "request": self.request,
            "pod": self.pod,
            "principal": display.escape(self.principal),
            "operation": self.kind,
            "operation_hash": self.operation_hash,
            "decision": {"rule": self.rule, "reason": self.reason, "obligations": self.obligations},
            "display": self.display,
            "scopes": [{"kind": one.kind, "shown": one.text} for one in self.scopes],
            "people": self.people,
            "approvers": [sorted(map(display.escape, patterns)) for patterns in self.approvers],
            "assents": [who for who, _ in self.assents],
            "asked_ns": self.asked_ns,
            "expires_ns": self.expires_ns,
            "remaining_ms": max(0, (self.deadline_ns - mono_ns) // 1_000_000),
        }


def read(gate: Stream, ident: int, pod: str, header: dict[str, Any], batch: Batch) -> Request:
    """The request that `gate` made with its frame `ident`. Raises InvalidError."""
    decision = header.get("decision")
    operation = header.get("operation")
    lines = header.get("display")
    if not isinstance(decision, dict) or not isinstance(operation, dict):
        raise InvalidError("an ask has a decision and an operation", rule="frames.field")
    if not isinstance(lines, list) or not lines or not all(isinstance(line, str) for line in lines):
        raise InvalidError("an ask has lines to show", rule="frames.field")
    obligations = decision.get("obligations")
    names = obligations if isinstance(obligations, list) else []
    two = TWO_PEOPLE in names
    return Request(
        request=os.urandom(6).hex(),
        pod=pod,
        gate=gate,
        ident=ident,
        principal=fields.text(header, "principal", PRINCIPAL_BYTES),
        operation_hash=fields.operation_hash(header),
        kind=display.escape(str(operation.get("kind", ""))[:64]),
        rule=display.escape(str(decision.get("rule", ""))[:256]),
        reason=display.escape(str(decision.get("reason", ""))[:2_000]),
        obligations=[display.escape(str(name)[:128]) for name in names[:16]],
        display=display.escape_lines(lines),
        asked_ns=batch.now_ns,
        expires_ns=batch.now_ns + LIMITS.approval_ttl_ns,
        deadline_ns=batch.mono_ns + LIMITS.approval_ttl_ns,
        nonce=os.urandom(token.NONCE_BYTES),
        scopes=[] if two else _offered(header),
        people=2 if two else 1,
        approvers=read_lists(header, "approvers"),
    )


def _offered(header: dict[str, Any]) -> list[Offered]:
    """The ``scopes`` of an ask. Raises InvalidError: they are none, too many, or two of a kind."""
    items = header.get("scopes", [])
    if not isinstance(items, list) or len(items) > scope.MAX_OFFERED:
        raise InvalidError(f"an ask offers at most {scope.MAX_OFFERED} scopes", rule="frames.field")
    found = []
    for item in items:
        if not isinstance(item, dict) or item.keys() != {"kind", "key", "shown"}:
            raise InvalidError("a scope is a kind, a key and a line", rule="frames.field")
        kind, key, shown = item["kind"], item["key"], item["shown"]
        if kind not in scope.KINDS or not isinstance(key, str) or len(key) != 64 or not set(key) <= _HEX:
            raise InvalidError("no such scope", rule="frames.field")
        if not isinstance(shown, str) or not 0 < len(shown) <= scope.MAX_SHOWN:
            raise InvalidError("a scope has a line to show", rule="frames.field")
        found.append(Offered(kind, key, display.escape(shown)))
    if len({one.kind for one in found}) < len(found):
        raise InvalidError("two scopes of one kind", rule="frames.field")
    return found
