"""Raw system calls against the real kernel, each in a forked child."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from children import code, in_child, raw

from nucleus.kernel import syscalls

USER = 65534


def status(name: str) -> str:
    with open("/proc/self/status") as file:
        return next(line.split(":")[1].strip() for line in file if line.startswith(f"{name}:"))


def in_namespaces(flags: int, work: Callable[[], Any]) -> Any:
    """As root of a user namespace of one's own, made by an ordinary user where this is root."""

    def inner() -> Any:
        uid, gid = os.geteuid(), os.getegid()
        syscalls.set_dumpable(True)
        syscalls.unshare(syscalls.CLONE_NEWUSER | flags)
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
        return work()

    try:
        return in_child(inner, uid=USER if os.geteuid() == 0 else None)
    except AssertionError as error:
        if "unshare" in str(error):
            pytest.skip("no unprivileged user namespaces here")
        raise


def test_namespaces_are_new() -> None:
    kinds = {"mnt": syscalls.CLONE_NEWNS, "net": syscalls.CLONE_NEWNET, "ipc": syscalls.CLONE_NEWIPC,
             "uts": syscalls.CLONE_NEWUTS, "cgroup": syscalls.CLONE_NEWCGROUP}  # fmt: skip

    def work() -> dict[str, str]:
        return {name: os.readlink(f"/proc/self/ns/{name}") for name in (*kinds, "user")}

    outside = work()
    inside = in_namespaces(sum(kinds.values()), work)
    assert not set(outside.values()) & set(inside.values())


def test_setns_enters_and_refuses_the_wrong_kind() -> None:
    def work() -> list[Any]:
        with open("/proc/self/ns/net") as first:
            syscalls.unshare(syscalls.CLONE_NEWNET)
            between = os.readlink("/proc/self/ns/net")
            wrong = code(lambda: syscalls.setns(first.fileno(), syscalls.CLONE_NEWUTS))
            syscalls.setns(first.fileno(), syscalls.CLONE_NEWNET)
            return [between != os.readlink("/proc/self/ns/net"), wrong]

    assert in_namespaces(syscalls.CLONE_NEWNET, work) == [True, errno.EINVAL]


def test_loopback_comes_up_and_there_is_no_way_out() -> None:
    def work() -> list[int]:
        with socket.socket() as before:
            down = code(lambda: before.connect(("127.0.0.1", 9)))
        syscalls.bring_loopback_up()
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
            pass
        with socket.socket() as out:
            return [down, code(lambda: out.connect(("198.18.0.1", 80)))]

    assert in_namespaces(syscalls.CLONE_NEWNET, work) == [errno.ENETUNREACH, errno.ENETUNREACH]


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A directory that an ordinary user reaches; pytest's own are closed to others."""
    path = Path(tempfile.mkdtemp(prefix="kernel-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def test_mounts_trees_and_pivot(reachable: Path) -> None:
    (reachable / "source").mkdir()
    (reachable / "source" / "file").write_text("x")
    (reachable / "source" / "file").chmod(0o666)
    (reachable / "source").chmod(0o777)

    def work() -> dict[str, Any]:
        syscalls.mount("", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
        tree = syscalls.open_tree(
            syscalls.AT_FDCWD, str(reachable / "source"), syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC
        )
        inheritable = os.get_inheritable(tree)
        syscalls.mount_setattr(tree, "", syscalls.AT_EMPTY_PATH, attr_set=syscalls.MOUNT_ATTR_RDONLY)
        syscalls.mount("tmpfs", str(reachable), "tmpfs", syscalls.MS_NOSUID | syscalls.MS_NODEV, "mode=0755,size=1m")
        os.chdir(reachable)
        os.mkdir("shown")
        syscalls.move_mount(tree, "", syscalls.AT_FDCWD, "shown", syscalls.MOVE_MOUNT_F_EMPTY_PATH)
        write = code(lambda: os.open("shown/file", os.O_WRONLY))
        syscalls.pivot_root(".", ".")
        syscalls.umount2(".")
        os.chdir("/")
        return {"inheritable": inheritable, "write": write, "root": os.listdir("/"), "read": open("shown/file").read()}

    found = in_namespaces(syscalls.CLONE_NEWNS, work)
    assert found == {"inheritable": False, "write": errno.EROFS, "root": ["shown"], "read": "x"}


@pytest.mark.parametrize(
    "call",
    [
        lambda: syscalls.mount("tmpfs", "/tmp\0/x", "tmpfs"),
        lambda: syscalls.mount("tmpfs\0", "/tmp", "tmpfs"),
        lambda: syscalls.mount("tmpfs", "/tmp", "tmpfs", 0, "size=1m\0,x"),
        lambda: syscalls.umount2("/proc\0/x"),
        lambda: syscalls.pivot_root(".\0", "."),
        lambda: syscalls.open_tree(-100, "/\0x", 1),
        lambda: syscalls.move_mount(-1, "\0", -1, "", 0),
        lambda: syscalls.mount_setattr(-100, "/\0x", 0),
    ],
)
def test_nul_is_refused_before_the_kernel_sees_half_a_path(call: Callable[[], None]) -> None:
    """As uid nobody: a truncated path would give EPERM or ENOENT, not this."""
    uid = USER if os.geteuid() == 0 else None
    assert in_child(lambda: code(call), uid=uid) == errno.EINVAL


def test_an_error_carries_errno_and_the_calls_name() -> None:
    for call, name in (
        (lambda: syscalls.unshare(1), "unshare"),
        (lambda: syscalls.setns(-1), "setns"),
        (lambda: syscalls.open_tree(-100, "/nowhere", 0), "open_tree"),
        (lambda: syscalls.umount2("/nowhere"), "umount2"),
    ):
        with pytest.raises(OSError, match=name) as caught:
            call()
        assert caught.value.errno in (errno.EINVAL, errno.EBADF, errno.ENOENT, errno.EPERM)


def test_no_new_privs_and_dumpable() -> None:
    def work() -> list[Any]:
        syscalls.set_dumpable(True)  # whatever a test before this one has left
        before = [syscalls.get_no_new_privs(), syscalls.get_dumpable()]
        syscalls.set_no_new_privs()
        syscalls.set_dumpable(False)
        return [before[1], syscalls.get_no_new_privs(), status("NoNewPrivs"), syscalls.get_dumpable()]

    assert in_child(work) == [True, True, "1", False]


def test_not_dumpable_closes_proc_to_the_same_uid() -> None:
    def work() -> list[int]:
        ready, tell = os.pipe()
        child = os.fork()
        if child == 0:
            syscalls.set_dumpable(False)
            os.write(tell, b".")
            signal.pause()
        os.read(ready, 1)
        try:
            return [code(lambda name=name: open(f"/proc/{child}/{name}", "rb")) for name in ("mem", "environ")]  # type: ignore[misc]
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)

    if os.geteuid() != 0:
        pytest.skip("needs root, to become a uid without capabilities")
    assert in_child(work, uid=USER) == [errno.EACCES, errno.EACCES]


def test_all_privileges_go_and_stay_gone() -> None:
    def work() -> dict[str, Any]:
        syscalls.drop_bounding_set()
        syscalls.drop_all_capabilities()
        sets = {name: int(status(name), 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
        return sets | {"mount": code(lambda: syscalls.mount("tmpfs", "/tmp", "tmpfs"))}

    found = in_namespaces(syscalls.CLONE_NEWNS, work)
    assert found.pop("mount") == errno.EPERM
    assert set(found.values()) == {0}, found


def test_parent_death_signal() -> None:
    """A child whose parent ends is gone, by the kernel."""
    reader, writer = os.pipe()

    def work() -> int:
        ready, tell = os.pipe()
        if os.fork() == 0:
            syscalls.set_pdeathsig(signal.SIGKILL)
            os.write(tell, b".")
            signal.pause()
        os.read(ready, 1)
        return 0

    try:
        assert in_child(work) == 0
    finally:
        os.close(writer)
    try:
        assert os.read(reader, 1) == b"", "every copy of the writing end is closed: nobody is left"
    finally:
        os.close(reader)


def test_subreaper_and_name() -> None:
    def work() -> list[Any]:
        syscalls.set_child_subreaper()
        syscalls.set_name("nucleus-a-long-name")
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            grandchild = os.fork()
            if grandchild == 0:
                os._exit(7)
            os.write(writer, str(grandchild).encode())
            os._exit(0)
        os.waitpid(child, 0)
        grandchild = int(os.read(reader, 20))
        return [os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]), status("Name")]

    assert in_child(work) == [7, "nucleus-a-long-"]


def test_close_range() -> None:
    def work() -> list[int]:
        fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(4)]
        syscalls.close_range(fds[1], fds[2])
        syscalls.close_range(9, 3)  # an empty range, not an error
        return [code(lambda fd=fd: os.fstat(fd)) for fd in fds]  # type: ignore[misc]

    assert in_child(work) == [0, errno.EBADF, errno.EBADF, 0]


def test_a_new_session_keyring() -> None:
    """A key in the inherited session keyring is not possessed any more."""
    add_key, keyctl = (248, 250) if os.uname().machine == "x86_64" else (217, 219)
    session, search = -3, 10

    def work() -> list[int]:
        syscalls.join_new_session_keyring()
        raw(add_key, b"user", b"nucleus-test", b"secret", 6, session)
        before = raw(keyctl, search, session, b"user", b"nucleus-test", 0)
        syscalls.join_new_session_keyring()
        return [before, raw(keyctl, search, session, b"user", b"nucleus-test", 0)]

    if in_child(lambda: raw(keyctl, 0, session, 1)) == errno.ENOSYS:
        pytest.skip("no keyrings in this kernel")
    assert in_child(work) == [0, errno.ENOKEY]


def test_idmapped_mount(tmp_path: Path) -> None:
    """A file of uid 0 on disk is uid 65534's in the mount, and a file that 65534 makes there is 0's on disk."""
    if os.geteuid() != 0:
        pytest.skip("needs root")

    def work() -> list[Any]:
        ready, tell = os.pipe()
        holder = os.fork()
        if holder == 0:
            syscalls.unshare(syscalls.CLONE_NEWUSER)
            os.write(tell, b".")
            signal.pause()
        os.read(ready, 1)
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/{holder}/{name}", "w") as file:
                file.write(f"0 {USER} 1")
        namespace = os.open(f"/proc/{holder}/ns/user", os.O_RDONLY)
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        tree = syscalls.open_tree(syscalls.AT_FDCWD, str(tmp_path), syscalls.OPEN_TREE_CLONE)
        syscalls.mount_setattr(
            tree, "", syscalls.AT_EMPTY_PATH, attr_set=syscalls.MOUNT_ATTR_IDMAP, userns_fd=namespace
        )
        os.fchdir(tree)
        os.setgroups([])
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)
        with open("made", "w") as made:
            return [os.stat(".").st_uid, os.fstat(made.fileno()).st_uid]

    try:
        assert in_child(work) == [USER, USER]
    except AssertionError as error:
        if "mount_setattr" in str(error):
            pytest.skip("this file system cannot be idmapped")
        raise
    assert (tmp_path / "made").stat().st_uid == 0


def test_an_unknown_machine_is_enosys(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = os.uname_result(("Linux", "host", "6.1", "#1", "riscv64"))
    monkeypatch.setattr(os, "uname", lambda: odd)
    assert code(lambda: syscalls.pivot_root(".", ".")) == errno.ENOSYS
