"""A DNS server for one pod that knows nothing: it gives out the addresses that it is told, and asks nobody.

 1. Too many queries a second are dropped, before they are read.
 2. One query, one question, class IN (RFC 1035 §4), at most one OPT record (RFC 6891) and nothing else. Responses and
    what is shorter than a header are dropped; other opcodes are NOTIMP, the rest that cannot be read FORMERR.
 3. A name is compared as a whole. One that no rule covers is REFUSED and counted, and its bytes go nowhere else: there
    is no resolver behind this one to carry them off.
 4. A covered name has one A record and no other: every other type is "no data", transfers and ANY are REFUSED.

Promises: an answer is the question byte for byte (its letters' case too, which some clients check), at most one A
record, and an OPT record if there was one: at most 16 bytes longer than the query. No compressed input, no loop: what
is answered is marked as a response. The clock is passed in. Relies on: `allowed` and `address` for every decision.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from nucleus.errors import NucleusError

QUERY_BYTES = 4_096
NAME_BYTES = 255  # RFC 1035 §2.3.4, as sent
UDP_BYTES = 1_232  # what we say that we take, https://www.dnsflagday.net/2020/
TTL_SECONDS = 60  # an address is for the pod's life, but a rule may go
REFUSED_NAMES = 64
PER_SECOND, BURST = 200, 400

NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED, BADVERS = 0, 1, 2, 3, 4, 5, 16
A, AAAA, OPT = 1, 28, 41
_META = range(128, 256)  # RFC 6895 §3.1: questions that are no data (TKEY, TSIG, IXFR, AXFR, ANY ...)
_IN = 1
_HEADER = 12
_QR, _RA, _RD, _CD = 0x8000, 0x0080, 0x0100, 0x0010
# RFC 6303, 6761, 7686: names that the DNS does not have; "no such name" ends a reverse look-up at once.
_NOWHERE = frozenset(("in-addr.arpa", "ip6.arpa", "invalid", "onion"))


class Query(NamedTuple):
    """One question. `name`: lower case, no trailing dot, bytes that are no letter, digit, "-" or "_" as ``\\DDD``."""

    ident: bytes
    flags: int
    question: bytes
    name: str
    kind: int
    klass: int
    edns: int | None  # EDNS version, None without an OPT record


class _Malformed(Exception):
    """Not a query that is answered with data: `rcode`."""

    def __init__(self, rcode: int) -> None:
        self.rcode = rcode


def parse(data: bytes) -> Query | bytes | None:
    """Step 2.

    Args:
        data: one message, hostile.

    Returns:
        The query; or the answer (FORMERR or NOTIMP, a header) to what is none; or None for what has no answer.
    """
    if not _HEADER <= len(data) <= QUERY_BYTES:
        return None
    flags = data[2] << 8 | data[3]
    if flags & _QR:
        return None
    try:
        return _query(data, flags)
    except _Malformed as error:
        return data[:2] + _answer_flags(flags, error.rcode).to_bytes(2, "big") + bytes(8)


def reply(query: Query, rcode: int, packed: bytes | None = None, ttl: int = TTL_SECONDS) -> bytes:
    """The answer to `query`.

    Args:
        query: what was asked.
        rcode: NOERROR, NXDOMAIN, REFUSED, ...; BADVERS (RFC 6891 §6.1.3) only for a query with OPT.
        packed: an IPv4 address of four bytes for the A record; None for an empty answer.
        ttl: seconds.
    """
    counts = b"\0\1" + (b"\0\1" if packed else b"\0\0") + b"\0\0" + (b"\0\1" if query.edns is not None else b"\0\0")
    parts = [query.ident, _answer_flags(query.flags, rcode & 0xF).to_bytes(2, "big"), counts, query.question]
    if packed:
        if len(packed) != 4:
            raise ValueError("an A record has four bytes")
        # 0xC00C: the name of the question.
        parts += (b"\xc0\x0c\0\1\0\1", ttl.to_bytes(4, "big"), b"\0\4", packed)
    if query.edns is not None:
        parts += (b"\0\0\x29", UDP_BYTES.to_bytes(2, "big"), bytes((rcode >> 4, 0, 0, 0, 0, 0)))
    return b"".join(parts)


class Responder:
    """The pod's name server.

    Args:
        allowed: does a rule cover this name (lower case, no trailing dot)?
        address: four bytes that stand for a name that `allowed` said yes to; a NucleusError is SERVFAIL.
        per_second: answers a second in the long run.
        burst: answers at once.
    """

    def __init__(
        self,
        allowed: Callable[[str], bool],
        address: Callable[[str], bytes],
        per_second: int = PER_SECOND,
        burst: int = BURST,
    ) -> None:
        self._allowed = allowed
        self._address = address
        self._cost_ns = 1_000_000_000 // per_second
        self._burst_ns = burst * self._cost_ns
        self._credit_ns = self._burst_ns
        self._last_ns: int | None = None
        self._refused: OrderedDict[str, int] = OrderedDict()
        self.queries = 0  # read
        self.dropped = 0  # over the rate, or without an answer
        self.refused_total = 0

    def answer(self, data: bytes, now_ns: int) -> bytes | None:
        """The answer to one message; None for none.

        Args:
            data: as it came.
            now_ns: a monotonic clock.
        """
        query = parse(data) if self._within_rate(now_ns) else None
        if query is None:
            self.dropped += 1
            return None
        self.queries += 1
        return query if isinstance(query, bytes) else self._decide(query)

    def refused(self) -> tuple[tuple[str, int], ...]:
        """Names that were refused with how often, the last `REFUSED_NAMES`, the oldest first."""
        return tuple(self._refused.items())

    def _decide(self, query: Query) -> bytes:
        """Steps 3 and 4."""
        if query.edns:
            return reply(query, BADVERS)
        labels = query.name.rsplit(".", 2)
        if labels[-1] in _NOWHERE or ".".join(labels[-2:]) in _NOWHERE:
            return reply(query, NXDOMAIN)
        if query.klass != _IN or not query.name or "\\" in query.name or not self._allowed(query.name):
            return self._refuse(query)
        if query.kind in _META or query.kind in (0, OPT):
            return reply(query, REFUSED)
        if query.kind != A:
            return reply(query, NOERROR)
        try:
            return reply(query, NOERROR, self._address(query.name))
        except NucleusError:
            return reply(query, SERVFAIL)

    def _refuse(self, query: Query) -> bytes:
        self.refused_total += 1
        self._refused[query.name] = self._refused.pop(query.name, 0) + 1
        if len(self._refused) > REFUSED_NAMES:
            self._refused.popitem(last=False)
        return reply(query, REFUSED)

    def _within_rate(self, now_ns: int) -> bool:
        """Step 1: a bucket of nanoseconds; a clock that goes backwards fills nothing."""
        if self._last_ns is not None and now_ns > self._last_ns:
            self._credit_ns = min(self._burst_ns, self._credit_ns + now_ns - self._last_ns)
        self._last_ns = now_ns if self._last_ns is None else max(now_ns, self._last_ns)
        if self._credit_ns < self._cost_ns:
            return False
        self._credit_ns -= self._cost_ns
        return True


def _answer_flags(flags: int, rcode: int) -> int:
    """Response; opcode, "recursion desired" and "checking disabled" as asked; recursion available; nothing else."""
    return _QR | _RA | flags & (0x7800 | _RD | _CD) | rcode


def _query(data: bytes, flags: int) -> Query:
    if flags & 0x7800:
        raise _Malformed(NOTIMP)
    # One question, no answer, no authority, at most one additional record; TC and AA have no place in a query, the
    # reserved bit is zero. RCODE is not looked at (some clients leave rubbish there).
    if data[4:11] != b"\0\1\0\0\0\0\0" or data[11] > 1 or flags & 0x0640:
        raise _Malformed(FORMERR)
    name, at = _name(data, _HEADER)
    if at + 4 > len(data):
        raise _Malformed(FORMERR)
    kind, klass = data[at] << 8 | data[at + 1], data[at + 2] << 8 | data[at + 3]
    at += 4
    edns = _edns(data[at:]) if data[11] else None
    if not data[11] and at != len(data):
        raise _Malformed(FORMERR)
    return Query(data[:2], flags, data[_HEADER:at], name, kind, klass, edns)


def _name(data: bytes, at: int) -> tuple[str, int]:
    """The name at `at`, and where it ends. A compression pointer (nothing before it to point to) is malformed."""
    labels = []
    start = at
    while True:
        size = data[at] if at < len(data) else 64
        at += 1
        if size == 0:
            break
        if size > 63 or at + size >= len(data) or at + size + 1 - start > NAME_BYTES:
            raise _Malformed(FORMERR)
        labels.append(_label(data[at : at + size]))
        at += size
    return ".".join(labels), at


def _label(raw: bytes) -> str:
    text = raw.decode("latin-1")
    if raw.isascii() and text.replace("-", "").replace("_", "").isalnum():
        return text.lower()
    plain = (chr(byte) if byte < 128 and (chr(byte).isalnum() or byte in b"-_") else f"\\{byte:03d}" for byte in raw)
    return "".join(plain).lower()


def _edns(record: bytes) -> int:
    """The version in an OPT record that is all the rest of the message (RFC 6891 §6.1.2)."""
    if len(record) < 11 or record[:3] != b"\0\0\x29":
        raise _Malformed(FORMERR)
    options = record[11:]
    if len(options) != record[9] << 8 | record[10]:
        raise _Malformed(FORMERR)
    while options:
        size = 4 + (options[2] << 8 | options[3]) if len(options) >= 4 else len(options) + 1
        if size > len(options):
            raise _Malformed(FORMERR)
        options = options[size:]
    return record[6]
