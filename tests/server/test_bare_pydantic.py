"""A gate's pydantic: no foreign plugin, and the same verdicts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PLUGIN = """
import builtins
builtins.loaded = True
class P:
    def new_schema_validator(self, *a, **k):
        return None, None, None
plugin = P()
"""


def run(code: str, path: Path) -> str:
    command = [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(path)!r})\n{code}"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()


def test_a_plugin_of_another_package_is_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "spy.py").write_text(PLUGIN)
    info = tmp_path / "spy-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: spy\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[pydantic]\nspy = spy:plugin\n")
    ask = "import nucleus.model.operation, builtins; print(getattr(builtins, 'loaded', False))"
    assert run(ask, tmp_path) == "True", "this plugin would be loaded"
    assert run(f"import nucleus.server.bare_pydantic\n{ask}", tmp_path) == "False"


def test_nothing_is_looked_for_and_operations_are_parsed(tmp_path: Path) -> None:
    code = (
        "import nucleus.server.bare_pydantic\n"
        "from nucleus.model.operation import ADAPTER\n"
        "from pydantic import ValidationError\n"
        "assert ADAPTER.validate_python({'kind': 'run', 'argv': ['true']}).argv == ('true',)\n"
        "try:\n"
        "    ADAPTER.validate_python({'kind': 'run', 'argv': ['true'], 'more': 1})\n"
        "except ValidationError:\n"
        "    print('importlib.metadata' in sys.modules)\n"
    )
    assert run(code, tmp_path) == "False"
