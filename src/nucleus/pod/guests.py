"""Rungs above `namespaces`: a compartment runs a guest kernel, and hands or the agent inside it.

A guest (gVisor's sentry, a virtual machine's monitor) is started where `namespaces` starts hands or the agent: in the
compartment's own namespaces, uid, cgroup and network, behind its view of the workspace with every hidden and
read-only name applied. So whoever breaks out of the guest's kernel stands where a namespaces pod begins, and the
network's rules, the limits and the end of a pod are the same for every rung.

Relies on: `nucleus.pod.compartment`, steps 1 to 8. Does not: decide which rung a pod gets (`nucleus.pod.backend.rung`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from nucleus.pod.gvisor import Gvisor
from nucleus.pod.qemu import Qemu

if TYPE_CHECKING:
    from nucleus.pod.compartment import Order, Zygote


class Guest(Protocol):
    """One rung. `lacking`, `parts` and `seconds` are the builder's; `enter` runs in the compartment.

    Args:
        name: of `nucleus.pod.spec.LADDER`.
        seconds: how long its start may take, to `ready`.
    """

    name: str
    seconds: float

    def lacking(self) -> str:
        """Why no pod of this rung can be started here, with what to do; "" where one can. Found out by doing, once."""

    def settings(self) -> dict[str, str]:
        """What the compartment has to know of what `lacking` found; ``order.settings`` there."""

    def missing(self) -> list[str]:
        """Protections that this rung does not give here, each a short phrase."""

    def parts(self, kind: str) -> dict[str, int]:
        """Descriptors for the compartment (a kernel, an image); the caller's to close once they are sent."""

    def tasks(self, pids: int) -> int:
        """How many of the host's processes and threads `pids` of the guest's may take, its kernel's own included."""

    def enter(self, order: Order, zygote: Zygote, ready: dict[str, Any]) -> int:
        """Step 9 and after, as the compartment's pid 1, in the new root, with every capability of its user namespace.

        Starts the guest with hands (``order.kind`` ``work``, on ``order.channel``) or the agent inside, drops what it
        does not need itself, sends `ready` (and for an agent its pty, and how it ended: see `compartment._agent`) on
        ``order.status``, and returns the exit code when the guest has ended. ``order.parts`` holds `parts`.
        """


_QEMU = Qemu()
GUESTS: dict[str, Guest] = {guest.name: guest for guest in (Gvisor(), _QEMU)}


def keep_images(store: str) -> None:
    """Where the builder finds images of virtual machines."""
    _QEMU.keep_images(store)
