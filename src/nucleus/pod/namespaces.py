"""The backend: two compartments in namespaces of their own, on the host's kernel or each around a guest's.

Promises: `make` returns once the pod's network exists and its compartments are being prepared; nothing untrusted runs
before `start`; a compartment is in its cgroup before it is released; `destroy` ends every process by pidfd and cgroup
and removes the cgroups and the placeholders in the workspace.
Relies on: the zygote (nucleus.pod.zygote), which is told everything, and `nucleus.pod.cgroups`.
Does not: know the gate or the authority (nucleus.pod.pods brings them together).
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from nucleus.errors import InvalidError, NucleusError, SandboxError
from nucleus.network.drift import Watch
from nucleus.pod import aftermath, cgroups, leftovers
from nucleus.pod.backend import Facts, Plan, Started
from nucleus.pod.beneath import identity, open_beneath, remove_placeholders
from nucleus.pod.children import Peer
from nucleus.pod.guests import GUESTS
from nucleus.pod.loop import Future, Loop
from nucleus.pod.packets import Packet, checked, close_all, pair, recv_packet, send_packet
from nucleus.pod.runtime import POD_UID
from nucleus.pod.spec import LADDER, PodSpec, refuse_wide

STEP_SECONDS = 15.0  # a compartment's way from fork to ready
KILL_SECONDS = 5.0  # from SIGKILL to gone
AFTERMATH_SECONDS = 10.0  # for the look at what commands left
PREPARE_SECONDS = 0.05  # after a pod was made, before the next one is prepared for
MAPPINGS = 64  # user namespaces kept for idmapped mounts
OnExit = Callable[[str, dict[str, Any]], None]


class Compartment:
    """The builder's view of one compartment: its pid 1 and its status channel."""

    def __init__(self, loop: Loop) -> None:
        self.kind = "spare"
        self.group: cgroups.Group | None = None
        self.pid = 0
        self.pidfd = -1
        self.born: Future[None] = Future()  # its pid is known, and it is in its cgroup
        self.ready: Future[dict[str, Any]] = Future()
        self.gone: Future[None] = Future()
        self.pty: int | None = None
        self._how: dict[str, Any] = {"code": None, "signal": signal.SIGKILL}
        self._killed = False
        self._loop = loop
        self._on_exit: OnExit = lambda kind, how: None
        self._on_born: Callable[[int], None] = lambda pid: None
        self.status, self.theirs = pair()
        self.status.setblocking(False)
        loop.on_readable(self.status.fileno(), self._readable)

    def become(self, kind: str, on_exit: OnExit, on_born: Callable[[int], None]) -> None:
        """From a fork that waits for its order to a pod's compartment."""
        self.kind, self._on_exit, self._on_born = kind, on_exit, on_born

    def order(self, body: dict[str, Any], fds: dict[str, int]) -> None:
        """Tell it what to be; steps up to `go` follow."""
        try:
            send_packet(self.status, {**body, "descriptors": list(fds)}, list(fds.values()))
        except OSError:
            self._failed(SandboxError(f"the {self.kind} compartment is gone", rule=f"pod.{self.kind}"))

    def go(self, block: list[str], protect: list[str], outward: dict[str, Any], rung: str) -> None:
        """Release it."""
        parts: dict[str, int] = {}
        try:
            guest = GUESTS.get(rung)
            parts = guest.parts(self.kind) if guest else {}
            word = {"go": True, "block": block, "protect": protect, "rung": rung, "parts": list(parts), **outward}
            word["settings"] = guest.settings() if guest else {}
            send_packet(self.status, word, list(parts.values()))
        except NucleusError as error:
            self._failed(error)
        except OSError as error:
            self._failed(
                SandboxError(f"the {self.kind} compartment is gone", rule=f"pod.{self.kind}", next_step=str(error))
            )
        finally:
            close_all(parts.values())

    def kill(self) -> None:
        """SIGKILL its pid 1, and with it everything in its pid namespace; as soon as it is born when it is not yet."""
        self._killed = True
        if self.pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Close what is left of it."""
        self._hang_up()
        self.theirs.close()
        if self.pidfd >= 0:
            self._loop.forget(self.pidfd)
            os.close(self.pidfd)
            self.pidfd = -1
        if self.pty is not None:
            os.close(self.pty)
            self.pty = None

    def _hang_up(self) -> None:
        if self.status.fileno() >= 0:
            self._loop.forget(self.status.fileno())
            self.status.close()

    def _failed(self, error: Exception) -> None:
        self.born.fail(error)
        self.ready.fail(error)

    def _readable(self) -> None:
        """Its words are bounded and believed only before `ready`; after that nothing it says can grant anything."""
        try:
            packet = recv_packet(self.status, max_fds=1)
        except BlockingIOError:
            return
        except (InvalidError, OSError):
            packet = None
        if packet is None:
            self._hang_up()
            self._failed(
                SandboxError(f"the {self.kind} compartment ended before it was ready", rule=f"pod.{self.kind}")
            )
            if self.pidfd < 0:
                self.gone.set(None)
            return
        try:
            self._heard(packet)
        except (KeyError, TypeError, ValueError, NucleusError) as error:
            close_all(packet.fds)
            self._failed(error if isinstance(error, NucleusError) else SandboxError(str(error), rule="pod.status"))

    def _heard(self, packet: Packet) -> None:
        body = packet.body
        if "pid" in body and self.pidfd < 0 and len(packet.fds) == 1:
            self.pid, self.pidfd = int(body["pid"]), packet.fds[0]
            self._loop.on_readable(self.pidfd, self._died)
            if self._killed:
                self.kill()
            else:
                self._on_born(self.pid)
                self.born.set(None)
        elif "error" in body:
            checked(body)
        elif body.get("ready") is True and not self.ready.done:
            self.pty = packet.fds[0] if packet.fds else None
            self.ready.set(body)
        elif "exit" in body and self.kind == "agent":
            how = body["exit"]
            self._how = {"code": int(how["code"]) & 0xFF, "signal": int(how["signal"]) & 0x7F}
        else:
            close_all(packet.fds)

    def _died(self) -> None:
        """The pidfd is readable: pid 1 has ended. What it said last is still in the channel."""
        self._loop.forget(self.pidfd)
        while self.status.fileno() >= 0 and select.select([self.status], [], [], 0)[0]:
            self._readable()
        self._hang_up()
        self._failed(SandboxError(f"the {self.kind} compartment ended", rule=f"pod.{self.kind}"))
        self.gone.set(None)
        self._on_exit(self.kind, self._how)


class NamespacesBox:
    """One pod of this backend."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.listener: int | None = None
        self.egress: list[int] = []  # the gateway's listeners, until it has them
        self.watchers: list[int] = []  # readable when the network has been changed
        self.watch: Watch | None = None
        self.digest: dict[str, str] = {}  # what it looked like when it was made
        self.compartments: dict[str, Compartment] = {}
        self.placeholders: list[str] = []
        self.protect: list[str] = []
        self.known: frozenset[str] | None = None
        self.aftermath: list[str] = []
        self.steps: dict[str, Any] = {}
        self.netns = -1

    def pids(self) -> list[int]:
        """Host pids of the compartments' first processes."""
        return [each.pid for each in self.compartments.values() if each.pid and not each.gone.done]


class Namespaces:
    """Makes pods through the zygote.

    Args:
        zygote: configured.
        root: the zygote said that it is the host's root.
        missing: what the zygote found missing.
        limits: of each compartment.
        closed_trees: directories that no toolchain may show (state, runtime).
    """

    def __init__(
        self,
        zygote: Peer,
        loop: Loop,
        *,
        root: bool,
        missing: list[str],
        limits: cgroups.Limits,
        closed_trees: tuple[str, ...],
    ) -> None:
        self._zygote = zygote
        self._loop = loop
        self._root = root
        self._limits = limits
        self._closed = closed_trees
        self._missing = [*missing, *cgroups.missing()]
        self._count = 0
        self._spare: Compartment | None = None
        self._network: Packet | None = None
        self._mappings: dict[tuple[int, int, int], int] = {}
        self._boxes: list[NamespacesBox] = []
        self._closed_down = False
        self._prepare_soon()

    def facts(self, rung: str) -> Facts:
        """See `Backend.facts`."""
        if rung == LADDER[0]:
            return Facts(rung, "shared", tuple(self._missing))
        guest = GUESTS.get(rung)
        reason = guest.lacking() if guest is not None else "it is not in this version"
        if guest is None or reason:
            raise SandboxError(
                f"no pod of {rung!r} can be started here: {reason}; without a floor it would be {LADDER[0]!r}",
                rule="isolation.floor",
                next_step="Run `nucleus doctor` to see which kinds of isolation this machine has.",
            )
        return Facts(rung, "own", (*self._missing, *guest.missing()))

    def uid(self, slot: int, kind: str) -> int:
        """The host uid of a compartment; 0 means the user's own, in the zygote's user namespace."""
        return POD_UID + 2 * slot + (kind == "work") if self._root else 0

    async def make(self, plan: Plan, on_exit: OnExit) -> NamespacesBox:
        """See `Backend.make`."""
        box = NamespacesBox(plan)
        self._boxes.append(box)
        began = time.monotonic_ns()
        toolchains = [self._toolchain(path) for path in plan.spec.toolchains]
        made = self._network or await self._call("make_network")
        self._network = None
        box.netns, box.listener, *rest = made.fds
        box.egress, box.watchers, box.digest = rest[:4], rest[4:], made.body["digest"]
        try:
            for kind in ("work", "agent") if plan.spec.agent is not None else ("work",):
                mapping = await self._mapping(plan, kind) if kind == "work" or plan.spec.share_workspace else None
                self._begin(box, kind, toolchains, mapping, on_exit)
        except BaseException:
            await self.destroy(box)
            raise
        box.steps["made"] = (time.monotonic_ns() - began) // 1000
        self._prepare_soon()
        return box

    def _call(self, op: str, fds: Sequence[int] = (), **fields: Any) -> Future[Packet]:
        return self._loop.within(STEP_SECONDS, self._zygote.call(op, fds, **fields), "the zygote")

    def _prepare_soon(self) -> None:
        def begin() -> None:
            self._loop.task(self._prepare())

        self._loop.later(PREPARE_SECONDS, begin)

    async def _prepare(self) -> None:
        """For the next pod: a network, and a fork that is in its cgroup already (joining costs an RCU grace period)."""
        if self._closed_down or not self._zygote.open:
            return
        with suppress(SandboxError, OSError):
            if not self._network:
                self._network = await self._call("make_network")
            if self._spare is None and not self._closed_down:
                spare = self._spare = Compartment(self._loop)
                forked = self._call("fork", [spare.theirs.fileno()])
                spare.theirs.close()
                pid = int((await forked).body["pid"])
                if self._spare is spare:  # else it was taken meanwhile, and is confined when it is born
                    self._confine(spare, pid, self._limits)

    async def _mapping(self, plan: Plan, kind: str) -> int | None:
        """The user namespace that maps the workspace's owner to the compartment's uid; kept, since slots come back."""
        uid = self.uid(plan.slot, kind)
        if not uid:
            return None
        owner = os.fstat(plan.workspace)
        key = (owner.st_uid, owner.st_gid, uid)
        if key not in self._mappings:
            uid_map, gid_map = f"{owner.st_uid} {uid} 1", f"{owner.st_gid} {uid} 1"
            (made,) = (await self._call("make_mapping", uid_map=uid_map, gid_map=gid_map)).fds
            self._mappings[key] = made
            if len(self._mappings) > MAPPINGS:
                os.close(self._mappings.pop(next(iter(self._mappings))))
        return self._mappings[key]

    def _limits_of(self, spec: PodSpec) -> cgroups.Limits:
        """What a compartment of this pod may use. Raises SandboxError: it names limits that cannot be had here."""
        asked = spec.resources
        if asked is None:
            return self._limits
        if lacking := cgroups.missing():
            raise SandboxError(
                f"the pod's limits cannot be set here: {', '.join(lacking)}",
                rule="pod.resources",
                next_step="Run it as root, or leave `resources` out.",
            )
        return cgroups.Limits(asked.memory_mib << 20, asked.pids, asked.cpu_percent)

    def _take(self, *, fresh: bool = False) -> Compartment:
        """The fork that waits, or a new one. `fresh`: the one that waits is in a group with the usual limits."""
        if fresh:
            return self._forked()
        spare, self._spare = self._spare, None
        if spare is not None and not spare.gone.done and not spare.ready.done:
            return spare
        if spare is not None:
            self._discard(spare)
        return self._forked()

    def _forked(self) -> Compartment:
        made = Compartment(self._loop)
        forked = self._call("fork", [made.theirs.fileno()])
        made.theirs.close()  # the packet holds it; when the compartment goes, so does the last copy

        def refused() -> None:
            try:
                forked.result()
            except NucleusError as error:
                made.ready.fail(error)

        forked.when_done(refused)
        return made

    def _discard(self, made: Compartment) -> None:
        made.close()
        if made.group is not None:
            with suppress(OSError):
                cgroups.kill(made.group)
                cgroups.remove(made.group)
            made.group = None

    def close(self) -> None:
        """Let go of what was prepared for a pod that never came."""
        self._closed_down = True
        spare, self._spare = self._spare, None
        if spare is not None:
            self._discard(spare)
        close_all([*(self._network.fds if self._network is not None else ()), *self._mappings.values()])
        self._network, self._mappings = None, {}

    def _begin(
        self,
        box: NamespacesBox,
        kind: str,
        toolchains: list[tuple[str, str]],
        mapping: int | None,
        on_exit: OnExit,
    ) -> None:
        plan = box.plan
        limits = self._limits_of(plan.spec)
        made = self._take(fresh=plan.spec.resources is not None)
        made.become(kind, on_exit, lambda pid: self._confine(made, pid, limits))
        box.compartments[kind] = made
        fds = {"netns": box.netns} | ({} if mapping is None else {"mapping": mapping})
        fields: dict[str, Any] = {"kind": kind, "uid": self.uid(plan.slot, kind), "toolchains": toolchains}
        fields["pids"] = limits.pids
        if kind == "work":
            fds |= {"workspace": plan.workspace, "channel": plan.hands}
        else:
            fields |= self._agent_fields(plan)
            fds |= dict(zip(("stdin", "stdout", "stderr"), plan.stdio, strict=False))
            if plan.spec.share_workspace:
                fds["workspace"] = plan.workspace
        made.order(fields, fds)

    def _agent_fields(self, plan: Plan) -> dict[str, Any]:
        agent = plan.spec.agent
        assert agent is not None
        env = {**agent.env, "NUCLEUS_GATE_ID": plan.gate_id, "NUCLEUS_TASK": plan.spec.task}
        return {
            "argv": list(agent.argv),
            "env": env,
            "rows": agent.rows,
            "cols": agent.cols,
            "sockets": [("workload.sock", plan.workload), ("spiffe.sock", plan.spiffe)],
            "read_only": plan.spec.share_workspace,
        }

    def _confine(self, made: Compartment, pid: int, limits: cgroups.Limits) -> None:
        """Put a compartment into its cgroup; it waits for `go` meanwhile. What cgroups lack here the facts say."""
        if made.group is not None:
            return  # its helper was in it before it was born
        self._count += 1
        try:
            made.group = cgroups.create(f"pod-{leftovers.mark()}-{self._count}", limits)
            cgroups.add(made.group, pid)
        except ProcessLookupError:
            return  # it failed already, and says so itself on its status channel
        except OSError as error:
            made.ready.fail(SandboxError(f"cgroup: {error}", rule="pod.cgroup"))

    async def start(
        self,
        box: NamespacesBox,
        block: list[str],
        protect: list[str],
        registered: Future[None],
        outward: dict[str, Any],
        rung: str,
    ) -> Started:
        """See `Backend.start`."""
        started = Started()
        patience = GUESTS[rung].seconds if rung in GUESTS else STEP_SECONDS
        for kind in ("work", "agent"):
            made = box.compartments.get(kind)
            if made is None:
                continue
            if made.ready.done:
                made.ready.result()  # it failed while it was prepared
            if kind == "agent":
                await registered
            # What is forked before it is confined would stay outside for good.
            await self._loop.within(STEP_SECONDS, made.born, f"the {kind} compartment")
            if rung in GUESTS and made.group is not None:
                try:
                    cgroups.set_pids(made.group, GUESTS[rung].tasks(self._limits_of(box.plan.spec).pids))
                except OSError as error:
                    raise SandboxError(f"cgroup: {error}", rule="pod.cgroup") from error
            made.go(block, protect, outward, rung)
            box.protect = protect
            said = await self._loop.within(patience, made.ready, f"the {kind} compartment")
            placeholders, notes = said.get("placeholders", []), said.get("notes", [])
            box.placeholders += [str(path) for path in placeholders]
            started.notes += [str(note) for note in notes]
            if kind == "work":
                box.known = frozenset(str(inode) for inode in said["known"])
            started.steps[kind] = said.get("steps", {})
            if kind == "agent":
                started.pty, made.pty = made.pty, None
        started.steps |= box.steps
        return started

    def watch(self, box: NamespacesBox, drifted: Callable[[str], None]) -> None:
        """Report any change of the pod's network from now on, once its links are down."""

        async def check() -> dict[str, str]:
            found: dict[str, str] = (await self._call("check_network", [box.netns])).body["digest"]
            return found

        async def cut(what: str) -> None:
            with suppress(SandboxError):  # what is left of the pod is killed all the same
                await self._call("cut_network", [box.netns])
            box.steps["cut"] = time.monotonic_ns()
            drifted(what)

        def begin(what: str) -> None:
            self._loop.task(cut(what))

        box.watch = Watch(self._loop, box.watchers, box.digest, check, begin)

    def charge(self, box: NamespacesBox, pid: int) -> None:
        """See `Backend.charge`."""
        agent = box.compartments.get("agent")
        if agent is not None and agent.group is not None:
            with suppress(OSError):  # it has ended already
                cgroups.add(agent.group, pid)

    async def destroy(self, box: NamespacesBox) -> None:
        """See `Backend.destroy`."""
        if box.watch is not None:
            box.watch.stop()
        for made in box.compartments.values():
            made.kill()
        groups = [made.group for made in box.compartments.values() if made.group is not None]
        for group in groups:
            with suppress(OSError):
                cgroups.kill(group)
        for made in box.compartments.values():
            with suppress(SandboxError):
                await self._loop.within(KILL_SECONDS, made.gone, f"the {made.kind} compartment")
            made.close()
        for group in groups:
            with suppress(OSError):
                cgroups.remove(group)
        for made in box.compartments.values():
            made.group = None
        if box in self._boxes:  # a pod that is undone while it is made comes here twice
            self._boxes.remove(box)
        remove_placeholders(box.plan.workspace, [path for path in box.placeholders if not self._needed(box, path)])
        box.aftermath = await self._aftermath(box)
        for fd in (box.netns, box.listener if box.listener is not None else -1, *box.egress, *box.watchers):
            if fd >= 0:
                os.close(fd)
        box.netns, box.listener, box.egress, box.watchers = -1, None, [], []

    def _needed(self, box: NamespacesBox, path: str) -> bool:
        """Does another pod rely on this placeholder? Removing it would take that pod's mount away, silently.

        A pod of the same workspace inherits it; one of a workspace above or below keeps it there for good.
        """
        holder, _, name = path.rpartition("/")
        try:
            directory = open_beneath(box.plan.workspace, holder, os.O_PATH | os.O_DIRECTORY)
        except OSError:
            return True
        try:
            inode = identity(os.stat(name, dir_fd=directory, follow_symlinks=False))
        except OSError:
            return True
        finally:
            os.close(directory)
        for other in self._boxes:
            same = os.path.samestat(os.fstat(other.plan.workspace), os.fstat(box.plan.workspace))
            if inode in other.known if other.known is not None else same:
                if same:
                    other.placeholders.append(path)
                return True
        return False

    async def _aftermath(self, box: NamespacesBox) -> list[str]:
        """What commands left that would run on the host, set aside by a child as the workspace's owner."""
        if "work" not in box.compartments or not box.protect:
            return []
        if box.known is None:
            return []  # nothing of it ever ran
        read, write = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if pid == 0:
            aftermath.look(box.plan.workspace, box.protect, box.known, write)
        os.close(write)
        said: Future[None] = Future()
        self._loop.on_readable(read, lambda: said.set(None))
        try:
            await self._loop.within(AFTERMATH_SECONDS, said, "the look at what is left")
            lines = json.loads(os.read(read, 262_144) or b'["the workspace could not be looked through"]')
            return [str(line) for line in lines]
        except (SandboxError, ValueError) as error:
            return [f"the workspace could not be looked through: {error}"]
        finally:
            self._loop.forget(read)
            os.close(read)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)  # noqa: ASYNC222 -- it has just been killed

    def _toolchain(self, path: str) -> tuple[str, str]:
        """(canonical, as named), refused when it is too wide or shows what is ours.

        Raises:
            InvalidError: rule ``spec.toolchains``.
        """
        try:
            fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise InvalidError(f"toolchain {path}: {error.strerror}", rule="spec.toolchains") from error
        try:
            canonical = os.readlink(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)
        refuse_wide(canonical)
        for closed in self._closed:
            if f"{closed}/".startswith(f"{canonical}/") or f"{canonical}/".startswith(f"{closed}/"):
                raise InvalidError(f"toolchain {path} would show {closed}", rule="spec.toolchains")
        return canonical, path


def workload_socket(path: str, uid: int) -> socket.socket:
    """The pod's Workload socket, listening; only `uid` (and root) may connect."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.bind(path)
        os.chmod(path, 0o600)
        if uid != os.geteuid():
            os.chown(path, uid, uid)
        listener.listen(16)
    except BaseException:
        listener.close()
        raise
    return listener
