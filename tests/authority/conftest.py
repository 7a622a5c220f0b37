from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .harness import Authority, state_directory


@pytest.fixture
def state() -> Iterator[Path]:
    # pytest's own directories are 0700 root's: the authority's uid could not walk them.
    top = Path(tempfile.mkdtemp(prefix="authority-"))
    top.chmod(0o755)
    yield state_directory(top / "state")
    shutil.rmtree(top)


@pytest.fixture
def start(state: Path) -> Iterator[Callable[..., Authority]]:
    running: list[Authority] = []

    def make(**options: Any) -> Authority:
        authority = Authority(state, **options)
        running.append(authority)
        return authority

    yield make
    for authority in running:
        if authority.process.poll() is None:
            authority.stop()


@pytest.fixture
def authority(start: Callable[..., Authority]) -> Authority:
    return start()
