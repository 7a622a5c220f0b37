"""A machine of its own for the conformance suite: a private builder, a workspace, and things on the host that answer.

Promises: pods are made and used through the launcher's channel and the gate alone, as `nucleus exec` does; state,
runtime and workspace are in a new directory under /tmp, which `close` removes; the helper of the person is not used.
Relies on: `nucleus.cli.launcher`. Does not: judge (`checks` do).
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from nucleus.cli.launcher import Launcher
from nucleus.cli.launcher import Pod as Opened
from nucleus.errors import NucleusError
from nucleus.pod import runtime
from nucleus.pod.packets import checked
from nucleus.sdk import wire

POLICY = """\
version: 1
name: conformance
capabilities:
  read_files: always
  write_files: always
  edit_files: always
  run_bash: always
  glob_search: always
  grep_search: always
  git_commit: always
paths: {block: ["blocked", "**/blocked"]}
commands: {allow: everything}
budget: {limit_usd: "100.00"}
time_window: {duration: 1h}
isolation: {floor: BACKEND}
"""
ANSWER_SECONDS = 120.0
END_SECONDS = 10.0
SETTLE_SECONDS = 5.0
MARKER = "NUCLEUS_CONFORMANCE_MARKER"


class FailedError(Exception):
    """A check's finding: the pod does not do what it should."""


class NotHereError(Exception):
    """A check that this machine, or this user, cannot carry out; why."""


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended: `code` or `signal`, and its output's exact bytes."""

    code: int | None
    signal: int | None
    out: bytes
    err: bytes
    timed_out: bool
    cut: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """An operation that was not carried out: the error's code and rule."""

    kind: str
    rule: str


class LivePod:
    """A pod and its gate's channel; operations may be sent before the answer to earlier ones."""

    def __init__(self, opened: Opened) -> None:
        self.name, self.isolation = opened.name, opened.isolation
        self._opened = opened
        self._reader = wire.Reader()
        self._number = 0
        self._answers: dict[int, dict[str, Any]] = {}
        opened.gate.settimeout(ANSWER_SECONDS)

    def send(self, **operation: Any) -> int:
        """Send one operation; its number."""
        self._number += 1
        self._opened.gate.sendall(wire.encode({"id": self._number, "operation": operation}))
        return self._number

    def answer(self, number: int) -> dict[str, Any]:
        """The gate's reply to an operation. Raises FailedError when the gate is gone, NucleusError as it says."""
        while number not in self._answers:
            frame = self._reader.take()
            if frame is None:
                try:
                    data = self._opened.gate.recv(262_144)
                except OSError as error:
                    raise FailedError(f"the gate did not answer: {error}") from error
                if not data:
                    raise FailedError("the gate closed its channel")
                self._reader.feed(data)
                continue
            reply = frame[0].get("reply")
            self._answers[int(frame[0].get("id", number))] = reply if isinstance(reply, dict) else checked(frame[0])
        return self._answers.pop(number)

    def operate(self, **operation: Any) -> dict[str, Any] | Refused:
        """One operation: its result, or why there is none."""
        reply = self.answer(self.send(**operation))
        if reply.get("status") == "ok":
            result = reply["result"]
            assert isinstance(result, dict)
            return result
        return Refused(str(reply.get("kind")), str(reply.get("rule")))

    def ok(self, **operation: Any) -> dict[str, Any]:
        """One operation that has to succeed. Raises FailedError."""
        result = self.operate(**operation)
        if isinstance(result, Refused):
            raise FailedError(f"{operation['kind']} was refused: {result.kind} ({result.rule})")
        return result

    def run(self, *argv: str, **more: Any) -> Ran:
        """Run a command to its end. Raises FailedError."""
        return ran(self.ok(kind="run", argv=list(argv), **more))

    def sh(self, script: str, **more: Any) -> Ran:
        """Run a shell script."""
        return self.run("/bin/sh", "-c", script, **more)

    def python(self, script: str, *arguments: str, **more: Any) -> Ran:
        """Run a Python script, which the pod reads from its standard input."""
        return self.run("/usr/bin/python3", "-I", "-", *arguments, stdin=script, **more)

    def close(self) -> None:
        """End it, and return once nothing of it is left."""
        self._opened.close()


def ran(result: dict[str, Any]) -> Ran:
    """The result of `run` with its output decoded."""
    out, err = (content(result, name) for name in ("stdout", "stderr"))
    cut = bool(result["stdout_truncated"] or result["stderr_truncated"])
    return Ran(result["exit_code"], result["signal"], out, err, bool(result["timed_out"]), cut)


def content(result: dict[str, Any], name: str = "content") -> bytes:
    """A text of a result as bytes."""
    if result.get("encoding") == "base64":
        import binascii

        return binascii.a2b_base64(str(result[name]))
    return str(result[name]).encode("utf-8", "surrogatepass")


class Host:
    """What a pod must not reach: a file, a process with a secret in its environment, sockets that answer."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.secret = f"{directory}/planted-secret"
        with open(self.secret, "w", encoding="ascii") as file:
            file.write("PLANTED")
        os.chmod(self.secret, 0o644)
        self.marker = f"MARKER{os.urandom(8).hex()}"
        self.process = subprocess.Popen(["/bin/sleep", "3600"], env={"SECRET": self.marker})
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        self.by_path, self.by_name = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
        self.by_path.bind(f"{directory}/socket")
        os.chmod(f"{directory}/socket", 0o777)  # noqa: S103 -- for anybody who can see it, which is the question
        self.by_name.bind(f"\0nucleus-{self.marker}")
        for each in (self.by_path, self.by_name):
            each.listen()
        self._echo = threading.Thread(target=self._answer)
        self._echo.start()

    def _answer(self) -> None:
        while True:
            data, peer = self.udp.recvfrom(16)
            if data == b"end":
                return
            self.udp.sendto(data, peer)

    def config(self) -> dict[str, Any]:
        """What the probes are told."""
        return {
            "secret": self.secret,
            "outside": f"{self.directory}/written",
            "tcp": self.tcp.getsockname()[1],
            "udp": self.udp.getsockname()[1],
            "unix_path": f"{self.directory}/socket",
            "unix_abstract": f"nucleus-{self.marker}",
            "pid": self.process.pid,
            "marker": self.marker,
            "hostname": socket.gethostname(),
        }

    def close(self) -> None:
        """End all of it."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(b"end", self.udp.getsockname())
        self._echo.join()
        self.process.kill()
        self.process.wait()
        for each in (self.tcp, self.udp, self.by_path, self.by_name):
            each.close()


class Bed:
    """See the module. One backend; pods are made as they are asked for.

    Raises:
        NucleusError: no builder can be started.
    """

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.directory = tempfile.mkdtemp(prefix="nucleus-conformance-", dir="/tmp")
        os.chmod(self.directory, 0o711)  # noqa: S103 -- the authority has a uid of its own
        self.workspace = f"{self.directory}/workspace"
        for name in ("workspace", "host", "run"):
            os.mkdir(f"{self.directory}/{name}", 0o700)
        os.chmod(f"{self.directory}/host", 0o711)  # noqa: S103
        self._host: Host | None = None
        self._pods: list[LivePod] = []
        self._launcher: Launcher | None = None

    @property
    def host(self) -> Host:
        """The things on the host, once somebody asks."""
        if self._host is None:
            self._host = Host(f"{self.directory}/host")
        return self._host

    @property
    def launcher(self) -> Launcher:
        """The private builder's channel. Raises NucleusError."""
        if self._launcher is None:
            with _environment(self.directory):
                channel = runtime.private_builder()
            self._launcher = Launcher(channel)
        return self._launcher

    def put(self, name: str, text: str, mode: int = 0o644) -> str:
        """A file in the workspace, before a pod sees it."""
        path = f"{self.workspace}/{name}"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(path, mode)
        return path

    def pod(self) -> LivePod:
        """A new pod on the workspace. Raises NucleusError."""
        workspace = os.open(self.workspace, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        spec: dict[str, Any] = {
            "policy_text": POLICY.replace("BACKEND", self.backend),
            "policy_source": "the conformance suite",
            "workdir": self.workspace,
            "trust_workspace": True,
        }
        if self.backend != "namespaces":
            spec["isolation"] = self.backend
        try:
            made = LivePod(self.launcher.create_pod(spec, (workspace,)))
        finally:
            os.close(workspace)
        self._pods.append(made)
        return made

    def end(self, pod: LivePod) -> list[str]:
        """End a pod by request and wait; what was set aside."""
        self._pods.remove(pod)
        said = self.launcher.call("close_pod", pod=pod.name).body["set_aside"]
        pod.close()
        return [str(line) for line in said]

    def status(self) -> dict[str, Any]:
        """What the builder says of itself."""
        return self.launcher.call("status").body

    def close(self) -> None:
        """End pods, builder and host, and remove the directory."""
        for pod in list(self._pods):
            with suppress(NucleusError, FailedError):
                self.end(pod)
        if self._launcher is not None:
            self._launcher.wait_gone() if self._stopped() else None
            self._launcher.close()
        if self._host is not None:
            self._host.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _stopped(self) -> bool:
        assert self._launcher is not None
        try:
            self._launcher.call("stop")
        except NucleusError:
            return False
        return True


@contextmanager
def _environment(directory: str) -> Iterator[None]:
    """Ours while the builder is started: its own places, and a word that no pod may see."""
    with suppress(FileExistsError):
        os.symlink(runtime.images_dir(), f"{directory}/state-images")  # the person's, for pods that boot one
    wanted = {"NUCLEUS_STATE": f"{directory}/state", "NUCLEUS_RUNTIME": f"{directory}/run", MARKER: "seen"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def family(pid: int) -> set[tuple[int, int]]:
    """(pid, start time) of a process and its descendants that have not ended."""
    parents: dict[int, tuple[int, int, bytes]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                line = file.read()
                fields = line[line.rfind(b")") + 2 :].split()
                parents[int(name)] = (int(fields[1]), int(fields[19]), fields[0])
    found, new = set(), {pid}
    while new:
        found |= new
        new = {each for each, (parent, _, _) in parents.items() if parent in new} - found
    return {(each, parents[each][1]) for each in found if each in parents and parents[each][2] not in (b"Z", b"X")}


def settles(what: Any, wanted: Any) -> bool:
    """Does `what()` come to be `wanted` in a while?"""
    end = time.monotonic() + SETTLE_SECONDS
    while what() != wanted:
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True
