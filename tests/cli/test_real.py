"""The command line on the real house: builder, gate, authority and pod, with a private builder and its own state."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import pytest

from nucleus.cli.prompt import READING_S
from nucleus.sdk.tools import NAMES

from .stand_in import OnTerminal

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root here: the unprivileged path has its own tests")


class House:
    """Directories that the authority's uid can reach, and a workspace."""

    def __init__(self) -> None:
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="cli-real-"))
        self.directory.chmod(0o755)
        self.state, self.runtime, self.work = (self.directory / name for name in ("state", "runtime", "work"))
        self.work.mkdir()
        (self.work / "a.txt").write_text("hello\n")

    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "TERM": "xterm",
            "NUCLEUS_STATE": str(self.state),
            "NUCLEUS_RUNTIME": str(self.runtime),
            "NUCLEUS_NO_HELPER": "1",
        }

    def run(self, *argv: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "nucleus.cli.main", *argv],
            input=stdin, capture_output=True, env=self.environment(), cwd=self.work, timeout=60, check=False,
            start_new_session=True,
        )  # fmt: skip

    def events(self) -> list[str]:
        return [json.loads(line)["event"] for line in (self.state / "audit.jsonl").read_text().splitlines()]


@pytest.fixture
def house() -> Iterator[House]:
    made = House()
    yield made
    shutil.rmtree(made.directory, ignore_errors=True)


@pytest.fixture
def at_terminal(house: House) -> Iterator[Callable[..., OnTerminal]]:
    running: list[OnTerminal] = []

    def start(*argv: str, on: tuple[int, ...] = (0, 1, 2)) -> OnTerminal:
        running.append(OnTerminal(house, list(argv), on=on, cwd=house.work))  # type: ignore[arg-type]
        return running[-1]

    yield start
    for program in running:
        program.close()


def test_exec(house: House) -> None:
    done = house.run("exec", "--profile", "codegen", "--stdin", "--", "cat", "a.txt", "-", stdin="käse".encode())
    assert (done.returncode, done.stdout) == (0, "hello\nkäse".encode()), done.stderr


@pytest.mark.parametrize(("typed", "code"), [(b"y\n", 7), (b"n\n", 4)])
def test_an_approval_at_the_terminal(
    house: House, at_terminal: Callable[..., OnTerminal], typed: bytes, code: int
) -> None:
    program = at_terminal("exec", "--profile", "codegen", "--", "sh", "-c", "eval exit 7")
    program.wait_for(b"allow this once? [y/N] ")
    assert b'argv: ["sh", "-c", "eval exit 7"]' in program.shown
    time.sleep(READING_S)
    program.type(typed)
    assert program.wait() == code, program.shown
    assert "approval" in house.events()


def test_a_wider_answer_at_the_terminal(house: House, at_terminal: Callable[..., OnTerminal]) -> None:
    program = at_terminal("exec", "--profile", "codegen", "--", "sh", "-c", "eval exit 7")
    program.wait_for(b"allow this once? [y/N] ")
    assert b'[c] 5 times (c 20: 20 times): run ["sh", "-c", "eval exit 7"] in "." with no input' in program.shown
    time.sleep(READING_S)
    program.type(b"c 2\n")
    program.wait_for(b"allow this 2 times, this one included? [y/N] ")
    time.sleep(READING_S)
    program.type(b"no\n")
    program.wait_for(b"not wider")
    time.sleep(READING_S)
    program.type(b"c 3\n")
    program.wait_for(b"allow this 3 times, this one included? [y/N] ")
    time.sleep(READING_S)
    program.type(b"y\n")
    assert program.wait() == 7, program.shown
    records = [json.loads(line) for line in (house.state / "audit.jsonl").read_text().splitlines()]
    (approval,) = [record for record in records if record["event"] == "approval"]
    assert (approval["context"]["grant"]["scope"], approval["context"]["grant"]["times"]) == ("command", 3)


def test_an_agent_on_a_pty(house: House, at_terminal: Callable[..., OnTerminal]) -> None:
    program = at_terminal(
        "run", "--profile", "codegen", "--", "sh", "-c", "stty size; read line; echo got:$line; exit 3"
    )
    before = program.settings()
    program.resize(31, 97)
    program.wait_for(b"approvals watch")
    time.sleep(0.5)
    program.type(b"words\r")
    assert program.wait() == 3, program.shown
    assert b"got:words" in program.shown
    assert b"ended with exit code 3" in program.shown
    assert program.settings() == before


AGENT = """
from nucleus.sdk import Gate, GateError
gate = Gate()
print(gate.read("a.txt"), end="")
try:
    gate.git_push()
except GateError as error:
    print(error.status, error.code)
"""


def test_an_agent_with_the_sdk_and_the_summary(house: House) -> None:
    done = house.run("run", "--profile", "codegen", "--json", "--", "python3", "-c", AGENT)
    assert (done.returncode, done.stdout) == (0, b"hello\n403 denied\n"), done.stderr
    summary = json.loads(next(line for line in done.stderr.splitlines() if line.startswith(b"{")))
    assert (summary["operations"], summary["denied"], summary["asked"]) == (2, 1, 0)
    assert 0 < summary["charged"] < summary["budget"]
    assert house.events()[-1] == "pod.stop"  # on record before the summary was made


def test_an_agent_with_the_mcp_bridge(house: House) -> None:
    lines = [
        {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": "2025-11-25"}},
        {"jsonrpc": "2.0", "id": 2, "method": "tools/list"},
        {"jsonrpc": "2.0", "id": 3, "method": "tools/call", "params": {"name": "read", "arguments": {"path": "a.txt"}}},
    ]
    stdin = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    done = house.run("run", "--profile", "codegen", "--", "nucleus-tools", stdin=stdin)
    replies = {reply["id"]: reply["result"] for reply in map(json.loads, done.stdout.splitlines())}
    assert {tool["name"] for tool in replies[2]["tools"]} == NAMES
    assert replies[3]["content"] == [{"type": "text", "text": "hello\n"}]
