"""What identity costs: the gate's door against bare aiohttp with mutual TLS, SVIDs issued, Workload API fetches.

    python -m bench.identity [--scale quick] [--laps N] [--json]      (as root)

The door is `server.agent_door` as it is in a gate, its authority and driver replaced by ones that answer at once; the peer is
aiohttp with the standard library's context: TLS 1.3, a certificate required, nothing checked beyond OpenSSL. The same
clients and certificates, one server process each, runs interleaved, medians of runs. CPU is the server's own, user and
system, from /proc. A fetch is a gRPC call of `FetchX509SVID` on an open connection to `nucleus identity serve`, to its
first message: attested, issued, on record and synced; it is paced below the rate that one user is allowed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from bench.measure import TESTS, Group, Metric, Scale, Way, program, single
from nucleus.identity import tls
from nucleus.identity.ca import CertificateAuthority
from nucleus.identity.spiffe_id import SpiffeId
from nucleus.identity.svid import X509Svid
from nucleus.server.authority import Authority

sys.path.insert(0, TESTS)

DOMAIN = "nucleus.local"
GATE, AGENT = (SpiffeId.for_workload(DOMAIN, "default", f"{name}-p") for name in ("gate", "agent"))
REQUEST = b"GET /v1/health HTTP/1.1\r\nHost: gate\r\n\r\n"
CONNECTIONS = Metric("mutual TLS: new connections, a request on each", "/s", less=False)
CONNECTIONS_CPU = Metric(
    "mutual TLS: new connections, per second of the server's CPU", "/s", less=False, headline=False
)
REQUESTS = Metric("HTTP at the door, on a kept connection", "/s", less=False)
REQUESTS_CPU = Metric("HTTP at the door, per second of the server's CPU", "/s", less=False, headline=False)
TICKS = os.sysconf("SC_CLK_TCK")


class _Authority(Authority):
    """Answers at once, without an authority."""

    def __init__(self, svid: X509Svid) -> None:
        self._svid = svid

    async def svid(self) -> X509Svid:
        return self._svid

    async def revoked(self, *, everybody: bool = False) -> list[dict[str, Any]]:
        return []

    async def federated(self) -> dict[str, tuple[bytes, ...]]:
        return {}


async def door(listener: socket.socket, svid: X509Svid) -> None:
    """The gate's."""
    from nucleus.server.agent_door import AgentDoor

    async def tools() -> list[dict[str, Any]]:
        return []

    async def nothing(*_: Any, **__: Any) -> None:
        return

    config: Any = SimpleNamespace(door="agent", agent_id=str(AGENT), orchestrator_id="")
    driver: Any = SimpleNamespace(run=nothing)
    await AgentDoor(config, driver, _Authority(svid)).open(listener, tools)


async def bare(listener: socket.socket, svid: X509Svid) -> None:
    """aiohttp's own, with an answer of the same length."""
    from aiohttp import web

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=svid.bundle_pem)
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(svid.key_pem + svid.cert_pem)
        file.flush()
        context.load_cert_chain(file.name)

    async def health(_: web.Request) -> web.Response:
        return web.json_response({"status": "ok", "principal": str(AGENT)})

    app = web.Application()
    app.router.add_get("/v1/health", health)
    runner = web.AppRunner(app, access_log=None, keepalive_timeout=3600)
    await runner.setup()
    await web.SockSite(runner, listener, ssl_context=context, backlog=64).start()


class Server:
    """One in a process of its own."""

    def __init__(self, serve: Callable[[socket.socket, X509Svid], Coroutine[Any, Any, None]], svid: X509Svid) -> None:
        listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.address = listener.getsockname()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                asyncio.run(_forever(serve(listener, svid)))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        listener.close()

    def cpu_s(self) -> float:
        words = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / TICKS

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


async def _forever(serve: Coroutine[Any, Any, None]) -> None:
    await serve
    await asyncio.Event().wait()


def connected(server: Server, context: ssl.SSLContext) -> ssl.SSLSocket:
    plain = socket.create_connection(server.address, 10)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as HTTP clients do
    return context.wrap_socket(plain)


def ask(sock: ssl.SSLSocket) -> None:
    sock.sendall(REQUEST)
    answer = b""
    while b'"}' not in answer:
        data = sock.recv(4_096)
        if not data:
            raise ConnectionResetError(answer[:200])
        answer += data
    if not answer.startswith(b"HTTP/1.1 200"):
        raise ValueError(answer[:200])


def handshakes(server: Server, context: ssl.SSLContext, count: int) -> dict[str, list[float]]:
    """New connections with one request each."""
    before, start = server.cpu_s(), time.perf_counter()
    for _ in range(count):
        with connected(server, context) as sock:
            ask(sock)
    taken, cpu = time.perf_counter() - start, server.cpu_s() - before
    return {CONNECTIONS.title: [count / taken], CONNECTIONS_CPU.title: [count / max(cpu, 1 / TICKS)]}


def requests(server: Server, context: ssl.SSLContext, count: int) -> dict[str, list[float]]:
    """Requests on one connection."""
    with connected(server, context) as sock:
        ask(sock)
        before, start = server.cpu_s(), time.perf_counter()
        for _ in range(count):
            ask(sock)
        taken, cpu = time.perf_counter() - start, server.cpu_s() - before
    return {REQUESTS.title: [count / taken], REQUESTS_CPU.title: [count / max(cpu, 1 / TICKS)]}


def issued(ca: CertificateAuthority, count: int) -> float:
    """SVIDs with their keys, each second, in one thread."""
    start = time.perf_counter()
    for _ in range(count):
        ca.issue(AGENT, now=time.time_ns())
    return count / (time.perf_counter() - start)


def signed(count: int) -> float:
    """The floor of it: a P-256 key made, its half encoded, and one signature by another."""
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    authority, start = ec.generate_private_key(ec.SECP256R1()), time.perf_counter()
    for _ in range(count):
        key = ec.generate_private_key(ec.SECP256R1())
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        public = key.public_key().public_bytes(serialization.Encoding.DER, form)
        authority.sign(public, ec.ECDSA(hashes.SHA256()))
    return count / (time.perf_counter() - start)


async def _fetches(path: str, count: int) -> list[float]:
    from integration.workload_client import connected as client_of

    taken = []
    async with client_of(path) as client:
        for _ in range(count):
            start = time.perf_counter()
            await client.first("FetchX509SVID")
            taken.append(time.perf_counter() - start)
            await asyncio.sleep(0.05)  # below the rate that one user is allowed
    return taken


class Pair:
    """The door and its peer, one process each, with one CA."""

    def __init__(self) -> None:
        self._made = tempfile.TemporaryDirectory(prefix="nucleus-bench-")
        self.ca = CertificateAuthority.load_or_create(os.path.join(self._made.name, "ca"), DOMAIN, now=time.time_ns())
        gate, agent = (self.ca.issue(name, now=time.time_ns()) for name in (GATE, AGENT))
        self.context = tls.client_context(agent)
        self.door, self.bare = Server(door, gate), Server(bare, gate)

    def close(self) -> None:
        for server in (self.door, self.bare):
            server.close()
        self._made.cleanup()


@contextmanager
def suite(scale: Scale) -> Iterator[list[Group]]:
    from integration.test_identity_api import Served

    new, kept, made, fetched = (
        scale.pick(*counts) for counts in ((5, 150, 300), (50, 1_500, 3_000), (20, 200, 500), (3, 20, 30))
    )
    with closing(Pair()) as pair, ExitStack() as stack:

        def ways(take: Callable[[Server, ssl.SSLContext, int], dict[str, list[float]]], count: int) -> list[Way]:
            return [
                Way("gate's door", "ours", lambda: take(pair.door, pair.context, count)),
                Way("bare aiohttp, mutual TLS", "floor", lambda: take(pair.bare, pair.context, count)),
            ]

        groups = [
            Group([REQUESTS, REQUESTS_CPU], ways(requests, kept), rounds=scale.pick(1, 1, 3), warm=False),
            Group([CONNECTIONS, CONNECTIONS_CPU], ways(handshakes, new), rounds=scale.pick(1, 1, 2), warm=False),
            single(
                "X.509-SVIDs issued, with their keys",
                [("the CA", "ours", lambda: issued(pair.ca, made)), ("key, DER, signature", "floor", lambda: signed(made))],
                unit="/s", less=False,
            ),
        ]  # fmt: skip
        if scale.level and os.geteuid() == 0:  # the site is one of the tests
            served = Served(0)
            stack.callback(served.close)
            served.add("bench", "unix:uid:0")
            metric = Metric("Workload API: a fetch, attested, issued, on record")

            def fetches() -> dict[str, list[float]]:
                return {metric.title: [seconds * 1e3 for seconds in asyncio.run(_fetches(served.socket, fetched))]}

            groups.append(Group([metric], [Way("`FetchX509SVID`", "ours", fetches)], warm=False))
        yield groups


if __name__ == "__main__":
    sys.exit(program("identity", __doc__, suite))
