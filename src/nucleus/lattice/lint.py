"""What a valid policy says in vain: entries that can never matter, and conditions that nothing here can meet.

Promises: cheap, pure, sound: what is reported never matters (or is never met); not complete.
Does not: refuse anything. A policy with warnings is valid.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nucleus.lattice import capability as cap
from nucleus.lattice.implies import caught_by, glob_covered, host_covered
from nucleus.lattice.policy import FLOORS, Everything, Policy

_OFFERED = FLOORS[:3]  # the rungs of this version; stronger floors refuse every pod


def warnings(policy: Policy, now_ns: int) -> list[str]:
    """One line for each finding.

    Args:
        now_ns: wall clock, nanoseconds since the epoch.
    """
    return [*_conditions(policy, now_ns), *_lists(policy), *_unused(policy)]


def _conditions(policy: Policy, now_ns: int) -> Iterator[str]:
    if policy.isolation_floor not in _OFFERED:
        yield f"isolation.floor: {policy.isolation_floor} is not in this version: no pod can be made under this policy"
    window = policy.time_window
    if not isinstance(window.not_after_ns, Everything):
        if window.not_after_ns <= window.not_before_ns:
            yield "time_window: not_after is not after not_before: everything is denied"
        elif window.not_after_ns <= now_ns:
            yield "time_window: not_after has passed: everything is denied"
    if policy.budget_limit == 0:
        yield "budget.limit_usd: nothing that costs can run"


def _lists(policy: Policy) -> Iterator[str]:
    for glob in _entries(policy.paths_allow):
        if glob_covered(glob, policy.paths_block, fold=True):
            yield f"paths.allow: {glob} never matters: paths.block covers it"
    for host in _entries(policy.hosts_allow):
        for name, lines in (("deny", policy.hosts_deny), ("ask", policy.hosts_ask)):
            if host_covered(host, lines):
                yield f"hosts.allow: {host} never matters: hosts.{name} covers it"
                break
    for host in sorted(policy.hosts_ask):
        if host_covered(host, policy.hosts_deny):
            yield f"hosts.ask: {host} never matters: hosts.deny covers it"
    for rule in _entries(policy.commands_allow):
        for name, rules in (("deny", policy.commands_deny), ("ask", policy.commands_ask)):
            if caught_by(rule, rules):
                yield f"commands.allow: {rule} never matters: commands.{name} covers it"
                break
    for rule in sorted(policy.commands_ask, key=str):
        if caught_by(rule, policy.commands_deny):
            yield f"commands.ask: {rule} never matters: commands.deny covers it"
    for globs in () if isinstance(policy.paths_allow, Everything) else policy.paths_allow:
        if not globs:
            yield "paths.allow: an empty list allows no path at all"


def _unused(policy: Policy) -> Iterator[str]:
    if cap.level(policy.capabilities, "run_bash") == cap.NEVER:
        for name in ("ask", "deny"):
            if getattr(policy, f"commands_{name}"):
                yield f"commands.{name} never matters: capabilities.run_bash is never"
    if all(cap.level(policy.capabilities, name) == cap.NEVER for name in ("web_fetch", "run_bash")):
        for name in ("ask", "deny"):
            if getattr(policy, f"hosts_{name}"):
                yield f"hosts.{name} never matters: capabilities.web_fetch and run_bash are never"


def _entries(allow: Any) -> list[Any]:
    """Every entry of an allow list's lists, sorted by its text."""
    if isinstance(allow, Everything):
        return []
    return sorted({entry for items in allow for entry in items}, key=str)
