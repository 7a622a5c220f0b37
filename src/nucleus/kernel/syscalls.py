"""Namespaces, mounts, credentials and keyrings by raw system call.

Promises: every function raises OSError with errno and its own name; no function takes a path with an embedded NUL
(ctypes would cut it there and act on another path). Relies on ctypes and the kernel; x86_64 and aarch64.
Does not: decide an order; the steps of a sandbox are `pod.compartment`'s.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct

CLONE_NEWTIME = 0x00000080
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_NOSYMFOLLOW = 256
MS_BIND = 4096
MS_MOVE = 8192
MS_REC = 16384
MS_SILENT = 32768
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MNT_DETACH = 2

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
AT_SYMLINK_NOFOLLOW = 0x100
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x00000004
MOVE_MOUNT_T_EMPTY_PATH = 0x00000040
MOUNT_ATTR_RDONLY = 0x00000001
MOUNT_ATTR_NOSUID = 0x00000002
MOUNT_ATTR_NODEV = 0x00000004
MOUNT_ATTR_NOEXEC = 0x00000008
MOUNT_ATTR_IDMAP = 0x00100000
MOUNT_ATTR_NOSYMFOLLOW = 0x00200000

CAP_DAC_READ_SEARCH = 2
CAP_SYS_PTRACE = 19

_PR_SET_PDEATHSIG = 1
_PR_GET_DUMPABLE = 3
_PR_SET_DUMPABLE = 4
_PR_SET_KEEPCAPS = 8
_PR_SET_NAME = 15
_PR_CAPBSET_DROP = 24
_PR_SET_SECUREBITS = 28
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_PR_GET_NO_NEW_PRIVS = 39
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_KEYCTL_JOIN_SESSION_KEYRING = 1
_LINUX_CAPABILITY_VERSION_3 = 0x20080522
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1

# The calls numbered alike on both; the rest below.
_COMMON = {"open_tree": 428, "move_mount": 429, "close_range": 436, "mount_setattr": 442}
_BY_MACHINE = {
    "x86_64": {"pivot_root": 155, "capget": 125, "capset": 126, "keyctl": 250},
    "aarch64": {"pivot_root": 41, "capget": 90, "capset": 91, "keyctl": 219},
}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _number(name: str) -> int:
    if name in _COMMON:
        return _COMMON[name]
    table = _BY_MACHINE.get(os.uname().machine)
    if table is None:
        raise OSError(38, f"{name}: machine {os.uname().machine} is not supported")
    return table[name]


def _fail(name: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{name}: {os.strerror(code)}")


def _checked(name: str, result: int) -> int:
    if result < 0:
        raise _fail(name)
    return result


def _call(name: str, *arguments: object) -> int:
    """syscall(2) with every integer passed as a full register."""
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _checked(name, _libc.syscall(ctypes.c_long(_number(name)), *wide))


def _path(path: str) -> bytes:
    data = os.fsencode(path)
    if b"\0" in data:
        raise OSError(22, "NUL in a path")
    return data


def unshare(flags: int) -> None:
    """unshare(2)."""
    _checked("unshare", _libc.unshare(ctypes.c_int(flags)))


def setns(fd: int, nstype: int = 0) -> None:
    """setns(2)."""
    _checked("setns", _libc.setns(ctypes.c_int(fd), ctypes.c_int(nstype)))


def mount(source: str, target: str, fstype: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2). Empty `fstype` and `data` are passed as NULL."""
    result = _libc.mount(
        _path(source),
        _path(target),
        _path(fstype) if fstype else None,
        ctypes.c_ulong(flags),
        _path(data) if data else None,
    )
    _checked(f"mount {target}", result)


def umount2(target: str, flags: int = MNT_DETACH) -> None:
    """umount2(2)."""
    _checked("umount2", _libc.umount2(_path(target), ctypes.c_int(flags)))


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2)."""
    _call("pivot_root", _path(new_root), _path(put_old))


def open_tree(dirfd: int, path: str, flags: int) -> int:
    """open_tree(2); returns a descriptor."""
    return _call("open_tree", dirfd, _path(path), flags)


def move_mount(from_fd: int, from_path: str, to_fd: int, to_path: str, flags: int) -> None:
    """move_mount(2)."""
    _call("move_mount", from_fd, _path(from_path), to_fd, _path(to_path), flags)


def mount_setattr(
    dirfd: int,
    path: str,
    flags: int,
    attr_set: int = 0,
    attr_clr: int = 0,
    propagation: int = 0,
    userns_fd: int = 0,
) -> None:
    """mount_setattr(2) with struct mount_attr {u64 attr_set, attr_clr, propagation, userns_fd}."""
    attributes = struct.pack("=QQQQ", attr_set, attr_clr, propagation, userns_fd)
    _call("mount_setattr", dirfd, _path(path), flags, attributes, len(attributes))


def _prctl(name: str, *arguments: int) -> int:
    padded = [*arguments, 0, 0, 0, 0][:5]
    return _checked(name, _libc.prctl(ctypes.c_int(padded[0]), *(ctypes.c_ulong(a) for a in padded[1:])))


def set_no_new_privs() -> None:
    """No exec gains privileges from here on, in this thread and what it starts."""
    _prctl("PR_SET_NO_NEW_PRIVS", _PR_SET_NO_NEW_PRIVS, 1)


def get_no_new_privs() -> bool:
    """Whether no_new_privs is set."""
    return _prctl("PR_GET_NO_NEW_PRIVS", _PR_GET_NO_NEW_PRIVS) == 1


def set_dumpable(dumpable: bool) -> None:
    """Not dumpable: no core, no ptrace and no /proc/<pid>/{mem,environ,fd} for others of the same uid."""
    _prctl("PR_SET_DUMPABLE", _PR_SET_DUMPABLE, int(dumpable))


def get_dumpable() -> bool:
    """Whether this process is dumpable."""
    return _prctl("PR_GET_DUMPABLE", _PR_GET_DUMPABLE) == 1


def set_pdeathsig(signum: int) -> None:
    """Be sent `signum` when the parent thread ends. Cleared by a change of uid: set it afterwards."""
    _prctl("PR_SET_PDEATHSIG", _PR_SET_PDEATHSIG, int(signum))


def set_name(name: str) -> None:
    """The thread's name (15 bytes count)."""
    data = ctypes.create_string_buffer(name.encode("ascii", "replace")[:15])
    _checked("PR_SET_NAME", _libc.prctl(ctypes.c_int(_PR_SET_NAME), data, 0, 0, 0))


def set_child_subreaper() -> None:
    """Orphans below us are reparented to us."""
    _prctl("PR_SET_CHILD_SUBREAPER", _PR_SET_CHILD_SUBREAPER, 1)


def drop_bounding_set() -> None:
    """Empty the capability bounding set (needs CAP_SETPCAP in the own user namespace)."""
    for capability in range(64):
        try:
            _prctl("PR_CAPBSET_DROP", _PR_CAPBSET_DROP, capability)
        except OSError as error:
            if error.errno == 22:  # beyond the last capability that this kernel knows
                return
            raise


def drop_all_capabilities() -> None:
    """Clear the ambient, effective, permitted and inheritable sets for good."""
    try:
        _prctl("PR_CAP_AMBIENT", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    except OSError as error:
        if error.errno != 22:  # a kernel without ambient capabilities has none to clear
            raise
    header = struct.pack("=Ii", _LINUX_CAPABILITY_VERSION_3, 0)
    _call("capset", header, bytes(24))


def keep_capabilities(uid: int, *capabilities: int) -> None:
    """Become `uid` (and gid, without groups) for good and keep these capabilities alone (root only)."""
    _prctl("PR_SET_KEEPCAPS", _PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)  # clears the effective set, and with it whatever is not kept below
    low = sum(1 << capability for capability in capabilities)
    header = struct.pack("=Ii", _LINUX_CAPABILITY_VERSION_3, 0)
    _call("capset", header, struct.pack("=6I", low, low, 0, 0, 0, 0))


def keep_capabilities_over_exec() -> None:
    """Every permitted capability becomes inheritable and ambient, so that a program that is run has it, too."""
    header = struct.pack("=Ii", _LINUX_CAPABILITY_VERSION_3, 0)
    data = ctypes.create_string_buffer(24)
    _call("capget", header, data)
    effective_0, permitted_0, _, effective_1, permitted_1, _ = struct.unpack("=6I", data.raw)
    both = (effective_0, permitted_0, permitted_0, effective_1, permitted_1, permitted_1)
    _call("capset", header, struct.pack("=6I", *both))
    for capability in range(64):
        if (permitted_0 | permitted_1 << 32) >> capability & 1:
            _prctl("PR_CAP_AMBIENT", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability)


def close_range(first: int, last: int = 0x7FFFFFFF) -> None:
    """close_range(2): close every descriptor from `first` to `last`."""
    if first <= last:
        _call("close_range", first, last, 0)


def power_off() -> None:
    """reboot(2), RB_POWER_OFF: for the first process of a virtual machine."""
    _libc.reboot(ctypes.c_int(0x4321FEDC))


def join_new_session_keyring() -> None:
    """A fresh, anonymous session keyring in place of the inherited one; nothing on a kernel without keyrings."""
    try:
        _call("keyctl", _KEYCTL_JOIN_SESSION_KEYRING, 0)
    except OSError as error:
        if error.errno != 38:  # ENOSYS: there is none to inherit; EPERM (a container's filter) is the caller's to know
            raise


def bring_loopback_up() -> None:
    """Set `lo` up in the current network namespace."""
    import socket  # weight: the zygote only

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sh14x", b"lo", 0)
        (flags,) = struct.unpack_from("h", fcntl.ioctl(sock, _SIOCGIFFLAGS, request), 16)
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))
