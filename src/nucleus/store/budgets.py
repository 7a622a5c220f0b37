"""The ledger's accounts: budgets that pods draw on together, and what people did to budgets.

Promises: what is spent of a pool is written in the transaction of the settlement that spends it; an entry's id is used
once, so what is asked for twice happens once.
Relies on: the ledger for transactions, and for putting memory back (`load`) when one is undone; `budget.reservation`
for rules. What is reserved of a pool is the sum over the open pods beneath it, and kept in memory alone.
Does not: write the audit log.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass, fields
from typing import Any

from nucleus.budget import names
from nucleus.budget.reservation import Pool
from nucleus.errors import AuditError, InvalidError
from nucleus.store.engine import SET_META, Rows

MAX_ACCOUNTS = 1_000
CREATE, TOP_UP, CHARGE, DEFAULT = "create", "top-up", "charge", "default"  # Entry.change
Execute = Callable[..., Rows]


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that a person did to a budget. Amounts in micro-dollars.

    Args:
        entry: its id, chosen by whoever asked.
        account, pod: what it is about, the other one "".
        charged: of `amount`, for a charge: as much as there was.
        who: ``uid:N`` or a SPIFFE ID.
    """

    entry: str
    time_ns: int
    change: str
    account: str
    pod: str
    amount: int
    charged: int
    window_ns: int
    who: str
    reason: str

    def same(self, other: Entry) -> bool:
        """Asked for once more: the same id and the same request."""
        names = ("entry", "change", "account", "pod", "amount", "window_ns")
        return all(getattr(self, name) == getattr(other, name) for name in names)

    def context(self) -> dict[str, Any]:
        """As the audit log has it (event ``budget.changed``)."""
        names = ("entry", "change", "account", "amount", "charged", "window_ns", "reason")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Entry | None:
        """From a verified record of the log; None when it is none of ours."""
        context = record["context"]
        values: dict[str, Any] = {
            **{name: context.get(name) for name in ("entry", "change", "account", "amount", "charged", "window_ns")},
            "time_ns": record["time_ns"], "pod": record["pod"], "who": record["principal"],
            "reason": context.get("reason"),
        }  # fmt: skip
        kinds = {"str": str, "int": int}
        if any(type(values[one.name]) is not kinds[str(one.type)] for one in fields(cls)):
            return None
        return cls(**values)


class Accounts:
    """All accounts of one ledger. `pools` by name; `default`: of pods that name none."""

    def __init__(self, execute: Execute) -> None:
        self._execute = execute
        self.pools: dict[str, Pool] = {}
        self.default = ""

    def load(self) -> None:
        """Read them from the store; nothing is reserved of them yet."""
        self.pools = {
            name: Pool(name, budget, spent, 0, window_ns, since_ns)
            for name, budget, spent, window_ns, since_ns in self._execute(
                "SELECT name, budget, spent, window_ns, since_ns FROM accounts"
            ).fetchall()
        }
        row = self._execute("SELECT value FROM meta WHERE key='default_account'").fetchone()
        self.default = str(row[0]) if row is not None else ""

    def chain(self, name: str) -> tuple[Pool, ...]:
        """The pools that a pod of account `name` draws on; none for "". Raises AuditError: one of them is gone."""
        try:
            return tuple(self.pools[level] for level in names.levels(name)) if name else ()
        except KeyError:
            raise AuditError(f"the ledger lost an account above {name}", rule="ledger.state") from None

    def choose(self, account: str, session: str) -> str:
        """The account of a new pod: the one that was named or the default, and its session's own where there is one.

        Raises:
            InvalidError: rule ``budget.account``: there is no such account.
        """
        account = account or self.default
        if account and account not in self.pools:
            raise missing(account)
        if account and session and "@" not in account:
            own = names.of_session(account, session)
            return own if own in self.pools else account
        return account

    def check_create(self, name: str) -> None:
        """Raises InvalidError: it exists, what is above it does not, or there are too many."""
        names.check(name)
        if name in self.pools:
            raise InvalidError(
                "this account exists", rule="budget.exists", next_step=f"`nucleus budget top-up {name} AMOUNT`."
            )
        if (above := names.above(name)) and above not in self.pools:
            raise InvalidError(
                f"the account above it, {above}, does not exist",
                rule="budget.above",
                next_step=f"`nucleus budget create {above} --limit …` first.",
            )
        if len(self.pools) >= MAX_ACCOUNTS:
            raise InvalidError(f"there are {MAX_ACCOUNTS} accounts", rule="budget.accounts")

    def apply(self, entry: Entry) -> bool:
        """Carry out a `create`, an account's `top-up` or a `default` that is on record; False when it was before."""
        if not self.add(entry, logged=True):
            return False
        pool = self.pools.get(entry.account)
        if entry.change == CREATE and pool is None:
            row = (entry.account, entry.amount, entry.window_ns, entry.time_ns)
            self._execute("INSERT INTO accounts (name, budget, window_ns, since_ns) VALUES (?, ?, ?, ?)", row)
            self.pools[entry.account] = Pool(entry.account, entry.amount, 0, 0, entry.window_ns, entry.time_ns)
        elif entry.change == TOP_UP and pool is not None:
            self._execute("UPDATE accounts SET budget=budget+? WHERE name=?", (entry.amount, entry.account))
            pool.limit += entry.amount
        elif entry.change == DEFAULT:
            self._execute(SET_META, ("default_account", entry.account))
            self.default = entry.account
        return True

    def roll(self, pools: tuple[Pool, ...], now_ns: int) -> None:
        """Begin the windows that have come."""
        for pool in pools:
            if pool.roll(now_ns):
                self._execute("UPDATE accounts SET spent=0, since_ns=? WHERE name=?", (pool.since_ns, pool.name))

    def spend(self, pools: tuple[Pool, ...], amount: int) -> None:
        """Keep on file what was spent of them; memory is `Account.move`'s."""
        if amount:
            for pool in pools:
                self._execute("UPDATE accounts SET spent=spent+? WHERE name=?", (amount, pool.name))

    def recover(self, name: str, amount: int, when_ns: int) -> None:
        """A charge that only the log has: to every level whose window was open then."""
        pools = tuple(pool for pool in self.chain(name) if when_ns >= pool.since_ns)
        self.spend(pools, amount)
        for pool in pools:
            pool.spent += amount

    # Entries

    def add(self, entry: Entry, *, logged: bool) -> bool:
        """Keep an entry; False when its id was used before."""
        changed = self._execute(
            "INSERT INTO entries (id, time_ns, change, account, pod, amount, charged, window_ns, who, reason, number,"
            " logged) SELECT ?, CAST(? AS BIGINT), ?, ?, ?, CAST(? AS BIGINT), CAST(? AS BIGINT), CAST(? AS BIGINT), ?,"
            " ?, coalesce(max(number), 0) + 1, CAST(? AS BIGINT) FROM entries WHERE true ON CONFLICT DO NOTHING",
            (*astuple(entry), int(logged)),
        ).rowcount
        return bool(changed == 1)

    def find(self, entry: str) -> tuple[Entry, bool] | None:
        """An entry by its id, and whether the log is known to have it."""
        found = self._read("WHERE id=?", (entry,))
        return found[0] if found else None

    def unlogged(self) -> list[Entry]:
        """Entries that the log may not have."""
        return [entry for entry, _ in self._read("WHERE logged=0 ORDER BY number", ())]

    def on_record(self, entry: str) -> None:
        """The log has it."""
        self._execute("UPDATE entries SET logged=1 WHERE id=?", (entry,))

    def history(self, account: str, pod: str, count: int) -> list[Entry]:
        """The last `count` entries, the newest first; of one account or pod where it is named."""
        where = "WHERE (CAST(? AS TEXT)='' OR account=?) AND (CAST(? AS TEXT)='' OR pod=?) ORDER BY number DESC LIMIT ?"
        return [entry for entry, _ in self._read(where, (account, account, pod, pod, count))]

    def _read(self, where: str, values: tuple[Any, ...]) -> list[tuple[Entry, bool]]:
        columns = "id, time_ns, change, account, pod, amount, charged, window_ns, who, reason, logged"
        rows = self._execute(f"SELECT {columns} FROM entries {where}", values).fetchall()  # noqa: S608 -- our own text
        return [(Entry(*row[:-1]), bool(row[-1])) for row in rows]


def missing(account: str) -> InvalidError:
    """There is no such account."""
    return InvalidError(
        f"there is no budget account {account}",
        rule="budget.account",
        next_step="`nucleus budget list` shows them, `nucleus budget create` makes one.",
    )
