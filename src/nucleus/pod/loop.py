"""A very small event loop: readiness callbacks, timers, and coroutines that wait for futures.

Promises: single-threaded; a callback that raises ends the loop (a bug of ours must not go on quietly); a task's
exception is delivered to whoever awaits it. Relies on `selectors` (epoll).
Does not: know sockets, processes or signals. Why not asyncio: its import alone costs more than making a pod.
"""

from __future__ import annotations

import heapq
import itertools
import selectors
import time
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar

from nucleus.errors import SandboxError

T = TypeVar("T")


class Future(Generic[T]):
    """A value that comes later. Resolving it twice is harmless: the first result stays."""

    def __init__(self) -> None:
        self.done = False
        self._value: T | None = None
        self._error: Exception | None = None
        self._callbacks: list[Callable[[], None]] = []

    def set(self, value: T) -> None:
        """Resolve with a value."""
        if not self.done:
            self._value = value
            self._finish()

    def fail(self, error: Exception) -> None:
        """Resolve with an error, raised in whoever awaits."""
        if not self.done:
            self._error = error
            self._finish()

    def when_done(self, callback: Callable[[], None]) -> None:
        """Call back once resolved, at once when it is already."""
        if self.done:
            callback()
        else:
            self._callbacks.append(callback)

    def result(self) -> T:
        """The value, or the error raised."""
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]

    def _finish(self) -> None:
        self.done = True
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def __await__(self) -> Generator[Future[Any], None, T]:
        if not self.done:
            yield self
        return self.result()


class Loop:
    """Readers, timers and tasks until `stop`."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        self._ready: deque[Callable[[], None]] = deque()
        self._running = True

    def on_readable(self, fd: int, callback: Callable[[], None]) -> None:
        """Call back whenever `fd` can be read or has ended."""
        self._selector.register(fd, selectors.EVENT_READ, callback)

    def forget(self, fd: int) -> None:
        """Stop watching; call before closing the descriptor."""
        try:
            self._selector.unregister(fd)
        except (KeyError, ValueError):
            return

    def later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call back once after `seconds`."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._count), callback))

    def soon(self, callback: Callable[[], None]) -> None:
        """Call back in this turn of the loop."""
        self._ready.append(callback)

    def task(self, work: Coroutine[Future[Any], None, T]) -> Future[T]:
        """Run a coroutine; its future resolves with its result."""
        outcome: Future[T] = Future()

        def step() -> None:
            try:
                waited = work.send(None)
            except StopIteration as stop:
                outcome.set(stop.value)
            except Exception as error:  # noqa: BLE001 -- handed to whoever awaits the task
                outcome.fail(error)
            else:
                waited.when_done(lambda: self.soon(step))

        step()
        return outcome

    def within(self, seconds: float, future: Future[T], what: str) -> Future[T]:
        """Fail `future` with a SandboxError when nothing resolved it in time; returns it."""
        if not future.done:
            error = SandboxError(f"{what} did not answer within {seconds:g} s", rule="pod.timeout")
            self.later(seconds, lambda: future.fail(error))
        return future

    def stop(self) -> None:
        """End `run` after this turn."""
        self._running = False

    def _stopped(self) -> bool:
        return not self._running

    def run(self) -> None:
        """Serve until `stop`."""
        while True:
            while self._ready:
                self._ready.popleft()()
            if self._stopped():
                break
            timeout = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
            for key, _ in self._selector.select(timeout):
                # An earlier callback of this turn may have closed what was ready.
                if self._selector.get_map().get(key.fd) is key:
                    key.data()
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                heapq.heappop(self._timers)[2]()

    def close(self) -> None:
        """Release the selector."""
        self._selector.close()
