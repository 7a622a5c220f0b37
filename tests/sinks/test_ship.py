"""`nucleus-audit ship`: what is sent, again and after crashes, and what stops it. To a file, and to a stand-in."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from audit.forge import rechain  # of our tests
from nucleus.cli import audit_ship
from nucleus.cli.audit import main
from nucleus.sinks.base import Entry, Later

from .given import Book

PROGRAM = str(Path(sys.executable).parent / "nucleus-audit")
Captured = pytest.CaptureFixture[str]


@pytest.fixture(params=[0, 4_096], ids=["one file", "segments"])
def book(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Book]:
    made = Book(tmp_path, request.param)
    yield made
    made.close()


def verified(copy: Path, capsys: Captured, book: Book) -> dict[str, Any]:
    """What `nucleus-audit verify` says of a copy, with the log's key and its newest checkpoint."""
    capsys.readouterr()
    notes = Path(f"{book.path}.checkpoints").read_bytes().split(b"\n\n")
    pin = copy.parent / "pin"
    pin.write_bytes(b"\n\n".join(notes[-3:-1]) + b"\n")
    code = main(["verify", str(copy), "--key", f"{book.path}.vkey", "--checkpoint", str(pin), "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert code == 0, found
    return found


def test_the_copy_is_the_log_and_verifies_by_itself(book: Book, tmp_path: Path, capsys: Captured) -> None:
    copy = tmp_path / "copy.jsonl"
    for count in (1, 30, 7):
        book.write(count)
        assert book.ship(f"file:{copy}") == 0
        assert copy.read_bytes().splitlines(keepends=True) == book.lines()
    assert book.ship(f"file:{copy}") == 0  # nothing new
    assert copy.read_bytes().splitlines(keepends=True) == book.lines()
    found = verified(copy, capsys, book)
    assert (found["records"], found["complete"]) == (38, True), found["tree"]
    assert copy.stat().st_mode & 0o777 == 0o600


def test_what_is_not_signed_is_not_sent(book: Book, tmp_path: Path, capsys: Captured) -> None:
    copy = tmp_path / "copy.jsonl"
    book.write(5).write(4, sign=False)
    assert book.ship(f"file:{copy}") == 0
    assert len(copy.read_bytes().splitlines()) == 5
    book.write(1)
    assert book.ship(f"file:{copy}") == 0
    assert len(copy.read_bytes().splitlines()) == 10
    capsys.readouterr()
    assert main(["ship", "--state", str(book.state), "--status"]) == 0
    assert "up to record 10, 0 signed ones to come" in capsys.readouterr().out


class Crash(BaseException):
    """The process is gone."""


class StandIn:
    """A sink that keeps what it got; `fails`: so many times, in the middle of something."""

    batch = 4

    def __init__(self) -> None:
        self.got: list[tuple[int, ...]] = []
        self.pins: list[int] = []
        self.lines: dict[int, bytes] = {}

    def deliver(self, origin: str, entries: Sequence[Entry]) -> None:
        self.got.append(tuple(entry.seq for entry in entries))
        for entry in entries:
            assert self.lines.setdefault(entry.seq, entry.line) == entry.line
            assert json.loads(entry.line) == entry.record

    def pin(self, origin: str, size: int, note: str) -> None:
        assert note.split("\n")[:2] == [origin, str(size)]
        self.pins.append(size)

    def close(self) -> None:
        pass


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    made = StandIn()
    monkeypatch.setattr(audit_ship, "opened", lambda to, options: made)
    return made


def test_a_crash_at_any_step_leaves_nothing_out_and_the_same_batches_come_again(
    book: Book, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_whole, deliver = audit_ship.write_whole, stand_in.deliver
    left = 0

    def step() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Crash

    def write(*arguments: Any, **keywords: Any) -> None:
        step()
        write_whole(*arguments, **keywords)
        step()

    def hand_over(origin: str, entries: Sequence[Entry]) -> None:
        step()
        deliver(origin, entries)
        step()

    monkeypatch.setattr(audit_ship, "write_whole", write)
    monkeypatch.setattr(stand_in, "deliver", hand_over)
    seen = 0
    for crash in range(1, 60):
        book.write(crash % 7 + 1)
        left = crash
        before = len(stand_in.got)
        try:
            assert book.ship("x:") == 0
            assert left > 0
        except Crash:
            seen += 1
            left = 0
            stand_in_batch = stand_in.got[before:][-1:]
            book.write(3)  # it is longer by the next start
            assert book.ship("x:") == 0
            # What was under way comes again as it was, or not at all.
            for batch in stand_in.got[before:]:
                for other in stand_in_batch:
                    assert batch == other or not set(batch) & set(other)
        assert stand_in.pins[-1] == len(book.lines())
    assert seen > 10
    assert [stand_in.lines[seq] for seq in sorted(stand_in.lines)] == book.lines()
    order = [seq for batch in stand_in.got for seq in batch]
    assert all(after <= before + 1 for before, after in itertools.pairwise(order))


def test_a_place_that_is_down_is_tried_again_and_gets_all_in_order(
    book: Book, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    book.write(10)
    deliver, failures = stand_in.deliver, [Later("it is down"), Later("busy", 7)]

    def down(origin: str, entries: Sequence[Entry]) -> None:
        if len(stand_in.got) == 1 and failures:
            raise failures.pop(0)
        deliver(origin, entries)

    monkeypatch.setattr(stand_in, "deliver", down)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) > 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(audit_ship.time, "sleep", sleep)
    assert book.ship("x:", "--follow") == 0
    assert stand_in.got == [(1, 2, 3, 4), (5, 6, 7, 8), (9, 10)]
    assert slept == [1, 7, 1]
    said = capsys.readouterr()
    assert said.err == "not reachable: it is down\nnot reachable: busy\n"
    assert said.out == "delivered: 6 records, up to record 10\n"


def test_without_follow_a_place_that_is_down_is_said(book: Book, tmp_path: Path, capsys: Captured) -> None:
    book.write(3)
    assert book.ship(f"file:{tmp_path}/none/copy") == 4
    assert "not reachable" in capsys.readouterr().err


def test_a_place_that_never_answers_ends_by_itself(
    book: Book, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    book.write(3)
    monkeypatch.setattr(stand_in, "deliver", lambda *_: time.sleep(60))
    real = audit_ship.deadline
    monkeypatch.setattr(audit_ship, "deadline", lambda: real(1))
    begin = time.monotonic()
    assert book.ship("x:") == 4
    assert time.monotonic() - begin < 10
    assert "no answer within 1 s" in capsys.readouterr().err


# What the log may be found to be


@pytest.mark.parametrize("harm", ["cut", "rewritten", "unsigned", "an edit that is not delivered yet"])
def test_a_log_that_is_not_what_it_was_is_not_sent(
    harm: str, tmp_path: Path, stand_in: StandIn, capsys: Captured
) -> None:
    book = Book(tmp_path)
    log = Path(book.path)
    book.write(6)
    if harm != "an edit that is not delivered yet":
        assert book.ship("x:") == 0
    got = list(stand_in.got)
    book.write(6)
    good = log.read_bytes()
    match harm:
        case "cut":
            log.write_bytes(b"".join(good.splitlines(keepends=True)[:8]))
        case "rewritten":
            rechain(log, lambda record: {**record, "pod": "pod-0000000000"})
        case "unsigned":
            notes = Path(f"{log}.checkpoints")
            notes.write_bytes(notes.read_bytes().replace(b"\n12\n", b"\n11\n"))
        case _:
            log.write_bytes(good.replace(b'"f3', b'"f4', 1))
    assert book.ship("x:", "--json") == 1
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["code"] == {"cut": "shrink", "rewritten": "fork", "unsigned": "signature"}.get(harm, "fork")
    assert stand_in.got == got
    book.close()


def test_between_what_was_seen_and_what_is_sent_an_edit_is_noticed(
    tmp_path: Path, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    book = Book(tmp_path).write(12)
    log = Path(book.path)
    deliver = stand_in.deliver

    def edit(origin: str, entries: Sequence[Entry]) -> None:
        deliver(origin, entries)
        log.write_bytes(log.read_bytes().replace(b'"f10', b'"f99', 1))
        raise Later("later")

    monkeypatch.setattr(stand_in, "deliver", edit)
    assert book.ship("x:") == 4
    monkeypatch.setattr(stand_in, "deliver", deliver)
    assert book.ship("x:") == 1
    assert "REFUSED (edited)" in capsys.readouterr().out
    assert max(stand_in.lines) < 11
    book.close()


def test_a_state_is_of_one_address_and_its_own(book: Book, tmp_path: Path, capsys: Captured) -> None:
    book.write(3)
    assert book.ship(f"file:{tmp_path}/a") == 0
    assert book.ship(f"file:{tmp_path}/b") == 2
    assert "each address has a state of its own" in capsys.readouterr().err
    state = book.state / "ship.json"
    good = state.read_text()
    for bad in ("", "[]", good.replace('"v": 1', '"v": 2'), good.replace('"seq": 3', '"seq": -3'), good[:-40]):
        state.write_text(bad)
        assert book.ship(f"file:{tmp_path}/a") == 2
    state.write_text(good)
    state.chmod(0o644)
    assert book.ship(f"file:{tmp_path}/a") == 2
    state.chmod(0o600)
    assert book.ship(f"file:{tmp_path}/a") == 0


# The file


def test_a_copy_with_a_torn_end_is_mended_and_another_one_refused(book: Book, tmp_path: Path, capsys: Captured) -> None:
    copy = tmp_path / "copy"
    book.write(6)
    assert book.ship(f"file:{copy}") == 0
    whole, state = copy.read_bytes(), (book.state / "ship.json").read_bytes()
    book.write(3)
    with copy.open("ab") as file:  # as a crash of the machine leaves it
        file.write(book.lines()[6][:20])
    notes = Path(f"{copy}.checkpoints")
    with notes.open("ab") as file:
        file.write(b"nucleus.local/au")
    assert book.ship(f"file:{copy}") == 0
    assert copy.read_bytes().splitlines(keepends=True) == book.lines()
    assert verified(copy, capsys, book)["records"] == 9
    (book.state / "ship.json").write_bytes(state)  # the state of before: the copy has more
    assert book.ship(f"file:{copy}") == 0
    assert copy.read_bytes().splitlines(keepends=True) == book.lines()
    book.write(1)
    copy.write_bytes(whole)  # it lost what was acknowledged
    assert book.ship(f"file:{copy}") == 1
    assert "ends with record 6, and 10 is the next" in capsys.readouterr().out
    copy.write_bytes(whole.replace(b'"seq":6', b'"seq":9'))
    (book.state / "ship.json").write_bytes(state)
    assert book.ship(f"file:{copy}") == 1
    copy.write_bytes(b"something else\n")
    assert book.ship(f"file:{copy}") == 1
    os.unlink(copy)
    os.symlink("/etc/passwd", copy)
    assert book.ship(f"file:{copy}") in (1, 4)


@pytest.mark.parametrize("text", [b"my only note", b"a line\nand half of one", b'{"v":2', b"x" * 200_000])
def test_a_file_that_is_no_copy_is_left_as_it_is(text: bytes, book: Book, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.write_bytes(text)
    book.write(3)
    assert book.ship(f"file:{copy}") == 1
    assert copy.read_bytes() == text


def test_killed_at_any_moment_the_copy_has_every_line_once(tmp_path: Path, capsys: Captured) -> None:
    book = Book(tmp_path, 16_384)
    copy, chance = tmp_path / "copy", random.Random(7)
    argv = [PROGRAM, "ship", "--state", str(book.state), "--log", book.path, "--to", f"file:{copy}", "--follow"]
    killed = 0
    for _ in range(12):
        with subprocess.Popen(argv, stdout=subprocess.DEVNULL) as process:
            end = time.monotonic() + chance.uniform(0.15, 0.6)
            while time.monotonic() < end:
                book.write(20)
            process.send_signal(signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
    assert killed == 12
    assert book.ship(f"file:{copy}") == 0
    assert copy.read_bytes().splitlines(keepends=True) == book.lines()
    verified(copy, capsys, book)
    book.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a uid of its own")
def test_under_a_uid_of_its_own_it_reads_the_log_and_nothing_else(tmp_path: Path) -> None:
    uid = 40_413
    tmp_path.parent.chmod(0o711)
    tmp_path.parent.parent.chmod(0o711)
    tmp_path.chmod(0o711)
    book = Book(tmp_path, 4_096).write(40)
    os.chown(book.state, uid, uid)
    out = tmp_path / "out"
    out.mkdir(0o700)
    os.chown(out, uid, uid)
    argv = [
        PROGRAM, "ship", "--state", str(book.state), "--log", book.path, "--to", f"file:{out}/copy", "--uid", str(uid),
    ]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done
    assert (out / "copy").stat().st_uid == uid
    assert (out / "copy").read_bytes().splitlines(keepends=True) == book.lines()
    with subprocess.Popen([*argv, "--follow"], stdout=subprocess.PIPE, text=True) as process:
        for _ in range(3):
            book.write(30)
            assert process.stdout is not None
            process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    assert (out / "copy").read_bytes().splitlines(keepends=True) == book.lines()
    assert subprocess.run([*argv[:-1], "0"], capture_output=True, check=False).returncode == 2
    book.close()
