"""The tool host: one process per pod, outside every sandbox, that keeps the person's own MCP servers for the gate.

Run as ``python -m nucleus.mcp.host DESCRIPTOR`` by the launcher, as the person: the descriptor is the gate's channel,
standard input the configuration (`config`), read to its end.
Promises: takes ``list``, ``call`` and ``cancel`` of docs/design.md from the gate and from nobody else; what servers say
is bounded and made plain before it goes on; a server that fails, hangs or dies costs its own tools alone; when the gate
or the launcher is gone the servers are ended.
Relies on: the official MCP client (its version is in the lock); servers that end when their input does.
Does not: decide, or know of any policy. It is trusted as the person's own programs are.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from typing import Any

from nucleus.errors import InvalidError, NucleusError, OperationError
from nucleus.frames import Decoder, Frame, encode
from nucleus.kernel import syscalls
from nucleus.limits import LIMITS
from nucleus.mcp.config import FILE_BYTES, ServerConfig, parse

START_S = 20.0  # for a server to start and to list its tools
TOOLS = 256  # of one server
SCHEMA_BYTES = 16_384
DESCRIPTION_CHARACTERS = 2_000
PARTS = 256  # content parts of one answer


class Host:
    """The servers of one pod, by name."""

    def __init__(self) -> None:
        self._sessions: dict[str, Any] = {}
        self._tools: dict[str, list[dict[str, Any]]] = {}
        self._failed: dict[str, str] = {}
        self.ready = asyncio.Event()

    async def keep(self, servers: tuple[ServerConfig, ...], stopped: asyncio.Event) -> None:
        """Start them all, and keep them until `stopped`."""
        pending = len(servers)

        def settled() -> None:
            nonlocal pending
            pending -= 1
            if pending == 0:
                self.ready.set()

        # Each in a task of its own: the client's scopes must be left by whoever entered them.
        await asyncio.gather(*(self._one(server, stopped, settled) for server in servers))

    async def _one(self, server: ServerConfig, stopped: asyncio.Event, settled: Any) -> None:
        from mcp import ClientSession
        from mcp.client.stdio import StdioServerParameters, stdio_client

        how = StdioServerParameters(command=server.command, args=list(server.args), env=_environment(server))
        told = False
        try:
            async with AsyncExitStack() as stack:
                async with asyncio.timeout(START_S):
                    streams = await stack.enter_async_context(stdio_client(how))
                    session = await stack.enter_async_context(ClientSession(streams[0], streams[1]))
                    await session.initialize()
                    self._tools[server.name] = _tools(server.name, await session.list_tools())
                self._sessions[server.name] = session
                told = True
                settled()
                await stopped.wait()
        except Exception as error:  # noqa: BLE001 - whatever a server does costs its own tools alone
            self._failed[server.name] = f"{type(error).__name__}"
            self._tools.pop(server.name, None)
        finally:
            self._sessions.pop(server.name, None)
            if not told:
                settled()

    async def answer(self, header: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """One request of the gate. Raises NucleusError."""
        await self.ready.wait()
        if header.get("op") == "list":
            return {"failed": [{"server": name, "reason": why} for name, why in self._failed.items()]}, json.dumps(
                [tool for tools in self._tools.values() for tool in tools]
            ).encode()
        if header.get("op") != "call":
            raise InvalidError("unknown request of a gate", rule="frames.op")
        server, tool, arguments = header.get("server"), header.get("tool"), header.get("arguments")
        session = self._sessions.get(str(server))
        known = {item["name"] for item in self._tools.get(str(server), ())}
        if session is None or tool not in known or not isinstance(arguments, dict):
            raise OperationError("no such tool is attached to this pod", rule="tools.unknown")
        try:
            result = await session.call_tool(tool, arguments)
        except Exception as error:  # noqa: BLE001 - a server's failure is an answer
            raise OperationError(f"the tool's server failed: {type(error).__name__}", rule="tools.server") from None
        return _result(result)


def _environment(server: ServerConfig) -> dict[str, str]:
    kept = ("PATH", "HOME", "LANG", "USER", "LOGNAME", "SHELL", "TERM", "TMPDIR", "XDG_RUNTIME_DIR")
    return {name: os.environ[name] for name in kept if name in os.environ} | server.env


def _tools(server: str, listed: Any) -> list[dict[str, Any]]:
    """The tools as plain data; one whose name or schema is out of bounds is left out."""
    out: list[dict[str, Any]] = []
    for tool in listed.tools[:TOOLS]:
        data = tool.model_dump(mode="json", by_alias=True)
        name, schema = data.get("name"), data.get("inputSchema")
        if not isinstance(name, str) or not 0 < len(name) <= 128 or not name.isprintable() or set(name) & set("/ "):
            continue
        if not isinstance(schema, dict) or len(json.dumps(schema)) > SCHEMA_BYTES:
            continue
        described = _plain(str(data.get("description") or ""))[:DESCRIPTION_CHARACTERS]
        out.append({"server": server, "name": name, "description": described, "input_schema": schema})
    return out


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\u{ord(c):04x}" for c in text)


def _result(result: Any) -> tuple[dict[str, Any], bytes]:
    data = result.model_dump(mode="json", by_alias=True)
    texts = []
    for part in data.get("content", [])[:PARTS]:
        if part.get("type") == "text":
            texts.append(str(part.get("text", "")))
        else:
            texts.append(f"[{part.get('type')} content, not shown]")
    answer: dict[str, Any] = {"text": "\n".join(texts)}
    structured = data.get("structuredContent")
    if isinstance(structured, dict):
        answer["structured"] = structured
    body = json.dumps(answer).encode("ascii")
    if len(body) > LIMITS.output_bytes:
        text = answer["text"].encode("utf-8", "replace")[: LIMITS.output_bytes // 8].decode("utf-8", "ignore")
        body = json.dumps({"text": text, "truncated": True}).encode("ascii")
    return {"is_error": bool(data.get("isError"))}, body


async def _serve(sock: socket.socket, servers: tuple[ServerConfig, ...]) -> None:
    reader, writer = await asyncio.open_unix_connection(sock=sock)
    host, stopped = Host(), asyncio.Event()
    keeping = asyncio.ensure_future(host.keep(servers, stopped))
    running: dict[int, asyncio.Task[None]] = {}
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)

    async def carry(ident: int, work: Awaitable[tuple[dict[str, Any], bytes]]) -> None:
        try:
            ok, body = await work
            writer.write(encode({"id": ident, "ok": ok}, body))
        except NucleusError as error:
            told = {"code": error.code, "message": error.message, "rule": error.rule, "next_step": error.next_step}
            writer.write(encode({"id": ident, "error": told}))
        finally:
            running.pop(ident, None)

    def take(frame: Frame) -> None:
        ident = frame.header.get("id")
        if frame.header.get("op") == "cancel":
            task = running.get(frame.header.get("target", -1))
            if task is not None:
                task.cancel()
        elif isinstance(ident, int):
            running[ident] = asyncio.ensure_future(carry(ident, host.answer(frame.header)))

    decoder = Decoder()
    ending = asyncio.ensure_future(stopped.wait())
    while not stopped.is_set():
        reading = asyncio.ensure_future(reader.read(65_536))
        await asyncio.wait({reading, ending}, return_when=asyncio.FIRST_COMPLETED)
        data = reading.result() if reading.done() else b""
        reading.cancel()
        if not data:
            break
        for frame in decoder.feed(data):
            take(frame)
    stopped.set()
    for task in tuple(running.values()):
        task.cancel()
    await keeping
    writer.close()


def main() -> int:
    """Be the tool host until the gate or the launcher is gone."""
    syscalls.set_pdeathsig(signal.SIGTERM)
    syscalls.set_dumpable(False)  # the configuration may hold secrets
    syscalls.set_name("nucleus-tools")
    try:
        servers = parse(json.loads(sys.stdin.buffer.read(FILE_BYTES + 1)))
        asyncio.run(_serve(socket.socket(fileno=int(sys.argv[1])), servers))
    except (NucleusError, ValueError) as error:
        sys.stderr.write(f"nucleus: tool host: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
