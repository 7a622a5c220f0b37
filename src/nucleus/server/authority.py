"""The gate's client of the authority: budget, approvals, audit, its own SVID (docs/design.md, "gate → authority")."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from nucleus.errors import AuditError
from nucleus.identity.svid import X509Svid
from nucleus.limits import LIMITS
from nucleus.model.operation import Base, operation_hash
from nucleus.model.receipt import Approval
from nucleus.server.channel import Channel
from nucleus.server.wire import error_from


def gone() -> AuditError:
    """The error of everything once the authority is gone: nothing can be recorded, so nothing runs."""
    return AuditError("the authority is gone", rule="authority.gone")


class Authority:
    """Requests to the authority over the gate's channel. Each raises the error that the authority answered."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def _call(self, **header: Any) -> dict[str, Any]:
        frame = await self._channel.call(header)
        ok = frame.header.get("ok")
        if not isinstance(ok, dict):
            raise error_from(frame.header.get("error"))
        return ok

    async def open_budget(self, limit: int, window_ns: int) -> dict[str, Any]:
        """Open the pod's budget: `limit` micro-dollars for `window_ns`."""
        return await self._call(op="open_budget", limit=limit, window_ns=window_ns)

    async def reserve(self, reservation: str, amount: int, operation: str, principal: str, token: str) -> None:
        """Hold `amount` micro-dollars; with a token, burn its nonce in the same transaction."""
        extra = {"token": token} if token else {}
        await self._call(
            op="reserve",
            reservation=reservation,
            amount=amount,
            operation_hash=operation,
            principal=principal,
            **extra,
        )

    async def settle(self, reservation: str, actual: int) -> None:
        """Resolve a reservation for what it cost."""
        await self._call(op="settle", reservation=reservation, actual=actual)

    async def release(self, reservation: str) -> None:
        """Give a reservation back whole."""
        await self._call(op="release", reservation=reservation)

    async def append(self, record: dict[str, Any]) -> int:
        """Append one record; returns its sequence number once it is durable."""
        return int((await self._call(op="append", record=record))["seq"])

    async def ask(
        self, operation: Base, principal: str, decision: dict[str, Any], display: tuple[str, ...]
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

    async def svid(self) -> X509Svid:
        """The gate's own X509-SVID."""
        return X509Svid.from_wire(await self._call(op="svid"), now=time.time_ns())
