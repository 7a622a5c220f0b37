"""What a kind of isolation has to offer (`Backend`), and the ladder by which a policy's floor is held against it.

Promises: `check_floor` fails closed: an unmet or unknown floor is an error, never a weaker pod.
Relies on nothing. Does not: choose a backend (`nucleus.pod.detect` says what this machine has).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from nucleus.errors import SandboxError
from nucleus.pod.loop import Future
from nucleus.pod.spec import LADDER, PodSpec


@dataclass(frozen=True, slots=True)
class Facts:
    """What a pod of this backend is on this machine; goes to the audit and to the person.

    Args:
        backend: a name of `LADDER`.
        kernel: ``shared`` with the host or the pod's ``own``.
        missing: protections that this machine cannot give, each a short phrase; the pod starts without them.
    """

    backend: str
    kernel: str
    missing: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """As it goes on the wire."""
        return {"backend": self.backend, "kernel": self.kernel, "missing": list(self.missing)}


@dataclass(frozen=True, slots=True)
class Plan:
    """One pod to make. Descriptors and sockets stay the caller's.

    Args:
        pod, slot, spec: its name, its numbered place on this machine, what was asked for.
        directory: the pod's own runtime directory (0700).
        workspace: O_PATH directory.
        hands: the work compartment's end of the gate's channel, a stream socket.
        stdio: the agent's three descriptors, or none when it gets a pty (or there is no agent).
        workload: path of the pod's Workload socket, for the agent compartment.
        spiffe: path of the pod's SPIFFE Workload API, for the same.
        gate_id: the SPIFFE ID that the agent must find at its gate.
    """

    pod: str
    slot: int
    spec: PodSpec
    directory: str
    workspace: int
    hands: int
    stdio: tuple[int, ...] = ()
    workload: str = ""
    gate_id: str = ""
    spiffe: str = ""


@dataclass(slots=True)
class Started:
    """A running pod: the agent's pty master (the caller's to pass on and close), and what to say about it."""

    pty: int | None = None
    notes: list[str] = field(default_factory=list)
    steps: dict[str, Any] = field(default_factory=dict)


class Box(Protocol):
    """A backend's handle on one pod that it made."""

    listener: int | None  # listening TCP socket inside the pod's network, 127.0.0.1:7443; the caller's to close

    def pids(self) -> list[int]:
        """Host pids of what runs, for `status`."""


class Backend(Protocol):
    """The compartments that every rung runs in."""

    def facts(self, rung: str) -> Facts:
        """What a pod of `rung` is on this machine. Raises SandboxError: none can be started here, and why."""

    async def make(self, plan: Plan, on_exit: Callable[[str, dict[str, Any]], None]) -> Box:
        """Make network and processes, up to where they wait for `start`: nothing untrusted runs yet.

        `on_exit(kind, how)` is called once for each compartment that ends: kind ``work`` or ``agent``, how
        ``{code, signal}``.
        """

    async def start(
        self,
        box: Any,
        block: list[str],
        protect: list[str],
        registered: Future[None],
        outward: dict[str, Any],
        rung: str,
    ) -> Started:
        """Apply the policy's hidden and read-only names to every view of the workspace, then run in this rung.

        Hands is ours and may start at once; the agent waits until the authority has `registered` the pod on disk, and
        until hands is ready. `outward`: ``{env, ca}``, what programs are told of the ways out.
        """

    def charge(self, box: Any, pid: int) -> None:
        """Count a process of ours, which works for this pod's agent alone, as the agent's. Where nothing is counted,
        nothing is done."""

    async def destroy(self, box: Any) -> None:
        """End every process of the pod and remove all that `make` and `start` made. Never raises for what is gone."""


def rung(asked: str, floor: str) -> str:
    """The rung of a pod: what was asked for, and at least the policy's floor. An unknown name is kept, and refused."""
    known = [name for name in (asked or LADDER[0], floor) if name not in ("", "none")]
    for name in known:
        if name not in LADDER:
            return name
    return max(known, key=LADDER.index)


def check_floor(facts: Facts, floor: str) -> None:
    """Refuse a pod that is weaker than its policy's floor.

    Raises:
        SandboxError: rule ``isolation.floor``.
    """
    if floor in ("", "none"):
        return
    if floor not in LADDER or LADDER.index(facts.backend) < LADDER.index(floor):
        raise SandboxError(
            f"the policy asks for at least {floor!r}, this pod would be {facts.backend!r}",
            rule="isolation.floor",
            next_step="Run `nucleus doctor` to see which backends this machine has.",
        )
