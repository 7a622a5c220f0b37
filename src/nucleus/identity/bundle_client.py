"""Fetch a foreign trust domain's bundle from its endpoint (SPIFFE_Federation 5).

Promises: a document comes back only from an endpoint that proved to be the configured one, by one of the two profiles;
it is bounded, and so is the time that it may take, whatever the endpoint sends; a redirect's target proves the same.
Relies on: OpenSSL; `verify` for https_spiffe. Does not: read the document (`bundle`), or keep it (`federation`).

Steps:
1. the URL; a TCP connection within `FETCH_S`, which is for everything together
2. https_web: the certificate is valid for the host's name under the machine's roots, or those that were given [5.2.1]
   https_spiffe: it is an X509-SVID of exactly the configured SPIFFE ID, by that trust domain's bundle [5.2.2]
3. one request; the answer's head and body bounded, its length said by it, status 200
4. a redirect: another valid URL, at most `REDIRECTS`, each from step 1 on, and forgotten afterwards [5.2.1.4]
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import time
from typing import Any
from urllib.parse import urljoin

from nucleus.errors import InvalidError, SandboxError, UnauthenticatedError
from nucleus.identity.bundle import MAX_DOCUMENT_BYTES
from nucleus.identity.federation import SPIFFE, Relationship, check_url
from nucleus.identity.svid import Roots
from nucleus.identity.tls import peer_chain
from nucleus.identity.verify import prove

FETCH_S = 20.0
REDIRECTS = 3
_REDIRECTS = (301, 302, 303, 307, 308)  # RFC 9110 15.4
_HEAD_BYTES = 16_384


def fetch(one: Relationship, roots: Roots) -> str:
    """The endpoint's document.

    Args:
        one: url, profile, endpoint_id and web_roots count.
        roots: https_spiffe: of the endpoint's own trust domain.

    Raises:
        UnauthenticatedError: the endpoint is not the one that was configured.
        InvalidError: it answers with something else than a document.
        SandboxError: rule ``identity.endpoint``: it cannot be reached.
    """
    deadline, url = time.monotonic() + FETCH_S, one.url
    for _ in range(1 + REDIRECTS):
        found, document = _fetched(one, roots, url, deadline)
        if not found:
            return document
        url = found  # 4
    raise InvalidError(f"the endpoint redirects more than {REDIRECTS} times", rule="identity.endpoint")


def _fetched(one: Relationship, roots: Roots, url: str, deadline: float) -> tuple[str, str]:
    """(where it redirects to, "") or ("", its document)."""
    host, port, target = check_url(url)
    try:
        with _connected(host, port, deadline) as raw:  # 1
            raw.settimeout(_left(deadline))
            context = _spiffe_context(roots) if one.profile == SPIFFE else _web_context(one.web_roots)
            with context.wrap_socket(raw, server_hostname=host, suppress_ragged_eofs=False) as tls:
                if one.profile == SPIFFE:
                    _check_endpoint(tls, one.endpoint_id, roots)  # 2
                authority = f"[{host}]" if ":" in host else host
                name = authority if port == 443 else f"{authority}:{port}"
                head = f"GET {target} HTTP/1.1\r\nHost: {name}\r\nAccept: application/json\r\n"
                tls.sendall((head + "Accept-Encoding: identity\r\nConnection: close\r\n\r\n").encode("ascii"))
                location, document = _body(_all(tls, deadline))  # 3
                return urljoin(url, location) if location else "", document
    except ssl.SSLCertVerificationError as error:
        why = error.verify_message or "verification failed"
        raise UnauthenticatedError(f"the endpoint's certificate is refused: {why}", rule="identity.endpoint") from error
    except UnicodeError as error:  # a redirect may name what is no name: a label of 64 letters
        raise InvalidError("the endpoint's URL names no host", rule="identity.endpoint") from error
    except OSError as error:
        raise SandboxError(f"the endpoint cannot be reached: {error}", rule="identity.endpoint") from error


def _connected(host: str, port: int, deadline: float) -> socket.socket:
    """A TCP connection to one of the host's addresses, of which whoever answers for its name may list many."""
    failed: OSError = OSError("it has no address")
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        found = socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol)
        try:
            found.settimeout(_left(deadline))
            found.connect(address)
            return found
        except BaseException as error:
            found.close()
            if not isinstance(error, OSError):
                raise
            failed = error
    raise failed


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # not create_default_context: SSLKEYLOGFILE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    return context


def _web_context(web_roots: str) -> ssl.SSLContext:
    context = _context()
    if web_roots:
        context.load_verify_locations(cadata=web_roots)
    else:
        context.load_default_certs()
    return context


def _spiffe_context(roots: Roots) -> ssl.SSLContext:
    context = _context()
    context.check_hostname = False  # who it is, is its SPIFFE ID
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    for anchors in roots.values():
        for der in anchors:
            context.load_verify_locations(cadata=der)
    return context


def _check_endpoint(tls: ssl.SSLSocket, endpoint_id: str, roots: Roots) -> None:
    found = prove(peer_chain(tls), roots, time.time_ns(), role="server").spiffe_id
    if str(found) != endpoint_id:
        raise UnauthenticatedError(f"the endpoint is {found}, not {endpoint_id} (5.2.2)", rule="identity.endpoint")


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError(f"over {FETCH_S:.0f} s")
    return left


def _all(tls: ssl.SSLSocket, deadline: float) -> bytes:
    found = bytearray()
    while True:
        tls.settimeout(_left(deadline))
        try:
            data = tls.recv(65_536)
        except ssl.SSLEOFError:
            data = b""  # no close_notify: the length that the answer says decides whether it is whole
        if not data:
            return bytes(found)
        found += data
        if len(found) > _HEAD_BYTES + MAX_DOCUMENT_BYTES:
            raise InvalidError(f"the endpoint's answer is over {MAX_DOCUMENT_BYTES} bytes", rule="identity.endpoint")


class _Read:
    """What has been received, as http.client wants a socket."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, *_: Any, **__: Any) -> io.BytesIO:
        return io.BytesIO(self._data)


def _body(data: bytes) -> tuple[str, str]:
    answer = http.client.HTTPResponse(_Read(data))  # type: ignore[arg-type]  # all that it does is makefile
    try:
        with answer:
            answer.begin()
            if answer.status in _REDIRECTS:
                return answer.headers.get("Location") or "/", ""
            if answer.status != 200:
                raise InvalidError(f"the endpoint answers with status {answer.status}", rule="identity.endpoint")
            if answer.length is None and not answer.chunked:
                raise InvalidError("the endpoint does not say how long its answer is", rule="identity.endpoint")
            return "", answer.read().decode("utf-8")
    except (http.client.HTTPException, ValueError, OSError) as error:
        raise InvalidError(
            f"the endpoint's answer is not HTTP ({type(error).__name__})", rule="identity.endpoint"
        ) from (error)
