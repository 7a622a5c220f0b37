"""A process apart from the authority, under a uid of its own: the witness, and what sends the log elsewhere.

Promises: `become` is for good, and before it nothing is read but what was opened; `lock` gives one process its state.
"""

from __future__ import annotations

import fcntl
import os
import stat
import sys
from collections.abc import Callable
from contextlib import suppress

from nucleus.cli.main import printable
from nucleus.cli.options import invalid
from nucleus.errors import NucleusError


def become(uid: int, *owned: int) -> None:
    """Become this uid: no groups, no capabilities, no new privileges. `owned`: descriptors of files that it gets.

    Raises:
        InvalidError: we are not root, or it names root.
    """
    from nucleus.kernel import reachable, syscalls  # weight

    if os.geteuid() != 0 or not 0 < uid < 1 << 31:
        raise invalid("--uid is for root, and names another uid")
    for fd in owned:
        os.fchown(fd, uid, uid)
    reachable.keep()
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    syscalls.drop_all_capabilities()
    syscalls.set_no_new_privs()
    syscalls.set_dumpable(False)


def lock(state: str, what: str) -> int:
    """The lock of a state directory, as a descriptor. Raises InvalidError: it is not ours alone, or owned; OSError."""
    found = os.lstat(state)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise invalid(f"{state} is not a 0700 directory of uid {os.geteuid()}")
    fd = os.open(os.path.join(state, "lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise invalid(f"another {what} owns {state}") from None
    return fd


def in_child(work: Callable[[], int]) -> int:
    """Do it in a process that may change for good; its exit code."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 2
        try:
            code = work()
        except KeyboardInterrupt:
            code = 0
        except (NucleusError, OSError) as error:
            text = f"unusable: {error}" if isinstance(error, OSError) else error.diagnostics()
            sys.stderr.write(printable(text) + "\n")
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except KeyboardInterrupt:
        with suppress(ChildProcessError):  # it had ended, and the interrupt came before the answer
            os.waitpid(pid, 0)
        raise
