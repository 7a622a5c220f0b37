"""What can be done to a log, and what `nucleus-audit verify` calls it: the first bad line and the kind."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from forge import rechain  # of our tests

from nucleus.audit.chain import Head, extend
from nucleus.audit.record import Record
from nucleus.audit.verify import KINDS, Remarks
from nucleus.cli.audit import main
from nucleus.store.audit_log import SETTING, AuditLog
from nucleus.store.checkpoints import Checkpoints
from nucleus.store.segments import closed

COUNT = 12
Lines = list[bytes]


def records(count: int = COUNT) -> list[Record]:
    """Intents and their outcomes, in turn."""
    made = []
    for number in range(count):
        event = "outcome" if number % 2 else "intent"
        context = {"reservation": f"{number // 2:032x}", "charged" if number % 2 else "reserved": 1}
        made.append(
            Record(event, 10**18 + number, number, "p1", f"{number // 2}", "spiffe://x/y", {"kind": "read"},
                   outcome={"status": "ok"} if number % 2 else {}, context=context)
        )  # fmt: skip
    return made


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log that its authority has signed, as a whole and at half of it."""
    tmp_path.chmod(0o700)
    write(tmp_path, records())
    return tmp_path / "audit.jsonl"


def write(state: Path, made: list[Record]) -> None:
    log, checkpoints = AuditLog(str(state)), Checkpoints(str(state), "nucleus.local")
    for part in (made[: len(made) // 2], made[len(made) // 2 :]):
        for record in part:
            log.stage(record)
        log.write()
        checkpoints.sign(log.tree)
    log.close()
    checkpoints.close()


@pytest.fixture
def judged(log: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    def judge(*more: str) -> dict[str, Any]:
        code = main(["verify", str(log), "--json", *more])
        said: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert code == (1 if not said["ok"] else 0 if said["complete"] else 3)
        return said

    return judge


Judge = Callable[..., dict[str, Any]]


def edited(line: bytes) -> bytes:
    return line.replace(b"spiffe://x/y", b"spiffe://x/z")


def renumbered(lines: Lines) -> Lines:
    return [line.replace(b'"seq":%d,' % (n + 2), b'"seq":%d,' % (n + 1), 1) for n, line in enumerate(lines)]


@pytest.mark.parametrize(
    ("change", "line", "kind"),
    [
        (lambda ls: [*ls[:4], edited(ls[4]), *ls[5:]], 5, "edited"),
        (lambda ls: [edited(ls[0]), *ls[1:]], 1, "edited"),
        (lambda ls: [*ls[:-1], edited(ls[-1])], COUNT, "edited"),
        (lambda ls: [*ls[:4], *ls[5:]], 5, "gap"),
        (lambda ls: [*ls[:4], *ls[8:]], 5, "gap"),
        (lambda ls: [*ls[:4], ls[5], ls[4], *ls[6:]], 5, "swapped"),
        (lambda ls: [*ls[:2], ls[7], *ls[3:7], ls[2], *ls[8:]], 3, "swapped"),
        (lambda ls: [*ls[:10], ls[11], ls[10]], 11, "swapped"),
        (lambda ls: [*ls[:5], ls[4], *ls[5:]], 6, "duplicate"),
        (lambda ls: [*ls, ls[-1]], COUNT + 1, "duplicate"),
        (lambda ls: ls[1:], 1, "head"),
        (lambda ls: ls[3:], 1, "head"),
        (lambda ls: renumbered(ls[1:]), 1, "edited"),
        (lambda ls: [*ls[:-1], ls[-1][:-1]], COUNT, "torn"),
        (lambda ls: [*ls[:-1], ls[-1][:70]], COUNT, "torn"),
        (lambda ls: [*ls, b'{"v":1'], COUNT + 1, "torn"),
        (lambda ls: [*ls[:3], b"\n", *ls[3:]], 4, "edited"),
        (lambda ls: [*ls, b"x" * 2_000_000], COUNT + 1, "long"),
        (lambda ls: ls[:-1], 0, "cut"),
        (lambda ls: ls[:1], 0, "cut"),
        (lambda ls: [], 0, "empty"),
    ],
)  # fmt: skip
def test_each_is_named_with_its_line(log: Path, judged: Judge, change: Any, line: int, kind: str) -> None:
    log.write_bytes(b"".join(change(log.read_bytes().splitlines(keepends=True))))
    said = judged()
    assert (said["ok"], said["line"], said["kind"]) == (False, line, kind), said
    assert kind in KINDS
    assert said["records"] == (line - 1 if line else len(log.read_bytes().splitlines()))


@pytest.mark.parametrize("keep", [0, 4, COUNT // 2, COUNT - 1])
def test_a_rewrite_with_a_fresh_chain_is_found_by_what_was_signed(log: Path, judged: Judge, keep: int) -> None:
    """The middle, the last entry, everything: every hash is right, and the tree is not the one that was signed."""
    rechain(log, lambda record: record if record["seq"] <= keep else {**record, "pod": "p2"})
    said = judged()
    assert (said["ok"], said["kind"]) == (False, "fork"), said
    first = 1 if keep < COUNT // 2 else COUNT // 2 + 1
    assert f"records {first} to" in said["problem"]


def test_a_dropped_head_that_was_renumbered_is_a_rewrite(log: Path, judged: Judge) -> None:
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[1:]))
    rechain(log, lambda record: record)
    assert judged()["kind"] == "fork"


def test_a_fork_is_found_whichever_branch_is_shown(log: Path, judged: Judge, tmp_path: Path) -> None:
    """Two continuations of one log, each good by itself: what was signed on the one refuses the other."""
    branch = tmp_path / "branch"
    branch.mkdir(mode=0o700)
    head, data = Head(), b""
    for record in [*records(COUNT // 2), *(Record("error", 10**18 + 99, 1) for _ in range(COUNT // 2))]:
        head, line = extend(head, record)
        data += line
    (branch / "audit.jsonl").write_bytes(data)
    assert main(["verify", str(branch / "audit.jsonl")]) == 3  # alone, it is good
    for name in (".checkpoints", ".vkey"):
        shutil.copy(f"{log}{name}", branch / f"audit.jsonl{name}")
    assert main(["verify", str(branch / "audit.jsonl")]) == 1
    said_log, log_data = judged(), log.read_bytes()
    assert said_log["ok"]
    log.write_bytes(data)
    said = judged()
    assert said["kind"] == "fork"
    assert f"records {COUNT // 2 + 1} to {COUNT}" in said["problem"]
    assert log_data != data


def test_without_what_was_signed_a_rewrite_is_not_claimed_to_be_complete(log: Path, judged: Judge) -> None:
    rechain(log, lambda record: {**record, "pod": "p2"}, drop=3)
    for name in (".checkpoints", ".vkey"):
        Path(f"{log}{name}").unlink()
    said = judged()
    assert (said["ok"], said["complete"]) == (True, False)
    assert said["verdict"] == "internally consistent, completeness unknown"


def test_time_that_goes_back_and_an_open_intent_are_visible_and_no_error(tmp_path: Path, capsys: Any) -> None:
    tmp_path.chmod(0o700)
    made = records(6)
    made[3] = Record("outcome", 10**18 - 5_000_000_000, 3, context={"reservation": f"{1:032x}", "charged": 1})
    write(tmp_path, made[:5])  # the last intent has no outcome
    path = str(tmp_path / "audit.jsonl")
    assert main(["verify", path, "--json"]) == 3
    said = json.loads(capsys.readouterr().out)
    assert said["clock_back"] == {"times": 1, "first": 4, "ns": 5_000_000_002}
    assert said["open_intents"] == {"records": 1, "first": 5}
    assert main(["verify", path]) == 3
    shown = capsys.readouterr().out
    assert "the clock went back once, first at record 4, by up to 5.000 s" in shown
    assert "an intent has no outcome (yet), first record 5" in shown


def test_open_intents_are_counted_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nucleus.audit.verify.MAX_OPEN", 10)
    remarks = Remarks()
    for number in range(100):
        remarks.see({"time_ns": 1, "event": "intent", "seq": number + 1, "context": {"reservation": str(number)}})
    assert (remarks.open_intents, remarks.open_first, len(remarks._open)) == (100, 1, 10)
    remarks.see({"time_ns": 1, "event": "recovery", "seq": 101, "context": {"reservation": "99"}})
    assert remarks.open_intents == 99


# Over segments


@pytest.fixture
def rotated(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    (tmp_path / SETTING).write_text("4096")
    log, checkpoints = AuditLog(str(tmp_path)), Checkpoints(str(tmp_path), "nucleus.local")
    for record in records(83):
        log.stage(record)
        log.write()
    checkpoints.sign(log.tree)
    log.close()
    checkpoints.close()
    return Path(log.path)


@pytest.mark.parametrize("harm", ["none", "edited", "missing", "swapped", "cut", "copied", "live emptied"])
def test_a_segment_is_named_with_the_line_in_it(rotated: Path, harm: str, capsys: Any) -> None:
    first, second, third = (Path(segment.path) for segment in closed(str(rotated))[:3])
    want: tuple[str, str, int]
    match harm:
        case "none":
            want = ("", "", 0)
        case "edited":
            lines = second.read_bytes().splitlines(keepends=True)
            second.write_bytes(b"".join([*lines[:2], edited(lines[2]), *lines[3:]]))
            want = ("edited", second.name, 3)
        case "missing":
            second.unlink()
            want = ("gap", third.name, 1)
        case "swapped":
            data = second.read_bytes()
            second.write_bytes(third.read_bytes())
            third.write_bytes(data)
            want = ("gap", second.name, 1)
        case "cut":
            first.write_bytes(first.read_bytes()[:-5])
            want = ("torn", first.name, len(first.read_bytes().splitlines()))
        case "copied":
            third.write_bytes(second.read_bytes())
            want = ("swapped", third.name, 1)
        case "live emptied":
            rotated.write_bytes(b"")
            want = ("cut", "", 0)
    assert main(["verify", str(rotated), "--json"]) == (3 if harm == "none" else 1)
    said = json.loads(capsys.readouterr().out)
    assert (said["kind"], said["file"], said["line"]) == want, said
    if harm == "missing":
        assert any("is not there" in remark for remark in said["remarks"])


def test_anything_that_is_done_at_random_is_found(log: Path, judged: Judge) -> None:
    """What was signed covers all of the log, so that no change of its bytes passes."""
    good = log.read_bytes()
    rng = random.Random(12)
    for _ in range(150):
        data = bytearray(good)
        at = rng.randrange(len(data))
        match rng.randrange(4):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                del data[at : at + rng.randrange(1, 900)]
            case 2:
                data[at:at] = good[rng.randrange(len(good)) :][: rng.randrange(1, 900)]
            case 3:
                other = rng.randrange(len(data))
                data[at], data[other] = data[other], data[at]
        if bytes(data) == good:
            continue
        log.write_bytes(data)
        said = judged()
        assert not said["ok"], (at, said)
        assert said["kind"] in KINDS
