"""The channels that the builder attached, by kind, and what is known of who holds the other end.

Promises: kind, pod and uid are what the builder said when it attached the channel; nothing that arrives on it changes
them. A Workload connection carries the kernel's word for its peer. Does not: read or write (`streams`).
"""

from __future__ import annotations

import select
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nucleus.authority.streams import Stream
from nucleus.limits import LIMITS

if TYPE_CHECKING:
    from nucleus.identity.workload import Peer, WorkloadListener

GATE, APPROVER, WORKLOAD, VAULT = "gate", "approver", "workload", "vault"
IDENTITY, WORKLOAD_API = "identity", "workload_api"  # a person who registers; the listener that attests
_IN = {GATE: LIMITS.request_bytes, APPROVER: 65_536, WORKLOAD: 16_384, VAULT: 1_024}
_IN |= {IDENTITY: 131_072, WORKLOAD_API: 1_048_576}  # bytes of one frame
_OUT = {
    GATE: 1_048_576,
    APPROVER: LIMITS.request_bytes,
    WORKLOAD: 262_144,
    VAULT: 262_144,
    IDENTITY: 16_777_216,
    WORKLOAD_API: 2_097_152,
}  # bytes that wait to be read
WORKLOAD_CONNECTIONS = 8  # of one pod at a time
WORKLOAD_BURST = 20
WORKLOAD_EVERY_NS = 500_000_000  # after the burst, one request each


class Channel(Stream):
    """A stream with its role."""

    def __init__(
        self,
        sock: socket.socket,
        epoll: select.epoll,
        kind: str,
        *,
        pod: str = "",
        uid: int = -1,
        attested: Attested | None = None,
        names: frozenset[str] = frozenset(),
        answers_only: bool = False,
    ) -> None:
        super().__init__(sock, epoll, _IN[kind], _OUT[kind])
        self.kind = kind
        self.pod = pod
        self.uid = uid
        self.attested = attested
        self.answers_only = answers_only  # an approver who may answer requests, and do nothing else
        self.names = names  # of the credentials that a vault's other end may fetch


class WorkloadDoor:
    """One pod's listening Workload socket, and how much has been asked through it."""

    def __init__(self, sock: socket.socket, listener: WorkloadListener) -> None:
        self.sock = sock
        self.listener = listener
        self.connections = 0
        self.refused = 0  # requests over the rate and connections over the number: said in pod.stop
        self._tokens = WORKLOAD_BURST
        self._since_ns = 0

    def take(self, mono_ns: int) -> bool:
        """Whether one more request is within the rate."""
        earned = (mono_ns - self._since_ns) // WORKLOAD_EVERY_NS
        if earned > 0:
            self._tokens = min(WORKLOAD_BURST, self._tokens + earned)
            self._since_ns = mono_ns if self._tokens == WORKLOAD_BURST else self._since_ns + earned * WORKLOAD_EVERY_NS
        if self._tokens == 0:
            self.refused += 1
            return False
        self._tokens -= 1
        return True


@dataclass(frozen=True, slots=True)
class Attested:
    """A Workload connection: its door and its peer by SO_PEERCRED."""

    door: WorkloadDoor
    peer: Peer

    @property
    def listener(self) -> WorkloadListener:
        """The listener that it reached."""
        return self.door.listener

    def take(self, mono_ns: int) -> bool:
        """See `WorkloadDoor.take`."""
        return self.door.take(mono_ns)
