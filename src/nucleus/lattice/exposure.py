"""What a session has seen: the facts behind the trifecta modes ``session`` and ``provenance``.

Promises: an `Exposure` only ever grows (`join`); what cannot be told apart counts as both private and untrusted; it
survives as plain data (`to_data`, `from_data`), and data that does not read back is `UNKNOWN`, never nothing.
`exposes` says before an operation runs what it will have shown: what the gate cannot observe counts as having happened.
Does not: decide, remember, or read a log (`session`, and the authority, do).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nucleus.lattice import capability as cap
from nucleus.lattice.network import vouched
from nucleus.lattice.policy import UNDECLARED, Policy, ToolRule, tool_rule

if TYPE_CHECKING:  # pydantic's weight, for a name
    from nucleus.model.operation import Base

KEPT = 8  # sources of each kind that are kept by name
SOURCE_CHARACTERS = 120


@dataclass(frozen=True, slots=True)
class Exposure:
    """Sources by name, oldest first, at most `KEPT` of each.

    Args:
        private: what private data was read from; non-empty is what counts.
        untrusted: what untrusted content came from.
        steered: something outside was changed after untrusted content was read: what tools return from then on may be
            what the agent itself put there.
    """

    private: tuple[str, ...] = ()
    untrusted: tuple[str, ...] = ()
    steered: bool = False

    def join(self, other: Exposure) -> Exposure:
        """Both. Monotone: no leg ever goes away."""
        return Exposure(
            _united(self.private, other.private),
            _united(self.untrusted, other.untrusted),
            self.steered or other.steered,
        )

    def bits(self) -> int:
        """The legs that are live, as bits of `capability`."""
        return (cap.PRIVATE if self.private else 0) | (cap.UNTRUSTED if self.untrusted else 0)

    def to_data(self) -> dict[str, Any]:
        """As an audit record has it; only what is there."""
        data: dict[str, Any] = {}
        if self.private:
            data["private"] = list(self.private)
        if self.untrusted:
            data["untrusted"] = list(self.untrusted)
        if self.steered:
            data["steered"] = True
        return data

    @classmethod
    def from_data(cls, data: object) -> Exposure:
        """The inverse of `to_data`; `UNKNOWN` for anything else."""
        if not isinstance(data, dict) or set(data) - {"private", "untrusted", "steered"}:
            return UNKNOWN
        lists = [data.get("private", []), data.get("untrusted", [])]
        if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists):
            return UNKNOWN
        steered = data.get("steered", False)
        if not isinstance(steered, bool):
            return UNKNOWN
        private, untrusted = (tuple(source(name) for name in names[:KEPT]) for names in lists)
        return cls(private, untrusted, steered)


NOTHING = Exposure()
UNKNOWN = Exposure(("an unknown source",), ("an unknown source",), True)


def source(text: str) -> str:
    """A source's name, cut to size."""
    return text if len(text) <= SOURCE_CHARACTERS else text[: SOURCE_CHARACTERS - 1] + "…"


def _united(a: tuple[str, ...], b: tuple[str, ...]) -> tuple[str, ...]:
    if not b or a == b:
        return a
    return (a + tuple(name for name in b if name not in a))[:KEPT]


_LOOKS = frozenset(("read", "glob", "grep", "git_status", "git_diff", "edit"))  # an edit answers with a diff
_BLIND = frozenset(("write", "git_commit"))  # they answer with nothing that the agent did not send
_WEB = frozenset(("web_fetch", "web_search"))
_WRITES = frozenset(("write", "edit", "run", "git_commit"))


def tool_rules(policy: Policy, operation: Any) -> tuple[ToolRule, ...]:
    """What each of the policy's tables declares of the tool that `operation` calls."""
    return tuple(tool_rule(table, operation.server, operation.tool) for table in policy.tools) or (UNDECLARED,)


def legs_of(policy: Policy, operation: Base, *, trusted_workspace: bool) -> int:
    """What running `operation` shows the agent, and whether it changes something outside: bits of `capability`.

    `EXFILTRATION` is set for tools alone: of our own operations that is a matter of the decision.
    """
    kind = str(getattr(operation, "kind", ""))
    if kind == "tool":
        legs = 0
        for rule in tool_rules(policy, operation):
            legs |= rule.legs
        return legs
    if kind in _LOOKS:
        return cap.PRIVATE | (0 if trusted_workspace else cap.UNTRUSTED)
    if kind in _BLIND:
        return 0
    if kind in _WEB:
        return cap.UNTRUSTED
    if kind == "connect":
        if vouched(policy.network, operation):
            return 0
        return cap.UNTRUSTED | cap.STATE  # what a program reads there it had to send from here
    if kind == "run":
        return cap.PRIVATE | cap.UNTRUSTED
    return cap.PRIVATE | cap.UNTRUSTED | cap.STATE


def exposes(policy: Policy, operation: Base, seen: Exposure, *, trusted_workspace: bool, egress: bool) -> Exposure:
    """What the session will have seen once `operation` has run, beyond nothing: to be joined to `seen` before it runs.

    Args:
        policy: for what it declares of tools.
        operation: validated.
        seen: what the session has seen so far.
        trusted_workspace: the user vouches for the workspace.
        egress: a command can reach outside.
    """
    legs = legs_of(policy, operation, trusted_workspace=trusted_workspace)
    label = (source_of(operation),) if legs & (cap.PRIVATE | cap.UNTRUSTED) else ()
    kind = str(getattr(operation, "kind", ""))
    outward = bool(legs & (cap.STATE | cap.EXFILTRATION)) or (kind == "run" and egress)
    return Exposure(
        label if legs & cap.PRIVATE else (),
        label if legs & cap.UNTRUSTED else (),
        outward and bool(seen.untrusted),
    )


def source_of(operation: Any) -> str:
    """How a person is told where something came from: the kind and what it names."""
    kind = str(getattr(operation, "kind", ""))
    if kind == "tool":
        return source(f"tool {operation.server}/{operation.tool}")
    if kind == "run":
        return source("run " + " ".join(operation.argv))
    if kind == "connect":
        return source(f"connect {operation.host}:{operation.port}")
    for name in ("path", "url", "query"):
        if value := getattr(operation, name, ""):
            return source(f"{kind} {value}")
    return kind


def writes_workspace(operation: Base) -> bool:
    """After this, what the workspace says may be what the agent put there."""
    return str(getattr(operation, "kind", "")) in _WRITES
