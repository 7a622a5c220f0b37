"""Directory trees that a pod may have written: looked at, compared and copied without following anything in them.

Promises: every name is opened from the descriptor of its directory, links are never followed, special files never
opened; entries, depth and bytes are bounded; a file's holes stay holes where the file system shares (FICLONE) or skips.
Relies on: nothing but the kernel. Does not: decide what may be taken over (`copies`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from nucleus.errors import InvalidError
from nucleus.kernel import openat2

MAX_ENTRIES = 500_000
MAX_DEPTH = 128
MAX_BYTES = 64 * 1024**3
_FICLONE = 0x40049409  # linux/fs.h
_PIECE = 1 << 20
_BENEATH = openat2.RESOLVE_BENEATH | openat2.RESOLVE_NO_SYMLINKS | openat2.RESOLVE_NO_MAGICLINKS
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


@dataclass(frozen=True, slots=True)
class Entry:
    """One name.

    Attributes:
        kind: ``file``, ``dir``, ``link`` or ``special``.
        mode: permission bits, without set-user-ID and its like.
        size: bytes of a file.
        target: of a link.
    """

    kind: str
    mode: int
    size: int = 0
    target: str = ""


def opened(root: int, path: str, flags: int, mode: int = 0) -> int:
    """Open a relative path ("" is the root) beneath a directory, through no link. Raises OSError."""
    return openat2.openat2(root, os.fsencode(path or "."), flags, mode, resolve=_BENEATH)


@contextmanager
def parent_of(root: int, path: str) -> Iterator[tuple[int, str]]:
    """The directory of a path, as a descriptor, and the last name. Raises OSError."""
    above, _, name = path.rpartition("/")
    fd = opened(root, above, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd, name
    finally:
        os.close(fd)


def scan(root: int, without: frozenset[str] = frozenset()) -> dict[str, Entry]:
    """Every name below a directory, by relative path, directories before what is in them; not those of `without`.

    What vanishes meanwhile is left out.

    Raises:
        InvalidError: rule ``pod.copy``: more than `MAX_ENTRIES`, or deeper than `MAX_DEPTH`.
    """
    found: dict[str, Entry] = {}
    waiting = [("", 0)]
    while waiting:
        path, depth = waiting.pop()
        try:
            fd = opened(root, path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            if not path:
                raise
            if path in found:  # closed to us, as an ordinary user: not taken for an empty one
                found[path] = Entry("special", 0)
            continue
        try:
            with os.scandir(fd) as names:
                for one in sorted(names, key=lambda name: name.name):
                    below = f"{path}/{one.name}" if path else one.name
                    if below in without:
                        continue
                    entry = entry_at(fd, one.name)
                    if entry is None:
                        continue
                    found[below] = entry
                    if len(found) > MAX_ENTRIES or depth >= MAX_DEPTH:
                        raise _too(f"over {MAX_ENTRIES} files, or {MAX_DEPTH} directories deep")
                    if entry.kind == "dir":
                        waiting.append((below, depth + 1))
        finally:
            os.close(fd)
    return found


def entry_at(directory: int, name: str) -> Entry | None:
    """What a name is; None: nothing."""
    try:
        info = os.stat(name, dir_fd=directory, follow_symlinks=False)
        mode = stat.S_IMODE(info.st_mode) & 0o777
        if stat.S_ISREG(info.st_mode):
            return Entry("file", mode, info.st_size)
        if stat.S_ISDIR(info.st_mode):
            return Entry("dir", mode)
        if stat.S_ISLNK(info.st_mode):
            return Entry("link", 0, 0, os.readlink(name, dir_fd=directory))
    except OSError:
        return None
    return Entry("special", mode)


def entry_of(root: int, path: str) -> Entry | None:
    """What a path is, beneath a directory."""
    try:
        with parent_of(root, path) as (directory, name):
            return entry_at(directory, name)
    except OSError:
        return None


def same_content(one: int, other: int, path: str) -> bool:
    """Whether a file's bytes are the same below both roots. Unreadable ones are not."""
    try:
        first = opened(one, path, _READ)
        try:
            second = opened(other, path, _READ)
            try:
                while True:
                    a, b = os.read(first, _PIECE), os.read(second, _PIECE)
                    if a != b:
                        return False
                    if not a:
                        return True
            finally:
                os.close(second)
        finally:
            os.close(first)
    except OSError:
        return False


def copy_tree(source: int, target: int, *, limit: int = MAX_BYTES, without: frozenset[str] = frozenset()) -> list[str]:
    """Copy what is below one directory into another, which is empty. Owners and times too, where it may.

    Returns:
        The paths that were left out: special files, and those that cannot be read.

    Raises:
        InvalidError: rule ``pod.copy``: too many or too much. OSError: the target cannot be written.
    """
    left_out, taken = [], 0
    entries = scan(source, without)
    for path, entry in entries.items():
        with parent_of(target, path) as (into, name):
            if entry.kind == "dir":
                os.mkdir(name, 0o700, dir_fd=into)
            elif entry.kind == "link":
                os.symlink(entry.target, name, dir_fd=into)
                _owned(source, path, into, name)
            elif entry.kind == "file":
                taken += entry.size
                if taken > limit:
                    raise _too(f"over {limit} bytes")
                if not copy_file(source, path, into, name):
                    left_out.append(path)
            else:
                left_out.append(path)
    for path, entry in reversed(entries.items()):
        if entry.kind == "dir":
            with parent_of(target, path) as (into, name):
                _owned(source, path, into, name)
                os.chmod(name, entry.mode, dir_fd=into)
    return left_out


def copy_file(source: int, path: str, into: int, name: str, mode: int | None = None) -> bool:
    """Copy one file to a name that is free; False: it cannot be read, or is no file any more. Raises OSError."""
    try:
        from_fd = opened(source, path, _READ)
    except OSError:
        return False
    try:
        info = os.fstat(from_fd)
        if not stat.S_ISREG(info.st_mode):
            return False
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        to_fd = os.open(name, flags, 0o600, dir_fd=into)
        try:
            _copy(from_fd, to_fd, info.st_size)
            with suppress(PermissionError):
                os.fchown(to_fd, info.st_uid, info.st_gid)
            os.fchmod(to_fd, stat.S_IMODE(info.st_mode) & 0o777 if mode is None else mode)
            os.utime(to_fd, ns=(info.st_atime_ns, info.st_mtime_ns))
        finally:
            os.close(to_fd)
    finally:
        os.close(from_fd)
    return True


def _copy(source: int, target: int, size: int) -> None:
    """Shared where the file system can; else what is there, up to `size`: a file that grows meanwhile ends there."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
        return
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EPERM, errno.ETXTBSY):
            raise
    at = 0
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError:
            break  # nothing but a hole until the end
        end = min(os.lseek(source, at, os.SEEK_HOLE), size)
        while at < end:
            data = os.pread(source, min(_PIECE, end - at), at)
            if not data:
                break
            os.pwrite(target, data, at)
            at += len(data)
        else:
            continue
        break  # it has become shorter
    os.ftruncate(target, size)


def remove_below(root: int, keep: frozenset[str] = frozenset()) -> None:
    """Take everything out of a directory, but its names in `keep`. Raises OSError."""
    entries = scan(root, keep)
    for path, entry in reversed(entries.items()):
        with suppress(FileNotFoundError), parent_of(root, path) as (directory, name):
            if entry.kind == "dir":
                os.rmdir(name, dir_fd=directory)
            elif entry.kind == "special":
                _remove_special(directory, name)
            else:
                os.unlink(name, dir_fd=directory)


def _remove_special(directory: int, name: str) -> None:
    """No file; perhaps a directory of ours that was closed."""
    try:
        os.unlink(name, dir_fd=directory)
        return
    except (IsADirectoryError, PermissionError):
        if not stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
            raise
    os.chmod(name, 0o700, dir_fd=directory)
    fd = opened(directory, name, os.O_RDONLY | os.O_DIRECTORY)
    try:
        remove_below(fd)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=directory)


def readable(root: int, path: str) -> bool:
    """Whether a file can be opened."""
    try:
        os.close(opened(root, path, _READ))
    except OSError:
        return False
    return True


def _owned(source: int, path: str, into: int, name: str) -> None:
    with suppress(OSError), parent_of(source, path) as (directory, last):
        info = os.stat(last, dir_fd=directory, follow_symlinks=False)
        os.chown(name, info.st_uid, info.st_gid, dir_fd=into, follow_symlinks=False)


def _too(why: str) -> InvalidError:
    return InvalidError(f"too much for a copy: {why}", rule="pod.copy", next_step="Work in a smaller directory.")
