"""TLS handshakes that fail at the agent's door, on record with their reason.

Promises: each failure that OpenSSL tells (no or a wrong certificate, another protocol or version) is one attempt at the
gate and on record as `unauthenticated`; at most `BURST` at once and one per `EVERY_S` after that, the rest counted and
the count put on record with the next.
Relies on: `ssl.SSLContext.sslobject_class`, which asyncio's connections are made with.
Does not: see a peer that goes away in the middle, or one that is refused after its handshake (`server.app` does), or
know who a peer said to be: OpenSSL keeps no chain that it did not accept.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Any

from nucleus.errors import UnauthenticatedError
from nucleus.model.principal import Principal

if TYPE_CHECKING:
    from nucleus.server.driver import Driver

BURST = 10
EVERY_S = 6.0


class Handshakes:
    """Failures of one door. `watch` its context before the first connection."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._tokens = float(BURST)
        self._at = 0.0
        self._more = 0
        self._tasks: set[asyncio.Task[Any]] = set()

    def watch(self, context: ssl.SSLContext) -> None:
        """Hear of the failures of the connections that this context makes."""
        failed = self.failed

        class Watched(ssl.SSLObject):
            def do_handshake(self) -> None:
                try:
                    super().do_handshake()
                except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    raise
                except ssl.SSLError as error:
                    failed(error)
                    raise

        context.sslobject_class = Watched

    def failed(self, error: ssl.SSLError) -> None:
        """One that failed."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._tokens = min(float(BURST), self._tokens + (now - self._at) / EVERY_S) if self._at else self._tokens
        self._at = now
        if self._tokens < 1:
            self._more += 1
            return
        self._tokens -= 1
        more, self._more = self._more, 0
        words = [f"the TLS handshake failed: {(error.reason or 'unknown').lower().replace('_', ' ')[:100]}"]
        if detail := getattr(error, "verify_message", ""):
            words.append(str(detail)[:100])
        if more:
            words.append(f"{more} more failed since the last on record")
        refusal = UnauthenticatedError("; ".join(words), rule="tls.handshake")

        def authenticate() -> Principal:
            raise refusal

        task = loop.create_task(self._driver.run({}, authenticate))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # the log cannot be written, say: nobody waits for this answer
