"""The authority signs its log's tree: when, across kill -9 and restarts, and what it refuses to go on from."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nucleus.audit.checkpoint import Checkpoint
from nucleus.audit.merkle import Roots, Tree
from nucleus.audit.note import ED25519, Note, VerifierKey
from nucleus.audit.proof import signed_checkpoint
from nucleus.audit.record import Record
from nucleus.authority.signing import DELAY_NS, RECORDS, RETRY_NS, Signer, open_log
from nucleus.cli.audit_tree import read_key, read_notes
from nucleus.errors import AuditError
from nucleus.store.audit_log import AuditLog
from nucleus.store.checkpoints import Checkpoints
from nucleus.store.ledger import Ledger

from .harness import Authority


def key_of(state: Path) -> VerifierKey:
    return read_key(str(state / "audit.jsonl.vkey"), ED25519)


def notes_of(state: Path) -> list[tuple[Note, Checkpoint]]:
    return list(read_notes(str(state / "audit.jsonl.checkpoints")))


def all_consistent(state: Path) -> list[int]:
    """Every checkpoint is signed, and is of this log; their sizes."""
    notes = notes_of(state)
    roots = Roots(checkpoint.size for _, checkpoint in notes)
    roots.feed((state / "audit.jsonl").read_bytes())
    for note, checkpoint in notes:
        signed_checkpoint(note, key_of(state))
        assert roots.at[checkpoint.size] == checkpoint.root
    sizes = [checkpoint.size for _, checkpoint in notes]
    assert sizes == sorted(set(sizes))
    return sizes


def records(state: Path) -> int:
    return (state / "audit.jsonl").read_bytes().count(b"\n")


def test_it_signs_every_256_records_and_at_the_end(start: Callable[..., Authority], state: Path) -> None:
    authority = start()
    gate = authority.gate()
    for _ in range(RECORDS + 20):
        gate.append("denied")
    assert all_consistent(state) == [RECORDS]
    authority.stop()
    assert all_consistent(state) == [RECORDS, records(state)]
    assert key_of(state).name.startswith("nucleus.local/audit/")
    start().stop()
    assert all_consistent(state) == [RECORDS, records(state)]  # nothing new, nothing signed


def test_key_and_files_are_closed_to_others_and_the_key_is_nowhere_else(
    start: Callable[..., Authority], state: Path
) -> None:
    authority = start()
    authority.gate().append("denied")
    authority.stop()
    files = {path.name: path for path in state.iterdir() if path.is_file()}
    assert {"audit.key", "audit.jsonl.checkpoints", "audit.jsonl.vkey"} <= files.keys()
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in files.values())
    seed = files["audit.key"].read_bytes().split()[-1]
    assert len(seed) == 44
    assert [name for name, path in files.items() if seed in path.read_bytes()] == ["audit.key"]


@pytest.mark.parametrize("seed", range(4))
def test_kill_9_between_append_and_checkpoint(start: Callable[..., Authority], state: Path, seed: int) -> None:
    rng = random.Random(seed)
    for turn in range(3):
        authority = start()
        gate = authority.gate(f"p{turn}")
        for _ in range(rng.randrange(RECORDS - 30, 2 * RECORDS)):
            gate.append("denied")
        if rng.random() < 0.5:
            time.sleep(0.3)  # the ledger keeps the tree's edge when it is idle
        authority.kill()
    path = state / "audit.jsonl.checkpoints"
    before = path.read_bytes()
    with path.open("ab") as file:  # and in the middle of one
        file.write(before[: rng.randrange(1, 100)])
    authority = start()
    authority.gate("last").append("denied")
    authority.stop()
    assert path.read_bytes().startswith(before)
    assert all_consistent(state)[-1] == records(state)


@pytest.mark.parametrize("lost", ["ledger", "edge", "checkpoints"])
def test_what_is_lost_is_made_again_from_the_log(start: Callable[..., Authority], state: Path, lost: str) -> None:
    authority = start()
    gate = authority.gate()
    for _ in range(5):
        gate.append("denied")
    authority.stop()
    old = notes_of(state)
    if lost == "ledger":
        for path in state.glob("ledger.sqlite3*"):
            path.unlink()
    elif lost == "edge":
        with contextlib.closing(sqlite3.connect(state / "ledger.sqlite3")) as db:
            db.execute("DELETE FROM meta WHERE key='tree'")
            db.commit()
    else:
        (state / "audit.jsonl.checkpoints").unlink()
    authority = start()
    authority.gate("p2").append("denied")
    authority.stop()
    sizes = all_consistent(state)
    assert sizes[-1] == records(state)
    assert lost == "checkpoints" or notes_of(state)[0] == old[0]


def rewritten(path: Path, drop: int = 0) -> None:
    """The same log with one word changed, its chain made anew, and its last records dropped."""
    from audit.forge import rechain  # of our tests

    rechain(path, lambda record: record | {"request_id": "r2"}, drop=drop)


@pytest.mark.parametrize("drop", [0, 3])
@pytest.mark.parametrize("ledger", [True, False])
def test_a_log_that_is_not_what_was_signed_is_refused_and_left(
    start: Callable[..., Authority], state: Path, drop: int, ledger: bool
) -> None:
    authority = start()
    gate = authority.gate()
    for _ in range(5):
        gate.append("denied")
    authority.stop()
    path = state / "audit.jsonl"
    rewritten(path, drop)
    if not ledger:  # without it, the chain alone would not tell
        for other in state.glob("ledger.sqlite3*"):
            other.unlink()
    data, signed = path.read_bytes(), (state / "audit.jsonl.checkpoints").read_bytes()
    with pytest.raises(AuditError) as caught:
        start()
    assert caught.value.rule in (("audit.tail", "audit.verify") if ledger else ("audit.tree",))
    assert path.read_bytes() == data
    assert (state / "audit.jsonl.checkpoints").read_bytes() == signed


@pytest.mark.parametrize("harm", ["missing", "other", "open", "empty", "link", "garbage"])
def test_no_second_key_is_made_silently(start: Callable[..., Authority], state: Path, harm: str) -> None:
    authority = start()
    authority.gate().append("denied")
    authority.stop()
    key = state / "audit.key"
    owner = key.stat()
    if harm == "open":
        key.chmod(0o640)
    elif harm == "other":
        key.write_text(key.read_text().replace("nucleus.local", "nucleus.other"))
    elif harm in ("empty", "garbage"):
        key.write_bytes(b"" if harm == "empty" else b"\xff" * 2000)
    else:
        data = key.read_bytes()
        key.unlink()
        if harm == "link":
            (state / "elsewhere").write_bytes(data)
            key.symlink_to(state / "elsewhere")
            os.chown(state / "elsewhere", owner.st_uid, owner.st_gid)
    with pytest.raises(AuditError) as caught:
        start()
    assert caught.value.rule == "audit.key"
    assert key.exists() == (harm != "missing")


def opened(state: Path) -> tuple[Ledger, Signer]:
    ledger = Ledger(str(state))
    ledger.load()
    try:
        return ledger, open_log(str(state), "t.example", ledger, lambda record: None)
    except BaseException:
        ledger.close()
        raise


def closed(ledger: Ledger, signer: Signer) -> None:
    ledger.close()
    signer.log.close()
    signer.checkpoints.close()


def fill(log: AuditLog, count: int) -> None:
    for number in range(count):
        log.stage(Record("error", number, number))
    log.write()


def test_what_cannot_be_signed_holds_the_log_until_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o700)
    ledger, signer = opened(tmp_path)
    fill(signer.log, 3)
    signer.turn(5)
    assert signer.due_ns() == 5 + DELAY_NS
    signer.turn(4 + DELAY_NS)
    assert not notes_of(tmp_path)
    real = signer.checkpoints._fd
    signer.checkpoints._fd = os.open("/dev/full", os.O_WRONLY)  # ENOSPC, as a full disk says it
    now = 5 + DELAY_NS
    signer.turn(now)
    with pytest.raises(AuditError) as caught:
        fill(signer.log, 1)
    assert "checkpoint" in caught.value.message
    assert signer.due_ns() == now + RETRY_NS
    os.close(signer.checkpoints._fd)
    signer.checkpoints._fd, signer.checkpoints._broken = real, ""
    signer.turn(now + RETRY_NS - 1)
    assert signer.log.held
    signer.turn(now + RETRY_NS)
    assert not signer.log.held
    assert signer.due_ns() is None
    fill(signer.log, 1)
    assert all_consistent(tmp_path) == [3]

    def broken(fd: int) -> None:
        raise OSError(5, "I/O error")

    monkeypatch.setattr(os, "fdatasync", broken)
    signer.end(now)
    monkeypatch.undo()
    assert all_consistent(tmp_path) == [3]  # cut back
    signer.turn(now + 10 * RETRY_NS)
    assert signer.log.held  # after a failed sync nothing more is taken
    closed(ledger, signer)
    ledger, signer = opened(tmp_path)
    signer.end(1)
    assert all_consistent(tmp_path) == [3, 4]
    closed(ledger, signer)


def test_the_edge_that_the_ledger_keeps_saves_reading_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o700)
    ledger, signer = opened(tmp_path)
    fill(signer.log, 40)
    signer.end(1)
    fill(signer.log, 7)
    ledger.checkpoint(signer.log.head, signer.state())
    fill(signer.log, 5)
    whole = signer.log.tree.pack()
    closed(ledger, signer)
    hashed = []
    extend = Tree.extend
    monkeypatch.setattr(Tree, "extend", lambda self, lines: (hashed.extend(lines), extend(self, lines))[1])
    ledger, signer = opened(tmp_path)
    assert len(hashed) == 5
    assert signer.log.tree.pack() == whole
    closed(ledger, signer)
    for state in ("", "nonsense", "0 - 0 ", f"40 {'00' * 32} {whole}", f"47 {'00' * 32} 47 zz"):
        ledger = Ledger(str(tmp_path))
        ledger.load()
        head = ledger.head()
        assert head is not None
        ledger.checkpoint(head, state)
        ledger.close()
        if state.startswith("40"):
            with pytest.raises(AuditError):
                opened(tmp_path)
            continue
        ledger, signer = opened(tmp_path)
        assert signer.log.tree.pack() == whole
        closed(ledger, signer)


def test_the_end_of_a_long_file_of_checkpoints_is_found(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    checkpoints = Checkpoints(str(tmp_path), "t.example")
    tree = Tree()
    for number in range(60):
        tree.extend([b"%d" % number])
        checkpoints.sign(tree)
        last = checkpoints.last
        checkpoints.close()
        checkpoints = Checkpoints(str(tmp_path), "t.example")
        assert checkpoints.last == last
    checkpoints.close()
    path = tmp_path / "audit.jsonl.checkpoints"
    good = path.read_bytes()
    for bad in (good[:-300] + b"x" * 1400, b"x" * 9000, good + b"a\n\nb\n\n", b"\n\n" + b"y" * 5000):
        path.write_bytes(bad)
        with pytest.raises(AuditError) as caught:
            Checkpoints(str(tmp_path), "t.example")
        assert caught.value.rule == "audit.checkpoints"
        assert path.read_bytes() == bad
