"""A stand-in gate (HTTPS, mutual TLS 1.3) and Workload socket for the SDK's tests: real sockets, scripted answers."""

from __future__ import annotations

import datetime
import http.server
import json
import pathlib
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from nucleus.frames import Decoder, encode

GATE_ID = "spiffe://test.example/ns/default/sa/gate"
AGENT_ID = "spiffe://test.example/ns/default/sa/agent"


def _pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()


class Authority:
    """A P-256 CA that signs whatever a test wants."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "test")])
        self._now = datetime.datetime.now(datetime.UTC)
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        self._cert = (
            self._builder(self._name, self._key.public_key(), datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.bundle = self._cert.public_bytes(serialization.Encoding.PEM).decode()

    def _builder(self, name: x509.Name, public: Any, life: datetime.timedelta) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._now - datetime.timedelta(hours=2))
            .not_valid_after(self._now + life)
        )

    def issue(self, *names: str, seconds: float = 600, dns: str = "") -> tuple[str, str]:
        """A leaf with these URI SANs (and a DNS one): (certificate, key), PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        san: list[x509.GeneralName] = [x509.UniformResourceIdentifier(name) for name in names]
        if dns:
            san.append(x509.DNSName(dns))
        cert = (
            self._builder(x509.Name([]), key.public_key(), datetime.timedelta(seconds=seconds))
            .add_extension(x509.SubjectAlternativeName(san), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        return cert.public_bytes(serialization.Encoding.PEM).decode(), _pem(key)


class Workload:
    """Answers `fetch_x509_svid` with what `reply` returns; counts the fetches."""

    def __init__(self, path: pathlib.Path, reply: Callable[[dict[str, Any]], dict[str, Any] | bytes]) -> None:
        self.endpoint = f"unix://{path}"
        self.requests: list[dict[str, Any]] = []
        self._reply = reply
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.bind(str(path))
        self._sock.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._sock.accept()
            except OSError:
                return
            with peer:
                decoder = Decoder()
                frames: list[Any] = []
                while not frames:
                    data = peer.recv(65536)
                    if not data:
                        break
                    frames = list(decoder.feed(data))
                if frames:
                    self.requests.append(frames[0].header)
                    answer = self._reply(frames[0].header)
                    peer.sendall(answer if isinstance(answer, bytes) else encode({"id": 1, **answer}))

    def close(self) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        self._thread.join()


Handler = Callable[[str, dict[str, Any]], tuple[int, dict[str, Any] | bytes]]


@dataclass
class Seen:
    """One request as the gate saw it."""

    path: str
    body: dict[str, Any]
    peer: str
    port: int
    tls: str


@dataclass
class StandInGate:
    """An HTTPS server whose `handler(kind, body)` returns (status, body)."""

    authority: Authority
    handler: Handler
    names: tuple[str, ...] = (GATE_ID,)
    dns: str = ""
    tls12: bool = False
    seen: list[Seen] = field(default_factory=list)
    hung_up: threading.Event = field(default_factory=threading.Event)
    drop: bool = False  # hang up without an answer

    def start(self, tmp: pathlib.Path) -> StandInGate:
        cert, key = self.authority.issue(*self.names, dns=self.dns)
        chain = tmp / f"gate-{time.monotonic_ns()}.pem"
        chain.write_text(cert + key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if self.tls12:
            context.maximum_version = ssl.TLSVersion.TLSv1_2
        else:
            context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.num_tickets = 0
        context.load_cert_chain(chain)
        context.load_verify_locations(cadata=self.authority.bundle)
        context.verify_mode = ssl.CERT_REQUIRED
        gate = self

        class Door(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                self._answer({})

            def do_POST(self) -> None:
                self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def _answer(self, body: dict[str, Any]) -> None:
                peer = dict(self.connection.getpeercert()["subjectAltName"])["URI"]
                gate.seen.append(Seen(self.path, body, peer, self.client_address[1], self.connection.version()))
                if gate.drop:
                    self.close_connection = True
                    return
                status, reply = gate.handler(self.path.rpartition("/")[2], body)
                raw = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *args: Any) -> None:
                pass

        class Quiet(http.server.ThreadingHTTPServer):
            daemon_threads = False

            def get_request(self) -> Any:
                sock, address = super().get_request()
                sock.settimeout(10)
                return context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False), address

            def handle_error(self, request: Any, client_address: Any) -> None:
                gate.hung_up.set()

        self._server = Quiet(("127.0.0.1", 0), Door)
        self.url = f"https://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        return self

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def ok(result: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """A reply of the gate as docs/design.md has it."""
    return 200, {"request_id": "r-1", "status": "ok", "result": result, "audit": 7, "cost": 3}


def no(status: int, code: str, reason: str) -> tuple[int, dict[str, Any]]:
    """A refusal of the gate."""
    return status, {"error": reason, "kind": code, "request_id": "r-2", "operation": "run", "audit": 8}
