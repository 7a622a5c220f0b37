"""The Workload API as client: endpoints, what an agent may answer, and peers that are no agents."""

from __future__ import annotations

import datetime
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from h2.config import H2Configuration
from h2.connection import H2Connection

from integration.spire import DER, Root
from nucleus.errors import InvalidError, NucleusError
from nucleus.identity import grpc_client
from nucleus.identity import workload_proto as proto
from nucleus.identity.grpc_client import Connection, RpcError
from nucleus.identity.workload_client import Client, endpoint, read_jwt_bundles, read_x509, read_x509_bundles

DOMAIN = "example.org"


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("unix:///run/agent.sock", "/run/agent.sock"),
        ("unix:/run/agent.sock", "/run/agent.sock"),
        ("tcp://127.0.0.1:8000", ("127.0.0.1", 8000)),
        ("tcp://[::1]:8000", ("::1", 8000)),
    ],
)
def test_endpoints(uri: str, address: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert endpoint(uri) == address
    monkeypatch.setenv("SPIFFE_ENDPOINT_SOCKET", uri)
    assert endpoint() == address


@pytest.mark.parametrize(
    "uri",
    [
        "", "/run/agent.sock", "unix://run/agent.sock", "unix://host/agent.sock", "unix:relative", "unix:///a?b",
        "unix:///a#b", "unix:///" + "a" * 108, "tcp://localhost:8000", "tcp://10.0.0.1:8000", "tcp://127.0.0.1",
        "tcp://127.0.0.1:8000/path", "tcp://u@127.0.0.1:8000", "tcp://127.0.0.1:99999", "https://127.0.0.1:1",
        "unix:///a\nb", "tcp://[::1",
    ],
)  # fmt: skip
def test_what_is_no_endpoint(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPIFFE_ENDPOINT_SOCKET", raising=False)
    with pytest.raises(InvalidError) as caught:
        endpoint(uri)
    assert caught.value.rule == "identity.endpoint"


# -- answers ---------------------------------------------------------------------------------------------------------


def pkcs8(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def answer(change: Callable[[Any], None] = lambda one: None, root: Root | None = None, **more: Any) -> bytes:
    root = root or Root(DOMAIN)
    key = ec.generate_private_key(ec.SECP256R1())
    cert = root.sign(key.public_key(), root.name, f"spiffe://{DOMAIN}/app", **more)
    message = proto.X509SVIDResponse()
    one = message.svids.add(
        spiffe_id=f"spiffe://{DOMAIN}/app", x509_svid=cert.public_bytes(DER), x509_svid_key=pkcs8(key), bundle=root.der
    )
    change(one)
    return bytes(message.SerializeToString())


def test_an_answer_is_taken_whole() -> None:
    found = read_x509(answer(lambda one: setattr(one, "hint", "internal")), time.time_ns())
    assert ([str(one.spiffe_id) for one in found.svids], found.hints) == ([f"spiffe://{DOMAIN}/app"], ("internal",))
    assert found.svids[0].key_pem not in repr(found)
    assert found.svids[0].expires_ns > time.time_ns()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda one: setattr(one, "x509_svid_key", pkcs8(ec.generate_private_key(ec.SECP256R1()))), "not the cert"),
        (lambda one: setattr(one, "x509_svid_key", b"key"), "cannot be read"),
        (lambda one: setattr(one, "x509_svid_key", b""), "cannot be read"),
        (lambda one: setattr(one, "spiffe_id", f"spiffe://{DOMAIN}/other"), "another SPIFFE ID"),
        (lambda one: setattr(one, "spiffe_id", "spiffe://example.com/app"), ""),
        (lambda one: setattr(one, "spiffe_id", "example.org/app"), ""),
        (lambda one: setattr(one, "bundle", Root(DOMAIN).der), ""),
        (lambda one: setattr(one, "bundle", b""), "no certificate"),
        (lambda one: setattr(one, "x509_svid", b""), "no certificate"),
        (lambda one: setattr(one, "x509_svid", one.x509_svid[:-1]), "cut short"),
        (lambda one: setattr(one, "x509_svid", one.bundle), ""),
    ],
)
def test_an_answer_that_does_not_fit_together_is_refused(change: Callable[[Any], None], why: str) -> None:
    with pytest.raises(NucleusError, match=why or None):
        read_x509(answer(change), time.time_ns())


def test_an_expired_svid_is_refused() -> None:
    data = answer(life=datetime.timedelta(minutes=-2))
    with pytest.raises(NucleusError):
        read_x509(data, time.time_ns())


@pytest.mark.parametrize("data", [b"", b"\xff" * 40, proto.X509SVIDResponse(crl=[b"x"]).SerializeToString()])
def test_what_is_no_answer(data: bytes) -> None:
    with pytest.raises(NucleusError):
        read_x509(data, time.time_ns())


def test_bundles() -> None:
    der = Root(DOMAIN).der
    message = proto.X509BundlesResponse(bundles={f"spiffe://{DOMAIN}": der + der, "example.com": der})
    assert read_x509_bundles(message.SerializeToString()) == {DOMAIN: (der, der), "example.com": (der,)}
    for name in ("spiffe://example.org/path", "EXAMPLE.org", ""):
        with pytest.raises(NucleusError):
            read_x509_bundles(proto.X509BundlesResponse(bundles={name: der}).SerializeToString())
    text = proto.JWTBundlesResponse(bundles={f"spiffe://{DOMAIN}": b'{"keys":[]}'})
    assert read_jwt_bundles(text.SerializeToString()) == {DOMAIN: '{"keys":[]}'}
    for data in (b"[]", b"{", b'{"keys":1}', b"[" * 100_000, b"\xff"):
        with pytest.raises(NucleusError):
            read_jwt_bundles(proto.JWTBundlesResponse(bundles={DOMAIN: data}).SerializeToString())


# -- the wire --------------------------------------------------------------------------------------------------------


class Peer:
    """Serves one connection by `script`, in a thread."""

    def __init__(self, path: Path, script: Callable[[socket.socket], None]) -> None:
        self.uri = f"unix://{path}"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, args=(script,))
        self._thread.start()

    def _serve(self, script: Callable[[socket.socket], None]) -> None:
        sock, _ = self._listener.accept()
        with sock:
            try:
                script(sock)
            except OSError:
                pass  # the client has hung up

    def close(self) -> None:
        self._thread.join(20)
        self._listener.close()


def speak(*data: bytes, end: bool = True, **headers: str) -> Callable[[socket.socket], None]:
    """A gRPC server's answer: these pieces as DATA, then trailers."""

    def script(sock: socket.socket) -> None:
        h2 = H2Connection(H2Configuration(client_side=False))
        h2.initiate_connection()
        sock.sendall(h2.data_to_send())
        asked = False
        while not asked:
            events = h2.receive_data(sock.recv(65_536))
            asked = any(type(event).__name__ == "StreamEnded" for event in events)
        more = {"content-type": "application/grpc", **{name.replace("_", "-"): text for name, text in headers.items()}}
        alone = "grpc-status" in more  # "Trailers-Only"
        h2.send_headers(1, [(":status", more.pop("status", "200")), *more.items()], end_stream=alone)
        for piece in data:
            h2.send_data(1, piece)
        if end and not alone:
            h2.send_headers(1, [("grpc-status", "0")], end_stream=True)
        sock.sendall(h2.data_to_send())
        while sock.recv(65_536):
            pass

    return script


def message(data: bytes) -> bytes:
    return b"\0" + len(data).to_bytes(4) + data


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (lambda sock: sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10), "the connection broke"),
        (lambda sock: sock.recv(65_536), "closed"),
        (lambda sock: sock.sendall(b"\0" * 65_536), "the connection broke"),
        (speak(status="503"), "no gRPC"),
        (speak(content_type="text/html"), "no gRPC"),
        (speak(grpc_encoding="gzip"), "compressed"),
        (speak(b"\1\0\0\0\1x"), "compressed"),
        (speak(b"\0\xff\xff\xff\xff"), "4294967295 bytes"),
        (speak(b"\0\0\0"), "the call ended"),
        (speak(), "the call ended"),
        (speak(grpc_status="7", grpc_message="no%0Aidentity%1B[2J"), "PERMISSION_DENIED: no.identity.\\[2J"),
        (speak(grpc_status="banana"), "the call ended"),
        (speak(message(b"\xff\xff")), "not a message"),
        (speak(message(b""), end=False), "no identity"),
    ],
)
def test_peers_that_are_no_agents(tmp_path: Path, script: Callable[[socket.socket], None], why: str) -> None:
    peer = Peer(tmp_path / "p.sock", script)
    try:
        with pytest.raises(NucleusError, match=why), Client(peer.uri, 5.0) as client:
            client.x509()
    finally:
        peer.close()


def test_one_that_stalls_is_left_in_time(tmp_path: Path) -> None:
    over = threading.Event()
    peer = Peer(tmp_path / "p.sock", lambda sock: sock.close() if not over.wait(20) else None)
    began = time.monotonic()
    try:
        with pytest.raises(RpcError, match=r"no answer within 0\.3 s"), Client(peer.uri, 0.3) as client:
            client.x509()
        assert time.monotonic() - began < 5
    finally:
        over.set()
        peer.close()


def test_a_second_answer_to_a_call_of_one_is_refused(tmp_path: Path) -> None:
    peer = Peer(tmp_path / "p.sock", speak(message(b"a") + message(b"b")))
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(peer.uri.removeprefix("unix://"))
            with pytest.raises(RpcError, match="more than one answer"), Connection(sock, "localhost") as connection:
                connection.call("/a/b", b"", timeout_s=5)
    finally:
        peer.close()


def test_an_answer_of_many_frames_is_joined(tmp_path: Path) -> None:
    text = b"x" * 60_000
    whole = message(text)
    peer = Peer(tmp_path / "p.sock", speak(*(whole[at : at + 10_000] for at in range(0, len(whole), 10_000))))
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(peer.uri.removeprefix("unix://"))
            with Connection(sock, "localhost") as connection:
                assert connection.call("/a/b", b"", timeout_s=5) == text
    finally:
        peer.close()


def test_a_request_is_a_csr_at_most(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with (
        theirs,
        pytest.raises(RpcError, match="longer than a first frame"),
        Connection(ours, "localhost") as connection,
    ):
        connection.call("/a/b", b"x" * 20_000)
    assert grpc_client.MAX_MESSAGE_BYTES < 1 << 24
