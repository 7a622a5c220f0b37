"""A trust domain that is not ours: its own CA and JWT keys, and an HTTPS server that says what a test wants it to."""

from __future__ import annotations

import json
import secrets
import socket
import ssl
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from nucleus.identity import bundle, jwt_svid
from nucleus.identity.ca import CertificateAuthority
from nucleus.identity.jwt_keys import JwtKeys
from nucleus.identity.spiffe_id import SpiffeId
from nucleus.identity.svid import X509Svid
from nucleus.identity.tls import bundle_context


class Domain:
    """A foreign trust domain."""

    def __init__(self, directory: Path, name: str) -> None:
        self.name = name
        now = time.time_ns()
        self.ca = CertificateAuthority.load_or_create(directory / name, name, now=now)
        self.keys = JwtKeys(str(directory / f"{name}.jwt"), now=now)

    def svid(self, path: str) -> X509Svid:
        return self.ca.issue(SpiffeId.parse(f"spiffe://{self.name}{path}"), now=time.time_ns())

    def token(self, path: str, audience: str, name: str = "") -> str:
        kid, key = self.keys.signer(time.time_ns())
        spiffe_id = SpiffeId.parse(f"spiffe://{name or self.name}{path}")
        return jwt_svid.sign(spiffe_id, [audience], key, kid, now=time.time_ns())

    def document(self, sequence: int = 1, **more: Any) -> dict[str, Any]:
        now = time.time_ns()
        keys = json.dumps(jwt_svid.jwks(self.keys.public(now)))
        return {**bundle.document(self.ca.bundle_pem(now), keys, spiffe_sequence=sequence), **more}


def web_certificate(host: str) -> tuple[str, str, str]:
    """(chain, key, root), PEM: what a web CA gives a server."""
    now = datetime.now(UTC)
    key, root_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"web root {secrets.token_hex(4)}")])

    def certificate(subject: x509.Name, public: ec.EllipticCurvePublicKey, *, ca: bool) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=1)).not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )  # fmt: skip
        if not ca:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=True)
        return builder.sign(root_key, hashes.SHA256())

    root = certificate(issuer, root_key.public_key(), ca=True)
    leaf = certificate(x509.Name([]), key.public_key(), ca=False)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    pem = serialization.Encoding.PEM
    return leaf.public_bytes(pem).decode(), private.decode(), root.public_bytes(pem).decode()


class Server:
    """An endpoint on loopback. `body` is what it says, `raw` (if any) instead of all of HTTP."""

    def __init__(self, chain: str, key: str) -> None:
        self.body = "{}"
        self.raw: bytes | None = None
        self.asked = 0
        self._context: ssl.SSLContext = bundle_context(chain, key)
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._door.getsockname()[1]
        self.url = f"https://localhost:{self.port}/"
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def shows(self, chain: str, key: str) -> None:
        self._context = bundle_context(chain, key)

    def says(self, document: dict[str, Any]) -> None:
        self.body = json.dumps(document)

    def _run(self) -> None:
        while True:
            try:
                sock, _ = self._door.accept()
            except OSError:
                return
            with sock:
                sock.settimeout(10)
                try:
                    with self._context.wrap_socket(sock, server_side=True) as tls:
                        if b"\r\n\r\n" not in tls.recv(65_536):
                            continue
                        self.asked += 1
                        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(self.body)}\r\n\r\n"
                        tls.sendall(self.raw if self.raw is not None else (head + self.body).encode())
                        tls.unwrap()
                except OSError:
                    continue

    def close(self) -> None:
        self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()
        self._thread.join(15)
