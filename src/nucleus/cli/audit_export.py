"""Records for other programs: CSV, JSON, and OCSF 1.3.0 (API Activity, class 6003).

Promises: one record in, its text out, nothing kept; a CSV cell that a spreadsheet would take for a formula begins with
an apostrophe; an OCSF event has every attribute that its class requires and no unknown one outside `unmapped`.
Does not: verify (`audit_read` does, before).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from typing import Any

from nucleus import __version__

Write = Callable[[str], object]
OCSF_VERSION = "1.3.0"
CATEGORY, CLASS = 6, 6003  # Application Activity, API Activity
_CREATE, _READ, _UPDATE, _OTHER = 1, 2, 3, 99
_NAMES = {_CREATE: "Create", _READ: "Read", _UPDATE: "Update", _OTHER: "Other"}
_ACTIVITIES = {
    "read": _READ, "glob": _READ, "grep": _READ, "git_diff": _READ, "git_status": _READ,
    "web_fetch": _READ, "web_search": _READ, "write": _CREATE, "create_pr": _CREATE, "edit": _UPDATE,
    "git_commit": _UPDATE, "git_push": _UPDATE,
}  # fmt: skip
# severity_id: 1 informational, 2 low, 3 medium, 4 high
_SEVERITIES = {"unauthenticated": 4, "identity.refused": 4, "denied": 3, "error": 3, "recovery": 3, "invalid": 2}
_SEVERITY_NAMES = {1: "Informational", 2: "Low", 3: "Medium", 4: "High"}
_REFUSED = frozenset({"denied", "invalid", "unauthenticated", "error", "identity.refused"})
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
COLUMNS = (
    "seq", "time", "time_ns", "pod", "event", "request_id", "principal", "operation", "status", "rule", "verdict",
    "reason", "operation_json", "decision_json", "outcome_json", "context_json", "hash",
)  # fmt: skip


class Json:
    """One array; a line for each record."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._comma = "\n"

    def begin(self) -> None:
        """Before the first."""
        self._write("[")

    def record(self, record: dict[str, Any]) -> None:
        """One more."""
        self._write(self._comma + json.dumps(record, separators=(",", ":")))
        self._comma = ",\n"

    def end(self) -> None:
        """After the last."""
        self._write("\n]\n")


class Csv:
    """RFC 4180, a header line first."""

    def __init__(self, write: Write) -> None:
        self._writer = csv.writer(_File(write), quoting=csv.QUOTE_ALL, lineterminator="\r\n")

    def begin(self) -> None:
        """The header."""
        self._writer.writerow(COLUMNS)

    def record(self, record: dict[str, Any]) -> None:
        """One more."""
        decision, outcome, operation = (_dict(record[name]) for name in ("decision", "outcome", "operation"))
        kind = operation.get("kind", "") if operation else record["operation"] or ""
        row = [
            record["seq"], time_of(record["time_ns"]), record["time_ns"], record["pod"], record["event"],
            record["request_id"], record["principal"], kind, outcome.get("status", ""),
            outcome.get("rule") or decision.get("rule", ""), decision.get("verdict", ""), outcome.get("reason", ""),
            *(json.dumps(record[name]) for name in ("operation", "decision", "outcome", "context")), record["hash"],
        ]  # fmt: skip
        self._writer.writerow([cell if type(cell) is int else guarded(str(cell)) for cell in row])

    def end(self) -> None:
        """Nothing follows."""


class Ocsf:
    """One event a line."""

    def __init__(self, write: Write) -> None:
        self._write = write

    def begin(self) -> None:
        """Nothing comes before."""

    def record(self, record: dict[str, Any]) -> None:
        """One more."""
        self._write(json.dumps(ocsf(record), separators=(",", ":")) + "\n")

    def end(self) -> None:
        """Nothing follows."""


FORMATS: dict[str, type[Json] | type[Csv] | type[Ocsf]] = {"csv": Csv, "json": Json, "ocsf": Ocsf}


class _File:
    """What `csv` writes to."""

    def __init__(self, write: Write) -> None:
        self.write = write


def guarded(cell: str) -> str:
    """A cell's text that no spreadsheet computes; NUL and lone surrogates are escaped: not every reader takes them."""
    text = cell.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode("utf-8")
    return "'" + text if text.lstrip(" ").startswith(_FORMULA) or text.startswith(_FORMULA) else text


def ocsf(record: dict[str, Any]) -> dict[str, Any]:
    """The event of one record."""
    event, operation, outcome = record["event"], _dict(record["operation"]), _dict(record["outcome"])
    decision, context = _dict(record["decision"]), _dict(record["context"])
    kind = str(operation.get("kind", "")) if operation else str(record["operation"] or "")
    activity = _ACTIVITIES.get(kind, _OTHER)
    status = str(outcome.get("status", ""))
    failed = event in _REFUSED or status not in ("", "ok")
    severity = _SEVERITIES.get(event, 2 if failed else 1)
    made: dict[str, Any] = {
        "activity_id": activity,
        "activity_name": _NAMES[activity] if activity != _OTHER else kind or event,
        "actor": {"user": _user(record["principal"])},
        "api": {
            "operation": kind or event,
            "service": {"name": "nucleus"},
            "request": {"uid": record["request_id"] or record["hash"]},
            "response": {"message": status or event},
        },
        "category_name": "Application Activity",
        "category_uid": CATEGORY,
        "class_name": "API Activity",
        "class_uid": CLASS,
        "message": f"{event} {kind}".strip(),
        "metadata": {
            "version": OCSF_VERSION,
            "product": {"name": "Nucleus", "vendor_name": "Nucleus", "version": __version__},
            "uid": record["hash"],
            "sequence": record["seq"],
            "log_name": "audit",
            "event_code": event,
        },
        "severity": _SEVERITY_NAMES[severity],
        "severity_id": severity,
        "src_endpoint": {"name": record["pod"] or "nucleus", "uid": record["pod"] or "nucleus"},
        "status": "Failure" if failed else "Success",
        "status_id": 2 if failed else 1,
        "time": record["time_ns"] // 1_000_000,
        "type_name": f"API Activity: {_NAMES[activity]}",
        "type_uid": CLASS * 100 + activity,
        "unmapped": {"operation": record["operation"], "decision": decision, "outcome": outcome, "context": context},
    }
    if record["request_id"]:
        made["metadata"]["correlation_uid"] = record["request_id"]
    if failed and (reason := outcome.get("reason")):
        made["status_detail"] = str(reason)
    if rule := outcome.get("rule") or decision.get("rule"):
        made["status_code"] = str(rule)
    if type(duration := outcome.get("duration_ns")) is int:
        made["duration"] = duration // 1_000_000
    return made


def _user(principal: str) -> dict[str, Any]:
    if not principal:
        return {"name": "nucleus", "type": "System", "type_id": 3}
    return {"uid": principal, "name": principal.rpartition("/")[2], "type": "User", "type_id": 1}


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def time_of(ns: int) -> str:
    """UTC, to the millisecond."""
    import time

    seconds, rest = divmod(ns, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest // 1_000_000:03d}Z"
