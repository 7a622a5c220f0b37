"""``otlp+https://HOST[:4318][/v1/logs]``, ``otlp+http://…``: OpenTelemetry log records, OTLP/HTTP with JSON.

The body of a log record is the audit record as stored, its attributes ``nucleus.*`` are the fields to search for.
The file of --secret has headers, ``Name: value`` a line.

Promises: delivered means a 200 that rejects nothing. Other answers are taken as the OTLP specification has them: 429,
502, 503, 504 (and 408, 425, 500) come again, after Retry-After; all others, and records that a collector says it has
rejected, are not tried again: the person is told.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import SplitResult

from nucleus import __version__
from nucleus.errors import InvalidError
from nucleus.sinks.base import (
    Entry,
    Later,
    Options,
    Rejected,
    bad_address,
    check_plaintext,
    query,
    secret_lines,
)
from nucleus.sinks.connection import Answer, Http, tls_context
from nucleus.sinks.fields import clean, severity, summary

PORT, PATH = 4318, "/v1/logs"
# SeverityNumber of the log data model
_NUMBERS = {"info": (9, "INFO"), "notice": (10, "INFO2"), "warning": (13, "WARN"), "error": (17, "ERROR")}
_OWN = {"host", "content-type", "content-length", "transfer-encoding", "connection"}


class Collector:
    """See the module. Raises InvalidError."""

    batch = 500

    def __init__(self, parts: SplitResult, options: Options) -> None:
        query(parts, ())
        if not parts.hostname:
            raise bad_address(f"{parts.scheme}://HOST[:PORT]")
        if parts.scheme == "otlp+http":
            check_plaintext(parts.hostname, options)
        context = tls_context(options.roots) if parts.scheme == "otlp+https" else None
        self._http = Http(parts.hostname, parts.port or PORT, context)
        self._path = parts.path.rstrip("/") or PATH
        self._headers = {"Content-Type": "application/json", "User-Agent": f"nucleus/{__version__}"}
        for line in secret_lines(options.secret):
            name, colon, value = line.partition(":")
            if not colon or not name.replace("-", "").isalnum() or name.lower() in _OWN:
                raise InvalidError(f"{options.secret}: a line is not Name: value", rule="ship.secret")
            self._headers[name] = value.strip()

    def deliver(self, origin: str, entries: Sequence[Entry]) -> None:
        """See `Sink`."""
        self._post(origin, [_log_record(entry) for entry in entries])

    def pin(self, origin: str, size: int, note: str) -> None:
        """See `Sink`: the event is ``checkpoint``, the body the note."""
        self._post(origin, [{
            "timeUnixNano": str(time.time_ns()), "severityNumber": 9, "severityText": "INFO",
            "eventName": "nucleus.audit.checkpoint", "body": {"stringValue": note},
            "attributes": [_attribute("nucleus.event", "checkpoint"), _attribute("nucleus.size", str(size))],
        }])  # fmt: skip

    def close(self) -> None:
        """See `Sink`."""
        self._http.close()

    def _post(self, origin: str, records: list[dict[str, Any]]) -> None:
        resource = [
            _attribute("service.name", "nucleus"), _attribute("service.version", __version__),
            _attribute("nucleus.log", origin),
        ]  # fmt: skip
        scope = {"name": "nucleus.audit", "version": __version__}
        logs = {"resource": {"attributes": resource}, "scopeLogs": [{"scope": scope, "logRecords": records}]}
        body = json.dumps({"resourceLogs": [logs]}, separators=(",", ":")).encode()
        _judge(self._http.request("POST", self._path, self._headers, body), len(records))


def _judge(answer: Answer, sent: int) -> None:
    if answer.temporary():
        raise Later(f"the collector answers {answer.status}", answer.wait_s())
    if answer.status != 200:
        raise Rejected(f"the collector answers {answer.status}")
    if not answer.body.strip():
        return
    try:
        partial = json.loads(answer.body).get("partialSuccess") or {}
        rejected = int(partial.get("rejectedLogRecords", 0))  # an int64 is text in this JSON
        said = str(partial.get("errorMessage", ""))
    except (ValueError, AttributeError, TypeError, RecursionError, OverflowError):  # 1e999 is JSON, too
        raise Rejected("the collector's answer is not OTLP") from None
    if rejected:
        raise Rejected(f"the collector rejects {rejected} of {sent} records: {said}")


def _log_record(entry: Entry) -> dict[str, Any]:
    record = entry.record
    number, word = _NUMBERS[severity(record)]
    return {
        "timeUnixNano": str(record["time_ns"]),
        "observedTimeUnixNano": str(time.time_ns()),
        "severityNumber": number,
        "severityText": word,
        "eventName": f"nucleus.audit.{record['event']}",
        "body": {"stringValue": entry.line.removesuffix(b"\n").decode("ascii")},
        "attributes": [_attribute(f"nucleus.{name}", clean(value)) for name, value in summary(record).items() if value],
    }


def _attribute(name: str, value: str) -> dict[str, Any]:
    return {"key": name, "value": {"stringValue": value}}
