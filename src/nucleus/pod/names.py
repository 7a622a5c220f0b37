"""Names in the workspace that a view hides or shows read-only, and what git would run from it.

Promises, for the view that it is given, before anything untrusted runs in it:
 1. every name that the policy blocks is covered by an empty, unreadable file or directory;
 2. every name that the policy protects, where it exists, is read-only;
 3. each `.git` directory, and each bare repository, is looked at by this rule alone (git cannot do without its config):
    it is a mount of its own (so it cannot be renamed away), and so is each directory on the way to a submodule's; its
    `hooks` are read-only, its `config` and `config.worktree` are sanitized copies, its `worktrees` are read-only
    (each names the directory that a worktree elsewhere on the host takes its hooks from). Where there are no `hooks`,
    a placeholder; and a read-only `commondir` that says "here": whoever could write one would choose the config that
    the host's git reads. A `.git` file (a linked worktree: it points out of the workspace) and a `.git` with another
    `commondir` are covered, with a note that says so.
 4. a unix socket is covered: a program of the host may listen on it, and no network namespace is in the way of a path.
 5. where a protected name is a symlink to something in the workspace, that is protected in its place.
Relies on: `open_beneath` for every name it touches; `matcher` for the globs.
Does not: cover names that appear later (the gate decides those by name; what a command makes, `aftermath` sets aside),
a second hard link to a blocked file, or what a symlink is called (its target has a name of its own).
Somebody may be moving directories meanwhile (another pod with this workspace), from where the walk has not been to
where it has: each directory's ctime, which nobody can set, is taken before it is listed and looked at again after all
is covered; what has changed is walked again. So there is a moment at which every directory was as it was listed.
A workspace that does not come to rest for `PATIENCE_SECONDS` fails closed, and one of more than `WALK_ENTRIES` names.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from nucleus.errors import SandboxError
from nucleus.globs import anchored, folded, folded_glob
from nucleus.kernel import syscalls
from nucleus.kernel.openat2 import RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, openat2
from nucleus.pod import gitconfig
from nucleus.pod.beneath import COMMONDIR, identity, new_file, open_beneath

WALK_ENTRIES = 100_000  # names looked at
MOUNTS = 4_096  # names covered or protected
PATIENCE_SECONDS = 2.0  # for a workspace that is being changed
FINE_CTIME = tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2]) >= (6, 13)  # multigrain
_TICK_NS = 10_000_000  # the longest (CONFIG_HZ=100)
REPOSITORY = ("hooks", "commondir", "config", "config.worktree")  # what git runs, or takes that from
BARE = {"HEAD", "objects", "refs"}  # what git takes for a repository (setup.c, is_git_directory)
Match = Callable[[str], bool]


def matcher(globs: list[str]) -> Match:
    """The policy's own glob semantics (`nucleus.lattice.paths.PathSet`, case ignored) for a walk from the top.

    A walk has tried every directory above a name before the name, so only the name's own match is left to find; that
    saves most of the work per entry.
    """
    from nucleus.lattice.paths import PathSet, glob_match  # weight: only a compartment with a workspace matches

    names: list[str] = []
    rooted: list[tuple[str, str]] = []  # (its last part when that is literal, the glob)
    for glob in globs:
        text = anchored(folded_glob(glob))
        if text[0] != "/":
            names.append(glob)
        else:
            last = text.rpartition("/")[2]
            rooted.append(("" if set("*?[") & set(last) else last, text[1:]))
    by_name = PathSet(tuple(names), True)
    seen: dict[str, bool] = {}

    def match(path: str) -> bool:
        path = folded(path)
        name = path.rpartition("/")[2]
        found = seen.get(name)
        if found is None:
            found = seen[name] = by_name.find(name) is not None
        return found or any(last in ("", name) and glob_match(glob, path, ignore_case=True) for last, glob in rooted)

    return match


@dataclass(slots=True)
class Applied:
    """What was done: placeholders to remove when the pod ends and what was there (paths), notes for the person."""

    placeholders: list[str] = field(default_factory=list)
    known: set[str] = field(default_factory=set)  # inodes under protected names that were there (for `aftermath`)
    notes: list[str] = field(default_factory=list)
    mounts: int = 0


@dataclass(slots=True)
class _Found:
    hidden: list[tuple[str, bool]] = field(default_factory=list)  # (path, is a directory)
    guarded: list[str] = field(default_factory=list)
    git: list[tuple[str, bool]] = field(default_factory=list)
    bare: list[str] = field(default_factory=list)


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
        # Directory → (device, inode, ctime in ns) before it was listed, the last ones listed at the end.
        self._listed: dict[str, tuple[int, int, int]] = {}

    def apply(self, blocked: Match, protected: Match) -> Applied:
        """Cover and protect.

        Raises:
            SandboxError: rule ``pod.workspace``: the workspace is too large to look through, or never at rest.
        """
        end = time.monotonic() + PATIENCE_SECONDS
        pending = [""]
        while pending:
            self._apply(self._walk(blocked, protected, pending))
            pending = self._changed()
            if pending and time.monotonic() > end:
                raise SandboxError(
                    f"the workspace is being changed ({pending[0] or '.'}): blocked names cannot be hidden reliably",
                    rule="pod.workspace",
                    next_step="Wait for the program that changes it, or end the other pod.",
                )
        return self.applied

    def _apply(self, found: _Found) -> None:
        for path in found.guarded:
            self._read_only(path)
        for path, is_directory in found.git:
            self._git(path, is_directory)
        for path in found.bare:
            self._repository(path)
        for path, is_directory in found.hidden:
            self._cover(path, is_directory)

    def _changed(self) -> list[str]:
        """The directories that are no longer as they were listed; they are forgotten, to be listed again.

        The last ones listed are looked at first: those change most, and are at rest for the shortest time.
        """
        changed = []
        for base, stamp in reversed(self._listed.items()):
            try:
                if _stamp(os.stat(base or ".", dir_fd=self._root, follow_symlinks=False)) == stamp:
                    continue
            except OSError:
                pass
            changed.append(base)
        for base in changed:
            del self._listed[base]
        return changed

    def _walk(self, blocked: Match, protected: Match, pending: list[str]) -> _Found:
        found = _Found()
        seen = 0
        while pending:
            base = pending.pop()
            if base in self._listed:
                continue
            entries = self._entries(base, note=True)
            seen += len(entries)
            if seen > WALK_ENTRIES:
                raise SandboxError(
                    f"the workspace has more than {WALK_ENTRIES} names: blocked ones cannot be hidden reliably",
                    rule="pod.workspace",
                    next_step="Choose a smaller workspace.",
                )
            for entry in entries:
                path = base + entry.name
                is_directory = entry.is_dir(follow_symlinks=False)
                if entry.is_symlink():
                    if protected(path):
                        self._link(found, path)
                elif blocked(path) or not (is_directory or entry.is_file(follow_symlinks=False) or self._is_open(path)):
                    found.hidden.append((path, is_directory))
                elif entry.name == ".git":
                    found.git.append((path, is_directory))
                elif protected(path):
                    found.guarded.append(path)
                    if is_directory:
                        pending.append(path + "/")
                elif is_directory:
                    pending.append(path + "/")
            if {entry.name for entry in entries} >= BARE:
                found.bare.append(base.rstrip("/"))
        return found

    def _is_open(self, path: str) -> bool:
        """Promise 4 for what is neither file nor directory; a fifo may stay."""
        is_socket = False
        with suppress(FileNotFoundError):
            is_socket = stat.S_ISSOCK(self._stat(path).st_mode)
        if is_socket:
            self.applied.notes.append(f"{path} is a socket: hidden")
        return not is_socket

    def _link(self, found: _Found, path: str) -> None:
        """Promise 5."""
        try:
            self._known(path)
            fd = openat2(self._root, path.encode(), os.O_PATH, resolve=RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS)
        except (OSError, ValueError):
            return  # it leads out of the workspace, where a pod cannot write, or nowhere
        try:
            base, full = (os.readlink(f"/proc/self/fd/{each}") for each in (self._root, fd))
        finally:
            os.close(fd)
        if full.startswith(f"{base}/"):
            found.guarded.append(full.removeprefix(f"{base}/"))

    def _stat(self, path: str) -> os.stat_result:
        """What a name is, without following it.

        Raises:
            OSError: it has gone meanwhile, or a symlink is in its way.
        """
        holder, _, name = path.rpartition("/")
        fd = self._open(holder or ".", os.O_PATH | os.O_DIRECTORY)
        try:
            return os.stat(name or ".", dir_fd=fd, follow_symlinks=False)
        finally:
            os.close(fd)

    def _entries(self, base: str, *, note: bool = False) -> list[os.DirEntry[str]]:
        try:
            fd = self._open(base or ".", os.O_RDONLY | os.O_DIRECTORY)
        except (PermissionError, FileNotFoundError):
            return []  # nobody in the pod can read it either, or it has just gone
        try:
            if note:
                self._listed[base] = _stamp(os.fstat(fd))
            with os.scandir(fd) as entries:
                return list(entries)
        finally:
            os.close(fd)

    def _git(self, path: str, is_directory: bool) -> None:
        """Promise 3 for one `.git`."""
        self._known(path)
        if not is_directory:
            self.applied.notes.append(f"{path} is a linked worktree's file, which points out of the workspace: hidden")
            self._cover(path, False)
            return
        if self._exists(f"{path}/commondir") and self._content(f"{path}/commondir") != COMMONDIR:
            self.applied.notes.append(f"{path} shares another directory's repository (commondir): hidden")
            for name in REPOSITORY:
                with suppress(OSError):
                    self._known(f"{path}/{name}")
            self._cover(path, True)
            return
        self._repository(path)

    def _repository(self, path: str) -> None:
        """Promise 3 for a repository and its submodules' own; what is no plain one is hidden."""
        for directory, is_repository in self._git_directories(path):
            try:
                if directory:
                    self._known(directory)
                    self._attach(self._clone_of(directory), directory)  # over itself: pinned
                if is_repository:
                    self._contents(f"{directory}/" if directory else "")
            except OSError as error:
                if not directory:
                    raise
                self.applied.notes.append(f"{directory} is no plain repository ({error.strerror}): hidden")
                self._cover(directory, True)

    def _contents(self, prefix: str) -> None:
        """Promises 3 and 4 for what lies in one repository's directory."""
        self._placed(prefix, "hooks", None)
        self._placed(prefix, "commondir", COMMONDIR)
        if self._exists(f"{prefix}worktrees"):
            self._read_only(f"{prefix}worktrees")
        if gitconfig.has_worktree_config(self._content(f"{prefix}config").decode("utf-8", "surrogateescape")):
            self._placed(prefix, "config.worktree", b"")
        for name in ("config", "config.worktree"):
            self._sanitized(prefix + name)
        for entry in self._entries(prefix):
            plain = entry.is_symlink() or entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False)
            if not plain and not self._is_open(prefix + entry.name):
                self._cover(prefix + entry.name, False)

    def _git_directories(self, path: str) -> list[tuple[str, bool]]:
        """The repository and its submodules' own (`modules/**`), to a depth of 8, each after what it lies in.

        True marks a repository, False a directory on the way to one.
        """
        found = [(path, True)]
        pending = [(f"{path}/modules".lstrip("/"), 0)]
        while pending:
            base, depth = pending.pop()
            if depth > 8 or not self._exists(base):
                continue
            found.append((base, False))
            for entry in self._entries(base):
                if entry.is_dir(follow_symlinks=False):
                    inner = f"{base}/{entry.name}"
                    if self._exists(f"{inner}/HEAD"):
                        found.append((inner, True))
                        pending.append((f"{inner}/modules", depth + 1))
                    else:
                        pending.append((inner, depth + 1))
        return found

    def _placed(self, prefix: str, name: str, content: bytes | None) -> None:
        """Make a name of git's read-only; where it is missing, make it first: a directory, or a file with `content`."""
        path = prefix + name
        if not self._exists(path):
            if not self._writable:
                return
            parent = self._open(prefix or ".", os.O_RDONLY | os.O_DIRECTORY)
            try:
                if content is None:
                    os.mkdir(name, 0o755, dir_fd=parent)
                else:
                    new_file(parent, name, content)
            finally:
                os.close(parent)
            self.applied.placeholders.append(path)
        self._read_only(path)

    def _content(self, path: str) -> bytes:
        """The beginning of a regular file; empty where there is none to read."""
        try:
            fd = self._open(path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            return b""
        with open(fd, "rb") as file:
            return file.read(gitconfig.LIMIT) if stat.S_ISREG(os.fstat(fd).st_mode) else b""

    def _sanitized(self, path: str) -> None:
        if not self._exists(path):
            return
        self._known(path)
        text = self._content(path)  # of what is unreadable or a symlink, nothing counts
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
        self._known(path)
        self._attach(_locked_down(self._clone_of(path)), path)

    def _known(self, path: str) -> None:
        self.applied.known.add(identity(self._stat(path)))

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


def _stamp(found: os.stat_result) -> tuple[int, int, int]:
    """What changes when a directory does; never the same twice while a later change might have the same ctime."""
    young = time.time_ns() - found.st_ctime_ns <= 2 * _TICK_NS
    return found.st_dev, found.st_ino, -time.monotonic_ns() if young and not FINE_CTIME else found.st_ctime_ns


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
