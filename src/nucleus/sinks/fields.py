"""What of a record a receiver searches by: its grade, and its fields in few words."""

from __future__ import annotations

from typing import Any

_GRADES = {
    "unauthenticated": "error", "identity.refused": "error", "error": "error", "denied": "warning",
    "invalid": "warning", "recovery": "warning", "identity.revoked": "notice", "network.changed": "notice",
    "budget.changed": "notice", "approval": "notice", "identity.federated": "notice",
    "workspace.applied": "notice",
}  # fmt: skip


def severity(record: dict[str, Any]) -> str:
    """``info``, ``notice``, ``warning`` or ``error``."""
    if record["event"] == "outcome" and _word(record["outcome"], "status") not in ("", "ok"):
        return "warning"
    return _GRADES.get(record["event"], "info")


def summary(record: dict[str, Any]) -> dict[str, str]:
    """The fields to search for, as text; "" for one that the record does not have."""
    operation, outcome, decision = record["operation"], record["outcome"], record["decision"]
    return {
        "seq": str(record["seq"]),
        "event": str(record["event"]),
        "pod": str(record["pod"]),
        "principal": str(record["principal"]),
        "operation": operation if isinstance(operation, str) else _word(operation, "kind"),
        "outcome": outcome if isinstance(outcome, str) else _word(outcome, "status"),
        "verdict": _word(decision, "verdict"),
        "rule": _word(outcome, "rule") or _word(decision, "rule"),
        "request": str(record["request_id"]),
        "hash": str(record["hash"]),
    }


def _word(value: Any, name: str) -> str:
    return str(value.get(name, "")) if isinstance(value, dict) else ""


def clean(text: str) -> str:
    """Without NUL and lone surrogates, which receivers refuse: each as an escape."""
    return text.replace("\0", "\\u0000").encode("utf-8", "backslashreplace").decode("utf-8")
