"""`nucleus-audit` (also `nucleus audit`): does a log verify, and what does it say.

Promises: exit 0 only when every line verified and something that was kept elsewhere says up to where the log is
complete; 3 when every line verified and nothing says so; 1 when a line did not, 2 when there was nothing to look at (no
such file, wrong arguments). Files are only read, closed segments first; what a record holds is shown escaped; `show`
shows no record after the first line that does not verify. Reads in pieces: a log of any size.
Does not: show completeness without a pin (a head, a checkpoint, a witness), and says so.
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

    from nucleus.audit.verify import Remarks, Report

USAGE = """\
usage: nucleus-audit verify FILE [--expect-seq N --expect-hash HASH] [--key KEY] [--checkpoint FILE] [--witness KEY]
                            [--consistent] [--quick] [--json]
       nucleus-audit show FILE [--pod POD] [--seq N] [--json]
       nucleus-audit query | tail | stats | export | prove | receipt | check-proof | witness | ship ...
                     (each has --help)

verify   every record's hash, place and predecessor, and the tree against the signed checkpoints beside the log. A head
         or checkpoint that was noted elsewhere (--expect-seq and --expect-hash, --checkpoint), or a witness (--witness,
         its public key) also show a cut tail and a rewrite up to there. --key: the log's public key, or a file with it.
         --consistent: exit 0 also when nothing says whether the log is complete. --quick: hashes, places, predecessors
         and the tree alone, for large logs: what is in a record is not parsed.
show     the records, one a line; --json: as they are stored.

query, tail, stats, export    the records that are asked for, as they are written, counted, or for other programs
prove, receipt, check-proof   that a record, or an older log, is in the signed log; checked without the log
witness                       cosign the log's checkpoints as long as it only grows
ship                          send what is signed to a file, PostgreSQL, S3, syslog or OpenTelemetry

exit codes: 0 verified, complete up to the pin; 1 does not verify; 2 unusable;
            3 internally consistent, completeness unknown: nothing that was kept elsewhere was given
"""
_TABLE = {
    "json": FLAG, "help": FLAG, "pod": ONE, "seq": ONE, "expect-seq": ONE, "expect-hash": ONE, "key": ONE,
    "checkpoint": ONE, "witness": ONE, "consistent": FLAG, "quick": FLAG,
}  # fmt: skip
READ = ("query", "tail", "stats", "export")
CONSISTENT = 3  # exit code


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: the process's own); return the exit code."""
    from nucleus.errors import AuditError, InvalidError

    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), 1)  # nobody reads on: the rest goes nowhere
        return 0
    except (InvalidError, AuditError, OSError) as error:
        text = f"unusable: {error}" if isinstance(error, OSError) else error.diagnostics()
        sys.stderr.write(printable(text) + "\n")
        return 2


def _run(argv: list[str]) -> int:
    if argv and argv[0] in ("prove", "receipt", "check-proof"):
        from nucleus.cli.audit_proofs import run as proofs  # weight

        return proofs(argv)
    if argv and argv[0] in READ:
        from nucleus.cli.audit_read import run as read  # weight

        return read(argv)
    if argv and argv[0] == "witness":
        from nucleus.cli.audit_witness import run as witness  # weight

        return witness(argv[1:])
    if argv and argv[0] == "ship":
        from nucleus.cli.audit_ship import run as ship  # weight

        return ship(argv[1:])
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
    from nucleus.audit.verify import Remarks
    from nucleus.cli.audit_tree import TreeCheck  # weight

    tree, remarks = TreeCheck(path, options["key"], options["checkpoint"], options["witness"]), Remarks()
    quick = options["quick"]
    see, feed = None if quick else remarks.see, None if tree.idle else tree.feed
    report, found = tree.judge(scan(path, see, pin, feed, strict=not quick))
    if quick:
        found.remarks.append("the encoding of records was not looked at (--quick)")
    found.remarks += [*_missing(path, report.ok), *_said(remarks)]
    complete = max(found.complete, pin[0] if pin is not None and report.pinned else 0)
    verdict = f"internally consistent, complete up to record {complete}" if found.complete else report.verdict
    if options["json"]:
        answer = {
            "ok": report.ok,
            "records": report.records,
            "seq": report.head.seq,
            "hash": report.head.hash,
            "file": report.file,
            "line": report.line,
            "kind": report.kind,
            "problem": report.problem,
            "complete": report.ok and complete > 0,
            "verdict": verdict,
            "tree": found.data,
            "clock_back": {"times": remarks.clock_back, "first": remarks.clock_back_first, "ns": remarks.clock_back_ns},
            "open_intents": {"records": remarks.open_intents, "first": remarks.open_first},
            "remarks": found.remarks,
        }
        sys.stdout.write(json.dumps(answer) + "\n")
    elif report.ok:
        sys.stdout.write(f"ok: {report.records} records, {verdict}\nhead: {report.head.seq} {report.head.hash}\n")
    else:
        sys.stdout.write(f"FAILED ({report.kind}): {printable(report.verdict)}\n")
        sys.stdout.write(f"{report.records} records before it verified\n")
    if not options["json"]:
        sys.stdout.write("".join(f"{printable(remark)}\n" for remark in found.remarks))
    if not report.ok:
        return 1
    return 0 if complete or options["consistent"] else CONSISTENT


def _missing(path: str, ok: bool) -> list[str]:
    from nucleus.store.segments import closed, gaps

    return [] if ok else gaps(closed(path))


def _said(remarks: Remarks) -> list[str]:
    """What is no tampering by itself, and worth a look."""
    said = []
    if remarks.open_intents:
        what = "an intent has" if remarks.open_intents == 1 else f"{remarks.open_intents} intents have"
        said.append(f"{what} no outcome (yet), first record {remarks.open_first}")
    if remarks.clock_back:
        times = "once" if remarks.clock_back == 1 else f"{remarks.clock_back} times"
        widest = f"{remarks.clock_back_ns / 1e9:.3f} s"
        said.append(f"the clock went back {times}, first at record {remarks.clock_back_first}, by up to {widest}")
    return said


def _show(path: str, options: dict[str, Any]) -> int:
    seq = _number(options["seq"], "seq") if options["seq"] else 0
    as_json = options["json"]

    def on_record(record: dict[str, Any]) -> None:
        if (seq and record["seq"] != seq) or (options["pod"] and record["pod"] != options["pod"]):
            return
        sys.stdout.write((json.dumps(record, separators=(",", ":")) if as_json else line(record)) + "\n")

    report = scan(path, on_record)
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


def scan(
    path: str,
    on_record: Callable[[dict[str, Any]], None] | None = None,
    pin: tuple[int, str] | None = None,
    also: Callable[[bytes], None] | None = None,
    *,
    strict: bool = True,
) -> Report:
    """Verify a log, all of its files; how far it is goes to a terminal on standard error.

    Args:
        on_record: gets each record that verified.
        pin: see `Verifier`.
        also: gets the bytes, up to the first problem.
        strict: see `Verifier`.

    Raises:
        OSError, AuditError: unreadable.
    """
    from nucleus.audit.verify import Verifier
    from nucleus.store.segments import LogFiles

    verifier, current = Verifier(on_record=on_record, pin=pin, strict=strict), ""
    with LogFiles(path) as log:
        bar = Progress(log.total())
        for name, chunk in log.chunks():
            if log.segments and name != current:
                current = name
                if not verifier.file(os.path.basename(name)):
                    break
            if not verifier.feed(chunk):
                break
            if also is not None:
                also(chunk)
            bar.add(len(chunk))
        bar.end()
    return verifier.finish()


class Progress:
    """A line on standard error that says how far it is; nothing where that is no terminal, or it is soon over."""

    FIRST_S, EACH_S = 0.5, 0.1

    def __init__(self, total: int) -> None:
        from time import monotonic

        self._clock, self._total, self._done, self._shown = monotonic, total, 0, False
        self._start = monotonic()
        self._next = self._start + self.FIRST_S if sys.stderr.isatty() else float("inf")

    def add(self, count: int) -> None:
        """So many bytes more."""
        self._done += count
        if (now := self._clock()) >= self._next:
            self._next, self._shown = now + self.EACH_S, True
            part = min(1.0, self._done / self._total) if self._total else 1.0
            rate = self._done / (now - self._start) / 1e6
            bar = "#" * int(part * 30)
            sys.stderr.write(f"\r[{bar:<30}] {part * 100:3.0f} % {rate:6.1f} MB/s")
            sys.stderr.flush()

    def end(self) -> None:
        """Take the line away."""
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _number(text: str, name: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise invalid(f"--{name} is not a number")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
