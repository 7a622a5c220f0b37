"""What a guest imports: this version's modules, with byte code that it need not make, and that is theirs."""

from __future__ import annotations

import importlib.util
import os
import py_compile
import subprocess
import sys
import tarfile
from pathlib import Path

from nucleus.pod import gvisor


def unpacked(directory: Path) -> Path:
    with os.fdopen(gvisor.code(), "rb") as file:
        file.seek(0)
        with tarfile.open(fileobj=file) as archive:
            for member in archive:
                content = archive.extractfile(member)
                assert content is not None
                place = directory / member.name
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content.read())
    return directory


def test_every_module_has_its_byte_code(tmp_path: Path) -> None:
    sources = list(unpacked(tmp_path).rglob("*.py"))
    assert len(sources) > 20
    for path in sources:
        data = Path(importlib.util.cache_from_source(str(path))).read_bytes()
        assert data[:8] == importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little"), path  # hashed, unchecked: PEP 552
        assert data[8:16] == importlib.util.source_hash(path.read_bytes())


def test_it_is_what_runs(tmp_path: Path) -> None:
    code = unpacked(tmp_path / "code")
    words = [sys.executable, "-ISvc", f"import sys; sys.path.insert(0, {str(code)!r}); import nucleus.errors"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    taken = [line for line in done.stderr.splitlines() if "errors" in line and str(code) in line]
    assert any("matches" in line or ("code object from" in line and "__pycache__" in line) for line in taken), taken


def test_stale_byte_code_is_not_taken(tmp_path: Path) -> None:
    source = tmp_path / "one.py"
    source.write_text("VALUE = 1\n")
    made_here = gvisor._compiled(str(source), source.read_bytes())
    kept = Path(py_compile.compile(str(source), doraise=True))
    before = gvisor._compiled(str(source), source.read_bytes())
    assert before == made_here
    assert before[16:] == kept.read_bytes()[16:]
    source.write_text("VALUE = 22\n")
    after = gvisor._compiled(str(source), source.read_bytes())
    assert after[16:] != before[16:]
    assert after[8:16] == importlib.util.source_hash(source.read_bytes())
