"""docs/compliance.md, and the pages it leans on: every link exists, every line has code and test or says why not."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("compliance", "memory-safety", "release")
LINK = re.compile(r"\[([^\]]+)\]\(([^)]+)\)")
HEAD = "| asked | how | code | fails if not so |"
FRAMEWORKS = ("CISA Secure by Design", "Memory-safe languages", "SOC 2", "OWASP Top 10")


@cache
def functions_of(path: Path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


@cache
def anchors_of(path: Path) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def broken(page: Path, text: str) -> list[str]:
    """Links of `text` that lead nowhere; one whose words are a test's name leads to a file that has that test."""
    found = []
    for words, target in LINK.findall(text):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.is_relative_to(ROOT) or not path.exists():
            found.append(f"{target}: does not exist")
        elif anchor and anchor not in anchors_of(path):
            found.append(f"{target}: no such heading")
        elif words.startswith("`test_") and words.strip("`") not in functions_of(path):
            found.append(f"{target}: has no test {words}")
    return found


def wrong(line: str) -> str:
    """What is wrong with one line of a table; "" if nothing."""
    cells = [cell.strip() for cell in line.strip("|").split(" | ")]
    if len(cells) != 4:
        return "not four cells"
    _, how, code, tests = cells
    if not re.fullmatch(r"[^ ].*[.)]", how):
        return "says no sentence"
    if how.startswith(("**Not done**", "**Not ours**")):
        return "" if code.strip() == tests.strip() == "–" else "is not done, and has links"
    if not LINK.findall(code) or not LINK.findall(tests):
        return "has no code or no test"
    if not all(words.startswith("`test_") and target.startswith("../tests/") for words, target in LINK.findall(tests)):
        return "names something else than a test"
    return ""


def test_every_link_exists() -> None:
    for name in PAGES:
        page = ROOT / f"docs/{name}.md"
        assert broken(page, page.read_text()) == [], name


def test_every_line_has_code_and_a_test_or_says_why_not() -> None:
    page = (ROOT / "docs/compliance.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("|") and line != HEAD and set(line) - set("|-")]
    assert len(lines) > 40
    assert [(line, wrong(line)) for line in lines if wrong(line)] == []


def test_every_framework_has_its_table() -> None:
    sections = (ROOT / "docs/compliance.md").read_text().split("\n## ")[1:]
    assert [next(name for name in FRAMEWORKS if part.startswith(name)) for part in sections] == list(FRAMEWORKS)
    for part in sections:
        assert HEAD in part
    owasp = sections[-1]
    assert [f"| A{number:02}" in owasp for number in range(1, 11)] == [True] * 10


@pytest.mark.parametrize(
    "text",
    [
        "[x](../src/nucleus/none.py)",
        "[`test_none`](../tests/test_docs.py)",
        "[x](#nothing)",
        "[x](../../../etc/passwd)",
    ],
)
def test_a_broken_link_is_found(text: str) -> None:
    assert len(broken(ROOT / "docs/compliance.md", text)) == 1


@pytest.mark.parametrize(
    "line",
    [
        "| a | It is so. | [`x`](../src/x.py) |  |",
        "| a | It is so. | – | [`test_x`](../tests/x.py) |",
        "| a | It is so. | [`x`](../src/x.py) | [`x`](../src/x.py) |",
        "| a | **Not done**: no. | – | [`test_x`](../tests/x.py) |",
        "| a | yes | [`x`](../src/x.py) | [`test_x`](../tests/x.py) |",
    ],
)
def test_a_line_without_its_proof_is_found(line: str) -> None:
    assert wrong(line)
