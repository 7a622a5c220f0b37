"""From `create_pod` to nothing left: gate, authority and backend brought together, one pod at a time.

Promises: a pod that cannot be made whole is undone, and the launcher hears why; a pod whose gate, hands or launcher is
gone is destroyed; after `destroy` no process, mount, cgroup, socket, slot or placeholder of it is left, and the
authority has closed it. Relies on: `Backend`, the gate template, the authority. Does not: parse policies (a gate does).

The order of `create`, which runs what it can at the same time:
 1. a slot (it fixes the uids), the pod's runtime directory, the channels gate⇄authority, gate⇄hands, gate⇄launcher
 2. together: the backend makes the network and prepares the compartments; the template forks the gate, which parses
    the policy
 3. the floor that the policy asks for is held against what the backend gives
 4. the authority registers the pod (`pod.start` is on disk) and gets the gate's channel, and the Workload socket
 5. the compartments are released with the policy's hidden and protected names
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

from nucleus.errors import NucleusError, SandboxError
from nucleus.pod import cgroups, runtime
from nucleus.pod.backend import Facts, Plan, check_floor, rung
from nucleus.pod.children import Peer
from nucleus.pod.endpoint import Endpoint
from nucleus.pod.leftovers import Directories
from nucleus.pod.loop import Future, Loop
from nucleus.pod.namespaces import Namespaces, NamespacesBox, workload_socket
from nucleus.pod.packets import close_all, stream_pair
from nucleus.pod.spec import LADDER, PodSpec

ANSWER_SECONDS = 15.0
DRAIN_SECONDS = 4.0  # from the end of its channels to the gate's exit; then SIGKILL
REASON_CHARACTERS = 1_000  # of why a pod ended, for the log
Notify = Callable[[dict[str, Any]], None]


@dataclass(slots=True)
class Pod:
    """One pod as the builder knows it."""

    name: str
    slot: runtime.Slot
    spec: PodSpec
    plan: Plan
    notify: Notify
    directory: str
    lock: int  # of the directory
    owner: int  # the uid of who starts it, by the kernel
    tools: int = -1  # the gate's channel to the tool host, until the gate has it
    box: NamespacesBox | None = None
    making: Future[NamespacesBox] | None = None
    gate: int = 0
    gate_pidfd: int = -1
    gateway: int = 0  # its pid; it ends with its gate, whose channel it holds
    gate_gone: Future[None] = field(default_factory=Future)
    endpoint: Endpoint | None = None  # its SPIFFE Workload API
    isolation: Facts = field(default_factory=lambda: Facts(LADDER[0], "shared"))  # once its policy is known
    registered: bool = False
    started: bool = False
    destroying: Future[None] | None = None
    aftermath: list[str] = field(default_factory=list)
    steps: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Created:
    """What the launcher gets; the descriptors are the caller's to send and close."""

    body: dict[str, Any]
    fds: list[int]


class Pods:
    """All pods of one builder.

    Args:
        root: this builder is the host's root: gates get uids of their own.
    """

    def __init__(
        self,
        loop: Loop,
        backend: Namespaces,
        authority: Peer,
        template: Peer,
        *,
        root: bool,
        directory: str,
        trust_domain: str,
    ) -> None:
        self._loop = loop
        self.backend = backend
        self._authority = authority
        self._template = template
        self._root = root
        self._runtime = directory
        self._trust_domain = trust_domain
        self.all: dict[str, Pod] = {}
        runtime.private_directory(f"{directory}/pods")
        self._directories = Directories(f"{directory}/pods")

    def reap(self) -> None:
        """What a builder before us has left because it was killed."""
        with suppress(OSError):
            self._directories.reap()
            cgroups.reap()

    def _spiffe(self, namespace: str, name: str) -> str:
        return f"spiffe://{self._trust_domain}/ns/{namespace}/sa/{name}"

    async def create(self, raw: object, fds: list[int], notify: Notify, owner: int) -> Created:
        """Make one pod for the user `owner`. Takes the descriptors over.

        Raises:
            NucleusError: why there is none; nothing of it is left.
        """
        slot = None
        try:
            spec = PodSpec.from_dict(raw)
            _check_descriptors(spec, fds)
            slot = runtime.take_slot(self._runtime)
            name = f"pod-{os.urandom(5).hex()}"
            directory, lock = self._directories.make(name)
        except BaseException:
            close_all(fds)
            if slot is not None:
                slot.release()
            raise
        gate_id = self._spiffe(spec.namespace, f"gate-{name}")
        workload = f"{directory}/workload.sock" if spec.agent or spec.serve else ""
        tools = fds.pop() if spec.tools else -1
        spiffe = f"{directory}/spiffe.sock" if workload else ""
        plan = Plan(name, slot.number, spec, directory, fds[0], -1, tuple(fds[1:]), workload, gate_id, spiffe)
        pod = Pod(name, slot, spec, plan, notify, directory, lock, owner, tools)
        self.all[name] = pod
        try:
            return await self._create(pod)
        except BaseException:
            await self.destroy(pod, "could not be made")
            raise

    async def _create(self, pod: Pod) -> Created:
        began = time.monotonic_ns()
        authority, gate_authority = stream_pair()
        hands, gate_hands = stream_pair()
        launcher, gate_launcher = stream_pair()
        gateway, gate_gateway = stream_pair()
        vault, gateway_vault = stream_pair()
        made = (authority, gate_authority, hands, gate_hands, launcher, gate_launcher, gateway, gate_gateway)
        with ExitStack() as ends_with:
            for end in (*made, vault, gateway_vault):
                ends_with.enter_context(end)
            pod.plan = Plan(
                pod.plan.pod, pod.plan.slot, pod.spec, pod.directory, pod.plan.workspace, hands.fileno(),
                pod.plan.stdio, pod.plan.workload, pod.plan.gate_id, pod.plan.spiffe,
            )  # fmt: skip
            pod.endpoint = self._endpoint(pod) if pod.plan.spiffe else None
            listener = self._workload(pod) if pod.plan.workload else None
            try:
                # Step 2. The compartments' fork is under way before anything else takes the second core.
                pod.making = self._loop.task(self._make(pod))
                ends = [gate_authority, gate_hands, gate_launcher, gate_gateway]
                facts = await self._spawn_gate(pod, [end.fileno() for end in ends])
                pod.steps["gate"] = (time.monotonic_ns() - began) // 1000
                # Step 3.
                pod.isolation = self.backend.facts(rung(pod.spec.isolation, str(facts["floor"])))
                check_floor(pod.isolation, str(facts["floor"]))
                # Step 4 and 5 go together: releasing waits for the compartments, registering for the disk.
                box = await pod.making
                outward = {"env": facts["env"], "ca": ""}
                if facts["gateway"]:
                    fds = [*box.egress, *([gateway_vault.fileno()] if facts["credentials"] else [])]
                    outward["ca"] = await self._spawn_gateway(pod, gateway, fds, facts["opens"])
                close_all(box.egress)  # where there is no gateway, nobody listens
                box.egress = []
                recorded = self._loop.task(self._register(pod, facts, authority, listener, vault))
                globs = [str(glob) for glob in facts["block"]], [str(glob) for glob in facts["protect"]]
                started = self._loop.task(self.backend.start(box, *globs, recorded, outward, pod.isolation.backend))
                await recorded
                if pod.endpoint is not None:
                    pod.endpoint.open()
                pod.steps["registered"] = (time.monotonic_ns() - began) // 1000
                done = await started
            finally:
                if listener is not None:
                    listener.close()
            if pod.destroying is not None:
                raise SandboxError("the pod's launcher or gate is gone", rule="pod.gone")
            pod.started = True
            self.backend.watch(box, lambda what: self._drifted(pod, what))
            pod.steps |= done.steps | {"total": (time.monotonic_ns() - began) // 1000}
            isolation = pod.isolation.as_dict() | {"notes": done.notes}
            fds = [launcher.detach()] + ([done.pty] if done.pty is not None else [])
            policy = {key: facts[key] for key in ("policy_name", "policy_digest", "budget_limit", "floor")}
            door = {"gate_id": pod.plan.gate_id, "workload": pod.plan.workload, "spiffe": pod.plan.spiffe}
            if not pod.spec.serve:
                door = {}
            return Created({"pod": pod.name, "isolation": isolation, "steps": pod.steps, **policy, **door}, fds)

    async def _make(self, pod: Pod) -> NamespacesBox:
        pod.box = await self.backend.make(pod.plan, lambda kind, how: self._ended(pod, kind, how))
        if pod.destroying is not None:  # undone while it was being made: nobody else will see this box
            await self.backend.destroy(pod.box)
        return pod.box

    async def _spawn_gate(self, pod: Pod, ends: list[int]) -> dict[str, Any]:
        if pod.spec.agent is not None:
            # The gate of an agent needs the listening socket, which is in the pod's network.
            assert pod.making is not None
            box = await pod.making
            assert box.listener is not None
            ends = [*ends, box.listener]
        elif pod.spec.serve:
            ends = [*ends, pod.plan.stdio[0]]
        if pod.tools >= 0:
            ends = [*ends, pod.tools]
        config = {
            "pod": pod.name,
            "namespace": pod.spec.namespace,
            "trust_domain": self._trust_domain,
            "policy_text": pod.spec.policy_text,
            "policy_source": pod.spec.policy_source,
            "task": pod.spec.task,
            "trusted_workspace": pod.spec.trust_workspace,
            "isolation": pod.spec.isolation,  # at least: the gate, which parses the policy, knows its floor
            "uid": runtime.GATE_UID + pod.slot.number if self._root else os.geteuid(),
            # Who may come in by the agent's door: the agent inside, or the orchestrator that the pod is served to.
            "door": "agent" if pod.spec.agent is not None else "orchestrator" if pod.spec.serve else "",
            "agent_id": self._spiffe(pod.spec.namespace, f"agent-{pod.name}"),
            "orchestrator_id": self._spiffe(pod.spec.namespace, f"orchestrator-{pod.name}"),
            "gateway_id": self._spiffe(pod.spec.namespace, f"gateway-{pod.name}"),
            "tools": pod.spec.tools,
            "test_seam": pod.spec.test_seam,
        }
        answer = await self._loop.within(
            ANSWER_SECONDS, self._template.call("spawn", ends, config=config), "the gate template"
        )
        close_all(answer.fds)
        _close_tools(pod)
        pod.gate = int(answer.body["pid"])
        with suppress(ProcessLookupError):
            pod.gate_pidfd = os.pidfd_open(pod.gate)
        if pod.gate_pidfd < 0:
            pod.gate_gone.set(None)
            raise SandboxError("the gate ended at its start", rule="pod.gate")
        self._loop.on_readable(pod.gate_pidfd, lambda: self._gate_died(pod))
        return answer.body

    async def _spawn_gateway(self, pod: Pod, channel: socket.socket, ends: list[int], opens: list[str]) -> str:
        """The way out: a process of its own uid outside the pod's network, with listeners inside it.

        Returns the certificate of its authority, where it opens TLS.
        """
        uid = runtime.GATEWAY_UID + pod.slot.number if self._root else os.geteuid()
        config = {"pod": pod.name, "uid": uid, "opens": opens}
        spawned = self._template.call("spawn_gateway", [channel.fileno(), *ends], config=config)
        answer = await self._loop.within(ANSWER_SECONDS, spawned, "the gate template")
        close_all(answer.fds)
        pod.gateway = int(answer.body["pid"])
        return str(answer.body["ca"])

    async def _register(
        self,
        pod: Pod,
        facts: dict[str, Any],
        authority: socket.socket,
        listener: socket.socket | None,
        vault: socket.socket,
    ) -> None:
        """Step 4; the requests go out together, the authority answers them in their order."""
        answers = [
            self._authority.call(
                "register_pod",
                pod=pod.name,
                namespace=pod.spec.namespace,
                policy_digest=facts["policy_digest"],
                policy_name=facts["policy_name"],
                # What the agent's own tools read of a shared workspace is on no record but this one.
                isolation=pod.isolation.as_dict() | ({"unmediated": True} if pod.spec.share_workspace else {}),
                trusted_workspace=pod.spec.trust_workspace,
                session=pod.spec.session,
                account=pod.spec.account,
                owner=pod.owner,
                pods=facts["pods"],
            ),
            self._authority.call("attach", [authority.fileno()], role="gate", pod=pod.name),
        ]
        pod.registered = True
        if facts["credentials"]:
            order = {"role": "vault", "pod": pod.name, "names": facts["credentials"]}
            answers.append(self._authority.call("attach", [vault.fileno()], **order))
        if listener is not None:
            order = {"role": "workload", **self._whose(pod)}
            answers.append(self._authority.call("attach", [listener.fileno()], **order))
        for answer in answers:
            await self._loop.within(ANSWER_SECONDS, answer, "the authority")

    def _workload(self, pod: Pod) -> socket.socket:
        return workload_socket(pod.plan.workload, self._workload_uid(pod))

    def _endpoint(self, pod: Pod) -> Endpoint:
        """The pod's SPIFFE Workload API: until somebody connects, a socket and nothing else."""

        def charge(pid: int) -> None:
            if pod.box is not None:
                self.backend.charge(pod.box, pid)

        sock = workload_socket(pod.plan.spiffe, self._workload_uid(pod))
        uid = runtime.WORKLOAD_API_UID + pod.slot.number if self._root else -1
        return Endpoint(self._loop, self._authority, sock, self._whose(pod), uid, charge)

    def _whose(self, pod: Pod) -> dict[str, Any]:
        """For the authority: whose identity this pod's sockets hand out, and to whom."""
        whose = "agent" if pod.spec.agent else "orchestrator"
        return {"pod": pod.name, "uid": self._workload_uid(pod), "whose": whose}

    def _workload_uid(self, pod: Pod) -> int:
        """Who may fetch this pod's SVID: its agent's uid; the orchestrator is whoever started us."""
        agent = self.backend.uid(pod.slot.number, "agent") if pod.spec.agent is not None else 0
        return agent or os.geteuid()

    def _ended(self, pod: Pod, kind: str, how: dict[str, Any]) -> None:
        """A compartment's pid 1 has ended."""
        if pod.destroying is not None or not pod.started:
            return
        if kind == "agent":
            pod.notify({"event": "agent_exit", "pod": pod.name, "code": how["code"], "signal": how["signal"]})
        else:
            self._fail(pod, SandboxError("the work compartment ended", rule="pod.work"))

    def _gate_died(self, pod: Pod) -> None:
        self._loop.forget(pod.gate_pidfd)
        pod.gate_gone.set(None)
        if pod.destroying is None and pod.started:
            self._fail(pod, SandboxError("the pod's gate ended", rule="pod.gate"))

    def _drifted(self, pod: Pod, what: str) -> None:
        if pod.destroying is None:
            self._fail(pod, SandboxError(f"the pod's network was changed from outside: {what}", rule="network.drift"))

    def _fail(self, pod: Pod, error: NucleusError) -> None:
        body = {"code": error.code, "message": error.message, "rule": error.rule, "next_step": error.next_step}
        pod.notify({"event": "pod_failed", "pod": pod.name, "error": body})
        self.destroy(pod, error.message)

    def destroy(self, pod: Pod, reason: str) -> Future[None]:
        """Begin (or join) the destruction of one pod."""
        if pod.destroying is None:
            pod.destroying = Future()  # set before the task's first step, which may already ask
            done = pod.destroying
            work = self._loop.task(self._destroy(pod, reason))
            work.when_done(lambda: done.set(None))
        return pod.destroying

    async def _destroy(self, pod: Pod, reason: str) -> None:
        _close_tools(pod)
        if pod.endpoint is not None:
            await pod.endpoint.close()
        if pod.making is not None:
            with suppress(Exception):  # it could not be made, and undid itself; the rest must go on
                box = await pod.making
                await self.backend.destroy(box)
                pod.aftermath = box.aftermath
        # The gate drains by itself once the hands' channel is gone: it settles and records what was running.
        if pod.gate_pidfd >= 0:
            with suppress(SandboxError):
                await self._loop.within(DRAIN_SECONDS, _mirror(pod.gate_gone), "the gate")
            if not pod.gate_gone.done:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pod.gate_pidfd, signal.SIGKILL)
                with suppress(SandboxError):
                    await self._loop.within(DRAIN_SECONDS, _mirror(pod.gate_gone), "the gate")
            self._loop.forget(pod.gate_pidfd)
            os.close(pod.gate_pidfd)
            pod.gate_pidfd = -1
        if pod.registered:
            with suppress(NucleusError):
                reason = "; ".join([reason, *pod.aftermath])[:REASON_CHARACTERS]
                closing = self._authority.call("close_pod", pod=pod.name, reason=reason)
                await self._loop.within(ANSWER_SECONDS, closing, "the authority")
        close_all([pod.plan.workspace, *pod.plan.stdio])
        shutil.rmtree(pod.directory, ignore_errors=True)
        os.close(pod.lock)
        pod.slot.release()
        self.all.pop(pod.name, None)


def _mirror(future: Future[None]) -> Future[None]:
    """A future of its own that follows another: a deadline on it must not resolve the first."""
    copy: Future[None] = Future()
    future.when_done(lambda: copy.set(None))
    return copy


def _close_tools(pod: Pod) -> None:
    """The gate has its own, or there is none: as long as ours is open the tool host would not see its gate's end."""
    if pod.tools >= 0:
        os.close(pod.tools)
        pod.tools = -1


def _check_descriptors(spec: PodSpec, fds: list[int]) -> None:
    wanted = 1 + (3 if spec.agent is not None and spec.agent.stdio == "pipes" else 0) + spec.serve
    wanted += spec.tools
    if len(fds) != wanted:
        raise SandboxError(f"create_pod with {len(fds)} descriptors where {wanted} are needed", rule="spec.descriptors")
