"""glob and grep through the public door: what is asked for, what is told, what the policy hides (root and user)."""

from __future__ import annotations

import os
from typing import Any

import pytest

from .held import Held
from .site import Site

POLICY = """\
version: 1
name: searched
capabilities: {read_files: always, glob_search: always, grep_search: always}
paths:
  block: ["secret*", "src/private/**"]
"""


@pytest.fixture
def policy(site: Site) -> str:
    for name, text in {
        ".gitignore": "*.log\nbuild/\n",
        "a.py": "one\nneedle = 1\nthree\nfour\nfive\nneedle = 2\n",
        "app.log": "needle in a log\n",
        "build/out.py": "needle built\n",
        "secret.py": "needle = 'hidden'\n" * 9,
        "src/b.py": "def f(\n    needle,\n): pass\n",
        "src/private/c.py": "needle private\n",
        "src/.gitignore": "!kept.log\n",
        "src/kept.log": "needle kept\n",
    }.items():
        os.utime(site.write(name, text), ns=(0, 10**18 + len(name) * 10**9))
    path = site.home / "policy.yaml"
    path.write_text(POLICY)
    path.chmod(0o644)
    return str(path)


def test_searches_through_the_door(site: Site, policy: str) -> None:
    with Held(site, policy=policy) as held:

        def ask(kind: str, **fields: Any) -> dict[str, Any]:
            reply = held.operate(kind=kind, **fields)
            result: dict[str, Any] = reply["result"]
            return result

        found = ask("grep", pattern="needle", gitignore=True)
        assert [(row["path"], row["line"]) for row in found["matches"]] == [
            ("a.py", 2), ("a.py", 6), ("src/b.py", 2), ("src/kept.log", 1),
        ]  # fmt: skip
        assert (found["truncated"], found["limits"], found["files"]) == (False, [], 5)
        assert "withheld" not in found
        assert {"app.log", "build/out.py"} < {row["path"] for row in ask("grep", pattern="needle")["matches"]}

        found = ask("grep", pattern="needle", path="a.py", context=1)
        assert [(row["line"], row.get("context", False)) for row in found["matches"]] == [
            (1, True), (2, False), (3, True), (5, True), (6, False),
        ]  # fmt: skip
        found = ask("grep", pattern="needle", include="*.py", per_file=1)
        assert (found["limits"], found["truncated"]) == (["per_file"], True)
        assert [row["path"] for row in found["matches"]] == ["a.py", "build/out.py", "src/b.py"]
        found = ask("grep", pattern="(?s)def.*pass", path="src", multiline=True)
        assert [row["line"] for row in found["matches"]] == [1, 2, 3]
        assert ask("grep", pattern="(?s)def.*pass", path="src")["matches"] == []
        assert ask("grep", pattern="needle", limit=1)["limits"] == ["count"]

        found = ask("glob", pattern="**/*.py", sort="mtime")
        assert found["paths"] == ["build/out.py", "src/b.py", "a.py"]
        assert ask("glob", pattern="**", gitignore=True)["paths"] == [
            ".gitignore", "a.py", "src/.gitignore", "src/b.py", "src/kept.log",
        ]  # fmt: skip

        for wrong in ({"context": 21}, {"context": -1}, {"per_file": 0}, {"multiline": 1}, {"pattern": "(a+)+"}):
            reply = held.operate(**{"kind": "grep", "pattern": "x", "multiline": True, **wrong})
            assert reply["kind"] == "invalid_request", wrong
        assert held.operate(kind="glob", pattern="*", sort="size")["kind"] == "invalid_request"
