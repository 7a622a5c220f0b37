"""The pod's resolver: datagrams and streams to `dns.Responder`, which answers by itself and forwards nothing.

Promises: one answer per query at most, never longer than 4,096 bytes; at most 32 streams at a time, each closed after
10 s without a query; a query that cannot be read is dropped. Relies on: sockets made inside the pod's network.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from contextlib import suppress
from typing import cast

from nucleus.network.dns import Responder

STREAMS = 32
IDLE_S = 10.0
QUERY_BYTES = 4_096


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, responder: Responder) -> None:
        self._responder = responder
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)  # Python 3.11's own does not derive from it

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        answer = self._responder.answer(data, time.monotonic_ns())
        if answer is not None and self._transport is not None:
            self._transport.sendto(answer, addr)


async def serve_dns(
    responder: Responder, datagrams: socket.socket, listener: socket.socket, ready: asyncio.Event
) -> None:
    """Answer until cancelled. `ready`: the rules are known."""
    await ready.wait()
    loop = asyncio.get_running_loop()
    datagrams.setblocking(False)
    transport, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(responder), sock=datagrams)
    streams: set[asyncio.Task[None]] = set()

    def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(streams) >= STREAMS:
            writer.close()
            return
        task = asyncio.ensure_future(_stream(responder, reader, writer))
        streams.add(task)
        task.add_done_callback(streams.discard)

    listener.setblocking(False)
    server = await asyncio.start_server(accepted, sock=listener, limit=2 * QUERY_BYTES)
    try:
        await server.serve_forever()
    finally:
        transport.close()
        for task in streams:
            task.cancel()


async def _stream(responder: Responder, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """RFC 1035 §4.2.2: each message behind its length."""
    try:
        with suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
            while True:
                async with asyncio.timeout(IDLE_S):
                    (size,) = struct.unpack("!H", await reader.readexactly(2))
                    if not 0 < size <= QUERY_BYTES:
                        return
                    query = await reader.readexactly(size)
                answer = responder.answer(query, time.monotonic_ns())
                if answer is None:
                    return
                writer.write(struct.pack("!H", len(answer)) + answer)
                await writer.drain()
    finally:
        writer.close()
