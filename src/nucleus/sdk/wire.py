"""The frame format of nucleus' sockets for programs that cannot afford, or do not have, the rest of nucleus.

frame = u32 total | u32 header length | header (UTF-8 JSON object) | body     (big endian; total counts what follows it)

Promises: byte for byte what `nucleus.frames` speaks (a test compares the two); sizes are checked before anything is
buffered or parsed. Imports next to nothing: the launcher's latency and the pod's bare interpreter both depend on it.
Does not: authenticate, or survive a malformed frame (`ValueError`: close the channel).
"""

from __future__ import annotations

from nucleus.sdk import jsontext

TYPE_CHECKING = False  # what mypy reads as true; importing typing would cost more than this module
if TYPE_CHECKING:
    from _socket import socket  # socket.socket is one
    from typing import Any

MAX_FRAME = 16_777_216  # bytes; nucleus.limits.LIMITS.request_bytes
_CHUNK = 262_144


def encode(header: dict[str, Any], body: bytes = b"") -> bytes:
    """Return the frame's bytes. Raises ValueError when it would exceed `MAX_FRAME`, or nests too deeply."""
    try:
        head = jsontext.dumps(header, ascii_only=False).encode()
    except UnicodeEncodeError:  # as `frames`: a lone surrogate travels escaped
        head = jsontext.dumps(header, ascii_only=True).encode()
    except RecursionError as error:
        raise ValueError("frame header nests too deeply") from error
    total = 4 + len(head) + len(body)
    if total > MAX_FRAME:
        raise ValueError(f"frame of {total} bytes, limit {MAX_FRAME}")
    return b"".join((total.to_bytes(4, "big"), len(head).to_bytes(4, "big"), head, body))


class Reader:
    """Incremental decoder: `feed` it bytes, `take` the frames that are complete."""

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self._buffer = bytearray()
        self._limit = limit

    def feed(self, data: bytes) -> None:
        """Add bytes as they came from the socket."""
        self._buffer += data

    def take(self) -> tuple[dict[str, Any], bytes] | None:
        """Return the next complete frame, or None. Raises ValueError on a malformed or oversize one."""
        buffer = self._buffer
        if len(buffer) < 4:
            return None
        total = int.from_bytes(buffer[:4], "big")
        if not 4 <= total <= self._limit:
            raise ValueError(f"frame of {total} bytes, limit {self._limit}")
        if len(buffer) < 4 + total:
            return None
        head_length = int.from_bytes(buffer[4:8], "big")
        if 4 + head_length > total:
            raise ValueError("frame header longer than its frame")
        raw, body = bytes(buffer[8 : 8 + head_length]), bytes(buffer[8 + head_length : 4 + total])
        del buffer[: 4 + total]
        try:
            header = jsontext.loads(raw)
        except RecursionError as error:
            raise ValueError("frame header nests too deeply") from error
        if not isinstance(header, dict):
            raise ValueError("frame header is not an object")
        return header, body


def receive(sock: socket, reader: Reader) -> tuple[dict[str, Any], bytes] | None:
    """Block until one frame is there; None at a clean end of stream. Raises ValueError, OSError."""
    while True:
        frame = reader.take()
        if frame is not None:
            return frame
        data = sock.recv(_CHUNK)
        if not data:
            return None
        reader.feed(data)
