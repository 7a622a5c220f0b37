"""Streaming verification of a log: bytes in, the first thing that is wrong out.

What it checks of each line, in order:
 1. it is complete (ends in LF) and bounded
 2. `hash` is the SHA-256 of the bytes before it
 3. it is the canonical encoding of its record: known keys, in order, once each, nothing else
 4. `seq` is the one before plus one
 5. `prev` is the hash of the line before

Promises: an edit, deletion, insertion, swap, duplicate, gap, reordering or cut line anywhere is found, its line and its
kind named; memory is bounded by two lines. With a pinned head it also finds a cut tail and a rewrite up to there.
What is no tampering by itself is counted (`Remarks`): a clock that went back, an intent without an outcome.
Does not: show completeness without a pinned head: whoever can write the file can cut its tail, or rewrite all of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from nucleus.audit.chain import Head
from nucleus.audit.record import EVENTS, FIELDS, HASH_TAIL, LINE_BYTES, VERSION, encode_parsed

COMPLETENESS_UNKNOWN = "internally consistent, completeness unknown"
COMPLETE_TO_PIN = "internally consistent, complete up to the pinned head"
KINDS = frozenset({
    "edited", "encoding", "head", "gap", "swapped", "duplicate", "unlinked", "torn", "long", "empty", "rewritten",
    "cut", "fork", "checkpoint",
})  # fmt: skip
MAX_OPEN = 65_536  # intents that are waited for; of more, the oldest are counted as having no outcome


class Bad(NamedTuple):
    """What is wrong with a line: a word of `KINDS`, and a sentence."""

    kind: str
    problem: str


@dataclass(frozen=True, slots=True)
class Report:
    """The result.

    Args:
        ok: nothing is wrong.
        records: how many verified.
        head: after the last record that verified.
        line: the line (from 1) of the first problem, 0 when there is none or it has no line.
        problem: what is wrong there, "" when ok.
        pinned: a pinned head was given and met.
        kind: one of `KINDS`, "" when ok.
        file: the one that `line` counts in, "" when no file was named.
    """

    ok: bool
    records: int
    head: Head
    line: int = 0
    problem: str = ""
    pinned: bool = False
    kind: str = ""
    file: str = ""

    @property
    def verdict(self) -> str:
        """One sentence for a person."""
        if not self.ok:
            where = f"{self.file}, line {self.line}" if self.file else f"line {self.line}"
            return f"{where}: {self.problem}" if self.line else self.problem
        return COMPLETE_TO_PIN if self.pinned else COMPLETENESS_UNKNOWN


class Verifier:
    """Feed chunks of the file, then `finish`.

    Args:
        start: the verified head to go on from; default: the beginning of the log.
        on_record: called with each record that verified.
        pin: a head that the log must contain, as (seq, hash).
        strict: check 3 as well; without it, and without `on_record`, a line is not parsed: hash, place and predecessor
            are compared as bytes, five times as fast.
    """

    def __init__(
        self,
        start: Head | None = None,
        on_record: Callable[[dict[str, Any]], None] | None = None,
        pin: tuple[int, str] | None = None,
        *,
        strict: bool = True,
    ) -> None:
        self._quick = not strict and on_record is None
        self.head = start or Head()
        self._resumed = start is not None and start.seq > 0
        self._on_record = on_record
        self._pin = pin
        self._pinned = False
        self._rest = b""
        self._lines = 0
        self._file, self._before = "", 0  # the file that is fed, and how many lines came before it
        self._bad: Bad | None = None
        self._late: tuple[Bad, int, int] | None = None  # a gap, unless the next line shows a swap: it, and both numbers

    @property
    def torn(self) -> int:
        """Bytes after the last whole line."""
        return len(self._rest)

    @property
    def broken(self) -> bool:
        """Something is wrong, although a further line may be wanted to say what."""
        return self._bad is not None or self._late is not None

    def file(self, name: str) -> bool:
        """What is fed from now on is of this file; False: the one before ended in mid-line."""
        if self._rest and self._bad is None:
            self._lines += 1
            self._bad = Bad("torn", f"truncated in mid-line after {len(self._rest)} bytes, and the log goes on")
            return False
        self._file, self._before = name, self._lines
        return self._bad is None

    def feed(self, chunk: bytes) -> bool:
        """Take the next bytes; False once it is known what is wrong (then stop reading)."""
        if self._bad is not None:
            return False
        lines = (self._rest + chunk).split(b"\n")
        self._rest = lines.pop()
        done = self._follow(lines) if self._quick and self._late is None else 0
        self._lines += done
        for line in lines[done:] if done else lines:
            if self._late is not None:
                self._bad = self._gap(line)
                return False
            self._lines += 1
            self._bad = self._check(line)
            if self._bad is not None:
                return False
        if len(self._rest) > LINE_BYTES:  # 1
            self._lines += self._late is None
            self._bad = self._late[0] if self._late is not None else Bad("long", f"longer than {LINE_BYTES} bytes")
            return False
        return True

    def finish(self) -> Report:
        """The report, after the last chunk."""
        if self._bad is None and self._late is not None:
            self._bad = self._late[0]
        if self._bad is None and self._rest:  # 1
            self._lines += 1
            self._bad = Bad("torn", f"truncated in mid-line after {len(self._rest)} bytes")
        if self._bad is not None:
            return self._report(self._lines, self._bad)
        if self._lines == 0 and not self._resumed:
            return self._report(0, Bad("empty", "the log is empty"))
        if self._pin is not None and not self._pinned:
            ends = f"the log ends at record {self.head.seq}, before the pinned record {self._pin[0]}"
            return self._report(0, Bad("cut", ends))
        return Report(True, self._lines, self.head, pinned=self._pinned)

    def _report(self, line: int, bad: Bad) -> Report:
        records = self._lines - (1 if line else 0)
        file = self._file if line else ""
        return Report(False, records, self.head, max(0, line - self._before), bad.problem, kind=bad.kind, file=file)

    def _gap(self, line: bytes) -> Bad:
        """What the line after a gap says of it."""
        assert self._late is not None
        bad, expected, found = self._late
        try:
            seq = json.loads(line)["seq"]
        except (ValueError, RecursionError, TypeError, KeyError):
            return bad
        if type(seq) is int and expected <= seq < found:
            return Bad("swapped", f"record {found} is out of order: expected {expected}")
        return bad

    def _check(self, line: bytes) -> Bad | None:
        """What is wrong with one line, None when nothing is."""
        if len(line) >= LINE_BYTES:  # 1
            return Bad("long", f"longer than {LINE_BYTES} bytes")
        head, tail = line[:-HASH_TAIL], line[-HASH_TAIL:]
        digest = hashlib.sha256(head).hexdigest()
        if tail != b',"hash":"%b"}' % digest.encode("ascii"):  # 2
            return Bad("edited", "the hash does not match the line's bytes: edited, or not a record")
        try:
            fields = json.loads(line)
            canonical = encode_parsed(fields)
        except (ValueError, RecursionError, TypeError):
            return Bad("encoding", "not a record: not JSON")
        if canonical != line or not isinstance(fields, dict) or tuple(fields) != FIELDS:  # 3
            return Bad("encoding", "not in the log's one encoding")
        return self._check_place(fields, digest, len(line) + 1)

    def _follow(self, lines: list[bytes]) -> int:
        """How many of the lines are the next ones, by the bytes that say so; what is not is looked at in full."""
        seq, prev, offset = self.head
        before, sha256, pinned = prev.encode("ascii"), hashlib.sha256, self._pin[0] if self._pin is not None else 0
        first = seq
        for line in lines:
            digest = sha256(line[:-HASH_TAIL]).hexdigest().encode("ascii")
            if (
                not line.startswith(b'{"v":1,"seq":%d,"time_ns":' % (seq + 1))
                or not line.endswith(b',"prev":"%b","hash":"%b"}' % (before, digest))
                or seq + 1 == pinned
                or len(line) >= LINE_BYTES
            ):
                break
            seq += 1
            before = digest
            offset += len(line) + 1
        self.head = Head(seq, before.decode("ascii"), offset)
        return seq - first

    def _check_place(self, fields: dict[str, Any], digest: str, size: int) -> Bad | None:
        seq, before = fields["seq"], self.head
        if fields["v"] != VERSION or type(seq) is not int or fields["event"] not in EVENTS:
            return Bad("encoding", "not in the log's one encoding")
        if seq != before.seq + 1:  # 4
            if seq == before.seq:
                return Bad("duplicate", f"record {seq} is there twice")
            if seq < before.seq:
                return Bad("swapped", f"record {seq} is out of order: expected {before.seq + 1}")
            missing = f"record {before.seq + 1}" if seq == before.seq + 2 else f"records {before.seq + 1} to {seq - 1}"
            bad = Bad("gap" if before.seq else "head", f"{missing} missing before record {seq}")
            self._late = (bad, before.seq + 1, seq)
            return None
        if fields["prev"] != before.hash:  # 5
            return Bad("unlinked", f"record {seq} does not follow from the record before it")
        if self._pin is not None and seq == self._pin[0]:
            if digest != self._pin[1]:
                return Bad("rewritten", f"record {seq} is not the pinned one: the log was rewritten")
            self._pinned = True
        self.head = Head(seq, digest, before.offset + size)
        if self._on_record is not None:
            self._on_record(fields)
        return None


@dataclass(slots=True)
class Remarks:
    """What a log that verifies shows besides; give it each record (`see`).

    `clock_back`: how often a record's wall clock is before that of the record before it; `clock_back_first`: the first
    such record, `clock_back_ns` the widest step. An intent ends by its `outcome` or a `recovery`.
    """

    clock_back: int = 0
    clock_back_first: int = 0
    clock_back_ns: int = 0
    _time_ns: int = 0
    _given_up: int = 0
    _first: int = 0
    _open: dict[str, int] = field(default_factory=dict)

    @property
    def open_intents(self) -> int:
        """Intents without an outcome."""
        return len(self._open) + self._given_up

    @property
    def open_first(self) -> int:
        """The first of them, 0: there is none."""
        return self._first or next(iter(self._open.values()), 0)

    def see(self, record: dict[str, Any]) -> None:
        """Take a record that verified."""
        now, event = record["time_ns"], record["event"]
        if type(now) is int:
            if now < self._time_ns:
                self.clock_back += 1
                self.clock_back_first = self.clock_back_first or record["seq"]
                self.clock_back_ns = max(self.clock_back_ns, self._time_ns - now)
            self._time_ns = now
        if event not in ("intent", "outcome", "recovery") or not isinstance(record["context"], dict):
            return
        reservation = str(record["context"].get("reservation", ""))
        if event != "intent":
            self._open.pop(reservation, None)
            return
        self._open[reservation] = record["seq"]
        if len(self._open) > MAX_OPEN:
            oldest = next(iter(self._open))
            self._first = self._first or self._open[oldest]
            del self._open[oldest]
            self._given_up += 1
