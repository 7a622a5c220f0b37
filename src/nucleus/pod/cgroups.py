"""Memory, process and CPU limits of a compartment by cgroup: v1 hierarchies or a v2 subtree, as this process may use.

Promises: what is available is found by making a group and setting its limits, once; `add` happens before the
compartment is let go, so nothing of it ever runs outside; `remove` leaves nothing. Relies on /proc/self/mountinfo.
Does not: fall back silently: `missing()` names each limit that cannot be had here, and doctor and audit repeat it.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import cache

from nucleus.pod import leftovers

CONTROLLERS = ("memory", "pids", "cpu")
_PARENT = "nucleus"
_CPU_PERIOD_US = 100_000
_REMOVE_TRIES = 50
_SWAP = ("memory.swap.max", "memory.memsw.limit_in_bytes")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one compartment may use.

    Args:
        memory_bytes: resident memory and page cache, tmpfs included.
        pids: processes and threads.
        cpu_percent: of one processor; 200 is two whole ones.
    """

    memory_bytes: int = 2 << 30
    pids: int = 256
    cpu_percent: int = 200


@dataclass(frozen=True, slots=True)
class Group:
    """A cgroup: one directory per v1 controller, one for all of v2's."""

    directories: tuple[str, ...]


@cache
def _bases() -> tuple[dict[str, str], dict[str, str]]:
    """(controller → parent directory to make groups in, controller → why not). Finds out by doing."""
    found: dict[str, str] = {}
    reasons: dict[str, str] = {}
    mounts = _mounts()
    for controller in CONTROLLERS:
        base, unified = _base(controller, mounts)
        if not base:
            reasons[controller] = "no cgroup hierarchy has this controller"
            continue
        try:
            _prepare(base, controller, unified)
            probe = os.path.join(base, f"probe-{os.getpid()}-{controller}")
            os.mkdir(probe, 0o755)
            try:
                _limit(probe, controller, Limits(), unified)
            finally:
                os.rmdir(probe)
            found[controller] = base
        except OSError as error:
            reasons[controller] = f"{base}: {error.strerror}"
    return found, reasons


def _mounts() -> list[tuple[str, str, set[str]]]:
    """(mount point, type, options) of every cgroup hierarchy."""
    rows = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            left, _, right = line.partition(" - ")
            kind, _, options = [*right.split(), "", "", ""][:3]
            if kind in ("cgroup", "cgroup2"):
                rows.append((left.split()[4], kind, set(options.split(","))))
    return rows


def _base(controller: str, mounts: list[tuple[str, str, set[str]]]) -> tuple[str, bool]:
    for point, kind, options in mounts:
        if kind == "cgroup" and controller in options:
            return os.path.join(point, _PARENT), False
    for point, kind, _ in mounts:
        if kind == "cgroup2" and controller in _read(os.path.join(point, "cgroup.controllers")).split():
            # root: beside the system's own slices; a user: in what was delegated to their session.
            own = "" if os.geteuid() == 0 else os.path.dirname(_own_v2())
            return os.path.join(point, own.lstrip("/"), _PARENT), True
    return "", False


def _own_v2() -> str:
    for line in _read("/proc/self/cgroup").splitlines():
        if line.startswith("0::"):
            return line[3:]
    return "/"


def _prepare(base: str, controller: str, unified: bool) -> None:
    if unified:
        _write(os.path.join(os.path.dirname(base), "cgroup.subtree_control"), f"+{controller}")
    os.makedirs(base, 0o755, exist_ok=True)
    if unified:
        _write(os.path.join(base, "cgroup.subtree_control"), f"+{controller}")


def _limit(directory: str, controller: str, limits: Limits, unified: bool) -> None:
    quota = _CPU_PERIOD_US * limits.cpu_percent // 100
    values = {
        ("memory", False): {
            "memory.limit_in_bytes": str(limits.memory_bytes),
            "memory.memsw.limit_in_bytes": str(limits.memory_bytes),
        },
        ("pids", False): {"pids.max": str(limits.pids)},
        ("cpu", False): {"cpu.cfs_period_us": str(_CPU_PERIOD_US), "cpu.cfs_quota_us": str(quota)},
        ("memory", True): {"memory.max": str(limits.memory_bytes), "memory.swap.max": "0"},
        ("pids", True): {"pids.max": str(limits.pids)},
        ("cpu", True): {"cpu.max": f"{quota} {_CPU_PERIOD_US}"},
    }[controller, unified]
    for name, value in values.items():
        path = os.path.join(directory, name)
        if name not in _SWAP or os.path.exists(path):  # absent where the kernel has no swap accounting
            _write(path, value)


def available() -> dict[str, str]:
    """Controller → ``v1``/``v2`` directory used, or ``missing: <why>``."""
    found, reasons = _bases()
    return {name: found.get(name) or f"missing: {reasons[name]}" for name in CONTROLLERS}


def missing() -> list[str]:
    """The limits that cannot be had here, as ``cgroup <controller>``."""
    found, _ = _bases()
    return [f"cgroup {name}" for name in CONTROLLERS if name not in found]


def set_pids(group: Group, pids: int) -> None:
    """Another number of processes and threads, where they are counted at all. Raises OSError."""
    for directory in group.directories:
        path = os.path.join(directory, "pids.max")
        if os.path.exists(path):
            _write(path, str(pids))


def create(name: str, limits: Limits) -> Group:
    """Make a group with these limits in every controller that is available.

    Raises:
        OSError: it cannot be made; what was made of it is gone again.
    """
    found, _ = _bases()
    made: list[str] = []
    try:
        for controller, base in found.items():
            directory = os.path.join(base, name)
            if directory not in made:
                os.mkdir(directory, 0o755)
                made.append(directory)
            _limit(directory, controller, limits, os.path.exists(os.path.join(base, "cgroup.controllers")))
    except OSError:
        for directory in made:
            os.rmdir(directory)
        raise
    return Group(tuple(made))


def add(group: Group, pid: int) -> None:
    """Put a process, and whatever it will start, into the group. Raises OSError."""
    for directory in group.directories:
        _write(os.path.join(directory, "cgroup.procs"), str(pid))


def kill(group: Group) -> None:
    """SIGKILL everything in the group (bounded; the pid namespace's first process is killed first by the caller)."""
    for directory in group.directories:
        if os.path.exists(path := os.path.join(directory, "cgroup.kill")):
            _write(path, "1")
            return
    for _ in range(_REMOVE_TRIES):
        pids = {int(line) for directory in group.directories for line in _procs(directory)}
        if not pids:
            return
        for pid in pids:
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                continue
        time.sleep(0.002)


def remove(group: Group) -> None:
    """Remove the group. Raises OSError when something still lives in it after a bounded wait."""
    for directory in group.directories:
        for last in range(_REMOVE_TRIES):
            try:
                os.rmdir(directory)
                break
            except FileNotFoundError:
                break
            except OSError:
                if last == _REMOVE_TRIES - 1:
                    raise
                time.sleep(0.002)


def reap() -> list[str]:
    """Remove groups of pods whose builder is gone, and in which nothing lives; their directories."""
    gone = []
    for base in {*_bases()[0].values()}:
        for name in os.listdir(base):
            maker = name.removeprefix("pod-").rpartition("-")[0]
            if not name.startswith("pod-") or leftovers.lives(maker):
                continue
            try:
                os.rmdir(os.path.join(base, name))
            except OSError:
                continue  # something lives in it
            gone.append(os.path.join(base, name))
    return gone


def _procs(directory: str) -> list[str]:
    try:
        return _read(os.path.join(directory, "cgroup.procs")).split()
    except FileNotFoundError:
        return []


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read()


def _write(path: str, value: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode("ascii"))
    finally:
        os.close(descriptor)
