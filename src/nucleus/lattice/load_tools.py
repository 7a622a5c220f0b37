"""What a policy declares of external tools.

Promises: a tool's legs are said, never guessed: only a tool that is never called needs none.
"""

from __future__ import annotations

import string

from nucleus.lattice import capability as cap
from nucleus.lattice.policy import ToolRule
from nucleus.lattice.reader import Reader
from nucleus.lattice.yamltree import Node

_SERVER = frozenset(string.ascii_lowercase + string.digits + "_-")
_NAME_CHARACTERS = 128  # of a tool; as `validate_operation` has it
_KEYS = ("legs", "destination", "level", "approve", "names", "members")


def tables(reader: Reader, node: Node) -> list[Node]:
    """The nodes of the tables: itself, or those of ``{all_of: [table, table]}``. No tool is named without a slash."""
    if node.kind == "map" and "all_of" in node.entries:
        return reader.lists(node, "tools")
    return [node]


def table(reader: Reader, node: Node) -> frozenset[ToolRule]:
    """One table."""
    return frozenset(found for _, found in entries(reader, node))


def entries(reader: Reader, node: Node) -> list[tuple[Node, ToolRule]]:
    """The rules of one table with the nodes of their names."""
    if node.kind != "map":
        raise reader.bad(node, "tools must be a mapping of server/tool")
    return [(key, _rule(reader, key, value)) for key, value in node.entries.values()]


def _rule(reader: Reader, key: Node, node: Node) -> ToolRule:
    name = key.text
    server, slash, tool = name.partition("/")
    plain = tool == "*" or (bool(tool) and not set(tool) & set("/ *"))
    if not slash or not 0 < len(server) <= 63 or not set(server) <= _SERVER or not plain:
        raise reader.bad(key, "a tool is named server/tool, or server/* for all of a server's")
    if not tool.isprintable() or len(tool.encode("utf-8", "surrogatepass")) > _NAME_CHARACTERS:
        raise reader.bad(key, f"a tool's name has at most {_NAME_CHARACTERS} bytes and no invisible character")
    keys = reader.map(node, f"tools.{name}", _KEYS)
    level = cap.LEVELS[reader.choice(keys["level"], "level", tuple(cap.LEVELS))] if "level" in keys else cap.LOW_RISK
    if "legs" not in keys and level != cap.NEVER:
        raise reader.bad(node, f"tools.{name} needs the key 'legs' ([] for a tool that has none)")
    legs = 0
    for item in reader.items(keys["legs"], "legs") if "legs" in keys else ():
        legs |= cap.LEG_NAMES[reader.choice(item, "legs", tuple(cap.LEG_NAMES))]
    destination = _words(reader, keys, "destination", "arguments")
    approve = reader.flag(keys["approve"], "approve") if "approve" in keys else False
    names, members = (_words(reader, keys, key, "fields of its answer") for key in ("names", "members"))
    return ToolRule(name, legs, destination, level, approve, names, members)


def _words(reader: Reader, keys: dict[str, Node], key: str, what: str) -> tuple[str, ...]:
    found: list[str] = []
    for item in reader.items(keys[key], key) if key in keys else ():
        word = reader.text(item, key)
        if not word or word in found:
            raise reader.bad(item, f"{key}: names of {what}, each once")
        found.append(word)
    return tuple(found)
