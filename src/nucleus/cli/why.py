"""`nucleus why`: what was refused last, which rule did it, and what to do so that it is not.

Promises: reads the audit log alone, from its end, and verifies nothing (`nucleus audit verify` does); what the agent
chose is escaped; a log that cannot be read is an error with a next step.
Does not: decide again: the policy may be another one by now.
"""

from __future__ import annotations

import json
import os
import sys

from nucleus.cli.options import FLAG, ONE, invalid, parse
from nucleus.errors import AuditError, OperationError
from nucleus.pod.runtime import state_dir

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

USAGE = """\
usage: nucleus why [--last | --request ID] [--pod POD] [--json]

  --last         the last operation that was refused (also without it)
  --request ID   that request
  --pod POD      of that pod
  --json         the record and the next step as JSON
"""
TAIL_BYTES = 16_777_216  # of the log, that are looked through
REFUSED = ("denied", "error", "invalid", "unauthenticated")


def main(argv: list[str]) -> int:
    """Run the verb. Raises NucleusError."""
    options, rest = parse(argv, {"last": FLAG, "request": ONE, "pod": ONE, "json": FLAG, "help": FLAG})
    if options["help"]:
        sys.stdout.write(USAGE)
        return 0
    if rest:
        raise invalid(f"unexpected argument {rest[0][:100]!r}")
    path = os.path.join(state_dir(), "audit.jsonl")
    found = _find(path, options["request"], options["pod"])
    if found is None:
        what = "no such request" if options["request"] else "nothing was refused"
        raise OperationError(
            f"{what} in the last {TAIL_BYTES >> 20} MiB of {path}",
            rule="why.record",
            next_step="`nucleus audit show` has the whole log.",
        )
    step = next_step(found)
    if options["json"]:
        sys.stdout.write(json.dumps({"record": found, "next_step": step}) + "\n")
        return 0
    sys.stdout.write(_told(found, step))
    return 0


def _find(path: str, request: str, pod: str) -> dict[str, Any] | None:
    for record in records_backwards(path):
        if pod and record.get("pod") != pod:
            continue
        if record.get("request_id") == request if request else _refused(record):
            return record
    return None


def _refused(record: dict[str, Any]) -> bool:
    outcome = record.get("outcome")
    status = outcome.get("status", "ok") if isinstance(outcome, dict) else "ok"
    return record.get("event") in REFUSED or (record.get("event") == "outcome" and status != "ok")


def records_backwards(path: str) -> list[dict[str, Any]]:
    """The records at the log's end, the last one first."""
    from nucleus.store.segments import LogFiles  # weight

    data = b""
    try:
        with LogFiles(path) as log:
            size = log.size
            at = first = max(0, size - TAIL_BYTES)
            while chunk := log.pread(size - at, at) if at < size else b"":
                at += len(chunk)
                data += chunk
    except OSError as error:
        raise AuditError(
            f"the audit log {path} cannot be read: {error.strerror}",
            rule="why.log",
            next_step="Run it as the user who runs Nucleus, or name the state directory in NUCLEUS_STATE.",
        ) from error
    lines = data.split(b"\n")
    found = []
    for line in reversed(lines[1:] if first else lines):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue  # half a line, at either end
        if isinstance(record, dict):
            found.append(record)
    return found


def _told(record: dict[str, Any], step: str) -> str:
    from nucleus.approval.display import escape
    from nucleus.cli.audit import clock, short

    decision, outcome = _part(record, "decision"), _part(record, "outcome")
    lines = [
        f"{clock(int(record.get('time_ns', 0)) // 1_000_000_000)}Z  pod {record.get('pod') or '-'}  "
        f"request {record.get('request_id') or '-'}",
        f"  tried:  {short(_part(record, 'operation')) or 'something that could not be read'}",
        f"  answer: {outcome.get('status', '')}: {outcome.get('reason', '')}",
        f"  rule:   {decision.get('rule') or outcome.get('rule') or '-'}",
    ]
    if decision.get("detail"):
        lines.append(f"  line:   {decision['detail']}")
    lines.append(f"  next:   {step}")
    return "\n".join(escape(line) for line in lines) + "\n"


def _part(record: dict[str, Any], name: str) -> dict[str, Any]:
    value = record.get(name)
    return value if isinstance(value, dict) else {}


def next_step(record: dict[str, Any]) -> str:
    """What the person can do, by the rule that fired."""
    operation, outcome = _part(record, "operation"), _part(record, "outcome")
    rule = str(_part(record, "decision").get("rule") or outcome.get("rule") or "")
    if outcome.get("rule") in _OUTCOMES:
        return _OUTCOMES[str(outcome["rule"])]
    if rule == "network.allow" and isinstance(operation.get("host"), str):
        return f"Add to `network.allow` of the policy, if it is meant: - {line_to_add(operation)}"
    if rule in _STEPS:
        return _STEPS[rule]
    if outcome.get("status") == "approval_required":
        return "Have somebody answer: `nucleus approvals watch` in a second terminal; or change the policy."
    title = rule.partition(".")[0]
    if title in ("capabilities", "paths", "commands", "hosts", "tools", "approve", "time_window", "isolation"):
        return f"Change `{rule}` in the policy if it is meant; `nucleus policy explain` shows what a policy decides."
    return "`nucleus audit show` has the whole record."


_STEPS = {
    "network.inner": "The client has to name the host that it connects to (TLS server name, Host), in the clear.",
    "network.request": "Change the protocol, methods or paths of the rule in `network.allow`.",
    "paths.protected": "No policy lifts this; change the file yourself, outside the pod.",
}
_OUTCOMES = {
    "network.unreachable": "The policy allowed it; the server did not answer, or its address is not public.",
    "pod.egress": "Nothing in this version carries it out of the pod.",
}


def line_to_add(operation: dict[str, Any]) -> str:
    """The rule that would cover a connection, as YAML."""
    host, port = str(operation.get("host")), operation.get("port")
    if ":" in host:
        return f'"[{host}/128]:{port}"'
    if host.replace(".", "").isdigit():
        return f"{host}/32:{port}"
    return host if port == 443 else f"{host}:{port}"
