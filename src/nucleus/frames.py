"""The one wire format of our inherited sockets: a length-prefixed JSON header with an optional raw body.

frame = u32 total | u32 header length | header (UTF-8 JSON object) | body    (big endian; total: of what follows it)

Promises: sizes are checked before anything is buffered or parsed; a malformed frame is an `InvalidError` and the
stream is unusable after it. Pure: bytes in, frames out; the sockets belong to the caller.
Does not: authenticate. A channel's identity is that only its two ends hold it (DESIGN section 2, ADR 1).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from nucleus.errors import InvalidError
from nucleus.limits import LIMITS

_U32 = struct.Struct(">I")


class Frame(NamedTuple):
    """One message: a JSON object and the raw bytes that go with it."""

    header: dict[str, Any]
    body: bytes = b""


def encode(header: dict[str, Any], body: bytes = b"") -> bytes:
    """Return the frame's bytes. Raises InvalidError when it would exceed `LIMITS.request_bytes`."""
    try:
        head = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError:  # a lone surrogate, from a hostile pod say: escaped it is JSON, and breaks nothing
        head = json.dumps(header, separators=(",", ":")).encode()
    total = 4 + len(head) + len(body)
    if total > LIMITS.request_bytes:
        raise InvalidError(f"frame of {total} bytes, limit {LIMITS.request_bytes}", rule="limits.request")
    return b"".join((_U32.pack(total), _U32.pack(len(head)), head, body))


class Decoder:
    """Incremental decoder: `feed` bytes, iterate the frames that are complete."""

    def __init__(self, limit: int = LIMITS.request_bytes) -> None:
        self._buffer = bytearray()
        self._limit = limit

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield every frame that `data` completes. Raises InvalidError on a malformed or oversize frame."""
        self._buffer += data
        while len(self._buffer) >= 4:
            (total,) = _U32.unpack_from(self._buffer)
            if not 4 <= total <= self._limit:
                raise InvalidError(f"frame of {total} bytes, limit {self._limit}", rule="limits.request")
            if len(self._buffer) < 4 + total:
                return
            raw = bytes(self._buffer[4 : 4 + total])
            del self._buffer[: 4 + total]
            yield _parse(raw)


def _parse(raw: bytes) -> Frame:
    (head_length,) = _U32.unpack_from(raw)
    if 4 + head_length > len(raw):
        raise InvalidError("frame header longer than its frame", rule="frames.header")
    try:
        header = json.loads(raw[4 : 4 + head_length])
    except (ValueError, RecursionError) as error:
        raise InvalidError("frame header is not JSON", rule="frames.header") from error
    if not isinstance(header, dict):
        raise InvalidError("frame header is not an object", rule="frames.header")
    return Frame(header, raw[4 + head_length :])
