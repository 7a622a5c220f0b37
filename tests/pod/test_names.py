"""The walk's matcher is the policy's own; names are opened without following a symlink."""

from __future__ import annotations

import os
import random

import pytest

from nucleus.lattice.paths import PROTECTED, SENSITIVE, PathSet
from nucleus.pod.beneath import open_beneath, remove_placeholders
from nucleus.pod.names import matcher

GLOBS = [
    ".env*", "secrets/", "*.pem", "**/.git/config", "a/b", "a/*/c", "**/x/**", "token.txt", "**/deep",
    "[ab]?.key", "/top",
    "*mid*", "docs/**", "./dot",
]  # fmt: skip
PARTS = [
    ".env", ".ENV.local", "secrets", "x.pem", ".git", "config", "a", "b", "c", "x", "token.txt", "deep",
    "a1.key", "top",
    "amidst", "docs", "dot", "plain",
]  # fmt: skip


@pytest.mark.parametrize("globs", [GLOBS, list(SENSITIVE), list(PROTECTED)])
def test_agrees_with_the_policy(globs: list[str]) -> None:
    rng = random.Random(7)
    match, policy = matcher(globs), PathSet(tuple(globs), True)
    for _ in range(4_000):
        parts = [rng.choice(PARTS) for _ in range(rng.randint(1, 4))]
        prefixes = ["/".join(parts[: n + 1]) for n in range(len(parts))]
        walked = any(match(prefix) for prefix in prefixes)  # the walk tries the directories first
        assert walked == (policy.find(prefixes[-1]) is not None), prefixes[-1]


def test_open_beneath_follows_nothing(tmp_path) -> None:
    (tmp_path / "in/deep").mkdir(parents=True)
    (tmp_path / "in/deep/file").write_text("x")
    (tmp_path / "link").symlink_to("in")
    (tmp_path / "in/last").symlink_to("deep")
    root = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    try:
        fd = open_beneath(root, "in/deep/file", os.O_RDONLY)
        assert os.read(fd, 1) == b"x"
        os.close(fd)
        for path in ("link/deep", "in/last", "../x", "in/../in"):
            with pytest.raises(OSError):
                os.close(open_beneath(root, path, os.O_PATH))
    finally:
        os.close(root)


def test_placeholders_go_only_when_they_are_ours_and_empty(tmp_path) -> None:
    for name in ("one/hooks", "two/hooks", "away/hooks"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "two/hooks/kept").write_text("x")
    (tmp_path / "link").symlink_to("away")
    root = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    remove_placeholders(root, ["one/hooks", "two/hooks", "link/hooks", "none/hooks", "../x"])
    os.close(root)
    assert not (tmp_path / "one/hooks").exists()
    assert (tmp_path / "two/hooks/kept").exists()
    assert (tmp_path / "away/hooks").exists()
