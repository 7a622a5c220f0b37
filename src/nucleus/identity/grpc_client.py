"""A small gRPC client for the few calls that we make to others: one connection, one call at a time, everything bounded.

Promises: no message, header or wait is longer than the caller says; what the peer sends is told apart from what it
means: a refusal has gRPC's own status, everything that is not gRPC is one error. Nothing is sent twice.
Relies on: `h2` for HTTP/2 (RFC 9113) and HPACK; a socket that is connected, and over TLS also proven, before it comes.
Does not: resolve names, choose credentials, balance, compress, or retry (gRPC over HTTP/2, "PROTOCOL-HTTP2").

grpclib is the server's library here; as a client it takes messages of 4 GiB, and sends before a peer's SPIFFE ID could
be looked at. This is the part of it that we need, without an event loop.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterable
from types import TracebackType
from urllib.parse import unquote

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import H2Error

from nucleus.errors import NucleusError

INVALID_ARGUMENT, NOT_FOUND, PERMISSION_DENIED, UNAVAILABLE, UNAUTHENTICATED = 3, 5, 7, 14, 16
MAX_MESSAGE_BYTES = 1_048_576
_READ = 65_536
_REASON = 300  # characters of a peer's own words
_NAMES = {
    1: "CANCELLED", 2: "UNKNOWN", 3: "INVALID_ARGUMENT", 4: "DEADLINE_EXCEEDED", 5: "NOT_FOUND", 6: "ALREADY_EXISTS",
    7: "PERMISSION_DENIED", 8: "RESOURCE_EXHAUSTED", 9: "FAILED_PRECONDITION", 10: "ABORTED", 11: "OUT_OF_RANGE",
    12: "UNIMPLEMENTED", 13: "INTERNAL", 14: "UNAVAILABLE", 15: "DATA_LOSS", 16: "UNAUTHENTICATED",
}  # fmt: skip


class RpcError(NucleusError):
    """The peer refused, or is gone.

    Args:
        status: gRPC's status code; `UNAVAILABLE` where there was none.
        reason: the peer's words; printable ASCII, at most 300 characters.
    """

    def __init__(self, status: int, reason: str) -> None:
        shown = "".join(char if " " <= char <= "~" else "?" for char in reason[:_REASON])
        super().__init__(f"{_NAMES.get(status, f'gRPC status {status}')}: {shown}", rule="identity.rpc")
        self.status = status


class Connection:
    """See the module. A context manager: the socket is closed with it.

    Args:
        sock: connected, and taken over.
        authority: HTTP/2's ``:authority``.
        scheme: ``http`` on a plain socket, ``https`` in TLS.
    """

    def __init__(self, sock: socket.socket | ssl.SSLSocket, authority: str, scheme: str = "http") -> None:
        self._sock = sock
        self._authority = authority
        self._scheme = scheme
        self._h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self._began = False

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._sock.close()

    def fileno(self) -> int:
        """For select(2): readable when a stream may have something, or has ended."""
        return self._sock.fileno()

    def call(
        self, path: str, message: bytes, *, metadata: Iterable[tuple[str, str]] = (), timeout_s: float = 10.0
    ) -> bytes:
        """One message out, one back.

        Raises:
            RpcError: the peer refused, broke the protocol, or did not answer in time.
        """
        stream = self.stream(path, message, metadata=metadata)
        deadline = time.monotonic() + timeout_s
        answer = stream.next(timeout_s)
        if answer is None:
            raise RpcError(4, f"no answer within {timeout_s:g} s")
        stream.finish(max(deadline - time.monotonic(), 0.0))
        return answer

    def stream(self, path: str, message: bytes, *, metadata: Iterable[tuple[str, str]] = ()) -> Stream:
        """One message out, some back. Raises RpcError."""
        try:
            if not self._began:
                self._h2.initiate_connection()
                self._began = True
            number = self._h2.get_next_available_stream_id()
            headers = [
                (":method", "POST"), (":scheme", self._scheme), (":path", path), (":authority", self._authority),
                ("te", "trailers"), ("content-type", "application/grpc"), *metadata,
            ]  # fmt: skip
            self._h2.send_headers(number, headers)
            body = b"\0" + len(message).to_bytes(4, "big") + message
            if len(body) > min(self._h2.local_flow_control_window(number), self._h2.max_outbound_frame_size):
                raise RpcError(8, "the request is longer than a first frame")  # ours are a CSR at most
            self._h2.send_data(number, body, end_stream=True)
            self._flush()
        except (H2Error, OSError) as error:
            raise _broken(error) from error
        return Stream(self, number)

    # -- for `Stream` ----------------------------------------------------------------------------------------------

    def receive(self, timeout_s: float) -> list[Event] | None:
        """What came next; None: nothing in time. Raises RpcError: the connection is over, or is no HTTP/2."""
        try:
            self._sock.settimeout(max(timeout_s, 0.001))
            data = self._sock.recv(_READ)
        except (TimeoutError, ssl.SSLWantReadError):
            return None
        except OSError as error:
            raise _broken(error) from error
        if not data:
            raise RpcError(UNAVAILABLE, "the peer closed the connection")
        try:
            events = self._h2.receive_data(data)
            for event in events:
                if isinstance(event, DataReceived) and event.flow_controlled_length:
                    self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            self._flush()
        except (H2Error, OSError, ValueError) as error:  # ValueError: headers that are no text
            raise _broken(error) from error
        return events

    def cancel(self, number: int) -> None:
        """The peer need not go on with a call. Never fails."""
        try:
            self._h2.reset_stream(number, ErrorCodes.CANCEL)
            self._flush()
        except (H2Error, OSError):
            pass

    def _flush(self) -> None:
        self._sock.settimeout(10.0)
        self._sock.sendall(self._h2.data_to_send())


class Stream:
    """One call's answers. Made by `Connection.stream`."""

    def __init__(self, connection: Connection, number: int) -> None:
        self._connection = connection
        self._number = number
        self._buffer = bytearray()
        self._answered = self._ended = False
        self._status: int | None = None
        self._reason = ""

    def next(self, timeout_s: float) -> bytes | None:
        """The next message; None: none within `timeout_s` seconds.

        Raises:
            RpcError: the call has ended (with status 0 too: there was to be a message), or is no gRPC.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            message = self._take()
            if message is not None:
                return message
            if self._ended:
                raise self._refusal()
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            self._more(left)

    def finish(self, timeout_s: float) -> None:
        """A call of one answer: its status. Raises RpcError: it is not 0, or another message came."""
        deadline = time.monotonic() + timeout_s
        while not self._ended:
            left = deadline - time.monotonic()
            if left <= 0:
                raise RpcError(4, "the call does not end")
            self._more(left)
        if self._buffer:
            raise RpcError(13, "more than one answer")
        if self._status != 0:
            raise self._refusal()

    def cancel(self) -> None:
        """No more of it is wanted."""
        if not self._ended:
            self._connection.cancel(self._number)
            self._ended = True

    def _more(self, timeout_s: float) -> None:
        for event in self._connection.receive(timeout_s) or []:
            if isinstance(event, ConnectionTerminated):
                raise RpcError(UNAVAILABLE, "the peer ends the connection")
            if getattr(event, "stream_id", None) != self._number:
                continue
            if isinstance(event, ResponseReceived):
                self._response(_texts(event.headers))
            elif isinstance(event, TrailersReceived):
                self._trailers(_texts(event.headers))
            elif isinstance(event, DataReceived):
                self._buffer += event.data or b""
            elif isinstance(event, StreamReset):
                raise RpcError(UNAVAILABLE, f"the peer reset the call ({int(event.error_code or 0)})")
            elif isinstance(event, StreamEnded):
                self._ended = True

    def _response(self, headers: dict[str, str]) -> None:
        if headers.get(":status") != "200" or not headers.get("content-type", "").startswith("application/grpc"):
            raise RpcError(UNAVAILABLE, "the answer is no gRPC")
        if headers.get("grpc-encoding", "identity") != "identity":
            raise RpcError(13, "a compressed answer was not asked for")
        self._answered = True
        self._trailers(headers)  # of an answer without messages ("Trailers-Only")

    def _trailers(self, headers: dict[str, str]) -> None:
        status = headers.get("grpc-status", "")
        if status.isascii() and status.isdigit() and len(status) <= 4:
            self._status, self._reason = int(status), unquote(headers.get("grpc-message", "")[: 3 * _REASON])

    def _take(self) -> bytes | None:
        if len(self._buffer) < 5:
            return None
        length = int.from_bytes(self._buffer[1:5], "big")
        if not self._answered or self._buffer[0]:
            raise RpcError(13, "a message before its headers, or compressed")
        if length > MAX_MESSAGE_BYTES:
            raise RpcError(8, f"a message of {length} bytes, at most {MAX_MESSAGE_BYTES} are taken")
        if len(self._buffer) < 5 + length:
            return None
        message = bytes(self._buffer[5 : 5 + length])
        del self._buffer[: 5 + length]
        return message

    def _refusal(self) -> RpcError:
        if self._status is None:
            return RpcError(UNAVAILABLE, "the call ended without a status")
        if self._status == 0:
            return RpcError(UNAVAILABLE, "the call ended")
        return RpcError(self._status, self._reason)


def _texts(headers: Iterable[tuple[str | bytes, str | bytes]] | None) -> dict[str, str]:
    """Decoded by `h2` already, as its configuration says."""
    return {str(name): str(value) for name, value in headers or ()}


def _broken(error: Exception) -> RpcError:
    return RpcError(UNAVAILABLE, f"the connection broke ({type(error).__name__})")
