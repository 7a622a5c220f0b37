"""One audit record as one line of bytes (docs/design.md, "gate -> authority").

line = {"v":1,"seq":…,"time_ns":…,"mono_ns":…,"pod":…, … ,"prev":"<64 hex>","hash":"<64 hex>"} LF

Promises: keys come in the one order of `FIELDS`; the line is ASCII and has no blanks between tokens, so equal records
have equal bytes; `hash` is SHA-256 over the exact bytes before ``,"hash"``, so every field is inside it; a line is
bounded whatever a gate sent, and what was cut from it is named by size and SHA-256.
Relies on: its caller for truth: who, when and which pod are stamped by the authority.
Does not: keep state (`chain`), read or write (`store.audit_log`).
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

from nucleus.errors import InvalidError

VERSION = 1
FIELDS = (
    "v", "seq", "time_ns", "mono_ns", "pod", "event", "request_id", "principal", "operation", "operation_hash",
    "decision", "outcome", "context", "prev", "hash",
)  # fmt: skip
EVENTS = frozenset({
    "intent", "outcome", "denied", "invalid", "unauthenticated", "approval", "error", "pod.start", "pod.stop",
    "recovery", "identity.refused", "identity.issued", "identity.entry", "network.changed",
    "budget.changed", "identity.revoked", "identity.federated", "workspace.applied",
})  # fmt: skip
ZERO = "0" * 64  # `prev` of the first record
FIELD_BYTES = 131_072  # one of operation, decision, outcome, encoded: all that `limits` allows fits
REFUSED_FIELD_BYTES = 4_096  # the same for an operation that never ran: a flood of denials stays small
CONTEXT_BYTES = 32_768
TEXT_BYTES = 16_384  # request_id, principal, pod, each as JSON (a SPIFFE ID is at most 2,048 bytes)
LINE_BYTES = 4 * FIELD_BYTES  # no line is longer
HASH_TAIL = len(',"hash":""}') + 64  # bytes of a line after what the hash covers
_REFUSALS = frozenset({"denied", "invalid", "unauthenticated", "error", "identity.refused"})
_HEX64 = re.compile(r"[0-9a-f]{64}")
_VALUES = (dict, str)
_TEXT = json.encoder.encode_basestring_ascii


def _no_json(value: object) -> object:
    raise TypeError(type(value).__name__)


# What json.JSONEncoder(separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode makes for each call anew.
_PARTS = json.encoder.c_make_encoder(  # type: ignore[attr-defined]
    None, _no_json, _TEXT, None, ":", ",", False, False, False
)


def _JSON(value: object) -> str:
    return _TEXT(value) if isinstance(value, str) else "".join(_PARTS(value, 0))


@dataclass(frozen=True, slots=True)
class Record:
    """What happened; `chain` adds its place. Units: nanoseconds, wall clock since the epoch and monotonic."""

    event: str
    time_ns: int
    mono_ns: int
    pod: str = ""
    request_id: str = ""
    principal: str = ""
    operation: dict[str, Any] | str = field(default_factory=dict)
    operation_hash: str = ""
    decision: dict[str, Any] | str = field(default_factory=dict)
    outcome: dict[str, Any] | str = field(default_factory=dict)
    context: dict[str, Any] = field(default_factory=dict)


def encode(record: Record, seq: int, prev: str) -> tuple[bytes, str]:
    """The record's line, LF included, and its hash.

    Raises:
        InvalidError: an unknown event, a text or context over its bound, or a value that JSON does not have.
    """
    if record.event not in EVENTS:
        raise InvalidError("unknown audit event", rule="audit.event")
    if record.operation_hash and not _HEX64.fullmatch(record.operation_hash):
        raise InvalidError("operation_hash is not 64 hex digits", rule="audit.field")
    try:
        head = _small(record, seq, prev) or _head(record, seq, prev)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidError(f"a record is not JSON: {type(error).__name__}", rule="audit.field") from None
    digest = hashlib.sha256(head).hexdigest()
    return b'%b,"hash":"%b"}\n' % (head, digest.encode("ascii")), digest


def _small(record: Record, seq: int, prev: str) -> bytes:
    """The line up to its hash in one go, when all of it is below the least of the bounds; else b""."""
    pod, request_id, principal = record.pod, record.request_id, record.principal
    operation, decision, outcome, context = record.operation, record.decision, record.outcome, record.context
    if not (
        type(pod) is type(request_id) is type(principal) is str
        and type(operation) in _VALUES
        and type(decision) in _VALUES
        and type(outcome) in _VALUES
        and type(context) is dict
    ):
        return b""
    fields = {
        "v": VERSION, "seq": seq, "time_ns": record.time_ns, "mono_ns": record.mono_ns, "pod": pod,
        "event": record.event, "request_id": request_id, "principal": principal, "operation": operation,
        "operation_hash": record.operation_hash, "decision": decision, "outcome": outcome, "context": context,
        "prev": prev,
    }  # fmt: skip
    text = "".join(_PARTS(fields, 0))
    return text[:-1].encode("ascii") if len(text) <= REFUSED_FIELD_BYTES else b""


def _head(record: Record, seq: int, prev: str) -> bytes:
    """The same, field by field, each within its bound."""
    limit = REFUSED_FIELD_BYTES if record.event in _REFUSALS else FIELD_BYTES
    return (
        f'{{"v":{VERSION},"seq":{seq},"time_ns":{record.time_ns},"mono_ns":{record.mono_ns}'
        f',"pod":{_text(record.pod)},"event":"{record.event}","request_id":{_text(record.request_id)}'
        f',"principal":{_text(record.principal)},"operation":{_value(record.operation, limit)}'
        f',"operation_hash":"{record.operation_hash}","decision":{_value(record.decision, limit)}'
        f',"outcome":{_value(record.outcome, limit)},"context":{_context(record.context)},"prev":"{prev}"'
    ).encode("ascii")


def encode_parsed(fields: dict[str, Any]) -> bytes:
    """The canonical bytes of a parsed line, without LF: equal to the line, or the line was not written by `encode`."""
    return _JSON(fields).encode("ascii")


def _text(value: str) -> str:
    if not isinstance(value, str):  # it came from JSON: the annotation alone proves nothing
        raise InvalidError("a text field of a record is not text", rule="audit.field")
    text = _JSON(value)
    if len(text) > TEXT_BYTES:
        raise InvalidError("a text field of a record is too long", rule="audit.field")
    return text


def _value(value: dict[str, Any] | str, limit: int) -> str:
    if not isinstance(value, dict | str):
        raise InvalidError("a field of a record is neither object nor text", rule="audit.field")
    text = _JSON(value)
    if len(text) <= limit:
        return text
    return _JSON({"cut": True, "bytes": len(text), "sha256": hashlib.sha256(text.encode("ascii")).hexdigest()})


def _context(value: dict[str, Any]) -> str:
    if not isinstance(value, dict):
        raise InvalidError("context is not an object", rule="audit.field")
    text = _JSON(value)
    if len(text) > CONTEXT_BYTES:
        # Never cut: it carries the reservation, from which the ledger is rebuilt.
        raise InvalidError("context is too long", rule="audit.field")
    return text
