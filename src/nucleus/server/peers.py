"""The peers of one door's live connections: who each proved to be, and how it ends when that is true no more.

Promises: a connection whose peer's certificate has ended is cut, and is served nothing in between; one whose peer is
revoked is cut in the turn of the event loop in which the gate hears of it, with whatever it was waiting for.
Relies on: the authenticator, asked once for each connection; `DenyList`, filled by the authority.
Does not: know who may come in. A wall clock that jumps forward cuts at the next request, else within `SWEEP_S`.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from nucleus.errors import UnauthenticatedError
from nucleus.identity.revocation import DenyList
from nucleus.model.principal import Principal

SWEEP_S = 30.0


@dataclass(frozen=True, slots=True)
class Peer:
    """A proven peer: `serial` of its certificate; `expires_ns` since the epoch, when it is its peer no more."""

    principal: Principal
    serial: int
    expires_ns: int


Authenticator = Callable[[ssl.SSLObject], Peer]


class Peers:
    """See the module.

    Args:
        authenticate: verifies a connection's peer; raises UnauthenticatedError.
        deny: what is revoked.
        now_ns: the wall clock, nanoseconds since the epoch.
    """

    def __init__(self, authenticate: Authenticator, deny: DenyList, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._authenticate = authenticate
        self._deny = deny
        self._now_ns = now_ns
        self._known: WeakKeyDictionary[asyncio.Transport, Peer] = WeakKeyDictionary()
        self._timer: asyncio.TimerHandle | None = None

    def principal(self, transport: asyncio.Transport | None) -> Principal:
        """Who is at the other end. Raises UnauthenticatedError."""
        if transport is None or transport.is_closing():
            raise UnauthenticatedError("the connection is gone", rule="tls.peer")
        known = self._known.get(transport)
        if known is None:
            tls = transport.get_extra_info("ssl_object")
            if not isinstance(tls, ssl.SSLObject):
                raise UnauthenticatedError("no TLS on this connection", rule="tls.peer")
            known = self._authenticate(tls)
            if self._deny.refuses(known.principal.spiffe_id, known.serial):
                raise UnauthenticatedError("the peer's SVID is revoked", rule="svid.revoked")
            self._known[transport] = known
            self._arm(known.expires_ns)
        if self._now_ns() >= known.expires_ns:
            raise UnauthenticatedError("the peer's SVID has expired on this connection", rule="svid.expired")
        return known.principal

    def cut(self, concerned: Callable[[Peer], bool]) -> int:
        """End the connections of such peers at once; how many there were."""
        found = [transport for transport, peer in self._known.items() if concerned(peer)]
        for transport in found:
            del self._known[transport]
            transport.abort()
        return len(found)

    def cut_revoked(self) -> int:
        """End the connections of peers that are revoked by now; how many there were."""
        return self.cut(lambda peer: self._deny.refuses(peer.principal.spiffe_id, peer.serial))

    def close(self) -> None:
        """No more timers."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, expires_ns: int) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + min(max((expires_ns - self._now_ns()) / 1e9, 0.001), SWEEP_S)
        if self._timer is None or self._timer.when() > due:
            self.close()
            self._timer = loop.call_at(due, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        now = self._now_ns()
        self.cut(lambda peer: now >= peer.expires_ns)
        if self._known:
            self._arm(min(peer.expires_ns for peer in self._known.values()))
