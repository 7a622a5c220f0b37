"""The gate's client of the authority: budget, approvals, audit, its own SVID (docs/design.md, "gate → authority")."""

from __future__ import annotations

import asyncio
import base64
import time
from typing import Any

from nucleus.approval.scope import Scope
from nucleus.errors import AuditError, NucleusError
from nucleus.frames import Frame
from nucleus.identity.svid import X509Svid
from nucleus.limits import LIMITS
from nucleus.model.operation import Base, operation_hash
from nucleus.model.receipt import Approval
from nucleus.server.channel import Channel
from nucleus.server.wire import error_from


def gone() -> AuditError:
    """The error of everything once the authority is gone: nothing can be recorded, so nothing runs."""
    return AuditError("the authority is gone", rule="authority.gone")


Answer = asyncio.Future[Frame]


class Authority:
    """Requests to the authority over the gate's channel. Each raises the error that the authority answered.

    Args:
        channel: to the authority.
        approvers: the policy's lists of whose yes counts; () for whoever may approve at all.
    """

    def __init__(self, channel: Channel, approvers: tuple[frozenset[str], ...] = ()) -> None:
        self._channel = channel
        self._approvers = [sorted(patterns) for patterns in approvers]

    def begin(self, **header: Any) -> Answer:
        """Send a request now; the answer is awaited with `finish`. Requests are answered in their order."""
        return self._channel.start(header)[1]

    async def finish(self, *answers: Answer) -> dict[str, Any]:
        """Wait for all of `answers`; the last one's ``ok``. Raises the first error among them."""
        frames = []
        try:
            for answer in answers:
                frames.append(await answer)
        except NucleusError:
            for answer in answers:  # the channel broke: all of them hold the same error, one is enough
                answer.cancelled() or (answer.done() and answer.exception())
            raise
        for frame in frames:
            if not isinstance(frame.header.get("ok"), dict):
                raise error_from(frame.header.get("error"))
        ok: dict[str, Any] = frames[-1].header["ok"]
        return ok

    async def _call(self, **header: Any) -> dict[str, Any]:
        return await self.finish(self.begin(**header))

    async def open_budget(self, limit: int, window_ns: int) -> dict[str, Any]:
        """Open the pod's budget: `limit` micro-dollars for `window_ns`."""
        return await self._call(op="open_budget", limit=limit, window_ns=window_ns)

    def reserve(
        self, reservation: str, amount: int, operation: str, principal: str, token: str, least: int = 0
    ) -> Answer:
        """Hold `amount` micro-dollars; with a token, burn its nonce in the same transaction.

        With `least`: as much of it as there is, no less than that; the answer says how much (``held``).
        """
        extra: dict[str, Any] = {**({"token": token} if token else {}), **({"least": least} if least else {})}
        return self.begin(
            op="reserve",
            reservation=reservation,
            amount=amount,
            operation_hash=operation,
            principal=principal,
            **extra,
        )

    async def extend(self, reservation: str, amount: int, least: int) -> int:
        """Hold up to `amount` more for what runs, at least `least`; how much."""
        return int((await self._call(op="extend", reservation=reservation, amount=amount, least=least))["held"])

    async def charge(self, entry: str, amount: int, reason: str, principal: str) -> dict[str, Any]:
        """Charge this pod for what its orchestrator used elsewhere, once for each `entry`."""
        return await self._call(op="charge", entry=entry, amount=amount, reason=reason, principal=principal)

    def settle(self, reservation: str, actual: int) -> Answer:
        """Resolve a reservation for what it cost."""
        return self.begin(op="settle", reservation=reservation, actual=actual)

    async def release(self, reservation: str) -> None:
        """Give a reservation back whole."""
        await self._call(op="release", reservation=reservation)

    def append(self, record: dict[str, Any]) -> Answer:
        """Append one record; the answer has its sequence number (``seq``) and comes once it is durable."""
        return self.begin(op="append", record=record)

    async def ask(
        self,
        operation: Base,
        principal: str,
        decision: dict[str, Any],
        display: tuple[str, ...],
        scopes: tuple[Scope, ...] = (),
    ) -> Approval:
        """Ask a person; waits until they answer or the request expires. Withdrawn when we are cancelled."""
        ident, future = self._channel.start(
            {
                "op": "ask",
                "operation": operation.model_dump(mode="json"),
                "operation_hash": operation_hash(operation),
                "principal": principal,
                "decision": decision,
                "display": list(display),
                "scopes": [{"kind": scope.kind, "key": scope.key, "shown": scope.shown} for scope in scopes],
                **({"approvers": self._approvers} if self._approvers else {}),
            }
        )
        try:
            async with asyncio.timeout((LIMITS.approval_ttl_ns + LIMITS.grace_ns) / 1e9):
                frame = await future
        except TimeoutError:
            return Approval("expired")
        except asyncio.CancelledError:
            self._channel.send({"op": "withdraw", "target": ident, "id": 0})
            raise
        ok = frame.header.get("ok")
        if not isinstance(ok, dict):
            raise error_from(frame.header.get("error"))
        return Approval(
            str(ok.get("verdict", "deny")),
            token=str(ok.get("token", "")),
            approver=str(ok.get("approver", "")),
            reason=str(ok.get("reason", "")),
        )

    async def revoked(self, *, everybody: bool = False) -> list[dict[str, Any]]:
        """What is revoked and concerns this pod's door; later ones are told on the channel (``revoked``).

        Args:
            everybody: others than the pod's own may come in: the names of all count.
        """
        found = (await self._call(op="revoked", **({"everybody": True} if everybody else {}))).get("revoked")
        return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []

    async def federated(self) -> dict[str, tuple[bytes, ...]]:
        """The roots of foreign trust domains, DER; a change is told on the channel (``federated``)."""
        found: dict[str, tuple[bytes, ...]] = {}
        for name in (await self._call(op="federated")).get("trust_domains", []):
            roots = (await self._call(op="federated", trust_domain=name)).get("x509", [])
            found[str(name)] = tuple(base64.b64decode(one) for one in roots)
        return found

    async def svid(self) -> X509Svid:
        """The gate's own X509-SVID."""
        return X509Svid.from_wire(await self._call(op="svid"), now=time.time_ns())
