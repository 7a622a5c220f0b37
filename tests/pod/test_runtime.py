"""Where things live, who may use the helper, and that there is only one."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import HERE, USER, as_user

from nucleus.errors import SandboxError
from nucleus.kernel import syscalls
from nucleus.pod import runtime
from nucleus.pod.backend import Facts, check_floor
from nucleus.pod.packets import enlarge, recv_packet, send_packet


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="pod-", dir="/tmp"))
    path.chmod(0o711)
    (path / "run").mkdir(0o700)
    monkeypatch.setenv("NUCLEUS_STATE", str(path / "state"))
    monkeypatch.setenv("NUCLEUS_RUNTIME", str(path / "run"))
    yield path
    shutil.rmtree(path)


def test_runtime_directory_is_ours_alone(directory: Path) -> None:
    assert runtime.runtime_dir() == str(directory / "run")
    assert runtime.state_dir() == str(directory / "state")
    (directory / "run").chmod(0o750)
    with pytest.raises(SandboxError, match="0700"):
        runtime.runtime_dir()
    (directory / "run").rmdir()
    (directory / "run").symlink_to(directory)
    with pytest.raises(SandboxError):
        runtime.runtime_dir()


def test_somebody_elses_directory_is_refused(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to give a directory away")
    os.chown(directory / "run", USER, USER)
    with pytest.raises(SandboxError):
        runtime.runtime_dir()
    monkeypatch.setenv("NUCLEUS_STATE", "relative")
    with pytest.raises(SandboxError):
        runtime.state_dir()


def test_state_belongs_to_the_authority(directory: Path) -> None:
    runtime.prepare_state(runtime.state_dir())
    found = os.stat(directory / "state")
    assert found.st_uid == (runtime.AUTHORITY_UID if os.geteuid() == 0 else os.geteuid())
    assert found.st_mode & 0o777 == 0o700
    runtime.prepare_state(runtime.state_dir())


def test_slots_are_held_once(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "ROOT_SLOTS", str(directory / "run"))
    taken = [runtime.take_slot(str(directory / "run")) for _ in range(3)]
    assert [slot.number for slot in taken] == [0, 1, 2]
    taken[1].release()
    taken[1].release()
    again = runtime.take_slot(str(directory / "run"))
    assert again.number == 1
    for slot in (taken[0], taken[2], again):
        slot.release()
    assert list((directory / "run/slots").iterdir()) == []


@pytest.mark.parametrize("floor", ["", "none", "namespaces"])
def test_floors_that_are_met(floor: str) -> None:
    check_floor(Facts("namespaces", "shared"), floor)


@pytest.mark.parametrize("floor", ["gvisor", "qemu", "firecracker", "typo", "NAMESPACES"])
def test_floors_that_are_not(floor: str) -> None:
    with pytest.raises(SandboxError):
        check_floor(Facts("namespaces", "shared"), floor)


@pytest.fixture
def helper(directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A helper with stand-ins, in our own namespaces and under our uid."""
    command = [sys.executable, "-I", str(HERE / "standins.py"), "builder", "--helper"]
    command += ["--state", str(directory / "state"), "--runtime", str(directory / "run"), "--idle", "300"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while not (directory / "run/helper.sock").exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    (directory / "run").chmod(0o711)  # so that the uid check, not the directory, is what refuses others
    (directory / "run/helper.sock").chmod(0o777)
    yield process
    process.terminate()
    assert process.wait(20) == 0
    assert not (directory / "run/helper.sock").exists()


def ask(path: str) -> dict:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
        channel.connect(path)
        enlarge(channel)
        channel.settimeout(10)
        try:
            send_packet(channel, {"id": 1, "op": "status"})
        except OSError:
            pass  # refused and closed before we spoke; why is still to be read
        packet = recv_packet(channel)
        assert packet is not None
        return packet.body


def in_child(directory: Path, prepare) -> str:
    """What `ask` gets in a forked child after `prepare`: the rule of the refusal, or "ok"."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            prepare()
            answer = ask(str(directory / "run/helper.sock"))
            os.write(write, (answer["error"]["rule"] if "error" in answer else "ok").encode())
        except BaseException as error:
            os.write(write, repr(error).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(write)
    with open(read) as file:
        return file.read()


def test_who_may_use_the_helper(directory: Path, helper: subprocess.Popen[bytes]) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to be somebody else")
    assert in_child(directory, lambda: None) == "ok"
    assert in_child(directory, lambda: as_user(USER)) == "helper.peer"
    assert in_child(directory, lambda: syscalls.unshare(syscalls.CLONE_NEWNS)) == "helper.peer"
    assert in_child(directory, lambda: syscalls.unshare(syscalls.CLONE_NEWUSER)) == "helper.peer"


def test_there_is_one_helper(directory: Path, helper: subprocess.Popen[bytes]) -> None:
    arguments = ["--helper", "--state", str(directory / "state"), "--runtime", str(directory / "run"), "--idle", "300"]
    (directory / "run").chmod(0o700)
    second = subprocess.run(
        [sys.executable, "-I", str(HERE / "standins.py"), "builder", *arguments], stdin=subprocess.DEVNULL, timeout=20
    )
    assert second.returncode == 0
    assert ask(str(directory / "run/helper.sock"))["ok"]["helper"] is True


def test_children_hold_nothing_of_ours(directory: Path, helper: subprocess.Popen[bytes]) -> None:
    """Row by row of the process table: an environment of two variables, descriptor 3, and no more."""
    deadline = time.monotonic() + 10
    while "authority" not in (pids := ask(str(directory / "run/helper.sock"))["ok"]["pids"]):  # the last to be started
        assert time.monotonic() < deadline
        time.sleep(0.005)
    for name in ("authority", "template", "zygote"):
        deadline = time.monotonic() + 10  # from the fork to the exec it still looks like the builder
        while b"--helper" in Path(f"/proc/{pids[name]}/cmdline").read_bytes():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        names = {
            item.partition(b"=")[0] for item in Path(f"/proc/{pids[name]}/environ").read_bytes().split(b"\0") if item
        }
        assert names <= {b"PATH", b"LANG"}, name
        # One or two that it opened itself since (a log, a namespace); none of the builder's sockets or locks.
        held = [os.readlink(f"/proc/{pids[name]}/fd/{fd}") for fd in os.listdir(f"/proc/{pids[name]}/fd")]
        assert sum(target.startswith("socket:") for target in held) == 1, (name, held)
        assert not [target for target in held if target.endswith("helper.lock")]


def test_a_helper_of_another_uid_is_refused(directory: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to be somebody else")
    path = str(directory / "run/helper.sock")
    pid = os.fork()
    if pid == 0:
        try:
            os.chown(directory / "run", USER, USER)
            os.setresuid(USER, USER, USER)
            fake = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            fake.bind(path)
            fake.listen()
            time.sleep(20)
        finally:
            os._exit(0)
    try:
        deadline = time.monotonic() + 10
        while not os.path.exists(path):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.chown(directory / "run", 0, 0)
        time.sleep(0.05)
        with pytest.raises(SandboxError, match="helper belongs to"):
            runtime.connect_helper()
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
