"""`nucleus.sdk.jsontext` says and reads what `json` does, and costs the launcher none of its imports."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nucleus.sdk import jsontext

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_the_texts_are_those_of_json(value: object) -> None:
    assert jsontext.dumps(value) == json.dumps(value, separators=(",", ":"))
    assert jsontext.dumps(value, ascii_only=False) == json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    text = json.dumps(value, indent=1)
    assert jsontext.loads(text) == jsontext.loads(text.encode()) == json.loads(text)


@given(st.text(max_size=30) | st.text(alphabet='{}[]",:0123456789.-eE \\untrefalsNI\n\x00', max_size=30))
def test_it_reads_nothing_that_json_refuses(text: str) -> None:
    try:
        value = jsontext.loads(text)
    except ValueError:
        return
    assert repr(value) == repr(json.loads(text))


@pytest.mark.parametrize(
    "text", ["", " ", "{", "{} {}", "[1,]", "NaN", "[Infinity]", '"\x01"', '{"a"}', b"\xff", b'"\xed\xa0\x80"']
)
def test_malformed_texts_are_value_errors(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        jsontext.loads(text)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_not_said(value: float) -> None:
    with pytest.raises(ValueError):
        jsontext.dumps([value])


@pytest.mark.parametrize("value", [b"x", {1: 2}, {3}, object()])
def test_other_types_are_refused(value: object) -> None:
    with pytest.raises(TypeError):
        jsontext.dumps(value)


def test_nesting_without_end_is_a_recursion_error() -> None:
    with pytest.raises(RecursionError):
        jsontext.loads("[" * 100_000)


def test_another_interpreters_scanner_is_not_used() -> None:
    code = (
        "import sys, _json\n"
        "del _json.make_scanner\n"
        "from nucleus.sdk import jsontext\n"
        "assert 'json' in sys.modules\n"
        "assert jsontext.loads(jsontext.dumps({'a': [1.5, None]})) == {'a': [1.5, None]}\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_launcher_imports_no_heavy_module() -> None:
    code = "import sys, nucleus.cli.exec, nucleus.store.policies; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-I", "-c", code], check=True, capture_output=True, text=True).stdout
    heavy = {"json", "re", "enum", "socket", "typing", "dataclasses", "collections", "struct", "array", "asyncio"}
    assert not heavy & set(loaded.split())
