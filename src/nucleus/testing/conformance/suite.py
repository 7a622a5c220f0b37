"""`run`: the whole suite, or its short form, against one backend of this machine.

Promises: every check is in the report, also where no pod could be made; pods and builder are gone when it returns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from nucleus.errors import NucleusError
from nucleus.testing.conformance import commands, containment, lifecycle, workspace
from nucleus.testing.conformance.bed import Bed, FailedError
from nucleus.testing.conformance.frame import Check, Outcome, Report, carry_out

Tell = Callable[[Outcome], None]


def checks(*, short: bool = False) -> list[str]:
    """The names of all checks, in their order."""
    every = [*commands.checks.all, *workspace.checks.all, *containment.CHECKS, *lifecycle.PAIR, *lifecycle.CHECKS]
    return [check.name for check in every if check.short or not short]


def run(backend: str, *, short: bool = False, tell: Tell = lambda outcome: None) -> Report:
    """Try a backend.

    Args:
        backend: a name of `nucleus.pod.spec.LADDER`.
        short: only the checks that matter most (a few seconds).
        tell: called with each outcome as it comes.
    """
    outcomes: list[Outcome] = []
    isolation: dict[str, Any] = {}

    def group(subject: Callable[[], Any], members: Sequence[Check]) -> Any:
        wanted = [check for check in members if check.short or not short]
        made: Any = None
        reason = ""
        try:
            made = subject() if wanted else None
        except (NucleusError, FailedError, OSError) as error:
            reason = f"no pod: {error}"
        for check in wanted:
            outcomes.append(carry_out(check, made) if not reason else Outcome(check.name, "failed", reason))
            tell(outcomes[-1])
        return made

    bed = Bed(backend)
    try:
        workspace.prepare(bed)
        lifecycle.prepare(bed)
        pod = group(bed.pod, commands.checks.all)
        group(lambda: pod, workspace.checks.all)
        group(lambda: containment.Probed(pod, bed), containment.CHECKS)
        if pod is not None:
            isolation = pod.isolation
            with suppress(NucleusError):
                bed.end(pod)
        two = group(lambda: lifecycle.Two(bed), lifecycle.PAIR)
        for each in (two.one, two.two) if two is not None else ():
            with suppress(NucleusError):
                bed.end(each)
        group(lambda: lifecycle.Ended(bed), lifecycle.CHECKS)
    finally:
        bed.close()
    return Report(backend, isolation, tuple(outcomes))
