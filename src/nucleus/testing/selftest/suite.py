"""`run`: all probes, one after another, against pods of a private builder.

Promises: it returns a report, also where no pod can be made, in about a minute; pods, builder and directory are gone
when it returns.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from nucleus.errors import NucleusError
from nucleus.lattice.policy import Policy
from nucleus.testing.conformance.bed import FailedError, LivePod, NotHereError, Ran, Refused, ran
from nucleus.testing.selftest import approval, inside, tamper
from nucleus.testing.selftest import policy as own
from nucleus.testing.selftest.finding import UNCHECKED, Finding, Findings, Report
from nucleus.testing.selftest.ground import Ground, Person

SECONDS = 90.0  # after this, probes that have not begun are not


def run(
    text: str, source: str, policy: Policy, workspace: str = "", tell: Callable[[Finding], None] = lambda found: None
) -> Report:
    """Try a policy on this machine.

    Args:
        text, source: the policy's, as a pod is made with it; `policy` is what it means.
        workspace: a directory whose names show what is blocked there; it is not opened further.
        tell: called with each finding as it comes.
    """
    began = time.monotonic()
    findings = Findings(tell, began + SECONDS)
    ground = Ground()
    isolation: dict[str, Any] = {}
    try:
        ground.host  # noqa: B018 -- made before any pod is
        names, without = own.blocked_names(policy, workspace)
        directory = ground.scratch("scratch")
        names = own.plant(directory, names, ground.host.secret)
        told = inside.config(ground, policy)
        try:
            out, isolation = ground.agent(text, source, directory, inside.script(), json.dumps(told))
            inside.judge(findings, "agent", inside.read_answers(out), told)
        except (NucleusError, FailedError, NotHereError, OSError) as error:
            inside.unchecked(findings, "agent", str(error))
        try:
            pod = ground.open(text, source, directory)
        except (NucleusError, OSError) as error:
            findings.add("policy", "all probes of the policy", "the gate", UNCHECKED, f"no pod: {error}")
        else:
            _with_pod(findings, ground, pod, policy, told, names, without)
            isolation = isolation or pod.isolation
            ground.finish(pod)
        inside.on_the_host(findings, ground)
        approval.probe(findings, ground)
        ground.stop()
        tamper.probe(findings, ground)
    finally:
        ground.close()
    return Report(source, isolation, tuple(findings.all), tuple(limits()), time.monotonic() - began)


def _with_pod(
    findings: Findings, ground: Ground, pod: LivePod, policy: Policy, told: dict[str, Any], names: list[str],
    without: list[str],
) -> None:  # fmt: skip
    rung = str(pod.isolation.get("backend", "namespaces"))
    try:
        with Person(ground, pod, lambda _: "approve") as person:
            own.probe(findings, ground, pod, policy, names, without)
            _as_command(findings, pod, told)
            person.answer = lambda _: "deny"
            own.outward(findings, pod, policy, rung)
    except (NucleusError, FailedError, OSError) as error:
        findings.add("policy", "the rest of the policy's probes", "the gate", UNCHECKED, str(error))


def _as_command(findings: Findings, pod: LivePod, told: dict[str, Any]) -> None:
    """The hijacked program once more, as a command: another compartment, another filter."""
    try:
        argv = ["/usr/bin/python3", "-I", "-", json.dumps(told)]
        result = pod.operate(kind="run", argv=argv, stdin=inside.script(), timeout_ms=30_000)
        if isinstance(result, Refused):
            # No command at all runs under this policy. Where only this one does not, another may.
            if result.kind == "denied" and result.rule.startswith("capabilities."):
                tried = "all probes as a command"
                findings.add("containment.command", tried, "gate: policy", "holds", f"{result.kind}: {result.rule}")
                return
            raise NotHereError(f"the policy does not let the probes run as a command: {result.kind}: {result.rule}")
        inside.judge(findings, "command", inside.read_answers(_ended(ran(result))), told)
    except (NucleusError, FailedError, NotHereError) as error:
        inside.unchecked(findings, "command", str(error))


def _ended(done: Ran) -> bytes:
    if done.code != 0:
        raise NotHereError(f"the probes ended with {done.code}, signal {done.signal}: {done.err[-200:]!r}")
    return done.out


def limits() -> list[str]:
    """What a pod would be without on this machine, and what to do about it."""
    from nucleus.pod.detect import detect

    lines = []
    for fact in detect():
        if not fact.ok and fact.name != "kvm":
            step = f" Next: {fact.next_step}" if fact.next_step else ""
            lines.append(f"{fact.name}: {fact.detail} (for {fact.needed_for}).{step}")
    return lines
