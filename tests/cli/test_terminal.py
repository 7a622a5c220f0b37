"""Raw mode is always undone; pumps keep every byte, never block and never change shared flags."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import termios
import threading
from collections.abc import Iterator

import pytest

from nucleus.cli import terminal
from nucleus.cli.terminal import Ended, Plain, Pump, Raw, Screen


@pytest.fixture
def tty() -> Iterator[tuple[int, int]]:
    master, slave = os.openpty()
    yield master, slave
    os.close(master)
    os.close(slave)


def test_size_and_resize(tty: tuple[int, int]) -> None:
    master, slave = tty
    assert terminal.size(slave) == (24, 80)  # a fresh pty says 0 × 0
    terminal.resize(master, 50, 132)
    assert terminal.size(slave) == (50, 132)
    terminal.resize(master, 65_535, 2)
    assert terminal.size(slave) == (1000, 2)
    read, write = os.pipe()
    assert terminal.size(read) == (24, 80)
    os.close(read)
    os.close(write)


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt, SystemExit])
def test_raw_is_undone(tty: tuple[int, int], error: type[BaseException] | None) -> None:
    _, slave = tty
    before = termios.tcgetattr(slave)
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH)]
    with contextlib.suppress(ValueError, KeyboardInterrupt, SystemExit), Raw(slave):
        inside = termios.tcgetattr(slave)
        assert not inside[3] & (termios.ECHO | termios.ICANON | termios.ISIG)
        if error is not None:
            raise error
    assert termios.tcgetattr(slave) == before
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH)] == handlers


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_raw_is_undone_when_we_are_told_to_end(tty: tuple[int, int], number: int) -> None:
    _, slave = tty
    before = termios.tcgetattr(slave)

    def told() -> None:
        with Raw(slave):
            os.kill(os.getpid(), number)
            signal.pause()

    with pytest.raises(Ended) as caught:
        told()
    assert caught.value.number == number
    assert termios.tcgetattr(slave) == before


def test_the_pty_follows_the_terminal(tty: tuple[int, int]) -> None:
    master, slave = tty
    agent_master, agent_slave = os.openpty()
    try:
        terminal.resize(master, 30, 90)
        with Raw(slave, agent_master):
            assert terminal.size(agent_slave) == (30, 90)
            terminal.resize(master, 40, 100)
            os.kill(os.getpid(), signal.SIGWINCH)  # in life, from the kernel: this tty is not ours
            assert terminal.size(agent_slave) == (40, 100)
    finally:
        os.close(agent_master)
        os.close(agent_slave)


def drive(*pumps: Pump, rounds: int = 10_000) -> None:
    for _ in range(rounds):
        live = [pump for pump in pumps if not pump.done]
        if not live:
            return
        poll = select.poll()
        for pump in live:
            poll.register(*pump.interests())
        ready = dict(poll.poll(2000))
        assert ready
        for pump in live:
            pump.serve(ready)
    pytest.fail("a pump never ended")


def test_a_pump_keeps_every_byte_through_a_full_pipe() -> None:
    data = os.urandom(1_000_003)
    (in_read, in_write), (out_read, out_write) = os.pipe(), os.pipe()
    flags = fcntl.fcntl(out_write, fcntl.F_GETFL)
    got: list[bytes] = []

    def feed() -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(in_write, view) :]
        os.close(in_write)

    def drain() -> None:
        while chunk := os.read(out_read, 8192):
            got.append(chunk)

    threads = [threading.Thread(target=feed), threading.Thread(target=drain)]
    for thread in threads:
        thread.start()
    pump = Pump(in_read, out_write, close_source=True)
    drive(pump)
    assert fcntl.fcntl(out_write, fcntl.F_GETFL) == flags  # others share it
    os.close(out_write)
    for thread in threads:
        thread.join(5)
    assert b"".join(got) == data
    os.close(out_read)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(in_read)


def test_a_pump_does_not_block_on_a_reader_that_sleeps() -> None:
    (in_read, in_write), (out_read, out_write) = os.pipe(), os.pipe()
    os.write(in_write, b"x" * 60_000)
    pump = Pump(in_read, out_write)
    for _ in range(1000):
        poll = select.poll()
        poll.register(*pump.interests())
        ready = dict(poll.poll(20))
        if not ready:
            break
        pump.serve(ready)
        if pump.interests()[0] == in_read:
            os.write(in_write, b"x" * 60_000)
    assert pump.interests() == (out_write, select.POLLOUT)
    for fd in (in_read, in_write, out_read, out_write):
        os.close(fd)


def test_a_pump_ends_when_nobody_reads() -> None:
    (in_read, in_write), (out_read, out_write) = os.pipe(), os.pipe()
    os.write(in_write, b"x")
    os.close(out_read)
    pump = Pump(in_read, out_write, close_source=True, close_sink=True)
    drive(pump)
    with pytest.raises(BrokenPipeError):
        os.write(in_write, b"x")  # and the writer is told
    os.close(in_write)
    pump.close()  # idempotent


def test_a_pump_ends_with_the_pty() -> None:
    master, slave = os.openpty()
    read, write = os.pipe()
    os.write(slave, b"last words")
    os.close(slave)
    drive(Pump(master, write, close_source=True, close_sink=True))
    assert os.read(read, 100) == b"last words"
    os.close(read)


@pytest.mark.parametrize(
    ("chunks", "shown"),
    [
        ([b"plain\n\ttab\rcr\n"], "plain\n\ttab\rcr\n"),
        ([b"\x1b[2J\x1b]0;title\x07"], "\\x1b[2J\\x1b]0;title\\x07"),
        ([b"k\xc3", b"\xa4se"], "käse"),
        ([b"\xc2", b"\x9b2J"], "\\x9b2J"),
        ([b"\xe2\x80", b"\xaegnp"], "\\u202egnp"),
        ([b"\xff\n"], "\\xff\n"),
        ([b"\\r stays"], "\\r stays"),
        ([b"\xc3"], "\\xc3"),
    ],
)
def test_plain_text_obeys_nothing(chunks: list[bytes], shown: str) -> None:
    plain = Plain()
    assert b"".join(map(plain, [*chunks, b""])).decode() == shown


def test_a_cut_character_at_the_end_is_not_lost() -> None:
    (in_read, in_write), (out_read, out_write) = os.pipe(), os.pipe()
    os.write(in_write, b"a\xc3")
    os.close(in_write)
    drive(Pump(in_read, out_write, Plain(), close_source=True, close_sink=True))
    assert os.read(out_read, 100) == b"a\\xc3"
    os.close(out_read)


def test_screen_leaves_the_alternate_screen_only_when_the_agent_is_in_it() -> None:
    screen = Screen()
    assert screen(b"hi \x1b[?10") == b"hi \x1b[?10"
    assert not screen.reset().startswith(b"\x1b[?1049l")
    screen(b"49h full screen")
    assert screen.reset().startswith(b"\x1b[?1049l")
    screen(b"\x1b[?1049l bye")
    assert not screen.reset().startswith(b"\x1b[?1049l")
    assert b"\x1b[!p" in screen.reset()
