"""A SPIRE server as the CA above ours: the calls by which a downstream server gets its certificate from it.

What SPIRE's own downstream servers do (its "spire" UpstreamAuthority): the agent on this host says by the Workload API
that we are a downstream entry; with that X.509-SVID we connect to the server, which signs a CA certificate for our
signing request, and takes our JWT keys into the trust domain's bundle.

Steps of `Server`:
 1. TLS 1.3 with our downstream X.509-SVID; nothing is sent before the next step
 2. the server's certificate is an SVID of our trust domain, by the bundle that the agent gave us, and names
    ``spiffe://<trust domain>/spire/server``, nothing else
Promises: our CA's key never leaves the authority: a signing request goes out, certificates come back; they count only
once the authority has checked them (`upstream`).
Relies on: `grpc_client`, `tls`; the messages of spire-api-sdk (``spire.api.server.svid.v1``, ``.bundle.v1``).
Does not: keep anything.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.message import DecodeError

from nucleus.errors import InvalidError, NucleusError, UnauthenticatedError
from nucleus.identity import jwt_svid, tls
from nucleus.identity.bundle import document
from nucleus.identity.grpc_client import Connection, RpcError
from nucleus.identity.svid import X509Svid
from nucleus.identity.workload_client import armour
from nucleus.identity.workload_proto import Messages, message, pool

SERVER_PATH = "/spire/server"
NEW_CA = "/spire.api.server.svid.v1.SVID/NewDownstreamX509CA"
PUBLISH_KEY = "/spire.api.server.bundle.v1.Bundle/PublishJWTAuthority"
_RULE = "identity.spire"
_MAX = 64
_MESSAGES: Messages = {
    "NewDownstreamX509CARequest": (("csr", 1, "bytes"), ("preferred_ttl", 2, "int32")),
    "NewDownstreamX509CAResponse": (("ca_cert_chain", 1, "[bytes]"), ("x509_authorities", 2, "[bytes]")),
    "JWTKey": (("public_key", 1, "bytes"), ("key_id", 2, "text"), ("expires_at", 3, "int64"), ("tainted", 4, "bool")),
    "PublishJWTAuthorityRequest": (("jwt_authority", 1, "JWTKey"),),
    "PublishJWTAuthorityResponse": (("jwt_authorities", 1, "[JWTKey]"),),
}
_pool = pool("nucleus/spire.proto", _MESSAGES)
NewDownstreamX509CARequest = message("NewDownstreamX509CARequest", _pool)
NewDownstreamX509CAResponse = message("NewDownstreamX509CAResponse", _pool)
PublishJWTAuthorityRequest = message("PublishJWTAuthorityRequest", _pool)
PublishJWTAuthorityResponse = message("PublishJWTAuthorityResponse", _pool)


class Server:
    """One connection to a SPIRE server. A context manager.

    Args:
        host: a name or an address.
        port: its API's, 8081 by default in SPIRE.
        svid: of a downstream entry, with its bundle.
        timeout_s: seconds for each step.

    Raises:
        UnauthenticatedError: the peer is not our trust domain's server. RpcError: nobody answers.
    """

    def __init__(self, host: str, port: int, svid: X509Svid, timeout_s: float = 20.0) -> None:
        self._timeout_s = timeout_s
        context = tls.client_context(svid)
        context.set_alpn_protocols(["h2"])
        try:
            plain = socket.create_connection((host, port), timeout_s)
        except OSError as error:
            raise RpcError(14, f"no SPIRE server at {host}:{port}: {error.strerror or error}") from error
        try:
            secured = context.wrap_socket(plain)  # 1
        except OSError as error:  # ssl.SSLError is one
            plain.close()
            why = f"no TLS with the SPIRE server: {getattr(error, 'reason', None) or type(error).__name__}"
            raise UnauthenticatedError(why, rule=_RULE) from error
        try:
            peer = tls.authenticate(secured, svid.roots(), time.time_ns(), "server")  # 2
            wanted = f"spiffe://{svid.spiffe_id.trust_domain}{SERVER_PATH}"
            if str(peer) != wanted:
                raise UnauthenticatedError(f"the peer is {peer}, not {wanted}", rule=_RULE)
        except BaseException:
            secured.close()
            raise
        self._connection = Connection(secured, f"{host}:{port}", "https")

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._connection.__exit__(kind, error, at)

    def new_ca(self, request_pem: str) -> tuple[str, tuple[bytes, ...]]:
        """A certificate for our CA.

        Args:
            request_pem: a signing request (`upstream.request`); the server takes the key of it alone.

        Returns:
            The chain as `upstream` reads it, PEM, ours first and the root last; and all X.509 authorities of the trust
            domain, DER.

        Raises:
            NucleusError: rule ``identity.spire``: refused, or no chain to one of the authorities.
        """
        der = x509.load_pem_x509_csr(request_pem.encode()).public_bytes(serialization.Encoding.DER)
        answer = self._call(NEW_CA, NewDownstreamX509CARequest(csr=der), NewDownstreamX509CAResponse)
        authorities = tuple(answer.x509_authorities)
        if not 0 < len(answer.ca_cert_chain) <= _MAX or not 0 < len(authorities) <= _MAX:
            raise _answer("no certificate, or no authorities")
        return armour([*answer.ca_cert_chain, _root_of(answer.ca_cert_chain, authorities)]), authorities

    def publish(self, kid: str, key: ec.EllipticCurvePublicKey, expires_s: int) -> str:
        """Take one of our JWT keys into the trust domain's bundle; all JWT keys of it, as a JWK set.

        Those of other types than P-256's are left out: no token of theirs is accepted here (JWT-SVID 2.1, ES256 alone).

        Raises:
            NucleusError: rule ``identity.spire``.
        """
        spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        request = PublishJWTAuthorityRequest(
            jwt_authority={"public_key": spki, "key_id": kid, "expires_at": expires_s, "tainted": False}
        )
        answer = self._call(PUBLISH_KEY, request, PublishJWTAuthorityResponse)
        if len(answer.jwt_authorities) > _MAX:
            raise _answer("too many JWT authorities")
        found: dict[str, ec.EllipticCurvePublicKey] = {}
        for one in answer.jwt_authorities:
            try:
                theirs = serialization.load_der_public_key(one.public_key)
            except Exception as error:  # hostile bytes: whatever the parser says, it is no key
                raise _answer("a JWT authority is no key") from error
            if not isinstance(theirs, ec.EllipticCurvePublicKey) or not isinstance(theirs.curve, ec.SECP256R1):
                continue
            if not one.tainted:
                found[one.key_id] = theirs
        return json.dumps(jwt_svid.jwks(found), separators=(",", ":"))

    def _call(self, path: str, request: Any, kind: Any) -> Any:
        try:
            data = self._connection.call(path, request.SerializeToString(), timeout_s=self._timeout_s)
            return kind.FromString(data)
        except DecodeError:
            raise _answer("not a message of SPIRE's") from None


def authorities(der: Iterable[bytes], jwks: str) -> str:
    """The trust domain's keys as a SPIFFE bundle, for the authority. Raises InvalidError: a key is not ECDSA."""
    try:
        return json.dumps(document(armour(der), jwks), separators=(",", ":"))
    except (AssertionError, ValueError) as error:
        raise InvalidError(
            "an X.509 authority of the trust domain is not ECDSA",
            rule=_RULE,
            next_step='Set `ca_key_type = "ec-p256"` at the SPIRE server: RSA is refused here (X509-SVID, ADR 27).',
        ) from error


def _root_of(chain: Iterable[bytes], authorities: Iterable[bytes]) -> bytes:
    """The authority that the chain leads to."""
    try:
        last = x509.load_der_x509_certificate(list(chain)[-1])
    except ValueError:
        raise _answer("its chain is no certificates") from None
    for der in authorities:
        with suppress(ValueError, TypeError, InvalidSignature):  # not this one
            last.verify_directly_issued_by(x509.load_der_x509_certificate(der))
            return der
    raise _answer("its chain leads to none of its authorities")


def _answer(why: str) -> NucleusError:
    return NucleusError(f"the SPIRE server's answer cannot be used: {why}", rule=_RULE)
