"""After a pod is dead: what its commands made that would run on the host later is set aside, and said.

A name that the policy protects is read-only where it existed when the pod started; a command can still make one that
did not exist (no mount can forbid a name that is not there). So, once nothing of the pod runs any more:
 1. a new protected name (`.envrc`, `.mcp.json`, `.vscode/` …) is renamed to ``<name>.set-aside-by-nucleus``;
 2. a new `.git` directory stays a repository (`git init` is honest work) without what it would run: its `hooks` are
    set aside (samples alone stay), its `config` is replaced by the sanitized copy, a `commondir` is set aside; a new
    `.git` file is set aside.
Promises: nothing is deleted; symlinks are not followed; the walk is bounded (`WALK_ENTRIES`); a workspace that cannot
be looked through is reported as such. Runs in a process of its own, as the workspace's owner, not as root.
Does not: act before the pod's end; a host program that reads such a name meanwhile sees it (docs/threat-model.md).
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from contextlib import suppress

from nucleus.pod import gitconfig
from nucleus.pod.names import WALK_ENTRIES, matcher, open_beneath

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
    pending, seen = [""], 0
    while pending:
        base = pending.pop()
        for name, is_directory, is_link in _entries(workspace, base):
            seen += 1
            if seen > WALK_ENTRIES:
                return [*done, f"more than {WALK_ENTRIES} names: the rest was not looked at"]
            path = base + name
            if path in known or name.endswith(SUFFIX):
                continue
            if name == ".git" and is_directory and not is_link:
                done += _repository(workspace, path)
            elif protected(path) or name == ".git":
                done += _aside(workspace, path)
            elif is_directory and not is_link:
                pending.append(path + "/")
    return done


def _entries(workspace: int, base: str) -> list[tuple[str, bool, bool]]:
    try:
        directory = open_beneath(workspace, base or ".", _OPEN_DIRECTORY)
    except OSError:
        return []
    try:
        with os.scandir(directory) as entries:
            return [(e.name, e.is_dir(follow_symlinks=False), e.is_symlink()) for e in entries]
    finally:
        os.close(directory)


def _repository(workspace: int, path: str) -> list[str]:
    done = []
    hooks = _entries(workspace, f"{path}/hooks")
    samples = bool(hooks) and all(name.endswith(".sample") and not link for name, _, link in hooks)
    for name in ("commondir", "config.worktree") if samples else ("hooks", "commondir", "config.worktree"):
        done += _aside(workspace, f"{path}/{name}")
    with suppress(OSError):
        file = open_beneath(workspace, f"{path}/config", os.O_RDONLY | os.O_NONBLOCK)
        with open(file, "rb") as source:
            regular = stat.S_ISREG(os.fstat(file).st_mode)
            text = source.read(gitconfig.LIMIT).decode("utf-8", "surrogateescape") if regular else ""
        if not regular or not gitconfig.is_plain(text):
            done += _aside(workspace, f"{path}/config")
            holder = open_beneath(workspace, path, _OPEN_DIRECTORY)
            try:
                fd = os.open("config", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644, dir_fd=holder)
                with open(fd, "w", encoding="utf-8", errors="surrogateescape") as target:
                    target.write(gitconfig.sanitize(text))
            finally:
                os.close(holder)
    return done


def _aside(workspace: int, path: str) -> list[str]:
    """Rename one name; a name that is not there is nothing to say."""
    holder, _, name = path.rpartition("/")
    try:
        directory = open_beneath(workspace, holder or ".", _OPEN_DIRECTORY)
    except OSError:
        return []
    try:
        os.lstat(name, dir_fd=directory)
        for number in range(100):
            target = name + SUFFIX + (f".{number}" if number else "")
            try:
                os.lstat(target, dir_fd=directory)
            except FileNotFoundError:
                os.rename(name, target, src_dir_fd=directory, dst_dir_fd=directory)
                return [f"{path} was made in the pod and would run on the host: now {target}"]
        return [f"{path} was made in the pod and would run on the host: could not be set aside"]
    except FileNotFoundError:
        return []
    except OSError as error:
        return [f"{path} was made in the pod and would run on the host: {error.strerror}"]
    finally:
        os.close(directory)
