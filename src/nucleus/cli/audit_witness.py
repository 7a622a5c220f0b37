"""`nucleus-audit witness`: cosigns a log's checkpoints as long as the log only grows.

A process of its own, under a uid of its own: as root it opens the log's files, then becomes `--uid` for good, and only
then reads anything, its key and state first. So whoever has the authority's uid has neither. With --follow each pass
opens the files anew (the log is rotated), with --uid in a child that the watching root process only starts and awaits.

Steps of a pass:
 0. the last record that it cosigned is still where it was, byte for byte, or it is a `fork`
 1. new checkpoints are read; each is of the log, signed by the key that was pinned at the first run (or --log-key)
 2. sizes do not go back (`rewind`), and none contradicts what this witness signed for (`fork`)
 3. the log's new lines are hashed onto the tree that it kept: at each checkpoint's size the roots are equal, or it is a
    `fork`; a log that ends before is a `shrink`
 4. what it is going to sign for is kept first: atomically, durable
 5. the newest checkpoint is cosigned (C2SP cosignature/v1) and appended to `<log>.cosignatures`

Promises: it never signs for two trees of which one is not the beginning of the other, across crashes; after a refusal
its state is as before. Exit 0: cosigned or nothing new; 1: refused, with the word above; 2: unusable.
Does not: read older lines again: that they still are what was signed is for `nucleus-audit verify` to see.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from nucleus.audit.checkpoint import Checkpoint, Reader, cosignature, cosigned_message
from nucleus.audit.merkle import Roots, Tree, leaf_hash
from nucleus.audit.note import COSIGNATURE, ED25519, Note, VerifierKey, encode, parse
from nucleus.audit.proof import signed_checkpoint
from nucleus.audit.record import LINE_BYTES
from nucleus.cli.audit_tree import CHECKPOINTS, COSIGNATURES, PUBLIC_KEY, read_key
from nucleus.cli.main import printable
from nucleus.cli.options import FLAG, ONE, invalid
from nucleus.cli.options import parse as parse_options
from nucleus.errors import AuditError, InvalidError
from nucleus.store.note_keys import SigningKey, check_ours, create, load, write_whole
from nucleus.store.segments import LogFiles

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


class Refused(Exception):
    """This growth is not signed for. `code`: one of the words in the module's docstring."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(slots=True)
class Seen:
    """What the witness signed for last.

    `offset`: bytes of the log up to there; `leaf`: of the last record, in hex; `read`: bytes of the file of checkpoints
    that it has looked at; `note`: the checkpoint as it was cosigned.
    """

    log_key: str = ""
    tree: Tree = field(default_factory=Tree)
    offset: int = 0
    leaf: str = ""
    read: int = 0
    note: str = ""

    def encode(self) -> bytes:
        """The state file."""
        body = {
            "v": 1, "log_key": self.log_key, "tree": self.tree.pack(), "offset": self.offset, "leaf": self.leaf,
            "read": self.read, "note": self.note,
        }  # fmt: skip
        return json.dumps(body, indent=1).encode() + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> Seen:
        """Raises InvalidError."""
        try:
            body: dict[str, Any] = json.loads(data)
            leaf, note = str(body["leaf"]), str(body["note"])
            seen = cls(str(body["log_key"]), Tree.unpack(body["tree"]), body["offset"], leaf, body["read"], note)
            if body["v"] != 1 or any(type(at) is not int or at < 0 for at in (seen.offset, seen.read)):
                raise ValueError
            if seen.note:
                checkpoint = Checkpoint.parse(parse(seen.note.encode()).text)
                if (checkpoint.size, checkpoint.root) != (seen.tree.size, seen.tree.root()):
                    raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, InvalidError):
            raise InvalidError("the witness's state is not what it writes", rule="witness.state") from None
        return seen


class Files:
    """The log's files, opened with the privileges that there are then."""

    def __init__(self, log: str) -> None:
        self.fds: list[int] = []
        self.log = LogFiles(log, _AHEAD)
        try:
            self.checkpoints = self._open(log + CHECKPOINTS, os.O_RDONLY)
            self.cosignatures = self._open(log + COSIGNATURES, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            try:
                self.key: VerifierKey | None = read_key(log + PUBLIC_KEY, ED25519)
            except (OSError, InvalidError):
                self.key = None
        except BaseException:
            self.close()
            raise

    def _open(self, path: str, flags: int) -> int:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
        self.fds.append(fd)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise invalid(f"{path} is not a regular file")
        return fd

    def close(self) -> None:
        """Close them."""
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()
        self.log.close()


class Witness:
    """See the module. `state`: the directory; `log_key`: "" for the one kept, or found beside the log."""

    def __init__(self, files: Files, state: str, key: SigningKey, log_key: VerifierKey | None) -> None:
        self._files = files
        self._path = os.path.join(state, STATE)
        self._key = key
        self.seen = self._load()
        chosen = log_key or (VerifierKey.parse(self.seen.log_key) if self.seen.log_key else files.key)
        if chosen is None:
            raise invalid("there is no public key beside the log: name it with --log-key")
        if self.seen.log_key not in ("", str(chosen)):
            raise Refused("key", "the log's key is not the one of the first run")
        self.seen.log_key = str(chosen)
        self._log_key = chosen
        self._read = self.seen.read
        self._finish_last()

    def look(self) -> Checkpoint | None:
        """One pass; what was cosigned, None when nothing is new. Raises Refused, InvalidError, AuditError, OSError."""
        self._check_last()  # 0
        new = self._new_checkpoints()
        if not new:
            return None
        seen = self._grown([checkpoint for _, checkpoint in new])
        note, checkpoint = new[-1]
        seconds = int(time.time())
        signature = cosignature(self._key.public(), seconds, self._key.sign(cosigned_message(note.text, seconds)))
        data = encode(Note(note.text, (*note.signatures, signature)))
        seen.note = data.decode()
        write_whole(self._path, seen.encode(), replace=True)  # 4
        self.seen = seen
        self._append(data)  # 5
        return checkpoint

    def _check_last(self) -> None:
        """Step 0."""
        size, offset = self.seen.tree.size, self.seen.offset
        if self._files.log.size < offset:
            raise Refused("shrink", f"the log is shorter than at the {size} records that were cosigned")
        if size and leaf_hash(self._files.log.line_before(offset, LINE_BYTES)).hex() != self.seen.leaf:
            raise Refused("fork", f"record {size} is not the one that was cosigned")

    def _new_checkpoints(self) -> list[tuple[Note, Checkpoint]]:
        """Steps 1 and 2: those beyond what was cosigned, each size once."""
        new: list[tuple[Note, Checkpoint]] = []
        fd, size = self._files.checkpoints, self.seen.tree.size
        highest, at = size, self.seen.read
        if os.fstat(fd).st_size < at:
            raise Refused("rewind", f"the checkpoints end before that of the {size} records that were cosigned")
        reader = Reader(at)
        try:
            while chunk := os.pread(fd, _CHUNK, at):
                at += len(chunk)
                for _, note, checkpoint in reader.feed(chunk):
                    if checkpoint.size < highest:
                        raise Refused("rewind", f"checkpoints go back from {highest} to {checkpoint.size}")
                    highest = checkpoint.size
                    signed_checkpoint(note, self._log_key)
                    same = new[-1][1] if new else Checkpoint("", size, self.seen.tree.root())
                    if checkpoint.size > same.size:
                        new.append((note, checkpoint))
                    elif checkpoint.root != same.root:
                        raise Refused("fork", f"two trees of {checkpoint.size} records are signed")
        except InvalidError as error:
            raise Refused("signature", error.message) from None
        self._read = reader.offset
        return new

    def _grown(self, checkpoints: list[Checkpoint]) -> Seen:
        """Step 3: the state after these."""
        roots = Roots([checkpoint.size for checkpoint in checkpoints], self.seen.tree.copy())
        last, start = checkpoints[-1].size, self.seen.offset
        at, rest, final = start, b"", b""
        while roots.tree.size < last and (chunk := self._files.log.pread(_CHUNK, at)):
            at += len(chunk)
            lines = (rest + chunk).split(b"\n")
            rest = lines.pop()
            if len(rest) > LINE_BYTES:
                raise Refused("fork", "the log has a line that is none of ours")
            lines = lines[: last - roots.tree.size]
            final = lines[-1] if lines else final
            roots.feed(b"".join(line + b"\n" for line in lines))
        before = self.seen.tree.size
        for checkpoint in checkpoints:
            root = roots.at.get(checkpoint.size)
            if root is None:
                raise Refused("shrink", f"the log ends at record {roots.tree.size}, {checkpoint.size} are signed")
            if root != checkpoint.root:
                raise Refused("fork", f"the signed tree of {checkpoint.size} records does not grow from {before}")
            before = checkpoint.size
        leaf = leaf_hash(final).hex()
        return Seen(self.seen.log_key, roots.tree, start + roots.offset, leaf, self._read)

    def _finish_last(self) -> None:
        """A crash between steps 4 and 5: the cosignature is appended now."""
        fd, note = self._files.cosignatures, self.seen.note.encode() + b"\n"
        size = os.fstat(fd).st_size
        if self.seen.note and os.pread(fd, len(note), max(0, size - len(note))) == note:
            return
        reader, at, last = Reader(), 0, b""
        while chunk := os.pread(fd, _CHUNK, at):
            at += len(chunk)
            for data, _, _ in reader.feed(chunk):
                last = data
        if reader.torn:
            os.ftruncate(fd, reader.offset)
        if self.seen.note and last != self.seen.note.encode():
            self._append(self.seen.note.encode())

    def _append(self, data: bytes) -> None:
        fd = self._files.cosignatures
        rest = memoryview(data + b"\n")
        while rest:
            rest = rest[os.write(fd, rest) :]
        os.fsync(fd)

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
            apart = options["follow"] and options["uid"]
            code = _in_child(options, log_key) if apart else _pass(options, log_key)
            if code or not options["follow"]:
                return code
            time.sleep(interval)
    except KeyboardInterrupt:
        return 0


def _in_child(options: dict[str, Any], log_key: VerifierKey | None) -> int:
    """A pass in a process that becomes the witness's uid for good; its exit code."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 2
        try:
            code = _pass(options, log_key)
        except KeyboardInterrupt:
            code = 0
        except (InvalidError, AuditError, OSError) as error:
            text = f"unusable: {error}" if isinstance(error, OSError) else error.diagnostics()
            sys.stderr.write(printable(text) + "\n")
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except KeyboardInterrupt:
        os.waitpid(pid, 0)
        raise


def _pass(options: dict[str, Any], log_key: VerifierKey | None) -> int:
    files = Files(options["log"])
    lock = -1
    try:
        if options["uid"]:
            _become(_number(options["uid"]), files.cosignatures)
        lock = _lock(options["state"])
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


def _lock(state: str) -> int:
    found = os.lstat(state)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise invalid(f"{state} is not a 0700 directory of uid {os.geteuid()}")
    fd = os.open(os.path.join(state, "lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise invalid(f"another witness owns {state}") from None
    return fd


def _become(uid: int, cosignatures: int) -> None:
    """For good: no groups, no capabilities, no new privileges."""
    from nucleus.kernel import syscalls  # weight

    if os.geteuid() != 0 or not 0 < uid < 1 << 31:
        raise invalid("--uid is for root, and names another uid")
    if os.fstat(cosignatures).st_nlink != 1:
        raise invalid("the file of cosignatures has another name, too")
    os.fchown(cosignatures, uid, uid)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    syscalls.drop_all_capabilities()
    syscalls.set_no_new_privs()
    syscalls.set_dumpable(False)


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 10:
        raise invalid(f"{text[:40]!r} is not a number")
    return int(text)
