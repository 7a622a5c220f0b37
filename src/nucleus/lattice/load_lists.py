"""The path and host lists of a policy.

Promises: a glob is valid and names something; a host has no empty label and at most one star, in front.
Relies on: `validate_glob`.
"""

from __future__ import annotations

import string

from nucleus.errors import InvalidError
from nucleus.lattice.paths import SENSITIVE
from nucleus.lattice.reader import Reader
from nucleus.lattice.yamltree import Node
from nucleus.validate.paths import validate_glob

_HOST = frozenset(string.ascii_lowercase + string.digits + "-._")


def globs(reader: Reader, node: Node, what: str) -> frozenset[str]:
    """A list of globs; ``@sensitive`` stands for the sensitive set, in ``paths.block`` alone."""
    out: set[str] = set()
    for item in reader.items(node, what):
        out.update(glob(reader, item, what))
    return frozenset(out)


def glob(reader: Reader, node: Node, what: str) -> tuple[str, ...]:
    """One entry of a list of globs."""
    text = reader.text(node, what)
    if text == "@sensitive" and what == "paths.block":
        return SENSITIVE
    if text.startswith("@"):
        raise reader.bad(node, f"{what}: unknown set {text[:60]!r}; the only one is '@sensitive', in paths.block")
    try:
        clean = validate_glob(what, text)
    except InvalidError as error:
        raise reader.bad(node, error.message) from None
    if clean.strip("/") in ("", "."):
        raise reader.bad(node, f"{what}: name a file or directory, or '**'")
    if what == "paths.allow" and text.startswith("./") and "/" not in clean.rstrip("/") and "**" not in clean:
        # That name at the root, not at any depth: `paths.PathSet` has a slash in front. A block list blocks more.
        return (f"/{clean}",)
    return (clean,)


def hosts(reader: Reader, node: Node, what: str) -> frozenset[str]:
    """A list of hosts."""
    return frozenset(host(reader, item, what) for item in reader.items(node, what))


def host(reader: Reader, node: Node, what: str) -> str:
    """One host in lower case, or ``*.parent`` for all below it."""
    text = reader.text(node, what).lower().removesuffix(".")
    plain = text.removeprefix("*.")
    if len(text) > 253 or not set(plain) <= _HOST or not all(plain.split(".")):
        raise reader.bad(node, f"{what}: a host such as example.com or *.example.com")
    return text
