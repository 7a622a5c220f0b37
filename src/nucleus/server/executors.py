"""What carries operations out: hands for the pod, the tool host for external tools, the gateway for what leaves.

Promises: each operation goes to exactly one of them; what is not attached is refused before a grant is spent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from nucleus.errors import NoEgressError, OperationError
from nucleus.lattice.commands import analyse
from nucleus.model.grant import Grant
from nucleus.model.operation import Base, CallTool, Connect, CreatePr, GitPush, Run, WebFetch, WebSearch
from nucleus.model.receipt import Meter, Outcome, Redirect
from nucleus.server.egress import Egress
from nucleus.server.executor import Executor
from nucleus.server.tools import Tools

PATIENCE_S = 10.0  # that a push, or a command that a person allowed, waits for commands to end
NAMED_FILES = 16


class _Compartment:
    """Commands and writes share the work compartment; a push has it alone, and a command whose files a person allowed.

    A program beside git could read from its arguments where the push's endpoint is, and be first there; one beside an
    allowed script could change it on its way to the interpreter.
    """

    def __init__(self) -> None:
        self._commands = 0
        self._pushing = False
        self._ended = asyncio.Event()

    async def wait(self, *, alone: bool) -> None:
        """Until it can be entered. Raises OperationError when commands run on."""
        try:
            async with asyncio.timeout(PATIENCE_S if alone else None):
                while self._pushing or (alone and self._commands):
                    self._ended.clear()
                    await self._ended.wait()
        except TimeoutError:
            raise OperationError("a command is running, and this needs the pod to itself", rule="pod.busy") from None

    @contextmanager
    def entered(self, *, alone: bool) -> Iterator[None]:
        """Right after `wait`, with nothing awaited between."""
        self._commands += not alone
        self._pushing = self._pushing or alone
        try:
            yield
        finally:
            self._commands -= not alone
            self._pushing = self._pushing and not alone
            self._ended.set()


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
        self._compartment = _Compartment()

    async def resolve(self, operation: Base) -> Base:
        """What a push or a pull request is about, found out in the pod before it is decided and shown to a person.

        Raises:
            OperationError: there is no such remote, branch or commit.
            DeniedError: the policy names no such repository.
        """
        if isinstance(operation, Run):
            return operation.model_copy(update={"files": await self._named(operation)})
        if self._egress is None:
            raise NoEgressError("no egress in this pod", rule="pod.egress")
        if isinstance(operation, GitPush):
            plan = await self._hands.plan(operation.remote, operation.ref, operation.delete)
            self._egress.git_rule(plan["url"])
            found = operation.model_copy(update=plan)
            if plan["forced"] and not operation.force:
                raise OperationError(
                    "the remote's branch is not an ancestor of what is pushed: fetch and merge, or ask with force",
                    rule="git.forced",
                )
            return found
        if isinstance(operation, CreatePr):
            plan = await self._hands.plan(operation.remote, operation.head, False)
            self._egress.pull_rule(plan["url"])
            head = plan["target"].removeprefix("refs/heads/")
            return operation.model_copy(update={"url": plan["url"], "head": head})
        return operation

    async def _named(self, operation: Run) -> tuple[tuple[str, str], ...]:
        """The files of the workspace that a command's words name, with their SHA-256."""
        words = list(dict.fromkeys(analyse(operation.argv, operation.cwd).paths))
        found = [(path, await self._hands.digest(path)) for path in words[:NAMED_FILES]]
        more = [("…", f"NOT BOUND: {len(words) - NAMED_FILES} more names")] if len(words) > NAMED_FILES else []
        return (*found, *more)

    async def _push(self, egress: Egress, grant: Grant, operation: GitPush, meter: Meter) -> Outcome:
        """git itself, in the pod, against an endpoint that knows one update."""
        grant.spend(operation)
        endpoint = await egress.opened_push(operation)
        said = ""
        try:
            said = await self._hands.push(endpoint, operation, meter)
        finally:
            ended = await egress.ended_push(endpoint, meter)
        if not ended["sent"] or not 200 <= ended["status"] < 300 or "\n!" in f"\n{said}":
            reason = str(
                ended.get("reason") or ("the remote refused it" if ended["sent"] else "there is nothing new in it")
            )[:200]
            raise OperationError(f"not pushed: {reason}", rule="git.push")
        return Outcome(
            {"ref": operation.target, "old": operation.old, "new": operation.new, "url": operation.url, "text": said}
        )

    async def execute(self, grant: Grant, operation: Base, meter: Meter) -> Outcome | Redirect:
        """Carry one operation out; raises as the carriers do."""
        if isinstance(operation, CallTool):
            if self._tools is None:
                raise OperationError("no external tool is attached to this pod", rule="tools.none")
            return await self._tools.call(grant, operation, meter)
        if isinstance(operation, Run) and operation.files:
            await self._compartment.wait(alone=True)
            with self._compartment.entered(alone=True):  # so that nothing changes them between here and there
                if await self._named(operation) != operation.files:
                    raise OperationError("a file that the command names has changed since", rule="approval.changed")
                return await self._hands.execute(grant, operation, meter)
        if operation.effect and not operation.egress:
            await self._compartment.wait(alone=False)
            with self._compartment.entered(alone=False):
                return await self._hands.execute(grant, operation, meter)
        if not operation.egress:
            return await self._hands.execute(grant, operation, meter)
        if self._egress is None:
            raise NoEgressError("no egress in this pod", rule="pod.egress")
        if isinstance(operation, Connect):
            return await self._egress.carry(grant, operation, meter)
        if isinstance(operation, WebFetch):
            return await self._egress.fetch(grant, operation, meter)
        if isinstance(operation, WebSearch):
            return await self._egress.search(grant, operation, meter)
        if isinstance(operation, CreatePr):
            return await self._egress.pull(grant, operation, meter)
        if isinstance(operation, GitPush):
            await self._compartment.wait(alone=True)
            with self._compartment.entered(alone=True):
                return await self._push(self._egress, grant, operation, meter)
        raise NoEgressError(f"nothing here carries {getattr(operation, 'kind', '')} yet", rule="pod.egress")
