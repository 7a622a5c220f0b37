"""Real programs of others as the outside: installed by `make test-real`, and only run by it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))

from integration.world import World  # noqa: E402

REAL = os.environ.get("NUCLEUS_REAL", "")  # where the programs are
collect_ignore_glob = [] if REAL else ["test_*.py"]


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    try:
        yield made
    finally:
        made.close()


def ready(world: World, server: subprocess.Popen[bytes], url: str) -> None:
    """Wait for it, half a minute at most."""
    for _ in range(300):
        asked = world.server("curl", "-sS", "-o", "/dev/null", url)
        if asked.wait(20) == 0:
            return
        assert server.poll() is None, (world.outside / "server.log").read_text()[-2_000:]
        time.sleep(0.1)
    raise AssertionError((world.outside / "server.log").read_text()[-2_000:])


def end(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(10)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait(10)
