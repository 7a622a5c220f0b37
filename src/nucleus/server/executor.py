"""The gate's side of hands: one decided operation to messages, and hostile answers to results.

Promises: takes a grant and spends it first; every answer of hands is bounded, typed and filtered by the path policy
before anyone sees it; what it used is measured here, not by hands.
Relies on: the channel being the one to this pod's hands; the decision having been made on the same operation.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any

from nucleus.errors import OperationError, SandboxError
from nucleus.frames import Frame
from nucleus.limits import LIMITS
from nucleus.model.grant import Grant
from nucleus.model.operation import Base, Edit, GitPush, Glob, Grep, Read, Run, Write
from nucleus.model.receipt import Meter, Outcome, Redirect
from nucleus.network.receive_pack import is_ref
from nucleus.server.channel import Channel
from nucleus.server.lease import paid_for

# hands' own deadline comes first; ours is the one that counts when hands does not answer.
_PATIENCE_NS = LIMITS.grace_ns

SEARCH_LIMITS = ("count", "bytes", "per_file", "depth", "size", "gitignore")
_KINDS: tuple[list[str], ...] = ([], ["context"])
_HEX = frozenset("0123456789abcdef")
_WORDS = 100  # of one search that is not done; hands says one each quarter of a second
_MOST = 1 << 53  # files or bytes that a search can have gone through
PLAIN = {
    "not_found": "no such file or directory",
    "not_a_file": "not a regular file",
    "is_a_directory": "is a directory",
    "exists": "exists already",
    "escape": "the path leaves the workspace",
    "hard_link": "the file has another name outside the workspace",
    "too_large": "too large",
    "no_match": "the text to replace does not occur",
    "count_mismatch": "the text to replace does not occur the given number of times",
    "bad_pattern": "the pattern is not valid",
    "timeout": "took too long",
    "permission": "permission denied by the file's mode",
    "not_executable": "no such program, or it cannot be executed",
    "io": "input/output error",
    "protocol": "the pod did not understand the request",
}


class Executor:
    """Carries out operations in one pod.

    Args:
        channel: the pod's hands.
        visible: whether a path may be shown by a search (the one decision function, file by file).
        exclude: globs that hands may skip; a help, not the enforcement.
        monotonic_ns: the clock of the meter.
        allow: the policy's allow lists, which hands keeps to: how much lies outside them would tell what does.
    """

    def __init__(
        self,
        channel: Channel,
        visible: Callable[[str], bool],
        exclude: tuple[str, ...],
        monotonic_ns: Callable[[], int],
        allow: tuple[tuple[str, ...], ...] = (),
    ) -> None:
        self._channel = channel
        self._visible = visible
        self._hidden: dict[str, Any] = {"exclude": list(exclude)}
        if allow:
            self._hidden["allow"] = [list(globs) for globs in allow]
        self._now = monotonic_ns

    async def execute(self, grant: Grant, operation: Base, meter: Meter) -> Outcome | Redirect:
        """Spend the grant, ask hands, check the answer.

        Raises:
            OperationError: hands could not do it (code of hands in ``rule``).
            SandboxError: hands is gone or broke the protocol.
            DeniedError: the grant is not good for this operation.
        """
        grant.spend(operation)
        header, body = _request(operation, self._hidden)
        started = self._now()
        meter.bytes_moved += len(body)
        try:
            frame = await self._call(header, body, _deadline_ns(operation), meter)
        finally:
            meter.duration_ns += self._now() - started
        meter.bytes_moved += len(frame.body)
        if "error" in frame.header:
            return _failure(frame, operation)
        ok = frame.header.get("ok")
        if not isinstance(ok, dict):
            raise SandboxError("hands broke the protocol", rule="hands.protocol")
        result = self._result(operation, ok, frame.body)
        meter.matches += len(result.get("paths", ())) + sum("context" not in row for row in result.get("matches", ()))
        return Outcome(result)

    async def plan(self, remote: str, ref: str, delete: bool) -> dict[str, Any]:
        """What pushing `ref` to `remote` would do: ``{url, target, old, new, forced}``, as the pod's repository says.

        Raises:
            OperationError, SandboxError: as `execute`.
        """
        header = {"op": "git_plan", "remote": remote, "ref": ref, "delete": delete}
        frame = await self._call(header, b"", _deadline_ns(Base()))
        if "error" in frame.header:
            _failure(frame, Base())
        ok = frame.header.get("ok")
        if not isinstance(ok, dict) or type(ok.get("forced")) is not bool:
            raise SandboxError("hands broke the protocol", rule="hands.protocol")
        plan = {name: _str(ok, name, 2_048) for name in ("url", "target", "old", "new")}
        if not is_ref(plan["target"]) or not all(_is_oid(plan[name]) for name in ("old", "new")):
            raise OperationError("the repository has no such ref to push", rule="hands.git")
        return {**plan, "forced": ok["forced"]}

    async def digest(self, path: str) -> str:
        """SHA-256 (hex) of a file of the workspace, or of a symlink's target; in words why there is none."""
        for _ in range(2):
            header = {"op": "read", "path": path, "offset": 0, "limit": LIMITS.read_bytes}
            frame = await self._call(header, b"", _deadline_ns(Base()))
            error = frame.header.get("error")
            resolved = error.get("resolved") if isinstance(error, dict) else None
            if not isinstance(resolved, str) or not 0 < len(resolved) <= LIMITS.path_bytes:
                break
            path = resolved
        ok = frame.header.get("ok")
        if not isinstance(ok, dict):
            return "no file now"
        if ok.get("truncated") is not False:
            return f"NOT BOUND: more than {LIMITS.read_bytes} bytes"
        return hashlib.sha256(frame.body).hexdigest()

    async def push(self, endpoint: str, operation: GitPush, meter: Meter) -> str:
        """Have git push to `endpoint`; what it said. Raises as `execute`."""
        header = {
            "op": "git_push", "endpoint": endpoint, "target": operation.target, "new": operation.new,
            "forced": operation.forced,
        }  # fmt: skip
        started = self._now()
        try:
            frame = await self._call(header, b"", _deadline_ns(operation))
        finally:
            meter.duration_ns += self._now() - started
        if "error" in frame.header:
            _failure(frame, operation)
        return _text_only(frame.body)

    async def _call(self, header: dict[str, Any], body: bytes, deadline_ns: int, meter: Meter | None = None) -> Frame:
        part = None
        if meter is not None and meter.output is not None:
            header, part = {**header, "stream": True}, _bounded(meter.output)
        elif meter is not None and meter.progress is not None:
            header, part = {**header, "stream": True}, _growing(meter.progress)
        ident, future = self._channel.start(header, body, part)
        stop = partial(self._channel.send, {"op": "cancel", "target": ident, "id": 0})
        try:
            async with asyncio.timeout(deadline_ns / 1e9) as deadline, paid_for(meter, deadline, stop):
                return await future
        except TimeoutError:
            self._channel.send({"op": "cancel", "target": ident, "id": 0})
            raise OperationError(PLAIN["timeout"], rule="hands.timeout") from None
        except asyncio.CancelledError:
            # The caller went away: what still runs in the pod for it is killed.
            self._channel.send({"op": "cancel", "target": ident, "id": 0})
            raise

    def _result(self, operation: Base, ok: dict[str, Any], body: bytes) -> dict[str, Any]:
        if isinstance(operation, Read):
            text, encoding = _text(body[: operation.limit])
            return {
                "content": text,
                "encoding": encoding,
                "size": _int(ok, "size"),
                "truncated": bool(ok.get("truncated")),
            }
        if isinstance(operation, Write):
            return {"bytes": _int(ok, "bytes"), "created": bool(ok.get("created"))}
        if isinstance(operation, Edit):
            return {
                "replaced": _int(ok, "replaced"),
                "bytes": _int(ok, "bytes"),
                "diff": _str(ok, "diff", LIMITS.output_bytes),
            }
        if isinstance(operation, Glob):
            return self._paths(ok, operation.limit)
        if isinstance(operation, Grep):
            return self._matches(ok, operation)
        if isinstance(operation, Run):
            return _run_result(ok, body)
        if (kind := getattr(operation, "kind", "")) in ("git_status", "git_diff"):
            text = _text_only(body) if body else _str(ok, "text", LIMITS.output_bytes)
            return {"text": text, "truncated": bool(ok.get("truncated"))}
        if kind == "git_commit":
            commit = _str(ok, "commit", 64)
            if not set(commit) <= _HEX:  # it goes into the audit record
                raise SandboxError("hands broke the protocol", rule="hands.protocol")
            return {"commit": commit, "text": _str(ok, "text", LIMITS.message_bytes)}
        raise SandboxError(f"no executor for {kind}", rule="hands.protocol")

    def _paths(self, ok: dict[str, Any], limit: int) -> dict[str, Any]:
        names = [name for name in _list(ok, "paths") if isinstance(name, str) and len(name) <= LIMITS.path_bytes]
        shown = [name for name in names[:limit] if self._visible(name)]
        return {
            "paths": shown,
            "truncated": bool(ok.get("truncated")) or len(names) > limit,
            "limits": _limits(ok),
            "files": _int({"files": 0, **ok}, "files"),
            "withheld": len(names[:limit]) - len(shown),
        }

    def _matches(self, ok: dict[str, Any], operation: Grep) -> dict[str, Any]:
        shown: list[dict[str, Any]] = []
        withheld = 0
        rows = _list(ok, "matches")
        verdicts: dict[str, bool] = {}
        most = operation.limit * (1 + 2 * operation.context)
        for row in rows[:most]:
            match row:
                case [str(path), int(line), str(text), *kind] if len(path) <= LIMITS.path_bytes and kind in _KINDS:
                    if path not in verdicts:
                        verdicts[path] = self._visible(path)
                    if verdicts[path]:
                        found = {"path": path, "line": line, "text": text[: LIMITS.line_bytes]}
                        shown.append(found | {"context": True} if kind else found)
                    else:
                        withheld += 1
                case _:
                    raise SandboxError("hands broke the protocol", rule="hands.protocol")
        # That a file has more than `per_file` matches tells what is in it: only of files that are shown.
        capped = [path for path in _list({"capped": [], **ok}, "capped")[: operation.limit] if isinstance(path, str)]
        limits = _limits(ok)
        if "per_file" in limits and not any(len(path) <= LIMITS.path_bytes and self._visible(path) for path in capped):
            limits.remove("per_file")
        return {
            "matches": shown,
            "truncated": (bool(limits) if "limits" in ok else bool(ok.get("truncated"))) or len(rows) > most,
            "limits": limits,
            "files": _int({"files": 0, **ok}, "files"),
            "bytes": _int({"scanned_bytes": 0, **ok}, "scanned_bytes"),
            "withheld": withheld,
        }


def _bounded(output: Callable[[str, bytes], None]) -> Callable[[Frame], None]:
    """Pass on the output that hands says a command has, up to what a command may say; what is no output is nothing."""
    room = {"stdout": LIMITS.output_bytes, "stderr": LIMITS.output_bytes}

    def part(frame: Frame) -> None:
        name = frame.header.get("out")
        if isinstance(name, str) and 0 < len(frame.body) <= room.get(name, 0):
            room[name] -= len(frame.body)
            output(name, frame.body)

    return part


def _growing(progress: Callable[[int, int], None]) -> Callable[[Frame], None]:
    """Pass on how far hands says a search is, at most `_WORDS` times; what goes back, or is no number, is nothing."""
    last, words = (0, 0), 0

    def part(frame: Frame) -> None:
        nonlocal last, words
        match frame.header:
            case {"out": "progress", "files": files, "bytes": size} if words < _WORDS:
                if type(files) is not int or type(size) is not int:
                    return
                if last[0] <= files <= _MOST and last[1] <= size <= _MOST and (files, size) != last:
                    last, words = (files, size), words + 1
                    progress(files, size)

    return part


def _is_oid(text: str) -> bool:
    return len(text) in (40, 64) and set(text) <= _HEX


def _request(operation: Base, hidden: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """The message of docs/design.md, "gate ⇄ hands"."""
    raw = operation.model_dump(mode="json")
    header: dict[str, Any] = {"op": raw.pop("kind"), **raw}
    body = b""
    if isinstance(operation, Write):
        content = operation.content
        body = base64.b64decode(content) if operation.encoding == "base64" else content.encode("utf-8")
        del header["content"], header["encoding"]
    elif isinstance(operation, Run):
        body = header.pop("stdin").encode("utf-8")
        del header["files"]
        header["output_bytes"] = LIMITS.output_bytes
    elif isinstance(operation, Glob):
        header.update(hidden, details=True)
    elif isinstance(operation, Grep):
        header.update(hidden, details=True, timeout_ms=LIMITS.search_timeout_ms)
    elif header["op"] in ("git_status", "git_diff", "git_commit"):
        header.update(hidden)
    return header, body


def _deadline_ns(operation: Base) -> int:
    if isinstance(operation, Run):
        return operation.timeout_ms * 1_000_000 + _PATIENCE_NS
    return LIMITS.search_timeout_ms * 1_000_000 + 5 * _PATIENCE_NS


def _failure(frame: Frame, operation: Base) -> Redirect:
    """A Redirect for `symlink`, else an OperationError with our own words (hands' are hostile text)."""
    error = frame.header.get("error")
    code = error.get("code") if isinstance(error, dict) else None
    if code == "symlink":
        assert isinstance(error, dict)
        resolved = error.get("resolved", frame.header.get("resolved"))
        field = operation.path_fields[0] if len(operation.path_fields) == 1 else ""
        if isinstance(resolved, str) and 0 < len(resolved) <= LIMITS.path_bytes and field:
            return Redirect(field, resolved)
        raise OperationError("a symlink is in the way", rule="hands.symlink")
    if not isinstance(code, str) or code not in PLAIN:
        raise SandboxError("hands broke the protocol", rule="hands.protocol")
    message = (
        "nothing to commit" if code == "no_match" and getattr(operation, "kind", "") == "git_commit" else PLAIN[code]
    )
    if (
        code == "count_mismatch"
        and isinstance(error, dict)
        and isinstance(found := error.get("found"), int)
        and 0 <= found < 1 << 31
    ):
        message = f"the text to replace occurs {found} times"
    raise OperationError(message, rule=f"hands.{code}")


def _run_result(ok: dict[str, Any], body: bytes) -> dict[str, Any]:
    split = _int(ok, "stdout_bytes")
    if split > len(body) or len(body) > 2 * LIMITS.output_bytes:
        raise SandboxError("hands broke the protocol", rule="hands.protocol")
    streams = body[:split], body[split:]
    try:
        stdout, stderr = (stream.decode("utf-8") for stream in streams)
        encoding = "utf-8"
    except UnicodeDecodeError:
        stdout, stderr = (base64.b64encode(stream).decode("ascii") for stream in streams)
        encoding = "base64"
    return {
        "exit_code": _optional_int(ok, "exit_code"),
        "signal": _optional_int(ok, "signal"),
        "timed_out": bool(ok.get("timed_out")),
        "stdout": stdout,
        "stderr": stderr,
        "encoding": encoding,
        "stdout_truncated": bool(ok.get("stdout_truncated")),
        "stderr_truncated": bool(ok.get("stderr_truncated")),
        "duration_ms": _int(ok, "duration_ns") // 1_000_000,
    }


def _text(data: bytes) -> tuple[str, str]:
    try:
        return data.decode("utf-8"), "utf-8"
    except UnicodeDecodeError:
        return base64.b64encode(data).decode("ascii"), "base64"


def _text_only(data: bytes) -> str:
    return data[: LIMITS.output_bytes].decode("utf-8", "backslashreplace")


def _int(ok: dict[str, Any], name: str) -> int:
    value = ok.get(name)
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise SandboxError("hands broke the protocol", rule="hands.protocol")
    return value


def _optional_int(ok: dict[str, Any], name: str) -> int | None:
    return None if ok.get(name) is None else _int(ok, name)


def _str(ok: dict[str, Any], name: str, limit: int) -> str:
    value = ok.get(name, "")
    if not isinstance(value, str):
        raise SandboxError("hands broke the protocol", rule="hands.protocol")
    return value[:limit]


def _limits(ok: dict[str, Any]) -> list[str]:
    """Why a search told less than there is: words of ours only."""
    told = _list({"limits": [], **ok}, "limits")
    return [word for word in SEARCH_LIMITS if word in told]


def _list(ok: dict[str, Any], name: str) -> list[Any]:
    value = ok.get(name)
    if not isinstance(value, list):
        raise SandboxError("hands broke the protocol", rule="hands.protocol")
    return value
