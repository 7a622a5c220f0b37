"""The four things that the HTTP side does with a connection, over a plain socket and over asyncio's TLS.

Promises: a `read` that is cancelled has lost no byte; `write` returns once the bytes are taken, so a slow reader slows
its writer; `finish` lets a peer that is still sending read our last words before the reset that they would cause.
Does not: count, bound, or time anything else.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Protocol

from nucleus.network import relay

LINGER_S = 1.0
LINGER_BYTES = 1_048_576


class Stream(Protocol):
    """A connected byte stream, owned by whoever holds it."""

    async def read(self, most: int) -> bytes:
        """At least a byte, or b"" at the end. Raises OSError."""

    async def write(self, data: bytes) -> None:
        """Send all of `data`; after a cancelled write the stream is unusable. Raises OSError."""

    def quiet(self) -> bool:
        """Nothing has come, not even the end: an idle connection that may be used again."""

    async def finish(self) -> None:
        """End our side, wait (not long) for the peer's, close."""

    def abort(self) -> None:
        """Close at once, by a reset. Nothing happens the second time."""


class SocketStream:
    """A non-blocking socket."""

    __slots__ = ("_loop", "_sock")

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def read(self, most: int) -> bytes:
        while True:
            try:
                return self._sock.recv(most)
            except BlockingIOError:
                await self._ready(self._loop.add_reader, self._loop.remove_reader)

    async def write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            try:
                left = left[self._sock.send(left) :]
            except BlockingIOError:
                await self._ready(self._loop.add_writer, self._loop.remove_writer)

    async def _ready(self, add: Callable[..., object], remove: Callable[[socket.socket], object]) -> None:
        """Until the socket may be tried again. The bytes are fetched after it, not by it: cancelled, it loses none."""
        waiting = self._loop.create_future()
        add(self._sock, lambda: None if waiting.done() else waiting.set_result(None))
        try:
            await waiting
        finally:
            if self._sock.fileno() >= 0:
                remove(self._sock)

    def quiet(self) -> bool:
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    async def finish(self) -> None:
        try:
            async with asyncio.timeout(LINGER_S):
                self._sock.shutdown(socket.SHUT_WR)
                left = LINGER_BYTES
                while left > 0 and (data := await self.read(65_536)):
                    left -= len(data)
        except (OSError, TimeoutError):
            pass
        finally:
            self._sock.close()

    def abort(self) -> None:
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
            relay.close(self._sock, reset=True)


class AsyncioStream:
    """asyncio's own pair, TLS or not."""

    __slots__ = ("_reader", "_writer")

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self, most: int) -> bytes:
        return await self._reader.read(most)

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    def quiet(self) -> bool:
        # asyncio has no public look at what it holds; one byte of an answer that nobody asked for ends the reuse.
        held = getattr(self._reader, "_buffer", b"")
        return not (held or self._reader.at_eof() or self._reader.exception() or self._writer.is_closing())

    async def finish(self) -> None:
        try:
            async with asyncio.timeout(LINGER_S):
                await self._writer.drain()
                if self._writer.can_write_eof():
                    self._writer.write_eof()
                    left = LINGER_BYTES
                    while left > 0 and (data := await self._reader.read(65_536)):
                        left -= len(data)
                self._writer.close()
                await self._writer.wait_closed()
        except (OSError, TimeoutError):
            pass
        finally:
            self._writer.transport.abort()

    def abort(self) -> None:
        self._writer.transport.abort()
