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
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from identity.test_upstream import Above
from nucleus.identity import tls
from nucleus.identity.ca import CertificateAuthority
from nucleus.identity.revocation import make
from nucleus.identity.spiffe_id import SpiffeId
from nucleus.identity.svid import X509Svid, pem_to_der
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
        self.foreign: dict[str, tuple[bytes, ...]] = {}

    async def svid(self) -> X509Svid:
        self.issued.append(self.issue(GATE))
        self.asked.set()
        return self.issued[-1]

    async def federated(self) -> dict[str, tuple[bytes, ...]]:
        return self.foreign

    async def revoked(self, *, everybody: bool) -> list[dict[str, Any]]:
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
    def __init__(self, issue: Callable[[SpiffeId], X509Svid], **more: Any) -> None:
        self.issue = issue
        self.authority, self.driver = Authority(issue), Driver()
        self.door = AgentDoor(CONFIG, self.driver, self.authority, **more)  # type: ignore[arg-type]
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
async def opened(issue: Callable[[SpiffeId], X509Svid], **more: Any) -> AsyncIterator[Opened]:
    made = Opened(issue, **more)

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


async def _statuses(
    ca: CertificateAuthority, may_call: list[list[str]], names: list[str], signer: CertificateAuthority | None = None
) -> list[int]:
    out = []
    async with opened(issuer(ca), may_call=tuple(map(frozenset, may_call))) as made:
        for name in names:
            svid = issuer(signer or ca)(SpiffeId.parse(name))
            mixed = replace(svid, bundle_pem=ca.bundle_pem(time.time_ns()))
            async with made.session(mixed) as session:
                try:
                    out.append(await made.get(session))
                except aiohttp.ClientError:
                    out.append(0)  # not even TLS
    return out


TEAM, TEAMS = f"spiffe://{DOMAIN}/team/a", f"spiffe://{DOMAIN}/teams/a"


@pytest.mark.parametrize(
    ("may_call", "statuses"),
    [
        ([["own"]], [200, 401, 401]),
        ([["own", f"spiffe://{DOMAIN}/team/*"]], [200, 200, 401]),
        ([[f"spiffe://{DOMAIN}/team/*"]], [401, 200, 401]),
        ([["own", f"spiffe://{DOMAIN}/*"], ["own", TEAM]], [200, 200, 401]),
        ([[]], [401, 401, 401]),
        ([["spiffe://nucleus/*", "spiffe://other.org/*"]], [401, 401, 401]),
    ],
)
def test_who_is_named_comes_in(ca: CertificateAuthority, may_call: list[list[str]], statuses: list[int]) -> None:
    assert asyncio.run(_statuses(ca, may_call, [str(AGENT), TEAM, TEAMS])) == statuses


def test_another_domains_name_proves_nothing_here(ca: CertificateAuthority, tmp_path: Path) -> None:
    """Named, and signed by its own CA, whose bundle this door has not; nor does that CA speak for ours."""
    other = CertificateAuthority.load_or_create(tmp_path / "other", "other.org", now=time.time_ns())
    assert asyncio.run(_statuses(ca, [["spiffe://other.org/*"]], ["spiffe://other.org/team/a"], other)) == [0]
    twin = CertificateAuthority.load_or_create(tmp_path / "twin", DOMAIN, now=time.time_ns())
    assert asyncio.run(_statuses(ca, [["own", f"spiffe://{DOMAIN}/*"]], [TEAM], twin)) == [0]


async def _roles(ca: CertificateAuthority) -> None:
    everybody = (frozenset(("own", f"spiffe://{DOMAIN}/*")),)
    config = SimpleNamespace(door="orchestrator", agent_id="", orchestrator_id=str(AGENT))
    async with opened(issuer(ca), may_call=everybody) as made:
        door = AgentDoor(config, made.driver, made.authority, everybody)  # type: ignore[arg-type]
        door._holder = made.door._holder
        for name, role in ((str(AGENT), "orchestrator"), (TEAM, "agent")):
            proven = SimpleNamespace(spiffe_id=name, serial=1, expires_ns=2)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(tls, "proven", lambda *_, found=proven: found)
                peer = door._authenticate(None)  # type: ignore[arg-type]
            assert (peer.principal.spiffe_id, peer.principal.role) == (name, role)


def test_whoever_is_not_the_pods_own_has_an_agents_role(ca: CertificateAuthority) -> None:
    asyncio.run(_roles(ca))


FOREIGN = "foreign.example"


async def _until(there: Callable[[], Any]) -> None:
    end = time.monotonic() + 10
    while not await there():
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


async def _federated(ca: CertificateAuthority, foreign: CertificateAuthority) -> None:
    """A door for a foreign peer, as where a policy names one."""
    peer = SpiffeId(FOREIGN, "/peer")
    svid = issuer(foreign)(peer)
    trusted = replace(svid, bundle_pem=ca.bundle_pem(time.time_ns()))  # what the client holds against the gate
    async with opened(issuer(ca), may_call=(frozenset((str(peer),)),)) as made, made.session(trusted) as session:

        async def status() -> int:
            try:
                return await made.get(session)
            except (aiohttp.ClientError, OSError):
                return 0

        assert await status() == 0  # its trust domain is not known
        made.authority.foreign = {FOREIGN: foreign.roots(time.time_ns())[FOREIGN]}
        made.door.federated()
        await _until(lambda: _is(status(), 200))
        assert len(made.authority.issued) == 1  # no new SVID for it
        async with made.session() as own:
            assert await made.get(own) == 401  # ours, and not whom this door is for
        made.authority.foreign = {}
        (connections,) = [list(conns) for conns in session.connector._conns.values()]  # type: ignore[union-attr]
        made.door.federated()
        await _until(lambda: _is(_none_connected(connections), True))
        assert await status() == 0


async def _is(found: Any, wanted: object) -> bool:
    return bool(await found == wanted)


async def _none_connected(connections: list[Any]) -> bool:
    return not any(proto.is_connected() for proto, _ in connections)


def test_a_foreign_peer_is_verified_by_its_own_bundle_and_cut_when_that_goes(
    ca: CertificateAuthority, tmp_path: Path
) -> None:
    asyncio.run(_federated(ca, CertificateAuthority.load_or_create(tmp_path / "f", FOREIGN, now=time.time_ns())))


def _alike(root: bytes, written: Callable[[str], str] = str) -> bytes:
    """Another CA's root with each name of this one: subject, issuer, key identifiers."""
    key = ec.generate_private_key(ec.SECP256R1())
    was = x509.load_der_x509_certificate(root)
    name = x509.Name([x509.NameAttribute(one.oid, written(str(one.value))) for one in was.subject])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    made = made.serial_number(was.serial_number)
    made = made.not_valid_before(was.not_valid_before_utc).not_valid_after(was.not_valid_after_utc)
    for extension in was.extensions:
        made = made.add_extension(extension.value, extension.critical)
    return made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


async def _in_the_way(ca: CertificateAuthority, other: CertificateAuthority) -> None:
    now = time.time_ns()
    async with opened(issuer(ca)) as made:
        # Another CA of our trust domain, roots that look like ours, and bytes that are none, under a foreign name.
        alike = [
            tuple(_alike(root, written) for root in ca.roots(now)[DOMAIN])
            for written in (str, str.upper, lambda name: f" {name.replace(' ', '   ')} ")
        ]
        for roots in (other.roots(now)[DOMAIN], *alike, (b"nothing",)):
            made.authority.foreign = {FOREIGN: roots}
            made.authority.asked.clear()
            made.door.renew()
            async with asyncio.timeout(10):
                await made.authority.asked.wait()
            await asyncio.sleep(0.1)
            async with made.session() as own:
                assert await made.get(own) == 200
            async with made.session(replace(issuer(other)(AGENT), bundle_pem=ca.bundle_pem(now))) as forged:
                with contextlib.suppress(aiohttp.ClientError, OSError):
                    assert await made.get(forged) == 401


def test_a_foreign_root_does_not_stand_in_the_way_of_ours(ca: CertificateAuthority, tmp_path: Path) -> None:
    asyncio.run(_in_the_way(ca, CertificateAuthority.load_or_create(tmp_path / "o", DOMAIN, now=time.time_ns())))


async def _in_the_way_of_an_intermediate(ca: CertificateAuthority) -> None:
    below = pem_to_der(issuer(ca)(AGENT).cert_pem)[1]
    async with opened(issuer(ca)) as made:
        made.authority.foreign = {FOREIGN: (_alike(below),)}
        made.authority.asked.clear()
        made.door.renew()
        async with asyncio.timeout(10):
            await made.authority.asked.wait()
        await asyncio.sleep(0.1)
        async with made.session() as own:
            assert await made.get(own) == 200


def test_a_foreign_root_does_not_stand_in_the_way_of_an_intermediate_of_ours(ca: CertificateAuthority) -> None:
    now = time.time_ns()
    above = Above(start=now)
    ca.install(above.answer(ca.request(), start=now, names=(f"spiffe://{DOMAIN}",)), now, at_once=True)
    asyncio.run(_in_the_way_of_an_intermediate(ca))
