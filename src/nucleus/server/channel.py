"""Framed request/response over an inherited socket, as an asyncio protocol.

Promises: many requests in flight, answers matched by id; a peer that breaks the framing or closes fails every waiting
request and every later one with the same error; nothing is buffered beyond one frame's limit.
Does not: authenticate or trust: what an answer means is its caller's to check.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from nucleus.errors import NucleusError
from nucleus.frames import Decoder, Frame, encode


class Channel(asyncio.Protocol):
    """One end of a framed socket.

    Args:
        broken: makes the error that callers get once the peer is gone.
        on_request: called with frames that are not answers to ours (the launcher's operations).
        on_closed: called once when the peer is gone.
    """

    def __init__(
        self,
        broken: Callable[[], NucleusError],
        on_request: Callable[[Frame], None] | None = None,
        on_closed: Callable[[], None] | None = None,
    ) -> None:
        self._broken = broken
        self._on_request = on_request
        self._on_closed = on_closed
        self._decoder = Decoder()
        self._waiting: dict[int, asyncio.Future[Frame]] = {}
        self._parts: dict[int, Callable[[Frame], None]] = {}
        self._next = 0
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def over(
        cls,
        sock: socket.socket,
        broken: Callable[[], NucleusError],
        on_request: Callable[[Frame], None] | None = None,
        on_closed: Callable[[], None] | None = None,
    ) -> Channel:
        """A channel over a connected unix stream socket, which it owns from here on."""
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        _, channel = await loop.create_unix_connection(lambda: cls(broken, on_request, on_closed), sock=sock)
        return channel

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            for frame in self._decoder.feed(data):
                self._dispatch(frame)
        except NucleusError:
            self.close()

    def _dispatch(self, frame: Frame) -> None:
        ident = frame.header.get("id")
        if "out" in frame.header and self._on_request is None:
            # A piece of an answer that is still to come; of a request that wants none it is nothing.
            if isinstance(ident, int) and (part := self._parts.get(ident)) is not None:
                part(frame)
            return
        if self._on_request is not None and "ok" not in frame.header and "error" not in frame.header:
            self._on_request(frame)
        elif isinstance(ident, int) and (future := self._waiting.pop(ident, None)) is not None and not future.done():
            self._parts.pop(ident, None)
            future.set_result(frame)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._parts.clear()
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(self._broken())
                future.exception()  # seen: who waited for it may have ended with the channel
        if self._on_closed is not None:
            self._on_closed()
            self._on_closed = None

    def send(self, header: dict[str, Any], body: bytes = b"") -> None:
        """Send a frame that expects no answer. Raises the channel's error when the peer is gone."""
        if self._transport is None:
            raise self._broken()
        self._transport.write(encode(header, body))

    def backlog(self) -> int:
        """Bytes that the peer has not read."""
        return self._transport.get_write_buffer_size() if self._transport is not None else 0

    def start(
        self, header: dict[str, Any], body: bytes = b"", part: Callable[[Frame], None] | None = None
    ) -> tuple[int, asyncio.Future[Frame]]:
        """Send a request; returns its id and the future of its answer. `part` gets the frames that come before it."""
        self._next += 1
        ident = self._next
        self.send({"id": ident, **header}, body)
        future: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()
        self._waiting[ident] = future
        if part is not None:
            self._parts[ident] = part
        return ident, future

    async def call(self, header: dict[str, Any], body: bytes = b"") -> Frame:
        """Send a request and wait for its answer."""
        _, future = self.start(header, body)
        return await future

    def close(self) -> None:
        """Close; callers that wait get the channel's error."""
        if self._transport is not None:
            self._transport.close()
