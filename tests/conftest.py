"""For all tests: a run in the background (``&``, nohup) has SIGINT ignored, and would hand that on to its children."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from integration.postgres import Server, binaries

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

WHY = "no PostgreSQL server here: `make test-postgres` installs Debian's"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    programs = binaries()
    if programs is None:
        pytest.skip(WHY)
    server = Server.running = Server(programs)
    yield server
    server.close()
