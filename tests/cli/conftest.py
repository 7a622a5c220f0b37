"""Fixtures: the stand-in helper, a workspace, the command line as a process."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .stand_in import OnTerminal, StandIn


@pytest.fixture
def stand_in(tmp_path: pathlib.Path) -> Iterator[StandIn]:
    helper = StandIn(tmp_path / "runtime", tmp_path / "state")
    yield helper
    helper.close()


@pytest.fixture
def workspace(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "work"
    path.mkdir()
    return path


@pytest.fixture
def nucleus(stand_in: StandIn, workspace: pathlib.Path) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    def run(*argv: str, stdin: bytes = b"", **env: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "nucleus.cli.main", *argv],
            input=stdin,
            capture_output=True,
            env=stand_in.environment() | env,
            cwd=workspace,
            timeout=20,
            check=False,
            start_new_session=True,
        )

    return run


@pytest.fixture
def on_terminal(stand_in: StandIn, workspace: pathlib.Path) -> Iterator[Callable[..., OnTerminal]]:
    running: list[OnTerminal] = []

    def start(*argv: str, on: tuple[int, ...] = (0, 1, 2), **more: Any) -> OnTerminal:
        running.append(OnTerminal(stand_in, list(argv), on=on, cwd=workspace))
        return running[-1]

    yield start
    for program in running:
        program.close()
