"""The diff of a replacement: git itself applies it; hostile files cost linear time and bounded output."""

from __future__ import annotations

import random
import subprocess
import time
from pathlib import Path

import pytest

from nucleus.hands.edit_diff import DIFF_BYTES, unified

CASES = [
    (b"a\nb\nc\n", b"b", b"x"),
    (b"a\nb\nc\n", b"b\n", b""),
    (b"a\nb\nc\n", b"b\n", b"x"),
    (b"a\nb\nc\n", b"a\nb\nc\n", b""),
    (b"a\nb", b"b", b"x"),
    (b"a\nb", b"b", b"x\n"),
    (b"a\nb\n", b"b\n", b"b"),
    (b"a\nb\n", b"\n", b"\n\n"),
    (b"aaaa", b"aa", b"b"),
    (b"x\n" + b"same\n" * 20 + b"x\n", b"x", b"y\nz"),
    (b"x\n" + b"same\n" * 6 + b"x\n", b"x\n", b""),
    (b"one two one\none\n", b"one", b"1\n"),
]


def applies(directory: Path, data: bytes, old: bytes, new: bytes) -> bool:
    (directory / "f").write_bytes(data)
    diff = unified("f", data, old, new)
    done = subprocess.run(
        ["git", "apply", "--unidiff-zero", "--whitespace=nowarn", "-"],
        input=diff.encode(),
        cwd=directory,
        capture_output=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "GIT_CEILING_DIRECTORIES": str(directory.parent), "GIT_CONFIG_NOSYSTEM": "1"},
    )
    expected = data.replace(old, new)
    path = directory / "f"
    result = path.read_bytes() if path.exists() else b""
    return done.returncode == 0 and result == expected


@pytest.mark.parametrize(("data", "old", "new"), CASES)
def test_git_applies_it(tmp_path: Path, data: bytes, old: bytes, new: bytes) -> None:
    assert applies(tmp_path, data, old, new)


def test_git_applies_random_ones(tmp_path: Path) -> None:
    chance = random.Random(7)
    for _ in range(120):
        data = "".join(chance.choice("ab\n\n") for _ in range(chance.randint(1, 80))).encode()
        old = "".join(chance.choice("ab\n") for _ in range(chance.randint(1, 3))).encode()
        new = "".join(chance.choice("ab\nc") for _ in range(chance.randint(0, 3))).encode()
        if old not in data or data.replace(old, new) == data:
            continue
        assert applies(tmp_path, data, old, new), (data, old, new)


@pytest.mark.parametrize(
    ("data", "old", "new"),
    [
        (b"a\n" * (1 << 21), b"a", b"b"),
        (b"a" * (1 << 22), b"a", b"b"),
        (b"\n" * (1 << 22), b"\n\n", b"x"),
        (b"x\n\n\n\n\n\n\n\n\n" * (1 << 18), b"x", b"\xff"),
    ],
)
def test_a_hostile_file_is_bounded(data: bytes, old: bytes, new: bytes) -> None:
    started = time.monotonic()
    diff = unified("f", data, old, new)
    assert time.monotonic() - started < 2
    assert len(diff.encode()) <= DIFF_BYTES
    assert diff.endswith("[diff cut]\n")
