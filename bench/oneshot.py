"""A command and a file read: whole processes against other sandboxes, and warm ones through the gate against their floors.

    python -m bench.oneshot [--scale quick] [--laps N] [--json]

1. `true` as a whole process: `nucleus exec` with its helper warm, without a helper   against   fork and exec, bwrap, srt,
   codex, and Sandlock and nono-py in a new Python
2. `nucleus --version`                                            against   python3 -c pass
3. `true` in a sandbox that is there: `run` in a live pod, by its agent through the gate   against   fork and exec, and a
   library's call in a Python that has it loaded
4. a read of 1 KB in a live pod, by its agent through the gate     against   open and read; and its floor: a bare aiohttp
   echo over mutual TLS and two durable syncs, one after the other

The agent of 3 and 4 is in the pod, with `nucleus.sdk`; the echo uses the same contexts on the host's loopback, its server in
a process of its own. What a sandbox promises differs: bwrap here is new namespaces over the whole root read-only; Sandlock and
nono-py are Landlock and seccomp; codex and srt are bwrap and seccomp; ours is an operation that was decided, charged,
recorded durably and run in namespaces, Landlock and seccomp. codex has no `sandbox linux` any more (0.169 takes "linux" for the
command: "Failed to execvp linux"): it is `codex sandbox -- true`, npm's native program without its wrapper in Node.
"""

from __future__ import annotations

import asyncio
import compileall
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench import peers
from bench.measure import NUCLEUS, ROOT, Failed, Group, Metric, Scale, Way, Worker, command, elapsed, program, single

TRUE = "/usr/bin/true"
SYSTEM_PYTHON = "/usr/bin/python3"
LIBRARIES = {"sandlock": "sandlock", "nono-py": "nono_py"}  # what has to be importable
SRT = '{"network":{"allowedDomains":[],"deniedDomains":[]},"filesystem":{"denyRead":[],"allowWrite":["/tmp"],"denyWrite":[]}}'

AGENT = """
import json, sys, time
from nucleus.sdk.client import Gate
gate = Gate()
calls = {"run": lambda: gate.run(["true"]), "read": lambda: gate.read("kb.txt")}
print("true", flush=True)
for line in sys.stdin:
    name, count = line.split()
    out = []
    for _ in range(int(count)):
        started = time.perf_counter(); calls[name](); out.append((time.perf_counter() - started) * 1e3)
    print(json.dumps(out), flush=True)
"""


class Place:
    """State, runtime and workspace of a Nucleus of its own."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="nucleus-bench-"))
        self.root.chmod(0o755)
        self.work = self.root / "work"
        self.work.mkdir()
        (self.work / "kb.txt").write_text("x" * 1024)
        self.env = self._environment("")

    def _environment(self, suffix: str) -> dict[str, str]:
        return {
            "HOME": str(self.root), "PATH": os.environ["PATH"], "LANG": "C.UTF-8",
            "NUCLEUS_STATE": f"{self.root}/state{suffix}", "NUCLEUS_RUNTIME": f"{self.root}/run{suffix}",
        }  # fmt: skip

    def exec(self, *flags: str) -> Callable[[], float]:
        words = [NUCLEUS, *flags, "exec", "--profile", "codegen", "--workdir", self.work, "--", TRUE]
        return command(words, env=self._environment("-alone") if flags else self.env)

    def agent(self) -> Worker:
        """In a pod; asked for `run N` or `read N`."""
        words = [NUCLEUS, "run", "--profile", "codegen", "--workdir", str(self.work), "--", "python3", "-c", AGENT]
        return Worker(words, env=self.env)

    def close(self) -> None:
        subprocess.run([NUCLEUS, "helper", "stop"], env=self.env, check=False, capture_output=True)
        shutil.rmtree(self.root, ignore_errors=True)


class Echo:
    """The floor of an operation: aiohttp, mutual TLS 1.3 with our own contexts, an answer of the size of a 1 KB read's."""

    def __init__(self, directory: Path) -> None:
        from nucleus.identity.ca import CertificateAuthority
        from nucleus.identity.spiffe_id import SpiffeId
        from nucleus.identity.tls import client_context

        directory.mkdir(mode=0o700)
        authority = CertificateAuthority.load_or_create(str(directory), "bench.local", now=time.time_ns())
        names = [SpiffeId.for_workload("bench.local", "bench", name) for name in ("server", "client")]
        server, client = (authority.issue(name, now=time.time_ns()) for name in names)
        listener = socket.create_server(("127.0.0.1", 0))
        self._pid = os.fork()
        if self._pid == 0:
            try:
                asyncio.run(_echo(listener, server))
            finally:
                os._exit(1)
        port = listener.getsockname()[1]
        listener.close()
        self._connection = http.client.HTTPSConnection("127.0.0.1", port, context=client_context(client))
        self._sync = os.open(directory / "sync", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def call(self) -> None:
        """One exchange, then two appends of a record's size, each made durable."""
        self._connection.request("POST", "/v1/read", b'{"path":"kb.txt"}', {"Content-Type": "application/json"})
        self._connection.getresponse().read()
        for _ in range(2):
            os.write(self._sync, b"x" * 700)
            os.fdatasync(self._sync)

    def close(self) -> None:
        self._connection.close()
        os.close(self._sync)
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


async def _echo(listener: socket.socket, svid: object) -> None:
    from aiohttp import web

    from nucleus.identity.tls import server_context

    async def echo(request: web.Request) -> web.Response:
        await request.read()
        return web.json_response({"content": "x" * 1024})

    app = web.Application()
    app.router.add_post("/v1/read", echo)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.SockSite(runner, listener, ssl_context=server_context(svid)).start()
    await asyncio.Event().wait()


def whole_processes(place: Place, scale: Scale) -> Group:
    """1."""
    absent: dict[str, str] = {}
    takes: list[tuple[str, str, Callable[[], float]]] = [("`exec`, warm helper", "ours", place.exec())]
    if scale.level:
        takes.append(("`exec`, no helper", "ours", place.exec("--no-helper")))
    takes.append(("fork, exec", "floor", command([TRUE])))
    settings = place.root / "srt.json"
    settings.write_text(SRT)
    found = {
        "bwrap": [shutil.which("bwrap") or "", "--unshare-all", "--ro-bind", "/", "/", TRUE],
        "srt": [peers.srt(), "--settings", settings, "true"],
        "codex": [peers.codex(), "sandbox", "--", "true"],
    }
    for name, words in found.items():
        if not words[0]:
            absent[name] = peers.absent(name)
            continue
        peers.HOME.mkdir(parents=True, exist_ok=True)
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(peers.HOME if name == "codex" else place.root),
            "LANG": "C.UTF-8",
        }
        takes.append((f"{name} sandbox" if name == "codex" else name, "peer", command(words, env=env, cwd=place.work)))
    for name, module in LIBRARIES.items():
        if peers.has_module(module):
            words = [peers.PYTHON, peers.HERE / "library.py", name, "once"]
            takes.append((f"{name}, new Python", "peer", command(words)))
        else:
            absent[name] = peers.absent(name)
    return single("`true`, a whole process", takes, rounds=scale.pick(1, 5, 8), absent=absent)


def warm(place: Place, agent: Worker, scale: Scale, stack: ExitStack) -> list[Group]:
    """3 and 4."""
    absent: dict[str, str] = {}
    run, read = "`true` in a sandbox that is there", "a read of 1 KB"
    count = scale.pick(3, 20, 30)

    def repeated(title: str, call: Callable[[], float]) -> Callable[[], dict[str, list[float]]]:
        return lambda: {title: [call() for _ in range(count)]}

    runs = [
        Way("`run` through the gate", "ours", lambda: {run: agent.ask(f"run {count}")}),
        Way("fork, exec", "floor", repeated(run, command([TRUE]))),
    ]
    for name, module in LIBRARIES.items():
        if not peers.has_module(module):
            absent[name] = peers.absent(name)
            continue
        try:
            worker = stack.enter_context(Worker([peers.PYTHON, peers.HERE / "library.py", name]))
        except Failed as error:
            absent[name] = str(error)
        else:
            runs.append(
                Way(f"{name}, its library", "peer", repeated(run, lambda worker=worker: float(worker.ask("run"))))
            )
    echo = Echo(place.root / "echo")
    stack.callback(echo.close)
    path = place.work / "kb.txt"
    reads = [
        Way("`read` through the gate", "ours", lambda: {read: agent.ask(f"read {count}")}),
        Way("mutual-TLS echo and two syncs", "floor", repeated(read, lambda: elapsed(echo.call))),
        Way("open, read", "floor", repeated(read, lambda: elapsed(path.read_bytes))),
    ]
    return [
        Group([Metric(run)], runs, rounds=scale.pick(1, 2, 3), absent=absent),
        Group([Metric(read)], reads, rounds=scale.pick(1, 2, 3)),
    ]


@contextmanager
def suite(scale: Scale) -> Iterator[list[Group]]:
    compileall.compile_dir(ROOT / "src" / "nucleus", quiet=2)  # else writing no bytecode would be measured
    place = Place()
    with ExitStack() as stack:
        stack.callback(place.close)
        place.exec()()
        if scale.level:
            time.sleep(3)  # the template's imports
        agent = stack.enter_context(place.agent())
        version = single(
            "`--version`",
            [
                ("`nucleus --version`", "ours", command([NUCLEUS, "--version"], env=place.env)),
                ("`python3 -c pass`", "floor", command([SYSTEM_PYTHON, "-c", "pass"], env=place.env)),
            ],
            rounds=scale.pick(1, 5, 8),
        )
        yield [whole_processes(place, scale), *warm(place, agent, scale, stack), version]


if __name__ == "__main__":
    sys.exit(program("oneshot", __doc__, suite))
