"""Each request of a client that speaks HTTP, in the clear or in a TLS that the gateway opens: asked for and carried.

 1. A request to a model's local endpoint is one to the model's own host. Its body is read whole first, and checked
    (`models`): a shape that would have the provider act for the agent is refused.
 2. The gate is asked, for a model with what the answer may cost at most. What is refused here is on record there.
 3. The credential that the gate names is fetched from the authority, for this one request. The client's own, and its
    cookies, are taken away unless a rule lets them pass.
 4. TLS to the server is made and verified here; the answer is scrubbed of the credential, and a model's usage counted.

Promises: a credential is only in this process, and only while a request carries it; a model's answer is charged by what
the provider says it used, by the most that it can be where it says nothing, and ends when the budget does.
Relies on: `http` and `exchange` for the bytes, `tls` for the server's certificate. Does not: decide.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from nucleus.errors import InvalidError, NucleusError
from nucleus.network.exchange import Allowed, Exchange, Refused
from nucleus.network.http import HttpConnection
from nucleus.network.httphead import Head, HeadError
from nucleus.network.streams import SocketStream, Stream

if TYPE_CHECKING:
    from nucleus.network.gateway import Conn, Gateway, Rule
    from nucleus.network.metering import Metered

CLIENT = "client"  # the credential that is the client's own
HTTPS = 443


class Requests:
    """The requests of one connection.

    Args:
        protocol: ``http``, or ``https`` inside a TLS that was opened.
        expected: where the connection goes; None for a proxy's client, whose requests say it.
    """

    def __init__(self, gateway: Gateway, protocol: str, expected: tuple[str, int] | None) -> None:
        self._gateway = gateway
        self._protocol = protocol
        self._expected = expected
        self._connection: HttpConnection

    async def serve(self, client: Stream, early: bytes = b"") -> None:
        """Carry request after request; returns when the connection has ended."""
        self._connection = HttpConnection(
            client,
            self._decide,
            expected=self._expected,
            default_port=HTTPS if self._protocol == "https" else 80,
            early=early,
            whole=self._whole,
            faulty=self._faulty,
            kept=self._gateway.kept,
        )
        await self._connection.serve()

    # --- before the decision ---

    def _destination(self, head: Head) -> tuple[str, int, str, Rule | None]:
        """Step 1: host, port, protocol, and the model's rule where it is one."""
        rule = self._gateway.endpoint(head.host, head.port)
        if rule is not None:
            return rule.host, rule.port, rule.protocol, rule
        return head.host, head.port, self._protocol, self._gateway.model(head.host, head.port)

    def _whole(self, head: Head) -> int:
        if self._destination(head)[3] is None:
            return 0
        from nucleus.network import models  # weight: pods with a model alone

        return models.BODY_BYTES

    async def _faulty(self, error: HeadError) -> None:
        host, port = self._expected or ("unknown.invalid", 80)
        await self._gateway.refused(host, port, self._protocol, f"{error.code}: {error.reason}")

    # --- one request ---

    async def _decide(self, head: Head) -> Allowed | Refused:
        from nucleus.network.gateway import Target

        host, port, protocol, rule = self._destination(head)
        target = Target(host, port, protocol, host, head.method, head.path + head.query)
        sent = replace(head, host=host, port=port)
        metered = None
        if rule is not None:
            from nucleus.network.metering import Metered

            try:
                metered = Metered(rule.model, tuple(rule.price), sent)
            except InvalidError as error:
                await self._gateway.refused(host, port, protocol, f"{error.rule}: {error.message}", head)
                return Refused(403, error.rule, error.message)
            sent, target.upper = metered.head, metered.upper
        conn = self._gateway.opened(target)
        try:
            return await self._asked(conn, sent, metered)
        except BaseException:
            self._gateway.closed(conn)
            raise

    async def _asked(self, conn: Conn, head: Head, metered: Metered | None) -> Allowed | Refused:
        """Steps 2 and 3."""
        gateway, target = self._gateway, conn.target
        try:
            ident = await gateway.ask(conn)
        except NucleusError as error:
            if error.code != "budget_exhausted" or metered is None or not metered.smaller():
                gateway.closed(conn)
                return Refused(403, error.code, error.message)
            # The most that it may cost is not there any more: by instalments, as far as they go.
            conn.part, target.upper = conn.part + 1, metered.upper
            try:
                ident = await gateway.ask(conn)
            except NucleusError as again:
                gateway.closed(conn)
                return Refused(403, again.code, again.message)
        holder = [ident]
        add: tuple[tuple[bytes, bytes], ...] = ()
        secrets: tuple[bytes, ...] = ()
        if conn.credential not in ("", CLIENT):
            try:
                add, secrets = await gateway.credential(conn.credential, metered.api if metered is not None else "")
            except NucleusError as error:
                gateway.report(conn, holder.pop(), "failed", error.message)
                gateway.closed(conn)
                return Refused(502, error.rule, error.message)
        return self._allowed(conn, holder, head, metered, add, secrets)

    def _allowed(
        self,
        conn: Conn,
        holder: list[int],
        head: Head,
        metered: Metered | None,
        add: tuple[tuple[bytes, bytes], ...],
        secrets: tuple[bytes, ...],
    ) -> Allowed:
        gateway = self._gateway
        conn.metered = metered

        def done(exchange: Exchange) -> None:
            conn.mover = exchange
            if metered is not None:
                metered.over(exchange)
            for last in holder:
                gateway.report(conn, last, exchange.ended, exchange.reason)
            gateway.closed(conn)

        one = asyncio.Lock()  # a part ends, and the next is asked for, one at a time

        async def part(upper: int) -> int:
            async with one:
                if not holder:  # the part before this one was refused
                    return 0
                # What is settled gives back what it has not used: the next part holds that again.
                left = metered.left() if metered is not None else 0
                conn.mover, conn.target.upper = self._connection.exchange, upper + left
                return await gateway.more(conn, holder)

        async def reach() -> Stream:
            conn.mover = self._connection.exchange
            return await gateway.stream(conn.target)

        if metered is not None:
            metered.buys(part)
        own = conn.credential == CLIENT
        return Allowed(
            reach,
            key=conn.credential,
            add=add,
            strip=not own,
            cookies=not own,
            secrets=secrets,
            identity=metered is not None,
            observer=metered.observe if metered is not None else None,
            paced=metered.paced if metered is not None else None,
            allowance=gateway.allowance,
            more=lambda: part(0),
            done=done,
            head=head,
            default_port=HTTPS if conn.target.protocol == "https" else 80,
        )


async def verified(sock_stream: SocketStream, host: str) -> Stream:
    """Step 4: TLS to `host`, its certificate verified by the host's trust. Raises NoEgressError."""
    from nucleus.errors import NoEgressError
    from nucleus.network import tls  # weight: only who opens TLS

    try:
        return await tls.TlsStream.client(sock_stream, tls.client_context(), host)
    except (OSError, TimeoutError) as error:
        with suppress(OSError):
            sock_stream.abort()
        raise NoEgressError(tls.certificate_reason(error), rule="network.tls") from None
