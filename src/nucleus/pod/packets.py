"""JSON packets with descriptors over `SOCK_SEQPACKET`: the builder's language with its children and launchers.

Promises: one packet is one JSON object of at most `PACKET_BYTES` with at most `MAX_FDS` descriptors; every received
descriptor is close-on-exec and either returned to the caller or closed before an error leaves this module; a packet
or a control message that the kernel had to cut is refused. EOF is an empty list and None, never an exception.
Relies on: `sendmsg`/`recvmsg` with SCM_RIGHTS (unix(7)); a seqpacket is received whole or marked MSG_TRUNC.
Does not: authenticate. Who holds the other end is the caller's business (DESIGN section 2).
"""

from __future__ import annotations

import os
import sys

# The half of `socket` that is C: the other half (enum, selectors) and json would be 11 of the launcher's 24 ms.
from _socket import CMSG_SPACE, MSG_CMSG_CLOEXEC, MSG_CTRUNC, MSG_NOSIGNAL, MSG_TRUNC, SCM_RIGHTS, SO_SNDBUF, SOL_SOCKET

from nucleus.errors import InvalidError, NucleusError, SandboxError, by_code
from nucleus.sdk import jsontext

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from _socket import socket as Channel  # socket.socket is one
    from collections.abc import Iterable, Sequence
    from typing import Any

PACKET_BYTES = 262_144  # one packet, JSON text
MAX_FDS = 16  # descriptors of one packet
_INT = 4  # bytes of a descriptor in a control message: a C int on every Linux


class Packet:
    """One message: a JSON object and the descriptors that came with it (the receiver owns them)."""

    __slots__ = ("body", "fds")

    def __init__(self, body: dict[str, Any], fds: list[int]) -> None:
        self.body = body
        self.fds = fds


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected seqpacket sockets, both close-on-exec."""
    import socket  # weight: launchers make none

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    for end in (ours, theirs):
        enlarge(end)
    return ours, theirs


def stream_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected stream sockets, both close-on-exec: the channels that carry `nucleus.frames`."""
    import socket  # weight: launchers make none

    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)


def enlarge(channel: Channel) -> None:
    """Make the send buffer hold one whole packet (the kernel refuses a longer seqpacket with EMSGSIZE)."""
    channel.setsockopt(SOL_SOCKET, SO_SNDBUF, 2 * PACKET_BYTES)


def send_packet(channel: Channel, body: dict[str, Any], fds: Sequence[int] = ()) -> None:
    """Send one packet; the descriptors stay the caller's to close.

    Raises:
        InvalidError: the packet or the number of descriptors is over its bound.
        OSError: the other end is gone (BrokenPipeError, ConnectionResetError) or does not read (BlockingIOError).
    """
    data = jsontext.dumps(body).encode("ascii")
    if len(data) > PACKET_BYTES or len(fds) > MAX_FDS:
        raise InvalidError(f"packet of {len(data)} bytes and {len(fds)} descriptors", rule="packets.bounds")
    ancillary = [(SOL_SOCKET, SCM_RIGHTS, b"".join(fd.to_bytes(_INT, sys.byteorder) for fd in fds))] if fds else []
    channel.sendmsg([data], ancillary, MSG_NOSIGNAL)


def recv_packet(channel: Channel, *, max_fds: int = MAX_FDS) -> Packet | None:
    """Receive one packet; None at the end of the channel.

    Args:
        channel: a seqpacket socket; a non-blocking one raises BlockingIOError when nothing is there.
        max_fds: how many descriptors the caller expects at most; more is an error and all are closed.

    Raises:
        InvalidError: cut, oversize, not a JSON object, or with descriptors that nobody expects.
    """
    space = CMSG_SPACE(MAX_FDS * _INT)
    try:
        data, ancillary, flags, _ = channel.recvmsg(PACKET_BYTES, space, MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        # It closed without having read all of ours. The error is told once; its last words come after it.
        data, ancillary, flags, _ = channel.recvmsg(PACKET_BYTES, space, MSG_CMSG_CLOEXEC)
    fds = _descriptors(ancillary)
    try:
        if not data and not fds and not flags & MSG_TRUNC:
            return None
        return Packet(_parse(data, flags, len(fds), max_fds), fds)
    except InvalidError:
        close_all(fds)
        raise


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors; one that is closed already is no error."""
    for fd in fds:
        try:
            os.close(fd)
        except OSError:
            continue


def checked(answer: dict[str, Any]) -> dict[str, Any]:
    """The `ok` of an answer, or its `error` raised as the family that its code names.

    Raises:
        NucleusError: what the other side reported; SandboxError when the answer has neither part.
    """
    ok = answer.get("ok")
    if isinstance(ok, dict):
        return ok
    error = answer.get("error")
    if not isinstance(error, dict):
        raise SandboxError("an answer with neither ok nor error", rule="packets.answer")
    parts = {key: value for key in ("message", "rule", "next_step") if isinstance(value := error.get(key), str)}
    code = error.get("code")
    family = by_code(code if isinstance(code, str) else "")
    raise family(parts.get("message", "?"), rule=parts.get("rule", ""), next_step=parts.get("next_step", ""))


def error_body(error: Exception) -> dict[str, Any]:
    """An exception as the `error` part of an answer."""
    if isinstance(error, NucleusError):
        return {"code": error.code, "message": error.message, "rule": error.rule, "next_step": error.next_step}
    return {"code": "internal_error", "message": f"{type(error).__name__}: {error}", "rule": "", "next_step": ""}


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds: list[int] = []
    for level, kind, data in ancillary:
        if level == SOL_SOCKET and kind == SCM_RIGHTS:
            whole = len(data) - len(data) % _INT
            fds += [int.from_bytes(data[at : at + _INT], sys.byteorder) for at in range(0, whole, _INT)]
    return fds


def _parse(data: bytes, flags: int, fd_count: int, max_fds: int) -> dict[str, Any]:
    if flags & (MSG_TRUNC | MSG_CTRUNC):
        raise InvalidError("a packet was cut", rule="packets.truncated")
    if fd_count > max_fds:
        raise InvalidError(f"{fd_count} descriptors where at most {max_fds} are expected", rule="packets.fds")
    try:
        body = jsontext.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidError("a packet is not JSON", rule="packets.json") from error
    if not isinstance(body, dict):
        raise InvalidError("a packet is not a JSON object", rule="packets.json")
    return body
