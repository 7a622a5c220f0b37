"""A single-threaded readiness loop: descriptors and their callbacks, nothing else.

Promises: forgetting a descriptor, also from inside a callback of the same round, means that it is not called again.
Does not: own descriptors, or keep time (the caller passes how long to wait).
"""

from __future__ import annotations

import selectors
from collections.abc import Callable

Callback = Callable[[], None]


class Loop:
    """Callbacks by descriptor; at most one for reading and one for writing each."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._callbacks: dict[int, dict[int, Callback]] = {}

    def watch(self, fd: int, callback: Callback) -> None:
        """Call `callback` whenever `fd` is readable."""
        self._set(fd, selectors.EVENT_READ, callback)

    def watch_writable(self, fd: int, callback: Callback) -> None:
        """Call `callback` whenever `fd` is writable."""
        self._set(fd, selectors.EVENT_WRITE, callback)

    def unwatch(self, fd: int) -> None:
        """Stop watching `fd` for reading."""
        self._unset(fd, selectors.EVENT_READ)

    def unwatch_writable(self, fd: int) -> None:
        """Stop watching `fd` for writing."""
        self._unset(fd, selectors.EVENT_WRITE)

    def forget(self, fd: int) -> None:
        """Stop watching `fd` at all; no error when it is not watched. To be called before it is closed."""
        if self._callbacks.pop(fd, None) is not None:
            self._selector.unregister(fd)

    def step(self, timeout: float | None) -> None:
        """Wait up to `timeout` seconds (None: for ever) and call what is ready."""
        for key, events in self._selector.select(timeout):
            for event in (selectors.EVENT_READ, selectors.EVENT_WRITE):
                if events & event and (callback := self._callbacks.get(key.fd, {}).get(event)) is not None:
                    callback()

    def close(self) -> None:
        """Close the selector."""
        self._callbacks.clear()
        self._selector.close()

    def _set(self, fd: int, event: int, callback: Callback) -> None:
        known = self._callbacks.get(fd)
        if known is None:
            self._callbacks[fd] = {event: callback}
            self._selector.register(fd, event)
        else:
            new = event not in known
            known[event] = callback
            if new:
                self._selector.modify(fd, sum(known))

    def _unset(self, fd: int, event: int) -> None:
        known = self._callbacks.get(fd)
        if known is None or known.pop(event, None) is None:
            return
        if known:
            self._selector.modify(fd, sum(known))
        else:
            self.forget(fd)
