"""What this machine can do for a pod, found by doing it: each probe in a forked child of its own, with a time bound.

Promises: nothing that a probe does reaches this process, and nothing stays behind (no mount, process, namespace or
file; of cgroups, the parent group that `nucleus.pod.cgroups` keeps); a probe that hangs or is killed is a fact that is
not so, with the reason. Probes act as the pod will: as root from an unprivileged uid of the pods' range (where a
machine's ban on unprivileged user namespaces bites root's pods too), as an ordinary user from inside a user namespace
of one's own, nested once more.
Relies on: fork, so a process without threads. Does not: make a pod (the builder does), boot a guest (a KVM that
opens is not yet one that boots), or decide by version numbers and file names what can be tried.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nucleus.kernel import syscalls
from nucleus.pod.backend import rung
from nucleus.pod.guests import GUESTS
from nucleus.pod.runtime import POD_UID, SLOTS
from nucleus.pod.spec import LADDER

PROBE_SECONDS = 5.0  # of one probe, from fork to answer
PROBE_UID = POD_UID + 2 * SLOTS - 2  # the last slot's agent: the last that a real pod would take
ANSWER_BYTES = 65_536
PYTHON = "/usr/bin/python3"
_KVM_GET_API_VERSION = 0xAE00

NAMESPACES = {
    "mnt": syscalls.CLONE_NEWNS,
    "pid": syscalls.CLONE_NEWPID,
    "net": syscalls.CLONE_NEWNET,
    "ipc": syscalls.CLONE_NEWIPC,
    "uts": syscalls.CLONE_NEWUTS,
    "cgroup": syscalls.CLONE_NEWCGROUP,
}
# Without one of these no namespaces pod can be made; `pod.compartment` has no step that would do without it.
REQUIRED = frozenset(
    {"user namespaces", "mount api", "proc mount", "idmapped mounts", "seccomp", "openat2", "pidfd", "session keyring"}
    | {f"{kind} namespace" for kind in NAMESPACES}
)
_CONTAINER = (
    "In a container: start it with its seccomp and AppArmor profiles and its masks over /proc off, or use the host."
)
_SWITCHES = (
    # (file, the value that forbids, what to do)
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "AppArmor restricts them here (Ubuntu's default): `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`, "
        "or an AppArmor profile with `userns,` for this python.",
    ),
    (
        "/proc/sys/kernel/unprivileged_userns_clone",
        "0",
        "`sysctl -w kernel.unprivileged_userns_clone=1` (Debian's switch).",
    ),
    ("/proc/sys/user/max_user_namespaces", "0", "`sysctl -w user.max_user_namespaces=15000`."),
)


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that this machine can or cannot do.

    Args:
        name: stable, of the list in `detect`.
        ok: it was done here.
        detail: what was seen, or why not.
        needed_for: what lacks without it.
        next_step: what the person can do about it; "" when it is so, or when nothing can be done.
    """

    name: str
    ok: bool
    detail: str
    needed_for: str
    next_step: str = ""

    @property
    def required(self) -> bool:
        """Whether no namespaces pod can be made without it."""
        return self.name in REQUIRED

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {
            "name": self.name,
            "ok": self.ok,
            "detail": self.detail,
            "needed_for": self.needed_for,
            "required": self.required,
            "next_step": self.next_step,
        }


@dataclass(frozen=True, slots=True)
class Choice:
    """What `auto` takes.

    Args:
        backend: a name of `LADDER`, or "" when no pod can be made.
        why: one sentence.
        not_stronger: each stronger backend, and why it is not taken.
        missing: the required facts that are not so.
    """

    backend: str
    why: str
    not_stronger: dict[str, str]
    missing: tuple[Fact, ...] = ()


def detect(workspace: str | None = None) -> list[Fact]:
    """Try everything, in about a third of a second.

    Args:
        workspace: the directory for which to try idmapped mounts (as root); None: /tmp, and the fact says so.
    """
    root = os.geteuid() == 0
    users = _user_namespaces(root)
    facts = [_root(root), users]
    step = _CONTAINER if users.ok else "See user namespaces."
    for kind in NAMESPACES:
        facts.append(_fact(f"{kind} namespace", lambda kind=kind: _try_namespace(kind, root), "every pod", step))  # type: ignore[misc]
    old = "A kernel of 5.12 or newer has it; a container may hide it: use the host."
    facts += [
        _fact("mount api", _try_mount_api, "every pod: its own root", old),
        _fact("proc mount", _try_proc, "every pod: a /proc with its own processes only", step),
        _idmapped(workspace, root),
        _fact("seccomp", _try_seccomp, "every pod: system call filters", _CONTAINER),
        _landlock(),
        _fact("openat2", _try_openat2, "every pod: files cannot lead out of the workspace", old),
        _fact("pidfd", _try_pidfd, "every pod: killing exactly what was started", old),
        _fact("session keyring", _try_keyring, "every pod: no inherited keys", _CONTAINER),
    ]
    return facts + _cgroups(root) + _groups(root) + [_kvm(), _python(), _git()]


def backend_choice(facts: Sequence[Fact], floor: str = "") -> Choice:
    """Which backend `auto` takes on a machine with these facts, and why not a stronger one; fails closed.

    Args:
        facts: of `detect`.
        floor: the weakest backend that the policy accepts; "" or "none": any.
    """
    kvm = next((fact for fact in facts if fact.name == "kvm"), None)
    guest = f"KVM here: {kvm.detail}" if kvm else "KVM was not tried"
    ready = [name for name in LADDER if name == LADDER[0] or name in GUESTS]
    reasons = {"firecracker": f"; {guest}", "qemu": f"; {guest}", "gvisor": ""}
    stronger = {name: f"not in this version{reasons[name]}" for name in reversed(LADDER) if name not in ready}
    stronger |= {name: GUESTS[name].lacking() or "by request, or by the policy's floor" for name in reversed(ready[1:])}
    seen = {fact.name for fact in facts}
    unseen = [Fact(name, False, "was not tried", "every pod") for name in sorted(REQUIRED - seen)]
    missing = (*(fact for fact in facts if fact.required and not fact.ok), *unseen)
    if floor not in ("", "none", *LADDER):
        return Choice("", f"the policy's floor {floor!r} is no backend's name", stronger, missing)
    if floor not in ("", "none", "namespaces") and (reason := _lacking(floor)):
        return Choice("", f"the policy asks for at least {floor}: {reason}", stronger, missing)
    if missing:
        names = ", ".join(fact.name for fact in missing)
        return Choice("", f"a namespaces pod needs what is missing here: {names}", stronger, missing)
    return Choice(rung("", floor), "all that a namespaces pod needs was done here", stronger)


def startable(names: Sequence[str]) -> dict[str, str]:
    """Why no pod of each of these can be asked for here; "" where one can (whether it starts, a pod shows)."""
    return {name: "" if name == "namespaces" else _lacking(name) for name in names}


def _lacking(name: str) -> str:
    guest = GUESTS.get(name)
    return guest.lacking() if guest is not None else "not in this version"


# Probes' frame


class _FailedError(Exception):
    """A probe's own finding: the thing is there and does not do what it should."""


def _fact(name: str, work: Callable[[], str], needed_for: str, next_step: str = "") -> Fact:
    ok, detail = probe(work)
    return Fact(name, ok, detail, needed_for, "" if ok else next_step)


def probe(work: Callable[[], str], seconds: float = PROBE_SECONDS) -> tuple[bool, str]:
    """Run `work` in a forked child: (True, what it returns) or (False, why not). Its process group is killed after."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _child(work, writer)
    os.close(writer)
    try:
        data = _read_all(reader, seconds)
    finally:
        os.close(reader)
        # The child's group is killed while the child is still ours to wait for: its number names nobody else.
        for kill, target in ((os.killpg, pid), (os.kill, pid)):
            try:
                kill(target, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue
        _, status = os.waitpid(pid, 0)
    if data is None:
        return False, f"no answer in {seconds:g} s"
    try:
        ok, detail = json.loads(data)
    except ValueError:
        return False, f"the probe ended with {_how(status)}"
    return bool(ok), str(detail)


def _child(work: Callable[[], str], writer: int) -> None:
    """Never returns."""
    answer: tuple[bool, str] = (False, "")
    try:
        os.setpgid(0, 0)
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        answer = True, work()
    except OSError as error:
        answer = False, error.strerror or str(error)
    except BaseException as error:  # noqa: BLE001 -- whatever it is, the parent reports it
        answer = False, str(error) or type(error).__name__
    try:
        os.write(writer, json.dumps(answer).encode() + b"\n")
    finally:
        os._exit(0)


def _read_all(reader: int, seconds: float) -> bytes | None:
    deadline = time.monotonic() + seconds
    data = b""
    # To the end of the line, not of the pipe: a process that the probe left behind holds the pipe open.
    while len(data) < ANSWER_BYTES and not data.endswith(b"\n"):
        if not select.select([reader], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return None
        more = os.read(reader, ANSWER_BYTES)
        if not more:
            break
        data += more
    return data


def _how(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _as_pod(root: bool) -> None:
    """Be where a compartment starts: the pod's uid, or "root" of the ordinary user's own namespace."""
    if root:
        os.setgroups([])
        os.setresgid(PROBE_UID, PROBE_UID, PROBE_UID)
        os.setresuid(PROBE_UID, PROBE_UID, PROBE_UID)
    else:
        _enter_user_namespace(0)


def _enter_user_namespace(inner: int) -> None:
    uid, gid = os.geteuid(), os.getegid()
    syscalls.set_dumpable(True)  # after a change of uid /proc/self is root's, and with it our own id maps
    syscalls.unshare(syscalls.CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{inner} {uid} 1"), ("gid_map", f"{inner} {gid} 1")):
        _write(f"/proc/self/{name}", text)


def _compartment() -> None:
    """Where a compartment's first process is: inside its own user namespace, with every capability there."""
    _as_pod(os.geteuid() == 0)
    _enter_user_namespace(1000)


def _pid_one(work: Callable[[], None]) -> None:
    """Run `work` as the first process of a new pid namespace; its failure is ours."""
    syscalls.unshare(syscalls.CLONE_NEWPID)
    pid = os.fork()
    if pid == 0:
        code = 255
        try:
            syscalls.set_pdeathsig(signal.SIGKILL)
            work()
            code = 0
        except OSError as error:
            code = min(error.errno or 254, 254)
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise OSError(code, os.strerror(code)) if 0 < code < 254 else _FailedError("its first process failed")


# The probes. Each runs in a child; what it returns is the fact's detail.


def _root(root: bool) -> Fact:
    needed_for = "uids of their own for gate, authority and each pod"
    if root:
        return Fact("root", True, "uid 0", needed_for)
    detail = f"uid {os.geteuid()}: all of our processes share it; the pods are kept from them by namespaces alone"
    return Fact("root", False, detail, needed_for, "Run Nucleus as root to separate them by uid as well.")


def _user_namespaces(root: bool) -> Fact:
    def work() -> str:
        _as_pod(root)
        _enter_user_namespace(1000)
        # Some systems let the namespace be made and take its capabilities away: use one.
        syscalls.unshare(syscalls.CLONE_NEWUTS)
        socket.sethostname("pod")
        return "made by a pod's uid" if root else "made by this user, one inside the other"

    ok, detail = probe(work)
    return Fact("user namespaces", ok, detail, "every pod", "" if ok else userns_next_step())


def userns_next_step(switches: Sequence[tuple[str, str, str]] = _SWITCHES) -> str:
    """What to do where user namespaces are refused: the switch that forbids them, when one is seen to."""
    for path, forbids, advice in switches:
        try:
            with open(path, encoding="ascii") as file:
                if file.read(16).strip() == forbids:
                    return advice
        except (OSError, ValueError):
            continue
    return _CONTAINER


def _try_namespace(kind: str, root: bool) -> str:
    if kind == "net" and root:  # the zygote makes it, and is root
        return _try_net()
    _compartment()
    if kind == "net":
        return _try_net()
    if kind == "pid":

        def first() -> None:
            if os.getpid() != 1:
                raise OSError(errno.ESRCH, "not the first process")

        _pid_one(first)
        return "new"
    before = os.readlink(f"/proc/self/ns/{kind}")
    syscalls.unshare(NAMESPACES[kind])
    if os.readlink(f"/proc/self/ns/{kind}") == before:
        raise _FailedError("unshare did nothing")
    return "new"


def _try_net() -> str:
    syscalls.unshare(syscalls.CLONE_NEWNET)
    syscalls.bring_loopback_up()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), 1):
        return "new, with its own loopback"


def _private_mounts() -> None:
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)


def _try_mount_api() -> str:
    if os.geteuid() != 0:
        _enter_user_namespace(0)
    _private_mounts()
    flags = syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC | syscalls.AT_RECURSIVE
    tree = syscalls.open_tree(syscalls.AT_FDCWD, "/usr", flags)
    attributes = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
    syscalls.mount_setattr(tree, "", syscalls.AT_EMPTY_PATH | syscalls.AT_RECURSIVE, attr_set=attributes)
    syscalls.mount("tmpfs", "/tmp", "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "mode=0755,size=1m")  # noqa: S108
    os.mkdir("/tmp/usr")  # noqa: S108 -- in a mount namespace of our own
    syscalls.move_mount(tree, "", syscalls.AT_FDCWD, "/tmp/usr", syscalls.MOVE_MOUNT_F_EMPTY_PATH)  # noqa: S108
    if not os.statvfs("/tmp/usr").f_flag & os.ST_RDONLY:  # noqa: S108
        raise _FailedError("a read-only tree is writable")
    return "open_tree, mount_setattr, move_mount"


def _try_proc() -> str:
    def first() -> None:
        _private_mounts()
        syscalls.mount("tmpfs", "/tmp", "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "mode=0755,size=1m")  # noqa: S108
        os.mkdir("/tmp/proc")  # noqa: S108 -- in a mount namespace of our own
        flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
        syscalls.mount("proc", "/tmp/proc", "proc", flags)  # noqa: S108
        if [name for name in os.listdir("/tmp/proc") if name.isdigit()] != ["1"]:  # noqa: S108
            raise OSError(errno.EBADMSG, "it shows other processes")

    _compartment()
    _pid_one(first)
    return "mounted in a new pid namespace; shows its own processes only"


def _idmapped(workspace: str | None, root: bool) -> Fact:
    needed_for = "a workspace, as root: its owner on disk whoever writes"
    if not root:
        return Fact("idmapped mounts", True, "not needed by an ordinary user", needed_for)
    path = workspace or "/tmp"  # noqa: S108 -- nothing is made in it
    work = lambda: _try_idmap(path)  # noqa: E731
    step = "Put the workspace on ext4, xfs, btrfs or tmpfs, or run Nucleus as an ordinary user."
    ok, detail = probe(work)
    return Fact("idmapped mounts", ok, f"{path}: {detail}", needed_for, "" if ok else step)


def _try_idmap(path: str) -> str:
    owner = os.stat(path)
    mapping = _mapping(owner.st_uid, owner.st_gid)
    _private_mounts()
    directory = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    tree = syscalls.open_tree(
        directory, "", syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC | syscalls.AT_EMPTY_PATH
    )
    syscalls.mount_setattr(tree, "", syscalls.AT_EMPTY_PATH, attr_set=syscalls.MOUNT_ATTR_IDMAP, userns_fd=mapping)
    if os.fstat(tree).st_uid != PROBE_UID:
        raise _FailedError("the mount does not map its owner")
    return "done"


def _mapping(uid: int, gid: int) -> int:
    """A user namespace in which only `uid` and `gid` exist, as the pod's; held by the descriptor."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            syscalls.set_pdeathsig(signal.SIGKILL)
            syscalls.unshare(syscalls.CLONE_NEWUSER)
            os.write(writer, b".")
            signal.pause()
        finally:
            os._exit(1)
    os.close(writer)
    try:
        if os.read(reader, 1) != b".":
            raise _FailedError("no user namespace for the id map")
        _write(f"/proc/{pid}/uid_map", f"{uid} {PROBE_UID} 1")
        _write(f"/proc/{pid}/gid_map", f"{gid} {PROBE_UID} 1")
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(reader)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _try_seccomp() -> str:
    from nucleus.kernel import seccomp

    syscalls.set_no_new_privs()
    seccomp.install(seccomp.compile_profile("hands"))
    seccomp.install(seccomp.compile_profile("commands"))
    try:
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close()
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            return "filters installed and stacked, and seen to refuse"
    raise _FailedError("the filter is installed and does not refuse")


def _landlock() -> Fact:
    from nucleus.kernel import landlock

    def work() -> str:
        syscalls.set_no_new_privs()
        done = landlock.restrict([("/usr", landlock.READ)], scope=True)
        try:
            os.listdir("/")
        except PermissionError:
            scoped = "" if done.scoped else "; signals and abstract sockets are not scoped before ABI 6"
            return f"ABI {done.abi}{scoped}"
        raise _FailedError("the domain is entered and does not confine")

    step = "Add landlock to the kernel's `lsm=` list (Linux 5.13 or newer). Pods start without it, and say so."
    return _fact("landlock", work, "a second layer around a pod's files", step)


def _try_openat2() -> str:
    from nucleus.kernel.openat2 import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, openat2

    root = os.open("/usr", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS
    openat2(root, b"bin", os.O_PATH, resolve=resolve)
    try:
        openat2(root, b"../etc", os.O_PATH, resolve=resolve)
    except OSError as error:
        if error.errno == errno.EXDEV:
            return "stays beneath"
    raise _FailedError("a path left its root")


def _try_pidfd() -> str:
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    try:
        pidfd = os.pidfd_open(pid)
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        gone = select.select([pidfd], [], [], 1.0)[0]
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    if not gone:
        raise _FailedError("a killed process does not show")
    return "opened, signalled, seen to end"


def _try_keyring() -> str:
    syscalls.join_new_session_keyring()
    return "a new one is joined"


def _cgroups(root: bool) -> list[Fact]:
    from nucleus.pod import cgroups

    ok, detail = probe(lambda: json.dumps(cgroups.available()))
    found: dict[str, str] = json.loads(detail) if ok else {}
    step = "" if root else "Run Nucleus as root, or in a session to which systemd delegates it (Delegate=yes)."
    facts = []
    for name in cgroups.CONTROLLERS:
        here = found.get(name) or f"missing: {detail}"
        missing = here.startswith("missing")
        needed_for = f"a pod's {name} limit; without it only rlimits hold"
        facts.append(
            Fact(f"cgroup {name}", not missing, here.removeprefix("missing: "), needed_for, step if missing else "")
        )
    return facts


def _groups(root: bool) -> list[Fact]:
    count = len(set(os.getgroups()) - {os.getegid()})
    if root or not count:
        return []
    detail = f"{count} stay with the pod's processes: an ordinary user's namespace cannot drop them"
    return [Fact("no supplementary groups", False, detail, "a pod with no group's rights", "Run Nucleus as root.")]


def _kvm() -> Fact:
    def work() -> str:
        import fcntl

        fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        version = fcntl.ioctl(fd, _KVM_GET_API_VERSION, 0)
        return f"opens (API {version}); whether a guest boots is not tried"

    return _fact("kvm", work, "firecracker and qemu, which are not in this version")


def _python() -> Fact:
    def work() -> str:
        said = _output([PYTHON, "-I", "-S", "-c", "import sys; print(*sys.version_info[:3], sep='.')"])
        if tuple(int(part) for part in said.split(".")[:2]) < (3, 11):
            raise _FailedError(f"{said}, and 3.11 is needed")
        return said

    return _fact(f"{PYTHON}", work, "an agent in a pod: its tools", "Install python3, 3.11 or newer, from the system.")


def _git() -> Fact:
    def work() -> str:
        import shutil

        from nucleus.pod.compartment import PATH

        path = shutil.which("git", path=PATH)
        if path is None:
            raise _FailedError(f"not in {PATH}")
        return f"{path}: {_output([path, 'version']).removeprefix('git version ')}"

    return _fact("git", work, "git operations", "Install git from the system's packages.")


def _output(argv: list[str]) -> str:
    """What a program prints, in an empty environment, outside any workspace."""
    import subprocess

    done = subprocess.run(argv, env={"LANG": "C.UTF-8"}, cwd="/", capture_output=True, timeout=4, check=False)
    if done.returncode != 0:
        raise _FailedError(f"{argv[0]} ends with {done.returncode}")
    return done.stdout.decode("utf-8", "replace").strip()


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
