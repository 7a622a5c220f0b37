"""What a person is shown before they say yes: exactly what will run, one fact a line.

Pure. The authority escapes control and bidirectional characters before a terminal sees the lines.
"""

from __future__ import annotations

import hashlib
import json

from nucleus.model.operation import Base

_SHOWN = 4_000  # characters of one field; the rest is named by size and SHA-256


def display_lines(operation: Base) -> tuple[str, ...]:
    """The operation's fields as ``name: value``; argv as a JSON list, so that no quoting hides a boundary."""
    raw = operation.model_dump(mode="json")
    lines = [f"operation: {raw.pop('kind')}"]
    for name, value in raw.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=True)
        if len(text) > _SHOWN:
            data = text.encode("utf-8", "surrogatepass")
            digest = hashlib.sha256(data).hexdigest()
            text = f"{text[:_SHOWN]} … ({len(data)} bytes in all, sha256 {digest})"
        lines.append(f"{name}: {text}")
    return tuple(lines)
