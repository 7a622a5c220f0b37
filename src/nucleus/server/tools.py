"""The gate's side of the tool host: one decided call to a message, and what a server answered to a result.

Promises: takes a grant and spends it first; answers are bounded, typed and made plain before anyone sees them; what a
call took is measured here. Without a tool host there is no tool.
Relies on: the channel being the one to this pod's tool host; the decision having been made on the same call.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from nucleus.errors import OperationError, SandboxError
from nucleus.frames import Frame
from nucleus.lattice import capability as cap
from nucleus.lattice.policy import Policy, tool_rule
from nucleus.limits import LIMITS
from nucleus.model.grant import Grant
from nucleus.model.operation import CallTool
from nucleus.model.receipt import Meter, Outcome
from nucleus.server.channel import Channel
from nucleus.server.wire import error_from

CALL_S = 120.0
LIST_S = 30.0


class Tools:
    """The external tools of one pod.

    Args:
        channel: the tool host.
        monotonic_ns: the clock of the meter.
    """

    def __init__(self, channel: Channel, monotonic_ns: Callable[[], int]) -> None:
        self._channel = channel
        self._now = monotonic_ns

    async def listing(self) -> list[dict[str, Any]]:
        """``[{server, name, description, input_schema}]``. Raises OperationError, SandboxError."""
        frame = await self._ask({"op": "list"}, LIST_S)
        found = _json(frame.body)
        if not isinstance(found, list) or not all(_is_tool(tool) for tool in found):
            raise SandboxError("the tool host broke the protocol", rule="tools.protocol")
        return found

    async def call(self, grant: Grant, operation: CallTool, meter: Meter) -> Outcome:
        """Spend the grant, call the tool, check the answer."""
        grant.spend(operation)
        started = self._now()
        header = {"op": "call", "server": operation.server, "tool": operation.tool, "arguments": operation.arguments}
        meter.bytes_moved += len(json.dumps(operation.arguments))
        try:
            frame = await self._ask(header, CALL_S)
        finally:
            meter.duration_ns += self._now() - started
        meter.bytes_moved += len(frame.body)
        ok, answer = frame.header["ok"], _json(frame.body)
        if not isinstance(answer, dict) or not isinstance(answer.get("text"), str):
            raise SandboxError("the tool host broke the protocol", rule="tools.protocol")
        result: dict[str, Any] = {"text": answer["text"], "is_error": bool(ok.get("is_error"))}
        if isinstance(answer.get("structured"), dict):
            result["structured"] = answer["structured"]
        if answer.get("truncated"):
            result["truncated"] = True
        return Outcome(result)

    async def _ask(self, header: dict[str, Any], deadline_s: float) -> Frame:
        ident, future = self._channel.start(header)
        try:
            async with asyncio.timeout(deadline_s):
                frame = await future
        except TimeoutError:
            self._channel.send({"op": "cancel", "target": ident, "id": 0})
            raise OperationError("the tool took too long", rule="tools.timeout") from None
        except asyncio.CancelledError:
            self._channel.send({"op": "cancel", "target": ident, "id": 0})
            raise
        if not isinstance(frame.header.get("ok"), dict):
            raise error_from(frame.header.get("error"))
        return frame

    def close(self) -> None:
        """Close the channel: the tool host ends its servers."""
        self._channel.close()


def visible_tools(policy: Policy, tools: Tools | None) -> Callable[[], Awaitable[list[dict[str, Any]]]]:
    """What the agent's door lists: the tools that the policy does not rule out."""

    async def listing() -> list[dict[str, Any]]:
        found = [] if tools is None else await tools.listing()
        return [tool for tool in found if not _ruled_out(policy, tool)]

    return listing


def _ruled_out(policy: Policy, tool: dict[str, Any]) -> bool:
    rules = (tool_rule(table, tool["server"], tool["name"]) for table in policy.tools)
    return any(rule.level == cap.NEVER for rule in rules)


def gone() -> SandboxError:
    """The error of every call once the tool host has ended."""
    return SandboxError("the tool host is gone", rule="tools.gone")


def _json(body: bytes) -> object:
    if len(body) > 4 * LIMITS.output_bytes:
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _is_tool(tool: object) -> bool:
    return (
        isinstance(tool, dict)
        and all(isinstance(tool.get(name), str) for name in ("server", "name", "description"))
        and isinstance(tool.get("input_schema"), dict)
    )
