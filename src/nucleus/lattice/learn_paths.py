"""The files that were touched, as the lists of a policy.

The very files; from `FOLD` different ones of one directory on, that directory (its ``*.py``, where all end in that).
Promises: a line covers all that it was made of. A search that starts above the list needs no line; what it would not
show any more is said (`searched`).
Does not: look at a file system, so a name that a command named may be a directory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nucleus.errors import InvalidError
from nucleus.lattice.commands import Command
from nucleus.lattice.learn_evidence import Entry, Event
from nucleus.lattice.paths import SENSITIVE, PathSet
from nucleus.validate.paths import validate_glob

FOLD = 3  # different files of one directory before the directory is proposed
_SPECIAL = frozenset("*?[")
_SEARCHES = ("glob", "grep")

Named = list[tuple[Event, list[tuple[str, bool]]]]  # each event, its paths, and whether the allow list counts for each


def names(event: Event, command: Command | None) -> Iterator[tuple[str, bool]]:
    """The workspace paths that the decision looks at, and whether the allow list counts for them.

    Args:
        command: the analysis of a run.
    """
    if event.kind == "tool" or event.operation is None:
        return
    for field in event.operation.path_fields:
        value: Any = getattr(event.operation, field)
        for path in (value,) if isinstance(value, str) else value:
            yield path, event.kind not in (*_SEARCHES, "run")
    if command is not None:
        for path in dict.fromkeys(command.paths):
            yield path, path not in command.weak


def directories_of(event: Event) -> set[str]:
    """The directories above what `event` names, the root ("") included."""
    return {up for path, _ in names(event, None) for up in ("", *_ancestors(path))}


def path_entries(named: Named, flat: set[str] | None) -> tuple[list[Entry], set[str]]:
    """``paths.allow``, and the directories that were folded.

    Args:
        flat: directories that are not folded; None for all.
    """
    needs: dict[str, list[Event]] = {}
    for event, found in named:
        for path, counts in found:
            if counts and path != ".":
                needs.setdefault(path, []).append(event)
    kept: dict[str, list[Event]] = {}
    for path in sorted(needs, key=lambda path: (path.count("/"), path)):
        above = next((up for up in _ancestors(path) if up in kept), "")
        if above:
            kept[above] += needs[path]
        elif _fits(exact_glob(path)):
            kept[path] = list(needs[path])
    directories = {up for path in needs for up in _ancestors(path)}
    folds = {} if flat is None else _folds({path for path in kept if path not in directories}, flat)
    inside = {path for paths in folds.values() for path in paths}
    # The widest first: what an earlier line covers needs none of its own.
    candidates = sorted(folds.items(), key=lambda item: (not item[0].endswith("/"), item[0].count("/")))
    candidates += [(exact_glob(path), [path]) for path in kept if path not in inside]
    out: dict[str, list[str]] = {}
    for glob, paths in candidates:
        lines = PathSet(tuple(out), False)
        rest: list[str] = []
        for path in paths:
            line = lines.find(path)
            (rest if line is None else out[line]).append(path)
        if rest:
            out[glob] = paths
    entries = [Entry(glob, _events(kept, paths), _note(paths, kept, directories)) for glob, paths in out.items()]
    folded = {folds[glob][0].rpartition("/")[0] for glob in out if glob in folds}
    return sorted(entries, key=lambda entry: str(entry.value).lstrip("/")), folded


def _events(kept: dict[str, list[Event]], paths: list[str]) -> list[Event]:
    found = {event.seq: event for path in paths for event in kept[path]}
    return [found[seq] for seq in sorted(found)]


def _note(paths: list[str], kept: dict[str, list[Event]], directories: set[str]) -> str:
    if len(paths) > 1:
        return f"{len(paths)} different files of this directory, such as {', '.join(sorted(paths)[:FOLD])}"
    return _breadth(paths[0], kept[paths[0]], directories)


def searched(events: list[Event], allow: list[Entry]) -> list[Entry]:
    """Where searches started that will not show all they showed."""
    known = PathSet(tuple(str(entry.value) for entry in allow), False)
    found: dict[str, list[Event]] = {}
    for event in events:
        if event.kind in _SEARCHES:
            path = str(event.operation.path)
            if path == "." or known.find(path) is None:
                found.setdefault(path, []).append(event)
    return [Entry("**" if path == "." else exact_glob(path), each) for path, each in sorted(found.items())]


def blocked(base: frozenset[str], named: Named) -> tuple[frozenset[str], list[Entry]]:
    """The base's list and all sensitive names, without the globs that hit what was accepted, and those."""
    block = base | frozenset(SENSITIVE)
    ready = PathSet(tuple(sorted(block)), True)
    hit: dict[str, list[Event]] = {}
    for event, paths in named:
        for path, _ in paths:
            while (glob := ready.find(path)) is not None:
                block -= {glob}
                ready = PathSet(tuple(sorted(block)), True)
                hit.setdefault(glob, []).append(event)
    return block, [Entry(glob, events) for glob, events in sorted(hit.items())]


def exact_glob(path: str) -> str:
    """The glob that names `path` and nothing else (and what is below it, where it is a directory)."""
    text = _escaped(path)
    return text if "/" in text else f"/{text}"  # `PathSet`: with a slash in front a name at the root, not at any depth


def _escaped(text: str) -> str:
    return "".join(f"[{c}]" if c in _SPECIAL else c for c in text)


def _fits(glob: str) -> bool:
    """Can a policy file say it? A word of a command may hold what no path of an operation may."""
    try:
        return validate_glob("paths.allow", f"./{glob.lstrip('/')}") != ""
    except InvalidError:
        return False


def _folds(paths: set[str], flat: set[str]) -> dict[str, list[str]]:
    """Globs for directories of which enough different files were touched."""
    siblings: dict[str, list[str]] = {}
    for path in sorted(paths):
        siblings.setdefault(path.rpartition("/")[0], []).append(path)
    out = {}
    for directory, files in siblings.items():
        endings = {_ending(path) for path in files}
        ending = endings.pop() if len(endings) == 1 else ""
        if len(files) >= FOLD and directory not in flat and (ending or directory):
            glob = f"{_escaped(directory)}/*{_escaped(ending)}" if ending else f"{exact_glob(directory)}/"
            if _fits(glob):
                out[glob] = files
    return out


def _ancestors(path: str) -> list[str]:
    """The directories above `path`, outermost first."""
    parts = path.split("/")
    return ["/".join(parts[:end]) for end in range(1, len(parts))]


def _ending(path: str) -> str:
    """``.py`` of ``a/b.py``; "" for a name without one."""
    stem, dot, ending = path.rpartition("/")[2].rpartition(".")
    return f"{dot}{ending}" if stem and ending else ""


def _breadth(path: str, events: list[Event], directories: set[str]) -> str:
    if path in directories:
        return "a directory: all below it"
    named = all(event.kind == "run" for event in events)
    return "named by a command: if it is a directory, all below it" if named else ""
