"""openat2 against the real kernel: what it refuses, and a race that it must never lose."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

import pytest

from nucleus.kernel import openat2 as openat2_module
from nucleus.kernel.openat2 import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RESOLVE_BENEATH,
    RESOLVE_NO_MAGICLINKS,
    RESOLVE_NO_SYMLINKS,
    openat2,
    renameat2,
)

FOLLOW = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS
STRICT = FOLLOW | RESOLVE_NO_SYMLINKS
OPENS = 100_000
SECONDS = 8.0  # the race test stops here on a slow machine


@pytest.fixture(params=["kernel", "walked"], autouse=True)
def walked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """The kernel's own, and what takes its place in a guest without it."""
    monkeypatch.setattr(openat2_module, "_walked", request.param == "walked")
    return bool(request.param == "walked")


@pytest.fixture
def root(tmp_path: Path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_text("outside")
    inside = tmp_path / "inside"
    (inside / "dir").mkdir(parents=True)
    (inside / "dir" / "file").write_text("inside")
    fd = os.open(inside, os.O_PATH | os.O_DIRECTORY)
    yield inside, fd
    os.close(fd)


def failure(fd: int, path: bytes, resolve: int = STRICT) -> int:
    with pytest.raises(OSError) as caught:
        os.close(openat2(fd, path, os.O_RDONLY, resolve=resolve))
    assert caught.value.filename is None, "no path in the error"
    return caught.value.errno or 0


def test_a_file_below_opens_close_on_exec(root: tuple[Path, int]) -> None:
    fd = openat2(root[1], b"dir/file", os.O_RDONLY, resolve=STRICT)
    try:
        assert os.read(fd, 10) == b"inside"
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize("path", [b"../outside/file", b"dir/../../outside/file", b"/etc/passwd", b".."])
def test_a_path_that_leaves_is_exdev(root: tuple[Path, int], path: bytes) -> None:
    assert failure(root[1], path) == errno.EXDEV


def test_symlinks(root: tuple[Path, int]) -> None:
    inside, fd = root
    (inside / "out").symlink_to("../outside/file")
    (inside / "absolute").symlink_to("/etc/passwd")
    (inside / "in").symlink_to("dir/file")
    (inside / "loop").symlink_to("loop")
    for name in (b"out", b"absolute", b"in", b"loop"):
        assert failure(fd, name) == errno.ELOOP
    assert failure(fd, b"out", FOLLOW) == errno.EXDEV
    assert failure(fd, b"absolute", FOLLOW) == errno.EXDEV
    assert failure(fd, b"loop", FOLLOW) == errno.ELOOP
    os.close(openat2(fd, b"in", os.O_RDONLY, resolve=FOLLOW))


def test_magic_links_are_refused(walked: bool) -> None:
    expected = errno.EXDEV if walked else errno.ELOOP  # where they say that they lead
    fd = os.open("/", os.O_PATH | os.O_DIRECTORY)
    try:
        assert failure(fd, b"proc/%d/root/etc/passwd" % os.getpid(), FOLLOW) == expected
        assert failure(fd, b"proc/self/root/etc/passwd", FOLLOW) == expected
    finally:
        os.close(fd)


def test_nul_is_refused_before_the_kernel_cuts_the_name(root: tuple[Path, int]) -> None:
    with pytest.raises(ValueError, match="NUL"):
        openat2(root[1], b"dir/file\0.txt", os.O_RDONLY, resolve=STRICT)
    with pytest.raises(ValueError, match="NUL"):
        renameat2(root[1], b"dir\0", root[1], b"x")


def test_renameat2(root: tuple[Path, int]) -> None:
    inside, fd = root
    (inside / "a").write_text("a")
    (inside / "b").write_text("b")
    renameat2(fd, b"a", fd, b"b", RENAME_EXCHANGE)
    assert ((inside / "a").read_text(), (inside / "b").read_text()) == ("b", "a")
    with pytest.raises(FileExistsError):
        renameat2(fd, b"a", fd, b"b", RENAME_NOREPLACE)


def swapper(fd: int) -> int:
    """A process that swaps `dir` with a symlink to the outside, as fast as it can."""
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(60)
            while True:
                renameat2(fd, b"dir", fd, b"swap", RENAME_EXCHANGE)
        finally:
            os._exit(1)
    return pid


@pytest.mark.parametrize(
    ("path", "resolve"), [(b"dir/file", STRICT), (b"dir/file", FOLLOW), (b"dir/sub/../file", FOLLOW)]
)
def test_no_open_escapes_a_swapper(root: tuple[Path, int], path: bytes, resolve: int) -> None:
    """A hundred thousand opens (the cases together) against RENAME_EXCHANGE; a plain open escapes at once."""
    inside, fd = root
    (inside / "dir" / "sub").mkdir()
    (inside.parent / "outside" / "sub").mkdir()
    (inside / "swap").symlink_to("../outside")
    pid = swapper(fd)
    opened = refused = escaped = 0
    naive_escapes = 0
    errors: set[int | None] = set()
    end = time.monotonic() + SECONDS / 3
    try:
        for _ in range(OPENS // 3 + 1):
            try:
                file = openat2(fd, path, os.O_RDONLY, resolve=resolve)
            except OSError as error:
                errors.add(error.errno)
                refused += 1
            else:
                opened += 1
                escaped += os.read(file, 10) != b"inside"
                os.close(file)
            if time.monotonic() > end:
                break
        # Until one escapes: on a busy machine the swapper may not run for a while.
        end = time.monotonic() + 10
        while not naive_escapes and time.monotonic() < end:
            file = os.open("dir/file", os.O_RDONLY, dir_fd=fd)
            naive_escapes += os.read(file, 10) != b"inside"
            os.close(file)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert escaped == 0
    assert errors <= {errno.ELOOP, errno.EXDEV, errno.EAGAIN}
    assert opened > 100, "the race was not run"
    assert refused > 100, "the race was not run"
    assert naive_escapes > 0, "the swapper was not running"
