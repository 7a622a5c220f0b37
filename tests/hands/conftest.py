from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .client import Gate


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The workspace, with something beside it that nobody may reach."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    return workspace


@pytest.fixture
def gate(root: Path) -> Iterator[Gate]:
    with_hands = Gate(str(root))
    yield with_hands
    assert with_hands.close() == 0
