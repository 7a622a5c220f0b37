"""System call filters as raw classic BPF (seccomp(2), linux/filter.h).

Profiles
- ``agent``: what ordinary programs need (compilers, git, node, python, go, JVM), with the argument rules below.
- ``hands``: the same; hands itself needs `openat2`, whose arguments a filter cannot see.
- ``commands``: stacked on ``hands`` for what hands starts: `openat2` is ENOSYS. The strictest of stacked answers wins.

Promises of ``agent`` and ``hands``: an allow list; other architectures (x32 included) kill the process. Refused:
namespaces (unshare, setns, clone with any CLONE_NEW*; clone3 is ENOSYS, so that libc falls back to clone), mounts,
keyrings, io_uring, bpf, perf, ptrace and its kin, userfaultfd, file handles, modules, setting time; sockets other than
unix, inet and inet6 (so vsock, packet, netlink, alg, xdp), raw sockets, protocols other than TCP and UDP; TIOCSTI,
TIOCLINUX, TIOCCONS and TIOCSETD (compared on the 32 bits that the kernel uses); setuid and setgid bits on files and
directories; device nodes; every personality but the default.
Relies on no_new_privs being set. Does not: confine files (Landlock, mounts) or reach (the netns).
"""

from __future__ import annotations

import ctypes
import platform
import struct
from functools import cache
from typing import Literal

from nucleus.kernel.numbers import ALLOWED, KNOWN_MAX

Profile = Literal["agent", "hands", "commands"]
Machine = Literal["x86_64", "aarch64"]

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000
_KILL_PROCESS, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_EPERM, _ENOSYS, _EPROTONOSUPPORT, _EAFNOSUPPORT = 1, 38, 93, 97
_LD, _JA, _JEQ, _JGE, _JSET, _AND, _RET = 0x20, 0x05, 0x15, 0x35, 0x45, 0x54, 0x06
_NR, _ARCH, _ARGS = 0, 4, 16  # offsets in struct seccomp_data
_CLONE3 = 435
_OPENAT2 = 437

_CLONE_NEW_ANY = 0x7E020000
_SETID_BITS = 0o6000
_O_CREAT, _O_TMPFILE = 0o100, 0o20000000
_IOCTLS = (0x5412, 0x541C, 0x541D, 0x5423)  # TIOCSTI, TIOCLINUX, TIOCCONS, TIOCSETD
_AF_UNIX, _AF_INET, _AF_INET6 = 1, 2, 10
_SOCK_RAW, _SOCK_PACKET = 3, 10
_SECCOMP_SET_MODE_FILTER = 1
_SECCOMP = {"x86_64": 317, "aarch64": 277}

# Which argument is the mode, for calls that take one unconditionally.
_MODE_ARGUMENT = {"chmod": 1, "fchmod": 1, "fchmodat": 2, "creat": 1, "mkdir": 1, "mkdirat": 2}
_NODE_ARGUMENT = {"mknod": 1, "mknodat": 2}
_OPEN_ARGUMENTS = {"open": (1, 2), "openat": (2, 3)}  # flags, mode


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
    """
    machine = machine or platform.machine()
    if machine not in _AUDIT_ARCH:
        raise OSError(_ENOSYS, f"seccomp: machine {machine} is not supported")
    asm = _Assembler()
    asm.load(_ARCH)
    asm.when(_JEQ, _AUDIT_ARCH[machine], "native")
    asm.ret(_KILL_PROCESS)
    asm.label("native")
    asm.load(_NR)
    if name == "commands":
        asm.when(_JEQ, _OPENAT2, "enosys")
        asm.ret(_ALLOW)
    else:
        _allow_list(asm, machine)
    asm.label("enosys")
    asm.ret(_ERRNO | _ENOSYS)
    return asm.assemble()


def _allow_list(asm: _Assembler, machine: str) -> None:
    column = 0 if machine == "x86_64" else 1
    numbers = {name: pair[column] for name, pair in ALLOWED.items()}
    if machine == "x86_64":
        asm.when(_JGE, _X32_BIT, "kill")
    asm.when(_JEQ, _CLONE3, "enosys")
    special = {
        "socket",
        "socketpair",
        "ioctl",
        "clone",
        "personality",
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
    for label, action in (("allow", _ALLOW), ("eperm", _ERRNO | _EPERM), ("kill", _KILL_PROCESS)):
        asm.label(label)
        asm.ret(action)
    for label, code in (("eprotonosupport", _EPROTONOSUPPORT), ("eafnosupport", _EAFNOSUPPORT)):
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
    """The argument rules; each block ends in a jump or a return."""

    def begin(name: str) -> bool:
        if numbers.get(name) is None:
            return False
        asm.label(name)
        return True

    begin("socket")
    asm.load(_argument(0))
    asm.when(_JEQ, _AF_UNIX, "socket.type")
    asm.when(_JEQ, _AF_INET, "socket.protocol")
    asm.when(_JEQ, _AF_INET6, "socket.protocol")
    asm.jump("eafnosupport")
    asm.label("socket.protocol")
    asm.load(_argument(2))
    for protocol in (0, 6, 17):  # default, TCP, UDP
        asm.when(_JEQ, protocol, "socket.type")
    asm.jump("eprotonosupport")
    asm.label("socket.type")
    asm.load(_argument(1))
    asm.mask(0xF)  # SOCK_NONBLOCK and SOCK_CLOEXEC share the argument
    asm.when(_JEQ, _SOCK_RAW, "eperm")
    asm.when(_JEQ, _SOCK_PACKET, "eperm")
    asm.jump("allow")

    begin("socketpair")
    asm.load(_argument(0))
    asm.when(_JEQ, _AF_UNIX, "allow")
    asm.jump("eafnosupport")

    begin("ioctl")
    asm.load(_argument(1))
    for request in _IOCTLS:
        asm.when(_JEQ, request, "eperm")
    asm.jump("allow")

    begin("clone")
    asm.load(_argument(0))
    asm.when(_JSET, _CLONE_NEW_ANY, "eperm")
    asm.jump("allow")

    begin("personality")
    asm.load(_argument(0))
    asm.when(_JEQ, 0, "allow")
    asm.when(_JEQ, 0xFFFFFFFF, "allow")
    asm.jump("eperm")

    for name, (flags, mode) in _OPEN_ARGUMENTS.items():
        if begin(name):
            # Without O_CREAT or O_TMPFILE there is no mode: whatever is in its register is not ours to judge.
            asm.load(_argument(flags))
            asm.when(_JSET, _O_CREAT | _O_TMPFILE, f"{name}.mode")
            asm.jump("allow")
            asm.label(f"{name}.mode")
            asm.load(_argument(mode))
            asm.when(_JSET, _SETID_BITS, "eperm")
            asm.jump("allow")
    for name, mode in (_MODE_ARGUMENT | _NODE_ARGUMENT).items():
        if begin(name):
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
    number = _SECCOMP.get(platform.machine())
    if number is None:
        raise OSError(_ENOSYS, "seccomp: machine is not supported")
    if _libc.syscall(
        ctypes.c_long(number), ctypes.c_long(_SECCOMP_SET_MODE_FILTER), ctypes.c_long(0), ctypes.byref(record)
    ):
        code = ctypes.get_errno()
        raise OSError(code, "seccomp: filter refused")
