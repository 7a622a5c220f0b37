"""Starts a real builder with stand-ins for the authority and the gate, as root or as an ordinary user."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nucleus import frames
from nucleus.kernel import syscalls
from nucleus.pod.packets import pair, recv_packet, send_packet

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
USER = 40_321  # an ordinary user that this machine does not know
CREDENTIALS = {"root": 0, "user": USER}


def make_reachable(path: Path) -> None:
    """In a private mount namespace, show `path` to everybody although one of its parents is closed."""
    closed = next((up for up in reversed(path.parents) if not up.stat().st_mode & 0o001), None)
    if closed is None:
        return
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
    tree = syscalls.open_tree(syscalls.AT_FDCWD, str(path), syscalls.OPEN_TREE_CLONE | syscalls.AT_RECURSIVE)
    syscalls.mount("tmpfs", str(closed), "tmpfs", 0, "mode=0755")
    path.mkdir(parents=True)
    syscalls.move_mount(tree, "", syscalls.AT_FDCWD, str(path), syscalls.MOVE_MOUNT_F_EMPTY_PATH)
    os.close(tree)


def as_user(uid: int) -> None:
    """Become an ordinary user, in a forked child."""
    if uid:
        make_reachable(REPOSITORY)
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)


@dataclass
class Answer:
    """What a command in the pod left."""

    code: int
    out: str
    err: str


@dataclass(eq=False)
class Pod:
    """A pod of the harness: its name, the relay's channel, the pty master."""

    builder: Builder
    name: str
    isolation: dict[str, Any]
    steps: dict[str, Any]
    channel: socket.socket
    pty: int | None = None
    number: int = 0

    def run(self, *argv: str, stdin: bytes = b"") -> Answer:
        """Run a command through hands."""
        self.number += 1
        header = {"id": self.number, "op": "run", "argv": list(argv), "cwd": ".", "timeout_ms": 20_000}
        self.channel.sendall(frames.encode({**header, "output_bytes": 1_048_576}, stdin))
        decoder = frames.Decoder()
        while data := self.channel.recv(65_536):
            for frame in decoder.feed(data):
                assert "ok" in frame.header, frame.header
                ok = frame.header["ok"]
                cut = ok["stdout_bytes"]
                return Answer(ok["exit_code"], frame.body[:cut].decode(), frame.body[cut:].decode())
        raise EOFError("the pod is gone")

    def sh(self, script: str) -> Answer:
        """Run a shell script through hands."""
        return self.run("/bin/sh", "-c", script)

    def close(self) -> None:
        """Destroy it and wait."""
        self.builder.call("close_pod", pod=self.name)
        self.builder.open.remove(self)
        self.channel.close()
        if self.pty is not None:
            os.close(self.pty)
            self.pty = None


@dataclass
class Builder:
    """A private builder, in directories of its own."""

    who: str
    directory: Path
    workspace: Path
    pid: int = 0
    control: socket.socket = field(default_factory=socket.socket)
    events: list[dict[str, Any]] = field(default_factory=list)
    open: list[Pod] = field(default_factory=list)

    @classmethod
    def start(cls, who: str) -> Builder:
        if os.geteuid() != 0:
            pytest.skip("needs root, to test as root and as an ordinary user")
        uid = CREDENTIALS[who]
        directory = Path(tempfile.mkdtemp(prefix="pod-", dir="/tmp"))
        directory.chmod(0o711)
        os.chown(directory, uid, uid)
        workspace = directory / "workspace"
        builder = cls(who, directory, workspace)
        for path in (workspace, directory / "runtime", directory / "home"):
            path.mkdir(0o700)
            owner = builder.owner if path == workspace else uid
            os.chown(path, owner, owner)
        builder.control.close()
        builder.control, theirs = pair()
        builder.control.settimeout(30)
        builder.pid = os.fork()
        if builder.pid == 0:
            builder._exec(uid, theirs)
        theirs.close()
        return builder

    @property
    def owner(self) -> int:
        """Who owns the workspace on disk."""
        return CREDENTIALS[self.who] or 1234

    def _exec(self, uid: int, channel: socket.socket) -> None:
        try:
            as_user(uid)
            os.dup2(channel.fileno(), 3) if channel.fileno() != 3 else os.set_inheritable(3, True)
            os.closerange(4, 65_536)
            arguments = ["--private", "--state", f"{self.directory}/state", "--runtime", f"{self.directory}/runtime"]
            command = [sys.executable, "-I", str(HERE / "standins.py"), "builder", *arguments]
            os.execve(command[0], command, {"HOME": f"{self.directory}/home", "PATH": os.environ["PATH"]})
        finally:
            os._exit(99)

    def write(self, name: str, text: str, mode: int = 0o644) -> Path:
        """A file in the workspace, owned by its owner."""
        path = self.workspace / name
        for parent in reversed(path.relative_to(self.workspace).parents[:-1]):
            if not (self.workspace / parent).exists():
                (self.workspace / parent).mkdir()
                os.chown(self.workspace / parent, self.owner, self.owner)
        path.write_text(text)
        path.chmod(mode)
        os.chown(path, self.owner, self.owner)
        return path

    def call(self, op: str, fds: tuple[int, ...] = (), **fields: Any) -> Any:
        """One request; events that come first are kept."""
        send_packet(self.control, {"id": 7, "op": op, **fields}, fds)
        while True:
            packet = recv_packet(self.control)
            assert packet is not None, "the builder ended"
            if "event" not in packet.body:
                return packet
            self.events.append(packet.body)

    def event(self) -> dict[str, Any]:
        """The next event."""
        if self.events:
            return self.events.pop(0)
        packet = recv_packet(self.control)
        assert packet is not None
        assert "event" in packet.body
        return packet.body

    def create(self, policy: dict[str, Any] | str | None = None, stdio: tuple[int, ...] = (), **spec: Any) -> Pod:
        """Make a pod. Raises AssertionError with the builder's error."""
        answer = self.try_create(policy, stdio, **spec)
        assert "ok" in answer.body, answer.body
        ok, fds = answer.body["ok"], answer.fds
        channel = socket.socket(fileno=fds[0])
        channel.settimeout(30)
        pod = Pod(self, ok["pod"], ok["isolation"], ok["steps"], channel, fds[1] if len(fds) > 1 else None)
        self.open.append(pod)
        return pod

    def try_create(self, policy: dict[str, Any] | str | None = None, stdio: tuple[int, ...] = (), **spec: Any) -> Any:
        """Make a pod or get the error's packet."""
        text = policy if isinstance(policy, str) else json.dumps(policy or {})
        workspace = os.open(self.workspace, os.O_PATH | os.O_DIRECTORY)
        try:
            body = {"policy_text": text, "policy_source": "test", **spec}
            return self.call("create_pod", (workspace, *stdio), spec=body)
        finally:
            os.close(workspace)

    def tidy(self) -> None:
        """Back to how it began."""
        for pod in list(self.open):
            pod.close()
        self.events.clear()
        for path in self.workspace.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def stop(self) -> None:
        """End it, and check that nothing is left."""
        self.control.close()
        deadline = time.monotonic() + 20
        while os.waitpid(self.pid, os.WNOHANG)[0] == 0:
            assert time.monotonic() < deadline, "the builder did not end"
            time.sleep(0.005)
        left = [str(path) for sub in ("pods", "slots") for path in (self.directory / "runtime" / sub).glob("*")]
        shutil.rmtree(self.directory)
        assert left == []
