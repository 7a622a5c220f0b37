"""Landlock against the real kernel, in forked children: what stays reachable and what does not."""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from children import code, in_child

from nucleus.kernel import landlock, syscalls

pytestmark = pytest.mark.skipif(landlock.abi() == 0, reason="this kernel has no Landlock")
needs_scopes = pytest.mark.skipif(landlock.abi() < 6, reason=f"Landlock ABI {landlock.abi()} has no scopes (6)")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in ("open", "shut", "shown"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    return tmp_path


def confined(rules: list[tuple[int | str, int]], work: Callable[[], Any], *, scope: bool = False) -> Any:
    def inner() -> Any:
        syscalls.set_no_new_privs()
        landlock.restrict(rules, scope=scope)
        return work()

    return in_child(inner)


def test_files(place: Path) -> None:
    def work() -> dict[str, int]:
        os.chdir(place)
        return {
            "read shown": code(lambda: os.open("shown/file", os.O_RDONLY)),
            "write shown": code(lambda: os.open("shown/file", os.O_WRONLY)),
            "truncate shown": code(lambda: os.truncate("shown/file", 0)),
            "make in shown": code(lambda: os.open("shown/new", os.O_CREAT | os.O_WRONLY)),
            "write open": code(lambda: os.open("open/new", os.O_CREAT | os.O_WRONLY)),
            "link in open": code(lambda: os.link("open/file", "open/second")),
            "read shut": code(lambda: os.open("shut/file", os.O_RDONLY)),
            "list shut": code(lambda: os.listdir("shut")),
            "read by ..": code(lambda: os.open("open/../shut/file", os.O_RDONLY)),
            "link from shut": code(lambda: os.link("shut/file", "open/linked")),
            "move out": code(lambda: os.rename("open/file", "shut/moved")),
            "remove shown": code(lambda: os.unlink("shown/file")),
        }

    os.symlink("../shut/file", place / "open" / "link")
    rules: list[tuple[int | str, int]] = [
        (f"{place}/open", landlock.READ_WRITE),
        (f"{place}/shown", landlock.READ),
    ]
    found = confined(rules, work)
    allowed = {"read shown", "write open", "link in open"}
    assert {name for name, number in found.items() if number == 0} == allowed, found
    assert {number for name, number in found.items() if name not in allowed} <= {errno.EACCES, errno.EXDEV}
    assert confined(rules, lambda: code(lambda: os.open(place / "open" / "link", os.O_RDONLY))) == errno.EACCES
    assert confined(rules, lambda: code(lambda: os.open("/etc/passwd", os.O_RDONLY))) == errno.EACCES
    assert (place / "shown" / "file").read_text() == "shown"


def test_nothing_is_allowed_by_no_rules() -> None:
    assert confined([], lambda: code(lambda: os.listdir("/"))) == errno.EACCES


def test_read_write_makes_no_device_node(place: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: nobody else could make a device node anyway")

    def work() -> list[int]:
        os.chdir(place / "open")
        return [
            code(lambda: os.mknod("zero", 0o020600, os.makedev(1, 5))),
            code(lambda: os.mknod("disk", 0o060600, os.makedev(8, 0))),
            code(lambda: os.mkfifo("fifo")),
        ]

    assert confined([(f"{place}/open", landlock.READ_WRITE)], work) == [errno.EACCES, errno.EACCES, 0]


def test_a_rule_by_descriptor_and_a_rule_for_one_file(place: Path) -> None:
    def work() -> list[int]:
        names = [place / "open" / "file", place / "shown" / "file", place / "shown"]
        return [code(lambda name=name: os.open(name, os.O_RDONLY)) for name in names]  # type: ignore[misc]

    directory = os.open(place / "open", os.O_PATH)
    try:
        # READ on a file would be EINVAL with the directory's rights in it; READ_DIR alone grants a file nothing.
        rules: list[tuple[int | str, int]] = [
            (directory, landlock.READ),
            (f"{place}/shown/file", landlock.READ),
            (f"{place}/shut/file", landlock.READ_DIR),
        ]
        assert confined(rules, work) == [0, 0, errno.EACCES]
        os.fstat(directory)  # a descriptor stays its owner's
    finally:
        os.close(directory)


def test_children_and_programs_stay_confined(place: Path) -> None:
    def work() -> int:
        return os.waitstatus_to_exitcode(os.spawnv(os.P_WAIT, "/bin/cat", ["cat", f"{place}/shut/file"]) << 8)

    def system() -> list[tuple[int | str, int]]:
        return [(path, landlock.READ) for path in ("/usr", "/bin", "/lib", "/lib64", "/etc") if os.path.exists(path)]

    assert confined(system(), work) == 1
    assert confined([*system(), (f"{place}/shut", landlock.READ)], work) == 0


def test_a_second_domain_only_narrows(place: Path) -> None:
    def work() -> int:
        landlock.restrict([("/", landlock.READ_WRITE)], scope=False)
        return code(lambda: os.open(place / "shut" / "file", os.O_RDONLY))

    assert confined([(f"{place}/open", landlock.READ_WRITE)], work) == errno.EACCES


@needs_scopes
def test_no_signal_leaves_the_domain() -> None:
    outside = os.getppid()

    def work() -> list[int]:
        own = os.fork()
        if own == 0:
            signal.pause()
        inside = code(lambda: os.kill(own, signal.SIGKILL))
        os.waitpid(own, 0)
        return [code(lambda: os.kill(outside, 0)), code(lambda: os.kill(os.getppid(), 0)), inside]

    assert confined([("/", landlock.READ_WRITE)], work, scope=True) == [errno.EPERM, errno.EPERM, 0]
    assert confined([("/", landlock.READ_WRITE)], work, scope=False) == [0, 0, 0]


@needs_scopes
def test_no_abstract_socket_outside_is_reached() -> None:
    name = f"\0nucleus-test-{os.getpid()}"

    def work() -> int:
        with socket.socket(socket.AF_UNIX) as client:
            return code(lambda: client.connect(name))

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen()
        assert confined([("/", landlock.READ_WRITE)], work, scope=True) == errno.EPERM
        assert confined([("/", landlock.READ_WRITE)], work, scope=False) == 0


def test_what_was_enforced_is_told() -> None:
    def work() -> list[Any]:
        syscalls.set_no_new_privs()
        return list(landlock.restrict([("/", landlock.READ)], scope=True))

    version, handled, scoped = in_child(work)
    assert version == landlock.abi()
    assert scoped is (version >= 6)
    assert bool(handled & landlock.TRUNCATE) is (version >= 3)
    assert bool(handled & landlock.IOCTL_DEV) is (version >= 5)


@pytest.mark.parametrize("version", range(1, 8))
def test_older_kernels_are_asked_only_what_they_know(version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel takes an older ABI's request too, so the shorter structures are tried here for real."""
    if version > landlock.abi():
        pytest.skip(f"this kernel has ABI {landlock.abi()}")
    monkeypatch.setattr(landlock, "abi", lambda: version)

    def work() -> list[int]:
        return [code(lambda: os.listdir("/")), code(lambda: os.listdir("/usr"))]

    rules: list[tuple[int | str, int]] = [("/usr", landlock.READ | landlock.REFER | landlock.IOCTL_DEV)]
    assert confined(rules, work, scope=True) == [errno.EACCES, 0]


def test_it_fails_closed(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    syscall_error = (
        in_child(lambda: code(lambda: landlock.restrict([], scope=True)), uid=65534) if not os.geteuid() else 1
    )
    assert syscall_error == errno.EPERM, "without no_new_privs"
    assert confined_code([(f"{place}/absent", landlock.READ)]) == errno.ENOENT
    monkeypatch.setattr(landlock, "abi", lambda: 0)
    assert confined_code([]) == errno.ENOSYS


def confined_code(rules: list[tuple[int | str, int]]) -> int:
    def work() -> int:
        syscalls.set_no_new_privs()
        return code(lambda: landlock.restrict(rules, scope=True))

    return int(in_child(work))
