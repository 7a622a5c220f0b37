"""Tests with schemathesis: installed by `make test-api`, and only run by it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from integration.site import Site  # noqa: E402

HOME = os.environ.get("NUCLEUS_API", "")  # where it is
collect_ignore_glob = [] if HOME else ["test_*.py"]


@pytest.fixture
def root_site() -> Iterator[Site]:
    made = Site(0)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def schemathesis() -> Path:
    return Path(HOME) / "venv/bin/schemathesis"
