"""`nucleus-audit ship`: copies of the log go elsewhere, at least once, in order, and only what is signed.

A process of its own, which reads files: the gate never waits for it, and what a place that is down has not got yet is
in the log. As root it opens the log's files, then becomes `--uid` for good, and only then reads anything else, as the
witness does; with --follow and --uid each pass is a child of a process that only starts and awaits them.

Steps of a pass:
 1. the log has grown from what was seen last (`store.growth`); that is kept, atomically and durable
 2. from the last record that was delivered on, up to there: each is verified (hash, place, predecessor, encoding)
 3. which records are sent together is kept before they are sent, so that the same ones come again after a crash
 4. they are sent; once the other side has acknowledged all of them the next ones are
 5. when all are there, the newest checkpoint is sent, too: it pins, elsewhere, up to where the log is complete

Promises: nothing is left out and nothing overtakes; a record that is not signed yet (at most 10 s) is not sent, so
what was sent is never cut back from the log; memory is bounded by a batch.
Does not: remove what was sent from the log.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from nucleus.audit.chain import Head
from nucleus.audit.merkle import leaf_hash
from nucleus.audit.note import ED25519, VerifierKey
from nucleus.audit.record import LINE_BYTES
from nucleus.audit.verify import Verifier
from nucleus.cli import apart
from nucleus.cli.audit_tree import read_key
from nucleus.cli.main import printable
from nucleus.cli.options import FLAG, ONE, invalid, parse
from nucleus.errors import InvalidError
from nucleus.pod.runtime import state_dir
from nucleus.sinks.base import Entry, Later, Options, Rejected, Sink, opened
from nucleus.sinks.deadline import deadline
from nucleus.store.audit_log import FILE
from nucleus.store.growth import Files, Growth, Refused, Seen, pinned
from nucleus.store.note_keys import check_ours, write_whole

USAGE = """\
usage: nucleus-audit ship --state DIR --to ADDRESS [--log LOG] [--secret FILE] [--roots FILE] [--plaintext]
                          [--log-key KEY] [--uid UID] [--follow [--interval SECONDS]] [--json]
       nucleus-audit ship --state DIR --status [--json]

Sends the log's records to ADDRESS, at least once and in order, as soon as they are signed; then the checkpoint.

--state      a 0700 directory of its own, one for each place: up to where it was delivered
--to         file:/PATH                                    the lines as stored, PATH.checkpoints beside them
             postgresql://USER@HOST/DATABASE[?schema=NAME&sslrootcert=FILE]    a row for each record
             s3://BUCKET[/PREFIX]?region=REGION[&endpoint=https://HOST]        an object for each batch
             syslog+tls://HOST[:PORT]  syslog+tcp://HOST[:PORT]  syslog+unix:/dev/log  (?max=BYTES&close=abrupt)
             otlp+https://HOST[:PORT]  otlp+http://HOST[:PORT]                 OpenTelemetry logs, OTLP/HTTP
--log        default: the one in the state directory of Nucleus
--secret     a file of mode 0600: PostgreSQL's password; S3's access key id and key, a line each; OTLP's headers
--roots      certificates that the other side's is checked against (syslog, OTLP, S3); default: the system's
--plaintext  over a network without TLS, too
--log-key    the log's public key, or a file with it; default: the one beside the log at the first run, then kept
--uid        as root: become this uid once the log's files are open
--follow     go on, looking every --interval seconds (default 1), and trying again while the place is not reachable
--status     up to where it was seen and delivered

exit codes: 0 all that is signed was delivered; 1 refused: the log is not what was seen before (fork, rewind, shrink,
            signature, key, edited …), or the place will not take it; 2 unusable; 4 not reachable: try again
"""
_TABLE = dict.fromkeys(("state", "to", "log", "secret", "roots", "log-key", "uid", "interval"), ONE) | dict.fromkeys(
    ("plaintext", "follow", "status", "json", "help"), FLAG
)
STATE = "ship.json"
LATER = 4  # exit code
_STATE_BYTES = 1 << 17
_AHEAD = 64  # segments that it can be behind by, with --uid
_BATCH_BYTES = 4_194_304
_WAIT_S = (1, 2, 5, 10, 30)


@dataclass(slots=True)
class Sent:
    """What is kept.

    `head`: the last record that was delivered, and where the log goes on; `until`: the last one of the batch that is
    being sent, 0 for none; `pinned`: records of the last checkpoint that was delivered; `to`: the address.
    """

    seen: Seen = field(default_factory=Seen)
    head: Head = field(default_factory=Head)
    until: int = 0
    pinned: int = 0
    to: str = ""

    def encode(self) -> bytes:
        """The state file."""
        body = {
            "v": 1, "to": self.to, "seq": self.head.seq, "hash": self.head.hash, "offset": self.head.offset,
            "until": self.until, "pinned": self.pinned, "seen": self.seen.as_dict(),
        }  # fmt: skip
        return json.dumps(body, indent=1).encode() + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> Sent:
        """Raises InvalidError: rule ``ship.state``."""
        try:
            body: dict[str, Any] = json.loads(data)
            numbers = [body[name] for name in ("seq", "offset", "until", "pinned")]
            if body["v"] != 1 or any(type(number) is not int or number < 0 for number in numbers):
                raise ValueError
            head = Head(body["seq"], str(body["hash"]), body["offset"])
            seen = Seen.from_dict(body["seen"])
            if len(head.hash) != 64 or head.offset > seen.offset or head.seq > seen.tree.size:
                raise ValueError
            return cls(seen, head, body["until"], body["pinned"], str(body["to"]))
        except (ValueError, KeyError, TypeError, RecursionError, InvalidError):
            raise InvalidError("the state is not what `nucleus-audit ship` writes", rule="ship.state") from None


class Shipper:
    """See the module. `state`: the directory; `to`: the address that it is of."""

    def __init__(self, state: str, to: str, sink: Sink) -> None:
        self._path = os.path.join(state, STATE)
        self._sink = sink
        self.sent = load(self._path) or Sent()
        if self.sent.to not in ("", to):
            raise invalid(f"{state} is of {self.sent.to}: each address has a state of its own")
        self.sent.to = to

    def turn(self, files: Files, log_key: VerifierKey | None) -> int:
        """One pass; how many records were delivered.

        Raises:
            Refused, Rejected: it is not to go on.
            Later: the place is not reachable.
            AuditError, InvalidError, OSError: files cannot be used.
        """
        sent = self.sent
        key = pinned(sent.seen, log_key, files.key)
        found = Growth(files, key, sent.seen).look()  # 1
        if found is not None:
            sent.seen = found[1]
            self._keep()
        before = sent.head.seq
        for head, entries in self._batches(files):
            if sent.until != head.seq:
                sent.until = head.seq
                self._keep()  # 3
            with deadline():
                self._sink.deliver(key.name, entries)  # 4
            sent.head, sent.until = head, 0
        if sent.pinned < sent.head.seq:
            self._keep()
            with deadline():
                self._sink.pin(key.name, sent.seen.tree.size, sent.seen.note)  # 5
            sent.pinned = sent.head.seq
            self._keep()
        return sent.head.seq - before

    def _batches(self, files: Files) -> Iterator[tuple[Head, list[Entry]]]:
        """Step 2: what is not delivered yet, and the head after each batch."""
        seen, until, records = self.sent.seen, self.sent.until, list[dict[str, Any]]()
        verifier = Verifier(self.sent.head, records.append)
        entries: list[Entry] = []
        size = 0
        lines = files.log.lines(self.sent.head.offset, LINE_BYTES)
        while verifier.head.seq < seen.tree.size:
            line = next(lines, b"")
            if not line:
                raise Refused("shrink", f"the log ends at record {verifier.head.seq}, {seen.tree.size} are signed")
            if not verifier.feed(line) or not records:
                report = verifier.finish()
                raise Refused(report.kind, f"after record {verifier.head.seq}: {report.problem}")
            entries.append(Entry(verifier.head.seq, line, records.pop()))
            size += len(line)
            last = verifier.head.seq == seen.tree.size
            if last and leaf_hash(line.removesuffix(b"\n")).hex() != seen.leaf:
                raise Refused("fork", f"record {verifier.head.seq} is not the one that is signed")
            full = len(entries) >= self._sink.batch or size >= _BATCH_BYTES
            if last or verifier.head.seq == until or (full and verifier.head.seq > until):
                yield verifier.head, entries
                entries, size = [], 0

    def _keep(self) -> None:
        write_whole(self._path, self.sent.encode(), replace=True)


def load(path: str) -> Sent | None:
    """The state in a file; None: there is none. Raises InvalidError, AuditError (not ours alone), OSError."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        check_ours(fd, path, "ship.state")
        return Sent.decode(os.read(fd, _STATE_BYTES))
    finally:
        os.close(fd)


def run(argv: list[str]) -> int:
    """One command line, without its verb; the exit code. Raises InvalidError, AuditError (2), OSError."""
    options, words = parse(argv, _TABLE)
    if options["help"]:
        sys.stdout.write(USAGE)
        return 0
    if words or not options["state"]:
        raise invalid("nucleus-audit ship --state DIR --to ADDRESS")
    if options["status"]:
        return _status(options["state"], as_json=options["json"])
    if not options["to"]:
        raise invalid("nucleus-audit ship --state DIR --to ADDRESS")
    options["log"] = options["log"] or os.path.join(state_dir(), FILE)
    interval = _number(options["interval"] or "1")
    log_key = read_key(options["log-key"], ED25519) if options["log-key"] else None
    run_ = _Run(options, log_key)
    tries = 0
    try:
        while True:
            code = apart.in_child(run_.once) if options["follow"] and options["uid"] else run_.once()
            if not options["follow"] or code not in (0, LATER):
                return code
            tries = tries + 1 if code == LATER else 0
            time.sleep(max(interval, run_.wait_s, _WAIT_S[min(tries, len(_WAIT_S)) - 1] if tries else 0))
    except KeyboardInterrupt:
        return 0
    finally:
        run_.close()


class _Run:
    """Passes of one command line. The sink is kept from one to the next, where they are of one process."""

    def __init__(self, options: dict[str, Any], log_key: VerifierKey | None) -> None:
        self._options = options
        self._log_key = log_key
        self._sink: Sink | None = None
        self._said = ""
        self.wait_s = 0

    def once(self) -> int:
        """A pass; its exit code. Raises InvalidError, AuditError, OSError."""
        options = self._options
        self.wait_s = 0
        files = Files(options["log"], _AHEAD if options["uid"] else 0)
        lock = -1
        try:
            if options["uid"]:
                apart.become(_number(options["uid"]))
            lock = apart.lock(options["state"], "shipper")
            if self._sink is None:
                given = Options(options["secret"], options["roots"], options["plaintext"])
                self._sink = opened(options["to"], given)
            shipper = Shipper(options["state"], options["to"], self._sink)
            try:
                count = shipper.turn(files, self._log_key)
            except Later as error:
                self.wait_s = error.wait_s
                return self._say(LATER, "later", f"not reachable: {error}", shipper.sent)
            except (Refused, Rejected) as error:
                word = error.code if isinstance(error, Refused) else "rejected"
                return self._say(1, word, f"REFUSED ({word}): {error}", shipper.sent)
            if count or not options["follow"]:
                self._said = ""
                self._say(0, "", f"delivered: {count} records, up to record {shipper.sent.head.seq}", shipper.sent)
            return 0
        finally:
            files.close()
            if lock >= 0:
                os.close(lock)

    def close(self) -> None:
        """Hang up."""
        if self._sink is not None:
            self._sink.close()

    def _say(self, code: int, word: str, text: str, sent: Sent) -> int:
        if text == self._said:  # the same again and again, while it is not reachable
            return code
        self._said = text
        if self._options["json"]:
            said = {"ok": not code, "code": word, "problem": text if code else ""} | _facts(sent)
            sys.stdout.write(json.dumps(said) + "\n")
            sys.stdout.flush()
        else:
            stream = sys.stderr if code == LATER else sys.stdout
            stream.write(printable(text) + "\n")
            stream.flush()
        return code


def _facts(sent: Sent) -> dict[str, Any]:
    return {
        "to": sent.to, "delivered": sent.head.seq, "hash": sent.head.hash, "signed": sent.seen.tree.size,
        "checkpoint": sent.pinned,
    }  # fmt: skip


def _status(state: str, *, as_json: bool) -> int:
    sent = load(os.path.join(state, STATE))
    if sent is None:
        raise invalid(f"{state} has no {STATE}: nothing was sent from there")
    facts = _facts(sent)
    if as_json:
        sys.stdout.write(json.dumps(facts) + "\n")
    else:
        behind = facts["signed"] - facts["delivered"]
        sys.stdout.write(
            f"to: {printable(sent.to)}\ndelivered: up to record {facts['delivered']}, {behind} signed ones to come\n"
            f"checkpoint: of {facts['checkpoint']} records\n"
        )
    return 0


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 10:
        raise invalid(f"{text[:40]!r} is not a number")
    return int(text)
