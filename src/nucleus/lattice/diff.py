"""What changes from one policy to another: dimension by dimension, and operations that show it.

A dimension is `tighter` or `same` only where that is proved, for every operation and every context: by the order of its
lists and numbers, and for capabilities by what they come to under the modes in force, for egress or none, a trusted
workspace or not, whatever a session has seen. All else is `looser` or `incomparable`; a witness (`witness`) shows it,
or it is said that none was found. Leaving a capability out can loosen another one: without untrusted content nothing
asks for a push. Trifecta modes are incomparable unless one side has all that the other has.
Promises: when every dimension is tighter or the same, B decides at most what A decides.
Does not: weigh one change against another, or read files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from nucleus.lattice import capability as cap
from nucleus.lattice import identities as ids
from nucleus.lattice.compiled import Compiled, compiled
from nucleus.lattice.explain import dollars, duration, folded
from nucleus.lattice.implies import admitted, caught_by, glob_covered, host_covered
from nucleus.lattice.network import leq_rules
from nucleus.lattice.policy import FLOORS, Everything, Policy, TimeWindow, leq_tools, modes
from nucleus.lattice.witness import RANK, Witness, rank, witnesses
from nucleus.model.decision import TWO_PEOPLE

SAME, TIGHTER, LOOSER, INCOMPARABLE = "same", "tighter", "looser", "incomparable"
LOOSENS = (LOOSER, INCOMPARABLE)
KEPT = 40  # witnesses of one rule
_PLACES = tuple((egress, trusted) for egress in (False, True) for trusted in (False, True))
_SEEN = (0, cap.PRIVATE, cap.UNTRUSTED, cap.PRIVATE | cap.UNTRUSTED)


@dataclass(frozen=True, slots=True)
class Dimension:
    """One dimension. `before` and `after`: what A and B say, for people."""

    name: str
    relation: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Shown:
    """A witness, and the dimensions whose change it shows."""

    witness: Witness
    dimensions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Diff:
    """Everything. `dimensions`: all of them, unchanged ones too."""

    dimensions: tuple[Dimension, ...]
    witnesses: tuple[Shown, ...]

    @property
    def relation(self) -> str:
        """Of B as a whole to A."""
        found = {dimension.relation for dimension in self.dimensions} - {SAME}
        if self.witnesses and not found & set(LOOSENS):  # cannot be: the dimensions are proved
            return INCOMPARABLE
        if len(found) < 2:
            return found.pop() if found else SAME
        return INCOMPARABLE

    @property
    def looser(self) -> bool:
        """Is anything looser, or not comparable, or an ask lost?"""
        return self.relation in LOOSENS

    @property
    def lost_asks(self) -> tuple[Shown, ...]:
        """The witnesses of asks that are no longer made."""
        return tuple(shown for shown in self.witnesses if shown.witness.lost_ask)

    def shows(self, dimension: Dimension) -> bool:
        """Does a witness show the change of this dimension?"""
        return any(dimension.name in shown.dimensions for shown in self.witnesses)


def diff(a: Policy, b: Policy) -> Diff:
    """Compare B with A."""
    found = tuple(dimensions(a, b))
    changed = {dimension.name for dimension in found if dimension.relation in LOOSENS}
    kept: dict[tuple[Any, ...], Witness] = {}
    for witness in witnesses(a, b) if changed else ():
        key = _key(witness)
        # The first that is found, unless a later one runs unattended and it does not.
        better = key in kept and rank(witness.after) < rank(kept[key].after)
        if better or (key not in kept and sum(key[0] == other[0] for other in kept) < KEPT):
            kept[key] = witness
    return Diff(found, tuple(Shown(witness, _shown_by(witness, b, changed)) for witness in kept.values()))


# --- witnesses: which to keep, and what they show ---

_BY_ENTRY = ("paths.allow", "paths.block", "commands.ask", "commands.deny", "hosts.ask", "hosts.deny")


def _key(witness: Witness) -> tuple[Any, ...]:
    """One witness for each rule, or entry of a list, that no longer holds."""
    before, operation = witness.before, witness.operation
    entry: Any = before.detail if before.rule in _BY_ENTRY else ""
    if operation.capability == "tools":
        entry = f"{getattr(operation, 'server', '')}/{getattr(operation, 'tool', '')}"
    elif before.rule.startswith(("trifecta.", "low_risk.sensitive")):  # these name no capability
        entry = before.obligations or operation.capability
    return (before.rule, "" if before.rule in ("time_window", "isolation.floor") else entry, before.verdict)


def _shown_by(witness: Witness, b: Policy, changed: set[str]) -> tuple[str, ...]:
    """Every rule that A's decision met, and that does not hold B's back, is a change."""
    before, operation = witness.before, witness.operation
    found: list[str] = []
    for rule, verdict in before.met:
        if RANK[verdict] > RANK[witness.after.verdict]:
            found += _dimension_of(rule, before.obligations, operation.capability, b)
    if TWO_PEOPLE in before.obligations and TWO_PEOPLE not in witness.after.obligations:
        found.append("two_people")
    return tuple(name for name in dict.fromkeys(found) if name in changed)


def _dimension_of(rule: str, obligations: tuple[str, ...], capability: str, b: Policy) -> list[str]:
    title, _, name = rule.partition(".")
    if title in ("paths", "commands", "hosts", "isolation"):
        return [rule]
    if title == "identity":
        return ["identities"]
    if title == "network":
        return ["network.allow"]
    if title in ("time_window", "tools") or rule == "low_risk.tools":
        return [title if title != "low_risk" else "tools"]
    if title == "trifecta" and name not in modes(b.trifecta):
        # The mode itself is gone; what it asked for is then a capability's change too.
        return ["trifecta", *_capabilities_of(obligations, capability)]
    if name in cap.INDEX:
        return [f"capabilities.{name}"]
    return _capabilities_of(obligations, capability)


def _capabilities_of(obligations: tuple[str, ...], capability: str) -> list[str]:
    names = [one.partition(":")[2] for one in obligations if one != TWO_PEOPLE] or [capability]
    titles = {"tools": "tools", "network": "network.allow"}
    return [titles.get(name, f"capabilities.{name}") for name in names]


# --- dimensions ---


def dimensions(a: Policy, b: Policy) -> Iterable[Dimension]:
    """Every dimension of B against A, the unchanged ones too."""
    x, y = compiled(a), compiled(b)
    for name in cap.NAMES:
        yield _capability(x, y, name)
    for title, covered in _COVERED.items():
        before, after = getattr(a, f"{title}_allow"), getattr(b, f"{title}_allow")
        yield _dimension(f"{title}.allow", before, after, _allow_leq(covered), _allow_texts(before, after))
    before, after = a.paths_block, b.paths_block
    yield _dimension("paths.block", before, after, _blocks, _set_texts(before, after))
    for title, caught in (("commands", caught_by), ("hosts", host_covered)):
        yield from _caught(a, b, title, caught)
    yield _network(x, y)
    yield _tools(x, y)
    yield _dimension(
        "two_people", a.two_people, b.two_people, frozenset.issuperset, _set_texts(a.two_people, b.two_people)
    )
    yield _dimension("identities", a.identities, b.identities, ids.leq, _texts_of_identities(a, b))
    yield _dimension("budget", a.budget_limit, b.budget_limit, lambda p, q: p <= q, _texts(a, b, _budget))
    yield _dimension("time_window", a.time_window, b.time_window, _window_leq, _texts(a, b, _window))
    floor, other = a.isolation_floor, b.isolation_floor
    yield _dimension("isolation.floor", floor, other, lambda p, q: FLOORS.index(p) >= FLOORS.index(q), (floor, other))
    mode, other = a.trifecta, b.trifecta
    yield _dimension("trifecta", mode, other, lambda p, q: set(modes(p)) >= set(modes(q)), (mode, other))


def _dimension(name: str, a: Any, b: Any, leq: Callable[[Any, Any], bool], texts: tuple[str, str]) -> Dimension:
    """`leq(p, q)`: is p proved to be at most q?"""
    return Dimension(name, _relation(leq(b, a), leq(a, b)), *texts)


def _relation(below: bool, above: bool) -> str:
    if below:
        return SAME if above else TIGHTER
    return LOOSER if above else INCOMPARABLE


def _capability(x: Compiled, y: Compiled, name: str) -> Dimension:
    """Its level, and whether it asks, in every context."""
    mask = 0b11 << (2 * cap.INDEX[name]) | 1 << (cap.UNATTENDED + cap.INDEX[name])
    below = above = True
    for egress, trusted in _PLACES:
        for seen in _SEEN:
            p, q = x.normal(egress, trusted, seen) & mask, y.normal(egress, trusted, seen) & mask
            below &= cap.leq(q, p)
            above &= cap.leq(p, q)
    return Dimension(f"capabilities.{name}", _relation(below, above), _state(x, name), _state(y, name))


def _state(ready: Compiled, name: str) -> str:
    level = cap.level(ready.policy.capabilities, name)
    if level == cap.NEVER:
        return "never"
    asks = {place for place in _PLACES if not cap.unattended(ready.normal(*place, 0), name)}
    if not asks or len(asks) == len(_PLACES):
        how = "asks" if asks else "unattended"
    elif asks == {place for place in _PLACES if place[0]}:
        how = "asks with egress"
    elif asks == {place for place in _PLACES if not place[1]}:
        how = "asks unless the workspace is trusted"
    else:
        how = "asks with egress, unless the workspace is trusted"
    return f"{cap.LEVEL_NAMES[level]}, {how}"


_COVERED: dict[str, Callable[[Any, Any], bool]] = {
    "paths": glob_covered,
    "commands": lambda rule, rules: admitted(rule, rules, flagged=True),
    "hosts": host_covered,
}


def _allow_leq(covered: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def leq(p: Any, q: Any) -> bool:
        """Each list of q is implied by one of p."""
        if isinstance(q, Everything):
            return True
        if isinstance(p, Everything):
            return False
        return all(any(all(covered(entry, theirs) for entry in mine) for mine in p) for theirs in q)

    return leq


def _blocks(p: frozenset[str], q: frozenset[str]) -> bool:
    return all(glob_covered(glob, p, fold=True) for glob in q)


def _caught(a: Policy, b: Policy, title: str, caught: Callable[[Any, Any], bool]) -> Iterable[Dimension]:
    """Ask and deny lists. An ask that becomes a denial is tighter."""
    old, new = ((getattr(policy, f"{title}_ask"), getattr(policy, f"{title}_deny")) for policy in (a, b))

    def asks(p: Any, q: Any) -> bool:
        return all(caught(entry, p[0] | p[1]) for entry in q[0])

    def denies(p: Any, q: Any) -> bool:
        return all(caught(entry, p[1]) for entry in q[1])

    yield _dimension(f"{title}.ask", old, new, asks, _set_texts(old[0], new[0]))
    yield _dimension(f"{title}.deny", old, new, denies, _set_texts(old[1], new[1]))


def _tools(x: Compiled, y: Compiled) -> Dimension:
    a, b = x.policy, y.policy

    def tables_leq(p: Compiled, q: Compiled) -> bool:
        listed = all(any(leq_tools(mine, theirs) for mine in p.policy.tools) for theirs in q.policy.tools)
        if not listed or not p.tools & cap.EXFILTRATION:
            return listed
        return all(_static_asks(p, *at) or not _static_asks(q, *at) for at in _everywhere())

    before, after = ({(rule.name, rule) for table in policy.tools for rule in table} for policy in (a, b))
    names = sorted({name for name, _ in before ^ after})
    gone = [name for name in names if name not in {name for name, _ in after}]
    new = [name for name in names if name not in {name for name, _ in before}]
    changed = [name for name in names if name not in gone and name not in new]
    texts = (
        _joined([*(f"-{name}" for name in gone), *(f"~{name}" for name in changed)]),
        _joined([*(f"+{name}" for name in new), *(f"~{name}" for name in changed)]),
    )
    return _dimension("tools", x, y, tables_leq, texts)


def _network(x: Compiled, y: Compiled) -> Dimension:
    def lists_leq(p: Compiled, q: Compiled) -> bool:
        listed = all(any(leq_rules(mine, theirs) for mine in p.policy.network) for theirs in q.policy.network)
        if not listed or not p.policy.ways_out():
            return listed
        return all(_connection_asks(p, *at) or not _connection_asks(q, *at) for at in _everywhere())

    before, after = ({str(rule) for rules in ready.policy.network for rule in rules} for ready in (x, y))
    return _dimension("network.allow", x, y, lists_leq, _set_texts(before, after))


def _connection_asks(ready: Compiled, egress: bool, trusted: bool, seen: int) -> bool:
    """Would mode ``static`` ask for a connection that the user does not vouch for?"""
    if not ready.static:
        return False
    with_legs = cap.legs(egress=egress, trusted_workspace=trusted)
    outside = ready.tools | seen | cap.EXFILTRATION | cap.UNTRUSTED
    return bool(cap.trifecta(ready.policy.capabilities, with_legs, outside))


def _everywhere() -> Iterable[tuple[bool, bool, int]]:
    return ((egress, trusted, seen) for egress, trusted in _PLACES for seen in _SEEN)


def _static_asks(ready: Compiled, egress: bool, trusted: bool, seen: int) -> bool:
    """Would mode ``static`` ask for a tool that could carry data out? No, where no tool could."""
    if not ready.static or not ready.tools & cap.EXFILTRATION:
        return False
    with_legs = cap.legs(egress=egress, trusted_workspace=trusted)
    return bool(cap.trifecta(ready.policy.capabilities, with_legs, ready.tools | seen))


def _window_leq(p: TimeWindow, q: TimeWindow) -> bool:
    if isinstance(p.not_after_ns, Everything):
        ends = isinstance(q.not_after_ns, Everything)
    else:
        ends = isinstance(q.not_after_ns, Everything) or p.not_after_ns <= q.not_after_ns
    return ends and p.duration_ns <= q.duration_ns and p.not_before_ns >= q.not_before_ns


# --- text ---


def _texts(a: Policy, b: Policy, show: Callable[[Policy], str]) -> tuple[str, str]:
    return show(a), show(b)


def _budget(policy: Policy) -> str:
    return f"${dollars(policy.budget_limit)}"


def _window(policy: Policy) -> str:
    window = policy.time_window
    text = duration(window.duration_ns)
    if window.not_before_ns:
        text += f" from {window.not_before_ns // 1_000_000_000} s"
    if not isinstance(window.not_after_ns, Everything):
        text += f" until {window.not_after_ns // 1_000_000_000} s"
    return text


def _joined(items: list[str]) -> str:
    shown = items[:6]
    return ", ".join(shown) + (f", and {len(items) - 6} more" if len(items) > 6 else "") or "-"


def _set_texts(before: Iterable[Any], after: Iterable[Any]) -> tuple[str, str]:
    """What is gone, and what is new."""
    old, new = set(map(str, before)), set(map(str, after))
    return _joined([f"-{item}" for item in folded(old - new)]), _joined([f"+{item}" for item in folded(new - old)])


def _texts_of_identities(a: Policy, b: Policy) -> tuple[str, str]:
    before, after = (
        {f"{subject} [{', '.join(sorted(patterns))}]" for subject, patterns in policy.identities} for policy in (a, b)
    )
    return _set_texts(before, after)


def _allow_texts(before: Any, after: Any) -> tuple[str, str]:
    if isinstance(before, Everything) or isinstance(after, Everything):
        return _allow_text(before), _allow_text(after)
    if len(before) == len(after) == 1:
        ((old,), (new,)) = before, after
        return _set_texts(old, new)
    return _allow_text(before), _allow_text(after)


def _allow_text(allow: Any) -> str:
    if isinstance(allow, Everything):
        return "everything"
    lists = sorted(_joined(sorted(map(str, items))) for items in allow)
    return lists[0] if len(lists) == 1 else " AND ".join(f"({text})" for text in lists)
