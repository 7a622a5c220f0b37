"""One gate: the process that decides for one pod. Forked from the template, which has done the imports.

Numbered steps of its start, before it reads a byte of its pod:
 1. Take the gate's own uid, drop every capability, no_new_privs, not dumpable.
 2. Parse the policy (here, unprivileged, and not in the template).
 3. Open the budget; for an agent: fetch the gate's SVID and serve the agent's door.
 4. Serve the launcher's channel until it closes, then drain: what runs is cancelled, settled and recorded.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nucleus.errors import NucleusError, SandboxError
from nucleus.frames import Frame
from nucleus.gate.pipeline import Gate
from nucleus.kernel import syscalls
from nucleus.lattice import Context, Policy, decide, decide_path
from nucleus.lattice.exposure import Exposure
from nucleus.lattice.identities import AGENTS, APPROVERS, lists_of
from nucleus.lattice.session import Session
from nucleus.model.decision import Decision
from nucleus.model.operation import Base
from nucleus.model.principal import Principal
from nucleus.server.authority import Authority, gone
from nucleus.server.changes import Changes
from nucleus.server.channel import Channel
from nucleus.server.driver import STREAM_BYTES, Driver
from nucleus.server.egress import CONNECTIONS, Egress, carried
from nucleus.server.egress import gone as egress_gone
from nucleus.server.executor import Executor
from nucleus.server.executors import Executors
from nucleus.server.tools import Tools, visible_tools
from nucleus.server.tools import gone as tools_gone
from nucleus.server.wire import error_object, reply_object

if TYPE_CHECKING:
    from nucleus.server.agent_door import AgentDoor

NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Config:
    """What the builder tells a gate. SPIFFE IDs are the authority's to prove; these are the ones to expect.

    door: who may come in over mutual TLS: ``agent`` (in the pod), ``orchestrator`` (on the host), or nobody ("").
    """

    pod: str
    namespace: str
    trust_domain: str
    policy_text: str
    policy_source: str
    task: str
    trusted_workspace: bool
    isolation: str
    uid: int
    door: str
    agent_id: str
    orchestrator_id: str
    gateway_id: str
    tools: bool = False
    test_seam: str = ""

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Config:
        """Strict: unknown or missing fields and wrong types are refused."""
        fields = {name: declared.type for name, declared in cls.__dataclass_fields__.items()}
        for name, item in value.items():
            if name not in fields or type(item).__name__ != fields[name]:
                raise SandboxError(f"gate configuration field {name!r}", rule="gate.config")
        try:
            return cls(**value)
        except TypeError as error:
            raise SandboxError(f"gate configuration: {error}", rule="gate.config") from None


def become_unprivileged(uid: int) -> None:
    """Step 1. `uid` 0 is refused; a process that is not root keeps the uid it has."""
    if os.geteuid() == 0:
        if uid <= 0:
            raise SandboxError("a gate never runs as root", rule="gate.uid")
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    syscalls.drop_all_capabilities()
    syscalls.set_no_new_privs()
    syscalls.set_dumpable(False)


async def serve(
    config: Config,
    policy: Policy,
    authority_socket: socket.socket,
    hands_socket: socket.socket,
    launcher_socket: socket.socket,
    egress_socket: socket.socket,
    listener: socket.socket | None,
    tools_socket: socket.socket | None = None,
) -> None:
    """Steps 3 and 4."""
    stopped = asyncio.Event()
    changes: list[Changes] = []
    doors: list[AgentDoor] = []

    def told(frame: Frame) -> None:
        if frame.header.get("op") == "revoked":
            for door in doors:
                door.told(frame.header)
        elif frame.header.get("op") == "federated":
            for door in doors:
                door.federated(own=frame.header.get("own") is True)
        elif changes:
            changes[0].received(frame)

    channel = await Channel.over(
        authority_socket,
        gone,
        on_request=told,
        on_closed=stopped.set,
    )
    authority = Authority(channel, lists_of(policy.identities, APPROVERS))
    hands = await Channel.over(
        hands_socket, lambda: SandboxError("the pod is gone", rule="hands.gone"), on_closed=stopped.set
    )
    started = time.time_ns()
    session = Session(
        policy,
        task=config.task,
        trusted_workspace=config.trusted_workspace,
        egress=policy.ways_out(),
    )

    own = frozenset((config.agent_id, config.orchestrator_id, config.gateway_id))

    def context(caller: str) -> Context:
        return Context(
            now_ns=time.time_ns(),
            started_ns=started,
            egress=session.policy.ways_out(),
            trusted_workspace=config.trusted_workspace,
            isolation=config.isolation,
            seen=session.seen,
            knowledge=session.knowledge,
            caller=caller,
            own=caller in own,
        )

    def decided(operation: Base, principal: Principal) -> Decision:
        # What a person changed of the network while the pod runs is in the session's policy.
        return decide(session.policy, operation, context(principal.spiffe_id))

    def connected(operation: Base) -> Decision:
        return decided(operation, _gateways(config))

    executor = Executor(
        hands,
        lambda path: decide_path(policy, path) is None,
        policy.hidden_globs(),
        time.monotonic_ns,
        policy.shown_globs(),
    )
    tools = None
    if tools_socket is not None:
        tools = Tools(await Channel.over(tools_socket, tools_gone), time.monotonic_ns)
    egress, attach = await _gateway(config, policy, egress_socket, stopped.set)
    driver = Driver(
        Gate(egress=carried(policy) if egress is not None else frozenset(), session=session, tools=tools is not None),
        decided,
        authority,
        Executors(executor, tools, egress),
        lambda: os.urandom(16).hex(),
        _seam(config.test_seam),
    )
    opened = await authority.open_budget(policy.budget_limit, policy.window_ns)
    session.restore(Exposure.from_data(opened.get("seen")))
    if egress is not None:
        attach(driver)
        await egress.configure(policy)
        changes.append(Changes(channel, session, egress, connected))
    else:
        changes.append(Changes(channel, session, None, connected))
    if listener is not None:
        from nucleus.server.agent_door import AgentDoor  # aiohttp, ssl, cryptography: only with an agent

        doors.append(
            AgentDoor(config, driver, authority, lists_of(policy.identities, AGENTS))
        )  # before it asks what is revoked: nothing is missed
        await doors[0].open(listener, visible_tools(policy, tools))
    launcher = await _launcher(config, driver, launcher_socket, stopped.set)
    await stopped.wait()
    launcher.close()
    for door in doors:
        await door.close()
    hands.close()
    if tools is not None:
        tools.close()
    if egress is not None:
        egress.close()
    await driver.drain()
    channel.close()


def _gateways(config: Config) -> Principal:
    """What runs in the pod and connects: it speaks for neither the agent nor the person who started it."""
    return Principal(config.gateway_id, "inherited-channel", "pod")


async def _gateway(
    config: Config, policy: Policy, sock: socket.socket, closed: Callable[[], None]
) -> tuple[Egress | None, Callable[[Driver], None]]:
    """The channel to the pod's gateway, where its policy has one; what the gateway asks waits for `attach`."""
    if not policy.needs_gateway():
        sock.close()
        return None, lambda _: None
    principal = _gateways(config)
    drivers: list[Driver] = []
    waiting: list[Frame] = []

    def received(frame: Frame) -> None:
        if drivers:
            egress.serve(frame, drivers[0], principal)
        elif len(waiting) < CONNECTIONS:
            waiting.append(frame)

    def attach(driver: Driver) -> None:
        drivers.append(driver)
        for frame in waiting:
            egress.serve(frame, driver, principal)

    channel = await Channel.over(sock, egress_gone, on_request=received, on_closed=closed)
    egress = Egress(channel, time.monotonic_ns)
    return egress, attach


async def _launcher(config: Config, driver: Driver, sock: socket.socket, closed: Any) -> Channel:
    """The inherited channel of the orchestrator: operations in, replies out, many at a time."""
    principal = Principal(config.orchestrator_id, "inherited-channel", "orchestrator")
    tasks: set[asyncio.Task[None]] = set()
    channel: Channel

    async def answer(frame: Frame) -> None:
        ident = frame.header.get("id")
        raw = frame.header.get("operation")
        try:
            if not isinstance(raw, dict):
                raise SandboxError("no operation in the frame", rule="frames.operation")
            output = _told(channel, ident) if frame.header.get("stream") is True else None
            reply = await driver.run(raw, lambda: principal, output=output)
            body: dict[str, Any] = {"id": ident, "reply": reply_object(reply, person=True)}
        except NucleusError as error:
            body = {"id": ident, "error": error_object(error)}
        try:
            channel.send(body)
        except NucleusError:
            return

    def received(frame: Frame) -> None:
        task = asyncio.ensure_future(answer(frame))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def lost() -> None:
        for task in tasks:
            task.cancel()
        closed()

    channel = await Channel.over(
        sock, lambda: SandboxError("the launcher is gone", rule="launcher.gone"), on_request=received, on_closed=lost
    )
    return channel


def _told(channel: Channel, ident: object) -> Callable[[str, bytes], None]:
    """What a command writes, to the launcher, as long as it reads: the reply has all of it."""
    behind = False

    def output(name: str, data: bytes) -> None:
        nonlocal behind
        behind = behind or channel.backlog() > STREAM_BYTES
        if not behind:
            channel.send({"id": ident, "stream": name}, data)

    return output


def _seam(step: str) -> Any:
    """The test seam: end this process as if by `kill -9` at one named step of the pipeline."""
    if not step:
        return None

    def at(name: str) -> None:
        if name == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return at
