"""When the log's tree is signed: every 256 records, 10 s after an unsigned one, and at the end.

Promises: no record is refused or delayed because one is not signed yet; but once a checkpoint cannot be written, the
log takes nothing more until one can be (it fails closed, as the log itself does). At the start the log is compared with
what was signed (`store.checkpoints`), and the tree goes on from the ledger's copy of its edge, without reading the
whole log: only where that copy does not reach up to what was signed last, or is not there, all of it is hashed again.
Relies on: its caller's clock and loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nucleus.audit.merkle import Tree
from nucleus.errors import AuditError, InvalidError
from nucleus.store.audit_log import AuditLog
from nucleus.store.checkpoints import Checkpoints
from nucleus.store.ledger import Ledger

RECORDS = 256
DELAY_NS = 10_000_000_000
RETRY_NS = 1_000_000_000


class Signer:
    """See the module. `log` and `checkpoints` are its caller's to close."""

    def __init__(self, log: AuditLog, checkpoints: Checkpoints) -> None:
        self.log = log
        self.checkpoints = checkpoints
        self._since: int | None = None  # monotonic: the oldest unsigned record was seen
        self._retry: int | None = None  # monotonic: not to be tried before

    def turn(self, mono_ns: int) -> None:
        """Sign when it is due."""
        unsigned = self.log.tree.size - self.checkpoints.size
        if unsigned <= 0:
            return
        if self._since is None:
            self._since = mono_ns
        if self._retry is not None:
            if mono_ns >= self._retry:
                self._sign(mono_ns)
        elif unsigned >= RECORDS or mono_ns >= self._since + DELAY_NS:
            self._sign(mono_ns)

    def due_ns(self) -> int | None:
        """When `turn` has something to do if nothing happens; None: never."""
        if self._retry is not None:
            return self._retry
        return self._since + DELAY_NS if self._since is not None else None

    def end(self, mono_ns: int) -> None:
        """The last one."""
        if self.log.tree.size > self.checkpoints.size:
            self._sign(mono_ns)

    def state(self) -> str:
        """The tree and what was signed of it, for the ledger: ``size root tree``."""
        last = self.checkpoints.last
        return f"{self.checkpoints.size} {last.root.hex() if last is not None else '-'} {self.log.tree.pack()}"

    def _sign(self, mono_ns: int) -> None:
        try:
            self.checkpoints.sign(self.log.tree)
        except AuditError as error:
            self.log.held, self._retry = error.message, mono_ns + RETRY_NS
            return
        self.log.held, self._retry, self._since = "", None, None


def open_log(directory: str, trust_domain: str, ledger: Ledger, see: Callable[[dict[str, Any]], None]) -> Signer:
    """The log, verified from the ledger's head and compared with its last checkpoint.

    Raises:
        AuditError: it does not verify, is not what was signed, or log, checkpoints or key cannot be used.
    """
    checkpoints = Checkpoints(directory, trust_domain)
    try:
        head, last = ledger.head(), checkpoints.last
        size, root, tree = _parse(ledger.tree())
        known = size == checkpoints.size and (last is None or last.root == root)
        if head is None or tree is None or tree.size != head.seq or not (known or checkpoints.size >= head.seq):
            tree = None
        log = AuditLog(directory, head, see, tree, (size, checkpoints.size))
        try:
            if not (known and tree is not None):  # else compared before the ledger kept it
                checkpoints.check(log.roots, log.head.seq)
            if size and log.roots.get(size, root) != root:
                raise AuditError(f"the audit log is not what was signed of {size} records", rule="audit.tree")
        except BaseException:
            log.close()
            raise
    except BaseException:
        checkpoints.close()
        raise
    return Signer(log, checkpoints)


def _parse(state: str) -> tuple[int, bytes, Tree | None]:
    """What `Signer.state` wrote; of anything else nothing."""
    size, _, rest = state.partition(" ")
    root, _, packed = rest.partition(" ")
    try:
        return int(size), bytes.fromhex(root.replace("-", "")), Tree.unpack(packed)
    except (ValueError, InvalidError):
        return 0, b"", None
