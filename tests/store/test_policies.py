"""Where policy text comes from: no silent fallback, size before reading, regular files only."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nucleus.errors import InvalidError
from nucleus.limits import LIMITS
from nucleus.store.policies import bundled, load_policy_text, profile_names, profile_text


def test_the_default_is_restrictive() -> None:
    text, source = load_policy_text()
    assert source == "profile restrictive"
    assert text == profile_text("restrictive")


def test_a_profile_and_a_file() -> None:
    assert load_policy_text(profile="codegen")[0] == profile_text("codegen")


@pytest.mark.parametrize("name", ["nope", "", "../profiles/codegen", "codegen.yaml", "a\x1b", "x" * 5000])
def test_an_unknown_profile_lists_the_known_ones(name: str) -> None:
    with pytest.raises(InvalidError) as caught:
        load_policy_text(profile=name)
    assert all(known in caught.value.message for known in profile_names())
    assert "\x1b" not in caught.value.message


def test_a_file_is_used_whole(tmp_path: Path) -> None:
    """Lesson: a custom profile was ignored except for its base name."""
    file = tmp_path / "codegen.yaml"
    file.write_text("version: 1\nname: mine\ncapabilities: {}\n")
    assert load_policy_text(path=str(file)) == (file.read_text(), str(file))


def test_both_is_an_error() -> None:
    with pytest.raises(InvalidError):
        load_policy_text(profile="codegen", path="x")


def test_bad_files(tmp_path: Path) -> None:
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InvalidError, match=str(LIMITS.policy_bytes)):
        load_policy_text(path=str(huge))
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "latin").write_bytes(b"name: \xff")
    for name, problem in (
        ("fifo", "regular"),
        ("missing", "No such file"),
        ("", "regular"),
        ("latin", "UTF-8"),
        ("a\0b", "path"),
    ):
        with pytest.raises(InvalidError, match=problem):
            load_policy_text(path=f"{tmp_path}/{name}")
    with pytest.raises(InvalidError):
        load_policy_text(path="/dev/zero")


def test_bundled_is_all_of_them_as_they_are() -> None:
    texts = bundled()
    assert tuple(sorted(texts)) == profile_names()
    assert all(text == profile_text(name) for name, text in texts.items())
