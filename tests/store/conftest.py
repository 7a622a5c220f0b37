"""Tests of the ledger run on both engines: a state directory that has a `ledger.url` is kept in PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from integration.postgres import Server, keep_in


@pytest.fixture(params=["sqlite", "postgres"])
def prepare(request: pytest.FixtureRequest) -> Callable[[Path | str], None]:
    """Makes a state directory one of this engine's."""
    if request.param == "sqlite":
        return lambda directory: None
    server: Server = request.getfixturevalue("postgres")
    return lambda directory: (keep_in(server, directory), None)[1]
