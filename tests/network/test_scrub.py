"""A secret is taken out of a stream however the stream is cut, and ordinary text passes at once."""

from __future__ import annotations

import base64
import json
import random
from urllib.parse import quote

import pytest

from nucleus.network.scrub import Scrubber, patterns, scrub

SECRET = b'sk-ant/api03+Zz9=&"x'


def test_every_way_of_cutting_the_stream() -> None:
    text = b"before " + SECRET + b" between " + SECRET + SECRET + b" after " + SECRET[:9]
    expected = text.replace(SECRET, b"*" * len(SECRET))
    for size in range(1, len(text) + 1):
        scrubber = Scrubber((SECRET,))
        out = b"".join(scrubber.feed(text[at : at + size]) for at in range(0, len(text), size)) + scrubber.end()
        assert out == expected, size


def test_random_cuts_of_overlapping_beginnings() -> None:
    secret = b"aabaabaaa"
    for seed in range(300):
        dice = random.Random(seed)
        text = bytes(dice.choice(b"ab") for _ in range(200)) + secret + bytes(dice.choice(b"ab") for _ in range(50))
        scrubber = Scrubber((secret,))
        out, at = b"", 0
        while at < len(text):
            step = dice.randint(1, 20)
            out += scrubber.feed(text[at : at + step])
            at += step
        out += scrubber.end()
        assert len(out) == len(text)
        assert secret not in out
        assert out == scrub(text, (secret,))


@pytest.mark.parametrize("before", [b"", b"a", b"ab", b"abc"])
@pytest.mark.parametrize("after", [b"", b"x", b"xy"])
def test_base64_of_a_text_that_holds_it(before: bytes, after: bytes) -> None:
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        coded = encode(before + SECRET + after)
        out = scrub(coded, (SECRET,))
        assert len(out) == len(coded)
        assert out.count(b"*") >= 4 * len(SECRET) // 3 - 3


@pytest.mark.parametrize(
    "coded",
    [
        SECRET.hex().encode(),
        SECRET.hex().upper().encode(),
        quote(SECRET, safe="").encode(),
        json.dumps(SECRET.decode()).encode(),
        SECRET.replace(b"&", b"&amp;").replace(b'"', b"&quot;"),
    ],
)
def test_likely_encodings(coded: bytes) -> None:
    assert scrub(b"<" + coded + b">", (SECRET,)).strip(b'<>"') == b"*" * len(coded.strip(b'"'))


def test_what_cannot_become_the_secret_is_not_held_back() -> None:
    scrubber = Scrubber((SECRET,))
    assert scrubber.feed(b"data: hello\n\n") == b"data: hello\n\n"
    assert scrubber.feed(b"data: sk-a") == b"data: "
    assert scrubber.feed(b"bc\n\n") == b"sk-abc\n\n"
    assert Scrubber(()).feed(b"sk-a") == b"sk-a"


def test_a_secret_that_is_too_short_is_an_error() -> None:
    with pytest.raises(ValueError, match="fewer"):
        patterns((b"short",))
