"""What this user's pods are called, and how they are: one directory each, below the runtime directory.

    pods/NAME/pod.json       what it is; rewritten whole when its state changes
    pods/NAME/lock           held by its keeper as long as that lives
    pods/NAME/control.sock   the keeper listens
    pods/NAME/log, log.1     what the agent has written, the newest last

Promises: a name is one pod's until `remove`; a pod whose keeper died without a word is shown as lost, never as running.
Does not: outlive a restart of the machine (the runtime directory does not), nor do pods.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from contextlib import suppress
from typing import Any

from nucleus.cli.options import invalid
from nucleus.errors import InvalidError
from nucleus.pod import runtime
from nucleus.store.note_keys import write_whole

RECORD, LOCK, SOCKET, LOG = "pod.json", "lock", "control.sock", "log"
RUNNING, LOST, STARTING = "running", "lost", "starting"
_RECORD_BYTES = 1 << 20


def directory(name: str = "") -> str:
    """Of all pods, or of one. Raises SandboxError: the runtime directory is not ours."""
    path = os.path.join(runtime.runtime_dir(), "pods.d")
    runtime.private_directory(path)
    return os.path.join(path, name) if name else path


def claim(name: str) -> str:
    """Make the directory of a new pod. Raises InvalidError: rule ``pod.exists``."""
    path = directory(name)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        state = (read(name) or {}).get("state", STARTING)
        step = f"`nucleus pod rm {name}` removes it{' (--force: while it runs)' if state == RUNNING else ''}."
        raise InvalidError(f"there is a pod {name!r} ({state})", rule="pod.exists", next_step=step) from None
    return path


def write(path: str, record: dict[str, Any]) -> None:
    """Keep a pod's record in its directory."""
    write_whole(os.path.join(path, RECORD), json.dumps(record).encode() + b"\n", replace=True)


def names() -> list[str]:
    """Of all pods."""
    return sorted(os.listdir(directory()))


def read(name: str) -> dict[str, Any] | None:
    """A pod's record; its `state` is as it is now. None: there is no such pod."""
    if not name or "/" in name or name.startswith("."):
        raise invalid(f"{name[:80]!r} is not the name of a pod")
    path = directory(name)
    record: dict[str, Any] = {"name": name, "state": STARTING}
    try:
        with open(os.path.join(path, RECORD), "rb") as file:
            found = json.loads(file.read(_RECORD_BYTES))
        record = found if isinstance(found, dict) else record
    except FileNotFoundError:
        if not os.path.isdir(path):
            return None
    except (OSError, ValueError):
        record["state"] = LOST
    if record["state"] in (RUNNING, STARTING) and not _kept(path):
        # It may have ended in between, with a word.
        with suppress(OSError, ValueError), open(os.path.join(path, RECORD), "rb") as file:
            record = json.loads(file.read(_RECORD_BYTES))
        if record["state"] in (RUNNING, STARTING):
            record["state"] = LOST
    return record


def must(name: str) -> dict[str, Any]:
    """A pod's record. Raises InvalidError: rule ``pod.unknown``."""
    record = read(name)
    if record is None:
        raise InvalidError(f"no pod {name!r}", rule="pod.unknown", next_step="`nucleus pod list` shows them.")
    return record


def remove(name: str) -> None:
    """Forget a pod that has ended."""
    shutil.rmtree(directory(name), ignore_errors=True)


def hold(path: str) -> int:
    """The lock of a pod's directory, for its keeper: as a descriptor. Raises BlockingIOError, OSError."""
    fd = os.open(os.path.join(path, LOCK), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return fd


def _kept(path: str) -> bool:
    """Whether a keeper lives."""
    try:
        fd = os.open(os.path.join(path, LOCK), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False
