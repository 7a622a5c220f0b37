"""A disk that fails: the modules of the stores see this `os` and this `sqlite3` instead of the real ones.

Each system call that changes something is a place where the process may die, before it, in the middle of it (a write
then is torn) or after it. What has been synced is remembered for each file, so that a power cut can take the rest.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import sqlite3
from pathlib import Path
from types import ModuleType
from typing import Any

WAL = "ledger.sqlite3-wal"
LEDGER = "ledger.sqlite3"


class Crash(BaseException):
    """The process is dead. Not an Exception: no code of ours may catch it."""


class Disk:
    """One state directory. `crash` and `fail`: chances of each system call, one in so many; 0 for never."""

    def __init__(self, top: Path, rng: random.Random, crash: int, fail: int) -> None:
        self.rng = rng
        self.crash = crash
        self.fail = fail
        self.calls = 0
        self.crashes = 0
        self.failures = 0
        self._top = top
        self._number = 0
        self._synced: dict[str, int] = {}  # name -> bytes that a power cut leaves
        self.path = top / "0"
        self.path.mkdir(mode=0o700)

    # What the patched modules call

    def before(self) -> None:
        """Die here, perhaps."""
        self.calls += 1
        if self.crash and self.rng.randrange(self.crash) == 0:
            raise Crash

    after = before

    def fails(self) -> bool:
        """Whether this call fails."""
        if self.fail and self.rng.randrange(self.fail) == 0:
            self.failures += 1
            return True
        return False

    def synced(self, name: str) -> None:
        """All of a file is on the disk."""
        path = self.path / name
        self._synced[name] = path.stat().st_size if path.exists() else 0

    # Deaths

    def die(self, *, power: bool) -> None:
        """The directory as the next process finds it. The old one stays for who still has it open, until `bury`."""
        self.crashes += 1
        self._number += 1
        new = self._top / str(self._number)
        shutil.copytree(self.path, new)
        new.chmod(0o700)
        if power:
            for name in (WAL, *(entry.name for entry in new.iterdir() if entry.name.startswith("audit.jsonl"))):
                self._cut(new / name, self._synced.get(name, 0))
        self._old, self.path = self.path, new

    def _cut(self, path: Path, synced: int) -> None:
        """Some of what was not synced is gone; now and then the file has its size already, and zeros for content."""
        if not path.exists() or path.suffix == ".vkey" or (size := path.stat().st_size) <= synced:
            return
        kept = self.rng.randint(synced, size)
        os.truncate(path, kept)
        if path.name == WAL and self.rng.randrange(4) == 0:
            os.truncate(path, size)

    def bury(self) -> None:
        """Whoever had the old directory open has closed it."""
        shutil.rmtree(self._old)


class FaultyOs(ModuleType):
    """`os`, for a module of the stores. Random bytes come from the seed."""

    def __init__(self, disk: Disk) -> None:
        super().__init__("os")
        self._disk = disk
        self._names: dict[int, str] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def urandom(self, size: int) -> bytes:
        return self._disk.rng.randbytes(size)

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        if flags & (os.O_CREAT | os.O_TRUNC):
            self._disk.before()
        fd = os.open(path, flags, mode)
        self._names[fd] = os.path.basename(path)
        return fd

    def write(self, fd: int, data: Any) -> int:
        disk = self._disk
        disk.before()
        if disk.fails():
            if len(data) > 1 and disk.rng.randrange(2):
                return os.write(fd, data[: disk.rng.randrange(1, len(data))])  # short, as write(2) may be
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if disk.crash and disk.rng.randrange(disk.crash) == 0:
            os.write(fd, data[: disk.rng.randrange(len(data))])
            raise Crash
        done = os.write(fd, data)
        disk.after()
        return done

    def fdatasync(self, fd: int) -> None:
        self._sync(fd, os.fdatasync)

    def fsync(self, fd: int) -> None:
        self._sync(fd, os.fsync)

    def _sync(self, fd: int, sync: Any) -> None:
        disk = self._disk
        disk.before()
        if disk.fails() and disk.rng.randrange(8) == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(fd)
        if (name := self._names.get(fd)) is not None:
            disk.synced(name)
        disk.after()

    def rename(self, old: str, new: str) -> None:
        disk = self._disk
        disk.before()
        if disk.fails():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        os.rename(old, new)
        was, now = os.path.basename(old), os.path.basename(new)
        for fd, name in self._names.items():
            if name == was:
                self._names[fd] = now
        disk._synced[now] = disk._synced.pop(was, 0)
        disk.after()

    def ftruncate(self, fd: int, size: int) -> None:
        disk = self._disk
        disk.before()
        os.ftruncate(fd, size)
        if (name := self._names.get(fd)) is not None:
            disk._synced[name] = min(disk._synced.get(name, 0), size)
        disk.after()

    def unlink(self, path: str) -> None:
        self._disk.before()
        os.unlink(path)
        self._disk.after()


class FaultyConnection:
    """A connection whose every statement may die, or fail as a full disk does."""

    def __init__(self, db: sqlite3.Connection, disk: Disk) -> None:
        self._db = db
        self._disk = disk
        self._full = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)

    def execute(self, sql: str, values: Any = ()) -> sqlite3.Cursor:
        disk, word = self._disk, sql.split(" ", 1)[0]
        if word in ("SELECT", "ROLLBACK"):
            return self._db.execute(sql, values)
        disk.before()
        if word not in ("PRAGMA", "BEGIN") and disk.fails():
            raise sqlite3.OperationalError("database or disk is full")
        found = self._db.execute(sql, values)
        if sql.startswith("PRAGMA synchronous"):
            self._full = "FULL" in sql
        elif (word == "COMMIT" and self._full) or "wal_checkpoint" in sql:
            disk.synced(WAL)
        disk.after()
        return found


class FaultySqlite(ModuleType):
    """`sqlite3`, for the module that opens the ledger."""

    def __init__(self, disk: Disk) -> None:
        super().__init__("sqlite3")
        self._disk = disk

    def __getattr__(self, name: str) -> Any:
        return getattr(sqlite3, name)

    def connect(self, *arguments: Any, **keywords: Any) -> FaultyConnection:
        return FaultyConnection(sqlite3.connect(*arguments, **keywords), self._disk)
