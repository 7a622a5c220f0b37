"""Probes of the selftest's own audit log: is every change to it found by `nucleus-audit verify`?

Promises: copies are changed, never the log. Relies on: the builder having ended, so that the log is complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
from collections.abc import Callable

from nucleus.audit.record import encode_parsed
from nucleus.testing.conformance.bed import FailedError, NotHereError
from nucleus.testing.selftest.finding import Findings
from nucleus.testing.selftest.ground import Ground

LAYER = "audit: hash chain, signed checkpoints"
LEAST = 6  # records, for there to be something to change
Change = Callable[[list[bytes]], list[bytes]]


def probe(findings: Findings, ground: Ground) -> None:
    """All of it, after `Ground.stop`."""
    state = f"{ground.directory}/state"
    log = f"{state}/audit.jsonl"

    def whole() -> str:
        code, said = _verify(log, "--consistent")
        if code == 2:
            raise NotHereError(said)
        if code:
            raise FailedError(said)
        if len(_lines(log)) < LEAST:
            raise NotHereError(f"only {len(_lines(log))} records were written")
        return said

    findings.attempt("tamper.untouched", "the log as it was written", LAYER, whole)
    for name, tried, change in CHANGES:

        def work(name: str = name, change: Change = change) -> str:
            return _found(ground, state, name, change)

        findings.attempt(f"tamper.{name}", tried, LAYER, work)


def _found(ground: Ground, state: str, name: str, change: Change) -> str:
    """Change a copy of the log and have it verified, against the head that was noted of the whole one."""
    copy = f"{ground.directory}/tampered-{name}"
    lines = _lines(f"{state}/audit.jsonl")
    if len(lines) < LEAST:
        raise NotHereError("there is no log to change")
    shutil.copytree(state, copy, ignore=shutil.ignore_patterns("ledger*", "lock", "*.key", "audit.reserve"))
    with open(f"{copy}/audit.jsonl", "wb") as file:
        file.write(b"".join(change(list(lines))))
    last = json.loads(lines[-1])
    code, said = _verify(f"{copy}/audit.jsonl", "--expect-seq", str(last["seq"]), "--expect-hash", str(last["hash"]))
    if code == 0 or code == 3:
        raise FailedError("it verifies all the same")
    if code != 1:
        raise NotHereError(said)
    return said


def _lines(log: str) -> list[bytes]:
    try:
        with open(log, "rb") as file:
            return file.readlines()
    except OSError as error:
        raise NotHereError(f"the log cannot be read: {error}") from error


def _verify(*words: str) -> tuple[int, str]:
    from nucleus.cli import audit

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = audit.main(["verify", *words])
    return code, " ".join((err.getvalue() + out.getvalue()).split())


def _edit(lines: list[bytes]) -> list[bytes]:
    middle = len(lines) // 2
    lines[middle] = _harmless(lines[middle])
    return lines


def _harmless(line: bytes) -> bytes:
    record = json.loads(line)
    record["operation"] = {"kind": "read", "path": "harmless"}
    return encode_parsed(record) + b"\n"


def _rechained(lines: list[bytes], first: int) -> list[bytes]:
    """Numbers, predecessors and hashes from `first` on made anew, as somebody would who may write the file."""
    for index in range(first, len(lines)):
        record = json.loads(lines[index])
        record["seq"], record["prev"] = index + 1, json.loads(lines[index - 1])["hash"]
        del record["hash"]
        head = encode_parsed(record)[:-1]
        lines[index] = b'%b,"hash":"%b"}\n' % (head, hashlib.sha256(head).hexdigest().encode("ascii"))
    return lines


def _forge(lines: list[bytes]) -> list[bytes]:
    middle = len(lines) // 2
    if _rechained(list(lines), middle) != lines:
        raise NotHereError("the log's own hashes could not be made anew")
    lines[middle] = _harmless(lines[middle])
    return _rechained(lines, middle)


def _insert(lines: list[bytes]) -> list[bytes]:
    middle = len(lines) // 2
    return _rechained([*lines[:middle], lines[middle], *lines[middle:]], middle)


def _swap(lines: list[bytes]) -> list[bytes]:
    lines[2], lines[3] = lines[3], lines[2]
    return lines


CHANGES: tuple[tuple[str, str, Change], ...] = (
    ("edited", "a record in the middle is changed", _edit),
    ("cut", "the last records are cut off", lambda lines: lines[:-2]),
    ("swapped", "two records change places", _swap),
    ("removed", "a record is taken out", lambda lines: lines[:3] + lines[4:]),
    ("forged", "a record is changed, and every hash after it made anew", _forge),
    ("inserted", "a record is put in between, and every hash after it made anew", _insert),
    ("torn", "the last line is cut in half", lambda lines: [*lines[:-1], lines[-1][: len(lines[-1]) // 2]]),
)
