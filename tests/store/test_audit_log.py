"""The log's file on a real file system: torn tails, full disks, what is refused and what is repaired."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nucleus.audit.chain import Head
from nucleus.audit.record import Record
from nucleus.audit.verify import Verifier
from nucleus.errors import AuditError
from nucleus.store.audit_log import AuditLog


@pytest.fixture
def state(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


@pytest.fixture
def log(state: Path) -> Iterator[AuditLog]:
    log = AuditLog(str(state))
    yield log
    log.close()


def fill(log: AuditLog, count: int, size: int = 10) -> None:
    for number in range(count):
        log.stage(Record("error", number, number, request_id="x" * size))
    log.write()


def verified(path: Path) -> int:
    verifier = Verifier()
    verifier.feed(path.read_bytes())
    report = verifier.finish()
    assert report.ok, report.verdict
    return report.records


def test_a_batch_is_all_there_and_goes_on_after_a_restart(state: Path) -> None:
    log = AuditLog(str(state))
    fill(log, 5)
    head = log.head
    log.close()
    for start in (None, head):
        log = AuditLog(str(state), start)
        assert log.head.seq == head.seq if start is None else 5
        log.close()
    log = AuditLog(str(state), head)
    fill(log, 2)
    log.close()
    assert verified(state / "audit.jsonl") == 7
    assert (state / "audit.jsonl").stat().st_mode & 0o777 == 0o600


def test_a_discarded_batch_leaves_nothing(log: AuditLog) -> None:
    fill(log, 2)
    log.stage(Record("error", 1, 1))
    log.discard()
    fill(log, 1)
    assert verified(Path(log.path)) == 3


@pytest.mark.parametrize("keep", [1, 40, -1])
def test_a_torn_last_line_is_set_aside_and_nothing_else(state: Path, keep: int) -> None:
    log = AuditLog(str(state))
    fill(log, 3)
    log.close()
    path = state / "audit.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    torn = lines[2][:keep]
    path.write_bytes(b"".join(lines[:2]) + torn)
    log = AuditLog(str(state))
    assert log.torn is not None
    assert log.torn.size == len(torn)
    assert (state / log.torn.kept_as).read_bytes() == torn
    assert log.head.seq == 2
    fill(log, 1)
    log.close()
    assert verified(path) == 3


@pytest.mark.parametrize("at", [10, 700, -200, -2])
def test_a_log_that_does_not_verify_is_refused_and_left(state: Path, at: int) -> None:
    log = AuditLog(str(state))
    fill(log, 4)
    log.close()
    path = state / "audit.jsonl"
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(AuditError) as caught:
        AuditLog(str(state))
    assert caught.value.rule == "audit.verify"
    assert path.read_bytes() == data
    assert set(os.listdir(state)) == {"audit.jsonl", "audit.reserve"}


def test_a_tail_that_the_ledger_knew_of_is_missed(state: Path) -> None:
    log = AuditLog(str(state))
    fill(log, 4)
    head = log.head
    log.close()
    path = state / "audit.jsonl"
    whole = path.read_bytes()
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:3]))
    with pytest.raises(AuditError) as caught:
        AuditLog(str(state), head)
    assert caught.value.rule == "audit.tail"
    path.unlink()
    with pytest.raises(AuditError):
        AuditLog(str(state), head)
    path.write_bytes(whole)
    with pytest.raises(AuditError) as caught:
        AuditLog(str(state), Head(4, "0" * 64, head.offset))
    assert caught.value.rule == "audit.verify"


def test_a_link_or_a_file_open_to_others_is_refused(state: Path) -> None:
    (state / "elsewhere").write_bytes(b"")
    (state / "audit.jsonl").symlink_to(state / "elsewhere")
    with pytest.raises(AuditError):
        AuditLog(str(state))
    (state / "audit.jsonl").unlink()
    (state / "audit.jsonl").write_bytes(b"")
    (state / "audit.jsonl").chmod(0o644)
    with pytest.raises(AuditError):
        AuditLog(str(state))
    (state / "audit.jsonl").chmod(0o600)
    os.link(state / "audit.jsonl", state / "second")
    with pytest.raises(AuditError):
        AuditLog(str(state))


def test_a_full_disk_fails_the_append_and_leaves_no_torn_bytes(log: AuditLog) -> None:
    fill(log, 3)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (log.head.offset + 100, before[1])
    )  # room for part of a line: a short write
    try:
        with pytest.raises(AuditError) as caught:
            fill(log, 1, size=2_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.rule == "audit.append"
    assert verified(Path(log.path)) == 3
    fill(log, 1)  # there is room again
    assert verified(Path(log.path)) == 4


def test_after_a_failed_sync_nothing_more_is_taken(log: AuditLog, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(log, 1)

    def fail(fd: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)  # a disk that errs cannot be had from the kernel here
        with pytest.raises(AuditError):
            fill(log, 1)
    with pytest.raises(AuditError) as caught:
        fill(log, 1)
    assert caught.value.rule == "audit.broken"
    assert verified(Path(log.path)) == 1


def test_what_began_ends_on_a_full_disk_and_nothing_begins(tmp_path: Path) -> None:
    state = tmp_path / "disk"
    state.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m,mode=700", "none", str(state)], check=False).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        log = AuditLog(str(state))
        log.stage(Record("intent", 1, 1))
        log.write()
        with open(state / "filler", "wb", buffering=0) as filler, contextlib.suppress(OSError):
            while filler.write(b"x" * 4096) == 4096:
                pass
        for event in ("intent", "denied", "pod.start"):
            with pytest.raises(AuditError) as caught:
                log.stage(Record(event, 1, 1))
            assert caught.value.rule == "audit.full"
        for event in ("outcome", "recovery", "pod.stop"):
            for _ in range(100):
                log.stage(Record(event, 1, 1, request_id="x" * 1_000))
            log.write()
        assert verified(Path(log.path)) == 301
        (state / "filler").unlink()
        log.stage(Record("intent", 1, 1))  # there is room again
        log.write()
        assert (state / "audit.reserve").stat().st_size > 0
        log.close()
        assert verified(Path(log.path)) == 302
    finally:
        subprocess.run(["umount", str(state)], check=True)


def test_a_start_syncs_what_it_has_read(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that died may have written lines that only the page cache has, and the ledger relies on them."""
    log = AuditLog(str(state))
    fill(log, 3)
    log.close()
    synced: list[int] = []
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (synced.append(os.fstat(fd).st_ino), real(fd))[1])
    log = AuditLog(str(state))
    assert os.stat(log.path).st_ino in synced
    log.close()
