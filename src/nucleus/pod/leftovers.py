"""What a builder that was killed has left, removed by the next one: directories of pods, and cgroups.

Its processes need nobody: they end with it (parent-death signals, closed channels), and mounts and networks with them.

Promises: nothing that belongs to a builder that lives is touched: a pod's directory is locked (flock) for as long as
its builder has it, and a cgroup's name says which process made it, by pid namespace, pid and start time. A cgroup in
which something still lives stays.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import suppress
from functools import cache

from nucleus.errors import SandboxError


class Directories:
    """The directories of the pods below a runtime directory, which is there and ours alone.

    Args:
        path: of all of them.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)

    def make(self, name: str) -> tuple[str, int]:
        """A new one, 0700, and its lock, a descriptor: the caller's to close once it is removed.

        Raises:
            SandboxError: rule ``runtime.dir``.
        """
        path = os.path.join(self._path, name)
        fcntl.flock(self._fd, fcntl.LOCK_SH)  # nobody looks for leftovers before it is locked
        try:
            os.mkdir(path, 0o700)
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SandboxError(f"{path}: {error.strerror}", rule="runtime.dir") from error
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        return path, lock

    def reap(self) -> list[str]:
        """Remove those that no builder has; their names."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return []  # one is being made; the next look will do
        try:
            return [name for name in os.listdir(self._path) if self._removed(os.path.join(self._path, name))]
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _removed(self, path: str) -> bool:
        try:
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
        except BlockingIOError:
            return False
        finally:
            os.close(lock)
        return True


@cache
def mark() -> str:
    """This process, unlike any other on the machine: ``<pid namespace>-<pid>-<start time>``."""
    return f"{_namespace()}-{os.getpid()}-{_start(os.getpid())}"


def lives(maker: str) -> bool:
    """Whether the process of a `mark` lives; True for one that cannot be seen from here."""
    parts = maker.split("-")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts) or int(parts[0]) != _namespace():
        return True
    return _start(int(parts[1])) == int(parts[2])


@cache
def _namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


def _start(pid: int) -> int:
    """Clock ticks from boot to a process's start (proc(5), stat, field 22); -1: there is none, or only its remains."""
    with suppress(OSError):
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            state, *numbers = file.read().rpartition(")")[2].split()
            return -1 if state in "ZXx" else int(numbers[18])
    return -1
