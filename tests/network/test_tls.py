"""TLS at both ends of the gateway, against Python's own TLS, openssl and curl; and the authority of a pod."""

from __future__ import annotations

import asyncio
import os
import pickle
import random
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from nucleus.errors import DeniedError, InvalidError
from nucleus.network import pod_ca
from nucleus.network.pod_ca import BACKDATED, CONTEXTS, PodCa
from nucleus.network.streams import AsyncioStream, SocketStream, Stream
from nucleus.network.tls import TlsStream, TruncatedError, certificate_reason, client_context

HOST = "api.example.com"
NOW = datetime.now(UTC).replace(microsecond=0)
MIB = 1 << 20
CURL, OPENSSL = shutil.which("curl"), shutil.which("openssl")


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(15):
            await body()

    asyncio.run(bounded())


@pytest.fixture(autouse=True)
def _no_descriptor_is_left() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture(scope="module")
def ca() -> PodCa:
    return PodCa([HOST, "*.wild.test"], NOW)


def trusting(ca: PodCa, **limits: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=ca.certificate_pem().decode())
    context.set_alpn_protocols(["h2", "http/1.1"])
    for name, version in limits.items():
        setattr(context, name, version)
    return context


TLS12 = {"maximum_version": ssl.TLSVersion.TLSv1_2}


def sockets() -> tuple[SocketStream, SocketStream]:
    one, other = socket.socketpair()
    one.setblocking(False)
    other.setblocking(False)
    return SocketStream(one), SocketStream(other)


async def shaken(
    ca: PodCa, near: Stream, far: Stream, host: str = HOST, **limits: ssl.TLSVersion
) -> tuple[TlsStream, TlsStream]:
    """Both of our ends, on each other: server, client."""
    return await asyncio.gather(
        TlsStream.server(near, ca.context(host)), TlsStream.client(far, trusting(ca, **limits), host)
    )


async def read_exactly(stream: Stream, count: int, most: int = 65_536) -> bytes:
    got = bytearray()
    while len(got) < count:
        data = await stream.read(most)
        assert data, "ended too early"
        got += data
    return bytes(got)


async def read_all(stream: Stream) -> bytes:
    got = bytearray()
    while data := await stream.read(65_536):
        got += data
    return bytes(got)


async def listening(serve: Callable[[SocketStream], Awaitable[None]]) -> tuple[asyncio.Task[None], int]:
    """One client of a loopback port."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)

    async def accept() -> None:
        with listener:
            client, _ = await asyncio.get_running_loop().sock_accept(listener)
        client.setblocking(False)
        await serve(SocketStream(client))

    return asyncio.ensure_future(accept()), listener.getsockname()[1]


async def connected(port: int) -> SocketStream:
    sock = socket.socket()
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    return SocketStream(sock)


# --- certificates made by hand ---


def signed(
    names: list[x509.GeneralName],
    by: tuple[x509.Certificate, Any] | None,
    begin: timedelta = -timedelta(minutes=1),
    end: timedelta = timedelta(hours=1),
    authority: bool = False,
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A certificate for `names`, by an authority or by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"by hand {os.urandom(4).hex()}")])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by[0].subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW + begin)
        .not_valid_after(NOW + end)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )
    if names:
        made = made.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if not authority:
        made = made.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    return made.sign(by[1] if by else key, hashes.SHA256()), key


def serving(*chain: tuple[x509.Certificate, ec.EllipticCurvePrivateKey]) -> ssl.SSLContext:
    pem = b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate, _ in chain)
    key = chain[0][1].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as file:
        file.write(pem + key)
        file.flush()
        context.load_cert_chain(file.name)
    return context


def own(ca: PodCa) -> tuple[x509.Certificate, Any]:
    return ca._certificate, ca._key


def verdict(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> str:
    """Of Python's own client in memory: "" or what it has against the certificate."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(down, up, server_hostname=name),
        server.wrap_bio(up, down, server_side=True),
    )
    for end in ends * 3:
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
    return ""


# --- the authority ---


def extension(certificate: x509.Certificate, kind: Any) -> Any:
    return certificate.extensions.get_extension_for_class(kind)


def leaf_of(ca: PodCa, host: str, **when: datetime) -> x509.Certificate:
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    ends = (client.wrap_bio(down, up), ca.context(host, **when).wrap_bio(up, down, server_side=True))
    for end in ends * 3:
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            pass
    der = ends[0].getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der)


def test_what_the_authority_says(ca: PodCa) -> None:
    made = x509.load_pem_x509_certificate(ca.certificate_pem())
    assert made.subject == made.issuer
    assert made.subject.rfc4514_string() == "CN=Nucleus pod CA"
    assert made.not_valid_before_utc == NOW - timedelta(minutes=5)
    assert made.not_valid_after_utc == NOW + timedelta(days=30)
    assert isinstance(made.public_key(), ec.EllipticCurvePublicKey)
    basic, usage = extension(made, x509.BasicConstraints), extension(made, x509.KeyUsage)
    assert basic.critical
    assert (basic.value.ca, basic.value.path_length) == (True, 0)
    assert usage.critical
    assert (usage.value.key_cert_sign, usage.value.crl_sign, usage.value.digital_signature) == (True, False, False)
    names = extension(made, x509.NameConstraints)
    assert names.critical
    assert [name.value for name in names.value.permitted_subtrees] == ["wild.test", HOST]
    assert [str(name.value) for name in names.value.excluded_subtrees] == ["0.0.0.0/0", "::/0"]
    assert PodCa([HOST], NOW)._certificate.serial_number != PodCa([HOST], NOW)._certificate.serial_number


def test_what_a_leaf_says(ca: PodCa) -> None:
    leaf = leaf_of(ca, HOST)
    assert leaf.issuer == ca._certificate.subject
    assert list(extension(leaf, x509.SubjectAlternativeName).value) == [x509.DNSName(HOST)]
    assert list(extension(leaf, x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert not extension(leaf, x509.BasicConstraints).value.ca
    assert extension(leaf, x509.KeyUsage).value.digital_signature
    life = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    assert timedelta(hours=23) < life <= timedelta(hours=25)
    leaf.verify_directly_issued_by(ca._certificate)
    assert verdict(trusting(ca), ca.context(HOST), HOST) == ""


def test_a_leaf_is_made_again_before_it_ends_and_when_the_clock_was_set_back(ca: PodCa) -> None:
    fresh = PodCa([HOST], NOW)
    first = fresh.context(HOST, NOW)
    assert fresh.context(HOST, NOW + timedelta(hours=22, minutes=59)) is first
    second = fresh.context(HOST, NOW + timedelta(hours=23))
    assert second is not first
    assert fresh.context(HOST, NOW + timedelta(hours=23) - BACKDATED) is second
    assert fresh.context(HOST, NOW + timedelta(hours=22)) is not second
    late = NOW + timedelta(days=29, hours=12)
    assert leaf_of(fresh, HOST, now=late).not_valid_after_utc == NOW + timedelta(days=30)  # not beyond its issuer


def test_contexts_are_bounded_and_the_least_recently_used_goes(ca: PodCa) -> None:
    fresh = PodCa(["*.wild.test"], NOW)
    kept, gone = fresh.context("kept.wild.test"), fresh.context("gone.wild.test")
    for number in range(CONTEXTS - 1):
        fresh.context(f"h{number}.wild.test")
        assert fresh.context("kept.wild.test") is kept
    assert len(fresh._contexts) == CONTEXTS
    assert fresh.context("gone.wild.test") is not gone


@pytest.mark.parametrize(
    "host", ["other.test", "wild.test", f"x.{HOST}", HOST.upper(), "*.wild.test", "10.0.0.1", "::1", "", "."]
)
def test_it_vouches_for_what_a_rule_covers_alone(ca: PodCa, host: str) -> None:
    with pytest.raises(DeniedError):
        ca.context(host)


@pytest.mark.parametrize("hosts", [[], [""], ["*."], ["*"], ["a b"], ["a.test", "*.*.test"], ["0x7f.1"], ["é.test"]])
def test_what_is_no_host_makes_no_authority(hosts: list[str]) -> None:
    with pytest.raises(InvalidError):
        PodCa(hosts, NOW)


DNS, IP = x509.DNSName, lambda text: x509.IPAddress(ip_address(text))
CONSTRAINED = "permitted subtree violation"
EXCLUDED = "excluded subtree violation"
RULES = [HOST, "*.wild.test"]


@pytest.mark.parametrize(
    ("rules", "name", "listed", "against"),
    [
        (RULES, HOST, [DNS(HOST)], ""),
        (RULES, "a.b.wild.test", [DNS("a.b.wild.test")], ""),
        (RULES, "wild.test", [DNS("wild.test")], ""),  # a constraint has no way to leave it out
        (RULES, f"x.{HOST}", [DNS(f"x.{HOST}")], ""),  # nor these
        (RULES, "other.test", [DNS("other.test")], CONSTRAINED),
        (RULES, "example.com", [DNS("example.com")], CONSTRAINED),
        (RULES, "notwild.test", [DNS("notwild.test")], CONSTRAINED),
        (RULES, HOST, [DNS(HOST), DNS("other.test")], CONSTRAINED),
        (RULES, "x.example.com", [DNS("*.example.com")], CONSTRAINED),
        (RULES, "10.0.0.1", [IP("10.0.0.1")], EXCLUDED),
        (RULES, "::1", [IP("::1")], EXCLUDED),
        (["10.1.0.0/16"], "10.1.2.3", [IP("10.1.2.3")], ""),
        (["10.1.0.0/16"], "10.2.2.3", [IP("10.2.2.3")], CONSTRAINED),
        (["10.1.0.0/16"], "::1", [IP("::1")], CONSTRAINED),
        (["10.1.0.0/16"], HOST, [DNS(HOST)], EXCLUDED),
        (["2001:db8::/32", HOST], "2001:db8::5", [IP("2001:db8::5")], ""),
        (["2001:db8::/32", HOST], "2001:db9::5", [IP("2001:db9::5")], CONSTRAINED),
        (["2001:db8::/32", HOST], "10.1.2.3", [IP("10.1.2.3")], CONSTRAINED),
        (["192.0.2.7"], "192.0.2.7", [IP("192.0.2.7")], ""),
        (["192.0.2.7"], "192.0.2.8", [IP("192.0.2.8")], CONSTRAINED),
    ],
)
def test_even_its_own_key_vouches_for_nothing_else(rules: list[str], name: str, listed: Any, against: str) -> None:
    ca = PodCa(rules, NOW)
    assert verdict(trusting(ca), serving(signed(listed, own(ca))), name) == against


def test_no_authority_below_it(ca: PodCa) -> None:
    below = signed([], own(ca), authority=True)
    leaf = signed([DNS(HOST)], below)
    assert verdict(trusting(ca), serving(leaf, below), HOST) == "path length constraint exceeded"


@pytest.mark.skipif(OPENSSL is None, reason="no openssl")
def test_openssl_agrees(ca: PodCa, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(ca.certificate_pem())
    for number, (name, good) in enumerate(((HOST, True), ("other.test", False))):
        leaf, _ = signed([DNS(name)], own(ca))
        path = tmp_path / f"{number}.pem"
        path.write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
        argv = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", tmp_path / "ca.pem", path]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if good:  # made by hand, it lacks what strictness asks of a leaf; ours is checked below
            assert "permitted subtree" not in done.stderr
        else:
            assert "permitted subtree violation" in done.stderr
    path.write_bytes(leaf_of(ca, HOST).public_bytes(serialization.Encoding.PEM))
    subprocess.run(argv, capture_output=True, check=True)


def test_the_key_is_nowhere(ca: PodCa, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert repr(ca) == "PodCa()"
    with pytest.raises(TypeError):
        pickle.dumps(ca)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "not there"))  # a temporary file would be an error
    ca.context("a.wild.test")
    assert b"PRIVATE" not in ca.certificate_pem()


def test_without_memfd_the_key_is_encrypted_on_its_way(
    ca: PodCa, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> int:
        raise OSError(38, "Function not implemented")

    seen: list[tuple[bytes, int]] = []
    load = ssl.SSLContext.load_cert_chain

    def seeing(context: ssl.SSLContext, path: Any, **kwargs: Any) -> None:
        seen.append((Path(path).read_bytes(), os.stat(path).st_mode & 0o777))
        load(context, path, **kwargs)

    monkeypatch.setattr(os, "memfd_create", refused)
    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", seeing)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    context = ca.context("b.wild.test")
    monkeypatch.undo()
    assert seen[0][1] == 0o600
    assert b"BEGIN ENCRYPTED PRIVATE KEY" in seen[0][0]
    assert b"BEGIN PRIVATE KEY" not in seen[0][0]
    assert list(tmp_path.iterdir()) == []
    assert verdict(trusting(ca), context, "b.wild.test") == ""


def test_a_client_cannot_fill_the_memory_with_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pod_ca, "SESSIONS", 3)
    fresh = PodCa([HOST], NOW)
    client = trusting(fresh, **TLS12)
    first, kept = fresh.context(HOST), []
    for _ in range(12):
        context = fresh.context(HOST)
        up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
        ends = client.wrap_bio(down, up, server_hostname=HOST), context.wrap_bio(up, down, server_side=True)
        for step in [end.do_handshake for end in ends * 3] + [end.unwrap for end in ends * 2]:
            with suppress(ssl.SSLWantReadError):
                step()
        kept.append(context.session_stats()["number"])
    assert max(kept) == 4
    assert fresh.context(HOST) is not first


# --- the stream ---


@pytest.mark.parametrize("limits", [{}, TLS12])
def test_a_handshake_and_a_word_each_way(ca: PodCa, limits: Any) -> None:
    async def body() -> None:
        server, client = await shaken(ca, *sockets(), **limits)
        for one, other in ((server, client), (client, server)):
            await one.write(b"hello")
            assert await other.read(100) == b"hello"
            assert one.quiet()
            assert other.quiet()
        assert client._tls.version() == ("TLSv1.2" if limits else "TLSv1.3")
        assert server._tls.selected_alpn_protocol() == client._tls.selected_alpn_protocol() == "http/1.1"
        session = client._tls.session
        assert session is None or not session.has_ticket
        await client.write(b"not asked for")
        await asyncio.sleep(0)
        assert not server.quiet()
        assert await server.read(100) == b"not asked for"
        finishing = asyncio.ensure_future(client.finish())
        assert await server.read(100) == b""
        assert await server.read(100) == b""
        assert not server.quiet()
        await server.finish()
        await finishing

    run(body)


class Splitting:
    """A stream whose first words go, up to `at`, to whoever will hand them on as `early`."""

    def __init__(self, inner: SocketStream, at: int) -> None:
        self._inner, self._at = inner, at
        self.early: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.size = 0
        self.read, self.finish, self.abort, self.quiet = inner.read, inner.finish, inner.abort, inner.quiet

    async def write(self, data: bytes) -> None:
        if not self.early.done():
            self.size = len(data)
            self.early.set_result(data[: self._at])
            await asyncio.sleep(0)
            data = data[self._at :]
        await self._inner.write(data)


def test_the_hello_may_come_cut_at_any_byte(ca: PodCa) -> None:
    async def once(at: int) -> int:
        near, far = sockets()
        cut = Splitting(far, at)
        connecting = asyncio.ensure_future(TlsStream.client(cut, client, HOST))
        server = await TlsStream.server(near, ca.context(HOST), await cut.early)
        other = await connecting
        await other.write(b"x")
        assert await server.read(9) == b"x"
        server.abort()
        other.abort()
        return cut.size

    async def body() -> None:
        size = await once(0)
        assert size > 200
        for at in range(1, size + 1):
            await once(at)

    client = trusting(ca)
    run(body)


class Dripping:
    """A stream that passes on a byte at a time."""

    def __init__(self, inner: SocketStream) -> None:
        self._inner = inner
        self.read, self.finish, self.abort, self.quiet = inner.read, inner.finish, inner.abort, inner.quiet

    async def write(self, data: bytes) -> None:
        for at in range(len(data)):
            await self._inner.write(data[at : at + 1])
            await asyncio.sleep(0)


def test_byte_by_byte(ca: PodCa) -> None:
    async def body() -> None:
        near, far = sockets()
        server, client = await shaken(ca, Dripping(near), Dripping(far))
        await client.write(b"up")
        assert await server.read(100) == b"up"
        await server.write(b"down")
        assert await read_exactly(client, 4) == b"down"
        server.abort()
        client.abort()

    run(body)


@pytest.mark.parametrize("limits", [{}, TLS12])
def test_ten_mebibytes_both_ways_at_once_with_python_s_own_client(ca: PodCa, limits: Any) -> None:
    up, down = random.Random(1).randbytes(10 * MIB), random.Random(2).randbytes(10 * MIB)

    async def body() -> None:
        got: list[bytes] = []

        async def serve(stream: SocketStream) -> None:
            server = await TlsStream.server(stream, ca.context(HOST))
            reading = asyncio.ensure_future(read_exactly(server, len(up)))
            for at in range(0, len(down), 100_000):
                await server.write(down[at : at + 100_000])
            got.append(await reading)
            await server.finish()

        serving_, port = await listening(serve)
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", port, ssl=trusting(ca, **limits), server_hostname=HOST
        )
        writer.write(up)
        assert await reader.readexactly(len(down)) == down
        assert await reader.read() == b""
        writer.close()
        await serving_
        assert got[0] == up
        await asyncio.sleep(0.01)

    run(body)


def test_ten_mebibytes_both_ways_at_once_with_python_s_own_server(ca: PodCa) -> None:
    up, down = random.Random(3).randbytes(10 * MIB), random.Random(4).randbytes(10 * MIB)

    async def body() -> None:
        got: list[bytes] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(down)
            got.append(await reader.readexactly(len(up)))
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=ca.context(HOST))
        port = server.sockets[0].getsockname()[1]
        client = await TlsStream.client(await connected(port), trusting(ca), HOST)
        reading = asyncio.ensure_future(read_all(client))
        await client.write(up)
        assert await reading == down
        assert got[0] == up
        await client.finish()
        server.close()
        await server.wait_closed()

    run(body)


def test_over_asyncio_s_own_stream(ca: PodCa) -> None:
    async def body() -> None:
        async def serve(stream: SocketStream) -> None:
            server = await TlsStream.server(stream, ca.context(HOST))
            await server.write(await read_exactly(server, 100_000))
            await server.finish()

        serving_, port = await listening(serve)
        pair = await asyncio.open_connection("127.0.0.1", port)
        client = await TlsStream.client(AsyncioStream(*pair), trusting(ca), HOST)
        await client.write(bytes(100_000))
        assert await read_all(client) == bytes(100_000)
        await client.finish()
        await serving_

    run(body)


def test_a_reader_that_does_not_read_slows_the_writer_and_costs_one_piece(
    ca: PodCa, monkeypatch: pytest.MonkeyPatch
) -> None:
    most: list[int] = []
    write = SocketStream.write

    async def watched(stream: SocketStream, data: bytes) -> None:
        most.append(len(data))
        await write(stream, data)

    async def body() -> None:
        near, far = sockets()
        server, client = await shaken(ca, near, far)
        monkeypatch.setattr(SocketStream, "write", watched)
        writing = asyncio.ensure_future(server.write(bytes(64 * MIB)))
        await asyncio.sleep(0.2)
        assert not writing.done()
        assert server._outgoing.pending == 0
        assert max(most) < 70_000
        assert client._incoming.pending == 0
        total = 0
        while total < 64 * MIB:
            total += len(await client.read(65_536))
            assert client._incoming.pending <= 65_536
        await writing
        server.abort()
        client.abort()

    run(body)


@pytest.mark.parametrize("seed", range(3))
def test_a_cancelled_read_loses_nothing(ca: PodCa, seed: int) -> None:
    sent = random.Random(seed).randbytes(2 * MIB)
    dice = random.Random(seed)

    async def body() -> None:
        server, client = await shaken(ca, *sockets())

        async def pour() -> None:
            at = 0
            while at < len(sent):
                step = dice.choice((1, 50, 5_000, 50_000))
                await server.write(sent[at : at + step])
                at += step
                await asyncio.sleep(dice.choice((0, 0, 0.0005)))
            await server.finish()

        pouring = asyncio.ensure_future(pour())
        got, cancelled = bytearray(), 0
        while True:
            reading = asyncio.ensure_future(
                client.read(dice.choice((1, 1_000, 65_536)) if len(got) < 5_000 else 65_536)
            )
            for _ in range(dice.choice((0, 1, 1, 2, 3))):
                await asyncio.sleep(0)
            if not reading.done():
                reading.cancel()
            try:
                data = await reading
            except asyncio.CancelledError:
                cancelled += 1
                continue
            if not data:
                break
            got += data
        assert bytes(got) == sent
        assert cancelled > 10
        await client.finish()
        await pouring

    run(body)


def test_after_a_write_that_was_cut_off_nothing_is_sent(ca: PodCa) -> None:
    async def body() -> None:
        server, client = await shaken(ca, *sockets())
        writing = asyncio.ensure_future(server.write(bytes(16 * MIB)))
        await asyncio.sleep(0.05)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        assert not server.quiet()
        with pytest.raises(OSError, match="cut off"):
            await server.write(b"more")
        await server.finish()  # says nothing, closes
        with pytest.raises(OSError):
            await read_all(client)
        client.abort()

    run(body)


def test_a_reader_s_flush_outlives_the_reader_and_comes_between_two_writes(ca: PodCa) -> None:
    """What a TLS 1.2 peer makes us say by asking for renegotiation, while our writer waits and our reader gives up."""

    async def body() -> None:
        server, client = await shaken(ca, *sockets())
        writing = asyncio.ensure_future(server.write(bytes(4 * MIB)))
        await asyncio.sleep(0.05)
        server._tls.write(b"said by TLS")  # any record that nobody's `write` waits for
        reading = asyncio.ensure_future(server.read(1))
        await asyncio.sleep(0.01)
        assert not reading.done()
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        got = await read_exactly(client, 4 * MIB + 11)
        assert got.replace(b"\0", b"") == b"said by TLS"
        await writing
        await client.write(b"x")
        assert await server.read(1) == b"x"
        server.abort()
        client.abort()

    run(body)


def test_a_reader_that_gives_up_does_not_cut_off_what_it_was_sending(ca: PodCa) -> None:
    async def body() -> None:
        server, client = await shaken(ca, *sockets())
        server._tls.write(bytes(2 * MIB))  # more than the socket takes
        for _ in range(2):
            reading = asyncio.ensure_future(server.read(1))
            await asyncio.sleep(0.01)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        await client.write(b"x")
        reading = asyncio.ensure_future(server.read(1))
        assert await read_exactly(client, 2 * MIB) == bytes(2 * MIB)
        assert await reading == b"x"
        await server.write(b"y")
        assert await client.read(1) == b"y"
        server._tls.write(bytes(2 * MIB))
        reading = asyncio.ensure_future(server.read(1))
        await asyncio.sleep(0.01)
        server.abort()  # and nothing waits for ever
        with pytest.raises(OSError, match="aborted"):
            await reading
        client.abort()

    run(body)


def test_a_peer_that_has_said_its_end_is_not_quiet(ca: PodCa) -> None:
    async def body() -> None:
        server, client = await shaken(ca, *sockets())
        with suppress(ssl.SSLWantReadError):
            server._tls.unwrap()
        await server._flush()
        assert await client.read(1) == b""
        assert client._inner.quiet()
        assert not client.quiet()
        await client.write(b"still heard")  # RFC 8446: one direction has ended
        assert await server._inner.read(100)
        server.abort()
        client.abort()

    run(body)


@pytest.mark.parametrize("when", ["between records", "inside a record"])
def test_an_end_without_close_notify(ca: PodCa, when: str) -> None:
    async def body() -> None:
        for cut_server in (True, False):
            near, far = sockets()
            server, client = await shaken(ca, near, far)
            teller, told, raw = (server, client, near) if cut_server else (client, server, far)
            await teller.write(b"so far")
            if when == "inside a record":
                teller._tls.write(b"half of this")
                await raw.write(teller._outgoing.read()[:9])
            raw._sock.close()
            assert await told.read(100) == b"so far"
            assert not told.quiet()
            for _ in range(2):
                if cut_server:
                    with pytest.raises(TruncatedError):
                        await told.read(100)
                else:
                    assert await told.read(100) == b""
            assert not told.quiet()
            await told.finish()

    run(body)


def test_what_is_no_tls_inside_is_an_error_twice_and_says_so_to_the_peer(ca: PodCa) -> None:
    async def body() -> None:
        near, far = sockets()
        server, client = await shaken(ca, near, far)
        await far.write(b"\x17\x03\x03\x00\x20" + bytes(32))
        for _ in range(2):
            with pytest.raises(ssl.SSLError):
                await server.read(100)
        assert not server.quiet()
        with pytest.raises(ssl.SSLError, match=r"(?i)alert"):
            await client.read(100)
        server.abort()
        server.abort()
        client.abort()

    run(body)


@pytest.mark.parametrize("how", ["silent", "gone", "nonsense", "cancelled", "half a hello"])
def test_a_handshake_that_fails_closes_its_stream(ca: PodCa, how: str) -> None:
    async def body() -> None:
        for side in ("server", "client"):
            near, far = sockets()
            early = b"\x16\x03\x01\x02\x00\x01\x00" if how == "half a hello" and side == "server" else b""
            if side == "server":
                making = asyncio.ensure_future(TlsStream.server(near, ca.context(HOST), early, 0.1))
            else:
                making = asyncio.ensure_future(TlsStream.client(near, trusting(ca), HOST, 0.1))
            await asyncio.sleep(0)
            if how == "gone":
                far.abort()
            elif how == "nonsense":
                await far.write(b"GET / HTTP/1.1\r\n\r\n" * 10)
            elif how == "cancelled":
                await asyncio.sleep(0.01)
                making.cancel()
            expected: Any = asyncio.CancelledError if how == "cancelled" else OSError
            with pytest.raises(expected) as caught:
                await making
            if how in ("silent", "half a hello"):
                assert caught.type is TimeoutError
            assert near._sock.fileno() == -1
            far.abort()

    run(body)


def test_a_client_that_does_not_trust_us_is_an_error(ca: PodCa) -> None:
    async def body() -> None:
        near, far = sockets()
        outcomes = await asyncio.gather(
            TlsStream.server(near, ca.context(HOST)),
            TlsStream.client(far, ssl.create_default_context(), HOST),
            return_exceptions=True,
        )
        assert isinstance(outcomes[0], ssl.SSLError)
        assert "UNKNOWN_CA" in outcomes[0].reason
        assert isinstance(outcomes[1], ssl.SSLCertVerificationError)

    run(body)


@pytest.mark.parametrize("name", [".api.test", "", "a" * 64 + ".test"])
def test_a_name_that_is_none_is_an_oserror(ca: PodCa, name: str) -> None:
    async def body() -> None:
        near, far = sockets()
        with pytest.raises(OSError):
            await TlsStream.client(near, trusting(ca), name)
        assert near._sock.fileno() == -1
        far.abort()

    run(body)


# --- upstream ---


@pytest.fixture(scope="module")
def public() -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """An authority that the world trusts."""
    return signed([], None, authority=True)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("good", ""),
        ("expired", "the server's certificate is not trusted: certificate has expired"),
        ("not yet", "the server's certificate is not trusted: certificate is not yet valid"),
        ("other name", f"the server's certificate is not trusted: Hostname mismatch, .*'{HOST}'.*"),
        ("no name", f"the server's certificate is not trusted: Hostname mismatch, .*'{HOST}'.*"),
        ("self-signed", "the server's certificate is not trusted: self-signed certificate"),
        ("unknown", "the server's certificate is not trusted: unable to get local issuer certificate"),
        ("no TLS", "no TLS with the server: wrong version number"),
        ("old", "no TLS with the server: .*(version|protocol).*"),
        ("gone", "no TLS with the server: the connection ended in the handshake"),
        ("reset", "no TLS with the server: Connection reset by peer"),
        ("silent", r"the server did not answer in time \(TLS\)"),
    ],
)
def test_a_server_that_is_not_trusted_is_refused_with_the_reason(public: Any, kind: str, reason: str) -> None:
    hour = timedelta(hours=1)
    ours = [DNS(HOST)]
    contexts: dict[str, Callable[[], ssl.SSLContext]] = {
        "expired": lambda: serving(signed(ours, public, -2 * hour, -hour)),
        "not yet": lambda: serving(signed(ours, public, hour, 2 * hour)),
        "other name": lambda: serving(signed([DNS("other.test"), DNS("*.com")], public)),
        "no name": lambda: serving(signed([], public)),
        "self-signed": lambda: serving(signed(ours, None)),
        "unknown": lambda: serving(signed(ours, signed([], None, authority=True))),
    }
    context = contexts.get(kind, lambda: serving(signed(ours, public)))()
    trust = client_context.__wrapped__()
    trust.load_verify_locations(cadata=public[0].public_bytes(serialization.Encoding.PEM).decode())
    if kind == "old":
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.warns(DeprecationWarning, match="TLSv1"):
            context.minimum_version = ssl.TLSVersion.TLSv1
        context.set_ciphers("ALL:@SECLEVEL=0")
    told: list[BaseException] = []

    async def serve(stream: SocketStream) -> None:
        try:
            if kind == "no TLS":
                await stream.write(b"HTTP/1.0 400 Bad Request\r\n\r\n")
                await stream.read(1_000)
            elif kind == "reset":
                await stream.read(1)
            elif kind == "silent":
                while await stream.read(10_000):
                    pass
            elif kind != "gone":
                server = await TlsStream.server(stream, context)
                await server.write(await server.read(100))
                await server.finish()
        except OSError as error:
            told.append(error)
        stream.abort() if kind == "reset" else await stream.finish()

    async def body() -> None:
        serving_, port = await listening(serve)
        stream = await connected(port)
        try:
            client = await TlsStream.client(stream, trust, HOST, 0.5)
        except OSError as error:
            said = certificate_reason(error)
            assert re.fullmatch(reason, said), said
            assert len(said) <= 200
            assert stream._sock.fileno() == -1
        else:
            assert reason == ""
            await client.write(b"hello")
            assert await client.read(100) == b"hello"
            await client.finish()
        await serving_

    run(body)
    if "not trusted" in reason and kind != "no name":
        assert "ALERT" in str(told[0])  # it was told why


def test_a_reason_is_bounded() -> None:
    error = ssl.SSLCertVerificationError(1, "x")
    error.verify_message = "y" * 1_000
    assert len(certificate_reason(error)) == 200
    assert certificate_reason(OSError(113, "No route to host")) == "no TLS with the server: No route to host"


def test_the_trust_is_the_host_s_and_is_made_once(public: Any, tmp_path: Path) -> None:
    trusted, keys = tmp_path / "trusted.pem", tmp_path / "keys"
    trusted.write_bytes(public[0].public_bytes(serialization.Encoding.PEM))
    code = """if True:
        import ssl
        from nucleus.network.tls import client_context
        made = client_context()
        assert made is client_context()
        assert made.check_hostname and made.verify_mode is ssl.CERT_REQUIRED
        assert made.minimum_version is ssl.TLSVersion.TLSv1_2
        print(made.cert_store_stats()["x509"])
    """
    env = {**os.environ, "SSL_CERT_FILE": str(trusted), "SSL_CERT_DIR": "/nonexistent", "SSLKEYLOGFILE": str(keys)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
    assert not keys.exists()


# --- real programs ---


async def program(port: int, ca_file: Path, *argv: str, feed: tuple[bytes, ...] = ()) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(item.format(port=port, ca=ca_file) for item in argv),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    for piece in feed:
        await asyncio.sleep(0.1)
        process.stdin.write(piece)
    if feed:  # at the end of its input s_client leaves, with the answer or without
        await asyncio.sleep(0.2)
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode("latin-1"), err.decode("latin-1")


def answering(ca: PodCa, seen: list[bytes]) -> Callable[[SocketStream], Awaitable[None]]:
    async def serve(stream: SocketStream) -> None:
        try:
            server = await TlsStream.server(stream, ca.context(HOST), timeout=5)
            while data := await server.read(10_000):
                seen.append(data)
                if b"\r\n\r\n" in data or data.endswith(b"end\n"):
                    break
            await server.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
            await server.finish()
        except OSError as error:
            seen.append(str(error).encode())
            stream.abort()

    return serve


@pytest.mark.skipif(CURL is None, reason="no curl")
@pytest.mark.parametrize("version", [("--tls-max", "1.2"), ("--tlsv1.3",)])
def test_curl(ca: PodCa, tmp_path: Path, version: tuple[str, ...]) -> None:
    (tmp_path / "ca.pem").write_bytes(ca.certificate_pem())
    url = ("--connect-to", HOST + ":443:127.0.0.1:{port}", f"https://{HOST}/x")

    async def body() -> None:
        seen: list[bytes] = []
        serving_, port = await listening(answering(ca, seen))
        code, out, err = await program(port, tmp_path / "ca.pem", "curl", "-sSv", *version, "--cacert", "{ca}", *url)
        await serving_
        assert (code, out) == (0, "ok"), err
        assert "ALPN: server accepted http/1.1" in err
        assert "SSL certificate verify ok" in err
        assert seen[0].startswith(b"GET /x HTTP/1.1\r\n")
        serving_, port = await listening(answering(ca, seen))
        code, _, err = await program(port, tmp_path / "ca.pem", "curl", "-sS", *url)  # that does not know our CA
        await serving_
        assert code == 60, err

    run(body)


S_CLIENT = ("openssl", "s_client", "-connect", "127.0.0.1:{port}", "-servername", HOST, "-CAfile", "{ca}",
            "-verify_hostname", HOST, "-verify_return_error", "-alpn", "h2,http/1.1")  # fmt: skip


@pytest.mark.skipif(OPENSSL is None, reason="no openssl")
@pytest.mark.parametrize("how", ["-tls1_3", "-tls1_2", "-tls1_1", "key update", "renegotiation"])
def test_openssl_s_client(ca: PodCa, tmp_path: Path, how: str) -> None:
    (tmp_path / "ca.pem").write_bytes(ca.certificate_pem())
    version = {"key update": "-tls1_3", "renegotiation": "-tls1_2"}.get(how, how)
    old = ("-cipher", "ALL:@SECLEVEL=0") if how == "-tls1_1" else ()
    feeds = {"key update": (b"one\n", b"K\n", b"end\n"), "renegotiation": (b"one\n", b"R\n", b"end\n")}

    async def body() -> None:
        seen: list[bytes] = []
        serving_, port = await listening(answering(ca, seen))
        code, out, err = await program(
            port, tmp_path / "ca.pem", *S_CLIENT, version, *old, feed=feeds.get(how, (b"end\n",))
        )
        await serving_
        if how == "-tls1_1":
            assert code != 0
            assert "200 OK" not in out
            assert b"end\n" not in seen
            return
        assert "ALPN protocol: http/1.1" in out
        assert "Verify return code: 0 (ok)" in out
        assert "Verified peername: " + HOST in out
        assert "session ticket" not in out.lower()
        if how == "renegotiation":
            assert "no renegotiation" in err
        else:
            assert b"".join(seen).endswith(b"end\n")
            assert "200 OK" in out
            assert code == 0

    run(body)


def test_the_constraints_of_a_range_are_what_its_rule_says() -> None:
    made = PodCa(["10.1.2.3/16", "2001:db8::/32"], NOW)
    names = extension(made._certificate, x509.NameConstraints).value
    assert [name.value for name in names.permitted_subtrees] == [ip_network("10.1.0.0/16"), ip_network("2001:db8::/32")]
    assert [name.value for name in names.excluded_subtrees] == [""]
    assert verdict(trusting(made), made.context("10.1.9.9"), "10.1.9.9") == ""
    with pytest.raises(DeniedError):
        made.context("10.2.0.1")
