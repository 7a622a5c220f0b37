"""Micro-benchmark: one operation's round trips to a live authority, beside this disk's fdatasync floor.

python -m authority.bench      (from tests/)
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from .harness import Authority, state_directory


def floor_us(directory: Path, size: int = 650, rounds: int = 500) -> float:
    fd = os.open(directory / "floor", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    took = []
    for _ in range(rounds):
        os.write(fd, b"x" * size)
        start = time.perf_counter_ns()
        os.fdatasync(fd)
        took.append(time.perf_counter_ns() - start)
    os.close(fd)
    return statistics.median(took) / 1e3


def cpu_us(pid: int) -> float:
    with open(f"/proc/{pid}/schedstat") as file:
        return int(file.read().split()[0]) / 1e3


def main(rounds: int = 1000) -> None:
    top = Path(tempfile.mkdtemp(prefix="authority-"))
    top.chmod(0o755)
    state = state_directory(top / "state")
    print(f"fdatasync floor, median: {floor_us(top):.0f} us")
    start = time.perf_counter_ns()
    authority = Authority(state)
    print(f"start to configured: {(time.perf_counter_ns() - start) / 1e6:.1f} ms")
    start = time.perf_counter_ns()
    gate = authority.gate(limit=1 << 40)
    print(f"register + attach + open_budget: {(time.perf_counter_ns() - start) / 1e6:.2f} ms")
    steps: dict[str, list[int]] = {name: [] for name in ("reserve", "intent", "settle", "outcome", "all")}
    before = cpu_us(authority.process.pid)
    for _ in range(rounds):
        name = os.urandom(16).hex()
        marks = [time.perf_counter_ns()]
        gate.reserve(name, 600)
        marks.append(time.perf_counter_ns())
        gate.append("intent", reservation=name, reserved=600)
        marks.append(time.perf_counter_ns())
        gate.call("settle", reservation=name, actual=100)
        marks.append(time.perf_counter_ns())
        gate.append("outcome", reservation=name, reserved=600, charged=100)
        marks.append(time.perf_counter_ns())
        for step, begin, end in zip(steps, marks, marks[1:], strict=False):
            steps[step].append(end - begin)
        steps["all"].append(marks[-1] - marks[0])
    spent = cpu_us(authority.process.pid) - before
    for step, took in steps.items():
        print(f"{step}: median {statistics.median(took) / 1e3:.0f} us, p99 {sorted(took)[-rounds // 100] / 1e3:.0f} us")
    print(f"CPU of the authority per request, syncs' own CPU included: {spent / rounds / 4:.0f} us")
    authority.stop()
    print(f"memory of children, peak: {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024} MiB")
    shutil.rmtree(top)


if __name__ == "__main__":
    main()
