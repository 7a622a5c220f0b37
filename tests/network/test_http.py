"""The HTTP side on real loopback sockets: decisions, hostile clients and servers, credentials, ends, curl."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from nucleus.errors import ApprovalRequiredError, DeniedError
from nucleus.network.http import (
    Allowed,
    AsyncioStream,
    Deadlines,
    Exchange,
    Head,
    HttpConnection,
    Kept,
    Refused,
    SocketStream,
)
from nucleus.network.upstream import UpstreamError

SECRET = b"sk-live-0123456789abcdef"
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await body()

    asyncio.run(bounded())


def answer(body: bytes = b"ok", *headers: bytes, status: bytes = b"200 OK") -> bytes:
    lines = (b"HTTP/1.1 " + status, *headers, b"Content-Length: %d" % len(body))
    return b"\r\n".join((*lines, b"", body))


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Head and body of one request as the upstream gets it."""
    head = await reader.readuntil(b"\r\n\r\n")
    lower, body = head.lower(), b""
    if b"content-length: " in lower:
        body = await reader.readexactly(int(lower.split(b"content-length: ")[1].split(b"\r\n")[0]))
    elif b"transfer-encoding: chunked" in lower:
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readuntil(b"\r\n")
    return head, body


class World:
    """An upstream that plays a script, a gateway in front of it, and what both have seen."""

    def __init__(self, script: Script | bytes, decide: Any = None, **kwargs: Any) -> None:
        self.requests: list[tuple[bytes, bytes]] = []
        self.heads: list[Head] = []
        self.done: list[Exchange] = []
        self.opened = 0
        self.kwargs = {"expected": ("api.example.com", 80), **kwargs}
        self.rule: dict[str, Any] = {}
        self.decide = decide or self._allow
        self.connections: list[HttpConnection] = []
        self._script = script
        self._tasks: set[asyncio.Task[None]] = set()

    async def _allow(self, head: Head) -> Allowed | Refused:
        self.heads.append(head)
        if head.path.startswith("/no"):
            return Refused(403, "denied", "not that one")
        return self.allowed()

    def allowed(self, **extra: Any) -> Allowed:
        return Allowed(**{"open": self.open, "done": self.done.append, **self.rule, **extra})

    async def open(self) -> SocketStream:
        self.opened += 1
        sock = socket.socket()
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, self.upstream.sockets[0].getsockname())
        return SocketStream(sock)

    async def _upstream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if isinstance(self._script, bytes):
                while True:
                    self.requests.append(await read_request(reader))
                    writer.write(self._script)
                    await writer.drain()
            else:
                await self._script(reader, writer)
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            sock, _ = await loop.sock_accept(self.listener)
            sock.setblocking(False)
            connection = HttpConnection(SocketStream(sock), self.decide, **self.kwargs)
            self.connections.append(connection)
            task = asyncio.ensure_future(connection.serve())
            self._tasks.add(task)

    async def __aenter__(self) -> World:
        self.fds = len(os.listdir("/proc/self/fd"))
        self.upstream = await asyncio.start_server(self._upstream, "127.0.0.1", 0)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.port = self.listener.getsockname()[1]
        self._accepting = asyncio.ensure_future(self._accept())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._accepting.cancel()
        for task in self._tasks:
            task.cancel()
        results = await asyncio.gather(self._accepting, *self._tasks, return_exceptions=True)
        self.listener.close()
        self.upstream.close()
        await self.upstream.wait_closed()
        await asyncio.sleep(0.02)
        for result in results:
            assert result is None or isinstance(result, asyncio.CancelledError), repr(result)
        assert len(os.listdir("/proc/self/fd")) <= self.fds

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield Client(reader, writer)
        finally:
            writer.close()
            try:
                await writer.wait_closed()
            except OSError:
                pass

    async def ask(self, request: bytes) -> bytes:
        """Send, read to the end."""
        async with self.client() as client:
            await client.send(request)
            return await client.rest()


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def rest(self) -> bytes:
        return await self.reader.read()

    async def reply(self) -> tuple[bytes, bytes]:
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        return head, await self.reader.readexactly(length)


def get(path: bytes = b"/x", *headers: bytes, method: bytes = b"GET", close: bool = True) -> bytes:
    lines = [method + b" " + path + b" HTTP/1.1", b"Host: api.example.com", *headers]
    return b"\r\n".join((*lines, *([b"Connection: close"] if close else []), b"", b""))


def body_of(reply: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(reply.partition(b"\r\n\r\n")[2])
    return found


# --- decisions ---


def test_each_request_of_a_connection_is_decided_and_the_upstream_used_again() -> None:
    async def body() -> None:
        async with World(answer(b"fine")) as world, world.client() as client:
            for path, expected in ((b"/a", b"200"), (b"/no", b"403"), (b"/b?c=d", b"200"), (b"/no2", b"403")):
                await client.send(get(path, close=False))
                head, _ = await client.reply()
                assert head.split()[1] == expected
            assert [head.path for head in world.heads] == ["/a", "/no", "/b", "/no2"]
            assert [head.split(b"\r\n")[0] for head, _ in world.requests] == [
                b"GET /a HTTP/1.1",
                b"GET /b?c=d HTTP/1.1",
            ]
            assert world.opened == 1
            assert [done.ended for done in world.done] == ["closed", "closed"]
            assert world.done[0].status == 200
            assert world.done[0].up == len(world.requests[0][0])
            assert world.done[0].down == len(answer(b"fine"))

    run(body)


def test_pipelined_requests_are_decided_one_by_one_and_answered_in_order() -> None:
    async def body() -> None:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                head, data = await read_request(reader)
                writer.write(answer(head.split()[1] + data))

        async with World(script) as world:
            post = get(b"/2", b"Content-Length: 4", method=b"POST", close=False) + b"data"
            chunked = get(b"/4", b"Transfer-Encoding: chunked", method=b"POST", close=False)
            chunked += b"3;ext=1\r\nabc\r\n1\r\nd\r\n0\r\nTrailer: x\r\n\r\n"
            reply = await world.ask(get(b"/1", close=False) + post + get(b"/no", close=False) + chunked + get(b"/5"))
            found = [part.split(b"\r\n\r\n")[1] for part in reply.split(b"HTTP/1.1 ")[1:]]
            assert found[0] == b"/1"
            assert found[1] == b"/2data"
            assert b"not that one" in found[2]
            assert found[3:] == [b"/4abcd", b"/5"]
            assert [head.path for head in world.heads] == ["/1", "/2", "/no", "/4", "/5"]

    run(body)


def test_a_refused_request_with_a_body_ends_the_connection_and_its_body_is_no_request() -> None:
    async def body() -> None:
        async with World(answer()) as world:
            inner = get(b"/inner")
            reply = await world.ask(
                get(b"/no", b"Content-Length: %d" % len(inner), method=b"POST", close=False) + inner + get(b"/next")
            )
            assert reply.count(b"HTTP/1.1 ") == 1
            assert body_of(reply) == {
                "error": "not that one",
                "kind": "denied",
                "next": "ask the person in charge: nucleus why --last",
            }
            assert [head.path for head in world.heads] == ["/no"]
            assert world.opened == 0

    run(body)


def test_an_error_of_the_gate_is_a_refusal() -> None:
    async def body() -> None:
        async def decide(head: Head) -> Allowed:
            raise (ApprovalRequiredError if head.path == "/ask" else DeniedError)("the gate says no")

        async with World(answer(), decide) as world:
            reply = await world.ask(get(b"/ask"))
            assert reply.startswith(b"HTTP/1.1 403 ")
            assert body_of(reply)["kind"] == "approval_required"
            assert (await world.ask(get(b"/x", method=b"HEAD"))).endswith(b"\r\n\r\n")

    run(body)


def test_a_client_that_hangs_up_withdraws_what_is_being_asked() -> None:
    async def body() -> None:
        withdrawn = asyncio.Event()

        async def decide(head: Head) -> Allowed:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                withdrawn.set()
                raise
            raise AssertionError

        async with World(answer(), decide) as world:
            async with world.client() as client:
                await client.send(get(b"/x", close=False))
                await asyncio.sleep(0.05)
                assert not withdrawn.is_set()
            await asyncio.wait_for(withdrawn.wait(), 1)

    run(body)


def test_a_proxys_client_is_decided_by_host_and_gets_an_upstream_for_each() -> None:
    async def body() -> None:
        async with World(answer(), expected=None) as world, world.client() as client:
            for host in (b"a.example", b"a.example", b"b.example:8080"):
                await client.send(b"GET http://" + host + b"/x HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
                await client.reply()
            assert [(head.host, head.port) for head in world.heads] == [
                ("a.example", 80),
                ("a.example", 80),
                ("b.example", 8080),
            ]
            assert world.opened == 2
            assert b"Host: b.example:8080\r\n" in world.requests[2][0]
            assert world.requests[2][0].startswith(b"GET /x HTTP/1.1")

    run(body)


def test_redirects_are_passed_on_and_not_followed() -> None:
    async def body() -> None:
        async with World(answer(b"", b"Location: http://169.254.169.254/", status=b"302 Found")) as world:
            reply = await world.ask(get())
            assert b"302" in reply.split(b"\r\n")[0]
            assert b"Location: http://169.254.169.254/" in reply
            assert len(world.requests) == 1

    run(body)


# --- hostile clients ---


def test_one_byte_at_a_time() -> None:
    async def body() -> None:
        async with World(answer()) as world, world.client() as client:
            request = get(b"/slow", b"Transfer-Encoding: chunked", method=b"POST") + b"5\r\nhello\r\n0\r\n\r\n"
            for byte in request:
                await client.send(bytes((byte,)))
                await asyncio.sleep(0.0005)
            assert (await client.rest()).endswith(b"ok")
            assert world.requests[0][1] == b"hello"

    run(body)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00", b"400"),
        (b"\0" * 100, b"400"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"505"),
        (b"GET /\r\n\r\n", b"400"),
        (b"X" * 70_000, b"431"),
        (b"GET / HTTP/1.1\r\n" + b"A: " + b"b" * 70_000, b"431"),
        (b"GET / HTTP/1.1\r\nHost: api.example.com\r\n" + b"A: b\r\n" * 400 + b"\r\n", b"431"),
        (get(b"/x", b"Upgrade: websocket"), b"403"),
        (get(b"api.example.com:80", method=b"CONNECT"), b"403"),
        (get(b"/%2e%2e/admin"), b"400"),
        (get(b"/x", b"Content-Length: 4", b"Transfer-Encoding: chunked", method=b"POST"), b"400"),
        (get(b"/x", b"Transfer-Encoding: gzip, chunked", method=b"POST"), b"400"),
        (b"GET / HTTP/1.1\nHost: api.example.com\n\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n", b"403"),
    ],
)
def test_what_is_not_http_or_not_for_here_is_refused_before_it_is_decided(request_bytes: bytes, status: bytes) -> None:
    async def body() -> None:
        async with World(answer(), deadlines=Deadlines(head=0.3)) as world:
            reply = await world.ask(request_bytes + get(b"/smuggled"))
            assert reply.split(b" ")[1] in (status, b"501"), reply
            assert reply.count(b"Content-Length: ") == 1
            assert world.heads == []
            assert world.opened == 0

    run(body)


@pytest.mark.parametrize(
    "chunk", [b"-1\r\n", b"0x5\r\nhello\r\n", b"5\r\nhelloXX", b"zz\r\n", b"5\nhello\n0\n\n" + b"\r\n" * 9]
)
def test_a_malformed_chunked_body_is_never_the_next_request(chunk: bytes) -> None:
    async def body() -> None:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()

        async with World(script) as world:
            reply = await world.ask(
                get(b"/x", b"Transfer-Encoding: chunked", method=b"POST", close=False) + chunk + get(b"/smuggled")
            )
            assert reply.split(b" ")[1] == b"400"
            assert body_of(reply)["kind"] == "http.framing"
            assert [head.path for head in world.heads] == ["/x"]
            assert world.done[0].ended == "failed"

    run(body)


def test_slow_heads_slow_bodies_and_idle_connections_end() -> None:
    async def body() -> None:
        limits = Deadlines(head=0.3, between=0.2, body=0.2, reply=5)
        async with World(answer(), deadlines=limits) as world:
            started = time.monotonic()
            assert await world.ask(b"") == b""
            async with world.client() as client:
                drip = asyncio.ensure_future(_drip(client, get(b"/x", b"X: " + b"y" * 500)))
                assert (await client.rest()).startswith(b"HTTP/1.1 408 ")
                drip.cancel()
                await asyncio.gather(drip, return_exceptions=True)
            reply = await world.ask(get(b"/x", b"Content-Length: 9", method=b"POST") + b"abc")
            assert reply.startswith(b"HTTP/1.1 408 ")
            assert time.monotonic() - started < 3
            assert world.done[0].ended == "failed"

    run(body)


async def _drip(client: Client, data: bytes) -> None:
    for byte in data:
        await client.send(bytes((byte,)))
        await asyncio.sleep(0.02)


def test_a_client_that_leaves_in_the_middle_ends_the_upstream() -> None:
    async def body() -> None:
        closed = asyncio.Event()

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            try:
                await reader.read()
            finally:
                closed.set()

        async with World(script) as world:
            async with world.client() as client:
                await client.send(get(close=False))
                await asyncio.sleep(0.05)
            await asyncio.wait_for(closed.wait(), 1)
            assert world.done[0].ended == "closed"
            assert "went away" in world.done[0].reason

    run(body)


def test_a_client_that_does_not_read_slows_the_server() -> None:
    async def body() -> None:
        sent = 0

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            await read_request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
            while True:
                writer.write(bytes(65_536))
                await writer.drain()
                sent += 65_536

        async with World(script) as world, world.client() as client:
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await client.send(get())
            await asyncio.sleep(0.5)
            assert 0 < sent < 40_000_000
            before = sent
            await asyncio.sleep(0.2)
            assert sent == before

    run(body)


def test_expect_100_continue_is_answered_after_the_decision() -> None:
    async def body() -> None:
        async with World(answer()) as world, world.client() as client:
            await client.send(get(b"/no", b"Expect: 100-continue", b"Content-Length: 4", method=b"PUT"))
            assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 403")
            async with world.client() as other:
                await other.send(get(b"/x", b"Expect: 100-continue", b"Content-Length: 4", method=b"PUT"))
                assert (await other.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
                await other.send(b"data")
                assert (await other.rest()).endswith(b"ok")
            assert world.requests[0][1] == b"data"
            assert b"xpect" not in world.requests[0][0]

    run(body)


def test_an_early_answer_is_passed_on_while_the_body_is_still_coming() -> None:
    async def body() -> None:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer(b"too much", status=b"413 Content Too Large"))
            await writer.drain()

        async with World(script) as world, world.client() as client:
            await client.send(get(b"/x", b"Content-Length: 100000000", method=b"POST", close=False) + bytes(200_000))
            reply = await client.rest()
            assert reply.startswith(b"HTTP/1.1 413")
            assert reply.endswith(b"too much")
            assert world.done[0].status == 413

    run(body)


# --- hostile and broken servers ---


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\0\0\0",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 100,
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 200_000,
        b"HTTP/1.1 99 No\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
    ],
)
def test_an_answer_that_is_none_is_a_502(raw: bytes) -> None:
    async def body() -> None:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(raw)
            await writer.drain()

        async with World(script) as world:
            reply = await world.ask(get())
            assert reply.startswith(b"HTTP/1.1 502 "), reply
            assert world.done[0].ended == "failed"

    run(body)


@pytest.mark.parametrize("framing", [b"Content-Length: 100", b"Transfer-Encoding: chunked"])
def test_an_answer_that_breaks_off_ends_in_a_reset(framing: bytes) -> None:
    async def body() -> None:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n5\r\nabcde\r\n")
            await writer.drain()

        async with World(script) as world:
            with pytest.raises(ConnectionResetError):
                await world.ask(get())
            assert world.done[0].ended == "failed"

    run(body)


def test_framings_are_written_anew() -> None:
    async def body() -> None:
        raw = [
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\nConnection: X-Hop\r\nX-Hop: 1\r\n"
            b'Keep-Alive: timeout=5\r\nAlt-Svc: h3=":443"\r\n\r\n2\r\nab\r\n3;x=y\r\ncde\r\n0\r\nX-Trailer: 1\r\n\r\n',
            b"HTTP/1.0 200 OK\r\nX: a\r\n b\r\n\r\nabcde",
        ]

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(raw.pop(0))
            await writer.drain()

        async with World(script) as world:
            for _ in range(2):
                reply = await world.ask(get())
                assert b"Transfer-Encoding: chunked\r\n" in reply
                assert b"Content-Length" not in reply
                assert not any(word in reply for word in (b"X-Hop", b"Keep-Alive", b"Alt-Svc", b"X-Trailer"))
                assert _dechunked(reply) == b"abcde"

    run(body)


def _dechunked(reply: bytes) -> bytes:
    rest, out = reply.partition(b"\r\n\r\n")[2], b""
    while True:
        size, _, rest = rest.partition(b"\r\n")
        if int(size, 16) == 0:
            assert rest == b"\r\n"
            return out
        out, rest = out + rest[: int(size, 16)], rest[int(size, 16) + 2 :]


@pytest.mark.parametrize(
    ("error", "status", "ended"),
    [
        (UpstreamError("timeout", "t"), b"504", "unreachable"),
        (UpstreamError("refused", "r"), b"502", "refused"),
        (UpstreamError("not_public", "n"), b"502", "unreachable"),
        (ssl.SSLCertVerificationError(1, "bad certificate"), b"502", "unreachable"),
        (TimeoutError(), b"504", "unreachable"),
    ],
)
def test_no_upstream(error: Exception, status: bytes, ended: str) -> None:
    async def body() -> None:
        async def fails() -> Any:
            raise error

        async with World(answer()) as world:
            world.rule = {"open": fails}
            reply = await world.ask(get())
            assert reply.split(b" ")[1] == status
            assert world.done[0].ended == ended

    run(body)


def test_a_silent_server_is_a_504() -> None:
    async def body() -> None:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()

        async with World(script, deadlines=Deadlines(reply=0.2)) as world:
            assert (await world.ask(get())).startswith(b"HTTP/1.1 504 ")
            assert world.done[0].ended == "idle"

    run(body)


@pytest.mark.parametrize(("method", "expected"), [(b"GET", b"200"), (b"POST", b"502")])
def test_an_idle_upstream_that_closes_is_only_tried_again_where_that_is_safe(method: bytes, expected: bytes) -> None:
    async def body() -> None:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(answer())
            await reader.readuntil(b"\r\n\r\n")  # takes the second request and closes

        async with World(script) as world, world.client() as client:
            await client.send(get(close=False))
            await client.reply()
            await client.send(get(b"/x", *([b"Content-Length: 0"] if method == b"POST" else []), method=method))
            assert (await client.rest()).split(b" ")[1] == expected
            assert world.opened == (2 if method == b"GET" else 1)

    run(body)


# --- credentials ---


def test_the_credential_goes_up_and_never_comes_down() -> None:
    async def body() -> None:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head, _ = await read_request(reader)
            assert b"authorization: Bearer " + SECRET in head
            assert b"mine" not in head
            assert b"Accept-Encoding: identity" in head
            assert b"Range" not in head
            writer.write(
                b"HTTP/1.1 200 OK " + SECRET + b"\r\nX-Echo: <" + SECRET + b">\r\nTransfer-Encoding: chunked\r\n\r\n"
            )
            for at in range(len(SECRET)):  # a byte per chunk
                writer.write(b"1\r\n" + SECRET[at : at + 1] + b"\r\n")
                await writer.drain()
                await asyncio.sleep(0)
            writer.write(b"3\r\nend\r\n0\r\n\r\n")

        async with World(script) as world:
            world.rule = {"strip": True, "add": ((b"authorization", b"Bearer " + SECRET),), "secrets": (SECRET,)}
            reply = await world.ask(
                get(b"/x?key=mine", b"Authorization: mine", b"Range: bytes=0-1", b"Accept-Encoding: gzip")
            )
            assert SECRET not in reply
            assert _dechunked(reply) == b"*" * len(SECRET) + b"end"
            assert b"X-Echo: <" + b"*" * len(SECRET) + b">" in reply
            assert SECRET.decode() not in repr(world.allowed())

    run(body)


@pytest.mark.parametrize("extra", [b"Content-Encoding: gzip", b"Content-Encoding: br", b"X: y"])
def test_an_answer_that_cannot_be_scrubbed_is_refused(extra: bytes) -> None:
    async def body() -> None:
        status = b"206 Partial Content" if extra == b"X: y" else b"200 OK"
        async with World(answer(b"zz", extra, status=status)) as world:
            world.rule = {"secrets": (SECRET,)}
            reply = await world.ask(get())
            assert reply.startswith(b"HTTP/1.1 502 ")
            assert body_of(reply)["kind"] == "http.encoding"
            world.rule = {}
            assert (await world.ask(get())).endswith(b"zz")

    run(body)


def test_a_credential_too_short_to_be_kept_is_an_error() -> None:
    with pytest.raises(ValueError, match="fewer"):
        Allowed(open=None, secrets=(b"abc",))  # type: ignore[arg-type]


# --- ends ---

SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n\r\n"


def test_an_event_stream_passes_at_once_and_stops_with_an_error_event() -> None:
    async def body() -> None:
        more = asyncio.Event()

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            writer.write(SSE + b"data: 1\n\n")
            await more.wait()
            writer.write(b"data: 2\n\n")
            await reader.read()

        def observe(exchange: Exchange, data: bytes) -> None:
            assert exchange.status == 200
            if b"2" in data:
                exchange.stop("budget_exhausted", "the budget is used up")

        async with World(script) as world, world.client() as client:
            world.rule = {"observer": observe, "identity": True}
            await client.send(get())
            await client.reader.readuntil(b"data: 1\n\n\r\n")
            more.set()
            rest = _dechunked(b"\r\n\r\n" + await client.rest())
            error = json.loads(rest.split(b"data: ")[1])
            assert rest.startswith(b"event: error\n")
            assert error["error"] == {"type": "budget_exhausted", "message": "the budget is used up"}
            assert (world.done[0].ended, world.done[0].reason) == ("cut", "the budget is used up")

    run(body)


def test_stop_within_an_event_closes_it_first_and_before_the_head_is_a_refusal() -> None:
    async def body() -> None:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head, _ = await read_request(reader)
            if b"/late" not in head:
                writer.write(SSE + b"data: {half")
            await reader.read()

        async with World(script) as world:
            for path, expected in ((b"/x", b"data: {half\n\nevent: error\n"), (b"/late", b'"kind": "why"')):
                async with world.client() as client:
                    await client.send(get(path))
                    await asyncio.sleep(0.1)
                    exchange = world.connections[-1].exchange
                    assert exchange is not None
                    exchange.stop("why", "because")
                    reply = await client.rest()
                    if path == b"/late":
                        assert reply.startswith(b"HTTP/1.1 403 ")
                        assert expected in reply
                    else:
                        assert expected in _dechunked(reply)

    run(body)


@pytest.mark.parametrize("chunked", [True, False])
def test_stop_and_cut_of_other_answers(chunked: bool) -> None:
    async def body() -> None:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await read_request(reader)
            framing = b"Transfer-Encoding: chunked\r\n\r\n5\r\n" if chunked else b"Content-Length: 100\r\n\r\n"
            writer.write(b"HTTP/1.1 200 OK\r\n" + framing + b"hello")
            await reader.read()

        async with World(script) as world:
            for how in ("stop", "cut", "connection"):
                async with world.client() as client:
                    await client.send(get())
                    await client.reader.readuntil(b"hello")
                    connection = world.connections[-1]
                    exchange = connection.exchange
                    assert exchange is not None
                    if how == "stop":
                        exchange.stop("why", "because")
                    elif how == "cut":
                        exchange.cut()
                    else:
                        connection.cut()
                    if how == "stop" and chunked:
                        assert (await client.rest()).endswith(b"0\r\n\r\n")
                    else:
                        with pytest.raises(ConnectionResetError):
                            await client.rest()
                await asyncio.sleep(0.02)
                assert world.done[-1].ended == "cut"
            await asyncio.sleep(0.02)
            assert len(world.done) == 3

    run(body)


def test_the_allowance_is_asked_for_and_ends_the_exchange() -> None:
    async def body() -> None:
        asked: list[int] = []

        async def more() -> int:
            asked.append(1)
            await asyncio.sleep(0.01)
            return 10_000 if len(asked) < 4 else 0

        async with World(answer(bytes(25_000))) as world:
            world.rule = {"allowance": 10_000, "more": more}
            assert len(await world.ask(get())) > 25_000
            assert len(asked) == 2
            with pytest.raises(ConnectionResetError):
                await world.ask(get())
            assert world.done[1].ended == "limit"
            assert world.done[1].up + world.done[1].down <= 20_000
            world.rule = {"allowance": 10}
            reply = await world.ask(get())
            assert reply.startswith(b"HTTP/1.1 403 ")
            assert body_of(reply)["kind"] == "network.limit"
            assert world.done[2].up == 0

    run(body)


# --- inside TLS ---


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl")
    path = tmp_path_factory.mktemp("network-tls") / "both.pem"
    made = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1")
    names = ("-subj", "/CN=api.example.com", "-addext", "subjectAltName=DNS:api.example.com")
    subprocess.run([*made, *names, "-keyout", path, "-out", f"{path}.crt"], check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + Path(f"{path}.crt").read_bytes())
    return path


@pytest.mark.parametrize("how", ["whole", "refused", "cut", "sse", "breaks off"])
def test_terminated_tls_on_both_sides(certificate: Path, how: str) -> None:
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ours.load_cert_chain(certificate)
    theirs = ssl.create_default_context(cafile=f"{certificate}.crt")
    big = os.urandom(2_000_000)

    async def body() -> None:
        done: list[Exchange] = []
        connections: list[HttpConnection] = []

        async def upstream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while True:
                    await read_request(reader)
                    if how == "whole":
                        writer.write(answer(big))
                    elif how == "breaks off":
                        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello")
                        await writer.drain()
                        return
                    else:
                        writer.write(SSE + b"data: hello\n\n")
            except (asyncio.IncompleteReadError, OSError):
                pass
            finally:
                writer.close()

        async def open_upstream() -> AsyncioStream:
            port = outer.sockets[0].getsockname()[1]
            pair = await asyncio.open_connection("127.0.0.1", port, ssl=theirs, server_hostname="api.example.com")
            return AsyncioStream(*pair)

        async def decide(head: Head) -> Allowed | Refused:
            if how == "refused":
                return Refused(403, "denied", "no")
            return Allowed(open=open_upstream, done=done.append)

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            where = {"expected": ("api.example.com", 443), "default_port": 443}
            connections.append(HttpConnection(AsyncioStream(reader, writer), decide, **where))  # type: ignore[arg-type]
            await connections[-1].serve()

        outer = await asyncio.start_server(upstream, "127.0.0.1", 0, ssl=ours)
        inner = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=ours)
        port = inner.sockets[0].getsockname()[1]
        pair = await asyncio.open_connection("127.0.0.1", port, ssl=theirs, server_hostname="api.example.com")
        client = Client(*pair)
        await client.send(get(close=False))
        if how == "refused":
            assert b"403" in (await client.reply())[0]
        elif how == "whole":
            for _ in range(2):
                assert (await client.reply())[1] == big
                await client.send(get(close=False))
            assert (await client.reply())[1] == big
        elif how == "breaks off":
            with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                await client.reply()
        else:
            await client.reader.readuntil(b"data: hello\n\n\r\n")
            exchange = connections[-1].exchange
            assert exchange is not None
            if how == "cut":
                exchange.cut()
                with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
                    await client.reader.readexactly(1)
            else:
                exchange.stop("budget_exhausted", "used up")
                assert b"event: error" in await client.rest()
        client.writer.transport.abort()
        await asyncio.sleep(0.05)
        if how in ("cut", "sse", "breaks off"):
            assert [item.ended for item in done] == ["failed" if how == "breaks off" else "cut"]
        for server in (inner, outer):
            server.close()
            await server.wait_closed()

    run(body)


# --- real programs ---

CURL = shutil.which("curl")


@pytest.mark.skipif(CURL is None, reason="no curl")
def test_curl_downloads_uploads_and_uses_a_connection_again(tmp_path: Path) -> None:
    async def body() -> None:
        blob = os.urandom(3_000_000)

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while True:
                head, data = await read_request(reader)
                writer.write(answer(blob if head.startswith(b"GET") else b"%d" % len(data)))
                await writer.drain()

        async with World(script, expected=None) as world:
            (tmp_path / "blob").write_bytes(blob)

            async def curl(*args: str) -> bytes:
                assert CURL is not None
                proxy = ("-sS", "--max-time", "10", "--proxy", f"http://127.0.0.1:{world.port}")
                process = await asyncio.create_subprocess_exec(
                    CURL, *proxy, *args, stdout=subprocess.PIPE, env={"PATH": os.environ["PATH"]}
                )
                out, _ = await process.communicate()
                assert process.returncode == 0
                return out

            assert await curl("http://files.example/a") == blob
            assert await curl("http://files.example/a", "http://files.example/b") == 2 * blob
            up = ("-T", str(tmp_path / "blob"), "http://files.example/up")
            assert await curl(*up) == b"3000000"
            assert await curl("-H", "Transfer-Encoding: chunked", "-H", "Expect: 100-continue", *up) == b"3000000"
            assert b"200" in await curl("-I", "http://files.example/a")
            assert b"denied" in await curl("http://files.example/no")
            assert len(world.connections) == 6

    run(body)


def test_bodies_that_are_read_whole_are_bounded_together() -> None:
    asyncio.run(_bounded_together())


async def _bounded_together() -> None:
    """What several clients make us hold counts as one sum; it is given back when their requests are over."""
    kept = Kept(most=100)

    async def attempt(body: bytes) -> bytes:
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)

        async def decide(head: Head) -> Allowed | Refused:
            return Refused(403, "no", str(len(head.body)))

        connection = HttpConnection(
            SocketStream(ours), decide, expected=("a.test", 80), whole=lambda head: 1_000, kept=kept
        )
        serving = asyncio.ensure_future(connection.serve())
        client = SocketStream(theirs)
        head = f"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        await client.write(head + body)
        answer = b""
        while data := await client.read(10_000):
            answer += data
        await serving
        client.abort()
        return answer

    assert b"403" in await attempt(b"x" * 90)
    assert kept.bytes == 0
    assert b"503" in await attempt(b"x" * 101)
    assert kept.bytes == 0
    kept.bytes = 50  # somebody else's
    assert b"503" in await attempt(b"x" * 90)
    assert kept.bytes == 50
