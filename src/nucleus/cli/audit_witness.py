"""`nucleus-audit witness`: cosigns a log's checkpoints as long as the log only grows.

A process of its own, under a uid of its own: as root it opens the log's files, then becomes `--uid` for good, and only
then reads anything, its key and state first. So whoever has the authority's uid has neither. With --follow each pass
opens the files anew (the log is rotated), with --uid in a child that the watching root process only starts and awaits.

Steps of a pass:
 0. to 3. the log has grown from what it saw last, and its key is the one of the first run (`store.growth`)
 4. what it is going to sign for is kept first: atomically, durable
 5. the newest checkpoint is cosigned (C2SP cosignature/v1) and appended to `<log>.cosignatures`

Promises: it never signs for two trees of which one is not the beginning of the other, across crashes; after a refusal
its state is as before. Exit 0: cosigned or nothing new; 1: refused, with the word above; 2: unusable.
Does not: read older lines again: that they still are what was signed is for `nucleus-audit verify` to see.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from nucleus.audit.checkpoint import Checkpoint, cosignature, cosigned_message
from nucleus.audit.note import COSIGNATURE, ED25519, Note, VerifierKey, encode
from nucleus.cli import apart
from nucleus.cli.audit_tree import COSIGNATURES, read_key
from nucleus.cli.main import printable
from nucleus.cli.options import FLAG, ONE, invalid
from nucleus.cli.options import parse as parse_options
from nucleus.errors import AuditError, InvalidError
from nucleus.store.growth import Files, Growth, Refused, Seen, append_note, open_regular, pinned
from nucleus.store.note_keys import SigningKey, check_ours, create, load, write_whole

USAGE = """\
usage: nucleus-audit witness --state DIR --log LOG --key FILE [--log-key KEY] [--name NAME] [--uid UID]
                             [--follow [--interval SECONDS]] [--json]

Checks the checkpoints beside LOG against LOG and what it saw before, and cosigns the newest into LOG.cosignatures.

--state    a 0700 directory of its own: what it last signed for
--key      its private key; made at the first run, with --name in it
--log-key  the log's public key, or a file with it; default: the one beside the log at the first run, kept from then on
--uid      as root: become this uid once the log's files are open
--follow   go on, looking every --interval seconds (default 2)

exit codes: 0 cosigned, or nothing new; 1 refused (fork, rewind, shrink, signature, key); 2 unusable
"""
_TABLE = {
    "state": ONE, "log": ONE, "key": ONE, "log-key": ONE, "name": ONE, "uid": ONE, "follow": FLAG, "interval": ONE,
    "json": FLAG, "help": FLAG,
}  # fmt: skip
STATE = "witness.json"
_CHUNK = 1 << 20
_AHEAD = 64  # segments that it can be behind by
_STATE_BYTES = 1 << 17


class Cosigned(Files):
    """And the file that cosignatures go to."""

    def __init__(self, path: str) -> None:
        super().__init__(path, _AHEAD)
        try:
            self.cosignatures = open_regular(path + COSIGNATURES, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        except BaseException:
            super().close()
            raise

    def close(self) -> None:
        """Close them."""
        os.close(self.cosignatures)
        super().close()


class Witness:
    """See the module. `state`: the directory; `log_key`: "" for the one kept, or found beside the log."""

    def __init__(self, files: Cosigned, state: str, key: SigningKey, log_key: VerifierKey | None) -> None:
        self._files = files
        self._path = os.path.join(state, STATE)
        self._key = key
        self.seen = self._load()
        self._growth = Growth(files, pinned(self.seen, log_key, files.key), self.seen)
        if self.seen.note:  # a crash between steps 4 and 5
            append_note(files.cosignatures, self.seen.note.encode())

    def look(self) -> Checkpoint | None:
        """One pass; what was cosigned, None when nothing is new. Raises Refused, InvalidError, AuditError, OSError."""
        found = self._growth.look()
        if found is None:
            return None
        note, seen = found
        seconds = int(time.time())
        signature = cosignature(self._key.public(), seconds, self._key.sign(cosigned_message(note.text, seconds)))
        data = encode(Note(note.text, (*note.signatures, signature)))
        seen.note = data.decode()
        write_whole(self._path, seen.encode(), replace=True)  # 4
        self.seen = self._growth.seen = seen
        append_note(self._files.cosignatures, data)  # 5
        return Checkpoint.parse(note.text)

    def _load(self) -> Seen:
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return Seen()
        try:
            check_ours(fd, self._path, "witness.state")
            return Seen.decode(os.read(fd, _STATE_BYTES))
        finally:
            os.close(fd)


def run(argv: list[str]) -> int:
    """One command line, without its verb; the exit code. Raises InvalidError (2), OSError."""
    options, words = parse_options(argv, _TABLE)
    if options["help"]:
        sys.stdout.write(USAGE)
        return 0
    if words or not (options["state"] and options["log"] and options["key"]):
        raise invalid("nucleus-audit witness --state DIR --log LOG --key FILE")
    interval = _number(options["interval"] or "2")
    log_key = read_key(options["log-key"], ED25519) if options["log-key"] else None
    try:
        while True:
            alone = options["follow"] and options["uid"]
            code = apart.in_child(lambda: _pass(options, log_key)) if alone else _pass(options, log_key)
            if code or not options["follow"]:
                return code
            time.sleep(interval)
    except KeyboardInterrupt:
        return 0


def _pass(options: dict[str, Any], log_key: VerifierKey | None) -> int:
    files = Cosigned(options["log"])
    lock = -1
    try:
        if options["uid"]:
            uid = _number(options["uid"])
            if os.fstat(files.cosignatures).st_nlink != 1:
                raise invalid("the file of cosignatures has another name, too")
            apart.become(uid, files.cosignatures)
        lock = apart.lock(options["state"], "witness")
        key = _own_key(options["key"], options["name"], options["state"])
        witness = Witness(files, options["state"], key, log_key)
        _say(witness, witness.look(), as_json=options["json"], quiet=options["follow"])
        return 0
    except Refused as error:
        if options["json"]:
            sys.stdout.write(json.dumps({"ok": False, "code": error.code, "problem": str(error)}) + "\n")
        else:
            sys.stdout.write(f"REFUSED ({error.code}): {printable(str(error))}\n")
        return 1
    except AuditError as error:
        raise InvalidError(error.message, rule=error.rule, next_step=error.next_step) from error
    finally:
        files.close()
        if lock >= 0:
            os.close(lock)


def _say(witness: Witness, done: Checkpoint | None, *, as_json: bool, quiet: bool) -> None:
    if done is None and quiet:
        return
    size = witness.seen.tree.size
    if as_json:
        sys.stdout.write(json.dumps({"ok": True, "size": size, "new": done is not None}) + "\n")
    else:
        sys.stdout.write(f"cosigned: {size} records\n" if done is not None else f"nothing new: {size} records\n")
    sys.stdout.flush()


def _own_key(path: str, name: str, state: str) -> SigningKey:
    key = load(path, COSIGNATURE)
    if key is None:
        key = create(path, name or f"{os.uname().nodename}/nucleus-witness", COSIGNATURE)
        sys.stderr.write(f"public key: {key.public()}\n")
    elif name and name != key.name:
        raise invalid(f"the key's name is {key.name}")
    public = os.path.join(state, "witness.vkey")
    if not os.path.exists(public):
        write_whole(public, f"{key.public()}\n".encode(), replace=True)
    return key


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 10:
        raise invalid(f"{text[:40]!r} is not a number")
    return int(text)
