"""A policy: the product of ten small lattices, and its algebra.

capabilities × paths × commands × hosts × tools × budget × time window × isolation floor × trifecta × identities. `meet`
tightens each: allow lists and tool tables are conjoined, ask and deny lists united, budget and window take the smaller,
floors the stronger, and every trifecta mode of either is in force.
Promises: "everything" is an explicit sentinel, `EVERYTHING`; an empty allow list allows nothing, and so does the meet
of disjoint lists (an allow is a *conjunction* of lists, so nothing has to be intersected). Frozen and hashable.
Relies on: `capability` for the ints. Order on lists is by their text: `leq` never claims what does not hold, and may
miss that two globs mean the same.
Does not: parse (`load`), decide (`decide`), or read a clock.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import TypeVar

from nucleus.lattice import capability as cap
from nucleus.lattice import identities as ids
from nucleus.lattice import tables
from nucleus.lattice.network import NetRule, leq_rules
from nucleus.lattice.paths import PROTECTED, is_protected, path_set
from nucleus.validate.paths import collapse

FLOORS: tuple[str, ...] = ("namespaces", "gvisor", "qemu", "firecracker")  # weakest first
MICRO = 1_000_000  # micro-dollars in a dollar

T = TypeVar("T")


class Everything(enum.Enum):
    """The sentinel's type."""

    EVERYTHING = "everything"

    def __repr__(self) -> str:
        return "EVERYTHING"


EVERYTHING = Everything.EVERYTHING


@dataclass(frozen=True, slots=True)
class Argument:
    """One typed argument rule. kind: literal (one of `values`), word (any one), integer, path (in the workspace)."""

    kind: str
    values: tuple[str, ...] = ()

    def admits(self, word: str) -> bool:
        if self.kind == "literal":
            return word in self.values
        if self.kind == "integer":
            return word.isascii() and word.removeprefix("-").isdigit()
        if self.kind == "path":
            return word != "" and not word.startswith("-") and collapse(word) is not None
        return True

    def __str__(self) -> str:
        return "|".join(self.values) if self.kind == "literal" else f"<{self.kind}>"


@dataclass(frozen=True, slots=True)
class CommandRule:
    """One line of a command list.

    Args:
        program: a system program's bare name, a path as it is called, or ``*``; "" when `group` is given.
        group: a table of `tables.SETS`.
        args: typed rules for the first arguments (for git, from the subcommand on).
        rest: what may follow them: ``any``, ``none`` or ``paths``.
    """

    program: str = ""
    group: str = ""
    args: tuple[Argument, ...] = ()
    rest: str = "any"

    def names(self, program: str) -> bool:
        if self.group:
            return program in tables.SETS[self.group] or tables.unversioned(program) in tables.SETS[self.group]
        return self.program in ("*", program)

    def admits(self, program: str, args: tuple[str, ...]) -> bool:
        """For allow lists: exact places, and nothing besides what `rest` admits."""
        return self.names(program) and self.fits(args)

    def fits(self, args: tuple[str, ...]) -> bool:
        """`admits`, where it is known that the rule names the program."""
        if len(args) < len(self.args):
            return False
        for rule, word in zip(self.args, args, strict=False):
            if not rule.admits(word):
                return False
        if self.rest == "any":
            return True
        tail = args[len(self.args) :]
        if self.rest == "none":
            return not tail
        return all(Argument("path").admits(word) for word in tail)

    def catches(self, program: str, args: tuple[str, ...]) -> bool:
        """For ask and deny lists: the rules match some arguments in order, whatever stands between."""
        return self.names(program) and self.finds(args)

    def finds(self, args: tuple[str, ...]) -> bool:
        """`catches`, where it is known that the rule names the program."""
        words = iter(args)
        return all(any(rule.admits(word) for word in words) for rule in self.args)

    def __str__(self) -> str:
        if self.group:
            return f"set {self.group}"
        return " ".join(
            [self.program, *map(str, self.args), *(() if self.rest == "any" else (f"(rest: {self.rest})",))]
        )


@dataclass(frozen=True, slots=True)
class ToolRule:
    """What the policy declares of one external tool, or of all of a server (``server/*``).

    Args:
        name: ``server/tool`` or ``server/*``; the exact name beats the star.
        legs: bits of `capability.PRIVATE`, `UNTRUSTED`, `EXFILTRATION`, `STATE`.
        destination: names of the arguments that say to whom, where, or on which object it acts.
        level: `capability.NEVER`, `LOW_RISK` (exfiltration and state changes ask) or `ALWAYS`.
        approve: a person must say yes to each call.
        names: of a tool whose answers are untrusted, the fields that only the service or the user sets (ids, say):
            destinations where the user's own words selected the one record that was answered (`session`).
        members: the same, of fields in which the service names none but the user's own people (the sender of a message
            in a closed workspace): destinations in every record of an answer that the user's words asked for.
    """

    name: str
    legs: int
    destination: tuple[str, ...] = ()
    level: int = cap.LOW_RISK
    approve: bool = False
    names: tuple[str, ...] = ()
    members: tuple[str, ...] = ()


UNDECLARED = ToolRule("", cap.PRIVATE | cap.UNTRUSTED | cap.EXFILTRATION | cap.STATE, (), cap.LOW_RISK, True)

MODES: dict[str, tuple[str, ...]] = {  # what a policy may say, and the modes that are then in force
    "static": ("static",), "session": ("session",), "provenance": ("provenance",), "all": ("provenance", "static"),
}  # fmt: skip


def modes(trifecta: str) -> tuple[str, ...]:
    """The modes in force, sorted: ``"provenance+static"`` is what ``all`` means."""
    return tuple(trifecta.split("+"))


NOWHERE: frozenset[frozenset[NetRule]] = frozenset((frozenset(),))
CARRIED = ("web_fetch", "web_search", "git_push", "create_pr")  # by a gateway
ORDINARY = CommandRule(group="ordinary")

PathAllow = Everything | frozenset[frozenset[str]]
CommandAllow = Everything | frozenset[frozenset[CommandRule]]


@dataclass(frozen=True, slots=True)
class TimeWindow:
    """When operations may happen: `duration_ns` from the pod's start, and between two wall-clock times (ns)."""

    duration_ns: int
    not_before_ns: int = 0
    not_after_ns: int | Everything = EVERYTHING


BY_TWO = (*cap.NAMES, "tools", "network")  # what `two_people` names: a capability, external tools, connections
BY_WHOM = BY_TWO  # and what ``identities.operations`` names


@dataclass(frozen=True, slots=True)
class Policy:
    """See the module. `capabilities` as in `capability`; `budget_limit` in micro-dollars; globs as in `paths`."""

    name: str
    capabilities: int
    budget_limit: int
    time_window: TimeWindow
    description: str = ""
    paths_allow: PathAllow = EVERYTHING
    paths_block: frozenset[str] = frozenset()
    commands_allow: CommandAllow = frozenset((frozenset((ORDINARY,)),))
    commands_ask: frozenset[CommandRule] = frozenset()
    commands_deny: frozenset[CommandRule] = frozenset()
    hosts_allow: PathAllow = frozenset((frozenset(),))
    hosts_ask: frozenset[str] = frozenset()
    hosts_deny: frozenset[str] = frozenset()
    isolation_floor: str = FLOORS[0]
    trifecta: str = "static"  # modes in force, sorted, joined by "+"
    tools: frozenset[frozenset[ToolRule]] = frozenset((frozenset(),))  # a conjunction of tables; absent is undeclared
    network: frozenset[frozenset[NetRule]] = NOWHERE  # a conjunction of lists; absent is nowhere
    two_people: frozenset[str] = frozenset()  # names of `BY_TWO`: where a person is asked, two have to say yes
    identities: ids.Identities = ids.DEFAULT  # who: lists of SPIFFE IDs by subject, a conjunction

    def __post_init__(self) -> None:
        if not self.network:
            object.__setattr__(self, "network", NOWHERE)
        object.__setattr__(self, "identities", ids.complete(self.identities))
        if not self.tools:
            # No table at all would be the top of the product, and says what one empty table says: nothing is declared.
            object.__setattr__(self, "tools", frozenset((frozenset(),)))

    def ways_out(self) -> bool:
        """May a program of the pod connect to a destination that the user does not vouch for?"""
        return all(self.network) and any(not rule.trusted for rules in self.network for rule in rules)

    def needs_gateway(self) -> bool:
        """Does anything that the policy enables leave the pod?"""
        if all(self.network):
            return True
        return any(cap.level(self.capabilities, name) != cap.NEVER for name in CARRIED)

    @property
    def window_ns(self) -> int:
        """How long a pod may live, nanoseconds."""
        return self.time_window.duration_ns

    def hidden_globs(self) -> tuple[str, ...]:
        """``paths.block``, as `paths.PathSet` reads them with case and compatible forms ignored: what a view hides."""
        return tuple(sorted(self.paths_block))

    def shown_globs(self) -> tuple[tuple[str, ...], ...]:
        """``paths.allow``: what is shown is on every one of these lists; () for everything."""
        if isinstance(self.paths_allow, Everything):
            return ()
        return tuple(sorted(tuple(sorted(globs)) for globs in self.paths_allow))

    def protected_globs(self) -> tuple[str, ...]:
        """What a view of the workspace shows read-only, in the same semantics; the same for every policy."""
        return PROTECTED


def _meet_allow(a: Everything | frozenset[T], b: Everything | frozenset[T]) -> Everything | frozenset[T]:
    if isinstance(a, Everything):
        return b
    return a if isinstance(b, Everything) else a | b


def _leq_allow(a: Everything | frozenset[frozenset[T]], b: Everything | frozenset[frozenset[T]]) -> bool:
    """Each list of b is implied by one of a."""
    if isinstance(b, Everything):
        return True
    return not isinstance(a, Everything) and all(any(mine <= theirs for mine in a) for theirs in b)


def tool_rule(table: frozenset[ToolRule], server: str, tool: str) -> ToolRule:
    """What `table` declares of a tool; `UNDECLARED` (all legs, a person each time) for none."""
    exact, star = f"{server}/{tool}", f"{server}/*"
    found = UNDECLARED
    for rule in table:
        if rule.name == exact:
            return rule
        if rule.name == star:
            found = rule
    return found


def live_legs(policy: Policy) -> int:
    """The legs of the trifecta that the declared tools and the connections bring."""
    legs = 0
    for table in policy.tools:
        for rule in table:
            if rule.level != cap.NEVER:
                legs |= rule.legs & (cap.PRIVATE | cap.UNTRUSTED | cap.EXFILTRATION)
    if policy.ways_out():
        legs |= cap.UNTRUSTED  # what comes back from anywhere
    return legs


def leq_tools(a: frozenset[ToolRule], b: frozenset[ToolRule]) -> bool:
    """Whatever tool is called, `a` declares it at least as strictly as `b`."""
    names = {rule.name for rule in (*a, *b)}
    return all(leq_tool(_named(a, name), _named(b, name)) for name in names)


def _named(table: frozenset[ToolRule], name: str) -> ToolRule:
    server, _, tool = name.partition("/")
    return tool_rule(table, server, tool)


def leq_tool(a: ToolRule, b: ToolRule) -> bool:
    """Is `a` declared at least as strictly as `b`?"""
    if a.level == cap.NEVER:
        return True
    return (
        cap.leq(a.level, b.level)
        and (a.approve or not b.approve)
        and b.legs & ~a.legs == 0
        and set(a.names) <= set(b.names)
        and set(a.members) <= set(b.members)
        # Without a declared destination nothing is ever a known one.
        and (not a.destination or set(a.destination) == set(b.destination))
    )


def _end(window: TimeWindow) -> float:
    return float("inf") if isinstance(window.not_after_ns, Everything) else window.not_after_ns


def _meet_window(a: TimeWindow, b: TimeWindow) -> TimeWindow:
    return TimeWindow(
        min(a.duration_ns, b.duration_ns),
        max(a.not_before_ns, b.not_before_ns),
        a.not_after_ns if _end(a) <= _end(b) else b.not_after_ns,
    )


def meet(a: Policy, b: Policy) -> Policy:
    """The loosest policy that is at most both. Named after `b`."""
    return Policy(
        name=b.name,
        description=b.description,
        capabilities=cap.meet(a.capabilities, b.capabilities),
        budget_limit=min(a.budget_limit, b.budget_limit),
        time_window=_meet_window(a.time_window, b.time_window),
        paths_allow=_meet_allow(a.paths_allow, b.paths_allow),
        paths_block=a.paths_block | b.paths_block,
        commands_allow=_meet_allow(a.commands_allow, b.commands_allow),
        commands_ask=a.commands_ask | b.commands_ask,
        commands_deny=a.commands_deny | b.commands_deny,
        hosts_allow=_meet_allow(a.hosts_allow, b.hosts_allow),
        hosts_ask=a.hosts_ask | b.hosts_ask,
        hosts_deny=a.hosts_deny | b.hosts_deny,
        isolation_floor=max(a.isolation_floor, b.isolation_floor, key=FLOORS.index),
        trifecta="+".join(sorted({*modes(a.trifecta), *modes(b.trifecta)})),
        tools=a.tools | b.tools,
        network=a.network | b.network,
        two_people=a.two_people | b.two_people,
        identities=a.identities | b.identities,
    )


def leq(a: Policy, b: Policy) -> bool:
    """Is `a` at most as permissive as `b`? Names do not count. Sound, not complete (see the module)."""
    x, y = a.time_window, b.time_window
    return (
        cap.leq(a.capabilities, b.capabilities)
        and a.budget_limit <= b.budget_limit
        and x.duration_ns <= y.duration_ns
        and x.not_before_ns >= y.not_before_ns
        and _end(x) <= _end(y)
        and _leq_allow(a.paths_allow, b.paths_allow)
        and _leq_allow(a.commands_allow, b.commands_allow)
        and _leq_allow(a.hosts_allow, b.hosts_allow)
        and a.paths_block >= b.paths_block
        and a.commands_ask >= b.commands_ask
        and a.commands_deny >= b.commands_deny
        and a.hosts_ask >= b.hosts_ask
        and a.hosts_deny >= b.hosts_deny
        and FLOORS.index(a.isolation_floor) >= FLOORS.index(b.isolation_floor)
        and set(modes(a.trifecta)) >= set(modes(b.trifecta))
        and all(any(leq_tools(mine, theirs) for mine in a.tools) for theirs in b.tools)
        and all(any(leq_rules(mine, theirs) for mine in a.network) for theirs in b.network)
        and a.two_people >= b.two_people
        and ids.leq(a.identities, b.identities)
    )


def normalize(policy: Policy, with_legs: cap.Legs = cap.WORST) -> Policy:
    """The policy under ν: what mode ``static`` would ask for in this context, tools included, asks by itself."""
    if "static" not in modes(policy.trifecta):
        return policy
    legs = live_legs(policy)
    live = cap.trifecta(policy.capabilities, with_legs, legs | cap.EXFILTRATION)
    return replace(
        policy,
        capabilities=cap.nu(policy.capabilities, with_legs, legs),
        tools=asking(policy.tools) if live else policy.tools,
        network=connecting(policy.network) if live else policy.network,
    )


def connecting(lists: frozenset[frozenset[NetRule]]) -> frozenset[frozenset[NetRule]]:
    """The lists with an ask for each connection to a destination that the user does not vouch for."""
    return frozenset(
        frozenset(rule if rule.trusted else replace(rule, approve=True) for rule in rules) for rules in lists
    )


def asking(tables: frozenset[frozenset[ToolRule]]) -> frozenset[frozenset[ToolRule]]:
    """The tables with an ask for each tool that could carry data out."""
    return frozenset(
        frozenset(
            replace(rule, approve=True) if rule.legs & cap.EXFILTRATION and rule.level != cap.NEVER else rule
            for rule in table
        )
        for table in tables
    )


def delegate(parent: Policy, child: Policy, with_legs: cap.Legs = cap.WORST) -> Policy:
    """What a child pod gets: meet(ν(parent), child), which never exceeds ν(parent)."""
    return meet(normalize(parent, with_legs), child)


def not_allowed(policy: Policy, path: str) -> str | None:
    """The allow list (as text) that does not cover `path`, or None when all do."""
    if isinstance(policy.paths_allow, Everything):
        return None
    for globs in policy.paths_allow:
        if path_set(globs, False).find(path) is None:
            return ", ".join(sorted(globs)) or "(empty list)"
    return None


def is_blocked(policy: Policy, path: str) -> str | None:
    """The glob of ``paths.block`` that covers `path` or a directory above it, case ignored; None when there is none."""
    return path_set(policy.paths_block, True).find(path)


__all__ = [
    "EVERYTHING", "FLOORS", "MICRO", "MODES", "NOWHERE", "ORDINARY", "UNDECLARED", "Argument", "CommandRule",
    "Everything", "Policy", "TimeWindow", "ToolRule", "delegate", "is_blocked", "is_protected", "leq", "leq_tool",
    "leq_tools",
    "live_legs", "meet", "modes", "normalize", "not_allowed", "tool_rule",
]  # fmt: skip
