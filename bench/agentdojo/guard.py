"""The gate's decision on a benchmark's tool calls: the product's `decide` and `Session`, nothing of our own beside it."""

from __future__ import annotations

import json
import time
from typing import Any

from bench.agentdojo.toolmap import ToolMap, server
from nucleus.lattice import Context, Policy, decide
from nucleus.lattice.policy import MODES, TimeWindow
from nucleus.lattice.session import Session
from nucleus.model.decision import Decision
from nucleus.model.operation import CallTool
from nucleus.validate import validate_operation


def policy(tools: ToolMap, suite: str, mode: str) -> Policy:
    """No capability, the suite's tools as the map declares them, one mode."""
    return Policy(
        name="agentdojo", capabilities=0, budget_limit=0, time_window=TimeWindow(10**18),
        trifecta="+".join(MODES[mode]), tools=frozenset((tools.table(suite),)),
    )  # fmt: skip


class Guard:
    """One session of one agent.

    Args:
        made: the policy.
        suite: the tools' server.
        task: the user's own words.
    """

    def __init__(self, made: Policy, suite: str, task: str) -> None:
        self._policy = made
        self._server = server(suite)
        self._session = Session(made, task=task, egress=True)
        self.spent_ns: list[int] = []

    def decide(self, tool: str, arguments: dict[str, Any]) -> tuple[CallTool, Decision]:
        """The operation, and the decision on it; the time of the decision alone goes to `spent_ns`."""
        plain = json.loads(json.dumps(arguments, default=str))
        operation = CallTool(server=self._server, tool=tool, arguments=plain)
        validate_operation(operation)
        began = time.perf_counter_ns()
        context = Context(
            now_ns=1, started_ns=0, egress=True, seen=self._session.seen, knowledge=self._session.knowledge
        )
        decision = decide(self._policy, operation, context)
        self.spent_ns.append(time.perf_counter_ns() - began)
        return operation, decision

    def before(self, operation: CallTool) -> None:
        """It is about to run."""
        self._session.before(operation)

    def after(self, operation: CallTool, answer: object) -> None:
        """It has answered: plain data, as an MCP server's structured content, or text."""
        self._session.after(operation, answer)
