"""The figures: each against its floor or a named peer, in one run, interleaved, medians (and minima) of wall time.

    python bench/bench.py [--runs N] [--json]

1. cold `nucleus exec -- /bin/true` (resident helper; private builder)   against   bwrap, codex sandbox where installed
2. `nucleus --version`                                                   against   python3 -c pass
3. warm `run ["true"]` in a live pod, from the agent through the gate    against   bwrap, whole process
4. warm 1 KB read, from the agent through the gate                       against   a bare aiohttp mutual-TLS echo + two durable syncs

3 and 4 are measured by an agent in its pod, with `nucleus.sdk`; the echo of 4 uses the same client code and SVIDs, on
the host's loopback, its server in a process of its own. Everything is made in a temporary directory.
"""

from __future__ import annotations

import argparse
import asyncio
import compileall
import json
import multiprocessing
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent / "src" / "nucleus"
NUCLEUS = str(Path(sys.executable).parent / "nucleus")
PYTHON = "/usr/bin/python3"

Figures = dict[str, list[float]]


def timed(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1e3


def command(argv: list[str], env: dict[str, str]) -> Callable[[], object]:
    def call() -> None:
        done = subprocess.run(argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{argv}: exit {done.returncode}\n{done.stderr.decode()}")

    return call


def interleaved(calls: dict[str, Callable[[], object]], runs: int) -> Figures:
    for call in calls.values():
        call()
    figures: Figures = {name: [] for name in calls}
    for _ in range(runs):
        for name, call in calls.items():
            figures[name].append(timed(call))
    return figures


def whole_processes(env: dict[str, str], work: Path, runs: int) -> Figures:
    exec_argv = ["exec", "--profile", "codegen", "--workdir", str(work), "--", "/bin/true"]
    calls = {
        "nucleus exec, helper": command([NUCLEUS, *exec_argv], env),
        "nucleus --version": command([NUCLEUS, "--version"], env),
        "python3 -c pass": command([PYTHON, "-c", "pass"], env),
    }
    if bwrap := shutil.which("bwrap"):
        calls["bwrap --unshare-all true"] = command([bwrap, "--unshare-all", "--ro-bind", "/", "/", "true"], env)
    if codex := os.environ.get("CODEX") or shutil.which("codex"):
        # It refuses a home below /tmp. CODEX names the native binary, which npm's `codex` wraps in Node.
        calls["codex sandbox true"] = command([codex, "sandbox", "--", "true"], env | {"HOME": os.environ["HOME"]})
    figures = interleaved(calls, runs)
    alone = env | {
        "NUCLEUS_STATE": env["NUCLEUS_STATE"] + "-private",
        "NUCLEUS_RUNTIME": env["NUCLEUS_RUNTIME"] + "-private",
    }
    private = {"nucleus exec, no helper": command([NUCLEUS, "--no-helper", *exec_argv], alone)}
    return figures | interleaved(private, max(5, runs // 2))


AGENT = """
import json, os, sys, time
from nucleus.sdk.client import Gate
gate, runs = Gate(), int(os.environ["NUCLEUS_TASK"])
def measure(call, n):
    for _ in range(20): call()
    out = []
    for _ in range(n):
        a = time.perf_counter(); call(); out.append((time.perf_counter() - a) * 1e3)
    return out
figures = {"run true, warm": measure(lambda: gate.run(["true"]), runs), "read 1 KB, warm": measure(lambda: gate.read("kb.txt"), 10 * runs)}
print(json.dumps(figures))
"""


def in_pod(env: dict[str, str], work: Path, runs: int) -> Figures:
    (work / "kb.txt").write_text("x" * 1024)
    argv = [
        NUCLEUS,
        "run",
        "--profile",
        "codegen",
        "--workdir",
        str(work),
        "--task",
        str(runs),
        "--",
        "python3",
        "-c",
        AGENT,
    ]
    done = subprocess.run(argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"in-pod bench: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    figures: Figures = json.loads(done.stdout)
    return figures


def echo_server(listener: socket.socket, directory: str) -> None:
    """The floor: aiohttp, mutual TLS 1.3 with our own contexts, an answer of the size of a 1 KB read's."""
    from aiohttp import web

    from nucleus.identity.tls import server_context

    async def main() -> None:
        async def echo(request: web.Request) -> web.Response:
            await request.read()
            return web.json_response({"content": "x" * 1024})

        app = web.Application()
        app.router.add_post("/v1/read", echo)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.SockSite(runner, listener, ssl_context=server_context(svids(directory)[0])).start()
        await asyncio.sleep(300)

    asyncio.run(main())


def svids(directory: str) -> tuple:
    from nucleus.identity.ca import CertificateAuthority
    from nucleus.identity.spiffe_id import SpiffeId

    authority = CertificateAuthority.load_or_create(directory, "bench.local", now=time.time_ns())
    names = [SpiffeId.for_workload("bench.local", "bench", name) for name in ("server", "client")]
    return tuple(authority.issue(name, now=time.time_ns()) for name in names)


def echo_floor(directory: Path, runs: int) -> Figures:
    import http.client

    from nucleus.identity.tls import client_context

    ca = directory / "bench-ca"
    ca.mkdir(mode=0o700)
    client = svids(str(ca))[1]
    listener = socket.create_server(("127.0.0.1", 0))
    server = multiprocessing.get_context("fork").Process(target=echo_server, args=(listener, str(ca)), daemon=True)
    server.start()
    connection = http.client.HTTPSConnection("127.0.0.1", listener.getsockname()[1], context=client_context(client))
    body = json.dumps({"path": "kb.txt"}).encode()

    def call() -> None:
        connection.request("POST", "/v1/read", body, {"Content-Type": "application/json"})
        connection.getresponse().read()

    try:
        for _ in range(20):
            call()
        figures = {"aiohttp mutual-TLS echo": [timed(call) for _ in range(10 * runs)]}
    finally:
        server.terminate()
        server.join()
        connection.close()
        listener.close()
    return figures


def sync_floor(directory: Path, runs: int) -> Figures:
    """Two appends of a record's size, each made durable, on the file system of the audit log."""
    fd = os.open(directory / "sync", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def call() -> None:
        for _ in range(2):
            os.write(fd, b"x" * 700)
            os.fdatasync(fd)

    try:
        return {"two durable syncs": [timed(call) for _ in range(10 * runs)]}
    finally:
        os.close(fd)


def table(figures: Figures) -> str:
    rows = [f"{'ms':<32}{'median':>9}{'min':>9}{'p95':>9}{'n':>6}"]
    for name, values in figures.items():
        ordered = sorted(values)
        p95 = ordered[int(len(ordered) * 0.95)]
        rows.append(f"{name:<32}{statistics.median(values):>9.2f}{ordered[0]:>9.2f}{p95:>9.2f}{len(values):>6}")
    return "\n".join(rows)


def verdicts(figures: Figures) -> str:
    middle = {name: statistics.median(values) for name, values in figures.items()}
    rows = []
    bwrap = middle.get("bwrap --unshare-all true")
    if bwrap:
        cold = middle["nucleus exec, helper"]
        rows.append(f"cold exec with helper: {cold:.1f} ms, {cold / bwrap:.1f} x bwrap (aim 9.6)")
        if codex := middle.get("codex sandbox true"):
            rows.append(f"cold exec with helper: {cold / codex:.2f} x codex sandbox (aim 1)")
        rows.append(
            f"warm run through the gate: {middle['run true, warm'] / bwrap:.2f} x bwrap's whole process (aim 1)"
        )
    rows.append(f"cold exec without helper: {middle['nucleus exec, no helper']:.0f} ms (aim 200)")
    floor = middle["aiohttp mutual-TLS echo"] + middle["two durable syncs"]
    rows.append(f"warm read: floor + {middle['read 1 KB, warm'] - floor:.2f} ms (floor {floor:.2f}; aim + 0.30)")
    rows.append(f"--version: {middle['nucleus --version'] / middle['python3 -c pass']:.2f} x python3 -c pass (aim 3)")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    compileall.compile_dir(SOURCE, quiet=2)  # an environment that forbids bytecode would be measured instead
    root = Path(tempfile.mkdtemp(prefix="nucleus-bench-"))
    root.chmod(0o755)
    work = root / "work"
    work.mkdir()
    env = {
        "HOME": str(root), "PATH": os.environ["PATH"], "LANG": "C.UTF-8",
        "NUCLEUS_STATE": str(root / "state"), "NUCLEUS_RUNTIME": str(root / "run"),
    }  # fmt: skip
    try:
        command([NUCLEUS, "exec", "--profile", "codegen", "--workdir", str(work), "--", "/bin/true"], env)()
        time.sleep(3)  # the template's imports
        figures = whole_processes(env, work, options.runs)
        for part in range(2):  # floor and measured in turn, halves
            for more in (in_pod(env, work, options.runs // 2), echo_floor_in(root / f"floor{part}", options.runs // 2)):
                for name, values in more.items():
                    figures.setdefault(name, []).extend(values)
    finally:
        subprocess.run([NUCLEUS, "helper", "stop"], env=env, check=False, capture_output=True)
        shutil.rmtree(root, ignore_errors=True)
    if options.json:
        print(
            json.dumps(
                {
                    name: {"median_ms": statistics.median(v), "min_ms": min(v), "n": len(v)}
                    for name, v in figures.items()
                }
            )
        )
    else:
        print(table(figures) + "\n\n" + verdicts(figures))


def echo_floor_in(directory: Path, runs: int) -> Figures:
    directory.mkdir()
    return echo_floor(directory, runs) | sync_floor(directory, runs)


if __name__ == "__main__":
    main()
