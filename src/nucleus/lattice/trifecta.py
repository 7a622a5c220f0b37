"""The lethal trifecta in its modes: may this way out be taken without a person?

``static``      all three legs are live in what the policy enables (ν): each exfiltration asks
``session``     an exfiltration asks once the session has read something private and something untrusted
``provenance``  an exfiltration, or a change outside the pod, asks unless its destination was named by the task, by a
                trusted tool, or by the one record that the task's words selected; whatever was read before
                (docs/adr/0007-provenance.md)
``all``         static and provenance together

What an operation does outwardly (`outward`):

operation              | exfiltration                                      | state | destination
-----------------------|---------------------------------------------------|-------|---------------------------------
run, with egress       | yes; it is private and untrusted by itself        | yes   | none: a program can go anywhere
web_fetch              | unlisted host, a body, a method that sends, or a  | sends | the URL
                       | path or query after something private was read    |       |
web_search             | after something private was read: the query       | no    | none
git_push               | yes                                               | yes   | the remote, and a ref but HEAD
create_pr              | yes                                               | yes   | the base
manage_pods            | no: a child never exceeds its parent              | yes   | the pod's name; not for list
a tool                 | as the policy declares it                         | so    | the values of the declared
                       |                                                   |       | arguments; none where all are empty
any of them in argv    | yes                                               | yes   | none: a command is more than words

A change inside the pod (write, edit, commit, a run without egress) is no state change: it goes nowhere until a person
or a push takes it there.
Does not: know levels, lists or paths (`decision`), or remember (`session`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nucleus.lattice import capability as cap
from nucleus.lattice.exposure import Exposure
from nucleus.lattice.provenance import Knowledge, values

if TYPE_CHECKING:
    from nucleus.lattice.policy import ToolRule

ROADS = frozenset(("run_bash", "web_fetch", "web_search", "git_push", "create_pr", "manage_pods"))
OUTWARD = cap.EXFILTRATION | cap.STATE


@dataclass(frozen=True, slots=True)
class Outward:
    """What an operation does outside.

    Args:
        legs: bits of `capability`: `EXFILTRATION` and `STATE` as above, and the legs that the operation brings along.
        destinations: all that has to be known; empty: nobody can know it.
    """

    legs: int
    destinations: tuple[str, ...] = ()


INWARD = Outward(0)
_COMMAND = Outward(OUTWARD)
_PROGRAM = Outward(OUTWARD | cap.PRIVATE | cap.UNTRUSTED)


def outward(capability: str, operation: Any, *, egress: bool, listed: bool, seen: Exposure) -> Outward:
    """What `operation` does outside by way of `capability`; the table above.

    Args:
        egress: the pod has a way out.
        listed: the policy lists the URL's host.
        seen: what the session has seen.
    """
    if capability == "run_bash":
        return _PROGRAM if egress else INWARD
    kind = operation.kind
    if kind == "run":
        return _COMMAND if capability in ROADS else INWARD
    if kind == "web_fetch":
        sends = operation.method not in ("GET", "HEAD") or bool(operation.body)
        leaves = sends or not listed or (bool(seen.private) and _says_more(operation.url))
        return Outward((cap.EXFILTRATION if leaves else 0) | (cap.STATE if sends else 0), (operation.url,))
    if kind == "web_search":
        return Outward(cap.EXFILTRATION if seen.private else 0)
    if kind == "git_push":
        ref = () if operation.ref == "HEAD" else (operation.ref,)
        return Outward(OUTWARD, (operation.remote, *ref))
    if kind == "create_pr":
        return Outward(OUTWARD, (operation.base,))
    if kind == "manage_pods" and operation.action != "list":
        return Outward(cap.STATE, (operation.name,) if operation.name else ())
    return INWARD


def _says_more(url: str) -> bool:
    """A path or query, which can carry what was read."""
    rest = url.partition("://")[2]
    at = min((at for at in (rest.find(mark) for mark in "/?#") if at >= 0), default=len(rest))
    return rest[at:] not in ("", "/")


def outward_tool(rule: ToolRule, arguments: dict[str, Any]) -> Outward:
    """What a call of an external tool does outside, by the policy's `rule` for it."""
    return Outward(rule.legs, tuple(value for name in rule.destination for value in values(arguments.get(name))))


def session_asks(what: Outward, seen: Exposure) -> bool:
    """Mode ``session``. What the operation itself reads counts; what it learns by being answered comes too late."""
    if not what.legs & cap.EXFILTRATION:
        return False
    private = bool(seen.private) or bool(what.legs & cap.PRIVATE)
    untrusted = bool(seen.untrusted) or what is _PROGRAM
    return private and untrusted


def provenance_asks(what: Outward, knowledge: Knowledge) -> str | None:
    """Mode ``provenance``: why it asks, for a person; None when it does not."""
    if not what.legs & OUTWARD:
        return None
    if not what.destinations:
        return "it names no destination"
    unknown = knowledge.unknown(what.destinations)
    if unknown is None:
        return None
    return f"destination {unknown[:200]!r} comes neither from the task nor from a trusted tool"


def sources(seen: Exposure) -> str:
    """Which sources completed the trifecta, so that a person can judge."""
    return f"private: {_names(seen.private)}; untrusted: {_names(seen.untrusted)}"


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "nothing yet"
