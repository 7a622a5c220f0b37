"""SPIFFE IDs: the standard's clauses, the places where other parsers are lax, and that importing costs little."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nucleus.errors import InvalidError
from nucleus.identity.spiffe_id import SpiffeId

LONGEST_DOMAIN = "a" * 255
LONGEST = "spiffe://td/" + "p" * (2048 - len("spiffe://td/"))


@pytest.mark.parametrize(
    ("text", "trust_domain", "path"),
    [
        ("spiffe://example.org", "example.org", ""),
        ("spiffe://example.org/a", "example.org", "/a"),
        ("spiffe://a_b-c.1/ns/default/sa/Agent_1.x-y", "a_b-c.1", "/ns/default/sa/Agent_1.x-y"),
        ("spiffe://td/...", "td", "/..."),
        (f"spiffe://{LONGEST_DOMAIN}/x", LONGEST_DOMAIN, "/x"),
        (LONGEST, "td", LONGEST[len("spiffe://td") :]),
    ],
)
def test_valid(text: str, trust_domain: str, path: str) -> None:
    parsed = SpiffeId.parse(text)
    assert (parsed.trust_domain, parsed.path, str(parsed)) == (trust_domain, path, text)


BAD = {
    "empty": "",
    "scheme missing": "example.org/a",
    "other scheme": "https://example.org/a",
    "upper-case scheme": "SPIFFE://example.org/a",
    "one slash": "spiffe:/example.org/a",
    "no trust domain": "spiffe://",
    "no trust domain, path": "spiffe:///a",
    "upper-case trust domain": "spiffe://Example.org/a",
    "trust domain 256 bytes": "spiffe://" + "a" * 256 + "/x",
    "port": "spiffe://example.org:443/a",
    "empty port": "spiffe://example.org:/a",
    "user info": "spiffe://me@example.org/a",
    "percent in trust domain": "spiffe://example%2eorg/a",
    "percent in path": "spiffe://example.org/a%2fb",
    "IPv6": "spiffe://[::1]/a",
    "trailing slash": "spiffe://example.org/a/",
    "only a slash": "spiffe://example.org/",
    "empty segment": "spiffe://example.org/a//b",
    "dot segment": "spiffe://example.org/a/./b",
    "dot-dot segment": "spiffe://example.org/a/../b",
    "dot-dot at the end": "spiffe://example.org/a/..",
    "query": "spiffe://example.org/a?b=c",
    "empty query": "spiffe://example.org/a?",
    "fragment": "spiffe://example.org/a#b",
    "trailing newline": "spiffe://example.org/a\n",
    "newline after trust domain": "spiffe://example.org\n",
    "leading blank": " spiffe://example.org/a",
    "blank": "spiffe://example.org/a b",
    "NUL": "spiffe://example.org/a\0",
    "non-ASCII letter": "spiffe://example.org/ä",
    "full-width digit": "spiffe://example.org/\uff11",
    "Kelvin sign folds to k": "spiffe://\u212a.org/a",
    "lone surrogate": "spiffe://example.org/\ud800",
    "backslash": "spiffe://example.org/a\\b",
    "sub-delims": "spiffe://example.org/a;b",
    "2,049 bytes": LONGEST + "p",
}


@pytest.mark.parametrize("text", BAD.values(), ids=BAD.keys())
def test_invalid(text: str) -> None:
    with pytest.raises(InvalidError) as caught:
        SpiffeId.parse(text)
    assert caught.value.rule.startswith("spiffe.")


@pytest.mark.parametrize("value", [None, 7, b"spiffe://example.org/a", ["spiffe://example.org/a"]])
def test_not_text(value: object) -> None:
    with pytest.raises(InvalidError):
        SpiffeId.parse(value)  # type: ignore[arg-type]


def test_the_constructor_checks_too() -> None:
    for parts in (("Example.org", "/a"), ("td", "a"), ("td", "/"), ("td", "/a/../b"), ("", "/a"), ("td/x", "/a")):
        with pytest.raises(InvalidError):
            SpiffeId(*parts)


def test_for_workload() -> None:
    assert str(SpiffeId.for_workload("td.example", "team-1", "pod.7")) == "spiffe://td.example/ns/team-1/sa/pod.7"


@pytest.mark.parametrize(
    ("namespace", "name"), [("a/b", "c"), ("a", "b/c"), ("", "c"), ("a", ""), ("..", "c"), ("a", ".")]
)
def test_for_workload_takes_one_segment_each(namespace: str, name: str) -> None:
    with pytest.raises(InvalidError):
        SpiffeId.for_workload("td", namespace, name)


@given(st.text(max_size=80))
def test_any_text_parses_to_itself_or_is_refused(tail: str) -> None:
    text = "spiffe://" + tail
    try:
        assert str(SpiffeId.parse(text)) == text
    except InvalidError:
        pass


@pytest.mark.parametrize("module", ["spiffe_id", "svid", "workload"])
def test_light_modules_stay_light(module: str) -> None:
    code = (
        f"import sys, nucleus.identity.{module}; "
        "print([m for m in ('ssl', 'cryptography', 'asyncio', 'pydantic', 'socket') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
