"""A policy made ready for deciding: what would otherwise be worked out again for each operation.

Promises: says nothing that the `Policy` does not say; one per policy object, the last `_KEPT` are kept.
Does not: hold anything about an operation, a context or a caller; no decision is ever remembered.
"""

from __future__ import annotations

from nucleus.lattice import capability as cap
from nucleus.lattice import tables
from nucleus.lattice.paths import PathSet
from nucleus.lattice.policy import Argument, CommandRule, Everything, Policy, live_legs, modes

_KEPT = 64
_LEGS = {
    (egress, trusted): cap.legs(egress=egress, trusted_workspace=trusted)
    for egress in (False, True)
    for trusted in (False, True)
}


class Rules:
    """A list of command rules by program, in the order of their text: a decision always names the same one."""

    __slots__ = ("_group", "_name", "_star")

    def __init__(self, rules: frozenset[CommandRule]) -> None:
        self._name: dict[str, tuple[CommandRule, ...]] = {}
        self._group: dict[str, tuple[CommandRule, ...]] = {}
        self._star: tuple[CommandRule, ...] = ()
        for rule in sorted(rules, key=_order):
            if rule.group:
                for program in tables.SETS[rule.group]:
                    self._group[program] = (*self._group.get(program, ()), rule)
            elif rule.program == "*":
                self._star += (rule,)
            else:
                self._name[rule.program] = (*self._name.get(rule.program, ()), rule)

    def of(self, program: str) -> tuple[CommandRule, ...]:
        """The rules that name `program`; whether they fit its arguments is the caller's question."""
        found = self._name.get(program, ()) + self._star
        if not self._group:
            return found
        group = self._group.get(program)
        if group is None:
            # python3.11 is an interpreter as python3 is.
            group = self._group.get(program.rstrip("0123456789."), ())
        return found + group


def _order(rule: CommandRule) -> tuple[str, str, tuple[Argument, ...] | str]:
    return rule.group, rule.program, str(rule)


class Compiled:
    """See the module.

    Args:
        policy: as parsed.
    """

    __slots__ = (
        "allowed", "ask", "blocked", "deny", "listed", "modes", "normals", "policy", "provenance", "session", "static",
        "tools",
    )  # fmt: skip

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.blocked = PathSet(tuple(sorted(policy.paths_block)), True)
        self.allowed: tuple[tuple[PathSet, str], ...] = ()
        if not isinstance(policy.paths_allow, Everything):
            lists = sorted(tuple(sorted(globs)) for globs in policy.paths_allow)
            self.allowed = tuple((PathSet(globs, False), ", ".join(globs) or "(empty list)") for globs in lists)
        self.deny = Rules(policy.commands_deny)
        self.ask = Rules(policy.commands_ask)
        self.listed: tuple[Rules, ...] | None = None
        if not isinstance(policy.commands_allow, Everything):
            self.listed = tuple(Rules(rules) for rules in policy.commands_allow)
        self.modes = modes(policy.trifecta)
        self.static = "static" in self.modes
        self.session = "session" in self.modes
        self.provenance = "provenance" in self.modes
        self.tools = live_legs(policy)
        self.normals: dict[tuple[bool, bool, int], int] = {}

    def normal(self, egress: bool, trusted: bool, seen: int) -> int:
        """The capabilities as the modes in force leave them: under ν where ``static`` is one of them."""
        key = (egress, trusted, seen)
        value = self.normals.get(key)
        if value is None:
            value = self.policy.capabilities
            if self.static:
                value = cap.nu(value, _LEGS[egress, trusted], self.tools | seen)
            self.normals[key] = value
        return value


_compiled: dict[int, Compiled] = {}


def compiled(policy: Policy) -> Compiled:
    """The compiled form of `policy`. The entry keeps the policy alive, so its id cannot come to mean another."""
    found = _compiled.get(id(policy))
    if found is None:
        if len(_compiled) >= _KEPT:
            _compiled.clear()
        found = _compiled[id(policy)] = Compiled(policy)
    return found
