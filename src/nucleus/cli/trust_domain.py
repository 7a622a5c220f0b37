"""`nucleus identity trust-domain`: what this installation's identities are named by, chosen before the first one.

Promises: once there is a CA, or an authority runs, the name is not changed: what was issued would be another's. The
file is whole or not there, and belongs to who keeps the state.
"""

from __future__ import annotations

import fcntl
import os
import sys
import tempfile
from contextlib import suppress
from typing import Any

from nucleus.cli.options import invalid
from nucleus.errors import InvalidError
from nucleus.identity.spiffe_id import SpiffeId
from nucleus.pod import runtime


def run(_: dict[str, Any], words: list[str]) -> int:
    """One command line: show it, or choose it. Raises NucleusError."""
    state = runtime.state_dir()
    if not words:
        sys.stdout.write(runtime.trust_domain(state) + "\n")
        return 0
    name = SpiffeId(words[0]).trust_domain
    if name == runtime.trust_domain(state):
        return 0
    runtime.prepare_state(state)
    lock = locked(state)
    try:
        with suppress(FileNotFoundError):
            if os.listdir(os.path.join(state, "ca")):
                raise InvalidError(
                    f"identities of {runtime.trust_domain(state)} have been issued",
                    rule="identity.trust_domain",
                    next_step="Choose it in a new state directory (NUCLEUS_STATE), before the first pod.",
                )
        write_of_state(state, runtime.TRUST_DOMAIN_FILE, name + "\n")
    finally:
        if lock >= 0:
            os.close(lock)
    sys.stdout.write(f"{name}\n")
    return 0


def locked(state: str) -> int:
    """The authority's lock, so that none begins meanwhile; -1 where there has never been one. Raises InvalidError."""
    try:
        lock = os.open(os.path.join(state, "lock"), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return -1
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise invalid("an authority runs: `nucleus helper stop` first") from None
    return lock


def write_of_state(state: str, name: str, text: str) -> None:
    """A file of who keeps the state, 0600, whole or as it was. Raises OSError."""
    owner = os.stat(state)
    with tempfile.NamedTemporaryFile("w", dir=state, prefix=f".{name}-", delete=False, encoding="utf-8") as file:
        try:
            file.write(text)
            file.flush()
            os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
            os.fsync(file.fileno())
            os.replace(file.name, os.path.join(state, name))
        except BaseException:
            os.unlink(file.name)
            raise
    fd = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
