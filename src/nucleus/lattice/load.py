"""Policy text to a `Policy`: a strict schema, every refusal with file, line and column.

Promises: unknown or duplicate keys, wrong types, anchors, tags, floats for money and oversize text are refused; what a
key does not say is the safe default (no capability, `@sensitive` blocked, one dollar, one hour, ordinary commands), or
the parent's where the policy extends one. Nothing in a file can widen what another one said (`extends`).
Does not: read files: bundled profiles are passed in (`store.policies`).

Format, version 1 (docs/policy.md explains it, `schema` is the same for editors; * required):

    version: 1 *            name: text *             description: text
    extends: a bundled profile                       then nothing else is required, and nothing may be looser
    capabilities: {read_files: always|low_risk|never, ...} *
    approve: [capability, ...]                       a person must say yes
    paths: {allow: everything|[glob], block: [glob or "@sensitive"]}
    commands: {allow: everything|[rule], ask: [rule], deny: [rule]}
       rule: {set: ordinary|interpreters|shells|network}  or
             {program: git, args: [status, {one_of: [a, b]}, {type: word|integer|path}], rest: any|none|paths}
             and examples: match: [[git, status], git status -s], not_match: [...]
    hosts: {allow: everything|[host or *.parent], ask: [...], deny: [...]}
    network: {allow: [host, "*.parent", host:port, range:port or {host: .., port: 443, protocol: tls|http|tcp,
              methods: [GET], paths: ["/v1/**"], trusted: false, approve: false}]}
    tools: {server/tool or server/*: {legs: [private|untrusted|exfiltration|state] *, destination: [argument],
            level: low_risk, approve: false, names: [field of its answer], members: [field]}}
    budget: {limit_usd: "5.00"}                      six decimals at most
    time_window: {duration: 90m, not_before: "2026-01-01T00:00:00Z", not_after: "..."}
    isolation: {floor: namespaces|gvisor|qemu|firecracker}
    trifecta: static|session|provenance|all, or a list of modes
    identities: {agents: [own, "spiffe://td/team/*"], approvers: [...], pods: [...], operations: {git_push: [...]}}
    each allow list, list of identities, and tools may also be {all_of: [list, list]}: what is on every one of them
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nucleus.lattice import capability as cap
from nucleus.lattice import extends, load_commands, load_identities, load_lists, load_network, load_tools
from nucleus.lattice.paths import SENSITIVE
from nucleus.lattice.policy import BY_TWO, FLOORS, MICRO, MODES, Everything, Policy, TimeWindow
from nucleus.lattice.reader import Reader
from nucleus.lattice.yamltree import Node, parse_tree

KEYS = (
    "version", "name", "description", "extends", "capabilities", "approve", "two_people", "paths", "commands", "hosts",
    "network", "tools", "budget", "time_window", "isolation", "trifecta", "identities",
)  # fmt: skip
UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
LONGEST_S = 30 * 86_400  # of a time window
DEPTH = 4  # profiles that extend one another
_NAME = frozenset(string.ascii_lowercase + string.digits + "_-")
_NS = 1_000_000_000
_DEFAULTS = Policy(
    name="", capabilities=cap.BOTTOM, budget_limit=MICRO, time_window=TimeWindow(3_600 * _NS),
    paths_block=frozenset(SENSITIVE),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Loaded:
    """A policy and where it came from.

    Args:
        policy: complete, whatever it extends.
        digest: SHA-256 (hex) of its text; where it extends others, of its text and theirs, a NUL between.
        lineage: the bundled profiles that it extends, nearest first.
    """

    policy: Policy
    digest: str
    lineage: tuple[str, ...] = ()


def policy_digest(*texts: str) -> str:
    """SHA-256 (hex) of a policy's text and of those it extends: its name in the audit log."""
    return hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()


def load_policy(text: str, source: str, profiles: Mapping[str, str] | None = None) -> Loaded:
    """Parse and check one policy.

    Args:
        text: YAML, at most ``LIMITS.policy_bytes``.
        source: how errors name it: a file's path or ``profile <name>``.
        profiles: texts of the bundled profiles by name: what a policy may extend.

    Raises:
        InvalidError: rule ``policy.schema``, message ``source:line:column: problem``.
    """
    policy, texts, lineage = _load(text, source, profiles or {}, ())
    return Loaded(policy, policy_digest(*texts), lineage)


def parse_policy(text: str, source: str, profiles: Mapping[str, str] | None = None) -> Policy:
    """The policy of `load_policy`."""
    return load_policy(text, source, profiles).policy


def _load(
    text: str, source: str, profiles: Mapping[str, str], above: tuple[str, ...]
) -> tuple[Policy, tuple[str, ...], tuple[str, ...]]:
    """(policy, its text and its ancestors', their names). `above`: the profiles that led here."""
    reader, root = Reader(source), parse_tree(text, source)
    parent: Policy | None = None
    texts: tuple[str, ...] = ()
    lineage: tuple[str, ...] = ()
    if root.kind == "map" and "extends" in root.entries:
        name = _parent_name(reader, root.entries["extends"][1], profiles, above)
        found, texts, lineage = _load(profiles[name], f"profile {name}", profiles, (*above, name))
        parent, lineage = extends.settled(found), (name, *lineage)
    return _Loader(reader, parent).policy(root), (text, *texts), lineage


def _parent_name(reader: Reader, node: Node, profiles: Mapping[str, str], above: tuple[str, ...]) -> str:
    name = reader.text(node, "extends")
    if name in above:
        raise reader.bad(node, f"extends: {' -> '.join((*above, name))} is a circle")
    if name not in profiles:
        known = ", ".join(sorted(profiles)) or "none here"
        raise reader.bad(node, f"extends: no bundled profile is named {name[:60]!r}; there are: {known}")
    if len(above) >= DEPTH:
        raise reader.bad(node, f"extends: more than {DEPTH} profiles deep")
    return name


class _Loader:
    """One policy. `parent`: what it extends, as `extends.settled` left it."""

    def __init__(self, reader: Reader, parent: Policy | None) -> None:
        self.reader = reader
        self.parent = parent
        self.base = _DEFAULTS if parent is None else parent

    def policy(self, root: Node) -> Policy:
        required = ("version", "name") if self.parent else ("version", "name", "capabilities")
        keys = self.reader.map(root, "the policy", KEYS, required)
        if keys["version"].kind != "scalar" or keys["version"].quoted or keys["version"].text != "1":
            raise self.reader.bad(keys["version"], "version must be 1")
        name = self.reader.text(keys["name"], "name")
        if not 0 < len(name) <= 63 or not set(name) <= _NAME:
            raise self.reader.bad(keys["name"], "name: 1 to 63 of a-z, 0-9, '-' and '_'")
        lists: dict[str, Any] = {}
        for title in ("paths", "commands", "hosts"):
            lists |= self._lists(title, keys.get(title))
        two = self._two_people(keys.get("two_people"))
        found = Policy(
            name=name,
            description=self.reader.text(keys["description"], "description") if "description" in keys else "",
            capabilities=self._capabilities(keys.get("capabilities"), keys.get("approve"), two),
            two_people=two,
            budget_limit=self._budget(keys["budget"]) if "budget" in keys else self.base.budget_limit,
            time_window=self._window(keys["time_window"]) if "time_window" in keys else self.base.time_window,
            isolation_floor=self._floor(keys["isolation"]) if "isolation" in keys else self.base.isolation_floor,
            trifecta=self._trifecta(keys["trifecta"]) if "trifecta" in keys else self.base.trifecta,
            tools=self._tools(keys["tools"]) if "tools" in keys else self.base.tools,
            network=self._network(keys["network"]) if "network" in keys else self.base.network,
            identities=self._identities(keys["identities"]) if "identities" in keys else self.base.identities,
            **lists,
        )
        return found if self.parent is None else extends.combine(self.parent, found)

    def _refuse(self, node: Node, check: Callable[..., str], *values: Any) -> None:
        """Refuse what `check` finds looser than the parent, if there is one."""
        if self.parent is not None and (problem := check(self.parent, *values)):
            raise self.reader.bad(node, problem)

    def _capabilities(self, node: Node | None, approve: Node | None, two: frozenset[str]) -> int:
        entries = {} if node is None else self.reader.map(node, "capabilities", cap.NAMES)
        levels = {name: cap.level(self.base.capabilities, name) for name in cap.NAMES}
        for name, value in entries.items():
            level = cap.LEVELS[self.reader.choice(value, f"capabilities.{name}", tuple(cap.LEVELS))]
            self._refuse(value, extends.looser_level, name, level)
            levels[name] = level
        items = [] if approve is None else self.reader.items(approve, "approve")
        people = {self.reader.choice(item, "approve", cap.NAMES) for item in items}
        # The meet with the parent leaves its own asks in force.
        return cap.pack(levels, frozenset(people) | (two & frozenset(cap.NAMES)))

    def _two_people(self, node: Node | None) -> frozenset[str]:
        items = [] if node is None else self.reader.items(node, "two_people")
        return frozenset(self.reader.choice(item, "two_people", BY_TWO) for item in items)

    # --- lists ---

    def _lists(self, title: str, node: Node | None) -> dict[str, Any]:
        """``paths``, ``commands`` or ``hosts`` as fields of the policy."""
        names = ("allow", "block") if title == "paths" else ("allow", "ask", "deny")
        keys = {} if node is None else self.reader.map(node, title, names)
        out: dict[str, Any] = {}
        for name in names:
            field, what = f"{title}_{name}", f"{title}.{name}"
            if name not in keys:
                out[field] = getattr(self.base, field)
            elif name == "allow":
                out[field] = self._allow(keys[name], what)
            else:
                out[field] = _LIST[title](self.reader, keys[name], what)
        return out

    def _allow(self, node: Node, what: str) -> Everything | frozenset[frozenset[Any]]:
        title = what.partition(".")[0]
        found: Everything | frozenset[frozenset[Any]] = self.reader.allow(
            node, what, lambda item, name: _LIST[title](self.reader, item, name)
        )
        limit = None if self.parent is None else getattr(self.parent, what.replace(".", "_"))
        if limit is None:
            return found
        if isinstance(found, Everything):
            if not isinstance(limit, Everything):
                raise self.reader.bad(node, extends.looser_everything(self.base, what))
            return found
        self._refuse_entries(node, what, () if isinstance(limit, Everything) else limit)
        return found

    def _refuse_entries(self, node: Node, what: str, limit: Any) -> None:
        """Each of the parent's lists (`limit`) has to imply one of the child's, whole."""
        title = what.partition(".")[0]
        one, nodes = _ENTRY[title], self.reader.lists(node, what)
        parts = [[(item, one(self.reader, item, what)) for item in part.items] for part in nodes]
        for part in parts:
            for item, entry in part:
                self._refuse(item, _CAUGHT[title], entry)
        for entries in sorted(limit, key=lambda entries: sorted(map(str, entries))):
            bad = [next((pair for pair in part if not extends.LISTED[what](pair[1], entries)), None) for part in parts]
            if None not in bad:
                item, entry = next(pair for pair in bad if pair is not None)
                raise self.reader.bad(item, extends.looser_entry(self.base, what, entry, entries))

    def _tools(self, node: Node) -> frozenset[frozenset[Any]]:
        out: frozenset[frozenset[Any]] = frozenset()
        for table in load_tools.tables(self.reader, node):
            entries = load_tools.entries(self.reader, table)
            for key, rule in entries:
                self._refuse(key, extends.looser_tool, rule)
            rules = frozenset(rule for _, rule in entries)
            out |= frozenset((rules,)) if self.parent is None else extends.inherited(self.parent, rules)
        return out

    def _network(self, node: Node) -> frozenset[frozenset[Any]]:
        keys = self.reader.map(node, "network", ("allow",))
        if "allow" not in keys:
            return self.base.network
        if keys["allow"].kind == "scalar":
            raise self.reader.bad(keys["allow"], "network.allow: a list such as [pypi.org, github.com:22]")
        out = []
        for part in self.reader.lists(keys["allow"], "network.allow"):
            items = self.reader.items(part, "network.allow")
            entries = [(item, load_network.rule(self.reader, item)) for item in items]
            for item, rule in entries:
                self._refuse(item, extends.looser_connection, rule)
            out.append(frozenset(rule for _, rule in entries))
        return frozenset(out)

    def _identities(self, node: Node) -> frozenset[tuple[str, frozenset[str]]]:
        found: set[tuple[str, frozenset[str]]] = set()
        for subject, part in load_identities.parts(self.reader, node):
            entries = load_identities.entries(self.reader, subject, part)
            for item, pattern in entries:
                self._refuse(item, extends.looser_identity, subject, pattern)
            found.add((subject, frozenset(pattern for _, pattern in entries)))
        said = {subject for subject, _ in found}
        return frozenset(found) | {one for one in self.base.identities if one[0] not in said}

    # --- limits ---

    def _budget(self, node: Node) -> int:
        value = self.reader.map(node, "budget", ("limit_usd",), ("limit_usd",))["limit_usd"]
        text = self.reader.text(value, "budget.limit_usd")
        if not value.quoted:
            raise self.reader.bad(value, 'budget.limit_usd must be quoted text such as "5.00" (no floats for money)')
        whole, dot, part = text.partition(".")
        digits = whole.isascii() and whole.isdigit() and (not dot or (part.isascii() and part.isdigit()))
        if not digits or len(whole) > 6 or len(part) > 6:
            raise self.reader.bad(value, 'budget.limit_usd: dollars such as "5.00", at most 999999, six decimals')
        limit = int(whole) * MICRO + int(part.ljust(6, "0") or "0")
        self._refuse(value, extends.looser_budget, limit, text)
        return limit

    def _window(self, node: Node) -> TimeWindow:
        required = ("duration",) if self.parent is None else ()
        keys = self.reader.map(node, "time_window", ("duration", "not_before", "not_after"), required)
        window = self.base.time_window
        return TimeWindow(
            self._duration(keys["duration"]) if "duration" in keys else window.duration_ns,
            self._moment(keys["not_before"], "not_before") if "not_before" in keys else window.not_before_ns,
            self._moment(keys["not_after"], "not_after") if "not_after" in keys else window.not_after_ns,
        )

    def _duration(self, node: Node) -> int:
        text = self.reader.text(node, "time_window.duration")
        number, unit = text[:-1], text[-1:]
        if unit not in UNITS or not number.isascii() or not number.isdigit() or len(number) > 6 or not int(number):
            raise self.reader.bad(node, "time_window.duration: a whole number and s, m, h or d, such as 90m")
        seconds = int(number) * UNITS[unit]
        if seconds > LONGEST_S:
            raise self.reader.bad(node, "time_window.duration: at most 30d")
        self._refuse(node, extends.looser_duration, seconds * _NS, text)
        return seconds * _NS

    def _moment(self, node: Node, key: str) -> int:
        from datetime import UTC, datetime  # rare

        text = self.reader.text(node, "a time")
        try:
            value = datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        except ValueError:
            raise self.reader.bad(node, 'a time such as "2026-01-31T12:00:00Z"') from None
        moment = int(value.timestamp()) * _NS
        self._refuse(node, extends.looser_moment, key, moment)
        return moment

    def _floor(self, node: Node) -> str:
        value = self.reader.map(node, "isolation", ("floor",), ("floor",))["floor"]
        floor = self.reader.choice(value, "isolation.floor", FLOORS)
        self._refuse(value, extends.looser_floor, floor)
        return floor

    def _trifecta(self, node: Node) -> str:
        # Under a parent its modes stay in force beside these.
        if node.kind == "scalar":
            return "+".join(MODES[self.reader.choice(node, "trifecta", tuple(MODES))])
        known = tuple(name for name, found in MODES.items() if len(found) == 1)
        named = {self.reader.choice(item, "trifecta", known) for item in self.reader.items(node, "trifecta")}
        if not named:
            raise self.reader.bad(node, f"trifecta: at least one mode of {', '.join(known)}")
        return "+".join(sorted(named))


_LIST: dict[str, Callable[[Reader, Node, str], frozenset[Any]]] = {
    "paths": load_lists.globs, "hosts": load_lists.hosts, "commands": load_commands.rules,
}  # fmt: skip
_ENTRY: dict[str, Callable[[Reader, Node, str], Any]] = {
    "paths": lambda reader, node, what: load_lists.glob(reader, node, what)[0],
    "hosts": load_lists.host, "commands": load_commands.rule,
}  # fmt: skip
_CAUGHT: dict[str, Callable[..., str]] = {
    "paths": extends.looser_glob, "hosts": extends.looser_host, "commands": extends.looser_rule,
}  # fmt: skip

__all__ = ["DEPTH", "KEYS", "LONGEST_S", "UNITS", "Loaded", "load_policy", "parse_policy", "policy_digest"]
