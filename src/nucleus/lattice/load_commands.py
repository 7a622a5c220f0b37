"""The command lists of a policy: rules, and the examples that are checked against them.

Promises: an example that its rule does not treat as it says is an error at the example's line, found by the matcher
that decides (`decision.is_listed`, `decision.caught`) on the analysis that decides.
Does not: run anything, or keep the examples.
"""

from __future__ import annotations

from nucleus.lattice import tables
from nucleus.lattice.policy import Argument, CommandRule
from nucleus.lattice.reader import Reader
from nucleus.lattice.yamltree import Node

_EXAMPLES = ("match", "not_match")
_SHOWN = 120  # characters of an example in an error


def rules(reader: Reader, node: Node, what: str) -> frozenset[CommandRule]:
    """A list of rules of ``commands.allow``, ``.ask`` or ``.deny`` (`what`)."""
    return frozenset(rule(reader, item, what) for item in reader.items(node, what))


def rule(reader: Reader, node: Node, what: str) -> CommandRule:
    """One rule, its examples checked."""
    keys = reader.map(node, f"a rule of {what}", ("program", "args", "rest", "set", *_EXAMPLES))
    found = _rule(reader, node, keys, what)
    for name in _EXAMPLES:
        if name in keys:
            for item in reader.items(keys[name], name):
                _check(reader, item, found, what, name)
    return found


def _rule(reader: Reader, node: Node, keys: dict[str, Node], what: str) -> CommandRule:
    if "set" in keys:
        if {"program", "args", "rest"} & set(keys):
            raise reader.bad(node, "a rule has a set or a program, not both")
        return CommandRule(group=reader.choice(keys["set"], "set", tuple(tables.SETS)))
    if "program" not in keys:
        raise reader.bad(node, f"a rule of {what} needs 'program' or 'set'")
    program = reader.text(keys["program"], "program")
    if not program or " " in program or not program.isprintable():
        raise reader.bad(keys["program"], "program: one word, such as git or ./build.sh")
    directory, slash, name = program.rpartition("/")
    if slash and directory in tables.SYSTEM_DIRECTORIES:
        program = name
    args = tuple(_argument(reader, item) for item in reader.items(keys["args"], "args")) if "args" in keys else ()
    rest = reader.choice(keys["rest"], "rest", ("any", "none", "paths")) if "rest" in keys else "any"
    return CommandRule(program=program, args=args, rest=rest)


def _argument(reader: Reader, node: Node) -> Argument:
    if node.kind == "scalar":
        return Argument("literal", (reader.text(node, "an argument"),))
    keys = reader.map(node, "an argument rule", ("one_of", "type"))
    if len(keys) != 1:
        raise reader.bad(node, "an argument rule has one of 'one_of' and 'type'")
    if "one_of" in keys:
        words = sorted(reader.text(item, "one_of") for item in reader.items(keys["one_of"], "one_of"))
        return Argument("literal", tuple(words))
    return Argument(reader.choice(keys["type"], "type", ("word", "integer", "path")))


# --- examples ---


def _words(reader: Reader, node: Node, name: str) -> tuple[str, ...]:
    if node.kind == "list":
        # A quoted "" is a word too.
        found = [reader.text(item, f"a word of {name}") for item in node.items]
    else:
        text = reader.text(node, f"an example of {name}")
        if set(text) & set("'\"\\"):
            raise reader.bad(node, f"{name}: quotes are not read here: write the example as a list of words")
        found = text.split()
    if not found or not found[0]:
        raise reader.bad(node, f"{name}: an example needs at least a program")
    if any("\0" in word for word in found):
        raise reader.bad(node, f"{name}: no command holds NUL")
    return tuple(found)


def _check(reader: Reader, node: Node, found: CommandRule, what: str, name: str) -> None:
    # Only policies with examples pay for these imports.
    from nucleus.lattice.commands import analyse
    from nucleus.lattice.compiled import Rules
    from nucleus.lattice.decision import caught, is_listed

    command = analyse(_words(reader, node, name))
    one = Rules(frozenset((found,)))
    allow = what == "commands.allow"
    if allow:
        fits = is_listed((one,), command)
    else:
        fits = any(caught(one, layer.program, layer.args) is not None for layer in command.layers)
    if fits == (name == "match"):
        return
    layers = [command.plain] if allow and command.plain is not None else command.layers
    read = ", ".join(" ".join((layer.program, *layer.args)) for layer in layers)[:_SHOWN]
    verb = (("does not admit", "does not catch") if name == "match" else ("admits", "catches"))[not allow]
    why = f"; no set admits it, because {command.flags[0]}" if not fits and found.group and command.flags else ""
    raise reader.bad(node, f"{what}: {name}: the rule `{found}` {verb} this example, read as {read!r}{why}")
