"""The crash rules: how what was left open ends, at the start, when a gate is lost, when a pod is closed.

 1. A reservation without an intent on record is released: nothing was tried.
 2. One with an intent and no outcome is charged in full, and a `recovery` record says so: it counts as having happened.
 3. One with an outcome on record is settled for what that says (a power cut may have taken the settlement).
 4. A settlement whose outcome never reached the log gets a `recovery` record with what was charged.
 5. An intent that only the log has (a power cut took the reservation) is put back, as 2 or 3.
 6. What people did to budgets that only the log has is done again; a charge that only the ledger has gets its record.
 7. Pods that only the log has (the ledger is an older copy, or a new file) are charged to their accounts. Where 6 or 7
    found something, a `recovery` record says that the ledger was behind the log, before anything else is done.

Promises: records first, durable, then the ledger: a crash in between leads here again, and finds the record (rule 3):
each reservation resolves once, at every level of its budget. Relies on: `budget.reservation.reconcile` for 1 to 4.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from nucleus.audit.record import Record
from nucleus.authority.clock import Clock
from nucleus.budget.reservation import Hold, Phase, Verdict, reconcile
from nucleus.errors import AuditError, NucleusError
from nucleus.store.audit_log import AuditLog, Torn
from nucleus.store.budgets import CHARGE, Entry
from nucleus.store.ledger import Ledger, PodAccount


@dataclass(slots=True)
class Scan:
    """What the log says since the last checkpoint: reservation -> (pod, amount), reservation -> charged.

    `times`: reservation -> when, ns since the epoch; `started`: pod -> (namespace, account).
    """

    intents: dict[str, tuple[str, int]] = field(default_factory=dict)
    outcomes: dict[str, int] = field(default_factory=dict)
    stopped: set[str] = field(default_factory=set)
    times: dict[str, int] = field(default_factory=dict)
    started: dict[str, tuple[str, str]] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)

    def see(self, fields: dict[str, Any]) -> None:
        """Take one verified record."""
        event, context = fields["event"], fields["context"]
        if event == "pod.stop":
            self.stopped.add(fields["pod"])
        elif event == "pod.start":
            self.started[fields["pod"]] = (str(context.get("namespace", "")), str(context.get("account", "")))
        elif event == "budget.changed":
            if (entry := Entry.from_record(fields)) is not None:
                self.entries.append(entry)
        elif event in ("intent", "outcome", "recovery"):
            reservation = context.get("reservation")
            amount = context.get("reserved" if event == "intent" else "charged")
            if isinstance(reservation, str) and len(reservation) == 32 and type(amount) is int:
                self.times[reservation] = fields["time_ns"]
                if event == "intent":
                    self.intents[reservation] = (fields["pod"], amount)
                else:
                    self.outcomes[reservation] = amount


def resolve(pod: PodAccount, ledger: Ledger, log: AuditLog, clock: Clock, *, stop: dict[str, Any] | None) -> None:
    """End every open reservation of a pod whose gate is gone; with `stop` (its context), end the pod too.

    Raises:
        AuditError: the log or the ledger cannot be written; the pod stays as it is, for the next start.
    """
    holds = pod.account.holds if pod.account is not None else {}
    known = ledger.recorded  # of an attempt before, which the ledger could not commit
    ends = [
        (name, hold, reconcile(hold, known.get(name), intent=hold.phase >= Phase.INTENT))
        for name, hold in holds.items()
    ]
    _carry_out(pod, ends, ledger, log, clock, stop)


def at_start(ledger: Ledger, log: AuditLog, scan: Scan, clock: Clock, torn: Torn | None) -> None:
    """Nothing lives across a start of the authority: end whatever was open.

    Raises:
        AuditError: the log or the ledger cannot be written.
    """
    if torn is not None:
        cut = {"cut_bytes": torn.size, "cut_sha256": torn.sha256, "kept_as": torn.kept_as}
        _stage(log, clock, "recovery", outcome={"status": "torn_line_cut"}, context=cut)
        log.write()
    lost = [pod for pod in scan.started if not ledger.knows(pod)]
    unknown = [entry for entry in scan.entries if ledger.accounts.find(entry.entry) is None]
    if lost or unknown:  # 7
        behind = {"pods": len(lost), "entries": len(unknown)}
        _stage(log, clock, "recovery", outcome={"status": "the ledger was behind the log"}, context=behind)
        log.write()
    _entries(ledger, log, scan, clock)
    for pod in tuple(ledger.pods.values()):
        _end_pod(pod, ledger, log, scan, clock)
    for name, (pod_name, amount) in scan.intents.items():
        if name not in scan.outcomes:  # 5, of a pod that the ledger does not know
            _stage_recovery(log, clock, pod_name, name, amount, amount)
    log.write()
    ledger.begin(durable=True)
    for pod_name in lost:
        charges = [
            (scan.outcomes.get(name, amount), scan.times[name])
            for name, (owner, amount) in scan.intents.items()
            if owner == pod_name
        ]
        reported = sum(entry.charged for entry in scan.entries if entry.pod == pod_name)
        ledger.adopt(pod_name, *scan.started[pod_name], charges, reported)
    ledger.void_approvals()
    ledger.commit()


def _entries(ledger: Ledger, log: AuditLog, scan: Scan, clock: Clock) -> None:
    """Step 6."""
    known = {entry.entry for entry in scan.entries}
    unlogged = ledger.accounts.unlogged()
    for entry in unlogged:
        if entry.entry not in known:
            _stage(log, clock, "budget.changed", pod=entry.pod, principal=entry.who, context=entry.context())
    log.write()
    ledger.begin(durable=True)
    try:
        for entry in scan.entries:
            if entry.change != CHARGE:
                ledger.recover_entry(entry)
        # Before anything is charged: what is put back counts in the window that it happened in, or not at all.
        ledger.accounts.roll(tuple(ledger.accounts.pools.values()), clock()[0])
        for entry in scan.entries:
            if entry.change == CHARGE:
                ledger.recover_entry(entry)
        for entry in unlogged:
            ledger.accounts.on_record(entry.entry)
        ledger.commit()
    except AuditError:
        ledger.rollback()
        raise


def _end_pod(pod: PodAccount, ledger: Ledger, log: AuditLog, scan: Scan, clock: Clock) -> None:
    theirs = {name: amount for name, (owner, amount) in scan.intents.items() if owner == pod.pod}
    if pod.account is None and theirs:  # a power cut left its registration, and took that its budget was opened
        ledger.begin(durable=True)
        ledger.open_budget(pod, sum(theirs.values()), 0)
    holds = pod.account.holds if pod.account is not None else {}
    ends = []
    for name, hold in holds.items():
        intent = hold.phase >= Phase.INTENT or name in scan.intents
        ends.append((name, hold, reconcile(hold, scan.outcomes.get(name), intent=intent)))
    if pod.account is not None:  # 5
        ledger.begin(durable=True)
        for name, amount in theirs.items():
            if name not in holds:
                ledger.restore(pod, name, amount, scan.outcomes.get(name, amount), scan.times[name])
        ledger.commit()
    stop = None if pod.pod in scan.stopped else {"reason": "the authority was started again"}
    _carry_out(pod, ends, ledger, log, clock, stop, scan)
    if stop is None:  # a crash came between its record and the ledger
        ledger.begin()
        ledger.close_pod(pod)
        ledger.commit()


def _carry_out(
    pod: PodAccount,
    ends: list[tuple[str, Hold, Verdict]],
    ledger: Ledger,
    log: AuditLog,
    clock: Clock,
    stop: dict[str, Any] | None,
    scan: Scan | None = None,
) -> None:
    spent = pod.account.spent if pod.account is not None else 0
    try:
        for name, hold, verdict in ends:
            if hold.phase < Phase.SETTLED:
                spent += verdict.charged or 0
            if verdict.record and verdict.charged is not None:
                _stage_recovery(log, clock, pod.pod, name, hold.amount, verdict.charged)
                if scan is not None:
                    scan.outcomes[name] = verdict.charged
        if stop is not None and pod.pod not in ledger.stopped:
            _stage(log, clock, "pod.stop", pod=pod.pod, context={**stop, "spent": spent})
    except NucleusError:
        log.discard()
        raise
    log.write()
    ledger.recorded.update({name: one.charged for name, _, one in ends if one.charged is not None})
    if stop is not None:
        ledger.stopped.add(pod.pod)
    try:
        ledger.begin()
        for name, hold, verdict in ends:
            ledger.force(pod, name, hold, verdict.charged)
        if stop is not None:
            ledger.close_pod(pod)
        ledger.commit()
    except AuditError:
        ledger.rollback()
        raise
    ledger.stopped.discard(pod.pod)
    for name, _, verdict in ends:
        ledger.recorded.pop(name, None)
        if verdict.charged is not None:
            ledger.on_record(name, outcome=True)


def _stage_recovery(log: AuditLog, clock: Clock, pod: str, reservation: str, amount: int, charged: int) -> None:
    context = {"reservation": reservation, "reserved": amount, "charged": charged}
    _stage(log, clock, "recovery", pod=pod, outcome={"status": "unknown: counted as having happened"}, context=context)


def _stage(log: AuditLog, clock: Clock, event: str, **fields: Any) -> None:
    now_ns, mono_ns = clock()
    log.stage(Record(event, now_ns, mono_ns, **fields))
