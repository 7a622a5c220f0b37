"""A pod's workspace as a copy: what it changed, taken over into the original when a person says so, or not.

    NAME/copy.json           the original's path
    NAME/tree/               what the pod has as /workspace
    NAME/base/               as it was when it was copied, and as far as it has been taken over since
    NAME/checkpoints/LABEL/  kept states of tree/
    NAME/journal.json        a take-over that has begun
    NAME/lock

Steps of `apply`, all under the lock:
 1. what tree/ has other than base/; special files are left out, set-user-ID and its like never come along
 2. what the original has otherwise than base/ at those paths is a conflict, unless it is what tree/ has, too
 3. the new files go into a directory of the original's, closed to others, and to the disk; nothing is changed yet
 4. the journal says what will be done; from here on a crash is finished by whoever comes next, before it is undone
 5. names are removed, made and renamed, beneath the original, through no link; then the same is done to base/
Promises: the original is not touched by anything else; all of it is taken over or nothing, also across a crash. Names
come from a hostile pod: every one is looked up beneath the root that is meant.
Relies on: `trees`. Does not: run commands, ask anybody, or stop a pod that writes meanwhile (its caller does).
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

from nucleus.errors import InvalidError, SandboxError
from nucleus.pod import runtime, trees
from nucleus.pod.trees import Entry
from nucleus.store.note_keys import write_whole

STAGING = ".nucleus-apply-"
MAX_CHECKPOINTS = 32
_JOURNAL_BYTES = 1 << 28
_LABEL = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")


@dataclass(frozen=True, slots=True)
class Change:
    """One path that the pod changed: `what` is added, modified, deleted, mode or type."""

    path: str
    what: str
    before: Entry | None
    after: Entry | None


class Copy:
    """One pod's; see the module. `path`: its directory, which is this user's alone."""

    def __init__(self, path: str, original: str) -> None:
        self.path = path
        self.original = original

    @property
    def tree(self) -> str:
        """The pod's workspace."""
        return os.path.join(self.path, "tree")

    def changes(self) -> tuple[list[Change], list[str]]:
        """What the pod has changed, by path; and what of it is never taken over: special files, and what is closed."""
        with _directory(self.path, "base") as base, _directory(self.path, "tree") as tree:
            return compare(base, tree)

    @contextmanager
    def locked(self, *, recover: bool = True) -> Iterator[None]:
        """One at a time; first what a crash has left is finished. Raises SandboxError: somebody is at it."""
        fd = os.open(os.path.join(self.path, "lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SandboxError("another command works on this copy", rule="pod.copy") from None
            if recover:
                self._recover()
            yield
        finally:
            os.close(fd)

    def apply(
        self, wanted: Callable[[str], bool], *, overwrite: bool = False, expected: str = ""
    ) -> tuple[list[Change], list[str]]:
        """Take the changes of these paths over; those, and what was left out. The caller holds the lock.

        Raises:
            InvalidError: rule ``pod.conflict``: the original has changed there; ``pod.changed``: `expected` is the
                digest of other changes; ``pod.copy``.
            OSError: the original cannot be written. Nothing of it is changed then.
        """
        found, left_out = self.changes()  # 1
        if expected and expected != digest(found, self._content):
            raise InvalidError(
                "the changes are others than those that were looked at",
                rule="pod.changed",
                next_step="`nucleus pod diff`.",
            )
        taken = _with_directories(found, [one for one in found if wanted(one.path)])
        if not taken:
            return [], left_out
        with _directory(self.original) as original, _directory(self.path, "base") as base:
            with _directory(self.path, "tree") as tree:
                conflicts = [one.path for one in taken if self._conflicts(one, original, base, tree)]  # 2
                never = _occupied(taken, original, base)
                made = frozenset(one.path for one in taken if one.after is not None and one.after.kind == "dir")
                never += [one.path for one in taken if not _placeable(one, made, original)]
                if never or (conflicts and not overwrite):
                    raise _conflict(never or conflicts)
                _one_file_system(taken, original)
                staging = STAGING + secrets.token_hex(8)
                work: dict[str, Any] = {
                    "staging": staging,
                    "changes": [_to_wire(one) for one in taken],
                    "state": "stage",
                }
                self._write_journal(work)
                try:
                    os.mkdir(staging, 0o700, dir_fd=original)  # 3
                    _stage(taken, tree, original, staging)
                except BaseException:
                    self._recover()
                    raise
            self._write_journal(work | {"state": "commit"})  # 4
            self._finish(taken, staging, original, base)
        return taken, left_out

    def checkpoint(self, label: str) -> str:
        """Keep the tree as it is now. The caller holds the lock. Raises InvalidError: the label, or too many."""
        if not label or not set(label) <= _LABEL or len(label) > 63:
            raise InvalidError("a label is of a-z, 0-9 and -", rule="pod.checkpoint")
        kept = self.checkpoints()
        if label in kept or len(kept) >= MAX_CHECKPOINTS:
            raise InvalidError(
                f"there is a checkpoint {label!r}, or there are {MAX_CHECKPOINTS}", rule="pod.checkpoint"
            )
        place = os.path.join(self.path, "checkpoints")
        made = os.path.join(place, f".{label}")
        shutil.rmtree(made, ignore_errors=True)
        os.makedirs(made, 0o700)
        try:
            with _directory(self.path, "tree") as tree, _directory(made) as into:
                trees.copy_tree(tree, into)
            os.rename(made, os.path.join(place, label))
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
        return label

    def checkpoints(self) -> list[str]:
        """Their labels, the oldest first."""
        place = os.path.join(self.path, "checkpoints")
        try:
            names = [name for name in os.listdir(place) if not name.startswith(".")]
        except FileNotFoundError:
            return []
        return sorted(names, key=lambda name: os.stat(os.path.join(place, name)).st_ctime_ns)

    def rollback(self, label: str) -> None:
        """Make the tree what a checkpoint, or "" the base, is; the directory itself stays, for a mount shows it.

        The caller holds the lock, and no process of the pod runs. Raises InvalidError: there is no such checkpoint.
        """
        if label and label not in self.checkpoints():
            raise InvalidError(f"no checkpoint {label!r}", rule="pod.checkpoint")
        source = os.path.join(self.path, "checkpoints", label) if label else os.path.join(self.path, "base")
        with _directory(source) as kept, _directory(self.path, "tree") as tree:
            trees.remove_below(tree)
            trees.copy_tree(kept, tree)

    # -- taking over -----------------------------------------------------------------------------------------------

    def _content(self, path: str) -> bytes:
        return _sha256(os.path.join(self.path, "tree"), path)

    def _conflicts(self, one: Change, original: int, base: int, tree: int) -> bool:
        now = trees.entry_of(original, one.path)
        if _alike(now, one.before) and (
            now is None or now.kind != "file" or trees.same_content(original, base, one.path)
        ):
            return False
        done = _alike(now, one.after)
        return not (done and (now is None or now.kind != "file" or trees.same_content(original, tree, one.path)))

    def _finish(self, taken: list[Change], staging: str, original: int, base: int) -> None:
        """Step 5; again, whatever of it was done before."""
        os.makedirs(os.path.join(self.path, "base"), 0o700, exist_ok=True)
        place(taken, original, staging)
        again = STAGING + "base"
        with suppress(FileNotFoundError):
            _drop(base, again)
        os.mkdir(again, 0o700, dir_fd=base)
        _stage(taken, original, base, again)  # what is there now, which is what was taken over
        place(taken, base, again)
        _drop(base, again)
        with suppress(FileNotFoundError):
            _drop(original, staging)
        os.unlink(os.path.join(self.path, "journal.json"))

    def _recover(self) -> None:
        try:
            with open(os.path.join(self.path, "journal.json"), "rb") as file:
                work = json.loads(file.read(_JOURNAL_BYTES))
        except FileNotFoundError:
            return
        with _directory(self.original) as original, _directory(self.path, "base") as base:
            if work["state"] == "commit":
                self._finish([_from_wire(one) for one in work["changes"]], work["staging"], original, base)
                return
            with suppress(FileNotFoundError):
                _drop(original, work["staging"])
        os.unlink(os.path.join(self.path, "journal.json"))

    def _write_journal(self, work: dict[str, Any]) -> None:
        write_whole(os.path.join(self.path, "journal.json"), json.dumps(work).encode(), replace=True)


def create(name: str, original: str) -> tuple[Copy, list[str]]:
    """Copy a workspace; what could not be taken into it.

    Raises:
        InvalidError: rule ``pod.copy``: there is one of that name, or it is too much.
        OSError: it cannot be written.
    """
    place = runtime.copies_dir()
    runtime.private_directory(place)
    path = os.path.join(place, name)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        raise InvalidError(
            f"there is a copy of a pod {name!r}",
            rule="pod.copy",
            next_step=f"`nucleus pod diff {name}`, then `nucleus pod rm {name} --discard`.",
        ) from None
    try:
        copy = Copy(path, original)
        for part in ("base", "tree"):
            os.mkdir(os.path.join(path, part), 0o700)
        with _directory(original) as source, _directory(path, "base") as base, _directory(path, "tree") as tree:
            info = os.fstat(source)
            left_out = trees.copy_tree(source, base)
            trees.copy_tree(base, tree)
            with suppress(PermissionError):
                os.fchown(tree, info.st_uid, info.st_gid)
            os.fchmod(tree, info.st_mode & 0o777)
        write_whole(
            os.path.join(path, "copy.json"), json.dumps({"version": 1, "original": original}).encode(), replace=True
        )
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    return copy, left_out


def find(name: str) -> Copy | None:
    """The copy of a pod of that name; None: it has none. Raises InvalidError: it cannot be read."""
    path = os.path.join(runtime.copies_dir(), name)
    try:
        with open(os.path.join(path, "copy.json"), "rb") as file:
            return Copy(path, str(json.loads(file.read(65_536))["original"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidError(f"{path}/copy.json cannot be read", rule="pod.copy") from error


def discard(copy: Copy) -> None:
    """Remove it, with everything that was not taken over."""
    with copy.locked(recover=False):
        try:
            copy._recover()
        except OSError:  # a take-over that cannot be finished, because the original became another meanwhile
            with _directory(copy.original) as original:
                for name in os.listdir(original):
                    if name.startswith(STAGING):
                        _drop(original, name)
        for root, directories, _ in os.walk(copy.path):  # a pod may have closed its directories to us
            for one in directories:
                with suppress(OSError):
                    if not os.path.islink(os.path.join(root, one)):
                        os.chmod(os.path.join(root, one), 0o700)
        shutil.rmtree(copy.path)


def compare(base: int, tree: int) -> tuple[list[Change], list[str]]:
    """What one directory has other than another, by path; and what of it is special, or closed to us.

    Raises:
        InvalidError: rule ``pod.copy``: too much.
    """
    before, after = trees.scan(base), trees.scan(tree)
    changes: list[Change] = []
    special: list[str] = []
    closed: set[str] = set()
    for path in sorted({*before, *after}):
        old, new = before.get(path), after.get(path)
        if new is not None and (new.kind == "special" or (new.kind == "file" and not trees.readable(tree, path))):
            special.append(path)
            closed.add(path)
            continue
        if new is None and not closed.isdisjoint(_above(path)):
            continue  # in a directory that cannot be looked into
        if old is None or new is None:
            changes.append(Change(path, "deleted" if new is None else "added", old, new))
        elif old.kind != new.kind or old.target != new.target:
            changes.append(Change(path, "type" if old.kind != new.kind else "modified", old, new))
        elif old.kind == "file" and (old.size != new.size or not trees.same_content(base, tree, path)):
            changes.append(Change(path, "modified", old, new))
        elif old.mode != new.mode:
            changes.append(Change(path, "mode", old, new))
    return changes, special


def digest(changes: list[Change], content: Callable[[str], bytes]) -> str:
    """A word for exactly these changes: `apply` takes it, so that what is taken over is what was looked at."""
    found = hashlib.sha256()
    for one in changes:
        found.update(json.dumps(_to_wire(one), sort_keys=True).encode())
        if one.after is not None and one.after.kind == "file":
            found.update(content(one.path))
    return f"sha256:{found.hexdigest()}"


def content_of(copy: Copy) -> Callable[[str], bytes]:
    """For `digest`: the SHA-256 of a file of the pod's."""
    return copy._content


def place(changes: list[Change], root: int, staging: str) -> None:
    """Step 5 for one root: idempotent, for it may have been done in part."""
    for one in sorted(changes, key=lambda change: change.path, reverse=True):  # the deepest first
        gone = one.before is not None and (one.after is None or one.after.kind != one.before.kind)
        if not gone:
            continue
        there = trees.entry_of(root, one.path)
        if there is None or (one.after is not None and there.kind == one.after.kind):
            continue
        with suppress(FileNotFoundError), trees.parent_of(root, one.path) as (directory, name):
            if there.kind == "dir":
                with suppress(OSError):  # what the original has in it beside stays
                    os.rmdir(name, dir_fd=directory)
            else:
                os.unlink(name, dir_fd=directory)
    for number, one in enumerate(changes):
        if one.after is None:
            continue
        with trees.parent_of(root, one.path) as (directory, name):
            if one.after.kind == "dir":
                with suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=directory)
                    _as_the_parent(directory, name)
            elif one.what == "mode":
                pass
            else:
                with suppress(FileNotFoundError):  # done already
                    os.rename(f"{staging}/{number}", name, src_dir_fd=root, dst_dir_fd=directory)
    for one in reversed(changes):
        if one.after is not None and (one.after.kind == "dir" or one.what == "mode"):
            with trees.parent_of(root, one.path) as (directory, name):
                fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
                try:
                    os.fchmod(fd, one.after.mode)
                finally:
                    os.close(fd)
    os.fsync(root)


def _stage(changes: list[Change], source: int, root: int, staging: str) -> None:
    """Step 3."""
    place = trees.opened(root, staging, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for number, one in enumerate(changes):
            if one.after is None or one.after.kind == "dir" or one.what == "mode":
                continue
            if one.after.kind == "link":
                os.symlink(one.after.target, str(number), dir_fd=place)
                continue
            if not trees.copy_file(source, one.path, place, str(number), one.after.mode):
                raise InvalidError(f"{one.path[:200]!r} is no file any more", rule="pod.changed")
            fd = os.open(str(number), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place)
            try:
                _owner(root, one, fd)
                os.fsync(fd)
            finally:
                os.close(fd)
        os.fsync(place)
    finally:
        os.close(place)


def _owner(root: int, one: Change, fd: int) -> None:
    """A file that is replaced keeps its owner; a new one is its directory's owner's, never one that a pod chose."""
    info = os.fstat(root)
    with suppress(OSError), trees.parent_of(root, one.path) as (directory, name):
        info = os.fstat(directory)
        with suppress(OSError):
            info = os.stat(name, dir_fd=directory, follow_symlinks=False)
    with suppress(PermissionError):
        os.fchown(fd, info.st_uid, info.st_gid)
    os.fchmod(fd, one.after.mode if one.after is not None else 0o600)


def _as_the_parent(directory: int, name: str) -> None:
    info = os.fstat(directory)
    with suppress(PermissionError):
        os.chown(name, info.st_uid, info.st_gid, dir_fd=directory, follow_symlinks=False)


def _drop(root: int, name: str) -> None:
    """Remove a directory of ours, one level deep."""
    fd = trees.opened(root, name, os.O_RDONLY | os.O_DIRECTORY)
    try:
        trees.remove_below(fd)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=root)


def _alike(one: Entry | None, other: Entry | None) -> bool:
    """But for a file's bytes."""
    if one is None or other is None:
        return one is other
    return one.kind == other.kind and one.target == other.target and one.mode == other.mode and one.size == other.size


def _occupied(changes: list[Change], original: int, base: int) -> list[str]:
    """Directories that go, or become something else, and have in the original what the base has not."""
    found = []
    for one in changes:
        gone = one.before is not None and one.before.kind == "dir" and (one.after is None or one.after.kind != "dir")
        if not gone:
            continue
        try:
            fd = trees.opened(original, one.path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue
        try:
            found += [
                f"{one.path}/{name}" for name in os.listdir(fd) if trees.entry_of(base, f"{one.path}/{name}") is None
            ]
        finally:
            os.close(fd)
    return found


def _above(path: str) -> list[str]:
    return [path[:at] for at, char in enumerate(path) if char == "/"]


def _with_directories(found: list[Change], taken: list[Change]) -> list[Change]:
    """These, and the new directories that they are in, in the order of their paths."""
    above = {path for one in taken for path in _above(one.path)}
    more = [one for one in found if one.path in above and one.after is not None and one.after.kind == "dir"]
    return sorted({one.path: one for one in [*taken, *more]}.values(), key=lambda one: one.path)


def _placeable(one: Change, made: frozenset[str], original: int) -> bool:
    """Whether there is a directory for it, and no directory in its place, in the original as it is now."""
    above = one.path.rpartition("/")[0]
    there = trees.entry_of(original, above) if above else Entry("dir", 0)
    if one.after is None:
        return True  # nothing to remove is as good
    if above not in made and (there is None or there.kind != "dir"):
        return False
    now = trees.entry_of(original, one.path)
    if now is None or (one.before is not None and now.kind == one.before.kind):
        return True
    return (now.kind == "dir") == (one.after.kind == "dir")


def _one_file_system(changes: list[Change], original: int) -> None:
    device = os.fstat(original).st_dev
    for one in changes:
        with suppress(OSError), trees.parent_of(original, one.path) as (directory, _):
            if os.fstat(directory).st_dev != device:
                raise InvalidError(f"{one.path[:200]!r} is on another file system", rule="pod.copy")


@contextmanager
def _directory(*path: str) -> Iterator[int]:
    fd = os.open(os.path.join(*path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _sha256(root: str, path: str) -> bytes:
    found = hashlib.sha256()
    with _directory(root) as fd, suppress(OSError):
        one = trees.opened(fd, path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(one, "rb") as file:
            while data := file.read(1 << 20):
                found.update(data)
    return found.digest()


def _to_wire(one: Change) -> dict[str, Any]:
    return asdict(one)


def _from_wire(fields: dict[str, Any]) -> Change:
    before, after = (Entry(**fields[name]) if fields[name] else None for name in ("before", "after"))
    return Change(fields["path"], fields["what"], before, after)


def _conflict(paths: list[str]) -> InvalidError:
    shown = ", ".join(repr(path[:200]) for path in paths[:5]) + (
        f" and {len(paths) - 5} more" if len(paths) > 5 else ""
    )
    return InvalidError(
        f"the original has changed, too: {shown}",
        rule="pod.conflict",
        next_step="Name the paths to take over, or --overwrite to take the pod's.",
    )
