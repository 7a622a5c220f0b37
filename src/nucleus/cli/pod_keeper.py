"""The process that keeps a pod: it holds the launcher's channel, passes commands on to the gate, and keeps the log.

Made by `nucleus pod create`, in a session of its own without a terminal; when it ends, so does the pod, however it ends
(the builder sees the channel close). It decides nothing: what a client sends goes to the gate as it is, which decides.

Clients come by a socket in a directory of mode 0700, and are of this user (SO_PEERCRED), or are refused:
    {op: "run", operation, stream}  ->  {stream} and body …, then {reply} or {error}
    {op: "end", state, why}         ->  {ok: {}} once the pod is gone
    {op: "hold"}                    ->  {ok: {}}: no command runs or begins until this client goes; {error}: one does

Promises: many commands at a time; a client that does not read is cut off, and holds up nobody; the log is bounded
(`LOG_BYTES`, and as much again of before); a pod's end is kept with its reason.
Does not: restart what ended.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from contextlib import suppress
from socket import AF_UNIX, SO_PEERCRED, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM, SOL_SOCKET, socket
from typing import Any

from nucleus.cli import pod_records
from nucleus.cli.launcher import Launcher, Pod, open_workspace
from nucleus.cli.pod_file import PodFile
from nucleus.errors import NucleusError, SandboxError
from nucleus.pod.packets import checked, error_body
from nucleus.sdk import wire

LOG_BYTES = 8_388_608
CLIENTS = 64
_QUEUE_BYTES = 33_554_432  # of answers that a client has not read: two of the largest
_CHUNK = 262_144
_DRAIN_S = 2.0


class Client:
    """Somebody who sent a command, and what is still to be written to them."""

    def __init__(self, sock: socket) -> None:
        self.sock = sock
        self.reader = wire.Reader()
        self.out = bytearray()
        self.request: int | None = None
        self.ending = False
        self.holding = False

    def send(self, header: dict[str, Any], body: bytes = b"") -> bool:
        """Queue a frame; False: they have stopped reading."""
        self.out += wire.encode(header, body)
        return len(self.out) <= _QUEUE_BYTES


class Keeper:
    """See the module. `path`: the pod's directory."""

    def __init__(self, file: PodFile, path: str, listener: socket) -> None:
        self._file = file
        self._path = path
        self._listener = listener
        self._clients: dict[int, Client] = {}
        self._waiting: dict[int, Client] = {}  # by the id that the gate knows
        self._running: set[int] = set()  # also those whose client has gone
        self._number = 0
        self._end: tuple[str, dict[str, Any]] | None = None
        self._record: dict[str, Any] = {}
        self._log = _Log(os.path.join(path, pod_records.LOG))
        self._outputs: list[int] = []

    def start(self, launcher: Launcher, workspace: int, workdir: str) -> dict[str, Any]:
        """Make the pod; its record. Raises NucleusError."""
        self._launcher = launcher
        spec = {**self._file.spec, "workdir": workdir}
        fds: list[int] = [workspace]
        if self._file.agent:
            null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
            out, agent_out = os.pipe2(os.O_CLOEXEC)
            err, agent_err = os.pipe2(os.O_CLOEXEC)
            self._outputs = [out, err]
            fds += [null, agent_out, agent_err]
        try:
            self._pod: Pod = launcher.create_pod(spec, tuple(fds))
        finally:
            for fd in fds[1:]:
                os.close(fd)
        self._pod.gate.setblocking(False)
        self._gate_in = wire.Reader()
        self._gate_out = bytearray()
        self._record = {
            "name": self._file.name, "namespace": self._file.namespace, "labels": self._file.labels,
            "pod": self._pod.name, "state": pod_records.RUNNING, "created_ns": time.time_ns(), "keeper": os.getpid(),
            "policy": self._file.policy_source, "workdir": workdir, "isolation": self._pod.isolation,
            "agent": list(self._file.agent), "timeout_seconds": self._file.timeout_s,
        }  # fmt: skip
        pod_records.write(self._path, self._record)
        return self._record

    def run(self) -> None:
        """Until the pod's end."""
        deadline = time.monotonic() + self._file.timeout_s if self._file.timeout_s else None
        drained: float | None = None
        while True:
            now = time.monotonic()
            if self._end is None and deadline is not None and now >= deadline:
                self._end = ("timed out", {})
            if self._end is not None:
                drained = now + _DRAIN_S if drained is None else drained
                if not self._outputs or now >= drained or self._end[0] not in ("exited",):
                    break
            until = drained if drained is not None else deadline
            self._turn(None if until is None else max(0.0, until - now))
        self._finish()

    def _turn(self, timeout: float | None) -> None:
        poll = select.poll()
        gate = self._pod.gate.fileno()
        poll.register(gate, select.POLLIN | (select.POLLOUT if self._gate_out else 0))
        poll.register(self._launcher.fileno(), select.POLLIN)
        if len(self._clients) < CLIENTS:
            poll.register(self._listener.fileno(), select.POLLIN)
        for fd in self._outputs:
            poll.register(fd, select.POLLIN)
        for fd, client in self._clients.items():
            poll.register(fd, select.POLLIN | (select.POLLOUT if client.out else 0))
        for fd, mask in poll.poll(None if timeout is None else int(timeout * 1000) + 1):
            if fd == gate:
                self._gate(mask)
            elif fd == self._launcher.fileno():
                self._events()
            elif fd == self._listener.fileno():
                self._accept()
            elif fd in self._outputs:
                self._output(fd)
            elif fd in self._clients:
                self._serve(self._clients[fd], mask)

    def _gate(self, mask: int) -> None:
        try:
            if mask & select.POLLOUT and self._gate_out:
                del self._gate_out[: self._pod.gate.send(self._gate_out[:_CHUNK])]
            if not mask & (select.POLLIN | select.POLLHUP | select.POLLERR):
                return
            data = self._pod.gate.recv(_CHUNK)
            self._gate_in.feed(data)
            while (frame := self._gate_in.take()) is not None:
                self._answered(*frame)
        except BlockingIOError:
            return
        except (OSError, ValueError) as error:
            self._end = self._end or ("failed", {"why": f"the gate's channel: {error}"})
            return
        if not data:
            self._end = self._end or ("failed", {"why": "the gate has ended"})

    def _answered(self, header: dict[str, Any], body: bytes) -> None:
        number = header.pop("id", None)
        if "stream" not in header:
            self._running.discard(number)
        client = self._waiting.get(number) if isinstance(number, int) else None
        if client is None:
            return
        if "stream" not in header:
            del self._waiting[number]
            client.request = None
        if not client.send(header, body):
            self._drop(client)

    def _events(self) -> None:
        try:
            events = self._launcher.events(wait=True)
        except NucleusError:
            self._end = self._end or ("failed", {"why": "the builder has ended"})
            return
        for event in events:
            if event.get("pod") != self._pod.name:
                continue
            if event.get("event") == "agent_exit":
                self._end = self._end or ("exited", {"code": event.get("code"), "signal": event.get("signal")})
            elif event.get("event") == "pod_failed":
                error = event.get("error")
                why = error.get("message") if isinstance(error, dict) else error
                self._end = self._end or ("failed", {"why": str(why)})

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        uid = int.from_bytes(sock.getsockopt(SOL_SOCKET, SO_PEERCRED, 12)[4:8], sys.byteorder)
        if uid != os.geteuid():
            sock.close()
            return
        sock.setblocking(False)
        self._clients[sock.fileno()] = Client(sock)

    def _serve(self, client: Client, mask: int) -> None:
        try:
            if mask & select.POLLOUT and client.out:
                del client.out[: client.sock.send(client.out[:_CHUNK])]
            if not mask & (select.POLLIN | select.POLLHUP | select.POLLERR):
                return
            data = client.sock.recv(_CHUNK)
            client.reader.feed(data)
            while (frame := client.reader.take()) is not None:
                self._asked(client, frame[0])
        except BlockingIOError:
            return
        except (OSError, ValueError):
            self._drop(client)
            return
        if not data:
            self._drop(client)

    def _asked(self, client: Client, request: dict[str, Any]) -> None:
        if request.get("op") == "end":
            client.ending = True
            self._end = self._end or (str(request.get("state", "ended"))[:40], {})
            return
        if request.get("op") == "hold":
            busy = "its agent runs" if self._file.agent else "a command runs" if self._running else ""
            if busy or any(other.holding for other in self._clients.values()):
                error = SandboxError(f"not while {busy or 'another one holds it'}", rule="pod.busy",
                                     next_step="Once more when it has ended, or `nucleus pod kill`.")  # fmt: skip
                client.send({"error": error_body(error)})
                return
            client.holding = True
            client.send({"ok": {}})
            return
        if request.get("op") == "run" and any(other.holding for other in self._clients.values()):
            error = SandboxError("the workspace is being kept, taken over or put back", rule="pod.held",
                                 next_step="Once more.")  # fmt: skip
            client.send({"error": error_body(error)})
            return
        if request.get("op") != "run" or client.request is not None or not isinstance(request.get("operation"), dict):
            raise ValueError("not a request")
        self._number += 1
        client.request = self._number
        self._waiting[self._number] = client
        self._running.add(self._number)
        asked = {"id": self._number, "operation": request["operation"], "stream": request.get("stream") is True}
        self._gate_out += wire.encode(asked)

    def _output(self, fd: int) -> None:
        data = os.read(fd, _CHUNK)
        if data:
            self._log.write(data)
            return
        os.close(fd)
        self._outputs.remove(fd)

    def _drop(self, client: Client) -> None:
        """A command that they sent goes on: the gate has it on record as begun."""
        self._clients.pop(client.sock.fileno(), None)
        if client.request is not None:
            self._waiting.pop(client.request, None)
        client.sock.close()

    def _finish(self) -> None:
        """Close the pod, keep how it ended, answer who waits for that."""
        state, facts = self._end or ("ended", {})
        with suppress(NucleusError):
            facts["set_aside"] = self._launcher.call("close_pod", pod=self._pod.name).body.get("set_aside", [])
        self._pod.close()
        with suppress(NucleusError):
            self._launcher.close()
        for fd in self._outputs:
            with suppress(OSError):
                os.set_blocking(fd, False)
                while data := os.read(fd, _CHUNK):
                    self._log.write(data)
        pod_records.write(self._path, {**self._record, **facts, "state": state, "ended_ns": time.time_ns()})
        for client in self._clients.values():
            with suppress(OSError, ValueError):
                client.sock.setblocking(True)
                client.sock.settimeout(1.0)
                if client.ending:
                    client.send({"ok": {}})
                elif client.request is not None:
                    client.send({"error": {"code": "sandbox_unavailable", "message": f"the pod has {state}"}})
                client.sock.sendall(client.out)


class _Log:
    """What an agent wrote; at `LOG_BYTES` it becomes ``log.1`` and a new one begins."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd, self._size = _opened(path), 0

    def write(self, data: bytes) -> None:
        """Append; a full disk loses it, and not the pod."""
        with suppress(OSError):
            if self._size + len(data) > LOG_BYTES:
                self._begin_anew()
            self._size += os.write(self._fd, data)

    def _begin_anew(self) -> None:
        """The next file is there before the last one is let go: its number would be a client's, or the gate's."""
        following = _opened(f"{self._path}.new")
        os.close(self._fd)
        self._fd, self._size = following, 0
        os.rename(self._path, f"{self._path}.1")
        os.rename(f"{self._path}.new", self._path)


def _opened(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def launch(file: PodFile, path: str) -> dict[str, Any]:
    """Start the keeper of a new pod, detached; the pod's record once it runs. Raises NucleusError as it met it."""
    lock = pod_records.hold(path)  # the keeper's, from now until it ends
    ready, tell = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(ready)
            if os.fork() != 0:
                os._exit(0)
            os.setsid()
            _keep(file, path, tell)
            code = 0
        finally:
            os._exit(code)
    os.close(tell)
    os.close(lock)
    os.waitpid(pid, 0)
    said = b""
    with os.fdopen(ready, "rb") as pipe:
        said = pipe.read(1 << 20)
    if not said:
        raise SandboxError("the pod's keeper ended before the pod was there", rule="pod.keeper")
    return checked(json.loads(said))


def _keep(file: PodFile, path: str, tell: int) -> None:
    """The keeper's life."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    workspace = -1
    try:
        workspace, workdir = open_workspace(file.work_dir)
        listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK)
        at = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        listener.bind(f"/proc/self/fd/{at}/{pod_records.SOCKET}")  # the name itself may be too long
        os.close(at)
        listener.listen(CLIENTS)
        keeper = Keeper(file, path, listener)
        record = keeper.start(Launcher.open(), workspace, workdir)
    except Exception as error:  # noqa: BLE001 -- whoever started us is told
        os.write(tell, json.dumps({"error": error_body(error)}).encode())
        return
    finally:
        if workspace >= 0:
            os.close(workspace)
    os.write(tell, json.dumps({"ok": record}).encode())
    os.close(tell)
    os.chdir("/")
    keeper.run()
