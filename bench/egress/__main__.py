"""What the way out costs: the same small client inside a pod, outside it, and in Anthropic's sandbox-runtime.

    python -m bench.egress [--runs N] [--gateways N]      (as root; SRT=path of the `srt` program for the peer)

All servers are in a network namespace of this program's own; nothing leaves the machine. Medians of requests within one
run of the client, runs interleaved, medians of runs. Memory: proportional set size (PSS) of N gateways at rest.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))

from integration.held import Held  # noqa: E402
from integration.world import World  # noqa: E402

POLICY = """
version: 1
name: bench
capabilities: {read_files: always, run_bash: always}
commands: {allow: everything}
trifecta: session
budget: {limit_usd: "1000.00"}
network:
  allow:
    - {host: allowed.test, trusted: true}
    - {host: allowed.test, port: 80, trusted: true}
    - {host: other.test, port: 22, trusted: true}
    - {host: api.test, protocol: https, trusted: true}
"""
SRT = {
    "network": {"allowedDomains": ["allowed.test", "other.test", "api.test"], "deniedDomains": []},
    "filesystem": {"denyRead": [], "allowWrite": ["/tmp"], "denyWrite": []},
}


def client_command(world: World, where: str) -> list[str]:
    return ["python3", f"{where}/client.py"]


def figures(text: str) -> dict[str, float]:
    return {str(name): float(value) for name, value in json.loads(text.strip().splitlines()[-1]).items()}


def direct(world: World) -> dict[str, float]:
    child = world.start(["python3", str(world.workspace / "client.py")])
    return figures(child.communicate(timeout=120)[0])


def pod(world: World, policy: str) -> dict[str, float]:
    done = world.cli("exec", "--policy", policy, "--workdir", str(world.workspace), "--", "python3", "client.py")
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    return figures(done.stdout)


def srt(world: World, program: str) -> dict[str, float]:
    settings = world.workspace / "srt.json"
    settings.write_text(json.dumps(SRT))
    words = [program, "--settings", str(settings), "python3", str(world.workspace / "client.py")]
    child = world.start(words)
    out, err = child.communicate(timeout=120)
    if child.returncode != 0 or not out.strip():
        print(f"srt: not measured: {err.strip()[-300:]}")
        return {}
    return figures(out)


def memory(world: World, policy: str, count: int) -> None:
    """PSS and private memory of `count` gateways, each after one connection."""
    held = [Held(world, policy=policy) for _ in range(count)]
    try:
        for one in held:
            one.operate(
                kind="run", argv=["python3", "-c", "import socket; socket.create_connection(('other.test',22)).recv(9)"]
            )
        found = [pid for pid in os.listdir("/proc") if pid.isdigit() and _name(pid) == "nucleus-gateway"]
        rows = [_rollup(pid) for pid in found]
        if len(rows) != count:
            print(f"gateways: {len(rows)} found of {count}")
        pss = [row["Pss"] for row in rows]
        private = [row["Private_Clean"] + row["Private_Dirty"] for row in rows]
        print(
            f"{len(rows)} gateways: PSS {sum(pss) / 1024:.0f} MB in all, {statistics.median(pss) / 1024:.1f} MB each; "
            f"private {statistics.median(private) / 1024:.1f} MB each"
        )
    finally:
        for one in held:
            one.child.communicate(timeout=30)


def _name(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _rollup(pid: str) -> dict[str, int]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) for line in lines}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.egress")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--gateways", type=int, default=20)
    options = parser.parse_args()
    world = World()
    try:
        world.write("client.py", (HERE / "client.py").read_text())
        policy = world.policy(POLICY)
        program = os.environ.get("SRT") or shutil.which("srt")
        ways: dict[str, Any] = {"direct": lambda: direct(world), "pod": lambda: pod(world, policy)}
        if program:
            ways["srt"] = lambda: srt(world, program)
        else:
            print("srt: not installed (npm install @anthropic-ai/sandbox-runtime), not measured")
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
        for _ in range(options.runs):
            for name, way in ways.items():
                if found := way():
                    runs[name].append(found)
        table(runs)
        memory(world, policy, options.gateways)
    finally:
        world.close()


def table(runs: dict[str, list[dict[str, float]]]) -> None:
    base = {key: statistics.median(run[key] for run in runs["direct"]) for key in runs["direct"][0]}
    for key, floor in base.items():
        cells = [f"{key:34} direct {floor:8.2f}"]
        for name, found in runs.items():
            values = [run[key] for run in found if key in run]
            if name != "direct" and values:
                value = statistics.median(values)
                cells.append(f"{name} {value:8.2f} ({value - floor:+.2f}, x{value / floor:.2f})")
        print("  ".join(cells))


if __name__ == "__main__":
    main()
