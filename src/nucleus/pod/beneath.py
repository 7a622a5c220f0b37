"""Names below a directory that somebody else may be changing: opened without following a symlink; our placeholders.

Promises: `open_beneath` opens one component at a time and follows nothing; `remove_placeholders` removes what we made
and nothing else; `identity` names an inode, and a symlink by its age too: a freed inode's number is soon used again.
Does not: keep a name from changing after it was opened.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

COMMONDIR = b".\n"  # git: the directory that is shared with other worktrees is this one


def identity(found: os.stat_result) -> str:
    """Which inode this is."""
    age = f":{found.st_ctime_ns}" if stat.S_ISLNK(found.st_mode) else ""
    return f"{found.st_dev}:{found.st_ino}{age}"


def open_beneath(root: int, path: str, flags: int) -> int:
    """Open a name below `root`, one component at a time, following no symlink, not even the last one.

    Raises:
        OSError: ELOOP for a symlink anywhere in the path.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise OSError(errno.EXDEV, "a path with ..")
    at = root
    try:
        for number, part in enumerate(parts or ["."]):
            last = number >= len(parts) - 1
            wanted = flags if last else os.O_PATH | os.O_DIRECTORY
            inner = os.open(part, wanted | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            if at != root:
                os.close(at)
            at = inner
        if flags & os.O_PATH and stat.S_ISLNK(os.fstat(at).st_mode):
            raise OSError(errno.ELOOP, "a symlink")
    except BaseException:
        if at != root:
            os.close(at)
        raise
    return at


def new_file(directory: int, name: str, content: bytes) -> None:
    """Make a file that has its content from its first moment: the host's git may be looking."""
    draft = f".nucleus-{os.urandom(8).hex()}"
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644, dir_fd=directory)
    try:
        with open(fd, "wb") as file:
            file.write(content)
        os.link(draft, name, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
    finally:
        os.unlink(draft, dir_fd=directory)


def is_harmless(directory: int, name: str) -> bool:
    """Is this what a placeholder of ours is: an empty directory or file, or the `commondir` that says "here"?"""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return False
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            return not os.listdir(fd)
        return stat.S_ISREG(mode) and os.read(fd, 8) == (COMMONDIR if name == "commondir" else b"")
    finally:
        os.close(fd)


def remove_placeholders(workspace: int, placeholders: list[str]) -> None:
    """Remove the placeholders that we made, and nothing that has come to be in them.

    Runs on the host side once the pod is dead; the names are walked without following a symlink.
    """
    for path in placeholders:
        holder, _, name = path.rpartition("/")
        with suppress(OSError):
            parent = open_beneath(workspace, holder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                if is_harmless(parent, name):
                    if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                        os.rmdir(name, dir_fd=parent)
                    else:
                        os.unlink(name, dir_fd=parent)
            finally:
                os.close(parent)
