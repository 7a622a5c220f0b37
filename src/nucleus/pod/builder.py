"""The builder: serves launchers, owns the other three processes, makes and destroys pods. Holds no secret.

`nucleus.pod.boot` starts it, as one of
  --helper   listens on <runtime>/helper.sock; one per runtime directory (flock); ends when stopped or after
             `idle` seconds without pods and launchers; descriptor 3, if open, gets one byte once it listens
  --private  serves the one launcher on descriptor 3 and ends with it
Promises: a peer of another uid (root aside), or from another user, pid or mount namespace, is refused; a launcher's
pods end when its socket does; when authority, template or zygote ends, everything ends.
Relies on: SO_PEERCRED, /proc/<pid>/ns. Does not: read policies, workspaces or what pods say.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import time
from _socket import socket as Channel
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from nucleus.errors import DeniedError, InvalidError, NucleusError, SandboxError
from nucleus.pod import boot, cgroups, children, guests, runtime
from nucleus.pod.loop import Future, Loop
from nucleus.pod.namespaces import Namespaces
from nucleus.pod.packets import (
    Packet,
    close_all,
    enlarge,
    error_body,
    recv_packet,
    send_packet,
    stream_pair,
)
from nucleus.pod.pods import ANSWER_SECONDS, Pod, Pods

LAUNCHERS = 256  # connected at a time
APPROVERS = 64  # of other users, connected at a time
LIMITS = cgroups.Limits()
REAP_SECONDS = 0.5  # after the start: the first pod goes first
NAMESPACE_KINDS = ("user", "pid", "mnt")
SDK = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "sdk")


class Builder:
    """One builder. `ready` resolves once pods can be made, or with the reason why never.

    Args:
        state, directory: the state and runtime directories.
        commands: how to start the children (tests name others).
        template: the gate template, which `boot` has started.
    """

    def __init__(
        self,
        state: str,
        directory: str,
        commands: dict[str, tuple[str, ...]],
        template: tuple[int, Channel],
        *,
        helper: bool,
        idle: float = runtime.IDLE_SECONDS,
    ) -> None:
        self.loop = Loop()
        self.helper = helper
        self.pids: dict[str, int] = {"builder": os.getpid()}
        self.pods: Pods | None = None
        self.launchers: set[Launcher] = set()
        self._idle = idle
        self.busy_until = time.monotonic() + idle
        self._state = state
        self._directory = directory
        self._peers: dict[str, children.Peer] = {}
        self.stopping = False
        self.doors: dict[str, socket.socket] = {}  # the helper's listeners by path
        self._commands = commands
        self._child("template", template)
        self._child("zygote", boot.start(commands["zygote"]))
        self.ready: Future[Pods] = self.loop.task(self._configure())

    @property
    def authority(self) -> children.Peer:
        """The channel to the authority."""
        return self._peers["authority"]

    def _child(self, name: str, started: tuple[int, Channel]) -> children.Peer:
        self.pids[name], channel = started
        self._peers[name] = children.Peer(
            name, channel, self.loop, lambda packet: close_all(packet.fds), partial(self._lost, name)
        )
        return self._peers[name]

    async def _configure(self) -> Pods:
        root = os.geteuid() == 0
        base = f"{self._directory}/base"
        runtime.private_directory(base)
        zygote = self._peers["zygote"].call("configure", base=base, sdk=SDK)
        made = (await self.loop.within(ANSWER_SECONDS, zygote, "the zygote")).body
        if self.stopping:
            raise SandboxError("the builder is stopping", rule="builder.stopping")
        # One after the other: on two processors they would take from the template, for which everything waits.
        identity: dict[str, Any] = {"uid": runtime.AUTHORITY_UID} if root else {}
        trust_domain = runtime.trust_domain(self._state)
        peer = self._child("authority", boot.start(self._commands["authority"]))
        authority = peer.call("configure", state_dir=self._state, trust_domain=trust_domain, **identity)
        await self.loop.within(ANSWER_SECONDS, authority, "the authority")
        guests.keep_images(runtime.images_dir(self._state))
        backend = Namespaces(
            self._peers["zygote"],
            self.loop,
            root=root,
            missing=[str(item) for item in made["missing"]],
            limits=LIMITS,
            closed_trees=(self._state, self._directory),
        )
        self.pods = Pods(
            self.loop,
            backend,
            self.authority,
            self._peers["template"],
            root=root,
            directory=self._directory,
            trust_domain=trust_domain,
        )
        self.loop.later(REAP_SECONDS, self.pods.reap)
        return self.pods

    def _lost(self, name: str) -> None:
        """A child has ended: nothing here works without it."""
        self.stop(f"the {name} ended")

    def stop(self, reason: str) -> None:
        """Destroy every pod, then end."""
        if self.stopping:
            return
        self.stopping = True
        self._shut_door()
        self.loop.task(self._stop(reason))

    def _shut_door(self) -> None:
        """Who comes now finds no helper, rather than one that refuses everybody; the next one waits for our lock."""
        for path, door in self.doors.items():
            self.loop.forget(door.fileno())
            door.close()
            with suppress(FileNotFoundError):
                os.unlink(path)
        self.doors = {}

    async def _stop(self, reason: str) -> None:
        for future in [self.pods.destroy(pod, reason) for pod in list(self.pods.all.values())] if self.pods else []:
            await future
        if self.pods is not None:
            self.pods.backend.close()
        for peer in self._peers.values():
            peer.close()
        # The authority flushes and ends by itself at the end of its channel; what is left dies with us.
        for _ in range(500):
            if "authority" not in self.pids or _ended(self.pids["authority"]):
                break
            await _sleep(self.loop, 0.01)
        for launcher in list(self.launchers):
            launcher.close()
        self.loop.stop()

    def serve(self, channel: socket.socket, uid: int, *, approves_only: bool = False) -> None:
        """Take one launcher on, or one who may do nothing but answer requests."""
        self.launchers.add(Launcher(self, channel, uid, approves_only=approves_only))

    def released(self, launcher: Launcher) -> None:
        """A launcher is gone."""
        self.launchers.discard(launcher)
        if not self.helper:
            self.stop("the launcher is gone")

    def watch_idle(self) -> None:
        """End the helper once nobody has used it for `idle` seconds."""
        if self.launchers or (self.pods is not None and self.pods.all):
            self.busy_until = time.monotonic() + self._idle
        if time.monotonic() >= self.busy_until:
            self.stop("idle")
        else:
            self.loop.later(min(5.0, self._idle / 4), self.watch_idle)


class Launcher:
    """One launcher's channel: requests in, answers and events out, its pods."""

    def __init__(self, builder: Builder, channel: socket.socket, uid: int, *, approves_only: bool = False) -> None:
        self._builder = builder
        self.approves_only = approves_only
        self._channel = channel
        self._uid = uid
        self._pods: dict[str, Pod] = {}
        self._making = 0
        self._open = True
        channel.setblocking(False)
        enlarge(channel)
        builder.loop.on_readable(channel.fileno(), self._readable)

    def close(self) -> None:
        """Forget the launcher and destroy its pods."""
        if not self._open:
            return
        self._open = False
        self._builder.loop.forget(self._channel.fileno())
        self._channel.close()
        for pod in list(self._pods.values()):
            if self._builder.pods is not None:
                self._builder.pods.destroy(pod, "the launcher is gone")
        self._builder.released(self)

    def _send(self, body: dict[str, Any], fds: Sequence[int] = ()) -> None:
        try:
            if self._open:
                send_packet(self._channel, body, fds)
        except (OSError, InvalidError):
            self.close()

    def _readable(self) -> None:
        try:
            packet = recv_packet(self._channel)
        except BlockingIOError:
            return
        except (InvalidError, OSError):
            packet = None
        if packet is None:
            self.close()
        else:
            self._builder.loop.task(self._serve(packet))

    async def _serve(self, packet: Packet) -> None:
        number = packet.body.get("id")
        answers = {
            "create_pod": self._create_pod,
            "attach_approver": self._attach_approver,
            "attach_identity": self._attach_identity,
            "status": self._status,
            "close_pod": self._close_pod,
            "stop": self._stop,
        }
        try:
            op = packet.body.get("op")
            serve = answers.get(op) if isinstance(op, str) else None
            if serve is None:
                raise InvalidError("unknown request", rule="builder.op")
            if self.approves_only and op != "attach_approver":
                raise DeniedError("an approver of another user may only answer requests", rule="helper.approver")
            if packet.fds and op != "create_pod":
                raise InvalidError(f"{op} takes no descriptors", rule="builder.fds")
            fds, packet.fds[:] = list(packet.fds), []
            body, sent = await serve(packet.body, fds)
        except Exception as error:  # noqa: BLE001 -- one request's failure is its launcher's, not the builder's
            close_all(packet.fds)
            self._send({"id": number, "error": error_body(error)})
            return
        self._send({"id": number, "ok": body}, sent)
        close_all(sent)

    async def _create_pod(self, body: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        try:
            await _done(self._builder.ready)
            pods = self._builder.ready.result()
            if self._builder.stopping:
                raise SandboxError("the builder is stopping", rule="builder.stopping")
        except BaseException:
            close_all(fds)
            raise
        created = await pods.create(body.get("spec"), fds, self._send, self._uid)
        pod = pods.all[created.body["pod"]]
        self._pods[pod.name] = pod
        if not self._open:
            close_all(created.fds)
            pods.destroy(pod, "the launcher is gone")
            raise SandboxError("the launcher is gone", rule="builder.launcher")
        return created.body, created.fds

    async def _attach_approver(self, _: dict[str, Any], __: list[int]) -> tuple[dict[str, Any], list[int]]:
        return await self._attach("approver")

    async def _attach_identity(self, body: dict[str, Any], _: list[int]) -> tuple[dict[str, Any], list[int]]:
        role = body.get("role")
        if role not in ("identity", "workload_api"):
            raise InvalidError("the role is identity or workload_api", rule="builder.role")
        return await self._attach(role)

    async def _attach(self, role: str) -> tuple[dict[str, Any], list[int]]:
        await _done(self._builder.ready)
        self._builder.ready.result()
        ours, theirs = stream_pair()
        with ours, theirs:
            who = {"uid": self._uid, "answers_only": self.approves_only}
            answer = self._builder.authority.call("attach", [theirs.fileno()], role=role, **who)
            await self._builder.loop.within(ANSWER_SECONDS, answer, "the authority")
            return {}, [ours.detach()]

    async def _status(self, _: dict[str, Any], __: list[int]) -> tuple[dict[str, Any], list[int]]:
        pods = []
        for pod in self._builder.pods.all.values() if self._builder.pods is not None else ():
            pids = pod.box.pids() if pod.box is not None else []
            pods.append({"pod": pod.name, "slot": pod.slot.number, "gate": pod.gate, "pids": pids})
        return {"pods": pods, "pids": self._builder.pids, "helper": self._builder.helper}, []

    async def _close_pod(self, body: dict[str, Any], _: list[int]) -> tuple[dict[str, Any], list[int]]:
        pod = self._pods.get(str(body.get("pod")))
        if pod is None or self._builder.pods is None:
            raise InvalidError("no such pod of yours", rule="builder.pod")
        await self._builder.pods.destroy(pod, "closed")
        self._pods.pop(pod.name, None)
        return {"set_aside": pod.aftermath}, []

    async def _stop(self, _: dict[str, Any], __: list[int]) -> tuple[dict[str, Any], list[int]]:
        self._builder.loop.soon(lambda: self._builder.stop("stopped"))
        return {}, []


def _ended(pid: int) -> bool:
    """Has our child ended (and is reaped by this)?"""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return True


async def _done(future: Future[Any]) -> None:
    """Wait until `future` is resolved, however."""
    if not future.done:
        done: Future[None] = Future()
        future.when_done(lambda: done.set(None))
        await done


async def _sleep(loop: Loop, seconds: float) -> None:
    woken: Future[None] = Future()
    loop.later(seconds, lambda: woken.set(None))
    await woken


def check_peer(channel: socket.socket, also: frozenset[int] = frozenset()) -> int:
    """The uid of a peer that may use this helper, or that is one of `also`.

    Raises:
        DeniedError: another user's, or in other namespaces than ours (a container's root is not ours).
    """
    pid, uid, _gid = struct.unpack("=iII", channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    if uid not in (0, os.geteuid(), *also):
        raise DeniedError(f"uid {uid} may not use this helper", rule="helper.peer")
    for kind in NAMESPACE_KINDS:
        try:
            same = os.path.samestat(os.stat(f"/proc/{pid}/ns/{kind}"), os.stat(f"/proc/self/ns/{kind}"))
        except OSError:
            same = False
        if not same:
            raise DeniedError(f"the peer is in another {kind} namespace", rule="helper.peer")
    return int(uid)


def _listen(path: str, mode: int) -> socket.socket:
    """A socket of the helper's; `boot` has the lock that makes us the only one."""
    with suppress(FileNotFoundError):
        os.unlink(path)  # of a helper that was killed
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    listener.bind(path)
    os.chmod(path, mode)
    listener.listen(64)
    listener.setblocking(False)
    return listener


def _accept(builder: Builder, listener: socket.socket, approvers: frozenset[int]) -> None:
    """`approvers`: of the door for them; who comes there may only answer requests."""
    try:
        channel, _ = listener.accept()
    except OSError:
        return
    try:
        others = sum(launcher.approves_only for launcher in builder.launchers)
        if others >= APPROVERS if approvers else len(builder.launchers) - others >= LAUNCHERS:
            raise DeniedError("too many launchers", rule="helper.launchers")
        builder.serve(channel, check_peer(channel, approvers), approves_only=bool(approvers))
    except NucleusError as error:
        with suppress(OSError):
            send_packet(channel, {"id": None, "error": error_body(error)})
        channel.close()


def run(
    state: str,
    directory: str,
    commands: dict[str, tuple[str, ...]],
    template: tuple[int, Channel],
    *,
    helper: bool,
    tell: bool,
    approvers: frozenset[int] = frozenset(),
    idle: float = runtime.IDLE_SECONDS,
) -> int:
    """Be a builder until it is over.

    Args:
        tell: descriptor 3 is open.
        approvers: other users who may answer requests.
        idle: seconds after which a helper that nobody uses ends.
    """
    doors = {f"{directory}/helper.sock": frozenset[int]()} if helper else {}
    if approvers:
        doors[runtime.approvers_socket(directory, make=True)] = approvers
    listeners = {path: _listen(path, 0o666 if allowed else 0o600) for path, allowed in doors.items()}
    builder = Builder(state, directory, commands, template, helper=helper, idle=idle)
    _end_on_signals(builder)
    if helper:
        builder.doors = listeners
        for path, door in listeners.items():
            builder.loop.on_readable(door.fileno(), partial(_accept, builder, door, doors[path]))
        builder.watch_idle()
        if tell:
            with suppress(OSError):
                os.write(3, b".")
            os.close(3)
    else:
        builder.serve(socket.socket(fileno=3), os.getuid())
    builder.loop.run()
    return 0


def _end_on_signals(builder: Builder) -> None:
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)

    def woken() -> None:
        os.read(wake_read, 64)
        builder.stop("signalled")

    builder.loop.on_readable(wake_read, woken)
