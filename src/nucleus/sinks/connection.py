"""Connections of the sinks: TLS that is verified, HTTP requests whose answers are bounded.

Promises: TLS 1.2 or newer, the other side's certificate and name checked, against `Options.roots` where given; no
redirect is followed, no proxy asked; at most `ANSWER_BYTES` of an answer are read.
Does not: bound the time (`nucleus.sinks.deadline` does).
"""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Mapping
from typing import NamedTuple

from nucleus.errors import InvalidError
from nucleus.sinks.base import Later

CONNECT_S = 10.0
ANSWER_BYTES = 65_536
_LATER = frozenset({408, 425, 429, 500, 502, 503, 504})
_MAX_WAIT_S = 600


def tls_context(roots: str) -> ssl.SSLContext:
    """Raises InvalidError: rule ``ship.roots``: the file has no certificates."""
    try:
        context = ssl.create_default_context(cafile=roots or None)
    except (OSError, ValueError) as error:
        raise InvalidError(f"{roots}: {error}", rule="ship.roots") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def connected(host: str, port: int, context: ssl.SSLContext | None) -> socket.socket:
    """A TCP connection, with TLS where there is a context. Raises Later."""
    try:
        plain = socket.create_connection((host, port), CONNECT_S)
        if context is None:
            return plain
        try:
            return context.wrap_socket(plain, server_hostname=host)
        except BaseException:
            plain.close()
            raise
    except (OSError, ValueError) as error:  # a ValueError: no name that TLS could check
        raise Later(f"{host}:{port}: {reason(error)}") from None


def reason(error: BaseException) -> str:
    """An error of the network in few words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    return str(getattr(error, "strerror", None) or error or type(error).__name__)


class Answer(NamedTuple):
    """What a server said: the status, its headers in lower case, and the first bytes of the body."""

    status: int
    headers: dict[str, str]
    body: bytes

    def wait_s(self) -> int:
        """What ``Retry-After`` asks for, bounded; 0: nothing."""
        text = self.headers.get("retry-after", "")
        return min(int(text), _MAX_WAIT_S) if text.isascii() and text.isdigit() and len(text) < 9 else 0

    def temporary(self) -> bool:
        """The same request may be accepted later."""
        return self.status in _LATER


class Http:
    """One server, over a connection that is kept. `context`: None for no TLS."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext | None) -> None:
        self._address = (host, port)
        self._context = context
        self._connection: http.client.HTTPConnection | None = None

    def request(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """One request and its answer, once: whether to ask again is the caller's to say. Raises Later."""
        try:
            connection = self._alive()
            connection.request(method, target, body=body, headers=dict(headers))
            response = connection.getresponse()
            data = response.read(ANSWER_BYTES + 1)
            found = {name.lower(): value for name, value in response.getheaders()}
            answer = Answer(response.status, found, data[:ANSWER_BYTES])
        except Later:
            self.close()
            raise
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise Later(f"{self._address[0]}:{self._address[1]}: {reason(error)}") from None
        except BaseException:
            self.close()
            raise
        if len(data) > ANSWER_BYTES or response.will_close:
            self.close()
        return answer

    def close(self) -> None:
        """Hang up."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _alive(self) -> http.client.HTTPConnection:
        if self._connection is None:
            host, port = self._address
            self._connection = http.client.HTTPConnection(host, port, timeout=CONNECT_S)
            self._connection.sock = connected(host, port, self._context)
        return self._connection
