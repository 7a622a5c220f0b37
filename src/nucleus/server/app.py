"""The agent's door: HTTPS with mutual TLS 1.3, one POST per operation (docs/design.md).

Numbered steps, each before the next byte is looked at:
 1. TLS 1.3 with a client certificate (the TLS context).
 2. The peer's chain is verified again as an X509-SVID of its own trust domain, and must be this pod's agent
    (once for each connection, which is cut when the SVID expires or is revoked: `peers`).
 3. The body's size, then its JSON, then its fields.
Every answer, also 404 and 500, is the error body of the seed: ``{error, kind, operation?}``.
Does not: decide anything.
"""

from __future__ import annotations

import asyncio
import codecs
import json
import socket
import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from aiohttp import web

from nucleus.errors import InvalidError, NucleusError, UnauthenticatedError
from nucleus.limits import LIMITS
from nucleus.model.operation import OPERATIONS
from nucleus.model.principal import Principal
from nucleus.sanitize import sanitize
from nucleus.server.driver import STREAM_BYTES, Driver
from nucleus.server.peers import Peers
from nucleus.server.wire import http_status, parse_object, reply_object

NDJSON = "application/x-ndjson"
STREAMED = frozenset(("run", "glob", "grep"))  # `server.openapi` says what
KINDS = frozenset(str(model.model_fields["kind"].default) for model in OPERATIONS)

Listing = Callable[[], Awaitable[list[dict[str, Any]]]]
Charge = Callable[[str, int, str, str], Awaitable[dict[str, Any]]]
_REPORT = {"id": str, "micro_dollars": int, "reason": str}


class Door:
    """The HTTP application of one gate.

    Args:
        driver: runs the pipeline.
        peers: who is at the other end of each connection.
        tools: lists the external tools that the policy does not rule out.
        charge: takes an orchestrator's report of what it used elsewhere; None at an agent's door, which has no such.
    """

    def __init__(
        self,
        driver: Driver,
        peers: Peers,
        tools: Listing | None = None,
        charge: Charge | None = None,
    ) -> None:
        self._tools = tools
        self._charge = charge
        self._driver = driver
        self._peers = peers

    async def serve(self, listener: socket.socket, context: ssl.SSLContext) -> web.AppRunner:
        """Serve on a listening socket until the runner is cleaned up."""
        app = web.Application(client_max_size=LIMITS.request_bytes, middlewares=[_errors])
        app.router.add_get("/v1/health", self._health)
        app.router.add_get("/v1/tools", self._list_tools)
        app.router.add_get("/v1/openapi.json", self._document)
        app.router.add_post("/v1/charge", self._report)
        for kind in sorted(KINDS):
            app.router.add_post(f"/v1/{kind}", partial(self._operation, kind))
        runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, auto_decompress=False, keepalive_timeout=3600
        )
        await runner.setup()
        await web.SockSite(runner, listener, ssl_context=context, backlog=64).start()
        return runner

    def _principal(self, request: web.Request) -> Principal:
        return self._peers.principal(request.transport)

    async def _health(self, request: web.Request) -> web.Response:
        principal = self._principal(request)
        return web.json_response({"status": "ok", "principal": principal.spiffe_id})

    async def _list_tools(self, request: web.Request) -> web.Response:
        self._principal(request)
        return _json(200, {"tools": [] if self._tools is None else await self._tools()})

    async def _document(self, request: web.Request) -> web.Response:
        from nucleus.server.openapi import document  # weight: only where somebody asks

        self._principal(request)
        return _json(200, document())

    async def _report(self, request: web.Request) -> web.Response:
        """``{id, micro_dollars, reason?}`` → ``{charged, unpaid, free}``; the same id again is answered as before."""
        principal = self._principal(request)
        if self._charge is None or principal.role != "orchestrator":
            raise web.HTTPNotFound
        raw = {"reason": "", **parse_object(await request.read())}
        if raw.keys() != _REPORT.keys() or any(type(raw[name]) is not kind for name, kind in _REPORT.items()):
            raise InvalidError("a report is {id, micro_dollars, reason}", rule="budget.charge")
        return _json(200, await self._charge(raw["id"], raw["micro_dollars"], raw["reason"], principal.spiffe_id))

    async def _operation(self, kind: str, request: web.Request) -> web.StreamResponse:
        raw: dict[str, Any] | NucleusError = {}
        try:
            self._principal(request)  # 2
            raw = await _body(request, kind)  # 3
        except UnauthenticatedError:
            pass  # nothing of it is read; the pipeline refuses it by the same check, on record
        except InvalidError as error:
            raw = error
        if kind in STREAMED and NDJSON in request.headers.get("Accept", ""):
            return await self._streamed(request, raw)
        reply = await self._driver.run(raw, lambda: self._principal(request))
        return _json(http_status(reply), reply_object(reply, person=False))

    async def _streamed(self, request: web.Request, raw: dict[str, Any] | NucleusError) -> web.StreamResponse:
        """A line ``{stream, text}`` for each piece of output, or ``{progress: {files, bytes}}`` of a search; the reply.

        The reply is the last line, with its ``http_status``.

        Where nothing is written before the reply it is the ordinary answer. A reader that is more than `STREAM_BYTES`
        behind, and a stream that is no UTF-8, get the rest with the reply alone.
        """
        live = _Live()
        task = asyncio.ensure_future(
            self._driver.run(raw, lambda: self._principal(request), output=live.wrote, progress=live.searched)
        )
        try:
            await asyncio.wait((task, first := asyncio.ensure_future(live.some.wait())), return_when="FIRST_COMPLETED")
            first.cancel()
            if task.done():
                reply = task.result()
                return _json(http_status(reply), reply_object(reply, person=False))
            response = web.StreamResponse(headers={"Content-Type": NDJSON, "Cache-Control": "no-store"})
            await response.prepare(request)
            task.add_done_callback(lambda _: live.some.set())
            while not task.done():
                await live.some.wait()
                live.some.clear()
                for line in live.take():
                    await response.write(line)
            for line in live.take():
                await response.write(line)
            reply = task.result()
            body = {**reply_object(reply, person=False), "http_status": http_status(reply)}
            await response.write(_line(body))
            await response.write_eof()
            return response
        finally:
            task.cancel()  # the client went away: so does what it waits for


class _Live:
    """What a command has written and its client has not been sent yet."""

    def __init__(self) -> None:
        self.some = asyncio.Event()
        self._lines: list[bytes] = []
        self._size = 0
        self._decoders = {name: codecs.getincrementaldecoder("utf-8")() for name in ("stdout", "stderr")}

    def wrote(self, name: str, data: bytes) -> None:
        """Some more."""
        if self._size > STREAM_BYTES or name not in self._decoders:
            return
        try:
            text = self._decoders[name].decode(data)
        except UnicodeDecodeError:
            del self._decoders[name]
            return
        if text:
            line = _line({"stream": name, "text": text})
            self._size += len(line)
            if self._size > STREAM_BYTES:
                return  # and nothing after it: what was sent is always the beginning of the whole
            self._lines.append(line)
            self.some.set()

    def searched(self, files: int, size: int) -> None:
        """How far a search is; who has not read of the last word hears the newest alone."""
        self._lines[:] = [_line({"progress": {"files": files, "bytes": size}})]
        self.some.set()

    def take(self) -> list[bytes]:
        """The lines so far."""
        lines, self._lines = self._lines, []
        if self._size <= STREAM_BYTES:
            self._size = 0
        return lines


def _line(body: dict[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":")).encode("ascii") + b"\n"


async def _body(request: web.Request, kind: str) -> dict[str, Any]:
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise InvalidError("compressed bodies are not accepted", rule="http.encoding")
    raw = parse_object(await request.read())
    if raw.setdefault("kind", kind) != kind:
        raise InvalidError("kind differs from the path", rule="http.kind")
    return raw


def _json(status: int, body: dict[str, Any]) -> web.Response:
    data = json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "backslashreplace")
    return web.Response(
        status=status, body=data, content_type="application/json", headers={"Cache-Control": "no-store"}
    )


@web.middleware
async def _errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except NucleusError as error:
        return _json(error.http_status, {"error": sanitize(error.message), "kind": error.code})
    except web.HTTPException as error:
        kind = "not_found" if error.status in (404, 405) else "invalid_request"
        answer = _json(error.status, {"error": error.reason.lower(), "kind": kind})
        if isinstance(error, web.HTTPMethodNotAllowed):
            answer.headers["Allow"] = ", ".join(sorted(error.allowed_methods))  # RFC 9110, section 15.5.6
        return answer
    except Exception as error:  # noqa: BLE001 - a bug of ours answers, and says nothing of itself
        return _json(500, {"error": f"internal error ({type(error).__name__})", "kind": "internal_error"})
