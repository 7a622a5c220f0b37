"""`nucleus-audit query`, `tail`, `stats`, `export`: the log read for people and for other programs.

Promises: one pass over all of the log's files, in pieces, with memory that does not grow with the log; what is shown
verified before (hash, place, predecessor), and nothing after the first line that does not is shown (exit 1); a terminal
gets what a record holds escaped. `tail --follow` goes on over rotations and ends with 0 on SIGINT.
Does not: check the tree (`verify`), write files (standard output is the shell's).
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from nucleus.audit.chain import Head
from nucleus.audit.record import EVENTS, FIELDS, LINE_BYTES, ZERO
from nucleus.audit.verify import Verifier
from nucleus.cli import audit
from nucleus.cli.audit_export import FORMATS
from nucleus.cli.main import printable
from nucleus.cli.options import FLAG, ONE, invalid, parse
from nucleus.errors import AuditError
from nucleus.pod.runtime import state_dir
from nucleus.store.segments import CHUNK, LogFiles

USAGE = """\
usage: nucleus-audit query  [LOG] [FILTER ...] [--limit N] [--json]
       nucleus-audit tail   [LOG] [FILTER ...] [--lines N] [--follow] [--json]
       nucleus-audit stats  [LOG] [FILTER ...] [--json]
       nucleus-audit export [LOG] [FILTER ...] --format csv|json|ocsf

LOG      default: the one in the state directory; its closed segments are read, too
query    the records that are asked for; --json: as they are stored, one a line
tail     the last --lines (default 10) of them; --follow: and new ones as they are written, until SIGINT
stats    how many, by kind, outcome, operation, principal, rule; when; bytes
export   csv (cells that a spreadsheet would take for formulas begin with a quote), json (one array),
         ocsf (one event of OCSF 1.3.0, API Activity, a line)

filters  --principal ID  --operation KIND  --outcome STATUS  --kind EVENT  --pod POD  --request ID
         --since WHEN  --until WHEN: 2026-01-31, 2026-01-31T12:00:00Z, or 15m, 2h, 3d before now; until is exclusive

exit codes: 0 shown; 1 the log does not verify: nothing after that place is shown; 2 unusable
"""
_FILTERS = ("principal", "operation", "outcome", "kind", "pod", "request", "since", "until")
_TABLE = dict.fromkeys((*_FILTERS, "limit", "lines", "format"), ONE) | dict.fromkeys(("follow", "json", "help"), FLAG)
_ALLOWED = {
    "query": {"limit", "json"}, "tail": {"lines", "follow", "json"}, "stats": {"json"}, "export": {"format"},
}  # fmt: skip
MAX_LINES = 100_000
MAX_NAMES = 10_000  # distinct principals, rules: of more, the rest is counted together
MORE = "(others)"
POLL_S = 0.1
_AGO = re.compile(r"([0-9]{1,9})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
See = Callable[[dict[str, Any]], None]


class Enough(Exception):
    """No more records are wanted."""


def run(argv: list[str]) -> int:
    """One command line, its verb first; the exit code. Raises InvalidError (2), AuditError (2), OSError."""
    verb = argv[0]
    options, words = parse(argv[1:], _TABLE)
    positional: list[str] = []
    while words:  # options may follow the words
        positional.append(words[0])
        more, words = parse(words[1:], _TABLE)
        options.update({name: value for name, value in more.items() if value})
    if options["help"]:
        sys.stdout.write(USAGE)
        return 0
    for name, value in options.items():
        if value and name not in _ALLOWED[verb] and name not in _FILTERS:
            raise invalid(f"nucleus-audit {verb} has no --{name}")
    if len(positional) > 1:
        raise invalid(f"nucleus-audit {verb} takes one log")
    path = positional[0] if positional else os.path.join(state_dir(), "audit.jsonl")
    wanted = filter_of(options, time.time_ns())
    match verb:
        case "query":
            return _query(path, wanted, _number(options["limit"], "limit"), as_json=options["json"])
        case "tail":
            lines = _number(options["lines"] or "10", "lines")
            return _tail(path, wanted, min(lines, MAX_LINES), follow=options["follow"], as_json=options["json"])
        case "stats":
            return _stats(path, wanted, as_json=options["json"])
    return _export(path, wanted, options["format"])


def filter_of(options: dict[str, Any], now_ns: int) -> Callable[[dict[str, Any]], bool]:
    """Whether a record is asked for. Raises InvalidError: a filter that could match nothing."""
    kind = options["kind"]
    if kind and kind not in EVENTS:
        raise invalid(f"--kind is one of {', '.join(sorted(EVENTS))}")
    since, until = _when(options["since"], now_ns), _when(options["until"], now_ns)
    tests: list[Callable[[dict[str, Any]], bool]] = []
    for option, name in (("principal", "principal"), ("pod", "pod"), ("request", "request_id"), ("kind", "event")):
        if value := options[option]:
            tests.append(lambda record, name=name, value=value: bool(record[name] == value))  # type: ignore[misc]
    if operation := options["operation"]:
        tests.append(lambda record: operation_of(record) == operation)
    if outcome := options["outcome"]:
        tests.append(lambda record: outcome_of(record) == outcome)
    if since is not None:
        tests.append(lambda record: bool(record["time_ns"] >= since))
    if until is not None:
        tests.append(lambda record: bool(record["time_ns"] < until))
    return lambda record: all(test(record) for test in tests)


def operation_of(record: dict[str, Any]) -> str:
    """The operation's kind; "" for a record that has none."""
    operation = record["operation"]
    return operation if isinstance(operation, str) else str(operation.get("kind", ""))


def outcome_of(record: dict[str, Any]) -> str:
    """The outcome's status; "" for a record that has none."""
    outcome = record["outcome"]
    return outcome if isinstance(outcome, str) else str(outcome.get("status", ""))


def rule_of(record: dict[str, Any]) -> str:
    """The rule that decided, or that refused."""
    for part in (record["outcome"], record["decision"]):
        if isinstance(part, dict) and part.get("rule"):
            return str(part["rule"])
    return ""


def _when(text: str, now_ns: int) -> int | None:
    if not text:
        return None
    if match := _AGO.fullmatch(text):
        return now_ns - int(match[1]) * _SECONDS[match[2]] * 1_000_000_000
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise invalid(f"{text[:40]!r} is no time: 2026-01-31, 2026-01-31T12:00:00Z, 15m, 2h or 3d") from None
    found = found if found.tzinfo is not None else found.replace(tzinfo=UTC)
    since = found - datetime(1970, 1, 1, tzinfo=UTC)
    return ((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds) * 1_000


def _shown(record: dict[str, Any], *, as_json: bool) -> str:
    return (json.dumps(record, separators=(",", ":")) if as_json else audit.line(record)) + "\n"


def _scanned(path: str, see: See) -> int:
    try:
        report = audit.scan(path, see)
    except Enough:
        return 0
    if not report.ok and report.kind != "empty":
        sys.stdout.flush()
        sys.stderr.write(f"FAILED ({report.kind}): {printable(report.verdict)}; nothing after it is shown\n")
        return 1
    return 0


def _query(path: str, wanted: Callable[[dict[str, Any]], bool], limit: int, *, as_json: bool) -> int:
    found = 0

    def see(record: dict[str, Any]) -> None:
        nonlocal found
        if wanted(record):
            sys.stdout.write(_shown(record, as_json=as_json))
            found += 1
            if found == limit:
                raise Enough

    return _scanned(path, see)


def _export(path: str, wanted: Callable[[dict[str, Any]], bool], name: str) -> int:
    if name not in FORMATS:
        raise invalid(f"--format is one of {', '.join(FORMATS)}")
    export = FORMATS[name](sys.stdout.write)
    export.begin()
    code = _scanned(path, lambda record: export.record(record) if wanted(record) else None)
    export.end()
    return code


GROUPS: dict[str, Callable[[dict[str, Any]], str]] = {
    "kind": lambda record: str(record["event"]),
    "outcome": outcome_of,
    "operation": operation_of,
    "principal": lambda record: str(record["principal"]),
    "rule": rule_of,
}


class Stats:
    """Counts of records, in bounded memory."""

    def __init__(self) -> None:
        self.records = 0
        self.first_ns: int | None = None
        self.last_ns: int | None = None
        self.counts: dict[str, dict[str, int]] = {name: {} for name in GROUPS}

    def see(self, record: dict[str, Any]) -> None:
        """Count one."""
        self.records += 1
        now = record["time_ns"]
        self.first_ns = now if self.first_ns is None else min(self.first_ns, now)
        self.last_ns = now if self.last_ns is None else max(self.last_ns, now)
        for name, of in GROUPS.items():
            if value := of(record):
                counts = self.counts[name]
                value = value if value in counts or len(counts) < MAX_NAMES else MORE
                counts[value] = counts.get(value, 0) + 1

    def as_dict(self) -> dict[str, Any]:
        """For --json, most frequent first."""
        ordered = {
            name: dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
            for name, counts in self.counts.items()
        }
        return {"records": self.records, "first_ns": self.first_ns, "last_ns": self.last_ns, "by": ordered}


def _stats(path: str, wanted: Callable[[dict[str, Any]], bool], *, as_json: bool) -> int:
    stats = Stats()
    with LogFiles(path) as log:
        size, files = log.total(), len(log.segments) + 1
    code = _scanned(path, lambda record: stats.see(record) if wanted(record) else None)
    data = {"bytes": size, "files": files, **stats.as_dict()}
    if as_json:
        sys.stdout.write(json.dumps(data) + "\n")
        return code
    lines = [f"{stats.records} records; the log has {size} bytes in {files} file{'s' * (files > 1)}"]
    if stats.first_ns is not None and stats.last_ns is not None:
        lines.append(f"from {_utc(stats.first_ns)} to {_utc(stats.last_ns)}")
    for name, counts in data["by"].items():
        lines += [f"{name}:", *(f"{count:>10}  {value}" for value, count in counts.items())] if counts else []
    sys.stdout.write("".join(f"{printable(line)}\n" for line in lines))
    return code


def _utc(ns: int) -> str:
    return f"{audit.clock(ns // 1_000_000_000)}.{ns % 1_000_000_000 // 1_000_000:03d}Z"


def _tail(path: str, wanted: Callable[[dict[str, Any]], bool], lines: int, *, follow: bool, as_json: bool) -> int:
    log = LogFiles(path)
    try:
        verifier: Verifier | None = None
        at = log.size if not lines else _start(log, wanted, lines)

        def see(record: dict[str, Any]) -> None:
            if wanted(record):
                sys.stdout.write(_shown(record, as_json=as_json))

        while True:
            chunk = log.pread(CHUNK, at)
            if chunk:
                if verifier is None:
                    verifier = Verifier(_before(log, at), see)
                at += len(chunk)
                if not verifier.feed(chunk):
                    break
                continue
            sys.stdout.flush()
            if not follow:
                return 0
            if log.moved():
                log = _moved_on(log, at)
                continue
            if log.size < at:
                raise AuditError(f"{path} is shorter than it was", rule="audit.tail")
            time.sleep(POLL_S)
        sys.stdout.flush()
        sys.stderr.write(f"FAILED: {printable(verifier.finish().problem)}; nothing after it is shown\n")
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        log.close()


def _moved_on(log: LogFiles, at: int) -> LogFiles:
    """The log's files after a rotation; what was left of the old one is read from them at its place."""
    for _ in range(50):
        try:
            found = LogFiles(log.path)
        except FileNotFoundError:  # between the two names
            time.sleep(POLL_S)
            continue
        if found.size < at:
            found.close()
            raise AuditError(f"{log.path} was replaced by a shorter log", rule="audit.tail")
        log.close()
        return found
    raise AuditError(f"{log.path} is gone", rule="audit.tail")


def _start(log: LogFiles, wanted: Callable[[dict[str, Any]], bool], lines: int) -> int:
    """Where the last so many of the wanted lines begin, looked for from the end, in pieces."""
    start = at = log.size
    rest = b""  # of a line that begins further to the front
    found = 0
    while at > 0:
        step = min(CHUNK, at - log.file_start(at))
        at -= step
        data = log.pread(step, at) + rest
        parts = data.split(b"\n")
        rest = parts.pop(0)
        end = at + len(data)
        if at == 0:
            parts.insert(0, rest)
        for line in reversed(parts):
            begin = end - len(line)
            if line and _is_wanted(line, wanted):
                start, found = begin, found + 1
                if found == lines:
                    return start
            end = begin - 1
        if len(rest) > LINE_BYTES:
            raise AuditError(f"{log.path} has a line that is none of ours", rule="audit.line")
    return start


def _is_wanted(line: bytes, wanted: Callable[[dict[str, Any]], bool]) -> bool:
    try:
        record = json.loads(line)
        return tuple(record) == FIELDS and wanted(record)
    except (ValueError, RecursionError, TypeError, AttributeError):
        return True  # shown to be no record by what reads it next


def _before(log: LogFiles, at: int) -> Head:
    """The head that the line at `at` says it follows: its own place is believed, all after it is checked."""
    if at == 0:
        return Head()
    data = b""
    while b"\n" not in data and len(data) <= LINE_BYTES and (chunk := log.pread(CHUNK, at + len(data))):
        data += chunk
    try:
        record = json.loads(data.split(b"\n", 1)[0])
        return Head(int(record["seq"]) - 1, str(record["prev"]), at)
    except (ValueError, RecursionError, TypeError, KeyError):
        return Head(0, ZERO, at)


def _number(text: str, name: str) -> int:
    if text and (not text.isascii() or not text.isdigit() or len(text) > 9):
        raise invalid(f"--{name} is not a number")
    return int(text or 0)
