"""HTTP/1.1 between a client in the pod and whoever it was allowed to reach, one decision for each request.

 1. A head is read whole before anything is asked: bounded, against a deadline, strictly (`httphead`).
 2. `decide` is asked for every request of the connection, also the pipelined one and the one that a redirect led to.
    It is cancelled when the client hangs up meanwhile.
 3. What was allowed is carried by `exchange`; what was refused is answered here, and nothing has left the host.

Promises: `serve` raises nothing that a peer can cause; an upstream is used again only for the same host, port and key,
and only while it is silent. Relies on: h11 for framing; `Allowed.open` for an upstream that was resolved, checked and,
for TLS, verified. Does not: decide, cache, follow redirects, or speak HTTP/2, WebSocket or trailers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import h11

from nucleus.errors import NucleusError
from nucleus.network.exchange import Allowed, Answered, Deadlines, Exchange, GoneError, Inbox, Refused
from nucleus.network.httphead import HEAD_BYTES, Head, HeadError, check_block, parse, refusal
from nucleus.network.streams import AsyncioStream, SocketStream, Stream

__all__ = ["Allowed", "AsyncioStream", "Deadlines", "Exchange", "Head", "HttpConnection", "Refused", "SocketStream"]
__all__ += ["refusal"]


@dataclass(slots=True)
class Kept:
    """How much of bodies is held, and how much may be: a pod's gateway is in no cgroup of the pod's."""

    bytes: int = 0
    most: int = 134_217_728


class HttpConnection:
    """A client's connection, from its first request to its last.

    Args:
        client: the client's stream; owned, closed when `serve` returns.
        decide: asked for each request; cancelled when the client hangs up. A NucleusError of it is a refusal.
        expected: (host, port) that every request has to be for; None for a proxy's client, which says it in full.
        default_port: 80, or 443 inside TLS.
        early: bytes that were already read from the client.
        whole: how many bytes of this request's body, at most, `decide` has to see (`Head.body`); 0 for none of it.
        kept: counts the bytes of bodies that are held whole, for all connections that share it.
        faulty: told of a request that was refused here, by status, code and reason.
    """

    def __init__(
        self,
        client: Stream,
        decide: Callable[[Head], Awaitable[Allowed | Answered | Refused]],
        *,
        expected: tuple[str, int] | None = None,
        default_port: int = 80,
        early: bytes = b"",
        deadlines: Deadlines | None = None,
        whole: Callable[[Head], int] = lambda head: 0,
        faulty: Callable[[HeadError], Awaitable[None]] | None = None,
        kept: Kept | None = None,
    ) -> None:
        self.exchange: Exchange | None = None
        self._client = client
        self._decide = decide
        self._expected = expected
        self._default_port = default_port
        self._deadlines = deadlines or Deadlines()
        self._whole = whole
        self._faulty = faulty
        self._kept = kept or Kept()
        self._inbox = Inbox(client, early)
        self._held = 0
        self._idle: tuple[tuple[str, int, str], Stream] | None = None

    async def serve(self) -> None:
        """Carry request after request until the connection ends; never raises for what a peer did."""
        try:
            while await self._one():
                pass
            await self._client.finish()
        except (GoneError, OSError, TimeoutError):
            pass
        finally:
            self.cut()

    def cut(self) -> None:
        """End everything at once."""
        if self.exchange is not None:
            self.exchange.cut()
        self._client.abort()
        self._drop_idle()

    async def _one(self) -> bool:
        """One request; whether another may follow."""
        before = self._held
        try:
            return await self._carried()
        finally:
            self._kept.bytes -= self._held - before
            self._held = before

    async def _carried(self) -> bool:
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
        try:
            block = await self._block()
            if block is None:
                return False
            head = self._read(http, block)
            if head.has_body and (bound := self._whole(head)):
                head = await self._body(http, head, bound)
        except HeadError as error:
            if self._faulty is not None:
                await self._faulty(error)
            await self._answer(refusal(error.status, error.code, error.reason))
            return False
        verdict = await self._decided(head)
        if isinstance(verdict, Answered):
            await self._answer(verdict.answer())
            return False
        if isinstance(verdict, Refused):
            keep = not head.has_body and http.their_state is h11.DONE
            bodiless = head.method == "HEAD"
            await self._answer(refusal(verdict.status, verdict.code, verdict.reason, keep=keep, bodiless=bodiless))
            return keep
        head = verdict.head or head
        wanted = (head.host, head.port, verdict.key)
        used = self._take_idle(wanted)
        self.exchange = Exchange(
            head, verdict, http, self._inbox, used, verdict.default_port or self._default_port, self._deadlines
        )
        try:
            keep = await self.exchange.carry()
            if (server := self.exchange.spare()) is not None:
                self._idle = wanted, server
            return keep
        finally:
            self.exchange = None

    async def _answer(self, data: bytes) -> None:
        async with asyncio.timeout(self._deadlines.body):
            await self._client.write(data)

    async def _block(self) -> bytes | None:
        """Step 1: a head's bytes; None where the client has nothing more to ask."""
        buffer, seen = self._inbox.buffer, 0
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._deadlines.head if buffer else self._deadlines.between) as deadline:
                while True:
                    if buffer[:2] == b"\r\n":  # RFC 9112 §2.2: after the body of a careless client
                        del buffer[:2]
                    if buffer and not (65 <= buffer[0] <= 90 or 97 <= buffer[0] <= 122 or buffer[:1] == b"\r"):
                        raise HeadError(400, "http.head", "that is not HTTP")
                    end = buffer.find(b"\r\n\r\n", max(0, seen - 3))
                    if end >= 0:
                        break
                    seen = len(buffer)
                    if seen > HEAD_BYTES:
                        raise HeadError(431, "http.head", f"the request's head is longer than {HEAD_BYTES} bytes")
                    started = bool(buffer)
                    if not await self._inbox.fill():
                        return None
                    if not started:
                        deadline.reschedule(loop.time() + self._deadlines.head)
        except TimeoutError:
            if not buffer:
                return None
            raise HeadError(408, "http.slow", "the request's head did not arrive in time") from None
        block = bytes(buffer[: end + 4])
        del buffer[: end + 4]
        return block

    def _read(self, http: h11.Connection, block: bytes) -> Head:
        check_block(block)
        http.receive_data(block)
        try:
            request = http.next_event()
        except h11.RemoteProtocolError as error:
            raise HeadError(error.error_status_hint, "http.head", str(error)[:200]) from None
        if not isinstance(request, h11.Request):
            raise HeadError(400, "http.head", "that is not a request")
        head = parse(request, self._expected, self._default_port)
        if not head.has_body:
            http.next_event()
        return head

    async def _body(self, http: h11.Connection, head: Head, bound: int) -> Head:
        """The rest of step 1 for a request that is decided by its body, too."""
        body = bytearray()
        if head.expects:
            await self._answer(http.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
        while True:
            try:
                event = http.next_event()
            except h11.RemoteProtocolError:
                raise HeadError(400, "http.framing", "the request's body is malformed") from None
            if isinstance(event, h11.Data):
                body += event.data
                self._held += len(event.data)
                self._kept.bytes += len(event.data)
                if self._kept.bytes > self._kept.most:
                    raise HeadError(503, "http.busy", "too many large requests at a time")
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                try:
                    async with asyncio.timeout(self._deadlines.body):
                        if not self._inbox.buffer and not await self._inbox.fill():
                            raise GoneError
                except TimeoutError:
                    raise HeadError(408, "http.slow", "the request's body did not arrive in time") from None
                http.receive_data(self._inbox.take())
            if len(body) > bound:
                raise HeadError(413, "http.body", f"the request's body is longer than {bound} bytes")
        self._inbox.buffer[:0] = http.trailing_data[0]
        return replace(head, body=bytes(body), length=len(body), expects=False)

    async def _decided(self, head: Head) -> Allowed | Answered | Refused:
        """Step 2, ended by a client that hangs up meanwhile."""
        deciding = asyncio.ensure_future(self._decide(head))
        gone = asyncio.ensure_future(self._inbox.gone())
        handed = False
        try:
            await asyncio.wait((deciding, gone), return_when=asyncio.FIRST_COMPLETED)
            if not deciding.done():
                raise GoneError
            verdict = deciding.result()
            handed = True
            return verdict
        except NucleusError as error:
            return Refused(403, error.code, error.message)
        finally:
            deciding.cancel()
            gone.cancel()
            late, _ = await asyncio.gather(deciding, gone, return_exceptions=True)
            if not handed and isinstance(late, Allowed) and late.done is not None:
                late.done(Exchange.unused(head, late))

    def _take_idle(self, wanted: tuple[str, int, str]) -> Stream | None:
        if self._idle is not None:
            (key, stream), self._idle = self._idle, None
            if key == wanted and stream.quiet():
                return stream
            stream.abort()
        return None

    def _drop_idle(self) -> None:
        if self._idle is not None:
            self._idle[1].abort()
            self._idle = None
