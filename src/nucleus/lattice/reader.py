"""Reading positioned nodes as values: the shapes that every part of a policy is made of.

Promises: what is refused is refused with source, line and column. Nothing has a default here.
Does not: know what a policy is (`load`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from nucleus.errors import InvalidError
from nucleus.lattice.policy import EVERYTHING, Everything
from nucleus.lattice.yamltree import Node, schema_error

T = TypeVar("T")


class Reader:
    """See the module.

    Args:
        source: how errors name the file.
    """

    def __init__(self, source: str) -> None:
        self.source = source

    def bad(self, node: Node, problem: str) -> InvalidError:
        """The error of one place."""
        return schema_error(self.source, node.line, node.column, problem)

    def map(self, node: Node, what: str, keys: tuple[str, ...], required: tuple[str, ...] = ()) -> dict[str, Node]:
        """The values of a mapping with no key but `keys` and all of `required`."""
        if node.kind != "map":
            raise self.bad(node, f"{what} must be a mapping")
        for name, (key, _) in node.entries.items():
            if name not in keys:
                raise self.bad(key, f"unknown key {name[:60]!r} in {what}; known: {', '.join(keys)}")
        for name in required:
            if name not in node.entries:
                raise self.bad(node, f"{what} needs the key {name!r}")
        return {name: value for name, (_, value) in node.entries.items()}

    def items(self, node: Node, what: str) -> list[Node]:
        """The entries of a list."""
        if node.kind != "list":
            raise self.bad(node, f"{what} must be a list (write [] for an empty one)")
        return node.items

    def text(self, node: Node, what: str) -> str:
        """A scalar as its text; what YAML reads as null is none unless it is quoted."""
        if node.kind != "scalar" or (not node.quoted and node.text in ("", "~", "null")):
            raise self.bad(node, f"{what} must be text")
        return node.text

    def choice(self, node: Node, what: str, known: tuple[str, ...]) -> str:
        """One of `known`."""
        value = self.text(node, what)
        if value not in known:
            raise self.bad(node, f"{what} must be one of {', '.join(known)}; got {value[:60]!r}")
        return value

    def flag(self, node: Node, what: str) -> bool:
        """``true`` or ``false``, unquoted."""
        if node.kind != "scalar" or node.quoted or node.text not in ("true", "false"):
            raise self.bad(node, f"{what} must be true or false")
        return node.text == "true"

    def lists(self, node: Node, what: str) -> list[Node]:
        """The lists of an allow list: itself, or those of ``{all_of: [list, list]}``, at least one."""
        if node.kind != "map":
            return [node]
        inner = self.map(node, what, ("all_of",), ("all_of",))["all_of"]
        if not self.items(inner, f"{what}.all_of"):
            # An empty conjunction would mean everything.
            raise self.bad(inner, f"{what}.all_of needs at least one list; 'everything' is written out")
        return inner.items

    def allow(
        self, node: Node, what: str, entry: Callable[[Node, str], frozenset[T]]
    ) -> Everything | frozenset[frozenset[T]]:
        """An allow list: ``everything``, a list, or a conjunction of lists.

        Args:
            entry: reads one list.
        """
        if node.kind == "scalar" and node.text == "everything":
            return EVERYTHING
        return frozenset(entry(item, what) for item in self.lists(node, what))
