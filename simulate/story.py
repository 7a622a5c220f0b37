"""One episode: gates and people around a real authority, what each of them knows, and what must hold."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nucleus.authority import approvals, grants, main, requests
from nucleus.authority.peers import APPROVER, GATE
from nucleus.errors import AuditError, NucleusError
from nucleus.frames import Frame
from nucleus.store import audit_log, checkpoints, schema
from nucleus.store.segments import LogFiles
from simulate.faults import Crash, Disk, FaultyOs, FaultySqlite

SECOND = 1_000_000_000
TRUST_DOMAIN = "nucleus.local"
POLICY_LIMIT = 2_000
ACCOUNTS = ("org", "org/team", "org/team/night", "lab")
CHECKPOINT_RECORDS = 40  # the loop's, made small: more of them in a story
STARTS = 60  # in a row that may die before the authority is up


class Violated(AssertionError):
    """An invariant does not hold."""


@dataclass
class Ear:
    """A peer's channel, as the service sees it; what it was sent is kept for the peer."""

    kind: str
    pod: str = ""
    uid: int = -1
    attested: None = None
    names: frozenset[str] = frozenset()
    open: bool = True
    answers_only: bool = False
    seen: list[dict[str, Any]] = field(default_factory=list)

    def __hash__(self) -> int:
        return id(self)

    def send(self, header: dict[str, Any]) -> None:
        self.seen.append(header)

    def answer(self, ident: int, ok: dict[str, Any]) -> None:
        self.send({"id": ident, "ok": ok})

    def fail(self, ident: int, error: NucleusError) -> None:
        self.send({"id": ident, "error": error})

    def shut(self) -> None:
        self.open = False


@dataclass
class Operation:
    """What one gate knows of one operation of its."""

    reservation: str
    amount: int
    digest: str
    step: str = "new"
    token: str = ""
    effect: bool = False  # the intent was acknowledged: the effect takes place
    actual: int = 0
    outcome: bool = False  # the outcome was acknowledged


@dataclass
class Gate:
    """A pod's gate. `limit`: what was opened; `granted`: what people added, as far as it was acknowledged."""

    pod: str
    ear: Ear
    opened: bool = False
    operations: list[Operation] = field(default_factory=list)


class Story:
    """See the module. `steps` counts frames and orders."""

    def __init__(self, seed: str, top: Path, *, crash: int, fail: int) -> None:
        self.rng = random.Random(seed)  # noqa: S311 -- a story, told again by its seed
        self.disk = Disk(top, self.rng, crash, fail)
        self.wall, self.mono = 1_700_000_000 * SECOND, 5 * SECOND
        self.steps = 0
        self.starts = 0
        self.refused: dict[str, int] = {}
        self.gates: dict[str, Gate] = {}
        self.person = Ear(APPROVER, uid=1000)
        self.done: list[tuple[str, Operation]] = []  # of gates that are gone, or that came to their end
        self.entries: dict[
            str, tuple[dict[str, Any], bool]
        ] = {}  # id -> what was asked, and whether it was acknowledged
        self.used: list[tuple[str, str, str]] = []  # tokens that were taken: token, pod, digest
        self.waiting: list[str] = []
        self.counts = dict.fromkeys(("effects", "tokens", "tried again", "entries"), 0)
        self._number = 0
        self._checkpointed = 0
        (self.disk.path / "audit.segment-bytes").write_text(str(self.rng.choice((4_096, 9_000, 40_000, 10**9))))

    def clock(self) -> tuple[int, int]:
        """The authority's clocks."""
        return self.wall, self.mono

    # An episode

    def run(self, steps: int) -> None:
        """Tell it. Raises Violated."""
        with self.patched():
            self.start()
            while self.steps < steps:
                try:
                    self.turn()
                except Crash:
                    self.fall(power=self.rng.randrange(2) == 0)
                    continue
                self.check()
                if "audit.broken" in self.refused or self.rng.randrange(4_000) == 0:
                    self.fall(power=self.rng.randrange(2) == 0)
            self.disk.crash = self.disk.fail = 0
            self.fall(power=True)
            self.final()

    @contextmanager
    def patched(self) -> Iterator[None]:
        """The stores on our disk, and what is random from our seed."""
        places: list[tuple[Any, str, Any]] = [
            (module, "os", FaultyOs(self.disk)) for module in (audit_log, checkpoints, approvals, requests, grants)
        ]
        places += [(schema, "sqlite3", FaultySqlite(self.disk)), (main, "lock_state", lambda _: -1)]
        places = [(module, name, new) for module, name, new in places if hasattr(module, name)]
        before = [(module, name, getattr(module, name)) for module, name, _ in places]
        for module, name, new in places:
            setattr(module, name, new)
        try:
            yield
        finally:
            for module, name, old in before:
                setattr(module, name, old)

    def start(self) -> None:
        """Until an authority is up; each start may die or be refused for a failing disk."""
        for _ in range(STARTS):
            self.starts += 1
            try:
                self.service, _, self.signer = main.open_state(str(self.disk.path), TRUST_DOMAIN, self.clock)
            except Crash:
                self.lose(power=self.rng.randrange(2) == 0)
                continue
            except AuditError as error:
                if not self.disk.fail or error.rule in ("audit.verify", "audit.tail", "audit.tree", "ledger.corrupt"):
                    raise Violated(f"the state is refused: {error.rule}: {error.message}") from error
                self.lose(power=False)
                continue
            self._checkpointed = self.service.log.head.seq
            self.refused.clear()
            self.known()
            return
        raise Violated(f"no start in {STARTS}: the chances are set too high")

    def fall(self, *, power: bool) -> None:
        """The authority dies, and everything that lived with it."""
        service, signer = self.service, self.signer
        self.disk.die(power=power)
        self.silently(service.log.close, signer.checkpoints.close, service.ledger.close)
        self.disk.bury()
        for gate in self.gates.values():
            self.done += [(gate.pod, operation) for operation in gate.operations]
        self.gates.clear()
        self.waiting.clear()
        self.person = Ear(APPROVER, uid=1000)
        if power:
            self.mono = self.rng.randrange(SECOND, 100 * SECOND)
        self.wall += self.rng.randrange(SECOND)
        self.start()

    def lose(self, *, power: bool) -> None:
        """A start that died: its descriptors are gone with it (Python closes them)."""
        self.disk.die(power=power)
        self.disk.bury()

    def silently(self, *closes: Any) -> None:
        crash, fail, self.disk.crash, self.disk.fail = self.disk.crash, self.disk.fail, 0, 0
        for close in closes:
            close()
        self.disk.crash, self.disk.fail = crash, fail

    # A turn

    def turn(self) -> None:
        """Some frames of some peers together, or an order of the builder, or time."""
        rng = self.rng
        self.mono += rng.randrange(1, 30_000_000)
        self.wall += rng.randrange(1, 30_000_000)
        if rng.randrange(300) == 0:
            self.mono += 20 * SECOND
            self.wall += 20 * SECOND
        if rng.randrange(500) == 0:
            self.wall = max(SECOND, self.wall + rng.choice((-1, 1)) * rng.randrange(2 * 3_600 * SECOND))
        kind = rng.randrange(40)
        self.steps += 1
        if kind == 0 and self.gates:
            self.leave(rng.choice(list(self.gates.values())))
        elif kind == 1 and self.gates:
            self.close(rng.choice(list(self.gates.values())))
        elif len(self.gates) < rng.choice((1, 4, 8)):
            self.arrive()
        else:
            self.frames()
        # As `authority.loop` has it.
        self.signer.turn(self.mono)
        seq = self.service.log.head.seq
        if seq - self._checkpointed >= CHECKPOINT_RECORDS:
            self._checkpointed = seq
            try:
                self.service.ledger.checkpoint(self.service.log.head, self.signer.state())
            except AuditError:
                pass

    def arrive(self) -> None:
        """The builder registers a pod."""
        self._number += 1
        pod = f"p{self._number}-{self.starts}"
        context: dict[str, Any] = {}
        if self.rng.randrange(2):
            context["account"] = self.rng.choice(ACCOUNTS)
        try:
            self.service.register_pod(pod, "default", context)
        except NucleusError as error:
            self.note(error)
            return
        self.gates[pod] = Gate(pod, Ear(GATE, pod=pod))

    def leave(self, gate: Gate) -> None:
        """A gate dies; its pod stays until the builder closes it."""
        self.service.lost(gate.ear)  # type: ignore[arg-type]
        self.done += [(gate.pod, operation) for operation in gate.operations]
        gate.operations = []
        gate.ear = Ear(GATE, pod=gate.pod)

    def close(self, gate: Gate) -> None:
        """The builder ends a pod."""
        self.leave(gate)
        try:
            self.service.close_pod(gate.pod, {"reason": "over"})
        except NucleusError as error:
            self.note(error)
            return
        del self.gates[gate.pod]

    def frames(self) -> None:
        """Frames of gates and of people in one turn: one transaction, one append."""
        rng, batch = self.rng, []
        replies: list[tuple[Ear, int, Any]] = []
        for ident in range(1, rng.choice((1, 1, 2, 4, 9)) + 1):
            if rng.randrange(6) == 0:
                ear, header, then = self.person, *self.says()
            else:
                gate = rng.choice(list(self.gates.values()))
                ear, header, then = gate.ear, *self.asks(gate)
            batch.append((ear, Frame({"id": ident, **header})))
            replies.append((ear, ident, then))
        self.steps += len(batch) - 1
        self.service.turn(batch)  # type: ignore[arg-type]
        for ear, ident, then in replies:
            for sent in [sent for sent in ear.seen if sent.get("id") == ident]:
                ear.seen.remove(sent)
                if "error" in sent:
                    self.note(sent["error"])
                then(sent.get("ok"), sent.get("error"))
        self.later()

    def later(self) -> None:
        """What came without being asked for, or long after it."""
        for event in self.person.seen:
            if event.get("event") == "request":
                self.waiting.append(event["request"]["request"])
        self.person.seen = []
        for gate in self.gates.values():
            for sent in gate.ear.seen:
                for operation in gate.operations:
                    if operation.step == f"asked {sent.get('id')}":
                        self.answered(operation, sent.get("ok"))
            gate.ear.seen = []

    def note(self, error: NucleusError) -> None:
        self.refused[error.rule] = self.refused.get(error.rule, 0) + 1
        if error.rule == "ledger.bug":
            raise Violated(f"a bug: {error.message}")

    # A gate

    def asks(self, gate: Gate) -> tuple[dict[str, Any], Any]:
        """The next frame of one gate, and what it makes of the answer."""
        rng = self.rng
        if not gate.opened:

            def opened(ok: Any, _: Any) -> None:
                gate.opened = ok is not None or gate.opened

            return {"op": "open_budget", "limit": POLICY_LIMIT, "window_ns": 0}, opened
        # Asked with ids of their own, so that the answer finds them turns later.
        if self.used and rng.randrange(12) == 0:
            return self.again(gate)
        idle = [one for one in gate.operations if not one.step.startswith(("asked", "wait"))]
        if not idle or (len(gate.operations) < 4 and rng.randrange(3) == 0):
            operation = Operation(
                rng.randbytes(16).hex(), rng.choice((0, 1, 7, 90, 400, 3_000)), rng.randbytes(32).hex()
            )
            gate.operations.append(operation)
        else:
            operation = rng.choice(idle)
        return self.go_on(gate, operation)

    def go_on(self, gate: Gate, operation: Operation) -> tuple[dict[str, Any], Any]:
        """An operation's next step."""
        rng, step = self.rng, operation.step
        if step == "new" and rng.randrange(3) == 0:
            return self.ask(gate, operation)
        if step in ("new", "approved"):
            return self.reserve(gate, operation)
        if step == "held" and rng.randrange(6) == 0:
            return {"op": "release", "reservation": operation.reservation}, self.ends(gate, operation)
        if step == "held":
            return self.append(gate, operation, "intent", {"reserved": operation.amount})
        if step == "intent" and rng.randrange(5) == 0:
            more = rng.choice((1, 30, 500))

            def extended(ok: Any, _: Any) -> None:
                if ok is not None:
                    operation.amount += ok["held"]

            fields = {"reservation": operation.reservation, "amount": more, "least": rng.randrange(more + 1)}
            return {"op": "extend", **fields}, extended
        if step == "intent":
            actual = rng.randrange(operation.amount + 1)

            def settled(ok: Any, _: Any) -> None:
                if ok is not None:
                    operation.step, operation.actual = "settled", actual

            return {"op": "settle", "reservation": operation.reservation, "actual": actual}, settled
        return self.append(gate, operation, "outcome", {"charged": operation.actual})

    def ask(self, gate: Gate, operation: Operation) -> tuple[dict[str, Any], Any]:
        self._number += 1
        ident = 1_000 + self._number
        operation.step = f"asked {ident}"
        header = {
            "op": "ask", "id": ident, "operation": {"kind": "run"}, "operation_hash": operation.digest,
            "principal": gate.pod, "display": ["x"], "decision": {"rule": "r", "reason": "w"},
        }  # fmt: skip
        return header, lambda ok, error: None

    def answered(self, operation: Operation, ok: Any) -> None:
        if ok is not None and ok.get("verdict") == "approve":
            operation.step, operation.token = "approved", ok["token"]
        else:
            operation.step = "new"

    def reserve(self, gate: Gate, operation: Operation) -> tuple[dict[str, Any], Any]:
        header: dict[str, Any] = {
            "op": "reserve", "reservation": operation.reservation, "amount": operation.amount,
            "operation_hash": operation.digest, "principal": gate.pod,
        }  # fmt: skip
        if operation.token:
            header["token"] = operation.token
        if self.rng.randrange(4) == 0:
            header["least"] = self.rng.randrange(operation.amount + 1)

        def reserved(ok: Any, _: Any) -> None:
            if ok is None:
                self.finish(gate, operation)
                return
            operation.step = "held"
            operation.amount = ok.get("held", operation.amount)
            if operation.token:
                self.used.append((operation.token, gate.pod, operation.digest))
                self.counts["tokens"] += 1

        return header, reserved

    def again(self, gate: Gate) -> tuple[dict[str, Any], Any]:
        """3. A token that was taken, tried once more, by whoever."""
        token, pod, digest = self.rng.choice(self.used)
        owner = self.gates.get(pod, gate) if self.rng.randrange(2) else gate
        header = {
            "op": "reserve", "reservation": self.rng.randbytes(16).hex(), "amount": 0, "operation_hash": digest,
            "principal": owner.pod, "token": token,
        }  # fmt: skip

        def tried(ok: Any, _: Any) -> None:
            self.counts["tried again"] += 1
            if ok is not None:
                raise Violated(f"a token of {pod} was taken twice, by {gate.pod}")

        return header, tried

    def append(self, gate: Gate, operation: Operation, event: str, sums: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        record = {
            "event": event, "request_id": "", "principal": gate.pod, "operation": {"kind": "run"}, "decision": {},
            "operation_hash": operation.digest, "outcome": {},
            "context": {"reservation": operation.reservation, **sums},
        }  # fmt: skip

        def recorded(ok: Any, _: Any) -> None:
            if ok is None:
                return
            if event == "intent":
                operation.step, operation.effect = "intent", True
                self.counts["effects"] += 1
            else:
                operation.outcome = True
                self.finish(gate, operation)

        return {"op": "append", "record": record}, recorded

    def ends(self, gate: Gate, operation: Operation) -> Any:
        def ended(ok: Any, _: Any) -> None:
            if ok is not None:
                self.finish(gate, operation)

        return ended

    def finish(self, gate: Gate, operation: Operation) -> None:
        if operation in gate.operations:
            gate.operations.remove(operation)
            self.done.append((gate.pod, operation))

    # A person

    def says(self) -> tuple[dict[str, Any], Any]:
        """One request of an approver, and what they make of the answer."""
        rng = self.rng
        kind = rng.randrange(8)
        if rng.randrange(30) == 0:
            return {"op": "rotate_key", "reason": "so"}, lambda ok, error: None
        if kind < 2:
            return {"op": "watch"}, lambda ok, error: None
        if kind < 5 and self.waiting:
            verb = rng.choice(("approve", "approve", "deny"))
            return {"op": verb, "request": self.waiting.pop(0), "reason": "so"}, lambda ok, error: None
        if self.entries and rng.randrange(3) == 0:
            ident = rng.choice(list(self.entries))
            header = self.entries[ident][0]
        else:
            self._number += 1
            ident = f"e{self._number}-{self.starts}"
            header = {**self.change(), "entry": ident}
        self.entries.setdefault(ident, (header, False))

        def changed(ok: Any, _: Any) -> None:
            if ok is not None:
                self.entries[ident] = (header, True)
                self.counts["entries"] += 1

        return dict(header), changed

    def change(self) -> dict[str, Any]:
        rng = self.rng
        account, amount = rng.choice(ACCOUNTS), rng.choice((1, 50, 800, 20_000))
        pods = list(self.gates) or ["nobody"]
        window = rng.choice((0, 0, 60 * SECOND, 3_600 * SECOND))
        return rng.choice((
            {"op": "budget_create", "account": account, "amount": amount, "window_ns": window},
            {"op": "budget_top_up", "account": account, "amount": amount},
            {"op": "budget_top_up", "pod": rng.choice(pods), "amount": amount},
            {"op": "budget_charge", "pod": rng.choice(pods), "amount": amount},
        ))  # fmt: skip

    # What must hold

    def check(self) -> None:
        """1, after each turn; now and then against the file too."""
        ledger = self.service.ledger
        for pod in ledger.pods.values():
            if pod.account is not None:
                self.bounded(f"pod {pod.pod}", pod.account)
        for pool in ledger.accounts.pools.values():
            self.bounded(f"account {pool.name}", pool)
        if self.rng.randrange(50) == 0:
            self.as_filed()

    def bounded(self, what: str, sums: Any) -> None:
        if sums.spent < 0 or sums.reserved < 0 or sums.spent + sums.reserved > sums.limit:
            raise Violated(f"{what}: limit {sums.limit}, spent {sums.spent}, reserved {sums.reserved}")

    def as_filed(self) -> None:
        ledger = self.service.ledger
        rows = self.read("SELECT pod, sum(amount) FROM reservations WHERE state=0 GROUP BY pod").fetchall()
        filed = dict(rows)
        for pod in ledger.pods.values():
            if pod.account is not None and pod.account.reserved != filed.get(pod.pod, 0):
                raise Violated(f"pod {pod.pod}: {pod.account.reserved} reserved, the file says {filed.get(pod.pod, 0)}")

    def read(self, sql: str) -> Any:
        """Ask the ledger's file, with no chance to fail."""
        db: Any = self.service.ledger.engine.db
        return db._db.execute(sql)

    def records(self) -> list[dict[str, Any]]:
        files, lines = LogFiles(self.service.log.path), b""
        try:
            while piece := files.pread(1 << 20, len(lines)):
                lines += piece
        finally:
            files.close()
        return [json.loads(line) for line in lines.splitlines()]

    def known(self) -> None:
        """4, 5 and 6, after each start: the authority has verified the log; nothing acknowledged is missing."""
        self.check()
        if self.rng.randrange(8) == 0:
            self.everything()

    def final(self) -> None:
        """Everything, at the end: no pod is open, so each reservation has come to its end."""
        if self.service.ledger.pods:
            raise Violated("a pod lives across a start")
        self.everything()
        self.silently(self.service.log.close, self.signer.checkpoints.close, self.service.ledger.close)

    def everything(self) -> None:
        intents: dict[str, tuple[str, int]] = {}
        ends: dict[str, list[int]] = {}
        charges: dict[str, int] = {}
        reported: dict[str, int] = {}
        changes: dict[str, int] = {}
        for record in self.records():
            event, context = record["event"], record["context"]
            if event == "intent":
                if context["reservation"] in intents:
                    raise Violated(f"two intents of {context['reservation']}")
                intents[context["reservation"]] = (record["pod"], context["reserved"])
            elif event in ("outcome", "recovery") and "reservation" in context:
                ends.setdefault(context["reservation"], []).append(context["charged"])
                charges[record["pod"]] = charges.get(record["pod"], 0) + context["charged"]
            elif event == "budget.changed":
                changes[context["entry"]] = changes.get(context["entry"], 0) + 1
                if context.get("charged"):
                    reported[record["pod"]] = reported.get(record["pod"], 0) + context["charged"]
        for name in intents:
            if len(ends.get(name, ())) != 1:
                raise Violated(f"reservation {name} resolved {len(ends.get(name, ()))} times")  # 2
        for name in ends:
            if name not in intents:
                raise Violated(f"reservation {name} was charged without an intent")
        for _, operation in self.done:
            if operation.effect and operation.reservation not in intents:
                raise Violated(f"an effect without an intent: {operation.reservation}")  # 4
            if operation.outcome and ends.get(operation.reservation) != [operation.actual]:
                raise Violated(
                    f"outcome {operation.reservation}: {operation.actual} became {ends.get(operation.reservation)}"
                )
        for ident, (header, acknowledged) in self.entries.items():
            if changes.get(ident, 0) > 1 or (acknowledged and ident not in changes):
                raise Violated(f"{header['op']} {ident}: {changes.get(ident, 0)} times on record")  # 6
        execute = self.read
        for pod, spent in execute("SELECT pod, spent FROM pods WHERE state='closed'").fetchall():
            if spent != charges.get(pod, 0) + reported.get(pod, 0):
                raise Violated(
                    f"pod {pod}: spent {spent}, on record {charges.get(pod, 0)} + {reported.get(pod, 0)}"
                )  # 2
