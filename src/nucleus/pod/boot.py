"""The builder's first instructions, and how its children (authority, gate template, zygote) are started.

`runtime._spawn` starts it: `--helper|--private --state DIR --runtime DIR`; `nucleus.pod.builder` says what they are.
Promises: a child starts with `PATH` and `LANG` for an environment, `/dev/null` on 0 and 1, our stderr on 2, its channel
on 3 and nothing else open; it dies with us (PR_SET_PDEATHSIG). Of two helpers on one runtime directory the second ends
before it starts anything.
Relies on: being single-threaded (fork). Imports next to nothing: the template, whose own imports take longest of all,
is under way before the builder does its own. Does not: restart a child.
"""

from __future__ import annotations

import fcntl
import gc
import os
import sys
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_SEQPACKET, socket, socketpair

from nucleus.errors import NucleusError
from nucleus.kernel import syscalls
from nucleus.pod import runtime
from nucleus.pod.packets import enlarge

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    Commands = dict[str, tuple[str, ...]]

SIGKILL = 9  # signal.SIGKILL; `signal` imports enum
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8"}
# Not -m, which imports runpy, pkgutil and what they need. Imports make no garbage: each process turns its collector on
# again when its imports are done.
_QUIET = "import gc; gc.disable(); "
COMMANDS: Commands = {
    name: (sys.executable, "-I", "-c", f"{_QUIET}{code}")
    for name, code in {
        "authority": "from nucleus.authority.main import main; raise SystemExit(main())",
        "template": "import nucleus.server.bare_pydantic; from nucleus.server.template import process; process()",
        "zygote": "from nucleus.pod.zygote import main; raise SystemExit(main())",
    }.items()
}


def start(command: Sequence[str]) -> tuple[int, socket]:
    """Start one child; returns its pid and our end of its channel (non-blocking)."""
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
    for end in (ours, theirs):
        enlarge(end)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _exec(command, theirs.fileno(), parent)
    theirs.close()
    ours.setblocking(False)
    return pid, ours


def _exec(command: Sequence[str], channel: int, parent: int) -> None:
    try:
        syscalls.set_pdeathsig(SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        os.setsid()  # a Ctrl-C at the launcher's terminal is the launcher's to handle
        os.dup2(os.open("/dev/null", os.O_RDWR), 0)
        os.dup2(0, 1)
        os.dup2(channel, 3) if channel != 3 else os.set_inheritable(3, True)
        os.closerange(4, 65_536)
        os.execve(command[0], list(command), ENVIRONMENT)  # noqa: S606 -- no shell is what we want
    finally:
        os._exit(127)


def main(arguments: Sequence[str], commands: Commands = COMMANDS) -> int:
    """Be a builder until it is over. `commands` is for tests."""
    match list(arguments):
        case ["--private", "--state", state, "--runtime", directory]:
            return _run(False, state, directory, commands)
        case ["--helper", "--state", state, "--runtime", directory, "--idle", idle, *more] if idle.isdecimal():
            match more:
                case []:
                    return _run(True, state, directory, commands, idle=int(idle))
                case ["--approvers", uids]:
                    allowed = frozenset(map(int, uids.split(",")))
                    return _run(True, state, directory, commands, allowed, int(idle))
    sys.stderr.write(
        "usage: nucleus.pod.boot --private --state DIR --runtime DIR\n"
        "       nucleus.pod.boot --helper --state DIR --runtime DIR --idle SECONDS [--approvers UID,...]\n"
    )
    return 2


def _run(
    helper: bool,
    state: str,
    directory: str,
    commands: Commands,
    approvers: frozenset[int] = frozenset(),
    idle: int = int(runtime.IDLE_SECONDS),
) -> int:
    told = _is_open(3)  # asked before anything of ours can become number 3
    syscalls.set_dumpable(False)
    os.umask(0o077)
    try:
        runtime.private_directory(directory)
        if helper and not _lock(directory):
            return 0
        runtime.prepare_state(state)
        if helper:
            runtime.note_state(directory, state)
    except NucleusError as error:
        sys.stderr.write(error.diagnostics() + "\n")
        return error.exit_code
    template = start(commands["template"])
    gc.disable()
    from nucleus.pod import builder  # only now, see above

    gc.enable()
    gc.freeze()
    return builder.run(state, directory, commands, template, helper=helper, tell=told, approvers=approvers, idle=idle)


def _lock(directory: str) -> bool:
    """Be the one helper of a runtime directory, until this process ends; False when another is."""
    lock = os.open(f"{directory}/helper.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return False
    return True


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
