"""`nucleus run` as a process: pty and pipes, approvals where the agent cannot reach them, the summary."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import termios
import time
from collections.abc import Callable
from typing import Any

import pytest

from nucleus.cli import report, terminal
from nucleus.pod.spec import PodSpec

from .stand_in import POD, OnTerminal, StandIn
from .test_exec import REQUEST

Nucleus = Callable[..., subprocess.CompletedProcess[bytes]]
Terminal = Callable[..., OnTerminal]


def records(stand_in: StandIn, *rows: dict[str, Any]) -> None:
    """Append to the log as the authority would."""
    with open(stand_in.state / "audit.jsonl", "a") as log:
        log.writelines(json.dumps({"pod": POD, **row}) + "\n" for row in rows)


def echo(self: StandIn, stdin: int, stdout: int, stderr: int) -> dict[str, Any]:
    """Copies its input until it ends, says something on stderr, writes three records."""
    while data := os.read(stdin, 65536):
        os.write(stdout, data.upper())
    os.write(stderr, b"agent: bye\n")
    records(
        self,
        {"event": "intent", "decision": {"verdict": "ask"}},
        {"event": "outcome", "context": {"charged": 1_000_007}, "decision": {"verdict": "ask"}},
        {"event": "denied", "decision": {"verdict": "deny"}},
        {"event": "intent", "pod": "another"},
    )
    return {"code": 7, "signal": None}


def test_pipes(nucleus: Nucleus, stand_in: StandIn, workspace: pathlib.Path) -> None:
    records(stand_in, {"event": "denied"})  # before us: not counted
    stand_in.agent = echo
    done = nucleus("run", "--task", "fix it", "--share-workspace", "--", "agent", "-p", stdin=b"hello " * 50_000)
    assert done.returncode == 7
    assert done.stdout == b"HELLO " * 50_000
    spec = PodSpec.from_dict(stand_in.requests[0]["spec"])
    assert spec.agent is not None
    assert (spec.task, spec.share_workspace, spec.agent.argv, spec.agent.stdio, spec.agent.env) == (
        "fix it", True, ("agent", "-p"), "pipes", {},
    )  # fmt: skip
    assert [link.split(":")[0] for link in stand_in.stdio] == ["pipe"] * 3
    assert done.stderr.decode() == (
        "agent: bye\n"
        f"nucleus: pod {POD} ended with exit code 7\n"
        "nucleus: operations 2, denied 1, asked 1, charged $1.000007 of $2.500000\n"
        f"nucleus: audit: 3 records in {stand_in.state}/audit.jsonl\n"
        "nucleus: isolation: namespaces, kernel shared; missing: cgroup v2\n"
        "nucleus: advisory: --share-workspace: what the agent's own tools read is not in the log\n"
    )
    assert [request["op"] for request in stand_in.requests] == ["create_pod", "close_pod"]


def test_our_own_descriptors_never_reach_the_agent(nucleus: Nucleus, stand_in: StandIn, tmp_path: pathlib.Path) -> None:
    """A log file handed in could be opened again for reading and writing through /proc: the agent gets a pipe."""
    stand_in.agent = lambda self, i, o, e: (os.write(o, b"x"), {"code": 0, "signal": None})[1]
    out = tmp_path / "log"
    with open(out, "wb") as file:
        import sys

        subprocess.run(
            [sys.executable, "-m", "nucleus.cli.main", "run", "--", "a"], stdin=subprocess.DEVNULL, stdout=file,
            stderr=subprocess.DEVNULL, env=stand_in.environment(), cwd=tmp_path / "work", timeout=20, check=True,
        )  # fmt: skip
    assert out.read_bytes() == b"x"
    assert all(link.startswith("pipe:") for link in stand_in.stdio)


def test_a_signal_is_128_more_and_json(nucleus: Nucleus, stand_in: StandIn) -> None:
    stand_in.agent = lambda self, i, o, e: {"code": None, "signal": 9}
    done = nucleus("run", "--json", "--", "agent")
    assert done.returncode == 137
    summary = json.loads(done.stderr)
    assert (summary["exit_code"], summary["operations"], summary["pod"]) == (137, 0, POD)
    assert summary["isolation"]["backend"] == "namespaces"


def test_the_pod_fails(nucleus: Nucleus, stand_in: StandIn) -> None:
    stand_in.pod_failed = {
        "code": "sandbox_unavailable",
        "message": "no such agent",
        "rule": "pod.agent",
        "next_step": "",
    }
    done = nucleus("run", "--", "agent")
    assert done.returncode == 6
    assert done.stderr == b"sandbox_unavailable: no such agent\n  rule: pod.agent\n"


def test_an_agent_that_reads_nothing_and_ends(nucleus: Nucleus, stand_in: StandIn) -> None:
    stand_in.agent = lambda self, i, o, e: {"code": 0, "signal": None}
    assert nucleus("run", "--", "agent", stdin=b"x" * 1_000_000).returncode == 0


def test_somebody_who_keeps_the_pipes_open_does_not_hold_us(nucleus: Nucleus, stand_in: StandIn) -> None:
    kept: list[int] = []

    def agent(self: StandIn, stdin: int, stdout: int, stderr: int) -> dict[str, Any]:
        kept.append(os.dup(stdout))
        os.write(stdout, b"x" * 60_000)
        return {"code": 0, "signal": None}

    stand_in.agent = agent
    started = time.monotonic()
    done = nucleus("run", "--", "agent")
    os.close(kept[0])
    assert (done.returncode, len(done.stdout)) == (0, 60_000)
    assert time.monotonic() - started < 1.5


def conversation(self: StandIn, stdin: int, stdout: int, stderr: int) -> dict[str, Any]:
    """A full-screen agent: enters the alternate screen, answers lines, ends on `quit`."""
    os.write(stdout, b"\x1b[?1049hready\r\n")
    while True:
        line = os.read(stdin, 1000)
        if line.startswith(b"quit"):
            return {"code": 5, "signal": None}
        rows, columns = terminal.size(stdin)
        os.write(stdout, b"got %r at %dx%d\n" % (line, rows, columns))


def test_pty(on_terminal: Terminal, stand_in: StandIn) -> None:
    stand_in.agent = conversation
    program = on_terminal("run", "--", "agent")
    before = program.settings()
    program.wait_for(b"nucleus approvals watch")
    program.wait_for(b"ready")
    assert not program.settings()[3] & termios.ECHO
    program.resize(33, 99)
    time.sleep(0.1)
    program.type(b"hi\r")
    program.wait_for(b"at 33x99")
    program.type(b"quit\r")
    assert program.wait() == 5
    assert program.settings() == before
    after = program.shown.partition(b"quit")[2]
    assert b"\x1b[?1049l" in after  # the agent left the screen full; we did not
    assert f"pod {POD} ended with exit code 5".encode() in after
    assert [request["op"] for request in stand_in.requests] == ["create_pod", "close_pod"]  # no approver on its screen
    assert stand_in.requests[0]["spec"]["agent"]["stdio"] == "pty"
    assert stand_in.stdio == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_comes_back_when_we_are_ended(on_terminal: Terminal, stand_in: StandIn, number: int) -> None:
    def agent(self: StandIn, stdin: int, stdout: int, stderr: int) -> dict[str, Any]:
        os.write(stdout, b"ready")
        try:
            os.read(stdin, 100)
        except OSError:
            pass
        return {"code": 0, "signal": None}

    stand_in.agent = agent
    program = on_terminal("run", "--", "agent")
    before = program.settings()
    program.wait_for(b"ready")
    program.process.send_signal(number)
    assert program.wait() == 128 + number
    assert program.settings() == before


def test_a_question_on_our_terminal_while_the_agent_has_pipes(on_terminal: Terminal, stand_in: StandIn) -> None:
    """Its output is held back and cannot paint over the question."""

    def agent(self: StandIn, stdin: int, stdout: int, stderr: int) -> dict[str, Any]:
        os.write(stdout, b"first\x1b[8m\n")
        approver = self.approvers.get(timeout=5)
        time.sleep(0.3)
        approver.send(REQUEST)
        time.sleep(0.3)
        os.write(stdout, b"painting over\n")
        while self.answers.get(timeout=5)["op"] == "watch":
            pass
        return {"code": 0, "signal": None}

    stand_in.agent = agent
    program = on_terminal("run", "--", "agent", on=(1, 2))
    program.wait_for(b"[y/N] ")
    time.sleep(0.6)
    program.read()
    assert b"first\\x1b[8m" in program.shown
    assert b"painting over" not in program.shown
    program.type(b"y\n")
    program.wait_for(b"painting over")
    assert program.wait() == 0
    assert [request["op"] for request in stand_in.requests] == ["attach_approver", "create_pod", "close_pod"]


def test_no_question_where_the_agents_input_is_the_terminal(on_terminal: Terminal, stand_in: StandIn) -> None:
    stand_in.agent = lambda self, i, o, e: {"code": 0, "signal": None}
    program = on_terminal("run", "--", "agent", on=(0, 2))  # stdout is piped: `nucleus run -- agent | tee`
    assert program.wait() == 0
    assert [request["op"] for request in stand_in.requests] == ["create_pod", "close_pod"]


def test_the_summary_says_what_it_cannot_read(tmp_path: pathlib.Path) -> None:
    assert report.summarize(str(tmp_path), 0, POD).problem == "No such file or directory"
    log = tmp_path / "audit.jsonl"
    log.write_bytes(b'{"pod": "pod-1", "event": "intent"}\nnonsense\n[]\n' + b"[" * 100_000 + b"\n")
    summary = report.summarize(str(tmp_path), 0, POD)
    assert (summary.operations, summary.unreadable) == (1, 3)
    assert "3 lines are no records" in summary.lines()
    assert "shorter" in report.summarize(str(tmp_path), 10**9, POD).problem


@pytest.mark.parametrize(
    "row",
    [{"event": "outcome", "context": {"charged": True}}, {"event": "outcome", "context": None}, {"event": 5},
     {"event": "intent", "decision": "ask"}],
)  # fmt: skip
def test_odd_records_do_not_count_as_money_or_questions(tmp_path: pathlib.Path, row: dict[str, Any]) -> None:
    (tmp_path / "audit.jsonl").write_text(json.dumps({"pod": POD, **row}) + "\n")
    summary = report.summarize(str(tmp_path), 0, POD)
    assert (summary.charged, summary.asked, summary.records) == (0, 0, 1)
