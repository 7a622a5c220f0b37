"""One HTTP request that was allowed, and its answer: sent, counted, scrubbed, observed, ended.

 1. The upstream is opened only here, after the decision. The request is written anew from what was decided, with the
    gateway's credential in place of the client's: nothing of the client's own bytes goes on but the body's content.
 2. The answer is written anew as well; the credential's value is taken out of its headers and body. An answer that
    cannot be read for it (compressed, or a range of the whole) is not passed on.
 3. Bytes are counted and bounded both ways by the allowance; `stop` and `cut` end an answer in the middle.

Promises: request and answer move at the same time, each slowed by its receiver; a client that hangs up ends what was
sent for it. No request is sent twice unless the server had closed an idle connection without a word, and the request is
idempotent and has no body. An answer that breaks off ends in a reset or, for an event stream, in an error event; only
`stop` may end a chunked one in order. The allowance is kept to within one read (64 KiB) where both ways move at once.
Does not: decide, or keep a connection for later (`http` does).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import h11

from nucleus.errors import NucleusError
from nucleus.network.httphead import HEAD_BYTES, HOP_BY_HOP, Head, HeadError, forwarded, nominated, refusal
from nucleus.network.relay import UNLIMITED
from nucleus.network.scrub import LEAST_BYTES, Scrubber, scrub
from nucleus.network.streams import Stream
from nucleus.sanitize import sanitize

READ_BYTES = 65_536
INTERIM = 32  # 1xx answers before the real one
IDEMPOTENT = frozenset(("GET", "HEAD", "OPTIONS"))


class Deadlines(NamedTuple):
    """Seconds."""

    head: float = 10.0  # from a head's first byte to its last
    between: float = 60.0  # requests of one connection
    body: float = 60.0  # between two reads of a request's body
    reply: float = 300.0  # between two reads of an answer, and for a client to take one


@dataclass(frozen=True, slots=True)
class Refused:
    """Not sent on. `code` is the answer's `kind`."""

    status: int
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Answered:
    """Carried out already, by other means than HTTP; the connection ends behind the answer."""

    content_type: str
    body: bytes = field(repr=False)

    def answer(self) -> bytes:
        """All of it."""
        lines = ("HTTP/1.1 200 OK", f"Content-Type: {self.content_type}", f"Content-Length: {len(self.body)}")
        return "\r\n".join((*lines, "Cache-Control: no-cache", "Connection: close", "", "")).encode() + self.body


@dataclass(frozen=True, slots=True)
class Allowed:
    """How one request is carried.

    Args:
        open: makes the upstream; its errors are NucleusError or OSError.
        key: requests of one client's connection with the same host, port and key share an upstream.
        add: the gateway's headers, in place of the client's of these names.
        strip: take the client's own credentials away; `cookies`: its cookies too.
        secrets: what must not come back: bytes, whole values (`scrub.LEAST_BYTES` at least).
        identity: the answer has to be readable for `observer`: no compression, no ranges. Implied by `secrets`.
        observer: sees the exchange and each piece of the answer's body before the client does; may call `stop`.
        paced: awaited between a piece that `observer` has seen and the client's getting it.
        allowance, more: as of `relay.Relay`.
        done: called once when the exchange is over, whatever became of it.
        head: the request to send in place of the client's: another destination, another body.
        default_port: of its scheme, where that is not the connection's.
    """

    open: Callable[[], Awaitable[Stream]]
    key: str = ""
    add: tuple[tuple[bytes, bytes], ...] = field(default=(), repr=False)
    strip: bool = False
    cookies: bool = False
    secrets: tuple[bytes, ...] = field(default=(), repr=False)
    identity: bool = False
    observer: Callable[[Exchange, bytes], None] | None = None
    paced: Callable[[], Awaitable[None]] | None = None
    allowance: int = UNLIMITED
    more: Callable[[], Awaitable[int]] | None = None
    done: Callable[[Exchange], None] | None = None
    head: Head | None = None
    default_port: int = 0

    def __post_init__(self) -> None:
        if any(len(secret) < LEAST_BYTES for secret in self.secrets):
            raise ValueError(f"a secret of fewer than {LEAST_BYTES} bytes cannot be kept out of an answer")


class GoneError(Exception):
    """The client hung up."""


class _StaleError(Exception):
    """The upstream that was used before closed without a word."""


class _EndError(Exception):
    """The exchange ends here: `ended`, and the answer if there is none yet."""

    def __init__(self, ended: str, status: int, code: str, reason: str) -> None:
        super().__init__(reason)
        self.ended = ended
        self.status = status
        self.code = code
        self.reason = reason


class Inbox:
    """What the client has sent and nobody has read yet, at most a head and a read of it."""

    __slots__ = ("buffer", "eof", "stream")

    def __init__(self, stream: Stream, early: bytes) -> None:
        self.stream = stream
        self.buffer = bytearray(early)
        self.eof = False

    async def fill(self) -> bool:
        """Read once; False at the end."""
        if not self.eof:
            data = await self.stream.read(READ_BYTES)
            self.eof = not data
            self.buffer += data
        return not self.eof

    async def gone(self) -> None:
        """Returns when the client has hung up; what it says meanwhile is kept for later, up to a bound."""
        while len(self.buffer) <= HEAD_BYTES:
            if not await self.fill():
                return
        await asyncio.get_running_loop().create_future()

    def take(self) -> bytes:
        data = bytes(self.buffer)
        self.buffer.clear()
        return data


class Exchange:
    """One request that was allowed, and its answer.

    Attributes:
        head: the request. up, down: bytes sent to and read from the upstream (heads and framing included).
        status, reply: the answer's status and headers, once they are known.
        ended, reason: how it ended (`closed`, `refused`, `unreachable`, `cut`, `idle`, `limit`, `failed`), "" before.
    """

    def __init__(
        self,
        head: Head,
        allowed: Allowed,
        http: h11.Connection | None,
        inbox: Inbox | None,
        used: Stream | None = None,
        default_port: int = 80,
        deadlines: Deadlines | None = None,
    ) -> None:
        self.head = head
        self.up = self.down = 0
        self.status = 0
        self.reply: tuple[tuple[bytes, bytes], ...] = ()
        self.ended = self.reason = ""
        self._allowed = allowed
        self._in = http
        self._inbox = inbox
        self._out = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES)
        self._server = used
        self._reused = used is not None
        self._default_port = default_port
        self._deadlines = deadlines or Deadlines()
        self._limit = allowed.allowance
        self._asking = asyncio.Lock()
        self._stopped: asyncio.Future[_EndError] = asyncio.get_running_loop().create_future()
        self._identity = allowed.identity or bool(allowed.secrets)
        self._complete = False
        self._deaf = False
        self._writing = False
        self._tail = b"\n\n"

    @classmethod
    def unused(cls, head: Head, allowed: Allowed) -> Exchange:
        """The exchange of a request that was allowed when nobody waited any more."""
        exchange = cls(head, allowed, None, None)
        exchange.ended, exchange.reason = "closed", "the client went away"
        return exchange

    def stop(self, code: str, reason: str) -> None:
        """End it as cleanly as its framing allows: a refusal, the stream's own error event, or a reset."""
        if not self._stopped.done():
            self._stopped.set_result(_EndError("cut", 403, code, reason))

    def cut(self) -> None:
        """End it at once: both sides are reset."""
        if not self._stopped.done():
            self._stopped.set_result(_EndError("cut", 0, "", "cut by the gate"))

    def spare(self) -> Stream | None:
        """The upstream, where it may carry another request; the caller owns it then."""
        server, self._server = self._server, None
        return server

    async def carry(self) -> bool:
        """Steps 3 to 5; whether the client's connection may carry another request."""
        work = asyncio.ensure_future(self._work())
        keep = False
        try:
            await asyncio.wait((work, self._stopped), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
                raise self._stopped.result()
            keep = work.result()
            self._over("closed", "")
        except _EndError as end:
            self._over(end.ended, end.reason)
            await self._say(end)
        except (HeadError, h11.ProtocolError) as error:
            await self._malformed(error)
        except GoneError:
            self._over("closed", "the client went away")
            self._client.abort()
        except (OSError, TimeoutError) as error:  # the upstream's are an _EndError by now
            self._over("idle" if isinstance(error, TimeoutError) else "closed", "the client did not take the answer")
            self._client.abort()
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            self._over("cut", "the gateway ended it")
            if not keep and self._server is not None:
                self._server.abort()
                self._server = None
            if self._allowed.done is not None:
                self._allowed.done(self)
        return keep

    @property
    def _client(self) -> Stream:
        assert self._inbox is not None
        return self._inbox.stream

    def _over(self, ended: str, reason: str) -> None:
        if not self.ended:
            self.ended, self.reason = ended, reason

    # --- both directions ---

    async def _work(self) -> bool:
        """Send and answer at the same time. Step 3 begins here."""
        if self._server is None:
            self._server = await self._open()
        try:
            return await self._duplex()
        except _StaleError:
            self._server.abort()
            self._server = None
            if self.head.has_body or self.head.method not in IDEMPOTENT:
                raise _EndError("failed", 502, "http.upstream", "the server closed the connection") from None
        self._reused = False
        self._out = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES)
        self._server = await self._open()
        return await self._duplex()

    async def _open(self) -> Stream:
        try:
            return await self._allowed.open()
        except NucleusError as error:
            reason = getattr(error, "reason", "")
            status = 504 if reason == "timeout" else 502
            ended = "refused" if reason == "refused" else "unreachable"
            raise _EndError(ended, status, error.rule or error.code, error.message) from None
        except TimeoutError:
            raise _EndError("unreachable", 504, "network.timeout", "the server did not answer in time") from None
        except OSError as error:
            raise _EndError("unreachable", 502, "network.unreachable", error.strerror or str(error)) from None

    async def _duplex(self) -> bool:
        assert self._in is not None
        target, headers = forwarded(
            self.head,
            default_port=self._default_port,
            add=self._allowed.add,
            strip=self._allowed.strip,
            cookies=self._allowed.cookies,
            identity=self._identity,
        )
        await self._send(self._out.send(h11.Request(method=self.head.method, target=target, headers=headers)))
        if self.head.expects and self._in.they_are_waiting_for_100_continue:
            await self._client.write(self._in.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
        pump = asyncio.ensure_future(self._pump())
        answer = asyncio.ensure_future(self._answer())
        try:
            await asyncio.wait((pump, answer), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                pump.result()
            answer.result()
        finally:
            pump.cancel()
            answer.cancel()
            await asyncio.gather(pump, answer, return_exceptions=True)
        if not (self._out.our_state is h11.DONE and self._out.their_state is h11.DONE and self._complete):
            assert self._server is not None
            self._server.abort()
            self._server = None
        elif self._out.trailing_data[0]:
            assert self._server is not None
            self._server.abort()  # it has said more than it was asked
            self._server = None
        return self._complete and self._in.our_state is h11.DONE and self._in.their_state is h11.DONE

    async def _room(self, need: int) -> int:
        """Step 5: bytes that may move now, at least `need`."""
        async with self._asking:
            while self.up + self.down + need > self._limit:
                try:
                    more = await self._allowed.more() if self._allowed.more is not None else 0
                except NucleusError as error:
                    raise _EndError("limit", 403, error.code, error.message) from None
                if more <= 0:
                    raise _EndError("limit", 403, "network.limit", "the allowance of this request is used up")
                self._limit += more
        return self._limit - self.up - self.down

    async def _send(self, data: bytes | None) -> None:
        """To the upstream. One that does not listen any more may still have answered."""
        if not data or self._deaf:
            return
        assert self._server is not None
        await self._room(len(data))
        self.up += len(data)
        try:
            async with asyncio.timeout(self._deadlines.reply):
                await self._server.write(data)
        except TimeoutError:
            raise _EndError("idle", 504, "network.timeout", "the server does not read") from None
        except OSError:
            self._deaf = True

    async def _pump(self) -> None:
        """The request's body, then watching whether the client stays. Never returns: it raises or is cancelled."""
        assert self._in is not None
        assert self._inbox is not None
        batch = bytearray(self.head.body)
        while not self._complete:
            # A request without a body was at its end when its head was read.
            whole = self._in.their_state in (h11.DONE, h11.MUST_CLOSE)
            event = None if whole else self._in.next_event()
            if isinstance(event, h11.Data):
                batch += event.data
            elif whole or isinstance(event, h11.EndOfMessage):
                await self._send_body(batch, end=True)
                if not whole:
                    self._inbox.buffer[:0] = self._in.trailing_data[0]
                self._complete = True
            else:
                await self._send_body(batch, end=False)
                if not self._inbox.buffer:
                    try:
                        async with asyncio.timeout(self._deadlines.body):
                            if not await self._inbox.fill():
                                raise GoneError
                    except TimeoutError:
                        raise HeadError(408, "http.slow", "the request's body did not arrive in time") from None
                self._in.receive_data(self._inbox.take())
        await self._inbox.gone()
        raise GoneError

    async def _send_body(self, batch: bytearray, *, end: bool) -> None:
        data = bytes(batch)
        batch.clear()
        if data and not self._deaf:
            await self._send(self._out.send(h11.Data(data=data)))
        if end and not self._deaf:
            await self._send(self._out.send(h11.EndOfMessage()))

    # --- the answer ---

    async def _event(self) -> h11.Event:
        """The upstream's next event."""
        assert self._server is not None
        while True:
            try:
                event = self._out.next_event()
            except h11.RemoteProtocolError:
                # h11 quotes what it could not read, which may be the credential: it goes to the pod and the log.
                raise _EndError("failed", 502, "http.upstream", "the server's answer is malformed") from None
            if isinstance(event, h11.Event):
                return event
            most = min(READ_BYTES, await self._room(1))
            try:
                async with asyncio.timeout(self._deadlines.reply):
                    data = await self._server.read(most)
            except TimeoutError:
                raise _EndError("idle", 504, "network.timeout", "the server did not answer in time") from None
            except OSError as error:
                if self._reused and not self.down:
                    raise _StaleError from None
                raise _EndError("failed", 502, "http.upstream", error.strerror or str(error)) from None
            if not data and self._reused and not self.down:
                raise _StaleError
            self.down += len(data)
            self._out.receive_data(data)

    async def _answer(self) -> None:
        """Step 4."""
        assert self._in is not None
        event = await self._event()
        seen = 0
        while isinstance(event, h11.InformationalResponse):
            seen += 1
            if event.status_code == 101 or seen > INTERIM:
                raise _EndError("failed", 502, "http.upgrade", "the server changes the protocol")
            event = await self._event()
        if not isinstance(event, h11.Response):
            raise _EndError("failed", 502, "http.upstream", "the server closed the connection")
        await self._write(self._in.send(self._reply(event)))
        scrubber = Scrubber(self._allowed.secrets)
        while True:
            event = await self._event()
            if isinstance(event, h11.Data):
                await self._pass(scrubber.feed(bytes(event.data)))
            else:
                await self._pass(scrubber.end())
                await self._write(self._in.send(h11.EndOfMessage()))
                return

    async def _pass(self, data: bytes) -> None:
        if not data:
            return
        assert self._in is not None
        if self._allowed.observer is not None:
            self._allowed.observer(self, data)
            if self._allowed.paced is not None:
                await self._allowed.paced()
            if self._stopped.done():
                raise self._stopped.result()
        self._tail = (self._tail + data)[-4:]
        await self._write(self._in.send(h11.Data(data=data)))

    async def _write(self, data: bytes | None) -> None:
        if data:
            self._writing = True
            async with asyncio.timeout(self._deadlines.reply):
                await self._client.write(data)
            self._writing = False

    def _reply(self, response: h11.Response) -> h11.Response:
        """The answer's head as the client gets it."""
        self.status = response.status_code
        names = [name for name, _ in response.headers]
        coding = [value.lower() for name, value in response.headers if name == b"content-encoding"]
        if self._identity and (any(item not in (b"identity", b"") for item in coding) or self.status == 206):
            raise _EndError("failed", 502, "http.encoding", "the server's answer is compressed or a part, unasked")
        gone = HOP_BY_HOP | {"alt-svc"} | nominated(response.headers.raw_items())
        gone -= {"content-length"}
        if b"transfer-encoding" in names:
            gone |= {"content-length"}
        secrets = self._allowed.secrets
        headers = [
            (name, scrub(value, secrets))
            for name, value in response.headers.raw_items()
            if name.decode("ascii").lower() not in gone
        ]
        self.reply = tuple(headers)
        return h11.Response(status_code=self.status, headers=headers, reason=scrub(bytes(response.reason), secrets))

    # --- ends ---

    async def _malformed(self, error: Exception) -> None:
        """The client's body, or an answer's head that cannot be written anew (LocalProtocolError)."""
        if isinstance(error, HeadError):
            end = _EndError("failed", error.status, error.code, error.reason)
        elif isinstance(error, h11.LocalProtocolError):
            end = _EndError("failed", 502, "http.upstream", "the server's answer is malformed")
        else:
            end = _EndError("failed", 400, "http.framing", "the request's body is malformed")
        self._over(end.ended, end.reason)
        await self._say(end)

    async def _say(self, end: _EndError) -> None:
        """Tell the client in the words that are still possible; the connection ends either way."""
        assert self._in is not None
        try:
            async with asyncio.timeout(self._deadlines.body):
                if end.status == 0 or self._writing:
                    self._client.abort()
                elif not self.status or self._in.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                    bodiless = self.head.method == "HEAD"
                    await self._client.write(refusal(end.status, end.code, end.reason, bodiless=bodiless))
                elif self._in.our_state is h11.SEND_BODY and self._terminable(end):
                    await self._client.write(self._last_words(end) + (self._in.send(h11.EndOfMessage()) or b""))
                else:
                    self._client.abort()
        except (OSError, TimeoutError):
            self._client.abort()

    def _terminable(self, end: _EndError) -> bool:
        """Whether an early end may be written as an end: chunked, and stopped on purpose or able to say so itself."""
        chunked = not any(name.lower() == b"content-length" for name, _ in self.reply) and self.head.version == "1.1"
        return chunked and (end.ended == "cut" or self._event_stream())

    def _event_stream(self) -> bool:
        kinds = [value.lower() for name, value in self.reply if name.lower() == b"content-type"]
        return bool(kinds) and kinds[0].split(b";")[0].strip() == b"text/event-stream"

    def _last_words(self, end: _EndError) -> bytes:
        """An error event, in the form that the model providers' clients know."""
        if not self._event_stream():
            return b""
        assert self._in is not None
        error = json.dumps({"type": "error", "error": {"type": end.code, "message": sanitize(end.reason)}})
        closed = self._tail.endswith((b"\n\n", b"\r\n\r\n", b"\r\r"))
        words = ("" if closed else "\n\n") + f"event: error\ndata: {error}\n\n"
        return self._in.send(h11.Data(data=words.encode())) or b""
