"""What the tables say of one program, gathered: looked up once for a command, not table by table.

Promises: says nothing that `tables` does not; what is kept is bounded by the tables, whatever callers name.
"""

from __future__ import annotations

from nucleus.lattice import tables as t

# Programs that a wrapper is known to run as they are named.
RUNNABLE = (
    t.ORDINARY | t.INTERPRETERS | t.SHELLS | t.NETWORK | t.OPAQUE_WRAPPERS.keys() | t.TRANSPARENT.keys() | {"env"}
)


class Trait:
    """One program, by the last part of its name."""

    __slots__ = (
        "client", "escapes", "expression", "family", "interpreter", "options", "reader", "shell", "wrapper", "writer",
    )  # fmt: skip

    def __init__(self, program: str) -> None:
        self.family = _family(program)
        self.interpreter = self.family in t.INTERPRETERS
        self.shell = self.family in t.SHELLS
        self.wrapper = program == "env" or program in t.TRANSPARENT or program in t.OPAQUE_WRAPPERS
        self.reader = program in t.READERS
        self.writer = program in t.WRITERS
        self.expression = program in t.EXPRESSION_FIRST
        self.options = t.ESCAPE_OPTIONS.get(program, ())
        # Besides running what its words say, it may run, fetch or publish something by its own features.
        self.escapes = bool(self.options) or (
            program in t.ESCAPING
            or program in t.EXEC_SUBCOMMANDS
            or program in ("find", "fd", "awk", "gawk", "mawk", "nawk", "tar")
        )
        self.client = program in ("gh", "glab", "hub") or program in t.NETWORK or program in t.NETWORK_SUBCOMMANDS


_TABLED: frozenset[str] = frozenset().union(
    RUNNABLE, t.READERS, t.WRITERS, t.EXPRESSION_FIRST, t.ESCAPING, t.ESCAPE_OPTIONS, t.EXEC_SUBCOMMANDS,
    t.NETWORK_SUBCOMMANDS,
)  # fmt: skip
_traits: dict[str, Trait] = {}


def trait_of(program: str) -> Trait:
    """The traits of `program`; kept for the programs of the tables only, so that no caller can fill the memory."""
    found = _traits.get(program)
    if found is None:
        found = Trait(program)
        if program in _TABLED:
            _traits[program] = found
    return found


def _family(program: str) -> str:
    """`python3.11` is `python3`'s family `python`; others are their own."""
    name = t.unversioned(program)
    return {"pypy": "python", "nodejs": "node"}.get(name, name)
