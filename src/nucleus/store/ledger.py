"""The ledger: pods, their budgets and reservations, and approvals, in one SQLite file with one writer.

Promises: every change happens inside the transaction of a batch (`begin` ... `commit`); a batch begun `durable` is on
the disk when `commit` returns (synchronous=FULL), any other survives kill -9 (NORMAL); a batch that cannot be committed
leaves database and memory as they were. A reservation's id is used once in its pod's life; a nonce burns in the
transaction of its reservation, once.
Relies on: being the only one to open the file (`lock_state`; exclusive locking mode); `budget.reservation` for rules.
Does not: make randomness, or write the audit log, from which `authority.recovery` repairs what a power cut took.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import stat
import time
from dataclasses import dataclass
from typing import Any

from nucleus.approval.token import nonce_digest
from nucleus.audit.chain import Head
from nucleus.budget.reservation import Account, Hold, Phase
from nucleus.errors import AuditError, BudgetError, DeniedError, InvalidError, SandboxError

FILE = "ledger.sqlite3"
SCHEMA_VERSION = 1
LOCK_SECONDS = 2.0  # how long to wait for an authority that is just ending
_OPEN, _SETTLED, _RELEASED = 0, 1, 2  # reservations.state
_INTENT, _OUTCOME = 1, 2  # reservations.logged
_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE pods (
  pod TEXT PRIMARY KEY, namespace TEXT NOT NULL, state TEXT NOT NULL, budget INTEGER, window_ns INTEGER,
  started_ns INTEGER NOT NULL, spent INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE reservations (
  id BLOB PRIMARY KEY, pod TEXT NOT NULL, amount INTEGER NOT NULL, state INTEGER NOT NULL, charged INTEGER NOT NULL,
  logged INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE approvals (
  request TEXT PRIMARY KEY, pod TEXT NOT NULL, principal TEXT NOT NULL, operation_hash TEXT NOT NULL,
  nonce BLOB NOT NULL UNIQUE, asked_ns INTEGER NOT NULL, expires_ns INTEGER NOT NULL, state TEXT NOT NULL,
  approver TEXT NOT NULL DEFAULT '', reason TEXT NOT NULL DEFAULT '', decided_ns INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
"""


@dataclass(slots=True)
class PodAccount:
    """One open pod as the ledger has it. `account` is None until its budget is opened."""

    pod: str
    namespace: str
    started_ns: int
    account: Account | None = None
    window_ns: int = 0


def lock_state(directory: str) -> int:
    """Take the state directory for this process; the descriptor holds it.

    Raises:
        SandboxError: rule ``store.state``: it is not a 0700 directory of ours.
        AuditError: rule ``store.locked``: another authority has it.
    """
    found = os.lstat(directory)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise SandboxError(f"{directory} is not a 0700 directory of uid {os.geteuid()}", rule="store.state")
    path = os.path.join(directory, "lock")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(fd)
                raise AuditError(
                    f"another authority owns {directory}",
                    rule="store.locked",
                    next_step="Stop the resident helper, or name another state directory with NUCLEUS_STATE.",
                ) from None
            time.sleep(0.02)


class Ledger:
    """See the module.

    Raises:
        AuditError: rule ``ledger.open``: it is no ledger of this version, or cannot be opened.
    """

    def __init__(self, directory: str) -> None:
        self.path = os.path.join(directory, FILE)
        self.pods: dict[str, PodAccount] = {}
        self._marks: list[tuple[int, bytes]] = []
        self._durable: bool | None = None
        self._inside = False
        try:
            self._db = sqlite3.connect(self.path, isolation_level=None, cached_statements=64)
            self._prepare()
        except sqlite3.Error as error:
            if hasattr(self, "_db"):
                self._db.close()
            raise AuditError(f"{self.path}: {error}", rule="ledger.open") from error

    def _execute(self, sql: str, values: tuple[Any, ...] = ()) -> sqlite3.Cursor:
        try:
            return self._db.execute(sql, values)
        except sqlite3.IntegrityError:
            raise  # a name that exists: its caller's to tell
        except sqlite3.Error as error:
            raise AuditError(f"the ledger cannot be written: {error}", rule="ledger.io") from error

    def _prepare(self) -> None:
        for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "wal_autocheckpoint=0", "secure_delete=OFF"):
            self._db.execute(f"PRAGMA {pragma}")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._db.executescript(f"BEGIN EXCLUSIVE;{_SCHEMA}PRAGMA user_version={SCHEMA_VERSION};COMMIT;")
        elif version != SCHEMA_VERSION:
            raise sqlite3.DatabaseError(f"schema version {version}, this program knows {SCHEMA_VERSION}")
        os.chmod(self.path, 0o600)

    # The batch

    def begin(self, *, durable: bool = False) -> None:
        """Open the batch's transaction, when it is not open already. `durable`: the commit is on the disk.

        SQLite cannot change `synchronous` inside a transaction, so the batch has to know beforehand.
        """
        if self._inside:
            return
        if self._durable is not durable:
            self._execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            self._durable = durable
        self._execute("BEGIN IMMEDIATE")
        self._inside = True

    def commit(self) -> None:
        """Commit the batch. Raises AuditError (rule ``ledger.io``); database and memory are then as before it."""
        if not self._inside:
            return
        try:
            self._execute("COMMIT")
        except AuditError:
            self.rollback()
            raise
        self._inside = False

    def rollback(self) -> None:
        """Undo the batch, in memory too."""
        if not self._inside:
            return
        self._inside = False
        if self._db.in_transaction:
            self._execute("ROLLBACK")
        self.load()
        # What the log has on record is known in memory alone until the next checkpoint. What was staged is HELD or
        # SETTLED again, as it should be: the log's batch is forgotten with this one.
        for level, ident in self._marks:
            for pod in self.pods.values():
                holds = pod.account.holds if pod.account is not None else {}
                if level == _OUTCOME:
                    holds.pop(ident.hex(), None)
                elif (hold := holds.get(ident.hex())) is not None and hold.phase is Phase.HELD:
                    hold.phase = Phase.INTENT

    def load(self) -> None:
        """Read the open pods and their unresolved reservations from the file."""
        self.pods = {}
        for pod, namespace, budget, window_ns, started_ns in self._execute(
            "SELECT pod, namespace, budget, window_ns, started_ns FROM pods WHERE state='open'"
        ).fetchall():
            account = None if budget is None else self._load_account(pod, budget)
            self.pods[pod] = PodAccount(pod, namespace, started_ns, account, window_ns or 0)

    def _load_account(self, pod: str, limit: int) -> Account:
        account = Account(limit)
        rows = self._execute("SELECT id, amount, state, charged, logged FROM reservations WHERE pod=?", (pod,))
        for ident, amount, state, charged, logged in rows:
            if state == _SETTLED:
                account.spent += charged
            if state == _OPEN:
                account.reserved += amount
                account.holds[ident.hex()] = Hold(amount, Phase.INTENT if logged else Phase.HELD)
            elif state == _SETTLED and logged < _OUTCOME:
                account.holds[ident.hex()] = Hold(amount, Phase.SETTLED, charged)
        return account

    # Pods and budgets (inside a batch)

    def register(self, pod: str, namespace: str, now_ns: int) -> None:
        """A new pod. Raises InvalidError: the name was used before."""
        try:
            self._execute(
                "INSERT INTO pods (pod, namespace, state, started_ns) VALUES (?, ?, 'open', ?)",
                (pod, namespace, now_ns),
            )
        except sqlite3.IntegrityError:
            raise InvalidError("a pod of this name exists or existed", rule="pod.name") from None
        self.pods[pod] = PodAccount(pod, namespace, now_ns)

    def open_budget(self, pod: PodAccount, limit: int, window_ns: int) -> Account:
        """Open a pod's budget, once; again with the same numbers is no change. Raises InvalidError for others."""
        if pod.account is not None:
            if (pod.account.limit, pod.window_ns) != (limit, window_ns):
                raise InvalidError("the budget is open already, with other numbers", rule="budget.open")
            return pod.account
        self._execute("UPDATE pods SET budget=?, window_ns=? WHERE pod=?", (limit, window_ns, pod.pod))
        pod.account, pod.window_ns = Account(limit), window_ns
        return pod.account

    def reserve(self, pod: PodAccount, reservation: str, amount: int, nonce: bytes | None = None) -> None:
        """Hold `amount`, and burn `nonce` in the same transaction.

        Raises:
            BudgetError: no room, or no budget is open.
            InvalidError: the id was used before.
            DeniedError: rule ``approval.nonce``: not an approved one, or burnt before.
        """
        account = account_of(pod)
        account.check_reserve(reservation, amount)
        if nonce is not None and not self._approved(pod.pod, nonce):
            raise DeniedError("this approval was used before or is not known", rule="approval.nonce")
        try:
            self._execute(
                "INSERT INTO reservations VALUES (?, ?, ?, 0, 0, 0)", (bytes.fromhex(reservation), pod.pod, amount)
            )
        except sqlite3.IntegrityError:
            raise InvalidError("this reservation existed before", rule="budget.reservation") from None
        if nonce is not None:
            self._execute("UPDATE approvals SET state='burnt' WHERE nonce=?", (nonce_digest(nonce),))
        account.reserve(reservation, amount)

    def settle(self, pod: PodAccount, reservation: str, actual: int) -> int:
        """Resolve a reservation for `actual`; what the pod has spent now. Raises InvalidError as `Account.settle`."""
        account = account_of(pod)
        account.check_settle(reservation, actual)
        self._resolve(reservation, _SETTLED, actual)
        account.settle(reservation, actual)
        return account.spent

    def release(self, pod: PodAccount, reservation: str) -> None:
        """Give a reservation back whole. Raises InvalidError as `Account.release`."""
        account = account_of(pod)
        account.check_release(reservation)
        self._resolve(reservation, _RELEASED, 0)
        account.release(reservation)

    def force(self, pod: PodAccount, reservation: str, hold: Hold, charged: int | None) -> None:
        """End a hold by the crash rules (`budget.reservation.reconcile`), once its record is durable."""
        account = account_of(pod)
        if hold.phase < Phase.SETTLED:
            self._resolve(reservation, _RELEASED if charged is None else _SETTLED, charged or 0)
            account.reserved -= hold.amount
            account.spent += charged or 0
        del account.holds[reservation]

    def restore(self, pod: PodAccount, reservation: str, amount: int, charged: int) -> None:
        """Put back a reservation that a power cut took and the audit log has."""
        account = account_of(pod)
        row = (bytes.fromhex(reservation), pod.pod, amount, _SETTLED, charged, _OUTCOME)
        if self._execute("INSERT OR IGNORE INTO reservations VALUES (?, ?, ?, ?, ?, ?)", row).rowcount:
            account.spent += charged

    def close_pod(self, pod: PodAccount) -> None:
        """End a pod: its last sum is kept, its reservations and approvals are not."""
        spent = pod.account.spent if pod.account is not None else 0
        self._execute("UPDATE pods SET state='closed', spent=? WHERE pod=?", (spent, pod.pod))
        self._execute("DELETE FROM reservations WHERE pod=?", (pod.pod,))
        self._execute("DELETE FROM approvals WHERE pod=?", (pod.pod,))
        del self.pods[pod.pod]

    def _resolve(self, reservation: str, state: int, charged: int) -> None:
        changed = self._execute(
            "UPDATE reservations SET state=?, charged=? WHERE id=? AND state=0",
            (state, charged, bytes.fromhex(reservation)),
        ).rowcount
        if changed != 1:  # memory and file disagree: nothing may go on from here
            raise AuditError("the ledger lost a reservation", rule="ledger.state")

    # Approvals (inside a batch)

    def ask(self, request: str, nonce: bytes, row: dict[str, Any]) -> None:
        """A request that waits. `row`: pod, principal, operation_hash, asked_ns, expires_ns."""
        self._execute(
            "INSERT INTO approvals (request, pod, principal, operation_hash, nonce, asked_ns, expires_ns, state)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, 'pending')",
            (
                request,
                row["pod"],
                row["principal"],
                row["operation_hash"],
                nonce_digest(nonce),
                row["asked_ns"],
                row["expires_ns"],
            ),
        )

    def resolve_ask(self, request: str, state: str, approver: str = "", reason: str = "", now_ns: int = 0) -> bool:
        """Decide a waiting request: ``approved``, ``denied``, ``expired`` or ``withdrawn``. False: it does not wait."""
        changed = self._execute(
            "UPDATE approvals SET state=?, approver=?, reason=?, decided_ns=? WHERE request=? AND state='pending'",
            (state, approver, reason, now_ns, request),
        )
        return bool(changed.rowcount == 1)

    def _approved(self, pod: str, nonce: bytes) -> bool:
        found = self._execute("SELECT pod, state FROM approvals WHERE nonce=?", (nonce_digest(nonce),)).fetchone()
        return bool(found == (pod, "approved"))

    # The audit log's place

    def unstage(self, pod: str, reservation: str) -> None:
        """The batch of the log that had this reservation's record failed: one step back."""
        found = self.pods.get(pod)
        hold = found.account.holds.get(reservation) if found is not None and found.account is not None else None
        if hold is not None and hold.phase in (Phase.STAGED_INTENT, Phase.STAGED_OUTCOME):
            hold.phase = Phase(hold.phase - 1)

    def on_record(self, reservation: str, *, outcome: bool) -> None:
        """Note, for the next checkpoint, that the log has a reservation's intent or outcome."""
        self._marks.append((_OUTCOME if outcome else _INTENT, bytes.fromhex(reservation)))

    def checkpoint(self, head: Head, tree: str = "") -> None:
        """Keep the log's head, and what it says of reservations up to there; then fold the WAL into the file.

        `tree`: the log's tree at that head and what was signed of it, as text for `tree` (`authority.signing`).

        Everything that the batches before wrote is in the WAL before this, so a checkpoint that survived proves them.
        """
        self.begin(durable=True)
        try:
            self._execute("INSERT OR REPLACE INTO meta VALUES ('head', ?)", (f"{head.seq} {head.hash} {head.offset}",))
            self._execute("INSERT OR REPLACE INTO meta VALUES ('tree', ?)", (tree,))
            for mark in self._marks:
                self._execute("UPDATE reservations SET logged=? WHERE id=?", mark)
        except AuditError:
            self.rollback()
            raise
        self.commit()
        self._marks.clear()
        self._execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def head(self) -> Head | None:
        """The log's head at the last checkpoint."""
        row = self._execute("SELECT value FROM meta WHERE key='head'").fetchone()
        if row is None:
            return None
        seq, digest, offset = row[0].split(" ")
        return Head(int(seq), digest, int(offset))

    def tree(self) -> str:
        """The log's tree at the last checkpoint, as it was given there; "" when there is none."""
        row = self._execute("SELECT value FROM meta WHERE key='tree'").fetchone()
        return str(row[0]) if row is not None else ""

    def void_approvals(self) -> None:
        """A new authority has a new key: no request waits any more and no approval is good."""
        self._execute("DELETE FROM approvals")

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def account_of(pod: PodAccount) -> Account:
    """The pod's account. Raises BudgetError when its budget was never opened: nothing can be spent."""
    if pod.account is None:
        raise BudgetError("no budget is open for this pod", rule="budget.open")
    return pod.account
