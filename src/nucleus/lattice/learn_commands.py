"""Command rules from the commands that were accepted.

One rule for each shape of a program's words; words stay exactly what they were, except:
 - a workspace path, of which `KINDS` different ones stood in the same place, becomes ``{type: path}``;
 - up to that, or where only one place varies, ``{one_of: [...]}``;
 - lists of paths of different lengths become ``rest: paths`` from `KINDS` different paths on.
Nothing is generalized of a program that runs code, or of a command that does more than its words say: there the words
are all that is known.
Promises: a rule admits every command that it was made of. Relies on `commands.analyse` for what a word is.
Does not: decide.
"""

from __future__ import annotations

from dataclasses import dataclass

from nucleus.lattice.commands import Command
from nucleus.lattice.learn_evidence import Entry, Event
from nucleus.lattice.policy import Argument, CommandRule
from nucleus.validate.paths import collapse

KINDS = 3  # different words in one place before it is any path

Words = tuple[str, ...]
_PATH = Argument("path")


@dataclass(frozen=True, slots=True)
class _Ran:
    event: Event
    program: str
    args: Words
    paths: frozenset[int]  # places of `args` that name a workspace path


def entries(runs: list[tuple[Event, Command]], exact: set[str], unlisted: set[tuple[str, Words]]) -> list[Entry]:
    """Rules for all of `runs`, sorted.

    Args:
        runs: accepted commands with their analyses.
        exact: programs that are not generalized.
        unlisted: (program, args) that no rule shall be made of.
    """
    shapes: dict[tuple[str, tuple[str | None, ...]], list[_Ran]] = {}
    for event, command in runs:
        plain = command.plain
        if plain is None or not _writable(plain.program) or tuple(plain) in unlisted:
            continue
        places = frozenset() if plain.program in exact else _places(event, command)
        ran = _Ran(event, plain.program, plain.args, places)
        shape = tuple(None if at in places else word for at, word in enumerate(plain.args))
        shapes.setdefault((plain.program, shape), []).append(ran)
    out = _tails(shapes)
    for same in shapes.values():
        out += _rules(same)
    return sorted(out, key=lambda entry: (entry.value.program, str(entry.value)))


def _writable(program: str) -> bool:
    """Can a policy file name it?"""
    return bool(program) and program != "*" and " " not in program and program.isprintable()


def _places(event: Event, command: Command) -> frozenset[int]:
    """Where the words are workspace paths, and nothing else."""
    plain = command.plain
    if plain is None or command.flags or command.runs_code:
        return frozenset()
    known, cwd = set(command.paths) - command.weak, event.operation.cwd
    return frozenset(
        at
        for at, word in enumerate(plain.args)
        if _PATH.admits(word) and collapse(word if word.startswith("/") else f"{cwd}/{word}") in known
    )


def _tails(shapes: dict[tuple[str, tuple[str | None, ...]], list[_Ran]]) -> list[Entry]:
    """``rest: paths``, where one beginning was followed by paths alone, in different numbers. Takes those shapes."""
    heads: dict[tuple[str, Words], list[tuple[str, tuple[str | None, ...]]]] = {}
    for program, shape in shapes:
        head = tuple(word for word in shape if word is not None)
        if shape[: len(head)] == head:
            heads.setdefault((program, head), []).append((program, shape))
    out = []
    for (program, head), keys in heads.items():
        lengths = {len(shape) - len(head) for _, shape in keys} - {0}
        rans = [ran for key in keys for ran in shapes[key] if len(ran.args) > len(head)]
        words = {word for ran in rans for word in ran.args[len(head) :]}
        if len(lengths) < 2 or len(words) < KINDS:
            continue
        args = tuple(Argument("literal", (word,)) for word in head) + (_PATH,) * min(lengths)
        note = f"{len(words)} different paths, {min(lengths)} to {max(lengths)} of them at a time"
        events = sorted((ran.event for ran in rans), key=lambda event: event.seq)
        out.append(Entry(CommandRule(program, args=args, rest="paths"), events, note))
        for key in keys:
            if len(key[1]) > len(head):
                del shapes[key]
    return out


def _rules(rans: list[_Ran]) -> list[Entry]:
    """The rules of one shape."""
    places = sorted(rans[0].paths)
    values = {at: {ran.args[at] for ran in rans} for at in places}
    wide = {at for at in places if len(values[at]) >= KINDS}
    narrow = [at for at in places if at not in wide and len(values[at]) > 1]
    groups: dict[Words, list[_Ran]] = {}
    for ran in rans:
        # Two places that vary together would admit combinations that nobody has seen: a rule for each.
        groups.setdefault(tuple(ran.args[at] for at in narrow) if len(narrow) > 1 else (), []).append(ran)
    out = []
    for group in groups.values():
        args = tuple(
            _PATH if at in wide else Argument("literal", tuple(sorted({ran.args[at] for ran in group})))
            for at in range(len(rans[0].args))
        )
        note = ", ".join(f"{len(values[at])} different paths in place {at + 1}" for at in sorted(wide))
        out.append(Entry(CommandRule(group[0].program, args=args, rest="none"), [ran.event for ran in group], note))
    return out
