"""A policy as YAML text that parses back to the same policy: what a meet is written down as.

Promises: for every policy that a file can hold, ``parse_policy(emit(policy)) == policy``; nothing is left out that has
a default, so the text means the same when defaults change. Strings are quoted, always.
Does not: know what the policy extended, or the examples of its rules: the text stands alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from nucleus.lattice import capability as cap
from nucleus.lattice import identities as ids
from nucleus.lattice.explain import dollars, duration, folded
from nucleus.lattice.network import NetRule
from nucleus.lattice.policy import Argument, CommandRule, Everything, Policy, TimeWindow, ToolRule, modes

_NS = 1_000_000_000
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t"}


def emit(policy: Policy) -> str:
    """The policy as a file of version 1.

    Args:
        policy: of whole seconds and at least one list in each conjunction, as a parsed policy or a meet of such is.
    """
    asks = [name for name in cap.NAMES if _asks(policy.capabilities, name)]
    lines = ["version: 1", f"name: {policy.name}"]
    if policy.description:
        lines.append(f"description: {_quote(policy.description)}")
    lines.append("capabilities:")
    lines += [f"  {name}: {cap.LEVEL_NAMES[cap.level(policy.capabilities, name)]}" for name in cap.NAMES]
    lines += [f"approve: [{', '.join(asks)}]", f"two_people: [{', '.join(sorted(policy.two_people))}]", "paths:"]
    lines += _allow(policy.paths_allow, _globs)
    lines += [f"  block: {_flow(_quote(glob) for glob in folded(policy.paths_block))}", "commands:"]
    lines += _allow(policy.commands_allow, _rules)
    lines += _list("ask", _rules(policy.commands_ask)) + _list("deny", _rules(policy.commands_deny))
    lines.append("hosts:")
    lines += _allow(policy.hosts_allow, _quoted)
    lines += [f"  ask: {_flow(_quoted(policy.hosts_ask))}", f"  deny: {_flow(_quoted(policy.hosts_deny))}"]
    lines += _network(policy.network)
    lines += _tools(policy.tools)
    lines += [f'budget: {{limit_usd: "{dollars(policy.budget_limit)}"}}', f"time_window: {_window(policy.time_window)}"]
    lines += [f"isolation: {{floor: {policy.isolation_floor}}}", f"trifecta: {_flow(modes(policy.trifecta))}"]
    lines += identities(policy.identities)
    return "\n".join(lines) + "\n"


def identities(found: ids.Identities) -> list[str]:
    """The section, by subject."""
    subjects = sorted({subject for subject, _ in found})
    named = {subject: _people(ids.lists_of(found, subject)) for subject in subjects}
    lines = [f"  {subject}: {text}" for subject, text in named.items() if "." not in subject]
    below = [f"    {subject.partition('.')[2]}: {text}" for subject, text in named.items() if "." in subject]
    return ["identities:", *lines, *([f"  {ids.OPERATIONS}:", *below] if below else [])]


def _people(lists: tuple[ids.Patterns, ...]) -> str:
    texts = [_flow(_quoted(patterns)) for patterns in lists]
    return texts[0] if len(texts) == 1 else f"{{all_of: {_flow(texts)}}}"


def _network(lists: frozenset[frozenset[NetRule]]) -> list[str]:
    return ["network:", *_allow(lists, lambda rules: sorted(map(_connection, rules)))]


def _connection(rule: NetRule) -> str:
    parts = [f"host: {_quote(rule.host)}", f"port: {rule.port}", f"protocol: {rule.protocol}"]
    parts += [f"methods: {_flow(rule.methods)}"] if rule.methods else []
    parts += [f"paths: {_flow(map(_quote, rule.paths))}"] if rule.paths else []
    parts += [f"credential: {rule.credential}"] if rule.credential else []
    parts += [f"model: {rule.model}"] if rule.model else []
    parts += [f"service: {rule.service}"] if rule.service else []
    parts += [f"host_key: {_quote(rule.host_key)}"] if rule.host_key else []
    if rule.price:
        named = zip(("input", "output", "cache_read", "cache_write"), rule.price, strict=True)
        parts.append(f"price: {{{', '.join(f'{name}: {value}' for name, value in named)}}}")
    parts += [f"{name}: true" for name in ("trusted", "approve") if getattr(rule, name)]
    parts += ["trusted: false"] if (rule.model or rule.service) and not rule.trusted else []  # or it would be
    return f"{{{', '.join(parts)}}}"


def _asks(capabilities: int, name: str) -> bool:
    return cap.level(capabilities, name) != cap.NEVER and not cap.unattended(capabilities, name)


def _quote(text: str) -> str:
    return '"' + "".join(_ESCAPES.get(c) or (c if c.isprintable() else f"\\U{ord(c):08X}") for c in text) + '"'


def _flow(items: Iterable[str]) -> str:
    return f"[{', '.join(items)}]"


def _quoted(items: Iterable[str]) -> list[str]:
    return [_quote(item) for item in sorted(items)]


def _globs(globs: Iterable[str]) -> list[str]:
    return _quoted(f".{glob}" if glob.startswith("/") else glob for glob in globs)


def _allow(allow: Everything | frozenset[frozenset[Any]], entries: Callable[[Any], list[str]]) -> list[str]:
    if isinstance(allow, Everything):
        return ["  allow: everything"]
    lists = sorted(entries(items) for items in allow)
    if len(lists) == 1:
        return _list("allow", lists[0])
    out = ["  allow:", "    all_of:"]
    for items in lists:
        first, *rest = items or ["[]"]
        out.append(f"      - {first}" if not items else f"      - - {first}")
        out += [f"        - {item}" for item in rest]
    return out


def _list(name: str, items: list[str]) -> list[str]:
    return [f"  {name}:", *(f"    - {item}" for item in items)] if items else [f"  {name}: []"]


def _rules(rules: Iterable[CommandRule]) -> list[str]:
    return sorted(_rule(rule) for rule in rules)


def _rule(rule: CommandRule) -> str:
    if rule.group:
        return f"{{set: {rule.group}}}"
    parts = [f"program: {_quote(rule.program)}"]
    if rule.args:
        parts.append(f"args: {_flow(map(_argument, rule.args))}")
    if rule.rest != "any":
        parts.append(f"rest: {rule.rest}")
    return f"{{{', '.join(parts)}}}"


def _argument(argument: Argument) -> str:
    if argument.kind != "literal":
        return f"{{type: {argument.kind}}}"
    if len(argument.values) == 1:
        return _quote(argument.values[0])
    return f"{{one_of: {_flow(map(_quote, argument.values))}}}"


def _tools(tables: frozenset[frozenset[ToolRule]]) -> list[str]:
    if tables <= {frozenset()}:
        return ["tools: {}"]
    texts = sorted(sorted(map(_tool, table)) for table in tables)
    if len(texts) == 1:
        return ["tools:", *(f"  {text}" for text in texts[0])]
    out = ["tools:", "  all_of:"]
    for table in texts:
        first, *rest = table or ["{}"]
        out += [f"    - {first}", *(f"      {text}" for text in rest)]
    return out


def _tool(rule: ToolRule) -> str:
    legs = [name for name, bit in cap.LEG_NAMES.items() if rule.legs & bit]
    parts = [f"legs: {_flow(legs)}"]
    if rule.destination:
        parts.append(f"destination: {_flow(map(_quote, rule.destination))}")
    parts.append(f"level: {cap.LEVEL_NAMES[rule.level]}")
    if rule.approve:
        parts.append("approve: true")
    if rule.names:
        parts.append(f"names: {_flow(map(_quote, rule.names))}")
    if rule.members:
        parts.append(f"members: {_flow(map(_quote, rule.members))}")
    return f"{_quote(rule.name)}: {{{', '.join(parts)}}}"


def _window(window: TimeWindow) -> str:
    parts = [f"duration: {duration(window.duration_ns)}"]
    if window.not_before_ns:
        parts.append(f'not_before: "{_moment(window.not_before_ns)}"')
    if not isinstance(window.not_after_ns, Everything):
        parts.append(f'not_after: "{_moment(window.not_after_ns)}"')
    return f"{{{', '.join(parts)}}}"


def _moment(nanoseconds: int) -> str:
    from datetime import UTC, datetime, timedelta  # rare

    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=nanoseconds // _NS)
    return f"{at.year:04d}-{at.month:02d}-{at.day:02d}T{at.hour:02d}:{at.minute:02d}:{at.second:02d}Z"
