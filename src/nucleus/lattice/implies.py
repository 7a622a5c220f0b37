"""Does one entry of a list cover another? For `extends` and for `policy diff`.

Promises: sound and not complete: yes means that everything which the one names, the other names too; no means that this
was not found. Pure, and linear in the lists.
Does not: decide anything: `decision` and its matchers do.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from nucleus.globs import anchored, folded_glob
from nucleus.lattice import tables
from nucleus.lattice.paths import path_set
from nucleus.lattice.policy import Argument, CommandRule

_SPECIAL = frozenset("*?[")


# --- globs ---


def canonical_glob(glob: str, *, fold: bool = False) -> str:
    """One spelling of globs that mean the same to `paths.PathSet`."""
    return anchored(folded_glob(glob) if fold else glob)


def glob_covered(glob: str, globs: frozenset[str], *, fold: bool = False) -> bool:
    """Do `globs`, as one list, cover whatever `glob` covers?"""
    text = canonical_glob(glob, fold=fold)
    others, names = _spelled(globs, fold)
    if text in others or "/**" in others:
        return True
    parts = text.lstrip("/").split("/")
    # A name at any depth covers every path that it stands in.
    if any(_name_covered(part, names) for part in parts if "**" not in part):
        return True
    if "/" not in text:
        return False  # at any depth
    literal: list[str] = []
    for part in parts:
        if _SPECIAL & set(part):
            break
        literal.append(part)
    return bool(literal) and path_set(globs, fold).find("/".join(literal)) is not None


@lru_cache(maxsize=64)
def _spelled(globs: frozenset[str], fold: bool) -> tuple[frozenset[str], frozenset[str]]:
    """The canonical globs, and those of them that are a name at any depth."""
    others = frozenset(canonical_glob(glob, fold=fold) for glob in globs)
    return others, frozenset(glob for glob in others if "/" not in glob)


def _name_covered(part: str, names: frozenset[str]) -> bool:
    """Does a glob of `names` match every name that the glob `part` matches?"""
    if part in names:
        return True
    if not _SPECIAL & set(part):
        return path_set(names, False).find(part) is not None
    if "[" in part:
        return False
    for name in names:
        tail, head = name[1:], name[:-1]
        if name[:1] == "*" and tail and part.endswith(tail) and not _SPECIAL & set(tail):
            return True
        if name[-1:] == "*" and head and part.startswith(head) and not _SPECIAL & set(head):
            return True
    return False


# --- hosts ---


def host_covered(host: str, lines: Iterable[str]) -> bool:
    """Does a line of `lines` name every host that `host` names?"""
    return any(line == host or (line.startswith("*.") and host.endswith(line[1:])) for line in lines)


# --- commands ---


def admitted(rule: CommandRule, rules: Iterable[CommandRule], *, flagged: bool) -> bool:
    """Do `rules`, as an allow list, admit every command that `rule` admits?

    Args:
        flagged: also those that leave their program's job, which a set never admits and a named program does.
    """
    return any(_admitted(rule, other, flagged) for other in rules)


def _admitted(a: CommandRule, b: CommandRule, flagged: bool) -> bool:
    if not _names(a, b) or (flagged and b.group and not a.group):
        return False
    if tables.STRINGS in (a.group, b.group):
        return a.group == b.group  # what the set admits, no other rule does
    count = len(b.args)
    if len(a.args) < count or not all(_word_covered(x, y) for x, y in zip(a.args, b.args, strict=False)):
        return False
    if b.rest == "any":
        return True
    if b.rest == "none":
        return len(a.args) == count and a.rest == "none"
    return a.rest != "any" and all(_word_covered(x, Argument("path")) for x in a.args[count:])


def caught_by(rule: CommandRule, rules: Iterable[CommandRule]) -> bool:
    """Do `rules`, as an ask or deny list, catch every command that `rule` admits or catches?"""
    return any(_names(rule, other) and _in_order(rule.args, other.args) for other in rules)


def _names(a: CommandRule, b: CommandRule) -> bool:
    """Does `b` name every program that `a` names?"""
    if b.program == "*":
        return True
    if a.group:
        return bool(b.group) and tables.SETS[a.group] <= tables.SETS[b.group]
    return a.program != "*" and b.names(a.program)


def _in_order(a: tuple[Argument, ...], b: tuple[Argument, ...]) -> bool:
    """Wherever words fit `a` in order, some of them fit `b` in order."""
    rest = iter(a)
    return all(any(_word_covered(x, y) for x in rest) for y in b)


def _word_covered(a: Argument, b: Argument) -> bool:
    """Does `b` admit every word that `a` admits?"""
    if a.kind == "literal":
        return all(b.admits(word) for word in a.values)
    return b.kind in ("word", a.kind)
