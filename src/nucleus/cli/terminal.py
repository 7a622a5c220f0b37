"""Terminals and pipes between a person and an agent: raw mode that is always undone, sizes, byte pumps.

Promises: the terminal's settings come back on every exit that Python can see (SIGTERM and SIGHUP included); a pump
holds one bounded chunk and never blocks, nor changes the flags of a descriptor that others share; text of an agent
that goes to the person's own terminal through pipes carries no control sequence.
Does not: interpret what passes through a pty: there the agent owns the screen, and nothing of ours is asked on it.
"""

from __future__ import annotations

import codecs
import errno
import fcntl
import os
import select
import signal
import struct
import termios

from nucleus.cli.main import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

CHUNK = 65_536
_ATOMIC = 4_096  # PIPE_BUF: after POLLOUT a write of this much does not block (poll(2), pipe(7))
_ALTERNATE_ON, _ALTERNATE_OFF = b"\x1b[?1049h", b"\x1b[?1049l"
# Soft reset (DECSTR), no mouse, no bracketed paste, plain text, a line of our own: whatever mode the agent left behind.
_RESET = b"\x1b[!p\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b[0m\r\n"
_ENDING = (signal.SIGTERM, signal.SIGHUP)


def size(fd: int) -> tuple[int, int]:
    """(rows, columns) of a terminal, 24 × 80 where it says nothing; bounded as a `PodSpec` wants it."""
    try:
        rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8)))
    except OSError:
        rows = columns = 0
    return min(rows or 24, 1000), min(columns or 80, 1000)


def resize(master: int, rows: int, columns: int) -> None:
    """Tell the pty its new size; its foreground process group gets SIGWINCH from the kernel."""
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


class Ended(BaseException):
    """SIGTERM or SIGHUP came; `number` is which. Not an Exception: no handler but the outermost may eat it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Raw:
    """A context in which `fd` is in raw mode. `master`, when given, follows its size.

    SIGTERM and SIGHUP leave the context as `Ended`.
    """

    def __init__(self, fd: int, master: int = -1) -> None:
        self._fd = fd
        self._master = master
        self._saved: list[Any] = []
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Raw:
        self._saved = termios.tcgetattr(self._fd)
        for number in _ENDING:
            self._handlers[number] = signal.signal(number, _end)
        self._handlers[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, self._resized)
        try:
            mode = termios.tcgetattr(self._fd)
            mode[0] &= ~(termios.BRKINT | termios.ICRNL | termios.INPCK | termios.ISTRIP | termios.IXON)
            mode[1] &= ~termios.OPOST
            mode[2] = mode[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
            mode[3] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN | termios.ISIG)
            mode[6][termios.VMIN], mode[6][termios.VTIME] = 1, 0
            termios.tcsetattr(self._fd, termios.TCSANOW, mode)
            self._resized()
        except BaseException:
            self._restore()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _restore(self) -> None:
        for ending in _ENDING:
            signal.signal(ending, signal.SIG_IGN)  # we are ending; a second signal must not cut this short
        try:
            # What was typed for the agent and not read by it must not become a command of the shell. Not TCSAFLUSH:
            # it waits until a terminal that may hang has shown everything.
            termios.tcflush(self._fd, termios.TCIFLUSH)
            termios.tcsetattr(self._fd, termios.TCSANOW, self._saved)
        except termios.error:
            pass  # the terminal is gone
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _resized(self, *_: object) -> None:
        if self._master >= 0:
            try:
                resize(self._master, *size(self._fd))
            except OSError:
                pass  # the pty is gone; the loop will see it


def _end(number: int, _frame: object) -> None:
    raise Ended(number)


class Pump:
    """Bytes from one descriptor to another, one chunk at a time.

    Args:
        source, sink: descriptors.
        transform: applied to each chunk.
        close_source, close_sink: close them when their end is reached; descriptors of our own only.
    """

    def __init__(
        self,
        source: int,
        sink: int,
        transform: Callable[[bytes], bytes] | None = None,
        *,
        close_source: bool = False,
        close_sink: bool = False,
    ) -> None:
        self._source, self._sink = source, sink
        self._transform = transform
        self._close_source, self._close_sink = close_source, close_sink
        self._held = b""
        self._ended = False
        self.done = False

    @property
    def holding(self) -> bool:
        """Bytes were read that are not written yet."""
        return bool(self._held)

    def interests(self) -> tuple[int, int]:
        """(descriptor, poll mask) of what it waits for. Only while not done."""
        return (self._sink, select.POLLOUT) if self._held else (self._source, select.POLLIN)

    def serve(self, ready: dict[int, int]) -> None:
        """Act on what poll found: one read or one write."""
        fd, _ = self.interests()
        if self.done or fd not in ready:
            return
        try:
            if self._held:
                self._held = self._held[os.write(fd, self._held[:_ATOMIC]) :]
            else:
                self._read(fd)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EINTR):
                return
            # EIO: the last holder of the pty's other side is gone. EPIPE: nobody reads any more.
            self._held, self._ended = b"", True
        if self._ended and not self._held:
            self.close()

    def _read(self, fd: int) -> None:
        data = os.read(fd, CHUNK)
        if not data:
            self._ended = True
        self._held = self._transform(data) if self._transform is not None else data

    def close(self) -> None:
        """End it; idempotent."""
        if not self.done:
            self.done = True
            for fd, ours in ((self._source, self._close_source), (self._sink, self._close_sink)):
                if ours:
                    os.close(fd)


class Plain:
    """A `Pump` transform for pipes that end on the person's terminal: control sequences are shown, not obeyed."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("backslashreplace")

    def __call__(self, data: bytes) -> bytes:
        text = self._decoder.decode(data, final=not data)
        # A carriage return or tab moves the cursor within its line and no further.
        shown = "\t".join("\r".join(map(printable, part.split("\r"))) for part in text.split("\t"))
        return shown.encode("utf-8", "backslashreplace")


class Screen:
    """A `Pump` transform for a pty's output: passes everything, and knows how to leave the screen usable."""

    def __init__(self) -> None:
        self._tail = b""
        self._alternate = False

    def __call__(self, data: bytes) -> bytes:
        seen = self._tail + data
        on, off = seen.rfind(_ALTERNATE_ON), seen.rfind(_ALTERNATE_OFF)
        if on != off:
            self._alternate = on > off
        self._tail = seen[-len(_ALTERNATE_ON) + 1 :]
        return data

    def reset(self) -> bytes:
        """What to write when the agent has ended."""
        return (_ALTERNATE_OFF if self._alternate else b"") + _RESET
