"""TLS contexts for SVIDs: mutual, version 1.3 only, the key never on a disk; and who the peer proved to be.

Promises: no context made here resumes a session, speaks an older version, or accepts a peer without a certificate.
`authenticate` returns a proven ID or raises `UnauthenticatedError`, whatever the peer sent.
Relies on: OpenSSL for the handshake (the peer holds its key), `verify` for everything that an SVID is beyond X.509.
Does not: read a clock for SVID rules, fetch SVIDs, or own a socket.

Both ends call `authenticate` after the handshake and before they believe or say anything: OpenSSL's own check cannot
bind a root to a trust domain. A client that got through `connect` has proved nothing yet (TLS 1.3: the server may
still refuse it); only an answer shows that it was accepted.

Security steps:
1. TLS 1.3 alone; no tickets, so no session outlives the SVID that opened it; ALPN http/1.1.
2. A certificate is required of the peer; no host names (identity is the SPIFFE ID).
3. The private key reaches OpenSSL through a memfd of this process: no file, no name, gone when closed.
4. `SSLKEYLOGFILE` is not honoured (only ssl.create_default_context does that).
5. The peer's chain is verified again, against its own trust domain's roots, as an SVID.
"""

from __future__ import annotations

import os
import ssl
from typing import Any

from nucleus.errors import InvalidError, NucleusError, UnauthenticatedError
from nucleus.identity.spiffe_id import SpiffeId
from nucleus.identity.svid import Roots, X509Svid
from nucleus.identity.verify import Proven, Role, prove

ALPN = ("http/1.1",)
TlsObject = ssl.SSLObject | ssl.SSLSocket


def server_context(svid: X509Svid, roots: Roots | None = None) -> ssl.SSLContext:
    """A context for our listening side.

    Args:
        svid: ours, with its private key.
        roots: whom to believe; default: our own trust domain's bundle.

    Raises:
        InvalidError: the SVID has no key, or OpenSSL refuses certificate, key or roots.
    """
    return _context(ssl.PROTOCOL_TLS_SERVER, svid, roots)


def client_context(svid: X509Svid, roots: Roots | None = None) -> ssl.SSLContext:
    """A context for our connecting side; see `server_context`. After the handshake call `authenticate`."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, svid, roots)


def _context(protocol: ssl._SSLMethod, svid: X509Svid, roots: Roots | None) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3  # 1
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    if protocol is ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    context.set_alpn_protocols(list(ALPN))
    context.check_hostname = False  # 2
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    trusted = svid.roots() if roots is None else roots
    try:
        for anchors in trusted.values():
            for der in anchors:
                context.load_verify_locations(cadata=der)
        _load_key(context, svid.cert_pem, svid.key_pem)  # 3
    except (ssl.SSLError, ValueError) as error:
        raise InvalidError(f"OpenSSL refuses the SVID ({type(error).__name__})", rule="identity.tls") from error
    return context


def bundle_context(cert_pem: str, key_pem: str) -> ssl.SSLContext:
    """A context for our bundle endpoint, which proves itself and asks for no certificate (SPIFFE_Federation 5.2).

    Raises:
        InvalidError: there is no key, or OpenSSL refuses certificate or key.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3  # 1
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = 0
    context.set_alpn_protocols(list(ALPN))
    try:
        _load_key(context, cert_pem, key_pem)  # 3
    except (ssl.SSLError, ValueError) as error:
        why = "OpenSSL refuses the endpoint's certificate or key"
        raise InvalidError(f"{why} ({type(error).__name__})", rule="identity.tls") from error
    return context


def _load_key(context: ssl.SSLContext, cert_pem: str, key_pem: str) -> None:
    """The standard library takes a path only: give it one that exists nowhere but in this process."""
    if not key_pem:
        raise InvalidError("the SVID has no private key", rule="identity.tls")
    try:
        fd = os.memfd_create("svid", os.MFD_CLOEXEC)
        try:
            with open(fd, "wb", closefd=False) as file:
                file.write(f"{key_pem}\n{cert_pem}".encode())
            # A password function keeps OpenSSL from ever asking on the terminal for an encrypted key.
            context.load_cert_chain(f"/proc/self/fd/{fd}", password=lambda: "")
        finally:
            os.close(fd)
    except ssl.SSLError:  # an OSError too, but it is about the SVID
        raise
    except OSError as error:
        raise NucleusError(f"key cannot be handed to OpenSSL: {error.strerror}", rule="identity.tls") from error


def peer_chain(tls: TlsObject) -> list[bytes]:
    """The chain that OpenSSL built for the peer, DER, the leaf first, its root last.

    Raises:
        UnauthenticatedError: no handshake, no certificate, or a session without one.
    """
    public = getattr(tls, "get_verified_chain", None)  # Python 3.13
    try:
        if public is not None:
            found: list[Any] = list(public())
        else:
            inner: Any = getattr(tls, "_sslobj", None)
            found = [cert.public_bytes(2) for cert in (inner.get_verified_chain() or [])]  # 2: _ssl.ENCODING_DER
    except (AttributeError, ValueError, OSError) as error:
        raise UnauthenticatedError("no verified peer certificate", rule="tls.peer") from error
    if not found:
        raise UnauthenticatedError("the peer showed no certificate", rule="tls.peer")
    return [bytes(der) for der in found]


def authenticate(tls: TlsObject, roots: Roots, now_ns: int, role: Role) -> SpiffeId:
    """The ID that the peer of a finished handshake has proved; see `proven`."""
    return proven(tls, roots, now_ns, role).spiffe_id


def proven(tls: TlsObject, roots: Roots, now_ns: int, role: Role) -> Proven:
    """What the peer of a finished handshake has proved: its ID, its certificate's serial number, and until when.

    Args:
        tls: ``transport.get_extra_info("ssl_object")`` or an SSLSocket.
        roots: as for `verify_svid`.
        now_ns: nanoseconds since the epoch.
        role: what the *peer* is.

    Raises:
        UnauthenticatedError: and never anything else.
    """
    try:
        if tls.version() != "TLSv1.3":
            raise UnauthenticatedError("not TLS 1.3", rule="tls.version")
        if tls.session_reused:
            raise UnauthenticatedError("a resumed session proves nothing now", rule="tls.resumed")
        return prove(peer_chain(tls), roots, now_ns, role=role)  # 5
    except UnauthenticatedError:
        raise
    except Exception as error:  # the door must close, whatever broke
        raise UnauthenticatedError(f"peer cannot be read ({type(error).__name__})", rule="tls.peer") from error


class RotatingServerContext:
    """A listening context whose SVID and roots can be replaced while connections are open.

    One SSLContext per SVID epoch: `context` is what the listener is given once and for all; on each ClientHello its
    `sni_callback` (which OpenSSL calls without SNI too) puts the current epoch in its place. Open connections keep the
    epoch they began with, so none is dropped. Each epoch's context also holds its own trust store.
    """

    def __init__(self, svid: X509Svid, roots: Roots | None = None) -> None:
        self.context = server_context(svid, roots)
        self._install(svid, roots, self.context)
        self.context.sni_callback = self._swap

    def __repr__(self) -> str:
        return f"<RotatingServerContext {self._svid.spiffe_id}, until {self._svid.expires_ns} ns>"

    @property
    def svid(self) -> X509Svid:
        """The SVID that new connections see."""
        return self._svid

    @property
    def roots(self) -> Roots:
        """The roots of the current epoch: give these to `authenticate`."""
        return self._roots

    def update(self, svid: X509Svid, roots: Roots | None = None) -> None:
        """New connections see `svid` from now on. Raises as `server_context`; the old epoch stays then.

        A changed SPIFFE ID is refused (InvalidError): a listener is one identity for life.
        """
        if svid.spiffe_id != self._svid.spiffe_id:
            raise InvalidError("a rotation does not change the SPIFFE ID", rule="identity.rotate")
        self._install(svid, roots, server_context(svid, roots))

    def _install(self, svid: X509Svid, roots: Roots | None, epoch: ssl.SSLContext) -> None:
        self._svid, self._roots, self._epoch = svid, svid.roots() if roots is None else roots, epoch

    def _swap(self, tls: TlsObject, name: str | None, outer: ssl.SSLContext) -> None:
        tls.context = self._epoch
