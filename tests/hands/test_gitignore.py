""".gitignore against git itself, and what a policy hides of it."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from nucleus.hands import gitignore

from .client import Gate

NAMES = ("a", "b", "ab.o", "c.txt", "foo", "bar", "a-b", "x y ", "#c", "!d", "A", "[z]", "b.o")
LINES = (
    "*.o", "!ab.o", "/a", "a/", "foo/*", "!foo/b", "**/bar", "foo/**", "a/**/b", "b/**", "[a-c]", "[!a-c]*.o", "?",
    "\\#c", "\\!d", "# comment", "", "   ", "x y\\ ", "x y ", "[", "a[", "foo\\", "/foo/bar/", "*/b", "***", "a**b",
    "[[:upper:]]", "[]]", "[^b]ar", "!*/", "a-[a-c]", "[a\\-z]-b", "\\[z\\]", "!/foo", "*", "!c.txt", "foo//bar", "/",
    "//a", "**", "**/", "/**", "!**/b", "[+-0]", "a/b/../c", "!a/", "b\r", "[z-a]", "[[:nope:]]a", "{a,b}",
)  # fmt: skip


def tell(gate: Gate, **fields: object) -> list[str]:
    found: list[str] = gate.ok("glob", **{"pattern": "**", "gitignore": True, **fields})[0]["paths"]
    return found


def make(root: Path, *names: str, **texts: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(texts.get("text", "needle\n"))


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git, to compare with")
def test_random_trees_agree_with_git(gate: Gate, root: Path, tmp_path: Path) -> None:
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1", "LC_ALL": "C.UTF-8"}
    chance = random.Random(11)
    for _ in range(60):
        subprocess.run(["git", "init", "-q", str(root)], env=env, check=True)
        for _ in range(40):
            path = root.joinpath(*(chance.choice(NAMES) for _ in range(chance.randrange(1, 4))))
            if not any(up.is_file() for up in path.parents) and not path.is_dir():
                make(root, str(path.relative_to(root)))
        directories = [root, *(path for path in root.rglob("*") if path.is_dir() and ".git" not in path.parts)]
        for directory in chance.sample(directories, min(3, len(directories))):
            lines = chance.sample(LINES, chance.randrange(1, 6))
            (directory / ".gitignore").write_bytes("\n".join(lines).encode() + b"\n")
        (root / ".git/info/exclude").write_text("\n".join(chance.sample(LINES, 2)) + "\n")
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--others", "--exclude-standard"],
            env=env,
            cwd=root,
            check=True,
            capture_output=True,
        ).stdout.decode()
        rules = {str(p.relative_to(root)): p.read_bytes() for p in root.rglob(".gitignore")}
        assert sorted(tell(gate)) == sorted(filter(None, listed.split("\0"))), (
            rules, (root / ".git/info/exclude").read_bytes(),
        )  # fmt: skip
        for path in root.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_a_start_below_keeps_to_what_is_above(gate: Gate, root: Path) -> None:
    make(root, "src/a.log", "src/a.c", "src/sub/b.log", "src/build/x", "build/y")
    (root / ".gitignore").write_text("*.log\n/src/build/\nbuild/\n")
    (root / "src/sub/.gitignore").write_text("!b.log\n")
    assert tell(gate, path="src") == ["src/a.c", "src/sub/.gitignore", "src/sub/b.log"]
    assert tell(gate, path="build") == ["build/y"], "what is named is searched"
    assert tell(gate, path="src/a.log") == ["src/a.log"]
    found = gate.ok("grep", pattern="needle", gitignore=True)[0]["matches"]
    assert [row[0] for row in found] == ["src/a.c", "src/sub/b.log"]
    assert len(tell(gate, gitignore=False)) == 7


def test_a_star_is_never_an_empty_name(gate: Gate, root: Path) -> None:
    make(root, "foo/keep/x", "foo/other")
    (root / ".gitignore").write_text("foo/*\n!keep\n")
    assert tell(gate) == [".gitignore", "foo/keep/x"]


def test_a_gitignore_that_the_policy_hides_says_nothing(gate: Gate, root: Path) -> None:
    make(root, "src/a", "src/b", "src/sub/a")
    for name in (".gitignore", "src/.gitignore"):
        (root / name).write_text("a\n")
    hidden = ["src/.gitignore", "src/a", "src/b", "src/sub/a"]
    assert tell(gate, exclude=[".gitignore"]) == [name for name in hidden if "git" not in name]
    assert tell(gate, allow=[["src/a", "src/b", "src/sub"]]) == ["src/a", "src/b", "src/sub/a"]
    assert tell(gate, path="src", allow=[["src/a", "src/b", "src/sub"]]) == ["src/a", "src/b", "src/sub/a"]
    assert tell(gate, path="src/sub", exclude=[".gitignore"]) == ["src/sub/a"]
    (root / ".git/info").mkdir(parents=True)
    (root / ".git/info/exclude").write_text("b\n")
    assert "src/b" not in tell(gate, exclude=[".gitignore"])
    assert "src/b" in tell(gate, exclude=[".gitignore", ".git"])
    assert "src/b" in tell(gate, exclude=[".gitignore", "/.git/info"])


def test_no_gitignore_is_read_through_a_link(gate: Gate, root: Path) -> None:
    make(root, "a", "b", "d/a")
    (root.parent / "outside" / "rules").write_text("a\n")
    (root / ".gitignore").symlink_to("../outside/rules")
    os.mkfifo(root / "d/.gitignore")
    assert tell(gate) == [".gitignore", "a", "b", "d/.gitignore", "d/a"]


def test_what_is_too_much_is_told(gate: Gate, root: Path) -> None:
    make(root, "a")
    for text in ("a\n" + "#" * gitignore.FILE_BYTES, "a\n" * (gitignore.PATTERNS + 1)):
        (root / ".gitignore").write_text(text)
        ok, _ = gate.ok("glob", pattern="a", gitignore=True, details=True)
        assert (ok["paths"], ok["limits"], ok["truncated"]) == (["a"], ["gitignore"], True)


def test_hostile_patterns_are_linear(gate: Gate, root: Path) -> None:
    make(root, "a" * 250, *(f"d{number}/{'a' * 100}" for number in range(200)))
    (root / ".gitignore").write_text("*a*a*a*a*a*a*a*a*a*a*a*b\n" + "**/x/**/" * 100 + "y\n" + "[a-" * 300 + "\n")
    started = time.monotonic()
    assert len(tell(gate)) == 202
    assert time.monotonic() - started < 2
