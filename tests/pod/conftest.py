"""One builder per credential and module: starting one costs a Python start or four."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from harness import Builder


@pytest.fixture(scope="module", params=["root", "user"])
def _builder(request: pytest.FixtureRequest) -> Iterator[Builder]:
    made = Builder.start(request.param)
    yield made
    made.stop()


@pytest.fixture
def builder(_builder: Builder) -> Iterator[Builder]:
    """A builder as root, then as an ordinary user; what a failed test left is closed and emptied."""
    yield _builder
    _builder.tidy()
