"""Copying a connection both ways, counted, bounded by an allowance, and cut when it is told to.

 1. What was read from the client before the decision (a ClientHello) goes first, and counts.
 2. Nothing is read that the allowance does not cover: where it is used up both ways stop, and wait for more or the end.
 3. A cut, an end by the allowance, and a peer's reset reach both ends as a reset: neither takes a part for the whole.

Promises: the end of one direction is passed on and the other goes on (half-close); a peer that does not read slows the
one who writes, and costs at most one read of memory; a connection on which nothing moves ends after `idle` seconds;
both sockets are closed when `run` returns. Readiness callbacks, one buffer per event loop: an idle connection has none.
Relies on: two connected, non-blocking stream sockets that nothing else reads, on one event loop.
Does not: look at a byte, decide, or resolve anything. Measured against `os.splice` through a pipe: within a tenth of it
either way, so without its two descriptors and 64 KiB of kernel memory a direction.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from weakref import WeakKeyDictionary

BUFFER_BYTES = 262_144
LEAST_READ = 16_384  # of a direction whose receiver is slow
FIRST_READ = 65_536
TURNS = 4  # reads in a row before other connections have theirs
IDLE_S = 300.0
UNLIMITED = 1 << 62

_buffers: WeakKeyDictionary[asyncio.AbstractEventLoop, memoryview] = WeakKeyDictionary()


class _Flow:
    """One direction. `left`: read and not taken by `dst` yet; its source waits for it."""

    __slots__ = ("dst", "eof", "left", "moved", "over", "size", "src")

    def __init__(self, src: socket.socket, dst: socket.socket) -> None:
        self.src = src
        self.dst = dst
        self.left = memoryview(b"")
        self.moved = 0
        self.size = FIRST_READ
        self.eof = False
        self.over = False


class Relay:
    """Two sockets and what moves between them.

    Args:
        client: the side that `up` is counted from; owned by the relay from here on.
        server: the side that `down` is counted from; owned too.
        early: bytes already read from the client, sent to the server first.
        allowance: bytes, both ways together, that may move before `more` is asked; without `more` the end of it.
        more: says how many bytes more may move, 0 for none; what it raises is none.
        idle: seconds without a byte after which the connection ends; the time in `more` does not count.
    """

    __slots__ = (
        "__weakref__", "_client", "_done", "_down", "_idle", "_last", "_limit", "_loop", "_more", "_paused", "_server",
        "_timer", "_up", "_view", "reason",
    )  # fmt: skip

    def __init__(
        self,
        client: socket.socket,
        server: socket.socket,
        *,
        early: bytes = b"",
        allowance: int = UNLIMITED,
        more: Callable[[], Awaitable[int]] | None = None,
        idle: float = IDLE_S,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._client = client
        self._server = server
        self._up = _Flow(client, server)
        self._down = _Flow(server, client)
        self._up.left = memoryview(early)
        self._up.moved = len(early)
        self._limit = allowance
        self._more = more
        self._idle = idle
        self._last = self._loop.time()
        self._paused: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._done: asyncio.Future[str] = self._loop.create_future()
        self._view = _buffer(self._loop)
        for side in (client, server):
            if side.family != socket.AF_UNIX:
                side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.reason = ""

    @property
    def up(self) -> int:
        """Bytes read from the client so far (the early ones included)."""
        return self._up.moved

    @property
    def down(self) -> int:
        """Bytes read from the server so far."""
        return self._down.moved

    @property
    def over(self) -> bool:
        """Whether the connection has ended."""
        return self._done.done()

    async def run(self) -> str:
        """Copy until the end; returns how it ended, `reason` says it in words.

        Returns:
            ``closed`` (both directions ended, or a peer reset it), ``idle``, ``cut`` or ``limit`` (the allowance).
        """
        if not self._done.done():
            self._timer = self._loop.call_later(self._idle, self._tick)
            self._want(self._up)
            self._want(self._down)
        try:
            return await self._done
        finally:
            self._end("cut", "the gateway ended it", reset=True)  # nothing to do unless this task was cancelled

    def cut(self) -> None:
        """End at once, by a reset on both sides."""
        self._end("cut", "cut by the gate", reset=True)

    # --- one direction ---

    def _want(self, flow: _Flow) -> None:
        """Wait for what `flow` needs next: its receiver while something is left, else its source."""
        if flow.left:
            self._loop.add_writer(flow.dst, self._writable, flow)
        elif not flow.eof and self._paused is None:
            self._loop.add_reader(flow.src, self._readable, flow)

    def _readable(self, flow: _Flow) -> None:
        try:
            for _ in range(TURNS):
                room = self._limit - self._up.moved - self._down.moved
                if room <= 0:
                    self._used_up(flow)
                    return
                if not self._turn(flow, min(flow.size, room)):
                    return
        except BlockingIOError:
            return
        except OSError as error:
            self._broken(flow.src, error)

    def _turn(self, flow: _Flow, most: int) -> bool:
        """One read and what can be sent of it; whether to try another."""
        count = flow.src.recv_into(self._view[:most])
        self._last = self._loop.time()
        if count == 0:
            self._loop.remove_reader(flow.src)
            flow.eof = True
            self._finish(flow)
            return False
        flow.moved += count
        sent = self._send(flow, self._view[:count])
        if sent < 0:
            return False
        if sent < count:
            flow.left = memoryview(bytes(self._view[sent:count]))
            flow.size = max(LEAST_READ, flow.size // 2)
            self._loop.remove_reader(flow.src)
            self._loop.add_writer(flow.dst, self._writable, flow)
            return False
        if count == flow.size:
            flow.size = min(BUFFER_BYTES, 2 * flow.size)
        return True

    def _send(self, flow: _Flow, data: memoryview) -> int:
        """Bytes that `flow.dst` took, -1 when it is broken (and everything ended)."""
        try:
            return flow.dst.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._broken(flow.dst, error)
            return -1

    def _writable(self, flow: _Flow) -> None:
        sent = self._send(flow, flow.left)
        if sent < 0:
            return
        if sent:
            self._last = self._loop.time()
        flow.left = flow.left[sent:]
        if not flow.left:
            flow.left = memoryview(b"")  # lets the bytes go
            self._loop.remove_writer(flow.dst)
            if flow.eof:
                self._finish(flow)
            else:
                self._want(flow)

    def _finish(self, flow: _Flow) -> None:
        """The source has ended and all of it is on its way: say so to the receiver."""
        flow.over = True
        if self._up.over and self._down.over:
            self._end("closed", "")
            return
        try:
            flow.dst.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._broken(flow.dst, error)

    def _broken(self, side: socket.socket, error: OSError) -> None:
        who = "client" if side is self._client else "server"
        self._end("closed", f"reset by the {who} ({error.strerror or error})", reset=True)

    # --- both ---

    def _used_up(self, flow: _Flow) -> None:
        """Step 2. `flow` has something to read, if only its end, and that needs no allowance."""
        if not flow.src.recv(1, socket.MSG_PEEK):
            self._loop.remove_reader(flow.src)
            flow.eof = True
            self._finish(flow)
            return
        for side in (self._client, self._server):
            self._loop.remove_reader(side)
        self._paused = self._loop.create_task(self._ask())

    async def _ask(self) -> None:
        try:
            more = await self._more() if self._more is not None else 0
        except Exception as error:  # noqa: BLE001 (whatever went wrong, nothing was allowed)
            self._end("limit", f"no further allowance: {error}", reset=True)
            return
        self._paused = None
        if self._done.done():
            return
        if more <= 0:
            self._end("limit", "its allowance is used up", reset=True)
            return
        self._limit += more
        self._last = self._loop.time()
        for flow in (self._up, self._down):
            if not flow.left:
                self._want(flow)

    def _tick(self) -> None:
        now = self._loop.time()
        if self._paused is not None:
            self._last = now
        if now - self._last >= self._idle:
            self._end("idle", f"nothing moved for {self._idle:g} s", reset=True)
        else:
            self._timer = self._loop.call_at(self._last + self._idle, self._tick)

    def _end(self, ended: str, reason: str, *, reset: bool = False) -> None:
        """The one end: callbacks gone, both sockets closed, `run` answered."""
        if self._done.done() and self._client.fileno() < 0 and self._server.fileno() < 0:
            return
        if self._timer is not None:
            self._timer.cancel()
        if self._paused is not None and self._paused is not asyncio.current_task(self._loop):
            self._paused.cancel()
        for side in (self._client, self._server):
            if side.fileno() >= 0:
                self._loop.remove_reader(side)
                self._loop.remove_writer(side)
                close(side, reset=reset)
        self._up.left = self._down.left = memoryview(b"")
        if not self._done.done():
            self.reason = reason
            self._done.set_result(ended)


def close(side: socket.socket, *, reset: bool) -> None:
    """Close a socket; with `reset` its peer is told by an RST (SO_LINGER 0), and what it was not sent is dropped."""
    if reset:
        try:
            side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except OSError:  # not connected any more: there is nobody to tell
            pass
    side.close()


def _buffer(loop: asyncio.AbstractEventLoop) -> memoryview:
    """The loop's one read buffer: a callback uses it up before it returns."""
    view = _buffers.get(loop)
    if view is None:
        view = _buffers[loop] = memoryview(bytearray(BUFFER_BYTES))
    return view
