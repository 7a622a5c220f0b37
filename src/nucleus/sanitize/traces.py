"""Stack traces become one line ``[stack trace]`` and the exception's own line.

Shapes: Python (chained, grouped, one-line with escaped new lines), Java and .NET and Node (``at …`` lines), Go
(``goroutine 1 [running]:``), Rust (``stack backtrace:``), Ruby, PHP, and the ``#0 0x… in f`` lines of native tools.
What follows the mark: the last exception of a Python chain; of the others the message that stands before the frames
(the last ``Caused by:``), because there the message comes first.

Promises: linear (each line is looked at a bounded number of times); the exception's line is left for the other steps.
Does not: judge the message, or find a trace whose frames have been reworded.
"""

from __future__ import annotations

from nucleus.sanitize.patterns import Pattern

MARK = "[stack trace]"
_PYTHON = "Traceback (most recent call last)"
_HINTS = ("\tat ", "   at ", "goroutine ", "backtrace:", "#0 ", "#1 ", ":in `", ":in '")
# One line each, anchored at its start, no class meeting its neighbour: linear.
FRAME = Pattern(
    r"\s{1,16}at (?:async |new )?[^\s(:][^\n]{0,400}(?:\)|:\d{1,7}|:line \d{1,7})$"  # Java, Node, .NET, Rust
    r"|\s{1,16}at (?:<anonymous>|native)$"
    r"|\s{1,16}\.\.\. \d{1,6} (?:more|common frames omitted)$"
    r"|\s{0,16}#\d{1,4} {1,2}0x[0-9a-f]{1,16} in [^\n]{0,400}$"  # native tools
    r"|#\d{1,4} (?:\{main\}|[^\n(]{1,400}\(\d{1,7}\): [^\n]{0,400})$"  # PHP
    r"|\s{1,16}from [^\s:]{1,400}:\d{1,7}(?::in [^\n]{0,200})?$"  # Ruby
    r"|\s{1,8}\d{1,4}: {1,4}(?:0x[0-9a-f]{1,16} - )?[A-Za-z_<][^\n]{0,400}$"  # Rust, after its heading
)
GOROUTINE = Pattern(r"goroutine \d{1,12} [^\n:]{0,100}:$")
GO_LINE = Pattern(r"(?:\t/?[^\n]{0,400}|[\w./*()\-]{1,400}\([^\n]{0,400}\)|created by [^\n]{0,400})$")
CHAIN = (
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
)


def collapse(text: str) -> tuple[str, bool]:
    """`text` with every stack trace as ``[stack trace]`` and one line; whether another round could find more."""
    python = _PYTHON in text
    if not python and ("\n" not in text or not any(hint in text for hint in _HINTS)):
        return text, False
    after = _others(_python(text, "\\n" if f"{_PYTHON}:\\n" in text else "\n") if python else text)
    # A line that was too long for a frame may be one when its path has been mapped.
    return after, python or after != text or len(max(text.split("\n"), key=len)) > 300


def _python(text: str, newline: str) -> str:
    out: list[str] = []
    lines = text.split(newline)
    position = 0
    marked = -1  # where in `out` the mark of the chain that may go on is
    while position < len(lines):
        line = lines[position]
        at = line.find(_PYTHON)
        if at < 0:
            out.append(line)
            position += 1
            continue
        lead = line[:at].rstrip("+| ").removesuffix("Exception Group").rstrip("+| ")
        if (
            marked >= 0
            and not lead
            and all(not other.strip(" |") or other.strip(" |") in CHAIN for other in out[marked + 2 :])
        ):
            lead = out[marked].removesuffix(MARK).rstrip()
            del out[marked:]  # the chain's earlier exception goes: the last line is the one that counts
        position += 1
        inner = ""  # of a group: its members' own lines
        while position < len(lines) and (lines[position][:1] in (" ", "\t", "|") or not lines[position].strip()):
            if not lines[position].strip() and not _goes_on(lines, position + 1):
                break
            part = lines[position].strip().removeprefix("| ")
            if part[:1] not in (" ", "|", "+", "") and "| " in lines[position] and _PYTHON not in part:
                inner = part
            position += 1
        marked = len(out)
        out.append(f"{lead} {MARK}" if lead else MARK)
        if inner:
            out.append(inner)
        elif position < len(lines):
            out.append(lines[position])
            position += 1
    return newline.join(out)


def _goes_on(lines: list[str], position: int) -> bool:
    return position < len(lines) and lines[position][:1] in (" ", "\t", "|")


def _others(text: str) -> str:
    out: list[str] = []
    frames = go = False  # the line before was a frame; of Go
    mark = -1  # where in `out` the mark of the trace that may go on is; its message follows it
    for line in text.split("\n"):
        if GOROUTINE.match(line):
            go = True
        go = go and (not line or GOROUTINE.match(line) is not None or GO_LINE.match(line) is not None)
        if go or line == "stack backtrace:" or FRAME.match(line):
            if not frames:
                while out and not out[-1].strip():
                    out.pop()
                if mark < 0 or len(out) != mark + 2:
                    mark = max(len(out) - 1, 0)
                    out.insert(mark, MARK)
            frames = True
            continue
        if frames and mark >= 0 and line.lstrip().startswith("Caused by:"):
            out[mark + 1 :] = [line.strip()]
        else:
            out.append(line)
        frames = False
    return "\n".join(out)
