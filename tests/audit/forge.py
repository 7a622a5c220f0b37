"""What somebody with the log's file could make of it: every hash right, the contents theirs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nucleus.audit.chain import Head, extend
from nucleus.audit.record import Record

PLACE = {"v", "seq", "prev", "hash"}


def rechain(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]], drop: int = 0) -> None:
    """Rewrite a log: each record through `change`, the last `drop` left out, the chain made anew."""
    head, data = Head(), b""
    lines = path.read_bytes().splitlines()
    for line in lines[: len(lines) - drop]:
        fields = {name: value for name, value in change(json.loads(line)).items() if name not in PLACE}
        head, made = extend(head, Record(**fields))
        data += made
    path.write_bytes(data)
