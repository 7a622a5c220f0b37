"""Probes of approvals and of the budget, on this machine's authority, with policies of the selftest's own.

Promises: what did not run is judged by the workspace on the host, not by the answer.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Any

from nucleus.cli.approvals import Approver
from nucleus.errors import NucleusError
from nucleus.sdk import wire
from nucleus.testing.conformance.bed import FailedError, LivePod, NotHereError, Refused
from nucleus.testing.selftest.finding import Findings
from nucleus.testing.selftest.ground import Ground, Person

ASKS = """\
version: 1
name: selftest-asks
capabilities: {read_files: always, write_files: always, run_bash: always}
approve: [run_bash]
commands: {allow: everything}
budget: {limit_usd: "1.00"}
"""
POOR = """\
version: 1
name: selftest-budget
capabilities: {read_files: always, write_files: always, run_bash: always}
commands: {allow: everything}
budget: {limit_usd: "0.02"}
"""
LAYER, BUDGET = "authority: approvals", "authority: budget"
RUNS = 200  # more than 2 cents pay for


def _run(name: str) -> dict[str, Any]:
    return {"kind": "run", "argv": ["/usr/bin/touch", name], "timeout_ms": 20_000}


class Case:
    """One pod whose every command asks."""

    def __init__(self, ground: Ground) -> None:
        self.ground, self.directory = ground, ground.scratch("approvals")
        self.pod: LivePod = ground.open(ASKS, "the selftest", self.directory, trust_workspace=True)

    def ran(self, name: str) -> bool:
        """Seen from the host."""
        return os.path.exists(f"{self.directory}/{name}")

    def refused(self, operation: dict[str, Any], name: str) -> str:
        """It is refused and has not run. Raises FailedError."""
        result = self.pod.operate(**operation)
        if self.ran(name):
            raise FailedError("the command ran")
        if not isinstance(result, Refused):
            raise FailedError("it was answered as if it had run")
        return f"{result.kind}: {result.rule}; it did not run"

    def nobody(self) -> str:
        return self.refused(_run("nobody"), "nobody")

    def denied(self) -> str:
        with Person(self.ground, self.pod, lambda _: "deny") as person:
            said = self.refused(_run("denied"), "denied")
        if not person.requests:
            raise FailedError("nobody was asked")
        return said

    def itself(self) -> str:
        """The pod's side answers its own request, with the words an approver would use, on the channel that it has."""

        def forge(request: dict[str, Any]) -> str:
            for number, op in enumerate(("approve", "answer")):
                self.pod._opened.gate.sendall(
                    wire.encode({"id": 900 + number, "op": op, "request": request["request"]})
                )
            time.sleep(0.3)
            return "deny"

        with Person(self.ground, self.pod, forge) as person, suppress(FailedError, NucleusError):
            self.pod.operate(**_run("itself"))
        if self.ran("itself"):
            raise FailedError("the command ran")
        if not person.requests:
            raise NotHereError("nobody was asked")
        self.ground.finish(self.pod)  # a gate hangs up on who speaks so
        self.pod = self.ground.open(ASKS, "the selftest", self.directory, trust_workspace=True)
        return "its channel knows no such word; it did not run"

    def once(self) -> str:
        with Person(self.ground, self.pod, lambda _: "approve") as person:
            if isinstance(result := self.pod.operate(**_run("once")), Refused) or not self.ran("once"):
                raise NotHereError(f"a yes did not let it run: {result}")
            os.unlink(f"{self.directory}/once")
            person.answer = lambda _: "deny"
            said = self.refused(_run("once"), "once")
            if len(person.requests) != 2:
                raise FailedError("the second time nobody was asked")
        return f"the yes was for one time; the second time: {said}"

    def replayed(self) -> str:
        with Person(self.ground, self.pod, lambda _: "approve") as person:
            self.pod.operate(**_run("first"))
            if not person.requests:
                raise NotHereError("nobody was asked")
            used = person.requests[0]["request"]
        approver = Approver(self.ground.launcher.attach_approver())
        try:
            approver.call("approve", request=used, reason="again")
        except NucleusError as error:
            return f"{error.code}: {error.rule}"
        finally:
            approver.close()
        raise FailedError("a request that was answered took a second yes")

    def changed(self) -> str:
        script = f"{self.directory}/script.sh"
        with open(script, "w", encoding="ascii") as file:
            file.write("#!/bin/sh\n: >honest\n")

        def swap(_: dict[str, Any]) -> str:
            with open(script, "w", encoding="ascii") as file:
                file.write("#!/bin/sh\n: >swapped\n")
            return "approve"

        operation = {"kind": "run", "argv": ["/bin/sh", "script.sh"], "timeout_ms": 20_000}
        with Person(self.ground, self.pod, swap):
            return self.refused(operation, "swapped")


def probe(findings: Findings, ground: Ground) -> None:
    """All of it."""
    try:
        case = Case(ground)
    except NucleusError as error:
        findings.add("approval", "all probes of approvals", LAYER, "not checked", f"no pod: {error}")
    else:
        for name, tried in (
            ("nobody", "a command that asks, and nobody is there"),
            ("denied", "a command that a person denies"),
            ("itself", "the agent's side answers its own request"),
            ("once", "a command once more, after one yes"),
            ("replayed", "a second yes to a request that was answered"),
            ("changed", "a script that is changed between question and yes"),
        ):
            findings.attempt(f"approval.{name}", tried, LAYER, getattr(case, name))
        ground.finish(case.pod)
    findings.attempt("budget.limit", "commands until 2 cents are spent", BUDGET, lambda: _spend(ground))


def _spend(ground: Ground) -> str:
    directory = ground.scratch("budget")
    pod = ground.open(POOR, "the selftest", directory, trust_workspace=True)
    try:
        for number in range(RUNS):
            name = f"run{number}"
            result = pod.operate(**_run(name) | {"timeout_ms": 100_000})
            if isinstance(result, Refused):
                if os.path.exists(f"{directory}/{name}"):
                    raise FailedError("the refused command ran")
                if result.kind != "budget_exhausted":
                    raise NotHereError(f"{result.kind}: {result.rule}")
                return f"{result.kind}: {result.rule}, after {number} commands; the next did not run"
        raise FailedError(f"{RUNS} commands ran")
    finally:
        ground.finish(pod)
