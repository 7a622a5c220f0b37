"""The log as bytes: what a record looks like, and that nothing done to a log afterwards goes unseen."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nucleus.audit.chain import Head, extend
from nucleus.audit.record import (
    CONTEXT_BYTES,
    FIELD_BYTES,
    FIELDS,
    LINE_BYTES,
    REFUSED_FIELD_BYTES,
    ZERO,
    Record,
    encode,
)
from nucleus.audit.verify import COMPLETE_TO_PIN, COMPLETENESS_UNKNOWN, Report, Verifier
from nucleus.errors import InvalidError


def make(count: int = 6) -> list[bytes]:
    head, lines = Head(), []
    for number in range(count):
        record = Record("intent", 1_000 + number, number, "p1", f"r{number}", "spiffe://x/y", {"path": "a\u202e\ud800"})
        head, line = extend(head, record)
        lines.append(line)
    return lines


def verify(lines: list[bytes], **options: Any) -> Report:
    verifier = Verifier(**options)
    verifier.feed(b"".join(lines))
    return verifier.finish()


def forge(line: bytes, **changes: Any) -> bytes:
    """The line with other values and a hash that fits: what whoever can write the file can do."""
    fields = {**json.loads(line), **changes}
    head = json.dumps({k: v for k, v in fields.items() if k != "hash"}, separators=(",", ":"))[:-1].encode()
    return head + b',"hash":"' + hashlib.sha256(head).hexdigest().encode() + b'"}\n'


def test_a_good_log_says_that_completeness_is_unknown() -> None:
    report = verify(make())
    assert report.ok
    assert report.records == report.head.seq == 6
    assert report.verdict == COMPLETENESS_UNKNOWN


def test_an_empty_log_is_an_error() -> None:
    assert not verify([]).ok
    assert verify([]).problem == "the log is empty"


def test_every_field_is_inside_the_hash_and_in_order() -> None:
    (line,) = make(1)
    fields = json.loads(line)
    assert tuple(fields) == FIELDS
    assert fields["prev"] == ZERO
    assert fields["hash"] == hashlib.sha256(line[: line.index(b',"hash"')]).hexdigest()
    assert line.isascii()


@pytest.mark.parametrize("at", range(len(make(3)[0]) + 20))
def test_every_single_byte_that_changes_is_found(at: int) -> None:
    data = bytearray(b"".join(make(3)))
    data[at] ^= 0x01
    verifier = Verifier()
    verifier.feed(bytes(data))
    assert not verifier.finish().ok


@pytest.mark.parametrize(
    ("change", "line", "word"),
    [
        (lambda ls: [*ls[:2], ls[2].replace(b'"p1"', b'"p2"'), *ls[3:]], 3, "edited"),
        (lambda ls: [*ls[:2], *ls[3:]], 3, "record 3 missing"),
        (lambda ls: [*ls[:2], *ls[4:]], 3, "records 3 to 4 missing"),
        (lambda ls: ls[1:], 1, "record 1 missing"),
        (lambda ls: [*ls[:2], ls[3], ls[2], *ls[4:]], 3, "record 4 is out of order"),
        (lambda ls: [*ls[:3], ls[2], *ls[3:]], 4, "twice"),
        (lambda ls: [*ls[:4], ls[1], *ls[4:]], 5, "out of order"),
        (lambda ls: [*ls, b"{}\n"], 7, "hash"),
        (lambda ls: [*ls, b"\n"], 7, "hash"),
        (lambda ls: [*ls[:-1], ls[-1][:-1]], 6, "truncated in mid-line"),
        (lambda ls: [*ls[:-1], ls[-1][:40]], 6, "truncated in mid-line"),
        (lambda ls: [*ls[:2], forge(ls[2], pod="p2"), *ls[3:]], 4, "does not follow"),
        (lambda ls: [*ls[:2], forge(ls[2], prev=ZERO), *ls[3:]], 3, "does not follow"),
        (lambda ls: [*ls[:2], forge(ls[2], event="what"), *ls[3:]], 3, "encoding"),
        (lambda ls: [*ls[:2], forge(ls[2], extra=1), *ls[3:]], 3, "encoding"),
        (lambda ls: [*ls[:2], forge(ls[2], seq="3"), *ls[3:]], 3, "encoding"),
        (lambda ls: [*ls[:2], forge(ls[2], seq=True), *ls[3:]], 3, "encoding"),
    ],
)  # fmt: skip
def test_what_was_done_to_a_log_is_found_with_its_line(change: Any, line: int, word: str) -> None:
    report = verify(change(make()))
    assert not report.ok
    assert report.line == line
    assert word in report.verdict


def test_two_encodings_of_one_record_are_not_both_good() -> None:
    first, second, *_ = make()
    fields = json.loads(second)
    blank = json.dumps({k: v for k, v in fields.items() if k != "hash"})[:-1].encode()
    line = blank + b',"hash":"' + hashlib.sha256(blank).hexdigest().encode() + b'"}\n'
    assert "encoding" in verify([first, line]).verdict
    twice = second[: second.index(b',"hash"')].replace(b'"v":1', b'"v":1,"seq":2', 1)
    line = twice + b',"hash":"' + hashlib.sha256(twice).hexdigest().encode() + b'"}\n'
    assert "encoding" in verify([first, line]).verdict


def test_a_pinned_head_finds_a_cut_tail_and_a_rewrite() -> None:
    lines = make()
    head = verify(lines).head
    pin = (head.seq, head.hash)
    assert verify(lines[:-1]).ok  # the bare chain cannot show it
    assert "before the pinned record 6" in verify(lines[:-1], pin=pin).verdict
    assert verify(lines, pin=pin).verdict == COMPLETE_TO_PIN
    rewritten, at = [], Head()
    for number in range(6):
        at, line = extend(at, Record("denied", number, 0))
        rewritten.append(line)
    assert verify(rewritten).ok
    assert "rewritten" in verify(rewritten, pin=pin).verdict
    longer = [*lines, extend(head, Record("error", 1, 1))[1]]
    assert verify(longer, pin=pin).ok


def test_it_goes_on_from_a_head_and_only_from_that_one() -> None:
    lines = make()
    half = verify(lines[:3]).head
    assert verify(lines[3:], start=half).head == verify(lines).head
    assert not verify(lines[4:], start=half).ok
    assert verify([], start=half).ok


@given(st.integers(1, 400))
def test_chunks_of_any_size_give_the_same_report(size: int) -> None:
    data = b"".join(make())
    verifier = Verifier()
    for at in range(0, len(data), size):
        assert verifier.feed(data[at : at + size])
    assert verifier.finish() == verify(make())


def test_a_line_without_end_is_not_buffered_for_ever() -> None:
    verifier = Verifier()
    assert not verifier.feed(b"x" * (LINE_BYTES + 1))
    assert "longer" in verifier.finish().verdict


def test_what_is_too_big_is_cut_and_named_by_its_digest() -> None:
    big = {"argv": ["x" * FIELD_BYTES]}
    line, _ = encode(Record("intent", 1, 1, operation=big), 1, ZERO)
    cut = json.loads(line)["operation"]
    text = json.dumps(big, separators=(",", ":")).encode()
    assert cut == {"cut": True, "bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    small = {"argv": ["x" * REFUSED_FIELD_BYTES]}
    line, _ = encode(Record("denied", 1, 1, operation=small), 1, ZERO)
    assert json.loads(line)["operation"]["cut"]
    line, _ = encode(Record("intent", 1, 1, operation=small), 1, ZERO)
    assert json.loads(line)["operation"] == small


@pytest.mark.parametrize(
    "changes",
    [
        {"event": "made-up"},
        {"event": 'intent","seq":9,"x":"'},
        {"operation_hash": "ab"},
        {"operation_hash": 'x"'},
        {"principal": 7},
        {"principal": "x" * 20_000},
        {"context": {"x": "x" * CONTEXT_BYTES}},
        {"context": []},
        {"outcome": [1]},
        {"outcome": {"x": float("nan")}},
        {"outcome": {"x": float("inf")}},
        {"outcome": {"x": b""}},
    ],
)
def test_a_record_that_is_none_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidError):
        encode(Record(**{"event": "intent", "time_ns": 1, "mono_ns": 1, **changes}), 1, ZERO)


def test_a_record_nested_too_deeply_is_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"x": deep}
    with pytest.raises(InvalidError):
        encode(Record("intent", 1, 1, operation=deep), 1, ZERO)
    while deep:
        deep = deep["x"]  # so that freeing it does not recurse either


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), VALUES, max_size=5), st.text(max_size=50))
def test_whatever_json_a_gate_sends_makes_one_line_that_verifies(operation: dict[str, Any], principal: str) -> None:
    _, line = extend(Head(), Record("intent", 1, 1, principal=principal, operation=operation, context={"c": operation}))
    assert line.count(b"\n") == 1
    assert verify([line]).ok
