"""The real authority process, and stand-ins for its builder, gates and approvers: blocking sockets and frames."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nucleus.frames import Decoder, Frame, encode
from nucleus.pod.packets import checked, pair, recv_packet, send_packet

UID = 0x70000001 if os.geteuid() == 0 else os.geteuid()
TRUST_DOMAIN = "nucleus.local"
WHO = "spiffe://nucleus.local/ns/default/sa/agent-p1"
PERSON = "spiffe://nucleus.local/user/uid/1000"  # who `approver` is
HASH = "ab" * 32


class Client:
    """One end of a framed channel."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(20)
        self._decoder = Decoder()
        self._frames: list[Frame] = []
        self._next = 0
        self.events: list[dict[str, Any]] = []
        self.answers: dict[int, dict[str, Any]] = {}

    def send(self, op: str, **fields: Any) -> int:
        self._next += 1
        self.sock.sendall(encode({"id": self._next, "op": op, **fields}))
        return self._next

    def receive(self) -> dict[str, Any]:
        while not self._frames:
            data = self.sock.recv(1 << 18)
            if not data:
                raise EOFError
            self._frames += self._decoder.feed(data)
        return self._frames.pop(0).header

    def wait(self, ident: int) -> dict[str, Any]:
        while ident not in self.answers:
            header = self.receive()
            if "id" in header:
                self.answers[header["id"]] = header
            else:
                self.events.append(header)
        return checked(self.answers.pop(ident))

    def event(self) -> dict[str, Any]:
        return self.events.pop(0) if self.events else self.receive()

    def call(self, op: str, **fields: Any) -> dict[str, Any]:
        return self.wait(self.send(op, **fields))

    # What a gate says

    def append(self, event: str, **context: Any) -> dict[str, Any]:
        return self.call("append", record=record(event, **context))

    def reserve(self, reservation: str, amount: int, **fields: Any) -> dict[str, Any]:
        return self.call(
            "reserve", reservation=reservation, amount=amount, operation_hash=HASH, principal=WHO, **fields
        )

    def ask(self, **fields: Any) -> int:
        body = {
            "operation": {"kind": "run"},
            "operation_hash": HASH,
            "principal": WHO,
            "decision": {"rule": "approve.run_bash", "reason": "run_bash needs a human", "obligations": []},
            "display": ["operation: run", 'argv: ["make"]'],
        }
        ident = self.send("ask", **{**body, **fields})
        self.call("budget")  # channels have no order among them: once this is answered, the ask is there
        return ident

    def close(self) -> None:
        self.sock.close()


def record(event: str, **context: Any) -> dict[str, Any]:
    return {
        "event": event,
        "request_id": "r1",
        "principal": WHO,
        "operation": {"kind": "read", "path": "a.txt"},
        "operation_hash": HASH,
        "decision": {"verdict": "allow", "rule": "capabilities.read_files", "detail": "", "obligations": []},
        "outcome": {"status": "ok"} if event == "outcome" else {},
        "context": context,
    }


class Authority:
    """The process, with us as its builder."""

    def __init__(self, state: Path, *, configure: bool = True, **changes: Any) -> None:
        self.state = state
        self.channel, theirs = pair()
        self.channel.settimeout(30)
        self._next = 0
        self._clients: list[Client] = []

        def child() -> None:
            os.dup2(theirs.fileno(), 3)
            os.set_inheritable(3, True)

        # pass_fds makes Popen keep 3 open; the dup happens before it closes the others.
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-m", "nucleus.authority.main"],
            env={},
            preexec_fn=child,
            pass_fds=(3,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        theirs.close()
        if configure:
            try:
                self.order(
                    "configure", **{"state_dir": str(state), "trust_domain": TRUST_DOMAIN, "uid": UID, **changes}
                )
            except BaseException:
                self.stop()
                raise

    def order(self, op: str, fds: tuple[int, ...] = (), **fields: Any) -> dict[str, Any]:
        self._next += 1
        send_packet(self.channel, {"id": self._next, "op": op, **fields}, fds)
        packet = recv_packet(self.channel)
        if packet is None:
            raise EOFError
        assert packet.body["id"] == self._next
        return checked(packet.body)

    def register(self, pod: str = "p1", **changes: Any) -> dict[str, Any]:
        body = {
            "pod": pod,
            "namespace": "default",
            "policy_digest": "d" * 64,
            "policy_name": "restrictive",
            "isolation": {"backend": "namespaces", "kernel": "shared", "missing": []},
            "trusted_workspace": False,
        }
        return self.order("register_pod", **{**body, **changes})

    def attach(self, role: str, **fields: Any) -> Client:
        ours, theirs = socket.socketpair()
        client = Client(ours)
        self._clients.append(client)
        try:
            self.order("attach", (theirs.fileno(),), role=role, **fields)
        finally:
            theirs.close()
        return client

    def gate(self, pod: str = "p1", *, limit: int | None = 1_000_000, register: bool = True) -> Client:
        if register:
            self.register(pod)
        client = self.attach("gate", pod=pod)
        if limit is not None:
            client.call("open_budget", limit=limit, window_ns=0)
        return client

    def approver(self, *, watch: bool = True, uid: int = 1000) -> Client:
        client = self.attach("approver", uid=uid)
        if watch:
            client.call("watch")
        return client

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.stop()

    def stop(self) -> int:
        """End it as the builder does: by closing the channel."""
        self.channel.close()
        for client in self._clients:
            client.close()
        return self.process.wait(20)

    @property
    def log(self) -> Path:
        return self.state / "audit.jsonl"


def state_directory(path: Path) -> Path:
    """A state directory that belongs to the authority's uid, under a path that it can walk."""
    path.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(path, UID, UID)
    return path


def ids() -> Iterator[str]:
    """Unique ids; several threads may draw (a generator would not bear that)."""
    return map("{:032x}".format, itertools.count(int.from_bytes(os.urandom(12), "big")))
