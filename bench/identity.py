"""What identity costs: the gate's door against bare aiohttp with mutual TLS, SVIDs issued, Workload API fetches.

    python -m bench.identity [--runs N]      (as root)

The door is `server.agent_door` as it is in a gate, its authority and driver replaced by ones that answer at once; the peer is
aiohttp with the standard library's context: TLS 1.3, a certificate required, nothing checked beyond OpenSSL. The same
clients and certificates, one server process each, runs interleaved, medians of runs. CPU is the server's own, user and
system, from /proc. A fetch is a gRPC call of `FetchX509SVID` on an open connection to `nucleus identity serve`, to its
first message: attested, issued, on record and synced; it is paced below the rate that one user is allowed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from nucleus.identity import tls
from nucleus.identity.ca import CertificateAuthority
from nucleus.identity.spiffe_id import SpiffeId
from nucleus.identity.svid import X509Svid

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

DOMAIN = "nucleus.local"
GATE, AGENT = (SpiffeId.for_workload(DOMAIN, "default", f"{name}-p") for name in ("gate", "agent"))
REQUEST = b"GET /v1/health HTTP/1.1\r\nHost: gate\r\n\r\n"
CONNECTIONS = 300  # of a run
REQUESTS = 3_000  # of a run, on one connection
FETCHES = 100
TICKS = os.sysconf("SC_CLK_TCK")


class _Authority:
    charge = None

    def __init__(self, svid: X509Svid) -> None:
        self._svid = svid

    async def svid(self) -> X509Svid:
        return self._svid

    async def revoked(self) -> list[dict[str, Any]]:
        return []


async def door(listener: socket.socket, svid: X509Svid) -> None:
    """The gate's."""
    from nucleus.server.agent_door import AgentDoor

    async def tools() -> list[dict[str, Any]]:
        return []

    async def nothing(*_: Any, **__: Any) -> None:
        return

    config: Any = SimpleNamespace(door="agent", agent_id=str(AGENT), orchestrator_id="")
    driver: Any = SimpleNamespace(run=nothing)
    authority: Any = _Authority(svid)
    await AgentDoor(config, driver, authority).open(listener, tools)


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


def handshakes(server: Server, context: ssl.SSLContext) -> dict[str, float]:
    """New connections with one request each."""
    before, start = server.cpu_s(), time.perf_counter()
    for _ in range(CONNECTIONS):
        with connected(server, context) as sock:
            ask(sock)
    taken, cpu = time.perf_counter() - start, server.cpu_s() - before
    return {"connections/s": CONNECTIONS / taken, "connections/CPU-s": CONNECTIONS / cpu}


def requests(server: Server, context: ssl.SSLContext) -> dict[str, float]:
    """Requests on one connection."""
    with connected(server, context) as sock:
        ask(sock)
        before, start = server.cpu_s(), time.perf_counter()
        for _ in range(REQUESTS):
            ask(sock)
        taken, cpu = time.perf_counter() - start, server.cpu_s() - before
    return {"requests/s": REQUESTS / taken, "requests/CPU-s": REQUESTS / cpu}


def issued(ca: CertificateAuthority) -> float:
    """SVIDs with their keys, each second, in one thread."""
    start, count = time.perf_counter(), 500
    for _ in range(count):
        ca.issue(AGENT, now=time.time_ns())
    return count / (time.perf_counter() - start)


async def _fetches(path: str) -> list[float]:
    from integration.workload_client import connected as client_of

    taken = []
    async with client_of(path) as client:
        for _ in range(FETCHES):
            start = time.perf_counter()
            await client.first("FetchX509SVID")
            taken.append(time.perf_counter() - start)
            await asyncio.sleep(0.05)
    return taken


def fetches() -> list[float]:
    """Seconds of each."""
    from integration.test_identity_api import Served

    served = Served(0)
    try:
        served.add("bench", "unix:uid:0")
        return asyncio.run(_fetches(served.socket))
    finally:
        served.close()


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="bench.identity")
    parser.add_argument("--runs", type=int, default=7)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory(prefix="nucleus-bench-") as directory:
        ca = CertificateAuthority.load_or_create(os.path.join(directory, "ca"), DOMAIN, now=time.time_ns())
        gate, agent = (ca.issue(name, now=time.time_ns()) for name in (GATE, AGENT))
        context = tls.client_context(agent)
        found: dict[str, dict[str, list[float]]] = {"gate's door": {}, "bare aiohttp": {}}
        servers = {"gate's door": Server(door, gate), "bare aiohttp": Server(bare, gate)}
        try:
            for run in range(runs + 1):
                for name, server in servers.items():
                    figures = {**handshakes(server, context), **requests(server, context)}
                    for what, value in figures.items() if run else ():  # the first warms up
                        found[name].setdefault(what, []).append(value)
        finally:
            for server in servers.values():
                server.close()
        print(f"{'':18}{'door':>10}{'bare':>10}{'ratio':>8}")
        for what in found["gate's door"]:
            ours, theirs = (statistics.median(values[what]) for values in found.values())
            ratios = [one / other for one, other in zip(*(values[what] for values in found.values()), strict=True)]
            print(f"{what:18}{ours:>10.0f}{theirs:>10.0f}{statistics.median(ratios):>8.2f}")
        print(f"SVIDs issued/s    {statistics.median(issued(ca) for _ in range(runs)):>10.0f}")
    taken = sorted(fetches())
    print(
        f"Workload API fetch, ms: p50 {taken[len(taken) // 2] * 1e3:.1f}, p95 {taken[len(taken) * 95 // 100] * 1e3:.1f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
