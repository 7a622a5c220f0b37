"""glob and grep through the channel and the worker."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest

from nucleus.hands.commands import children
from nucleus.limits import LIMITS

from .client import Gate
from .test_main import alive

SLOW = "[ab]*a[ab]{200}z"


def hard() -> bytes:
    """10 MB on which no automaton stays small."""
    return random.Random(1).randbytes(10 << 20).translate(bytes(b"ab"[value & 1] for value in range(256)))


@pytest.fixture
def tree(root: Path) -> Path:
    for name in (
        "b.py",
        "a.py",
        "dir/c.py",
        "dir-x/d.py",
        ".hidden/e.py",
        ".git/hooks/f.py",
        "dir/.env",
        "secrets/g.py",
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"first\nneedle in {name}\nlast\n")
    (root / "link").symlink_to("../outside")
    (root / "dir" / "link.py").symlink_to("../../outside/secret")
    return root


def paths(gate: Gate, **fields: object) -> list[str]:
    found: list[str] = gate.ok("glob", **fields)[0]["paths"]
    return found


def files(gate: Gate, **fields: object) -> list[str]:
    return [row[0] for row in gate.ok("grep", **fields)[0]["matches"]]


def test_glob(gate: Gate, tree: Path) -> None:
    every = [".hidden/e.py", "a.py", "b.py", "dir-x/d.py", "dir/c.py", "dir/link.py", "secrets/g.py"]
    assert paths(gate, pattern="**/*.py") == every
    assert paths(gate, pattern="*.py") == ["a.py", "b.py"]
    assert paths(gate, pattern="dir/*") == ["dir/.env", "dir/c.py", "dir/link.py"]
    assert paths(gate, pattern="*.py", path="dir") == ["dir/c.py", "dir/link.py"]
    assert paths(gate, pattern="**/secret") == [], "no symlink is followed"
    assert paths(gate, pattern="a.py", path="a.py") == ["a.py"]
    assert gate.ok("glob", pattern="**/*.py", limit=3)[0] == {"paths": every[:3], "truncated": True}
    assert gate.ok("glob", pattern="*.py", limit=2)[0] == {"paths": ["a.py", "b.py"], "truncated": False}


def test_git_is_left_out_unless_named(gate: Gate, tree: Path) -> None:
    assert paths(gate, pattern=".git/**") == [".git/hooks/f.py"]
    assert paths(gate, pattern="**", path=".git") == [".git/hooks/f.py"]
    assert ".git/hooks/f.py" not in paths(gate, pattern="**")
    assert ".git/hooks/f.py" not in files(gate, pattern="needle")
    assert files(gate, pattern="needle", include=".git/**") == [".git/hooks/f.py"]


def test_exclude_is_honoured_by_glob_and_grep(gate: Gate, tree: Path) -> None:
    exclude = ["**/.env*", "**/.env*/**", "**/SECRETS", "**/SECRETS/**"]
    for names in (paths(gate, pattern="**", exclude=exclude), files(gate, pattern="needle", exclude=exclude)):
        assert "dir/.env" not in names
        assert "secrets/g.py" not in names
        assert "dir/c.py" in names
    assert paths(gate, pattern="*", path="secrets", exclude=exclude) == []
    assert files(gate, pattern="needle", path="dir/.env", exclude=exclude) == []
    assert files(gate, pattern="needle", path="dir/.env") == ["dir/.env"]


def test_grep(gate: Gate, tree: Path) -> None:
    ok, _ = gate.ok("grep", pattern="^NEEDLE", ignore_case=True, path="dir")
    assert ok["matches"] == [["dir/.env", 2, "needle in dir/.env"], ["dir/c.py", 2, "needle in dir/c.py"]]
    assert ok["truncated"] is False
    assert ok["scanned_bytes"] == sum((tree / "dir" / name).stat().st_size for name in (".env", "c.py"))
    assert files(gate, pattern="needle", include="c.py") == ["dir/c.py"]
    assert files(gate, pattern="needle", include="*.py", path="dir") == ["dir/c.py"]
    assert files(gate, pattern="needle", include="dir/*.py") == ["dir/c.py"]
    assert gate.ok("grep", pattern="t$", path="a.py")[0]["matches"] == [["a.py", 1, "first"], ["a.py", 3, "last"]]
    assert gate.ok("grep", pattern="needle", limit=1)[0]["truncated"] is True


def test_a_match_stays_in_its_line(gate: Gate, root: Path) -> None:
    (root / "f").write_bytes(b"a\nb\r\n\nc")
    assert gate.ok("grep", pattern="a[^x]b")[0]["matches"] == []
    assert gate.ok("grep", pattern="a\\nb")[0]["matches"] == []
    assert gate.ok("grep", pattern="(?s)a.b")[0]["matches"] == []
    assert gate.ok("grep", pattern="")[0]["matches"] == [["f", 1, "a"], ["f", 2, "b"], ["f", 3, ""], ["f", 4, "c"]]
    assert gate.ok("grep", pattern="^$")[0]["matches"] == [["f", 3, ""]]
    assert gate.ok("grep", pattern="\\s")[0]["matches"] == [["f", 2, "b"]]


def test_what_is_passed_over(gate: Gate, root: Path) -> None:
    (root / "binary").write_bytes(b"needle\0")
    with (root / "huge").open("wb") as file:
        file.write(b"needle\n")
        file.truncate((16 << 20) + 1)
    os.mkfifo(root / "fifo")
    (root / "unreadable").write_text("needle")
    (root / "good").write_text("needle")
    assert files(gate, pattern="needle", path="good") == ["good"]
    assert "binary" not in files(gate, pattern="needle")
    assert "huge" not in files(gate, pattern="needle")


def test_long_lines_and_many_results_are_bounded(gate: Gate, root: Path) -> None:
    (root / "long").write_bytes(b"\xff" * 100_000 + b"needle\n")
    ((_, _, line),) = gate.ok("grep", pattern="needle")[0]["matches"]
    assert line == "\\xff" * LIMITS.line_bytes
    (root / "long").unlink()
    (root / "many").write_bytes((b"\x01" * 4_000 + b"\n") * 2_000)
    ok, _ = gate.ok("grep", pattern="\x01")
    assert ok["truncated"] is True
    assert sum(len(row[2]) for row in ok["matches"]) <= LIMITS.output_bytes


def test_names_that_are_not_utf8(gate: Gate, root: Path) -> None:
    with open(os.fsencode(root) + b"/a\xff.txt", "w") as file:
        file.write("needle")
    (root / "new\nline").write_text("needle")
    assert paths(gate, pattern="*.txt") == ["a\\xff.txt"]
    assert files(gate, pattern="needle") == ["a\\xff.txt", "new\nline"]


def test_bad_patterns(gate: Gate, root: Path) -> None:
    (root / "f").write_text("x")
    for pattern in ("(", "a{1001}", "(?=x)", "\\1", "((((a{100}){100}){100}){100})", "\\C{1000}(?:x{1000}){1000}"):
        assert gate.error("grep", pattern=pattern)["code"] == "bad_pattern", pattern
    assert gate.error("grep", pattern="a" * 1_025)["code"] == "protocol"
    assert gate.error("grep", pattern="a\0")["code"] == "protocol"
    assert gate.error("glob", pattern=3)["code"] == "protocol"
    assert gate.error("grep", pattern="x", timeout_ms=0)["code"] == "protocol"
    assert gate.error("grep", pattern="x", exclude="x")["code"] == "protocol"
    assert gate.error("glob", pattern="x", path="missing")["code"] == "not_found"


def test_catastrophic_patterns_are_linear(gate: Gate, root: Path) -> None:
    (root / "f").write_text("a" * 30 + "!\n")
    started = time.monotonic()
    assert files(gate, pattern="^(a+)+$") == []
    assert time.monotonic() - started < 1


def test_a_slow_search_is_killed_and_the_next_one_works(gate: Gate, root: Path) -> None:
    for number in range(3):
        (root / f"big{number}").write_bytes(hard())
    started = time.monotonic()
    slow = gate.send("grep", pattern=SLOW, timeout_ms=300)
    waiting = gate.send("grep", pattern="zzz", path="big0", timeout_ms=5_000)
    impatient = gate.send("grep", pattern="zzz", timeout_ms=100)
    read = gate.send("read", path="big0", limit=1)
    answers = {}
    for _ in range(4):
        frame = gate.receive()
        answers[frame.header["id"]] = (frame.header, time.monotonic() - started)
    assert answers[slow][0]["error"]["code"] == "timeout"
    assert 0.25 < answers[slow][1] < 1.5
    assert answers[impatient][0]["error"]["code"] == "timeout"
    assert answers[waiting][0]["ok"]["matches"] == []
    workers = [pid for pid in children(gate.pid) if alive(pid)]
    assert len(workers) <= 1, "the slow one was killed, not left to finish"
    assert "ok" in answers[read][0]
    assert answers[read][1] < answers[slow][1], "files are not held up by a search"
    assert gate.ok("glob", pattern="*")[0]["paths"] == ["big0", "big1", "big2"]


def test_cancel_ends_a_search(gate: Gate, root: Path) -> None:
    (root / "big").write_bytes(hard())
    started = time.monotonic()
    slow = gate.send("grep", pattern=SLOW)
    queued = gate.send("glob", pattern="*")
    gate.send("cancel", target=queued)
    gate.send("cancel", target=slow)
    answers = {frame.header["id"]: frame.header for frame in (gate.receive() for _ in range(4))}
    assert answers[slow]["error"]["code"] == "timeout"
    assert answers[queued]["error"]["code"] == "timeout"
    assert time.monotonic() - started < 2


def test_a_deep_tree_does_not_use_up_descriptors(gate: Gate, root: Path) -> None:
    here = root
    for _ in range(200):
        here = here / "d"
        here.mkdir()
    (here / "deep").touch()
    (root / "top").touch()
    assert paths(gate, pattern="**/top") == ["top"]
