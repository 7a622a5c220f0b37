"""A signed log of known contents, and the receivers that copies of it go to: each keeps what came, and may be told to
answer otherwise."""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cli.test_audit_read import record  # of our tests
from nucleus.cli.audit import main
from nucleus.store.audit_log import SETTING, AuditLog
from nucleus.store.checkpoints import Checkpoints


class Book:
    """A log in a directory of its own, and a directory for the state of what ships it."""

    def __init__(self, directory: Path, segment: int = 0) -> None:
        self.directory = directory / "log"
        self.state = directory / "state"
        for path in (self.directory, self.state):
            path.mkdir(mode=0o700)
        if segment:
            (self.directory / SETTING).write_text(str(segment))
        self._log = AuditLog(str(self.directory))
        self._checkpoints = Checkpoints(str(self.directory), "nucleus.local")
        self.path = self._log.path
        self.written: list[bytes] = []

    def write(self, count: int, *, sign: bool = True, **more: Any) -> Book:
        for _ in range(count):
            before = self._log.head
            self._log.stage(record(before.seq, **more))
            self._log.write()
            self.written.append(b"")
        if sign:
            self._checkpoints.sign(self._log.tree)
        return self

    def lines(self) -> list[bytes]:
        """The log's, over all of its files."""
        files = [*sorted(self.directory.glob("audit-*.jsonl")), self.directory / "audit.jsonl"]
        return b"".join(file.read_bytes() for file in files).splitlines(keepends=True)

    def close(self) -> None:
        self._log.close()
        self._checkpoints.close()

    def ship(self, to: str, *more: str) -> int:
        """`nucleus-audit ship` once, in this process; its exit code."""
        return main(["ship", "--state", str(self.state), "--log", self.path, "--to", to, *more])

    def sent(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.state / "ship.json").read_text())
        return found


class Web:
    """An HTTP server on loopback. `answer` gets the method, path, headers and body; gives status, headers, body."""

    def __init__(self, answer: Callable[..., tuple[int, dict[str, str], bytes]], context: Any = None) -> None:
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                outer.seen.append((self.command, self.path, headers, body))
                status, more, data = answer(self.command, self.path, headers, body)
                self.send_response(status)
                for name, value in more.items():
                    self.send_header(name, value)
                if "Content-Length" not in more:
                    self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_POST = do_PUT = do_HEAD = handle_any

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()


class Receiver:
    """A syslog receiver: TCP with octet counting, with TLS where there is a context; or a datagram socket at `path`."""

    def __init__(self, context: ssl.SSLContext | None = None, path: str = "") -> None:
        self.messages: list[bytes] = []
        self.hang_up_after = 0  # messages; 0: never
        self.abrupt = False  # TLS ends without its own end
        self._context = context
        self._ended = False
        family, kind = (socket.AF_UNIX, socket.SOCK_DGRAM) if path else (socket.AF_INET, socket.SOCK_STREAM)
        self._socket = socket.socket(family, kind)
        self._socket.bind(path or ("127.0.0.1", 0))
        self._socket.settimeout(0.1)
        self.port = 0 if path else self._socket.getsockname()[1]
        if not path:
            self._socket.listen()
        self._thread = threading.Thread(target=self._datagrams if path else self._serve)
        self._thread.start()

    def _datagrams(self) -> None:
        while not self._ended:
            try:
                self.messages.append(self._socket.recv(1 << 20))
            except TimeoutError:
                continue

    def _serve(self) -> None:
        while not self._ended:
            try:
                found = self._socket.accept()[0]
            except TimeoutError:
                continue
            try:
                if self._context is not None:
                    found.settimeout(5)
                    found = self._context.wrap_socket(found, server_side=True)
                found.settimeout(0.1)
                self._read(found)
                if isinstance(found, ssl.SSLSocket) and not self.abrupt:
                    found.settimeout(5)
                    found = found.unwrap()
            except OSError:
                pass
            finally:
                found.close()

    def _read(self, found: socket.socket) -> None:
        data, count = b"", 0
        while not self._ended:
            try:
                chunk = found.recv(1_024)  # when it hangs up, something is unread
            except TimeoutError:
                continue
            if not chunk:
                return
            data += chunk
            while match := re.match(rb"([1-9][0-9]{0,8}) ", data):
                end = match.end() + int(match[1])
                if len(data) < end:
                    break
                self.messages.append(data[match.end() : end])
                data = data[end:]
                count += 1
                if count == self.hang_up_after:
                    self.hang_up_after = 0
                    return

    def close(self) -> None:
        self._ended = True
        self._thread.join(10)
        self._socket.close()


def certificate(directory: Path, name: str = "localhost") -> tuple[ssl.SSLContext, str]:
    """A server's context, with a certificate for a name; and the file of the root that signed it."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    now = datetime.datetime.now(datetime.UTC)

    def made(subject: str, key: Any, issuer: str, signer: Any, *, ca: bool) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)]))
            .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca, None), critical=True)
        )
        if not ca:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(subject)]), critical=False)
        return builder.sign(signer, hashes.SHA256())

    root_key, leaf_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = made("a root", root_key, "a root", root_key, ca=True)
    leaf = made(name, leaf_key, "a root", root_key, ca=False)
    roots, chain = directory / "roots.pem", directory / "chain.pem"
    roots.write_bytes(root.public_bytes(serialization.Encoding.PEM))
    private = leaf_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    chain.write_bytes(private + leaf.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    return context, str(roots)


def secret(directory: Path, *lines: str) -> str:
    path = directory / f"secret-{os.urandom(4).hex()}"
    path.touch(0o600)
    path.write_text("\n".join(lines) + "\n")
    return str(path)
