"""Names in the workspace that a view hides or shows read-only, and what git would run from it.

Promises, for the view that it is given, before anything untrusted runs in it:
 1. every name that the policy blocks is covered by an empty, unreadable file or directory;
 2. every name that the policy protects, where it exists, is read-only;
 3. each `.git` directory is looked at by this rule alone (git cannot do without its config): it is a mount of its own
    (so it cannot be renamed away), its `hooks` are read-only (an empty placeholder where there are none), its `config`
    and `config.worktree` are sanitized copies; a `.git` file (a linked worktree: it points out of the workspace) and
    a `.git` with a `commondir` are covered, with a note that says so.
Relies on: `open_beneath` for every name it touches; `matcher` for the globs.
Does not: cover names that appear later (the gate decides those by name; what a command makes, `aftermath` sets aside),
a second hard link to a blocked file, or what a symlink is called (its target has a name of its own).
The walk is bounded: a workspace of more than `WALK_ENTRIES` names fails closed when the policy blocks or protects any.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from nucleus.errors import SandboxError
from nucleus.kernel import syscalls
from nucleus.pod import gitconfig

WALK_ENTRIES = 100_000  # names looked at
MOUNTS = 4_096  # names covered or protected
Match = Callable[[str], bool]


def matcher(globs: list[str]) -> Match:
    """The policy's own glob semantics (`nucleus.lattice.paths.PathSet`, case ignored) for a walk from the top.

    A walk has tried every directory above a name before the name, so only the name's own match is left to find; that
    saves most of the work per entry.
    """
    from nucleus.lattice.paths import PathSet, glob_match  # weight: only a compartment with a workspace matches

    names: list[str] = []
    anchored: list[tuple[str, str]] = []  # (its last part when that is literal, the glob)
    for glob in globs:
        text = glob.casefold()
        while text.endswith(("/", "/**")):
            text = text.removesuffix("/**").rstrip("/")
        text = text.removeprefix("./")
        if "/" not in text.removeprefix("**/") and "**" not in text.removeprefix("**/"):
            names.append(glob)
        else:
            last = text.rpartition("/")[2]
            anchored.append(("" if set("*?[") & set(last) else last, text.lstrip("/")))
    by_name = PathSet(tuple(names), True)
    seen: dict[str, bool] = {}

    def match(path: str) -> bool:
        path = path.casefold()
        name = path.rpartition("/")[2]
        found = seen.get(name)
        if found is None:
            found = seen[name] = by_name.find(name) is not None
        return found or any(last in ("", name) and glob_match(glob, path) for last, glob in anchored)

    return match


@dataclass(slots=True)
class Applied:
    """What was done: placeholders to remove when the pod ends and what was there (paths), notes for the person."""

    placeholders: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)  # protected names that were there (for `aftermath`)
    notes: list[str] = field(default_factory=list)
    mounts: int = 0


@dataclass(slots=True)
class _Found:
    hidden: list[tuple[str, bool]] = field(default_factory=list)  # (path, is a directory)
    guarded: list[str] = field(default_factory=list)
    git: list[tuple[str, bool]] = field(default_factory=list)


class Workspace:
    """A view of the workspace, by a descriptor of its root inside the compartment's mount namespace.

    Args:
        root: O_PATH directory.
        masks: where the two covers lie: ``<masks>/file`` and ``<masks>/directory``.
        scratch: a writable directory of the compartment in which sanitized copies are made.
        writable: whether the view can be written at all (an agent's shared view cannot).
    """

    def __init__(self, root: int, masks: str, scratch: str, *, writable: bool) -> None:
        self._root = root
        self._masks = masks
        self._scratch = scratch
        self._writable = writable
        self.applied = Applied()

    def apply(self, blocked: Match, protected: Match) -> Applied:
        """Cover and protect.

        Raises:
            SandboxError: rule ``pod.workspace``: the workspace is too large to look through.
        """
        found = self._walk(blocked, protected)
        self.applied.known = [*found.guarded, *(path for path, _ in found.git)]
        for path in found.guarded:
            self._read_only(path)
        for path, is_directory in found.git:
            self._git(path, is_directory)
        for path, is_directory in found.hidden:
            self._cover(path, is_directory)
        return self.applied

    def _walk(self, blocked: Match, protected: Match) -> _Found:
        found = _Found()
        seen = 0
        pending = [""]
        while pending:
            base = pending.pop()
            for entry in self._entries(base):
                seen += 1
                if seen > WALK_ENTRIES:
                    raise SandboxError(
                        f"the workspace has more than {WALK_ENTRIES} names: blocked ones cannot be hidden reliably",
                        rule="pod.workspace",
                        next_step="Choose a smaller workspace.",
                    )
                path = base + entry.name
                is_directory = entry.is_dir(follow_symlinks=False)
                if entry.is_symlink():
                    continue
                if blocked(path):
                    found.hidden.append((path, is_directory))
                elif entry.name == ".git":
                    found.git.append((path, is_directory))
                elif protected(path):
                    found.guarded.append(path)
                    if is_directory:
                        pending.append(path + "/")
                elif is_directory:
                    pending.append(path + "/")
        return found

    def _entries(self, base: str) -> list[os.DirEntry[str]]:
        try:
            fd = self._open(base or ".", os.O_RDONLY | os.O_DIRECTORY)
        except (PermissionError, FileNotFoundError):
            return []  # nobody in the pod can read it either, or it has just gone
        try:
            with os.scandir(fd) as entries:
                return list(entries)
        finally:
            os.close(fd)

    def _git(self, path: str, is_directory: bool) -> None:
        """Promise 3 for one `.git`."""
        if not is_directory:
            self.applied.notes.append(f"{path} is a linked worktree's file, which points out of the workspace: hidden")
            self._cover(path, False)
            return
        if self._exists(f"{path}/commondir"):
            self.applied.notes.append(f"{path} shares another directory's repository (commondir): hidden")
            self._cover(path, True)
            return
        self._over_itself(path)
        for holder in self._git_directories(path):
            self._hooks(holder)
            for name in ("config", "config.worktree"):
                self._sanitized(f"{holder}/{name}")

    def _git_directories(self, path: str) -> list[str]:
        """The repository and its submodules' own (`modules/**`), to a depth of 8."""
        found = [path]
        pending = [(f"{path}/modules", 0)]
        while pending:
            base, depth = pending.pop()
            if depth > 8 or not self._exists(base):
                continue
            for entry in self._entries(base):
                if entry.is_dir(follow_symlinks=False):
                    inner = f"{base}/{entry.name}"
                    if self._exists(f"{inner}/HEAD"):
                        found.append(inner)
                        pending.append((f"{inner}/modules", depth + 1))
                    else:
                        pending.append((inner, depth + 1))
        return found

    def _hooks(self, holder: str) -> None:
        path = f"{holder}/hooks"
        try:
            self._read_only(path)
        except FileNotFoundError:
            if not self._writable:
                return
            parent = self._open(holder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.mkdir("hooks", 0o755, dir_fd=parent)
            finally:
                os.close(parent)
            self.applied.placeholders.append(path)
            self._read_only(path)

    def _sanitized(self, path: str) -> None:
        try:
            fd = self._open(path, os.O_RDONLY | os.O_NONBLOCK)
        except FileNotFoundError:
            return
        except OSError:
            self._cover(path, False)  # unreadable or a symlink: nothing of it may count
            return
        with open(fd, "rb") as file:
            text = file.read(gitconfig.LIMIT) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
        copy = f"{self._scratch}/config"
        with open(copy, "x", encoding="utf-8", errors="surrogateescape") as target:
            target.write(gitconfig.sanitize(text.decode("utf-8", "surrogateescape")))
        os.chmod(copy, 0o444)
        self._attach(_locked_down(_clone(syscalls.AT_FDCWD, copy)), path)
        os.unlink(copy)  # the mount keeps it

    def _cover(self, path: str, is_directory: bool) -> None:
        cover = f"{self._masks}/{'directory' if is_directory else 'file'}"
        with suppress(FileNotFoundError):
            self._attach(_clone(syscalls.AT_FDCWD, cover), path)

    def _read_only(self, path: str) -> None:
        self._attach(_locked_down(self._clone_of(path)), path)

    def _over_itself(self, path: str) -> None:
        self._attach(self._clone_of(path), path)

    def _clone_of(self, path: str) -> int:
        fd = self._open(path, os.O_PATH)
        try:
            return _clone(fd, "")
        finally:
            os.close(fd)

    def _attach(self, tree: int, path: str) -> None:
        """Mount a detached tree over a name of the workspace; closes `tree`."""
        try:
            self.applied.mounts += 1
            if self.applied.mounts > MOUNTS:
                raise SandboxError(f"more than {MOUNTS} blocked or protected names", rule="pod.workspace")
            target = self._open(path, os.O_PATH)
            try:
                flags = syscalls.MOVE_MOUNT_F_EMPTY_PATH | syscalls.MOVE_MOUNT_T_EMPTY_PATH
                syscalls.move_mount(tree, "", target, "", flags)
            finally:
                os.close(target)
        finally:
            os.close(tree)

    def _exists(self, path: str) -> bool:
        try:
            os.close(self._open(path, os.O_PATH))
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return True

    def _open(self, path: str, flags: int) -> int:
        return open_beneath(self._root, path, flags)


def open_beneath(root: int, path: str, flags: int) -> int:
    """Open a name below `root`, one component at a time, following no symlink, not even the last one.

    Raises:
        OSError: ELOOP for a symlink anywhere in the path.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise OSError(errno.EXDEV, "a path with ..")
    at = root
    try:
        for number, part in enumerate(parts or ["."]):
            last = number >= len(parts) - 1
            wanted = flags if last else os.O_PATH | os.O_DIRECTORY
            inner = os.open(part, wanted | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            if at != root:
                os.close(at)
            at = inner
        if flags & os.O_PATH and stat.S_ISLNK(os.fstat(at).st_mode):
            raise OSError(errno.ELOOP, "a symlink")
    except BaseException:
        if at != root:
            os.close(at)
        raise
    return at


def _clone(directory: int, path: str) -> int:
    flags = (
        syscalls.OPEN_TREE_CLONE
        | syscalls.OPEN_TREE_CLOEXEC
        | syscalls.AT_RECURSIVE
        | (0 if path else syscalls.AT_EMPTY_PATH)
    )
    return syscalls.open_tree(directory, path, flags)


def _locked_down(tree: int) -> int:
    attributes = syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
    syscalls.mount_setattr(tree, "", syscalls.AT_EMPTY_PATH | syscalls.AT_RECURSIVE, attr_set=attributes)
    return tree


def remove_placeholders(workspace: int, placeholders: list[str]) -> None:
    """Remove the empty directories that we made, and nothing that has come to be in them.

    Runs on the host side once the pod is dead; the names are walked without following a symlink.
    """
    for path in placeholders:
        holder, _, name = path.rpartition("/")
        with suppress(OSError):
            parent = open_beneath(workspace, holder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.rmdir(name, dir_fd=parent)
            finally:
                os.close(parent)
