"""The only interpreter of the pipeline's effects.

Promises: effects are performed in the order in which they are yielded, each at most once; a caller that goes away
interrupts only the waits that are theirs (asking a person, executing): Settle and Append always run to their end.
Reserve and Settle are sent at once and their answers awaited with the Append that follows each: one round trip, one
transaction and one sync instead of two. The authority answers in order and refuses an intent without its fresh
reservation, and an outcome without its settlement, so nothing runs, and nothing is answered, on an unconfirmed one.
A reservation that carries an approval's token is awaited by itself, and so is one that takes what there is.
A pod whose requests fill the log faster than `LOG_RATE` waits at the door, before its next request is taken up: the
disk under the log is every pod's.
Relies on: `gate.pipeline` for what happens in which order, the authority and the executor for doing it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Protocol

from nucleus.errors import NucleusError, SandboxError
from nucleus.gate import effects as fx
from nucleus.gate.pipeline import Gate, Request, handle
from nucleus.model.decision import Decision
from nucleus.model.grant import Grant
from nucleus.model.operation import Base, Glob, Grep, Run
from nucleus.model.principal import Principal
from nucleus.model.receipt import Meter, Outcome, Redirect, Reply
from nucleus.server.authority import Answer, Authority
from nucleus.server.lease import Lease
from nucleus.server.wire import parse_operation

Seam = Callable[[str], None]
Parse = Callable[[dict[str, Any]], Base]
Output = Callable[[str, bytes], None]
Progress = Callable[[int, int], None]
STREAM_BYTES = 1 << 20  # that who is told may be behind before it gets the rest with the reply
LOG_BURST = 33_554_432  # bytes of records that a pod may cause at once
LOG_RATE = 524_288  # and for each second after that
_RECORD = 700  # bytes of a record besides its operation


class Carrier(Protocol):
    """Carries out what was decided; spends the grant first."""

    async def execute(self, grant: Grant, operation: Base, meter: Meter) -> Outcome | Redirect:
        """Carry one operation out."""
        ...

    async def resolve(self, operation: Base) -> Base:
        """Find out what an operation is about that says so only by name; nothing is changed."""
        ...


class Driver:
    """Runs pipelines for one pod.

    Args:
        gate: what the pipeline knows of the pod.
        decide: the one decision function, with policy and context bound; who asks is the principal of `Authenticate`.
        authority, executor: the two that effects go to.
        new_id: makes unique ids (32 hex digits).
        seam: told each step before and after it is performed (``before:Reserve``, ``after:Append:intent``); tests
            end the process there. Does nothing in production.
    """

    def __init__(
        self,
        gate: Gate,
        decide: Callable[[Base, Principal], Decision],
        authority: Authority,
        executor: Carrier,
        new_id: Callable[[], str],
        seam: Seam | None = None,
    ) -> None:
        self._gate = gate
        self._decide = decide
        self._authority = authority
        self._executor = executor
        self._new_id = new_id
        self._seam = seam
        self._jobs: set[asyncio.Task[Reply]] = set()
        self._logged = 0.0  # bytes above what LOG_RATE has paid for
        self._logged_at = 0.0

    async def run(
        self,
        raw: dict[str, Any] | NucleusError,
        authenticate: Callable[[], Principal],
        parse: Parse = parse_operation,
        output: Output | None = None,
        progress: Progress | None = None,
    ) -> Reply:
        """One request through the pipeline. When the caller is cancelled the pipeline still reaches its end.

        Args:
            raw: the parsed JSON object, or why there is none: refused and recorded as any invalid request.
            authenticate: who asks; raises UnauthenticatedError.
            parse: reads `raw`: what may be asked at a door, or what the gateway asks.
            output: told what a command writes while it runs. The reply has all of it again: whoever is told shows it
                before its outcome is on record; its intent is.
            progress: told how far a search is: files and bytes so far.
        """
        while (wait := self._log_debt_s()) > 0:  # noqa: ASYNC110 - a debt is paid by time alone
            await asyncio.sleep(wait)
        broken = raw if isinstance(raw, NucleusError) else None
        request = Request(self._new_id(), self._new_id(), {} if isinstance(raw, NucleusError) else raw)
        job = _Job(self, request, authenticate, broken, parse, output, progress)
        task = asyncio.ensure_future(job.run())
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            job.abandon()
            raise

    def _log_debt_s(self) -> float:
        """How long until the next request may be taken up."""
        now = asyncio.get_running_loop().time()
        self._logged = max(0.0, self._logged - (now - self._logged_at) * LOG_RATE)
        self._logged_at = now
        return (self._logged - LOG_BURST) / LOG_RATE

    def _log_took(self, record: dict[str, Any]) -> None:
        self._logged += _RECORD + len(json.dumps(record.get("operation")))

    async def drain(self) -> None:
        """Wait for the pipelines that still settle and append."""
        while self._jobs:
            await asyncio.gather(*self._jobs, return_exceptions=True)


class _Job:
    """One request on its way."""

    def __init__(
        self,
        driver: Driver,
        request: Request,
        authenticate: Callable[[], Principal],
        broken: NucleusError | None,
        parse: Parse,
        output: Output | None,
        progress: Progress | None,
    ) -> None:
        self._output = output
        self._progress = progress
        self._driver = driver
        self._broken = broken
        self._request = request
        self._authenticate = authenticate
        self._parse = parse
        self._gone = False
        self._ahead: list[Answer] = []
        self._interruptible: asyncio.Task[Any] | None = None

    def abandon(self) -> None:
        """The caller went away."""
        self._gone = True
        self._output = self._progress = None
        if self._interruptible is not None:
            self._interruptible.cancel()

    async def run(self) -> Reply:
        steps = handle(self._request, self._driver._gate)
        seam = self._driver._seam
        try:
            effect = next(steps)
            while True:
                if seam is not None:
                    seam(f"before:{_name(effect)}")
                try:
                    result = await self._perform(effect)
                except (NucleusError, fx.ClientGone) as error:
                    effect = steps.throw(error)
                    continue
                except Exception as error:  # noqa: BLE001 - a bug of ours must not skip Settle and Append
                    effect = steps.throw(SandboxError(f"internal error: {type(error).__name__}", rule="gate.bug"))
                    continue
                if seam is not None:
                    seam(f"after:{_name(effect)}")
                effect = steps.send(result)
        except StopIteration as stop:
            reply: Reply = stop.value
            return reply

    async def _perform(self, effect: fx.Effect) -> Any:
        driver = self._driver
        authority = driver._authority
        match effect:
            case fx.Authenticate():
                return self._authenticate()
            case fx.Validate(raw):
                if self._broken is not None:
                    raise self._broken
                return self._parse(raw)
            case fx.Resolve(operation):
                return await self._interrupt(driver._executor.resolve(operation))
            case fx.Decide(operation, principal):
                return driver._decide(operation, principal)
            case fx.Ask(operation, principal, decision, display, scopes):
                shown = {"rule": decision.rule, "reason": decision.reason, "obligations": list(decision.obligations)}
                return await self._interrupt(authority.ask(operation, principal.spiffe_id, shown, display, scopes))
            case fx.Reserve(reservation, amount, operation_hash, principal, token, least):
                if self._gone:
                    raise fx.ClientGone
                if least:
                    held = authority.reserve(reservation, amount, operation_hash, principal.spiffe_id, token, least)
                    return int((await authority.finish(held))["held"])
                return await self._hold(
                    authority.reserve(reservation, amount, operation_hash, principal.spiffe_id, token), bool(token)
                )
            case fx.Append(_, record):
                ahead, self._ahead = self._ahead, []
                driver._log_took(record)
                return int((await authority.finish(*ahead, authority.append(record)))["seq"])
            case fx.Execute(grant, operation, meter, held, short):
                if short:
                    meter.more = partial(Lease(authority, self._request.reservation, held, short).more, meter)
                if self._output is not None and isinstance(operation, Run):
                    meter.output = self._wrote
                elif self._progress is not None and isinstance(operation, Glob | Grep):
                    meter.progress = self._searched
                return await self._interrupt(driver._executor.execute(grant, operation, meter))
            case fx.Settle(reservation, actual):
                return await self._hold(authority.settle(reservation, actual), False)
            case fx.Release(reservation):
                return await authority.release(reservation)
            case fx.Reply():
                return None

    def _wrote(self, name: str, data: bytes) -> None:
        if self._output is not None:
            self._output(name, data)

    def _searched(self, files: int, size: int) -> None:
        if self._progress is not None:
            self._progress(files, size)

    async def _hold(self, answer: Answer, now: bool) -> None:
        """A change of the ledger whose answer is awaited with the record that follows it (see the module)."""
        self._ahead.append(answer)
        if now:
            ahead, self._ahead = self._ahead, []
            await self._driver._authority.finish(*ahead)

    async def _interrupt(self, wait: Coroutine[Any, Any, Any]) -> Any:
        """Wait for what the caller waits for; ClientGone when they go away."""
        if self._gone:
            wait.close()
            raise fx.ClientGone
        self._interruptible = asyncio.ensure_future(wait)
        try:
            return await self._interruptible
        except asyncio.CancelledError:
            if self._gone:
                raise fx.ClientGone from None
            raise
        finally:
            self._interruptible = None


def _name(effect: fx.Effect) -> str:
    name = type(effect).__name__
    return f"{name}:{effect.step}" if isinstance(effect, fx.Append) else name
