"""The ledger: pods, budgets, reservations and approvals, in one store (`store.engine`) with one writer.

Promises: every change happens inside the transaction of a batch (`begin` ... `commit`); a batch begun `durable` is on
the disk when `commit` returns, any other survives kill -9; a batch that cannot be committed leaves the store as it was
and memory as the store has it: while the store cannot be reached, nothing is taken. A reservation's id is used once in
its pod's life; a nonce burns in the transaction of its reservation, once. A reservation holds in its pod and in every
account above, or nowhere.
Relies on: being the only one that writes (`store.lock`; the engine); `budget.reservation` for rules; `store.budgets`
for the accounts.
Does not: make randomness, or write the audit log, from which `authority.recovery` repairs what a power cut took.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from nucleus.approval.token import nonce_digest
from nucleus.audit.chain import Head
from nucleus.budget.reservation import Account, Hold, Phase, Pool
from nucleus.errors import AuditError, BudgetError, DeniedError, InvalidError
from nucleus.store.budgets import CHARGE, Accounts, Entry
from nucleus.store.engine import SET_META, Engine, Rows, open_engine

_OPEN, _SETTLED, _RELEASED = 0, 1, 2  # reservations.state
_INTENT, _OUTCOME = 1, 2  # reservations.logged


@dataclass(slots=True)
class PodAccount:
    """One open pod as the ledger has it. `account` is None until its budget is opened."""

    pod: str
    namespace: str
    started_ns: int
    account: Account | None = None
    window_ns: int = 0
    draws_on: str = ""  # the account that a person named for it
    granted: int = 0  # of its limit, by people, while it runs


class Ledger:
    """See the module.

    Args:
        directory: the state directory; what is in it says where the ledger is kept.
        engine: or this one.

    Raises:
        AuditError: as `store.engine.open_engine`.
    """

    def __init__(self, directory: str, engine: Engine | None = None) -> None:
        self.engine = engine or open_engine(directory)
        self.path = self.engine.path
        self.pods: dict[str, PodAccount] = {}
        self.recorded: dict[str, int] = {}  # reservation -> charged: its end is on record, and not yet carried out here
        self.stopped: set[str] = set()  # pods, likewise
        self.promised: dict[str, Entry] = {}  # entries that are on record, and not yet carried out here
        self.logged: set[str] = set()  # entries of accounts that are on record, for the next checkpoint to note
        self._marks: list[tuple[int, bytes]] = []
        self._inside = False
        self._stale = False  # the store could not be asked what it has
        self.accounts = Accounts(self._execute)

    def _execute(self, sql: str, values: tuple[Any, ...] = ()) -> Rows:
        return self.engine.execute(sql, values)

    # The batch

    def begin(self, *, durable: bool = False) -> None:
        """Open the batch's transaction, when it is not open already. `durable`: the commit is on the disk."""
        if self._inside:
            return
        if self._stale:
            raise AuditError("the ledger cannot be reached", rule="ledger.io", next_step="See the database it is in.")
        try:
            self.engine.begin(durable=durable)
        except AuditError:
            self._stale = True
            raise
        self._inside = True

    def refresh(self) -> None:
        """Between two batches: where the store could not be reached, try again, and read what it has.

        Raises:
            AuditError: it is somebody else's now.
        """
        if self._stale and self.engine.refresh():
            with suppress(AuditError):  # gone again
                self._reload()

    def commit(self) -> None:
        """Commit the batch. Raises AuditError (rule ``ledger.io``); database and memory are then as before it."""
        if not self._inside:
            return
        try:
            self.engine.commit()
        except AuditError:
            self.rollback()
            raise
        self._inside = False

    def rollback(self) -> None:
        """Undo the batch, in memory too."""
        if not self._inside:
            return
        self._inside = False
        self._stale = True
        try:
            self.engine.rollback()
            self._reload()
        except AuditError:
            return  # `begin` refuses until `refresh` has read it

    def _reload(self) -> None:
        self.load()
        self._stale = False
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
        """Read the accounts, the open pods and their unresolved reservations from the store."""
        self.accounts.load()
        self.pods = {}
        for pod, namespace, budget, window_ns, started_ns, spent, name, granted in self._execute(
            "SELECT pod, namespace, budget, window_ns, started_ns, spent, account, granted FROM pods WHERE state='open'"
        ).fetchall():
            account = None if budget is None else self._load_account(pod, budget, spent, self.accounts.chain(name))
            self.pods[pod] = PodAccount(pod, namespace, started_ns, account, window_ns or 0, name, granted)

    def _load_account(self, pod: str, limit: int, spent: int, above: tuple[Pool, ...]) -> Account:
        account = Account(limit, spent)  # of an open pod: by reports from outside alone
        rows = self._execute("SELECT id, amount, state, charged, logged FROM reservations WHERE pod=?", (pod,))
        for ident, amount, state, charged, logged in rows:
            if state == _SETTLED:
                account.spent += charged
            if state == _OPEN:
                account.reserved += amount
                account.holds[ident.hex()] = Hold(amount, Phase.INTENT if logged else Phase.HELD)
            elif state == _SETTLED and logged < _OUTCOME:
                account.holds[ident.hex()] = Hold(amount, Phase.SETTLED, charged)
        account.above = above
        for pool in above:
            pool.reserved += account.reserved
        return account

    # Pods and budgets (inside a batch)

    def register(self, pod: str, namespace: str, now_ns: int, draws_on: str = "") -> None:
        """A new pod, charged to the account `draws_on` and all above it. Raises InvalidError: the name was used."""
        changed = self._execute(
            "INSERT INTO pods (pod, namespace, state, started_ns, account) VALUES (?, ?, 'open', ?, ?)"
            " ON CONFLICT DO NOTHING",
            (pod, namespace, now_ns, draws_on),
        ).rowcount
        if changed != 1:
            raise InvalidError("a pod of this name exists or existed", rule="pod.name")
        self.pods[pod] = PodAccount(pod, namespace, now_ns, draws_on=draws_on)

    def open_budget(self, pod: PodAccount, limit: int, window_ns: int) -> Account:
        """Open a pod's budget, once; again with the same numbers is no change. Raises InvalidError for others."""
        if pod.account is not None:
            if (pod.account.limit - pod.granted, pod.window_ns) != (limit, window_ns):
                raise InvalidError("the budget is open already, with other numbers", rule="budget.open")
            return pod.account
        self._execute("UPDATE pods SET budget=?, window_ns=? WHERE pod=?", (limit, window_ns, pod.pod))
        pod.account, pod.window_ns = Account(limit, above=self.accounts.chain(pod.draws_on)), window_ns
        return pod.account

    def reserve(
        self,
        pod: PodAccount,
        reservation: str,
        amount: int,
        nonce: bytes | None = None,
        *,
        least: int | None = None,
        now_ns: int = 0,
    ) -> int:
        """Hold `amount`, and burn `nonce` in the same transaction; what is held.

        Args:
            least: hold what there is of `amount`, when it is so much at least.
            now_ns: for the windows of the accounts above.

        Raises:
            BudgetError: no room, or no budget is open.
            InvalidError: the id was used before.
            DeniedError: rule ``approval.nonce``: not an approved one, or burnt before.
        """
        account = account_of(pod)
        self.accounts.roll(account.above, now_ns)
        amount = account.check_reserve(reservation, amount, least)
        if nonce is not None and not self._approved(pod.pod, nonce):
            raise DeniedError("this approval was used before or is not known", rule="approval.nonce")
        changed = self._execute(
            "INSERT INTO reservations VALUES (?, ?, ?, 0, 0, 0) ON CONFLICT DO NOTHING",
            (bytes.fromhex(reservation), pod.pod, amount),
        ).rowcount
        if changed != 1:
            raise InvalidError("this reservation existed before", rule="budget.reservation")
        if nonce is not None:
            self._execute("UPDATE approvals SET state='burnt' WHERE nonce=?", (nonce_digest(nonce),))
        account.reserve(reservation, amount)
        return amount

    def extend(self, pod: PodAccount, reservation: str, amount: int, least: int, now_ns: int = 0) -> int:
        """Hold up to `amount` more, at least `least`, for what runs already; how much. Raises as `check_extend`."""
        account = account_of(pod)
        self.accounts.roll(account.above, now_ns)
        amount = account.check_extend(reservation, amount, least)
        changed = self._execute(
            "UPDATE reservations SET amount=amount+? WHERE id=? AND state=0", (amount, bytes.fromhex(reservation))
        ).rowcount
        if changed != 1:
            raise AuditError("the ledger lost a reservation", rule="ledger.state")
        account.extend(reservation, amount)
        return amount

    def settle(self, pod: PodAccount, reservation: str, actual: int) -> int:
        """Resolve a reservation for `actual`; what the pod has spent now. Raises InvalidError as `Account.settle`."""
        account = account_of(pod)
        account.check_settle(reservation, actual)
        self._resolve(reservation, _SETTLED, actual)
        self.accounts.spend(account.above, actual)
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
            self.accounts.spend(account.above, charged or 0)
            account.move(-hold.amount, charged or 0)
        del account.holds[reservation]

    def restore(self, pod: PodAccount, reservation: str, amount: int, charged: int, when_ns: int = 0) -> None:
        """Put back a reservation that a power cut took and the audit log has, of the time `when_ns`."""
        account = account_of(pod)
        row = (bytes.fromhex(reservation), pod.pod, amount, _SETTLED, charged, _OUTCOME)
        if self._execute("INSERT INTO reservations VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", row).rowcount:
            account.spent += charged
            self.accounts.recover(pod.draws_on, charged, when_ns)

    def adopt(self, pod: str, namespace: str, draws_on: str, charges: list[tuple[int, int]], reported: int = 0) -> bool:
        """A pod that the audit log has and this ledger never heard of, ended; False when it has heard of it.

        Args:
            charges: what each of its operations was charged, and when.
            reported: what was charged from outside, which its accounts have already (`recover_entry`).
        """
        row = (pod, namespace, draws_on, sum(charged for charged, _ in charges) + reported)
        sql = (
            "INSERT INTO pods (pod, namespace, state, started_ns, account, spent) VALUES (?, ?, 'closed', 0, ?, ?)"
            " ON CONFLICT DO NOTHING"
        )
        if not self._execute(sql, row).rowcount:
            return False
        if draws_on in self.accounts.pools:
            for charged, when_ns in charges:
                self.accounts.recover(draws_on, charged, when_ns)
        return True

    def knows(self, pod: str) -> bool:
        """Whether a pod of this name is, or was."""
        return self._execute("SELECT 1 FROM pods WHERE pod=?", (pod,)).fetchone() is not None

    def charge(self, entry: Entry, now_ns: int) -> Entry:
        """Charge a pod, running or over, for what was used outside: as much of it as there is left, at every level.

        Raises:
            InvalidError: there is no such pod, or the entry's id was used for something else.
            BudgetError: its budget was never opened.
        """
        pod = self.pods.get(entry.pod) or self._ended(entry.pod)
        account = account_of(pod)
        self.accounts.roll(account.above, now_ns)
        done = replace(entry, account=pod.draws_on, charged=min(entry.amount, max(0, account.free)))
        if not self.accounts.add(done, logged=False):
            raise InvalidError("this entry's id was used before", rule="budget.entry")
        self._execute("UPDATE pods SET spent=spent+? WHERE pod=?", (done.charged, done.pod))
        self.accounts.spend(account.above, done.charged)
        account.move(0, done.charged)
        return done

    def _ended(self, pod: str) -> PodAccount:
        row = self._execute("SELECT namespace, budget, spent, account FROM pods WHERE pod=?", (pod,)).fetchone()
        if row is None:
            raise InvalidError("there is no such pod", rule="pod.name", next_step="`nucleus budget show` lists them.")
        namespace, budget, spent, name = row
        account = None if budget is None else Account(budget, spent, above=self.accounts.chain(name))
        return PodAccount(pod, namespace, 0, account, 0, name)

    def top_up(self, entry: Entry) -> bool:
        """A top-up of a pod that is on record; False when its id was used before."""
        if not self.accounts.add(entry, logged=True):
            return False
        pod = self.pods.get(entry.pod)
        if pod is not None and pod.account is not None:
            self._execute(
                "UPDATE pods SET budget=budget+?, granted=granted+? WHERE pod=?",
                (entry.amount, entry.amount, entry.pod),
            )
            pod.account.limit += entry.amount
            pod.granted += entry.amount
        return True

    def recover_entry(self, entry: Entry) -> bool:
        """An entry that the audit log has: carried out, unless it was; whether it had to be."""
        if entry.change != CHARGE:
            return self.top_up(entry) if entry.pod else self.accounts.apply(entry)
        if not self.accounts.add(entry, logged=True):
            self.accounts.on_record(entry.entry)
            return False
        self._execute("UPDATE pods SET spent=spent+? WHERE pod=?", (entry.charged, entry.pod))
        if (pod := self.pods.get(entry.pod)) is not None and pod.account is not None:
            pod.account.spent += entry.charged
        if entry.account in self.accounts.pools:
            self.accounts.recover(entry.account, entry.charged, entry.time_ns)
        return True

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
        """Keep the log's head, and what it says of reservations up to there; then let the engine tidy up.

        `tree`: the log's tree at that head and what was signed of it, as text for `tree` (`authority.signing`).

        Everything that the batches before wrote is in the store's WAL before this: a checkpoint that survived proves
        them.
        """
        if self.recorded or self.stopped or self.promised:
            return  # the next start has to read those records again
        self.begin(durable=True)
        try:
            self._execute(SET_META, ("head", f"{head.seq} {head.hash} {head.offset}"))
            self._execute(SET_META, ("tree", tree))
            for entry in self.logged:
                self.accounts.on_record(entry)
            for mark in self._marks:
                self._execute("UPDATE reservations SET logged=? WHERE id=?", mark)
        except AuditError:
            self.rollback()
            raise
        self.commit()
        self._marks.clear()
        self.logged.clear()
        self.engine.fold()

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

    def snapshot(self) -> bytes:
        """A consistent copy, as an SQLite file, between two batches. Raises AuditError."""
        return self.engine.snapshot()

    def close(self) -> None:
        """Let go of the store."""
        self.engine.close()


def account_of(pod: PodAccount) -> Account:
    """The pod's account. Raises BudgetError when its budget was never opened: nothing can be spent."""
    if pod.account is None:
        raise BudgetError("no budget is open for this pod", rule="budget.open")
    return pod.account
