"""Real TLS 1.3 handshakes on loopback, and everything that must not get through."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from nucleus.errors import InvalidError, NucleusError, UnauthenticatedError
from nucleus.identity.ca import HOUR_NS, CertificateAuthority
from nucleus.identity.spiffe_id import SpiffeId
from nucleus.identity.svid import Roots, X509Svid
from nucleus.identity.tls import RotatingServerContext, authenticate, client_context, peer_chain, server_context

from .certificates import AGENT, GATE, NOW, SECOND, TRUST_DOMAIN, Spec, ca_spec, make, uri

TIMEOUT_S = 10


class EchoServer:
    """Accepts, authenticates as the gate does, then echoes until the peer ends. One thread per connection."""

    def __init__(self, context: ssl.SSLContext, roots: Callable[[], Roots], now: Callable[[], int]) -> None:
        self.outcomes: list[Any] = []
        self._context, self._roots, self._now = context, roots, now
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                raw, _ = self._listener.accept()
            except OSError:
                return
            self._threads.append(threading.Thread(target=self._serve, args=(raw,)))
            self._threads[-1].start()

    def _serve(self, raw: socket.socket) -> None:
        with raw:
            raw.settimeout(TIMEOUT_S)
            try:
                with self._context.wrap_socket(raw, server_side=True) as tls:
                    self.outcomes.append(str(authenticate(tls, self._roots(), self._now(), "client")))
                    while data := tls.recv(100):
                        tls.sendall(data)
            except (OSError, UnauthenticatedError) as error:
                self.outcomes.append(error)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(TIMEOUT_S)
            assert not thread.is_alive()


@contextmanager
def serving(
    context: ssl.SSLContext, roots: Roots | Callable[[], Roots], now: int | Callable[[], int] = NOW
) -> Iterator[EchoServer]:
    server = EchoServer(context, roots if callable(roots) else lambda: roots, now if callable(now) else lambda: now)
    try:
        yield server
    finally:
        server.close()


@contextmanager
def connected(server: EchoServer, context: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    with socket.create_connection(server.address, TIMEOUT_S) as raw, context.wrap_socket(raw) as tls:
        yield tls


def echo(tls: ssl.SSLSocket, data: bytes = b"ping") -> bool:
    """Whether an application byte came back: a TLS 1.3 client believes it is connected before it is refused."""
    try:
        tls.sendall(data)
        return tls.recv(100) == data
    except OSError:
        return False


def gets_through(server: EchoServer, context: ssl.SSLContext) -> bool:
    try:
        with connected(server, context) as tls:
            return echo(tls)
    except OSError:
        return False


@pytest.fixture
def gate(ca: CertificateAuthority) -> X509Svid:
    return ca.issue(GATE, now=NOW)


@pytest.fixture
def agent(ca: CertificateAuthority) -> X509Svid:
    return ca.issue(AGENT, now=NOW)


def test_a_mutual_handshake(gate: X509Svid, agent: X509Svid) -> None:
    with serving(server_context(gate), gate.roots()) as server:
        with connected(server, client_context(agent)) as tls:
            assert authenticate(tls, agent.roots(), NOW, "server") == GATE
            assert tls.version() == "TLSv1.3"
            assert tls.selected_alpn_protocol() == "http/1.1"
            assert echo(tls)
            assert len(peer_chain(tls)) == 2
        assert server.outcomes == [str(AGENT)]


def test_what_a_context_allows(gate: X509Svid) -> None:
    for context in (server_context(gate), client_context(gate)):
        assert context.minimum_version == context.maximum_version == ssl.TLSVersion.TLSv1_3
        assert context.verify_mode == ssl.CERT_REQUIRED
        assert not context.check_hostname
        assert context.options & ssl.OP_NO_TICKET
        assert len(context.get_ca_certs()) == 1
    assert server_context(gate).num_tickets == 0


def test_no_key_log(gate: X509Svid, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    assert server_context(gate).keylog_filename is None
    assert client_context(gate).keylog_filename is None


def test_no_client_certificate(gate: X509Svid) -> None:
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname = False
    bare.load_verify_locations(cadata=gate.bundle_pem)
    with serving(server_context(gate), gate.roots()) as server:
        assert not gets_through(server, bare)
    assert [type(outcome) for outcome in server.outcomes] == [ssl.SSLError]


def test_tls_1_2(gate: X509Svid, agent: X509Svid) -> None:
    old = client_context(agent)
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with serving(server_context(gate), gate.roots()) as server:
        assert not gets_through(server, old)
    assert isinstance(server.outcomes[0], ssl.SSLError)


def test_a_tls_1_2_server_is_refused_by_the_client(gate: X509Svid, agent: X509Svid) -> None:
    old = server_context(gate)
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with serving(old, gate.roots()) as server:
        assert not gets_through(server, client_context(agent))


def test_another_trust_domain(gate: X509Svid, other_ca: CertificateAuthority) -> None:
    stranger = other_ca.issue(SpiffeId.for_workload("other.test", "default", "agent"), now=NOW)
    context = client_context(stranger, stranger.roots() | gate.roots())
    with serving(server_context(gate), gate.roots()) as server:
        assert not gets_through(server, context)
    assert isinstance(server.outcomes[0], ssl.SSLError)


def test_a_federated_root_cannot_speak_for_us(gate: X509Svid) -> None:
    """OpenSSL lets it through (one trust store); `authenticate` does not."""
    foreign = make(ca_spec(san=uri("spiffe://other.test"), subject="other"))
    leaf = make(Spec(), foreign)  # says that it is our agent
    key = leaf.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    cert = leaf.cert.public_bytes(serialization.Encoding.PEM)
    forged = X509Svid(AGENT, cert.decode(), key.decode(), gate.bundle_pem, NOW + HOUR_NS, NOW)
    roots = gate.roots() | {"other.test": (foreign.der,)}
    with serving(server_context(gate, roots), roots) as server:
        assert not gets_through(server, client_context(forged))
    assert [outcome.rule for outcome in server.outcomes] == ["svid.path_validation"]


def test_an_expired_svid_by_openssl(tmp_path: Path) -> None:
    ca = CertificateAuthority.load_or_create(tmp_path / "older-ca", TRUST_DOMAIN, now=NOW - HOUR_NS)
    expired, gate = ca.issue(AGENT, ttl_ns=SECOND, now=NOW - HOUR_NS // 2), ca.issue(GATE, now=NOW)
    with serving(server_context(gate), gate.roots()) as server:
        assert not gets_through(server, client_context(expired))
    assert "expired" in str(server.outcomes[0])


def test_an_expired_svid_by_our_clock(gate: X509Svid, agent: X509Svid) -> None:
    with serving(server_context(gate), gate.roots(), now=agent.expires_ns + SECOND) as server:
        assert not gets_through(server, client_context(agent))
    assert isinstance(server.outcomes[0], UnauthenticatedError)


def test_the_client_checks_the_server_too(ca: CertificateAuthority, gate: X509Svid, agent: X509Svid) -> None:
    with serving(server_context(gate), gate.roots()) as server:
        with connected(server, client_context(agent)) as tls:
            assert echo(tls)
            with pytest.raises(UnauthenticatedError):
                authenticate(tls, {"other.test": agent.roots()[TRUST_DOMAIN]}, NOW, "server")
            with pytest.raises(UnauthenticatedError):
                authenticate(tls, agent.roots(), gate.expires_ns + SECOND, "server")


def test_no_session_is_resumed(gate: X509Svid, agent: X509Svid) -> None:
    context = client_context(agent)
    with serving(server_context(gate), gate.roots()) as server:
        with connected(server, context) as tls:
            assert echo(tls)
            session = tls.session
            assert session is None or not session.has_ticket
        with socket.create_connection(server.address, TIMEOUT_S) as raw:
            with context.wrap_socket(raw, session=session) as tls:
                assert echo(tls)
                assert not tls.session_reused
        assert server.outcomes == [str(AGENT)] * 2


def test_asyncio_and_its_memory_bios(ca: CertificateAuthority, gate: X509Svid, agent: X509Svid) -> None:
    """What an asyncio server has is an SSLObject; a rotation in between is seen by the next connection."""
    rotating, seen = RotatingServerContext(gate), list[str]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(str(authenticate(writer.get_extra_info("ssl_object"), rotating.roots, NOW, "client")))
        writer.write(await reader.readexactly(4))
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def once(port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client_context(agent))
        tls = writer.get_extra_info("ssl_object")
        assert isinstance(tls, ssl.SSLObject)
        assert authenticate(tls, agent.roots(), NOW, "server") == GATE
        writer.write(b"ping")
        assert await reader.readexactly(4) == b"ping"
        writer.close()
        await writer.wait_closed()
        return peer_chain(tls)[0]

    async def both() -> tuple[bytes, bytes]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=rotating.context)
        async with server:
            port = server.sockets[0].getsockname()[1]
            first = await once(port)
            rotating.update(ca.issue(GATE, now=NOW))
            return first, await once(port)

    first, second = asyncio.run(both())
    assert first != second
    assert seen == [str(AGENT)] * 2


class Broken:
    """Something that is no TLS object, in every way that we look at one."""

    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)

    def version(self) -> str:
        return "TLSv1.3"


@pytest.mark.parametrize(
    "tls",
    [
        None,
        Broken(),
        Broken(session_reused=True),
        Broken(session_reused=False),
        Broken(session_reused=False, _sslobj=None),
        Broken(session_reused=False, get_verified_chain=lambda: []),
        Broken(session_reused=False, get_verified_chain=lambda: [b"junk"]),
        Broken(session_reused=False, get_verified_chain=lambda: 1 / 0),
        Broken(session_reused=False, get_verified_chain=lambda: None),
    ],
)
def test_authenticate_raises_one_thing_only(tls: Any) -> None:
    with pytest.raises(UnauthenticatedError):
        authenticate(tls, {TRUST_DOMAIN: ()}, NOW, "client")


def test_authenticate_before_a_handshake(gate: X509Svid) -> None:
    left, right = socket.socketpair()
    with left, right:
        with server_context(gate).wrap_socket(left, server_side=True, do_handshake_on_connect=False) as tls:
            with pytest.raises(UnauthenticatedError):
                authenticate(tls, gate.roots(), NOW, "client")
            with pytest.raises(UnauthenticatedError):
                peer_chain(tls)


# -- the key -------------------------------------------------------------------------------------------------------


def test_the_key_touches_no_file_and_leaks_no_descriptor(gate: X509Svid, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    real = ssl.SSLContext.load_cert_chain

    def spy(self: ssl.SSLContext, path: str, *args: Any, **kwargs: Any) -> None:
        seen.append(os.readlink(path))
        real(self, path, *args, **kwargs)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", spy)
    before = os.listdir("/proc/self/fd")
    server_context(gate)
    assert os.listdir("/proc/self/fd") == before
    assert seen == ["/memfd:svid (deleted)"]


@pytest.mark.parametrize("part", ["key_pem", "cert_pem"])
@pytest.mark.parametrize("text", ["", "x", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_broken_svid_makes_no_context(gate: X509Svid, part: str, text: str) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(InvalidError) as caught:
        server_context(replace(gate, **{part: text}))
    assert "BEGIN" not in str(caught.value)
    assert os.listdir("/proc/self/fd") == before


def test_a_key_of_another_certificate(gate: X509Svid, agent: X509Svid) -> None:
    with pytest.raises(InvalidError):
        server_context(replace(gate, key_pem=agent.key_pem))


def test_an_encrypted_key_asks_nobody(gate: X509Svid) -> None:
    key = serialization.load_pem_private_key(gate.key_pem.encode(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
    )
    with pytest.raises(InvalidError):
        server_context(replace(gate, key_pem=locked.decode()))


def test_without_memfd_there_is_no_context(gate: X509Svid, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "memfd_create", fails)
    with pytest.raises(NucleusError) as caught:
        server_context(gate)
    assert caught.value.rule == "identity.tls"


def test_an_unprivileged_process_that_is_not_dumpable(gate: X509Svid) -> None:
    """The gate: its own uid, no capabilities, /proc/self owned by root because nobody may trace it."""
    if os.getuid() != 0:
        pytest.skip("needs root to become another uid")
    code = """
import ctypes, json, os, sys
from nucleus.identity.svid import X509Svid
from nucleus.identity.tls import server_context
svid = X509Svid.from_wire(json.load(sys.stdin), now=0)
os.setgroups([]); os.setresgid(*[0x70010000] * 3); os.setresuid(*[0x70010000] * 3)
assert ctypes.CDLL(None).prctl(4, 0, 0, 0, 0) == 0  # PR_SET_DUMPABLE
assert os.stat("/proc/self/fd").st_uid == 0
server_context(svid)
print("made")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(gate.to_wire()), capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("made\n", "")


# -- rotation ------------------------------------------------------------------------------------------------------


def serial(tls: ssl.SSLSocket) -> bytes:
    return peer_chain(tls)[0]


def test_rotation_drops_no_connection(ca: CertificateAuthority, gate: X509Svid, agent: X509Svid) -> None:
    rotating = RotatingServerContext(gate)
    context = client_context(agent)
    with serving(rotating.context, lambda: rotating.roots) as server:
        with connected(server, context) as old:
            assert echo(old, b"before")
            second = ca.issue(GATE, now=NOW)
            rotating.update(second)
            assert rotating.svid is second
            with connected(server, context) as new:
                assert echo(new)
                assert serial(new) != serial(old)
                assert authenticate(new, agent.roots(), NOW, "server") == GATE
            assert echo(old, b"after")
        assert server.outcomes == [str(AGENT)] * 2


def test_rotation_under_load(ca: CertificateAuthority, gate: X509Svid, agent: X509Svid) -> None:
    rotating = RotatingServerContext(gate)
    done, seen, failed = threading.Event(), set[bytes](), list[str]()

    def client() -> None:
        context = client_context(agent)
        while not done.is_set():
            try:
                with connected(server, context) as tls:
                    for _ in range(3):
                        assert echo(tls)
                    seen.add(serial(tls))
            except Exception as error:
                failed.append(repr(error))

    with serving(rotating.context, lambda: rotating.roots) as server:
        threads = [threading.Thread(target=client) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            rotating.update(ca.issue(GATE, now=NOW))
            time.sleep(0.03)
        done.set()
        for thread in threads:
            thread.join(TIMEOUT_S)
    assert not failed
    assert len(seen) > 5


def test_rotation_swaps_the_trust_store_too(
    ca: CertificateAuthority, gate: X509Svid, agent: X509Svid, tmp_path: Path
) -> None:
    """The domain's CA was made anew: from that epoch on, SVIDs of the old one are refused, by OpenSSL already."""
    fresh = CertificateAuthority.load_or_create(tmp_path / "fresh", TRUST_DOMAIN, now=NOW)
    rotating = RotatingServerContext(gate)
    old_client = client_context(agent, {TRUST_DOMAIN: (*agent.roots()[TRUST_DOMAIN], *fresh.roots(NOW)[TRUST_DOMAIN])})
    with serving(rotating.context, lambda: rotating.roots) as server:
        assert gets_through(server, old_client)
        rotating.update(fresh.issue(GATE, now=NOW))
        assert not gets_through(server, old_client)
        assert gets_through(server, client_context(fresh.issue(AGENT, now=NOW)))
    assert [str(outcome)[:6] for outcome in server.outcomes][::2] == ["spiffe", "spiffe"]
    assert isinstance(server.outcomes[1], ssl.SSLError)


def test_a_bad_rotation_changes_nothing(gate: X509Svid, agent: X509Svid) -> None:
    rotating = RotatingServerContext(gate)
    for bad in (agent, replace(gate, key_pem=agent.key_pem), replace(gate, key_pem="")):
        with pytest.raises(InvalidError):
            rotating.update(bad)
    assert rotating.svid is gate
    assert "PRIVATE" not in repr(rotating)
    with serving(rotating.context, lambda: rotating.roots) as server:
        assert gets_through(server, client_context(agent))
