"""Limits of a compartment, for real, where this machine lets us make cgroups."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from nucleus.pod import cgroups

pytestmark = pytest.mark.skipif(bool(cgroups.missing()), reason=f"no cgroups here: {cgroups.available()}")


@pytest.fixture
def group() -> Iterator[cgroups.Group]:
    made = cgroups.create(f"test-{os.getpid()}", cgroups.Limits(memory_bytes=64 << 20, pids=8, cpu_percent=100))
    yield made
    cgroups.kill(made)
    cgroups.remove(made)
    assert not any(os.path.exists(directory) for directory in made.directories)


def confined(group: cgroups.Group, code: str) -> subprocess.CompletedProcess[str]:
    with subprocess.Popen(
        [sys.executable, "-I", "-c", "import sys; sys.stdin.readline()\n" + code],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        cgroups.add(group, child.pid)
        out, err = child.communicate("go\n", timeout=30)
    return subprocess.CompletedProcess(child.args, child.returncode, out, err)


def test_memory_over_the_limit_is_killed(group: cgroups.Group) -> None:
    assert confined(group, "x = bytearray(256 << 20)").returncode == -9


def test_a_fork_bomb_stops_at_the_limit(group: cgroups.Group) -> None:
    code = (
        "import os, signal\nn = 0\n"
        "try:\n  while True:\n    if os.fork() == 0: signal.pause()\n    n += 1\nexcept OSError: print(n)"
    )
    with subprocess.Popen(
        [sys.executable, "-I", "-c", "import sys; sys.stdin.readline()\n" + code],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        cgroups.add(group, child.pid)
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write("go\n")
        child.stdin.flush()
        assert int(child.stdout.readline()) <= 8
        cgroups.kill(group)


def test_a_name_twice_is_an_error_and_leaves_the_first(group: cgroups.Group) -> None:
    with pytest.raises(FileExistsError):
        cgroups.create(f"test-{os.getpid()}", cgroups.Limits())
    assert all(os.path.isdir(directory) for directory in group.directories)


def test_available_names_every_controller() -> None:
    assert set(cgroups.available()) == set(cgroups.CONTROLLERS)
