"""A shell string as the commands that it holds (`validate.shell` reads it, and what it read is what runs).

Promises: whatever one of its commands would ask for alone, the string asks for; a redirect to a file writes that file;
``cd`` moves the commands that can only run after it, and what may run either way is analysed in both places.
Relies on: the canonical text; any other string is left to `commands`, which flags it.
Does not: follow `eval` and its like: the shell's own commands are flagged, but for those that change nothing.
"""

from __future__ import annotations

import posixpath
from typing import NamedTuple

from nucleus.lattice import tables as t
from nucleus.lattice.commands import Command, Layer, analyse, resolve_program
from nucleus.validate import shell
from nucleus.validate.paths import collapse

_PLACES = 4  # directories in which a command may find itself


class Composite(NamedTuple):
    """All that the commands are together, and each of them."""

    whole: Command
    parts: tuple[Command, ...]


def read(argv: tuple[str, ...], cwd: str) -> Composite | None:
    """The commands of ``sh -c TEXT``; None where `argv` is no canonical string."""
    script = shell.of(argv) if len(argv) == 3 and argv[1] == "-c" else None
    if not isinstance(script, shell.Script) or script.text != argv[2]:
        return None
    whole = Command()
    whole.plain = Layer(resolve_program(argv[0]), argv[1:])
    whole.layers.append(whole.plain)
    parts = tuple(_parts(whole, script, cwd))
    for part in parts:
        join(whole, part)
    return Composite(whole, parts)


def join(whole: Command, part: Command) -> None:
    """Add to `whole` what `part` asks for."""
    strong = (set(whole.paths) - whole.weak) | (set(part.paths) - part.weak)
    whole.layers += part.layers
    whole.flags += part.flags
    whole.runs_code = whole.runs_code or part.runs_code
    whole.credentials = whole.credentials or part.credentials
    whole.requires |= part.requires
    whole.paths += part.paths
    whole.weak = (whole.weak | part.weak) - strong
    whole.written += part.written
    whole.urls += part.urls


def _parts(whole: Command, script: shell.Script, cwd: str) -> list[Command]:
    now, failed = [cwd], list[str]()  # where the next command is; where it is if a `cd` before has failed
    found: list[Command] = []
    before = ""
    for command in script.commands:
        argv = command.argv
        if before in ("||", ";"):
            now, failed = list(dict.fromkeys((*now, *failed))), []
        if len(now) > _PLACES:
            whole.flags.append("more directories than can be followed")
            now = now[:_PLACES]
        alone = "|" not in (before, command.joined) and not command.redirects
        before = command.joined
        if argv[0] == "cd":
            moved = _moved(argv, now) if alone else []
            if not moved:
                whole.flags.append("a cd that cannot be followed, or leads out of the workspace")
            for place in moved:
                whole.paths.append(place)
                whole.weak.add(place)
            now, failed = moved or now, [*failed, *now]
            continue
        if alone and (argv[0] == "exit" or argv in t.SHELL_SETTINGS):
            continue
        for place in now:
            part = analyse(argv, place)
            if own := t.SHELL_OWN.intersection(layer.program for layer in part.layers):
                part.flags.append(f"the shell's own {min(own)}")
            for redirect in command.redirects:
                _redirect(part, redirect, place)
            found.append(part)
    return found


def _moved(argv: tuple[str, ...], now: list[str]) -> list[str]:
    """Where ``cd`` leads from each place; nothing when it cannot be said."""
    if len(argv) != 2 or argv[1][:1] in ("", "-"):
        return []
    target = argv[1]
    found = [collapse(target if target[0] == "/" else f"{place}/{target}") for place in now]
    moved = [place for place in found if place is not None]
    return moved if len(moved) == len(found) else []


def _redirect(part: Command, redirect: shell.Redirect, cwd: str) -> None:
    target = redirect.target
    if redirect.kind == ">&" or target == "/dev/null":
        return
    inside = collapse(target if target[0] == "/" else f"{cwd}/{target}")
    if inside is None:
        # A pod's /tmp is its own. (`collapse` speaks of the workspace alone.)
        if not posixpath.normpath(target).startswith("/tmp/"):  # noqa: S108
            part.flags.append("a redirect outside the workspace")
        return
    part.paths.append(inside)
    part.weak.discard(inside)
    if redirect.kind != "<":
        part.written.append(inside)
        part.requires.add("write_files")
