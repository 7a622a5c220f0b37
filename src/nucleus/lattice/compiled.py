"""A policy made ready for deciding: what would otherwise be worked out again for each operation.

Promises: says nothing that the `Policy` does not say; one per policy object, the last `_KEPT` are kept.
Does not: hold anything about an operation, a context or a caller; no decision is ever remembered.
"""

from __future__ import annotations

from collections.abc import Callable

from nucleus.lattice import capability as cap
from nucleus.lattice import identities as ids
from nucleus.lattice import tables
from nucleus.lattice.paths import PROTECTED, SENSITIVE, PathSet
from nucleus.lattice.policy import FLOORS, Argument, CommandRule, Everything, Policy, live_legs, modes
from nucleus.lattice.trifecta import ROADS
from nucleus.model.decision import Verdict

_KEPT = 64
FOREVER_NS = 1 << 127  # no clock gets there
_LEGS = {
    (egress, trusted): cap.legs(egress=egress, trusted_workspace=trusted)
    for egress in (False, True)
    for trusted in (False, True)
}


Entry = tuple[CommandRule, str]  # and its text


class Rules:
    """A list of command rules by program, in the order of their text: a decision always names the same one."""

    __slots__ = ("_any", "_group", "_of")

    def __init__(self, rules: frozenset[CommandRule]) -> None:
        named: dict[str, tuple[Entry, ...]] = {}
        self._group: dict[str, tuple[Entry, ...]] = {}
        self._any: tuple[Entry, ...] = ()
        for rule in sorted(rules, key=_order):
            entry = (rule, str(rule))
            if rule.group:
                for program in tables.SETS[rule.group]:
                    self._group[program] = (*self._group.get(program, ()), entry)
            elif rule.program == "*":
                self._any += (entry,)
            else:
                named[rule.program] = (*named.get(rule.program, ()), entry)
        self._of = {name: named.get(name, ()) + self._any + self._grouped(name) for name in (*named, *self._group)}

    def _grouped(self, program: str) -> tuple[Entry, ...]:
        found = self._group.get(program)
        # python3.11 is an interpreter as python3 is.
        if found is None:
            return self._group.get(tables.unversioned(program), ())
        return found

    def of(self, program: str) -> tuple[Entry, ...]:
        """The rules that name `program`; whether they fit its arguments is the caller's question."""
        found = self._of.get(program)
        if found is not None:
            return found
        return self._any + self._grouped(program) if self._group else self._any


def _order(rule: CommandRule) -> tuple[str, str, tuple[Argument, ...] | str]:
    return rule.group, rule.program, str(rule)


class Compiled:
    """See the module.

    Args:
        policy: as parsed.
    """

    __slots__ = (
        "allowed", "ask", "blocked", "connects", "deny", "ends_ns", "floor", "hosts", "hosts_ask", "hosts_deny",
        "lasts_ns", "listed", "listed_paths", "modes", "normals", "operators", "policy", "provenance",
        "session", "standings", "starts_ns", "static", "tools", "touchy", "watched",
    )  # fmt: skip

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.blocked = PathSet(tuple(sorted(policy.paths_block)), True)
        self.allowed: tuple[tuple[PathSet, str], ...] = ()
        if not isinstance(policy.paths_allow, Everything):
            lists = sorted(tuple(sorted(globs)) for globs in policy.paths_allow)
            self.allowed = tuple((PathSet(globs, False), ", ".join(globs) or "(empty list)") for globs in lists)
        # What is on none of these lists needs none of them: most paths.
        self.touchy = PathSet((*sorted(policy.paths_block), *SENSITIVE, *PROTECTED), True)
        self.floor = FLOORS.index(policy.isolation_floor)
        window = policy.time_window
        self.lasts_ns = window.duration_ns
        self.starts_ns = window.not_before_ns
        self.ends_ns = FOREVER_NS if isinstance(window.not_after_ns, Everything) else window.not_after_ns
        self.standings: dict[tuple[bool, bool, int], Standing] = {}
        self.listed_paths = _all_cover(tuple(globs for globs, _ in self.allowed))
        self.deny = Rules(policy.commands_deny)
        self.ask = Rules(policy.commands_ask)
        self.watched = _programs(policy.commands_deny | policy.commands_ask)
        self.listed: tuple[Rules, ...] | None = None
        if not isinstance(policy.commands_allow, Everything):
            self.listed = tuple(Rules(rules) for rules in policy.commands_allow)
        self.hosts_deny, self.hosts_ask = Hosts(policy.hosts_deny), Hosts(policy.hosts_ask)
        self.hosts: tuple[Hosts, ...] = ()
        if not isinstance(policy.hosts_allow, Everything):
            self.hosts = tuple(Hosts(hosts) for hosts in policy.hosts_allow)
        self.modes = modes(policy.trifecta)
        self.static = "static" in self.modes
        self.session = "session" in self.modes
        self.provenance = "provenance" in self.modes
        self.tools = live_legs(policy)
        self.connects = all(policy.network)  # one list that is empty admits nothing
        self.normals: dict[tuple[bool, bool, int], int] = {}
        # by capability, `tools` or `network`: the lists that a caller has to be on
        self.operators = {
            subject.partition(".")[2]: ids.lists_of(policy.identities, subject)
            for subject, _ in policy.identities
            if subject.startswith(f"{ids.OPERATIONS}.")
        }

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

    def standing(self, egress: bool, trusted: bool, seen: int) -> Standing:
        """What the capabilities come to in a context; `seen` as bits."""
        key = (egress, trusted, seen)
        found = self.standings.get(key)
        if found is None:
            found = self.standings[key] = Standing(self, self.normal(egress, trusted, seen), _LEGS[egress, trusted])
        return found


def _all_cover(lists: tuple[PathSet, ...]) -> Callable[[str], bool]:
    """Is a path on every list?"""
    if len(lists) == 1:
        return lists[0].covers
    return lambda path: all(globs.covers(path) for globs in lists)


def _programs(rules: frozenset[CommandRule]) -> frozenset[str] | None:
    """The only programs that `rules` can name; None where that is no short list."""
    if any(rule.group or rule.program == "*" for rule in rules):
        return None
    return frozenset(rule.program for rule in rules)


class Standing:
    """The capabilities of a policy in one context.

    Args:
        levels: by name, `capability.NEVER` ...
        settled: by name, the rules of steps 6 and 7 that it meets and passes whatever the operation is; absent where
            those steps have something to find out.
        passed: by name, the rule and the detail of an operation that nothing was found against.
        live: which capability and tool is which live leg, for a person.
    """

    __slots__ = ("levels", "live", "normal", "passed", "settled")

    def __init__(self, ready: Compiled, normal: int, with_legs: cap.Legs) -> None:
        self.normal = normal
        self.levels = {name: cap.level(normal, name) for name in cap.NAMES}
        self.passed = {
            name: (f"capabilities.{name}", f"{name}: {cap.LEVEL_NAMES[level]}") for name, level in self.levels.items()
        }
        self.settled: dict[str, tuple[tuple[str, Verdict], ...]] = {}
        for name, level in self.levels.items():
            if level == cap.NEVER or not cap.unattended(ready.policy.capabilities, name):
                continue
            met = ((f"approve.{name}", Verdict.ALLOW),)
            if name not in ROADS:
                self.settled[name] = met
            elif ready.modes == ("static",) and cap.unattended(normal, name):
                self.settled[name] = (*met, ("trifecta.static", Verdict.ALLOW))
        self.live = self._live(ready.policy, with_legs)

    def _live(self, policy: Policy, with_legs: cap.Legs) -> str:
        parts = []
        for title, leg, bit in (
            ("private", with_legs.private, cap.PRIVATE),
            ("untrusted", with_legs.untrusted, cap.UNTRUSTED),
            ("exfiltration", with_legs.exfiltration, cap.EXFILTRATION),
        ):
            names = [cap.NAMES[i] for i in leg if self.levels[cap.NAMES[i]] != cap.NEVER]
            tools = sorted(
                {rule.name for table in policy.tools for rule in table if rule.legs & bit and rule.level != cap.NEVER}
            )
            parts.append(f"{title}: {', '.join(names + [f'tool {name}' for name in tools]) or 'seen in this session'}")
        return "; ".join(parts)


class Hosts:
    """A list of hosts: a name, or ``*.parent`` for anything below the parent."""

    __slots__ = ("_lines",)

    def __init__(self, lines: frozenset[str]) -> None:
        self._lines = lines

    def find(self, host: str) -> str | None:
        """The first line, by its text, that names `host`."""
        lines = self._lines
        if not lines:
            return None
        found = [host] if host in lines else []
        at = host.find(".")
        while at >= 0:
            if (line := f"*{host[at:]}") in lines:
                found.append(line)
            at = host.find(".", at + 1)
        return min(found, default=None)


_compiled: dict[int, Compiled] = {}


def compiled(policy: Policy) -> Compiled:
    """The compiled form of `policy`. The entry keeps the policy alive, so its id cannot come to mean another."""
    found = _compiled.get(id(policy))
    if found is None:
        if len(_compiled) >= _KEPT:
            _compiled.clear()
        found = _compiled[id(policy)] = Compiled(policy)
    return found
