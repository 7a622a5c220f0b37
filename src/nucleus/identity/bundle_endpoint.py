"""Our bundle endpoint (SPIFFE_Federation 5): two processes, as for the Workload API.

Promises: the process that reads what the network sends holds no privilege, no file and no key but the endpoint's own
TLS key, and can say nothing but our public bundle; TLS 1.3 alone; connections, their bytes and their time are bounded.
Relies on: `serve`'s caller for the channel to the authority; `boot` for an empty environment.
Does not: authenticate who asks: a bundle is public [5.1]. Redirect, compress, keep connections alive.

Steps of the start (`serve`):
1. the socket is bound, while we may
2. the network's process is started; it takes a uid of its own before it is given the socket
3. it is given the document and the certificate, and serves; both again whenever they change
Steps of a connection, in the other process: a place among `CONNECTIONS`, and of its address; the handshake; one head of
at most `HEAD_BYTES`; one answer; all of it within `ANSWER_S`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import signal
import socket
import ssl
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from nucleus.errors import InvalidError, NucleusError, SandboxError
from nucleus.identity.listener import ANSWER_S as CHANNEL_S
from nucleus.identity.listener import Signals
from nucleus.identity.tls import bundle_context
from nucleus.pod import boot
from nucleus.pod.packets import Packet, checked, close_all, error_body, recv_packet, send_packet

ENDPOINT_UID = 0x70000004  # as root; beside the Workload API's (docs/adr/0020-federation.md)
CONNECTIONS = 128  # at a time
CONNECTIONS_OF_AN_ADDRESS = 32
HEAD_BYTES = 8_192
HANDSHAKE_S, ANSWER_S = 5.0, 10.0
POLL_S = 2.0  # how often the authority is asked for the bundle
_BACKLOG = 128
_CHANNEL_FD = 3
_COMMAND = (
    sys.executable,
    "-I",
    "-c",
    "from nucleus.identity.bundle_endpoint import main; raise SystemExit(main())",
)
Credentials = Callable[[], tuple[str, str]]
"""The endpoint's certificate chain and key, PEM, as they are now."""


def listen(host: str, port: int) -> socket.socket:
    """The TCP socket. Raises SandboxError: rule ``identity.endpoint``: it cannot be bound."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    door = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind((host, port))
        door.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        door.close()
        raise SandboxError(f"{host}:{port}: {error}", rule="identity.endpoint") from error
    return door


def serve(
    door: socket.socket, document: Callable[[], str], credentials: Credentials, path: str, ready: Callable[[], None]
) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP.

    Args:
        door: listening; closed here.
        document: our bundle now.
        credentials: see `Credentials`.
        path: of the URL; every other is 404.
        ready: called once the endpoint answers.

    Raises:
        NucleusError: what `document` and `credentials` raise, or the other process has ended.
    """
    pid, other = 0, None
    try:
        pid, channel = boot.start(_COMMAND)  # 2
        other = socket.socket(fileno=channel.detach())
        other.settimeout(CHANNEL_S)
        uid = ENDPOINT_UID if os.geteuid() == 0 else -1
        _tell(other, {"op": "configure", "uid": uid, "path": path}, [door.fileno()])
        door.close()
        with Signals() as stop:
            told: dict[str, str] = {}
            poll = select.poll()
            poll.register(other, select.POLLIN)
            poll.register(stop, select.POLLIN)
            while True:
                chain, key = credentials()
                current = {"document": document(), "cert_pem": chain, "key_pem": key}
                if current != told:
                    _tell(other, {"op": "update", **current})  # 3
                    if not told:
                        ready()
                    told = current
                found = {fd for fd, _ in poll.poll(int(POLL_S * 1_000))}
                if stop in found:
                    return
                if found:
                    raise SandboxError("the endpoint's process has ended", rule="identity.endpoint")
    finally:
        door.close()
        if other is not None:
            other.close()  # its end is the process's
            os.waitpid(pid, 0)


def _tell(channel: socket.socket, body: dict[str, Any], fds: list[int] | None = None) -> None:
    try:
        send_packet(channel, {"id": 0, **body}, fds or [])
        packet = recv_packet(channel, max_fds=0)
    except OSError as error:
        raise SandboxError("the endpoint's process has ended", rule="identity.endpoint") from error
    if packet is None:
        raise SandboxError("the endpoint's process has ended", rule="identity.endpoint")
    checked(packet.body)


# -- the network's process -----------------------------------------------------------------------------------------


class Endpoint:
    """Answers with one document.

    Args:
        door: listening, non-blocking.
        path: where.
    """

    def __init__(self, door: socket.socket, path: str) -> None:
        self._door = door
        self._path = path
        self._context: ssl.SSLContext | None = None
        self._document = b""
        self._of_address: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(CONNECTIONS)

    def update(self, document: str, cert_pem: str, key_pem: str) -> None:
        """From the next connection on. Raises InvalidError: OpenSSL refuses certificate or key; the old stay."""
        self._context = bundle_context(cert_pem, key_pem)
        self._document = document.encode()

    async def run(self) -> None:
        """Accept until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._room.acquire()
            try:
                sock, address = await loop.sock_accept(self._door)
            except OSError:
                self._room.release()
                await asyncio.sleep(0.05)  # out of descriptors, or the caller is gone: not a busy loop
                continue
            task = loop.create_task(self._connection(sock, str(address[0])))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._room.release()

    async def _connection(self, sock: socket.socket, address: str) -> None:
        if self._of_address[address] >= CONNECTIONS_OF_AN_ADDRESS:
            sock.close()
            return
        self._of_address[address] += 1
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                async with asyncio.timeout(ANSWER_S):
                    await self._answer(sock)
        finally:
            sock.close()
            self._of_address[address] -= 1
            if not self._of_address[address]:
                del self._of_address[address]

    async def _answer(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=HEAD_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol, sock, ssl=self._context, ssl_handshake_timeout=HANDSHAKE_S, ssl_shutdown_timeout=2
        )
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            writer.write(answer(head, self._path, self._document))
            await writer.drain()
            writer.close()
            await writer.wait_closed()
        finally:
            transport.abort()


def answer(head: bytes, path: str, document: bytes) -> bytes:
    """What is said to a request's head: the document to a GET of `path`, else why not."""
    words = head.split(b"\r\n", 1)[0].split(b" ")
    if len(words) != 3 or words[2] not in (b"HTTP/1.1", b"HTTP/1.0"):
        return _response("400 Bad Request", b"")
    if words[0] not in (b"GET", b"HEAD"):
        return _response("405 Method Not Allowed", b"", "Allow: GET, HEAD\r\n")
    if words[1].partition(b"?")[0] != path.encode("ascii"):
        return _response("404 Not Found", b"")
    found = _response("200 OK", document, "Content-Type: application/json\r\n")
    return found[: -len(document)] if words[0] == b"HEAD" else found


def _response(status: str, body: bytes, more: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\n{more}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode("ascii") + body


async def run(channel: socket.socket, door: socket.socket, path: str) -> None:
    """Serve `door` with what comes over `channel`, until that ends."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda *_: None)  # what a caller broke is the caller's
    endpoint = Endpoint(door, path)
    ended: asyncio.Future[None] = loop.create_future()
    serving: list[asyncio.Task[None]] = []

    def update(packet: Packet) -> None:
        body = packet.body
        try:
            endpoint.update(str(body["document"]), str(body["cert_pem"]), str(body["key_pem"]))
        except NucleusError as error:
            send_packet(channel, {"id": 0, "error": error_body(error)})
            return
        if not serving:
            serving.append(loop.create_task(endpoint.run()))
        send_packet(channel, {"id": 0, "ok": {}})

    def readable() -> None:
        packet = None
        with suppress(OSError, InvalidError):
            packet = recv_packet(channel, max_fds=0)
        if packet is None:
            ended.set_result(None)
            loop.remove_reader(channel.fileno())
            return
        update(packet)

    loop.add_reader(channel.fileno(), readable)
    await ended
    for task in serving:
        task.cancel()


def main() -> int:
    """The process: ``configure`` first, with the listening socket; its exit code."""
    from nucleus.identity.workload_api import become

    os.umask(0o077)
    channel = socket.socket(fileno=_CHANNEL_FD)
    packet = recv_packet(channel, max_fds=1)
    if packet is None or len(packet.fds) != 1:
        if packet is not None:
            close_all(packet.fds)
        return 0
    become(int(packet.body["uid"]))
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other process's to handle
    door = socket.socket(fileno=packet.fds[0])
    door.setblocking(False)
    send_packet(channel, {"id": 0, "ok": {}})
    asyncio.run(run(channel, door, str(packet.body["path"])))
    return 0
