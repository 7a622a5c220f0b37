"""The walk of glob and grep over a tree, by directory descriptors, a directory's names at a time.

Promises: no symlink is followed, at the start or below it; what the exclude list covers, or an allow list does not, is
neither listed nor opened nor counted; the order is that of the names' bytes, whatever the directory's order, a
directory's as if it ended in "/"; `.git` directories are left out unless the start or the pattern names one. Where the
walk is asked to keep to `.gitignore`, it reads those files (and `.git/info/exclude`) that the policy shows, from the
workspace's root down; the start itself is never ignored. Directories that `limits` names were too deep are left out.
Names that are not UTF-8 are shown, and matched, with ``\\xNN`` for each wrong byte; such a name cannot be sent back.
Relies on: running in a process that can be killed. Does not: know a deadline.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from nucleus.hands import gitignore
from nucleus.hands.globs import Exclude, Names, admits, allowed, covers, excluded
from nucleus.hands.protocol import HandsError
from nucleus.hands.root import Root, is_foreign_link

DEPTH = 128  # directories below each other: each holds a descriptor
FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_IGNORE = ".gitignore"
_EXCLUDE = ".git/info/exclude"

Allow = tuple[Exclude | None, ...]
Levels = tuple[gitignore.Level, ...] | None  # None: not asked for


def shown(raw: bytes) -> str:
    """A file name as text."""
    return raw.decode("utf-8", "backslashreplace")


class Found(NamedTuple):
    """Names of one directory that are no directories. `directory` is only valid until the next one is asked for."""

    directory: int
    prefix: str  # from the workspace's root, empty or with a "/" behind
    below: str  # the same from the start of the search
    names: list[str]
    raw: bytes | None  # of the only name, where it is not UTF-8


class _Odd(str):
    """A name as it is shown, which is not its name."""

    raw: bytes


class _Level(NamedTuple):
    directory: int
    prefix: str
    names: Iterator[str]
    allow: Allow  # the lists that do not yet cover this directory
    levels: Levels
    odd: bool


class Walk:
    """One walk. Iterate it once.

    Args:
        root, start: where.
        exclude, allow: the policy's lists.
        wanted: what the search looks for; its fixed directories and depth bound the walk.
        git: whether `.git` directories are walked, as far as `wanted` says.
        gitignore: whether to keep to `.gitignore`.
    """

    def __init__(
        self,
        root: Root,
        start: str,
        exclude: tuple[str, ...],
        allow: tuple[tuple[str, ...], ...],
        wanted: Names | None,
        *,
        git: bool = False,
        gitignore: bool = False,
    ) -> None:
        self.limits: set[str] = set()
        self._root = root
        self._start = start
        self._skip = excluded(exclude)
        self._only = allowed(allow)
        self._fixed = wanted.fixed if wanted is not None else []
        self._depth = wanted.depth if wanted is not None else None
        self._git = git or ".git" in start.split("/")
        self._cut = 0 if start == "." else len(start) + 1
        self._ignore = gitignore

    def __iter__(self) -> Iterator[Found]:
        if covers(self._skip, self._start) or None in self._only:
            return
        os.close(self._root.open(self._start, os.O_PATH))
        try:
            first = self._root.open_directory(self._start, os.O_RDONLY)
        except HandsError as error:
            if error.code != "not_found":
                raise
            if admits(self._only, self._start):
                yield from self._single()
            return
        prefix = "" if self._start == "." else self._start + "/"
        allow = tuple(one for one in self._only if not covers(one, self._start))
        stack: list[_Level] = []
        opened = first
        try:
            levels = self._above() if self._ignore else None
            stack.append(self._enter(opened, prefix, allow, levels))
            opened = -1
            while stack:
                level = stack[-1]
                names: list[str] = []
                for name in level.names:
                    if name[-1] != "/":
                        names.append(name)
                        continue
                    if names:
                        yield from self._found(level, names)
                        names = []
                    opened = self._open(level, name, len(stack))
                    if opened >= 0:
                        inner = level.prefix + name
                        allow = tuple(one for one in level.allow if one is None or not one.matches(inner[:-1]))
                        stack.append(self._enter(opened, inner, allow, level.levels))
                        opened = -1
                        break
                else:
                    if names:
                        yield from self._found(level, names)
                    stack.pop()
                    os.close(level.directory)
        finally:
            if opened >= 0:
                os.close(opened)
            for level in stack:
                os.close(level.directory)

    def _single(self) -> Iterator[Found]:
        """The start is a file: it is the only result, under its own name."""
        before, _, leaf = self._start.rpartition("/")
        directory = self._root.open_directory(before or ".", os.O_RDONLY)
        try:
            yield Found(directory, before + "/" if before else "", "", [leaf], None)
        finally:
            os.close(directory)

    def _found(self, level: _Level, names: list[str]) -> Iterator[Found]:
        below = level.prefix[self._cut :]
        if not level.odd:
            yield Found(level.directory, level.prefix, below, names, None)
            return
        for name in names:
            yield Found(level.directory, level.prefix, below, [name], name.raw if isinstance(name, _Odd) else None)

    def _open(self, level: _Level, name: str, depth: int) -> int:
        """The directory `name`, or -1 when the walk does not go there."""
        if name == ".git/" and not self._git:
            return -1
        if self._depth is not None and depth > self._depth:
            return -1
        if depth <= len(self._fixed) and self._fixed[depth - 1] != name[:-1]:
            return -1
        if depth >= DEPTH:
            self.limits.add("depth")
            return -1
        try:
            return os.open(name.raw if isinstance(name, _Odd) else name[:-1], _DIRECTORY, dir_fd=level.directory)
        except OSError:
            return -1

    def _enter(self, directory: int, prefix: str, allow: Allow, levels: Levels) -> _Level:
        """The names of an open directory that the policy shows, in order."""
        names, block, odd = _listing(directory)
        if self._skip is not None and names and self._skip.any_of(prefix, names, block):
            matches = self._skip.matches
            names = [name for name in names if not matches(prefix + name.rstrip("/"))]
        if levels is not None and names:
            levels = self._deeper(directory, prefix, allow, levels, names)
            names = gitignore.kept(levels, prefix, names) if levels else names
        if allow and names:
            names = [name for name in names if name[-1] == "/" or _listed(allow, prefix + name)]
        return _Level(directory, prefix, iter(names), allow, levels, odd)

    # --- .gitignore ---

    def _deeper(
        self, directory: int, prefix: str, allow: Allow, levels: tuple[gitignore.Level, ...], names: list[str]
    ) -> tuple[gitignore.Level, ...]:
        """`levels`, and what the directory itself says; only files that the policy shows are read."""
        texts: list[bytes] = []
        if ".git/" in names and not covers(self._skip, prefix + _EXCLUDE) and admits(allow, prefix + _EXCLUDE):
            texts.append(_small(self._root, prefix + _EXCLUDE, None))
        if _IGNORE in names and _listed(allow, prefix + _IGNORE):
            texts.append(_small(self._root, _IGNORE, directory))
        if not any(texts):
            return levels
        found, whole = gitignore.level(prefix, texts)
        if not whole:
            self.limits.add("gitignore")
        return (*levels, found) if found is not None else levels

    def _above(self) -> tuple[gitignore.Level, ...]:
        """What the directories from the root to above the start say of what is below it."""
        levels: tuple[gitignore.Level, ...] = ()
        parts = [] if self._start == "." else self._start.split("/")
        for count in range(len(parts)):
            prefix = "".join(part + "/" for part in parts[:count])
            texts = [
                _small(self._root, path, None)
                for path in (prefix + _EXCLUDE, prefix + _IGNORE)
                if not covers(self._skip, path) and admits(self._only, path)
            ]
            found, whole = gitignore.level(prefix, texts)
            if not whole:
                self.limits.add("gitignore")
            if found is not None:
                levels = (*levels, found)
        return levels


def _listed(allow: Allow, path: str) -> bool:
    return all(one is not None and one.matches(path) for one in allow)


def _listing(directory: int) -> tuple[list[str], bytes, bool]:
    """(names, the same with NUL around each, whether one of them is not UTF-8); directories end in "/"."""
    try:
        with os.scandir(directory) as entries:
            names = [entry.name + "/" if entry.is_dir(follow_symlinks=False) else entry.name for entry in entries]
    except OSError:
        names = _one_by_one(directory)
    names.sort()  # code points: the order of the bytes of UTF-8
    try:
        return names, ("\0" + "\0".join(names) + "\0").encode("utf-8"), False
    except UnicodeEncodeError:
        pass
    texts: list[str] = []
    for name in sorted(names, key=os.fsencode):
        raw = os.fsencode(name)
        text = shown(raw)
        if text != name:
            odd = _Odd(text)
            odd.raw = raw.rstrip(b"/")
            texts.append(odd)
        else:
            texts.append(name)
    return texts, ("\0" + "\0".join(texts) + "\0").encode("utf-8"), True


def _one_by_one(directory: int) -> list[str]:
    """The names of a directory that can be told, where one of them cannot."""
    names: list[str] = []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                try:
                    names.append(entry.name + "/" if entry.is_dir(follow_symlinks=False) else entry.name)
                except OSError:
                    continue
    except OSError:
        pass
    return names


def _small(root: Root, path: str, directory: int | None) -> bytes:
    """The bytes of a `.gitignore`, at most one more than its limit; empty when it cannot be read as a plain file."""
    try:
        fd = root.open(path, os.O_RDONLY) if directory is None else os.open(path, FILE, dir_fd=directory)
    except (HandsError, OSError):
        return b""
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or is_foreign_link(status):
            return b""
        return os.read(fd, gitignore.FILE_BYTES + 1)
    except OSError:
        return b""
    finally:
        os.close(fd)
