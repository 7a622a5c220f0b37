"""The workspace as a directory descriptor, and names that the kernel keeps below it.

Promises, in this order, for each name:
 1. NUL is refused before the kernel could cut the name there.
 2. openat2 with RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS: what was opened has the name that was
    decided.
 3. A symlink in the way has no effect; the answer is `symlink` with the canonical name, for the gate to decide. That
    name is opened once more without symlinks and compared by inode before it is told.
 4. What is not a regular file (fifo, device, socket) is `not_a_file`, and opening it never blocks.
 5. A regular file with more than one link that we do not own is `hard_link`: it may be somebody else's file from
    outside. Our own hard links (git makes them between local clones) are allowed.
Relies on: /proc being mounted (step 3 reads /proc/self/fd). Does not: cross-check policy; the gate decided the name.
"""

from __future__ import annotations

import errno
import os
import stat

from nucleus.hands.protocol import HandsError, from_oserror
from nucleus.kernel.openat2 import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, openat2

STRICT = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_SYMLINKS
FOLLOW = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS
# No O_NOFOLLOW: beside O_PATH or O_DIRECTORY it would turn the ELOOP of RESOLVE_NO_SYMLINKS into something weaker.
SAFE = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Root:
    """An open workspace directory.

    Args:
        directory: a path, opened once, here.
    """

    def __init__(self, directory: str) -> None:
        self.fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)

    def open(self, path: str, flags: int, mode: int = 0, *, at: int | None = None) -> int:
        """Open `path` by steps 1 to 3; raises HandsError.

        Args:
            path: relative; `at`: a directory below the root that it is relative to (the root when None).
            flags: O_ flags; the safe ones are added.
        """
        try:
            name = path.encode("utf-8")
            safe = 0 if flags & os.O_PATH else SAFE  # openat2 refuses flags that O_PATH has no use for
            return openat2(self.fd if at is None else at, name, flags | safe, mode, resolve=STRICT)
        except ValueError:
            raise HandsError("protocol", "a path cannot hold NUL or lone surrogates") from None
        except OSError as error:
            if error.errno == errno.ELOOP and at is None:
                raise self._symlink(path) from None
            raise from_oserror(error) from None

    def open_file(self, path: str, flags: int = os.O_RDONLY) -> tuple[int, os.stat_result]:
        """Open a regular file by steps 1 to 5; returns the descriptor and its fstat."""
        fd = self.open(path, flags)
        try:
            status = os.fstat(fd)
            check_regular(status)
        except BaseException:
            os.close(fd)
            raise
        return fd, status

    def open_directory(self, path: str, flags: int = os.O_PATH) -> int:
        """Open a directory; what is none is `not_found` (ENOTDIR)."""
        return self.open(path, flags | os.O_DIRECTORY)

    def symlink_error(self, path: str) -> HandsError:
        """The answer for a name whose walk met a symlink."""
        return self._symlink(path)

    def _symlink(self, path: str) -> HandsError:
        head, tail = path, ""
        while True:
            try:
                fd = openat2(self.fd, head.encode("utf-8"), os.O_PATH | os.O_CLOEXEC, resolve=FOLLOW)
                break
            except OSError as error:
                if error.errno in (errno.EXDEV, errno.ELOOP):
                    return HandsError("escape", "a symlink leads out of the workspace, or nowhere")
                if error.errno != errno.ENOENT or head == ".":
                    return from_oserror(error)
                if self._is_symlink(head):
                    return HandsError("not_found", "a symlink leads to nothing")
                # The end does not exist (yet): the canonical name is that of its directory, and the rest.
                before, _, last = head.rpartition("/")
                head, tail = before or ".", f"{last}/{tail}" if tail else last
        try:
            name = self._canonical(fd)
        finally:
            os.close(fd)
        if name is None:
            return HandsError("io", "a symlink's target has no stable name")
        resolved = name if not tail else tail if name == "." else f"{name}/{tail}"
        if resolved == path:
            return HandsError("io", "the name changed while it was looked at")
        return HandsError("symlink", "a symlink is in the way", resolved=resolved)

    def _is_symlink(self, path: str) -> bool:
        """Is the last part of `path` a symlink (its directory is followed, below the root)?"""
        before, _, last = path.rpartition("/")
        try:
            parent = openat2(self.fd, (before or ".").encode(), os.O_PATH | os.O_DIRECTORY, resolve=FOLLOW)
        except OSError:
            return False
        try:
            return stat.S_ISLNK(os.stat(last, dir_fd=parent, follow_symlinks=False).st_mode)
        except OSError:
            return False
        finally:
            os.close(parent)

    def _canonical(self, fd: int) -> str | None:
        base = os.readlink(b"/proc/self/fd/%d" % self.fd)
        full = os.readlink(b"/proc/self/fd/%d" % fd)
        if full == base:
            return "."
        prefix = base.rstrip(b"/") + b"/"
        if not full.startswith(prefix):
            return None
        name = full[len(prefix) :]
        try:
            again = openat2(self.fd, name, os.O_PATH, resolve=STRICT)
            try:
                same = os.path.samestat(os.fstat(fd), os.fstat(again))
            finally:
                os.close(again)
            return name.decode("utf-8") if same else None
        except (OSError, ValueError):
            return None


def check_regular(status: os.stat_result) -> None:
    """Steps 4 and 5 on an fstat; raises HandsError."""
    if stat.S_ISDIR(status.st_mode):
        raise HandsError("is_a_directory", "is a directory")
    if not stat.S_ISREG(status.st_mode):
        raise HandsError("not_a_file", "not a regular file")
    if is_foreign_link(status):
        raise HandsError("hard_link", "the file has another name and another owner")


def is_foreign_link(status: os.stat_result) -> bool:
    """Step 5: more than one name, and not ours."""
    return status.st_nlink > 1 and status.st_uid != os.geteuid()
