"""How a command line names an operation and the pod that it happens in; and an operation as such words again.

Promises: ``operation(words_of(x))`` decides as ``x`` does; contents, which no policy looks at, are left out.
Does not: decide.
"""

from __future__ import annotations

from nucleus.cli.options import invalid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nucleus.lattice import Context
    from nucleus.model.operation import Base

# Which fields an operation's words fill, in order; the last name takes all that is left when it ends in "*".
FIELDS: dict[str, tuple[str, ...]] = {
    "read": ("path",), "write": ("path",), "edit": ("path",), "glob": ("pattern", "path"), "grep": ("pattern", "path"),
    "run": ("argv*",), "git_status": (), "git_diff": (), "git_commit": ("paths*",), "web_fetch": ("url", "method"),
    "web_search": ("query*",), "git_push": ("remote", "ref"), "create_pr": ("title",),
    "manage_pods": ("action", "name"), "tool": ("name", "arguments"), "connect": ("target", "method", "path"),
}  # fmt: skip
_FILLED = {"write": {"content": ""}, "edit": {"old": "-", "new": ""}, "git_commit": {"message": "-"}}
SEEN = ("private", "untrusted", "steered")


_SHELL = frozenset("|&;<>$`(){}*?~#\n")


def _line(words: list[str]) -> list[str]:
    """A command's words. One that was given as a single quoted line is split as a shell would have done.

    Only here, where a person asks what would be decided: the gate takes words, and never splits any.
    """
    if len(words) != 1 or not any(blank in words[0] for blank in " \t\n"):
        return list(words)
    if _SHELL & set(words[0]):
        return ["sh", "-c", words[0]]  # it needs a shell: that is what would be asked for
    import shlex  # rare

    try:
        return shlex.split(words[0])
    except ValueError as error:
        raise invalid(f"run: {error}") from None


def operation(words: list[str]) -> Base:
    """The operation that `words` name. Raises InvalidError."""
    from pydantic import ValidationError

    from nucleus.model.operation import ADAPTER

    kind, rest = (words[0], words[1:]) if words else ("", [])
    if kind not in FIELDS:
        raise invalid(f"unknown operation {kind[:100]!r}; known: {', '.join(FIELDS)}")
    if rest[:1] == ["--"]:
        rest = rest[1:]
    if kind == "connect":
        return _connect(rest)
    raw: dict[str, Any] = {"kind": kind, **_FILLED.get(kind, {})}
    for name in FIELDS[kind]:
        if name.endswith("*"):
            raw[name[:-1]], rest = (" ".join(rest) if name == "query*" else _line(rest)), []
        elif rest:
            raw[name], rest = rest[0], rest[1:]
    if rest:
        raise invalid(f"{kind}: unexpected {rest[0][:100]!r}")
    if kind == "tool":
        _tool(raw)
    try:
        return ADAPTER.validate_python(raw)
    except ValidationError as error:
        first = error.errors()[0]
        raise invalid(f"{kind}: {'.'.join(map(str, first['loc'][1:]))}: {first['msg']}") from None


def _tool(raw: dict[str, Any]) -> None:
    """``SERVER/TOOL`` and JSON arguments into their fields."""
    import json

    server, slash, tool = raw.pop("name", "").partition("/")
    if not slash or not server or not tool:
        raise invalid("tool: name it SERVER/TOOL")
    raw["server"], raw["tool"] = server, tool
    text = raw.pop("arguments", "{}")
    try:
        raw["arguments"] = json.loads(text)
    except (ValueError, RecursionError):
        raise invalid('tool: the arguments are a JSON object, such as \'{"to": "a@example.com"}\'') from None
    if not isinstance(raw["arguments"], dict):
        raise invalid("tool: the arguments are a JSON object")


def _connect(words: list[str]) -> Base:
    """``connect HOST[:PORT] [METHOD [PATH]]``: what the pod's gateway would ask."""
    from nucleus.lattice.network import parse_target, protocol_of
    from nucleus.server.wire import parse_connect

    if not 1 <= len(words) <= 3:
        raise invalid("connect takes HOST[:PORT] and, where a request is meant, METHOD and PATH")
    try:
        host, port = parse_target(words[0])
    except ValueError as error:
        raise invalid(f"connect: {error}") from None
    method = words[1].upper() if len(words) > 1 else "GET" if protocol_of(port) == "http" else ""
    path = words[2] if len(words) > 2 else "/" if method else ""
    name = host.partition("/")[0]
    return parse_connect(
        {
            "kind": "connect",
            "conn": 1,
            "host": name,
            "port": port,
            "protocol": protocol_of(port),
            "method": method,
            "path": path,
        }
    )


def words_of(op: Any) -> list[str]:
    """The words that name `op`."""
    import json

    if op.kind == "tool":
        arguments = [json.dumps(op.arguments, ensure_ascii=False)] if op.arguments else []
        return ["tool", f"{op.server}/{op.tool}", *arguments]
    if op.kind == "connect":
        to = f"[{op.host}/128]:{op.port}" if ":" in op.host else f"{op.host}:{op.port}"
        return ["connect", to, *([op.method, op.path] if op.method else [])]
    words = [op.kind]
    for name in FIELDS[op.kind]:
        value = getattr(op, name.removesuffix("*"))
        words += list(value) if isinstance(value, tuple) else [value] if value else []
    defaults = {"glob": ".", "grep": ".", "web_fetch": "GET", "git_push": "HEAD"}
    if len(words) == 3 and words[2] == defaults.get(op.kind):
        words.pop()
    return ["git_push"] if words == ["git_push", "origin"] else words


def flags_of(context: Context) -> list[str]:
    """The options of `explain` that make `context`, but for its moment."""
    from nucleus.lattice.policy import FLOORS

    seen = [name for name in SEEN if getattr(context.seen, name)]
    rung = [] if context.isolation == FLOORS[-1] else ["--isolation", context.isolation]
    return [
        *(["--egress"] if context.egress else []),
        *(["--trust-workspace"] if context.trusted_workspace else []),
        *(["--seen", ",".join(seen)] if seen else []),
        *(["--task", context.task] if context.task else []),
        *(["--as", context.caller] if context.caller else []),
        *rung,
    ]


def context(values: dict[str, Any]) -> Context:
    """A pod that has just started, as the options describe it. Raises InvalidError."""
    import time

    from nucleus.lattice import Context
    from nucleus.lattice.exposure import Exposure
    from nucleus.lattice.identities import problem
    from nucleus.lattice.policy import FLOORS

    rung = values["isolation"] or FLOORS[0]
    if rung not in FLOORS:
        raise invalid(f"--isolation must be one of {', '.join(FLOORS)}")
    seen = {name for name in values["seen"].split(",") if name}
    if unknown := sorted(seen - set(SEEN)):
        raise invalid(f"--seen: {unknown[0][:60]!r} is none of {', '.join(SEEN)}")
    if values["as"] and (wrong := problem(values["as"], own=False)):
        raise invalid(f"--as: {wrong}")
    now = time.time_ns()
    told = ("what --seen says",)
    return Context(
        now_ns=now,
        started_ns=now,
        egress=values["egress"],
        trusted_workspace=values["trust-workspace"],
        isolation=rung,
        seen=Exposure(told if "private" in seen else (), told if "untrusted" in seen else (), "steered" in seen),
        task=values["task"],
        caller=values["as"],
        own=not values["as"],
    )
