"""Pods made and destroyed over and over, the helper killed by -9 now and then: nothing of them may stay.

    python -m simulate.pods [--cycles 1000] [--seed 1] [--kills 20]

Each cycle makes a pod, runs a command in it and ends it by one of: an orderly close, a launcher that goes away, a
launcher that is killed. `--kills` times in all, at a random moment of a cycle, the builder (the node) is killed; the
next launcher starts another one. Afterwards, and at every hundredth cycle, what there is of pods on this machine is
counted: processes under their uids, mounts, network namespaces, cgroups, files, the builder's descriptors. As root.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LAUNCHER = """
import os, sys
from nucleus.cli.launcher import Launcher, open_workspace
from nucleus.sdk import wire
policy, workdir, how = sys.argv[1:]
workspace, name = open_workspace(workdir)
launcher = Launcher.open()
spec = {"policy_text": policy, "policy_source": "cycle", "workdir": name}
pod = launcher.create_pod(spec, (workspace,))
pod.gate.sendall(wire.encode({"id": 1, "operation": {"kind": "run", "argv": ["true"], "cwd": "."}}))
answer = wire.receive(pod.gate, wire.Reader())
if answer is None or answer[0]["reply"]["status"] != "ok":
    sys.exit(f"no answer: {answer}")
if how == "close":
    launcher.call("close_pod", pod=pod.name)
    pod.close()
elif how == "kill":
    os.kill(os.getpid(), 9)
os._exit(0)
"""


class Machine:
    """One state and runtime directory."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="nucleus-cycles-", dir="/tmp"))
        self.directory.chmod(0o711)
        self.work = self.directory / "work"
        self.work.mkdir()
        (self.directory / "run").mkdir(mode=0o700)
        self.environment = {
            "PATH": os.environ["PATH"], "NUCLEUS_STATE": str(self.directory / "state"), "HOME": str(self.directory),
            "NUCLEUS_RUNTIME": str(self.directory / "run"), "LANG": "C.UTF-8",
        }  # fmt: skip

    def cycle(self, policy: str, how: str, kill_after: float | None) -> str:
        """One pod; "" when all was as it should be, else what went wrong (a killed builder excuses everything)."""
        argv = [sys.executable, "-I", "-c", LAUNCHER, policy, str(self.work), how]
        with subprocess.Popen(argv, env=self.environment, stderr=subprocess.PIPE, text=True) as child:
            if kill_after is not None:
                time.sleep(kill_after)
                for pid in self.builders():
                    os.kill(pid, signal.SIGKILL)
            error = child.communicate(timeout=60)[1]
        wanted = -9 if how == "kill" else 0
        return "" if child.returncode == wanted or kill_after is not None else f"{child.returncode}: {error[-300:]}"

    def builders(self) -> list[int]:
        """The helper of this machine's directories."""
        mark, found = os.fsencode(self.directory / "run"), []
        for entry in filter(str.isdecimal, os.listdir("/proc")):
            try:
                words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"--helper" in words and mark in words:
                found.append(int(entry))
        return found

    def census(self) -> dict[str, object]:
        """What there is of pods, and of the builder."""
        lines = subprocess.run(
            ["ps", "-eo", "uid=,stat="], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        uids = [line.split()[0] for line in lines if "Z" not in line]
        builders = self.builders()
        return {
            "pods' processes": sum(0x70020000 <= int(uid) < 0x70200000 for uid in uids),
            "mounts": len(Path("/proc/self/mounts").read_text().splitlines()),
            "network namespaces": _namespaces(),
            "cgroups": sum(1 for _ in Path("/sys/fs/cgroup").glob(f"*/nucleus/pod-{_pid_namespace()}-*")),
            "files": len(list((self.directory / "run").rglob("*"))),
            "files in the workspace": len(list(self.work.rglob("*"))),
            "builders": len(builders),
            "descriptors": max(map(_descriptors, builders), default=0),
        }


def _pid_namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


def _descriptors(pid: int) -> int:
    """Open ones; but not the mappings of workspaces' owners, of which one a slot is kept on purpose."""
    found = Path(f"/proc/{pid}/fd")
    return sum(not os.readlink(entry).startswith("user:") for entry in found.iterdir())


def _namespaces() -> int:
    found = set()
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        try:
            found.add(os.readlink(f"/proc/{entry}/ns/net"))
        except OSError:
            continue
    return len(found)


def main() -> int:
    """Print the counts; 1 when something stayed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cycles", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=20)
    given = parser.parse_args()
    if os.geteuid() != 0:
        print("skipped: needs root, to see all of a pod")
        return 0
    if not os.environ.get("NUCLEUS_CYCLES"):  # with processes and mounts of its own: others' are not counted
        apart = ["unshare", "--pid", "--fork", "--mount", "--mount-proc", "--kill-child"]
        os.environ["NUCLEUS_CYCLES"] = "1"
        os.execvp(apart[0], [*apart, sys.executable, "-m", "simulate.pods", *sys.argv[1:]])  # noqa: S606
    from nucleus.store.policies import load_policy_text

    policy, chance, machine = load_policy_text(profile="codegen")[0], random.Random(given.seed), Machine()  # noqa: S311
    wrong = 0
    for _ in range(3):
        machine.cycle(policy, "close", None)
    settled(machine, {})
    before = machine.census()
    kills = set(chance.sample(range(given.cycles), min(given.kills, given.cycles)))
    began = time.monotonic()
    for number in range(given.cycles):
        how = chance.choice(("close", "leave", "kill"))
        error = machine.cycle(policy, how, chance.uniform(0.02, 0.4) if number in kills else None)
        if error:
            wrong += 1
            print(f"cycle {number} ({how}): {error}")
        if (number + 1) % 100 == 0:
            print(f"{number + 1} cycles, {time.monotonic() - began:.0f} s", flush=True)
    machine.cycle(policy, "close", None)
    left = settled(machine, before)
    for name, count in before.items():
        more = "" if left[name] == count else f" -> {left[name]}"
        print(f"  {name}: {count}{more}")
    stayed = {name for name in before if left[name] != before[name]}
    log = f"{machine.directory}/state/audit.jsonl"
    verdict = subprocess.run(
        [str(Path(sys.executable).parent / "nucleus-audit"), "verify", "--consistent", log],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    print(verdict.stdout.strip())
    subprocess.run(
        [str(Path(sys.executable).parent / "nucleus"), "helper", "stop"], env=machine.environment, check=False,
        capture_output=True,
    )  # fmt: skip
    print("nothing is left" if not stayed else f"left: {', '.join(sorted(stayed))}")
    return 1 if stayed or wrong or verdict.returncode else 0


def settled(machine: Machine, wanted: dict[str, object]) -> dict[str, object]:
    """The census, once it is as wanted or ten seconds have gone."""
    for _ in range(40):
        found = machine.census()
        if found == wanted:
            break
        time.sleep(0.25 if wanted else 0.05)
    return found


if __name__ == "__main__":
    sys.exit(main())
