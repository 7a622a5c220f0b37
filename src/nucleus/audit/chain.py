"""The chain's state: the head after so many records. Pure and immutable: an append that fails leaves the old head.

Promises: `seq` counts from 1 without a gap and `prev` is the hash of the line before.
Does not: show that a tail was cut or everything was rewritten; that takes a head pinned elsewhere (`verify`).
"""

from __future__ import annotations

from typing import NamedTuple

from nucleus.audit.record import ZERO, Record, encode


class Head(NamedTuple):
    """The last record: its sequence number (0 before the first), its hash, and the log's size in bytes after it."""

    seq: int = 0
    hash: str = ZERO
    offset: int = 0


def extend(head: Head, record: Record) -> tuple[Head, bytes]:
    """The next head and the line that makes it. Raises InvalidError as `record.encode`."""
    line, digest = encode(record, head.seq + 1, head.hash)
    return Head(head.seq + 1, digest, head.offset + len(line)), line
