"""run through the channel: argv as decided, exact environment, bounded output, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nucleus.limits import LIMITS

from .client import ENV, Gate
from .test_main import alive


def test_argv_reaches_the_program_unchanged(gate: Gate) -> None:
    argv = ["a b", "", "$HOME", "*", "'\"", "é", "-c", ";", "x\ny"]
    _, out, _ = gate.run("printf", "%s\\0", *argv)
    assert out.decode() == "".join(f"{item}\0" for item in argv)


def test_the_environment_is_exactly_the_allowlist_and_is_filled(gate: Gate) -> None:
    _, out, _ = gate.run("env")
    assert dict(line.split("=", 1) for line in out.decode().splitlines()) == ENV


def test_exit_codes_and_signals_are_told_apart(gate: Gate) -> None:
    assert gate.run("sh", "-c", "exit 7")[0]["exit_code"] == 7
    assert gate.run("sh", "-c", "exit 139")[0]["signal"] is None
    ok, _, _ = gate.run("sh", "-c", "kill -SEGV $$")
    assert (ok["exit_code"], ok["signal"], ok["timed_out"]) == (None, signal.SIGSEGV, False)


def test_the_child_starts_clean(gate: Gate, root: Path) -> None:
    code = """
import os, signal
print(sorted(int(n) for n in os.listdir("/proc/self/fd"))[:4], os.getsid(0) == os.getpid() == os.getpgid(0))
lines = dict(l.split(":\\t", 1) for l in open("/proc/self/status").read().splitlines() if ":\\t" in l)
print(int(lines["SigBlk"], 16), signal.getsignal(signal.SIGPIPE), os.getcwd())
"""
    (root / "dir").mkdir()
    # An interpreter ignores SIGPIPE for itself: ask /proc through a program that does not.
    ok, out, err = gate.run(sys.executable, "-S", "-c", code, cwd="dir")
    assert ok["exit_code"] == 0, err
    first, second = out.decode().splitlines()
    assert first == "[0, 1, 2, 3] True", "3 is the listing itself"
    assert second.startswith("0 ")
    assert second.endswith("/workspace/dir")
    _, out, _ = gate.run("grep", "SigIgn", "/proc/self/status")
    # 32 and 33 are the C library's own: whoever started the tests may have ignored them, and nobody can reset them.
    assert int(out.split()[1], 16) & ~(0b11 << 31) == 0


@pytest.mark.parametrize(
    "argv0", ["no-such-program", "./missing", "/etc/passwd", "dir/", "./dir", "./plain", "./bad", "", ".", "plain"]
)
def test_not_executable(gate: Gate, root: Path, argv0: str) -> None:
    (root / "dir").mkdir()
    (root / "plain").write_text("echo hi\n")
    (root / "bad").write_text("no shebang\n")
    (root / "bad").chmod(0o755)
    assert gate.error("run", argv=[argv0])["code"] == "not_executable"


def test_relative_path_entries_are_passed_over(root: Path) -> None:
    (root / "evil").write_text("#!/bin/sh\necho evil\n")
    (root / "evil").chmod(0o755)
    gate = Gate(str(root), env={"PATH": ".::bin:/usr/bin:/bin"})
    try:
        assert gate.error("run", argv=["evil"])["code"] == "not_executable"
        assert gate.run("./evil")[1] == b"evil\n"
    finally:
        gate.close()


def test_stdin_without_deadlock(gate: Gate) -> None:
    data = os.urandom(LIMITS.stdin_bytes)
    ok, out, _ = gate.run("cat", stdin=data)
    assert out == data
    assert ok["stdout_truncated"] is False
    assert gate.run("true", stdin=data)[0]["exit_code"] == 0, "a program that does not read it"
    assert gate.run("cat")[1] == b"", "no stdin is an end of file"
    assert gate.error("run", data + b"x", argv=["cat"])["code"] == "too_large"


def test_output_is_capped_and_drained(gate: Gate) -> None:
    script = "head -c 3000000 /dev/zero; head -c 2000 /dev/zero | tr '\\0' e >&2"
    ok, out, err = gate.run("sh", "-c", script, output_bytes=1_000)
    assert (ok["exit_code"], ok["stdout_truncated"], ok["stderr_truncated"]) == (0, True, True)
    assert (len(out), err) == (1_000, b"e" * 1_000)
    ok, out, _ = gate.run("head", "-c", "5000000", "/dev/zero")
    assert (len(out), ok["stdout_truncated"]) == (LIMITS.output_bytes, True)
    assert gate.run("echo", "x", output_bytes=0)[0]["stdout_truncated"] is True


def test_deadline(gate: Gate) -> None:
    started = time.monotonic()
    ok, out, _ = gate.run("sh", "-c", "echo before; sleep 60 & sleep 60", timeout_ms=200)
    assert time.monotonic() - started < 1.5
    assert (ok["timed_out"], ok["signal"], ok["exit_code"], out) == (True, signal.SIGTERM, None, b"before\n")
    ok, _, _ = gate.run("yes", timeout_ms=200)
    assert (ok["timed_out"], ok["stdout_truncated"]) == (True, True)
    started = time.monotonic()
    ok, _, _ = gate.run("sh", "-c", "trap '' TERM INT HUP; while :; do :; done", timeout_ms=200)
    assert (ok["timed_out"], ok["signal"]) == (True, signal.SIGKILL)
    assert 1.1 < time.monotonic() - started < 2.2


def test_at_the_deadline_a_command_may_say_what_it_has(gate: Gate) -> None:
    code = (
        "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit('so far'))\n"
        "print('on', flush=True)\ntime.sleep(60)"
    )
    ok, out, err = gate.run(sys.executable, "-S", "-c", code, timeout_ms=700)
    assert (ok["timed_out"], ok["exit_code"], ok["signal"], out, err) == (True, 1, None, b"on\n", b"so far\n")


def test_cancel(gate: Gate) -> None:
    started = time.monotonic()
    ident = gate.send("run", argv=["sleep", "60"])
    other = gate.send("cancel", target=ident)
    answers = {frame.header["id"]: frame.header for frame in (gate.receive() for _ in range(2))}
    assert answers[other]["ok"] == {}
    assert (answers[ident]["ok"]["signal"], answers[ident]["ok"]["timed_out"]) == (signal.SIGKILL, False)
    assert time.monotonic() - started < 2
    assert gate.ok("cancel", target=ident)[0] == {}, "too late is no error"


def test_a_background_process_cannot_hold_the_answer(gate: Gate) -> None:
    started = time.monotonic()
    ok, out, _ = gate.run("sh", "-c", "sleep 60 & echo $!")
    assert time.monotonic() - started < 1.5
    assert ok["exit_code"] == 0
    pid = int(out)
    end = time.monotonic() + 2
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.01)
    assert not alive(pid), "its process group was killed"


def test_cwd(gate: Gate, root: Path) -> None:
    (root / "a" / "b").mkdir(parents=True)
    (root / "f").touch()
    assert gate.run("pwd", cwd="a/b")[1].decode().endswith("/workspace/a/b\n")
    assert gate.error("run", argv=["pwd"], cwd="missing")["code"] == "not_found"
    assert gate.error("run", argv=["pwd"], cwd="f")["code"] == "not_found"
    assert gate.error("run", argv=["pwd"], cwd="..")["code"] == "escape"


def test_the_command_filter_is_on_the_command_and_not_on_hands(root: Path) -> None:
    """A filter that makes getppid fail: allow everything else."""
    import struct

    if os.uname().machine != "x86_64":
        pytest.skip("the test's filter is for x86-64")
    instructions = [(0x20, 0, 0, 0), (0x15, 0, 1, 110), (0x06, 0, 0, 0x00050000 | 13), (0x06, 0, 0, 0x7FFF0000)]
    program = b"".join(struct.pack("HBBI", *item) for item in instructions)
    gate = Gate(str(root), command_filter=program)
    try:
        code = "import ctypes; l = ctypes.CDLL(None, use_errno=True); print(l.syscall(110), ctypes.get_errno())"
        if os.geteuid() != 0:
            pytest.skip("needs CAP_SYS_ADMIN or no_new_privs")
        assert gate.run(sys.executable, "-S", "-c", code)[1] == b"-1 13\n"
        status = Path(f"/proc/{gate.pid}/status").read_text()
        assert "Seccomp:\t0" in status
    finally:
        gate.close()
    gate = Gate(str(root), command_filter=b"nonsense")
    try:
        assert gate.error("run", argv=["true"])["code"] == "io", "no filter, no command"
    finally:
        gate.close()


# --- as pid 1 ---

PID_ONE = """
import os, socket, sys
from nucleus.hands import main
channel = socket.socket(fileno=int(sys.argv[1]))
assert os.getpid() == 1
sys.exit(main.serve(channel, sys.argv[2], {"PATH": "/usr/bin:/bin"}, None))
"""


class PidOne(Gate):
    """hands as pid 1 of a pid namespace of its own."""

    def __init__(self, root: str) -> None:
        import socket

        from nucleus.frames import Decoder

        self.socket, theirs = socket.socketpair()
        unshare = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
        self.process = subprocess.Popen(
            [*unshare, sys.executable, "-c", PID_ONE, str(theirs.fileno()), root],
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        self.socket.settimeout(20)
        self._decoder = Decoder()
        self._frames = []
        self._next = 0

    def close(self) -> int:
        self.socket.close()
        try:
            return self.process.wait(10)
        finally:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def pid_one(root: Path) -> Iterator[PidOne]:
    probe = subprocess.run(["unshare", "--pid", "--fork", "--mount-proc", "true"], capture_output=True, check=False)
    if probe.returncode != 0:
        pytest.skip("no pid namespace here")
    gate = PidOne(str(root))
    yield gate
    assert gate.close() == 0


def processes(gate: Gate) -> list[str]:
    """What runs in the namespace, by name, but for hands itself and the question."""
    _, out, _ = gate.run("sh", "-c", "cat /proc/[0-9]*/stat")
    rows = [line.split() for line in out.decode().splitlines()]
    return [row[1] for row in rows if row[0] != "1" and row[1] not in ("(sh)", "(cat)")]


DAEMON = textwrap.dedent(
    """
    import os, sys, time
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.setsid()
            for _ in range(3):
                os.fork()
            time.sleep(60)
        time.sleep(60)
    print("started", flush=True)
    time.sleep(0.1)
    """
)


def test_a_run_leaves_no_process_behind(pid_one: PidOne) -> None:
    started = time.monotonic()
    ok, out, _ = pid_one.run(sys.executable, "-c", DAEMON)
    assert (ok["exit_code"], out) == (0, b"started\n")
    assert time.monotonic() - started < 2
    assert processes(pid_one) == []


def test_other_runs_and_the_worker_survive_the_sweep(pid_one: PidOne, root: Path) -> None:
    (root / "f").write_text("needle")
    assert len(pid_one.ok("grep", pattern="needle")[0]["matches"]) == 1
    long = pid_one.send("run", argv=["sh", "-c", "sleep 1 | cat; echo done"])
    short = pid_one.send("run", argv=[sys.executable, "-c", DAEMON])
    first, second = pid_one.receive(), pid_one.receive()
    assert (first.header["id"], second.header["id"]) == (short, long)
    assert second.body == b"done\n"
    assert len(pid_one.ok("grep", pattern="needle")[0]["matches"]) == 1


def test_a_fork_storm_ends_with_its_run(pid_one: PidOne) -> None:
    storm = "import os, time\nend = time.time() + 3\nwhile time.time() < end:\n if os.fork(): os._exit(0)\n os.setsid()"
    ok, _, _ = pid_one.run(sys.executable, "-S", "-c", storm)
    assert ok["exit_code"] == 0
    assert processes(pid_one) == []


def test_a_daemon_of_a_timed_out_run_is_gone(pid_one: PidOne) -> None:
    ok, _, _ = pid_one.run(sys.executable, "-c", DAEMON + "time.sleep(60)", timeout_ms=500)
    assert ok["timed_out"] is True
    assert processes(pid_one) == []
