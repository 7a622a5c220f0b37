"""The attesting half of the Workload API: accepts, says who called, and asks the authority what is theirs.

Promises: the process that reads what callers send (`workload_api`) holds no privilege and no key of ours, and gets the
SVIDs of callers that are connected now, and no others: which caller a connection is, is decided here and nowhere else.
Relies on: the authority's channel of role ``workload_api``; `attestation`; the builder's `status` for pods.
Does not: read a byte from a caller.

Steps of the start (`serve`):
1. the socket is made, while we may
2. the API's process is started, with an empty environment and one channel; it takes a uid of its own before it is
   given a connection
3. we take a uid of our own too, as root keeping CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH: other users' executables
4. accept
Steps of a request, each time: the caller is attested anew; the rate of its uid; the authority's answer.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import stat
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from nucleus.errors import BudgetError, InvalidError, NucleusError, SandboxError, UnauthenticatedError
from nucleus.frames import Decoder, Frame, encode
from nucleus.identity.attestation import Caller, PodOf, pid_namespace
from nucleus.identity.entries import Facts
from nucleus.kernel import syscalls
from nucleus.pod import boot
from nucleus.pod.packets import Packet, checked, close_all, error_body, recv_packet, send_packet

LISTENER_UID, API_UID = 0x70000002, 0x70000003  # as root; beside the authority's (docs/adr/0014-workload-api.md)
CONNECTIONS = 1_024  # at a time
CONNECTIONS_OF_A_UID = 32
BURST, EVERY_NS = 128, 50_000_000  # requests of one uid: at once, and one each after that
POLL_NS = 2_000_000_000  # how often the authority is asked whether anything has changed
ANSWER_S = 20.0
_UIDS = 1_024  # of which the rate is remembered
_BACKLOG = 128
_COMMAND = (
    sys.executable,
    "-I",
    "-c",
    "from nucleus.identity.workload_api import main; raise SystemExit(main())",
)
_ASKS = frozenset({"x509", "jwt", "bundles", "look", "federated", "token"})
_FIELDS = frozenset({"audience", "spiffe_id", "serials", "trust_domain", "issued_ns"})


class AuthorityChannel:
    """Requests to the authority over a framed channel, one at a time.

    Args:
        sock: attached by the builder; owned from here on.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._decoder = Decoder(1 << 24)
        self._number = 0
        self._told = False
        sock.settimeout(ANSWER_S)

    def fileno(self) -> int:
        """For poll: readable between requests means that it has something to tell (`told`), or has ended."""
        return self._sock.fileno()

    def told(self) -> bool:
        """Whether the authority has said since the last time that something changed.

        Raises:
            SandboxError: it has ended.
        """
        try:
            # Not what an earlier poll said: a request that came between may have read it.
            while select.select([self._sock], [], [], 0)[0]:
                data = self._sock.recv(262_144)
                if not data:
                    raise SandboxError("the authority has ended", rule="identity.authority")
                self._told = bool(list(self._decoder.feed(data))) or self._told
        except (OSError, InvalidError) as error:
            raise SandboxError(f"the authority cannot be reached: {error}", rule="identity.authority") from error
        told, self._told = self._told, False
        return told

    def call(self, op: str, **fields: Any) -> dict[str, Any]:
        """Ask and wait.

        Raises:
            NucleusError: what the authority reported; SandboxError: it is gone.
        """
        self._number += 1
        try:
            answer: Frame | None = None
            self._sock.sendall(encode({"id": self._number, "op": op, **fields}))
            while True:
                data = self._sock.recv(262_144)
                if not data:
                    raise ConnectionResetError("it has ended")
                for frame in self._decoder.feed(data):
                    if frame.header.get("id") == self._number:
                        answer = frame
                    else:
                        self._told = True  # what is no answer is a word that something changed
                if answer is not None:
                    return _answer(answer)
        except (OSError, InvalidError) as error:
            if isinstance(error, InvalidError) and error.rule != "limits.request":
                raise
            raise SandboxError(f"the authority cannot be reached: {error}", rule="identity.authority") from error

    def close(self) -> None:
        """Give the channel up."""
        self._sock.close()


def _answer(frame: Frame) -> dict[str, Any]:
    return checked(frame.header)


class Rate:
    """How much each uid has asked for: `BURST` at once, then one each `EVERY_NS`."""

    def __init__(self) -> None:
        self._full_at: dict[int, int] = {}  # uid -> when all of its burst is there again

    def take(self, uid: int, now: int) -> bool:
        """Whether one more request of this uid is within its rate. `now`: monotonic, nanoseconds."""
        full_at = max(self._full_at.pop(uid, now), now)
        allowed = full_at + EVERY_NS - now <= BURST * EVERY_NS
        self._full_at[uid] = full_at + EVERY_NS if allowed else full_at
        while len(self._full_at) > _UIDS:
            del self._full_at[next(iter(self._full_at))]
        return allowed


class Listener:
    """See the module.

    Args:
        door: listening unix stream socket.
        authority: the channel of role ``workload_api``.
        api: our end of the API process's channel (packets).
        pod_of: which pod a pid namespace is.
        monotonic: nanoseconds.
    """

    def __init__(
        self,
        door: socket.socket,
        authority: AuthorityChannel,
        api: socket.socket,
        pod_of: PodOf,
        monotonic: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._door = door
        self._authority = authority
        self._api = api
        self._pod_of = pod_of
        self._monotonic = monotonic
        self._callers: dict[int, Caller] = {}
        self._of_uid: Counter[int] = Counter()
        self._number = 0
        self._rate = Rate()
        self._version = ""
        self._polled = 0

    def run(self, stop: int) -> None:
        """Serve until `stop` is readable.

        Raises:
            SandboxError: the authority or the API's process has ended.
        """
        poll = select.poll()
        for fd in (self._door, self._authority, self._api, stop):
            poll.register(fd, select.POLLIN)
        try:
            while True:
                ready = {fd for fd, _ in poll.poll(POLL_NS // 1_000_000)}
                if stop in ready:
                    return
                if self._api.fileno() in ready:
                    self._serve()
                if self._door.fileno() in ready:
                    self._accept()
                if self._authority.told() or self._monotonic() >= self._polled + POLL_NS:
                    self.look()
        finally:
            for number in tuple(self._callers):
                self._forget(number)

    def look(self) -> None:
        """Tell the API's process when something has changed. Raises SandboxError."""
        self._polled = self._monotonic()
        version = str(self._authority.call("state").get("version"))
        if version != self._version:
            self._version = version
            send_packet(self._api, {"event": "changed", "version": version})

    def _accept(self) -> None:
        try:
            sock, _ = self._door.accept()
        except OSError:
            return
        with sock:
            try:
                caller = Caller(sock, self._pod_of)
            except (UnauthenticatedError, OSError):
                return  # gone, or not seen from here: there is nobody to answer
            if len(self._callers) >= CONNECTIONS or self._of_uid[caller.uid] >= CONNECTIONS_OF_A_UID:
                caller.close()
                return
            self._number += 1
            self._callers[self._number] = caller
            self._of_uid[caller.uid] += 1
            send_packet(self._api, {"event": "connection", "conn": self._number}, [sock.fileno()])

    def _forget(self, number: int) -> None:
        caller = self._callers.pop(number, None)
        if caller is not None:
            self._of_uid[caller.uid] -= 1
            if not self._of_uid[caller.uid]:
                del self._of_uid[caller.uid]
            caller.close()

    def _serve(self) -> None:
        packet = recv_packet(self._api, max_fds=0)
        if packet is None:
            raise SandboxError("the Workload API's process has ended", rule="identity.api")
        if packet.body.get("event") == "closed":
            self._forget(_number(packet, "conn"))
            return
        try:
            answer: dict[str, Any] = {"id": packet.body.get("id"), "ok": self._ask(packet)}
        except NucleusError as error:
            if error.rule == "identity.authority":
                raise
            answer = {"id": packet.body.get("id"), "error": error_body(error)}
        send_packet(self._api, answer)

    def _ask(self, packet: Packet) -> dict[str, Any]:
        op = packet.body.get("op")
        caller = self._callers.get(_number(packet, "conn"))
        if caller is None or op not in _ASKS:
            raise InvalidError("no such connection or request", rule="identity.api")
        if not self._rate.take(caller.uid, self._monotonic()):
            raise BudgetError("too many requests of this user", rule="identity.rate")
        fields = {name: value for name, value in packet.body.items() if name in _FIELDS}
        try:
            answer = self._authority.call(str(op), facts=caller.facts().to_wire(), **fields)
            if answer.get("need"):
                answer = self._authority.call(str(op), facts=caller.facts(hashed=True).to_wire(), **fields)
        except UnauthenticatedError as error:
            facts = Facts(caller.uid, caller.gid, pid=caller.pid)
            with suppress(NucleusError):  # it answers by refusing, once that is on record
                self._authority.call("refused", facts=facts.to_wire(), reason=error.message)
            raise
        return answer


def _number(packet: Packet, name: str) -> int:
    value = packet.body.get(name)
    return value if type(value) is int else -1


class Pods:
    """Which pod a pid namespace is, by what the builder says of its pods.

    Args:
        status: the builder's answer to `status`, its list of pods.
    """

    def __init__(self, status: Callable[[], list[dict[str, Any]]]) -> None:
        self._status = status
        self._own = pid_namespace(os.getpid())
        self._known: dict[tuple[int, int], str] = {}

    def __call__(self, namespace: tuple[int, int]) -> str | None:
        """The pod's name, or None."""
        if namespace == self._own:
            return None
        # Asked anew each time: an inode number is used again once a pod is gone.
        known: dict[tuple[int, int], str] = {}
        for pod in self._status():
            for pid in pod.get("pids", []):
                found = pid_namespace(pid)
                if found is not None and found != self._own:
                    known[found] = str(pod.get("pod"))
        return known.get(namespace)


def listen(path: str, mode: int) -> socket.socket:
    """The socket at `path`, for whom `mode` lets connect. What was left there by one that has ended is replaced.

    Raises:
        SandboxError: rule ``identity.socket``: somebody serves there, or it cannot be made.
    """
    try:
        directory = os.path.dirname(path)
        os.makedirs(directory, 0o755, exist_ok=True)
        _clear(path)
        door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            umask = os.umask(0o177)
            try:
                door.bind(path)
            finally:
                os.umask(umask)
            os.chmod(path, mode)
            door.listen(_BACKLOG)
            door.setblocking(False)
        except BaseException:
            door.close()
            raise
    except OSError as error:
        raise SandboxError(f"{path}: {error.strerror or error}", rule="identity.socket") from error
    return door


def _clear(path: str) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise SandboxError(f"{path} is there already, and no socket", rule="identity.socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise SandboxError(
        f"a Workload API is being served at {path}", rule="identity.socket", next_step="Name another with --socket."
    )


def serve(
    path: str,
    mode: int,
    channel: socket.socket,
    status: Callable[[], list[dict[str, Any]]],
    *,
    refresh_s: int,
    ready: Callable[[], None],
) -> None:
    """Serve the Workload API at `path` until SIGINT, SIGTERM or SIGHUP.

    Args:
        path, mode: the socket, and who may connect.
        channel: to the authority, role ``workload_api``.
        status: the builder's pods.
        refresh_s: push a new X.509-SVID at the latest after so many seconds; 0: at half-life.
        ready: called once callers are served.

    Raises:
        NucleusError: the socket cannot be made, or a process that this needs has ended.
    """
    door = listen(path, mode)  # 1
    made = os.lstat(path)
    root = os.geteuid() == 0
    pid, api = 0, None
    try:
        pid, api = boot.start(_COMMAND)  # 2
        api = socket.socket(fileno=api.detach())
        api.settimeout(ANSWER_S)
        send_packet(api, {"id": 0, "op": "configure", "uid": API_UID if root else -1, "refresh_s": refresh_s})
        packet = recv_packet(api, max_fds=0)
        if packet is None:
            raise SandboxError("the Workload API's process did not start", rule="identity.api")
        checked(packet.body)
        with Signals() as stop:
            if root:
                syscalls.keep_capabilities(LISTENER_UID, syscalls.CAP_SYS_PTRACE, syscalls.CAP_DAC_READ_SEARCH)  # 3
            syscalls.set_no_new_privs()
            syscalls.set_dumpable(False)
            authority = AuthorityChannel(channel)
            listener = Listener(door, authority, api, Pods(status))
            listener.look()
            ready()
            listener.run(stop)  # 4
    finally:
        door.close()
        with suppress(OSError):
            if os.path.samestat(os.lstat(path), made):
                os.unlink(path)
        if api is not None:
            api.close()  # its end is the process's
            os.waitpid(pid, 0)


class Signals:
    """A descriptor that becomes readable when we are told to end."""

    def __enter__(self) -> int:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._before = signal.set_wakeup_fd(self._write)
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        self._handlers = [(number, signal.signal(number, lambda *_: None)) for number in numbers]
        return self._read

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._before)
        for number, handler in self._handlers:
            signal.signal(number, handler)
        close_all((self._read, self._write))
