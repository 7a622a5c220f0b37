"""The SPIFFE Workload API as a client: what an agent of somebody else's (SPIRE's, or our own) says that we are.

Promises: nothing of an answer is used before it has been verified: a key belongs to its certificate, a chain to the
bundle that came with it, an ID to the certificate, a token to its ID; everything is bounded. Another endpoint than a
unix socket, or TCP on loopback, is refused: private keys travel on it.
Relies on: `grpc_client`, `workload_proto`; the endpoint, which says by the kernel who we are.
Does not: keep anything, or decide what the answer is good for.

Endpoints (SPIFFE_Workload_Endpoint 4): ``unix:///path``, ``tcp://127.0.0.1:port``; default ``SPIFFE_ENDPOINT_SOCKET``.
"""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError

from nucleus.errors import InvalidError, NucleusError, UnauthenticatedError
from nucleus.identity import workload_proto as proto
from nucleus.identity.der import pem, split
from nucleus.identity.grpc_client import Connection, RpcError, Stream
from nucleus.identity.spiffe_id import SpiffeId
from nucleus.identity.svid import Roots, X509Svid
from nucleus.identity.verify import prove

ENDPOINT_ENV = "SPIFFE_ENDPOINT_SOCKET"
MAX_SVIDS = 64
MAX_BUNDLES = 64
_HEADER = (("workload.spiffe.io", "true"),)
_UNIX_PATH = 107  # bytes: sockaddr_un


@dataclass(frozen=True, slots=True)
class Identities:
    """One answer of FetchX509SVID, verified.

    Attributes:
        svids: the first is the default (Workload API 8).
        hints: of each, "" where there is none.
        federated: other trust domains' roots.
    """

    svids: tuple[X509Svid, ...] = field(repr=False)
    hints: tuple[str, ...]
    federated: Roots


def endpoint(text: str | None = None) -> str | tuple[str, int]:
    """The address in an endpoint's URI: a path, or a loopback address and a port.

    Args:
        text: the URI; None: that of the environment.

    Raises:
        InvalidError: rule ``identity.endpoint``.
    """
    text = os.environ.get(ENDPOINT_ENV, "") if text is None else text
    if not text:
        raise _endpoint(f"no endpoint is given and {ENDPOINT_ENV} is not set")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise _endpoint("the endpoint is no URI") from None
    if parts.query or parts.fragment or "?" in text or "#" in text or not text.isprintable():
        raise _endpoint("an endpoint has no query and no fragment")
    if parts.scheme == "unix":
        path = text.removeprefix("unix://") if text.startswith("unix://") else text.removeprefix("unix:")
        if parts.netloc or not path.startswith("/") or len(os.fsencode(path)) > _UNIX_PATH:
            raise _endpoint("a unix endpoint is unix:///absolute/path, without an authority")
        return path
    if parts.scheme != "tcp" or not parts.hostname or port is None or parts.path or "@" in parts.netloc:
        raise _endpoint("an endpoint is unix:///path or tcp://ADDRESS:PORT")
    try:
        address = ipaddress.ip_address(parts.hostname)
    except ValueError:
        raise _endpoint("a tcp endpoint has an IP address, not a name") from None
    if not address.is_loopback:
        raise _endpoint("private keys travel in clear to a Workload API: a tcp endpoint is on loopback alone")
    return str(address), port


class Client:
    """One connection to an endpoint. A context manager.

    Raises:
        InvalidError: not an endpoint. RpcError: nobody answers there.
    """

    def __init__(self, uri: str | None = None, timeout_s: float = 10.0) -> None:
        self._timeout_s = timeout_s
        address = endpoint(uri)
        family = socket.AF_UNIX
        if not isinstance(address, str):
            family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.settimeout(timeout_s)
            sock.connect(address)
        except OSError as error:
            sock.close()
            raise RpcError(14, f"no Workload API at {uri or os.environ.get(ENDPOINT_ENV)}: {error.strerror}") from error
        self._connection = Connection(sock, "localhost")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._connection.__exit__(kind, error, at)

    def fileno(self) -> int:
        """For select(2)."""
        return self._connection.fileno()

    def x509(self) -> Identities:
        """Our X.509-SVIDs now. Raises NucleusError: refused, or not what it should be."""
        stream = self._stream("FetchX509SVID", proto.X509SVIDRequest())
        try:
            return read_x509(self._first(stream), time.time_ns())
        finally:
            stream.cancel()

    def x509_bundles(self) -> Roots:
        """The roots of each trust domain that we are told of. Raises NucleusError."""
        stream = self.watch_x509_bundles()
        try:
            return read_x509_bundles(self._first(stream))
        finally:
            stream.cancel()

    def watch_x509_bundles(self) -> Stream:
        """The same, again whenever it changes: messages for `read_x509_bundles`. Raises RpcError."""
        return self._stream("FetchX509Bundles", proto.X509BundlesRequest())

    def jwt_bundles(self) -> dict[str, str]:
        """The JWT keys of each trust domain, a JWK set as JSON text. Raises NucleusError."""
        stream = self._stream("FetchJWTBundles", proto.JWTBundlesRequest())
        try:
            return read_jwt_bundles(self._first(stream))
        finally:
            stream.cancel()

    def jwt(self, audience: list[str], spiffe_id: str = "") -> list[tuple[str, str, str]]:
        """Tokens for an audience: SPIFFE ID, token, hint of each.

        Not verified: whom they are for does that, and the bundle may not have their key yet. Raises NucleusError.
        """
        request = proto.JWTSVIDRequest(audience=audience, spiffe_id=spiffe_id)
        answer = self._call("FetchJWTSVID", request, proto.JWTSVIDResponse)
        if not 0 < len(answer.svids) <= MAX_SVIDS:
            raise _answer("no token, or too many")
        return [(str(SpiffeId.parse(one.spiffe_id)), _token(one.svid), one.hint) for one in answer.svids]

    def validate(self, token: str, audience: str) -> tuple[str, dict[str, Any]]:
        """What the endpoint says of a token: its SPIFFE ID and all its claims. Raises NucleusError: it is not valid."""
        request = proto.ValidateJWTSVIDRequest(audience=audience, svid=token)
        answer = self._call("ValidateJWTSVID", request, proto.ValidateJWTSVIDResponse)
        return str(SpiffeId.parse(answer.spiffe_id)), MessageToDict(answer.claims)

    def _first(self, stream: Stream) -> bytes:
        message = stream.next(self._timeout_s)
        if message is None:
            raise RpcError(4, f"no answer within {self._timeout_s:g} s")
        return message

    def _stream(self, name: str, request: Any) -> Stream:
        return self._connection.stream(f"/{proto.SERVICE}/{name}", request.SerializeToString(), metadata=_HEADER)

    def _call(self, name: str, request: Any, kind: Any) -> Any:
        path = f"/{proto.SERVICE}/{name}"
        data = self._connection.call(path, request.SerializeToString(), metadata=_HEADER, timeout_s=self._timeout_s)
        return _parse(kind, data)


def read_x509(data: bytes, now_ns: int) -> Identities:
    """An X509SVIDResponse, verified.

    Steps, for each identity (X509-SVID 5; Workload API 5.2.1):
     1. its ID, a chain of certificates, a PKCS#8 key and a bundle are there
     2. the chain verifies as an SVID against that bundle, for the trust domain of its own ID
     3. the ID in the certificate is the one that is said
     4. the key is the certificate's

    Raises:
        NucleusError: rule ``identity.answer``, or that of the clause that does not hold.
    """
    answer = _parse(proto.X509SVIDResponse, data)
    if not 0 < len(answer.svids) <= MAX_SVIDS:
        raise _answer("no identity, or too many")
    svids = tuple(_svid(one, now_ns) for one in answer.svids)
    return Identities(svids, tuple(one.hint[:256] for one in answer.svids), _roots(answer.federated_bundles))


def read_x509_bundles(data: bytes) -> Roots:
    """An X509BundlesResponse. Raises NucleusError."""
    return _roots(_parse(proto.X509BundlesResponse, data).bundles)


def read_jwt_bundles(data: bytes) -> dict[str, str]:
    """A JWTBundlesResponse: each set is JSON with a list of keys, of which more is not looked at here."""
    found = {}
    bundles = _parse(proto.JWTBundlesResponse, data).bundles
    for name in sorted(bundles)[: MAX_BUNDLES + 1]:
        try:
            if not isinstance(json.loads(bundles[name])["keys"], list):
                raise TypeError
        except (ValueError, KeyError, TypeError, RecursionError):
            raise _answer("a JWT bundle is no JWK set") from None
        found[_domain(name)] = bundles[name].decode()
    if not found or len(found) > MAX_BUNDLES:
        raise _answer("no bundle, or too many")
    return found


def fetch_for_sdk(uri: str | None, spiffe_id: str, timeout_s: float) -> dict[str, Any]:
    """The SVID for `nucleus.sdk.identity`, in the form of its own protocol. `spiffe_id` "": the default.

    Raises:
        UnauthenticatedError: there is none of that ID. NucleusError: as `Client.x509`.
    """
    with Client(uri, timeout_s) as client:
        for one in client.x509().svids:
            if spiffe_id in ("", str(one.spiffe_id)):
                return one.to_wire()
    raise UnauthenticatedError("the Workload API has no SVID of that ID for us", rule="identity.answer")


def _svid(one: Any, now_ns: int) -> X509Svid:
    said = SpiffeId.parse(one.spiffe_id)  # 1
    chain, bundle = _certificates(one.x509_svid), _certificates(one.bundle)
    proven = prove(chain, {said.trust_domain: tuple(bundle)}, now_ns, role="client")  # 2
    if proven.spiffe_id != said:  # 3
        raise _answer("the certificate has another SPIFFE ID than was said")
    try:
        key = serialization.load_der_private_key(one.x509_svid_key, None)
        leaf = x509.load_der_x509_certificate(chain[0])
    except Exception as error:  # whatever the parser says, it is no key
        raise _answer("the private key cannot be read") from error
    if key.public_key() != leaf.public_key():  # 4
        raise _answer("the private key is not the certificate's")
    pkcs8 = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    expires_ns = round(leaf.not_valid_after_utc.timestamp()) * 1_000_000_000
    return X509Svid(said, armour(chain), pkcs8.decode(), armour(bundle), expires_ns, now_ns, leaf.serial_number)


def armour(certificates: Iterable[bytes]) -> str:
    """PEM of certificates (RFC 7468)."""
    return "".join(pem("CERTIFICATE", one) for one in certificates)


def _certificates(data: bytes) -> list[bytes]:
    if not data:
        raise _answer("no certificate")
    return split(data)


def _roots(bundles: Any) -> Roots:
    if len(bundles) > MAX_BUNDLES:
        raise _answer("too many bundles")
    return {_domain(name): tuple(_certificates(bundles[name])) for name in sorted(bundles)}


def _domain(name: str) -> str:
    found = SpiffeId.parse(name if name.startswith("spiffe://") else f"spiffe://{name}")
    if found.path:
        raise _answer("a bundle is not named by a trust domain")
    return found.trust_domain


def _token(text: str) -> str:
    if not text or len(text) > 65_536 or not text.isascii() or not text.isprintable():
        raise _answer("a token is no compact JWS")
    return text


def _parse(kind: Any, data: bytes) -> Any:
    try:
        return kind.FromString(data)
    except DecodeError:
        raise _answer("not a message of the Workload API") from None


def _answer(why: str) -> NucleusError:
    return NucleusError(f"the Workload API's answer cannot be used: {why}", rule="identity.answer")


def _endpoint(why: str) -> InvalidError:
    step = f"Set {ENDPOINT_ENV}=unix:///path/of/the/agent.sock, or give --socket."
    return InvalidError(why, rule="identity.endpoint", next_step=step)
