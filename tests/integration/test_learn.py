"""Learning at the public door: asked once, written down, and the second run needs nobody (root and user)."""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from nucleus.lattice.load import parse_policy

from .site import BIN, Site

AGENT = """
import sys
from nucleus.sdk.client import Gate, GateError
gate = Gate()
def attempt(name, *arguments, **fields):
    try:
        answer = getattr(gate, name)(*arguments, **fields)
        print("ok", name, answer.get("exit_code", "") if isinstance(answer, dict) else "")
    except GateError as error:
        print(error.code, name, *arguments[:1])
"""
WORK = """
attempt("read", "notes.txt")
attempt("write", "src/new.py", "print(1)\\n")
attempt("edit", "src/old.py", "old", "new" if "new" not in gate.read("src/old.py") else "newer")
attempt("run", ["python3", "-m", "unittest", "-q", "tests/test_a.py"])
attempt("run", ["git", "status", "--short"])
attempt("git_status")
"""
OTHER = """
attempt("read", "other.txt")
attempt("write", "src/other.py", "print(1)\\n")
attempt("write", "notes.txt", "x")
attempt("run", ["git", "log"])
attempt("run", ["python3", "-c", "print(1)"])
attempt("git_commit", "done")
"""
TEST = "import unittest\nclass T(unittest.TestCase):\n    def test_it(self): pass\n"


def prepared(site: Site) -> None:
    for name, text in {
        "notes.txt": "notes\n", "other.txt": "other\n", "src/old.py": "old old\n".replace("old old", "old"),
        "tests/test_a.py": TEST, "tests/__init__.py": "",
    }.items():  # fmt: skip
        site.write(name, text)
    if not (site.workspace / ".git").exists():
        for argv in (
            ["init", "-q"],
            ["add", "-A"],
            ["-c", "user.name=T", "-c", "user.email=t@t", "commit", "-qm", "one"],
        ):
            with site.start(["git", "-C", str(site.workspace), *argv]) as child:
                assert child.wait() == 0


class Answers:
    """Somebody in a second terminal who says `yes` to all requests whose display satisfies it."""

    def __init__(self, site: Site, yes: Any = lambda shown: True) -> None:
        self._site, self._yes, self.count = site, yes, 0

    def __enter__(self) -> Answers:
        self._watch = self._site.start([str(BIN / "nucleus"), "approvals", "watch", "--json"])
        self._pool = ThreadPoolExecutor(1)
        self._done = self._pool.submit(self._answer)
        return self

    def _answer(self) -> None:
        assert self._watch.stdout is not None
        for line in self._watch.stdout:
            event = json.loads(line)
            if event.get("event") == "request":
                verb = "approve" if self._yes("\n".join(event["request"]["display"])) else "deny"
                self._site.cli("approvals", verb, event["request"]["request"])
                self.count += 1

    def __exit__(self, *_: object) -> None:
        self._watch.terminate()
        self._watch.wait()
        self._done.result(30)
        self._pool.shutdown()
        self._watch.communicate(timeout=30)


def agent(site: Site, verb: str, *options: str, code: str) -> subprocess.CompletedProcess[str]:
    arguments = (verb, *options, "--workdir", str(site.workspace), "--", "python3", "-c", AGENT + code)
    return site.cli(*arguments, timeout=120)


def learn(site: Site, out: Path, code: str = WORK, yes: Any = lambda shown: True, *options: str) -> str:
    """The proposal. The person is there before the agent is: one throwaway operation waits for them."""
    out.unlink(missing_ok=True)
    with Answers(site, yes) as person:
        wait = "import time\nfor _ in range(100):\n    try:\n        gate.run(['true']); break\n"
        wait += "    except GateError as error:\n        time.sleep(0.2)\n"
        done = agent(site, "learn", "--out", str(out), *options, code=wait + code)
    assert done.returncode == 0, done.stderr
    assert person.count > 0
    assert f"nucleus: proposal: {out}" in done.stderr
    assert "ok run 0" in done.stdout, done.stdout
    return out.read_text()


def test_a_second_run_needs_nobody_for_the_same_work_and_gets_no_other(site: Site) -> None:
    prepared(site)
    out = site.home / "learned.yaml"
    text = learn(site, out)
    policy = parse_policy(text, "learned")
    assert policy.paths_allow == frozenset((frozenset(("/notes.txt", "src/new.py", "src/old.py", "tests/test_a.py")),))
    records = {record["seq"]: record for record in site.records()}
    line = next(line for line in text.splitlines() if '"./src/new.py"' in line)
    assert f"approved by uid:{site.uid}" in line
    intent, answer = (int(part.split(")")[0].split(",")[0]) for part in line.split("seq ")[1:3])
    assert (records[intent]["event"], records[intent]["operation"]["path"]) == ("intent", "src/new.py")
    assert (records[answer]["event"], records[answer]["operation_hash"]) == (
        "approval",
        records[intent]["operation_hash"],
    )

    before = len(site.records())
    site.write("src/old.py", "old\n")
    done = agent(site, "run", "--policy", str(out), code=WORK)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ok read \nok write \nok edit \nok run 0\nok run 0\nok git_status \n"
    again = site.records()[before:]
    assert not [record for record in again if record["event"] in ("approval", "denied")]
    assert "asked 0" in done.stderr

    done = agent(site, "run", "--policy", str(out), code=OTHER)
    assert done.stdout.splitlines()[:2] == ["denied read other.txt", "denied write src/other.py"]
    # The lists know no difference between reading and writing: the file itself says so.
    assert "what stands here may also be written" in text
    assert done.stdout.splitlines()[3:] == [
        "approval_required run ['git', 'log']", "approval_required run ['python3', '-c', 'print(1)']",
        "denied git_commit done",
    ]  # fmt: skip
    assert site.verify().returncode == 0


def test_what_the_person_refused_is_not_learnt(site: Site) -> None:
    prepared(site)
    code = 'attempt("write", "a.txt", "x")\nattempt("write", "b.txt", "x")\n'
    code += 'attempt("read", ".env")\nattempt("run", ["true"])\n'
    out = site.home / "refused.yaml"
    text = learn(site, out, code, lambda shown: "b.txt" not in shown)
    assert "refused: write b.txt" in text
    assert "refused: read .env" in text
    done = agent(site, "run", "--policy", str(out), code=code)
    assert done.stdout == "ok write \ndenied write b.txt\ndenied read .env\nok run 0\n"


def test_a_symlinks_target_is_learnt_with_its_name(site: Site) -> None:
    prepared(site)
    link = site.workspace / "link.txt"
    if not link.is_symlink():
        link.symlink_to("other.txt")
    out = site.home / "link.yaml"
    code = 'attempt("read", "link.txt")\nattempt("run", ["true"])\n'
    policy = parse_policy(learn(site, out, code), "learned")
    assert policy.paths_allow == frozenset((frozenset(("/link.txt", "/other.txt")),))
    assert agent(site, "run", "--policy", str(out), code=code).stdout == "ok read \nok run 0\n"


def test_the_file_is_never_in_the_workspace_nor_in_anothers_place(site: Site) -> None:
    prepared(site)
    before = len(site.records())
    inner = site.workspace / "src"
    taken = site.home / "taken.yaml"
    taken.write_text("mine")
    link = site.home / "inside"
    if not link.is_symlink():
        link.symlink_to(inner)
    for out, problem in (
        (inner / "p.yaml", "in the workspace"), (link / "p.yaml", "in the workspace"), (taken, "File exists"),
        (site.home / "no" / "p.yaml", "No such file"), (site.home, "File exists"),
    ):  # fmt: skip
        done = agent(site, "learn", "--out", str(out), code=WORK)
        assert done.returncode == 2, done.stderr
        assert problem in done.stderr
    there = f"cd {site.workspace} && exec {BIN / 'nucleus'} learn -- true"
    with site.start(["sh", "-c", there]) as child:
        assert "learned.yaml cannot be the proposal: it is in the workspace" in child.communicate(timeout=60)[1]
    assert taken.read_text() == "mine"
    assert not list(site.workspace.rglob("*.yaml"))
    assert len(site.records()) == before, "refused before anything was started"


def test_what_fails_leaves_no_file(site: Site) -> None:
    out = site.home / "none.yaml"
    done = agent(site, "learn", "--policy", str(site.home / "missing.yaml"), "--out", str(out), code=WORK)
    assert done.returncode == 2
    bad = site.home / "bad.yaml"
    bad.write_text("version: 1\nname: bad\n")
    assert agent(site, "learn", "--policy", str(bad), "--out", str(out), code=WORK).returncode == 2
    assert agent(site, "learn", "--session", "x", "--out", str(out), code=WORK).returncode == 2
    assert not out.exists()


def test_an_edited_log_teaches_nothing(tmp_path: Path) -> None:
    from nucleus.audit.chain import Head, extend
    from nucleus.audit.record import Record
    from nucleus.cli.learn_log import records_of
    from nucleus.errors import AuditError

    head, lines = Head(), []
    for event, pod in (
        ("pod.start", "o"),
        ("pod.start", "p"),
        ("pod.start", "q"),
        ("pod.stop", "p"),
        ("pod.stop", "q"),
    ):
        head, line = extend(head, Record(event, 1, 1, pod=pod))
        lines.append(line)
    log = tmp_path / "audit.jsonl"
    before = len(lines[0])
    log.write_bytes(b"".join(lines) + b'{"half')
    for offset in (0, 1, before - 1, before, before + 1):
        assert [record["event"] for record in records_of(str(log), offset, "p")] == ["pod.start", "pod.stop"]
    for bad in (
        [lines[0], lines[1], lines[3]], [*lines[:3], lines[3].replace(b'"p"', b'"q"')], lines[:3],
        [lines[0], lines[1], lines[1], *lines[2:]], lines[2:], [],
    ):  # fmt: skip
        log.write_bytes(b"".join(bad))
        with pytest.raises(AuditError):
            records_of(str(log), min(before, log.stat().st_size), "p")
