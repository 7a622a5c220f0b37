"""hands, or an agent, as the only service of a guest kernel: what its first process runs.

    python3 -IS -c 'import sys; sys.path.insert(0, DIR); from nucleus.hands.guest import main; main()' KIND [WORD ...]

KIND ``hands``: serve the gate on descriptor 0, a stream socket, with the environment as it is. KIND ``agent``: run
WORD ... on 0, 1 and 2 as they are, in the place where we are. Either way ``ready`` is made in DIR first.

Promises: an agent's end is told by the exit code, 128 + n for signal n; a program that is not there by 127, one that
cannot be run by 126. Relies on: being pid 1 of a guest. Does not: hold anything that the pod may not know.
"""

from __future__ import annotations

import os
import signal
import socket
import sys

READY = "ready"


def main() -> None:
    """See the module. Does not return."""
    kind, directory = sys.argv[1], sys.path[0]
    os._exit(_hands(directory) if kind == "hands" else _agent(directory, sys.argv[2:]))


def _hands(directory: str) -> int:
    from nucleus.hands import main as hands
    from nucleus.kernel import openat2, seccomp, syscalls

    openat2.walk_where_missing()
    channel = socket.socket(fileno=os.dup(0))
    null = os.open("/dev/null", os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.close(null)
    # A guest's kernel may let a command kill pid 1. With a real and a saved uid of our own it may not, nor trace us;
    # files go by the effective one, which is the commands' (`hands.commands`).
    uid = os.geteuid()
    os.setresuid(uid + 1, uid, uid + 1)
    syscalls.drop_all_capabilities()
    syscalls.set_no_new_privs()
    seccomp.install(program(directory, "hands"))
    command_filter = program(directory, "commands")
    _ready(directory)
    return hands.serve(channel, os.getcwd(), dict(os.environ), command_filter, reaper=True)


def program(directory: str, name: str) -> bytes:
    """A seccomp program (nucleus.kernel.seccomp) for this kernel."""
    with open(os.path.join(directory, f"{name}.bpf"), "rb") as file:
        return file.read()


def _agent(directory: str, argv: list[str]) -> int:
    from nucleus.kernel import seccomp, syscalls

    syscalls.set_no_new_privs()
    seccomp.install(program(directory, "agent"))
    pid = os.fork()
    if pid == 0:
        _run(argv)
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)  # for whoever has the terminal
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)  # its pipes end with it and not with us
    _ready(directory)
    while True:
        ended, status = os.wait()
        if ended == pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _run(argv: list[str]) -> None:
    code = 126
    try:
        os.execvp(argv[0], argv)  # noqa: S606 -- no shell is what we want
    except FileNotFoundError:
        code = 127
        os.write(2, f"nucleus: {argv[0]}: not found in the pod\n".encode("utf-8", "surrogateescape"))
    except OSError as error:
        os.write(2, f"nucleus: {argv[0]}: {error.strerror}\n".encode("utf-8", "surrogateescape"))
    finally:
        os._exit(code)


def _ready(directory: str) -> None:
    os.close(os.open(os.path.join(directory, READY), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
