"""One decision by Nucleus and by four policy engines, interleaved in one run: medians and minima.

    python -m bench.decision [--rounds N] [--json]        from the repository's root

 1. every engine judges every operation of `cases`; one verdict that differs ends the run
 2. each round, each engine in turn (the first one changes) decides a group's 120 distinct operations, four times over
    (so that waking up after another engine weighs little); a round's figure is the mean of that pass, per decision. The
    median and the minimum are over the rounds.
 3. `parse_policy` is timed on the bundled profiles and on the benchmark's policy, imports excluded

The peers live in `.venv-bench` (requirements.txt), which the first run makes; one that does not install is named.
Garbage collection is off while a pass is timed, as in timeit, and done between passes.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
VENV = ROOT / ".venv-bench"
UV = ROOT / ".venv" / "bin" / "uv"
INSIDE = "NUCLEUS_BENCH_INSIDE"
CYCLES = 4
NAMES = ("agent_os", "casbin", "cedarpy", "regorus")


def missing() -> list[str]:
    out = []
    for name in NAMES:
        try:
            importlib.import_module(name)
        except ImportError:
            out.append(name)
    return out


def install() -> None:
    """`.venv-bench` with the peers; where all together fail, one by one, so that the others are measured."""
    stamp, wanted = (
        VENV / ".requirements",
        (HERE / "requirements.txt").read_text() + (HERE / "constraints.txt").read_text(),
    )
    if stamp.exists() and stamp.read_text() == wanted:
        return
    subprocess.run([UV, "venv", "-q", "--clear", "--python", sys.executable, VENV], check=True)
    pip = [UV, "pip", "install", "-q", "--python", VENV / "bin" / "python", "-c", HERE / "constraints.txt"]
    if subprocess.run([*pip, "-r", HERE / "requirements.txt"], check=False).returncode != 0:
        lines = [line for line in (HERE / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
        failed = [line for line in lines if subprocess.run([*pip, line], check=False).returncode != 0]
        print(f"not installed: {', '.join(failed)}", file=sys.stderr)
        return  # without the stamp: the next run tries again
    stamp.write_text(wanted)


def reexec() -> None:
    install()
    environment = {**os.environ, INSIDE: "1", "PYTHONPATH": f"{ROOT / 'src'}"}
    python = str(VENV / "bin" / "python")
    os.chdir(ROOT)
    os.execve(python, [python, "-m", "bench.decision", *sys.argv[1:]], environment)


def check(judge: Any, inputs: list[Any], cases: list[Any], engine: str) -> None:
    for given, case in zip(inputs, cases, strict=True):
        got = judge(given)
        if got != case.verdict:
            raise SystemExit(f"{engine} says {got}, expected {case.verdict}: {case.operation!r}")


def one_pass(judge: Any, inputs: list[Any]) -> float:
    """Microseconds per decision."""
    gc.collect(0)
    gc.disable()
    started = time.perf_counter_ns()
    for _ in range(CYCLES):
        for given in inputs:
            judge(given)
    elapsed = time.perf_counter_ns() - started
    gc.enable()
    return elapsed / len(inputs) / CYCLES / 1e3


def decisions(rounds: int) -> tuple[dict[str, dict[str, dict[str, float]]], dict[str, str]]:
    from bench.decision.cases import groups
    from bench.decision.peers import PEERS, REFERENCE

    absent: dict[str, str] = {}
    engines = {}
    for name, (module, make) in PEERS.items():
        try:
            importlib.import_module(module)
        except ImportError as error:
            absent[name] = str(error)
        else:
            engines[name] = make
    out: dict[str, dict[str, dict[str, float]]] = {}
    for group, cases in groups().items():
        ready = {name: make(cases) for name, make in engines.items()}
        for name, (judge, inputs) in ready.items():
            check(judge, inputs, cases, name)
        times: dict[str, list[float]] = {name: [] for name in ready}
        order = list(ready)
        for number in range(rounds + 2):
            order.append(order.pop(0))
            for name in order:
                figure = one_pass(*ready[name])
                if number >= 2:  # the first two warm up
                    times[name].append(figure)
        reference = statistics.median(times[REFERENCE]) if REFERENCE in times else float("nan")
        out[group] = {}
        for name, figures in times.items():
            median = statistics.median(figures)
            out[group][name] = {"median": median, "min": min(figures), "ratio": median / reference}
    return out, absent


def loads(rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds to parse one policy's text."""
    from bench.decision.cases import POLICY
    from nucleus.lattice.load import parse_policy

    profiles = sorted((ROOT / "src/nucleus/lattice/profiles").glob("*.yaml"))
    texts = [(path.name, path.read_text()) for path in profiles]
    for name, text in (*texts, ("bench", POLICY)):
        parse_policy(text, name)
    bundled, bench = [], []
    for _ in range(rounds):
        for name, text in texts:
            started = time.perf_counter_ns()
            parse_policy(text, name)
            bundled.append((time.perf_counter_ns() - started) / 1e6)
        started = time.perf_counter_ns()
        parse_policy(POLICY, "bench")
        bench.append((time.perf_counter_ns() - started) / 1e6)
    return {
        f"{len(texts)} bundled profiles, each": {
            "median": statistics.median(bundled),
            "min": min(bundled),
            "max": max(bundled),
        },
        "the benchmark's 20 rules": {"median": statistics.median(bench), "min": min(bench), "max": max(bench)},
    }


def show(
    groups: dict[str, dict[str, dict[str, float]]], absent: dict[str, str], parsed: dict[str, dict[str, float]]
) -> None:
    print("decision, µs                     median      min   median / cedarpy's")
    for group, engines in groups.items():
        print(group)
        for name, figure in engines.items():
            print(f"  {name:<26} {figure['median']:10.2f} {figure['min']:8.2f}   {figure['ratio']:.3f}")
    for name, why in absent.items():
        print(f"not measured: {name}: {why}")
    print("\nload of a policy, ms             median      min      max")
    for name, figure in parsed.items():
        print(f"  {name:<26} {figure['median']:10.2f} {figure['min']:8.2f} {figure['max']:8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.decision", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=25, help="passes of each engine over each group (25)")
    parser.add_argument("--json", action="store_true", help="figures as JSON")
    options = parser.parse_args()
    if options.rounds < 1:
        parser.error("--rounds: at least 1")
    if missing() and INSIDE not in os.environ:
        reexec()
    groups, absent = decisions(options.rounds)
    parsed = loads(options.rounds)
    if options.json:
        about = {"python": platform.python_version(), "machine": platform.machine(), "rounds": options.rounds}
        print(json.dumps({"about": about, "decision_us": groups, "not_measured": absent, "load_ms": parsed}, indent=1))
    else:
        show(groups, absent, parsed)


if __name__ == "__main__":
    main()
