"""The MCP server: protocol by hand, and with the official Python SDK's stdio client, in front of a stand-in gate."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from nucleus.sdk import mcp as bridge
from nucleus.sdk.client import Gate

from .stand_in import GATE_ID, StandInGate, Workload, no, ok

SRC = pathlib.Path(bridge.__file__).parents[2]
HELLO = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {"protocolVersion": "2025-11-25"}}


def talk(*lines: object, gate: Gate | None = None) -> list[dict[str, Any]]:
    """Feed lines (objects, or raw bytes) to a server in this process; return what it wrote."""
    raw = b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines)
    out: list[bytes] = []
    bridge.Server(gate, out.append).serve(io.BytesIO(raw))
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in out)
    return [json.loads(line) for line in out]


def request(method: str, params: object = None, identifier: object = 1) -> dict[str, Any]:
    message: dict[str, Any] = {"jsonrpc": "2.0", "id": identifier, "method": method}
    return message if params is None else {**message, "params": params}


def call(name: str, arguments: object, identifier: object = 1) -> dict[str, Any]:
    return request("tools/call", {"name": name, "arguments": arguments}, identifier)


@pytest.mark.parametrize(
    ("asked", "answered"),
    [(version, version) for version in bridge.PROTOCOLS] + [("2099-01-01", "2025-11-25"), ("", "2025-11-25")],
)
def test_negotiation(asked: str, answered: str) -> None:
    (reply,) = talk(request("initialize", {"protocolVersion": asked, "capabilities": {}, "clientInfo": {}}))
    assert reply["result"]["protocolVersion"] == answered
    assert reply["result"]["capabilities"] == {"tools": {"listChanged": False}}
    assert reply["result"]["serverInfo"]["name"] == "nucleus"


def test_version_is_the_packages() -> None:
    import nucleus

    assert nucleus.__version__ == bridge.VERSION


@pytest.mark.parametrize(
    ("line", "code", "identifier"),
    [
        (b"{\n", -32700, None),
        (b"\xff\xfe\n", -32700, None),
        (b'{"jsonrpc": "2.0", "id": NaN, "method": "ping"}\n', -32700, None),
        (b"[" * 50_000 + b"\n", -32700, None),
        (b"[]\n", -32600, None),
        (b'[{"jsonrpc": "2.0", "id": 1, "method": "ping"}]\n', -32600, None),  # no batches
        (b'"ping"\n', -32600, None),
        ({"id": 1, "method": "ping"}, -32600, 1),
        ({"jsonrpc": "1.0", "id": 1, "method": "ping"}, -32600, 1),
        ({"jsonrpc": "2.0", "id": None, "method": "ping"}, -32600, None),
        ({"jsonrpc": "2.0", "id": True, "method": "ping"}, -32600, None),
        ({"jsonrpc": "2.0", "id": [1], "method": "ping"}, -32600, None),
        ({"jsonrpc": "2.0", "id": 1, "method": 5}, -32600, 1),
        ({"jsonrpc": "2.0", "id": 1}, -32600, 1),
        (request("resources/list"), -32601, 1),
        (request("server/discover"), -32601, 1),
        (request("x" * 100_000), -32601, 1),
        (request("ping", [1]), -32602, 1),
        (request("initialize", {}), -32602, 1),
        (request("tools/list", {"cursor": "x"}), -32602, 1),
        (call("rm", {}), -32602, 1),
        (request("tools/call", {"name": ["read"]}), -32602, 1),
        (call("read", [1]), -32602, 1),
    ],
)
def test_faults(line: object, code: int, identifier: object) -> None:
    replies = talk(HELLO, line)
    assert len(replies) == 2
    assert replies[1]["error"]["code"] == code
    assert replies[1]["id"] == identifier
    assert len(json.dumps(replies[1])) < 1000


def test_before_initialize_only_ping() -> None:
    replies = talk(request("tools/list"), request("ping", identifier="p"), call("read", {"path": "x"}))
    assert [reply.get("error", {}).get("code") for reply in replies] == [-32600, None, -32600]
    assert replies[1] == {"jsonrpc": "2.0", "id": "p", "result": {}}


def test_notifications_and_stray_answers_get_no_reply() -> None:
    lines = [
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "method": "notifications/unknown", "params": [1]},
        {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": {"x": 1}}},
        {"jsonrpc": "2.0", "method": "notifications/cancelled"},
        {"jsonrpc": "2.0", "id": 9, "result": {}},
        {"jsonrpc": "2.0", "id": 9, "error": {"code": 1}},
        b"\n",
    ]
    assert len(talk(HELLO, *lines)) == 1


def test_a_line_too_long_is_skipped_not_buffered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge, "MAX_LINE", 1000)
    replies = talk(HELLO, b"x" * 5000 + b"\n", request("ping"), b"y" * 1000)
    assert [reply.get("error", {}).get("code") for reply in replies] == [None, -32600, None, -32700]


def test_tools_list() -> None:
    replies = talk(HELLO, request("tools/list"))
    tools = replies[1]["result"]["tools"]
    assert [tool["name"] for tool in tools][:6] == ["read", "write", "edit", "glob", "grep", "run"]
    assert all(tool["inputSchema"]["type"] == "object" for tool in tools)


Start = Callable[..., StandInGate]
Connect = Callable[..., Gate]


def result_of(gate: Gate, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return next(r for r in talk(HELLO, call(name, arguments), gate=gate) if r["id"] == 1)["result"]


@pytest.mark.parametrize(
    ("name", "result", "texts"),
    [
        ("read", {"content": "hi", "encoding": "utf-8", "size": 2, "truncated": False}, ["hi"]),
        (
            "read",
            {"content": "/w==", "encoding": "base64", "size": 9, "truncated": True},
            ["/w==", "[not UTF-8 text: the content is base64]", "[truncated; the file has 9 bytes]"],
        ),
        ("write", {"bytes": 2, "created": True}, ['{"bytes": 2, "created": true}']),
        ("glob", {"paths": ["a", "b"], "truncated": True}, ["a\nb", "[truncated]"]),
        ("glob", {"paths": [], "truncated": False}, ["[no match]"]),
        ("grep", {"matches": [{"path": "a", "line": 3, "text": "x"}], "truncated": False}, ["a:3:x"]),
        (
            "grep",
            {
                "matches": [
                    {"path": "a", "line": 2, "text": "w", "context": True},
                    {"path": "a", "line": 3, "text": "x"},
                    {"path": "a", "line": 7, "text": "y"},
                    {"path": "b", "line": 8, "text": "z"},
                ],
                "truncated": True,
                "limits": ["count", "size"],
            },
            ["a-2-w\na:3:x\n--\na:7:y\n--\nb:8:z", "[truncated: count, size]"],
        ),
        ("git_status", {"text": " M a"}, [" M a"]),
        (
            "run",
            {"exit_code": 1, "signal": None, "timed_out": False, "stdout": "o", "stderr": "e", "encoding": "utf-8"},
            ["o", "[stderr]\ne", "[exit code 1]"],
        ),
        (
            "run",
            {"exit_code": None, "signal": 9, "timed_out": True, "stdout": "", "stderr": "", "stdout_truncated": True},
            ["", "[stdout truncated; timed out; killed by signal 9; exit code None]"],
        ),
        ("git_commit", {}, ["{}"]),
    ],
)
def test_results_read_well(
    start_gate: Start, connect: Connect, name: str, result: dict[str, Any], texts: list[str]
) -> None:
    gate = start_gate(lambda kind, body: ok(result))
    answer = result_of(connect(gate), name, {"any": "thing"})
    assert [block["text"] for block in answer["content"]] == texts
    assert answer["isError"] is False
    assert answer["_meta"] == {"nucleus/request_id": "r-1", "nucleus/audit": 7, "nucleus/cost": 3}
    assert gate.seen[0].body == {"any": "thing"}  # the gate validates, not the bridge


def test_a_denial_is_a_tool_error(start_gate: Start, connect: Connect) -> None:
    gate = start_gate(lambda kind, body: no(403, "denied", "not in this policy"))
    answer = result_of(connect(gate), "run", {"argv": ["x"]})
    assert answer["isError"] is True
    assert answer["content"] == [{"type": "text", "text": "denied: not in this policy"}]
    assert answer["_meta"] == {"nucleus/request_id": "r-2", "nucleus/audit": 8}


def test_no_gate_is_a_tool_error(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUCLEUS_WORKLOAD_SOCKET", f"unix://{tmp_path}/none")
    replies = talk(HELLO, call("read", {"path": "x"}))
    assert replies[1]["result"]["isError"] is True
    assert replies[1]["result"]["content"][0]["text"].startswith("unreachable:")


def test_lone_surrogates_stay_json(start_gate: Start, connect: Connect) -> None:
    gate = start_gate(lambda kind, body: ok({"content": "\ud800", "encoding": "utf-8"}))
    assert result_of(connect(gate), "read", {"path": "x"})["content"][0]["text"] == "\ud800"


class Live:
    """A server in a thread, with a pipe to it."""

    def __init__(self, gate: Gate) -> None:
        read, write = os.pipe()
        self._in = os.fdopen(write, "wb", buffering=0)
        self._stream = os.fdopen(read, "rb")
        self.out: list[dict[str, Any]] = []
        self._server = bridge.Server(gate, lambda line: self.out.append(json.loads(line)))
        self._thread = threading.Thread(target=self._server.serve, args=(self._stream,))
        self._thread.start()
        self.send(HELLO)

    def send(self, *messages: object) -> None:
        for message in messages:
            self._in.write(json.dumps(message).encode() + b"\n")

    def wait(self, count: int) -> None:
        deadline = time.monotonic() + 5
        while len(self.out) < count and time.monotonic() < deadline:
            time.sleep(0.005)
        assert len(self.out) >= count

    def close(self) -> None:
        self._in.close()
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._stream.close()


class Slow:
    """A gate whose `run` waits until it is let go."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.leave = threading.Event()

    def __call__(self, kind: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if kind == "run":
            self.entered.release()
            self.leave.wait(10)
        return ok({"content": kind})


def test_ping_and_other_calls_are_answered_during_a_long_one(start_gate: Start, connect: Connect) -> None:
    slow = Slow()
    live = Live(connect(start_gate(slow)))
    try:
        live.send(call("run", {"argv": ["sleep"]}, "long"))
        assert slow.entered.acquire(timeout=5)
        live.send(request("ping", identifier="p"), call("read", {"path": "x"}, "r"))
        live.wait(3)
        assert {reply["id"] for reply in live.out} == {0, "p", "r"}
        live.send(call("read", {"path": "x"}, "long"))  # the id is taken
        live.wait(4)
        assert live.out[3]["error"]["code"] == -32600
        slow.leave.set()
        live.wait(5)
        assert live.out[4]["id"] == "long"
        assert "result" in live.out[4]
    finally:
        slow.leave.set()
        live.close()


def test_a_cancelled_call_is_not_answered(start_gate: Start, connect: Connect) -> None:
    slow = Slow()
    live = Live(connect(start_gate(slow)))
    try:
        live.send(call("run", {"argv": ["sleep"]}, 5))
        assert slow.entered.acquire(timeout=5)
        live.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 5, "reason": "no"}})
        deadline = time.monotonic() + 5
        while live._server._calls and time.monotonic() < deadline:
            time.sleep(0.005)
        assert live._server._calls == {}  # the thread is free although the gate has not answered
        live.send(request("ping", identifier="after"))
        live.wait(2)
        assert [reply["id"] for reply in live.out] == [0, "after"]
    finally:
        slow.leave.set()
        live.close()


def test_a_long_call_reports_progress_to_those_who_asked(
    start_gate: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge, "PROGRESS_S", 0.05)
    monkeypatch.setattr(bridge, "NEWS_S", 0.05)
    slow = Slow()
    live = Live(connect(start_gate(slow)))
    try:
        for number, meta in ((1, {"progressToken": "t"}), (2, {"progressToken": True}), (3, "x")):
            params = {"name": "run", "arguments": {"argv": ["x"]}, "_meta": meta}
            live.send(request("tools/call", params, number))
        live.wait(3)
        notes = live.out[1:3]
        assert [note["method"] for note in notes] == ["notifications/progress"] * 2
        assert [note["params"]["progress"] for note in notes] == [1, 2]
        assert {note["params"]["progressToken"] for note in notes} == {"t"}
        slow.leave.set()
        deadline = time.monotonic() + 5
        while live._server._calls and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.1)
        count = len(live.out)
        time.sleep(0.15)
        assert len(live.out) == count  # answered: no more notes
    finally:
        slow.leave.set()
        live.close()


def test_calls_in_flight_are_bounded(start_gate: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bridge, "MAX_CALLS", 2)
    slow = Slow()
    live = Live(connect(start_gate(slow)))
    try:
        live.send(*(call("run", {"argv": ["x"]}, number) for number in (1, 2)))
        assert slow.entered.acquire(timeout=5)
        assert slow.entered.acquire(timeout=5)
        live.send(call("run", {"argv": ["x"]}, 3))
        live.wait(2)
        assert (live.out[1]["id"], live.out[1]["error"]["code"]) == (3, -32000)
    finally:
        slow.leave.set()
        live.close()


def test_a_client_that_leaves_cancels_what_runs(
    start_gate: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge, "DRAIN_S", 0.1)
    slow = Slow()
    live = Live(connect(start_gate(slow)))
    live.send(call("run", {"argv": ["sleep"]}, 5))
    assert slow.entered.acquire(timeout=5)
    live.close()
    slow.leave.set()
    assert [reply["id"] for reply in live.out] == [0]


def environment(gate: StandInGate, workload: Workload) -> dict[str, str]:
    return {
        "PYTHONPATH": str(SRC),
        "PYTHONDONTWRITEBYTECODE": "1",
        "NUCLEUS_GATE": gate.url,
        "NUCLEUS_GATE_ID": GATE_ID,
        "NUCLEUS_WORKLOAD_SOCKET": workload.endpoint,
    }


def test_the_program_writes_nothing_but_messages(start_gate: Start, workload: Workload) -> None:
    gate = start_gate(lambda kind, body: ok({"text": "clean"}))
    lines = b"".join(json.dumps(message).encode() + b"\n" for message in (HELLO, call("git_status", {})))
    done = subprocess.run(
        ["/usr/bin/python3", "-S", "-m", "nucleus.sdk.mcp"],
        input=lines,
        capture_output=True,
        env=environment(gate, workload),
        timeout=20,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    replies = [json.loads(line) for line in done.stdout.splitlines()]
    assert [reply["id"] for reply in replies] == [0, 1]
    assert replies[1]["result"]["content"][0]["text"] == "clean"


@pytest.mark.filterwarnings("default")  # the other side's library, not ours
def test_the_official_client(start_gate: Start, workload: Workload) -> None:
    """Handshake, list, a result, a denial, and a ping while a call is on its way."""
    from mcp import ClientSession, StdioServerParameters
    from mcp.client.stdio import stdio_client

    slow = Slow()

    def handler(kind: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return no(403, "denied", "push is off") if kind == "git_push" else slow(kind, body)

    gate = start_gate(handler)
    program = StdioServerParameters(
        command="/usr/bin/python3", args=["-m", "nucleus.sdk.mcp"], env=environment(gate, workload)
    )

    async def session() -> None:
        async with stdio_client(program, errlog=sys.stderr) as (read, write):
            async with ClientSession(read, write) as client:
                hello = await client.initialize()
                assert hello.protocol_version == "2025-11-25"
                assert hello.server_info.name == "nucleus"
                tools = (await client.list_tools()).tools
                assert len(tools) == 14
                good = await client.call_tool("read", {"path": "x"})
                assert (good.is_error, good.content[0].text) == (False, "read")
                bad = await client.call_tool("git_push", {})
                assert (bad.is_error, bad.content[0].text) == (True, "denied: push is off")
                long = asyncio.ensure_future(client.call_tool("run", {"argv": ["sleep"]}))
                await asyncio.to_thread(slow.entered.acquire, timeout=5)
                await client.send_ping()
                assert not long.done()
                slow.leave.set()
                assert (await long).is_error is False

    try:
        asyncio.run(asyncio.wait_for(session(), 30))
    finally:
        slow.leave.set()


@pytest.mark.filterwarnings("default")
def test_the_official_client_in_auto_mode(start_gate: Start, workload: Workload) -> None:
    """The stateless client probes `server/discover`, is told -32601, and falls back to the handshake."""
    from mcp.client.client import Client
    from mcp.client.stdio import StdioServerParameters, stdio_client

    gate = start_gate(lambda kind, body: ok({"content": "hello"}))
    program = StdioServerParameters(
        command="/usr/bin/python3", args=["-m", "nucleus.sdk.mcp"], env=environment(gate, workload)
    )

    async def session() -> None:
        async with Client(stdio_client(program)) as client:
            answer = await client.call_tool("read", {"path": "x"})
            assert answer.content[0].text == "hello"

    asyncio.run(asyncio.wait_for(session(), 30))
