"""What the reference is given: policy, context and operation as plain words, lists and sets. No bits, nothing compiled.

The generators make each of these first, and the product's own dataclasses from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

EVERYTHING = "everything"


@dataclass(frozen=True)
class Argument:
    """A typed argument rule: literal, word, integer or path."""

    kind: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rule:
    """A line of a command list: a program or a set."""

    program: str = ""
    group: str = ""
    args: tuple[Argument, ...] = ()
    rest: str = "any"


@dataclass(frozen=True)
class Tool:
    """What a table declares of one tool, or of all of a server."""

    name: str
    legs: frozenset[str]
    destination: tuple[str, ...] = ()
    level: str = "low_risk"
    approve: bool = False


@dataclass(frozen=True)
class Rules:
    """A policy. An allow is `EVERYTHING`, or lists of which every one has to agree."""

    levels: dict[str, str]  # by capability; what is not named is never
    approve: frozenset[str]
    duration: int
    not_before: int
    not_after: int | None
    paths_allow: str | tuple[tuple[str, ...], ...]
    paths_block: tuple[str, ...]
    commands_allow: str | tuple[tuple[Rule, ...], ...]
    commands_ask: tuple[Rule, ...]
    commands_deny: tuple[Rule, ...]
    hosts_allow: str | tuple[tuple[str, ...], ...]
    hosts_ask: tuple[str, ...]
    hosts_deny: tuple[str, ...]
    floor: str
    modes: frozenset[str]
    tables: tuple[tuple[Tool, ...], ...]
    callers: tuple[tuple[str, tuple[str, ...]], ...] = ()  # (capability, tools or network; one list), all have to admit


@dataclass(frozen=True)
class Moment:
    """A context. `texts` and `values` are what the session has learnt; None: the task is all there is."""

    now: int
    started: int
    egress: bool
    trusted: bool
    isolation: str
    private: bool
    untrusted: bool
    task: str = ""
    texts: tuple[str, ...] | None = None
    values: tuple[str, ...] = ()
    caller: str = ""
    own: bool = True


@dataclass(frozen=True)
class Asked:
    """An operation: its kind and fields, and for a command what `commands.analyse` says of its words."""

    kind: str
    fields: dict[str, Any] = field(hash=False)
    command: Any = None
    string: Any = None  # `strings.read` of it, where it is a shell string of plain commands
    composed: bool = False
