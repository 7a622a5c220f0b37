"""One approved push: a local endpoint, for one git process, that lets exactly the approved ref updates through.

 1. The endpoint's name is random, resolves in this pod alone, and ends with the operation.
 2. Only the two requests of a push are known: the refs' advertisement and one receive-pack.
 3. The list of commands is read before a byte of it leaves, and must be exactly what was approved: ref, old id, new id.
 4. The request goes to the approved repository over TLS that is verified here, with the host's credential.

Promises: a second receive-pack is refused whatever it says; what the remote answers comes back as it is, without the
credential. Relies on: `receive_pack`; the server, which checks that the pack holds what the commands announce.
Does not: keep a pack of more than `PACK_BYTES`: it is read whole before it is sent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from nucleus.errors import InvalidError, NucleusError
from nucleus.network.exchange import Allowed, Answered, Exchange, Refused
from nucleus.network.http import HttpConnection
from nucleus.network.httphead import Head
from nucleus.network.receive_pack import Commands, Update, difference
from nucleus.network.streams import Stream

if TYPE_CHECKING:
    from nucleus.network.gateway import Gateway

PACK_BYTES = 67_108_864
DOMAIN = "push.internal"
PROBE = b"0000"  # git's question, before a large pack, whether it may send one
SERVICE = "?service=git-receive-pack"


@dataclass(slots=True)
class Push:
    """One approved push, as the gate said."""

    host: str
    port: int
    protocol: str
    path: str
    updates: tuple[Update, ...]
    credential: str
    host_key: str = ""
    up: int = 0
    down: int = 0
    sent: bool = False
    status: int = 0
    reason: str = ""
    _connection: HttpConnection | None = field(default=None, repr=False)

    @classmethod
    def from_wire(cls, data: dict[str, Any]) -> Push:
        """As the gate sends it."""
        updates = tuple(Update(*one) for one in data["updates"])
        names = ("host", "port", "protocol", "path")
        host, port, protocol, path = (data[name] for name in names)
        return cls(host, port, protocol, path, updates, data["credential"], data["host_key"])

    def facts(self) -> dict[str, Any]:
        """What came of it."""
        return {"up": self.up, "down": self.down, "sent": self.sent, "status": self.status, "reason": self.reason}

    async def serve(self, gateway: Gateway, client: Stream, name: str, early: bytes) -> None:
        """One connection to the endpoint `name`."""
        connection = HttpConnection(
            client,
            lambda head: self._decide(gateway, head),
            expected=(name, 80),
            early=early,
            whole=lambda head: PACK_BYTES,
            kept=gateway.kept,
        )
        await connection.serve()

    async def _decide(self, gateway: Gateway, head: Head) -> Allowed | Answered | Refused:
        """Steps 2 and 3."""
        asks = (head.method, head.path, head.query)
        if asks == ("POST", "/repository.git/git-receive-pack", ""):
            if (why := self._refusal(head)) != "":
                self.reason = self.reason or why
                return Refused(403, "git.push", why)
        elif asks != ("GET", "/repository.git/info/refs", SERVICE) or head.has_body:
            return Refused(404, "git.push", "this endpoint knows one push")
        if self.host_key:
            return await self._by_ssh(gateway, head)
        path = f"{self.path}{head.path.removeprefix('/repository.git')}"
        try:
            add, secrets = await gateway.credential(self.credential, "") if self.credential else ((), ())
        except NucleusError as error:
            self.reason = error.message
            return Refused(502, error.rule, error.message)
        return self._allowed(gateway, replace(head, host=self.host, port=self.port, path=path), add, secrets)

    async def _by_ssh(self, gateway: Gateway, head: Head) -> Answered | Refused:
        """Step 4 for a remote by SSH: the two requests of git's smart HTTP, each a session of its own."""
        from nucleus.network.gateway import Target
        from nucleus.network.ssh_push import receive_pack

        kind = "application/x-git-receive-pack-%s"
        if head.method == "POST" and head.body == PROBE:
            return Answered(kind % "result", b"")
        request = head.body if head.method == "POST" else None
        try:
            key = await gateway.secret(self.credential)
            sock = await gateway.reach(Target(self.host, self.port, "tcp"))
            found = await receive_pack(sock, self.host_key, key, self.path.lstrip("/"), request)
        except NucleusError as error:
            self.reason = error.message
            return Refused(502, error.rule or error.code, error.message)
        self.up, self.down = self.up + len(request or b""), self.down + len(found[0]) + len(found[1])
        self.status = 200
        if request is not None:
            return Answered(kind % "result", found[1])
        return Answered(kind % "advertisement", b"001f# service=git-receive-pack\n0000" + found[0])

    def _refusal(self, head: Head) -> str:
        if head.body == PROBE:
            return ""
        if self.sent or not head.plain_body:
            return "one push was approved, in the plain"
        try:
            got = Commands().feed(head.body)
        except InvalidError as error:
            return error.message
        if got is None:
            return "the list of refs has no end"
        why = difference(self.updates, got)
        self.sent = not why
        return why

    def _allowed(
        self, gateway: Gateway, head: Head, add: tuple[tuple[bytes, bytes], ...], secrets: tuple[bytes, ...]
    ) -> Allowed:
        from nucleus.network.gateway import Target

        target = Target(self.host, self.port, self.protocol)

        def done(exchange: Exchange) -> None:
            self.up += exchange.up
            self.down += exchange.down
            self.status = exchange.status or self.status
            if exchange.ended not in ("closed", ""):
                self.reason = self.reason or exchange.reason
            if exchange.status in (401, 403):
                self.reason = self.reason or "the remote does not accept the credential"

        reach: Callable[[], Any] = lambda: gateway.stream(target)  # noqa: E731
        return Allowed(
            reach,
            key="push",
            add=add,
            strip=True,
            cookies=True,
            secrets=secrets,
            done=done,
            head=head,
            default_port=443 if self.protocol == "https" else 80,
        )
