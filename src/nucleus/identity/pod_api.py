"""The SPIFFE Workload API of one pod: the process behind its socket (`nucleus.pod.endpoint` starts it).

Promises: whoever gets hold of this process gets what the pod's own agent gets, and nothing else: the authority's
channel is of this pod, and what is asked on it names no identity. Nothing of another pod's is ever here. It ends when
nobody has been connected for `IDLE_S`, when the builder or the authority ends, and with its pod.
Relies on: the listening socket, which only the pod's agent can reach; SO_PEERCRED; `workload_api`, which reads what
callers send.
Does not: hold a key or a privilege; decide anything: the uid that it reports is compared by the authority.

Steps of the start:
1. the listening socket and the authority's channel, from the builder
2. a uid of its own (as root), no capability, little to use up
3. accept
"""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import socket
from typing import Any

from nucleus.errors import InvalidError, SandboxError
from nucleus.frames import Decoder, encode
from nucleus.identity.workload import Peer, peer_credentials
from nucleus.identity.workload_api import ASKED, CHANNEL_FD, Calls, become, serve_connection
from nucleus.pod.packets import checked, close_all, recv_packet

IDLE_S = 60.0
LOOK_S = (
    10.0  # how often bundles are looked at; a revocation is told at once, and a root is known hours before it signs
)
CONNECTIONS = 8  # of the pod at a time
MEMORY_BYTES = 536_870_912  # RLIMIT_DATA
FILES = 64
_FRAME_BYTES = 1_048_576


class Authority:
    """Requests on the pod's channel to the authority, answered by id.

    Args:
        reader, writer: the channel.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._number = 0
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._room = asyncio.Semaphore(ASKED)
        self._changed = asyncio.Event()

    async def call(self, op: str, **fields: Any) -> dict[str, Any]:
        """Ask and wait. Raises NucleusError as the authority reported it; SandboxError: it is gone."""
        await self._room.acquire()
        self._number += 1
        number, future = self._number, asyncio.get_running_loop().create_future()
        # Also when the caller has gone meanwhile: there is room again once the authority has answered.
        future.add_done_callback(lambda _: self._room.release())
        try:
            data = encode({"id": number, "op": op, **fields})
        except InvalidError:
            future.cancel()
            raise
        self._waiting[number] = future
        self._writer.write(data)
        return checked(await asyncio.shield(future))

    def change(self) -> asyncio.Event:
        """What is set at the next change of bundles or revocations."""
        return self._changed

    def close(self) -> None:
        """Give the channel up."""
        self._writer.close()

    async def read(self) -> None:
        """Take answers until the authority ends."""
        decoder = Decoder(_FRAME_BYTES)
        try:
            while data := await self._reader.read(262_144):
                for frame in decoder.feed(data):
                    self._take(frame.header)
        except (OSError, InvalidError):
            return

    def _take(self, header: dict[str, Any]) -> None:
        number = header.get("id")
        if number == 0:
            self._tell()
            return
        future = self._waiting.pop(number, None) if type(number) is int else None
        if future is not None and not future.done():
            future.set_result(header)

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def look(self) -> None:
        """Ask now and then whether anything has changed; the first time has us told of revocations."""
        version = ""
        while True:
            found = str((await self.call("state")).get("version"))
            if version and found != version:
                self._tell()
            version = found
            await asyncio.sleep(LOOK_S)


class Pod:
    """The connections of the pod, and their answers (`workload_api.Answers`).

    Args:
        door: listening.
        authority: asked for each answer.
    """

    def __init__(self, door: socket.socket, authority: Authority) -> None:
        self._door = door
        self._authority = authority
        self._loop = asyncio.get_running_loop()
        self._peers: dict[int, Peer] = {}
        self._number = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self.idle: asyncio.Future[None] = self._loop.create_future()
        self._timer = self._loop.call_later(IDLE_S, self._left)

    def acceptable(self) -> None:
        """Somebody connects."""
        try:
            sock, _ = self._door.accept()
        except OSError:
            return
        try:
            peer = peer_credentials(sock)
        except OSError:
            sock.close()
            return
        if len(self._peers) >= CONNECTIONS:
            sock.close()
            return
        self._timer.cancel()
        self._number += 1
        number = self._number
        self._peers[number] = peer
        task = self._loop.create_task(serve_connection(sock, Calls(self, number, 0), lambda: self._closed(number)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _closed(self, number: int) -> None:
        if self._peers.pop(number, None) is not None and not self._peers:
            self._timer = self._loop.call_later(IDLE_S, self._left)

    def _left(self) -> None:
        if not self.idle.done():
            self.idle.set_result(None)

    async def ask(self, op: str, conn: int, **fields: Any) -> dict[str, Any]:
        """What is the pod's, for the process that this connection is."""
        peer = self._peers.get(conn)
        if peer is None:
            raise SandboxError("the caller has gone", rule="identity.api")
        facts = {"uid": peer.uid, "gid": 0, "groups": [], "pid": peer.pid, "path": None, "sha256": None, "pod": None}
        return await self._authority.call(op, facts=facts, **fields)

    def change(self) -> asyncio.Event:
        """See `Authority.change`."""
        return self._authority.change()


async def run(control: socket.socket, door: socket.socket, channel: socket.socket) -> None:
    """Serve until the builder or the authority ends, or nobody has been here for a while."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda *_: None)  # what a caller broke is the caller's; it may be of any length
    control.setblocking(False)
    door.setblocking(False)
    authority = Authority(*await asyncio.open_unix_connection(sock=channel))
    pod = Pod(door, authority)
    loop.add_reader(door.fileno(), pod.acceptable)
    ended = asyncio.Event()
    loop.add_reader(control.fileno(), ended.set)
    ends = [asyncio.ensure_future(one) for one in (ended.wait(), pod.idle, authority.read(), authority.look())]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    for end in ends:
        end.cancel()
    loop.remove_reader(control.fileno())
    loop.remove_reader(door.fileno())
    authority.close()


def main() -> int:
    """The process; its exit code."""
    control = socket.socket(fileno=CHANNEL_FD)
    packet = recv_packet(control, max_fds=2)  # 1
    if packet is None or len(packet.fds) != 2:
        close_all(packet.fds if packet is not None else ())
        return 1
    door, channel = (socket.socket(fileno=fd) for fd in packet.fds)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))
    become(int(packet.body["uid"]))  # 2
    logging.disable(logging.CRITICAL)  # grpclib logs tracebacks of what callers do
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with control, door, channel:
        asyncio.run(run(control, door, channel))  # 3
    return 0
