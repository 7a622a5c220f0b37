"""Who is at the other end of a socket, by real processes; and the listener's own rules."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nucleus.errors import SandboxError, UnauthenticatedError
from nucleus.identity import attestation, listener
from nucleus.identity.attestation import Caller
from nucleus.identity.listener import BURST, EVERY_NS, Rate

CONNECT = "import socket, sys, time\ns = socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\n"


@pytest.fixture
def door(tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path)
        made.listen(8)
        made.settimeout(10)
        yield made, path


def test_facts_are_those_of_the_process(door: tuple[socket.socket, str]) -> None:
    child = subprocess.Popen([sys.executable, "-c", CONNECT + "sys.stdin.read()", door[1]], stdin=subprocess.PIPE)
    with child, door[0].accept()[0] as sock:
        caller = Caller(sock, lambda namespace: f"pod-{namespace == attestation.pid_namespace(os.getpid())}")
        facts, hashed = caller.facts(), caller.facts(hashed=True)
        python = os.path.realpath(sys.executable)
        assert (facts.pid, facts.uid, facts.gid) == (child.pid, os.geteuid(), os.getegid())
        assert facts.groups == frozenset(os.getgroups())
        assert (facts.path, facts.sha256, facts.pod) == (python, "", "pod-True")
        assert hashed.sha256 == hashlib.sha256(Path(python).read_bytes()).hexdigest()
        child.communicate()
        assert not caller.alive()
        with pytest.raises(UnauthenticatedError) as caught:
            caller.facts()
        assert caught.value.rule == "attest.ended"
        caller.close()


def test_a_caller_that_has_ended_before_the_accept_is_nobody(door: tuple[socket.socket, str]) -> None:
    subprocess.run([sys.executable, "-c", CONNECT, door[1]], check=True)
    with door[0].accept()[0] as sock, pytest.raises(UnauthenticatedError):
        Caller(sock)


def test_without_so_peerpidfd_the_pid_is_opened(
    door: tuple[socket.socket, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attestation, "SO_PEERPIDFD", 4_242)  # what a kernel before 6.5 makes of it
    child = subprocess.Popen([sys.executable, "-c", CONNECT + "sys.stdin.read()", door[1]], stdin=subprocess.PIPE)
    with child, door[0].accept()[0] as sock:
        caller = Caller(sock)
        assert caller.facts().pid == child.pid
        caller.close()
        child.communicate()
    subprocess.run([sys.executable, "-c", CONNECT, door[1]], check=True)
    with door[0].accept()[0] as sock, pytest.raises(UnauthenticatedError):
        Caller(sock)


def test_a_pid_that_is_used_again_is_noticed(door: tuple[socket.socket, str], monkeypatch: pytest.MonkeyPatch) -> None:
    child = subprocess.Popen([sys.executable, "-c", CONNECT + "sys.stdin.read()", door[1]], stdin=subprocess.PIPE)
    with child, door[0].accept()[0] as sock:
        caller = Caller(sock)
        monkeypatch.setattr(caller, "_start", caller._start - 1)  # as if another process had it now
        with pytest.raises(UnauthenticatedError) as caught:
            caller.facts()
        assert caught.value.rule == "attest.ended"
        caller.close()
        child.communicate()


def test_a_deleted_program_has_no_path_and_still_a_hash(door: tuple[socket.socket, str], tmp_path: Path) -> None:
    sleep = tmp_path / "sleep"
    sleep.write_bytes(Path("/bin/sleep").read_bytes())
    sleep.chmod(0o755)
    code = CONNECT + f"s.set_inheritable(True)\nimport os\nos.execv({str(sleep)!r}, ['sleep', '30'])"
    child = subprocess.Popen([sys.executable, "-c", code, door[1]])
    try:
        sock, _ = door[0].accept()
        with sock:
            deadline = time.monotonic() + 20
            while os.readlink(f"/proc/{child.pid}/exe") != str(sleep) and time.monotonic() < deadline:
                time.sleep(0.005)
            digest = hashlib.sha256(sleep.read_bytes()).hexdigest()
            sleep.unlink()
            caller = Caller(sock)
            facts = caller.facts(hashed=True)
            assert (facts.path, facts.sha256) == (None, digest)
            caller.close()
    finally:
        child.kill()
        child.wait()


def test_no_descriptor_is_left(door: tuple[socket.socket, str]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    child = subprocess.Popen([sys.executable, "-c", CONNECT + "sys.stdin.read()", door[1]], stdin=subprocess.PIPE)
    with child, door[0].accept()[0] as sock:
        for _ in range(20):
            caller = Caller(sock)
            caller.facts(hashed=True)
            caller.close()
        child.communicate()
    assert len(os.listdir("/proc/self/fd")) == before


NOW = 100_000_000_000


def test_a_rate_is_a_burst_and_then_one_at_a_time() -> None:
    rate = Rate()
    assert [rate.take(1, NOW) for _ in range(BURST + 3)] == [True] * BURST + [False] * 3
    assert rate.take(2, NOW)
    assert [rate.take(1, NOW + EVERY_NS) for _ in range(2)] == [True, False]
    assert [rate.take(1, NOW + EVERY_NS * 1_000) for _ in range(BURST + 1)] == [True] * BURST + [False]
    for uid in range(5_000):
        assert rate.take(uid + 10, 2 * NOW)
    assert len(rate._full_at) <= 1_024


def test_what_is_not_a_dead_socket_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("mine")
    with pytest.raises(SandboxError):
        listener.listen(str(path), 0o600)
    assert path.read_text() == "mine"
    path.unlink()
    with listener.listen(str(path), 0o600):
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(SandboxError, match="being served"):
            listener.listen(str(path), 0o600)
    with listener.listen(str(path), 0o666):
        assert path.stat().st_mode & 0o777 == 0o666
