from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nucleus.audit.chain import Head, extend
from nucleus.audit.record import Record
from nucleus.cli.audit import main


@pytest.fixture
def log(tmp_path: Path) -> Path:
    head, data = Head(), b""
    for number in range(5):
        record = Record(
            "intent", 10**18 + number, 1, f"p{number % 2}", "r", "spiffe://x/ns/d/sa/a",
            {"kind": "read", "path": f"f{number}\x1b[2J\u202e"}, "ab" * 32, {"verdict": "allow", "rule": "r.x"},
            context={"reservation": "a" * 32, "reserved": 1},
        )  # fmt: skip
        head, line = extend(head, record)
        data += line
    path = tmp_path / "audit.jsonl"
    path.write_bytes(data)
    return path


def test_a_good_log(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(log)]) == 3  # an exit code of its own
    out = capsys.readouterr().out
    assert "5 records" in out
    assert "internally consistent, completeness unknown" in out
    assert main(["verify", str(log), "--consistent"]) == 0


def test_json_and_a_pinned_head(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--json", str(log)]) == 3
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"]
    assert not answer["complete"]
    pin = ["--expect-seq", str(answer["seq"]), "--expect-hash", answer["hash"]]
    assert main(["verify", str(log), *pin, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["complete"]
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:-1]))
    assert main(["verify", str(log)]) == 3
    assert main(["verify", str(log), *pin]) == 1
    assert "before the pinned record" in capsys.readouterr().out


def test_what_does_not_verify_names_its_line(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log.write_bytes(log.read_bytes().replace(b"f2", b"f9"))
    assert main(["verify", str(log)]) == 1
    assert "line 3" in capsys.readouterr().out
    assert main(["show", str(log)]) == 1
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 2
    assert "line 3" in shown.err


def test_show_filters_and_escapes(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(log)]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 5
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert "path=f0\\\\u001b" in out or "path=f0\\u001b" in out
    assert "2001-09-09T01:46:40" in out
    assert main(["show", str(log), "--pod", "p1", "--json"]) == 0
    assert [json.loads(line)["seq"] for line in capsys.readouterr().out.splitlines()] == [2, 4]
    assert main(["show", str(log), "--seq", "3"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_unusable_is_neither(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "fifo")
    for argv in (
        ["verify", str(tmp_path / "none")],
        ["verify", str(tmp_path)],
        ["verify"],
        ["verify", str(log), str(log)],
        ["verify", str(log), "--nonsense"],
        ["verify", str(log), "--expect-seq", "5"],
        ["verify", str(log), "--expect-hash", "a" * 64],
        ["verify", str(log), "--expect-seq", "x", "--expect-hash", "a" * 64],
        ["verify", str(log), "--expect-seq", "5", "--expect-hash", "A" * 64],
        ["show", str(log), "--seq", "-1"],
        ["dance", str(log)],
        [],
    ):
        assert main(argv) == 2, argv
        assert capsys.readouterr().err
    assert main(["verify", str(tmp_path / "fifo")]) == 2  # and does not wait
    log.write_bytes(b"")
    assert main(["verify", str(log)]) == 1
    assert "empty" in capsys.readouterr().out


def test_the_two_programs(log: Path) -> None:
    program = Path(sys.executable).parent / "nucleus-audit"
    for command in ([str(program)], [sys.executable, "-m", "nucleus.cli.main", "audit"]):
        done = subprocess.run([*command, "verify", "--consistent", str(log)], capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        assert subprocess.run([*command, "--help"], capture_output=True, check=True).stdout.startswith(b"usage")
