"""The log's rotation: chain, tree and places go on; a crash at any step loses nothing; a missing segment is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nucleus.audit.chain import Head
from nucleus.audit.merkle import Roots
from nucleus.audit.record import Record
from nucleus.audit.verify import Verifier
from nucleus.errors import AuditError
from nucleus.store.audit_log import SETTING, AuditLog
from nucleus.store.segments import LogFiles, closed, gaps

SIZE = 4_096


@pytest.fixture
def state(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    (tmp_path / SETTING).write_text(f"{SIZE}\n")
    return tmp_path


def fill(log: AuditLog, count: int) -> list[Head]:
    """One record at a time; the heads."""
    heads = []
    for number in range(count):
        heads.append(log.stage(Record("error", number, number, request_id="x" * (number % 97))))
        log.write()
    return heads


def whole(state: Path) -> bytes:
    with LogFiles(str(state / "audit.jsonl")) as log:
        return b"".join(chunk for _, chunk in log.chunks())


def verified(state: Path) -> Head:
    verifier = Verifier()
    verifier.feed(whole(state))
    report = verifier.finish()
    assert report.ok, report.verdict
    return report.head


def test_chain_tree_and_offsets_go_on_over_files_and_restarts(state: Path) -> None:
    log = AuditLog(str(state))
    heads = fill(log, 100)
    log.close()
    segments = closed(log.path)
    assert len(segments) > 5
    assert not gaps(segments)
    assert all(SIZE <= os.stat(segment.path).st_size < SIZE + 1_000 for segment in segments)
    assert all(os.stat(segment.path).st_mode & 0o777 == 0o600 for segment in segments)
    assert verified(state) == heads[-1]
    roots = Roots()
    roots.feed(whole(state))
    assert roots.tree.root() == log.tree.root()
    for start in (None, Head(), *heads):  # the ledger's head may be in any of the files, at an edge, too
        log = AuditLog(str(state), start)
        assert (log.head, log.tree.root()) == (heads[-1], roots.tree.root())
        log.close()
    log = AuditLog(str(state), heads[40])
    more = fill(log, 30)
    log.close()
    assert verified(state) == more[-1]
    assert more[-1].seq == 130


def test_a_place_is_one_number_whatever_file_it_is_in(state: Path) -> None:
    log = AuditLog(str(state))
    heads = fill(log, 60)
    log.close()
    data = whole(state)
    with LogFiles(log.path) as files:
        assert files.size == files.total() == len(data) == heads[-1].offset
        for head in heads:
            chunk = files.pread(100, head.offset)
            assert data[head.offset :].startswith(chunk)
            assert bool(chunk) == (head.offset < len(data))
        assert b"".join(files.lines(heads[20].offset, 1 << 20)) == data[heads[20].offset :]
        assert files.where(0) == files.segments[0].path
        assert files.where(len(data)) == log.path
    first = closed(log.path)[0]
    os.unlink(first.path)  # moved away: what follows keeps its place
    with LogFiles(log.path) as files:
        assert files.size == len(data)
        assert data[heads[40].offset :].startswith(files.pread(100, heads[40].offset))
        with pytest.raises(AuditError) as caught:
            files.pread(1, 0)
        assert caught.value.rule == "audit.segment"
    assert gaps(closed(log.path)) == [f"the segment with records 1 to {first.last} is not there"]
    log = AuditLog(str(state), heads[-1], tree=log.tree)  # the authority goes on with the tree that the ledger keeps
    fill(log, 1)
    log.close()
    with pytest.raises(AuditError):
        AuditLog(str(state))  # without it, all of the log is needed


class Crash(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", range(5))
def test_a_crash_at_any_step_of_a_rotation_loses_nothing(
    state: Path, monkeypatch: pytest.MonkeyPatch, step: int, after: bool
) -> None:
    log = AuditLog(str(state))
    calls: list[str] = []
    rotate = log._rotate

    def crashing(name: str) -> None:
        real = getattr(os, name)

        def call(*args: object, **keywords: object) -> object:
            calls.append(name)
            if len(calls) == step + 1 and not after:
                raise Crash
            done = real(*args, **keywords)
            if len(calls) == step + 1:
                raise Crash
            return done

        monkeypatch.setattr(os, name, call)

    def watched() -> None:
        for name in ("open", "rename", "fsync"):
            crashing(name)
        try:
            rotate()
        finally:
            monkeypatch.undo()

    monkeypatch.setattr(log, "_rotate", watched)
    with pytest.raises(Crash):
        fill(log, 40)
    before = log.head
    log.close()
    assert before.offset >= SIZE
    for start in (Head(1, *_second(state)), before, None):
        log = AuditLog(str(state), start)
        assert log.head == before
        log.close()
    log = AuditLog(str(state))
    head = fill(log, 60)[-1]
    log.close()
    assert verified(state) == head
    assert head.seq == before.seq + 60
    assert not (state / "audit.jsonl.new").exists()


def _second(state: Path) -> tuple[str, int]:
    """Hash and end of the first record."""
    data = b"".join(
        path.read_bytes() for path in (*state.glob("audit-*.jsonl"), state / "audit.jsonl") if path.exists()
    )
    verifier = Verifier()
    verifier.feed(data[: data.index(b"\n") + 1])
    return verifier.head.hash, verifier.head.offset


def test_a_rotation_that_cannot_be_is_put_off(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = AuditLog(str(state))

    def refuse(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refuse)
        fill(log, 30)
    assert not closed(log.path)
    assert not (state / "audit.jsonl.new").exists()
    fill(log, 3_000)  # a megabyte later
    log.close()
    assert closed(log.path)
    assert verified(state).seq == 3_030


def test_a_name_that_is_taken_is_not_overwritten(state: Path) -> None:
    log = AuditLog(str(state))
    heads = fill(log, 40)
    log.close()
    first = closed(log.path)[0]
    for path in [Path(s.path) for s in closed(log.path)]:
        path.unlink()
    (state / "audit.jsonl").write_bytes(b"")
    Path(first.path).write_bytes(b"mine\n")
    with pytest.raises(AuditError):
        AuditLog(str(state), heads[-1])
    assert Path(first.path).read_bytes() == b"mine\n"


@pytest.mark.parametrize("which", ["first", "middle", "last", "live", "cut"])
def test_a_start_without_one_of_its_files_is_refused_and_nothing_written(state: Path, which: str) -> None:
    log = AuditLog(str(state))
    head = fill(log, 60)[-1]
    log.close()
    segments = [Path(segment.path) for segment in closed(log.path)]
    path = {"first": segments[0], "middle": segments[2], "last": segments[-1]}.get(which, Path(log.path))
    if which == "cut":
        segments[1].write_bytes(segments[1].read_bytes()[:-40])
    else:
        path.unlink()
    left = {path.name: path.read_bytes() for path in segments if path.exists()}
    for start in (None,) if which in ("first", "middle", "cut") else (None, head):
        if which == "live" and start is None:
            continue  # nothing here knows of it: a checkpoint does (tests/authority/test_signing.py)
        with pytest.raises(AuditError):
            AuditLog(str(state), start)
    assert left == {path.name: path.read_bytes() for path in segments if path.exists()}


@pytest.mark.parametrize("text", ["", "x", "-1", "1", "4095", "9" * 40, "1e9"])
def test_a_setting_that_is_none_is_refused(state: Path, text: str) -> None:
    (state / SETTING).write_text(text)
    with pytest.raises(AuditError) as caught:
        AuditLog(str(state))
    assert caught.value.rule == "audit.setting"


def test_a_reader_in_the_middle_of_a_rotation_misses_and_repeats_nothing(state: Path) -> None:
    log = AuditLog(str(state))
    fill(log, 7)
    with LogFiles(log.path) as files:
        at = len(files.pread(1 << 20, 0))
        assert not files.moved()
        fill(log, 40)
        assert files.moved()
        at += len(files.pread(1 << 20, at))  # the rest of what is a closed segment by now
    with LogFiles(log.path) as files:
        assert files.where(at) == files.segments[1].path
        assert whole(state)[at:].startswith(files.pread(1 << 20, at))
    log.close()


def test_only_regular_files_are_read(state: Path) -> None:
    os.mkfifo(state / "audit.jsonl")
    with pytest.raises(AuditError):
        LogFiles(str(state / "audit.jsonl"))
