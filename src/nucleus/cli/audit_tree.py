"""What `nucleus-audit verify` says of the tree: checkpoints, cosignatures and pins, in the pass over the log.

Beside a log `L` lie `L.checkpoints`, `L.vkey` (the log's public key) and `L.cosignatures`.

Checked, of what is there or was given:
 1. every checkpoint is well-formed, of one log, signed by its key, and its sizes do not go back
 2. every cosigned checkpoint, too; with --witness KEY its cosignature, and that there is one
 3. the log's tree has, at the size of every one of them and of --checkpoint FILE, exactly that root

Promises: memory does not grow with the log; a pin that was given and is not met is a failure, never a remark.
Does not: believe the key beside the log to be the right one: only --key, --witness or --checkpoint do pin something.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from nucleus.audit.checkpoint import Checkpoint, Reader, cosigned
from nucleus.audit.merkle import Roots
from nucleus.audit.note import NOTE_BYTES, Note, VerifierKey, parse
from nucleus.audit.proof import signed_checkpoint
from nucleus.audit.verify import Report
from nucleus.cli.options import invalid
from nucleus.errors import InvalidError

CHECKPOINTS, COSIGNATURES, PUBLIC_KEY = ".checkpoints", ".cosignatures", ".vkey"
_CHUNK = 1 << 20


def read_notes(path: str) -> Iterator[tuple[Note, Checkpoint]]:
    """The whole notes of a file; a torn last one is passed over; nothing when there is no such file.

    Raises:
        InvalidError: one is not a checkpoint; its number is named.
        OSError: cannot be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return
    number = 1
    try:
        reader = Reader()
        while chunk := os.read(fd, _CHUNK):
            for _, note, checkpoint in reader.feed(chunk):
                yield note, checkpoint
                number += 1
    except InvalidError as error:
        raise InvalidError(f"{path}, note {number}: {error.message}", rule=error.rule) from None
    finally:
        os.close(fd)


def read_small(path: str, limit: int = NOTE_BYTES) -> bytes:
    """A small file that a person named. Raises InvalidError (too long), OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        data = b""
        while len(data) <= limit and (chunk := os.read(fd, limit + 1 - len(data))):
            data += chunk
    finally:
        os.close(fd)
    if len(data) > limit:
        raise invalid(f"{path} is longer than {limit} bytes")
    return data


def read_key(value: str, type_: int) -> VerifierKey:
    """A public key, given as a vkey or as a file with one. Raises InvalidError, OSError."""
    text = value if value.count("+") >= 2 else read_small(value).decode("utf-8", "replace").strip()
    key = VerifierKey.parse(text)
    if key.type != type_:
        raise invalid("that is the key of a witness where a log's is wanted, or the other way round")
    return key


def beside(path: str) -> VerifierKey | None:
    """The public key that lies beside a log; None when there is none or it is none."""
    from nucleus.audit.note import ED25519

    try:
        return read_key(path + PUBLIC_KEY, ED25519)
    except (OSError, InvalidError):
        return None


@dataclass(slots=True)
class Findings:
    """What came out.

    `kind`: `cut`, `fork` (rewritten, or another continuation), or `checkpoint` (they are wrong, not the log);
    `complete`: records up to which a pin proves that nothing is missing, 0 for none; `matches`: up to which the tree is
    that of a checkpoint, whoever signed it.
    """

    problem: str = ""
    kind: str = "checkpoint"
    complete: int = 0
    matches: int = 0
    remarks: list[str] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)


class TreeCheck:
    """Feed it the log's bytes as they are read, then `finish`.

    Args:
        path: of the log.
        key, witness: a vkey or a file with one, "" for none given.
        checkpoint: a file with one checkpoint that was kept elsewhere, "" for none.

    Raises:
        InvalidError, OSError: what was given cannot be read.
    """

    def __init__(self, path: str, key: str = "", checkpoint: str = "", witness: str = "") -> None:
        from nucleus.audit.note import COSIGNATURE, ED25519

        self._pinned_key = bool(key)
        self._key = read_key(key, ED25519) if key else beside(path)
        self._witness = read_key(witness, COSIGNATURE) if witness else None
        self._claims: list[tuple[Checkpoint, str]] = []  # what the log's tree is compared with, and whose word it is
        self._checkpoints = self._seconds = 0
        self._last: Checkpoint | None = None
        self._seen: Checkpoint | None = None
        self._kept = parse(read_small(checkpoint)) if checkpoint else None
        self._kept_at = 0
        self._problem = ""
        try:
            self._read(path)
        except InvalidError as error:
            self._problem = error.message
        self._roots = Roots({claim.size for claim, _ in self._claims})

    @property
    def idle(self) -> bool:
        """There is nothing to compare the tree with: it need not be fed."""
        return not self._claims

    def feed(self, chunk: bytes) -> None:
        """The next bytes of the log."""
        self._roots.feed(chunk)

    def finish(self) -> Findings:
        """The result, for the lines that were fed."""
        found = Findings(self._problem)
        size = self._roots.tree.size
        for claim, whose in sorted(self._claims, key=lambda entry: entry[0].size):
            root = self._roots.at.get(claim.size)
            if root == claim.root:
                found.matches = claim.size
            elif not found.problem:
                found.kind = "cut" if root is None else "fork"
                found.problem = (
                    f"the log ends at record {size}, before the {claim.size} records of {whose}: its tail was cut"
                    if root is None
                    else f"records {found.matches + 1} to {claim.size} are not those of {whose}: rewritten or forked"
                )
        self._describe(found, size)
        return found

    def judge(self, report: Report) -> tuple[Report, Findings]:
        """The chain's report and the tree's as one: the chain's problem comes first, it names a line."""
        found = self.finish()
        if not report.ok:
            found.problem, found.complete = "", 0
            if found.matches:
                found.remarks.append(f"the records up to {found.matches} are those of a checkpoint")
        elif found.problem:
            report = replace(report, ok=False, problem=found.problem, pinned=False, kind=found.kind)
        return report, found

    def _describe(self, found: Findings, size: int) -> None:
        say = found.remarks.append
        if self._last is not None:
            late = max(0, size - self._last.size)
            say(f"checkpoints: {self._checkpoints}, the last of {self._last.size} records; {late} not signed yet")
            if self._key is None:
                say("signatures not checked: no public key (--key)")
            elif not self._pinned_key:
                say("the key is the one beside the log, not a pinned one (--key)")
        if not found.problem:
            found.complete = max(self._kept_at, self._seen.size if self._seen is not None and self._seconds else 0)
        if self._seen is not None and self._witness is not None and self._seconds:
            say(f"witness {self._witness.name}: {self._seen.size} records, at {_utc(self._seconds)}")
        elif self._seen is not None:
            say(f"cosigned: {self._seen.size} records; cosignatures not checked (--witness)")
        found.data = {
            "checkpoints": self._checkpoints,
            "signed": self._last.size if self._last is not None else 0,
            "key": str(self._key) if self._key is not None and self._checkpoints else "",
            "key_pinned": self._pinned_key,
            "cosigned": self._seen.size if self._seen is not None else 0,
            "cosigned_at": self._seconds,
        }

    def _read(self, path: str) -> None:
        for note, checkpoint in read_notes(path + CHECKPOINTS):  # 1
            self._checked(note, checkpoint)
            if self._last is not None and checkpoint.size < self._last.size:
                raise InvalidError(f"the checkpoints go back from {self._last.size} to {checkpoint.size} records")
            self._claims.append((checkpoint, "a checkpoint"))
            self._last = checkpoint
            self._checkpoints += 1
        for note, checkpoint in read_notes(path + COSIGNATURES):  # 2
            self._checked(note, checkpoint)
            self._claims.append((checkpoint, "a cosigned checkpoint"))
            seconds = cosigned(note, self._witness) if self._witness is not None else 0
            if (seconds or self._witness is None) and (self._seen is None or checkpoint.size >= self._seen.size):
                self._seen, self._seconds = checkpoint, seconds
        if self._kept is not None:  # 3
            kept = Checkpoint.parse(self._kept.text)
            self._checked(self._kept, kept)
            self._claims.append((kept, "the pinned checkpoint"))
            self._kept_at = kept.size
        if self._witness is not None and self._seen is None:
            raise InvalidError(f"no checkpoint is cosigned by {self._witness.name}")
        if self._pinned_key and not self._claims:
            raise InvalidError("no checkpoint is signed by the pinned key")

    def _checked(self, note: Note, checkpoint: Checkpoint) -> None:
        if self._key is not None:
            signed_checkpoint(note, self._key)
        elif self._last is not None and self._last.origin != checkpoint.origin:
            raise InvalidError(f"a checkpoint of another log, {checkpoint.origin}")


def _utc(seconds: int) -> str:
    import time

    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(min(seconds, 253_402_300_799)))
