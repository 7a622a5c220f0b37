"""TLS over any `Stream`, by OpenSSL's memory BIOs: the gateway's end towards the pod, and its own towards a server.

Promises: a cancelled `read` has lost no byte; reading and writing may go on at the same time; what TLS itself has to
say (a key update's answer, an alert) goes out whole between two writes. An end without close_notify is an error where
we are the client: an answer that was cut off is not taken for a whole one (RFC 8446 §6.1).
Relies on: the host's trust store for servers. Does not: renegotiate, or offer client certificates.
"""

from __future__ import annotations

import asyncio
import ssl
from functools import lru_cache

from nucleus.network.streams import Stream

HANDSHAKE_S = 10.0
READ_BYTES = 65_536
REASON_CHARACTERS = 200


class TruncatedError(OSError):
    """The other side ended without saying so."""


class TlsStream:
    """A `Stream` in TLS; owns the stream beneath. Made by `server` and `client`."""

    def __init__(self, inner: Stream, context: ssl.SSLContext, *, server_side: bool, name: str | None) -> None:
        self._inner = inner
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side, server_hostname=name)
        self._server_side = server_side
        self._sending = asyncio.Lock()
        self._ended = False

    @classmethod
    async def server(
        cls,
        stream: Stream,
        context: ssl.SSLContext,
        early: bytes = b"",
        timeout: float = HANDSHAKE_S,  # noqa: ASYNC109 (one deadline for all of the handshake)
    ) -> TlsStream:
        """The pod's side. `early`: what was already read of the client. Raises OSError, TimeoutError."""
        made = cls(stream, context, server_side=True, name=None)
        made._incoming.write(early)
        return await made._handshaken(timeout)

    @classmethod
    async def client(
        cls,
        stream: Stream,
        context: ssl.SSLContext,
        name: str,
        timeout: float = HANDSHAKE_S,  # noqa: ASYNC109
    ) -> TlsStream:
        """Towards the server `name`, whose certificate has to be for it. Raises OSError, TimeoutError."""
        return await cls(stream, context, server_side=False, name=name)._handshaken(timeout)

    async def _handshaken(self, seconds: float) -> TlsStream:
        try:
            async with asyncio.timeout(seconds):
                while True:
                    try:
                        self._tls.do_handshake()
                    except ssl.SSLWantReadError:
                        await self._flush()
                        if not await self._fill():
                            raise TruncatedError("the connection ended in the handshake") from None
                    else:
                        await self._flush()
                        return self
        except BaseException:
            if self._outgoing.pending:  # an alert says why
                try:
                    async with asyncio.timeout(0.2):
                        await self._inner.write(self._outgoing.read())
                        await self._inner.finish()
                except (OSError, TimeoutError):
                    pass
            self._inner.abort()
            raise

    async def _flush(self) -> None:
        """Send what TLS has made, in its order."""
        while self._outgoing.pending:
            async with self._sending:
                if data := self._outgoing.read():
                    await self._inner.write(data)

    async def _fill(self) -> bool:
        data = await self._inner.read(READ_BYTES)
        if data:
            self._incoming.write(data)
        return bool(data)

    async def read(self, most: int) -> bytes:
        while True:
            if self._ended:
                return b""
            try:
                data = self._tls.read(most)
            except ssl.SSLWantReadError:
                if self._outgoing.pending:  # half of a record would be the end of the session
                    await asyncio.shield(self._flush())
                if not await self._fill():
                    self._ended = True
                    if not self._server_side:
                        raise TruncatedError("the server ended the connection without saying so") from None
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                self._ended = True
            else:
                self._ended = not data
                return data

    async def write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            # An unbounded memory BIO takes all of a piece; in pieces, so that what waits to be sent stays bounded.
            sent = self._tls.write(left[:READ_BYTES])
            left = left[sent:]
            await self._flush()

    def quiet(self) -> bool:
        # A session ticket that came meanwhile is no answer; it is read here, and nothing is lost of what is not one.
        return not self._ended and not self._incoming.pending and not self._tls.pending() and self._inner.quiet()

    async def finish(self) -> None:
        try:
            self._tls.unwrap()
        except (OSError, ValueError):
            pass
        try:
            async with asyncio.timeout(1.0):
                await self._flush()
        except (OSError, TimeoutError):
            self._inner.abort()
            return
        await self._inner.finish()

    def abort(self) -> None:
        self._inner.abort()


@lru_cache(maxsize=1)
def client_context() -> ssl.SSLContext:
    """Servers are verified against the host's trust store, for the name that was decided."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


def certificate_reason(error: BaseException) -> str:
    """Why no TLS came of it, in one sentence."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server's certificate is not trusted: {error.verify_message}"[:REASON_CHARACTERS]
    if isinstance(error, TimeoutError):
        return "the server did not answer in time (TLS)"
    if isinstance(error, ssl.SSLError):
        return f"no TLS with the server: {(error.reason or 'error').replace('_', ' ').lower()}"[:REASON_CHARACTERS]
    return f"no TLS with the server: {getattr(error, 'strerror', None) or error}"[:REASON_CHARACTERS]
