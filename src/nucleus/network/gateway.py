"""The egress gateway of one pod: the only way out of it, on the host's side, listening inside the pod's network.

 1. A connection of the pod lands here whatever address it was opened for (`firewall`): by the name behind a synthetic
    address, by a literal, or by what an HTTP client asks of the proxy.
 2. What it says of itself is read first, bounded and against a deadline: the name in a TLS ClientHello, the head of an
    HTTP request. A name that is missing, hidden (ECH) or another than the one it was opened for goes along to the gate.
 3. The gate is asked (`connect`) and says `go`, or why not. Nothing has left the host so far, not even a DNS query.
 4. Only then the name is resolved, every answer checked to be public (or in a range that a rule names), and connected
    to one of exactly these addresses: there is no second look-up to rebind.
 5. Bytes are counted and copied, up to the allowance that the gate has reserved; then the gate is asked for more.
 6. A refusal is said at once in the client's own protocol: a 403 with the reason, a TLS alert, else a reset.

Promises: holds no policy and decides nothing: its rules say which names have an address and how a port is read; when
its gate is gone, every connection is cut and it ends. Every byte of the pod is hostile, every byte from outside too.
Relies on: listeners made inside the pod's network namespace, this process being outside it, the gate's channel.
Does not: resolve a name for the pod (`dns` answers with synthetic addresses), or look into TLS that no rule has opened.
"""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nucleus.errors import InvalidError, NoEgressError, NucleusError
from nucleus.frames import Frame
from nucleus.limits import LIMITS
from nucleus.network import addresses, pushes, upstream
from nucleus.network.dns import Responder
from nucleus.network.exchange import Exchange
from nucleus.network.hello import ACCESS_DENIED, Reader, alert
from nucleus.network.http import Kept
from nucleus.network.httphead import Head, refusal
from nucleus.network.names import Pool, covers
from nucleus.network.relay import Relay
from nucleus.network.requests import Requests, verified
from nucleus.network.streams import SocketStream, Stream
from nucleus.server.channel import Channel
from nucleus.server.wire import error_from, error_object

if TYPE_CHECKING:
    from nucleus.network.metering import Metered
    from nucleus.network.pod_ca import PodCa
    from nucleus.store.credentials import Credential

ENDPOINT = "model.internal"  # <api>.model.internal is the local endpoint of a model's API
ASKED = ("host", "port", "protocol", "inner", "method", "path", "upper", "fault")
Carried = tuple[tuple[tuple[bytes, bytes], ...], tuple[bytes, ...]]  # headers to add, secrets to scrub
CONNECTIONS = 256  # of one pod at a time
HELLO_S = 10.0  # for a client to say what it wants
HOLD_S = 330.0  # for a person to answer: a little more than an approval lives
LINGER_S = 1.0  # for a refused client to show which protocol it speaks
SO_ORIGINAL_DST = 80
PORTS = {443: "tls", 8443: "tls", 80: "http", 8080: "http"}


@dataclass(frozen=True, slots=True)
class Rule:
    """What the gateway knows of one network rule."""

    host: str
    port: int
    protocol: str
    model: str = ""
    price: tuple[int, ...] = ()


@dataclass(slots=True)
class Target:
    """Where a client wants to go. `host`: a name, or an address as text."""

    host: str
    port: int
    protocol: str
    inner: str = ""
    method: str = ""
    path: str = ""
    upper: int = 0  # micro-dollars beyond the base
    fault: str = ""


@dataclass(slots=True)
class Conn:
    """One connection, or one request of it, as the gate knows it."""

    number: int
    target: Target
    part: int = 0
    credential: str = ""  # as the gate said
    metered: Metered | None = None
    go: asyncio.Future[int] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    mover: Relay | Exchange | None = None  # what copies, and counts
    task: asyncio.Task[Any] | None = None
    told: tuple[int, int] = (0, 0)  # bytes up and down that earlier parts have accounted for


class Gateway:
    """See the module. One per pod; `serve` makes it."""

    def __init__(self, authority: PodCa | None = None, vault: Channel | None = None) -> None:
        self.allowance = LIMITS.connection_bytes
        self._authority = authority
        self._vault = vault
        self.kept = Kept()
        self.rules: tuple[tuple[Rule, ...], ...] = ()
        self.endpoints: dict[str, Rule] = {}
        self.pushes: dict[str, pushes.Push] = {}  # by the name of their endpoint
        self.pool = Pool()
        self.conns: dict[int, Conn] = {}
        self.clients: set[asyncio.Task[None]] = set()
        self.fetching: dict[int, asyncio.Task[None]] = {}
        self.ready = asyncio.Event()
        self.channel: Channel
        self._next = 0
        self._unlisted: set[str] = set()

    # --- the gate ---

    def received(self, frame: Frame) -> None:
        """One request of the gate."""
        header = frame.header
        op, ident = header.get("op"), header.get("id")
        conn = self.conns.get(header["conn"]) if isinstance(header.get("conn"), int) else None
        if op == "configure":
            self.rules = tuple(tuple(Rule(**rule) for rule in rules) for rules in header["rules"])
            self.endpoints = _endpoints(self.rules)
            self.ready.set()
            self.channel.send({"id": ident, "ok": {}})
        elif op == "go" and isinstance(ident, int):
            if conn is None or conn.part != header.get("part") or conn.go.done():
                self.channel.send({"id": ident, "ok": {"up": 0, "down": 0, "ended": "cut", "reason": "it was closed"}})
            else:
                conn.credential = str(header.get("credential", ""))
                conn.go.set_result(ident)
        elif op == "cut" and conn is not None:
            if conn.mover is not None:
                conn.mover.cut()
            elif conn.task is not None:
                conn.task.cancel()
        elif op == "fetch" and isinstance(ident, int):
            task = asyncio.ensure_future(self._fetch(ident, header, frame.body))
            self.fetching[ident] = task
            task.add_done_callback(lambda _: self.fetching.pop(ident, None))
        elif op == "cancel" and header.get("target") in self.fetching:
            self.fetching[header["target"]].cancel()
        elif op in ("search", "pull") and isinstance(ident, int):
            task = asyncio.ensure_future(self._service(ident, header, frame.body))
            self.fetching[ident] = task
            task.add_done_callback(lambda _: self.fetching.pop(ident, None))
        elif op == "push":
            name = f"{secrets.token_hex(16)}.{pushes.DOMAIN}"
            self.pushes[name] = pushes.Push.from_wire(header)
            self.channel.send({"id": ident, "ok": {"endpoint": f"http://{name}/repository.git"}})
        elif op == "push_end":
            ended = self.pushes.pop(str(header.get("endpoint", "")).split("/")[2], None)
            self.channel.send({"id": ident, "ok": ended.facts() if ended is not None else {}})
        elif op == "status":
            self.channel.send({"id": ident, "ok": {"connections": [_shown(conn) for conn in self.conns.values()]}})

    def listed(self, host: str, port: int | None = None) -> Rule | None:
        """How a connection to `host` and `port` is read, when every list has a rule for it.

        TLS is opened where one list says so; whether all allow what is inside is the gate's to decide.
        """
        found = [[rule for rule in rules if _matches(rule, host, port)] for rules in self.rules]
        if not found or not all(found):
            return None
        every = [rule for rules in found for rule in rules]
        return next((rule for rule in every if rule.protocol == "https"), found[0][0])

    def model(self, host: str, port: int) -> Rule | None:
        """The model's rule for a destination, the dearest one."""
        found = [rule for rules in self.rules for rule in rules if rule.model and _matches(rule, host, port)]
        return max(found, key=lambda rule: (not rule.price, rule.price), default=None)

    def endpoint(self, host: str, port: int) -> Rule | None:
        """The model behind a local endpoint's name."""
        return self.endpoints.get(host) if port == 80 else None

    async def ask(self, conn: Conn) -> int:
        """Steps 3: the id of the gate's `go`. Raises what the gate answered, or NoEgressError after `HOLD_S`."""
        target = conn.target
        conn.go = asyncio.get_running_loop().create_future()
        wanted = {name: getattr(target, name) for name in ASKED}
        _, answer = self.channel.start({"op": "connect", "conn": conn.number, "part": conn.part, **wanted})
        waits: tuple[asyncio.Future[Any], ...] = (conn.go, answer)
        try:
            async with asyncio.timeout(HOLD_S):
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        except (TimeoutError, asyncio.CancelledError) as error:
            with suppress(NucleusError):
                self.channel.send({"op": "withdraw", "conn": conn.number, "id": 0})
            if isinstance(error, TimeoutError):
                raise NoEgressError("nobody answered in time", rule="network.held") from None
            raise
        if conn.go.done():
            answer.add_done_callback(lambda done: done.cancelled() or done.exception())
            return conn.go.result()
        frame = answer.result()
        if isinstance(frame.header.get("error"), dict):
            raise error_from(frame.header["error"])
        raise NoEgressError("the gate did not let it go", rule="network.gate")

    def report(self, conn: Conn, ident: int, ended: str, reason: str = "") -> None:
        """Answer the gate's `go`: what this part moved, and how it ended."""
        up, down = (conn.mover.up, conn.mover.down) if conn.mover is not None else (0, 0)
        moved = {"up": up - conn.told[0], "down": down - conn.told[1]}
        conn.told = up, down
        extra = conn.metered.part() if conn.metered is not None else 0
        with suppress(NucleusError):
            self.channel.send({"id": ident, "ok": {**moved, "extra": extra, "ended": ended, "reason": reason}})

    async def refused(self, host: str, port: int, protocol: str, fault: str, head: Head | None = None) -> None:
        """Put on record what is refused here already: the gate denies it, whatever else it says."""
        method, path = (head.method, head.path) if head is not None else ("", "")
        conn = self.opened(Target(host, port, protocol, host, method, path, fault=fault[:200]))
        try:
            with suppress(NucleusError):
                await self.ask(conn)
        finally:
            self.closed(conn)

    async def credential(self, name: str, api: str) -> Carried:
        """The headers that carry a credential, and what must not come back. Raises NucleusError."""
        found = await self._fetched(name)
        _for_requests(found)
        if api:
            from nucleus.network import models

            return models.APIS[api].header(found.value.encode()), found.secrets()
        return found.headers(), found.secrets()

    async def key(self, name: str, header: Callable[[bytes], tuple[tuple[bytes, bytes], ...]]) -> Carried:
        """The same for a service that knows its own header; `name` "" for a service without one."""
        if not name:
            return header(b""), ()
        found = await self._fetched(name)
        _for_requests(found)
        return found.headers() or header(found.value.encode()), found.secrets()

    async def secret(self, name: str) -> str:
        """A credential of kind ``ssh``: the key. Raises NucleusError."""
        found = await self._fetched(name)
        if found.kind != "ssh":
            raise NoEgressError("the credential is no SSH key (`--kind ssh`)", rule="credentials.kind")
        return found.value

    async def _fetched(self, name: str) -> Credential:
        from nucleus.store.credentials import Credential  # weight: pods whose policy names credentials

        if self._vault is None:
            raise NoEgressError("no credential is at hand here", rule="credentials.none")
        frame = await self._vault.call({"op": "credential", "name": name})
        if not isinstance(frame.header.get("ok"), dict):
            raise error_from(frame.header.get("error"))
        return Credential.from_wire(frame.header["ok"])

    def opened(self, target: Target) -> Conn:
        """A new connection's entry; `closed` takes it away."""
        if len(self.conns) >= CONNECTIONS:
            raise NoEgressError("too many connections of this pod at a time", rule="network.connections")
        self._next += 1
        conn = Conn(self._next, target, task=asyncio.current_task())
        self.conns[conn.number] = conn
        return conn

    def closed(self, conn: Conn) -> None:
        """The entry's end."""
        self.conns.pop(conn.number, None)

    async def _fetch(self, ident: int, header: dict[str, Any], body: bytes) -> None:
        from nucleus.network.fetch import fetch  # aiohttp's client: only who fetches

        try:
            facts, content = await fetch(header["request"], body)
            answer: dict[str, Any] = {"ok": facts}
        except NucleusError as error:
            answer, content = {"error": error_object(error)}, b""
        with suppress(NucleusError):
            self.channel.send({"id": ident, **answer}, content)

    async def _service(self, ident: int, header: dict[str, Any], body: bytes) -> None:
        from nucleus.network import services

        try:
            answer: dict[str, Any] = {"ok": await services.call(self, header, body)}
        except NucleusError as error:
            answer = {"error": error_object(error)}
        with suppress(NucleusError):
            self.channel.send({"id": ident, **answer})

    # --- clients ---

    async def accept(self, listener: socket.socket, serve: Any) -> None:
        """Take clients of one listener, each in a task of its own, at most `CONNECTIONS`."""
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        await self.ready.wait()
        while True:
            try:
                client, _ = await loop.sock_accept(listener)
            except OSError:
                await asyncio.sleep(0.05)  # out of descriptors: who waits in the queue waits on
                continue
            if len(self.clients) >= 2 * CONNECTIONS:
                _reset(client)
                continue
            task = asyncio.ensure_future(self._client(client, serve))
            self.clients.add(task)
            task.add_done_callback(self.clients.discard)

    async def _client(self, client: socket.socket, serve: Any) -> None:
        client.setblocking(False)
        try:
            await serve(client)
        except NucleusError as error:
            await _say_no(client, error, b"")
        except (OSError, TimeoutError):
            _reset(client)
        finally:
            client.close()

    async def transparent(self, client: socket.socket) -> None:
        """Step 1 for whatever the pod connected to."""
        await self.arrived(client, *self._destination(client))

    async def arrived(self, client: socket.socket, host: str, port: int, early: bytes = b"") -> None:
        """Step 1 is done: `client` wants to go to `host` and `port`, and has said `early` already."""
        if host in self.pushes and port == 80:
            await self.pushes[host].serve(self, SocketStream(client), host, early)
            return
        rule = self.listed(host, port)
        if self.endpoint(host, port) is not None or (rule is not None and rule.protocol == "http"):
            await self.requests(client, host, port, early=early)
        elif rule is not None and rule.protocol == "https" and self._authority is not None:
            await self._opened(client, host, port, early)
        else:
            await self.carry(client, self.target(host, port), listed=rule is not None, early=early)

    async def _opened(self, client: socket.socket, host: str, port: int, early: bytes) -> None:
        """Steps 2 to 6 for TLS that ends here: the pod trusts our certificate for this one name."""
        from nucleus.network.tls import TlsStream  # weight: only where a rule opens TLS

        inner, read = await _server_name(client, early)
        if inner != host:
            await self.carry(client, Target(host, port, "tls"), listed=True, early=read)
            return
        assert self._authority is not None
        stream = await TlsStream.server(SocketStream(client), self._authority.context(host), read)
        # The client's last handshake message gets no answer of ours: unacknowledged for 40 ms, it would hold back the
        # first request of a client that does not set TCP_NODELAY.
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        await Requests(self, "https", (host, port)).serve(stream)

    def target(self, host: str, port: int) -> Target:
        """What a connection to `host` and `port` is read as."""
        rule = self.listed(host, port)
        return Target(host, port, rule.protocol if rule is not None else PORTS.get(port, "tcp"))

    def _destination(self, client: socket.socket) -> tuple[str, int]:
        raw = client.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16)
        port, packed = struct.unpack("!2xH4s8x", raw)
        return self.pool.name(packed) or socket.inet_ntoa(packed), port

    async def carry(self, client: socket.socket, target: Target, *, listed: bool, early: bytes = b"") -> None:
        """Steps 2 to 6 for one connection whose inside is not looked at beyond its first words."""
        read = early
        if target.protocol == "tls" and listed:
            target.inner, read = await _server_name(client, early)
        elif target.protocol == "http":
            target.inner = target.host
        conn = self.opened(target)
        try:
            ident = await self._watched(client, conn)
        except NucleusError as error:
            self.closed(conn)
            await _say_no(client, error, read)
            return
        except BaseException:
            self.closed(conn)
            raise
        try:
            await self._through(client, conn, ident, read)
        finally:
            self.closed(conn)

    async def _watched(self, client: socket.socket, conn: Conn) -> int:
        """`ask`, ended by a client that hangs up meanwhile."""
        asked = asyncio.ensure_future(self.ask(conn))
        gone = asyncio.ensure_future(_hung_up(client))
        try:
            await asyncio.wait((asked, gone), return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                raise ConnectionResetError("the client went away")
            return asked.result()
        finally:
            for task in (asked, gone):
                task.cancel()
            await asyncio.gather(asked, gone, return_exceptions=True)

    async def _through(self, client: socket.socket, conn: Conn, ident: int, read: bytes) -> None:
        """Steps 4 and 5."""
        try:
            server = await self.reach(conn.target)
        except upstream.UpstreamError as error:
            self.report(conn, ident, "unreachable", str(error))
            await _say_no(client, NoEgressError(str(error), rule="network.unreachable"), read)
            return
        except BaseException:
            self.report(conn, ident, "cut")
            raise
        holder = [ident]
        relay = Relay(client, server, early=read, allowance=self.allowance, more=lambda: self.more(conn, holder))
        conn.mover = relay
        ended = "cut"
        try:
            ended = await relay.run()
        finally:
            server.close()
            for last in holder:
                self.report(conn, last, ended, relay.reason)

    async def more(self, conn: Conn, holder: list[int]) -> int:
        """Step 5: this part is over; bytes that the next one may move, 0 for none. `holder`: the gate's `go`."""
        self.report(conn, holder.pop(), "more")
        conn.part += 1
        try:
            holder.append(await self.ask(conn))
        except NucleusError:
            return 0
        return self.allowance

    async def requests(self, client: socket.socket, host: str, port: int, early: bytes = b"") -> None:
        """Steps 2 to 6 for each request of a connection that speaks HTTP. `host` "": a client of the proxy says it."""
        await Requests(self, "http", (host, port) if host else None).serve(SocketStream(client), early)

    async def stream(self, target: Target) -> Stream:
        """Step 4 for a request: `reach`, and TLS where the request came in one."""
        stream = SocketStream(await self.reach(target))
        return await verified(stream, target.host) if target.protocol == "https" else stream

    async def reach(self, target: Target) -> socket.socket:
        """Step 4: a connected socket to a checked address of `target`."""
        ranges = [rule.host for rules in self.rules for rule in rules if "/" in rule.host and rule.port == target.port]
        literal = addresses.literal(target.host)
        found = [literal] if literal is not None else await upstream.resolve(target.host, target.port)
        upstream.check(found, ranges)
        return await upstream.connect(found, target.port)

    # --- names ---

    def named(self, name: str) -> bool:
        """Does the pod's DNS know `name`? What it does not is told to the gate, once each."""
        if self.listed(name) is not None or name in self.endpoints or name in self.pushes:
            return True
        if name not in self._unlisted and len(self._unlisted) < 64:
            self._unlisted.add(name)
            with suppress(NucleusError):
                self.channel.send({"op": "unlisted", "names": [name[:253]], "id": 0})
        return False

    def address(self, name: str) -> bytes:
        """The synthetic address of `name`, which `named` knows."""
        rule = self.listed(name)
        return self.pool.address(name, rule.host if rule is not None else name)


def _for_requests(found: Credential) -> None:
    if found.kind == "ssh":  # a key of this kind leaves the gateway for nobody
        raise NoEgressError("an SSH key is no credential of requests", rule="credentials.kind")


async def serve(
    gate: socket.socket,
    transparent: socket.socket,
    proxy: socket.socket,
    dns_udp: socket.socket,
    dns_tcp: socket.socket,
    authority: PodCa | None = None,
    vault: socket.socket | None = None,
) -> None:
    """Be the gateway of one pod until its gate is gone. `vault`: the authority, which has the credentials."""
    from nucleus.network.proxy import serve_proxy

    fetching = await Channel.over(vault, _locked) if vault is not None else None
    gateway = Gateway(authority, fetching)
    over = asyncio.Event()
    gateway.channel = await Channel.over(
        gate,
        lambda: NoEgressError("the gate is gone", rule="network.gate"),
        on_request=gateway.received,
        on_closed=over.set,
    )
    from nucleus.network.dnsdoor import serve_dns

    tasks = [
        asyncio.ensure_future(gateway.accept(transparent, gateway.transparent)),
        asyncio.ensure_future(gateway.accept(proxy, lambda client: serve_proxy(gateway, client))),
        asyncio.ensure_future(serve_dns(Responder(gateway.named, gateway.address), dns_udp, dns_tcp, gateway.ready)),
    ]
    await over.wait()
    running = (*tasks, *gateway.clients, *gateway.fetching.values())
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    if fetching is not None:
        fetching.close()


def pod_authority(opens: list[str]) -> PodCa | None:
    """The authority of a pod whose rules open the TLS of these hosts; None where none is opened."""
    if not opens:
        return None
    from datetime import UTC, datetime

    from nucleus.network.pod_ca import PodCa  # weight: cryptography

    return PodCa(opens, datetime.now(UTC))


def _locked() -> NucleusError:
    return NoEgressError("the credentials are not at hand", rule="credentials.gone")


def _endpoints(rules: tuple[tuple[Rule, ...], ...]) -> dict[str, Rule]:
    """The local endpoint of each model's API, by name: the first rule for it that names one host."""
    found = sorted((rule for some in rules for rule in some if rule.model), key=lambda rule: rule.host)
    named = [rule for rule in found if not rule.host.startswith("*.")]
    return {f"{rule.model}.{ENDPOINT}": rule for rule in reversed(named)}


def _matches(rule: Rule, host: str, port: int | None) -> bool:
    """Does `rule` cover `host` (at any port, for a name that is looked up)?"""
    if port is not None and rule.port != port:
        return False
    address = addresses.literal(host)
    if address is not None:
        return "/" in rule.host and address in ipaddress.ip_network(rule.host)
    return covers(rule.host, host)


def _shown(conn: Conn) -> dict[str, Any]:
    target, mover = conn.target, conn.mover
    return {
        "conn": conn.number,
        "host": target.host,
        "port": target.port,
        "protocol": target.protocol,
        "up": mover.up if mover is not None else 0,
        "down": mover.down if mover is not None else 0,
        "waiting": mover is None,
    }


async def _server_name(client: socket.socket, early: bytes) -> tuple[str, bytes]:
    """Step 2 for TLS: what the ClientHello names ("-" for nothing, "ech" for a hidden name), and the bytes read."""
    loop = asyncio.get_running_loop()
    reader, read = Reader(), bytearray(early)
    try:
        hello = reader.feed(early) if early else None
        async with asyncio.timeout(HELLO_S):
            while hello is None:
                data = await loop.sock_recv(client, 16_384)
                if not data:
                    raise ConnectionResetError("the client went away")
                read += data
                hello = reader.feed(data)
    except InvalidError:
        return "-", bytes(read)  # what cannot be read names nobody
    if hello.ech:
        return "ech", bytes(read)
    return hello.sni or "-", bytes(read)


async def _hung_up(client: socket.socket) -> None:
    """Returns when the client has closed or reset its connection."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            if client.recv(1, socket.MSG_PEEK) == b"":
                return
        except BlockingIOError:
            pass
        except OSError:
            return
        # A client that has said more than it was asked for is readable all the time.
        await asyncio.sleep(0.25)
        assert loop.is_running()


async def _say_no(client: socket.socket, error: NucleusError, read: bytes) -> None:
    """Step 6."""
    loop = asyncio.get_running_loop()
    if not read:
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(LINGER_S):
                read = await loop.sock_recv(client, 16_384)
    answer = b""
    if read[:1] == b"\x16":
        answer = alert(ACCESS_DENIED)
    elif read.split(b" ", 1)[0] in (b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"CONNECT"):
        answer = refusal(403, error.code, error.message)
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(LINGER_S):
            if answer:
                await loop.sock_sendall(client, answer)
                client.shutdown(socket.SHUT_WR)
                while await loop.sock_recv(client, 65_536):  # or the reset overtakes the answer
                    pass
                return
    _reset(client)


def _reset(client: socket.socket) -> None:
    """Close with a reset: the client fails at once."""
    with suppress(OSError):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
