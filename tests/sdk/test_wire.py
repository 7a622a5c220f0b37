"""The SDK's frames are nucleus.frames' frames."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import Any

import pytest

from nucleus import frames
from nucleus.limits import LIMITS
from nucleus.sdk import wire


@pytest.mark.parametrize(
    ("header", "body"),
    [({}, b""), ({"id": 1, "op": "x"}, b"body\0\xff"), ({"päth": "ü", "bad": "\udcff", "n": [1, {"a": None}]}, b"")],
)
def test_same_bytes_as_frames(header: dict[str, object], body: bytes) -> None:
    raw = wire.encode(header, body)
    assert raw == frames.encode(header, body)
    if "bad" not in header:  # a lone surrogate is sent as it is, and refused by the reader
        reader = wire.Reader()
        for index in range(len(raw)):
            reader.feed(raw[index : index + 1])
        assert reader.take() == (header, body)
        assert reader.take() is None


def test_same_limit_as_frames() -> None:
    assert LIMITS.request_bytes == wire.MAX_FRAME
    with pytest.raises(ValueError, match="limit"):
        wire.encode({}, b"x" * wire.MAX_FRAME)


@pytest.mark.parametrize(
    "raw",
    [
        b"\0\0\0\3xxx",
        b"\xff\xff\xff\xff",
        b"\0\0\0\x06\0\0\0\x09{}",
        b"\0\0\0\x06\0\0\0\x02[]",
        b"\0\0\0\x06\0\0\0\x02{x",
        b"\0\0\0\x06\0\0\0\x02\xff\xff",
        (4 + 100_000).to_bytes(4, "big") + (100_000).to_bytes(4, "big") + b"[" * 100_000,
    ],
)
def test_hostile_frames_are_refused(raw: bytes) -> None:
    reader = wire.Reader()
    reader.feed(raw)
    with pytest.raises(ValueError):
        reader.take()


def test_receive_ends_cleanly_at_eof() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(wire.encode({"a": 1}) + wire.encode({"b": 2}, b"z")[:7])
        theirs.shutdown(socket.SHUT_WR)
        reader = wire.Reader()
        assert wire.receive(ours, reader) == ({"a": 1}, b"")
        assert wire.receive(ours, reader) is None


def test_sdk_needs_the_standard_library_alone(tmp_path) -> None:
    """As in the pod: only this directory, no site-packages, nothing else of nucleus."""
    import pathlib
    import shutil

    source = pathlib.Path(wire.__file__).parent
    shutil.copytree(source, tmp_path / "nucleus" / "sdk", ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        "import sys, nucleus.sdk, nucleus.sdk.client, nucleus.sdk.mcp;"
        "extra = [m for m in sys.modules if m.startswith('nucleus.') and not m.startswith('nucleus.sdk')];"
        "assert not extra, extra; print(nucleus.sdk.Gate.__name__)"
    )
    done = subprocess.run(
        ["/usr/bin/python3", "-S", "-B", "-c", code],
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "Gate\n", "")


def test_sources_parse_as_python_3_9() -> None:
    import ast
    import pathlib

    for file in pathlib.Path(wire.__file__).parent.glob("*.py"):
        ast.parse(file.read_text(), feature_version=(3, 9))
    assert sys.version_info >= (3, 11)


def test_what_nests_too_deeply_to_be_written_is_a_refusal_as_it_is_when_read() -> None:
    deep: dict[str, Any] = {}
    for _ in range(100_000):
        deep = {"a": deep}
    with pytest.raises(ValueError, match="nests too deeply"):
        wire.encode(deep)
    while deep:  # one at a time: freeing all of it at once nests as deeply
        deep = deep["a"]
