"""One compartment: from a fork of the zygote to untrusted code, in numbered steps that each fail closed.

`start` runs in a fresh fork of the zygote (host pid namespace, CAP_SYS_ADMIN in its user namespace), which may be made
ahead and wait for its order; `_first` is pid 1 of the new pid namespace. A failure of any step is reported by the
step's name, and nothing untrusted has run.

 1. session      a session of its own, no descriptor but the status channel; the order; the pod's network namespace
 2. identity     the view's parts and (as root) the idmapped workspace are taken, then the pod's uid for good, no groups
 3. namespaces   user (inside uid 1000 is the pod's uid, nothing else is mapped), mount, pid, ipc, uts, cgroup
 4. init         pid 1 of the new pid namespace; the helper that forked it is gone before the next step ends
 5. view         the new root (nucleus.pod.view)
 6. go           wait for the builder's word (it has put us in the cgroup, the gate has parsed the policy);
                 hide and protect names in the workspace (nucleus.pod.names)
 7. pivot        the new root is the root, the old one is detached
 8. limits       host name, session keyring, resource limits, the standard descriptors; a rung with a kernel of its
                 own goes on from here (nucleus.pod.guests)
 9. privileges   no_new_privs, bounding set and every capability dropped, not dumpable
10. landlock     files, and no signals or abstract sockets beyond this domain
11. seccomp
12. run          hands, or the agent's init

Relies on: `nucleus.kernel`, a builder that tells the truth. Does not: trust what runs after step 12 with anything but
the descriptors of `Order`.
"""

from __future__ import annotations

import fcntl
import os
import resource
import select
import signal
import socket
import stat
import struct
import termios
import time
from dataclasses import dataclass, field
from typing import Any

from nucleus.errors import InvalidError, NucleusError, SandboxError
from nucleus.kernel import landlock, seccomp, syscalls
from nucleus.pod import names, packets, view
from nucleus.pod.guests import GUESTS
from nucleus.pod.runtime import POD_UID

INNER_ID = 1000  # the pod's uid and gid as the pod sees them
HOME = "/home/agent"
WORKSPACE = "/workspace"
PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
PARTS = 8  # descriptors of a guest
WORD_SECONDS = 30.0  # how long a prepared compartment waits for the builder's word
NOFILE = 4_096
FILE_BYTES = 4_294_967_296  # RLIMIT_FSIZE, one file
NAMESPACES = (
    syscalls.CLONE_NEWUSER
    | syscalls.CLONE_NEWNS
    | syscalls.CLONE_NEWPID
    | syscalls.CLONE_NEWIPC
    | syscalls.CLONE_NEWUTS
    | syscalls.CLONE_NEWCGROUP
)


@dataclass(slots=True)
class Order:
    """What the builder asked for. Descriptors are ours.

    Args:
        kind: ``work`` or ``agent``.
        uid: the host uid (and gid) to become, or 0 when the zygote has no other than the user's.
        status: channel to the builder.
        netns: the pod's network namespace.
        workspace: O_PATH directory as the launcher opened it, or None.
        mapping: user namespace whose maps the workspace's idmapped mount takes (as root).
        channel: hands' end of the gate's channel (work).
        stdio: three descriptors, or empty for a pty (agent).
    """

    kind: str
    uid: int
    status: socket.socket
    netns: int
    workspace: int | None = None
    mapping: int | None = None
    channel: int | None = None
    stdio: tuple[int, ...] = ()
    toolchains: tuple[tuple[str, str], ...] = ()  # (canonical, as named)
    sockets: tuple[tuple[str, str], ...] = ()  # (name under /run/nucleus, where it is on the host)
    rung: str = "namespaces"  # with the builder's word
    parts: dict[str, int] = field(default_factory=dict)  # descriptors of the rung's guest, with the word
    settings: dict[str, str] = field(default_factory=dict)  # of the rung's guest, with the word
    read_only: bool = False
    argv: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    rows: int = 24
    cols: int = 80
    pids: int = 256
    tmp_bytes: int = 268_435_456

    @classmethod
    def parse(cls, packet: packets.Packet, status: socket.socket) -> Order:
        """An order as the builder sends it: the fields, and `descriptors`, the names of those attached.

        Raises:
            InvalidError: other fields or descriptors than these.
        """
        body = dict(packet.body)
        named = body.pop("descriptors", [])
        if len(named) != len(packet.fds) or body.keys() - FIELDS or set(named) - DESCRIPTORS:
            raise InvalidError("an order with other fields or descriptors than it names", rule="pod.order")
        fds = dict(zip(named, packet.fds, strict=True))
        body["toolchains"] = tuple((canonical, asked) for canonical, asked in body.get("toolchains", ()))
        body["argv"] = tuple(body.get("argv", ()))
        body["sockets"] = tuple((name, path) for name, path in body.get("sockets", ()))
        stdio = tuple(fds.pop(name) for name in STDIO if name in fds)
        return cls(status=status, stdio=stdio, **body, **fds)


STDIO = ("stdin", "stdout", "stderr")
DESCRIPTORS = frozenset({"netns", "workspace", "mapping", "channel", *STDIO})
FIELDS = frozenset(Order.__dataclass_fields__) - DESCRIPTORS - {"status", "stdio", "rung", "parts", "settings"}


@dataclass(frozen=True, slots=True)
class Zygote:
    """What every compartment inherits from the zygote: made once, before any pod.

    Args:
        base: directory of the shared parts (nucleus.pod.view).
        root: it is the host's root, so a compartment must be given a uid of its own.
        filters: compiled seccomp programs by profile.
        landlock: this kernel has it.
    """

    base: str
    root: bool
    filters: dict[str, bytes] = field(repr=False)
    landlock: bool


class _Steps:
    """Names the step at work and times each, in microseconds."""

    def __init__(self) -> None:
        self.name = "start"
        self.taken: dict[str, int] = {}
        self._since = time.monotonic_ns()

    def next(self, name: str) -> None:
        now = time.monotonic_ns()
        self.taken[self.name] = self.taken.get(self.name, 0) + (now - self._since) // 1000
        self.name, self._since = name, now


def start(status: socket.socket, zygote: Zygote) -> None:
    """Steps 1 to 4 in the zygote's child; never returns."""
    steps = _Steps()
    code = 1
    try:
        syscalls.set_pdeathsig(signal.SIGKILL)
        os.setsid()
        os.closerange(3, status.fileno())
        os.closerange(status.fileno() + 1, 65_536)
        packet = packets.recv_packet(status)
        if packet is None:
            return  # made ahead, and never needed
        steps = _Steps()  # waiting is not a step
        steps.next("session")
        order = Order.parse(packet, status)
        syscalls.setns(order.netns, syscalls.CLONE_NEWNET)
        os.close(order.netns)
        steps.next("identity")
        trees = _trees(order, zygote)
        _become(order.uid, zygote.root)
        steps.next("namespaces")
        helper = os.pidfd_open(os.getpid())
        _unshare()
        steps.next("init")
        pid = os.fork()
        if pid == 0:
            _first(order, zygote, trees, steps, helper)
        pidfd = os.pidfd_open(pid)
        packets.send_packet(order.status, {"pid": pid}, [pidfd])
        code = 0
    except BaseException as error:  # noqa: BLE001 -- every failure is the builder's to know
        _report(status, steps.name, error)
    finally:
        os._exit(code)


def _report(status: socket.socket, step: str, error: BaseException) -> None:
    """Tell the builder which step failed and why."""
    if isinstance(error, NucleusError):
        body = packets.error_body(error)
    else:
        body = packets.error_body(SandboxError(f"step {step}: {type(error).__name__}: {error}", rule=f"pod.{step}"))
    try:
        packets.send_packet(status, {"error": body, "step": step})
    except OSError:
        return  # the builder is gone, and so are we


def _trees(order: Order, zygote: Zygote) -> view.Trees:
    """Step 2, first half: every piece of the host's file system that the view needs, while we may still take it."""
    trees = view.take_parts(zygote.base, agent=order.kind == "agent")
    for canonical, _ in order.toolchains:
        trees.toolchains.append((canonical, view.open_read_only(canonical)))
    for name, path in order.sockets:
        flags = syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC
        trees.sockets.append((f"run/nucleus/{name}", syscalls.open_tree(syscalls.AT_FDCWD, path, flags)))
    if order.workspace is not None:
        trees.workspace = _workspace(order)
        os.close(order.workspace)
        order.workspace = None
    return trees


def _workspace(order: Order) -> int:
    """A detached mount of the workspace: the directory that the launcher opened, found again in our mount namespace.

    A tree can only be cloned from one's own mount namespace, so the name is looked up once more and must lead to the
    same inode. As root the mount is idmapped: on disk everything belongs to the workspace's owner, whoever writes.
    """
    assert order.workspace is not None
    given = os.fstat(order.workspace)
    path = os.readlink(f"/proc/self/fd/{order.workspace}")
    here = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not os.path.samestat(os.fstat(here), given) or not stat.S_ISDIR(given.st_mode):
            raise SandboxError("the workspace is not where it was when it was opened", rule="pod.workspace")
        flags = syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC | syscalls.AT_EMPTY_PATH
        # As root submounts stay out; a user's namespace may not take a tree apart, so there they come along.
        tree = syscalls.open_tree(here, "", flags if order.uid else flags | syscalls.AT_RECURSIVE)
    finally:
        os.close(here)
    attributes = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
    if order.read_only:
        attributes |= syscalls.MOUNT_ATTR_RDONLY
    recursive = 0 if order.uid else syscalls.AT_RECURSIVE
    syscalls.mount_setattr(tree, "", syscalls.AT_EMPTY_PATH | recursive, attr_set=attributes)
    if order.uid:
        _idmap(tree, order.mapping)
    return tree


def _idmap(tree: int, mapping: int | None) -> None:
    """Map the owner's ids on disk to the pod's in this mount. No fallback: chown would change the user's files."""
    if mapping is None:
        raise SandboxError("no id map for the workspace", rule="pod.idmap")
    try:
        syscalls.mount_setattr(tree, "", syscalls.AT_EMPTY_PATH, attr_set=syscalls.MOUNT_ATTR_IDMAP, userns_fd=mapping)
    except OSError as error:
        raise SandboxError(
            f"the workspace's file system ({_filesystem(tree)}) cannot be idmapped: {error.strerror}",
            rule="pod.idmap",
            next_step="Put the workspace on ext4, xfs, btrfs or tmpfs, or run Nucleus as an ordinary user.",
        ) from error
    finally:
        os.close(mapping)


def mapping_namespace(uid_map: str, gid_map: str) -> int:
    """A user namespace with these maps, kept by nothing but the descriptor. For the zygote (nobody waits)."""
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(ready)
            syscalls.unshare(syscalls.CLONE_NEWUSER)
            os.write(tell, b".")
            signal.pause()
        finally:
            os._exit(1)
    os.close(tell)
    try:
        if os.read(ready, 1) != b".":
            raise SandboxError("no user namespace for the workspace's id map", rule="pod.idmap")
        _write(f"/proc/{pid}/uid_map", uid_map)
        _write(f"/proc/{pid}/gid_map", gid_map)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ready)
        os.kill(pid, signal.SIGKILL)


def _filesystem(tree: int) -> str:
    """The file system's name from mountinfo, by device number."""
    device = os.fstat(tree).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            left, _, right = line.partition(" - ")
            if left.split()[2] == wanted:
                return right.split()[0]
    return "unknown"


def _become(uid: int, root: bool) -> None:
    """Step 2, second half: the pod's own uid, before any namespace or byte of the pod's."""
    if root != (uid >= POD_UID):
        raise SandboxError(f"uid {uid} is no pod's", rule="pod.identity")
    if root:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    # The change of uid made /proc/self root's; our own maps are written in the next step.
    syscalls.set_dumpable(True)


def _unshare() -> None:
    """Step 3."""
    uid, gid = os.geteuid(), os.getegid()
    syscalls.unshare(NAMESPACES)
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{INNER_ID} {uid} 1")
    _write("/proc/self/gid_map", f"{INNER_ID} {gid} 1")
    if os.getresuid() != (INNER_ID,) * 3 or os.getresgid() != (INNER_ID,) * 3:
        raise SandboxError("the user namespace's map is not ours", rule="pod.namespaces")
    syscalls.set_dumpable(False)


def _first(order: Order, zygote: Zygote, trees: view.Trees, steps: _Steps, helper: int) -> None:
    """Steps 5 to 12 as pid 1; never returns."""
    code = 1
    try:
        steps.next("view")
        view.build(trees, tmp_bytes=order.tmp_bytes)
        for canonical, named in order.toolchains:
            if named != canonical:
                view.link(named, canonical)
        steps.next("go")
        applied = _wait_for_word(order)
        steps.next("pivot")
        view.seal()
        steps.next("limits")
        _limits(order)
        _outlive(helper, order.status)
        ready = {"ready": True, "placeholders": applied.placeholders, "notes": applied.notes, "steps": steps.taken}
        if order.kind == "work":
            ready["known"] = sorted(applied.known)
        if order.rung in GUESTS:
            steps.next(order.rung)
            code = GUESTS[order.rung].enter(order, zygote, ready)
            return
        steps.next("privileges")
        syscalls.set_no_new_privs()
        syscalls.drop_bounding_set()
        syscalls.drop_all_capabilities()
        syscalls.set_dumpable(False)
        steps.next("landlock")
        if zygote.landlock:
            landlock.restrict(_rules(order), scope=True)
        steps.next("seccomp")
        seccomp.install(zygote.filters["hands" if order.kind == "work" else "agent"])
        steps.next("run")
        code = _hands(order, zygote, ready) if order.kind == "work" else _agent(order, ready)
    except BaseException as error:  # noqa: BLE001 -- every failure is the builder's to know
        _report(order.status, steps.name, error)
    finally:
        os._exit(code)


def _wait_for_word(order: Order) -> names.Applied:
    """Step 6: nothing goes on before the builder's `go`; its end is ours."""
    order.status.settimeout(WORD_SECONDS)
    word = packets.recv_packet(order.status, max_fds=PARTS)
    order.status.settimeout(None)
    if word is None or word.body.get("go") is not True:
        raise SandboxError("no word from the builder", rule="pod.go")
    order.rung, order.parts = word.body["rung"], dict(zip(word.body["parts"], word.fds, strict=True))
    order.settings = word.body["settings"]
    order.env = {**order.env, **word.body["env"]}  # what the policy says of the ways out, whoever asked for what
    if word.body["ca"]:
        order.env |= view.trust(word.body["ca"])
    if order.kind == "agent" and not order.read_only:
        return names.Applied()
    root = os.open("workspace", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        inside = names.Workspace(root, "masks", "tmp", writable=not order.read_only)
        return inside.apply(names.matcher(word.body["block"]), names.matcher(word.body["protect"]))
    finally:
        os.close(root)


def _limits(order: Order) -> None:
    """Step 8."""
    socket.sethostname("pod")
    syscalls.join_new_session_keyring()
    for which, bound in (
        (resource.RLIMIT_CORE, 1),  # not 0: see nucleus.kernel.seccomp
        (resource.RLIMIT_RTPRIO, 0),
        (resource.RLIMIT_NOFILE, NOFILE),
        (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_NPROC, GUESTS[order.rung].tasks(order.pids) if order.rung in GUESTS else order.pids),
        (resource.RLIMIT_MEMLOCK, 65_536),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        hard = resource.getrlimit(which)[1]
        limit = bound if hard == resource.RLIM_INFINITY else min(bound, hard)
        resource.setrlimit(which, (limit, limit))
    os.umask(0o022)
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    for number in range(1, signal.NSIG):
        if signal.getsignal(number) == signal.SIG_IGN and number != signal.SIGPIPE:
            signal.signal(number, signal.SIG_DFL)


def _outlive(helper: int, status: socket.socket) -> None:
    """Once the helper is gone our parent is the zygote: die with it, and check that it has not died already."""
    poll = select.poll()
    poll.register(helper, select.POLLIN)
    if not poll.poll(5_000):
        raise SandboxError("the start helper did not end", rule="pod.limits")
    os.close(helper)
    syscalls.set_pdeathsig(signal.SIGKILL)
    poll = select.poll()
    poll.register(status, 0)
    if poll.poll(0):
        raise SandboxError("the builder is gone", rule="pod.limits")


def _rules(order: Order) -> list[tuple[str, int]]:
    """Step 10: what the mounts already say, once more in another mechanism."""
    read_only = ["/usr", "/etc", "/proc", "/run", *(f"/{name}" for name in view.SYSTEM if os.path.isdir(f"/{name}"))]
    writable = ["/tmp", HOME, "/dev"]  # noqa: S108 -- the pod's own
    if order.kind == "work":
        writable.append(WORKSPACE)
    elif order.read_only:
        read_only.append(WORKSPACE)
    read_only += [canonical for canonical, _ in order.toolchains]
    # A process writes its own /proc/self/{oom_score_adj,comm}; everything else there is guarded by the mounts.
    rules = [(path, landlock.READ) for path in read_only] + [(path, landlock.READ_WRITE) for path in writable]
    return [("/", landlock.READ_DIR), *rules]


def environment(order: Order) -> dict[str, str]:
    """The pod's short environment: nothing of the host's. What the pod sets wins over what the launcher asked for."""
    tools = [f"{canonical}/bin" for canonical, _ in order.toolchains if os.path.isdir(f"{canonical}/bin")]
    base = {
        "PATH": ":".join([*tools, PATH]),
        "HOME": HOME,
        "LANG": "C.UTF-8",
        "USER": "agent",
        "LOGNAME": "agent",
        "TMPDIR": "/tmp",  # noqa: S108 -- the pod's own
    }
    if order.kind == "work":
        return {"TERM": "dumb", **order.env, **base}
    base["PATH"] = "/run/nucleus/bin:" + base["PATH"]
    base["PYTHONPATH"] = "/run/nucleus/lib"
    base["NUCLEUS_GATE"] = "https://127.0.0.1:7443"
    base["NUCLEUS_WORKLOAD_SOCKET"] = "unix:///run/nucleus/workload.sock"
    base["SPIFFE_ENDPOINT_SOCKET"] = "unix:///run/nucleus/spiffe.sock"
    return {"TERM": "xterm-256color", **order.env, **base}


def _hands(order: Order, zygote: Zygote, ready: dict[str, Any]) -> int:
    """Step 12, work: serve the gate until its channel ends."""
    from nucleus.hands import main as hands  # imported by the zygote already

    assert order.channel is not None
    packets.send_packet(order.status, ready)
    order.status.close()
    os.chdir(WORKSPACE)
    with socket.socket(fileno=order.channel) as channel:
        commands = zygote.filters["commands"]
        return hands.serve(channel, root=WORKSPACE, env=environment(order), command_filter=commands, reaper=True)


def _agent(order: Order, ready: dict[str, Any]) -> int:
    """Step 12, agent: the child is the agent, we are its init; when it ends so does everything else here."""
    master = -1
    if order.stdio:
        stdio = order.stdio
    else:
        master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", order.rows, order.cols, 0, 0))
        stdio = (slave, slave, slave)
    os.chdir(WORKSPACE if order.read_only else HOME)
    agent = os.fork()
    if agent == 0:
        _exec_agent(order, stdio)
    packets.close_all({*stdio} if order.stdio else {slave})
    if master >= 0:
        packets.send_packet(order.status, {**ready, "pty": True}, [master])
        os.close(master)
    else:
        packets.send_packet(order.status, ready)
    while True:
        pid, status = os.wait()
        if pid == agent:
            break
    code = os.waitstatus_to_exitcode(status)
    packets.send_packet(order.status, {"exit": {"code": max(code, 0), "signal": max(-code, 0)}})
    return 0


def _exec_agent(order: Order, stdio: tuple[int, ...]) -> None:
    """The agent's process: a session of its own, the fresh terminal, nothing else open."""
    code = 126
    try:
        os.setsid()
        if not order.stdio:
            fcntl.ioctl(stdio[0], termios.TIOCSCTTY, 0)
        moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in stdio]
        for number, fd in enumerate(moved):
            os.dup2(fd, number)
        os.closerange(3, 65_536)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.execvpe(order.argv[0], list(order.argv), environment(order))  # noqa: S606 -- no shell is what we want
    except FileNotFoundError:
        code = 127
        os.write(2, f"nucleus: {order.argv[0]}: not found in the pod\n".encode("utf-8", "surrogateescape"))
    except OSError as error:
        os.write(2, f"nucleus: {order.argv[0]}: {error.strerror}\n".encode("utf-8", "surrogateescape"))
    finally:
        os._exit(code)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
