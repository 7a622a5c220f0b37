"""The state directory is one process's at a time: a lock on a file in it, held as long as its descriptor.

Promises: the directory is a 0700 one of ours before anything in it is opened; two never hold it.
Relies on: flock(2), which ends with the process. Does not: say who has it.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time

from nucleus.errors import AuditError, SandboxError

LOCK_SECONDS = 2.0  # how long to wait for an authority that is just ending


def lock_state(directory: str) -> int:
    """Take the state directory for this process; the descriptor holds it.

    Raises:
        SandboxError: rule ``store.state``: it is not a 0700 directory of ours.
        AuditError: rule ``store.locked``: another authority has it.
    """
    found = os.lstat(directory)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise SandboxError(f"{directory} is not a 0700 directory of uid {os.geteuid()}", rule="store.state")
    path = os.path.join(directory, "lock")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(fd)
                raise AuditError(
                    f"another authority owns {directory}",
                    rule="store.locked",
                    next_step="Stop the resident helper, or name another state directory with NUCLEUS_STATE.",
                ) from None
            time.sleep(0.02)
