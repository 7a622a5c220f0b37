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
POD_WORKLOAD_API = "pod_workload_api"  # the process that serves the Workload API inside one pod
_IN = {GATE: LIMITS.request_bytes, APPROVER: 65_536, WORKLOAD: 16_384, VAULT: 1_024}
_IN |= {IDENTITY: 131_072, WORKLOAD_API: 1_048_576, POD_WORKLOAD_API: 65_536}  # bytes of one frame
_OUT = {
    GATE: 1_048_576,
    APPROVER: LIMITS.request_bytes,
    WORKLOAD: 262_144,
    VAULT: 262_144,
    IDENTITY: 16_777_216,
    WORKLOAD_API: 2_097_152,
    POD_WORKLOAD_API: 1_048_576,
}  # bytes that wait to be read
WORKLOAD_CONNECTIONS = 8  # of one pod at a time
WORKLOAD_BURST = 20
WORKLOAD_EVERY_NS = 500_000_000  # after the burst, one request each
POD_READ_BURST = 256  # of a pod's Workload API: what issues nothing and is on no record
POD_READ_EVERY_NS = 50_000_000


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
        listener: WorkloadListener | None = None,
    ) -> None:
        super().__init__(sock, epoll, _IN[kind], _OUT[kind])
        self.kind = kind
        self.pod = pod
        self.uid = uid
        self.attested = attested
        self.answers_only = answers_only  # an approver who may answer requests, and do nothing else
        self.listener = listener  # whose identity a pod's Workload API hands out
        self.names = names  # of the credentials that a vault's other end may fetch


class Bucket:
    """A rate: so many at once, and one each `every_ns` after that."""

    def __init__(self, burst: int, every_ns: int) -> None:
        self._burst, self._every_ns = burst, every_ns
        self._tokens = burst
        self._since_ns = 0

    def take(self, mono_ns: int) -> bool:
        """Whether one more is within the rate."""
        earned = (mono_ns - self._since_ns) // self._every_ns
        if earned > 0:
            self._tokens = min(self._burst, self._tokens + earned)
            self._since_ns = mono_ns if self._tokens == self._burst else self._since_ns + earned * self._every_ns
        if self._tokens == 0:
            return False
        self._tokens -= 1
        return True


class WorkloadDoor:
    """One pod's listening Workload socket, and how much has been asked through it."""

    def __init__(self, sock: socket.socket, listener: WorkloadListener) -> None:
        self.sock = sock
        self.listener = listener
        self.connections = 0
        self.refused = 0  # requests over the rate and connections over the number: said in pod.stop
        self._rate = Bucket(WORKLOAD_BURST, WORKLOAD_EVERY_NS)

    def take(self, mono_ns: int) -> bool:
        """Whether one more request is within the rate."""
        within = self._rate.take(mono_ns)
        self.refused += not within
        return within


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
