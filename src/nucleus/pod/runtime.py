"""Where Nucleus keeps things on this machine, and how a launcher reaches a builder.

Promises: the runtime directory is ours, a real directory, mode 0700, or it is refused; a slot is held by an exclusive
lock on a file in it, so two builders never use one slot's uids at a time; `open_builder` returns a connected
seqpacket channel or raises.
Relies on: a sticky /tmp when there is no XDG_RUNTIME_DIR. Does not: remove the state directory, ever.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import sys
import time

# Not `socket`: its imports (enum, selectors) are on the path of every launcher.
from _socket import AF_UNIX, SO_PEERCRED, SO_SNDBUF, SOCK_CLOEXEC, SOCK_SEQPACKET, SOL_SOCKET, socket, socketpair

from nucleus.errors import SandboxError

SLOTS = 65_536
IDLE_SECONDS = 300.0  # without pods and launchers, after which a helper ends
START_SECONDS = 10.0  # how long a helper may take to listen
AUTHORITY_UID = 0x70000001
GATE_UID = 0x70010000
GATEWAY_UID = 0x70020000
WORKLOAD_API_UID = 0x70030000
POD_UID = 0x70100000
# Not -m: it imports runpy, pkgutil and what they need.
BUILDER = "import sys; from nucleus.pod.boot import main; sys.exit(main(sys.argv[1:]))"
ROOT_SLOTS = "/run/nucleus"
TRUST_DOMAIN, TRUST_DOMAIN_FILE = "nucleus.local", "trust-domain"
_DOMAIN = "abcdefghijklmnopqrstuvwxyz0123456789.-_"


def state_dir() -> str:
    """`NUCLEUS_STATE`, /var/lib/nucleus for root, or $XDG_STATE_HOME/nucleus (~/.local/state/nucleus). Not created."""
    named = os.environ.get("NUCLEUS_STATE")
    if named:
        return _absolute(named, "NUCLEUS_STATE")
    if os.geteuid() == 0:
        return "/var/lib/nucleus"
    base = os.environ.get("XDG_STATE_HOME") or os.path.join(_home(), ".local/state")
    return os.path.join(_absolute(base, "XDG_STATE_HOME"), "nucleus")


def runtime_dir() -> str:
    """`NUCLEUS_RUNTIME`, /run/nucleus for root, $XDG_RUNTIME_DIR/nucleus or /tmp/nucleus-<uid>; created and verified.

    Raises:
        SandboxError: rule ``runtime.dir``: it is not ours alone.
    """
    named = os.environ.get("NUCLEUS_RUNTIME")
    xdg = os.environ.get("XDG_RUNTIME_DIR")
    if named:
        path = _absolute(named, "NUCLEUS_RUNTIME")
    elif os.geteuid() == 0:
        path = "/run/nucleus"
    elif xdg:
        path = os.path.join(_absolute(xdg, "XDG_RUNTIME_DIR"), "nucleus")
    else:
        path = f"/tmp/nucleus-{os.geteuid()}"  # noqa: S108 -- verified below: ours, not a link, 0700
    private_directory(path)
    return path


def trust_domain(state: str) -> str:
    """What a state directory's ``trust-domain`` says (`nucleus identity trust-domain`); "nucleus.local" without one.

    Raises:
        SandboxError: rule ``runtime.trust_domain``: it is not a small file of one name.
    """
    path = os.path.join(state, TRUST_DOMAIN_FILE)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return TRUST_DOMAIN
    except OSError as error:
        raise SandboxError(f"{path}: {error.strerror}", rule="runtime.trust_domain") from error
    try:
        data = os.read(fd, 512) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    finally:
        os.close(fd)
    name = data.decode("ascii", "replace").strip()
    if not 0 < len(name) <= 255 or not all(c in _DOMAIN for c in name):  # SPIFFE-ID, section 2.1
        raise SandboxError(f"{path} does not hold the name of a trust domain", rule="runtime.trust_domain")
    return name


def images_dir(state: str = "") -> str:
    """Where images of virtual machines are: beside the state, which as root is the authority's own. Not created."""
    return f"{state or state_dir()}-images"


def copies_dir(state: str = "") -> str:
    """Where pods' copies of workspaces are, beside the state as images are. Not created."""
    return f"{state or state_dir()}-copies"


def private_directory(path: str) -> None:
    """Make `path` (one level) with mode 0700, or verify that it is ours and closed to others.

    Raises:
        SandboxError: rule ``runtime.dir``.
    """
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise SandboxError(f"{path}: {error.strerror}", rule="runtime.dir") from error
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise SandboxError(
            f"{path} is not a directory of ours with mode 0700",
            rule="runtime.dir",
            next_step=f"Remove {path} or name another directory with NUCLEUS_RUNTIME.",
        )


def prepare_state(path: str) -> None:
    """Make the state directory, 0700; as root it belongs to the authority's uid.

    Raises:
        SandboxError: rule ``runtime.state``: somebody else owns it.
    """
    owner = AUTHORITY_UID if os.geteuid() == 0 else os.geteuid()
    if owner == AUTHORITY_UID:
        _check_passable(path)
    try:
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        try:
            os.mkdir(path, 0o700)
            os.chown(path, owner, owner if os.geteuid() == 0 else -1)
        except FileExistsError:
            pass
        found = os.lstat(path)
        if stat.S_ISDIR(found.st_mode) and found.st_uid == 0 and owner == AUTHORITY_UID and not os.listdir(path):
            os.chown(path, owner, owner, follow_symlinks=False)  # an empty one that root made, such as a test's
            os.chmod(path, 0o700)
            found = os.lstat(path)
    except OSError as error:
        raise SandboxError(f"{path}: {error.strerror}", rule="runtime.state") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != owner:
        raise SandboxError(f"{path} is not a directory of uid {owner}", rule="runtime.state")


def _check_passable(path: str) -> None:
    """As root the authority has a uid of its own: it must be able to walk to `path`."""
    above = os.path.dirname(path)
    while above != "/":
        if os.path.isdir(above) and not os.stat(above).st_mode & 0o001:
            raise SandboxError(
                f"{above} is closed to other users, and the authority that keeps {path} is one",
                rule="runtime.state",
                next_step=f"Run `chmod o+x {above}`, or name another directory with NUCLEUS_STATE.",
            )
        above = os.path.dirname(above)


class Slot:
    """One numbered place of this machine, ours until `release`."""

    def __init__(self, number: int, lock: int, path: str) -> None:
        self.number = number
        self._lock = lock
        self._path = path

    def release(self) -> None:
        """Give it back; the file goes first, while the lock still keeps others from taking it."""
        if self._lock >= 0:
            os.unlink(self._path)
            os.close(self._lock)
            self._lock = -1


def take_slot(runtime: str) -> Slot:
    """Lock the lowest free slot.

    Raises:
        SandboxError: rule ``pod.slots``: all are taken.
    """
    if os.geteuid() == 0:
        # A slot is a range of uids, and those are the machine's, whichever runtime directory was named.
        runtime = ROOT_SLOTS
        private_directory(runtime)
    directory = os.path.join(runtime, "slots")
    private_directory(directory)
    for number in range(SLOTS):
        path = os.path.join(directory, str(number))
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before us may have unlinked the file between our open and our lock.
            if os.path.samestat(os.fstat(lock), os.stat(path)):
                return Slot(number, lock, path)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.ENOENT):
                os.close(lock)
                raise
        os.close(lock)
    raise SandboxError(f"all {SLOTS} slots are taken", rule="pod.slots")


def open_builder(use_helper: bool = True) -> socket:
    """A channel to a builder: the resident helper, started when there is none, or a private one.

    Raises:
        SandboxError: no builder can be reached.
    """
    if not use_helper:
        return private_builder()
    channel = connect_helper()
    if channel is None:
        return start_helper()
    try:
        _check_state()
    except SandboxError:
        channel.close()
        raise
    return channel


def note_state(runtime: str, state: str) -> None:
    """The helper says which state directory is its own."""
    fd = os.open(os.path.join(runtime, "helper.state"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        os.write(fd, os.fsencode(state))
    finally:
        os.close(fd)


def _check_state() -> None:
    """A record that goes elsewhere than asked is an error, not a surprise. Raises SandboxError."""
    try:
        with open(os.path.join(runtime_dir(), "helper.state"), "rb") as file:
            has = os.fsdecode(file.read(8_192))
    except OSError:
        return  # it is just starting, or a test's
    if has != state_dir():
        raise SandboxError(
            f"the resident helper keeps its records in {has}, not in {state_dir()}",
            rule="helper.state",
            next_step="Stop it with `nucleus helper stop`, or name another NUCLEUS_RUNTIME as well.",
        )


def connect_helper() -> socket | None:
    """A channel to the helper that runs, or None."""
    channel = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
    try:
        channel.connect(os.path.join(runtime_dir(), "helper.sock"))
        _check_owner(channel)
    except (FileNotFoundError, ConnectionRefusedError):
        channel.close()
        return None
    except BaseException:
        channel.close()
        raise
    _enlarge(channel)
    return channel


def approvers_socket(runtime: str, *, make: bool = False) -> str:
    """Where other users answer the requests of root's pods; with `make` its directory is made.

    Raises:
        SandboxError: rule ``runtime.dir``: somebody else made it.
    """
    directory = f"{runtime}-approvers"
    if make:
        try:
            os.mkdir(directory, 0o711)
            os.chmod(directory, 0o711)  # noqa: S103 -- others come through, to a socket that asks who they are
        except FileExistsError:
            pass
        found = os.lstat(directory)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) != 0o711:
            raise SandboxError(f"{directory} is not a directory of ours with mode 0711", rule="runtime.dir")
    return f"{directory}/approve.sock"


def connect_approvers() -> socket | None:
    """A channel to root's helper that only answers requests, or None where there is none."""
    channel = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
    try:
        channel.connect(approvers_socket(_absolute(os.environ.get("NUCLEUS_RUNTIME") or ROOT_SLOTS, "NUCLEUS_RUNTIME")))
        _check_owner(channel, 0)
    except (FileNotFoundError, ConnectionRefusedError):
        channel.close()
        return None
    except BaseException:
        channel.close()
        raise
    _enlarge(channel)
    return channel


def approvers() -> list[int]:
    """The uids of `NUCLEUS_APPROVERS` (users, uids, ``%group``), or of the group nucleus-approvers where there is one.

    Raises:
        SandboxError: rule ``runtime.approvers``: there is no such user or group.
    """
    named = os.environ.get("NUCLEUS_APPROVERS")
    found: set[int] = set()
    for item in ["%nucleus-approvers"] if named is None else filter(None, named.split(",")):
        try:
            found |= _uids(item.strip())
        except KeyError:
            if named is not None:
                raise SandboxError(
                    f"NUCLEUS_APPROVERS: no such user or group: {item}", rule="runtime.approvers"
                ) from None
    return sorted(found - {0})


def _uids(item: str) -> set[int]:
    """Raises KeyError."""
    import grp
    import pwd

    if item.startswith("%"):
        group = grp.getgrnam(item[1:])
        return {pwd.getpwnam(name).pw_uid for name in group.gr_mem}
    return {int(item)} if item.isascii() and item.isdigit() else {pwd.getpwnam(item).pw_uid}


def start_helper() -> socket:
    """Start the resident helper and connect.

    Raises:
        SandboxError: rule ``helper.start``.
    """
    runtime = runtime_dir()
    if os.geteuid() == 0:
        _check_passable(state_dir())  # here, where the reason has somewhere to go
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        _spawn_helper(runtime)
        channel = connect_helper()
        if channel is not None:
            return channel
        time.sleep(0.05)  # one that is ending still has the lock: ours could not start
    raise SandboxError(
        "the resident helper did not start",
        rule="helper.start",
        next_step="Run the command again with --no-helper to see the reason.",
    )


def idle_seconds() -> int:
    """`NUCLEUS_HELPER_IDLE`: 1 to 86,400; default `IDLE_SECONDS`. Raises SandboxError: it is something else."""
    text = os.environ.get("NUCLEUS_HELPER_IDLE", "") or str(int(IDLE_SECONDS))
    if not text.isascii() or not text.isdecimal() or len(text) > 5 or not 1 <= int(text) <= 86_400:
        raise SandboxError("NUCLEUS_HELPER_IDLE is not 1 to 86400 seconds", rule="runtime.idle")
    return int(text)


def _spawn_helper(runtime: str) -> None:
    """Start a helper; return once it listens, or has ended (another one has the lock, or it could not start)."""
    ready, tell = os.pipe2(os.O_CLOEXEC)
    try:
        words = ["--helper", "--state", state_dir(), "--runtime", runtime, "--idle", str(idle_seconds())]
        if os.geteuid() == 0 and (others := approvers()):
            words += ["--approvers", ",".join(map(str, others))]
        _spawn(words, tell, detach=True)
        os.close(tell)
        tell = -1
        os.read(ready, 1)
    finally:
        os.close(ready)
        if tell >= 0:
            os.close(tell)


def private_builder() -> socket:
    """Start a builder of our own over a socketpair; it ends when the channel closes.

    A resident helper owns the state directory: an idle one is stopped first, it starts again when it is needed.

    Raises:
        SandboxError: rule ``helper.busy``: it has pods.
    """
    _retire_helper()
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
    _enlarge(ours)
    try:
        _spawn(["--private", "--state", state_dir(), "--runtime", runtime_dir()], theirs.fileno(), detach=False)
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return ours


def _retire_helper() -> None:
    """Stop a resident helper that has no pods; return when it is gone."""
    from nucleus.pod.packets import checked, recv_packet, send_packet

    channel = connect_helper()
    if channel is None:
        return
    try:
        channel.settimeout(START_SECONDS)
        send_packet(channel, {"id": 1, "op": "status"})
        answer = recv_packet(channel)
        if answer is not None and checked(answer.body).get("pods"):
            raise SandboxError(
                "the resident helper has running pods",
                rule="helper.busy",
                next_step="Wait for them, or run without --no-helper.",
            )
        send_packet(channel, {"id": 2, "op": "stop"})
        while recv_packet(channel) is not None:
            pass
    except OSError:
        return  # it ended under us, which is what we want
    finally:
        channel.close()


def _spawn(arguments: list[str], channel: int, *, detach: bool) -> None:
    """Fork and exec the builder with `channel` as descriptor 3; detached, in a session of its own without a terminal.

    Two forks in both cases, so that it is nobody's child to wait for.
    """
    pid = os.fork()
    if pid == 0:
        try:
            if os.fork() != 0:
                os._exit(0)
            os.setsid()
            null = os.open("/dev/null", os.O_RDWR)
            for fd in (0, 1, 2) if detach else (0, 1):
                os.dup2(null, fd)
            os.dup2(channel, 3) if channel != 3 else os.set_inheritable(3, True)
            os.closerange(4, 65_536)
            os.chdir("/")
            environment = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8"}
            command = [sys.executable, "-I", "-c", BUILDER, *arguments]
            os.execve(command[0], command, environment)  # noqa: S606 -- no shell is what we want
        finally:
            os._exit(127)
    os.waitpid(pid, 0)


def _check_owner(channel: socket, *owners: int) -> None:
    """The helper is root's or ours (or of `owners`); anybody else's is refused before it hears a word."""
    uid = int.from_bytes(channel.getsockopt(SOL_SOCKET, SO_PEERCRED, 12)[4:8], sys.byteorder)  # struct ucred
    if uid not in (owners or (0, os.geteuid())):
        raise SandboxError(f"the helper belongs to uid {uid}", rule="helper.owner")


def _enlarge(channel: socket) -> None:
    channel.setsockopt(SOL_SOCKET, SO_SNDBUF, 524_288)


def _absolute(path: str, what: str) -> str:
    if not path.startswith("/"):
        raise SandboxError(f"{what} is not an absolute path", rule="runtime.dir")
    return os.path.normpath(path)


def _home() -> str:
    import pwd

    return os.environ.get("HOME") or pwd.getpwuid(os.getuid()).pw_dir
