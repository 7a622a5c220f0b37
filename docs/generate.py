"""What the documentation takes from the code: README's limits, the policy's schema, the HTTP API, and what is not
memory-safe (from the lock). `--check` compares.

Each bound of `nucleus.limits` that has a comment becomes a row; the comment is its description.
"""

from __future__ import annotations

import io
import json
import sys
import tokenize
from pathlib import Path

from nucleus.lattice.schema import policy_schema
from nucleus.limits import LIMITS
from nucleus.server.openapi import document

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from supply import native  # noqa: E402 -- of the repository, not of the wheel

BEGIN, END = "<!-- limits: made by `make docs` -->\n", "<!-- end of limits -->\n"
NATIVE_BEGIN, NATIVE_END = "<!-- native: made by `make docs` -->\n", "<!-- end of native -->\n"


def limits() -> str:
    """README's table."""
    rows = ["| what | limit | name |", "|---|---|---|"]
    for name, comment in described():
        rows.append(f"| {comment} | {shown(name)} | `{name}` |")
    return "\n".join(rows) + "\n"


def described() -> list[tuple[str, str]]:
    """(name, comment) of each bound, in the order of the module."""
    source = (ROOT / "src/nucleus/limits.py").read_text()
    found: list[tuple[str, str]] = []
    name = ""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME and token.start[1] == 4 and hasattr(LIMITS, token.string):
            name = token.string
        elif token.type == tokenize.COMMENT and name:
            found.append((name, token.string.lstrip("# ")))
        elif token.type == tokenize.NEWLINE:
            name = ""
    return found


def shown(name: str) -> str:
    """A bound with its unit."""
    value, unit = getattr(LIMITS, name), name.rpartition("_")[2]
    if unit == "bytes":
        return f"{value:,} bytes" + (f" ({value >> 20} MiB)" if value >= 1 << 20 else "")
    if unit in ("ns", "ms"):
        return f"{value // (1_000_000_000 if unit == 'ns' else 1_000):,} s"
    return f"{value:,}"


def pages() -> dict[Path, str]:
    """Path to what it should hold."""
    readme, safety = ROOT / "README.md", ROOT / "docs/memory-safety.md"
    return {
        readme: between(readme, BEGIN, limits(), END),
        safety: between(safety, NATIVE_BEGIN, native.table(), NATIVE_END),
        ROOT / "docs/openapi.json": json.dumps(document(), indent=2, ensure_ascii=False) + "\n",
        ROOT / "docs/policy.schema.json": json.dumps(policy_schema(), indent=2, ensure_ascii=False) + "\n",
    }


def between(page: Path, begin: str, text: str, end: str) -> str:
    """The page with `text` between its two marks."""
    before, found, rest = page.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"{page.name} has no place for {begin.strip()}")
    return before + begin + text + end + after


def main(argv: list[str]) -> int:
    """Write the pages; with ``--check`` say which differ, and exit 1."""
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text() != text]
    for path in stale:
        print(("stale: " if "--check" in argv else "wrote ") + str(path.relative_to(ROOT)))
        if "--check" not in argv:
            path.write_text(pages()[path])
    return 1 if stale and "--check" in argv else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
