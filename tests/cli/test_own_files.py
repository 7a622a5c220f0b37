"""`nucleus --version --json`: the digest of its own files is what others compute, and a changed file is named."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from base64 import urlsafe_b64encode
from pathlib import Path

import pytest

import nucleus
from nucleus.cli import own_files

SOURCE = Path(nucleus.__file__).resolve().parents[1]
BY_OTHERS = "find nucleus -type f ! -path '*/__pycache__/*' | LC_ALL=C sort | xargs sha256sum | sha256sum"


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """As pip unpacks a wheel: the package, and its RECORD beside it."""
    shutil.copytree(SOURCE / "nucleus", tmp_path / "nucleus", ignore=shutil.ignore_patterns("__pycache__"))
    rows = ["nucleus-0.1.0.dist-info/RECORD,,", "../../../bin/nucleus,sha256=abc,307"]
    for path in (tmp_path / "nucleus").rglob("*"):
        if path.is_file():
            digest = urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest()).rstrip(b"=").decode()
            rows.append(f"{path.relative_to(tmp_path)},sha256={digest},{path.stat().st_size}")
    information = tmp_path / f"nucleus-{nucleus.__version__}.dist-info"
    information.mkdir()
    (information / "RECORD").write_text("\n".join(rows) + "\n")
    return tmp_path


def run(above: Path) -> tuple[int, dict[str, object]]:
    """As a program of its own, with the package that is there."""
    code = "import sys; from nucleus.cli.main import main; sys.exit(main(['--version', '--json']))"
    environment = {"PYTHONPATH": str(above), "PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd="/", env=environment, capture_output=True, text=True, check=False
    )
    assert not done.stderr
    return done.returncode, json.loads(done.stdout)


def by_others(above: Path) -> str:
    done = subprocess.run(["/bin/sh", "-c", BY_OTHERS], cwd=above, capture_output=True, text=True, check=True)
    return done.stdout.split()[0]


def test_the_digest_is_what_anybody_gets(installed: Path) -> None:
    code, told = run(installed)
    assert code == 0
    assert told["sha256"] == by_others(installed)
    assert (told["version"], told["record"], told["differences"]) == (nucleus.__version__, "matches", [])
    assert BY_OTHERS in (own_files.__doc__ or "")


def test_from_the_source_there_is_no_record(installed: Path) -> None:
    shutil.rmtree(installed / f"nucleus-{nucleus.__version__}.dist-info")
    code, told = run(installed)
    assert (code, told["record"]) == (0, "none")
    assert told["sha256"] == by_others(installed)


def test_what_is_not_the_wheels_is_named(installed: Path) -> None:
    before = run(installed)[1]["sha256"]
    with (installed / "nucleus/gate/pipeline.py").open("a") as file:
        file.write("\n")
    (installed / "nucleus/sitecustomize.py").write_text("")
    (installed / "nucleus/lattice/profiles/codegen.yaml").unlink()
    code, told = run(installed)
    assert code == 1
    assert told["record"] == "differs"
    assert told["differences"] == [
        "nucleus/gate/pipeline.py: not the file of the wheel",
        "nucleus/lattice/profiles/codegen.yaml: missing",
        "nucleus/sitecustomize.py: not in RECORD",
    ]
    assert told["sha256"] == by_others(installed) != before


def test_many_differences_are_counted(installed: Path) -> None:
    for number in range(own_files.NAMED + 5):
        (installed / f"nucleus/more{number:02}.py").write_text("")
    told = own_files.report(str(installed))
    assert len(told["differences"]) == own_files.NAMED + 1
    assert told["differences"][-1] == "and 5 more"


def test_bytecode_does_not_change_it(installed: Path) -> None:
    before = own_files.report(str(installed))
    (installed / "nucleus/__pycache__").mkdir()
    (installed / "nucleus/__pycache__/frames.cpython-311.pyc").write_bytes(b"x")
    assert own_files.report(str(installed)) == before
