"""The standard SPIFFE Workload API over gRPC: the process that reads what callers send, and holds nothing.

Promises: the five calls of `SpiffeWorkloadAPI` as the standard has them; a call without the metadata
``workload.spiffe.io: true`` is InvalidArgument before anything of it is read (Workload Endpoint, section 5); a caller
without an entry gets PermissionDenied; a new SVID is pushed before the old one is over half its life, and whenever
entries or bundles change; messages, streams and connections are bounded before they cost anything.
Relies on: `listener`, which hands over connections and answers only for the caller that each of them is; `grpclib` and
`h2` for HTTP/2, `protobuf` for messages.
Does not: hold a key, a privilege or a file; open a socket; know who calls.

Steps of a call:
1. the number of streams of its connection
2. the mandatory metadata
3. one message, its length checked before it is buffered, uncompressed
4. the listener's answer, asked anew for each message that is sent
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

from grpclib.config import Configuration
from grpclib.const import Cardinality, Status
from grpclib.const import Handler as Method
from grpclib.encoding.proto import ProtoCodec
from grpclib.events import _DispatchServerEvents
from grpclib.exceptions import GRPCError
from grpclib.protocol import H2Protocol
from grpclib.server import Handler, Stream
from h2.config import H2Configuration

from nucleus.errors import BudgetError, DeniedError, InvalidError, NucleusError, UnauthenticatedError
from nucleus.identity import jwt_svid, sds_proto
from nucleus.identity import workload_proto as proto
from nucleus.identity.rpc import Answers, Call, due, receive, set_within
from nucleus.identity.sds import Secrets
from nucleus.kernel import reachable, syscalls
from nucleus.pod.packets import Packet, checked, close_all, recv_packet, send_packet

CHANNEL_FD = 3
HEADER = "workload.spiffe.io"
MAX_MESSAGE_BYTES = 16_384
MAX_STREAMS = 16  # of one connection at a time
MAX_RESETS = 256  # streams that one connection may take back
ASKED = 8  # requests to the listener at a time: what both ends send fits their buffers, so neither waits for the other
_WINDOW = 65_536  # bytes of HTTP/2 flow control, of a stream and of a connection: grpclib's least
_STATUS: tuple[tuple[type[NucleusError], Status], ...] = (
    (InvalidError, Status.INVALID_ARGUMENT),
    (UnauthenticatedError, Status.PERMISSION_DENIED),
    (DeniedError, Status.PERMISSION_DENIED),
    (BudgetError, Status.RESOURCE_EXHAUSTED),
)


class Listener:
    """The other process: what it says of connections.

    Args:
        channel: packets; non-blocking to read, and never filled by us (`ASKED`).
        on_connection: takes a connection's number and its socket, which is then its own.
    """

    def __init__(self, channel: socket.socket, on_connection: Callable[[int, socket.socket], None]) -> None:
        self._channel = channel
        self._on_connection = on_connection
        self._number = 0
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._room = asyncio.Semaphore(ASKED)
        self._changed = asyncio.Event()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def readable(self) -> None:
        """Every packet that is there."""
        while not self.ended.done():
            try:
                packet = recv_packet(self._channel, max_fds=1)
            except BlockingIOError:
                return
            except (OSError, InvalidError):
                packet = None
            if packet is None:
                self.ended.set_result(None)
                return
            self._take(packet)

    def _take(self, packet: Packet) -> None:
        match packet.body.get("event"):
            case "connection":
                self._on_connection(int(packet.body["conn"]), socket.socket(fileno=packet.fds.pop()))
            case "changed":
                self._changed.set()
                self._changed = asyncio.Event()
            case _:
                future = self._waiting.pop(packet.body.get("id", 0), None)
                if future is not None and not future.done():
                    future.set_result(packet.body)
        close_all(packet.fds)

    async def ask(self, op: str, conn: int, **fields: Any) -> dict[str, Any]:
        """What is this connection's. Raises NucleusError as the listener or the authority reported it."""
        await self._room.acquire()
        self._number += 1
        future = self._waiting[self._number] = asyncio.get_running_loop().create_future()
        # Also when the caller has gone meanwhile: there is room again once the listener has answered.
        future.add_done_callback(lambda _: self._room.release())
        send_packet(self._channel, {"id": self._number, "op": op, "conn": conn, **fields})
        return checked(await asyncio.shield(future))

    def closed(self, conn: int) -> None:
        """A connection has ended."""
        try:
            send_packet(self._channel, {"event": "closed", "conn": conn})
        except OSError:
            return  # the listener is gone, and so are we

    def change(self) -> asyncio.Event:
        """What is set at the next change of entries or bundles."""
        return self._changed


class Calls:
    """The API for one connection; see the module.

    Args:
        listener: asked for each answer.
        conn: this connection's number.
        refresh_s: push at the latest after so many seconds; 0: at half-life.
    """

    def __init__(self, listener: Answers, conn: int, refresh_s: int) -> None:
        self._listener = listener
        self._conn = conn
        self._refresh_s = refresh_s
        self._streams = 0

    def mapping(self) -> dict[str, Method]:
        """For grpclib: the path of each call."""
        unary, stream = Cardinality.UNARY_UNARY, Cardinality.UNARY_STREAM
        table = (
            ("FetchX509SVID", self._x509_svid, stream, proto.X509SVIDRequest, proto.X509SVIDResponse),
            ("FetchX509Bundles", self._x509_bundles, stream, proto.X509BundlesRequest, proto.X509BundlesResponse),
            ("FetchJWTSVID", self._jwt_svid, unary, proto.JWTSVIDRequest, proto.JWTSVIDResponse),
            ("FetchJWTBundles", self._jwt_bundles, stream, proto.JWTBundlesRequest, proto.JWTBundlesResponse),
            ("ValidateJWTSVID", self._validate, unary, proto.ValidateJWTSVIDRequest, proto.ValidateJWTSVIDResponse),
        )
        standard = {
            f"/{proto.SERVICE}/{name}": Method(self._bounded(_guarded(call, asked)), kind, asked, answered)
            for name, call, kind, asked, answered in table
        }
        secrets = Secrets(self._listener, self._conn, self._refresh_s).calls()
        return standard | {
            path: Method(self._bounded(call), kind, sds_proto.DiscoveryRequest, sds_proto.DiscoveryResponse)
            for path, (call, kind) in secrets.items()
        }

    def _bounded(self, call: Call) -> Call:
        async def method(stream: Stream[Any, Any]) -> None:
            if self._streams >= MAX_STREAMS:  # 1
                raise GRPCError(Status.RESOURCE_EXHAUSTED, f"over {MAX_STREAMS} calls of one connection at a time")
            self._streams += 1
            try:
                await call(stream)
            except NucleusError as error:
                _refuse(error)
            finally:
                self._streams -= 1

        return method

    # -- X.509 (Workload API, section 5) ---------------------------------------------------------------------------

    async def _x509_svid(self, stream: Stream[Any, Any], _: Any) -> None:
        while True:
            change = self._listener.change()
            answer = await self._listener.ask("x509", self._conn)  # 4
            await stream.send_message(_x509_response(answer, await self._foreign(answer)))
            await self._until_other(change, answer)

    async def _until_other(self, change: asyncio.Event, answer: dict[str, Any]) -> None:
        """Until what was answered is due again, or would be answered otherwise."""
        serials = [svid["serial"] for svid in answer["svids"]]
        at = due(answer, self._refresh_s)
        while await set_within(change, at - time.monotonic()):
            change = self._listener.change()
            looked = await self._listener.ask("look", self._conn, serials=serials)
            if looked.get("digest") != answer.get("digest"):
                return

    async def _x509_bundles(self, stream: Stream[Any, Any], _: Any) -> None:
        await self._bundles(stream, _x509_bundles_response)

    # -- JWT (section 6) -------------------------------------------------------------------------------------------

    async def _jwt_svid(self, stream: Stream[Any, Any], asked: Any) -> None:
        audience = list(asked.audience)
        if not audience:
            raise InvalidError("an audience is required (Workload API 6.2.1)", rule="jwt.audience")
        answer = await self._listener.ask("jwt", self._conn, audience=audience, spiffe_id=asked.spiffe_id)  # 4
        response = proto.JWTSVIDResponse()
        for svid in answer["svids"]:
            response.svids.add(**svid)
        await stream.send_message(response)

    async def _jwt_bundles(self, stream: Stream[Any, Any], _: Any) -> None:
        await self._bundles(stream, _jwt_bundles_response)

    async def _validate(self, stream: Stream[Any, Any], asked: Any) -> None:
        if not asked.audience or not asked.svid:
            raise InvalidError("audience and svid are required (Workload API 6.2.3)", rule="jwt.audience")
        answer = await self._listener.ask("bundles", self._conn)  # 4
        own = str(answer["trust_domain"])
        foreign = await self._foreign(answer)
        # Ours last: whatever a foreign bundle is called, our name has our keys.
        roots = {name: jwt_svid.read_jwks(one["jwks"]) for name, one in foreign.items()}
        roots[own] = jwt_svid.read_jwks(answer["jwks"])
        try:
            found = jwt_svid.validate(asked.svid, asked.audience, roots, time.time_ns())
            if found.spiffe_id.trust_domain == own:
                name, issued_ns = str(found.spiffe_id), jwt_svid.issued_ns(found)
                if (await self._listener.ask("token", self._conn, spiffe_id=name, issued_ns=issued_ns))["revoked"]:
                    raise UnauthenticatedError("the token's SPIFFE ID is revoked", rule="jwt.revoked")
        except UnauthenticatedError as error:  # of the token, not of the caller
            raise InvalidError(error.message, rule=error.rule) from error
        response = proto.ValidateJWTSVIDResponse(spiffe_id=str(found.spiffe_id))
        response.claims.update(found.claims)
        await stream.send_message(response)

    async def _foreign(self, answer: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """The bundles of the foreign trust domains that an answer names."""
        found = {}
        for name in answer["federated"]:
            try:
                found[str(name)] = await self._listener.ask("federated", self._conn, trust_domain=name)
            except DeniedError as error:
                if error.rule != "identity.federation":  # it was taken away just now: a change is on its way
                    raise
        return found

    # -- bundles ---------------------------------------------------------------------------------------------------

    async def _bundles(self, stream: Stream[Any, Any], made: Callable[[dict[str, Any], dict[str, Any]], Any]) -> None:
        sent = b""
        while True:
            change = self._listener.change()
            answer = await self._listener.ask("bundles", self._conn)  # 4
            response = made(answer, await self._foreign(answer))
            data = response.SerializeToString(deterministic=True)
            if data != sent:
                await stream.send_message(response)
                sent = data
            await change.wait()


def _guarded(call: Callable[[Any, Any], Awaitable[None]], asked: Any) -> Call:
    """A call of the standard: its metadata, its one message."""

    async def method(stream: Stream[Any, Any]) -> None:
        metadata = stream.metadata
        if metadata is None or metadata.getall(HEADER, []) != ["true"]:  # 2
            raise GRPCError(Status.INVALID_ARGUMENT, f"the security header {HEADER}: true is missing")
        await call(stream, await receive(stream, asked, MAX_MESSAGE_BYTES))  # 3

    return method


def _x509_response(answer: dict[str, Any], foreign: dict[str, Any]) -> Any:
    bundle = base64.b64decode(answer["bundle"])
    response = proto.X509SVIDResponse()
    for svid in answer["svids"]:
        response.svids.add(
            spiffe_id=svid["spiffe_id"],
            x509_svid=base64.b64decode(svid["chain"]),
            x509_svid_key=base64.b64decode(svid["key"]),
            bundle=bundle,
            hint=svid["hint"],
        )
    for name, der in _roots(foreign).items():
        response.federated_bundles[name] = der
    return response


def _roots(foreign: dict[str, Any]) -> dict[str, bytes]:
    """By trust domain ID (section 5.1); one without roots has no X.509 bundle."""
    return {f"spiffe://{name}": base64.b64decode(one["x509"]) for name, one in foreign.items() if one["x509"]}


def _x509_bundles_response(answer: dict[str, Any], foreign: dict[str, Any]) -> Any:
    # The key is the trust domain's SPIFFE ID (section 5.1).
    own = {f"spiffe://{answer['trust_domain']}": base64.b64decode(answer["x509"])}
    return proto.X509BundlesResponse(bundles=_roots(foreign) | own)


def _jwt_bundles_response(answer: dict[str, Any], foreign: dict[str, Any]) -> Any:
    bundles = {f"spiffe://{name}": one["jwks"].encode() for name, one in foreign.items()}
    return proto.JWTBundlesResponse(bundles=bundles | {f"spiffe://{answer['trust_domain']}": answer["jwks"].encode()})


def _refuse(error: NucleusError) -> NoReturn:
    status = next((status for family, status in _STATUS if isinstance(error, family)), Status.UNAVAILABLE)
    if status is Status.PERMISSION_DENIED:
        raise GRPCError(status, "no identity issued") from None  # why is on record, for the person
    message = "no identity can be issued now" if status is Status.UNAVAILABLE else error.message
    raise GRPCError(status, message) from None


class _Handler(Handler):
    """grpclib's, with an end to streams that are opened only to be reset (CVE-2023-44487)."""

    def __init__(self, calls: Calls) -> None:
        super().__init__(calls.mapping(), ProtoCodec(), None, _DispatchServerEvents())
        self.connection: H2Protocol | None = None
        self._resets = 0

    def cancel(self, stream: Any) -> None:
        super().cancel(stream)
        self._resets += 1
        if self._resets > MAX_RESETS and self.connection is not None:
            self.connection.processor.close("too many resets")


class _Connection(H2Protocol):
    """One caller; tells the listener when it has ended."""

    def __init__(self, handler: _Handler, on_end: Callable[[], None]) -> None:
        config = Configuration(http2_connection_window_size=_WINDOW, http2_stream_window_size=_WINDOW).__for_server__()
        super().__init__(handler, config, H2Configuration(client_side=False, header_encoding="ascii"))
        self._on_end = on_end
        handler.connection = self

    def data_received(self, data: bytes) -> None:
        try:
            super().data_received(data)
        except Exception:  # noqa: BLE001 -- hostile bytes: whatever h2 or grpclib trip over, this connection is over
            self.processor.close("protocol error")

    def connection_lost(self, error: BaseException | None) -> None:
        super().connection_lost(error)
        self._on_end()


async def serve_connection(sock: socket.socket, calls: Calls, on_end: Callable[[], None]) -> None:
    """Begin to answer on an accepted socket, which is taken over; `on_end` is called when it has ended."""
    sock.setblocking(False)
    try:
        made = asyncio.get_running_loop().connect_accepted_socket(lambda: _Connection(_Handler(calls), on_end), sock)
        await made
    except OSError:
        sock.close()
        on_end()


async def run(channel: socket.socket, refresh_s: int) -> None:
    """Serve the connections that come over `channel` until it ends."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda *_: None)  # what a caller broke is the caller's; it may be of any length
    tasks: set[asyncio.Task[Any]] = set()

    def connected(number: int, sock: socket.socket) -> None:
        serving = serve_connection(sock, Calls(listener, number, refresh_s), lambda: listener.closed(number))
        task = loop.create_task(serving)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    channel.setblocking(False)
    listener = Listener(channel, connected)
    loop.add_reader(channel.fileno(), listener.readable)
    await listener.ended
    loop.remove_reader(channel.fileno())


def become(uid: int) -> None:
    """Nobody in particular: `uid` (-1: as we are), no groups, no capabilities, not to be looked into."""
    parent = os.getppid()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if uid > 0 and os.geteuid() == 0:
        reachable.keep()
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    syscalls.drop_all_capabilities()
    syscalls.set_no_new_privs()
    syscalls.set_dumpable(False)
    syscalls.set_pdeathsig(signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


def main() -> int:
    """The process: ``configure`` first, then connections; its exit code."""
    os.umask(0o077)
    channel = socket.socket(fileno=CHANNEL_FD)
    packet = recv_packet(channel, max_fds=0)
    if packet is None:
        return 0
    become(int(packet.body["uid"]))
    logging.disable(logging.CRITICAL)  # grpclib logs tracebacks of what callers do
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the listener's to handle
    send_packet(channel, {"id": 0, "ok": {}})
    asyncio.run(run(channel, int(packet.body["refresh_s"])))
    return 0
