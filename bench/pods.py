"""Pods that are held, and what each costs: the time to make one, and memory, while more and more of them live.

    python -m bench.curves pods [--scale quick]

A pod's memory is that of the processes that came with it (its gate, its work compartment): private, and proportional (PSS),
where pages that forks share are divided among all who have them. Beside it bwrap with a shell that waits.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.measure import Scale, Worker, answer, spread
from bench.oneshot import Place

MIB = 1024.0  # from the kB of /proc


def descendants(roots: set[int]) -> set[int]:
    """All processes below these, themselves included."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                parents[int(name)] = int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
    found = set(roots)
    while more := {pid for pid, parent in parents.items() if parent in found and pid not in found}:
        found |= more
    return found


def memory(pids: set[int]) -> dict[str, float]:
    """MiB of them together."""
    total = {"Pss": 0, "private": 0}
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        except OSError:  # it has ended
            continue
        rows = {line.split(":")[0]: int(line.split()[1]) for line in lines}
        total["Pss"] += rows["Pss"]
        total["private"] += rows["Private_Clean"] + rows["Private_Dirty"]
    return {name: value / MIB for name, value in total.items()}


class Holder:
    """In a process of its own: the pods of one launcher."""

    def __init__(self, workspace: str) -> None:
        from nucleus.cli.launcher import Launcher
        from nucleus.store.policies import load_policy_text

        text, source = load_policy_text("codegen", None)
        self._spec = {"policy_text": text, "policy_source": source, "workdir": workspace}
        self._workspace = os.open(workspace, os.O_PATH | os.O_DIRECTORY)
        self._launcher = Launcher.open()
        self._pods: list[Any] = []

    def ask(self, line: str) -> Any:
        """`add`: the milliseconds of one more; `status`: the processes that serve all, and those of pods."""
        if line == "add":
            return self._add()
        status = self._launcher.call("status").body
        own = {pid for pod in status["pods"] for pid in (pod["gate"], *pod["pids"])}
        return {"builder": status["pids"]["builder"], "shared": list(status["pids"].values()), "pods": list(own)}

    def _add(self) -> float:
        from nucleus.sdk import wire

        started = time.perf_counter()
        pod = self._launcher.create_pod(self._spec, (self._workspace,))
        taken = (time.perf_counter() - started) * 1e3
        self._pods.append(pod)
        pod.gate.sendall(wire.encode({"id": 1, "operation": {"kind": "run", "argv": ["true"]}}))
        reply = wire.receive(pod.gate, wire.Reader())
        if reply is None or reply[0]["reply"].get("status") != "ok":
            raise RuntimeError(f"the pod does not work: {reply and reply[0]}")
        return taken


def shell() -> tuple[float, subprocess.Popen[bytes]]:
    """bwrap, until its shell has said that it runs."""
    words = ["bwrap", "--unshare-all", "--ro-bind", "/", "/", "sh", "-c", "echo; read _"]
    started = time.perf_counter()
    child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    return (time.perf_counter() - started) * 1e3, child


class Shells:
    """The peer's."""

    def __init__(self) -> None:
        self._children: list[subprocess.Popen[bytes]] = []

    def add(self) -> float:
        taken, child = shell()
        self._children.append(child)
        return taken

    def memory(self) -> dict[str, float]:
        return memory(descendants({child.pid for child in self._children}))

    def close(self) -> None:
        for child in self._children:
            child.communicate(b"\n")


def curve(scale: Scale) -> list[dict[str, Any]]:
    """Two: milliseconds to make one more, and MiB of each."""
    marks = scale.pick((1, 2), (1, 5, 10, 20, 30), (1, 2, 5, 10, 20, 50, 100))
    times: dict[str, list[list[float]]] = {"Nucleus": []}
    sizes: dict[str, list[list[float]]] = {name: [] for name in ("PSS", "private", "with helper, PSS")}
    with ExitStack() as stack:
        place = Place()
        stack.callback(place.close)
        place.exec()()
        time.sleep(scale.pick(0, 3, 3))  # the template's imports
        if shutil.which("bwrap"):
            shell()[1].communicate(b"\n")  # its first start reads it from the disk
        holder = stack.enter_context(
            Worker([sys.executable, "-m", "bench.pods", "--worker", str(place.work)], env=place.env)
        )
        shells = Shells() if shutil.which("bwrap") else None
        if shells:
            stack.callback(shells.close)
            times["bwrap, a shell"], sizes["bwrap, a shell, PSS"] = [], []
        adds: dict[str, Callable[[], float]] = {"Nucleus": lambda: float(holder.ask("add"))}
        if shells:
            adds["bwrap, a shell"] = shells.add
        live, taken = 0, {name: list[float]() for name in adds}
        for mark in marks:
            while live < mark:
                live += 1
                for name, add in adds.items():
                    taken[name].append(add())
            for name, values in taken.items():
                found = spread(values)
                times[name].append([mark, found["median"], found["p25"], found["p75"]])
                values.clear()
            status = holder.ask("status")
            pods = descendants(set(status["pods"]))
            every = memory(descendants({status["builder"]}))
            own = memory(pods)
            sizes["PSS"].append([mark, own["Pss"] / mark])
            sizes["private"].append([mark, own["private"] / mark])
            sizes["with helper, PSS"].append([mark, every["Pss"] / mark])
            if shells:
                sizes["bwrap, a shell, PSS"].append([mark, shells.memory()["Pss"] / mark])
    return [
        {
            "name": "pods-time", "title": "One more pod, while others live", "x": "live pods", "log": ["x"],
            "y": "milliseconds to make it, median and p25–p75 since the last mark",
            "series": [{"name": name, "points": points} for name, points in times.items()],
        },
        {
            "name": "pods-memory", "title": "Memory of each pod", "x": "live pods", "y": "MiB for each pod", "log": ["x", "y"],
            "series": [{"name": name, "points": points} for name, points in sizes.items()],
        },
    ]  # fmt: skip


def main() -> int:
    if sys.argv[1:2] == ["--worker"]:
        holder = Holder(sys.argv[2])
        answer(holder.ask)
        return 0
    print("python -m bench.curves pods", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
