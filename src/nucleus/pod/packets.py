"""JSON packets with descriptors over `SOCK_SEQPACKET`: the builder's language with its children and launchers.

Promises: one packet is one JSON object of at most `PACKET_BYTES` with at most `MAX_FDS` descriptors; every received
descriptor is close-on-exec and either returned to the caller or closed before an error leaves this module; a packet
or a control message that the kernel had to cut is refused. EOF is an empty list and None, never an exception.
Relies on: `sendmsg`/`recvmsg` with SCM_RIGHTS (unix(7)); a seqpacket is received whole or marked MSG_TRUNC.
Does not: authenticate. Who holds the other end is the caller's business (DESIGN section 2).
"""

from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from nucleus.errors import InvalidError, NucleusError, SandboxError, by_code

PACKET_BYTES = 262_144  # one packet, JSON text
MAX_FDS = 16  # descriptors of one packet
_INT = array.array("i").itemsize


class Packet(NamedTuple):
    """One message: a JSON object and the descriptors that came with it (the receiver owns them)."""

    body: dict[str, Any]
    fds: list[int]


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected seqpacket sockets, both close-on-exec."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    for end in (ours, theirs):
        enlarge(end)
    return ours, theirs


def stream_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected stream sockets, both close-on-exec: the channels that carry `nucleus.frames`."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)


def enlarge(channel: socket.socket) -> None:
    """Make the send buffer hold one whole packet (the kernel refuses a longer seqpacket with EMSGSIZE)."""
    channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * PACKET_BYTES)


def send_packet(channel: socket.socket, body: dict[str, Any], fds: Sequence[int] = ()) -> None:
    """Send one packet; the descriptors stay the caller's to close.

    Raises:
        InvalidError: the packet or the number of descriptors is over its bound.
        OSError: the other end is gone (BrokenPipeError, ConnectionResetError) or does not read (BlockingIOError).
    """
    data = json.dumps(body, separators=(",", ":")).encode("ascii")
    if len(data) > PACKET_BYTES or len(fds) > MAX_FDS:
        raise InvalidError(f"packet of {len(data)} bytes and {len(fds)} descriptors", rule="packets.bounds")
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())] if fds else []
    channel.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)


def recv_packet(channel: socket.socket, *, max_fds: int = MAX_FDS) -> Packet | None:
    """Receive one packet; None at the end of the channel.

    Args:
        channel: a seqpacket socket; a non-blocking one raises BlockingIOError when nothing is there.
        max_fds: how many descriptors the caller expects at most; more is an error and all are closed.

    Raises:
        InvalidError: cut, oversize, not a JSON object, or with descriptors that nobody expects.
    """
    space = socket.CMSG_SPACE(MAX_FDS * _INT)
    try:
        data, ancillary, flags, _ = channel.recvmsg(PACKET_BYTES, space, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        # It closed without having read all of ours. The error is told once; its last words come after it.
        data, ancillary, flags, _ = channel.recvmsg(PACKET_BYTES, space, socket.MSG_CMSG_CLOEXEC)
    fds = _descriptors(ancillary)
    try:
        if not data and not fds and not flags & socket.MSG_TRUNC:
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
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % _INT])
    return list(fds)


def _parse(data: bytes, flags: int, fd_count: int, max_fds: int) -> dict[str, Any]:
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        raise InvalidError("a packet was cut", rule="packets.truncated")
    if fd_count > max_fds:
        raise InvalidError(f"{fd_count} descriptors where at most {max_fds} are expected", rule="packets.fds")
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidError("a packet is not JSON", rule="packets.json") from error
    if not isinstance(body, dict):
        raise InvalidError("a packet is not a JSON object", rule="packets.json")
    return body
