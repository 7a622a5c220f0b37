"""The section `identities` of a policy: positioned nodes to (subject, list) pairs.

Promises: what is refused is refused with source, line and column; a list is never silently everybody.
Does not: know what the policy extends (`load`), or match (`identities`).
"""

from __future__ import annotations

from nucleus.lattice import identities as ids
from nucleus.lattice.policy import BY_WHOM
from nucleus.lattice.reader import Reader
from nucleus.lattice.yamltree import Node

_WHOSE = (ids.AGENTS, ids.APPROVERS, ids.PODS)
_PEOPLE = (ids.APPROVERS, ids.PODS)  # nothing that runs in a pod is one of these


def parts(reader: Reader, node: Node) -> list[tuple[str, Node]]:
    """Each subject with each of its lists. Raises InvalidError."""
    keys = reader.map(node, "identities", (*_WHOSE, ids.OPERATIONS))
    named = {subject: keys[subject] for subject in _WHOSE if subject in keys}
    if ids.OPERATIONS in keys:
        what = f"identities.{ids.OPERATIONS}"
        named |= {
            f"{ids.OPERATIONS}.{name}": item for name, item in reader.map(keys[ids.OPERATIONS], what, BY_WHOM).items()
        }
    return [(subject, part) for subject, item in named.items() for part in reader.lists(item, f"identities.{subject}")]


def entries(reader: Reader, subject: str, node: Node) -> list[tuple[Node, str]]:
    """One list. Raises InvalidError."""
    what = f"identities.{subject}"
    items = reader.items(node, what)
    if len(items) > ids.MAX_LIST:
        raise reader.bad(node, f"{what}: at most {ids.MAX_LIST} entries; a prefix such as spiffe://td/team/* is one")
    out = []
    for item in items:
        pattern = reader.text(item, what)
        if wrong := ids.problem(pattern, own=subject not in _PEOPLE):
            raise reader.bad(item, f"{what}: {pattern[:100]!r}: {wrong}")
        out.append((item, pattern))
    return out
