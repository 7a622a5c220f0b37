"""What streaming costs: the time from a line's writing to its reader, and a run with and without it.

    python -m bench.streaming [--runs N]

1. a line written in the pod, to the client's `on_output`     against   the same line through a pipe of a plain subprocess
2. `run true`, streamed                                       against   `run true`, answered at once
3. `run` of a command that writes all that is kept of output  against   the same, answered at once

All through `nucleus serve` on loopback with mutual TLS, interleaved, medians, ms. Clocks are CLOCK_MONOTONIC, which the
pod shares with its host. Everything is made in a temporary directory.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from nucleus.limits import LIMITS
from nucleus.sdk.client import Gate

NUCLEUS = str(Path(sys.executable).parent / "nucleus")
NOW = "import time; print(time.monotonic_ns(), flush=True); time.sleep(.1)"
MUCH = f"import sys; sys.stdout.write('x' * {LIMITS.output_bytes})"
POLICY = "version: 1\nname: all\ncapabilities: {run_bash: always}\ncommands: {allow: everything}\n"


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


def timed(gate: Gate, argv: list[str], *, streamed: bool) -> float:
    started = time.perf_counter()
    result = gate.run(argv, on_output=(lambda *_: None) if streamed else None)
    assert result["exit_code"] == 0, result
    return (time.perf_counter() - started) * 1e3


def measure(runs: int) -> dict[str, list[float]]:
    """Every figure's values, in ms."""
    gate = Gate()
    calls = {
        "line, pipe": through_a_pipe,
        "line, streamed": lambda: through_the_gate(gate),
        "run true": lambda: timed(gate, ["true"], streamed=False),
        "run true, streamed": lambda: timed(gate, ["true"], streamed=True),
        "run, all output": lambda: timed(gate, ["python3", "-I", "-c", MUCH], streamed=False),
        "run, all output, streamed": lambda: timed(gate, ["python3", "-I", "-c", MUCH], streamed=True),
    }
    figures: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(runs + 1):
        for name, call in calls.items():
            value = call()
            if number:  # the first round warms up
                figures[name].append(value)
    return figures


def main() -> int:
    """Run it and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nucleus-bench-") as made:
        directory = Path(made)
        workspace, policy = directory / "w", directory / "p.yaml"
        directory.chmod(0o755)  # the authority has a uid of its own
        workspace.mkdir()
        policy.write_text(POLICY)
        os.environ.update({"NUCLEUS_STATE": f"{made}/s", "NUCLEUS_RUNTIME": f"{made}/r"})
        argv = [NUCLEUS, "serve", "--policy", str(policy), "--workdir", str(workspace)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as served:
            assert served.stdout is not None
            door = json.loads(served.stdout.readline())
            os.environ.update(
                {
                    "NUCLEUS_GATE": door["gate"],
                    "NUCLEUS_GATE_ID": door["gate_id"],
                    "SPIFFE_ENDPOINT_SOCKET": door["workload"],
                }
            )
            try:
                figures = measure(options.runs)
            finally:
                served.send_signal(signal.SIGTERM)
                served.wait(30)
        subprocess.run([NUCLEUS, "helper", "stop"], check=False, capture_output=True)
    print(f"{'ms':<28}{'median':>8}{'min':>8}{'p95':>8}")
    for name, values in figures.items():
        ordered = sorted(values)
        print(f"{name:<28}{statistics.median(values):8.2f}{ordered[0]:8.2f}{ordered[int(len(ordered) * 0.95)]:8.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
