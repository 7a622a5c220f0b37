"""The first flight of a TLS client, read without answering it: which name it asks for, and whether it hides one.

 1. Records (RFC 8446 §5.1): handshake only, none empty, none longer than 16 KiB; a ClientHello may span several.
 2. The ClientHello (§4.1.2) ends where its record ends, is at most 16 KiB, and every length in it is exact. An
    extension comes once. SSL 2 and 3 are refused.
 3. server_name (RFC 6066 §3): one entry of type host_name, an ASCII host name without trailing dot, no address.
 4. Encrypted Client Hello, and ESNI before it, are flagged: the name in the clear is not the name that is meant. GREASE
    ECH is flagged as well, for it is made to look the same.

Promises: `Reader` answers the same however its bytes are cut; holds at most 16 KiB; fails at the first byte that cannot
be right, with InvalidError of rule ``tls.record``, ``tls.hello`` or ``tls.sni``, and again on every later call.
Relies on: nothing but bytes. Does not: negotiate, look behind the first ClientHello (a second one, after a
HelloRetryRequest, is between client and server), or check that a cipher suite makes sense.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from nucleus.errors import InvalidError
from nucleus.network.names import is_name

RECORD_BYTES = 16_384  # RFC 8446 §5.1
HELLO_BYTES = 16_384  # ours: a ClientHello with its four bytes of header; the usual ones are 200 to 2,000

UNEXPECTED_MESSAGE, ACCESS_DENIED, DECODE_ERROR, UNRECOGNIZED_NAME = 10, 49, 50, 112  # RFC 8446 §6.2, RFC 6066 §3

_HANDSHAKE, _CLIENT_HELLO = 22, 1
_SERVER_NAME, _ALPN, _SUPPORTED_VERSIONS = 0, 16, 43
# draft-ietf-tls-esni: -01 to -06 (ESNI), -08 to -12, and -13 onwards (what is deployed).
_HIDDEN = frozenset((0xFFCE, *range(0xFE08, 0xFE0E)))


@dataclass(frozen=True, slots=True)
class Hello:
    """What a client says of itself.

    `sni`: lower case, None where there is none. `alpn`: in the client's order, each byte one character.
    `ech`: another name is, or may be, hidden. `versions`: as offered (0x0303 is TLS 1.2), GREASE values included.
    """

    sni: str | None
    alpn: tuple[str, ...]
    ech: bool
    versions: tuple[int, ...]


class Reader:
    """An incremental reader of one ClientHello."""

    __slots__ = ("_error", "_head", "_hello", "_left", "_message", "_size")

    def __init__(self) -> None:
        self._head = bytearray()  # of the record that is being read
        self._left = 0  # bytes of that record still to come
        self._message = bytearray()
        self._size = 0  # of the whole message, once known
        self._hello: Hello | None = None
        self._error: InvalidError | None = None

    def feed(self, data: bytes) -> Hello | None:
        """Read on.

        Args:
            data: the next bytes of the stream, any number. What follows the ClientHello's record is not looked at.

        Returns:
            The hello once it is whole, the same on every later call; None until then.

        Raises:
            InvalidError: rule ``tls.record``, ``tls.hello`` or ``tls.sni``.
        """
        if self._error is not None:
            raise self._error.with_traceback(None)
        if self._hello is None:
            try:
                self._records(data)
            except InvalidError as error:
                self._error = error
                self._message.clear()
                raise
        return self._hello

    def _records(self, data: bytes) -> None:
        """Step 1."""
        at = 0
        while at < len(data) and self._hello is None:
            if self._left == 0:
                taken = data[at : at + 5 - len(self._head)]
                self._head += taken
                at += len(taken)
                self._left = _record_size(self._head)
                if self._left == 0:
                    return
            taken = data[at : at + self._left]
            at += len(taken)
            self._left -= len(taken)
            self._message += taken
            if self._left == 0:
                self._head.clear()
            self._whole(len(self._message) + self._left)

    def _whole(self, announced: int) -> None:
        """Step 2's frame. `announced`: bytes of messages in the records begun so far."""
        message = self._message
        if message and message[0] != _CLIENT_HELLO:
            _refuse("the first message of a TLS client is a ClientHello", "tls.hello")
        if len(message) < 4:
            return
        self._size = 4 + int.from_bytes(message[1:4], "big")
        if self._size > HELLO_BYTES:
            _refuse("the ClientHello is too long", "tls.hello")
        if announced > self._size:
            _refuse("something follows the ClientHello in its record", "tls.hello")
        if len(message) == self._size:
            self._hello = _parse(bytes(message[4:]))
            message.clear()


def alert(description: int) -> bytes:
    """A fatal alert in a record of its own (RFC 8446 §6), in the clear: for a client that has only said hello."""
    return bytes((21, 3, 3, 0, 2, 2, description))


def _refuse(message: str, rule: str) -> NoReturn:
    raise InvalidError(message, rule=rule)


def _record_size(head: bytearray) -> int:
    """Length of the record with this header; 0 while it is incomplete."""
    if head and head[0] != _HANDSHAKE:
        what = "that is SSL 2" if head[0] & 0x80 else "that is no TLS handshake"
        _refuse(what, "tls.record")
    if len(head) > 1 and head[1] != 3:
        _refuse("that is no version of TLS", "tls.record")
    if len(head) < 5:
        return 0
    size = head[3] << 8 | head[4]
    if not 0 < size <= RECORD_BYTES:
        _refuse("a record of that length does not exist", "tls.record")
    return size


class _Cursor:
    """Bytes read from front to back; whoever reads beyond the end is refused."""

    __slots__ = ("at", "data", "rule")

    def __init__(self, data: bytes, rule: str = "tls.hello") -> None:
        self.data, self.at, self.rule = data, 0, rule

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.data):
            _refuse("a length in the ClientHello is beyond its end", self.rule)
        taken = self.data[self.at : end]
        self.at = end
        return taken

    def vector(self, width: int, least: int = 0) -> bytes:
        """A vector behind its length of `width` bytes (RFC 8446 §3.4), of at least `least` bytes."""
        size = int.from_bytes(self.take(width), "big")
        if size < least:
            _refuse("a vector in the ClientHello is too short", self.rule)
        return self.take(size)

    def more(self) -> bool:
        return self.at < len(self.data)

    def end(self) -> None:
        if self.more():
            _refuse("something is left over in the ClientHello", self.rule)


def _parse(body: bytes) -> Hello:
    """Step 2."""
    cursor = _Cursor(body)
    version = int.from_bytes(cursor.take(2), "big")
    if not 0x0301 <= version <= 0x03FF:
        _refuse("that is no version of TLS", "tls.hello")
    cursor.take(32)
    if len(cursor.vector(1)) > 32:
        _refuse("the session id is too long", "tls.hello")
    if len(cursor.vector(2, least=2)) % 2:
        _refuse("half a cipher suite", "tls.hello")
    cursor.vector(1, least=1)
    extensions = _extensions(cursor.vector(2)) if cursor.more() else {}
    cursor.end()
    sni, alpn, versions = (extensions.get(kind) for kind in (_SERVER_NAME, _ALPN, _SUPPORTED_VERSIONS))
    return Hello(
        sni=None if sni is None else _server_name(sni),
        alpn=() if alpn is None else _protocols(alpn),
        ech=not _HIDDEN.isdisjoint(extensions),
        versions=(version,) if versions is None else _versions(versions),
    )


def _extensions(data: bytes) -> dict[int, bytes]:
    cursor, found = _Cursor(data), dict[int, bytes]()
    while cursor.more():
        kind = int.from_bytes(cursor.take(2), "big")
        if kind in found:
            _refuse("an extension comes twice", "tls.hello")
        found[kind] = cursor.vector(2)
    return found


def _server_name(data: bytes) -> str:
    """Step 3."""
    outer = _Cursor(data, "tls.sni")
    entries = _Cursor(outer.vector(2, least=1), "tls.sni")
    outer.end()
    if entries.take(1) != b"\0":
        _refuse("a server name of unknown type", "tls.sni")
    raw = entries.vector(2, least=1)
    entries.end()
    name = raw.decode("latin-1").lower() if raw.isascii() else ""
    if not is_name(name):
        _refuse("the server name is no host name", "tls.sni")
    return name


def _protocols(data: bytes) -> tuple[str, ...]:
    """RFC 7301 §3.1."""
    outer = _Cursor(data)
    names = _Cursor(outer.vector(2, least=2))
    outer.end()
    found = []
    while names.more():
        found.append(names.vector(1, least=1).decode("latin-1"))
    return tuple(found)


def _versions(data: bytes) -> tuple[int, ...]:
    """RFC 8446 §4.2.1."""
    outer = _Cursor(data)
    listed = outer.vector(1, least=2)
    outer.end()
    if len(listed) % 2:
        _refuse("half a version", "tls.hello")
    return tuple(listed[at] << 8 | listed[at + 1] for at in range(0, len(listed), 2))
