"""One turn's work: one ledger transaction, one append with one sync, then every answer (group commit).

Promises: no answer leaves before what it speaks of is committed and, where it has a record, durable. When the ledger
cannot commit, nothing of the batch reaches the log and everything in it is refused; when the log cannot be written,
whatever has a record in it is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from nucleus.audit.record import Record
from nucleus.authority.streams import Stream
from nucleus.errors import AuditError, NucleusError
from nucleus.store.audit_log import AuditLog
from nucleus.store.ledger import Ledger

Then = Callable[[NucleusError | None], None]


class _Answer(NamedTuple):
    stream: Stream | None
    ident: int
    ok: dict[str, Any] | None  # None: `then` answers, or somebody later
    recorded: bool
    then: Then | None


class Batch:
    """See the module. `now_ns` (since the epoch) and `mono_ns` are one reading of the clocks for the whole turn."""

    def __init__(self, ledger: Ledger, log: AuditLog) -> None:
        self.ledger = ledger
        self.log = log
        self.durable = False
        self.now_ns = 0
        self.mono_ns = 0
        self._answers: list[_Answer] = []
        self._later: list[Callable[[], None]] = []
        self._broken: AuditError | None = None

    def start(self, now_ns: int, mono_ns: int, *, durable: bool) -> None:
        """A new turn. `durable`: an approval is decided or spent in it, so its commit is synced."""
        self.now_ns, self.mono_ns, self.durable = now_ns, mono_ns, durable
        self.ledger.refresh()

    def writes(self) -> Ledger:
        """The ledger, with the turn's transaction open."""
        self.ledger.begin(durable=self.durable)
        return self.ledger

    def record(self, event: str, **fields: Any) -> dict[str, Any]:
        """Stage a record, its time stamped here; where it will be: ``{seq, hash}``."""
        head = self.log.stage(Record(event, self.now_ns, self.mono_ns, **fields))
        return {"seq": head.seq, "hash": head.hash}

    def answer(
        self,
        stream: Stream | None,
        ident: int,
        ok: dict[str, Any] | None,
        *,
        recorded: bool = False,
        then: Then | None = None,
    ) -> None:
        """Answer once the turn is committed; `recorded`: and the log durable. `then` hears first how it went."""
        self._answers.append(_Answer(stream, ident, ok, recorded, then))

    def later(self, work: Callable[[], None]) -> None:
        """Do `work` once this turn is over, with no transaction open; it deals with its own errors."""
        self._later.append(work)

    def break_off(self, why: AuditError) -> None:
        """Something went wrong in the middle of a change: nothing of this turn counts."""
        self._broken = why

    def finish(self) -> None:
        """Commit, append, answer."""
        failed, self._broken = self._commit(), None
        unrecorded = failed
        if self.log.staged:
            try:
                self.log.write()
            except AuditError as error:
                unrecorded = error
        answers, self._answers = self._answers, []
        for stream, ident, ok, recorded, then in answers:
            refusal = unrecorded if recorded else failed
            if then is not None:
                then(refusal)
            if stream is None:
                continue
            if refusal is not None:
                stream.fail(ident, refusal)
            elif ok is not None:
                stream.answer(ident, ok)
        work, self._later = self._later, []
        for one in work:
            one()

    def _commit(self) -> AuditError | None:
        try:
            if self._broken is None:
                self.ledger.commit()
                return None
            self.ledger.rollback()
            failed = self._broken
        except AuditError as error:
            failed = error
        self.log.discard()
        return failed
