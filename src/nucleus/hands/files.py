"""read, write and edit on the workspace: each takes a request's header and body and returns the answer's.

Promises: names go through `nucleus.hands.root` alone. A write is whole or not at all: a temporary file in the same
directory (random name, O_EXCL), fsync, rename over the old name, fsync of the directory; what is replaced is a
regular file that we could have opened for writing, never a symlink, directory, fifo or device. Permission bits are
kept; setuid, setgid and sticky never. Missing parent directories are made one at a time (0755), each opened without
symlinks.
Does not: keep owner, ACLs or extended attributes of a replaced file; lock. An edit that finds the file changed between
its read and its rename is refused, but two writers in the pod can still race in the last microseconds.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Any

from nucleus.hands.edit_diff import unified
from nucleus.hands.protocol import HandsError, from_oserror, integer, path
from nucleus.hands.root import STRICT, Root, check_regular
from nucleus.kernel.openat2 import openat2
from nucleus.limits import LIMITS

Answer = tuple[dict[str, Any], bytes]
_NEW_MODE = 0o644
_NEW_DIRECTORY = 0o755
_Identity = tuple[int, int, int, int]


def read(root: Root, header: dict[str, Any], body: bytes) -> Answer:
    """Up to `limit` bytes from `offset`; `size` is the whole file's, `truncated` says that more follows."""
    name = path(header)
    offset = integer(header, "offset", 0, (1 << 63) - 1, 0)
    limit = integer(header, "limit", 1, LIMITS.read_bytes, LIMITS.read_bytes)
    fd, status = root.open_file(name)
    try:
        data = _read_up_to(fd, limit, offset)
        size = max(os.fstat(fd).st_size, 0)
    except OSError as error:
        raise from_oserror(error) from None
    finally:
        os.close(fd)
    answer = {"size": size, "truncated": offset + len(data) < size, "mode": status.st_mode & 0o777}
    return answer, data


def write(root: Root, header: dict[str, Any], body: bytes) -> Answer:
    """Create or replace `path` with the body."""
    name = path(header)
    if len(body) > LIMITS.content_bytes:
        raise HandsError("too_large", f"content over {LIMITS.content_bytes} bytes")
    created = _replace(root, name, body, None)
    return {"bytes": len(body), "created": created}, b""


def edit(root: Root, header: dict[str, Any], body: bytes) -> Answer:
    """Replace `old` by `new` where it occurs exactly `count` times (counted without overlap)."""
    name = path(header)
    old = text_bytes(header, "old")
    new = text_bytes(header, "new")
    count = integer(header, "count", 1, LIMITS.content_bytes, 1)
    if not old:
        raise HandsError("protocol", "old: cannot be empty")
    fd, status = root.open_file(name)
    try:
        data = _read_up_to(fd, LIMITS.content_bytes + 1, 0)
    except OSError as error:
        raise from_oserror(error) from None
    finally:
        os.close(fd)
    if len(data) > LIMITS.content_bytes:
        raise HandsError("too_large", f"file over {LIMITS.content_bytes} bytes")
    found = data.count(old)
    if found == 0:
        raise HandsError("no_match", "the text does not occur", found=0)
    if found != count:
        raise HandsError("count_mismatch", f"found {found} times, expected {count}", found=found)
    if len(data) + found * (len(new) - len(old)) > LIMITS.content_bytes:
        raise HandsError("too_large", f"result over {LIMITS.content_bytes} bytes")
    result = data.replace(old, new)
    diff = unified(name, data, old, new)
    _replace(root, name, result, _identity(status))
    return {"replaced": found, "bytes": len(result), "diff": diff}, b""


def text_bytes(header: dict[str, Any], name: str) -> bytes:
    """A string field as UTF-8; unlike a path it may hold NUL."""
    value = header.get(name)
    if not isinstance(value, str) or len(value) > LIMITS.content_bytes:
        raise HandsError("protocol", f"{name}: missing, of the wrong type or out of bounds")
    try:
        return value.encode("utf-8")
    except UnicodeEncodeError:
        raise HandsError("protocol", f"{name}: lone surrogates") from None


def _identity(status: os.stat_result) -> _Identity:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _read_up_to(fd: int, limit: int, offset: int) -> bytes:
    try:
        first = os.pread(fd, min(limit, max(os.fstat(fd).st_size - offset, 0) + 1), offset)
    except OverflowError:
        return b""
    if len(first) == limit or not first:
        return first
    parts = [first]
    have = len(first)
    while have < limit and (part := os.pread(fd, min(limit - have, 1 << 20), offset + have)):
        parts.append(part)
        have += len(part)
    return b"".join(parts)


def _replace(root: Root, name: str, data: bytes, expected: _Identity | None) -> bool:
    """Put `data` under `name` atomically; returns whether the name is new."""
    before, _, leaf = name.rpartition("/")
    if name == ".":
        raise HandsError("is_a_directory", "is a directory")
    parent = _make_parents(root, name, before)
    try:
        existing = _existing(root, name, parent, leaf)
        if expected is not None and (existing is None or _identity(existing) != expected):
            raise HandsError("io", "the file changed while it was edited")
        mode = _NEW_MODE if existing is None else existing.st_mode & 0o777
        _swap_in(parent, leaf.encode("utf-8"), data, mode)
        return existing is None
    except OSError as error:
        raise from_oserror(error) from None
    finally:
        os.close(parent)


def _make_parents(root: Root, name: str, directory: str) -> int:
    """Open `directory`, the one of `name`, made with its parents where missing. Never through a symlink."""
    try:
        return root.open_directory(directory or ".", os.O_RDONLY)
    except HandsError as error:
        if error.code == "symlink":
            raise root.symlink_error(name) from None
        if error.code != "not_found":
            raise
    here = root.open_directory(".", os.O_RDONLY)
    for part in directory.split("/"):
        try:
            try:
                os.mkdir(part, _NEW_DIRECTORY, dir_fd=here)
                os.fsync(here)
            except FileExistsError:
                pass
            below = openat2(here, part.encode("utf-8"), os.O_RDONLY | os.O_DIRECTORY, resolve=STRICT)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise root.symlink_error(name) from None
            raise from_oserror(error) from None
        finally:
            os.close(here)
        here = below
    return here


def _existing(root: Root, name: str, parent: int, leaf: str) -> os.stat_result | None:
    """The fstat of what `leaf` names and we may replace, None when it is free; raises for what must stay."""
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY
    try:
        fd = openat2(parent, leaf.encode("utf-8"), flags, resolve=STRICT)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise root.symlink_error(name) from None
        if error.errno != errno.ETXTBSY:  # a running program can be replaced, its inode lives on
            raise
        fd = openat2(parent, leaf.encode("utf-8"), os.O_PATH, resolve=STRICT)
    try:
        status = os.fstat(fd)
    finally:
        os.close(fd)
    check_regular(status)
    return status


def _swap_in(parent: int, leaf: bytes, data: bytes, mode: int) -> None:
    temporary = b".nucleus-%s.tmp" % os.urandom(12).hex().encode("ascii")
    fd = openat2(parent, temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, resolve=STRICT)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fchmod(fd, stat.S_IMODE(mode) & 0o777)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, leaf, src_dir_fd=parent, dst_dir_fd=parent)
    except BaseException:
        try:
            os.unlink(temporary, dir_fd=parent)
        except OSError:
            pass
        raise
    os.fsync(parent)
