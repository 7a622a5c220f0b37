"""`Gate`: one method per operation, over HTTPS with mutual TLS 1.3 to the gate that listens in this pod.

Promises: each call is one ``POST /v1/<kind>`` (docs/design.md); a refusal is a `GateError` with the gate's own stable
code; connections are kept alive and shared between threads, never used past their SVID's life; **nothing is retried**:
an operation has effects, so when the connection breaks the caller is told that the outcome is unknown (`GateLost`).
Relies on: `identity` for who we are and whom we talk to. Environment: NUCLEUS_GATE, NUCLEUS_GATE_ID,
NUCLEUS_WORKLOAD_SOCKET.
Does not: validate arguments (the gate does, strictly), or hold any secret but the SVID's key in memory.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from nucleus.sdk.identity import IdentityError, Source, check_peer

if TYPE_CHECKING:  # Python 3.9 would not evaluate it
    _Told = tuple[Callable[[str, str], None] | None, Callable[[int, int], None] | None]

DEFAULT_GATE = "https://127.0.0.1:7443"
_NDJSON = "application/x-ndjson"
MAX_REPLY = 67_108_864  # bytes of one reply: 8 MiB of content at JSON's worst escaping, and room
CONNECT_TIMEOUT_S = 10.0
APPROVAL_WAIT_S = 330.0  # a person has 300 s to answer (nucleus.limits), plus the gate's own time
TOOLS_WAIT_S = 45.0  # external servers may still be starting
IDLE_S = 60.0  # a connection idle for longer is not used again
RUN_TIMEOUT_MS = 120_000  # nucleus.limits.LIMITS.run_timeout_ms

Result = dict[str, Any]


class GateError(Exception):
    """The gate said no, or could not.

    Args:
        status: HTTP status; 0 when there was none.
        code: the gate's stable code (``denied``, ``approval_required``, ``budget_exhausted`` ...).
        reason: one plain sentence.
        request_id: correlation id of the audit log, "" when the gate gave none.
        audit: sequence number of the closing audit record, 0 when there is none.
        result: what there was of it when the budget ended a command.
    """

    def __init__(
        self, status: int, code: str, reason: str, request_id: str = "", audit: int = 0, result: Result | None = None
    ) -> None:
        super().__init__(f"{code}: {reason}")
        self.status = status
        self.code = code
        self.reason = reason
        self.request_id = request_id
        self.audit = audit
        self.result = result or {}


class GateLost(GateError):
    """The connection broke after the request was sent: whether the operation ran is unknown (the audit log knows)."""

    def __init__(self, reason: str) -> None:
        super().__init__(0, "connection_lost", reason)


class Cancellation:
    """Hand one to `Gate.call`; `cancel()` from another thread hangs up, which the gate takes as withdrawal."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sock: socket.socket | None = None
        self.cancelled = False

    def cancel(self) -> None:
        """Stop the call, whether it has started or not. Idempotent."""
        with self._lock:
            self.cancelled = True
            if self._sock is not None:
                try:
                    # The plain socket's shutdown: SSLSocket's own would pull the TLS state from under the reader.
                    socket.socket.shutdown(self._sock, socket.SHUT_RDWR)
                except OSError:
                    pass

    def bind(self, sock: socket.socket | None) -> None:
        """For `Gate`: the socket of the running call, None when it is over. Raises GateError when cancelled."""
        with self._lock:
            self._sock = sock
            if sock is not None and self.cancelled:
                raise GateError(0, "cancelled", "cancelled before it was sent")


class _Connection(http.client.HTTPSConnection):
    """A keep-alive connection bound to one SVID."""

    def __init__(self, host: str, port: int, source: Source, gate_id: str) -> None:
        svid, context = source.current()
        super().__init__(host, port, timeout=CONNECT_TIMEOUT_S, context=context)
        self.svid = svid
        self.used = time.monotonic()
        self._gate_id = gate_id

    def connect(self) -> None:
        super().connect()
        check_peer(self.sock, self._gate_id)

    def usable(self) -> bool:
        """Still ours to use: fresh enough, its SVID not yet at half-life, and the gate neither spoke nor hung up.

        The gate cuts a connection whose SVID ends; one that is left at half-life never gets there with a call on it.
        """
        if time.monotonic() - self.used > IDLE_S or time.time_ns() >= self.svid.refresh_ns() or self.sock is None:
            return False
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return not poll.poll(0)


class Gate:
    """See the module.

    Args:
        url: ``https://host:port``; default NUCLEUS_GATE.
        gate_id: the gate's SPIFFE ID; default NUCLEUS_GATE_ID. There is no way to leave it unchecked.
        source: where the SVID comes from; default the Workload socket.
    """

    def __init__(self, url: str | None = None, gate_id: str | None = None, source: Source | None = None) -> None:
        parts = urlsplit(url or os.environ.get("NUCLEUS_GATE") or DEFAULT_GATE)
        if parts.scheme != "https" or not parts.hostname:
            raise ValueError("NUCLEUS_GATE must look like https://host:port")
        self._host, self._port = parts.hostname, parts.port or 443
        self._gate_id = gate_id if gate_id is not None else os.environ.get("NUCLEUS_GATE_ID", "")
        self._source = source or Source()
        self._lock = threading.Lock()
        self._idle: list[_Connection] = []
        self._closed = False

    # The operations, in the order of nucleus.model.operation.

    def read(self, path: str, offset: int = 0, limit: int | None = None) -> str | bytes:
        """Part of a file, `offset` and `limit` in bytes: str when it is UTF-8, else bytes."""
        result = self.call("read", _some(path=path, offset=offset, limit=limit))
        content = str(result.get("content", ""))
        return base64.b64decode(content) if result.get("encoding") == "base64" else content

    def write(self, path: str, content: str | bytes) -> Result:
        """Create or replace a file. Returns {bytes, created}."""
        if isinstance(content, bytes):
            text = base64.b64encode(content).decode("ascii")
            return self.call("write", {"path": path, "content": text, "encoding": "base64"})
        return self.call("write", {"path": path, "content": content})

    def edit(self, path: str, old: str, new: str, count: int = 1) -> Result:
        """Replace `old`, which must occur exactly `count` times. Returns {replaced, bytes, diff}."""
        return self.call("edit", {"path": path, "old": old, "new": new, "count": count})

    def glob(
        self,
        pattern: str,
        path: str = ".",
        limit: int | None = None,
        *,
        sort: str | None = None,
        gitignore: bool | None = None,
    ) -> Result:
        """File names, by name or (`sort="mtime"`) the newest first. Returns {paths, truncated, limits, files}."""
        return self.call("glob", _some(pattern=pattern, path=path, limit=limit, sort=sort, gitignore=gitignore))

    def grep(
        self,
        pattern: str,
        path: str = ".",
        include: str = "**",
        ignore_case: bool = False,
        limit: int | None = None,
        *,
        context: int | None = None,
        multiline: bool | None = None,
        per_file: int | None = None,
        gitignore: bool | None = None,
    ) -> Result:
        """Search contents for an RE2 pattern.

        Returns:
            {matches: [{path, line, text}], truncated, limits, files, bytes}; a line that is shown only because it is
            near a match (`context` lines on each side) has ``context: True``, too.
        """
        fields = _some(pattern=pattern, path=path, include=include, ignore_case=ignore_case, limit=limit)
        more = _some(context=context, multiline=multiline, per_file=per_file, gitignore=gitignore)
        return self.call("grep", {**fields, **more})

    def run(
        self,
        argv: Sequence[str],
        cwd: str = ".",
        stdin: str = "",
        timeout_ms: int = RUN_TIMEOUT_MS,
        on_output: Callable[[str, str], None] | None = None,
    ) -> Result:
        """Run a command, no shell. Returns {exit_code, signal, timed_out, stdout, stderr, encoding, …}.

        Args:
            on_output: called with ``stdout`` or ``stderr`` and text while the command runs; the result has all of it.
        """
        fields = {"argv": list(argv), "cwd": cwd, "stdin": stdin, "timeout_ms": timeout_ms}
        if on_output is None:
            return self.call("run", fields)
        return dict(self.exchange("run", fields, on_output=on_output).get("result") or {})

    def git_status(self) -> Result:
        """Porcelain v1. Returns {text}."""
        return self.call("git_status", {})

    def git_diff(self, staged: bool = False) -> Result:
        """Returns {text, truncated}."""
        return self.call("git_diff", {"staged": staged})

    def git_commit(self, message: str, paths: Sequence[str] = ()) -> Result:
        """Commit `paths`, all tracked changes when empty. Returns {commit, text}."""
        return self.call("git_commit", {"message": message, "paths": list(paths)})

    def web_fetch(self, url: str, method: str = "GET", body: str = "") -> Result:
        """Fetch a URL through the pod's egress gateway."""
        return self.call("web_fetch", {"url": url, "method": method, "body": body})

    def web_search(self, query: str) -> Result:
        """Search the web through the pod's egress gateway."""
        return self.call("web_search", {"query": query})

    def git_push(
        self, remote: str = "origin", ref: str = "HEAD", *, force: bool = False, delete: bool = False
    ) -> Result:
        """Push a ref through the pod's egress gateway. Returns {ref, old, new, url, text}."""
        return self.call("git_push", {"remote": remote, "ref": ref, "force": force, "delete": delete})

    def create_pr(
        self,
        title: str,
        body: str = "",
        base: str = "main",
        head: str = "HEAD",
        *,
        draft: bool = False,
        remote: str = "origin",
    ) -> Result:
        """Open a pull request through the pod's egress gateway. Returns {number, url, repository}."""
        sent = {"title": title, "body": body, "base": base, "head": head, "draft": draft, "remote": remote}
        return self.call("create_pr", sent)

    def manage_pods(self, action: str, name: str = "") -> Result:
        """Create, list or destroy child pods."""
        return self.call("manage_pods", {"action": action, "name": name})

    def call_tool(self, server: str, tool: str, arguments: dict[str, Any] | None = None) -> Result:
        """Call a tool of an external MCP server. Returns {text, is_error, structured?}."""
        return self.call("tool", {"server": server, "tool": tool, "arguments": arguments or {}})

    def tools(self) -> list[Result]:
        """The external tools that the policy does not rule out: [{server, name, description, input_schema}]."""
        found = self._exchange("GET", "/v1/tools", None, TOOLS_WAIT_S, None).get("tools")
        return [tool for tool in found if isinstance(tool, dict)] if isinstance(found, list) else []

    def health(self) -> Result:
        """What the gate says of itself."""
        return self._exchange("GET", "/v1/health", None, CONNECT_TIMEOUT_S, None)

    # The wire.

    def call(self, kind: str, fields: dict[str, Any], cancellation: Cancellation | None = None) -> Result:
        """Any operation by its kind; returns its `result`. Raises GateError, GateLost, IdentityError."""
        return dict(self.exchange(kind, fields, cancellation).get("result") or {})

    def exchange(
        self,
        kind: str,
        fields: dict[str, Any],
        cancellation: Cancellation | None = None,
        on_output: Callable[[str, str], None] | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Result:
        """As `call`, and returns the whole reply: {request_id, status, result, audit, cost}.

        Args:
            on_output: as `run`.
            on_progress: called with the files and bytes that a search which takes long has gone through.
        """
        if not kind.replace("_", "").isalnum() or not kind.isascii():
            raise ValueError("an operation's kind is a plain word")
        body = json.dumps(fields, separators=(",", ":")).encode("ascii")
        timeout_ms = fields.get("timeout_ms", RUN_TIMEOUT_MS)
        seconds = timeout_ms / 1000 if isinstance(timeout_ms, int) and 0 < timeout_ms < 86_400_000 else 0
        told = None if on_output is None and on_progress is None else (on_output, on_progress)
        return self._exchange("POST", f"/v1/{kind}", body, APPROVAL_WAIT_S + seconds, cancellation, told)

    def close(self) -> None:
        """Close every idle connection; calls that run are left alone."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self) -> _Connection:
        while True:
            with self._lock:
                if not self._idle:
                    break
                connection = self._idle.pop()
            if connection.usable():
                return connection
            connection.close()
        connection = _Connection(self._host, self._port, self._source, self._gate_id)
        try:
            connection.connect()
        except IdentityError:
            connection.close()
            raise
        except OSError as error:
            connection.close()
            raise GateError(0, "unreachable", f"the gate cannot be reached: {error}") from error
        return connection

    def _exchange(
        self,
        method: str,
        path: str,
        body: bytes | None,
        timeout_s: float,
        cancellation: Cancellation | None,
        told: _Told | None = None,
    ) -> Result:
        connection = self._take()
        keep = False
        try:
            connection.sock.settimeout(timeout_s)
            if cancellation is not None:
                cancellation.bind(connection.sock)
            headers = {"Content-Type": "application/json"} if body is not None else {}
            if told is not None:
                headers["Accept"] = f"application/json, {_NDJSON}"
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            if told is not None and response.headers.get_content_type() == _NDJSON:
                status, raw = _streamed(response, *told)
            else:
                status, raw = response.status, response.read(MAX_REPLY + 1)
            if response.length and len(raw) <= MAX_REPLY:  # http.client does not call a short body an error
                raise http.client.IncompleteRead(raw, response.length)
            keep = len(raw) <= MAX_REPLY and not response.will_close and response.isclosed()
        except (OSError, http.client.HTTPException) as error:
            if cancellation is not None and cancellation.cancelled:
                raise GateError(0, "cancelled", "cancelled by the caller") from error
            raise GateLost(f"the gate's connection broke ({type(error).__name__}); the outcome is unknown") from error
        finally:
            if cancellation is not None:
                cancellation.bind(None)
            self._give_back(connection, keep)
        return _reply(status, raw)

    def _give_back(self, connection: _Connection, keep: bool) -> None:
        connection.used = time.monotonic()
        with self._lock:
            if keep and not self._closed and len(self._idle) < 8:
                self._idle.append(connection)
                return
        connection.close()


def _some(**fields: Any) -> dict[str, Any]:
    """The fields that were given: None means the gate's own default."""
    return {name: value for name, value in fields.items() if value is not None}


def _streamed(
    response: http.client.HTTPResponse,
    on_output: Callable[[str, str], None] | None,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[int, bytes]:
    """Tell of each line but the last one, which is the reply: its status and its bytes."""
    while raw := response.readline(MAX_REPLY + 1):
        try:
            line = json.loads(raw)
        except (ValueError, RecursionError):
            line = None
        if not isinstance(line, dict):
            raise http.client.HTTPException("a line of the answer is no JSON object")
        so_far = line.get("progress")
        if isinstance(so_far, dict):
            if on_progress is not None:
                on_progress(int(so_far["files"]), int(so_far["bytes"]))
            continue
        if "stream" not in line:
            response.read()  # the end, so that the connection can be used again
            status = line.get("http_status")
            return status if isinstance(status, int) else 0, raw
        if on_output is not None:
            on_output(str(line["stream"]), str(line.get("text", "")))
    raise http.client.IncompleteRead(b"")


def _reply(status: int, raw: bytes) -> Result:
    """The parsed body of a success; GateError for anything else."""
    try:
        body = json.loads(raw) if len(raw) <= MAX_REPLY else None
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise GateError(status, "bad_reply", f"the gate's answer (HTTP {status}) is not a JSON object")
    if status == 200 and "error" not in body:
        return body
    audit = body.get("audit")
    raise GateError(
        status,
        str(body.get("kind") or "internal_error"),
        str(body.get("error") or "refused"),
        str(body.get("request_id") or ""),
        audit if isinstance(audit, int) else 0,
        result if isinstance(result := body.get("result"), dict) else None,
    )
