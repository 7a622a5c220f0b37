"""A unified diff of one replacement, made from where the matches are: linear in the file, bounded in size.

Promises: at most `DIFF_BYTES` of text; stops there with a line that says so. difflib would compare all lines with all
lines, and the file is hostile. Relies on `old` being non-empty and occurring at least once.
Does not: minimize; a line that holds a match is shown whole, removed and added.
"""

from __future__ import annotations

from collections.abc import Iterator

DIFF_BYTES = 65_536
_CONTEXT = 3  # lines
_CUT = "[diff cut]\n"
_BLOCK = 2 * DIFF_BYTES  # bytes of one block that are looked at: more could not be shown
_GROUP = DIFF_BYTES // 2  # regions of one hunk, each at least "-\\n" long: more could not be shown
_Region = tuple[int, int, bytes]  # start, end in the old bytes (whole lines), the new bytes for them


def unified(name: str, data: bytes, old: bytes, new: bytes) -> str:
    """The diff of replacing every `old` in `data` by `new`, as text (undecodable bytes as ``\\xNN``)."""
    out: list[str] = [f"--- a/{name}\n", f"+++ b/{name}\n"]
    size = sum(len(line.encode("utf-8")) for line in out)
    for piece in _hunks(data, old, new):
        text = piece.decode("utf-8", "backslashreplace")
        size += len(text.encode("utf-8"))
        if size > DIFF_BYTES - len(_CUT):
            out.append(_CUT)
            break
        out.append(text)
    return "".join(out)


def _regions(data: bytes, old: bytes, new: bytes) -> Iterator[_Region]:
    """The changed stretches of whole lines, in order, not overlapping."""
    start = end = -1
    parts: list[bytes] = []
    done = 0
    at = data.find(old)
    while at >= 0:
        after = at + len(old)
        if start >= 0 and at >= end:
            yield start, end, b"".join((*parts, data[done:end]))
            start = -1
        if start < 0:
            start = done = data.rfind(b"\n", 0, at) + 1
            parts, end = [], -1
            whole = at == start
        else:
            whole = False
        parts += (data[done:at], new)
        done = after
        if at - start > _BLOCK:  # more of this region could not be shown
            yield start, after, b"".join(parts)
            return
        if after >= end:  # looked for once per line, however many matches it holds
            closed = data[after - 1 : after] == b"\n" and (new.endswith(b"\n") or (not new and whole))
            newline = data.find(b"\n", after)
            end = after if closed else newline + 1 if newline >= 0 else len(data)
        at = data.find(old, after)
    if start >= 0:
        yield start, end, b"".join((*parts, data[done:end]))


def _hunks(data: bytes, old: bytes, new: bytes) -> Iterator[bytes]:
    """Lines of output; regions closer than two contexts share a hunk."""
    group: list[_Region] = []
    counted = line = shift = 0  # newlines before `counted`; lines added so far

    def flush() -> Iterator[bytes]:
        nonlocal counted, line, shift
        top = _lines_back(data, group[0][0])
        bottom = _lines_forward(data, group[-1][1])
        line += data.count(b"\n", counted, top)
        counted = top
        rows: list[bytes] = []
        at = top
        for start, end, replaced in group:
            rows += _rows(b" ", data[at:start])
            rows += _rows(b"-", data[start:end])
            rows += _rows(b"+", replaced)
            at = end
        rows += _rows(b" ", data[at:bottom])
        removed = sum(row[:1] in b" -" for row in rows)
        added = sum(row[:1] in b" +" for row in rows)
        yield b"@@ -%d,%d +%d,%d @@\n" % (
            line + (removed > 0), removed, line + shift + (added > 0), added,
        )  # fmt: skip
        yield from rows
        shift += added - removed

    for region in _regions(data, old, new):
        full = group and (len(group) >= _GROUP or region[0] - group[0][0] > _BLOCK)
        if full or (group and data.count(b"\n", group[-1][1], region[0]) > 2 * _CONTEXT):
            yield from flush()
            group = []
        group.append(region)
    if group:
        yield from flush()


def _rows(mark: bytes, block: bytes) -> list[bytes]:
    if not block:
        return []
    rows = [mark + row for row in block[:_BLOCK].split(b"\n")]
    last = rows.pop()
    rows = [row + b"\n" for row in rows]
    if len(last) > 1:
        rows.append(last + b"\n\\ No newline at end of file\n")
    return rows


def _lines_back(data: bytes, at: int) -> int:
    for _ in range(_CONTEXT):
        if at == 0:
            break
        at = data.rfind(b"\n", 0, at - 1) + 1
    return at


def _lines_forward(data: bytes, at: int) -> int:
    for _ in range(_CONTEXT):
        newline = data.find(b"\n", at)
        if newline < 0:
            return len(data)
        at = newline + 1
    return at
