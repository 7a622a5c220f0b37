"""A pod's SPIFFE Workload API: a listening socket, and behind it a process while somebody wants one.

Promises: a pod that never asks costs a socket; who connects first starts the process, which ends by itself once nobody
has been connected for a while. It holds the listening socket and one channel to the authority, on which there is the
identity of this pod and no other (docs/adr/0019-workload-api-in-pods.md). One that ends is not started again for
`AGAIN_S`. After `close` there is neither process nor socket.
Relies on: the authority, which knows from the builder whose the channel is; `boot.start`.
Does not: accept, read what the pod sends, or import what the process imports.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from nucleus.errors import NucleusError, SandboxError
from nucleus.pod import boot
from nucleus.pod.children import Peer
from nucleus.pod.loop import Future, Loop
from nucleus.pod.packets import send_packet, stream_pair

if TYPE_CHECKING:
    import socket
    from _socket import socket as Channel

AGAIN_S = 1.0  # from the end of one process to the next: a pod that breaks its own gets little of our time
ANSWER_S = 15.0
KILL_S = 4.0
COMMAND = (sys.executable, "-I", "-c", "from nucleus.identity.pod_api import main; raise SystemExit(main())")


class Endpoint:
    """See the module.

    Args:
        authority: of the builder.
        sock: listening; owned from here on.
        whose: `pod`, `uid` and `whose` of the order to the authority.
        uid: what the process becomes; -1: it stays who we are.
        charge: told the process's pid, before it reads anything of the pod's.
    """

    def __init__(
        self,
        loop: Loop,
        authority: Peer,
        sock: socket.socket,
        whose: dict[str, Any],
        uid: int,
        charge: Callable[[int], None],
    ) -> None:
        self._loop = loop
        self._authority = authority
        self._sock = sock
        self._whose = whose
        self._uid = uid
        self._charge = charge
        self._closed = False
        self._pid = 0
        self._pidfd = -1
        self._channel: Channel | None = None
        self._gone: Future[None] = Future()

    def open(self) -> None:
        """Start a process when somebody connects."""
        if not self._closed:
            self._loop.on_readable(self._sock.fileno(), self._wanted)

    async def close(self) -> None:
        """End the process, if there is one, and close the socket."""
        self._closed = True
        self._loop.forget(self._sock.fileno())
        self._sock.close()
        if self._pid:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            with suppress(SandboxError):
                await self._loop.within(KILL_S, self._gone, "the pod's Workload API")

    def _wanted(self) -> None:
        self._loop.forget(self._sock.fileno())
        self._loop.task(self._start())

    async def _start(self) -> None:
        ours, theirs = stream_pair()
        try:
            with ours, theirs:
                attached = self._authority.call("attach", [theirs.fileno()], role="pod_workload_api", **self._whose)
                await self._loop.within(ANSWER_S, attached, "the authority")
                if not self._closed:
                    self._begin(ours.fileno())
        except (NucleusError, OSError):
            if not self._pid:
                self._loop.later(AGAIN_S, self.open)

    def _begin(self, authority: int) -> None:
        self._gone = Future()
        self._pid, self._channel = boot.start(COMMAND)
        self._pidfd = os.pidfd_open(self._pid)
        self._loop.on_readable(self._pidfd, self._ended)
        self._charge(self._pid)
        send_packet(self._channel, {"uid": self._uid}, [self._sock.fileno(), authority])

    def _ended(self) -> None:
        self._loop.forget(self._pidfd)
        os.close(self._pidfd)
        os.waitpid(self._pid, 0)
        self._pid, self._pidfd = 0, -1
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        self._gone.set(None)
        if not self._closed:
            self._loop.later(AGAIN_S, self.open)
