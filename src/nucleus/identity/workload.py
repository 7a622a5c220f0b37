"""The Workload socket's decisions: which caller gets which SVID (docs/design.md, "pod's agent -> Workload socket").

Promises: a caller gets the SVID of the pod whose listener it reached, or nothing; every answer comes with the audit
event that has to be appended. Never raises on what a caller sent. Pure: sockets, clock and CA are the authority's.
Relies on: one listener per pod that only its agent compartment can reach, and SO_PEERCRED, which the kernel fills.
Does not: believe anything the caller says of itself; what it says can only make the answer a refusal.

Security steps:
1. The caller is attested by the listener it reached and by its kernel-stamped uid.
2. The request is exactly one known form: known fields, right types, bounded.
3. The ID is the listener's; an ID in the request may only repeat it byte for byte.
4. The answer's own ID is checked again before it leaves.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nucleus.errors import DeniedError, InvalidError, NucleusError, UnauthenticatedError
from nucleus.identity.spiffe_id import MAX_ID_BYTES, SpiffeId
from nucleus.identity.svid import X509Svid

if TYPE_CHECKING:
    import socket

OP = "fetch_x509_svid"
MAX_REQUEST_BYTES = 8_192  # give this to the listener's `frames.Decoder`: no request needs more
_FIELDS = frozenset({"id", "op", "spiffe_id"})
_CREDENTIALS = struct.Struct("=iII")  # struct ucred: pid_t, uid_t, gid_t (unix(7))
_MAX_REQUEST_ID = 2**53 - 1
_SHOWN = 256  # characters of a hostile string that the audit keeps


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end, by the kernel. `pid` is for the audit: it is never a reason to say yes."""

    uid: int
    pid: int


@dataclass(frozen=True, slots=True)
class WorkloadListener:
    """One pod's socket: the pod, the host uid of its agent compartment, the only ID it hands out."""

    pod: str
    expected_uid: int
    spiffe_id: SpiffeId


Issue = Callable[[SpiffeId], X509Svid]


def peer_credentials(sock: socket.socket) -> Peer:
    """The peer of a connected unix socket (SO_PEERCRED). Raises OSError when it is not one."""
    import socket  # weight: only a caller that has a socket gets here

    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, _gid = _CREDENTIALS.unpack(raw)
    return Peer(uid=uid, pid=pid)


def handle_workload_request(
    header: dict[str, Any], peer: Peer, listener: WorkloadListener, issue: Issue
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Answer one request.

    Args:
        header: the frame's header, hostile.
        peer: from `peer_credentials`.
        listener: the socket on which it came.
        issue: makes the SVID of an ID; may raise NucleusError or OSError.

    Returns:
        The reply's header, and the audit event: append it *before* sending the reply; if that fails, send an error.
    """
    request_id = header.get("id")
    number = request_id if type(request_id) is int and 0 <= request_id <= _MAX_REQUEST_ID else 0
    try:
        _attest(peer, listener)  # 1
        _check_form(header, valid_id=number == request_id)  # 2
        _check_identity(header.get("spiffe_id"), listener.spiffe_id)  # 3
        svid = issue(listener.spiffe_id)
        if svid.spiffe_id != listener.spiffe_id:  # 4
            raise NucleusError("the CA answered with another identity", rule="identity.issue")
    except NucleusError as error:
        return _refused(number, header, peer, listener, error)
    except OSError as error:
        return _refused(number, header, peer, listener, NucleusError(f"issue failed: {error}", rule="identity.issue"))
    context = {"expires_ns": svid.expires_ns, "serial": f"{svid.serial:x}"}
    return {"id": number, "ok": svid.to_wire()}, _event("identity.issued", "ok", peer, listener, context)


def _attest(peer: Peer, listener: WorkloadListener) -> None:
    if peer.uid != listener.expected_uid:
        raise UnauthenticatedError(
            f"peer uid {peer.uid} is not {listener.expected_uid}, the pod's agent compartment", rule="identity.uid"
        )


def _check_form(header: dict[str, Any], *, valid_id: bool) -> None:
    unknown = sorted(_printable(name) for name in header if name not in _FIELDS)
    if unknown:
        raise InvalidError(f"unknown fields: {', '.join(unknown)[:_SHOWN]}", rule="identity.fields")
    if not valid_id or type(header.get("id")) is not int:
        raise InvalidError("id is not a small positive integer", rule="identity.fields")
    if header.get("op") != OP:
        raise InvalidError(f"the Workload socket knows one operation, {OP}", rule="identity.op")


def _check_identity(asked: object, own: SpiffeId) -> None:
    if asked is None:
        return
    if not isinstance(asked, str) or len(asked) > MAX_ID_BYTES:
        raise InvalidError("spiffe_id is not bounded text", rule="identity.fields")
    if asked != str(own):  # an ID is no secret: there is nothing for timing to tell
        raise DeniedError("the ID asked for is not this pod's", rule="identity.own_pod")


_PLAIN = {
    InvalidError.code: "The request is not valid.",
    UnauthenticatedError.code: "The caller is not this pod's agent.",
    DeniedError.code: "This identity is not yours.",
}


def _refused(
    number: int, header: dict[str, Any], peer: Peer, listener: WorkloadListener, error: NucleusError
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The agent gets a code and a plain sentence; rule and detail go to the audit alone."""
    asked = header.get("spiffe_id")
    context = {"code": error.code, "rule": error.rule, "reason": _printable(error.message)}
    if isinstance(asked, str):
        context["requested"] = _printable(asked)
    message = _PLAIN.get(error.code, "No identity can be issued now.")
    reply = {"id": number, "error": {"code": error.code, "message": message, "rule": "", "next_step": ""}}
    kinds = {InvalidError.code: "invalid", UnauthenticatedError.code: "identity.refused"}
    kinds[DeniedError.code] = "identity.refused"
    return reply, _event(kinds.get(error.code, "error"), error.code, peer, listener, context)


def _event(event: str, outcome: str, peer: Peer, listener: WorkloadListener, context: dict[str, Any]) -> dict[str, Any]:
    return {
        "event": event,
        "request_id": "",
        "principal": str(listener.spiffe_id),
        "operation": OP,
        "operation_hash": "",
        "decision": "allow" if outcome == "ok" else "deny",
        "outcome": outcome,
        "context": {"pod": listener.pod, "uid": peer.uid, "pid": peer.pid, **context},
    }


def _printable(text: str) -> str:
    """ASCII, escaped, cut: lone surrogates and control characters must not break a log or a terminal."""
    return text[:_SHOWN].encode("unicode_escape").decode("ascii")[:_SHOWN]
