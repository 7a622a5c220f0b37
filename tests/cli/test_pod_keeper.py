"""What a pod's keeper does with its own descriptors when the disk is full."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from nucleus.cli import pod_keeper


def test_a_log_that_cannot_be_begun_anew_lets_go_of_no_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent writes; another user has filled the file system. The agent's bytes are a client's answer otherwise."""
    monkeypatch.setattr(pod_keeper, "LOG_BYTES", 100)
    path = tmp_path / "log"
    log = pod_keeper._Log(str(path))
    log.write(b"a" * 90)
    real = os.open

    def full(name: Any, flags: int, *more: Any, **others: Any) -> int:
        if str(name).startswith(str(path)):
            raise OSError(28, "No space left on device")
        return real(name, flags, *more, **others)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", full)
        log.write(b"b" * 90)
    client, other = socket.socketpair()
    with client, other:
        for end in (client, other):
            end.setblocking(False)
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", full)
            log.write(b"c" * 5)
            log.write(b"d" * 90)
        for end in (client, other):
            with pytest.raises(BlockingIOError):
                end.recv(1)
    assert path.read_bytes() == b"a" * 90 + b"c" * 5
    log.write(b"e" * 90)
    assert path.read_bytes() == b"e" * 90
    assert Path(f"{path}.1").read_bytes() == b"a" * 90 + b"c" * 5
    assert sorted(tmp_path.iterdir()) == [path, Path(f"{path}.1")]
