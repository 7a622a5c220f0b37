"""TLS over any `Stream`, by OpenSSL's memory BIOs: the gateway's end towards the pod, and its own towards a server.

Promises: a cancelled `read` has lost no byte; one reader and one writer at the same time; what TLS itself has to say
(an alert, the answer to a renegotiation) goes out whole between two writes, and a reader that caused it reads on only
once it is out, so nobody makes us hold more. After a write that was cut off, nothing more is sent. An end without
close_notify is an error where we are the client, the second time too: an answer that was cut off is not taken for a
whole one (RFC 8446 §6.1). Every error of TLS is an OSError (`ssl.SSLError` is one).
Relies on: the host's trust store for servers, as it is when the first connection is made. Does not: renegotiate, resume
sessions, offer client certificates, or write keys to an SSLKEYLOGFILE.
"""

from __future__ import annotations

import asyncio
import errno
import ssl
from contextlib import suppress
from functools import lru_cache

from nucleus.network.streams import Stream

HANDSHAKE_S = 10.0
ALERT_S = 0.2  # for last words to a peer that has failed
CLOSE_S = 1.0
PIECE_BYTES = 65_536
REASON_CHARACTERS = 200


class TruncatedError(OSError):
    """The other side ended without saying so."""


class TlsStream:
    """A `Stream` in TLS; owns the stream beneath. Made by `server` and `client`."""

    __slots__ = ("_apart", "_ended", "_fault", "_incoming", "_inner", "_outgoing", "_sending", "_server_side", "_tls",
                 "_torn")  # fmt: skip

    def __init__(self, inner: Stream, context: ssl.SSLContext, *, server_side: bool, name: str | None) -> None:
        self._inner = inner
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side, server_hostname=name)
        self._server_side = server_side
        self._sending = asyncio.Lock()
        self._apart: asyncio.Task[None] | None = None  # a reader's flush, which outlives it
        self._torn = False  # part of what was taken from `_outgoing` may not have gone out
        self._ended = False
        self._fault: OSError | None = None

    @classmethod
    async def server(
        cls,
        stream: Stream,
        context: ssl.SSLContext,
        early: bytes = b"",
        timeout: float = HANDSHAKE_S,  # noqa: ASYNC109 (one deadline for all of the handshake)
    ) -> TlsStream:
        """The pod's side.

        Args:
            stream: the connection; closed, after an alert if there is one, when no TLS comes of it.
            context: the certificate to show.
            early: what was already read of the client, in its order.
            timeout: seconds for the handshake.

        Raises:
            OSError: `ssl.SSLError`, `TruncatedError`, TimeoutError, or what `stream` raises.
        """
        made = cls(stream, context, server_side=True, name=None)
        made._incoming.write(early)
        return await made._handshaken(timeout)

    @classmethod
    async def client(
        cls,
        stream: Stream,
        context: ssl.SSLContext,
        server_hostname: str,
        timeout: float = HANDSHAKE_S,  # noqa: ASYNC109
    ) -> TlsStream:
        """Towards a server, whose certificate has to be for `server_hostname`. See `server`."""
        try:
            made = cls(stream, context, server_side=False, name=server_hostname)
        except ValueError:
            stream.abort()
            raise OSError(errno.EINVAL, "that is no name for a server") from None
        return await made._handshaken(timeout)

    async def _handshaken(self, seconds: float) -> TlsStream:
        try:
            async with asyncio.timeout(seconds):
                while not self._shaken():
                    await self._flush()
                    if not await self._fill():
                        raise TruncatedError("the connection ended in the handshake")
                await self._flush()
        except ssl.SSLError:
            await self._last_words()
            raise
        except BaseException:
            self._inner.abort()
            raise
        return self

    def _shaken(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    async def _last_words(self) -> None:
        """The alert that says why, without the reset that could overtake it."""
        try:
            async with asyncio.timeout(ALERT_S):
                await self._flush()
                await self._inner.finish()
        except (OSError, TimeoutError):
            pass
        finally:
            self._inner.abort()

    async def _flush(self) -> None:
        """Send what TLS has made, in its order; returns once all of it has been taken."""
        async with self._sending:
            while self._outgoing.pending:
                if self._torn:  # the peer waits for the rest of a record that is gone
                    raise OSError(errno.EPIPE, "an earlier write was cut off")
                self._torn = True
                await self._inner.write(self._outgoing.read())
                self._torn = False

    async def _flush_apart(self) -> None:
        """`_flush`, but a cancelled reader does not cut it off."""
        if self._apart is None or self._apart.done():
            self._apart = asyncio.ensure_future(self._flush())
            self._apart.add_done_callback(lambda done: done.cancelled() or done.exception())
        apart = self._apart
        await asyncio.wait((apart,))
        if apart.cancelled():
            raise OSError(errno.ECONNABORTED, "aborted")
        apart.result()

    async def _fill(self) -> bool:
        data = await self._inner.read(PIECE_BYTES)
        self._incoming.write(data)
        return bool(data)

    async def read(self, most: int) -> bytes:
        while True:
            if self._fault is not None:
                raise self._fault.with_traceback(None)
            if self._ended:
                return b""
            try:
                data = self._tls.read(most)
            except ssl.SSLWantReadError:
                if self._outgoing.pending:
                    await self._flush_apart()
                if not await self._fill():
                    self._ended = True
                    if not self._server_side:
                        self._fault = TruncatedError("the server ended the connection without saying so")
            except ssl.SSLZeroReturnError:
                self._ended = True
            except ssl.SSLError as error:
                self._fault = error
                with suppress(OSError, TimeoutError):
                    async with asyncio.timeout(ALERT_S):
                        await self._flush()
            else:
                self._ended = not data
                return data

    async def write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            # A memory BIO takes all that it is given; in pieces, so that what waits to be sent stays bounded.
            left = left[self._tls.write(left[:PIECE_BYTES]) :]
            await self._flush()

    def quiet(self) -> bool:
        # A session ticket that comes behind an answer looks like more of it: that connection is not used again.
        over = self._ended or self._torn or self._fault is not None
        return not (over or self._incoming.pending or self._tls.pending()) and self._inner.quiet()

    async def finish(self) -> None:
        try:
            async with asyncio.timeout(CLOSE_S):
                with suppress(ssl.SSLError):  # it wants the peer's close_notify; the stream beneath waits for its end
                    self._tls.unwrap()
                await self._flush()
        except (OSError, TimeoutError):
            self.abort()
        except BaseException:
            self.abort()
            raise
        else:
            await self._inner.finish()

    def abort(self) -> None:
        if self._apart is not None:
            self._apart.cancel()
        self._inner.abort()


@lru_cache(maxsize=1)
def client_context() -> ssl.SSLContext:
    """Servers are verified against the host's trust store (and SSL_CERT_FILE), for the name that was decided.

    As `ssl.create_default_context`, which would also write this process's keys wherever SSLKEYLOGFILE says.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies chain and name
    context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    context.hostname_checks_common_name = False
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.set_alpn_protocols(["http/1.1"])
    return context


def certificate_reason(error: BaseException) -> str:
    """Why no TLS came of it, in one sentence of at most `REASON_CHARACTERS`; nothing in it is the server's wording."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server's certificate is not trusted: {error.verify_message}"[:REASON_CHARACTERS]
    if isinstance(error, TimeoutError):
        return "the server did not answer in time (TLS)"
    if isinstance(error, ssl.SSLError):
        return f"no TLS with the server: {(error.reason or 'error').replace('_', ' ').lower()}"[:REASON_CHARACTERS]
    return f"no TLS with the server: {getattr(error, 'strerror', None) or error}"[:REASON_CHARACTERS]
