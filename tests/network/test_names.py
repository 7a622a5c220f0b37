"""`network.names`: which names there are, which pattern covers which, and the addresses that stand for them."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nucleus.errors import DeniedError, InvalidError
from nucleus.network.names import BLOCKS, USABLE, Pool, covers, is_name


@pytest.mark.parametrize(
    "text", ["a", "pypi.org", "a-b.c", "xn--bcher-kva.example", "_dmarc.a_b.example", "3com.com", "a.b1", "0x.com"]
)
def test_names(text: str) -> None:
    assert is_name(text)


@pytest.mark.parametrize(
    "text",
    ["", ".", "a.", ".a", "a..b", "A.com", "a b", "a/b", "a:1", "*.a", "ä.de", "a\0b", "-a.com", "a-.com", "a" * 64,
     "a\n",
     ".".join(["a" * 63] * 4), "1.2.3.4", "1", "a.1", "a.0x1f", "0x7f000001", "[::1]", "a%2eb", "user@a"],
)  # fmt: skip
def test_no_names(text: str) -> None:
    assert not is_name(text)


@pytest.mark.parametrize(
    ("pattern", "name", "covered"),
    [
        ("pypi.org", "pypi.org", True),
        ("pypi.org", "a.pypi.org", False),
        ("pypi.org", "pypi.org.", False),
        ("pypi.org", "PyPI.org", False),
        ("*.example.com", "a.example.com", True),
        ("*.example.com", "a.b.example.com", True),
        ("*.example.com", "example.com", False),
        ("*.example.com", ".example.com", False),
        ("*.example.com", "a..example.com", False),
        ("*.example.com", "evilexample.com", False),
        ("*.example.com", "a.example.com.evil.com", False),
        ("*.example.com", "*.example.com", False),
        ("*.example.com", "a\0.example.com", False),
        ("*", "a", False),
        ("*.", "a.", False),
        ("*.*.com", "a.*.com", False),
        ("a.*.com", "a.b.com", False),
        ("*.1", "1.1.1.1", False),
        ("1.1.1.1", "1.1.1.1", False),
        ("", "", False),
    ],
)
def test_covers(pattern: str, name: str, covered: bool) -> None:
    assert covers(pattern, name) is covered


@given(st.text(max_size=30), st.text(max_size=30))
def test_nothing_but_a_name_is_covered(pattern: str, name: str) -> None:
    if covers(pattern, name):
        assert is_name(name)
    assert not covers("*." + pattern, pattern)


def test_an_address_is_a_name_for_the_pods_life() -> None:
    pool = Pool()
    first, second = pool.address("a.example", "a.example"), pool.address("b.example", "*.example")
    assert (first, second) == (bytes((198, 18, 0, 1)), bytes((198, 18, 0, 2)))
    assert pool.address("a.example", "*.example") == first
    assert pool.name(first) == "a.example"
    assert pool.name(second) == "b.example"
    assert len(pool) == 2


@pytest.mark.parametrize("packed", [b"", b"\x7f\0\0\1", bytes((198, 18, 0, 0)), bytes((198, 18, 0, 9)), b"x" * 16])
def test_an_address_that_was_not_given_out_is_no_name(packed: bytes) -> None:
    pool = Pool()
    pool.address("a.example")
    assert pool.name(packed) is None


def test_the_whole_range_is_used_and_no_more() -> None:
    pool = Pool()
    given_out = [pool.address(f"h{number}.example") for number in range(BLOCKS * USABLE)]
    assert len(set(given_out)) == len(given_out) == 130_048
    assert all(packed[:1] == b"\xc6" and packed[1] in (18, 19) and packed[3] not in (0, 255) for packed in given_out)
    assert IPv4Address(given_out[254]) == IPv4Address("198.18.1.1")
    assert IPv4Address(given_out[-1]) == IPv4Address("198.19.255.254")
    with pytest.raises(DeniedError) as error:
        pool.address("one.more")
    assert error.value.rule == "network.names"
    assert pool.address("h7.example") == given_out[7]


def test_a_wildcard_cannot_use_up_the_pool() -> None:
    pool = Pool(wildcard_names=3)
    for number in range(3):
        pool.address(f"x{number}.evil.example", "*.evil.example")
    with pytest.raises(DeniedError):
        pool.address("x4.evil.example", "*.evil.example")
    pool.address("x0.evil.example", "*.evil.example")
    pool.address("x.good.example", "*.good.example")
    pool.address("pypi.org", "pypi.org")
    assert len(pool) == 5


@pytest.mark.parametrize("name", ["", "A.example", "1.2.3.4", "a.", "*.a", "a\\000.b"])
def test_what_is_no_name_gets_no_address(name: str) -> None:
    pool = Pool()
    with pytest.raises(InvalidError):
        pool.address(name)
    assert len(pool) == 0
