"""A connection of pg8000's that whoever answers in the server's place gets nothing from, and cannot fill or break.

On this host any user may take the port, or a name in a directory like /tmp, while the server is down. So, where TLS has
not proven the server and there is a password:
1. it is asked for by SCRAM, which shows it to nobody; a request for it in clear, or for its MD5, is refused
2. the server has shown that it knows it, too, before it is spoken to
Promises: besides, of an answer no more than `most` bytes are read, and what is no answer is one of `BROKEN`.
Relies on: pg8000's protocol code, whose handler of authentication requests and whose stream these are.
"""

from __future__ import annotations

import struct
from typing import Any

from pg8000.exceptions import InterfaceError
from pg8000.native import Connection

BROKEN = (
    OSError, ValueError, LookupError, EOFError, AttributeError, TypeError, ArithmeticError, MemoryError, struct.error,
)  # fmt: skip
"""What pg8000's parsing raises, beside its own `Error`, for bytes that no server sends."""
_OK, _SCRAM, _SCRAM_LAST = 0, (10, 11, 12), 12
_ROUNDS = 1_000_000  # of SCRAM's hash, which are ours to work off


class Guarded(Connection):  # type: ignore[misc]  # pg8000 has no types
    """See the module. Args: secret: steps 1 and 2 apply; most: bytes of an answer; the others are `Connection`'s."""

    def __init__(self, user: str, *, secret: bool, most: int, **keywords: Any) -> None:
        self._secret, self._most, self._proven = secret, most, False
        super().__init__(user, **keywords)

    def handle_AUTHENTICATION_REQUEST(self, data: bytes, context: Any) -> None:
        """Steps 1 and 2. Raises InterfaceError."""
        code = int.from_bytes(data[:4]) if len(data) >= 4 else -1
        if self._secret and code != _OK and code not in _SCRAM:
            raise InterfaceError("it asks for the password in a form that gives it away: use scram-sha-256")
        if self._secret and code == _OK and not self._proven:
            raise InterfaceError("it lets us in without the password: use scram-sha-256, or give none")
        if code == _SCRAM[1]:
            rounds = [part[2:] for part in data[4:].split(b",") if part.startswith(b"i=")]
            if not all(part.isdigit() and len(part) < 8 and int(part) <= _ROUNDS for part in rounds):
                raise InterfaceError("it asks for too many rounds")
        super().handle_AUTHENTICATION_REQUEST(data, context)
        self._proven = self._proven or code == _SCRAM_LAST  # which raises where the server does not know it

    @property
    def _sock(self) -> Any:
        return self._bounded

    @_sock.setter
    def _sock(self, stream: Any) -> None:
        self._bounded = None if stream is None else _Bounded(stream, self._most)


class _Bounded:
    """A stream of which so many bytes are read after each `flush`."""

    def __init__(self, stream: Any, most: int) -> None:
        self._stream, self._most, self._left = stream, most, most
        self.write, self.close = stream.write, stream.close

    def flush(self) -> None:
        self._stream.flush()
        self._left = self._most

    def read(self, size: int) -> bytes:
        self._left -= size
        if size < 0 or self._left < 0:
            raise OSError(f"its answer is over {self._most} bytes")
        data: bytes = self._stream.read(size)
        return data
