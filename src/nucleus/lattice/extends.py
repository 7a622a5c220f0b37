"""A policy that extends a bundled one: what it leaves out is its parent's, and what it says can only tighten.

The result is meet(ν(parent), child), as for a child pod (`delegate`), made in these steps:

 1. `settled`: where the parent's modes hold ``static``, what ν asks for becomes an ``approve`` of the child, and each
    declared tool that could carry data out asks too: a child that leaves a leg of the trifecta out loses no ask.
    ν is taken for an untrusted workspace. `run_bash` keeps its own condition: with egress it is all three legs by
    itself, so its ask cannot be lost, and without egress there is none. Parents with other modes need no ν: those ask
    by what a session has seen and by what one operation does, not by what is enabled, and their modes stay in force.
 2. what the child does not say is taken from there; what it says is refused, with its place, where it is looser
 3. the meet; lists of the parent stay in force beside the child's
 4. `keep_asks`: an ask that hangs on what earlier pods of the session have seen, and that the child would lose, stays

Promises: in every context the child decides at most what its parent decides; nothing is loosened in silence.
Does not: know YAML's shapes (`load`), or where the profiles lie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from nucleus.lattice import capability as cap
from nucleus.lattice import identities as ids
from nucleus.lattice.explain import dollars, duration
from nucleus.lattice.implies import admitted, caught_by, glob_covered, host_covered
from nucleus.lattice.network import NetRule, leq_rule
from nucleus.lattice.policy import (
    FLOORS,
    CommandRule,
    Everything,
    Policy,
    ToolRule,
    asking,
    leq_tool,
    live_legs,
    meet,
    modes,
    normalize,
    tool_rule,
)

_UNDER = cap.legs(egress=False, trusted_workspace=False)
_SEEN = (0, cap.PRIVATE, cap.UNTRUSTED, cap.PRIVATE | cap.UNTRUSTED)


def settled(parent: Policy) -> Policy:
    """Step 1."""
    return normalize(parent, _UNDER)


def _tools_ask(policy: Policy, with_legs: cap.Legs, legs: int) -> bool:
    """Does mode ``static`` ask for a tool that could carry data out?"""
    return bool(cap.trifecta(policy.capabilities, with_legs, legs | cap.EXFILTRATION))


def combine(parent: Policy, child: Policy) -> Policy:
    """Steps 3 and 4.

    Args:
        parent: as `settled` left it.
        child: complete, and refused where it is looser.
    """
    return keep_asks(parent, meet(parent, child))


def keep_asks(parent: Policy, child: Policy) -> Policy:
    """Step 4. `child` is at most `parent` but for the asks of ν."""
    if "static" not in modes(parent.trifecta):
        return child
    lost, tools = 0, False
    for egress, trusted, seen in ((e, t, s) for e in (False, True) for t in (False, True) for s in _SEEN):
        with_legs = cap.legs(egress=egress, trusted_workspace=trusted)
        mine, theirs = live_legs(child) | seen, live_legs(parent) | seen
        lost |= cap.nu(child.capabilities, with_legs, mine) & ~cap.nu(parent.capabilities, with_legs, theirs)
        tools |= _tools_ask(parent, with_legs, theirs) and not _tools_ask(child, with_legs, mine)
    return replace(
        child,
        capabilities=child.capabilities & ~(lost >> cap.UNATTENDED << cap.UNATTENDED),
        tools=asking(child.tools) if tools else child.tools,
    )


# --- step 2: what the child's words may not say; each returns the problem, or "" ---


def looser_level(parent: Policy, name: str, level: int) -> str:
    """A capability's level."""
    has = cap.level(parent.capabilities, name)
    if cap.leq(level, has):
        return ""
    return _says(parent, f"capabilities.{name}: {cap.LEVEL_NAMES[level]}", cap.LEVEL_NAMES[has])


def looser_glob(parent: Policy, glob: str) -> str:
    """An entry of ``paths.allow``."""
    if glob_covered(glob, parent.paths_block, fold=True):
        return _says(parent, f"paths.allow: {glob}", "paths.block, which wins")
    return ""


def looser_host(parent: Policy, host: str) -> str:
    """An entry of ``hosts.allow``."""
    for name, lines in (("deny", parent.hosts_deny), ("ask", parent.hosts_ask)):
        if host_covered(host, lines):
            return _says(parent, f"hosts.allow: {host}", f"hosts.{name}, which wins")
    return ""


def looser_rule(parent: Policy, rule: CommandRule) -> str:
    """An entry of ``commands.allow``."""
    for name, rules in (("deny", parent.commands_deny), ("ask", parent.commands_ask)):
        if caught_by(rule, rules):
            return _says(parent, f"commands.allow: {rule}", f"commands.{name}, which wins")
    return ""


def _listed_glob(entry: str, entries: frozenset[str]) -> bool:
    return glob_covered(entry, entries)


def _listed_host(entry: str, entries: frozenset[str]) -> bool:
    return host_covered(entry, entries)


def _listed_rule(entry: CommandRule, entries: frozenset[CommandRule]) -> bool:
    # A set's condition (nothing that leaves the program's job) stays in force with the parent's list.
    return admitted(entry, entries, flagged=False)


# Does the parent's list imply an entry of the child's?
LISTED: dict[str, Callable[..., bool]] = {
    "paths.allow": _listed_glob, "hosts.allow": _listed_host, "commands.allow": _listed_rule,
}  # fmt: skip


def looser_entry(parent: Policy, what: str, entry: object, entries: frozenset[object]) -> str:
    """The problem of an entry that the parent's list does not imply."""
    has = ", ".join(sorted(map(str, entries))) or "nothing"
    return _says(parent, f"{what}: {entry}", has if len(has) <= 200 else has[:199] + "…")


def looser_everything(parent: Policy, what: str) -> str:
    """``everything`` where the parent has lists."""
    return _says(parent, f"{what}: everything", "a list")


def looser_budget(parent: Policy, limit: int, text: str) -> str:
    """A larger budget. Micro-dollars."""
    if limit <= parent.budget_limit:
        return ""
    return _says(parent, f"budget.limit_usd: {text}", dollars(parent.budget_limit))


def looser_duration(parent: Policy, duration_ns: int, text: str) -> str:
    """A longer window."""
    if duration_ns <= parent.time_window.duration_ns:
        return ""
    return _says(parent, f"time_window.duration: {text}", duration(parent.time_window.duration_ns))


def looser_moment(parent: Policy, key: str, value: int) -> str:
    """An earlier beginning or a later end."""
    window = parent.time_window
    if key == "not_before":
        looser = value < window.not_before_ns
    else:
        looser = not isinstance(window.not_after_ns, Everything) and value > window.not_after_ns
    return _says(parent, f"time_window.{key}", "a narrower window") if looser else ""


def looser_floor(parent: Policy, floor: str) -> str:
    """A weaker isolation floor."""
    if FLOORS.index(floor) >= FLOORS.index(parent.isolation_floor):
        return ""
    return _says(parent, f"isolation.floor: {floor}", parent.isolation_floor)


def looser_identity(parent: Policy, subject: str, pattern: str) -> str:
    """An entry of ``identities`` that some list of the parent's does not cover."""
    for patterns in ids.lists_of(parent.identities, subject):
        if not ids.covered(pattern, patterns):
            has = ", ".join(sorted(patterns)) or "nobody"
            return _says(parent, f"identities.{subject}: {pattern}", has if len(has) <= 200 else has[:199] + "…")
    return ""


def looser_connection(parent: Policy, rule: NetRule) -> str:
    """A rule of ``network.allow`` that some list of the parent's does not cover."""
    for rules in sorted(parent.network, key=lambda found: sorted(map(str, found))):
        # Whether it asks is the meet's business: the parent's ask stays.
        if not any(leq_rule(replace(rule, approve=True), theirs) for theirs in rules):
            has = ", ".join(sorted(map(str, rules))) or "nothing"
            return _says(parent, f"network.allow: {rule}", has if len(has) <= 200 else has[:199] + "…")
    return ""


def looser_tool(parent: Policy, rule: ToolRule) -> str:
    """A tool that is declared less strictly; one that the parent does not declare asks for each call there."""
    server = rule.name.partition("/")[0]
    for table in parent.tools:
        for name in dict.fromkeys((rule.name, *_exact(table, rule.name))):
            has = tool_rule(table, server, name.partition("/")[2])
            if leq_tool(rule, has):
                continue
            if not has.name:
                step = "every call asks; forbid it with `level: never`, or declare it in a policy without `extends`"
                return _says(parent, f"tools.{rule.name}", f"nothing of it, so {step}")
            return _says(parent, f"tools.{rule.name}", f"{has.name}: {_declared(has)}")
    return ""


def _exact(table: frozenset[ToolRule], name: str) -> Iterator[str]:
    """What else `name` would speak for: with a star, all of the server's."""
    if name.endswith("/*"):
        yield from sorted(rule.name for rule in table if rule.name.startswith(name[:-1]))


def _declared(rule: ToolRule) -> str:
    legs = ", ".join(name for name, bit in cap.LEG_NAMES.items() if rule.legs & bit)
    text = f"level {cap.LEVEL_NAMES[rule.level]}, legs [{legs}], destination [{', '.join(rule.destination)}]"
    text += f", names [{', '.join(rule.names)}]" if rule.names else ""
    text += f", members [{', '.join(rule.members)}]" if rule.members else ""
    return text + (", approve" if rule.approve else "")


def inherited(parent: Policy, rules: frozenset[ToolRule]) -> frozenset[frozenset[ToolRule]]:
    """The child's table, once for each of the parent's, with what it does not speak of taken from there."""
    said = {rule.name for rule in rules}
    return frozenset(
        rules | {rule for rule in table if rule.name not in said and f"{rule.name.partition('/')[0]}/*" not in said}
        for table in parent.tools
    )


def _says(parent: Policy, child: str, has: str) -> str:
    return f"{child} is looser than the profile that this policy extends; {parent.name} says: {has}"
