"""What a named session has seen, read back from the audit log: there is no other memory of it.

A session is a name that a launcher gives to pods that follow one another (``--session``), within a namespace. The log
says which pods were its own (``pod.start``) and what each of them was about to see (``exposes`` of an intent).
Promises: the union of all of that; a line of it that does not read back makes it `UNKNOWN`, which is everything.
Relies on: the log having been verified when it was opened, and this process being its only writer.
Costs: two passes over the log's files for its two marks (about a second for a gigabyte), for pods with a session alone.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator
from typing import Any

from nucleus.lattice.exposure import NOTHING, UNKNOWN, Exposure
from nucleus.store.segments import closed, gaps


def rebuild(path: str, namespace: str, session: str) -> Exposure:
    """What the pods of `session` have seen.

    Args:
        path: the log's file; its closed segments are beside it. One that is missing makes it `UNKNOWN`.
        namespace, session: DNS labels.
    """
    try:
        segments = closed(path)
        if gaps(segments):
            return UNKNOWN
        return _read([*(segment.path for segment in segments), path], namespace, session)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return UNKNOWN


def _read(paths: list[str], namespace: str, session: str) -> Exposure:
    pods = set()
    for record in _lines(paths, f'"session":"{session}"'.encode("ascii")):
        context = record["context"]
        # An operation may hold the same bytes; only the authority writes a pod.start.
        if record["event"] == "pod.start" and (context["session"], context["namespace"]) == (session, namespace):
            pods.add(record["pod"])
    seen = NOTHING
    if pods:
        for record in _lines(paths, b'"exposes":'):
            if record["pod"] in pods and record["event"] == "intent" and "exposes" in record["context"]:
                seen = seen.join(Exposure.from_data(record["context"]["exposes"]))
    return seen


def _lines(paths: list[str], mark: bytes) -> Iterator[dict[str, Any]]:
    """The records whose line holds `mark`, each once."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if os.fstat(fd).st_size:
                with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as log:
                    yield from _marked(log, mark)
        finally:
            os.close(fd)


def _marked(log: mmap.mmap, mark: bytes) -> Iterator[dict[str, Any]]:
    at = log.find(mark)
    while at >= 0:
        start = log.rfind(b"\n", 0, at) + 1
        end = log.find(b"\n", at)
        end = len(log) if end < 0 else end
        record = json.loads(log[start:end])
        if not isinstance(record, dict):
            raise ValueError("not a record")
        yield record
        at = log.find(mark, end)
