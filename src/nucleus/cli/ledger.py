"""`nucleus ledger`: whether the ledger is sound, and a copy of it that is.

Where an authority runs it is asked for a copy (it has the store for itself); otherwise its lock is taken, the file is
copied with its WAL, and the copy is looked at: the file itself is never opened as a database here. A ledger in
PostgreSQL is copied from there.
Promises: a backup is consistent, checked before it is written, of mode 0600, durable, and overwrites nothing.
Does not: put a backup back. `USAGE` says how that is done, and what the next start makes of it.
"""

from __future__ import annotations

import fcntl
import json
import os
import sqlite3
import sys
import tempfile
from contextlib import suppress

from nucleus.cli.options import FLAG, invalid, parse
from nucleus.errors import AuditError, InvalidError
from nucleus.pod import runtime
from nucleus.store.engine import URL_BYTES, URL_FILE, read_url

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nucleus.store.check import Report

USAGE = """\
usage: nucleus ledger check [FILE] [--json]
       nucleus ledger backup FILE
       nucleus ledger use [--file]

  check    whether the ledger, or a backup of it, is whole and its sums are right; exit code 1 if not
  backup   a consistent copy of it, while pods run too
  use      keep the ledger in PostgreSQL from now on: the URL is read from standard input, and kept in the state
           directory with mode 0600; with --file, in the file there again

postgresql://USER[:PASSWORD]@HOST[:PORT]/DATABASE[?schema=NAME&sslrootcert=FILE], or by a unix socket
postgresql:///DATABASE?host=/run/postgresql&user=USER. Over a network TLS is required and verified. One authority has a
schema for itself. What the audit log has is put into a store that is new; a backup is an SQLite file in any case.

To put a backup back: `nucleus helper stop`, then in the state directory move ledger.sqlite3* away, copy the backup to
ledger.sqlite3, and give it the owner of the file that was there. What the audit log has and the backup has not is put
back at the next start, which says so in the log (event recovery); a backup that is ahead of the log is refused.
"""
_TABLE = {"json": FLAG, "help": FLAG, "file": FLAG}
_FILE = "ledger.sqlite3"


def main(argv: list[str]) -> int:
    """Run the verb. Raises NucleusError."""
    options, words = parse(argv, _TABLE)
    given: list[str] = []
    while words:
        given.append(words[0])
        more, words = parse(words[1:], _TABLE)
        options.update({name: value for name, value in more.items() if value})
    if options["help"]:
        sys.stdout.write(USAGE)
        return 0
    if options["file"] and given != ["use"]:
        raise invalid("--file is for `nucleus ledger use`")
    match given:
        case ["use"] if not options["json"]:
            return _use(to_file=options["file"])
        case ["check"]:
            return _check(_current(), "the ledger", options["json"])
        case ["check", path]:
            return _check(_file(path), path, options["json"])
        case ["backup", path] if not options["json"]:
            return _backup(path)
    raise invalid("ledger check [FILE], ledger backup FILE, or ledger use [--file]")


def _current() -> bytes:
    """A copy of the ledger as it is now."""
    channel = runtime.connect_helper()
    if channel is None:
        return _unowned(runtime.state_dir())
    from nucleus.cli.approvals import Approver
    from nucleus.cli.launcher import Launcher

    with Launcher(channel) as launcher:
        approver = Approver(launcher.attach_approver())
        try:
            return _asked(approver)
        finally:
            approver.close()


def _asked(approver: object) -> bytes:
    import base64
    import hashlib

    call = approver.call  # type: ignore[attr-defined]
    said = call("ledger_copy")
    data = bytearray()
    while len(data) < said["size"]:
        piece = base64.b64decode(call("ledger_read", offset=len(data))["data"])
        if not piece:
            break
        data += piece
    if hashlib.sha256(data).hexdigest() != said["sha256"]:
        raise AuditError("the copy did not arrive whole", rule="ledger.copy", next_step="Try again.")
    return bytes(data)


def _unowned(directory: str) -> bytes:
    """No authority runs: with its lock held, none begins meanwhile."""
    lock = _locked(directory)
    try:
        if url := read_url(directory):
            from nucleus.store.postgres import Postgres

            engine = Postgres(url)
            try:
                return engine.snapshot()
            finally:
                engine.close()
        return _with_wal(os.path.join(directory, _FILE))
    finally:
        os.close(lock)


def _locked(directory: str) -> int:
    """The state directory's lock, as a descriptor. Raises AuditError: there is no state, or an authority has it."""
    try:
        lock = os.open(os.path.join(directory, "lock"), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise AuditError(f"{directory} has no ledger: {error.strerror}", rule="ledger.open") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise AuditError(
            f"an authority owns {directory}",
            rule="store.locked",
            next_step="Try again when its pods have ended (`nucleus helper stop`).",
        ) from None
    return lock


def _use(*, to_file: bool) -> int:
    """Where the ledger is kept from the next start on. The store is tried before anything is changed."""
    directory = runtime.state_dir()
    lock = _locked(directory)
    path = os.path.join(directory, URL_FILE)
    try:
        if to_file:
            with suppress(FileNotFoundError):
                os.unlink(path)
            shown = os.path.join(directory, _FILE)
        else:
            url = _url()
            from nucleus.store.postgres import Postgres

            engine = Postgres(url)
            engine.close()
            shown = engine.path
            _write_url(directory, path, url)
        _sync(directory)
    finally:
        os.close(lock)
    sys.stdout.write(f"the ledger is kept in {shown}; what the audit log has is put there at the next start\n")
    return 0


def _url() -> str:
    """From standard input, where nobody lists it as they do a command's words."""
    if sys.stdin is None or sys.stdin.closed:
        raise invalid("the URL is read from standard input, and there is none")
    if sys.stdin.isatty():
        import getpass

        return getpass.getpass("URL (not shown): ").strip()
    data = sys.stdin.buffer.read(URL_BYTES + 1)
    if len(data) > URL_BYTES or not data.isascii():
        raise invalid(f"a URL is at most {URL_BYTES} bytes of ASCII")
    return data.decode("ascii").strip()


def _write_url(directory: str, path: str, url: str) -> None:
    """A file of the directory's owner, whole or not at all."""
    owner = os.stat(directory)
    with tempfile.NamedTemporaryFile("w", dir=directory, prefix=".ledger.url-", delete=False, encoding="ascii") as file:
        try:
            file.write(url + "\n")
            file.flush()
            os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
            os.fchmod(file.fileno(), 0o600)
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def _sync(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _file(path: str) -> bytes:
    """A backup. Raises InvalidError: it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise InvalidError(f"{path}: {error.strerror}", rule="ledger.file") from error


def _with_wal(path: str) -> bytes:
    """The file with what its WAL holds, by SQLite, on copies of both."""
    with tempfile.TemporaryDirectory(prefix="nucleus-ledger-") as directory:
        copy = os.path.join(directory, _FILE)
        for suffix in ("", "-wal"):
            try:
                data = _file(path + suffix)
            except InvalidError:
                if suffix:
                    continue
                raise
            with open(copy + suffix, "wb") as file:
                file.write(data)
        return _flat(copy)


def _flat(path: str) -> bytes:
    from nucleus.store.schema import corrupt

    db = sqlite3.connect(path)
    memory = sqlite3.connect(":memory:")
    try:
        db.backup(memory)
        return bytes(memory.serialize())
    except sqlite3.Error as error:
        raise corrupt(path, str(error)) from error
    finally:
        memory.close()
        db.close()


def _looked_at(data: bytes, name: str) -> Report:
    from nucleus.store.check import check

    # In a file of our own: SQLite opens a serialized database of WAL mode from a file only.
    with tempfile.TemporaryDirectory(prefix="nucleus-ledger-") as directory:
        path = os.path.join(directory, _FILE)
        with open(path, "wb") as file:
            file.write(data)
        db = sqlite3.connect(path)
        try:
            return check(db, name)
        except sqlite3.Error as error:
            raise AuditError(f"{name}: {error}", rule="ledger.open") from error
        finally:
            db.close()


def _check(data: bytes, name: str, as_json: bool) -> int:
    report = _looked_at(data, name)
    if as_json:
        from dataclasses import asdict

        sys.stdout.write(json.dumps({"ok": not report.problems, **asdict(report)}) + "\n")
    else:
        lines = [f"{name}: {problem}" for problem in report.problems]
        lines = lines or [
            f"{name} is sound: schema {report.version}, {report.pods} pods ({report.running} running),"
            f" {report.open_reservations} open reservations, {report.accounts} accounts, {report.entries} entries,"
            f" up to record {report.head} of the audit log"
        ]
        sys.stdout.write("\n".join(lines) + "\n")
    return 1 if report.problems else 0


def _backup(path: str) -> int:
    data = _current()
    if problems := _looked_at(data, "the ledger").problems:
        raise AuditError(
            f"the ledger is damaged: {problems[0]}", rule="ledger.corrupt", next_step="`nucleus ledger check` says how."
        )
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise InvalidError(
            f"{path} exists; a backup overwrites nothing", rule="ledger.exists", next_step="Name another file."
        ) from None
    except OSError as error:
        raise InvalidError(f"{path}: {error.strerror}", rule="ledger.file") from error
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _sync(os.path.dirname(path) or ".")
    except OSError as error:
        os.unlink(path)
        raise AuditError(f"{path}: {error.strerror}", rule="ledger.file") from error
    sys.stdout.write(f"{path}: {len(data)} bytes\n")
    return 0
