"""`nucleus-audit prove`, `receipt`, `check-proof`: what was signed, shown to somebody who has no log.

Promises: a proof is checked before it is written, against a checkpoint of the log that its key signed; `check-proof`
needs the proof and the log's public key, and opens nothing else; exit 0 proven, 1 not proven, 2 unusable.
Does not: verify the chain (`verify`): a proof is about bytes in a signed tree.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from nucleus.audit.checkpoint import Checkpoint, cosigned
from nucleus.audit.merkle import Prover, consistency_ranges, consistent, included, inclusion_ranges, leaf_hash
from nucleus.audit.note import COSIGNATURE, ED25519, Note, VerifierKey, parse
from nucleus.audit.proof import (
    PROOF_BYTES,
    Consistency,
    Inclusion,
    check_consistency,
    check_inclusion,
    parse_proof,
    signed_checkpoint,
)
from nucleus.audit.record import LINE_BYTES
from nucleus.cli.audit_tree import CHECKPOINTS, COSIGNATURES, beside, read_key, read_notes, read_small
from nucleus.cli.main import printable
from nucleus.cli.options import FLAG, ONE, invalid
from nucleus.cli.options import parse as parse_options
from nucleus.errors import InvalidError
from nucleus.store.segments import LogFiles

USAGE = """\
usage: nucleus-audit prove LOG --seq N [--checkpoint FILE] [--key KEY] [--out FILE]
       nucleus-audit prove LOG --from FILE|SIZE [--checkpoint FILE] [--key KEY] [--out FILE]
       nucleus-audit receipt LOG --seq N [--checkpoint FILE] [--key KEY] [--out FILE]
       nucleus-audit check-proof FILE --key KEY [--witness KEY] [--record FILE] [--json]

prove        that record N is in the signed log, or that the log of an older checkpoint (a file, or a size at which
             there is one) is its beginning. Shows nothing of the record. Default: up to the latest checkpoint.
receipt      the same for one record, with the record in it
check-proof  offline, with the log's public key (as <name>+<id>+<base64>, or a file with it) and nothing else.
             --record: the record's line, for a proof that does not have it; --witness: it must be cosigned

exit codes: 0 proven; 1 not proven; 2 unusable
"""
_MAKE = {"help": FLAG, "seq": ONE, "from": ONE, "checkpoint": ONE, "key": ONE, "out": ONE}
_CHECK = {"help": FLAG, "key": ONE, "witness": ONE, "record": ONE, "json": FLAG}


def run(argv: list[str]) -> int:
    """One command line, its verb first; the exit code. Raises InvalidError (2), OSError."""
    verb, rest = argv[0], argv[1:]
    table = _CHECK if verb == "check-proof" else _MAKE
    options, words = parse_options(rest, table)
    positional: list[str] = []
    while words:
        positional.append(words[0])
        more, words = parse_options(words[1:], table)
        options.update({name: value for name, value in more.items() if value})
    if options["help"]:
        sys.stdout.write(USAGE)
        return 0
    if len(positional) != 1:
        raise invalid(f"nucleus-audit {verb} takes one file")
    if verb == "check-proof":
        return _check(positional[0], options)
    return _make(positional[0], options, receipt=verb == "receipt")


def _make(path: str, options: dict[str, Any], *, receipt: bool) -> int:
    if bool(options["seq"]) == bool(options["from"]) or (receipt and not options["seq"]):
        raise invalid("name one record with --seq N" + ("" if receipt else ", or an older log with --from FILE|SIZE"))
    key = read_key(options["key"], ED25519) if options["key"] else beside(path)
    if key is None:
        raise invalid("there is no public key beside the log: name it with --key")
    try:
        if options["seq"]:
            proof: Inclusion | Consistency = _inclusion(path, _number(options["seq"]), options, key, receipt)
        else:
            proof = _consistency(path, options, key)
    except _NotProven as error:
        sys.stderr.write(f"NOT PROVEN: {printable(str(error))}\n")
        return 1
    data = proof.encode()
    if options["out"]:
        fd = os.open(options["out"], os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
    else:
        sys.stdout.write(data.decode())
    return 0


class _NotProven(Exception):
    """The log, as it is, does not give the proof."""


def _inclusion(path: str, seq: int, options: dict[str, Any], key: VerifierKey, receipt: bool) -> Inclusion:
    if seq < 1:
        raise invalid("records are counted from 1")
    note = _checkpoint(path, options, key, seq)
    size = Checkpoint.parse(note.text).size
    if seq > size:
        raise _NotProven(f"record {seq} is not signed yet: the checkpoint is of {size} records")
    prover, line = Prover(inclusion_ranges(seq - 1, size)), None
    at = 0
    for lines in log_lines(path, size):
        prover.extend(lines)
        if at < seq <= at + len(lines):
            line = lines[seq - 1 - at]
        at += len(lines)
    if line is None or at < size:
        raise _NotProven(f"the log ends at record {at}, the checkpoint is of {size}: its tail was cut")
    proof = Inclusion(seq - 1, tuple(prover.proof()), note, line if receipt else leaf_hash(line))
    root = Checkpoint.parse(note.text).root
    if not included(proof.leaf, proof.index, size, proof.hashes, root):
        raise _NotProven(f"the log is not the one that was signed with {size} records")
    return proof


def _consistency(path: str, options: dict[str, Any], key: VerifierKey) -> Consistency:
    new_note = _checkpoint(path, options, key, 0)
    new = Checkpoint.parse(new_note.text)
    if options["from"].isdigit():
        wanted = _number(options["from"])
        notes = [note for note, checkpoint in read_notes(path + CHECKPOINTS) if checkpoint.size == wanted]
        if not notes:
            raise invalid(f"there is no checkpoint of {wanted} records")
        old_note = notes[0]
    else:
        old_note = parse(read_small(options["from"]))
    old = signed_checkpoint(old_note, key)
    if old.size > new.size:
        raise _NotProven(f"the older checkpoint is of {old.size} records, the newer of {new.size}: the log went back")
    prover = Prover(consistency_ranges(old.size, new.size))
    for lines in log_lines(path, new.size):
        prover.extend(lines)
    try:
        proof = Consistency(tuple(prover.proof()), old_note, new_note)
    except InvalidError as error:
        raise _NotProven(error.message) from None
    if not consistent(old.size, new.size, old.root, new.root, proof.hashes):
        raise _NotProven(f"the log of {old.size} records is not the beginning of the one of {new.size}")
    return proof


def _checkpoint(path: str, options: dict[str, Any], key: VerifierKey, seq: int) -> Note:
    """The one that was named; else the latest, with its cosignatures; a cosigned one that has the record goes first."""
    if options["checkpoint"]:
        note = parse(read_small(options["checkpoint"]))
        signed_checkpoint(note, key)
        return note
    latest: Note | None = None
    for note, _ in read_notes(path + CHECKPOINTS):
        latest = note
    for note, checkpoint in read_notes(path + COSIGNATURES):
        if latest is None or note.text == latest.text or (seq and checkpoint.size >= seq):
            latest = note
    if latest is None:
        raise invalid(f"{path} has no checkpoints beside it")
    signed_checkpoint(latest, key)
    return latest


def log_lines(path: str, count: int) -> Iterator[list[bytes]]:
    """The log's first `count` whole lines, of all its files, in pieces.

    Raises:
        OSError, AuditError: unreadable. InvalidError: not a log.
    """
    rest = b""
    with LogFiles(path) as log:
        for _, chunk in log.chunks():
            if count <= 0:
                return
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > LINE_BYTES:
                raise InvalidError(f"{path}: a line longer than {LINE_BYTES} bytes", rule="audit.line")
            yield lines[:count]
            count -= len(lines)


def _check(path: str, options: dict[str, Any]) -> int:
    if not options["key"]:
        raise invalid("check-proof needs --key: the log's public key, or a file with it")
    key = read_key(options["key"], ED25519)
    witness = read_key(options["witness"], COSIGNATURE) if options["witness"] else None
    record = read_small(options["record"], LINE_BYTES).removesuffix(b"\n") if options["record"] else None
    data = read_small(path, PROOF_BYTES)
    try:
        proof = parse_proof(data)
        answer = _verdict(proof, key, record)
        if witness is not None:
            note = proof.note if isinstance(proof, Inclusion) else proof.new
            answer["cosigned_at"] = cosigned(note, witness)
            if not answer["cosigned_at"]:
                raise InvalidError(f"not cosigned by {witness.name}", rule="audit.signature")
    except InvalidError as error:
        answer = {"ok": False, "problem": error.message}
    if options["json"]:
        sys.stdout.write(json.dumps(answer) + "\n")
    else:
        sys.stdout.write("".join(f"{printable(line)}\n" for line in _words(answer)))
    return 0 if answer["ok"] else 1


def _verdict(proof: Inclusion | Consistency, key: VerifierKey, record: bytes | None) -> dict[str, Any]:
    """Raises InvalidError: not proven."""
    if isinstance(proof, Consistency):
        if record is not None:
            raise InvalidError("a proof of consistency is about no record", rule="audit.proof")
        old, new = check_consistency(proof, key)
        return {"ok": True, "log": key.name, "old": old.size, "size": new.size}
    if record is not None and leaf_hash(record) != proof.leaf:
        raise InvalidError("the proof is about another record", rule="audit.proof")
    checkpoint = check_inclusion(proof, key)
    seq = proof.index + 1
    answer: dict[str, Any] = {"ok": True, "log": key.name, "seq": seq, "size": checkpoint.size}
    answer["leaf"] = proof.leaf.hex()
    if line := record if record is not None else proof.line:
        try:
            answer["record"] = json.loads(line)
            if answer["record"]["seq"] != seq:
                raise InvalidError(f"the record in place {seq} says that it is another", rule="audit.proof")
        except (ValueError, RecursionError, TypeError, KeyError):
            raise InvalidError("what is proven to be there is no record", rule="audit.proof") from None
    return answer


def _words(answer: dict[str, Any]) -> Sequence[str]:
    if not answer["ok"]:
        return [f"NOT PROVEN: {answer['problem']}"]
    if "old" in answer:
        lines = [f"proven: the {answer['old']} records of the older checkpoint begin the {answer['size']} of the newer"]
    else:
        lines = [f"proven: record {answer['seq']} is in the log of {answer['size']} records"]
    lines.append(f"signed by {answer['log']}")
    if "record" in answer:
        from nucleus.cli.audit import line  # weight: the display

        lines.append(line(answer["record"]))
    elif "leaf" in answer:
        lines.append(f"leaf {answer['leaf']} (--record FILE checks the record itself)")
    if "cosigned_at" in answer:
        lines.append(f"cosigned at {answer['cosigned_at']} s since the epoch")
    return lines


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise invalid(f"{text[:40]!r} is not a number")
    return int(text)
