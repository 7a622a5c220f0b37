"""`query`, `tail`, `stats` and `export` on logs of known contents."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from nucleus.audit.chain import Head
from nucleus.audit.record import EVENTS, Record
from nucleus.cli import audit_read
from nucleus.cli.audit import main
from nucleus.cli.audit_export import guarded
from nucleus.store.audit_log import SETTING, AuditLog

DAY = 1_763_856_000  # 2025-11-23T00:00:00Z
PROGRAM = str(Path(sys.executable).parent / "nucleus-audit")
Captured = pytest.CaptureFixture[str]


def record(number: int, **more: Any) -> Record:
    denied = number % 3 == 2
    made: dict[str, Any] = {
        "event": "denied" if denied else "outcome", "time_ns": (DAY + 3_600 * number) * 10**9, "mono_ns": number,
        "pod": f"p{number % 2}", "request_id": f"r{number}", "principal": f"spiffe://x/ns/d/sa/a{number % 2}",
        "operation": {"kind": "run" if number % 2 else "read", "path": f"f{number}\x1b[2J"}, "operation_hash": "",
        "decision": {"verdict": "deny" if denied else "allow", "rule": f"paths.{number % 2}"},
        "outcome": {"status": "denied", "reason": "=cmd|'/c calc'!A1", "rule": "x.y"} if denied else {"status": "ok"},
        "context": {},
    }  # fmt: skip
    return Record(**(made | more))


def write(state: Path, count: int, segment: int = 0, start: Head | None = None) -> AuditLog:
    state.chmod(0o700)
    if segment:
        (state / SETTING).write_text(str(segment))
    log = AuditLog(str(state), start)
    for number in range(log.head.seq, log.head.seq + count):
        log.stage(record(number))
        log.write()
    return log


@pytest.fixture(params=[0, 4_096], ids=["one file", "segments"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    log = write(tmp_path, 24, request.param)
    log.close()
    return log.path


def seqs(capsys: Captured, *argv: str, code: int = 0) -> list[int]:
    assert main([*argv, "--json"]) == code
    return [json.loads(line)["seq"] for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    ("argv", "want"),
    [
        ((), range(24)),
        (("--pod", "p1"), range(1, 24, 2)),
        (("--principal", "spiffe://x/ns/d/sa/a0"), range(0, 24, 2)),
        (("--operation", "run"), range(1, 24, 2)),
        (("--kind", "denied"), range(2, 24, 3)),
        (("--outcome", "denied"), range(2, 24, 3)),
        (("--outcome", "denied", "--pod", "p0"), range(2, 24, 6)),
        (("--request", "r7"), [7]),
        (("--request", "r70"), []),
        (("--since", "2025-11-23T22:00:00Z"), [22, 23]),
        (("--since", "2025-11-23T23:00:00+01:00"), [22, 23]),
        (("--until", "2025-11-23T02:00:00Z"), [0, 1]),
        (("--since", "2025-11-23T05:00:00", "--until", "2025-11-23T06:00:00"), [5]),
        (("--until", "2025-11-23"), []),
        (("--since", "1s"), []),
        (("--limit", "2"), [0, 1]),
    ],
)  # fmt: skip
def test_what_is_asked_for_is_what_is_shown(path: str, capsys: Captured, argv: tuple[str, ...], want: Any) -> None:
    assert seqs(capsys, "query", path, *argv) == [number + 1 for number in want]


@pytest.mark.parametrize(
    "argv",
    [
        ["query", "--kind", "nonsense"], ["query", "--since", "yesterday"], ["query", "--lines", "3"],
        ["tail", "--limit", "3"], ["export"], ["export", "--format", "xml"], ["stats", "--follow"],
        ["query", "--limit", "x"], ["query", "another", "one"], ["query", "--nonsense"],
    ],
)  # fmt: skip
def test_what_cannot_be_asked_for_is_said(path: str, capsys: Captured, argv: list[str]) -> None:
    assert main([argv[0], path, *argv[1:]]) == 2
    assert capsys.readouterr().err


def test_a_terminal_gets_no_escapes(path: str, capsys: Captured) -> None:
    for verb in ("query", "tail"):
        assert main([verb, path]) == 0
        out = capsys.readouterr().out
        assert "\x1b" not in out
        assert "2025-11-23T23:00:00" in out


@pytest.mark.parametrize("lines", [0, 1, 7, 24, 99])
def test_the_last_lines(path: str, capsys: Captured, lines: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_read, "CHUNK", 700)  # a line is longer than half of it
    want = list(range(1, 25))
    assert seqs(capsys, "tail", path, "--lines", str(lines)) == (want[-lines:] if lines else [])
    denied = list(range(3, 25, 3))
    assert seqs(capsys, "tail", path, "--lines", str(lines), "--kind", "denied") == (denied[-lines:] if lines else [])


def test_tail_follows_over_rotations_and_ends_cleanly(tmp_path: Path) -> None:
    log = write(tmp_path, 10, 4_096)
    argv = [PROGRAM, "tail", log.path, "--lines", "2", "--follow", "--json"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        seen = [json.loads(child.stdout.readline())["seq"] for _ in range(2)]
        for number in range(10, 60):
            log.stage(record(number))
            log.write()
            if number % 7 == 0:
                time.sleep(0.02)
        seen += [json.loads(child.stdout.readline())["seq"] for _ in range(50)]
        child.send_signal(signal.SIGINT)
        rest, err = child.communicate(timeout=10)
    log.close()
    assert (child.returncode, rest, err) == (0, "", "")
    assert seen == list(range(9, 61))
    assert len(list(tmp_path.glob("audit-*.jsonl"))) > 4


def test_tail_stops_at_what_does_not_follow(tmp_path: Path) -> None:
    log = write(tmp_path, 5)
    log.close()
    with subprocess.Popen([PROGRAM, "tail", log.path, "--follow", "--json"], stdout=-1, stderr=-1, text=True) as child:
        assert child.stdout is not None
        for _ in range(5):
            child.stdout.readline()
        with open(log.path, "ab") as file:
            file.write(file.name.encode() + b"\n")
        out, err = child.communicate(timeout=10)
    assert (child.returncode, out) == (1, "")
    assert "nothing after it is shown" in err


def test_nothing_after_the_first_bad_line_is_shown(path: str, capsys: Captured) -> None:
    data = Path(path).read_bytes()
    lines = data.splitlines(keepends=True)
    first = json.loads(lines[0])["seq"]
    Path(path).write_bytes(b"".join([lines[0].replace(b'"pod":"p', b'"pod":"q'), *lines[1:]]))
    assert seqs(capsys, "query", path, code=1) == list(range(1, first))
    for argv in (["stats", path], ["export", path, "--format", "json"], ["export", path, "--format", "csv"]):
        assert main(argv) == 1
        shown = capsys.readouterr()
        assert "FAILED (edited)" in shown.err
        if argv[-1] == "json":
            assert len(json.loads(shown.out)) == first - 1


def test_stats_count(path: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["stats", path, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["records"] == 24
    assert found["by"]["kind"] == {"outcome": 16, "denied": 8}
    assert found["by"]["operation"] == {"read": 12, "run": 12}
    assert found["by"]["rule"] == {"paths.0": 8, "paths.1": 8, "x.y": 8}
    assert (found["first_ns"], found["last_ns"]) == (DAY * 10**9, (DAY + 3_600 * 23) * 10**9)
    directory = Path(path).parent
    assert found["bytes"] == sum(file.stat().st_size for file in directory.glob("audit*.jsonl"))
    assert main(["stats", path, "--kind", "denied"]) == 0
    shown = capsys.readouterr().out
    assert "8 records" in shown
    assert "2025-11-23T02:00:00.000Z" in shown
    monkeypatch.setattr(audit_read, "MAX_NAMES", 1)
    main(["stats", path, "--json"])
    assert json.loads(capsys.readouterr().out)["by"]["principal"] == {
        "(others)": 12, "spiffe://x/ns/d/sa/a0": 12,
    }  # fmt: skip


def test_csv_has_no_formulas(path: str, capsys: Captured) -> None:
    assert main(["export", path, "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 24
    assert rows[2]["reason"] == "'=cmd|'/c calc'!A1"
    assert rows[2]["seq"] == "3"
    assert json.loads(rows[2]["operation_json"])["path"] == "f2\x1b[2J"
    for row in rows:
        assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in row.values())


@pytest.mark.parametrize("cell", ["=1", "+1", "-1", "@x", "\t=1", "\r=1", "\n=1", "  =1", "\uff1d1"])
def test_a_formula_is_guarded(cell: str) -> None:
    assert guarded(cell) == "'" + cell
    assert guarded("a" + cell) == "a" + cell


def test_what_not_every_reader_takes_is_escaped() -> None:
    assert guarded("a\0b\ud800") == "a\\0b\\ud800"


REQUIRED = ("activity_id", "actor", "api", "category_uid", "class_uid", "metadata", "severity_id", "src_endpoint",
            "time", "type_uid")  # fmt: skip
KNOWN = {
    *REQUIRED, "activity_name", "category_name", "class_name", "message", "severity", "status", "status_id",
    "status_detail", "status_code", "type_name", "unmapped", "duration",
}  # fmt: skip


def test_ocsf_events_are_api_activity(tmp_path: Path, capsys: Captured) -> None:
    """The class's attributes as OCSF 1.3.0 lists them."""
    tmp_path.chmod(0o700)
    log = AuditLog(str(tmp_path))
    for number, event in enumerate(sorted(EVENTS)):
        log.stage(record(number, event=event))
    for number, kind in enumerate(("read", "write", "edit", "run", "git_push"), 50):
        log.stage(record(number, operation={"kind": kind}, outcome={"status": "ok", "duration_ns": 5_000_000}))
    log.write()
    log.close()
    assert main(["export", log.path, "--format", "ocsf"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(events) == len(EVENTS) + 5
    for event in events:
        assert set(REQUIRED) <= event.keys() <= KNOWN
        assert (event["category_uid"], event["class_uid"]) == (6, 6003)
        assert event["type_uid"] == 6003 * 100 + event["activity_id"]
        assert event["activity_id"] in (1, 2, 3, 4, 99)
        assert event["severity_id"] in range(1, 7)
        assert event["status_id"] in (1, 2)
        assert event["metadata"]["version"] == "1.3.0"
        assert event["metadata"]["product"]["vendor_name"]
        assert event["api"]["operation"]
        assert event["actor"]["user"].keys() & {"uid", "name"}
        assert event["src_endpoint"].keys() & {"uid", "name", "ip", "hostname"}
        assert 10**12 < event["time"] < 10**13
    assert [event["activity_id"] for event in events[-5:]] == [2, 1, 3, 99, 3]
    assert events[-1]["duration"] == 5
    by = {event["metadata"]["event_code"]: event for event in events[: len(EVENTS)]}
    assert by["unauthenticated"]["severity_id"] == 4
    assert (by["denied"]["severity_id"], by["denied"]["status_id"]) == (3, 2)


def test_a_reader_that_goes_away_ends_it_quietly(tmp_path: Path) -> None:
    log = write(tmp_path, 400)
    log.close()
    with subprocess.Popen([PROGRAM, "query", log.path, "--json"], stdout=-1, stderr=-1) as child:
        assert child.stdout is not None
        child.stdout.read(10)
        child.stdout.close()
        assert child.stderr is not None
        assert child.stderr.read() == b""
    assert child.returncode == 0


def test_progress_is_for_a_terminal_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nucleus.cli.audit import Progress

    log = write(tmp_path, 50)
    log.close()
    done = subprocess.run([PROGRAM, "verify", log.path], capture_output=True, check=False)
    assert done.stderr == b""
    ours, theirs = pty.openpty()
    shown: list[bytes] = []

    def read() -> None:
        while not shown or b"\x1b[K" not in b"".join(shown):
            shown.append(os.read(ours, 1_000))

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setattr(Progress, "FIRST_S", 0.0)
        bar = Progress(200)
        bar.add(100)
        bar.end()
        reader.join(10)
    os.close(ours)
    assert b"50 %" in b"".join(shown)
