"""`nucleus pod diff|apply|checkpoint|rollback`: a pod's workspace that is a copy (docs/pods.md).

Promises: what is shown of a pod's names and files is escaped for the terminal, and bounded; the original changes by
`apply` alone, which is on the audit log before it begins. While a copy is kept, taken over or put back, no command of
the pod runs: the keeper holds them, or refuses because one does.
Relies on: `pod.copies`. Does not: work on a workspace that is no copy.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from nucleus.cli import pod_records
from nucleus.cli.main import printable
from nucleus.errors import InvalidError, SandboxError
from nucleus.pod import copies, trees
from nucleus.pod.copies import Change, Copy

_TEXT_BYTES = 1 << 20  # a longer file is shown by its size and hash
_SHOWN_LINES = 20_000
_HOLD_S = 30.0


def diff(name: str, *, as_json: bool) -> int:
    """What the pod has changed. Raises NucleusError."""
    copy = _copy(name)
    with copy.locked():
        changes, special = copy.changes()
        word = copies.digest(changes, copies.content_of(copy))
        if as_json:
            rows = [_row(copy, one) for one in changes]
            sys.stdout.write(json.dumps({"changes": rows, "left_out": special, "digest": word}) + "\n")
            return 0
        left = _SHOWN_LINES
        for one in changes:
            for line in _lines(copy, one):
                left -= 1
                if left >= 0:
                    sys.stdout.write(printable(line) + "\n")
        if left < 0:
            sys.stdout.write(f"({-left} more lines)\n")
    for path in special:
        sys.stdout.write(printable(f"never taken over, no file or closed: {path}") + "\n")
    sys.stdout.write(f"{len(changes)} changes, {word}\n")
    return 0


def apply(name: str, paths: list[str], *, overwrite: bool, expected: str) -> int:
    """Take changes over into the original. Raises NucleusError."""
    copy = _copy(name)
    wanted = [path.strip("/").removeprefix("./") for path in paths]
    with _still(name), copy.locked():
        changes, _ = copy.changes()
        _on_record(name, copy, changes, wanted)
        taken, left_out = copy.apply(
            lambda path: not wanted or any(path == one or path.startswith(f"{one}/") for one in wanted),
            overwrite=overwrite,
            expected=expected,
        )
    for one in taken:
        sys.stdout.write(printable(f"{one.what:9}{one.path}") + "\n")
    for path in left_out:
        sys.stderr.write(printable(f"left out, no file or closed: {path}") + "\n")
    sys.stdout.write(f"{len(taken)} of {len(changes)} changes taken over into {printable(copy.original)}\n")
    return 0


def checkpoint(name: str, label: str) -> int:
    """Keep the copy as it is, or with no label list what is kept. Raises NucleusError."""
    copy = _copy(name)
    if not label:
        for one in copy.checkpoints():
            sys.stdout.write(one + "\n")
        return 0
    with _still(name), copy.locked():
        copy.checkpoint(label)
    sys.stdout.write(f"kept as {label}\n")
    return 0


def rollback(name: str, label: str) -> int:
    """Put the copy back to a checkpoint, or to the original as it was copied. Raises NucleusError."""
    copy = _copy(name)
    record = pod_records.read(name)
    backend = (record or {}).get("isolation", {}).get("backend", "")
    if record is not None and record["state"] == pod_records.RUNNING and backend != "namespaces":
        raise InvalidError(
            f"a {backend} pod that runs may still show files that are gone",
            rule="pod.running",
            next_step=f"`nucleus pod kill {name}` first.",
        )
    with _still(name), copy.locked():
        copy.rollback(label)
    sys.stdout.write(f"as {label or 'at the beginning'}\n")
    return 0


def kept_back(name: str) -> int:
    """How many changes of a copy have not been taken over; 0 where there is no copy."""
    copy = copies.find(name)
    if copy is None:
        return 0
    with copy.locked():
        return len(copy.changes()[0])


@contextmanager
def _still(name: str) -> Iterator[None]:
    """No command of the pod runs, and none begins: it has ended, or its keeper holds. Raises SandboxError."""
    from nucleus.cli.pod import connect
    from nucleus.pod.packets import checked
    from nucleus.sdk import wire

    record = pod_records.read(name)
    if record is None or record["state"] != pod_records.RUNNING:
        yield
        return
    with connect(name) as channel:
        channel.settimeout(_HOLD_S)
        try:
            channel.sendall(wire.encode({"op": "hold"}))
            frame = wire.receive(channel, wire.Reader())
        except (OSError, ValueError) as error:
            raise SandboxError(f"the pod's keeper: {error}", rule="pod.keeper") from error
        if frame is None:
            raise SandboxError("the pod ended meanwhile", rule="pod.ended", next_step="Once more.")
        checked(frame[0])
        yield


def _copy(name: str) -> Copy:
    pod_records.read(name)  # refuses what is no name
    copy = copies.find(name)
    if copy is None:
        pod_records.must(name)
        raise InvalidError(
            f"the pod {name!r} works on its workspace itself",
            rule="pod.copy",
            next_step="`workspace: copy` in its file gives it a copy (docs/pods.md).",
        )
    return copy


def _on_record(name: str, copy: Copy, changes: list[Change], wanted: list[str]) -> None:
    from nucleus.cli.identity import Authority

    record = pod_records.read(name) or {}
    with Authority() as authority:
        authority.call(
            "workspace_applied",
            pod=str(record.get("pod", "")),
            name=name,
            workspace=os.fsencode(copy.original).decode("utf-8", "backslashreplace")[:4_096],
            digest=copies.digest(changes, copies.content_of(copy)),
            changes=len(changes),
            paths=len(wanted),
        )


def _row(copy: Copy, one: Change) -> dict[str, Any]:
    row: dict[str, Any] = {"path": one.path, "what": one.what}
    for side, entry, root in (("before", one.before, "base"), ("after", one.after, "tree")):
        if entry is None:
            continue
        row[side] = {"kind": entry.kind, "mode": f"{entry.mode:o}"}
        if entry.kind == "link":
            row[side]["target"] = entry.target
        elif entry.kind == "file":
            row[side] |= {"size": entry.size, "sha256": _hash(copy, root, one.path)}
    return row


def _lines(copy: Copy, one: Change) -> Iterator[str]:
    """One change as lines, without their ends."""
    before, after = one.before, one.after
    yield f"{one.what}: {one.path}{_modes(one)}"
    if one.what == "mode" or "dir" in ((before or after).kind, (after or before).kind):  # type: ignore[union-attr]
        return
    sides: list[list[str]] = []
    for entry, root in ((before, "base"), (after, "tree")):
        if entry is None:
            sides.append([])
        elif entry.kind == "link":
            sides.append([f"-> {entry.target}"])
        else:
            text = _text(copy, root, one.path, entry.size)
            if text is None:
                for each, label, where in ((before, "before", "base"), (after, "after", "tree")):
                    if each is not None and each.kind == "file":
                        yield f"  {label}: {each.size} bytes, sha256 {_hash(copy, where, one.path)}"
                return
            sides.append(text)
    names = ("/dev/null" if before is None else f"a/{one.path}", "/dev/null" if after is None else f"b/{one.path}")
    yield from (line.rstrip("\n") for line in difflib.unified_diff(sides[0], sides[1], names[0], names[1], lineterm=""))


def _modes(one: Change) -> str:
    if one.before is None or one.after is None or one.before.mode == one.after.mode:
        return ""
    return f" ({one.before.mode:o} -> {one.after.mode:o})"


def _text(copy: Copy, root: str, path: str, size: int) -> list[str] | None:
    """A short text's lines; None: it is none."""
    if size > _TEXT_BYTES:
        return None
    data = _read(copy, root, path, _TEXT_BYTES + 1)
    if len(data) > _TEXT_BYTES or b"\0" in data:
        return None
    try:
        return data.decode("utf-8").splitlines()
    except UnicodeDecodeError:
        return None


def _hash(copy: Copy, root: str, path: str) -> str:
    found = hashlib.sha256()
    with suppress(OSError), _file(copy, root, path) as file:
        while data := file.read(1 << 20):
            found.update(data)
    return found.hexdigest()


def _read(copy: Copy, root: str, path: str, size: int) -> bytes:
    with suppress(OSError), _file(copy, root, path) as file:
        return bytes(file.read(size))
    return b""


@contextmanager
def _file(copy: Copy, root: str, path: str) -> Iterator[Any]:
    directory = os.open(os.path.join(copy.path, root), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = trees.opened(directory, path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    finally:
        os.close(directory)
    with open(fd, "rb") as file:
        yield file
