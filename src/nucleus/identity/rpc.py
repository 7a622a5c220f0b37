"""What the services of the Workload API's process have in common: one message in, bounded; and when to push again.

Promises: a message is bounded before it is buffered and while it is; one that does not come ends its call.
Relies on: `grpclib`. Does not: know who calls or what is answered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from google.protobuf.message import DecodeError
from grpclib.const import Status
from grpclib.exceptions import GRPCError

MESSAGE_S = 10.0  # from a call's headers, or a message's first bytes, to its end
MIN_REFRESH_S = 1.0
_PIECE = 4_096  # a caller may send a byte at a time, and each costs us an object until it is joined
_SECOND_NS = 1_000_000_000

Call = Callable[[Any], Awaitable[None]]


class Answers(Protocol):
    """Who knows what is a connection's: the listener, or in a pod its channel to the authority."""

    async def ask(self, op: str, conn: int, **fields: Any) -> dict[str, Any]:
        """What is this connection's. Raises NucleusError."""

    def change(self) -> asyncio.Event:
        """What is set at the next change of entries, bundles or revocations."""


async def receive(stream: Any, kind: Any, limit: int) -> Any:
    """The call's one message. grpclib's own reader would take one of 4 GiB.

    Raises:
        GRPCError: there is none in time, it is longer than `limit` bytes, compressed, or not of this kind.
    """
    message = await _message(stream, kind, limit, MESSAGE_S)
    if message is None:
        raise GRPCError(Status.INVALID_ARGUMENT, "the call has no message")
    return message


async def receive_next(stream: Any, kind: Any, limit: int) -> Any:
    """The next message of a stream, whenever it comes; None: the caller sends no more. Raises as `receive`."""
    return await _message(stream, kind, limit, None)


async def _message(stream: Any, kind: Any, limit: int, patience: float | None) -> Any:
    raw = stream._stream
    try:
        async with asyncio.timeout(patience):
            head = await raw.recv_data(5)
        if not head:
            return None
        length = int.from_bytes(head[1:])
        if head[0]:
            raise GRPCError(Status.UNIMPLEMENTED, "compressed messages are not accepted")
        if length > limit:
            raise GRPCError(Status.RESOURCE_EXHAUSTED, f"a message is at most {limit} bytes")
        data = bytearray()
        async with asyncio.timeout(MESSAGE_S):
            while len(data) < length:
                piece = await raw.recv_data(min(_PIECE, length - len(data)))
                if not piece:
                    raise GRPCError(Status.INVALID_ARGUMENT, "the message cannot be read")
                data += piece
        return kind.FromString(bytes(data))
    except TimeoutError:
        raise GRPCError(Status.DEADLINE_EXCEEDED, f"no message within {MESSAGE_S:.0f} s") from None
    except (AssertionError, DecodeError):  # it ended in its middle, or is no message of this kind
        raise GRPCError(Status.INVALID_ARGUMENT, "the message cannot be read") from None


async def set_within(event: asyncio.Event, seconds: float) -> bool:
    """Whether `event` was set in time."""
    try:
        async with asyncio.timeout(max(seconds, 0)):
            await event.wait()
    except TimeoutError:
        return False
    return True


def due(answer: Mapping[str, Any], refresh_s: int) -> float:
    """When X.509-SVIDs that were answered are to be pushed anew, by the monotonic clock: at the first one's half-life.

    `refresh_s`: after so many seconds at the latest; 0: at half-life.
    """
    renew_ns = min(int(svid["renew_ns"]) for svid in answer["svids"])
    now = time.monotonic()
    at = now + max((renew_ns - time.time_ns()) / _SECOND_NS, MIN_REFRESH_S)
    return min(at, now + refresh_s) if refresh_s else at
