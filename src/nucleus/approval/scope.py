"""What a person may say yes to beside "this once": scopes, each a line to read and the key that it is matched by.

scope   | covers                                                        | for
--------|---------------------------------------------------------------|---------------------------------------
same    | exactly this operation again                                  | all but git_push, which is `remote`
path    | this kind of operation on this path, whatever is in it        | read, write, edit
command | exactly this argv, directory and input, whatever deadline     | run
host    | GET and HEAD without a body of this scheme, host and port     | web_fetch, when it is one of these
tool    | this tool with these values of its declared destinations      | tool, when the policy declares them
remote  | this remote and ref, whatever is committed by then            | git_push

key = SHA-256(DOMAIN || JSON of [operation's kind, scope's kind, values, rules that asked, obligations])

Promises: key and line are made of the same values, so what is shown is what is matched: the line says the values whole,
quoted as JSON, or the scope is not offered. A yes for one reason answers no other: the rules that asked and the
obligations are in the key. A key names no pod and no principal; the authority binds it to both. Pure.
Relies on: operations that were validated (paths are normalized), and on the caller for a URL's origin and a tool's
destinations.
Does not: escape (`approval.display` does, in the authority), count, or know what has been granted.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from nucleus.model.decision import Decision, Verdict

DOMAIN = b"nucleus/scope/v1\0"
KINDS = ("same", "path", "command", "host", "tool", "remote")
MAX_OFFERED = 4  # scopes of one request
MAX_SHOWN = 800  # characters of a scope's line; what does not fit is not offered
MAX_TIMES = 100
TTL_NS = 3_600_000_000_000  # of a grant; the pod's end comes first where it is sooner
_PATH = {"read": ("read", "any part of it"), "write": ("write to", "any content"), "edit": ("edit", "any change")}


@dataclass(frozen=True, slots=True)
class Scope:
    """One scope on offer. kind: one of `KINDS`; key: 64 hex digits; shown: the line, not escaped yet."""

    kind: str
    key: str
    shown: str


def reasons(decision: Decision) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Why it asks: the rules that asked, and the obligations, each sorted."""
    asked = {rule for rule, verdict in decision.met if verdict is Verdict.ASK} | {decision.rule}
    return tuple(sorted(asked)), tuple(sorted(set(decision.obligations)))


def answers(given: Decision, now: Decision) -> bool:
    """Whether a yes to what `given` asked for is a yes to all that `now` asks for."""
    return all(set(new) <= set(old) for old, new in zip(reasons(given), reasons(now), strict=True))


def scopes(
    operation: Any,
    digest: str,
    decision: Decision,
    *,
    origin: tuple[str, str, int] | None = None,
    destinations: dict[str, Any] | None = None,
) -> tuple[Scope, ...]:
    """The scopes that a person may choose for `operation`, narrowest first.

    Args:
        operation: validated.
        digest: its hash.
        decision: what asks.
        origin: scheme, host and port of a fetch's URL, as the one parser of URLs read them.
        destinations: a tool's arguments that the policy declares as its destinations; None when it declares none, or
            none is given.
    """
    kind = str(operation.kind)
    found: list[tuple[str, list[Any], str]] = []
    if kind != "git_push":
        again = f"exactly this {kind} again (operation hash {digest})"
        found.append(("same", [digest], again + _LATER.get(kind, "")))
    wider = _wider(operation, kind, origin, destinations)
    if wider is not None:
        found.append(wider)
    return tuple(
        Scope(name, _key(kind, name, values, decision), shown)
        for name, values, shown in found
        if len(shown) <= MAX_SHOWN
    )


# The words stay the same, what they work on does not: the line says so.
_LATER = {
    "run": "; what its files say may be something else by then",
    "git_commit": "; what is committed may be something else by then",
    "create_pr": "; what the branches hold may be something else by then",
}


def _wider(
    operation: Any, kind: str, origin: tuple[str, str, int] | None, destinations: dict[str, Any] | None
) -> tuple[str, list[Any], str] | None:
    """Kind, values and line of the scope beyond `same`, or None."""
    if kind in _PATH:
        verb, whatever = _PATH[kind]
        return "path", [operation.path], f"{verb} {_quoted(operation.path)}, {whatever}"
    if kind == "run":
        argv, stdin = list(operation.argv), _digest(operation.stdin)
        given = f"the input with SHA-256 {stdin}" if operation.stdin else "no input"
        line = f"run {_quoted(argv)} in {_quoted(operation.cwd)} with {given}, any deadline{_LATER[kind]}"
        return "command", [argv, operation.cwd, stdin], line
    if kind == "web_fetch" and origin is not None and operation.method in ("GET", "HEAD") and not operation.body:
        scheme, host, port = origin
        line = f"GET or HEAD from {scheme}://{host}:{port}, any path and query (which can carry data out)"
        return "host", [scheme, host, port], line
    if kind == "tool" and destinations:
        name = f"{operation.server}/{operation.tool}"
        line = f"call {_quoted(name)} with {_quoted(destinations)}, any other arguments (which can carry data out)"
        return "tool", [operation.server, operation.tool, destinations], line
    if kind == "git_push":
        if operation.forced or operation.delete:
            return None  # what is lost is another thing each time
        ref, to = operation.target or operation.ref, operation.url or operation.remote
        line = f"push {_quoted(ref)} to {_quoted(to)}, whatever is committed by then"
        return "remote", [operation.remote, operation.ref, operation.url, operation.target], line
    return None


def _quoted(value: Any) -> str:
    """No two values look the same."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _key(kind: str, scope: str, values: list[Any], decision: Decision) -> str:
    data = json.dumps([kind, scope, values, *reasons(decision)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(DOMAIN + data.encode("ascii")).hexdigest()
