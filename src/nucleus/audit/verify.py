"""Streaming verification of a log: bytes in, the first thing that is wrong out.

What it checks of each line, in order:
 1. it is complete (ends in LF) and bounded
 2. `hash` is the SHA-256 of the bytes before it
 3. it is the canonical encoding of its record: known keys, in order, once each, nothing else
 4. `seq` is the one before plus one
 5. `prev` is the hash of the line before

Promises: an edit, deletion, insertion, swap, duplicate, gap, reordering or cut line anywhere is found, its line named;
memory is bounded by one line. With a pinned head it also finds a cut tail and a rewrite up to there.
Does not: show completeness without a pinned head: whoever can write the file can cut its tail, or rewrite all of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nucleus.audit.chain import Head
from nucleus.audit.record import EVENTS, FIELDS, HASH_TAIL, LINE_BYTES, VERSION, encode_parsed

COMPLETENESS_UNKNOWN = "internally consistent, completeness unknown"
COMPLETE_TO_PIN = "internally consistent, complete up to the pinned head"


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
    """

    ok: bool
    records: int
    head: Head
    line: int = 0
    problem: str = ""
    pinned: bool = False

    @property
    def verdict(self) -> str:
        """One sentence for a person."""
        if not self.ok:
            return f"line {self.line}: {self.problem}" if self.line else self.problem
        return COMPLETE_TO_PIN if self.pinned else COMPLETENESS_UNKNOWN


class Verifier:
    """Feed chunks of the file, then `finish`.

    Args:
        start: the verified head to go on from; default: the beginning of the log.
        on_record: called with each record that verified.
        pin: a head that the log must contain, as (seq, hash).
    """

    def __init__(
        self,
        start: Head | None = None,
        on_record: Callable[[dict[str, Any]], None] | None = None,
        pin: tuple[int, str] | None = None,
    ) -> None:
        self.head = start or Head()
        self._resumed = start is not None and start.seq > 0
        self._on_record = on_record
        self._pin = pin
        self._pinned = False
        self._rest = b""
        self._lines = 0
        self._problem = ""

    @property
    def torn(self) -> int:
        """Bytes after the last whole line."""
        return len(self._rest)

    def feed(self, chunk: bytes) -> bool:
        """Take the next bytes; False once something is wrong (then stop reading)."""
        if self._problem:
            return False
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            self._lines += 1
            self._problem = self._check(line)
            if self._problem:
                return False
        if len(self._rest) > LINE_BYTES:  # 1
            self._lines += 1
            self._problem = f"longer than {LINE_BYTES} bytes"
            return False
        return True

    def finish(self) -> Report:
        """The report, after the last chunk."""
        if not self._problem and self._rest:  # 1
            self._lines += 1
            self._problem = f"truncated in mid-line after {len(self._rest)} bytes"
        if self._problem:
            return self._report(self._lines, self._problem)
        if self._lines == 0 and not self._resumed:
            return self._report(0, "the log is empty")
        if self._pin is not None and not self._pinned:
            return self._report(0, f"the log ends at record {self.head.seq}, before the pinned record {self._pin[0]}")
        return Report(True, self._lines, self.head, pinned=self._pinned)

    def _report(self, line: int, problem: str) -> Report:
        return Report(False, self._lines - (1 if line else 0), self.head, line, problem)

    def _check(self, line: bytes) -> str:
        """What is wrong with one line, "" when nothing is."""
        if len(line) >= LINE_BYTES:  # 1
            return f"longer than {LINE_BYTES} bytes"
        head, tail = line[:-HASH_TAIL], line[-HASH_TAIL:]
        digest = hashlib.sha256(head).hexdigest()
        if tail != b',"hash":"%b"}' % digest.encode("ascii"):  # 2
            return "the hash does not match the line's bytes: edited, or not a record"
        try:
            fields = json.loads(line)
            canonical = encode_parsed(fields)
        except (ValueError, RecursionError, TypeError):
            return "not a record: not JSON"
        if canonical != line or not isinstance(fields, dict) or tuple(fields) != FIELDS:  # 3
            return "not in the log's one encoding"
        return self._check_place(fields, digest, len(line) + 1)

    def _check_place(self, fields: dict[str, Any], digest: str, size: int) -> str:
        seq, before = fields["seq"], self.head
        if fields["v"] != VERSION or type(seq) is not int or fields["event"] not in EVENTS:
            return "not in the log's one encoding"
        if seq != before.seq + 1:  # 4
            if seq == before.seq:
                return f"record {seq} is there twice"
            if seq < before.seq:
                return f"record {seq} is out of order: expected {before.seq + 1}"
            missing = f"record {before.seq + 1}" if seq == before.seq + 2 else f"records {before.seq + 1} to {seq - 1}"
            return f"{missing} missing before record {seq}"
        if fields["prev"] != before.hash:  # 5
            return f"record {seq} does not follow from the record before it"
        if self._pin is not None and seq == self._pin[0]:
            if digest != self._pin[1]:
                return f"record {seq} is not the pinned one: the log was rewritten"
            self._pinned = True
        self.head = Head(seq, digest, before.offset + size)
        if self._on_record is not None:
            self._on_record(fields)
        return ""
