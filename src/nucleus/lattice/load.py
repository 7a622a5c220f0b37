"""Policy text to a `Policy`: a strict schema, every refusal with file, line and column.

Promises: unknown or duplicate keys, wrong types, anchors, tags, floats for money and oversize text are refused; what a
key does not say is the safe default (no capability, `@sensitive` blocked, one dollar, one hour, ordinary commands).
Nothing in a file can widen what another file said: a policy is one file.
Does not: read files (`store.policies`), or inherit (`delegate` does).

Format, version 1 (docs/policy.md explains it; * required):

    version: 1 *            name: text *             description: text
    capabilities: {read_files: always|low_risk|never, ...} *
    approve: [capability, ...]                       a person must say yes
    paths: {allow: everything|[glob], block: [glob or "@sensitive"]}
    commands: {allow: everything|[rule], ask: [rule], deny: [rule]}
       rule: {set: ordinary|interpreters|shells|network}  or
             {program: git, args: [status, {one_of: [a, b]}, {type: word|integer|path}], rest: any|none|paths}
    hosts: {allow: everything|[host or *.parent], ask: [...], deny: [...]}
    budget: {limit_usd: "5.00"}                      six decimals at most
    time_window: {duration: 90m, not_before: "2026-01-01T00:00:00Z", not_after: "..."}
    isolation: {floor: namespaces|gvisor|qemu|firecracker}
    trifecta: static
"""

from __future__ import annotations

import hashlib
import string

from nucleus.errors import InvalidError
from nucleus.lattice import capability as cap
from nucleus.lattice import tables
from nucleus.lattice.paths import SENSITIVE
from nucleus.lattice.policy import (
    EVERYTHING,
    FLOORS,
    MICRO,
    ORDINARY,
    Argument,
    CommandRule,
    Everything,
    Policy,
    TimeWindow,
)
from nucleus.lattice.yamltree import Node, parse_tree, schema_error
from nucleus.validate.paths import validate_glob

_KEYS = (
    "version", "name", "description", "capabilities", "approve", "paths", "commands", "hosts", "budget",
    "time_window", "isolation", "trifecta",
)  # fmt: skip
_NAME = frozenset(string.ascii_lowercase + string.digits + "_-")
_HOST = frozenset(string.ascii_lowercase + string.digits + "-._*")
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_NS = 1_000_000_000
_MODES_TO_COME = ("session", "provenance", "all")


def policy_digest(text: str) -> str:
    """SHA-256 (hex) of a policy's text: its name in the audit log."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def parse_policy(text: str, source: str) -> Policy:
    """Parse and check one policy.

    Args:
        text: YAML, at most ``LIMITS.policy_bytes``.
        source: how errors name it: a file's path or ``profile <name>``.

    Raises:
        InvalidError: rule ``policy.schema``, message ``source:line:column: problem``.
    """
    return _Reader(source).policy(parse_tree(text, source))


class _Reader:
    def __init__(self, source: str) -> None:
        self.source = source

    def bad(self, node: Node, problem: str) -> InvalidError:
        return schema_error(self.source, node.line, node.column, problem)

    # --- shapes ---

    def map(self, node: Node, what: str, keys: tuple[str, ...], required: tuple[str, ...] = ()) -> dict[str, Node]:
        if node.kind != "map":
            raise self.bad(node, f"{what} must be a mapping")
        for name, (key, _) in node.entries.items():
            if name not in keys:
                raise self.bad(key, f"unknown key {name!r} in {what}; known: {', '.join(keys)}")
        for name in required:
            if name not in node.entries:
                raise self.bad(node, f"{what} needs the key {name!r}")
        return {name: value for name, (_, value) in node.entries.items()}

    def items(self, node: Node, what: str) -> list[Node]:
        if node.kind != "list":
            raise self.bad(node, f"{what} must be a list (write [] for an empty one)")
        return node.items

    def text(self, node: Node, what: str) -> str:
        if node.kind != "scalar" or (not node.quoted and node.text in ("", "~", "null")):
            raise self.bad(node, f"{what} must be text")
        return node.text

    def choice(self, node: Node, what: str, known: tuple[str, ...]) -> str:
        value = self.text(node, what)
        if value not in known:
            raise self.bad(node, f"{what} must be one of {', '.join(known)}; got {value[:60]!r}")
        return value

    # --- the policy ---

    def policy(self, root: Node) -> Policy:
        keys = self.map(root, "the policy", _KEYS, ("version", "name", "capabilities"))
        if keys["version"].kind != "scalar" or keys["version"].quoted or keys["version"].text != "1":
            raise self.bad(keys["version"], "version must be 1")
        name = self.text(keys["name"], "name")
        if not 0 < len(name) <= 63 or not set(name) <= _NAME:
            raise self.bad(keys["name"], "name: 1 to 63 of a-z, 0-9, '-' and '_'")
        paths_allow, paths_block = self.paths(keys.get("paths"))
        commands = self.commands(keys.get("commands"))
        hosts = self.hosts(keys.get("hosts"))
        return Policy(
            name=name,
            description=self.text(keys["description"], "description") if "description" in keys else "",
            capabilities=self.capabilities(keys["capabilities"], keys.get("approve")),
            budget_limit=self.budget(keys.get("budget")),
            time_window=self.window(keys.get("time_window")),
            paths_allow=paths_allow,
            paths_block=paths_block,
            commands_allow=commands[0],
            commands_ask=commands[1],
            commands_deny=commands[2],
            hosts_allow=hosts[0],
            hosts_ask=hosts[1],
            hosts_deny=hosts[2],
            isolation_floor=self.floor(keys.get("isolation")),
            trifecta=self.trifecta(keys.get("trifecta")),
        )

    def capabilities(self, node: Node, approve: Node | None) -> int:
        entries = self.map(node, "capabilities", cap.NAMES)
        levels = {
            name: cap.LEVELS[self.choice(value, f"capabilities.{name}", tuple(cap.LEVELS))]
            for name, value in entries.items()
        }
        people = [self.choice(item, "approve", cap.NAMES) for item in self.items(approve, "approve")] if approve else []
        return cap.pack(levels, frozenset(people))

    def paths(self, node: Node | None) -> tuple[Everything | frozenset[frozenset[str]], frozenset[str]]:
        keys = self.map(node, "paths", ("allow", "block")) if node else {}
        allow: Everything | frozenset[frozenset[str]] = EVERYTHING
        if "allow" in keys and not self.is_everything(keys["allow"]):
            allow = frozenset((frozenset(self.globs(keys["allow"], "paths.allow")),))
        block = self.globs(keys["block"], "paths.block") if "block" in keys else list(SENSITIVE)
        return allow, frozenset(block)

    def is_everything(self, node: Node) -> bool:
        return node.kind == "scalar" and node.text == "everything"

    def globs(self, node: Node, what: str) -> list[str]:
        out: list[str] = []
        for item in self.items(node, what):
            glob = self.text(item, what)
            if glob == "@sensitive" and what == "paths.block":
                out += SENSITIVE
                continue
            if glob.startswith("@"):
                raise self.bad(item, f"{what}: unknown set {glob[:60]!r}; the only one is '@sensitive', in paths.block")
            try:
                clean = validate_glob(what, glob)
            except InvalidError as error:
                raise self.bad(item, error.message) from None
            if clean.strip("/") in ("", "."):
                raise self.bad(item, f"{what}: name a file or directory, or '**'")
            out.append(clean)
        return out

    def commands(
        self, node: Node | None
    ) -> tuple[Everything | frozenset[frozenset[CommandRule]], frozenset[CommandRule], frozenset[CommandRule]]:
        keys = self.map(node, "commands", ("allow", "ask", "deny")) if node else {}
        allow: Everything | frozenset[frozenset[CommandRule]] = frozenset((frozenset((ORDINARY,)),))
        if "allow" in keys:
            allow = (
                EVERYTHING if self.is_everything(keys["allow"]) else frozenset((self.rules(keys["allow"], "allow"),))
            )
        ask, deny = (self.rules(keys[name], name) if name in keys else frozenset() for name in ("ask", "deny"))
        return allow, ask, deny

    def rules(self, node: Node, which: str) -> frozenset[CommandRule]:
        what = f"commands.{which}"
        return frozenset(self.rule(item, what) for item in self.items(node, what))

    def rule(self, node: Node, what: str) -> CommandRule:
        keys = self.map(node, f"a rule of {what}", ("program", "args", "rest", "set"))
        if "set" in keys:
            if len(keys) > 1:
                raise self.bad(node, "a rule has a set or a program, not both")
            return CommandRule(group=self.choice(keys["set"], "set", tuple(tables.SETS)))
        if "program" not in keys:
            raise self.bad(node, f"a rule of {what} needs 'program' or 'set'")
        program = self.text(keys["program"], "program")
        if not program or " " in program or not program.isprintable():
            raise self.bad(keys["program"], "program: one word, such as git or ./build.sh")
        directory, slash, name = program.rpartition("/")
        if slash and directory in tables.SYSTEM_DIRECTORIES:
            program = name
        args = tuple(self.argument(item) for item in self.items(keys["args"], "args")) if "args" in keys else ()
        rest = self.choice(keys["rest"], "rest", ("any", "none", "paths")) if "rest" in keys else "any"
        return CommandRule(program=program, args=args, rest=rest)

    def argument(self, node: Node) -> Argument:
        if node.kind == "scalar":
            return Argument("literal", (self.text(node, "an argument"),))
        keys = self.map(node, "an argument rule", ("one_of", "type"))
        if len(keys) != 1:
            raise self.bad(node, "an argument rule has one of 'one_of' and 'type'")
        if "one_of" in keys:
            return Argument(
                "literal", tuple(sorted(self.text(x, "one_of") for x in self.items(keys["one_of"], "one_of")))
            )
        return Argument(self.choice(keys["type"], "type", ("word", "integer", "path")))

    def hosts(self, node: Node | None) -> tuple[Everything | frozenset[frozenset[str]], frozenset[str], frozenset[str]]:
        keys = self.map(node, "hosts", ("allow", "ask", "deny")) if node else {}
        allow: Everything | frozenset[frozenset[str]] = frozenset((frozenset(),))
        if "allow" in keys:
            allow = (
                EVERYTHING
                if self.is_everything(keys["allow"])
                else frozenset((self.host_list(keys["allow"], "allow"),))
            )
        ask, deny = (self.host_list(keys[name], name) if name in keys else frozenset() for name in ("ask", "deny"))
        return allow, ask, deny

    def host_list(self, node: Node, which: str) -> frozenset[str]:
        return frozenset(self.host(item, f"hosts.{which}") for item in self.items(node, f"hosts.{which}"))

    def host(self, node: Node, what: str) -> str:
        host = self.text(node, what).lower().removesuffix(".")
        plain = host.removeprefix("*.")
        if not plain or len(host) > 253 or "*" in plain or ".." in plain or not set(host) <= _HOST:
            raise self.bad(node, f"{what}: a host such as example.com or *.example.com")
        return host

    def budget(self, node: Node | None) -> int:
        if node is None:
            return MICRO
        value = self.map(node, "budget", ("limit_usd",), ("limit_usd",))["limit_usd"]
        text = self.text(value, "budget.limit_usd")
        if not value.quoted:
            raise self.bad(value, 'budget.limit_usd must be quoted text such as "5.00" (no floats for money)')
        whole, dot, part = text.partition(".")
        digits = whole.isascii() and whole.isdigit() and (not dot or (part.isascii() and part.isdigit()))
        if not digits or len(whole) > 6 or len(part) > 6:
            raise self.bad(value, 'budget.limit_usd: dollars such as "5.00", at most 999999, six decimals')
        return int(whole) * MICRO + int(part.ljust(6, "0") or "0")

    def window(self, node: Node | None) -> TimeWindow:
        if node is None:
            return TimeWindow(3_600 * _NS)
        keys = self.map(node, "time_window", ("duration", "not_before", "not_after"), ("duration",))
        text = self.text(keys["duration"], "time_window.duration")
        number, unit = text[:-1], text[-1:]
        if unit not in _UNITS or not number.isascii() or not number.isdigit() or len(number) > 6 or not int(number):
            raise self.bad(keys["duration"], "time_window.duration: a whole number and s, m, h or d, such as 90m")
        seconds = int(number) * _UNITS[unit]
        if seconds > 30 * 86_400:
            raise self.bad(keys["duration"], "time_window.duration: at most 30d")
        return TimeWindow(
            seconds * _NS,
            self.moment(keys["not_before"]) if "not_before" in keys else 0,
            self.moment(keys["not_after"]) if "not_after" in keys else EVERYTHING,
        )

    def moment(self, node: Node) -> int:
        from datetime import UTC, datetime  # rare

        text = self.text(node, "a time")
        try:
            value = datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        except ValueError:
            raise self.bad(node, 'a time such as "2026-01-31T12:00:00Z"') from None
        return int(value.timestamp()) * _NS

    def floor(self, node: Node | None) -> str:
        if node is None:
            return FLOORS[0]
        return self.choice(self.map(node, "isolation", ("floor",), ("floor",))["floor"], "isolation.floor", FLOORS)

    def trifecta(self, node: Node | None) -> str:
        if node is None:
            return "static"
        mode = self.text(node, "trifecta")
        if mode in _MODES_TO_COME:
            raise self.bad(node, f"trifecta: {mode} is not in this version; use static")
        return self.choice(node, "trifecta", ("static",))
