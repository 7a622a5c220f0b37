"""A stand-in for SPIRE, agent and server, by SPIRE's own public messages: no SPIRE can be had where these tests run.

The agent serves the Workload API on a unix socket; the server, over TLS with an SVID named as SPIRE's is, signs
downstream CAs and takes JWT keys. `Spire` runs both in a thread; `change` is called there and pushes what is new.
"""

from __future__ import annotations

import asyncio
import datetime
import os
import ssl
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError
from grpclib.server import Server, Stream

from nucleus.identity import jwt_svid
from nucleus.identity import spire as messages
from nucleus.identity import workload_proto as proto

DER, PEM = serialization.Encoding.DER, serialization.Encoding.PEM
HOUR = datetime.timedelta(hours=1)


def key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(not ca, False, False, False, False, ca, ca, False, False)


class Root:
    """An X.509 authority as SPIRE makes one: all of them have the same subject."""

    def __init__(self, domain: str) -> None:
        self.domain = domain
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name(
            [
                x509.NameAttribute(x509.NameOID.COUNTRY_NAME, "US"),
                x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "SPIFFE"),
            ]
        )
        self.cert = self.sign(self.key.public_key(), self.name, f"spiffe://{domain}", ca=True)
        self.der = self.cert.public_bytes(DER)

    def sign(
        self, key: Any, subject: x509.Name, uri: str, *, ca: bool = False, life: datetime.timedelta = 24 * HOUR
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - HOUR)
            .not_valid_after(now + life)
            .add_extension(x509.BasicConstraints(ca, None), critical=True)
            .add_extension(key_usage(ca=ca), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False)
        )
        if key != self.key.public_key():
            identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
            builder = builder.add_extension(identifier, critical=False)
        if not ca:
            usages = [x509.ExtendedKeyUsageOID.SERVER_AUTH, x509.ExtendedKeyUsageOID.CLIENT_AUTH]
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        return builder.sign(self.key, hashes.SHA256())


class Spire:
    """A trust domain with one agent and one server; see the module.

    Attributes:
        roots: its X.509 authorities, the one that signs first.
        names: whom the agent takes the caller for.
        jwt: the bundle's JWT keys, by ID.
        asked: how often a CA was signed. The other attributes make it lie.
    """

    def __init__(self, domain: str, directory: Path, *, server_path: str = "/spire/server") -> None:
        self.domain = domain
        self.socket = str(directory / "agent.sock")
        self.roots = [Root(domain)]
        self.names = ["/nucleus"]
        self.jwt: dict[str, ec.EllipticCurvePublicKey] = {}
        self.federated: dict[str, bytes] = {}
        self.asked = 0
        self.life = 24 * HOUR
        self.forge: Callable[[Any], Any] = lambda answer: answer
        self.sign_with: Root | None = None
        self._server_path = server_path
        self._changed: list[asyncio.Event] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.port = self._do(self._start())

    def _do(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    def change(self, what: Callable[[], Any]) -> None:
        async def inside() -> None:
            what()
            for one in self._changed:
                one.set()

        self._do(inside())

    def close(self) -> None:
        async def inside() -> None:
            for one in (self._agent, self._server):
                one.close()
                await one.wait_closed()

        self._do(inside())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def svid(self, path: str, root: Root | None = None) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = (root or self.roots[0]).name
        return (root or self.roots[0]).sign(key.public_key(), subject, f"spiffe://{self.domain}{path}", life=HOUR), key

    async def _start(self) -> int:
        self._agent = Server([SimpleNamespace(__mapping__=self._agent_calls)])
        await self._agent.start(path=self.socket)
        os.chmod(self.socket, 0o666)
        self._server = Server([SimpleNamespace(__mapping__=self._server_calls)])
        first = self._tls()
        first.sni_callback = lambda tls, name, outer: setattr(tls, "context", self._tls())  # as its roots are now
        await self._server.start("127.0.0.1", 0, ssl=first)
        assert self._server._server is not None
        return int(self._server._server.sockets[0].getsockname()[1])

    def _tls(self) -> ssl.SSLContext:
        cert, key = self.svid(self._server_path)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["h2"])
        context.verify_mode = ssl.CERT_REQUIRED
        for one in self.roots:
            context.load_verify_locations(cadata=one.cert.public_bytes(PEM).decode())
        with tempfile.NamedTemporaryFile() as file:
            file.write(cert.public_bytes(PEM))
            file.write(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
            file.flush()
            context.load_cert_chain(file.name)
        return context

    # -- the agent -------------------------------------------------------------------------------------------------

    def _agent_calls(self) -> dict[str, Handler]:
        def stream(name: str, make: Callable[[], Any]) -> tuple[str, Handler]:
            async def serve(stream: Stream[Any, Any]) -> None:
                if stream.metadata is None or stream.metadata.get("workload.spiffe.io") != "true":
                    raise GRPCError(Status.INVALID_ARGUMENT, "security header missing")
                await stream.recv_message()
                if not self.names:
                    raise GRPCError(Status.PERMISSION_DENIED, "no identity issued")
                event = asyncio.Event()
                self._changed.append(event)
                while True:
                    event.clear()
                    await stream.send_message(self.forge(make()))
                    await event.wait()

            kinds = proto.message(f"{name}Request"), proto.message(f"{name}Response")
            return f"/SpiffeWorkloadAPI/Fetch{name}", Handler(serve, Cardinality.UNARY_STREAM, *kinds)

        return dict(
            (
                stream("X509SVID", self._x509),
                stream("X509Bundles", self._x509_bundles),
                stream("JWTBundles", self._jwt_bundles),
            )
        )

    def _x509(self) -> Any:
        answer = proto.X509SVIDResponse(federated_bundles=self.federated)
        for path in self.names:
            cert, key = self.svid(path)
            answer.svids.add(
                spiffe_id=f"spiffe://{self.domain}{path}",
                x509_svid=cert.public_bytes(DER),
                x509_svid_key=key.private_bytes(DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
                bundle=b"".join(one.der for one in self.roots),
            )
        return answer

    def _x509_bundles(self) -> Any:
        own = {f"spiffe://{self.domain}": b"".join(one.der for one in self.roots)}
        return proto.X509BundlesResponse(bundles={**own, **self.federated})

    def _jwt_bundles(self) -> Any:
        import json

        return proto.JWTBundlesResponse(
            bundles={f"spiffe://{self.domain}": json.dumps(jwt_svid.jwks(self.jwt)).encode()}
        )

    # -- the server ------------------------------------------------------------------------------------------------

    def _server_calls(self) -> dict[str, Handler]:
        async def new_ca(stream: Stream[Any, Any]) -> None:
            request = await stream.recv_message()
            assert request is not None
            csr = x509.load_der_x509_csr(request.csr)
            root = self.sign_with or self.roots[0]
            made = root.sign(csr.public_key(), csr.subject, f"spiffe://{self.domain}", ca=True, life=self.life)
            self.asked += 1
            answer = messages.NewDownstreamX509CAResponse(
                ca_cert_chain=[made.public_bytes(DER)], x509_authorities=[one.der for one in [root, *self.roots]]
            )
            await stream.send_message(self.forge(answer))

        async def publish(stream: Stream[Any, Any]) -> None:
            request = await stream.recv_message()
            assert request is not None
            key = serialization.load_der_public_key(request.jwt_authority.public_key)
            assert isinstance(key, ec.EllipticCurvePublicKey)
            assert request.jwt_authority.expires_at > time.time()
            self.jwt[request.jwt_authority.key_id] = key
            for one in self._changed:
                one.set()
            answer = messages.PublishJWTAuthorityResponse()
            for kid, one in self.jwt.items():
                spki = one.public_bytes(DER, serialization.PublicFormat.SubjectPublicKeyInfo)
                answer.jwt_authorities.add(public_key=spki, key_id=kid)
            await stream.send_message(answer)

        unary = Cardinality.UNARY_UNARY
        return {
            messages.NEW_CA: Handler(
                new_ca, unary, messages.NewDownstreamX509CARequest, messages.NewDownstreamX509CAResponse
            ),
            messages.PUBLISH_KEY: Handler(
                publish, unary, messages.PublishJWTAuthorityRequest, messages.PublishJWTAuthorityResponse
            ),
        }
