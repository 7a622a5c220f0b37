"""`nucleus approvals` against the real authority, through a stand-in helper that only attaches channels."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from authority.conftest import start, state
from authority.harness import Authority
from nucleus.pod.packets import recv_packet, send_packet, stream_pair

from .stand_in import OnTerminal

__all__ = ["start", "state"]
Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


class Helper:
    """helper.sock of a runtime directory; every launcher gets an approver's channel."""

    def __init__(self, runtime: Path, authority: Authority) -> None:
        runtime.mkdir(mode=0o700)
        self.runtime, self.state = runtime, authority.state
        self._authority = authority
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(runtime / "helper.sock"))
        self._listener.listen()
        self._peers: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            self._peers.append(peer)
            packet = recv_packet(peer)
            if packet is None:
                continue
            ours, theirs = stream_pair()
            self._authority.order("attach", (theirs.fileno(),), role="approver", uid=os.geteuid())
            send_packet(peer, {"id": packet.body["id"], "ok": {}}, [ours.fileno()])
            ours.close()
            theirs.close()

    def environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "NUCLEUS_RUNTIME": str(self.runtime), "NUCLEUS_STATE": str(self.state)}

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for peer in self._peers:
            peer.close()


@pytest.fixture
def helper(tmp_path: Path, start: Callable[..., Authority]) -> Iterator[tuple[Helper, Authority]]:
    authority = start()
    helper = Helper(tmp_path / "runtime", authority)
    yield helper, authority
    helper.close()


@pytest.fixture
def run(helper: tuple[Helper, Authority]) -> Run:
    def go(*argv: str, **env: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "nucleus.cli.main", "approvals", *argv],
            env=helper[0].environment() | env,
            capture_output=True,
            timeout=20,
            check=False,
            start_new_session=True,
        )

    return go


@pytest.fixture
def waiting(helper: tuple[Helper, Authority]) -> tuple[Any, int, str]:
    authority = helper[1]
    gate, approver = authority.gate(), authority.approver()
    ident = gate.ask(display=["operation: run", 'argv: ["make", "x\u202ey\\nz"]'])
    return gate, ident, approver.call("list")["requests"][0]["request"]


def test_list_and_show(run: Run, waiting: tuple[Any, int, str]) -> None:
    _, _, request = waiting
    listed = run("list")
    assert listed.returncode == 0, listed.stderr
    assert request.encode() in listed.stdout
    assert json.loads(run("list", "--json").stdout)[0]["request"] == request
    shown = run("show", request).stdout.decode()
    assert 'argv: ["make", "x\\u202ey' in shown
    assert "run_bash needs a human (approve.run_bash)" in shown
    assert json.loads(run("show", request, "--json").stdout)["request"] == request


def test_approve_and_deny(run: Run, waiting: tuple[Any, int, str]) -> None:
    gate, ident, request = waiting
    done = run("approve", request, "--reason", "read it")
    assert done.returncode == 0, done.stderr
    answer = gate.wait(ident)
    assert (answer["verdict"], answer["reason"], answer["approver"]) == ("approve", "read it", f"uid:{os.geteuid()}")
    assert answer["token"].encode() not in done.stdout + done.stderr
    again = run("deny", request)
    assert again.returncode == 2
    assert b"no such request" in again.stderr


def test_usage(run: Run) -> None:
    for argv in ((), ("approve",), ("dance",), ("list", "x"), ("approve", "x", "--yes")):
        assert run(*argv).returncode == 2
    assert run("--help").stdout.startswith(b"usage")
    assert run("watch", NUCLEUS_NO_HELPER="1").returncode == 2
    assert run("watch").returncode == 2  # no terminal


def test_without_a_helper_nothing_waits(tmp_path: Path) -> None:
    def go(*argv: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "nucleus.cli.main", "approvals", *argv],
            env={"NUCLEUS_RUNTIME": str(tmp_path / "r"), "NUCLEUS_STATE": str(tmp_path / "s")},
            capture_output=True,
            check=False,
        )

    assert go("list").stdout == b"no request waits (no helper runs)\n"
    assert go("list", "--json").stdout == b"[]\n"
    assert go("approve", "x").returncode == 2


@pytest.mark.parametrize(
    ("keys", "verdict"), [(b"y\n", "approve"), (b"\n", "deny"), (b"yy\x7f\n", "approve"), (b"yo\n", "deny")]
)
def test_watch_asks_and_takes_only_a_yes(
    helper: tuple[Helper, Authority], tmp_path: Path, keys: bytes, verdict: str
) -> None:
    gate = helper[1].gate()
    program = OnTerminal(helper[0], ["approvals", "watch"], on=(0, 1, 2), cwd=tmp_path)
    try:
        program.wait_for(b"watching")
        ident = gate.ask()
        program.wait_for(b"allow this once? [y/N] (29")
        assert b'argv: ["make"]' in program.shown
        os.write(program.master, b"y\n")  # too soon to have been read
        time.sleep(0.5)
        os.write(program.master, keys)
        assert gate.wait(ident)["verdict"] == verdict
        program.wait_for(b"approved, once" if verdict == "approve" else b"denied")
    finally:
        program.close()


def test_watch_json_prints_and_asks_nothing(helper: tuple[Helper, Authority]) -> None:
    gate = helper[1].gate()
    with subprocess.Popen(
        [sys.executable, "-m", "nucleus.cli.main", "approvals", "watch", "--json"],
        env=helper[0].environment(),
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        ident = 0
        for _ in range(200):  # present once it watches
            ident = gate.ask()
            if ident not in gate.answers:
                break
            time.sleep(0.02)
        event = json.loads(process.stdout.readline())
        assert event["event"] == "request"
        process.terminate()
    assert gate.wait(ident)["verdict"] == "no_approver"


# Wider answers

OFFERED = [
    {"kind": "same", "key": "22" * 32, "shown": "exactly this write again"},
    {"kind": "path", "key": "11" * 32, "shown": 'write to "no\u202ete.txt", any content'},
]
LINE = b'write to "no\\u202ete.txt", any content'


def test_a_wider_answer_by_command_line(run: Run, helper: tuple[Helper, Authority]) -> None:
    gate, watcher = helper[1].gate(), helper[1].approver()
    ident = gate.ask(scopes=OFFERED)
    request = watcher.call("list")["requests"][0]["request"]
    assert b"wider, --scope path: " + LINE in run("show", request).stdout
    assert json.loads(run("list", "--json").stdout)[0]["scopes"][1]["kind"] == "path"
    for wrong in (["--scope", "path"], ["--times", "3"], ["--scope", "path", "--times", "x"],
                  ["--scope", "path", "--times", "101"], ["--scope", "host", "--times", "3"]):  # fmt: skip
        assert run("approve", request, *wrong).returncode == 2
    assert run("deny", request, "--scope", "path", "--times", "3").returncode == 2
    assert run("grants").stdout == b"no grant holds\n"
    done = run("approve", request, "--scope", "path", "--times", "3")
    assert done.returncode == 0, done.stderr
    assert b"1 of 3: " + LINE in done.stdout
    assert gate.wait(ident)["verdict"] == "approve"
    assert gate.wait(gate.ask(scopes=OFFERED, operation_hash="cd" * 32))["verdict"] == "approve"
    assert b"2 of 3: " + LINE in run("grants").stdout
    (grant,) = json.loads(run("grants", "--json").stdout)
    assert (grant["left"], grant["approver"]) == (1, f"uid:{os.geteuid()}")
    assert run("revoke", grant["grant"]).returncode == 0
    assert json.loads(run("grants", "--json").stdout) == []
    assert run("revoke", grant["grant"]).returncode == 2
    gate.ask(scopes=OFFERED, operation_hash="ef" * 32)
    assert len(watcher.call("list")["requests"]) == 1


@pytest.mark.parametrize(
    ("keys", "verdict", "left"),
    [
        ([b"p\n", b"y\n"], "approve", 4),
        ([b"P 20\n", b"yes\n"], "approve", 19),
        ([b"p 3\n", b"\n", b"y\n"], "approve", 0),  # not that wide: the question is back, and once is once
        ([b"p 3\n", b"n\n", b"n\n"], "deny", 0),
        ([b"p 101\n"], "deny", 0),
        ([b"p 0\n"], "deny", 0),
        ([b"h\n"], "deny", 0),  # not on offer
        ([b"p p\n"], "deny", 0),
    ],
)
def test_watch_takes_a_wider_answer_only_after_a_second_yes(
    helper: tuple[Helper, Authority], tmp_path: Path, keys: list[bytes], verdict: str, left: int
) -> None:
    gate = helper[1].gate()
    program = OnTerminal(helper[0], ["approvals", "watch"], on=(0, 1, 2), cwd=tmp_path)
    try:
        program.wait_for(b"watching")
        ident = gate.ask(scopes=OFFERED)
        program.wait_for(b"allow this once? [y/N] (29")
        assert b"[p] 5 times (p 20: 20 times): " + LINE in program.shown
        for number, key in enumerate(keys):
            time.sleep(0.35)
            program.shown = b""
            os.write(program.master, key)
            if number < len(keys) - 1:
                confirming = key[:1].lower() == b"p"
                program.wait_for(b"this one included? [y/N] (" if confirming else b"allow this once? [y/N] (")
                assert (b"at most 1 h: " + LINE in program.shown) is confirming
                assert (b"not wider" in program.shown) is not confirming
        assert gate.wait(ident)["verdict"] == verdict
        found = helper[1].approver().call("grants")["grants"]
        assert [grant["left"] for grant in found] == ([left] if left else [])
        if left:
            program.shown = b""
            assert gate.wait(gate.ask(scopes=OFFERED, operation_hash="cd" * 32))["verdict"] == "approve"
            program.wait_for(b"allowed by grant")
    finally:
        program.close()


def test_a_second_yes_that_was_typed_ahead_is_none(helper: tuple[Helper, Authority], tmp_path: Path) -> None:
    gate = helper[1].gate()
    program = OnTerminal(helper[0], ["approvals", "watch"], on=(0, 1, 2), cwd=tmp_path)
    try:
        program.wait_for(b"watching")
        ident = gate.ask(scopes=OFFERED)
        program.wait_for(b"allow this once? [y/N] (29")
        time.sleep(0.35)
        os.write(program.master, b"p 100\ny\ny\n")
        program.wait_for(b"100 times, this one included? [y/N] (")
        os.write(program.master, b"y\n")  # too soon to have been read
        time.sleep(0.5)
        gate.call("budget")
        assert ident not in gate.answers
        os.write(program.master, b"y\n")
        assert gate.wait(ident)["verdict"] == "approve"
    finally:
        program.close()
