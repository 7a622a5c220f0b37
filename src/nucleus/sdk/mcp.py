"""An MCP stdio server in front of the gate: newline-delimited JSON-RPC 2.0, one tool per operation.

Run as ``python3 -m nucleus.sdk.mcp`` in the agent's compartment. Speaks the handshake protocols 2024-11-05, 2025-03-26,
2025-06-18 and 2025-11-25 (modelcontextprotocol.io/specification). A refusal of the gate is a tool result with
``isError: true`` and the text ``code: reason``; JSON-RPC errors are for the protocol's own faults.
Promises: each call runs in a thread of its own, so ping and cancellation are answered during a long one; a line is
bounded before it is parsed; nothing but protocol messages is written to standard output; a cancelled call hangs up on
the gate and is never answered.
Does not: decide, validate arguments, or ask anybody: this process is the agent's own.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, BinaryIO, Union

from nucleus.sdk.client import Cancellation, Gate, GateError
from nucleus.sdk.identity import IdentityError
from nucleus.sdk.tools import NAMES, TOOLS

PROTOCOLS = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")  # newest first
MAX_LINE = 16_777_216  # bytes of one message; nucleus.limits.LIMITS.request_bytes
MAX_CALLS = 32  # calls in flight
PROGRESS_S = (
    10.0  # between two progress notes of one call, for clients that asked: a person may take minutes to approve
)
NEWS_S = 1.0  # the same where there is something new to tell
DRAIN_S = 5.0  # after the client closed our input, calls may still end by themselves for this long
VERSION = "0.1.0"
INSTRUCTIONS = (
    "Every tool acts through a gate that checks the policy, may ask a person, charges a budget and keeps a log. "
    "Paths are relative to the workspace. 'denied' is final; 'approval_required' means that nobody said yes."
)

PARSE_ERROR, INVALID_REQUEST, METHOD_NOT_FOUND, INVALID_PARAMS = -32700, -32600, -32601, -32602
INTERNAL_ERROR, BUSY = -32603, -32000

Id = Union[str, int]  # noqa: UP007 - evaluated, and Python 3.9 has no `str | int`
Message = dict[str, Any]


class _RpcError(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Server:
    """One session.

    Args:
        gate: a `Gate`, or None to make one from the environment at the first call.
        write: takes one complete message line; called under a lock.
        log: takes one line for people.
    """

    def __init__(
        self, gate: Gate | None, write: Callable[[bytes], object], log: Callable[[str], object] = lambda line: None
    ) -> None:
        self._gate = gate
        self._write = write
        self._log = log
        self._out = threading.Lock()
        self._lock = threading.Lock()
        self._calls: dict[Id, Cancellation] = {}
        self._external: dict[str, tuple[str, str]] | None = None  # bridge name -> server, tool; None: not asked yet
        self._initialized = False
        self._methods: dict[str, Callable[[Id, Message], Message | None]] = {
            "initialize": self._initialize,
            "ping": lambda identifier, params: {},
            "tools/list": self._list,
            "tools/call": self._call,
        }

    def serve(self, stream: BinaryIO) -> None:
        """Read messages until the client closes the stream; then let the calls in flight end, or cancel them."""
        while True:
            line = stream.readline(MAX_LINE + 1)
            if not line:
                break
            if len(line) > MAX_LINE and not line.endswith(b"\n"):
                while line and not line.endswith(b"\n"):
                    line = stream.readline(MAX_LINE)
                self._fail(None, INVALID_REQUEST, f"a message has more than {MAX_LINE} bytes")
                continue
            if line.strip():
                self.line(line)
        self._drain()

    def line(self, line: bytes) -> None:
        """Handle one message. Never raises for anything that the line holds."""
        try:
            message = json.loads(line.decode("utf-8"), parse_constant=_no_constant)
        except (ValueError, RecursionError):
            self._fail(None, PARSE_ERROR, "not a JSON message")
            return
        if not isinstance(message, dict):
            # JSON-RPC batches were dropped in protocol 2025-06-18, and nobody sends them to stdio servers before it.
            self._fail(None, INVALID_REQUEST, "a message is one JSON object")
            return
        self._message(message)

    def _message(self, message: Message) -> None:
        identifier, method = message.get("id"), message.get("method")
        known_id = isinstance(identifier, (str, int)) and not isinstance(identifier, bool)
        if method is None and known_id and ("result" in message or "error" in message):
            return  # an answer to a question that we never asked
        if message.get("jsonrpc") != "2.0" or not isinstance(method, str) or ("id" in message and not known_id):
            self._fail(identifier if known_id else None, INVALID_REQUEST, "not a JSON-RPC 2.0 request")
            return
        params = message.get("params", {})
        if "id" not in message:
            if method == "notifications/cancelled" and isinstance(params, dict):
                self._cancel(params.get("requestId"))
            return
        assert isinstance(identifier, (str, int))
        try:
            if method not in self._methods:
                raise _RpcError(METHOD_NOT_FOUND, f"no method {method[:100]!r}")
            if not isinstance(params, dict):
                raise _RpcError(INVALID_PARAMS, "params is not an object")
            if not self._initialized and method not in ("initialize", "ping"):
                raise _RpcError(INVALID_REQUEST, "initialize first")
            result = self._methods[method](identifier, params)
        except _RpcError as error:
            self._fail(identifier, error.code, error.message)
            return
        if result is not None:
            self._send({"jsonrpc": "2.0", "id": identifier, "result": result})

    # The methods.

    def _initialize(self, identifier: Id, params: Message) -> Message:
        wanted = params.get("protocolVersion")
        if not isinstance(wanted, str):
            raise _RpcError(INVALID_PARAMS, "protocolVersion is missing")
        self._initialized = True
        return {
            "protocolVersion": wanted if wanted in PROTOCOLS else PROTOCOLS[0],
            "capabilities": {"tools": {"listChanged": False}},
            "serverInfo": {"name": "nucleus", "title": "Nucleus gate", "version": VERSION},
            "instructions": INSTRUCTIONS,
        }

    def _list(self, identifier: Id, params: Message) -> Message | None:
        if params.get("cursor") is not None:
            raise _RpcError(INVALID_PARAMS, "there is one page only")
        # In a thread: external servers may take their time to start, and ping must be answered meanwhile.
        with self._lock:
            if identifier in self._calls or len(self._calls) >= MAX_CALLS:
                raise _RpcError(BUSY, "this id is in use, or too many calls are in flight")
            self._calls[identifier] = Cancellation()
        threading.Thread(target=self._answer_list, args=(identifier,), daemon=True).start()
        return None

    def _answer_list(self, identifier: Id) -> None:
        tools = [*TOOLS, *self._list_external()]
        with self._lock:
            cancelled = self._calls.pop(identifier).cancelled
        if not cancelled:
            self._send({"jsonrpc": "2.0", "id": identifier, "result": {"tools": tools}})

    def _list_external(self) -> list[Message]:
        """The tools of external servers, as `server__tool`; none where the gate cannot be asked."""
        try:
            found = self._the_gate().tools()
        except (GateError, IdentityError, ValueError) as error:
            self._log(f"external tools: {error}")
            found = []
        names: dict[str, tuple[str, str]] = {}
        tools: list[Message] = []
        for tool in found:
            server, inner = str(tool.get("server")), str(tool.get("name"))
            name = f"{server}__{inner}"
            if name in names or name in NAMES:
                continue
            names[name] = (server, inner)
            schema = tool.get("input_schema")
            described = {"description": str(tool.get("description", "")), "annotations": {"openWorldHint": True}}
            tools.append({"name": name, "inputSchema": schema if isinstance(schema, dict) else {}, **described})
        self._external = names
        return tools

    def _external_tool(self, name: object) -> tuple[str, str] | None:
        """The server and tool behind a bridge name."""
        if not isinstance(name, str) or "__" not in name:
            return None
        if self._external is None or name not in self._external:
            server, _, tool = name.partition("__")
            return (server, tool) if server and tool else None  # the gate knows what there is
        return self._external[name]

    def _call(self, identifier: Id, params: Message) -> Message | None:
        name, arguments = params.get("name"), params.get("arguments", {})
        outside = self._external_tool(name)
        if not isinstance(name, str) or (name not in NAMES and outside is None):
            raise _RpcError(INVALID_PARAMS, f"no tool {str(name)[:100]!r}")
        if arguments is None:
            arguments = {}
        if not isinstance(arguments, dict):
            raise _RpcError(INVALID_PARAMS, "arguments is not an object")
        if outside is not None:
            name, arguments = "tool", {"server": outside[0], "tool": outside[1], "arguments": arguments}
        token = _progress_token(params)
        cancellation, done = Cancellation(), threading.Event()
        with self._lock:
            if identifier in self._calls:
                raise _RpcError(INVALID_REQUEST, "this id is in use")
            if len(self._calls) >= MAX_CALLS:
                raise _RpcError(BUSY, f"{MAX_CALLS} calls are in flight")
            self._calls[identifier] = cancellation
        news = None if token is None else _News()
        threading.Thread(
            target=self._carry_out, args=(identifier, name, arguments, cancellation, done, news), daemon=True
        ).start()
        if token is not None and news is not None:
            threading.Thread(target=self._progress, args=(token, done, news), daemon=True).start()
        return None

    def _carry_out(
        self,
        identifier: Id,
        name: str,
        arguments: Message,
        cancellation: Cancellation,
        done: threading.Event,
        news: _News | None,
    ) -> None:
        """The body of a call's thread. Whatever happens, it is answered, unless it was cancelled."""
        try:
            told = (None, None) if news is None else (news.wrote, news.searched)
            reply = self._the_gate().exchange(name, arguments, cancellation, *told)
            result = _success(name, reply)
        except (GateError, IdentityError, ValueError) as error:
            result = _failure(error)
        except Exception as error:  # noqa: BLE001 - the client must get an answer; the log has the type
            self._log(f"{name}: {type(error).__name__}")
            result = _failure(GateError(0, "internal_error", "the bridge failed; see its log"))
        with self._lock:
            del self._calls[identifier]
            cancelled = cancellation.cancelled
        done.set()
        if not cancelled:
            self._send({"jsonrpc": "2.0", "id": identifier, "result": result})

    def _progress(self, token: Id, done: threading.Event, news: _News) -> None:
        """Say that the call is still on its way, and how far it is, until it is answered."""
        count, last, told = 0, time.monotonic(), news.text
        while not done.wait(NEWS_S):
            now, text = time.monotonic(), news.text
            if text == told and now - last < PROGRESS_S:
                continue
            count, last, told = count + 1, now, text
            params = {"progressToken": token, "progress": count, "message": text or "the gate has not answered yet"}
            self._send({"jsonrpc": "2.0", "method": "notifications/progress", "params": params}, unless=done)

    def _the_gate(self) -> Gate:
        with self._lock:
            if self._gate is None:
                self._gate = Gate()
            return self._gate

    def _cancel(self, identifier: object) -> None:
        with self._lock:
            call = self._calls.get(identifier) if isinstance(identifier, (str, int)) else None
        if call is not None:
            call.cancel()

    def _drain(self) -> None:
        deadline = time.monotonic() + DRAIN_S
        while time.monotonic() < deadline:
            with self._lock:
                if not self._calls:
                    return
            time.sleep(0.01)
        with self._lock:
            calls = list(self._calls.values())
        for call in calls:
            call.cancel()

    def _fail(self, identifier: Id | None, code: int, message: str) -> None:
        self._send({"jsonrpc": "2.0", "id": identifier, "error": {"code": code, "message": message}})

    def _send(self, message: Message, unless: threading.Event | None = None) -> None:
        # ASCII: a lone surrogate from a file must not become a line that is not UTF-8.
        line = json.dumps(message, separators=(",", ":"), ensure_ascii=True).encode("ascii") + b"\n"
        with self._out:
            if unless is not None and unless.is_set():
                return
            try:
                self._write(line)
            except OSError:
                self._log("the client is gone")


class _News:
    """How far a call is, in words: how much, never what (the result says that, once it is on record)."""

    def __init__(self) -> None:
        self.text = ""
        self._characters = 0

    def wrote(self, name: str, text: str) -> None:
        self._characters += len(text)
        self.text = f"running: {self._characters} characters of output so far"

    def searched(self, files: int, size: int) -> None:
        self.text = f"searching: {files} files" + (f", {size} bytes" if size else "") + " so far"


def _progress_token(params: Message) -> Id | None:
    meta = params.get("_meta")
    token = meta.get("progressToken") if isinstance(meta, dict) else None
    return token if isinstance(token, (str, int)) and not isinstance(token, bool) else None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _success(name: str, reply: Message) -> Message:
    """A gate's ok as a tool result: text as an agent reads it, and the receipt in _meta."""
    result = reply.get("result")
    texts = _texts(name, result if isinstance(result, dict) else {})
    receipt = {f"nucleus/{key}": reply[key] for key in ("request_id", "audit", "cost") if key in reply}
    failed = name == "tool" and isinstance(result, dict) and result.get("is_error") is True
    return {"content": [{"type": "text", "text": text} for text in texts], "isError": failed, "_meta": receipt}


def _failure(error: Exception) -> Message:
    text = str(error)  # GateError and IdentityError: "code: reason"
    receipt: Message = {}
    if isinstance(error, GateError) and error.request_id:
        receipt = {"nucleus/request_id": error.request_id, "nucleus/audit": error.audit}
    partial = _run_texts(error.result) if isinstance(error, GateError) and "stdout" in error.result else []
    content = [{"type": "text", "text": one} for one in (text, *partial)]
    return {"content": content, "isError": True, "_meta": receipt}


def _texts(name: str, result: Message) -> list[str]:
    if name == "read":
        text = str(result.get("content", ""))
        notes = []
        if result.get("encoding") == "base64":
            notes.append("not UTF-8 text: the content is base64")
        if result.get("truncated"):
            notes.append(f"truncated; the file has {result.get('size')} bytes")
        return [text, *(f"[{note}]" for note in notes)]
    if name == "run":
        return _run_texts(result)
    if name == "tool":
        return [str(result.get("text", "")), *(["[truncated]"] if result.get("truncated") else [])]
    if name == "glob":
        return _lines([str(path) for path in result.get("paths", [])], result)
    if name == "grep":
        matches = [match for match in result.get("matches", []) if isinstance(match, dict)]
        return _lines(_grep_lines(matches), result)
    if name in ("git_status", "git_diff"):
        return [str(result.get("text", "")), *(["[truncated]"] if result.get("truncated") else [])]
    return [json.dumps(result, ensure_ascii=False)]


def _lines(lines: list[str], result: Message) -> list[str]:
    why = result.get("limits")
    told = f": {', '.join(str(word) for word in why)}" if isinstance(why, list) and why else ""
    return ["\n".join(lines) if lines else "[no match]", *([f"[truncated{told}]"] if result.get("truncated") else [])]


def _grep_lines(matches: list[Message]) -> list[str]:
    """As grep writes them: ``path:line:text``, ``path-line-text`` for context, ``--`` where lines are left out."""
    lines: list[str] = []
    groups = any(match.get("context") for match in matches)
    last: tuple[object, object] | None = None
    for match in matches:
        path, line = match.get("path"), match.get("line")
        if groups and last is not None and last != (path, line):
            lines.append("--")
        mark = "-" if match.get("context") else ":"
        lines.append(f"{path}{mark}{line}{mark}{match.get('text')}")
        last = path, line + 1 if isinstance(line, int) else line
    return lines


def _run_texts(result: Message) -> list[str]:
    texts = [str(result.get("stdout", ""))]
    if result.get("stderr"):
        texts.append(f"[stderr]\n{result['stderr']}")
    notes = ["output is base64"] if result.get("encoding") == "base64" else []
    notes += [f"{key.split('_')[0]} truncated" for key in ("stdout_truncated", "stderr_truncated") if result.get(key)]
    if result.get("timed_out"):
        notes.append("timed out")
    if result.get("signal"):
        notes.append(f"killed by signal {result['signal']}")
    notes.append(f"exit code {result.get('exit_code')}")
    return [*texts, f"[{'; '.join(notes)}]"]


def _log(line: str) -> None:
    sys.stderr.write(f"nucleus-mcp: {line}\n")
    sys.stderr.flush()


def main() -> int:
    """Serve standard input and output. Returns the exit code."""
    # Whatever else prints must not end up among the protocol's lines: they go to a private copy of descriptor 1.
    out = os.dup(1)
    os.dup2(2, 1)

    def write(line: bytes) -> None:
        view = memoryview(line)
        while view:
            view = view[os.write(out, view) :]

    try:
        Server(None, write, _log).serve(sys.stdin.buffer)
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
