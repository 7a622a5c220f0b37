"""The agent's door alone: rotations under load, a CA that is replaced, peers whose SVID ends, revocations."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from cryptography import x509

from nucleus.identity import tls
from nucleus.identity.ca import CertificateAuthority
from nucleus.identity.revocation import make
from nucleus.identity.spiffe_id import SpiffeId
from nucleus.identity.svid import X509Svid
from nucleus.server.agent_door import AgentDoor

DOMAIN = "nucleus.local"
GATE = SpiffeId.for_workload(DOMAIN, "default", "gate-p")
AGENT = SpiffeId.for_workload(DOMAIN, "default", "agent-p")
CONFIG: Any = SimpleNamespace(door="agent", agent_id=str(AGENT), orchestrator_id="")
SECOND_NS = 1_000_000_000


class Authority:
    """What the door asks of it."""

    def __init__(self, issue: Callable[[SpiffeId], X509Svid]) -> None:
        self.issue = issue
        self.charge = None
        self.issued: list[X509Svid] = []
        self.asked = asyncio.Event()

    async def svid(self) -> X509Svid:
        self.issued.append(self.issue(GATE))
        self.asked.set()
        return self.issued[-1]

    async def revoked(self) -> list[dict[str, Any]]:
        return []


class Driver:
    """What the door records."""

    def __init__(self) -> None:
        self.refused: list[str] = []

    async def run(self, _: Any, authenticate: Callable[[], Any], **__: Any) -> None:
        try:
            authenticate()
        except Exception as error:
            self.refused.append(str(error))


class Opened:
    def __init__(self, issue: Callable[[SpiffeId], X509Svid]) -> None:
        self.issue = issue
        self.authority, self.driver = Authority(issue), Driver()
        self.door = AgentDoor(CONFIG, self.driver, self.authority)  # type: ignore[arg-type]
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"https://127.0.0.1:{self.socket.getsockname()[1]}/v1/health"

    def session(self, svid: X509Svid | None = None, *, keep: bool = True) -> aiohttp.ClientSession:
        context = tls.client_context(svid or self.issue(AGENT))
        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context, force_close=not keep))

    async def get(self, session: aiohttp.ClientSession) -> int:
        async with session.get(self.url) as response:
            await response.read()
            return response.status


@contextlib.asynccontextmanager
async def opened(issue: Callable[[SpiffeId], X509Svid]) -> AsyncIterator[Opened]:
    made = Opened(issue)

    async def tools() -> list[dict[str, Any]]:
        return []

    await made.door.open(made.socket, tools)
    try:
        yield made
    finally:
        await made.door.close()


@pytest.fixture
def ca(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority.load_or_create(tmp_path / "ca", DOMAIN, now=time.time_ns())


def issuer(ca: CertificateAuthority, ttl_s: int = 3_600) -> Callable[[SpiffeId], X509Svid]:
    return lambda name: ca.issue(name, ttl_ns=ttl_s * SECOND_NS, now=time.time_ns())


async def rotated_under_load(
    made: Opened, seconds: float, times: int, before: Callable[[int], None], rotating: tuple[bool, ...] = (True, False)
) -> dict[str, int]:
    """Clients that keep a connection and that make one for each request, with and without rotations of their own.

    `before` is called before each rotation of the gate.
    """
    counts = {"requests": 0, "failed": 0, "svids": 0}
    done = asyncio.Event()

    async def client(*, keep: bool, rotates: bool) -> None:
        while not done.is_set():
            async with made.session(keep=keep) as session:
                for _ in range(10 if rotates else 1_000_000):
                    if done.is_set():
                        return
                    counts["requests"] += 1
                    try:
                        counts["failed"] += await made.get(session) != 200
                    except aiohttp.ClientError:
                        counts["failed"] += 1
                    await asyncio.sleep(0.002)

    tasks = [asyncio.create_task(client(keep=keep, rotates=rotates)) for keep in (True, False) for rotates in rotating]
    start = time.monotonic()
    for number in range(times):
        before(number)
        issued = len(made.authority.issued)
        made.authority.asked.clear()
        made.door.renew()
        await made.authority.asked.wait()
        assert len(made.authority.issued) == issued + 1
        await asyncio.sleep(max(0.0, start + (number + 1) * seconds / times - time.monotonic()))
    done.set()
    await asyncio.gather(*tasks)
    counts["svids"] = len({one.cert_pem for one in made.authority.issued})
    return counts


async def _fifty(ca: CertificateAuthority) -> None:
    async with opened(issuer(ca)) as made:
        counts = await rotated_under_load(made, 10, 50, lambda _: None)
    print(counts)
    assert counts["svids"] == 51
    assert counts["failed"] == 0
    assert counts["requests"] > 500


def test_fifty_rotations_in_ten_seconds_fail_no_request(ca: CertificateAuthority) -> None:
    asyncio.run(_fifty(ca))


async def _replaced(old: CertificateAuthority, new: CertificateAuthority) -> None:
    both = old.bundle_pem(time.time_ns()) + new.bundle_pem(time.time_ns())
    state = {"signs": old, "bundle": old.bundle_pem(time.time_ns())}

    def issue(name: SpiffeId) -> X509Svid:
        signer: Any = state["signs"]
        return replace(signer.issue(name, now=time.time_ns()), bundle_pem=state["bundle"])

    def before(number: int) -> None:
        if number == 5:
            state["bundle"] = both  # published
        elif number == 10:
            state["signs"] = new  # signs

    async with opened(issue) as made:
        stale = made.session()  # of the old root, and knows the old root alone
        async with stale:
            assert await made.get(stale) == 200
            counts = await rotated_under_load(made, 4, 15, before, (True,))
            # What was open goes on. Clients that never fetch anew are not in this load: they cannot know the new root.
            assert await made.get(stale) == 200
    print(counts)
    assert (counts["failed"], counts["svids"]) == (0, 16)


def test_a_ca_is_replaced_under_load_while_both_roots_are_known(ca: CertificateAuthority, tmp_path: Path) -> None:
    asyncio.run(_replaced(ca, CertificateAuthority.load_or_create(tmp_path / "new", DOMAIN, now=time.time_ns())))


async def _ends(ca: CertificateAuthority) -> None:
    async with opened(issuer(ca)) as made, made.session(ca.issue(AGENT, ttl_ns=2 * SECOND_NS, now=time.time_ns())) as s:
        svid = made.authority.issued[0]
        assert svid.expires_ns > time.time_ns() + 60 * SECOND_NS
        assert await made.get(s) == 200
        (connection,) = [proto for conns in s.connector._conns.values() for proto, _ in conns]  # type: ignore[union-attr]
        start = time.monotonic()
        while connection.is_connected():
            assert time.monotonic() - start < 5
            await asyncio.sleep(0.01)
        # 2 s of life, to the second, the last of them inclusive
        assert 1.0 < time.monotonic() - start < 3.5


def test_a_connection_whose_peers_svid_ends_is_cut(ca: CertificateAuthority) -> None:
    asyncio.run(_ends(ca))


def told(what: str) -> dict[str, Any]:
    return {"id": 0, "op": "revoked", **make(what, "test", DOMAIN, time.time_ns()).to_gate()}


async def _own(ca: CertificateAuthority) -> None:
    async with opened(issuer(ca)) as made, made.session() as session:
        assert await made.get(session) == 200
        serial = x509.load_pem_x509_certificate(made.authority.issued[0].cert_pem.encode()).serial_number
        made.door.told(told(f"{serial:x}"))
        (connections,) = [list(conns) for conns in session.connector._conns.values()]  # type: ignore[union-attr]
        await asyncio.sleep(0.2)
        assert not any(proto.is_connected() for proto, _ in connections)
        assert len(made.authority.issued) == 2  # another at once
        assert await made.get(session) == 200


def test_a_gate_whose_own_svid_is_revoked_cuts_all_and_gets_another(ca: CertificateAuthority) -> None:
    asyncio.run(_own(ca))


async def _name(ca: CertificateAuthority) -> None:
    async with opened(issuer(ca)) as made, made.session() as session:
        assert await made.get(session) == 200
        await asyncio.sleep(0.001)
        made.door.told(told(str(AGENT)))
        with contextlib.suppress(aiohttp.ClientError):
            assert await made.get(session) == 401  # on a new connection: the old one is cut
        assert made.driver.refused == ["1 connection cut: the peer's SVID is revoked"]
        async with made.session() as another:  # issued after it
            assert await made.get(another) == 200


def test_a_revoked_name_is_refused_for_what_it_had(ca: CertificateAuthority) -> None:
    asyncio.run(_name(ca))
