"""What one pod did, read from the audit log as evidence to learn from.

Numbered steps:
 1. The log is read from the record before the pod's start on, and verified as `nucleus audit verify` does: an edited,
    missing or reordered record is an error, and nothing is learnt.
 2. The pod's own records alone count, and they have to be complete: `pod.start` to `pod.stop`.
 3. An intent is an accepted operation, unless its outcome says that it was denied on the way (a symlink); what a
    symlink resolved to was accepted with it. `denied` is a refusal, its answer (`approval`) says whose.
Promises: a record that is no operation is counted, never guessed at.
Relies on: the log's own integrity before the pod's start (the authority verified it when it opened it).
Does not: learn (`nucleus.lattice.learn`).
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from nucleus.audit.chain import Head
from nucleus.audit.record import LINE_BYTES
from nucleus.audit.verify import Verifier
from nucleus.errors import AuditError
from nucleus.lattice.learn_evidence import Event, Facts
from nucleus.model.operation import ADAPTER, Base
from nucleus.store.segments import LogFiles

_CHUNK = 1 << 20
_UNREAD = ("invalid", "unauthenticated", "identity.refused")


def records_of(path: str, offset: int, pod: str) -> list[dict[str, Any]]:
    """Steps 1 and 2.

    Args:
        path: the log.
        offset: where it ended before the pod started, in bytes.
        pod: its name.

    Raises:
        AuditError: rule ``learn.log``: it cannot be read, does not verify, or does not hold the pod whole.
    """
    found: list[dict[str, Any]] = []

    def keep(record: dict[str, Any]) -> None:
        if record["pod"] == pod:
            found.append(record)

    try:
        with LogFiles(path) as log:
            head = _before(log, offset)
            verifier = Verifier(start=head, on_record=keep)
            at = head.offset
            # What follows pod.stop is of other pods, and its last line may be half written.
            while (chunk := log.pread(_CHUNK, at)) and verifier.feed(chunk):
                at += len(chunk)
    except OSError as error:
        raise _unusable(path, error.strerror or type(error).__name__) from error
    if (problem := verifier.finish().problem) and not problem.startswith("truncated in mid-line"):
        raise _unusable(path, problem)
    events = [record["event"] for record in found]
    if events[:1] != ["pod.start"] or events[-1:] != ["pod.stop"]:
        raise _unusable(path, f"pod {pod} is not on record from its start to its end")
    return found


def _before(log: LogFiles, offset: int) -> Head:
    """The head after the last whole line that ends at or before `offset`."""
    start = max(offset - 2 * LINE_BYTES, 0)
    data = b""
    while start + len(data) < offset and (chunk := log.pread(offset - start - len(data), start + len(data))):
        data += chunk
    lines = data.split(b"\n")
    if len(lines) < 2:
        return Head()
    last = lines[-2]
    try:
        seq = json.loads(last)["seq"]
    except (ValueError, KeyError, TypeError):
        raise AuditError("the record before the pod's start is no record", rule="learn.log") from None
    # The hash covers the line up to the hash itself.
    digest = hashlib.sha256(last.rpartition(b',"hash"')[0]).hexdigest()
    return Head(seq, digest, offset - len(lines[-1]))


def _unusable(path: str, problem: str) -> AuditError:
    return AuditError(
        f"nothing was learnt: {path}: {problem}",
        rule="learn.log",
        next_step="`nucleus audit verify` says more of it.",
    )


def evidence(records: list[dict[str, Any]], base: str, task: str, *, shared: bool) -> tuple[list[Event], Facts]:
    """Step 3.

    Args:
        records: of one pod, as `records_of` returned them.
        base: how a person knows the base policy.
        task: the person's own words.
        shared: the agent had a view of the workspace besides.
    """
    outcomes = {record["request_id"]: record for record in records if record["event"] == "outcome"}
    said_no = {record["operation_hash"] for record in records if _answer(record) == "deny"}
    answers = [record for record in records if _answer(record) == "approve"]
    events: list[Event] = []
    unread = 0
    for record in records:
        if record["event"] == "intent":
            events += _accepted(record, outcomes.get(record["request_id"]), answers)
        elif record["event"] in ("denied", "error"):
            events.append(_refused(record, said_no))
        elif record["event"] in _UNREAD:
            unread += 1
    unread += sum(event.operation is None for event in events)
    return events, _facts(records, base, task, events, shared=shared, unread=unread)


def _answer(record: dict[str, Any]) -> str:
    return str(record["decision"].get("verdict", "")) if record["event"] == "approval" else ""


def _operation(raw: object) -> Base | None:
    """As it was decided, its bulky texts aside (they decide nothing); None where the record was cut."""
    from pydantic import ValidationError

    try:
        found: Base = ADAPTER.validate_json(json.dumps(raw))  # arrays are tuples there
    except (ValidationError, ValueError):
        return None
    return found


def _kind(record: dict[str, Any]) -> str:
    return str(record["operation"].get("kind", "")) if isinstance(record["operation"], dict) else ""


def _accepted(record: dict[str, Any], outcome: dict[str, Any] | None, answers: list[dict[str, Any]]) -> list[Event]:
    operation, kind = _operation(record["operation"]), _kind(record)
    resolved = outcome["context"].get("resolved") if outcome is not None else None
    target = operation
    if isinstance(resolved, str) and operation is not None:
        (name, *_) = operation.path_fields
        target = _operation({**record["operation"], name: resolved})
    if outcome is not None and outcome["outcome"].get("status") == "denied":
        return [
            Event(
                record["seq"], record["time_ns"], kind, target, accepted=False,
                rule=str(outcome["outcome"].get("rule", "")), reason=str(outcome["outcome"].get("reason", "")),
            )
        ]  # fmt: skip
    approver = str(record["decision"].get("approver") or "")
    approval = 0
    if approver:
        mine = [a for a in answers if a["operation_hash"] == record["operation_hash"] and a["seq"] < record["seq"]]
        if mine:
            approval = mine[0]["seq"]
            answers.remove(mine[0])  # one yes, one operation
    events = [Event(record["seq"], record["time_ns"], kind, operation, True, approver, approval)]
    if target is not operation:
        events.append(Event(record["seq"], record["time_ns"], kind, target, True))
    return events


def _refused(record: dict[str, Any], said_no: set[str]) -> Event:
    verdict = record["decision"].get("verdict", "")
    return Event(
        record["seq"], record["time_ns"], _kind(record), _operation(record["operation"]), accepted=False,
        rule=str(record["outcome"].get("rule", "")), reason=str(record["outcome"].get("reason", "")),
        by_policy=verdict in ("ask", "deny"),
        unanswered=verdict == "ask" and record["operation_hash"] not in said_no,
    )  # fmt: skip


def _facts(
    records: list[dict[str, Any]], base: str, task: str, events: list[Event], *, shared: bool, unread: int
) -> Facts:
    start = records[0]
    spent = held = most = 0
    open_holds: dict[str, int] = {}
    for record in records:
        if record["event"] == "intent":
            open_holds[record["request_id"]] = int(record["context"].get("reserved", 0))
        elif record["event"] == "outcome":
            spent += int(record["context"].get("charged", 0))
            open_holds.pop(record["request_id"], None)
        held = sum(open_holds.values())
        most = max(most, held)
    context = start["context"]
    isolation = context.get("isolation")
    return Facts(
        pod=start["pod"],
        base=base,
        digest=str(context.get("policy_digest", "")),
        started_ns=start["time_ns"],
        ended_ns=max(record["time_ns"] for record in records if record["event"] != "pod.stop"),
        spent=spent,
        held=most,
        # Without a gateway none of these gets further than the decision.
        egress=any(event.accepted and event.operation is not None and event.operation.egress for event in events),
        trusted_workspace=context.get("trusted_workspace") is True,
        isolation=str(isolation.get("backend", "")) if isinstance(isolation, dict) else "",
        task=task,
        shared=shared,
        unread=unread,
    )
