"""What streaming costs: the time from a line's writing to its reader, and a run with and without it.

    python -m bench.streaming [--scale quick] [--laps N] [--json]

1. a line written in the pod, to the client's `on_output`     against   the same line through a pipe of a plain subprocess
2. `run true`, streamed                                       against   `run true`, answered at once
3. `run` of a command that writes all that is kept of output  against   the same, answered at once

All through `nucleus serve` on loopback with mutual TLS, interleaved, medians, ms. Clocks are CLOCK_MONOTONIC, which the
pod shares with its host. Everything is made in a temporary directory.
"""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from bench.measure import NUCLEUS, Group, Scale, program, single
from nucleus.limits import LIMITS
from nucleus.sdk.client import Gate

NOW = "import time; print(time.monotonic_ns(), flush=True); time.sleep(.1)"
MUCH = f"import sys; sys.stdout.write('x' * {LIMITS.output_bytes})"
POLICY = """
version: 1
name: all
capabilities: {run_bash: always, read_files: always}
commands: {allow: everything}
budget: {limit_usd: "1000.00"}
"""


def through_a_pipe() -> float:
    with subprocess.Popen([sys.executable, "-I", "-c", NOW], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        line = child.stdout.readline()
        came = time.monotonic_ns()
        child.wait()
    return (came - int(line)) / 1e6


def through_the_gate(gate: Gate) -> float:
    came: list[float] = []

    def told(_: str, text: str) -> None:
        came.append((time.monotonic_ns() - int(text)) / 1e6)

    gate.run(["python3", "-I", "-c", NOW], on_output=told)
    return came[0]


def whole(gate: Gate, argv: list[str], *, streamed: bool) -> float:
    started = time.perf_counter()
    result = gate.run(argv, on_output=(lambda *_: None) if streamed else None)
    taken = (time.perf_counter() - started) * 1e3
    if result["exit_code"] != 0:
        raise ValueError(result)
    return taken


class Served:
    """`nucleus serve` with a pod that may run everything; `gate` is its client."""

    def __init__(self) -> None:
        self._made = tempfile.TemporaryDirectory(prefix="nucleus-bench-")
        directory = Path(self._made.name)
        workspace, policy = directory / "w", directory / "p.yaml"
        directory.chmod(0o755)  # the authority has a uid of its own
        workspace.mkdir()
        (workspace / "kb.txt").write_text("x" * 1024)
        policy.write_text(POLICY)
        self._env = {**os.environ, "NUCLEUS_STATE": f"{directory}/s", "NUCLEUS_RUNTIME": f"{directory}/r"}
        argv = [NUCLEUS, "serve", "--policy", str(policy), "--workdir", str(workspace)]
        self._child = subprocess.Popen(argv, stdout=subprocess.PIPE, env=self._env)
        assert self._child.stdout is not None
        door = json.loads(self._child.stdout.readline())
        names = {"NUCLEUS_GATE": "gate", "NUCLEUS_GATE_ID": "gate_id", "NUCLEUS_WORKLOAD_SOCKET": "workload"}
        os.environ.update({name: door[key] for name, key in names.items()})  # where the client looks
        self.gate = Gate()

    def address(self) -> tuple[tuple[str, int], ssl.SSLContext]:
        """Of the gate, with a context that has our SVID: for clients other than the SDK's."""
        from nucleus.sdk.identity import Source

        where = urlsplit(os.environ["NUCLEUS_GATE"])
        return (str(where.hostname), int(where.port or 443)), Source().current()[1]

    def close(self) -> None:
        self._child.send_signal(signal.SIGTERM)
        self._child.wait(30)
        assert self._child.stdout is not None
        self._child.stdout.close()
        subprocess.run([NUCLEUS, "helper", "stop"], check=False, capture_output=True, env=self._env)
        self._made.cleanup()


@contextmanager
def suite(scale: Scale) -> Iterator[list[Group]]:
    with closing(Served()) as served:
        gate, much, rounds = served.gate, ["python3", "-I", "-c", MUCH], scale.pick(1, 6, 10)
        yield [
            single(
                "streaming: a line from the pod to its reader",
                [("`on_output`", "ours", lambda: through_the_gate(gate)), ("a pipe", "floor", through_a_pipe)],
                rounds=rounds,
            ),
            single(
                "`run true`, streamed",
                [
                    ("streamed", "ours", lambda: whole(gate, ["true"], streamed=True)),
                    ("answered at once", "floor", lambda: whole(gate, ["true"], streamed=False)),
                ],
                rounds=rounds,
            ),
            single(
                "`run` that writes 1 MiB, streamed",
                [
                    ("streamed", "ours", lambda: whole(gate, much, streamed=True)),
                    ("answered at once", "floor", lambda: whole(gate, much, streamed=False)),
                ],
                rounds=rounds,
                headline=False,
            ),
        ]


if __name__ == "__main__":
    sys.exit(program("streaming", __doc__, suite))
