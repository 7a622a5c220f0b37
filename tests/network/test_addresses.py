"""`network.addresses`: one address whatever its spelling; nothing special is public, however it is wrapped."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nucleus.network.addresses import is_public, literal
from nucleus.network.names import is_name

LOOPBACK = IPv4Address("127.0.0.1")
SPELLINGS = (
    "127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7F.1", "0X7f.0.0.0x1", "0177.0.0.1", "017700000001",
    "0177.0x0.1", "00000177.0.0.00001", "127.0.0.1.", " 127.0.0.1", "127.0.0.1\t", "127.0.0.1 example.com",
    "[127.0.0.1]",
    "0x7f.0x.0x.1", "１２７．０．０．１", "127。0。0。1", "①②⑦.⓪.⓪.①", "127.0\u00ad.0.1",
    "127.0.0\u200b.1", "𝟭𝟮𝟳.𝟬.𝟬.𝟭",
    "127%2e0%2E0.1", "%31%32%37.1", "%EF%BC%91%EF%BC%92%EF%BC%97.1",
    "::ffff:127.0.0.1", "[::ffff:7f00:1]", "[0:0:0:0:0:FFFF:7F00:0001]", "::127.0.0.1", "[::7f00:1].",
    "64:ff9b::7f00:1",
    "64:ff9b::127.0.0.1", "::ffff:0:127.0.0.1", "2002:7f00:1::", "[2002:7f00:1::1%25eth0]", "::ffff:127.0.0.1%lo",
    "2001:0:4136:e378:8000:63bf:80ff:fffe", "::ffff:127.0.0.1%eth0.vlan",
)  # fmt: skip


@pytest.mark.parametrize("text", SPELLINGS)
def test_every_spelling_of_loopback_is_loopback(text: str) -> None:
    assert literal(text) == LOOPBACK
    assert "loopback" in (is_public(text) or "")
    assert not is_name(text)


@pytest.mark.parametrize(
    "text",
    [
        "", ".", "..", "example.com", "127.0.0.1.example.com", "1.2.3.4.5", "256.1.1.1", "1.2.3.256", "1.2.65536",
        "1.16777216",
        "4294967296", "08.8.8.8", "1..2", "1.2.3.4..", "0x7g.1", "1_0.1.1.1", "+1.1.1.1", "-1", "1e3", "deadbeef",
        "a", "::g",
        ":", "1::2::3", "[::1", "::1]", "[]", "[::1]:80", "1.2.3.4:80", "[v1.x]", "1.2.3.4/32", "::/0", "x" * 5000,
        "١٢٧.٠.٠.١",
        "xn--fiqs8s", "1" * 1000, "%", "%zz", "\ud800",
    ],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    assert literal(text) is None
    assert is_public(text) == "not an address"


def test_what_looks_like_an_address_and_is_none_is_no_name_either() -> None:
    for text in ("256.1.1.1", "08.8.8.8", "4294967296", "1.2.3.4.5", "1.2.3.999", "0x", "a.0x7f", "x.1"):
        assert not is_name(text)


def test_plain_ipv6_stays_itself() -> None:
    assert literal("[2606:4700::1111]") == IPv6Address("2606:4700::1111")
    assert literal("FE80::1%eth0") == IPv6Address("fe80::1")
    assert literal("::1") == IPv6Address("::1")
    assert literal("::") == IPv6Address("::")


REASONS = {
    "unspecified": ["0.0.0.0", "0.1.2.3", "::", "0"],
    "loopback": ["127.0.0.1", "127.255.255.254", "::1"],
    "private": ["10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "fc00::1", "fd12::1", "fec0::1"],
    "shared (CGNAT)": ["100.64.0.1", "100.127.255.255"],
    "link-local": ["169.254.1.1", "fe80::1", "febf::1", "fe80::1%eth0"],
    "metadata": [
        "169.254.169.254", "fd00:ec2::254", "169.254.170.2", "100.100.100.200", "192.0.0.192", "168.63.129.16",
        "fd20:ce::254", "0xa9fea9fe", "2852039166", "0251.0376.0251.0376",
    ],
    "multicast": ["224.0.0.1", "239.255.255.255", "ff02::1"],
    "broadcast": ["255.255.255.255"],
    "reserved": [
        "240.0.0.1", "192.0.0.1", "192.88.99.1", "100::1", "2001::1:2:3", "2001:20::1", "4000::1", "1::1", "5f00::1",
        "64:ff9b:1::808:808", "2002:808:808::1",
    ],
    "documentation": ["192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1", "3fff::1"],
    "benchmark": ["198.18.0.1", "198.19.255.255", "2001:2::1"],
}  # fmt: skip


@pytest.mark.parametrize(("reason", "text"), [(reason, text) for reason, texts in REASONS.items() for text in texts])
def test_what_is_not_public(reason: str, text: str) -> None:
    if text == "2001::1:2:3":  # Teredo: of server 0.0.0.0
        reason = "unspecified, inside 2001::1:2:3"
    assert is_public(text) == reason


@pytest.mark.parametrize(
    "text",
    ["8.8.8.8", "1.1.1.1", "172.15.0.1", "172.32.0.1", "100.63.0.1", "100.128.0.1", "11.0.0.1", "198.17.0.1",
     "198.20.0.1",
     "223.255.255.255", "169.253.1.1", "2606:4700::1111", "2a00::1", "2001:4860:4860::8888", "::ffff:8.8.8.8",
     "64:ff9b::808:808"],
)  # fmt: skip
def test_what_is_public(text: str) -> None:
    assert is_public(text) is None
    assert is_public(ip_address(text)) is None


def _wrapped(inner: IPv4Address) -> list[IPv6Address]:
    number = int(inner)
    return [
        IPv6Address(number),
        IPv6Address(0xFFFF << 32 | number),
        IPv6Address(0xFFFF_0000 << 32 | number),
        IPv6Address(0x64_FF9B << 96 | number),
        IPv6Address(0x2002 << 112 | number << 80 | 1),
        IPv6Address(0x2001 << 112 | 0x0808_0808 << 64 | number ^ 0xFFFF_FFFF),
        IPv6Address(0x2001 << 112 | number << 64 | 0x0808_0808 ^ 0xFFFF_FFFF),
    ]


@pytest.mark.parametrize("text", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "192.168.0.1", "100.64.0.1", "224.0.0.1"])
def test_wrapping_hides_nothing(text: str) -> None:
    reason = is_public(text)
    for wrapped in _wrapped(IPv4Address(text)):
        assert is_public(wrapped) == f"{reason}, inside {wrapped}"


@given(st.integers(0, 2**32 - 1))
def test_a_wrapped_address_is_never_more_public_than_what_it_carries(number: int) -> None:
    inner = IPv4Address(number)
    # Python's own list as a second opinion: what it calls not global, we do too.
    if not inner.is_global or inner.is_multicast:
        assert is_public(inner) is not None
    for wrapped in _wrapped(inner):
        assert is_public(inner) is None or is_public(wrapped) is not None


@given(st.integers(0, 2**128 - 1).map(IPv6Address))
def test_pythons_opinion_of_ipv6_is_a_floor(address: IPv6Address) -> None:
    if not address.is_global or address.is_multicast:
        assert is_public(address) is not None


@given(st.text(max_size=80) | st.text(alphabet="0123456789.xXabcdef:[]% ", max_size=40))
def test_never_raises_and_never_disagrees_with_the_c_library(text: str) -> None:
    found = literal(text)
    assert found is None or not is_name(text)
    try:
        libc = IPv4Address(socket.inet_aton(text))
    except (OSError, UnicodeError, ValueError):
        return
    assert found == libc, text


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.data())
def test_every_mixture_of_bases_and_parts(number: int, count: int, data: st.DataObject) -> None:
    parts = [number >> 8 * (3 - at) & 255 for at in range(count - 1)] + [number & (1 << 8 * (5 - count)) - 1]
    spelled = [data.draw(st.sampled_from((str(part), hex(part), f"0{part:o}", f"0X000{part:X}"))) for part in parts]
    text = ".".join(spelled) + data.draw(st.sampled_from(("", ".")))
    assert literal(text) == IPv4Address(number)
    assert not is_name(text)
    wide = text.translate({0x30 + digit: 0xFF10 + digit for digit in range(10)})
    assert literal(wide) == IPv4Address(number)
