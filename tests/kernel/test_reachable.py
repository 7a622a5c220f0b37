"""A process that leaves root behind finds its modules although they are in a directory that is closed to others."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src"
PROGRAM = """
import os, sys
sys.path[:] = [sys.argv[1], *[path for path in sys.path if "site-packages" not in path and path]]
from nucleus.kernel import reachable
if sys.argv[2] == "keep":
    reachable.keep()
os.setresgid(40414, 40414, 40414); os.setgroups([]); os.setresuid(40414, 40414, 40414)
import nucleus.audit.merkle
print(nucleus.audit.merkle.__file__, sorted(os.listdir(sys.argv[3])))
try:
    open(f"{sys.argv[3]}/new", "w")
except OSError as error:
    print(error.strerror)
"""


@pytest.fixture
def closed() -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another uid")
    made = Path(tempfile.mkdtemp(prefix="nucleus-closed-", dir="/tmp"))  # 0700
    shutil.copytree(SOURCE, made / "home" / "src", ignore=shutil.ignore_patterns("__pycache__"))
    (made / "secret").write_text("of root")
    yield made
    shutil.rmtree(made)


def run(closed: Path, how: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-I", "-B", "-c", PROGRAM, str(closed / "home" / "src"), how, str(closed)]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def test_without_it_there_is_no_next_module(closed: Path) -> None:
    assert "ModuleNotFoundError" in run(closed, "no").stderr


def test_modules_are_found_and_nothing_else_of_what_is_closed(closed: Path) -> None:
    done = run(closed, "keep")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{closed}/home/src/nucleus/audit/merkle.py ['home']\nRead-only file system\n"
    assert sorted(os.listdir(closed)) == ["home", "secret"]  # nobody else sees any of it
    assert closed.stat().st_mode & 0o777 == 0o700


def test_code_that_others_may_not_read_is_said(closed: Path) -> None:
    (closed / "home/src/nucleus/kernel/reachable.py").chmod(0o600)
    assert "is closed to other users" in run(closed, "keep").stderr
    (closed / "home/src/nucleus/kernel/reachable.py").chmod(0o644)
    (closed / "home/src").chmod(0o700)
    assert "is closed to other users" in run(closed, "keep").stderr
