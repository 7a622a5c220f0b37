"""The relay on real loopback sockets: order, half-close, backpressure, allowance, idle, cut, memory."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import struct
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from nucleus.network.relay import BUFFER_BYTES, LEAST_READ, Relay


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of one loopback TCP connection, non-blocking."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    near.setblocking(False)
    far.setblocking(False)
    return near, far


class Rig:
    """client <-> [relay] <-> server; `client` and `server` are the far ends that a test holds."""

    def __init__(self, **kwargs: Any) -> None:
        self.client, inner = tcp_pair()
        self.server, outer = tcp_pair()
        self.relay = Relay(inner, outer, **kwargs)
        self.task = asyncio.ensure_future(self.relay.run())
        self.loop = asyncio.get_running_loop()

    async def send(self, side: socket.socket, data: bytes) -> None:
        await self.loop.sock_sendall(side, data)

    async def recv(self, side: socket.socket, count: int) -> bytes:
        got = bytearray()
        while len(got) < count and (data := await self.loop.sock_recv(side, count - len(got))):
            got += data
        return bytes(got)

    async def drain(self, side: socket.socket) -> bytes:
        got = bytearray()
        while data := await self.loop.sock_recv(side, 1 << 18):
            got += data
        return bytes(got)

    def close(self) -> None:
        self.client.close()
        self.server.close()


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(15):
            await body()

    asyncio.run(bounded())


def test_early_bytes_go_first_and_both_ways_are_counted() -> None:
    async def body() -> None:
        rig = Rig(early=b"hello ")
        await rig.send(rig.client, b"world")
        assert await rig.recv(rig.server, 11) == b"hello world"
        await rig.send(rig.server, b"yes")
        assert await rig.recv(rig.client, 3) == b"yes"
        assert (rig.relay.up, rig.relay.down) == (11, 3)
        rig.close()
        assert await rig.task == "closed"
        assert rig.relay.over

    run(body)


def test_half_close_is_passed_on_and_the_other_way_goes_on() -> None:
    async def body() -> None:
        rig = Rig()
        await rig.send(rig.client, b"request")
        rig.client.shutdown(socket.SHUT_WR)
        assert await rig.drain(rig.server) == b"request"
        assert not rig.task.done()
        await rig.send(rig.server, b"answer")
        assert await rig.recv(rig.client, 6) == b"answer"
        rig.server.close()
        assert await rig.drain(rig.client) == b""
        assert await rig.task == "closed"
        rig.close()

    run(body)


def test_random_data_both_ways_arrives_whole_and_in_order() -> None:
    async def body() -> None:
        rig = Rig()
        up, down = random.Random(1).randbytes(5_000_003), random.Random(2).randbytes(7_000_001)

        async def pour(side: socket.socket, data: bytes, seed: int) -> None:
            sizes, at = random.Random(seed), 0
            while at < len(data):
                step = sizes.choice((1, 100, 70_000, 900_000))
                await rig.send(side, data[at : at + step])
                at += step
            side.shutdown(socket.SHUT_WR)

        results = await asyncio.gather(
            pour(rig.client, up, 3), pour(rig.server, down, 4), rig.drain(rig.server), rig.drain(rig.client)
        )
        assert results[2] == up
        assert results[3] == down
        assert await rig.task == "closed"
        assert (rig.relay.up, rig.relay.down) == (len(up), len(down))
        rig.close()

    run(body)


def test_a_receiver_that_does_not_read_slows_the_sender_and_costs_one_read() -> None:
    async def body() -> None:
        rig = Rig()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(rig.send(rig.server, bytes(64 << 20)), 1.0)
        assert rig.relay.down < 64 << 20  # kernel buffers of two connections, no more
        flow = rig.relay._down
        assert 0 < len(flow.left) <= BUFFER_BYTES
        assert LEAST_READ <= flow.size <= BUFFER_BYTES
        before = rig.relay.down
        rig.server.close()
        assert len(await rig.drain(rig.client)) >= before  # and it goes on where it stood
        rig.close()
        assert await rig.task == "closed"

    run(body)


def test_the_allowance_stops_both_ways_and_more_lets_go() -> None:
    async def body() -> None:
        asked: list[tuple[int, int]] = []
        gate = asyncio.Event()

        async def more() -> int:
            asked.append((rig.relay.up, rig.relay.down))
            await gate.wait()
            gate.clear()
            return 1_000

        rig = Rig(allowance=1_000, more=more)
        await rig.send(rig.client, b"u" * 600)
        assert await rig.recv(rig.server, 600) == b"u" * 600
        await rig.send(rig.server, b"d" * 2_000)
        assert len(await rig.recv(rig.client, 400)) == 400
        await rig.send(rig.client, b"u")
        await asyncio.sleep(0.05)
        assert asked == [(600, 400)]  # asked once, at the byte, though both sides have more
        gate.set()
        await asyncio.sleep(0.05)
        assert len(asked) == 2
        assert sum(asked[1]) == 2_000
        gate.set()
        rest = await rig.recv(rig.client, 1_600)
        assert rest == b"d" * 1_600
        assert await rig.recv(rig.server, 1) == b"u"
        rig.close()
        await rig.task

    run(body)


@pytest.mark.parametrize("how", ["none", "zero", "raises"])
def test_an_allowance_that_is_not_renewed_ends_by_reset(how: str) -> None:
    async def body() -> None:
        async def more() -> int:
            if how == "raises":
                raise RuntimeError("no gate")
            return 0

        rig = Rig(allowance=10, more=None if how == "none" else more)
        await rig.send(rig.client, b"x" * 11)
        assert await rig.recv(rig.server, 10) == b"x" * 10
        assert await rig.task == "limit"
        assert rig.relay.up == 10
        for side in (rig.client, rig.server):
            with pytest.raises(ConnectionResetError):
                await rig.recv(side, 1)
        rig.close()

    run(body)


def test_an_end_at_the_very_byte_of_the_allowance_asks_for_nothing() -> None:
    async def body() -> None:
        async def more() -> int:
            raise AssertionError("asked")

        rig = Rig(allowance=10, more=more)
        await rig.send(rig.client, b"x" * 10)
        rig.client.shutdown(socket.SHUT_WR)
        assert await rig.drain(rig.server) == b"x" * 10
        rig.server.shutdown(socket.SHUT_WR)
        assert await rig.drain(rig.client) == b""
        assert await rig.task == "closed"
        rig.close()

    run(body)


def test_cut_resets_both_sides_at_once_even_while_more_is_asked() -> None:
    async def body() -> None:
        cancelled = asyncio.Event()

        async def more() -> int:
            try:
                await asyncio.sleep(60)
            finally:
                cancelled.set()
            return 1

        rig = Rig(allowance=5, more=more)
        await rig.send(rig.client, b"x" * 9)
        assert await rig.recv(rig.server, 5) == b"x" * 5
        await asyncio.sleep(0.02)
        started = time.monotonic()
        rig.relay.cut()
        assert await rig.task == "cut"
        for side in (rig.client, rig.server):
            with pytest.raises(ConnectionResetError):
                await rig.recv(side, 1)
        assert time.monotonic() - started < 0.5
        await cancelled.wait()
        rig.relay.cut()  # again: nothing happens
        rig.close()

    run(body)


def test_cancelling_the_task_cuts() -> None:
    async def body() -> None:
        rig = Rig()
        await asyncio.sleep(0)
        rig.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await rig.task
        with pytest.raises(ConnectionResetError):
            await rig.recv(rig.client, 1)
        rig.close()

    run(body)


def test_idle_ends_but_not_while_bytes_move_or_a_person_is_asked() -> None:
    async def body() -> None:
        async def more() -> int:
            await asyncio.sleep(0.6)
            return 100

        rig = Rig(idle=0.25, allowance=4, more=more)
        for _ in range(4):
            await rig.send(rig.client, b"x")
            await asyncio.sleep(0.1)
        assert not rig.task.done()
        await rig.send(rig.client, b"y")
        await asyncio.sleep(0.5)
        assert not rig.task.done()  # asked
        assert await rig.recv(rig.server, 5) == b"xxxxy"
        started = time.monotonic()
        assert await rig.task == "idle"
        assert 0.1 < time.monotonic() - started < 1.0
        rig.close()

    run(body)


@pytest.mark.parametrize("who", ["client", "server"])
def test_a_reset_is_passed_on_as_a_reset(who: str) -> None:
    async def body() -> None:
        rig = Rig()
        await rig.send(rig.client, b"x")
        await rig.recv(rig.server, 1)
        dying, other = (rig.client, rig.server) if who == "client" else (rig.server, rig.client)
        dying.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        dying.close()
        with pytest.raises(ConnectionResetError):
            await rig.recv(other, 1)
        assert await rig.task == "closed"
        assert who in rig.relay.reason
        rig.close()

    run(body)


def test_a_client_that_is_gone_ends_the_download() -> None:
    async def body() -> None:
        rig = Rig()
        await rig.send(rig.client, b"get")
        assert await rig.recv(rig.server, 3) == b"get"
        rig.client.close()
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            await rig.send(rig.server, bytes(64 << 20))
        assert await rig.task == "closed"
        rig.close()

    run(body)


def test_an_idle_connection_costs_little_memory_and_no_descriptor() -> None:
    async def body() -> None:
        first = Rig()  # the loop's buffer is everybody's
        pairs = [(tcp_pair(), tcp_pair()) for _ in range(100)]
        before = len(os.listdir("/proc/self/fd"))
        tracemalloc.start()
        held, _ = tracemalloc.get_traced_memory()
        relays = [Relay(client[1], server[1]) for client, server in pairs]
        tasks = [asyncio.ensure_future(relay.run()) for relay in relays]
        await asyncio.sleep(0.05)
        used = tracemalloc.get_traced_memory()[0] - held
        tracemalloc.stop()
        assert used / 100 < 16_384
        assert len(os.listdir("/proc/self/fd")) == before
        for relay in relays:
            relay.cut()
        await asyncio.gather(*tasks)
        for client, server in pairs:
            client[0].close()
            server[0].close()
        first.close()
        await first.task

    run(body)


def test_a_hundred_connections_that_start_and_end_at_once_leave_nothing() -> None:
    async def body() -> None:
        before = len(os.listdir("/proc/self/fd"))
        rigs = [Rig(early=b"e") for _ in range(100)]

        async def talk(rig: Rig, number: int) -> None:
            await rig.send(rig.client, b"%d" % number)
            rig.client.shutdown(socket.SHUT_WR)
            assert await rig.drain(rig.server) == b"e%d" % number
            rig.server.close()
            assert await rig.drain(rig.client) == b""
            assert await rig.task == "closed"
            rig.close()

        await asyncio.gather(*(talk(rig, number) for number, rig in enumerate(rigs)))
        assert len(os.listdir("/proc/self/fd")) == before

    run(body)
