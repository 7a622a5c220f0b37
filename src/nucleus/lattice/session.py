"""The memory of one session: what it has seen, and which destinations it knows. One per gate, fed by the pipeline.

 1. `seen` and `knowledge` go into every `Context`: the decision sees what was shown so far.
 2. `before` is called once the intent is on record and before the operation runs: exposure first, then the effect.
 3. `after` learns destinations from what came back, while nothing outside was changed after untrusted content was read:

    a tool without an untrusted leg       each whole value of a structured answer; of a text each whole line, and what
                                          follows a line's first colon. After untrusted content was read, only where
                                          each argument of the call (of one that changes something: each destination)
                                          was known itself: what is asked for is not the attacker's choice
    a tool with one, and `names`          the values of those fields, of the one record that the user's words selected:
                                          each argument of the call was known itself, and the record is the only one
                                          answered, or the only one with a whole value that is such an argument; of
                                          fields that are no ids only where the task has an argument in quotation
                                          marks: a word of it could be anybody's title
    a tool with one, and `members`        the values of those fields in every record, where each argument was known
    read, glob, grep                      all words, where the user vouches for the workspace and the agent has not
                                          written to it

    The agent's own words, handed back in an answer, are not learnt.

Promises: only grows; a session that was restored learns nothing from a workspace.
Does not: decide, or persist (the record of the intent does: `Exposure.to_data`).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from nucleus.lattice import capability as cap
from nucleus.lattice.exposure import NOTHING, Exposure, exposes, source_of, tool_rules, writes_workspace
from nucleus.lattice.policy import Policy, ToolRule
from nucleus.lattice.provenance import Knowledge, values, words

if TYPE_CHECKING:  # pydantic's weight, for a name
    from nucleus.model.operation import Base


class Session:
    """See the module.

    Args:
        policy: the pod's.
        task: the user's own task text.
        trusted_workspace, egress: as in `Context`.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        task: str = "",
        trusted_workspace: bool = False,
        egress: bool = False,
    ) -> None:
        self._policy = policy
        self._trusted = trusted_workspace
        self._egress = egress
        self._seen = NOTHING
        self._learns = "provenance" in policy.trifecta
        self._closed = False  # tools' answers are no longer learnt from
        self._written = False
        self._knowledge = Knowledge(task)

    @property
    def policy(self) -> Policy:
        """The pod's policy."""
        return self._policy

    def change(self, policy: Policy) -> None:
        """Decide by another policy from now on; what was seen stays seen."""
        self._policy = policy
        self._egress = policy.ways_out()

    @property
    def seen(self) -> Exposure:
        """What the session has seen."""
        return self._seen

    @property
    def knowledge(self) -> Knowledge:
        """Which destinations it knows."""
        return self._knowledge

    def restore(self, seen: Exposure) -> None:
        """What earlier pods of this session, or a parent, have seen; before the first operation."""
        self._seen = self._seen.join(seen)
        self._closed = self._closed or seen.steered
        self._written = self._written or seen != NOTHING

    def ahead(self, operation: Base) -> Exposure:
        """What `operation` adds to what has been seen; nothing when it adds nothing new."""
        adds = exposes(self._policy, operation, self._seen, trusted_workspace=self._trusted, egress=self._egress)
        return NOTHING if self._seen.join(adds) == self._seen else adds

    def before(self, operation: Base) -> None:
        """Step 2: `operation` is about to run."""
        # The answer of the call that changes something is still the service's own; those after it may be the agent's.
        self._closed = self._seen.steered
        self._seen = self._seen.join(self.ahead(operation))
        self._written = self._written or writes_workspace(operation)

    def after(self, operation: Base, answer: object) -> None:
        """Step 3.

        Args:
            operation: what ran.
            answer: text, or plain data: of a tool ``{structured?, text}`` as the gate answers it, or the data itself.
        """
        if not self._learns:
            return
        kind = getattr(operation, "kind", "")
        if kind == "tool":
            if not self._closed:
                self._after_tool(operation, answer)
        elif kind in ("read", "glob", "grep") and self._trusted and not self._written:
            text = "\n".join(values(answer))
            self._knowledge.learn(source_of(operation), text, self._own_words(operation))

    def _after_tool(self, operation: Any, answer: object) -> None:
        rules = tool_rules(self._policy, operation)
        data = _data(answer)
        given = _given(rules, operation.arguments)
        asked = bool(given) and self._knowledge.unknown(given) is None  # by the user's own words
        if not any(rule.legs & cap.UNTRUSTED for rule in rules):
            if self._seen.untrusted and not asked:
                return
            own, origin = self._own_words(operation), source_of(operation)
            for value in _lines(data) if isinstance(data, str) else (*values(data), *_keys(data)):
                self._knowledge.learn_value(origin, value, own)
            return
        if not asked:
            return
        own, origin, records = self._own_words(operation), source_of(operation), _records(data)
        exact = any(self._knowledge.quoted(value) for value in given)
        record = _selected(records, given) or {}
        vouched = [record.get(name) for name in _vouched(rules, "names") if exact or _is_id(name)]
        vouched += [one.get(name) for name in _vouched(rules, "members") for one in records]
        for value in values(vouched):
            self._knowledge.learn_value(origin, value, own)

    def _own_words(self, operation: Any) -> frozenset[str]:
        """The words of its arguments that nobody else has named."""
        given = operation.arguments if operation.kind == "tool" else operation.model_dump(mode="json")
        unknown = (value for value in values(given) if self._knowledge.origin(value) is None)
        return frozenset(word for value in unknown for word in words(value))


def _vouched(rules: tuple[ToolRule, ...], key: str) -> list[str]:
    """The fields that each of the policy's tables vouches for."""
    first, *others = (getattr(rule, key) for rule in rules)
    return [name for name in first if all(name in fields for fields in others)]


def _is_id(name: str) -> bool:
    return name.strip("_").lower() == "id" or name.lower().rstrip("_").endswith("_id")


def _given(rules: tuple[ToolRule, ...], arguments: dict[str, Any]) -> list[str]:
    """What a call asks for: its arguments, or the destinations of one that does something outside."""
    names = {name for rule in rules for name in rule.destination}
    if names and any(rule.legs & (cap.EXFILTRATION | cap.STATE) for rule in rules):
        return [value for name in sorted(names) for value in values(arguments.get(name))]
    return values(arguments)


def _lines(text: str) -> list[str]:
    """A text's lines without their list marks, and what follows a first colon in them: ``Hotels: Ritz``."""
    out = []
    for raw in text.splitlines():
        line = raw.strip().lstrip("-*•").strip()
        out += [line, *(part.strip() for part in line.split(": ", 1)[1:])]
    return out


def _data(answer: object) -> object:
    """A tool's answer as data where it is data: structured content, or a text that is JSON."""
    if isinstance(answer, dict) and "text" in answer and "is_error" in answer:
        if answer["is_error"]:
            return ""
        answer = answer["structured"] if answer.get("structured") is not None else answer["text"]
    if isinstance(answer, str) and answer[:1] in ("{", "["):
        try:
            return json.loads(answer)
        except (ValueError, RecursionError):
            return answer
    return answer


def _records(data: object) -> list[dict[str, Any]]:
    """The records of an answer: an object, a list of objects, or an object whose one value is that list."""
    if isinstance(data, dict) and len(data) == 1 and isinstance(next(iter(data.values())), list):
        data = next(iter(data.values()))
    found: list[object] = data if isinstance(data, list) else [data]
    records = [record for record in found if isinstance(record, dict)]
    return records if len(records) == len(found) else []


def _selected(records: list[dict[str, Any]], given: list[str]) -> dict[str, Any] | None:
    """The record that the words in `given` name, when there is exactly one."""
    if len(records) > 1:
        named = [words(value) for value in given]
        records = [record for record in records if any(words(value) in named for value in values(record))]
    return records[0] if len(records) == 1 else None


def _keys(data: object) -> list[str]:
    """The keys of every object in `data`: a directory may be keyed by name."""
    out: list[str] = []
    stack = [data]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            out += map(str, item)
            stack += item.values()
        elif isinstance(item, list | tuple):
            stack += item
    return out
