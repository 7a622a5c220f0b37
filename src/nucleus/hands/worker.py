"""The one search worker of a pod: a forked process that can be killed when a search takes too long.

Promises: one search at a time, the others wait in order; a search's deadline counts from its request, waiting included;
at the deadline, or on cancel, the worker is killed (RE2 cannot be interrupted) and the next search gets a fresh one.
The worker holds the workspace's descriptor and its socket, nothing else. Results come as frames, bounded by `frames`.
Relies on: hands being single-threaded (fork without exec) and having imported everything before. Does not: reap;
`main` does.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from nucleus.errors import InvalidError
from nucleus.frames import Decoder, Frame, encode
from nucleus.hands import search
from nucleus.hands.protocol import CODES, HandsError, flag, from_oserror, integer
from nucleus.hands.root import Root
from nucleus.limits import LIMITS

Done = Callable[[dict[str, Any] | HandsError], None]
Told = Callable[[int, int], None]  # files and bytes that a search has gone through
QUEUE = 256  # searches that wait
_SEND_SECONDS = 1.0
_PACE_NS = 250_000_000  # between two words of a search that is not done


class Job:
    """One search: the request, when it must be done (ns, monotonic), whom to tell of its end, and of how far it is."""

    __slots__ = ("deadline", "done", "header", "told")

    def __init__(self, header: dict[str, Any], deadline: int, done: Done, told: Told | None) -> None:
        self.header = header
        self.deadline = deadline
        self.done = done
        self.told = told


class SearchWorker:
    """Hands' side of the worker.

    Args:
        root: the workspace.
        watch, forget: register and unregister a readable descriptor with the loop.
    """

    def __init__(
        self, root: Root, watch: Callable[[int, Callable[[], None]], None], forget: Callable[[int], None]
    ) -> None:
        self._root = root
        self._watch = watch
        self._forget = forget
        self._queue: deque[Job] = deque()
        self._current: Job | None = None
        self._socket: socket.socket | None = None
        self._decoder = Decoder()
        self.pid = 0

    def submit(self, header: dict[str, Any], now: int, done: Done, told: Told | None = None) -> Job:
        """Queue a search; raises HandsError when too many wait or its deadline is out of bounds."""
        if len(self._queue) >= QUEUE:
            raise HandsError("io", "too many searches at once")
        timeout_ms = integer(header, "timeout_ms", 1, LIMITS.run_timeout_max_ms, LIMITS.search_timeout_ms)
        job = Job(header, now + timeout_ms * 1_000_000, done, told)
        self._queue.append(job)
        self._next()
        return job

    def cancel(self, job: Job) -> None:
        """End one search, waiting or running."""
        self._end(job, HandsError("timeout", "cancelled"))

    def next_deadline(self) -> int | None:
        """When `expire` has something to do."""
        jobs = [job.deadline for job in self._queue]
        if self._current is not None:
            jobs.append(self._current.deadline)
        return min(jobs, default=None)

    def expire(self, now: int) -> None:
        """End the searches whose time is over."""
        late = [job for job in (self._current, *self._queue) if job is not None and job.deadline <= now]
        for job in late:
            self._end(job, HandsError("timeout", "the search took too long"))

    def close(self) -> None:
        """Kill the worker; nobody is told."""
        self._queue.clear()
        self._current = None
        self._kill()

    def _end(self, job: Job, error: HandsError) -> None:
        if job is self._current:
            self._current = None
            self._kill()
        elif job in self._queue:
            self._queue.remove(job)
        else:
            return
        job.done(error)
        self._next()

    def _next(self) -> None:
        while self._current is None and self._queue:
            job = self._queue.popleft()
            self._current = job
            try:
                if self._socket is None:
                    self._spawn()
                assert self._socket is not None
                self._socket.sendall(encode(job.header))
            except (OSError, InvalidError):
                self._current = None
                self._kill()
                job.done(HandsError("io", "the search worker cannot be reached"))

    def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            _main(self._root, theirs)
        theirs.close()
        ours.settimeout(_SEND_SECONDS)  # another process of the pod may have stopped it
        self.pid = pid
        self._socket = ours
        self._decoder = Decoder()
        self._watch(ours.fileno(), self._readable)

    def _kill(self) -> None:
        if self._socket is None:
            return
        self._forget(self._socket.fileno())
        self._socket.close()
        self._socket = None
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.pid = 0

    def _readable(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(1 << 18)
            frames = list(self._decoder.feed(data)) if data else None
        except (OSError, InvalidError):
            frames = None
        if frames is None:
            self._lost()
            return
        for frame in frames:
            self._answered(frame)

    def _lost(self) -> None:
        job, self._current = self._current, None
        self._kill()
        if job is not None:
            job.done(HandsError("io", "the search worker ended"))
        self._next()

    def _answered(self, frame: Frame) -> None:
        match frame.header:
            case {"files": int(files), "size": int(size), "told": True}:
                if self._current is not None and self._current.told is not None:
                    self._current.told(files, size)
                return
        job, self._current = self._current, None
        if job is None:
            return
        error = frame.header.get("error")
        if isinstance(error, list) and len(error) == 3 and error[0] in CODES:
            job.done(HandsError(error[0], error[1], **error[2]))
        else:
            job.done(frame.header)
        self._next()


def _main(root: Root, channel: socket.socket) -> None:
    """The worker's life: it never returns."""
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        keep = sorted({root.fd, channel.fileno()})
        low = 3
        for fd in keep:
            os.closerange(low, fd)
            low = fd + 1
        os.closerange(low, 65_536)
        gc.freeze()
        _serve(root, channel)
    finally:
        os._exit(0)


def _nobody(files: int, size: int) -> None:
    """Who asked for an answer alone."""


def _teller(channel: socket.socket) -> Told:
    """Tells hands how far a search is, each quarter of a second; a quick one is never told of."""
    last = time.monotonic_ns()

    def tell(files: int, size: int) -> None:
        nonlocal last
        now = time.monotonic_ns()
        if now - last >= _PACE_NS:
            last = now
            channel.sendall(encode({"told": True, "files": files, "size": size}))

    return tell


def _serve(root: Root, channel: socket.socket) -> None:
    decoder = Decoder()
    while data := channel.recv(1 << 18):
        for frame in decoder.feed(data):
            try:
                operation = search.glob if frame.header.get("op") == "glob" else search.grep
                answer = operation(root, frame.header, _teller(channel) if flag(frame.header, "stream") else _nobody)
            except HandsError as error:
                answer = {"error": [error.code, error.message, error.extra]}
            except OSError as error:
                answer = {"error": [from_oserror(error).code, "the search failed", {}]}
            except (MemoryError, RecursionError):
                answer = {"error": ["io", "the search needs too much memory", {}]}
            channel.sendall(encode(answer))
