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


def rows(gate: Gate, **fields: object) -> list[tuple[object, ...]]:
    return [tuple(row[1:]) for row in gate.ok("grep", **fields)[0]["matches"]]


def test_context_is_merged_and_told_apart(gate: Gate, root: Path) -> None:
    (root / "f").write_text(
        "".join(f"{'hit' if number in (3, 5, 10) else 'line'} {number}\n" for number in range(1, 13))
    )
    shown = rows(gate, pattern="hit", context=2)
    assert [row[0] for row in shown] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    assert [row[0] for row in shown if len(row) == 2] == [3, 5, 10]
    assert {row[2] for row in shown if len(row) == 3} == {"context"}
    assert [row[0] for row in rows(gate, pattern="hit", context=1)] == [2, 3, 4, 5, 6, 9, 10, 11]
    assert rows(gate, pattern="hit 3", context=20)[0] == (1, "line 1", "context")
    ok, _ = gate.ok("grep", pattern="hit", context=1, limit=2, details=True)
    assert [row[1] for row in ok["matches"]] == [2, 3, 4, 5, 6], "a limit counts matches, not what is around them"
    assert ok["limits"] == ["count"]
    assert gate.error("grep", pattern="x", context=21)["code"] == "protocol"


def test_context_agrees_with_its_definition(gate: Gate, root: Path) -> None:
    chance = random.Random(3)
    for _ in range(40):
        lines = [chance.choice(("hit", "", "no", "miss\r")) for _ in range(chance.randrange(1, 30))]
        (root / "f").write_text("\n".join(lines) + chance.choice(("", "\n")), newline="")
        context = chance.randrange(4)
        hits = {number for number, line in enumerate(lines, 1) if line == "hit"}
        near = {n for hit in hits for n in range(hit - context, hit + context + 1)}
        size = (root / "f").read_bytes().count(b"\n") + (not (root / "f").read_bytes().endswith(b"\n"))
        expected = [
            (n, lines[n - 1].rstrip("\r"), *(() if n in hits else ("context",))) for n in sorted(near) if 1 <= n <= size
        ]
        assert rows(gate, pattern="^hit$", context=context) == expected


def test_a_match_over_lines_is_its_lines(gate: Gate, root: Path) -> None:
    (root / "f").write_text("def f(\n    a,\n) -> int:\n    pass\ndef g(): pass\n")
    assert rows(gate, pattern=r"def f\([^)]*\)") == []
    assert [row[0] for row in rows(gate, pattern=r"def f\([^)]*\)", multiline=True)] == [1, 2, 3]
    assert rows(gate, pattern="f.*pass", multiline=True) == [(5, "def g(): pass")], ". stays in its line"
    assert [row[0] for row in rows(gate, pattern="(?s)f.*pass", multiline=True)] == [1, 2, 3, 4, 5]
    assert [row[0] for row in rows(gate, pattern=r",\n\)", multiline=True, context=1)] == [1, 2, 3, 4]
    assert [row[0] for row in rows(gate, pattern="^def", multiline=True)] == [1, 5]
    (root / "f").write_text("a" * 200_000 + "\nb\n")
    assert [row[0] for row in rows(gate, pattern="a", multiline=True)] == [1]
    assert [row[0] for row in rows(gate, pattern="", multiline=True)] == [1, 2]


def test_a_file_cannot_fill_the_answer(gate: Gate, root: Path) -> None:
    (root / "a").write_text("x\n" * 50)
    (root / "b").write_text("x\n" * 2)
    ok, _ = gate.ok("grep", pattern="x", per_file=2, details=True)
    assert [row[:2] for row in ok["matches"]] == [["a", 1], ["a", 2], ["b", 1], ["b", 2]]
    assert (ok["truncated"], ok["limits"], ok["capped"]) == (True, ["per_file"], ["a"])
    assert (ok["files"], ok["scanned_bytes"]) == (2, 104)


def test_what_was_left_out_is_told(gate: Gate, root: Path) -> None:
    assert gate.ok("grep", pattern="x", details=True)[0]["limits"] == []
    (root / "log").write_bytes(b"x\n" * (9 << 20))
    assert gate.ok("grep", pattern="x", details=True)[0]["limits"] == ["size"]
    with (root / "log").open("wb") as file:
        file.truncate(1 << 40)  # sparse, and binary
    assert gate.ok("grep", pattern="x", details=True)[0]["limits"] == []
    here = root
    for _ in range(200):
        here = here / "d"
        here.mkdir()
    assert gate.ok("glob", pattern="**/x", details=True)[0]["limits"] == ["depth"]
    assert gate.ok("grep", pattern="x", details=True)[0]["limits"] == ["depth"]
    assert gate.ok("glob", pattern="*", details=True)[0] == {
        "paths": ["log"], "truncated": False, "limits": [], "files": 1,
    }  # fmt: skip


def test_the_newest_first(gate: Gate, tree: Path) -> None:
    for number, name in enumerate(("dir/c.py", "b.py", "a.py", "secrets/g.py")):
        os.utime(tree / name, ns=(0, (4_000_000_000 - number) * 10**9))
    os.utime(tree / ".hidden/e.py", ns=(0, 5))
    os.utime(tree / "dir-x/d.py", ns=(0, 5))
    wanted = ["dir/c.py", "b.py", "a.py", "secrets/g.py", "dir/link.py", ".hidden/e.py", "dir-x/d.py"]
    assert paths(gate, pattern="**/*.py", sort="mtime") == wanted
    ok, _ = gate.ok("glob", pattern="**/*.py", sort="mtime", limit=2, details=True)
    assert (ok["paths"], ok["limits"]) == (wanted[:2], ["count"])
    assert gate.ok("glob", pattern="**/*.py", sort="mtime", limit=7)[0]["truncated"] is False
    assert gate.error("glob", pattern="*", sort="size")["code"] == "protocol"


def test_hostile_trees(gate: Gate, root: Path) -> None:
    many = root / "many"
    many.mkdir()
    for number in range(20_000):
        (many / f"{number:05}.env" if number % 2 else many / f"{number:05}").touch()
    started = time.monotonic()
    ok, _ = gate.ok("glob", pattern="**/19*", exclude=["*.env"], details=True)
    assert (len(ok["paths"]), ok["files"]) == (500, 10_000)
    assert time.monotonic() - started < 2
    os.mkfifo(root / "fifo")
    (root / "a\nb.env").write_text("needle")
    (root / ("x" * 255)).write_text("needle")
    (root / "x*.env").write_text("needle")
    assert files(gate, pattern="needle", exclude=["*.env"]) == ["x" * 255]
    assert files(gate, pattern="needle", exclude=["x*"]) == ["a\nb.env"]
    assert files(gate, pattern="needle", exclude=["a\nb.env", "/" + "x" * 255]) == ["x*.env"]


def test_a_file_that_shrinks_or_grows_while_it_is_searched(gate: Gate, root: Path) -> None:
    path = root / "f"
    stop = os.fork()
    if stop == 0:
        try:
            deadline = time.monotonic() + 1.5
            while time.monotonic() < deadline:
                path.write_bytes(b"needle\n" * 100_000)
                os.truncate(path, 7)
        finally:
            os._exit(0)
    try:
        for _ in range(30):
            for row in gate.ok("grep", pattern="needle", limit=3)[0]["matches"]:
                assert row[2] == "needle"
    finally:
        os.waitpid(stop, 0)
