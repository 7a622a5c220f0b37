"""The agent's X.509-SVID: fetched from the pod's Workload socket, turned into a TLS context, checked against the gate.

Promises:
 1. the private key is never written to a file system: it reaches OpenSSL through a memfd that is closed at once;
 2. TLS 1.3 only, the peer's certificate required and verified against the bundle that came with the SVID;
 3. after the handshake the peer must carry exactly one URI SAN, and it must be the gate's SPIFFE ID (NUCLEUS_GATE_ID);
 4. an SVID is fetched again once half of its life is over, and never used after its expiry.
Relies on: the Workload listener, which attests the caller; /proc of this compartment (for step 1).
Does not: verify the SVID's own profile (X509-SVID section 5): the gate does, on its side of the wire.
"""

from __future__ import annotations

import errno
import importlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nucleus.sdk import wire

ENDPOINT_ENV = "NUCLEUS_WORKLOAD_SOCKET"  # unix:///path of the small protocol, beside the standard's gRPC
STANDARD_ENV = "SPIFFE_ENDPOINT_SOCKET"  # the standard's Workload API: a SPIRE agent's, or ours (ADR 27)
DEFAULT_ENDPOINT = "unix:///run/nucleus/workload.sock"
FETCH_TIMEOUT_S = 10.0
_MFD_NOEXEC_SEAL = 8  # memfd_create(2)
_MAX_REPLY = 262_144  # bytes; a chain, a key and a bundle


class IdentityError(Exception):
    """No usable identity: the Workload socket refused, lied, or the peer is not the gate."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


@dataclass(frozen=True)
class Svid:
    """One X.509-SVID. Times are nanoseconds since the epoch."""

    spiffe_id: str
    cert_pem: str = field(repr=False)
    key_pem: str = field(repr=False)
    bundle_pem: str = field(repr=False)
    expires_ns: int = 0
    fetched_ns: int = 0

    def refresh_ns(self) -> int:
        """When half of the life that was left at the fetch is over."""
        return self.fetched_ns + max(0, self.expires_ns - self.fetched_ns) // 2


def socket_path(endpoint: str | None = None) -> str:
    """The path of a ``unix:///…`` endpoint (default: the environment, then ours). Raises IdentityError."""
    endpoint = endpoint or os.environ.get(ENDPOINT_ENV) or DEFAULT_ENDPOINT
    if not endpoint.startswith("unix:///") or "\0" in endpoint:
        raise IdentityError("bad_endpoint", f"{ENDPOINT_ENV} must look like unix:///path")
    return endpoint[len("unix://") :]


def fetch(endpoint: str | None = None, spiffe_id: str = "", timeout_s: float = FETCH_TIMEOUT_S) -> Svid:
    """Ask the Workload socket for our SVID; where there is none of ours, the one that SPIFFE_ENDPOINT_SOCKET names.

    Args:
        endpoint: ``unix:///path``; default from the environment.
        spiffe_id: ask for this ID (the listener refuses any but the pod's own); "" for whatever is ours.
        timeout_s: seconds for the whole exchange's every step.

    Raises:
        IdentityError: with the listener's own code (``denied``), ``unreachable``, or ``bad_reply``.
    """
    if not endpoint and not os.environ.get(ENDPOINT_ENV) and os.environ.get(STANDARD_ENV):
        return _fetch_standard(spiffe_id, timeout_s)
    request: dict[str, Any] = {"id": 1, "op": "fetch_x509_svid"}
    if spiffe_id:
        request["spiffe_id"] = spiffe_id
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(timeout_s)
        try:
            sock.connect(socket_path(endpoint))
            sock.sendall(wire.encode(request))
            answer = wire.receive(sock, wire.Reader(_MAX_REPLY))
        except ValueError as error:
            raise IdentityError("bad_reply", str(error)) from error
        except OSError as error:
            raise IdentityError("unreachable", f"workload socket: {error}") from error
    if answer is None:
        raise IdentityError("unreachable", "the workload socket closed without an answer")
    return _parse(answer[0])


def _fetch_standard(spiffe_id: str, timeout_s: float) -> Svid:
    """By the standard's gRPC, which needs more than this package: the whole of Nucleus, as on a host."""
    try:
        client = importlib.import_module("nucleus.identity.workload_client")
    except ImportError as error:
        why = f"{STANDARD_ENV} wants the whole of Nucleus installed, or a Source with a fetcher of yours"
        raise IdentityError("no_client", why) from error
    try:
        return _parse({"ok": client.fetch_for_sdk(None, spiffe_id, timeout_s)})
    except Exception as error:
        if not hasattr(error, "rule"):
            raise
        raise IdentityError(str(getattr(error, "code", "denied")), str(error)) from error


def _parse(header: dict[str, Any]) -> Svid:
    error = header.get("error")
    if isinstance(error, dict):
        raise IdentityError(str(error.get("code", "denied")), str(error.get("message", "refused")))
    ok = header.get("ok")
    names = ("spiffe_id", "cert_pem", "key_pem", "bundle_pem")
    if not isinstance(ok, dict) or not all(isinstance(ok.get(name), str) and ok[name] for name in names):
        raise IdentityError("bad_reply", "the workload socket's answer is no SVID")
    expires = ok.get("expires_ns")
    if isinstance(expires, bool) or not isinstance(expires, int):
        raise IdentityError("bad_reply", "the SVID has no expiry")
    spiffe_id, cert, key, bundle = (ok[name] for name in names)
    return Svid(spiffe_id, cert, key, bundle, expires, time.time_ns())


def tls_context(svid: Svid) -> ssl.SSLContext:
    """A client context for this SVID (steps 1 and 2). Raises IdentityError when the PEM is not usable."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # A SPIFFE peer is named by its URI SAN, not by a host name: `check_peer` does it (step 3).
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.maximum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(cadata=svid.bundle_pem)
        fd = _memfd()
        try:
            with open(fd, "wb", closefd=False) as chain:
                chain.write((svid.cert_pem.rstrip("\n") + "\n" + svid.key_pem).encode("ascii"))
            # Opening through /proc gives OpenSSL a description of its own, at offset 0, for each of its two reads.
            context.load_cert_chain(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise IdentityError("bad_svid", f"the SVID cannot be loaded: {type(error).__name__}") from error
    return context


def _memfd() -> int:
    try:
        return os.memfd_create("svid", os.MFD_CLOEXEC | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:  # kernels before 6.3 do not know the flag, those after may insist on it
            raise
        return os.memfd_create("svid", os.MFD_CLOEXEC)


def check_peer(sock: ssl.SSLSocket, gate_id: str) -> None:
    """Step 3. Raises IdentityError unless the peer's only URI SAN, and only SAN, is `gate_id`."""
    certificate = sock.getpeercert() or {}
    names = tuple(certificate.get("subjectAltName", ()))
    if not gate_id or names != (("URI", gate_id),):
        raise IdentityError("wrong_peer", f"the peer is not {gate_id or 'a named gate (NUCLEUS_GATE_ID is unset)'}")


class Source:
    """Keeps one SVID and its TLS context fresh (step 4). Safe to share between threads."""

    def __init__(
        self,
        endpoint: str | None = None,
        fetcher: Callable[[], Svid] | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._fetch = fetcher or (lambda: fetch(endpoint))
        self._clock_ns = clock_ns
        self._lock = threading.Lock()
        self._current: tuple[Svid, ssl.SSLContext] | None = None

    def current(self) -> tuple[Svid, ssl.SSLContext]:
        """The SVID to use now and its context. Raises IdentityError when there is none that is still valid."""
        with self._lock:
            held, now = self._current, self._clock_ns()
            if held is not None and now < held[0].refresh_ns():
                return held
            try:
                svid = self._fetch()
                if svid.expires_ns <= now:
                    raise IdentityError("expired", "the SVID that was issued is expired already")
                self._current = held = (svid, tls_context(svid))
            except IdentityError:
                # Between half-life and expiry the old one is still good: the next call tries again.
                if held is None or now >= held[0].expires_ns:
                    raise
            return held
