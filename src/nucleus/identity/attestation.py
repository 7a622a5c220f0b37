"""Who is at the other end of a unix socket: what the kernel says of the process that connected.

Promises: `Caller` is one process from its connect to `close`: a pid that is used again is noticed, never mistaken; a
fact that cannot be had is absent, so that no selector about it holds. What the caller says of itself is not read.
Relies on: SO_PEERCRED (ids at the time of connect(2)); SO_PEERPIDFD (Linux 6.5), which names the process and not a
number; /proc. For other users' executables: CAP_SYS_PTRACE, and CAP_DAC_READ_SEARCH to hash what only root may read.
Does not: hold off a process of the same uid that controls the caller (ptrace, LD_PRELOAD), or one that connects, hands
the socket to another process and runs the registered program before we accept: a path or a hash tells programs of one
user apart, it is no boundary between them. A uid and a pod are.

Steps:
1. credentials at connect; a peer that is not visible here (pid 0: another pid namespace) is refused
2. a pidfd: of the very process that connected, where the kernel gives it; else opened by pid (a window: a process
   that ended before we accepted could have been replaced by one of the same uid)
3. the pid of the pidfd, its start time and its executable's inode are read
4. every fact is read from /proc, then 3 again: the same, and still alive, or nothing was learnt
5. `facts` does 3 and 4 anew for each request: another executable than at the accept ends the connection (exec)
"""

from __future__ import annotations

import hashlib
import os
import select
import socket
import stat
import struct
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress

from nucleus.errors import UnauthenticatedError
from nucleus.identity.entries import MAX_PATH_BYTES, Facts

SO_PEERPIDFD = 77  # asm-generic/socket.h; not in the standard library
MAX_EXECUTABLE_BYTES = 512 << 20
_CREDENTIALS = struct.Struct("=iII")
_HASHES = 256  # executables whose hash is remembered
_BLOCK = 1 << 20
Identity = tuple[int, int]  # device and inode
PodOf = Callable[[Identity], str | None]
"""The pod of a pid namespace (by the namespace's device and inode); None: no pod's."""


class Caller:
    """The process behind a connection; see the module. Close it: it holds a descriptor.

    Args:
        sock: connected unix stream socket, as accepted.
        pod_of: which pod a pid namespace is.

    Raises:
        UnauthenticatedError: rule ``attest.*``: the process is gone, unknown here, or changing.
    """

    def __init__(self, sock: socket.socket, pod_of: PodOf = lambda _: None) -> None:
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        self.pid, self.uid, self.gid = _CREDENTIALS.unpack(raw)  # 1
        self._pod_of = pod_of
        if self.pid <= 0:
            raise _refuse("pid", "the caller is in a pid namespace that is not seen from here")
        self._pidfd = _peer_pidfd(sock, self.pid)  # 2
        try:
            self._start = self._start_time()  # 3
            self._executable = self._inode()
            self.facts()
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<Caller pid {self.pid} uid {self.uid}>"

    def close(self) -> None:
        """Give the descriptor back."""
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1

    def alive(self) -> bool:
        """Whether the process has not ended (a pidfd is readable once it has)."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return not poll.poll(0)

    def facts(self, *, hashed: bool = False) -> Facts:
        """What is true of the caller now.

        Args:
            hashed: also read its executable; else `Facts.sha256` is "" (or None where it cannot be).

        Raises:
            UnauthenticatedError: it has ended, or is another program than when it connected.
        """
        groups = self._groups()
        path = self._path()
        digest: str | None = None
        if self._executable is not None:
            digest = self._hash() if hashed else ""
        pod = self._pod()
        self._check_same()  # 4, 5
        return Facts(self.uid, self.gid, groups, path, digest, pod, self.pid)

    # -- 3 and 4 ---------------------------------------------------------------------------------------------------

    def _check_same(self) -> None:
        if self._start_time() != self._start or not self.alive():
            raise _refuse("ended", "the calling process has ended")
        if self._inode() != self._executable:
            raise _refuse("exec", "the calling process runs another program than when it connected")

    def _read(self, name: str) -> str:
        try:
            with open(f"/proc/{self.pid}/{name}", encoding="utf-8", errors="surrogateescape") as file:
                return file.read(65_536)
        except OSError as error:
            raise _refuse("ended", "the calling process has ended") from error

    def _start_time(self) -> int:
        """Field 22 of proc(5) stat, clock ticks since boot; the name before it may hold blanks and parentheses."""
        try:
            return int(self._read("stat").rpartition(")")[2].split()[19])
        except (IndexError, ValueError) as error:
            raise _refuse("ended", "the calling process cannot be read") from error

    def _inode(self) -> tuple[int, int, int, int] | None:
        """The executable's device, inode, size and mtime; None where it may not be seen."""
        try:
            found = os.stat(f"/proc/{self.pid}/exe")
        except (PermissionError, FileNotFoundError):
            return None
        except OSError as error:
            raise _refuse("ended", "the calling process has ended") from error
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    def _groups(self) -> frozenset[int]:
        for line in self._read("status").splitlines():
            if line.startswith("Groups:"):
                return frozenset(int(one) for one in line.split()[1:])
        return frozenset()

    def _path(self) -> str | None:
        """The executable's name, where the same name is the same file for us.

        Else a caller with a mount namespace of its own (any user may have one) would choose the name it is known by.
        """
        try:
            name = os.readlink(f"/proc/{self.pid}/exe")
            here = os.stat(name, follow_symlinks=False)
        except OSError:
            return None
        if self._executable is None or (here.st_dev, here.st_ino) != self._executable[:2]:
            return None
        return name if len(os.fsencode(name)) <= MAX_PATH_BYTES and name.isprintable() else None

    def _pod(self) -> str | None:
        try:
            found = os.stat(f"/proc/{self.pid}/ns/pid")
        except OSError:
            return None
        return self._pod_of((found.st_dev, found.st_ino))

    def _hash(self) -> str | None:
        """SHA-256 of the executable's content, remembered by inode, size and times."""
        try:
            fd = os.open(f"/proc/{self.pid}/exe", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        with open(fd, "rb", buffering=0) as file:
            before = _version(fd)
            if before is None or before in _hashes:
                return _hashes.get(before) if before is not None else None
            digest = hashlib.sha256()
            while block := file.read(_BLOCK):
                digest.update(block)
            if _version(fd) != before:
                return None  # written meanwhile, by who may write what runs: no program that one can name
        _hashes[before] = digest.hexdigest()
        while len(_hashes) > _HASHES:
            _hashes.popitem(last=False)
        return _hashes[before]


_Version = tuple[int, int, int, int, int]
_hashes: OrderedDict[_Version, str] = OrderedDict()


def _version(fd: int) -> _Version | None:
    """What changes when a file's content does; None: nothing that we hash."""
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_EXECUTABLE_BYTES:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _peer_pidfd(sock: socket.socket, pid: int) -> int:
    """A pidfd of the process that connected.

    Raises:
        UnauthenticatedError: it has ended, or is no more the one with this pid.
    """
    try:
        fd = sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
        os.set_inheritable(fd, False)
    except OSError:
        # Before Linux 6.5, or it has ended (then this fails too).
        try:
            fd = os.pidfd_open(pid)
        except OSError as error:
            raise _refuse("ended", "the calling process has ended") from error
    if _pid_of(fd) != pid:
        os.close(fd)
        raise _refuse("ended", "the calling process has ended")
    return fd


def _pid_of(pidfd: int) -> int:
    """The pid of a pidfd in our pid namespace; -1: it has ended and been waited for."""
    with suppress(OSError, ValueError):
        with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as file:
            for line in file:
                if line.startswith("Pid:"):
                    return int(line.split()[1])
    return -1


def pid_namespace(pid: int) -> Identity | None:
    """The pid namespace of a process, as `PodOf` takes it; None: it is gone or may not be seen."""
    try:
        found = os.stat(f"/proc/{pid}/ns/pid")
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _refuse(rule: str, message: str) -> UnauthenticatedError:
    return UnauthenticatedError(message, rule=f"attest.{rule}")
