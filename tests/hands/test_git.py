"""git through the channel: right answers, and nothing of a hostile repository runs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from .client import Gate

GIT_ENV = {
    "PATH": "/usr/bin:/bin",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "HOME": "/nonexistent",
}


def git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@t", *arguments],
        cwd=root, env=GIT_ENV, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout


@pytest.fixture
def repository(root: Path) -> Path:
    if not os.path.exists("/usr/bin/git"):
        pytest.skip("no git here")
    git(root, "init", "-q", "-b", "main")
    (root / "a.txt").write_text("one\n")
    (root / ".env").write_text("SECRET=1\n")
    (root / "dir").mkdir()
    (root / "dir" / "b.txt").write_text("b\n")
    git(root, "add", "-A", "-f")
    git(root, "commit", "-qm", "first")
    return root


def test_status(gate: Gate, repository: Path) -> None:
    assert gate.ok("git_status") == ({"truncated": False}, b"")
    (repository / "a.txt").write_text("two\n")
    (repository / "new\nline é").touch()
    (repository / "dir" / "b.txt").unlink()
    assert gate.ok("git_status")[1].decode() == " M a.txt\n D dir/b.txt\n?? new\\x0aline é\n"


def test_diff_and_exclude(gate: Gate, repository: Path) -> None:
    (repository / "a.txt").write_text("two\n")
    (repository / ".env").write_text("SECRET=2\n")
    body = gate.ok("git_diff", exclude=[".ENV*"])[1].decode()
    assert "+two" in body
    assert "SECRET" not in body
    assert "SECRET=2" in gate.ok("git_diff")[1].decode()
    assert gate.ok("git_diff", staged=True)[1] == b""
    git(repository, "add", "-A")
    body = gate.ok("git_diff", staged=True, exclude=[".env*"])[1].decode()
    assert "+two" in body
    assert "SECRET" not in body
    git(repository, "mv", ".env", "plain")
    assert "SECRET=1" not in gate.ok("git_diff", staged=True, exclude=[".env*"])[1].decode()


def test_a_long_diff_is_cut(gate: Gate, repository: Path) -> None:
    (repository / "a.txt").write_text("line\n" * 500_000)
    ok, body = gate.ok("git_diff")
    assert ok["truncated"] is True
    assert len(body) == 1 << 20


def test_commit(gate: Gate, repository: Path) -> None:
    (repository / "a.txt").write_text("two\n")
    (repository / ".env").write_text("SECRET=2\n")
    (repository / "new").write_text("n")
    (repository / "dir" / "b.txt").unlink()
    ok, _ = gate.ok("git_commit", message="all tracked\n\n# not a comment", paths=[], exclude=[".env*"])
    assert ok["commit"] == git(repository, "rev-parse", "HEAD").strip()
    assert git(repository, "show", "--name-only", "--format=%an <%ae>%n%B", "HEAD").split("\n") == [
        "Nucleus agent <agent@nucleus.invalid>", "all tracked", "", "# not a comment", "", "", "a.txt", "dir/b.txt", "",
    ]  # fmt: skip
    gate.ok("git_commit", message="new", paths=["new"])
    assert git(repository, "show", "--name-only", "--format=", "HEAD") == "new\n"
    error = gate.error("git_commit", message="m", paths=[".env"], exclude=[".env*"])
    assert (error["code"], error["message"]) == ("no_match", "nothing to commit")
    assert git(repository, "status", "--porcelain") == " M .env\n"


def test_commit_takes_only_what_was_asked_for(gate: Gate, repository: Path) -> None:
    (repository / "staged").write_text("x")
    git(repository, "add", "staged")
    (repository / "*").write_text("literal")
    gate.ok("git_commit", message="m", paths=["*"])
    assert git(repository, "show", "--name-only", "--format=", "HEAD") == "*\n"
    assert git(repository, "status", "--porcelain") == "A  staged\n"


def test_the_first_commit(gate: Gate, root: Path) -> None:
    git(root, "init", "-q")
    (root / "a").touch()
    gate.ok("git_commit", message="first", paths=["a"])
    assert git(root, "log", "--format=%s") == "first\n"


def test_no_repository_here_or_above(root: Path) -> None:
    git(root, "init", "-q")
    (root / "below").mkdir()
    gate = Gate(str(root / "below"))
    try:
        for op, fields in (("git_status", {}), ("git_diff", {}), ("git_commit", {"message": "m"})):
            assert gate.error(op, **fields)["code"] == "not_found"
    finally:
        gate.close()


def test_a_hostile_repository_runs_nothing(gate: Gate, repository: Path) -> None:
    ran = repository.parent / "ran"
    trap = repository.parent / "trap"
    trap.write_text(f'#!/bin/sh\necho "$0 $*" >> {ran}\nexec cat\n')
    trap.chmod(0o755)
    config = {
        "core.fsmonitor": "", "core.sshCommand": "", "core.pager": "", "core.editor": "", "core.askPass": "",
        "diff.external": "", "gpg.program": "", "credential.helper": "!", "core.alternateRefsCommand": "",
        "filter.evil.clean": "", "filter.evil.smudge": "", "filter.evil.process": "", "filter.a.b.clean": "",
        "diff.evil.textconv": "", "diff.evil.command": "", "merge.evil.driver": "", "alias.status": "!",
        "Filter.UPPER.Clean": "", "pager.diff": "", "interactive.diffFilter": "",
    }  # fmt: skip
    for key, prefix in config.items():
        git(repository, "config", key, f"{prefix}{trap}")
    for key in ("commit.gpgSign", "filter.evil.required", "core.fsmonitorHookVersion"):
        git(repository, "config", key, "true" if "." in key and "Version" not in key else "2")
    git(repository, "config", "core.hooksPath", str(repository / "hooks"))
    for directory in (repository / "hooks", repository / ".git" / "hooks"):
        directory.mkdir(exist_ok=True)
        for hook in ("pre-commit", "commit-msg", "post-commit", "prepare-commit-msg", "reference-transaction",
                     "post-index-change", "fsmonitor-watchman"):  # fmt: skip
            (directory / hook).write_text(trap.read_text())
            (directory / hook).chmod(0o755)
    included = repository / ".git" / "more"
    included.write_text(f'[filter "included"]\n\tclean = {trap}\n')
    git(repository, "config", "include.path", "more")
    attributes = "*.txt filter=evil diff=evil merge=evil\n*.up filter=UPPER\n*.ab filter=a.b\n*.inc filter=included\n"
    (repository / ".gitattributes").write_text(attributes)
    for name in ("a.txt", "x.up", "x.ab", "x.inc", "y.txt"):
        (repository / name).write_text("changed\n")
    ran.unlink(missing_ok=True)
    gate.ok("git_status")
    assert "+changed" in gate.ok("git_diff")[1].decode()
    gate.ok("git_commit", message="m", paths=["a.txt", "x.up", "x.ab", "x.inc", "y.txt", ".gitattributes"])
    (repository / "a.txt").write_text("again\n")
    gate.ok("git_diff")
    gate.ok("git_diff", staged=True)
    gate.ok("git_commit", message="m")
    assert not ran.exists(), ran.read_text()


def test_a_worktree_elsewhere_is_not_followed(gate: Gate, repository: Path) -> None:
    git(repository, "config", "core.worktree", str(repository.parent / "outside"))
    assert "secret" not in gate.ok("git_status")[1].decode()


def test_cancel_ends_an_operation(gate: Gate, repository: Path) -> None:
    ident = gate.send("git_status")
    gate.send("cancel", target=ident)
    answers = {frame.header["id"]: frame.header for frame in (gate.receive() for _ in range(2))}
    assert answers[ident]["error"]["code"] in ("timeout", "io", "not_found")
    assert gate.ok("git_status")[1] == b""


def test_status_leaves_out_what_is_hidden(gate: Gate, repository: Path) -> None:
    (repository / "a.txt").write_text("changed\n")
    assert gate.ok("git_status", exclude=["a.txt"])[1] == b""
