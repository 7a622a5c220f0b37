"""`nucleus exec` as a process, in front of a stand-in builder and gate."""

from __future__ import annotations

import base64
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from nucleus.cli import launcher
from nucleus.cli.prompt import READING_S
from nucleus.errors import FAMILIES, InvalidError
from nucleus.model.operation import ADAPTER
from nucleus.pod.spec import PodSpec

from .stand_in import POD, OnTerminal, StandIn, Stream, ran, refused

Nucleus = Callable[..., subprocess.CompletedProcess[bytes]]


def test_a_command(nucleus: Nucleus, stand_in: StandIn, workspace: pathlib.Path) -> None:
    stand_in.reply = ran("out\n", stderr="err\n", code=3)
    done = nucleus(
        "exec", "--profile", "codegen", "--trust-workspace", "--toolchain", "/opt/x", "--", "ls", "-l", "a b"
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, b"out\n", b"err\n")
    spec = PodSpec.from_dict(stand_in.requests[0]["spec"])  # the builder takes it
    assert (spec.trust_workspace, spec.toolchains, spec.agent, spec.workdir) == (
        True,
        ("/opt/x",),
        None,
        str(workspace),
    )
    assert "codegen" in spec.policy_source
    assert stand_in.workspace == str(workspace)
    operation = stand_in.operations.get(timeout=5)["operation"]
    assert operation == {"kind": "run", "argv": ["ls", "-l", "a b"], "cwd": "."}
    ADAPTER.validate_python(operation)  # and the gate takes that
    assert [request["op"] for request in stand_in.requests] == ["create_pod"]  # nobody sits at a terminal here


def test_the_default_policy_is_restrictive(nucleus: Nucleus, stand_in: StandIn) -> None:
    nucleus("exec", "true")
    assert "restrictive" in stand_in.requests[0]["spec"]["policy_source"]


def test_a_policy_file(nucleus: Nucleus, stand_in: StandIn, tmp_path: pathlib.Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("name: mine\n")
    assert nucleus("exec", "--policy", str(file), "--", "true").returncode == 0
    assert stand_in.requests[0]["spec"]["policy_text"] == "name: mine\n"


def test_output_is_exact(nucleus: Nucleus, stand_in: StandIn) -> None:
    raw = bytes(range(256)) * 300
    encoded = base64.b64encode(raw).decode()
    stand_in.reply = ran(encoded, stderr=base64.b64encode(b"\xff").decode(), encoding="base64")
    done = nucleus("exec", "--", "x")
    assert done.stdout == raw
    assert done.stderr == b"\xff"


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"code": None, "signal": 9}, 137),
        ({"code": None, "signal": 15}, 143),
        ({"code": 255}, 255),
        ({"code": None}, 1),
    ],
)
def test_exit_codes(nucleus: Nucleus, stand_in: StandIn, more: dict[str, Any], code: int) -> None:
    stand_in.reply = ran(**more)
    assert nucleus("exec", "--", "x").returncode == code


def test_truncation_and_deadline_are_said(nucleus: Nucleus, stand_in: StandIn) -> None:
    stand_in.reply = ran("x", None, signal=9, timed_out=True, stdout_truncated=True)
    done = nucleus("exec", "--timeout", "1.5", "--", "x")
    assert b"stdout was truncated" in done.stderr
    assert b"deadline" in done.stderr
    assert stand_in.operations.get()["operation"]["timeout_ms"] == 1500


@pytest.mark.parametrize("family", FAMILIES)
def test_refusals(nucleus: Nucleus, stand_in: StandIn, family: Any) -> None:
    stand_in.reply = refused(family.code)
    done = nucleus("exec", "--", "x")
    assert done.returncode == family.exit_code
    assert done.stdout == b""
    assert done.stderr.decode() == f"{family.code}: because\n  rule: some.rule (line 3)\n  next: do this\n"


def test_json(nucleus: Nucleus, stand_in: StandIn) -> None:
    stand_in.reply = ran("out", 4)
    done = nucleus("exec", "--json", "--", "x")
    assert done.returncode == 4
    assert json.loads(done.stdout) == stand_in.reply
    stand_in.reply = refused("denied")
    done = nucleus("exec", "--json", "--", "x")
    assert done.returncode == 3
    assert json.loads(done.stdout)["rule"] == "some.rule"
    assert done.stderr == b""


def test_stdin(nucleus: Nucleus, stand_in: StandIn) -> None:
    nucleus("exec", "--stdin", "--", "cat", stdin="käse\n".encode())
    assert stand_in.operations.get()["operation"]["stdin"] == "käse\n"
    nucleus("exec", "--", "cat", stdin=b"unread")
    assert "stdin" not in stand_in.operations.get()["operation"]
    assert nucleus("exec", "--stdin", "--", "cat", stdin=b"\xff").returncode == 2
    assert nucleus("exec", "--stdin", "--", "cat", stdin=b"x" * 1_048_577).returncode == 2


def test_arguments_that_are_not_utf8(nucleus: Nucleus, stand_in: StandIn) -> None:
    done = nucleus("exec", "--", "cat", os.fsdecode(b"\xff"))
    assert done.returncode == 2
    assert stand_in.requests == []


def test_the_builder_says_no(nucleus: Nucleus, stand_in: StandIn) -> None:
    stand_in.create_error = {
        "code": "sandbox_unavailable",
        "message": "floor",
        "rule": "isolation.floor",
        "next_step": "",
    }
    done = nucleus("exec", "--", "x")
    assert done.returncode == 6
    assert done.stderr == b"sandbox_unavailable: floor\n  rule: isolation.floor\n"


def test_the_pod_fails_while_we_wait(nucleus: Nucleus, stand_in: StandIn) -> None:
    stand_in.gate = lambda self, stream, header: None
    stand_in.pod_failed = {"code": "sandbox_unavailable", "message": "hands died", "rule": "pod.hands", "next_step": ""}
    done = nucleus("exec", "--", "x")
    assert done.returncode == 6
    assert b"hands died" in done.stderr


@pytest.mark.parametrize(
    "answer", [b"", b"\xff\xff\xff\xff", b"\0\0\0\x06\0\0\0\x02{}", b"\0\0\0\x06\0\0\0\x02[]", b"\0\0\0\x0f\0\0\0\x02{"]
)
def test_a_gate_that_breaks_is_an_error_not_a_result(nucleus: Nucleus, stand_in: StandIn, answer: bytes) -> None:
    def gate(self: StandIn, stream: Stream, header: dict[str, Any]) -> None:
        stream.raw(answer)
        stream.end()

    stand_in.gate = gate
    done = nucleus("exec", "--", "x")
    assert (done.returncode, done.stdout) == (6, b"")
    assert done.stderr.startswith(b"sandbox_unavailable: ")


def test_a_channel_error_keeps_its_family(nucleus: Nucleus, stand_in: StandIn) -> None:
    error = {"code": "audit_unavailable", "message": "disk", "rule": "audit.append", "next_step": "free some"}
    stand_in.gate = lambda self, stream, header: stream.send({"id": 1, "error": error})
    done = nucleus("exec", "--", "x")
    assert done.stderr == b"audit_unavailable: disk\n  rule: audit.append\n  next: free some\n"


def test_an_interrupt_closes_the_channel(stand_in: StandIn, workspace: pathlib.Path) -> None:
    streams: list[Stream] = []
    stand_in.gate = lambda self, stream, header: streams.append(stream)
    process = subprocess.Popen(
        [sys.executable, "-m", "nucleus.cli.main", "exec", "--", "sleep"],
        env=stand_in.environment(), cwd=workspace, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    stand_in.operations.get(timeout=10)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert err == b""
    assert streams[0].closed.wait(5)


@pytest.mark.parametrize("which", ["/", "state", "runtime", "parent", "inside", "link", "file", "missing", "nul"])
def test_unfit_workspaces(tmp_path: pathlib.Path, which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    state = tmp_path / "state"
    (state / "deep").mkdir(parents=True)
    (tmp_path / "runtime").mkdir(mode=0o700)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("/")
    monkeypatch.setenv("NUCLEUS_STATE", str(state))
    monkeypatch.setenv("NUCLEUS_RUNTIME", str(tmp_path / "runtime"))
    names = {"/": "/", "parent": str(tmp_path), "inside": str(state / "deep"), "nul": "a\0b"}
    with pytest.raises(InvalidError) as caught:
        launcher.open_workspace(names.get(which, str(tmp_path / which)))
    assert caught.value.rule == "cli.workdir"


def test_a_state_directory_that_is_not_there_yet(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("NUCLEUS_STATE", str(tmp_path / "work" / ".local" / "state"))
    monkeypatch.setenv("NUCLEUS_RUNTIME", str(tmp_path / "runtime"))
    with pytest.raises(InvalidError, match="contains"):
        launcher.open_workspace(str(tmp_path / "work"))
    monkeypatch.setenv("NUCLEUS_STATE", str(tmp_path / "elsewhere"))
    fd, name = launcher.open_workspace(str(tmp_path / "work"))
    os.close(fd)
    assert name == str(tmp_path / "work")


# Approvals at the launcher's own terminal.

REQUEST: dict[str, Any] = {
    "event": "request",
    "request": {
        "request": "req-1",
        "pod": POD,
        "decision": {"rule": "capabilities.run_bash", "reason": "run_bash asks", "obligations": ["approval:run_bash"]},
        "display": ["operation: run\nallow", 'argv: ["rm", "\x1b[2K\u202e"]'],
    },
}
OTHER = {
    "event": "request",
    "request": {**REQUEST["request"], "request": "req-2", "pod": "pod-2", "display": ["other"]},
}


def asking(stand_in: StandIn) -> None:
    """The gate asks; it answers ok when the approver said approve."""

    def gate(self: StandIn, stream: Stream, header: dict[str, Any]) -> None:
        approver = self.approvers.get(timeout=5)
        assert self.answers.get(timeout=5)["op"] == "watch"
        approver.send(OTHER)
        approver.send(REQUEST)

        def wait() -> None:
            answer = self.answers.get(timeout=10)
            stream.send({"id": 1, "reply": ran("yes") if answer["op"] == "approve" else refused("approval_required")})
            self.answers.put(answer)

        self._start(wait)

    stand_in.gate = gate


@pytest.mark.parametrize(
    ("typed", "op", "code"),
    [(b"y\n", "approve", 0), (b"YES\n", "approve", 0), (b"n\n", "deny", 4), (b"\n", "deny", 4), (b"yy\n", "deny", 4),
     (b"\x04", "deny", 4)],
)  # fmt: skip
def test_a_question_at_the_terminal(
    on_terminal: Callable[..., OnTerminal], stand_in: StandIn, typed: bytes, op: str, code: int
) -> None:
    asking(stand_in)
    program = on_terminal("exec", "--", "rm")
    program.wait_for(b"[y/N] ")
    assert b"run_bash asks" in program.shown
    assert b'argv: ["rm", "\\x1b[2K\\u202e"]' in program.shown  # shown, not obeyed
    assert b"operation: run\\nallow" in program.shown
    assert b"rule: capabilities.run_bash" in program.shown
    assert b"other" not in program.shown
    time.sleep(READING_S)
    program.type(typed)
    assert program.wait() == code
    answer = stand_in.answers.get(timeout=5)
    assert (answer["op"], answer["request"]) == (op, "req-1")


def test_what_was_typed_ahead_is_no_answer(on_terminal: Callable[..., OnTerminal], stand_in: StandIn) -> None:
    asking(stand_in)
    inner, go = stand_in.gate, threading.Event()

    def gate(self: StandIn, stream: Stream, header: dict[str, Any]) -> None:
        go.wait(5)
        inner(self, stream, header)

    stand_in.gate = gate
    program = on_terminal("exec", "--", "rm")
    stand_in.operations.get(timeout=10)
    program.type(b"y\n")
    time.sleep(0.1)
    go.set()
    program.wait_for(b"[y/N] ")
    program.type(b"y\n")  # meant for something that was on the screen before
    program.wait_for(b"too quick")
    time.sleep(READING_S)
    assert stand_in.answers.empty()
    program.type(b"n\n")
    assert program.wait() == 4


def test_a_question_that_ends_by_itself(on_terminal: Callable[..., OnTerminal], stand_in: StandIn) -> None:
    def gate(self: StandIn, stream: Stream, header: dict[str, Any]) -> None:
        approver = self.approvers.get(timeout=5)
        approver.send(REQUEST)
        time.sleep(0.3)
        approver.send({"event": "resolved", "request": "req-1", "verdict": "expired", "approver": ""})
        time.sleep(0.2)
        stream.send({"id": 1, "reply": refused("approval_required")})

    stand_in.gate = gate
    program = on_terminal("exec", "--", "rm")
    assert program.wait() == 4
    assert b"no longer asked (expired)" in program.shown


def test_no_prompt_where_it_is_not_wanted(on_terminal: Callable[..., OnTerminal], stand_in: StandIn) -> None:
    program = on_terminal("exec", "--approvals", "none", "--", "rm")
    assert program.wait() == 0
    assert [request["op"] for request in stand_in.requests] == ["create_pod"]


def test_imports_stay_small() -> None:
    """The path of every command: what is not here costs nothing."""
    code = (
        "import sys; before = set(sys.modules); import nucleus.cli.exec; "
        "print(','.join(sorted(set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.strip().split(","))
    heavy = {"asyncio", "ssl", "pydantic", "cryptography", "yaml", "argparse", "dataclasses", "inspect", "subprocess",
             "http", "logging", "tempfile", "ctypes", "nucleus.limits", "nucleus.frames", "nucleus.model"}  # fmt: skip
    assert not heavy & loaded
