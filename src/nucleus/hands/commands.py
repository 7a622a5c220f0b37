"""Commands: one argv, no shell, one process group, bounded output, and nothing of it left when it has ended.

Promises, for each command:
 1. the program is `argv[0]` itself when it holds a "/", else the first executable file of that name on the PATH of the
    environment we were given; relative PATH entries are passed over; the argv that was decided is the argv that runs.
 2. the child starts in a session and process group of its own, in a directory that was opened without symlinks, with
    default signals, exactly our environment, 0 1 2 and no other descriptor, under `command_filter` (seccomp) if there
    is one.
 3. stdin is fed and both outputs are drained without ever blocking; the first `output_bytes` of each are kept.
 4. at the deadline the process group is told to end (SIGTERM), and `SOFT_NS` later, or on cancel at once, killed.
 5. when the leader ends its group is killed, and as pid 1 every orphan that was left to us, again and again until none
    is there; then what the pipes still hold is read and they are closed: a background process cannot hold the answer.
Where `stream` is asked for, what is kept is also handed on as it comes, at most every `STREAM_NS`.
Exit code and signal are told apart. Relies on: being single-threaded; `/proc` for step 5; `main` for reaping.
Does not: limit memory or processes (the pod's cgroup does), or decide what may run (the gate did).
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from nucleus.hands.loop import Loop
from nucleus.hands.protocol import HandsError
from nucleus.kernel import seccomp

STREAM_NS = 50_000_000
_CHUNK = 1 << 16
_TURN = 1 << 18  # bytes read from one pipe before others get their turn
_TAIL = 1 << 20  # bytes of output that are read after the leader's end
_U32 = struct.Struct(">I")
_SWEEPS = 200  # rounds of killing orphans before everything of the pod is killed,
_SWEEP_SECONDS = 0.5  # or this long: a fork bomb leaves us one part in hundreds of the processor
_STAGE_DIRECTORY, _STAGE_FILTER, _STAGE_EXEC = range(3)
# What Python ignores, and what whoever started us did (nohup), a program expects as default.
SOFT_NS = 1_000_000_000  # from SIGTERM to SIGKILL; less than `LIMITS.grace_ns`, after which the gate gives up
_RESET = tuple(sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}))


@dataclass(slots=True)
class Output:
    """One captured stream: the first bytes, and how many there were."""

    limit: int
    fd: int
    kept: bytearray = field(default_factory=bytearray)
    seen: int = 0
    told: int = 0  # bytes of `kept` that were handed on

    def add(self, data: bytes) -> None:
        """Count `data` and keep what still fits."""
        self.seen += len(data)
        if (room := self.limit - len(self.kept)) > 0:
            self.kept += data[:room]

    @property
    def truncated(self) -> bool:
        """Whether something was counted and not kept."""
        return self.seen > len(self.kept)


@dataclass(frozen=True, slots=True)
class Result:
    """How a command ended: `exit_code` or `signal`, one of them None."""

    exit_code: int | None
    signal: int | None
    timed_out: bool
    stdout: bytes
    stderr: bytes
    stdout_truncated: bool
    stderr_truncated: bool
    duration_ns: int


Done = Callable[["Result | HandsError"], None]


@dataclass(frozen=True, slots=True)
class Spec:
    """What to run.

    Args:
        cwd: a directory descriptor, the caller's to close once the command has started.
        timeout_ns: from now. output_bytes: kept of each stream. command_filter: a seccomp program, or None.
        stream: told what stdout (0) and stderr (1) have, at most 64 KiB at a time.
    """

    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: int
    stdin: bytes
    timeout_ns: int
    output_bytes: int
    command_filter: bytes | None
    stream: Callable[[int, bytes], None] | None = None


def resolve_program(name: str, env: Mapping[str, str]) -> str:
    """Step 1; raises HandsError `not_executable`."""
    if "/" in name:
        return name
    for directory in env.get("PATH", "").split(":"):
        if directory.startswith("/") and name not in ("", ".", ".."):
            candidate = f"{directory}/{name}"
            try:
                if stat.S_ISREG(os.stat(candidate).st_mode) and os.access(candidate, os.X_OK):
                    return candidate
            except OSError:
                continue
    raise HandsError("not_executable", "no such program on the PATH")


class Command:
    """One running command. `main` calls `on_exit` with its wait status; pipes are watched by the loop."""

    def __init__(self, spec: Spec, loop: Loop, done: Done) -> None:
        program = resolve_program(spec.argv[0], spec.env)
        self._loop = loop
        self._done = done
        self._started = time.monotonic_ns()
        self.deadline = self._started + spec.timeout_ns
        self._timed_out = False
        self._failure: HandsError | None = None
        self._stdin = memoryview(spec.stdin)
        self.pid, self._input, outputs, self._status = _start(program, spec)
        self._outputs = [Output(spec.output_bytes, fd) for fd in outputs]
        self._stream = spec.stream
        self._told = 0  # when, monotonic
        for output in self._outputs:
            loop.watch(output.fd, lambda output=output: self._drain(output, _TURN))  # type: ignore[misc]
        loop.watch(self._status, self._read_status)
        self._feed()

    def due(self) -> int | None:
        """When `tell` has something to say, monotonic nanoseconds; None: nothing."""
        if self._stream is None or all(output.told == len(output.kept) for output in self._outputs):
            return None
        return self._told + STREAM_NS

    def tell(self, now: int) -> None:
        """Hand on what is new, a chunk of each stream."""
        self._told = now
        assert self._stream is not None
        for index, output in enumerate(self._outputs):
            if piece := bytes(output.kept[output.told : output.told + _CHUNK]):
                output.told += len(piece)
                self._stream(index, piece)

    def late(self, now: int) -> None:
        """Step 4 at the deadline; then `deadline` is when to come again, should it be needed."""
        soft, self._timed_out = not self._timed_out, True
        self.deadline = now + SOFT_NS
        kill_group(self.pid, signal.SIGTERM if soft else signal.SIGKILL)

    def kill(self) -> None:
        """Step 4 on cancel. The answer follows when the leader has been reaped."""
        kill_group(self.pid)

    def on_exit(self, status: int) -> None:
        """The leader was reaped and step 5's killing is done: read what is left, and answer."""
        duration = time.monotonic_ns() - self._started
        self._close_input()
        if self._status >= 0:
            self._read_status()
        for output in self._outputs:
            self._drain(output, _TAIL)
            self._close(output)
        if self._failure is not None:
            self._done(self._failure)
            return
        killed = os.WIFSIGNALED(status)
        stdout, stderr = self._outputs
        self._done(
            Result(
                exit_code=None if killed else os.waitstatus_to_exitcode(status),
                signal=os.WTERMSIG(status) if killed else None,
                timed_out=self._timed_out,
                stdout=bytes(stdout.kept),
                stderr=bytes(stderr.kept),
                stdout_truncated=stdout.truncated,
                stderr_truncated=stderr.truncated,
                duration_ns=duration,
            )
        )

    def close(self) -> None:
        """Close every descriptor without an answer (the channel is gone)."""
        self._close_input()
        for output in self._outputs:
            self._close(output)
        if self._status >= 0:
            self._loop.forget(self._status)
            os.close(self._status)
            self._status = -1

    def _feed(self) -> None:
        while self._stdin:
            try:
                self._stdin = self._stdin[os.write(self._input, self._stdin[:_CHUNK]) :]
            except BlockingIOError:
                self._loop.watch_writable(self._input, self._feed)
                return
            except OSError:  # the program does not read it: not our business
                break
        self._close_input()

    def _close_input(self) -> None:
        if self._input >= 0:
            self._loop.forget(self._input)
            os.close(self._input)
            self._input = -1

    def _drain(self, output: Output, budget: int) -> None:
        while output.fd >= 0 and budget > 0:
            try:
                data = os.read(output.fd, _CHUNK)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._close(output)
                return
            budget -= len(data)
            output.add(data)

    def _close(self, output: Output) -> None:
        if output.fd >= 0:
            self._loop.forget(output.fd)
            os.close(output.fd)
            output.fd = -1

    def _read_status(self) -> None:
        """End of file: the program was started. Two numbers: at which stage it was not, and why."""
        try:
            data = os.read(self._status, 8)
        except BlockingIOError:
            return
        self._loop.forget(self._status)
        os.close(self._status)
        self._status = -1
        if len(data) == 8:
            stage, number = _U32.unpack(data[:4])[0], _U32.unpack(data[4:])[0]
            name = errno.errorcode.get(number, "EIO")
            code = "not_executable" if stage == _STAGE_EXEC and number != errno.ENOMEM else "io"
            self._failure = HandsError(code, f"the program cannot be started: {name}")


def kill_group(pid: int, number: int = signal.SIGKILL) -> None:
    """A signal to a leader and its group."""
    for send in (os.killpg, os.kill) if number == signal.SIGKILL else (os.killpg,):
        try:
            send(pid, number)
        except (ProcessLookupError, PermissionError):
            continue


def kill_orphans(known: Callable[[], set[int]], reap: Callable[[], None]) -> None:
    """Step 5, as pid 1: kill and reap children that nobody started here, until there are none.

    Args:
        known: pids that are ours to keep.
        reap: waits for whatever has ended, without blocking.

    What outruns `_SWEEPS` rounds or `_SWEEP_SECONDS` is a fork bomb: then everything in the pid namespace is killed,
    other commands too.
    """
    me = os.getpid()
    end = time.monotonic() + _SWEEP_SECONDS
    for attempt in range(_SWEEPS):
        reap()
        strangers = children(me) - known()
        if not strangers:
            return
        if time.monotonic() > end:
            break
        for pid in strangers:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if attempt > 2:
            time.sleep(0.001)
    os.kill(-1, signal.SIGKILL)
    reap()


def children(parent: int) -> set[int]:
    """Pids whose parent is `parent`, from /proc/*/stat (proc(5): after the last ")": state, ppid)."""
    found: set[int] = set()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            fd = os.open(f"/proc/{name}/stat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            line = os.read(fd, 4096)
        except OSError:
            continue
        finally:
            os.close(fd)
        fields = line[line.rfind(b")") + 2 :].split()
        if len(fields) > 1 and int(fields[1]) == parent:
            found.add(int(name))
    return found


def _start(program: str, spec: Spec) -> tuple[int, int, tuple[int, int], int]:
    """Fork; returns pid, our ends of stdin, (stdout, stderr), status."""
    pipes: list[int] = []
    try:
        for _ in range(4):
            pipes += os.pipe2(os.O_CLOEXEC)
        in_read, in_write, out_read, out_write, err_read, err_write, status_read, status_write = pipes
        for fd in (in_write, out_read, err_read, status_read):
            os.set_blocking(fd, False)
        pid = os.fork()
    except OSError:
        for fd in pipes:
            os.close(fd)
        raise HandsError("io", "no process or pipe for the command") from None
    if pid == 0:
        _child(program, spec, (in_read, out_write, err_write), status_write)
    for fd in (in_read, out_write, err_write, status_write):
        os.close(fd)
    return pid, in_write, (out_read, err_read), status_read


def _child(program: str, spec: Spec, streams: tuple[int, int, int], status: int) -> None:
    """Step 2, in the child. Never returns."""
    stage = _STAGE_DIRECTORY
    try:
        signal.set_wakeup_fd(-1)
        for handled in _RESET:
            signal.signal(handled, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.setsid()
        uid = os.geteuid()
        os.setresuid(uid, uid, uid)  # in a guest ours are not all the same
        os.fchdir(spec.cwd)
        # Out of the way of 0 to 3 first: any of them may be one of ours when hands was started without a stdin.
        moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (*streams, status)]
        for number, fd in enumerate(moved[:3]):
            os.dup2(fd, number)
        status = moved[3]
        os.closerange(3, status)
        os.closerange(status + 1, 65_536)
        stage = _STAGE_FILTER
        if spec.command_filter is not None:
            seccomp.install(spec.command_filter)
        stage = _STAGE_EXEC
        os.execve(program, list(spec.argv), dict(spec.env))  # noqa: S606 -- no shell is what we want
    except OSError as error:
        os.write(status, _U32.pack(stage) + _U32.pack(error.errno or errno.EIO))
    except BaseException:  # noqa: BLE001 -- a forked child must not run its parent's code
        os.write(status, _U32.pack(_STAGE_FILTER) + _U32.pack(errno.EIO))
    finally:
        os._exit(127)
