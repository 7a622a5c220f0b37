"""The options of `exec` and `run`: parsed from one small table, because argparse would cost more than the pod's door.

Promises: an unknown option, a missing value or a value given twice is an `InvalidError` (exit 2) that names it; what
follows ``--``, or the first word that is no option, is the command and is not looked at.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# name: is it a flag, one value, or many values
Table = dict[str, str]
FLAG, ONE, MANY = "flag", "one", "many"


def parse(argv: list[str], table: Table) -> tuple[dict[str, Any], list[str]]:
    """Split `argv` into the options' values (by name, without dashes) and the command.

    Flags default to False, single values to "", lists to [].

    Raises:
        InvalidError: rule ``cli.option``.
    """
    values: dict[str, Any] = {
        name: False if kind == FLAG else [] if kind == MANY else "" for name, kind in table.items()
    }
    seen: set[str] = set()
    index = 0
    while index < len(argv):
        word = argv[index]
        index += 1
        if word == "--":
            return values, argv[index:]
        if not word.startswith("-") or word == "-":
            return values, argv[index - 1 :]
        name, equals, value = word[2:].partition("=")
        if not word.startswith("--") or name not in table:
            raise invalid(f"unknown option {word.partition('=')[0][:100]!r}")
        kind = table[name]
        if kind == FLAG:
            if equals:
                raise invalid(f"--{name} takes no value")
            values[name] = True
            continue
        if not equals:
            if index >= len(argv):
                raise invalid(f"--{name} needs a value")
            value = argv[index]
            index += 1
        if kind == MANY:
            values[name].append(value)
            continue
        if name in seen:
            raise invalid(f"--{name} is given twice")
        seen.add(name)
        values[name] = value
    return values, []


def invalid(message: str) -> Exception:
    """An InvalidError for a wrong command line."""
    from nucleus.errors import InvalidError

    return InvalidError(message, rule="cli.option", next_step="`nucleus help VERB` lists the options.")
