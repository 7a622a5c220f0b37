"""A policy, and one decision, in plain text for a person. Pure; secrets cannot occur in either."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nucleus.lattice import capability as cap
from nucleus.lattice import identities as ids
from nucleus.lattice.paths import SENSITIVE
from nucleus.lattice.policy import NOWHERE, Everything, Policy, ToolRule, live_legs, modes
from nucleus.model.decision import Decision, Verdict

_NS = 1_000_000_000


def dollars(micro: int) -> str:
    """Micro-dollars as dollars, at least two decimals."""
    text = f"{micro // 1_000_000}.{micro % 1_000_000:06d}"
    head, tail = text[:-4], text[-4:].rstrip("0")
    return head + tail


def duration(nanoseconds: int) -> str:
    """Nanoseconds as the largest whole unit."""
    seconds = nanoseconds // _NS
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds and seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def folded(globs: Iterable[str]) -> list[str]:
    """Sorted, with the sensitive set folded back to its name."""
    found, known = set(globs), set(SENSITIVE)
    return ["@sensitive", *sorted(found - known)] if found >= known else sorted(found)


def _conjunction(allow: Any) -> Any:
    """An allow list for people: "everything", one list, or several that must all match."""
    if isinstance(allow, Everything):
        return "everything"
    # A name at the root alone is `/name` in `paths.PathSet` and `./name` in a file.
    lists = sorted(sorted(f".{item}" if str(item).startswith("/") else str(item) for item in items) for items in allow)
    return lists[0] if len(lists) == 1 else {"all_of": lists}


def policy_data(policy: Policy) -> dict[str, Any]:
    """The policy as plain data (for ``--json``), with what mode ``static`` does to it in the worst context."""
    normal = policy.capabilities
    if "static" in modes(policy.trifecta):
        normal = cap.nu(normal, cap.WORST, live_legs(policy))
    window = policy.time_window
    return {
        "name": policy.name,
        "description": policy.description,
        "capabilities": {
            name: {
                "level": cap.LEVEL_NAMES[cap.level(policy.capabilities, name)],
                "approve": cap.level(policy.capabilities, name) != cap.NEVER
                and not cap.unattended(policy.capabilities, name),
                "trifecta_asks": cap.unattended(policy.capabilities, name) and not cap.unattended(normal, name),
            }
            for name in cap.NAMES
        },
        "paths": {"allow": _conjunction(policy.paths_allow), "block": folded(policy.paths_block)},
        "commands": {
            "allow": _conjunction(policy.commands_allow),
            "ask": sorted(map(str, policy.commands_ask)),
            "deny": sorted(map(str, policy.commands_deny)),
        },
        "hosts": {
            "allow": _conjunction(policy.hosts_allow),
            "ask": sorted(policy.hosts_ask),
            "deny": sorted(policy.hosts_deny),
        },
        "network": {"allow": _conjunction(policy.network)},
        "tools": _tools(policy.tools),
        "two_people": sorted(policy.two_people),
        "identities": {
            subject: _conjunction(ids.lists_of(policy.identities, subject))
            for subject in sorted({subject for subject, _ in policy.identities})
        },
        "budget_micro_usd": policy.budget_limit,
        "time_window": {
            "duration_s": window.duration_ns // _NS,
            "not_before_s": window.not_before_ns // _NS,
            "not_after_s": None if isinstance(window.not_after_ns, Everything) else window.not_after_ns // _NS,
        },
        "isolation_floor": policy.isolation_floor,
        "trifecta": policy.trifecta,
    }


def _tools(tables: frozenset[frozenset[ToolRule]]) -> Any:
    """The declared tools by name, or several tables that all have their say."""
    found = [{rule.name: _tool(rule) for rule in sorted(table, key=lambda rule: rule.name)} for table in tables]
    found.sort(key=str)
    return found[0] if len(found) == 1 else {"all_of": found}


def _tool(rule: ToolRule) -> dict[str, Any]:
    return {
        "legs": [name for name, bit in cap.LEG_NAMES.items() if rule.legs & bit],
        "destination": list(rule.destination),
        "level": cap.LEVEL_NAMES[rule.level],
        "approve": rule.approve,
        "names": list(rule.names),
        "members": list(rule.members),
    }


def explain_policy(policy: Policy) -> str:
    """The policy as lines, most important first."""
    data = policy_data(policy)
    lines = [f"{policy.name}: {policy.description}".rstrip(": "), ""]
    for name, facts in data["capabilities"].items():
        note = (
            "  asks (approve)"
            if facts["approve"]
            else "  asks in a pod with egress (trifecta)"
            if name == "run_bash"
            else "  asks (trifecta)"
        )
        lines.append(
            f"  {name:12}  {facts['level']:8}{note if facts['approve'] or facts['trifecta_asks'] else ''}".rstrip()
        )
    lines.append("")
    for title in ("paths", "commands", "hosts"):
        for which, value in data[title].items():
            lines.append(f"  {title}.{which}: {_inline(value)}")
    if policy.network != NOWHERE:
        lines.append(f"  network.allow: {_inline(data['network']['allow'])}")
    lines += _tool_lines(policy.tools)
    if policy.two_people:
        lines.append(f"  two people for each yes: {', '.join(sorted(policy.two_people))}")
    if policy.identities != ids.DEFAULT:
        lines += [f"  identities.{subject}: {_inline(value)}" for subject, value in data["identities"].items()]
    lines += [
        f"  budget: ${dollars(policy.budget_limit)}",
        f"  time window: {duration(policy.time_window.duration_ns)} from the pod's start",
        f"  isolation: {policy.isolation_floor} or stronger",
        f"  trifecta: {policy.trifecta}",
    ]
    return "\n".join(lines)


def _tool_lines(tables: frozenset[frozenset[ToolRule]]) -> list[str]:
    lines = []
    for table in sorted(tables, key=lambda table: sorted(rule.name for rule in table)):
        for rule in sorted(table, key=lambda rule: rule.name):
            facts = _tool(rule)
            to = f", destination {', '.join(facts['destination'])}" if rule.destination else ""
            asks = "  asks (approve)" if rule.approve else ""
            lines.append(f"  tool {rule.name}: {facts['level']}; {', '.join(facts['legs']) or 'no leg'}{to}{asks}")
    return lines + (["  other tools: ask each time"] if lines else [])


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return " AND ".join(f"({_inline(items)})" for items in value["all_of"])
    if isinstance(value, str):
        return value
    return ", ".join(value) or "(nothing)"


def explain_decision(decision: Decision) -> str:
    """Verdict, rule, reason, the deciding line, what to do; then each rule that was met, the decisive one marked."""
    lines = [f"{decision.verdict.value}: {decision.reason}", f"  rule: {decision.rule}"]
    if decision.detail:
        lines.append(f"  line: {decision.detail}")
    if decision.obligations:
        lines.append(f"  needs: {', '.join(decision.obligations)}")
    if decision.next_step:
        lines.append(f"  next: {decision.next_step}")
    if decision.met:
        lines.append("  rules met, in order:")
    refused = {rule.partition(".")[0] for rule, verdict in decision.met if verdict is not Verdict.ALLOW}
    # A whole list's "allow" stands there too where one of its entries said otherwise.
    met = [(rule, verdict) for rule, verdict in decision.met if verdict is not Verdict.ALLOW or rule not in refused]
    decided = met.index((decision.rule, decision.verdict)) if met else -1
    for at, (rule, verdict) in enumerate(met):
        lines.append(
            f"  {'>' if at == decided else ' '} {verdict.value:5}  {rule}{'  (decides)' if at == decided else ''}"
        )
    return "\n".join(lines)
