"""Our own code, for a process that is about to become another uid and still has modules to load.

Root's home is closed to others (0700 on Debian), and a checkout or a virtual environment may well be in it. A process
that leaves root behind would not find its next module there. So, while it is root, it takes the directories that Python
loads from, gets a mount namespace of its own, lays an empty file system over what is closed, and puts them back in
their places on it. Nothing on disk changes, no other process sees it, and of what was closed nothing else shows.

Promises: does nothing where every directory can be walked to; a module that others may not read is an error here, with
what to do, and not one at some later import.
Does not: help what runs programs, or reads files of the person, by path: what was closed is closed to it.
"""

from __future__ import annotations

import os
import sys

from nucleus.errors import SandboxError
from nucleus.kernel import syscalls

_PASS, _READ = 0o001, 0o004


def keep() -> None:
    """See the module. For a process that is root; another has nothing to lose.

    Raises:
        SandboxError: rule ``code.closed``: files or directories of ours are closed to other users.
    """
    if os.geteuid() != 0:
        return
    needed = _needed()
    if not os.stat(__file__).st_mode & _READ:
        raise _closed(__file__)
    over = sorted({above for path in needed if (above := _closed_above(path))})
    if not over:
        return
    trees = []
    for path in needed:
        if any(path.startswith(f"{closed}/") for closed in over):
            if not os.stat(path).st_mode & _PASS:
                raise _closed(path)
            flags = syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC | syscalls.AT_RECURSIVE
            trees.append((path, flags))
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
    taken = [(path, syscalls.open_tree(syscalls.AT_FDCWD, path, flags)) for path, flags in trees]
    for closed in over:
        syscalls.mount("tmpfs", closed, "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "mode=0755,size=1m")
    mask = os.umask(0o022)
    for path, tree in taken:
        os.makedirs(path, 0o755, exist_ok=True)
        syscalls.move_mount(tree, "", syscalls.AT_FDCWD, path, syscalls.MOVE_MOUNT_F_EMPTY_PATH)
        os.close(tree)
    os.umask(mask)
    for closed in over:
        flags = syscalls.MS_REMOUNT | syscalls.MS_RDONLY | syscalls.MS_NOSUID | syscalls.MS_NODEV
        syscalls.mount("", closed, "", flags)


def _needed() -> list[str]:
    """The directories that Python loads from, none inside another."""
    found = {os.path.realpath(path) for path in sys.path if path and os.path.isdir(path)}
    return sorted(path for path in found if not any(path.startswith(f"{other}/") for other in found))


def _closed_above(path: str) -> str:
    """The topmost directory above `path` that others cannot walk through; "" where there is none."""
    found = ""
    above = os.path.dirname(path)
    while above != "/":
        if not os.stat(above).st_mode & _PASS:
            found = above
        above = os.path.dirname(above)
    return found


def _closed(path: str) -> SandboxError:
    return SandboxError(
        f"{path} is closed to other users, and what keeps pods apart runs as others",
        rule="code.closed",
        next_step=f"`chmod -R go+rX {path}`, or install it again with umask 022.",
    )
