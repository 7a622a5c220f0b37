"""What carries operations out: hands for the pod, the tool host for external tools, the gateway for what leaves.

Promises: each operation goes to exactly one of them; what is not attached is refused before a grant is spent.
"""

from __future__ import annotations

from nucleus.errors import NoEgressError, OperationError
from nucleus.model.grant import Grant
from nucleus.model.operation import Base, CallTool, Connect, WebFetch
from nucleus.model.receipt import Meter, Outcome, Redirect
from nucleus.server.egress import Egress
from nucleus.server.executor import Executor
from nucleus.server.tools import Tools


class Executors:
    """The carriers of one pod.

    Args:
        hands: the pod's.
        tools: None where no tool host is attached.
        egress: None where there is no gateway.
    """

    def __init__(self, hands: Executor, tools: Tools | None, egress: Egress | None = None) -> None:
        self._hands = hands
        self._tools = tools
        self._egress = egress

    async def execute(self, grant: Grant, operation: Base, meter: Meter) -> Outcome | Redirect:
        """Carry one operation out; raises as the carriers do."""
        if isinstance(operation, CallTool):
            if self._tools is None:
                raise OperationError("no external tool is attached to this pod", rule="tools.none")
            return await self._tools.call(grant, operation, meter)
        if not operation.egress:
            return await self._hands.execute(grant, operation, meter)
        if self._egress is None:
            raise NoEgressError("no egress in this pod", rule="pod.egress")
        if isinstance(operation, Connect):
            return await self._egress.carry(grant, operation, meter)
        if isinstance(operation, WebFetch):
            return await self._egress.fetch(grant, operation, meter)
        raise NoEgressError(f"nothing here carries {getattr(operation, 'kind', '')} yet", rule="pod.egress")
