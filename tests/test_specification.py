"""SPECIFICATION.md: every link exists, ids are unique, every test room is linked, README's words are true."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROW = re.compile(r"^\| ([A-Z]+-\d+) \| (.*) \| (.*) \|$")
NUCLEUS = str(Path(sys.executable).parent / "nucleus")


def rows() -> list[tuple[str, str, list[str]]]:
    found = []
    for line in (ROOT / "SPECIFICATION.md").read_text().splitlines():
        if match := ROW.match(line):
            ident, promise, shown = match.groups()
            found.append((ident, promise, re.findall(r"`([^`]+)`", shown) if shown != "*pending*" else []))
    return found


def functions(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_link_exists() -> None:
    for ident, _, links in rows():
        for link in links:
            name, _, function = link.partition("::")
            path = ROOT / "tests" / name
            assert path.is_file(), f"{ident}: no file {name}"
            assert not function or function in functions(path), f"{ident}: no test {link}"


def test_ids_and_promises_are_unique() -> None:
    found = rows()
    assert len(found) > 80
    assert len({ident for ident, _, _ in found}) == len(found)
    assert len({promise for _, promise, _ in found}) == len(found)


def test_every_row_of_the_file_was_read() -> None:
    text = (ROOT / "SPECIFICATION.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| id")]
    assert len(lines) == len(rows())


def test_every_test_room_is_linked() -> None:
    linked = {link.split("/")[0] for _, _, links in rows() for link in links if "/" in link}
    rooms = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert rooms - linked <= {"adversarial", "model"}, rooms - linked


def test_readmes_verbs_exist() -> None:
    readme = (ROOT / "README.md").read_text()
    verbs = set(re.findall(r"^nucleus ([a-z]+)", readme, re.MULTILINE))
    assert {"doctor", "exec", "run", "approvals", "policy", "serve"} <= verbs
    for verb in sorted(verbs):
        done = subprocess.run([NUCLEUS, verb, "--help"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, (verb, done.stderr)


def test_readmes_first_policy_is_one(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    policy = tmp_path / "policy.yaml"
    policy.write_text(text.split("```yaml\n", 1)[1].split("```", 1)[0])

    def explain(*operation: str) -> str:
        argv = [NUCLEUS, "policy", "explain", "--policy", str(policy), "--", *operation]
        return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.partition(":")[0]

    assert explain("read", "src/a.py") == "allow"
    assert explain("edit", "src/a.py") == "allow"
    assert explain("run", "python3", "-m", "unittest") == "allow"
    assert explain("read", ".env") == "deny"
    assert explain("read", "customers/list.csv") == "deny"
    assert explain("git_push") == "deny"
    assert explain("run", "bash", "-c", "true") == "ask"
