"""A named session: what one pod has seen counts in the next, because the audit log says so (root and user)."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from .held import Held
from .site import Site

POLICY = """\
version: 1
name: watched
capabilities: {read_files: always, run_bash: always, git_push: always}
commands: {allow: everything}
trifecta: session
"""
PUSH = ("git", "push", "origin", "main")


def _policy(site: Site) -> str:
    path = site.home / "watched.yaml"
    path.write_text(POLICY)
    path.chmod(0o644)
    return str(path)


def _exec(site: Site, *argv: str, session: str = "") -> tuple[int, str]:
    named = ("--session", session) if session else ()
    done = site.cli(
        "exec", "--policy", _policy(site), "--workdir", str(site.workspace), *named, "--approvals", "none", "--", *argv
    )
    return done.returncode, done.stderr


def test_what_a_pod_has_seen_counts_in_the_next_of_its_session(site: Site) -> None:
    site.write("notes.txt", "private\n")
    assert _exec(site, *PUSH, session="one")[0] == 128  # git's own answer: it was allowed to try
    assert _exec(site, "cat", "notes.txt", session="one")[0] == 0
    code, told = _exec(site, *PUSH, session="one")
    assert code == 4
    assert "trifecta.session" in told
    assert "run cat notes.txt" in told  # the person is told which sources completed it
    # Another session, another namespace, and a pod without a session start afresh.
    assert _exec(site, *PUSH, session="two")[0] == 128
    assert _exec(site, *PUSH)[0] == 128
    starts = [record["context"].get("session") for record in site.records() if record["event"] == "pod.start"]
    assert starts == ["one", "one", "one", "two", None]


def test_it_survives_a_killed_authority(site: Site) -> None:
    site.write("notes.txt", "private\n")
    spec = {"session": "killed", "policy_text": POLICY, "policy_source": "watched"}
    with Held(site, spec=spec) as held:
        assert held.operate(kind="read", path="notes.txt")["status"] == "ok"
        authority = held.status()["pids"]["authority"]
        os.kill(authority, signal.SIGKILL)
    code, told = _exec(site, *PUSH, session="killed")
    assert (code, "read notes.txt" in told) == (4, True)
    assert site.verify().returncode == 0


def test_a_session_has_one_pod_at_a_time(site: Site) -> None:
    with Held(site, spec={"session": "busy", "policy_text": POLICY, "policy_source": "watched"}):
        code, told = _exec(site, "true", session="busy")
        assert code == 2, told
        assert "still running" in told
    assert _exec(site, "true", session="busy")[0] == 0


def test_a_line_that_does_not_read_back_is_everything(tmp_path: Path) -> None:
    from nucleus.authority.sessions import rebuild
    from nucleus.lattice.exposure import NOTHING, UNKNOWN

    def log(*records: object) -> str:
        path = tmp_path / "audit.jsonl"
        path.write_bytes(b"".join(json.dumps(record, separators=(",", ":")).encode() + b"\n" for record in records))
        return str(path)

    start = {"event": "pod.start", "pod": "p", "context": {"namespace": "n", "session": "s"}}
    intent = {"event": "intent", "pod": "p", "context": {"exposes": {"private": ["read a"]}}}
    assert rebuild(log(), "n", "s") == NOTHING
    assert rebuild(log(start, intent), "n", "s").private == ("read a",)
    assert rebuild(log(start, intent), "m", "s") == NOTHING
    assert rebuild(log(start, {**intent, "pod": "q"}), "n", "s") == NOTHING
    assert rebuild(log(start, {**intent, "context": {"exposes": 1}}), "n", "s") == UNKNOWN
    assert rebuild(str(tmp_path / "none"), "n", "s") == UNKNOWN
    # What an agent sends as an operation makes no session.
    forged = {"event": "intent", "pod": "q", "operation": start["context"], "context": {"exposes": {"private": ["x"]}}}
    assert rebuild(log(start, forged), "n", "s") == NOTHING
