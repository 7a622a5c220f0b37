"""`nucleus-audit` (also `nucleus audit`): does a log verify, and what does it say.

Promises: exit 0 only when every line verified, 1 when one did not, 2 when there was nothing to look at (no such file,
wrong arguments); the file is only read; what a record holds is shown escaped; `show` shows no record after the first
line that does not verify. Reads in pieces: a log of any size.
Does not: show completeness without a pinned head (`--expect-seq` and `--expect-hash`), and says so.
"""

from __future__ import annotations

import json
import os
import sys

from nucleus.cli.main import printable
from nucleus.cli.options import FLAG, ONE, invalid, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from nucleus.audit.verify import Report

USAGE = """\
usage: nucleus-audit verify FILE [--expect-seq N --expect-hash HASH] [--key KEY] [--checkpoint FILE] [--witness KEY]
                            [--require-complete] [--json]
       nucleus-audit show FILE [--pod POD] [--seq N] [--json]
       nucleus-audit prove | receipt | check-proof | witness ... (each has --help)

verify   every record's hash, place and predecessor, and the tree against the signed checkpoints beside the log. A head
         or checkpoint that was noted elsewhere (--expect-seq and --expect-hash, --checkpoint), or a witness (--witness,
         its public key) also show a cut tail and a rewrite up to there. --key: the log's public key, or a file with it.
show     the records, one a line; --json: as they are stored.

prove, receipt, check-proof   that a record, or an older log, is in the signed log; checked without the log
witness                       cosign the log's checkpoints as long as it only grows

exit codes: 0 verified; 1 does not verify; 2 unusable; 3 verified, but not known to be complete (--require-complete)
"""
_TABLE = {
    "json": FLAG, "help": FLAG, "pod": ONE, "seq": ONE, "expect-seq": ONE, "expect-hash": ONE, "key": ONE,
    "checkpoint": ONE, "witness": ONE, "require-complete": FLAG,
}  # fmt: skip
_CHUNK = 1 << 20


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: the process's own); return the exit code."""
    from nucleus.errors import InvalidError

    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except (InvalidError, OSError) as error:
        text = error.diagnostics() if isinstance(error, InvalidError) else f"unusable: {error}"
        sys.stderr.write(printable(text) + "\n")
        return 2


def _run(argv: list[str]) -> int:
    if argv and argv[0] in ("prove", "receipt", "check-proof"):
        from nucleus.cli.audit_proofs import run as proofs  # weight

        return proofs(argv)
    if argv and argv[0] == "witness":
        from nucleus.cli.audit_witness import run as witness  # weight

        return witness(argv[1:])
    options, words = parse(argv, _TABLE)
    positional: list[str] = []
    while words:  # options may follow the words
        positional.append(words[0])
        more, words = parse(words[1:], _TABLE)
        options.update({name: value for name, value in more.items() if value})
    if options["help"]:
        sys.stdout.write(USAGE)
        return 0
    match positional:
        case ["verify", path]:
            return _verify(path, options)
        case ["show", path]:
            return _show(path, options)
    raise invalid("nucleus-audit verify FILE, or nucleus-audit show FILE")


def _verify(path: str, options: dict[str, Any]) -> int:
    pin = None
    if options["expect-seq"] or options["expect-hash"]:
        digest = options["expect-hash"]
        if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            raise invalid("--expect-seq N and --expect-hash HASH (64 hex digits) go together")
        pin = (_number(options["expect-seq"], "expect-seq"), digest)
    from nucleus.cli.audit_tree import TreeCheck  # weight

    tree = TreeCheck(path, options["key"], options["checkpoint"], options["witness"])
    report, found = tree.judge(_read(path, None, pin, None if tree.idle else tree.feed))
    complete = max(found.complete, pin[0] if pin is not None and report.pinned else 0)
    verdict = f"internally consistent, complete up to record {complete}" if found.complete else report.verdict
    if options["json"]:
        answer = {
            "ok": report.ok,
            "records": report.records,
            "seq": report.head.seq,
            "hash": report.head.hash,
            "line": report.line,
            "problem": report.problem,
            "complete": report.ok and complete > 0,
            "verdict": verdict,
            "tree": found.data,
        }
        sys.stdout.write(json.dumps(answer) + "\n")
    elif report.ok:
        sys.stdout.write(f"ok: {report.records} records, {verdict}\nhead: {report.head.seq} {report.head.hash}\n")
    else:
        sys.stdout.write(f"FAILED: {printable(report.verdict)}\n{report.records} records before it verified\n")
    if not options["json"]:
        sys.stdout.write("".join(f"{printable(remark)}\n" for remark in found.remarks))
    if not report.ok:
        return 1
    return 3 if options["require-complete"] and not complete else 0


def _show(path: str, options: dict[str, Any]) -> int:
    seq = _number(options["seq"], "seq") if options["seq"] else 0
    as_json = options["json"]

    def on_record(record: dict[str, Any]) -> None:
        if (seq and record["seq"] != seq) or (options["pod"] and record["pod"] != options["pod"]):
            return
        sys.stdout.write((json.dumps(record, separators=(",", ":")) if as_json else line(record)) + "\n")

    report = _read(path, on_record, None)
    if not report.ok:
        sys.stderr.write(f"FAILED: {printable(report.verdict)}; nothing after it is shown\n")
    return 0 if report.ok else 1


def line(record: dict[str, Any]) -> str:
    """One record as one line for a person."""
    from nucleus.approval.display import escape

    seconds, ns = divmod(record["time_ns"], 1_000_000_000)
    decision, outcome, context = record["decision"], record["outcome"], record["context"]
    parts = [
        f"{record['seq']:>6} {clock(seconds)}.{ns // 1_000_000:03d} {record['pod'] or '-':<12} {record['event']:<10}",
        short(record["operation"]),
        _decided(decision) if isinstance(decision, dict) and decision else "",
        f"-> {short(outcome)}" if outcome else "",
        short({k: v for k, v in context.items() if k not in ("reservation", "reserved")}) if context else "",
        record["principal"],
    ]
    return escape("  ".join(part for part in parts if part))


def _decided(decision: dict[str, Any]) -> str:
    by = f" by {decision['approver']}" if decision.get("approver") else ""
    return f"[{decision.get('verdict', '')} {decision.get('rule', '')}{by}]"


def short(value: Any) -> str:
    """A record's field on one line, cut."""
    if isinstance(value, str):
        return value[:200]
    text = " ".join(f"{k}={v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)}" for k, v in value.items())
    return text if len(text) <= 200 else text[:199] + "…"


def clock(seconds: int) -> str:
    """UTC."""
    import time

    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _read(
    path: str,
    on_record: Callable[[dict[str, Any]], None] | None,
    pin: tuple[int, str] | None,
    also: Callable[[bytes], None] | None = None,
) -> Report:
    from nucleus.audit.verify import Verifier

    verifier = Verifier(on_record=on_record, pin=pin)
    # O_NONBLOCK: a pipe or device in the log's place is an error, not a wait.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        while (chunk := os.read(fd, _CHUNK)) and verifier.feed(chunk):
            if also is not None:
                also(chunk)
    finally:
        os.close(fd)
    return verifier.finish()


def _number(text: str, name: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise invalid(f"--{name} is not a number")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
