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
