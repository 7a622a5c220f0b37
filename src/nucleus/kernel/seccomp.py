"""System call filters as raw classic BPF (seccomp(2), linux/filter.h).

Profiles
- ``agent``: what ordinary programs need (compilers, git, node, python, go, JVM), with the argument rules below.
- ``hands``: the same and `openat2`, which hands needs. Its arguments are behind a pointer: the other two get ENOSYS.
- ``guest``: for the host's side of a guest kernel (runsc, a virtual machine's monitor), which needs more: refused is
  what rules 4 and 6 say, other architectures, `openat2`, io_uring and calls newer than the list of ``agent``.
- ``commands``: stacked on ``hands`` for what hands starts: `openat2` is ENOSYS. The strictest of stacked answers wins.

Promises of ``agent`` and ``hands``: an allow list; other architectures (x32 included) kill the process. Refused:
 1. namespaces (unshare, setns, clone with any CLONE_NEW*; clone3 is ENOSYS, so that libc falls back to clone), mounts,
    keyrings, io_uring, bpf, perf, ptrace and its kin, userfaultfd, file handles, modules, setting time, memory policy;
 2. sockets other than unix, inet and inet6 (so vsock, packet, netlink, alg, xdp); types other than stream and datagram
    (unix also seqpacket): raw, and SOCK_SEQPACKET or SOCK_DCCP, which with protocol 0 would be SCTP and DCCP;
    protocols other than TCP and UDP; TCP_ULP (kernel TLS and its kin), UDP_ENCAP and MSG_OOB: more kernel
    than a pod without a way out can need;
 3. TIOCSTI, TIOCLINUX, TIOCCONS and TIOCSETD (compared on the 32 bits that the kernel uses);
 4. setuid and setgid bits on files and directories, device nodes: what is left in the workspace is on the host's disk;
 5. every personality but the default;
 6. file leases: a host program that opens a leased file waits for up to 45 s (fs.lease-break-time).
A change of RLIMIT_CORE is said to be done and is not: programs that hold secrets ask for no core files and insist, and
with the limit of 1 that a pod starts with there is none, not even where core_pattern pipes it into a program of the
host's root, which a limit of 0 does not stop (core(5)).
Relies on no_new_privs being set. Does not: confine files (Landlock, mounts) or reach (the netns); keep *hands itself*
from making a setuid file (openat2's mode is behind a pointer).
"""

from __future__ import annotations

import ctypes
import os
import struct
from functools import cache
from typing import Literal

from nucleus.kernel.numbers import ALLOWED, KNOWN_MAX

Profile = Literal["agent", "hands", "commands", "guest"]
Machine = Literal["x86_64", "aarch64"]

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000
_KILL_PROCESS, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_EPERM, _ENOSYS = 1, 38
# The other answers, by label: what each call says of an argument that it does not know.
_ERRNOS = {"eprotonosupport": 93, "esocktnosupport": 94, "eopnotsupp": 95, "eafnosupport": 97, "enoprotoopt": 92}
_LD, _JA, _JEQ, _JGE, _JSET, _AND, _RET = 0x20, 0x05, 0x15, 0x35, 0x45, 0x54, 0x06
_NR, _ARCH, _ARGS = 0, 4, 16  # offsets in struct seccomp_data
_CLONE3 = 435
_OPENAT2 = 437
_IO_URING = (425, 426, 427)

_CLONE_NEW_ANY = 0x7E020000
_SETID_BITS = 0o6000
_O_CREAT, _O_TMPFILE = 0o100, 0o20000000
_IOCTLS = (0x5412, 0x541C, 0x541D, 0x5423)  # TIOCSTI, TIOCLINUX, TIOCCONS, TIOCSETD
_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10
_SOCK_STREAM, _SOCK_DGRAM, _SOCK_RAW, _SOCK_SEQPACKET = 1, 2, 3, 5
_PROTOCOLS = (0, 6, 17)  # default, TCP, UDP
_SECCOMP_SET_MODE_FILTER = 1
_SECCOMP = {"x86_64": 317, "aarch64": 277}

# Which argument is the mode, for calls that take one unconditionally.
_MODE_ARGUMENT = {"chmod": 1, "fchmod": 1, "fchmodat": 2, "creat": 1, "mkdir": 1, "mkdirat": 2}
_NODE_ARGUMENT = {"mknod": 1, "mknodat": 2}
_OPEN_ARGUMENTS = {"open": (1, 2), "openat": (2, 3)}  # flags, mode
_RLIMIT_ARGUMENTS = {"setrlimit": (0, None), "prlimit64": (1, 2)}  # resource, new limit where it may be missing
_RLIMIT_CORE = 4
_F_SETLEASE = 1024
_SEND_FLAGS = {"sendto": 3, "sendmsg": 2, "sendmmsg": 3}
_MSG_OOB = 1
_OPTIONS = ((6, 31), (17, 100))  # (SOL_TCP, TCP_ULP), (SOL_UDP, UDP_ENCAP)


class _Assembler:
    """Instructions with labels; far jumps by JA, since conditional offsets have 8 bits."""

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int | str]] = []
        self._labels: dict[str, int] = {}
        self._unique = 0

    def label(self, name: str) -> None:
        self._labels[name] = len(self._code)

    def fresh(self) -> str:
        self._unique += 1
        return f".{self._unique}"

    def load(self, offset: int) -> None:
        self._code.append((_LD, 0, 0, offset))

    def mask(self, bits: int) -> None:
        self._code.append((_AND, 0, 0, bits))

    def jump(self, target: str) -> None:
        self._code.append((_JA, 0, 0, target))

    def when(self, test: int, value: int, target: str) -> None:
        """Jump to `target` when the accumulator passes `test` against `value`, else fall through."""
        self._code.append((test, 0, 1, value))
        self.jump(target)

    def ret(self, action: int) -> None:
        self._code.append((_RET, 0, 0, action))

    def assemble(self) -> bytes:
        out = []
        for index, (code, jt, jf, k) in enumerate(self._code):
            value = self._labels[k] - index - 1 if isinstance(k, str) else k
            out.append(struct.pack("=HBBI", code, jt, jf, value))
        return b"".join(out)


def _argument(index: int) -> int:
    return _ARGS + 8 * index  # the low half: both machines are little endian


@cache
def compile_profile(name: Profile, machine: str = "") -> bytes:
    """The filter's instructions (8 bytes each) for `machine` (default: this one).

    Raises:
        OSError: the machine is not supported.
        ValueError: there is no such profile.
    """
    if name not in ("agent", "hands", "commands", "guest"):
        raise ValueError("seccomp: no such profile")
    machine = machine or os.uname().machine
    if machine not in _AUDIT_ARCH:
        raise OSError(_ENOSYS, f"seccomp: machine {machine} is not supported")
    asm = _Assembler()
    asm.load(_ARCH)
    asm.when(_JEQ, _AUDIT_ARCH[machine], "native")
    asm.ret(_KILL_PROCESS)
    asm.label("native")
    asm.load(_NR)
    if machine == "x86_64":
        asm.when(_JGE, _X32_BIT, "kill")
    if name != "hands":
        asm.when(_JEQ, _OPENAT2, "enosys")
    if name == "commands":
        asm.ret(_ALLOW)
    elif name == "guest":
        _all_but_what_stays(asm, machine)
    else:
        _allow_list(asm, machine)
    asm.label("enosys")
    asm.ret(_ERRNO | _ENOSYS)
    asm.label("kill")
    asm.ret(_KILL_PROCESS)
    return asm.assemble()


def _all_but_what_stays(asm: _Assembler, machine: str) -> None:
    """The ``guest`` profile: whatever it does, it leaves no setuid file and no device, and breaks no lease."""
    column = 0 if machine == "x86_64" else 1
    judged = {*_MODE_ARGUMENT, *_NODE_ARGUMENT, *_OPEN_ARGUMENTS, "fcntl"}
    present = {
        name: number for name, pair in ALLOWED.items() if name in judged and (number := pair[column]) is not None
    }
    for number in _IO_URING:
        asm.when(_JEQ, number, "enosys")
    asm.when(_JGE, KNOWN_MAX + 1, "enosys")
    for name, number in sorted(present.items()):
        asm.when(_JEQ, number, name)
    asm.jump("allow")
    _lease_block(asm)
    _mode_blocks(asm, set(present))
    for label, action in (("allow", _ALLOW), ("eperm", _ERRNO | _EPERM)):
        asm.label(label)
        asm.ret(action)


def _allow_list(asm: _Assembler, machine: str) -> None:
    column = 0 if machine == "x86_64" else 1
    numbers = {name: pair[column] for name, pair in ALLOWED.items()}
    asm.when(_JEQ, _CLONE3, "enosys")
    special = {
        "socket",
        "socketpair",
        "ioctl",
        "clone",
        "personality",
        "setsockopt",
        "fcntl",
        *_RLIMIT_ARGUMENTS,
        *_SEND_FLAGS,
        *_MODE_ARGUMENT,
        *_NODE_ARGUMENT,
        *_OPEN_ARGUMENTS,
    }
    for name in sorted(special):
        if (number := numbers.get(name)) is not None:
            asm.when(_JEQ, number, name)
    plain = sorted(n for name, n in numbers.items() if n is not None and name not in special)
    _search(asm, _ranges(plain))
    _blocks(asm, numbers)
    for label, action in (("allow", _ALLOW), ("eperm", _ERRNO | _EPERM), ("pretend", _ERRNO)):
        asm.label(label)
        asm.ret(action)
    for label, code in _ERRNOS.items():
        asm.label(label)
        asm.ret(_ERRNO | code)
    asm.label("refuse")
    asm.load(_NR)
    asm.when(_JGE, KNOWN_MAX + 1, "enosys")
    asm.ret(_ERRNO | _EPERM)


def _ranges(numbers: list[int]) -> list[tuple[int, int]]:
    """Ascending numbers to half-open ranges."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][1] == number:
            found[-1] = (found[-1][0], number + 1)
        else:
            found.append((number, number + 1))
    return found


def _search(asm: _Assembler, ranges: list[tuple[int, int]]) -> None:
    """Binary search: about log2(n) comparisons a call, against n for a list."""
    if len(ranges) == 1:
        low, high = ranges[0]
        asm.when(_JGE, high, "refuse")
        asm.when(_JGE, low, "allow")
        asm.jump("refuse")
        return
    middle = len(ranges) // 2
    right = asm.fresh()
    asm.when(_JGE, ranges[middle][0], right)
    _search(asm, ranges[:middle])
    asm.label(right)
    _search(asm, ranges[middle:])


def _blocks(asm: _Assembler, numbers: dict[str, int | None]) -> None:
    """The argument rules; each block starts at the label of its call and ends in a jump."""
    _socket_blocks(asm)

    asm.label("ioctl")
    asm.load(_argument(1))
    for request in _IOCTLS:
        asm.when(_JEQ, request, "eperm")
    asm.jump("allow")

    asm.label("clone")
    asm.load(_argument(0))
    asm.when(_JSET, _CLONE_NEW_ANY, "eperm")
    asm.jump("allow")

    asm.label("personality")
    asm.load(_argument(0))
    asm.when(_JEQ, 0, "allow")
    asm.when(_JEQ, 0xFFFFFFFF, "allow")
    asm.jump("eperm")

    _lease_block(asm)
    present = {name for name, number in numbers.items() if number is not None}
    _limit_blocks(asm, present)
    _mode_blocks(asm, present)


def _lease_block(asm: _Assembler) -> None:
    asm.label("fcntl")
    asm.load(_argument(1))
    asm.when(_JEQ, _F_SETLEASE, "eperm")
    asm.jump("allow")


def _limit_blocks(asm: _Assembler, present: set[str]) -> None:
    for name, (resource, pointer) in _RLIMIT_ARGUMENTS.items():
        if name not in present:
            continue
        asm.label(name)
        asm.load(_argument(resource))
        asm.when(_JEQ, _RLIMIT_CORE, f"{name}.core")
        asm.jump("allow")
        asm.label(f"{name}.core")
        if pointer is None:
            asm.jump("pretend")
            continue
        for half in (0, 4):
            asm.load(_argument(pointer) + half)
            asm.when(_JGE, 1, "pretend")
        asm.jump("allow")


def _socket_blocks(asm: _Assembler) -> None:
    asm.label("socketpair")
    asm.load(_argument(0))
    asm.when(_JEQ, _AF_UNIX, "socket.unix")
    asm.jump("eafnosupport")
    asm.label("socket")
    asm.load(_argument(0))
    asm.when(_JEQ, _AF_UNIX, "socket.unix")
    asm.when(_JEQ, _AF_INET, "socket.inet")
    asm.when(_JEQ, _AF_INET6, "socket.inet")
    asm.jump("eafnosupport")
    asm.label("socket.inet")
    asm.load(_argument(1))
    asm.mask(0xF)  # SOCK_NONBLOCK and SOCK_CLOEXEC share the argument
    for kind in (_SOCK_STREAM, _SOCK_DGRAM):
        asm.when(_JEQ, kind, "socket.protocol")
    asm.when(_JEQ, _SOCK_RAW, "eperm")  # as the kernel says it to whoever lacks CAP_NET_RAW
    asm.jump("esocktnosupport")
    asm.label("socket.protocol")
    asm.load(_argument(2))
    for protocol in _PROTOCOLS:
        asm.when(_JEQ, protocol, "allow")
    asm.jump("eprotonosupport")
    asm.label("socket.unix")
    asm.load(_argument(1))
    asm.mask(0xF)
    for kind in (_SOCK_STREAM, _SOCK_DGRAM, _SOCK_SEQPACKET):
        asm.when(_JEQ, kind, "allow")
    asm.jump("esocktnosupport")

    asm.label("setsockopt")
    asm.load(_argument(1))
    for level, _ in _OPTIONS:
        asm.when(_JEQ, level, f"setsockopt.{level}")
    asm.jump("allow")
    for level, option in _OPTIONS:
        asm.label(f"setsockopt.{level}")
        asm.load(_argument(2))
        asm.when(_JEQ, option, "enoprotoopt")
        asm.jump("allow")

    for name, flags in _SEND_FLAGS.items():
        asm.label(name)
        asm.load(_argument(flags))
        asm.when(_JSET, _MSG_OOB, "eopnotsupp")
        asm.jump("allow")


def _mode_blocks(asm: _Assembler, present: set[str]) -> None:
    for name, (flags, mode) in _OPEN_ARGUMENTS.items():
        if name in present:
            # Without O_CREAT or O_TMPFILE there is no mode: whatever is in its register is not ours to judge.
            asm.label(name)
            asm.load(_argument(flags))
            asm.when(_JSET, _O_CREAT | _O_TMPFILE, f"{name}.mode")
            asm.jump("allow")
            asm.label(f"{name}.mode")
            asm.load(_argument(mode))
            asm.when(_JSET, _SETID_BITS, "eperm")
            asm.jump("allow")
    for name, mode in (_MODE_ARGUMENT | _NODE_ARGUMENT).items():
        if name in present:
            asm.label(name)
            asm.load(_argument(mode))
            asm.when(_JSET, _SETID_BITS, "eperm")
            if name in _NODE_ARGUMENT:
                asm.mask(0o170000)
                asm.when(_JEQ, 0o020000, "eperm")
                asm.when(_JEQ, 0o060000, "eperm")
            asm.jump("allow")


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def install(program: bytes) -> None:
    """Put a compiled filter on this thread and what it starts, for good.

    Raises:
        OSError: no_new_privs is not set (EACCES), or the kernel has no seccomp filters.
    """
    record = _Program(len(program) // 8, program)
    number = _SECCOMP.get(os.uname().machine)
    if number is None:
        raise OSError(_ENOSYS, "seccomp: machine is not supported")
    if _libc.syscall(
        ctypes.c_long(number), ctypes.c_long(_SECCOMP_SET_MODE_FILTER), ctypes.c_long(0), ctypes.byref(record)
    ):
        code = ctypes.get_errno()
        raise OSError(code, f"seccomp: filter refused: {os.strerror(code)}")
