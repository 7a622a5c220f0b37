"""What a person is shown before they say yes: exactly what will run, one fact a line.

Promises: everything that says what will be done (argv, a command's input, paths, messages) is shown whole, or nobody is
asked: a cut is where the dangerous part would be. Only a file's long text is shown by its beginning and its end, and
its line's name says so.
Pure. The authority escapes control and bidirectional characters before a terminal sees the lines.
"""

from __future__ import annotations

import hashlib
import json

from nucleus.approval.display import fits
from nucleus.errors import ApprovalRequiredError
from nucleus.model.operation import Base

_HEAD = 3_000  # characters of a file's text; what is left out is named by size and SHA-256
_TAIL = 1_000
_FILE_TEXT = frozenset({"content", "old", "new"})


def display_lines(operation: Base, because: str = "") -> tuple[str, ...]:
    """The operation's fields as ``name: value``; argv as a JSON list, so that no quoting hides a boundary.

    Args:
        because: what made it ask (a decision's detail: which sources completed the trifecta, which line it met).

    Raises:
        ApprovalRequiredError: too much to be shown (rule ``approval.display``).
    """
    raw = operation.model_dump(mode="json")
    lines = [f"operation: {raw.pop('kind')}"]
    for name, value in raw.items():
        if name == "files":
            lines += [f"file {path}: {digest if ' ' in digest else f'sha256 {digest}'}" for path, digest in value]
            continue
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=True)
        if name in _FILE_TEXT and len(text) > _HEAD + _TAIL:
            data = text.encode("utf-8", "surrogatepass")
            digest = hashlib.sha256(data).hexdigest()
            cut = f"… ({len(text) - _HEAD - _TAIL} characters not shown; {len(data)} bytes in all, sha256 {digest}) …"
            name, text = f"{name} (NOT SHOWN WHOLE)", f"{text[:_HEAD]} {cut} {text[-_TAIL:]}"
        lines.append(f"{name}: {text}")
    if because:
        lines.append(f"because: {because}")
    if not fits(lines):
        raise ApprovalRequiredError(
            "too long to be shown to a person whole, so nobody can approve it",
            rule="approval.display",
            next_step="Ask for less at a time: write a long script to a file, then ask to run the file.",
        )
    return tuple(lines)
