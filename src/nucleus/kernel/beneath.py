"""`openat2` for a kernel that has none (a guest's): the same walk, one component after another.

Promises: no component is followed through a symlink by the kernel (O_NOFOLLOW on each); `..` and absolute names leave
by EXDEV, as RESOLVE_BENEATH has it; where symlinks are allowed they are read and walked here, and `..` in them goes
back along the descriptors of this walk, never by the kernel's parent. At most 40 links, as Linux has it.
Relies on: O_PATH | O_NOFOLLOW giving the link itself. Does not: magic links (their text is walked as any other).
"""

from __future__ import annotations

import errno
import os
import stat

LINKS = 40
_PLAIN = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def open_beneath(dir_fd: int, path: bytes, flags: int, mode: int, *, links: bool) -> int:
    """Open `path` below `dir_fd`.

    Args:
        flags: O_ flags, O_CLOEXEC is added. mode: with O_CREAT.
        links: symlinks are followed, below `dir_fd`; else they are ELOOP.

    Raises:
        OSError: as `nucleus.kernel.openat2.openat2`.
    """
    try:
        return _open(dir_fd, path, flags, mode, links)
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or errno.EIO)) from None  # no path in it


def _open(dir_fd: int, path: bytes, flags: int, mode: int, links: bool) -> int:
    if not path:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    if path.endswith((b"/", b"/.")):
        flags |= os.O_DIRECTORY
    parts = _parts(path)
    here = [dir_fd]  # our own way down
    followed = 0
    try:
        while parts:
            part = parts.pop(0)
            if part == b"..":
                if len(here) == 1:
                    raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
                os.close(here.pop())
                continue
            if not parts and not links:
                return _last(here[-1], part, flags, mode)
            found = _look(here[-1], part)
            if found < 0:  # only the last one may be made
                if parts or not flags & os.O_CREAT:
                    raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
                return _last(here[-1], part, flags, mode)
            if stat.S_ISLNK(os.fstat(found).st_mode):
                os.close(found)
                followed += 1
                if not links or followed > LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                parts = [*_parts(_target(here[-1], part)), *parts]
            elif not parts:
                os.close(found)
                return _last(here[-1], part, flags, mode)
            else:
                here.append(found)
        return os.open(b".", flags | os.O_CLOEXEC, dir_fd=here[-1])
    finally:
        for fd in here[1:]:
            os.close(fd)


def _parts(path: bytes) -> list[bytes]:
    """The components; a name that ends in a slash is a directory's. Raises OSError: it is absolute."""
    if path.startswith(b"/"):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    return [part for part in path.split(b"/") if part not in (b"", b".")]


def _look(at: int, part: bytes) -> int:
    """The component itself, not what it leads to; -1 where there is none."""
    try:
        return os.open(part, _PLAIN, dir_fd=at)
    except FileNotFoundError:
        return -1


def _target(at: int, part: bytes) -> bytes:
    """What a symlink says; its own name where it is none any more, so that it is looked at again."""
    try:
        return os.readlink(part, dir_fd=at)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return part


def _last(at: int, part: bytes, flags: int, mode: int) -> int:
    """Open the last component. A symlink there is ELOOP, whatever the flags make of it."""
    try:
        fd = os.open(part, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=at)
    except NotADirectoryError:
        if _is_link(at, part):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None
        raise
    if flags & os.O_PATH and stat.S_ISLNK(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return fd


def _is_link(at: int, part: bytes) -> bool:
    try:
        return stat.S_ISLNK(os.stat(part, dir_fd=at, follow_symlinks=False).st_mode)
    except OSError:
        return False
