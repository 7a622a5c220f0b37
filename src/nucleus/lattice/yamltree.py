"""YAML text to a tree of positioned nodes: the small, dull part of YAML and nothing else.

Promises: refuses anchors, aliases, tags, several documents, duplicate keys, deep nesting and too much text, each with
line and column; builds no Python object from a tag, ever. Scalars stay text: `load` says what type they must have.
Relies on: PyYAML's SafeLoader for scanning (its events only; no constructor runs).
Does not: know what a policy is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Never

from nucleus.errors import InvalidError
from nucleus.limits import LIMITS

_DEPTH = 12
_NODES = 8_192
RULE = "policy.schema"


@dataclass(slots=True)
class Node:
    """kind: scalar, list or map. `quoted`: a scalar in quotes or a block, so it is text whatever it looks like."""

    kind: str
    line: int
    column: int
    text: str = ""
    quoted: bool = False
    items: list[Node] = field(default_factory=list)
    entries: dict[str, tuple[Node, Node]] = field(default_factory=dict)  # key -> (key node, value)


def schema_error(source: str, line: int, column: int, problem: str) -> InvalidError:
    """The error of one place of a policy; line and column count from 1."""
    return InvalidError(
        f"{source}:{line}:{column}: {problem}",
        rule=RULE,
        next_step="Correct the policy file; docs/policy.md has its format.",
    )


def parse_tree(text: str, source: str) -> Node:
    """Parse one YAML document.

    Args:
        text: at most ``LIMITS.policy_bytes`` bytes of UTF-8.
        source: how errors name the file.

    Raises:
        InvalidError: ``policy.schema`` with ``source:line:column``.
    """
    if len(text) > LIMITS.policy_bytes:
        raise schema_error(source, 1, 1, f"too long: limit {LIMITS.policy_bytes} bytes, got {len(text)} or more")
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise schema_error(source, 1, 1, "not valid Unicode") from None
    if size > LIMITS.policy_bytes:
        raise schema_error(source, 1, 1, f"too long: limit {LIMITS.policy_bytes} bytes, got {size}")
    import yaml  # 10 ms

    class Loader(yaml.SafeLoader):
        """Nothing but the safe scanner; events only."""

    loader = Loader(text) if _acceptable(text, source) else None
    assert loader is not None
    try:
        return _Builder(loader, source, yaml).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise schema_error(source, line, column, f"not YAML: {error.problem or error.context or 'malformed'}") from None
    except (yaml.YAMLError, ValueError, RecursionError):
        raise schema_error(source, 1, 1, "not YAML") from None
    finally:
        loader.dispose()


def _acceptable(text: str, source: str) -> bool:
    """PyYAML's reader refuses control characters without a place: find it here."""
    for number, line in enumerate(text.split("\n"), 1):
        for column, character in enumerate(line, 1):
            if not (character.isprintable() or character in "\t\r"):
                raise schema_error(source, number, column, f"character U+{ord(character):04X} is not allowed")
    return True


class _Builder:
    def __init__(self, loader: Any, source: str, yaml: Any) -> None:
        self.loader = loader
        self.source = source
        self.yaml = yaml
        self.nodes = 0

    def document(self) -> Node:
        get = self.loader.get_event
        get()  # stream start
        if self.loader.check_event(self.yaml.StreamEndEvent):
            raise schema_error(self.source, 1, 1, "the policy is empty")
        start = get()
        if start.tags or start.version:
            self.fail(start, "YAML directives are not accepted")
        root = self.node(0)
        get()  # document end
        if not self.loader.check_event(self.yaml.StreamEndEvent):
            self.fail(self.loader.peek_event(), "more than one document")
        return root

    def fail(self, event: Any, problem: str) -> Never:
        raise schema_error(self.source, event.start_mark.line + 1, event.start_mark.column + 1, problem)

    def node(self, depth: int) -> Node:
        event = self.loader.get_event()
        self.nodes += 1
        if depth > _DEPTH or self.nodes > _NODES:
            self.fail(event, "nested too deep" if depth > _DEPTH else "too many entries")
        if isinstance(event, self.yaml.AliasEvent) or event.anchor is not None:
            self.fail(event, "anchors and aliases are not accepted")
        if event.tag is not None and event.tag != "!":
            self.fail(event, "tags are not accepted")
        place = (event.start_mark.line + 1, event.start_mark.column + 1)
        if isinstance(event, self.yaml.ScalarEvent):
            return Node("scalar", *place, text=event.value, quoted=event.style is not None)
        if isinstance(event, self.yaml.SequenceStartEvent):
            node = Node("list", *place)
            while not self.loader.check_event(self.yaml.SequenceEndEvent):
                node.items.append(self.node(depth + 1))
        else:
            node = Node("map", *place)
            while not self.loader.check_event(self.yaml.MappingEndEvent):
                self.entry(node, depth)
        self.loader.get_event()
        return node

    def entry(self, node: Node, depth: int) -> None:
        key = self.node(depth + 1)
        if key.kind != "scalar" or key.text == "<<":
            raise schema_error(self.source, key.line, key.column, "a key must be plain text")
        if key.text in node.entries:
            first = node.entries[key.text][0]
            raise schema_error(
                self.source, key.line, key.column, f"duplicate key {key.text!r} (first at line {first.line})"
            )
        node.entries[key.text] = (key, self.node(depth + 1))
