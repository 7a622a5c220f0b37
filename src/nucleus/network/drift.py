"""Drift of a pod's network: whatever changes after the pod was made ends the pod (fail closed).

 1. An event of the kernel (rules, links, addresses, routes), an error or an overflow of its queue is drift by itself:
    nothing of ours changes a network that a pod lives in, so no event is looked into.
 2. What raises none (sysctls, the legacy tables) is compared every `POLL_SECONDS`, and all the rest once more.
 3. On drift the links go down first, then everything in the pod is killed; both are the caller's `cut` and `drifted`.

Promises: reports once; a check that cannot be made is drift. Relies on: sockets and digests of `netns`.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from nucleus.errors import NucleusError

if TYPE_CHECKING:
    from nucleus.pod.loop import Loop

POLL_SECONDS = 0.8


class Watch:
    """The watch over one pod's network.

    Args:
        loop: the builder's.
        watchers: descriptors that are readable at a change; the caller closes them after `stop`.
        digest: what the network looked like when it was made.
        check: what it looks like now.
        drifted: called once with what changed, in words.
    """

    def __init__(
        self,
        loop: Loop,
        watchers: list[int],
        digest: dict[str, str],
        check: Callable[[], Awaitable[dict[str, str]]],
        drifted: Callable[[str], None],
    ) -> None:
        self._loop = loop
        self._watchers = list(watchers)
        self._digest = digest
        self._check = check
        self._drifted = drifted
        self._over = False
        for watcher in self._watchers:
            loop.on_readable(watcher, self._event)
        self._later()

    def stop(self) -> None:
        """No more reports."""
        if self._over:
            return
        self._over = True
        for watcher in self._watchers:
            self._loop.forget(watcher)

    def _event(self) -> None:
        what = "the kernel reports a change of rules, links, addresses or routes"
        for watcher in self._watchers:
            with suppress(BlockingIOError):
                try:
                    os.read(watcher, 65_536)
                except BlockingIOError:
                    raise
                except OSError as error:
                    what = f"events were lost ({error.strerror})"
        self._report(what)

    def _later(self) -> None:
        def begin() -> None:
            if not self._over:
                self._loop.task(self._poll())

        self._loop.later(POLL_SECONDS, begin)

    async def _poll(self) -> None:
        try:
            now = await self._check()
        except NucleusError as error:
            self._report(f"it could not be compared ({error.message})")
            return
        changed = sorted(name for name in {*now, *self._digest} if now.get(name) != self._digest.get(name))
        if changed:
            self._report(f"changed: {', '.join(changed)}")
        elif not self._over:
            self._later()

    def _report(self, what: str) -> None:
        if not self._over:
            self.stop()
            self._drifted(what)
