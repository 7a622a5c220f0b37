"""hands: the loop between the gate's channel and the work compartment. Pid 1 there.

Promises: requests of docs/design.md, "gate ⇄ hands", many at once: files are done at once, searches in the one
worker, commands and git as processes. Each request gets one answer with a code of the list and no host path. A frame
that is not one ends hands; so does the channel's end; then everything it started is killed (as pid 1: everything in
the pod).
Relies on: the pod builder's isolation (mounts, uid, cgroup, seccomp); being forked from a process that has imported
this module, so that nothing is imported later. Does not: decide, authenticate, or promise anything to the gate: hands
is untrusted, and whoever owns the compartment owns it.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from nucleus.errors import InvalidError
from nucleus.frames import Decoder, Frame, encode
from nucleus.hands import files, git
from nucleus.hands.commands import Command, Result, Spec, kill_group, kill_orphans
from nucleus.hands.loop import Loop
from nucleus.hands.protocol import HandsError, flag, from_oserror, integer, path, texts, wrong
from nucleus.hands.root import Root
from nucleus.hands.worker import SearchWorker
from nucleus.limits import LIMITS

COMMANDS = 64  # at once
STREAM_PENDING = 1 << 20  # answers that the gate has not read: no output is streamed meanwhile
PENDING_BYTES = 16 << 20  # answers that the gate has not read: no more requests are taken meanwhile
_FILE_OPERATIONS: dict[str, Callable[[Root, dict[str, Any], bytes], files.Answer]] = {
    "read": files.read,
    "write": files.write,
    "edit": files.edit,
}
_SEARCHES = ("glob", "grep")
_RECV = 1 << 18
_LAST_WAIT_NS = 1_000_000_000
_MAX_ID = (1 << 53) - 1


def serve(
    channel: socket.socket,
    root: str = "/workspace",
    env: Mapping[str, str] | None = None,
    command_filter: bytes | None = None,
    reaper: bool | None = None,
) -> int:
    """Answer the gate until its channel ends.

    Args:
        channel: stream socket to the gate; closed on return.
        root: the workspace's directory.
        env: the whole environment of commands.
        command_filter: a seccomp program for commands (`nucleus.kernel.seccomp`), or None.
        reaper: kill what commands leave behind; by default exactly when this is pid 1.

    Returns:
        0 when the gate closed the channel, 1 when it broke the framing.
    """
    hands = Hands(channel, Root(root), dict(env or {}), command_filter, os.getpid() == 1 if reaper is None else reaper)
    try:
        return hands.run()
    finally:
        hands.close()


class Hands:
    """The state of one hands process; see `serve`."""

    def __init__(
        self, channel: socket.socket, root: Root, env: dict[str, str], command_filter: bytes | None, reaper: bool
    ) -> None:
        self._channel = channel
        self._root = root
        self._env = env
        self._git_env = git.environment(env)
        self._filter = command_filter
        self._reaper = reaper
        self._loop = Loop()
        self._decoder = Decoder()
        self._incoming: Iterator[Frame] = iter(())
        self._out: deque[memoryview] = deque()
        self._pending = 0
        self._status: int | None = None  # the process's exit status, once it is known
        self._commands: dict[int, Command] = {}  # by pid
        self._cancels: dict[int, Callable[[], None]] = {}  # by request
        self._worker = SearchWorker(root, self._loop.watch, self._loop.forget)
        channel.setblocking(False)
        channel.set_inheritable(False)
        self._loop.watch(channel.fileno(), self._readable)
        self._wake, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._old_handler = signal.signal(signal.SIGCHLD, lambda number, frame: None)
        self._old_wakeup = signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        self._loop.watch(self._wake, self._child_ended)

    def run(self) -> int:
        """The loop."""
        while self._status is None:
            self._loop.step(self._patience())
            now = time.monotonic_ns()
            for command in self._commands.values():
                if command.deadline <= now:
                    command.late(now)
                due = command.due()
                if due is not None and due <= now and self._pending < STREAM_PENDING:
                    command.tell(now)
            self._worker.expire(now)
        return self._status

    def close(self) -> None:
        """Kill everything, wait for it (bounded), give back every descriptor and the signal handler."""
        self._cancels.clear()
        self._worker.close()
        for pid, command in self._commands.items():
            kill_group(pid)
            command.close()
        if self._reaper:
            try:
                os.kill(-1, signal.SIGKILL)
            except OSError:
                pass
        end = time.monotonic_ns() + _LAST_WAIT_NS
        while time.monotonic_ns() < end:
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    time.sleep(0.001)
            except ChildProcessError:
                break
        signal.set_wakeup_fd(self._old_wakeup)
        signal.signal(signal.SIGCHLD, self._old_handler)
        self._loop.close()
        os.close(self._wake)
        os.close(self._wake_write)
        self._root.close()
        self._channel.close()

    def _patience(self) -> float | None:
        deadlines = [command.deadline for command in self._commands.values()]
        if (search := self._worker.next_deadline()) is not None:
            deadlines.append(search)
        if self._pending < STREAM_PENDING:
            deadlines += [due for command in self._commands.values() if (due := command.due()) is not None]
        if not deadlines:
            return None
        return max((min(deadlines) - time.monotonic_ns()) / 1e9, 0.0)

    # --- the gate's channel ---

    def _readable(self) -> None:
        try:
            data = self._channel.recv(_RECV)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._status = 0
            return
        self._incoming = self._decoder.feed(data)
        self._take()

    def _take(self) -> None:
        """Carry out the requests that have come in whole, as long as the gate reads the answers."""
        try:
            while self._pending <= PENDING_BYTES:
                frame = next(self._incoming, None)
                if frame is None:
                    self._loop.watch(self._channel.fileno(), self._readable)
                    return
                self._request(frame)
            self._loop.unwatch(self._channel.fileno())
        except InvalidError:
            self._status = 1

    def _request(self, frame: Frame) -> None:
        ident = frame.header.get("id")
        if type(ident) is not int or not 0 <= ident <= _MAX_ID:
            raise InvalidError("a request without an id", rule="frames.header")
        try:
            self._dispatch(ident, frame.header, frame.body)
        except HandsError as error:
            self._fail(ident, error)
        except OSError as error:
            self._fail(ident, from_oserror(error))
        except InvalidError:
            raise
        except Exception:  # noqa: BLE001 -- one request must not end the pod
            self._fail(ident, HandsError("io", "the request failed inside hands"))

    def _dispatch(self, ident: int, header: dict[str, Any], body: bytes) -> None:
        operation = header.get("op")
        if not isinstance(operation, str):
            raise wrong("op")
        if ident in self._cancels:
            raise HandsError("protocol", "id: in use")
        if operation in _FILE_OPERATIONS:
            self._answer(ident, *_FILE_OPERATIONS[operation](self._root, header, body))
        elif operation in _SEARCHES:
            self._search(ident, header)
        elif operation == "run":
            self._run(ident, header, body)
        elif operation in git.OPERATIONS:
            _GitTask(self, ident, git.OPERATIONS[operation](header)).step(None)
        elif operation == "cancel":
            cancel = self._cancels.get(integer(header, "target", 0, _MAX_ID))
            if cancel is not None:
                cancel()
            self._answer(ident, {})
        else:
            raise HandsError("protocol", "op: unknown")

    def _answer(self, ident: int, ok: dict[str, Any], body: bytes = b"") -> None:
        self._cancels.pop(ident, None)
        try:
            self._send(encode({"id": ident, "ok": ok}, body))
        except (InvalidError, UnicodeEncodeError):
            self._fail(ident, HandsError("too_large", "the answer does not fit a frame"))

    def _fail(self, ident: int, error: HandsError) -> None:
        self._cancels.pop(ident, None)
        self._send(encode({"id": ident, "error": error.as_dict()}))

    def _send(self, data: bytes) -> None:
        self._out.append(memoryview(data))
        self._pending += len(data)
        if len(self._out) == 1:
            self._flush()

    def _writable(self) -> None:
        self._flush()
        if self._status is None and not self._out:
            self._take()

    def _flush(self) -> None:
        while self._out:
            try:
                sent = self._channel.send(self._out[0], socket.MSG_NOSIGNAL)
            except BlockingIOError:
                self._loop.watch_writable(self._channel.fileno(), self._writable)
                return
            except OSError:
                self._status = 0
                return
            self._pending -= sent
            self._out[0] = self._out[0][sent:]
            if not self._out[0]:
                self._out.popleft()
        self._loop.unwatch_writable(self._channel.fileno())

    # --- searches ---

    def _search(self, ident: int, header: dict[str, Any]) -> None:
        def done(result: dict[str, Any] | HandsError) -> None:
            if isinstance(result, HandsError):
                self._fail(ident, result)
            else:
                self._answer(ident, result)

        def told(files: int, size: int) -> None:
            self._send(encode({"id": ident, "out": "progress", "files": files, "bytes": size}))

        # In the table first: the worker may answer, with an error, before `submit` returns.
        self._cancels[ident] = lambda: None
        try:
            job = self._worker.submit(header, time.monotonic_ns(), done, told)
        except HandsError:
            del self._cancels[ident]
            raise
        if ident in self._cancels:
            self._cancels[ident] = lambda: self._worker.cancel(job)

    # --- commands ---

    def _run(self, ident: int, header: dict[str, Any], body: bytes) -> None:
        argv = texts(header, "argv", LIMITS.argv_count, LIMITS.argv_bytes)
        if not argv or sum(len(item.encode("utf-8")) + 1 for item in argv) > LIMITS.argv_bytes:
            raise wrong("argv")
        if len(body) > LIMITS.stdin_bytes:
            raise HandsError("too_large", f"stdin over {LIMITS.stdin_bytes} bytes")
        timeout_ms = integer(header, "timeout_ms", 1, LIMITS.run_timeout_max_ms, LIMITS.run_timeout_ms)
        output_bytes = integer(header, "output_bytes", 0, LIMITS.output_bytes, LIMITS.output_bytes)
        streamed = flag(header, "stream")
        directory = self._root.open_directory(path(header, "cwd", "."))

        def stream(index: int, data: bytes) -> None:
            self._send(encode({"id": ident, "out": ("stdout", "stderr")[index]}, data))

        def done(result: Result | HandsError) -> None:
            if isinstance(result, HandsError):
                self._fail(ident, result)
            else:
                self._answer(ident, _run_answer(result), result.stdout + result.stderr)

        try:
            spec = Spec(argv, self._env, directory, body, timeout_ms * 1_000_000, output_bytes, self._filter,
                stream if streamed else None,
            )  # fmt: skip
            command = self.start(spec, done)
        finally:
            os.close(directory)
        self._cancels[ident] = command.kill

    def start(self, spec: Spec, done: Callable[[Result | HandsError], None]) -> Command:
        """Start a command; `done` is called when it has ended. Raises HandsError."""
        if len(self._commands) >= COMMANDS:
            raise HandsError("io", "too many commands at once")
        command = Command(spec, self._loop, done)
        self._commands[command.pid] = command
        return command

    def start_git(self, call: git.Call, deadline: int, done: Callable[[Result | HandsError], None]) -> Command:
        """Start one git process in the workspace's root."""
        left = deadline - time.monotonic_ns()
        if left <= 0:
            raise HandsError("timeout", "git took too long")
        argv = git.argv(call)
        return self.start(
            Spec(argv, self._git_env, self._root.fd, call.stdin, left, call.output_bytes, self._filter), done
        )

    def _child_ended(self) -> None:
        try:
            os.read(self._wake, 4096)
        except BlockingIOError:
            pass
        ended = self._reap()
        while ended:
            if self._reaper:
                more: list[tuple[Command, int]] = []
                kill_orphans(self._known, partial(self._reap_into, more))
                ended += more
            for command, status in ended:
                command.on_exit(status)
            ended = self._reap()

    def _known(self) -> set[int]:
        return {*self._commands, self._worker.pid}

    def _reap_into(self, ended: list[tuple[Command, int]]) -> None:
        ended += self._reap()

    def _reap(self) -> list[tuple[Command, int]]:
        """Wait for whatever has ended. A leader's group is killed before its pid can be used again."""
        ended: list[tuple[Command, int]] = []
        while True:
            try:
                peek = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if peek is None:
                    return ended
                command = self._commands.pop(peek.si_pid, None)
                if command is not None:
                    kill_group(peek.si_pid)
                _, status = os.waitpid(peek.si_pid, 0)
            except ChildProcessError:
                return ended
            if command is not None:
                ended.append((command, status))


class _GitTask:
    """Drives one git operation: each call is a process, the last value is the answer."""

    def __init__(self, hands: Hands, ident: int, operation: git.Operation) -> None:
        self._hands = hands
        self._ident = ident
        self._operation = operation
        self._deadline = time.monotonic_ns() + LIMITS.search_timeout_ms * 1_000_000
        self._command: Command | None = None
        self._cancelled = False

    def step(self, result: Result | HandsError | None) -> None:
        """Go on with what the last call gave."""
        try:
            if isinstance(result, HandsError):
                raise result
            if self._cancelled:
                raise HandsError("timeout", "cancelled")
            call = next(self._operation) if result is None else self._operation.send(result)
            self._hands._cancels[self._ident] = self._cancel
            self._command = self._hands.start_git(call, self._deadline, self.step)
        except StopIteration as stop:
            self._hands._answer(self._ident, *stop.value)
        except HandsError as error:
            self._operation.close()
            self._hands._fail(self._ident, error)
        except Exception:  # noqa: BLE001 -- one request must not end the pod
            self._operation.close()
            self._hands._fail(self._ident, HandsError("io", "the git operation failed inside hands"))

    def _cancel(self) -> None:
        self._cancelled = True
        if self._command is not None:
            self._command.kill()


def _run_answer(result: Result) -> dict[str, Any]:
    return {
        "exit_code": result.exit_code,
        "signal": result.signal,
        "timed_out": result.timed_out,
        "stdout_bytes": len(result.stdout),
        "stdout_truncated": result.stdout_truncated,
        "stderr_truncated": result.stderr_truncated,
        "duration_ns": result.duration_ns,
    }
