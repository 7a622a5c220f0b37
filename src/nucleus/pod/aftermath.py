"""After a pod is dead: what its commands made that would run on the host later is set aside, and said.

A name that the policy protects is read-only where it existed when the pod started; a command can still make one that
did not exist (no mount can forbid a name that is not there). So, once nothing of the pod runs any more:
 1. a new protected name (`.envrc`, `.mcp.json`, `.vscode/` …) is renamed to ``<name>.set-aside-by-nucleus``;
 2. a `.git` directory, or a bare repository, stays one (`git init` is honest work) without what it would run: new
    `hooks` are set aside (samples alone stay), a new `config` is replaced by the sanitized copy, a new `commondir` is
    set aside; a new `.git` file is set aside. Also in a `.git` that was there: a host program that replaces its
    `config` while the pod runs takes the mount off it, and the pod could write to it from then on.
What was there is known by its inode, not its name: a directory above it can be renamed, and another put there.
Promises: nothing is deleted; symlinks are not followed; what is near the top is looked at first, a directory's own
permissions notwithstanding; the walk is bounded (`ENTRIES`, and in time by the builder); a workspace that cannot be
looked through is reported as such. Runs in a process of its own, as the workspace's owner, not as root.
Does not: act before the pod's end; a host program that reads such a name meanwhile sees it (docs/threat-model.md).
"""

from __future__ import annotations

import json
import os
import stat
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from nucleus.pod import gitconfig
from nucleus.pod.beneath import identity, is_harmless, open_beneath
from nucleus.pod.names import BARE, REPOSITORY, matcher

ENTRIES = 1_000_000
SUFFIX = ".set-aside-by-nucleus"
NAMES = 200  # reported by name; the rest by their number
_OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY


def look(workspace: int, protect: list[str], known: frozenset[str], out: int) -> None:
    """The child's whole life: take the owner's uid, set aside, write a JSON list of lines to `out`. Never returns."""
    try:
        owner = os.fstat(workspace)
        if os.geteuid() == 0 and owner.st_uid != 0:
            os.setgroups([])
            os.setresgid(owner.st_gid, owner.st_gid, owner.st_gid)
            os.setresuid(owner.st_uid, owner.st_uid, owner.st_uid)
        lines = set_aside(workspace, matcher(protect), known)
        if len(lines) > NAMES:
            lines = [*lines[:NAMES], f"and {len(lines) - NAMES} more"]
        os.write(out, json.dumps(lines).encode("ascii"))
    finally:
        os._exit(0)


def set_aside(workspace: int, protected: Callable[[str], bool], known: frozenset[str]) -> list[str]:
    """Steps 1 and 2; returns what was done, one line each."""
    done: list[str] = []
    pending, seen = deque([""]), 0
    while pending:
        base = pending.popleft()
        entries = _entries(workspace, base)
        seen += len(entries)
        if seen > ENTRIES:
            return [*done, f"more than {ENTRIES} names: the rest was not looked at"]
        for name, is_directory, is_link in entries:
            path = base + name
            if name.endswith(SUFFIX):
                continue
            if name == ".git" and is_directory and not is_link:
                done += _repositories(workspace, path, known)
            elif name == ".git" or protected(path):
                done += _aside(workspace, path, known)
            elif is_directory and not is_link:
                pending.append(path + "/")
        if {name for name, _, _ in entries} >= BARE:
            done += _repository(workspace, base, known)
    return done


def _entries(workspace: int, base: str) -> list[tuple[str, bool, bool]]:
    with suppress(OSError), _directory(workspace, base, 0o500) as directory, os.scandir(directory) as entries:
        return [(e.name, e.is_dir(follow_symlinks=False), e.is_symlink()) for e in entries]
    return []


@contextmanager
def _directory(workspace: int, path: str, rights: int) -> Iterator[int]:
    """Open a directory although its mode takes some of `rights` from its owner; the mode comes back afterwards."""
    place = open_beneath(workspace, path or ".", os.O_PATH | os.O_DIRECTORY)
    try:
        name = f"/proc/self/fd/{place}"
        mode = stat.S_IMODE(os.fstat(place).st_mode)
        if mode & rights != rights:
            os.chmod(name, mode | rights)
        try:
            directory = os.open(name, os.O_RDONLY | os.O_DIRECTORY)
            try:
                yield directory
            finally:
                os.close(directory)
        finally:
            # It stays enterable, for what lies below it.
            if mode & rights != rights:
                os.chmod(name, mode | 0o100)
    finally:
        os.close(place)


def _repositories(workspace: int, path: str, known: frozenset[str]) -> list[str]:
    """A `.git` and its submodules' own, to a depth of 8."""
    done = _repository(workspace, path + "/", known)
    pending = [(f"{path}/modules/", 0)]
    while pending:
        base, depth = pending.pop()
        for name, is_directory, is_link in _entries(workspace, base):
            if is_directory and not is_link and depth <= 8:
                inner = f"{base}{name}/"
                if any(found == "HEAD" for found, _, _ in _entries(workspace, inner)):
                    done += _repository(workspace, inner, known)
                    inner += "modules/"
                pending.append((inner, depth + 1))
    return done


def _repository(workspace: int, base: str, known: frozenset[str]) -> list[str]:
    done = []
    hooks = _entries(workspace, f"{base}hooks")
    samples = bool(hooks) and all(name.endswith(".sample") and not link for name, _, link in hooks)
    for name in REPOSITORY:
        if name != "config" and not (name == "hooks" and samples):
            done += _aside(workspace, base + name, known)
    with suppress(OSError):
        file = open_beneath(workspace, f"{base}config", os.O_RDONLY | os.O_NONBLOCK)
        with open(file, "rb") as source:
            regular = stat.S_ISREG(os.fstat(file).st_mode)
            text = source.read(gitconfig.LIMIT).decode("utf-8", "surrogateescape") if regular else ""
        if not regular or not gitconfig.is_plain(text):
            moved = _aside(workspace, f"{base}config", known)
            done += moved
            if moved:
                _sanitized(workspace, base, text)
    return done


def _sanitized(workspace: int, base: str, text: str) -> None:
    with _directory(workspace, base, 0o700) as holder:
        fd = os.open("config", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644, dir_fd=holder)
        with open(fd, "w", encoding="utf-8", errors="surrogateescape") as target:
            target.write(gitconfig.sanitize(text))


def _aside(workspace: int, path: str, known: frozenset[str]) -> list[str]:
    """Rename one name that is not known; a name that is not there is nothing to say."""
    holder, _, name = path.rpartition("/")
    said = f"{path} was made in the pod and would run on the host"
    try:
        with _directory(workspace, holder, 0o700) as directory:
            if identity(os.lstat(name, dir_fd=directory)) in known:
                return []
            if name in REPOSITORY and is_harmless(directory, name):
                return []  # another pod's placeholder, or as good as one
            for number in range(100):
                target = name + SUFFIX + (f".{number}" if number else "")
                try:
                    os.lstat(target, dir_fd=directory)
                except FileNotFoundError:
                    os.rename(name, target, src_dir_fd=directory, dst_dir_fd=directory)
                    return [f"{said}: now {target}"]
            return [f"{said}: could not be set aside"]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        return [f"{said}: {error.strerror}"]
