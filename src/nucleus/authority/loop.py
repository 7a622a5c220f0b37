"""The authority's one loop: gather what is ready, do it as one batch, answer; the builder's orders in between.

Promises: single-threaded, so the ledger and the log have one writer; a peer that misbehaves loses its own channel and
nothing else; when the builder is gone, pods are closed, the log is signed, its head kept, and the loop ends.
Does not: use asyncio (its import alone costs more than this process's whole start).
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
from typing import TYPE_CHECKING, Any

from nucleus.authority import fields, identities, people
from nucleus.authority.peers import (
    APPROVER,
    GATE,
    IDENTITY,
    POD_WORKLOAD_API,
    VAULT,
    WORKLOAD,
    WORKLOAD_API,
    WORKLOAD_CONNECTIONS,
    Attested,
    Channel,
    WorkloadDoor,
)
from nucleus.authority.service import Service
from nucleus.authority.signing import Signer
from nucleus.budget import names as account_names
from nucleus.errors import AuditError, InvalidError, NucleusError
from nucleus.frames import Frame
from nucleus.pod.packets import Packet, close_all, error_body, recv_packet, send_packet

if TYPE_CHECKING:
    from nucleus.identity.workload import WorkloadListener

CHECKPOINT_RECORDS = 4_096  # at most so many have to be read again after a crash
IDLE_S = 0.2  # without work for so long, a checkpoint is due
MAX_APPROVERS = 64
TEXT_BYTES = 256  # one text of register_pod
REASON_BYTES = 8_192  # why a pod ended, and what was set aside
FACTS_BYTES = 4_096  # its isolation, as JSON


class Loop:
    """See the module.

    Args:
        builder: the seqpacket channel, configured; owned by the caller.
        service: what the channels ask of.
        trust_domain: for the Workload listeners' names.
        signer: of the service's log.
    """

    def __init__(self, builder: socket.socket, service: Service, trust_domain: str, signer: Signer) -> None:
        self._builder = builder
        self._signer = signer
        self._service = service
        self._trust_domain = trust_domain
        self._epoll = select.epoll()
        self._channels: dict[int, Channel] = {}
        self._doors: dict[int, WorkloadDoor] = {}
        self._checkpointed = service.log.head.seq
        builder.setblocking(False)
        self._epoll.register(builder.fileno(), select.EPOLLIN)

    def run(self) -> None:
        """Serve until the builder is gone."""
        running = True
        while running:
            running = self._turn(self._epoll.poll(self._patience()))

    def _turn(self, events: list[tuple[int, int]]) -> bool:
        frames: list[tuple[Channel, Frame]] = []
        lost: list[Channel] = []
        orders = False
        for fd, event in events:
            channel = self._channels.get(fd)
            if channel is not None:
                if event & select.EPOLLOUT:
                    channel.flush()
                if event & ~select.EPOLLOUT and not channel.read(frames):
                    lost.append(channel)
            elif fd in self._doors:
                self._accept(self._doors[fd])
            else:
                orders = True
        if frames or self._due():
            self._service.turn(frames)
        for channel in lost:
            self._drop(channel)
        running = self._orders() if orders else True
        self._signer.turn(self._service.now()[1])
        seq = self._service.log.head.seq
        if seq - self._checkpointed >= (CHECKPOINT_RECORDS if events else 1):
            self._checkpoint()
        return running

    def _patience(self) -> float:
        deadlines = (self._service.desk.next_deadline_ns(), self._signer.due_ns())
        deadline = min((at for at in deadlines if at is not None), default=None)
        idle = IDLE_S if self._service.log.head.seq != self._checkpointed else -1.0
        if deadline is None:
            return idle
        wait = max(0.0, (deadline - self._service.now()[1]) / 1e9) + 0.001
        return wait if idle < 0 else min(wait, idle)

    def _due(self) -> bool:
        deadline = self._service.desk.next_deadline_ns()
        return deadline is not None and self._service.now()[1] >= deadline

    def _checkpoint(self) -> None:
        self._checkpointed = self._service.log.head.seq
        try:
            self._service.ledger.checkpoint(self._service.log.head, self._signer.state())
        except AuditError:
            return  # the disk is full, say: everything that needs it is refused; the next start reads a little more

    def _drop(self, channel: Channel) -> None:
        if self._channels.pop(channel.fd, None) is None:
            return
        if channel.attested is not None:
            channel.attested.door.connections -= 1
        channel.close()
        self._service.lost(channel)

    def _accept(self, door: WorkloadDoor) -> None:
        from nucleus.identity.workload import peer_credentials  # weight: pods with an agent only

        try:
            sock, _ = door.sock.accept()
        except OSError:
            return
        if door.connections >= WORKLOAD_CONNECTIONS:
            door.refused += 1
            sock.close()
            return
        try:
            attested = Attested(door, peer_credentials(sock))
        except OSError:
            sock.close()
            return
        door.connections += 1
        self._add(Channel(sock, self._epoll, WORKLOAD, pod=door.listener.pod, attested=attested))

    def _add(self, channel: Channel) -> None:
        self._channels[channel.fd] = channel

    # The builder

    def _orders(self) -> bool:
        """Every packet that is there; False once the builder is gone."""
        while True:
            try:
                packet = recv_packet(self._builder)
            except BlockingIOError:
                return True
            except (InvalidError, OSError):
                packet = None  # whoever breaks this protocol is not our builder
            if packet is None:
                self._end()
                return False
            self._obey(packet)

    def _obey(self, packet: Packet) -> None:
        ident = packet.body.get("id")
        try:
            ok = self._order(packet)
            answer: dict[str, Any] = {"id": ident, "ok": ok}
        except NucleusError as error:
            answer = {"id": ident, "error": error_body(error)}
        finally:
            close_all(packet.fds)  # an attached one was duplicated
        try:
            send_packet(self._builder, answer)
        except OSError:
            return  # gone: the next read says so

    def _order(self, packet: Packet) -> dict[str, Any]:
        body = packet.body
        match body.get("op"):
            case "register_pod":
                return self._register(body)
            case "attach":
                return self._attach(body, packet.fds)
            case "close_pod":
                self._close_pod(fields.pod(body), fields.text(body, "reason", REASON_BYTES, default=""))
                return {}
        raise InvalidError("unknown order of the builder", rule="packets.op")

    def _register(self, body: dict[str, Any]) -> dict[str, Any]:
        names = ("policy_digest", "policy_name")
        context: dict[str, Any] = {name: fields.text(body, name, TEXT_BYTES) for name in names}
        context["isolation"] = fields.facts(body, "isolation", FACTS_BYTES)
        trusted = body.get("trusted_workspace")
        if not isinstance(trusted, bool):
            raise InvalidError("trusted_workspace is not true or false", rule="frames.field")
        context["trusted_workspace"] = trusted
        if session := fields.text(body, "session", 63, default=""):
            context["session"] = session
        if account := fields.text(body, "account", account_names.BYTES, default=""):
            context["account"] = account_names.check(account)
        owner = fields.uid({"uid": body["owner"]}) if "owner" in body else -1
        pods = people.read_lists(body, "pods")
        return self._service.register_pod(fields.pod(body), fields.text(body, "namespace", 63), context, owner, pods)

    def _attach(self, body: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        role = body.get("role")
        if len(fds) != 1:
            raise InvalidError("attach takes one descriptor", rule="packets.fds")
        sock = _socket(fds[0])
        try:
            if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
                raise InvalidError("attach takes a unix stream socket", rule="packets.fds")
            if role == GATE:
                pod = self._open_pod(body)
                if any(c.kind == GATE and c.pod == pod for c in self._channels.values()):
                    raise InvalidError("this pod has its gate", rule="attach.gate")
                self._add(gate := Channel(sock, self._epoll, GATE, pod=pod))
                self._service.rules.gates[pod] = gate
            elif role == APPROVER:
                if sum(c.kind == APPROVER for c in self._channels.values()) >= MAX_APPROVERS:
                    raise InvalidError("too many approvers", rule="attach.approver")
                answers_only = body.get("answers_only", False) is not False
                self._add(Channel(sock, self._epoll, APPROVER, uid=fields.uid(body), answers_only=answers_only))
            elif role == VAULT:
                names = body.get("names")
                if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                    raise InvalidError("a vault is attached for the names of credentials", rule="frames.field")
                self._add(Channel(sock, self._epoll, VAULT, pod=self._open_pod(body), names=frozenset(names)))
            elif role in (IDENTITY, WORKLOAD_API):
                if sum(c.kind in (IDENTITY, WORKLOAD_API) for c in self._channels.values()) >= MAX_APPROVERS:
                    raise InvalidError("too many identity channels", rule="attach.identity")
                self._add(Channel(sock, self._epoll, role, uid=fields.uid(body)))
            elif role == POD_WORKLOAD_API:
                listener = self._whose(body)
                own = [c for c in self._channels.values() if c.kind == POD_WORKLOAD_API and c.pod == listener.pod]
                for before in own:
                    self._drop(before)  # its process has ended, or the builder would not have started another
                self._add(Channel(sock, self._epoll, POD_WORKLOAD_API, pod=listener.pod, listener=listener))
            elif role == WORKLOAD:
                return self._listen(sock, self._whose(body))
            else:
                raise InvalidError("unknown role", rule="attach.role")
        except BaseException:
            sock.close()
            raise
        return {}

    def _whose(self, body: dict[str, Any]) -> WorkloadListener:
        """Whose identity is handed out, as the builder says."""
        from nucleus.identity.workload import WorkloadListener  # weight: pods with an agent only

        pod, uid, whose = self._open_pod(body), fields.uid(body), body.get("whose", "agent")
        if whose not in ("agent", "orchestrator"):
            raise InvalidError("a Workload socket is an agent's or an orchestrator's", rule="attach.role")
        named = identities.agent_id if whose == "agent" else identities.orchestrator_id
        return WorkloadListener(pod, uid, named(self._trust_domain, self._service.ledger.pods[pod].namespace, pod))

    def _listen(self, sock: socket.socket, listener: WorkloadListener) -> dict[str, Any]:
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise InvalidError("the Workload socket does not listen", rule="packets.fds")
        sock.setblocking(False)
        self._doors[sock.fileno()] = WorkloadDoor(sock, listener)
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        return {"spiffe_id": str(listener.spiffe_id)}

    def _open_pod(self, body: dict[str, Any]) -> str:
        pod = fields.pod(body)
        if pod not in self._service.ledger.pods:
            raise InvalidError("no such pod is open", rule="pod.name")
        return pod

    def _close_pod(self, pod: str, reason: str) -> None:
        for channel in [c for c in self._channels.values() if c.pod == pod]:
            frames: list[tuple[Channel, Frame]] = []
            if channel.kind == GATE and channel.read(frames):
                self._service.turn(frames)  # what the gate said before it ended still counts
            self._drop(channel)
        refused = self._service.workloads.forget(pod)
        for fd, door in [(fd, door) for fd, door in self._doors.items() if door.listener.pod == pod]:
            refused += door.refused
            self._epoll.unregister(fd)
            door.sock.close()
            del self._doors[fd]
        context: dict[str, Any] = {"reason": reason}
        if refused:
            context["workload_requests_refused"] = refused
        self._service.close_pod(pod, context)

    def _end(self) -> None:
        """The builder is gone, and with it every pod."""
        for pod in tuple(self._service.ledger.pods):
            try:
                self._close_pod(pod, "the builder is gone")
            except NucleusError:
                continue  # the next start ends it
        for channel in tuple(self._channels.values()):
            self._drop(channel)
        self._signer.end(self._service.now()[1])
        self._checkpoint()
        self._epoll.close()


def _socket(fd: int) -> socket.socket:
    """A duplicate of a descriptor as a socket. Raises InvalidError: it is none."""
    own = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    try:
        return socket.socket(fileno=own)
    except OSError:
        os.close(own)
        raise InvalidError("attach takes a socket", rule="packets.fds") from None
