"""SPECIFICATION.md as data: its promises, the tests that show them, and the pages and sections that they stand for.

`python tests/specification.py` (a part of `make check`) prints how many promises are shown and how many are pending;
exit code 1 when a test that is named does not exist, or would never run. Imports no test and nothing of Nucleus.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROW = re.compile(r"^\| ([A-Z]+-\d+) \| (.*) \| (.*) \|$")
LINK = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)(\[[^`]+\])?`")
PAGE = re.compile(r"^- `([\w/.-]+\.md)(?:#([^`]+))?`: (.*)$")
PENDING = "*pending*"
MAP = "\n## Pages and sections\n"
Row = tuple[str, str, str]


@cache
def text(name: str) -> str:
    """A file of the repository."""
    return (ROOT / name).read_text()


def rows() -> list[Row]:
    """(id, promise, shown by) of each line of each table."""
    lines = [line for line in text("SPECIFICATION.md").splitlines() if line.startswith("|")]
    lines = [line for line in lines if line not in ("| id | promise | shown by |", "|---|---|---|")]
    matches = [ROW.match(line) for line in lines]
    assert all(matches), [line for line, match in zip(lines, matches, strict=True) if not match]
    return [(match[1], match[2], match[3]) for match in matches if match]


@cache
def functions_of(path: str) -> frozenset[str]:
    """The tests of a module that run: not those that are skipped whatever the machine."""
    if not (ROOT / path).is_file():
        return frozenset()
    found = [node for node in ast.parse(text(path)).body if isinstance(node, ast.FunctionDef)]
    return frozenset(node.name for node in found if not any(map(_skips, node.decorator_list)))


def _skips(decorator: ast.expr) -> bool:
    return ast.unparse(decorator).partition("(")[0] == "pytest.mark.skip"


@cache
def parameters_of(path: str) -> frozenset[str]:
    """``test_x[parameter]`` of a module, as pytest collects them."""
    argv = [sys.executable, "-m", "pytest", "--collect-only", path]  # -q is in pyproject.toml, twice is too few words
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    return frozenset(line.partition("::")[2] for line in done.stdout.splitlines() if "[" in line)


def dangling(
    of: list[Row],
    functions: Callable[[str], frozenset[str]] = functions_of,
    parameters: Callable[[str], frozenset[str]] = parameters_of,
) -> list[str]:
    """What is wrong with the links of these rows, a line each."""
    wrong = []
    for ident, _, shown in of:
        links = LINK.findall(shown)
        if not links:
            wrong += [] if shown == PENDING else [f"{ident}: neither a test nor {PENDING}"]
            continue
        if shown != ", ".join(f"`{path}::{name}{parameter}`" for path, name, parameter in links):
            wrong.append(f"{ident}: not a list of tests")
        for path, name, parameter in links:
            if name not in functions(path):
                wrong.append(f"{ident}: no test {path}::{name}")
            elif parameter and f"{name}{parameter}" not in parameters(path):
                wrong.append(f"{ident}: no parameters {path}::{name}{parameter}")
    return wrong


def pages() -> dict[tuple[str, str], list[str]]:
    """(page, section or ""): the promises that it makes, by the list at the end of SPECIFICATION.md."""
    lines = [line for line in text("SPECIFICATION.md").partition(MAP)[2].splitlines() if line.startswith("- ")]
    matches = [PAGE.match(line) for line in lines]
    assert all(matches), [line for line, match in zip(lines, matches, strict=True) if not match]
    found = [((match[1], match[2] or ""), match[3].split(", ")) for match in matches if match]
    assert len(dict(found)) == len(found), "a page or section is listed twice"
    return dict(found)


def sections(page: str) -> list[str]:
    """The titles of a page's second level, outside of code."""
    return re.findall(
        r"^## (.+)$", re.sub(r"^```.*?^```", "", text(page), flags=re.DOTALL | re.MULTILINE), re.MULTILINE
    )


def main() -> int:
    """See the module."""
    found, wrong = rows(), dangling(rows())
    tests = {(path, name) for _, _, shown in found for path, name, _ in LINK.findall(shown)}
    pending = [ident for ident, _, shown in found if shown == PENDING]
    for line in wrong:
        print(f"SPECIFICATION.md: {line}")
    waiting = f" ({', '.join(pending)})" if pending else ""
    counts = f"{len(found) - len(pending)} shown by {len(tests)} tests, {len(pending)} pending{waiting}"
    print(f"SPECIFICATION.md: {len(found)} promises: {counts}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
