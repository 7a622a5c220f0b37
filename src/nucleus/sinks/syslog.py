"""``syslog+tls://HOST[:6514]``, ``syslog+tcp://HOST[:601]``, ``syslog+unix:/dev/log``: RFC 5424 messages.

Framing: octet counting (RFC 6587 section 3.4.1; over TLS RFC 5425); one datagram a message to a local socket.
Facility 13 (log audit). MSGID is the event; the structured data ``nucleus@32473`` (the number that RFC 5612 gives to
examples: we have none of our own) has the fields to search for; the message is the record as stored. One that makes the
message longer than ``?max=BYTES`` (default 8,192) is sent as ``{"cut":true,"bytes":…}``: its hash, in the structured
data, says what it was.

Promises: `deliver` returns once the receiver has read every byte: each batch has a connection of its own, which we end,
and which it ends after that (one that hangs up before leaves bytes unread, and is reset). Syslog has no answer: what a
receiver has read and then loses, it loses. TLS is verified, to its end: who hangs up without close_notify (RFC 5425
section 4.4) may be somebody on the way who has let nothing through. ``?close=abrupt`` takes it for the receiver all the
same; rsyslog's gtls driver needs it.
Does not: offer UDP, which loses and reorders.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import SplitResult, unquote

from nucleus.sinks.base import Entry, Later, Options, bad_address, check_plaintext, query
from nucleus.sinks.connection import connected, reason, tls_context
from nucleus.sinks.fields import severity, summary

_FACILITY = 13
_MIN_MAX, _MAX, _MAX_MAX = 1_024, 8_192, 262_144
_ID = "nucleus@32473"
_PORTS = {"syslog+tls": 6514, "syslog+tcp": 601}
_READ_S = 10.0  # a receiver may take so long to read a batch
_VALUE = 256  # characters of one value in the structured data
# RFC 5424 section 6.2.1 by our own grades
_SEVERITIES = {"info": 6, "notice": 5, "warning": 4, "error": 3}


class Syslog:
    """See the module. Raises InvalidError."""

    batch = 500

    def __init__(self, parts: SplitResult, options: Options) -> None:
        if options.secret:
            raise bad_address("syslog needs no --secret")
        given = query(parts, ("max", "close"))
        found, close = given.get("max", str(_MAX)), given.get("close", "notify")
        if close not in ("notify", "abrupt") or ("close" in given and parts.scheme != "syslog+tls"):
            raise bad_address("close is notify or abrupt, over TLS")
        self._abrupt = close == "abrupt"
        if not found.isdecimal() or len(found) > 6 or not _MIN_MAX <= int(found) <= _MAX_MAX:
            raise bad_address(f"max is {_MIN_MAX} to {_MAX_MAX} bytes")
        self._max = int(found)
        self._path, self._context = "", None
        self._address = ("", 0)
        if parts.scheme == "syslog+unix":
            self._path = unquote(parts.path)
            if parts.netloc or not self._path.startswith("/"):
                raise bad_address("syslog+unix:/PATH/OF/A/SOCKET")
        else:
            if not parts.hostname or parts.path not in ("", "/"):
                raise bad_address(f"{parts.scheme}://HOST[:PORT]")
            self._address = (parts.hostname, parts.port or _PORTS[parts.scheme])
            if parts.scheme == "syslog+tls":
                self._context = tls_context(options.roots)
                if not self._abrupt:
                    self._context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
            else:
                check_plaintext(parts.hostname, options)
        self._host = _printable(socket.gethostname(), 255) or "-"

    def deliver(self, origin: str, entries: Sequence[Entry]) -> None:
        """See `Sink`."""
        self._send([self._message(origin, entry.record, entry.line.removesuffix(b"\n")) for entry in entries])

    def pin(self, origin: str, size: int, note: str) -> None:
        """See `Sink`: the event is ``checkpoint``, the message the note in base64."""
        import base64

        head = self._head(time.time_ns(), 5, "checkpoint", {"log": origin, "size": str(size)})
        self._send([head + base64.b64encode(note.encode())])

    def close(self) -> None:
        """Nothing is kept open."""

    def _message(self, origin: str, record: dict[str, Any], line: bytes) -> bytes:
        fields = {"log": origin, **summary(record)}
        head = self._head(record["time_ns"], _SEVERITIES[severity(record)], record["event"], fields)
        if len(head) + len(line) > self._max:
            line = b'{"cut":true,"bytes":%d}' % len(line)
        return head + line

    def _head(self, time_ns: int, level: int, event: str, fields: dict[str, str]) -> bytes:
        seconds, rest = divmod(time_ns, 1_000_000_000)
        when = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest // 1_000:06d}Z"
        data = "".join(f' {name}="{_value(value)}"' for name, value in fields.items() if value)
        text = f"<{_FACILITY * 8 + level}>1 {when} {self._host} nucleus - {_printable(event, 32)} [{_ID}{data}] "
        return text.encode("utf-8")

    def _send(self, messages: list[bytes]) -> None:
        try:
            if self._path:
                self._datagrams(messages)
            else:
                self._stream(b"".join(b"%d %b" % (len(message), message) for message in messages))
        except OSError as error:
            raise Later(f"{self._path or self._address[0]}: {reason(error)}") from None

    def _datagrams(self, messages: list[bytes]) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as found:
            found.connect(self._path)
            for message in messages:
                found.send(message)  # waits while the receiver's queue is full

    def _stream(self, data: bytes) -> None:
        """A connection for each batch: a receiver that ends it after our end has read all of it."""
        with connected(*self._address, self._context) as found:
            found.sendall(data)
            found.settimeout(_READ_S)
            if isinstance(found, ssl.SSLSocket):
                found = self._ended(found)
            found.shutdown(socket.SHUT_WR)
            while found.recv(4_096):  # what it says is not looked at: syslog has no answers
                pass

    def _ended(self, found: ssl.SSLSocket) -> socket.socket:
        """TLS's own end of both, after which the other side has read ours."""
        try:
            return found.unwrap()
        except ssl.SSLEOFError:
            if self._abrupt:
                return found
            why = "it hangs up without the end that TLS has, as anybody on the way can: perhaps nothing was read"
            raise Later(f"{self._address[0]}: {why} (?close=abrupt takes that, for rsyslog's gtls)") from None


def _value(text: str) -> str:
    """A PARAM-VALUE (RFC 5424 section 6.3.3), cut, without control characters."""
    shown = "".join(c if c.isprintable() else " " for c in text[:_VALUE].encode("utf-8", "replace").decode())
    return shown.replace("\\", "\\\\").replace('"', '\\"').replace("]", "\\]")


def _printable(text: str, limit: int) -> str:
    return "".join(c for c in text if "!" <= c <= "~")[:limit]
