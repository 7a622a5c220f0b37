"""The filters: every decision by an interpreter of classic BPF, and the ones that matter by this machine's kernel."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import re
import shutil
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from children import KilledError, code, in_child, raw

from nucleus.kernel import seccomp, syscalls
from nucleus.kernel.numbers import ALLOWED, KNOWN_MAX

MACHINES = ("x86_64", "aarch64")
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
I386, ARM = 0x40000003, 0x40000028
ALLOW, KILL = 0x7FFF0000, 0x80000000
HIGH = 0xDEADBEEF << 32  # what an attacker puts into the half of a register that the kernel does not look at
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
# What a pod may never call (x86_64, aarch64): from the kernel's tables, not from ours.
DENIED = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "process_madvise": (440, 440), "unshare": (272, 97), "setns": (308, 268),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fspick": (433, 433), "mount_setattr": (442, 442), "add_key": (248, 217), "request_key": (249, 218),
    "keyctl": (250, 219), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263), "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "kexec_load": (246, 104), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89),
    "quotactl": (179, 60), "quotactl_fd": (443, 443), "syslog": (103, 116), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171), "sethostname": (170, 161),
    "setdomainname": (171, 162), "vhangup": (153, 58), "lookup_dcookie": (212, 18), "mbind": (237, 235),
    "set_mempolicy": (238, 237), "migrate_pages": (256, 238), "move_pages": (279, 239), "memfd_secret": (447, 447),
}  # fmt: skip
X86_DENIED = {
    "modify_ldt": 154, "iopl": 172, "ioperm": 173, "uselib": 134, "ustat": 136, "sysfs": 139, "_sysctl": 156,
    "create_module": 174, "kexec_file_load": 320,
}  # fmt: skip
NEW_CALLS = {"fchmodat2": 452, "statmount": 457, "lsm_set_self_attr": 460, "open_tree_attr": 467}


def decide(program: bytes, arch: int, number: int, *arguments: int) -> int:
    """Run a filter on one call, as the kernel would (linux/filter.h); returns the action."""
    padded = [*(a & 0xFFFFFFFFFFFFFFFF for a in arguments), 0, 0, 0, 0, 0, 0][:6]
    data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, arch, 0, *padded)
    code_, accumulator, at, steps = [*struct.iter_unpack("=HBBI", program)], 0, 0, 0
    while True:
        operation, jt, jf, k = code_[at]
        at, steps = at + 1, steps + 1
        assert steps < 200, "an ordinary call should not cost more"
        match operation:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, k)
            case 0x54:
                accumulator &= k
            case 0x05:
                at += k
            case 0x15:
                at += jt if accumulator == k else jf
            case 0x35:
                at += jt if accumulator >= k else jf
            case 0x45:
                at += jt if accumulator & k else jf
            case 0x06:
                return k
            case _:
                pytest.fail(f"unknown instruction {operation:#x}")


class Filter:
    """A profile on a machine: `says("socket", 40, 1, 0)` is "allow", "kill" or an errno's name."""

    def __init__(self, profile: Any, machine: str) -> None:
        self.machine = machine
        self.column = MACHINES.index(machine)
        self.program = seccomp.compile_profile(profile, machine)

    def number(self, name: str) -> int | None:
        return (ALLOWED.get(name) or DENIED[name])[self.column]

    def says(self, call: str | int, *arguments: int, arch: int = 0) -> str:
        number = self.number(call) if isinstance(call, str) else call
        assert number is not None
        action = decide(self.program, arch or ARCH[self.machine], number, *arguments)
        if action & 0xFFFF0000 == 0x00050000:
            return errno.errorcode[action & 0xFFFF] if action & 0xFFFF else "pretend"
        return {ALLOW: "allow", KILL: "kill"}[action]


@pytest.fixture(params=[(p, m) for p in ("agent", "hands") for m in MACHINES], ids="-".join)
def rules(request: pytest.FixtureRequest) -> Filter:
    return Filter(*request.param)


# Decisions, by the interpreter


@pytest.mark.parametrize("machine", MACHINES)
def test_the_numbers_are_the_kernels(machine: str) -> None:
    if not HEADERS[machine].exists():
        pytest.skip(f"no kernel header {HEADERS[machine]}")
    found = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", HEADERS[machine].read_text())
    numbers = {name: int(number) for name, number in found}
    if machine == "aarch64":
        numbers["newfstatat"] = numbers.pop("fstatat")  # asm-generic's name for one number
    column = MACHINES.index(machine)
    ours = {name: pair[column] for name, pair in (ALLOWED | DENIED).items() if pair[column] is not None}
    assert ours == {name: numbers.get(name) for name in ours}
    if machine == "x86_64":
        assert {name: numbers[name] for name in X86_DENIED} == X86_DENIED
        assert numbers["openat2"] == 437
        assert numbers["clone3"] == 435


def test_no_call_is_both_allowed_and_denied() -> None:
    assert not ALLOWED.keys() & (DENIED | X86_DENIED | NEW_CALLS).keys()


def test_every_listed_call_is_allowed_with_plain_arguments(rules: Filter) -> None:
    plain = {"socket": (1, 1, 0), "socketpair": (1, 1, 0)}
    for name in ALLOWED:
        if rules.number(name) is None or (name == "openat2" and rules.program != _hands(rules)):
            continue
        assert rules.says(name, *plain.get(name, ())) == "allow", name


def _hands(rules: Filter) -> bytes:
    return seccomp.compile_profile("hands", rules.machine)


def test_nothing_else_is(rules: Filter) -> None:
    allowed = {rules.number(name) for name in ALLOWED}
    for number in range(1024):
        if number not in allowed:
            expected = "ENOSYS" if number > KNOWN_MAX or number == 435 else "EPERM"
            assert rules.says(number) == expected, number


@pytest.mark.parametrize("name", DENIED)
def test_denied_calls(rules: Filter, name: str) -> None:
    assert rules.says(name, *[0] * 6) == "EPERM"


@pytest.mark.parametrize(("name", "number"), X86_DENIED.items())
def test_denied_calls_of_x86(name: str, number: int) -> None:
    assert Filter("agent", "x86_64").says(number) == "EPERM", name


@pytest.mark.parametrize("number", NEW_CALLS.values(), ids=NEW_CALLS)
def test_calls_newer_than_the_review_do_not_exist(rules: Filter, number: int) -> None:
    assert rules.says(number, 0o6777, 0o6777, 0o6777) == "ENOSYS"


@pytest.mark.parametrize("profile", ["agent", "hands", "commands"])
def test_x32_and_other_architectures_kill(profile: str) -> None:
    rules = Filter(profile, "x86_64")
    for name in ("read", "openat", "socket"):
        number = rules.number(name)
        assert number is not None
        assert rules.says(number | 0x40000000) == "kill"
    assert rules.says(0x40000000 + 520) == "kill", "x32's own execve"
    assert rules.says(0xFFFFFFFF) == "kill"
    assert rules.says(4, arch=I386) == "kill", "int 0x80"
    assert rules.says(63, arch=ARCH["aarch64"]) == "kill"
    other = Filter(profile, "aarch64")
    assert other.says(4, arch=ARM) == "kill"
    assert other.says(0, arch=ARCH["x86_64"]) == "kill"


def test_openat2_is_hands_own() -> None:
    for machine in MACHINES:
        assert Filter("hands", machine).says(437) == "allow"
        assert Filter("agent", machine).says(437) == "ENOSYS"
        assert Filter("commands", machine).says(437) == "ENOSYS"
        assert Filter("commands", machine).says("openat") == "allow", "the rest is the filter below's to say"


@pytest.mark.parametrize("family", [f for f in range(-1, 64) if f not in (1, 2, 10)])
def test_socket_families(rules: Filter, family: int) -> None:
    for high in (0, HIGH):
        assert rules.says("socket", high | (family & 0xFFFFFFFF), 1, 0) == "EAFNOSUPPORT"
        assert rules.says("socketpair", high | (family & 0xFFFFFFFF), 1, 0) == "EAFNOSUPPORT"


@pytest.mark.parametrize("family", [2, 10])
def test_inet_types_and_protocols(rules: Filter, family: int) -> None:
    flags = os.O_NONBLOCK | 0o2000000  # SOCK_NONBLOCK | SOCK_CLOEXEC
    for more in (0, flags, HIGH, HIGH | flags):
        assert rules.says("socket", family, more | 1, 0) == "allow"
        assert rules.says("socket", family, more | 1, 6) == "allow"
        assert rules.says("socket", family, more | 2, 17) == "allow"
        assert rules.says("socket", family, more | 3, 0) == "EPERM"
        assert rules.says("socket", family, more | 3, 6) == "EPERM", "raw TCP"
        # Protocol 0 is the type's first protocol: SCTP for SEQPACKET, DCCP for its own type, packet for the oldest.
        for kind in (0, 4, 5, 6, 7, 10, 15):
            assert rules.says("socket", family, more | kind, 0) == "ESOCKTNOSUPPORT"
    for protocol in (1, 2, 33, 58, 115, 132, 136, 255, 262, 0xFFFFFFFF):  # ICMP, DCCP, L2TP, SCTP, UDP-Lite, raw, MPTCP
        for kind in (1, 2):
            assert rules.says("socket", family, kind, protocol) == "EPROTONOSUPPORT"
            assert rules.says("socket", HIGH | family, HIGH | kind, HIGH | protocol) == "EPROTONOSUPPORT"


@pytest.mark.parametrize("call", ["socket", "socketpair"])
def test_unix_types(rules: Filter, call: str) -> None:
    for kind in (1, 2, 5):
        assert rules.says(call, HIGH | 1, HIGH | kind | 0o2000000, 0) == "allow"
    for kind in (0, 3, 4, 6, 10):
        assert rules.says(call, 1, kind, 0) == "ESOCKTNOSUPPORT"


def test_more_kernel_behind_a_socket(rules: Filter) -> None:
    for high in (0, HIGH):
        assert rules.says("setsockopt", 3, high | 6, high | 31) == "ENOPROTOOPT", "TCP_ULP"
        assert rules.says("setsockopt", 3, high | 17, high | 100) == "ENOPROTOOPT", "UDP_ENCAP"
        assert rules.says("sendto", 3, 0, 0, high | 1) == "ENOTSUP"
        assert rules.says("sendmsg", 3, 0, high | 0x4001) == "ENOTSUP"
        assert rules.says("sendmmsg", 3, 0, 1, high | 1) == "ENOTSUP"
    for level, option in ((6, 1), (1, 31), (1, 2), (41, 26), (17, 103), (0, 100)):
        assert rules.says("setsockopt", 3, level, option) == "allow"
    assert rules.says("sendmsg", 3, 0, 0x4000) == "allow", "MSG_NOSIGNAL"


@pytest.mark.parametrize("request_", [0x5412, 0x541C, 0x541D, 0x5423])
def test_terminal_ioctls(rules: Filter, request_: int) -> None:
    for high in (0, HIGH, 1 << 32, 1 << 63):
        assert rules.says("ioctl", 0, high | request_) == "EPERM"


def test_other_ioctls(rules: Filter) -> None:
    for name in (0x5401, 0x5413, 0x541B, 0x5421, 0x5411, 0x540E, 0x40049409):  # TCGETS, FIONREAD, FICLONE …
        assert rules.says("ioctl", 0, name) == "allow"


@pytest.mark.parametrize("flag", [0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000])
def test_clone_makes_no_namespace(rules: Filter, flag: int) -> None:
    assert rules.says("clone", flag | 17) == "EPERM"
    assert rules.says("clone", HIGH | flag) == "EPERM"
    assert rules.says("clone", 0x003D0F00) == "allow", "a thread"
    assert rules.says("clone", 0x01200011) == "allow", "a fork"
    assert rules.says(435) == "ENOSYS", "clone3: its flags are behind a pointer"


def test_personality(rules: Filter) -> None:
    assert rules.says("personality", 0) == "allow"
    assert rules.says("personality", 0xFFFFFFFF) == "allow"
    for persona in (8, 0x0040000, 0x0400000, HIGH | 8):  # 32 bits, ADDR_NO_RANDOMIZE, READ_IMPLIES_EXEC
        assert rules.says("personality", persona) == "EPERM"


MODE_AT = {"chmod": 1, "fchmod": 1, "fchmodat": 2, "creat": 1, "mkdir": 1, "mkdirat": 2, "mknod": 1, "mknodat": 2}


@pytest.mark.parametrize("name", MODE_AT)
def test_setid_bits(rules: Filter, name: str) -> None:
    if rules.number(name) is None:
        return  # aarch64 has only the calls that take a directory
    for bits in (0o4000, 0o2000, 0o6000, 0o4755, 0o2755, HIGH | 0o4755, 0x10000 | 0o4755):
        assert rules.says(name, *[0] * MODE_AT[name], bits) == "EPERM", oct(bits)
    for bits in (0, 0o644, 0o755, 0o1777, HIGH | 0o755):
        assert rules.says(name, *[0] * MODE_AT[name], bits) == "allow", oct(bits)


def test_device_nodes(rules: Filter) -> None:
    for name, at in (("mknod", 1), ("mknodat", 2)):
        if rules.number(name) is None:
            continue
        for kind in (stat.S_IFCHR, stat.S_IFBLK, HIGH | stat.S_IFCHR, 0x70000 | stat.S_IFBLK):
            assert rules.says(name, *[0] * at, kind | 0o600) == "EPERM"
        for kind in (stat.S_IFIFO, stat.S_IFREG, stat.S_IFSOCK):
            assert rules.says(name, *[0] * at, kind | 0o600) == "allow"


@pytest.mark.parametrize(("name", "at"), [("open", 1), ("openat", 2)])
def test_setid_bits_in_open(rules: Filter, name: str, at: int) -> None:
    if rules.number(name) is None:
        return  # aarch64 has only the calls that take a directory

    def says(flags: int, mode: int) -> str:
        return rules.says(name, *[0] * at, flags, mode)

    for flags in (0o100, 0o101, 0o1102, 0o20200000, HIGH | 0o100):  # O_CREAT with others, O_TMPFILE
        assert says(flags, 0o4755) == "EPERM"
        assert says(flags, HIGH | 0o2755) == "EPERM"
        assert says(flags, 0o1755) == "allow"
    for flags in (0, 1, 2, 0o2000000, 0o200000):
        assert says(flags, 0xFFFFFFFF) == "allow", "no mode is read: garbage in its register is not judged"


def test_core_limits_are_only_said_to_change(rules: Filter) -> None:
    for call in [("prlimit64", 0, 4, 1 << 40, 0), ("prlimit64", 0, 4, 1, 0), ("setrlimit", 4, 1)]:
        if rules.number(call[0]) is not None:
            assert rules.says(*call) == "pretend", call
    assert rules.says("prlimit64", 0, 4, 0, 1) == "allow"
    assert rules.says("prlimit64", 0, 7, 1, 0) == "allow"
    assert rules.says("fcntl", 3, 1024, 1) == "EPERM"
    assert rules.says("fcntl", 3, 1025) == "allow"


def test_an_unknown_machine_or_profile_is_an_error() -> None:
    with pytest.raises(OSError) as caught:
        seccomp.compile_profile("agent", "riscv64")
    assert caught.value.errno == errno.ENOSYS
    with pytest.raises(ValueError):
        seccomp.compile_profile("comands")  # type: ignore[arg-type]


def test_the_program_is_one_the_kernel_takes_and_cheap() -> None:
    for machine in MACHINES:
        assert len(seccomp.compile_profile("agent", machine)) // 8 < 4096


# The kernel


needs_machine = pytest.mark.skipif(platform.machine() not in MACHINES, reason="filters are for x86_64 and aarch64")


def under(profile: str, work: Callable[[], Any], *, uid: int | None = None) -> Any:
    """What `work` returns in a child under the filters that the profile's name means in a pod."""

    def confined() -> Any:
        syscalls.set_no_new_privs()
        seccomp.install(seccomp.compile_profile(profile if profile in ("agent", "guest") else "hands"))
        if profile == "commands":
            seccomp.install(seccomp.compile_profile("commands"))
        return work()

    return in_child(confined, uid=uid)


def number(name: str) -> int:
    found = DENIED[name][MACHINES.index(platform.machine())]
    assert found is not None
    return found


def _unix_socket_in_the_way() -> int:
    left, right = socket.socketpair()
    with left, right:
        left.send(b"x")
        return len(right.recv(2))


REAL: dict[str, tuple[Callable[[], int], int]] = {
    "vsock": (lambda: code(lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)), errno.EAFNOSUPPORT),
    "packet": (lambda: code(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)), errno.EAFNOSUPPORT),
    "netlink": (lambda: code(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)), errno.EAFNOSUPPORT),
    "alg": (lambda: code(lambda: socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET)), errno.EAFNOSUPPORT),
    "raw": (lambda: code(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)), errno.EPERM),
    "raw6": (lambda: code(lambda: socket.socket(socket.AF_INET6, socket.SOCK_RAW, 58)), errno.EPERM),
    "old packet": (lambda: code(lambda: socket.socket(socket.AF_INET, 10)), errno.ESOCKTNOSUPPORT),
    "sctp by type": (lambda: code(lambda: socket.socket(socket.AF_INET, 5)), errno.ESOCKTNOSUPPORT),
    "ping": (lambda: code(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 1)), errno.EPROTONOSUPPORT),
    "io_uring_setup": (lambda: raw(425, 8, ctypes.create_string_buffer(120)), errno.EPERM),
    "keyctl": (lambda: raw(number("keyctl"), 1, 0), errno.EPERM),
    "unshare": (lambda: code(lambda: syscalls.unshare(syscalls.CLONE_NEWUSER)), errno.EPERM),
    "clone": (lambda: raw(56 if platform.machine() == "x86_64" else 220, 0x10000011, 0, 0, 0, 0), errno.EPERM),
    "clone high": (
        lambda: raw(56 if platform.machine() == "x86_64" else 220, 1 << 40 | 0x10000011, 0, 0, 0, 0),
        errno.EPERM,
    ),
    "clone3": (lambda: raw(435, struct.pack("=Q10Q", 0x10000000, *[0] * 10), 88), errno.ENOSYS),
    "ptrace": (lambda: raw(number("ptrace"), 0, 0, 0, 0), errno.EPERM),
    "mount": (lambda: code(lambda: syscalls.mount("tmpfs", "/tmp", "tmpfs")), errno.EPERM),
    "open_tree": (lambda: code(lambda: syscalls.open_tree(syscalls.AT_FDCWD, "/", 1)), errno.EPERM),
    "bpf": (lambda: raw(number("bpf"), 0, 0, 0), errno.EPERM),
    "userfaultfd": (lambda: raw(number("userfaultfd"), 0), errno.EPERM),
    "open_by_handle_at": (lambda: raw(number("open_by_handle_at"), -100, 0, 0), errno.EPERM),
    "fchmodat2": (lambda: raw(452, -100, b"/nowhere", 0o4755, 0), errno.ENOSYS),
    "kernel tls": (lambda: code(lambda: socket.socket().setsockopt(6, 31, b"tls")), errno.ENOPROTOOPT),
    "out of band": (lambda: code(lambda: socket.socketpair()[0].send(b"x", socket.MSG_OOB)), errno.EOPNOTSUPP),
    "kcmp": (lambda: raw(number("kcmp"), 1, 1, 0, 0, 0), errno.EPERM),
}


@needs_machine
@pytest.mark.parametrize("name", REAL)
def test_the_kernel_refuses(name: str) -> None:
    work, expected = REAL[name]
    assert under("agent", work) == expected
    assert under("commands", work) == expected


@needs_machine
@pytest.mark.parametrize("high", [0, 1 << 32])
def test_tiocsti_is_refused_on_a_terminal_of_ones_own(high: int) -> None:
    ioctl = 16 if platform.machine() == "x86_64" else 29

    def work() -> list[int]:
        os.setsid()
        _, slave = os.openpty()
        fcntl.ioctl(slave, 0x540E, 0)  # TIOCSCTTY: it is our own terminal, so the kernel's own check passes
        sticks = raw(ioctl, slave, high | 0x5412, b"x")
        os.set_blocking(slave, False)
        size = fcntl.ioctl(slave, 0x5413, bytes(8))
        return [sticks, len(size)]

    assert under("agent", work) == [errno.EPERM, 8]


@needs_machine
@pytest.mark.parametrize("profile", ["commands", "guest"])
def test_no_setuid_file_by_any_door(tmp_path: Path, profile: str) -> None:
    def work() -> dict[str, int]:
        os.umask(0)
        os.chdir(tmp_path)
        open("plain", "w").close()
        how = struct.pack("=QQQ", os.O_CREAT | os.O_WRONLY, 0o4755, 0)
        with open("plain") as file:
            inner = {"fchmod": code(lambda: os.fchmod(file.fileno(), 0o2755))}
        return inner | {
            "chmod": code(lambda: os.chmod("plain", 0o4755)),
            "open": code(lambda: os.open("new", os.O_CREAT | os.O_WRONLY, 0o4755)),
            "tmpfile": code(lambda: os.open(".", os.O_TMPFILE | os.O_WRONLY, 0o4755)),
            "mkdir": code(lambda: os.mkdir("directory", 0o2755)),
            "mknod": code(lambda: os.mknod("node", stat.S_IFREG | 0o4755)),
            "openat2": raw(437, -100, b"by-openat2", how, 24),
        }

    found = under(profile, work)
    assert found.pop("openat2") == errno.ENOSYS
    assert set(found.values()) == {errno.EPERM}, found
    assert not [path for path in tmp_path.iterdir() if path.stat().st_mode & 0o6000]


@needs_machine
def test_openat2_works_for_hands(tmp_path: Path) -> None:
    from nucleus.kernel.openat2 import RESOLVE_BENEATH, openat2

    (tmp_path / "file").write_text("hands")

    def work() -> str:
        root = os.open(tmp_path, os.O_PATH)
        return os.read(openat2(root, b"file", os.O_RDONLY, resolve=RESOLVE_BENEATH), 9).decode()

    assert under("hands", work) == "hands"


@needs_machine
@pytest.mark.skipif(platform.machine() != "x86_64", reason="x32 and int 0x80 are x86's")
def test_x32_kills() -> None:
    with pytest.raises(KilledError) as caught:
        under("agent", lambda: raw(0x40000000 | 39))
    assert caught.value.signum == 31


@needs_machine
@pytest.mark.skipif(platform.machine() != "x86_64", reason="x32 and int 0x80 are x86's")
def test_int_0x80_kills(tmp_path: Path) -> None:
    """The 32-bit door of a 64-bit program: its numbers mean other calls."""
    if not shutil.which("gcc"):
        pytest.skip("no gcc here")
    source = tmp_path / "door.c"
    source.write_text('int main(void){int r;__asm__("int $0x80":"=a"(r):"a"(20));return r>0?7:8;}')
    subprocess.run(["gcc", "-o", tmp_path / "door", source], check=True, timeout=30)
    plain = subprocess.run([tmp_path / "door"], check=False, timeout=10).returncode
    if plain != 7:
        pytest.skip("this kernel has no 32-bit calls")
    assert under("agent", lambda: subprocess.run([tmp_path / "door"], check=False).returncode) == -31


@needs_machine
def test_without_no_new_privs_an_ordinary_user_gets_an_error() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become an ordinary user")
    program = seccomp.compile_profile("agent")
    assert in_child(lambda: code(lambda: seccomp.install(program)), uid=65534) == errno.EACCES


@needs_machine
def test_a_filter_cannot_be_lifted_by_another() -> None:
    """The program in the pod may add filters; the strictest of all answers wins."""
    allow_all = struct.pack("=HBBI", 0x06, 0, 0, ALLOW)

    def work() -> int:
        seccomp.install(allow_all)
        return code(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))

    assert under("agent", work) == errno.EAFNOSUPPORT


def run(*argv: str) -> Callable[[], list[Any]]:
    def work() -> list[Any]:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=15, check=False)
        return [done.returncode, done.stdout.strip()[-200:], done.stderr.strip()[-500:]]

    return work


THREADS = (
    "import threading, subprocess, socket, asyncio\n"
    "t = [threading.Thread(target=sum, args=([1],)) for _ in range(4)]\n"
    "[x.start() for x in t]; [x.join() for x in t]\n"
    "a, b = socket.socketpair(); a.send(b'1'); b.recv(1)\n"
    "s = socket.create_server(('127.0.0.1', 0)); c = socket.create_connection(s.getsockname()); s.accept()\n"
    "subprocess.run(['/bin/true'], check=True)\n"
    "asyncio.run(asyncio.sleep(0))\n"
    "print('fine')\n"
)
NODE = (
    "const fs=require('fs'),{Worker}=require('worker_threads');"
    "fs.readFile('/etc/hostname',()=>{new Worker('0',{eval:true}).on('exit',()=>console.log('fine'))})"
)


@needs_machine
@pytest.mark.parametrize("profile", ["agent", "commands"])
def test_python_runs(profile: str) -> None:
    assert under(profile, run(sys.executable, "-W", "ignore", "-c", THREADS)) == [0, "fine", ""]


@needs_machine
def test_node_runs() -> None:
    node = shutil.which("node")
    if not node:
        pytest.skip("no node here")
    done = under("agent", run(node, "-e", NODE))
    assert done[:2] == [0, "fine"], done


@needs_machine
def test_git_and_gcc_run(tmp_path: Path) -> None:
    git, gcc = shutil.which("git"), shutil.which("gcc")
    if not git or not gcc:
        pytest.skip("no git or no gcc here")
    script = (
        f"set -e; cd {tmp_path}; export HOME={tmp_path}\n"
        "printf '#include <pthread.h>\\n#include <stdio.h>\\nvoid*f(void*x){return x;}"
        'int main(void){pthread_t t;if(pthread_create(&t,0,f,0))return 1;pthread_join(t,0);puts("fine");}\' > a.c\n'
        "gcc -pthread -o a a.c\n"
        "git init -q . ; git add a.c ; git -c user.name=n -c user.email=e commit -qm one ; git gc -q\n"
        "git log -1 --format=%s\n"
        "umask 022; mkdir -p x/y; cp -a a x/y/; tar cf t.tar x; rm -r x; tar xf t.tar; test -x x/y/a\n"
        "./a\n"
    )
    assert under("commands", run("/bin/sh", "-c", script)) == [0, "one\nfine", ""]


@needs_machine
def test_unix_sockets_work() -> None:
    assert under("agent", _unix_socket_in_the_way) == 1
