"""`openat2` and `renameat2` through ctypes: opens that the kernel itself keeps below a directory.

Promises: a path with a NUL is refused before the kernel sees a truncated one; EAGAIN (a rename raced with the walk) is
retried a bounded number of times; a failure is an OSError with the kernel's errno and without a path.
Relies on: Linux 5.6 (openat2, one number on every architecture) and a libc with `renameat2`.
Does not: choose policy. Which RESOLVE_ flags to use is the caller's.

Source: openat2(2), include/uapi/linux/openat2.h; renameat2(2).
"""

from __future__ import annotations

import ctypes
import errno
import os

from nucleus.kernel.beneath import open_beneath

SYS_OPENAT2 = 437

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

RENAME_NOREPLACE = 0x1
RENAME_EXCHANGE = 0x2

RETRIES = 128  # EAGAIN and EINTR together; 17 to 25 in 100,000 were seen against a busy swapper


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_SIZE = ctypes.c_size_t(ctypes.sizeof(_OpenHow))
_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_NUMBER = ctypes.c_long(SYS_OPENAT2)
_walked = False  # there is no openat2 here, and we walk
_renameat2 = _libc.renameat2
_renameat2.restype = ctypes.c_int
_renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)


def walk_where_missing() -> None:
    """From now on walk component by component where this kernel has no openat2: for a guest's kernel, and said so
    explicitly, since a host without it is refused (`nucleus doctor`)."""
    global _walked
    here = os.open(".", os.O_PATH | os.O_CLOEXEC)
    try:
        os.close(openat2(here, b".", os.O_PATH, resolve=RESOLVE_BENEATH))
    except OSError as error:
        _walked = error.errno == errno.ENOSYS
    finally:
        os.close(here)


def openat2(dir_fd: int, path: bytes, flags: int, mode: int = 0, *, resolve: int) -> int:
    """Open `path` below `dir_fd`; always close-on-exec.

    Args:
        dir_fd: the directory that RESOLVE_BENEATH keeps the walk under.
        path: bytes without NUL.
        flags: O_ flags. mode: permission bits, only with O_CREAT (the kernel refuses them otherwise).
        resolve: RESOLVE_ flags.

    Returns:
        A new descriptor, the caller's to close.

    Raises:
        ValueError: a NUL in the path.
        OSError: EXDEV left the directory, ELOOP a symlink where none is allowed, EAGAIN raced RETRIES times, and
            whatever open(2) says.
    """
    if b"\0" in path:
        raise ValueError("a path cannot hold NUL")
    if _walked:
        return open_beneath(dir_fd, path, flags, mode, links=not resolve & RESOLVE_NO_SYMLINKS)
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    pointer = ctypes.byref(how)
    code = 0
    for _ in range(RETRIES):
        fd = int(_syscall(_NUMBER, ctypes.c_int(dir_fd), ctypes.c_char_p(path), pointer, _SIZE))
        if fd >= 0:
            return fd
        code = ctypes.get_errno()
        if code not in (errno.EAGAIN, errno.EINTR):
            break
    raise OSError(code, os.strerror(code))


def renameat2(old_fd: int, old: bytes, new_fd: int, new: bytes, flags: int = 0) -> None:
    """Rename within two directories; `flags` are RENAME_NOREPLACE or RENAME_EXCHANGE.

    Raises:
        ValueError: a NUL in a name.
        OSError: as renameat2(2).
    """
    if b"\0" in old or b"\0" in new:
        raise ValueError("a path cannot hold NUL")
    if _renameat2(old_fd, old, new_fd, new, flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
