"""Budgets as people handle them: accounts, top-ups, charges reported from outside, and a copy of the ledger.

 1. Who asks holds an approver's channel: a local user, stamped by the builder. No gate and no agent has one, so none
    makes, raises or chooses an account. A gate may report what its own pod used elsewhere (`reported`), for the
    orchestrator that its pod is served to: that can only make it less.
 2. What loosens (`create`, `top-up`, `default`) is on record, durable, before it holds: a crash in between leaves it to
    the next start, which finds the record. What tightens (a charge) holds first, and is on record before it is
    answered: a crash in between leaves it to the next start, which finds the entry.
 3. Each has an id that whoever asks has chosen. The same request again is answered as the first time and does nothing;
    another request under a used id is refused.

Promises: a top-up holds for running pods from its answer on; a charge takes what there is and says what it could not.
Does not: judge operations (`service`), or keep anything (`store.budgets`).
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nucleus.authority import fields
from nucleus.budget import names
from nucleus.budget.cost import amount as checked
from nucleus.budget.money import MAX_DOLLARS, MICRO
from nucleus.errors import AuditError, InvalidError, NucleusError
from nucleus.store.budgets import CHARGE, CREATE, DEFAULT, TOP_UP, Entry, missing

if TYPE_CHECKING:
    from nucleus.authority.batch import Batch
    from nucleus.authority.peers import Channel
    from nucleus.store.ledger import Ledger, PodAccount

CHANGES = {
    "budget_create": CREATE,
    "budget_default": DEFAULT,
    "budget_top_up": TOP_UP,
    "budget_charge": CHARGE,
}
OPS = frozenset((*CHANGES, "budget_show", "budget_history", "ledger_copy", "ledger_read"))
MAX_LIMIT = MAX_DOLLARS * MICRO
MAX_WINDOW_NS = 3_660 * 86_400 * 1_000_000_000
HISTORY = 500  # entries of one answer
SHOWN_PODS = 2_000  # of one answer
COPY_BYTES = 67_108_864  # a ledger that is larger is copied while no authority runs
PIECE_BYTES = 131_072  # of a copy, in one answer
_REASON_BYTES = 1_024
_ENTRY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")


class Budgets:
    """See the module. `_pending`: what is being recorded in this turn, by id and by account."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._pending: set[str] = set()
        self._copies: dict[Channel, bytes] = {}

    def approver(self, channel: Channel, ident: int, header: dict[str, Any], batch: Batch) -> None:
        """One request. Raises NucleusError."""
        op = str(header["op"])
        if op in CHANGES:
            self._change(channel, ident, self._entry(channel, CHANGES[op], header, batch), batch)
        elif op == "budget_show":
            batch.answer(channel, ident, self._show(batch.now_ns))
        elif op == "budget_history":
            account = fields.text(header, "account", names.BYTES, default="")
            pod = fields.text(header, "pod", 63, default="")
            found = self._ledger.accounts.history(account, pod, HISTORY)
            batch.answer(channel, ident, {"entries": [_shown(entry) for entry in found]})
        elif op == "ledger_copy":
            batch.later(lambda: self._copy(channel, ident))
        else:
            self._read(channel, ident, checked(header.get("offset"), "offset"), batch)

    def reported(self, channel: Channel, ident: int, header: dict[str, Any], who: str, batch: Batch) -> None:
        """A charge of a gate's own pod, on behalf of `who`. Raises NucleusError."""
        if header.keys() & {"account", "window_ns"}:
            raise InvalidError("a report has an id, an amount and a reason", rule="frames.field")
        entry = self._entry(channel, CHARGE, {**header, "pod": channel.pod}, batch)
        self._change(channel, ident, replace(entry, who=who), batch)

    def lost(self, channel: Channel) -> None:
        """A channel is gone, and its copy."""
        self._copies.pop(channel, None)

    # What changes

    def _entry(self, channel: Channel, change: str, header: dict[str, Any], batch: Batch) -> Entry:
        entry = header.get("entry")
        if not isinstance(entry, str) or not _ENTRY.fullmatch(entry):
            raise InvalidError("an id is 1 to 64 letters, digits and . _ : -", rule="budget.entry")
        account, pod = fields.text(header, "account", names.BYTES, default=""), ""
        if "pod" in header:
            pod = fields.pod(header)
        amount = checked(header.get("amount", 0), "amount")
        window_ns = checked(header.get("window_ns", 0), "window_ns")
        if amount > MAX_LIMIT or (amount == 0 and change in (TOP_UP, CHARGE)):
            raise InvalidError(f"amount: 1 to {MAX_LIMIT} micro-dollars", rule="budget.amount")
        if window_ns > MAX_WINDOW_NS:
            raise InvalidError("window: at most 3660 days", rule="budget.window")
        if account and pod:
            raise InvalidError("an account or a pod, not both", rule="frames.field")
        reason = fields.text(header, "reason", _REASON_BYTES, default="")
        who = f"uid:{channel.uid}"  # 1
        return Entry(entry, batch.now_ns, change, account, pod, amount, 0, window_ns, who, reason)

    def _change(self, channel: Channel, ident: int, entry: Entry, batch: Batch) -> None:
        found = self._ledger.accounts.find(entry.entry)
        if found is not None and not found[0].same(_as_kept(entry, found[0])):  # 3
            raise InvalidError(
                "this id was used for something else", rule="budget.entry", next_step="Choose another one."
            )
        promised = self._ledger.promised
        if found is None and (before := promised.get(entry.entry)) is not None and before.same(entry):
            batch.later(lambda: self._apply(channel, ident, before))
            return
        busy = self._pending.union(promised, (one.account for one in promised.values()))
        if {entry.entry, entry.account} & busy - {""}:
            raise InvalidError("the same is being done", rule="budget.busy", next_step="Ask again.")
        if found is not None and (found[1] or entry.entry in self._ledger.logged):
            batch.answer(channel, ident, self._result(found[0]) | {"again": True})
        elif entry.change == CHARGE:
            self._charge(channel, ident, found[0] if found else None, entry, batch)
        else:
            self._loosen(channel, ident, entry, batch)

    def _charge(self, channel: Channel, ident: int, before: Entry | None, entry: Entry, batch: Batch) -> None:
        """Step 2. `before`: it was charged, and the log could not be written then."""
        if not entry.pod:
            raise InvalidError("a charge is to a pod", rule="frames.field")
        done = before or batch.writes().charge(entry, batch.now_ns)
        self._record(done, batch)
        self._pending.add(done.entry)

        def then(error: NucleusError | None) -> None:
            self._pending.discard(done.entry)
            if error is not None:
                channel.fail(ident, error)
                return
            self._ledger.logged.add(done.entry)
            channel.answer(ident, self._result(done))

        batch.answer(None, 0, None, recorded=True, then=then)

    def _loosen(self, channel: Channel, ident: int, entry: Entry, batch: Batch) -> None:
        """Step 2."""
        self._check(entry)
        self._record(entry, batch)
        self._pending |= {entry.entry, entry.account}

        def then(error: NucleusError | None) -> None:
            self._pending -= {entry.entry, entry.account}
            if error is not None:
                channel.fail(ident, error)
            else:
                self._ledger.promised[entry.entry] = entry
                batch.later(lambda: self._apply(channel, ident, entry))

        batch.answer(None, 0, None, recorded=True, then=then)

    def _check(self, entry: Entry) -> None:
        ledger = self._ledger
        if entry.change == CREATE:
            ledger.accounts.check_create(entry.account)
        elif entry.pod:
            pod = ledger.pods.get(entry.pod)
            if entry.change != TOP_UP or pod is None or pod.account is None:
                raise InvalidError("no such pod is running", rule="pod.name", next_step="`nucleus budget show`")
            _bounded(pod.account.limit + entry.amount)
        elif entry.account:
            pool = ledger.accounts.pools.get(entry.account)
            if pool is None:
                raise missing(entry.account)
            _bounded(pool.limit + entry.amount)
        elif entry.change == TOP_UP:
            raise InvalidError("an account or a pod is topped up", rule="frames.field")

    def _apply(self, channel: Channel, ident: int, entry: Entry) -> None:
        ledger = self._ledger
        try:
            ledger.begin(durable=True)
            if entry.pod:
                ledger.top_up(entry)
            else:
                ledger.accounts.apply(entry)
            ledger.commit()
        except AuditError as error:
            ledger.rollback()
            message = f"{error.message}; it is on record: ask again, or it holds from the next start on"
            channel.fail(ident, AuditError(message, rule=error.rule))
            return
        ledger.promised.pop(entry.entry, None)
        channel.answer(ident, self._result(entry))

    def _record(self, entry: Entry, batch: Batch) -> None:
        batch.record("budget.changed", pod=entry.pod, principal=entry.who, context=entry.context())

    def _result(self, entry: Entry) -> dict[str, Any]:
        ledger = self._ledger
        if entry.change == CHARGE:
            pod = ledger.pods.get(entry.pod)
            left = {"free": max(0, pod.account.free)} if pod is not None and pod.account is not None else {}
            return {"charged": entry.charged, "unpaid": entry.amount - entry.charged, **left}
        if entry.pod:
            pod = ledger.pods.get(entry.pod)
            return {"pod": entry.pod, "limit": pod.account.limit if pod is not None and pod.account else 0}
        pool = ledger.accounts.pools.get(entry.account)
        return {"account": entry.account, "limit": pool.limit if pool is not None else 0}

    # What is shown

    def _show(self, now_ns: int) -> dict[str, Any]:
        accounts, pods = self._ledger.accounts, self._ledger.pods
        return {
            "default": accounts.default,
            "accounts": [
                {
                    "account": pool.name,
                    "limit": pool.limit,
                    # A window that nothing has been reserved in yet begins with the first reservation.
                    "spent": pool.spent if pool.begun(now_ns) == pool.since_ns else 0,
                    "reserved": pool.reserved,
                    "window_ns": pool.window_ns,
                    "since_ns": pool.begun(now_ns),
                }
                for _, pool in sorted(accounts.pools.items())
            ],
            "pods": [_pod(pod) for _, pod in sorted(pods.items())[:SHOWN_PODS]],
        }

    # A copy of the ledger

    def _copy(self, channel: Channel, ident: int) -> None:
        try:
            copy = self._ledger.snapshot()
        except AuditError as error:
            channel.fail(ident, error)
            return
        if len(copy) > COPY_BYTES or len(self._copies.keys() - {channel}) > 3:
            step = "Stop the helper (`nucleus helper stop`), then ask again: it is copied from the file."
            channel.fail(
                ident, InvalidError("too large, or too many copies at a time", rule="ledger.copy", next_step=step)
            )
            return
        self._copies[channel] = copy
        channel.answer(ident, {"size": len(copy), "sha256": hashlib.sha256(copy).hexdigest()})

    def _read(self, channel: Channel, ident: int, offset: int, batch: Batch) -> None:
        copy = self._copies.get(channel)
        if copy is None:
            raise InvalidError("no copy was asked for", rule="ledger.copy")
        piece = copy[offset : offset + PIECE_BYTES]
        if offset + PIECE_BYTES >= len(copy):
            del self._copies[channel]
        batch.answer(channel, ident, {"data": base64.b64encode(piece).decode("ascii")})


def _as_kept(entry: Entry, before: Entry) -> Entry:
    """A charge is kept under its pod's account, which its request does not name."""
    return replace(entry, account=before.account) if entry.change == CHARGE else entry


def _bounded(limit: int) -> None:
    if limit > MAX_LIMIT:
        raise InvalidError(f"a limit is at most {MAX_LIMIT} micro-dollars", rule="budget.amount")


def _pod(pod: PodAccount) -> dict[str, Any]:
    account = pod.account
    sums = (account.limit, account.spent, account.reserved) if account is not None else (0, 0, 0)
    return {
        "pod": pod.pod,
        "namespace": pod.namespace,
        "account": pod.draws_on,
        **dict(zip(("limit", "spent", "reserved"), sums, strict=True)),
        "free": max(0, account.free) if account is not None else 0,
    }


def _shown(entry: Entry) -> dict[str, Any]:
    return {"time_ns": entry.time_ns, "pod": entry.pod, "who": entry.who, **entry.context()}
