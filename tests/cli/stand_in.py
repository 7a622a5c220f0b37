"""A stand-in builder, gate and approver's authority on the helper's socket: real descriptors, scripted answers."""

from __future__ import annotations

import fcntl
import os
import pathlib
import queue
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from typing import Any

from nucleus.frames import Decoder, encode
from nucleus.pod.packets import recv_packet, send_packet, stream_pair

Reply = dict[str, Any]
POD = "pod-1"
ISOLATION = {"backend": "namespaces", "kernel": "shared", "missing": ["cgroup v2"]}


def ran(stdout: str = "", code: int | None = 0, **more: Any) -> Reply:
    """The gate's reply to a run."""
    result = {
        "exit_code": code,
        "signal": None,
        "timed_out": False,
        "stdout": stdout,
        "stderr": "",
        "encoding": "utf-8",
    }
    return {"request_id": "r", "status": "ok", "result": result | more, "audit": 3, "cost": 1}


def refused(kind: str, reason: str = "because") -> Reply:
    """The gate's refusal on the person's channel."""
    return {
        "error": reason,
        "kind": kind,
        "request_id": "r",
        "operation": "run",
        "audit": 4,
        "rule": "some.rule",
        "detail": "line 3",
        "next_step": "do this",
    }


class Stream:
    """One framed peer, served by a thread."""

    def __init__(self, sock: socket.socket, on_frame: Callable[[Stream, dict[str, Any]], None]) -> None:
        self._sock = sock
        self._on_frame = on_frame
        self.closed = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        decoder = Decoder()
        while True:
            try:
                data = self._sock.recv(65536)
            except OSError:
                data = b""
            if not data:
                self.closed.set()
                return
            for frame in decoder.feed(data):
                self._on_frame(self, frame.header)

    def send(self, header: dict[str, Any]) -> None:
        self.raw(encode(header))

    def raw(self, data: bytes) -> None:
        try:
            self._sock.sendall(data)
        except OSError:
            return  # the launcher left: what a test is about shows elsewhere

    def end(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def close(self) -> None:
        self.end()
        self._thread.join()
        self._sock.close()


class StandIn:
    """The helper. `gate(stand_in, stream, header)` answers operations; `agent(stand_in, in, out, err)` is the agent."""

    def __init__(self, runtime: pathlib.Path, state: pathlib.Path) -> None:
        runtime.mkdir(mode=0o700)
        state.mkdir(mode=0o700)
        self.runtime, self.state = runtime, state
        self.requests: list[dict[str, Any]] = []
        self.workspace = ""
        self.stdio: list[str] = []
        self.create_error: dict[str, Any] | None = None
        self.reply: Reply = ran()
        self.gate: Callable[[StandIn, Stream, dict[str, Any]], None] = StandIn._answer
        self.agent: Callable[[StandIn, int, int, int], dict[str, Any]] | None = None
        self.operations: queue.Queue[dict[str, Any]] = queue.Queue()
        self.answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self.approvers: queue.Queue[Stream] = queue.Queue()
        self.pod_failed: dict[str, Any] | None = None
        self._streams: list[Stream] = []
        self._threads: list[threading.Thread] = []
        self._peers: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(runtime / "helper.sock"))
        self._listener.listen()
        self._start(self._accept)

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            self._peers.append(peer)
            self._start(self._serve, peer)

    def _serve(self, peer: socket.socket) -> None:
        while True:
            try:
                packet = recv_packet(peer)
            except OSError:
                packet = None
            if packet is None:
                return
            self.requests.append(packet.body)
            number, op = packet.body["id"], packet.body["op"]
            if op == "create_pod":
                self._create(peer, number, packet.body["spec"], packet.fds)
            elif op == "attach_approver":
                ours, theirs = stream_pair()
                self._streams.append(Stream(ours, StandIn._approver(self)))
                self.approvers.put(self._streams[-1])
                send_packet(peer, {"id": number, "ok": {}}, [theirs.fileno()])
                theirs.close()
            elif op == "status":
                send_packet(peer, {"id": number, "ok": {"pods": [], "pids": {"builder": 1}, "helper": True}})
            else:
                send_packet(peer, {"id": number, "ok": {}})

    @staticmethod
    def _approver(stand_in: StandIn) -> Callable[[Stream, dict[str, Any]], None]:
        def on_frame(stream: Stream, header: dict[str, Any]) -> None:
            stand_in.answers.put(header)
            stream.send({"id": header["id"], "ok": {}})

        return on_frame

    def _create(self, peer: socket.socket, number: int, spec: dict[str, Any], fds: list[int]) -> None:
        self.workspace = os.readlink(f"/proc/self/fd/{fds[0]}")
        self.stdio = [os.readlink(f"/proc/self/fd/{fd}") for fd in fds[1:]]
        os.close(fds[0])
        if self.create_error is not None:
            send_packet(peer, {"id": number, "error": self.create_error})
            return
        ours, theirs = stream_pair()

        def on_frame(stream: Stream, header: dict[str, Any]) -> None:
            self.operations.put(header)
            self.gate(self, stream, header)

        self._streams.append(Stream(ours, on_frame))
        out = [theirs.fileno()]
        agent = spec.get("agent")
        slave = -1
        if agent is not None and agent["stdio"] == "pty":
            master, slave = os.openpty()
            out.append(master)
        send_packet(peer, {"id": number, "ok": {"pod": POD, "isolation": ISOLATION, "budget_limit": 2_500_000}}, out)
        theirs.close()
        if slave >= 0:
            os.close(out[1])
        if self.pod_failed is not None:
            send_packet(peer, {"event": "pod_failed", "pod": POD, "error": self.pod_failed})
        elif agent is not None:
            stdio = fds[1:] if slave < 0 else [slave]
            self._start(self._run_agent, peer, stdio)

    def _run_agent(self, peer: socket.socket, stdio: list[int]) -> None:
        assert self.agent is not None
        how = self.agent(self, *(stdio * 3 if len(stdio) == 1 else stdio))
        for fd in stdio:
            os.close(fd)
        try:
            send_packet(peer, {"event": "agent_exit", "pod": POD, **how})
        except OSError:
            return

    def _answer(self, stream: Stream, header: dict[str, Any]) -> None:
        stream.send({"id": header["id"], "reply": self.reply})

    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.state),
            "NUCLEUS_RUNTIME": str(self.runtime),
            "NUCLEUS_STATE": str(self.state),
            "TERM": "xterm",
        }

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for peer in self._peers:
            try:
                peer.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        for stream in self._streams:
            stream.close()
        for thread in self._threads:
            thread.join()
        for peer in self._peers:
            peer.close()


# Makes descriptor N (argv[1]) the controlling terminal, then becomes the command line.
_TAKE_TERMINAL = (
    "import fcntl,os,sys,termios;"
    "fcntl.ioctl(int(sys.argv[1]),termios.TIOCSCTTY,0);"
    "os.execv(sys.executable,[sys.executable,'-m','nucleus.cli.main',*sys.argv[2:]])"
)


class OnTerminal:
    """The command line in a session of its own with a pty as controlling terminal, on the descriptors named."""

    def __init__(self, stand_in: StandIn, argv: list[str], *, on: tuple[int, ...], cwd: pathlib.Path) -> None:
        self.master, slave = os.openpty()
        self.slave = slave
        streams = {fd: slave if fd in on else subprocess.PIPE for fd in (0, 1, 2)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _TAKE_TERMINAL, str(on[0]), *argv],
            stdin=streams[0],
            stdout=streams[1],
            stderr=streams[2],
            env=stand_in.environment(),
            cwd=cwd,
            start_new_session=True,
        )
        self.shown = b""
        os.set_blocking(self.master, False)

    def settings(self) -> list[Any]:
        return termios.tcgetattr(self.slave)

    def wait_for(self, text: bytes, seconds: float = 30) -> None:
        """Read the terminal until `text` was shown."""
        deadline = time.monotonic() + seconds
        while text not in self.shown:
            assert time.monotonic() < deadline, self.shown
            self.read()
            time.sleep(0.005)

    def read(self) -> None:
        try:
            while data := os.read(self.master, 65536):
                self.shown += data
        except OSError:
            pass

    def type(self, data: bytes) -> None:
        os.write(self.master, data)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(
            self.slave,
            termios.TIOCSWINSZ,
            rows.to_bytes(2, sys.byteorder) + columns.to_bytes(2, sys.byteorder) + bytes(4),
        )

    def wait(self, seconds: float = 40) -> int:
        """The exit code; the terminal is read meanwhile."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.shown
            self.read()
            time.sleep(0.005)
        self.read()
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        os.close(self.master)
        os.close(self.slave)
