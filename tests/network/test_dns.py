"""`network.dns`: answers of its own for names that a rule covers, REFUSED for others, nothing for what is no query."""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nucleus.errors import DeniedError
from nucleus.network import dns
from nucleus.network.dns import AAAA, Query, Responder, parse, reply
from nucleus.network.names import Pool, covers

A, TXT, HTTPS, AXFR, ANY = 1, 16, 65, 252, 255
ADDRESS = bytes((198, 18, 0, 1))
OPT = b"\0" + struct.pack("!HHIH", 41, 1232, 0, 0)


def labels(name: str) -> bytes:
    return b"".join(bytes((len(part),)) + part.encode() for part in name.split(".") if part) + b"\0"


def query(name: str | bytes, kind: int = A, *, flags: int = 0x0100, klass: int = 1, rest: bytes = b"", counts: tuple[int, int, int, int] | None = None) -> bytes:  # fmt: skip  # noqa: E501
    raw = labels(name) if isinstance(name, str) else name
    counts = counts or (1, 0, 0, 1 if rest else 0)
    return struct.pack("!HHHHHH", 0xBEEF, flags, *counts) + raw + struct.pack("!HH", kind, klass) + rest


def responder(**kwargs: int) -> Responder:
    pool = Pool()
    return Responder(lambda name: covers("*.allowed.test", name) or name == "pypi.org", pool.address, **kwargs)


def answered(data: bytes) -> bytes | None:
    return responder().answer(data, 0)


def rcode(answer: bytes | None) -> int:
    assert answer is not None
    assert answer[2] & 0x80, "a response"
    return answer[3] & 15


def test_a_covered_name_has_its_synthetic_address_and_nothing_else() -> None:
    asked = query("PyPI.oRG")
    header = struct.pack("!HHHHHH", 0xBEEF, 0x8180, 1, 1, 0, 0)
    record = struct.pack("!HHHIH", 0xC00C, 1, 1, 60, 4) + ADDRESS
    assert answered(asked) == header + asked[12:] + record


def test_the_same_name_in_any_case_has_the_same_address() -> None:
    made = responder()
    answers = {made.answer(query(name), 0)[-4:] for name in ("pypi.org", "PYPI.ORG", "pYpI.oRg")}  # type: ignore[index]
    assert answers == {ADDRESS}


@pytest.mark.parametrize("kind", [AAAA, TXT, HTTPS, 2, 5, 6, 12, 15, 33, 64])
def test_a_covered_name_has_no_other_data(kind: int) -> None:
    asked = query("pypi.org", kind)
    assert answered(asked) == asked[:2] + bytes.fromhex("81800001000000000000") + asked[12:]


@pytest.mark.parametrize("kind", [AXFR, 251, ANY, 250, 0, 41])
def test_transfers_and_any_are_refused(kind: int) -> None:
    assert rcode(answered(query("pypi.org", kind))) == dns.REFUSED


@pytest.mark.parametrize(
    "name", ["evil.test", "allowed.test", "", "org", "pypi.org.evil.test", "c2VjcmV0.evil.test", "1.2.3.4"]
)
@pytest.mark.parametrize("kind", [A, AAAA, TXT])
def test_a_name_that_no_rule_covers_is_refused(name: str, kind: int) -> None:
    asked = query(name, kind)
    assert answered(asked) == asked[:2] + bytes.fromhex("81850001000000000000") + asked[12:]


def test_a_dot_inside_a_label_is_no_border() -> None:
    made = responder()
    for raw in (b"\x08pypi.org\0", b"\x06pypi\0o\x03org\0", b"\x04pypi\x04org\0\0", b"\x01*\x07allowed\x04test\0"):
        assert rcode(made.answer(query(raw), 0)) == dns.REFUSED
    assert [name for name, _ in made.refused()] == [
        "pypi\\046org",
        "pypi\\000o.org",
        "pypi.org\\000",
        "\\042.allowed.test",
    ]


@pytest.mark.parametrize("name", ["1.0.18.198.in-addr.arpa", "8.b.d.ip6.arpa", "x.invalid", "x.onion"])
def test_names_that_exist_nowhere_do_not_exist(name: str) -> None:
    assert rcode(answered(query(name, 12))) == dns.NXDOMAIN


def test_refused_names_are_counted_and_bounded() -> None:
    made = responder(per_second=10_000, burst=10_000)
    for number in range(100):
        made.answer(query(f"n{number}.evil.test"), 0)
    made.answer(query("n50.evil.test"), 0)
    assert len(made.refused()) == 64
    assert made.refused()[0] == ("n36.evil.test", 1)
    assert made.refused()[-1] == ("n50.evil.test", 2)
    assert made.refused_total == 101


def test_refused_names_reach_no_one() -> None:
    told: list[str] = []
    made = Responder(lambda name: told.append(name) is not None, lambda name: pytest.fail(name))
    assert rcode(made.answer(query("secret.evil.test"), 0)) == dns.REFUSED
    assert told == ["secret.evil.test"]


def test_class_other_than_in_is_refused() -> None:
    for klass in (3, 255, 0):  # CHAOS: version.bind
        assert rcode(answered(query("pypi.org", klass=klass))) == dns.REFUSED


def test_edns_is_answered_in_kind() -> None:
    answer = answered(query("pypi.org", rest=OPT))
    assert answer is not None
    assert answer.endswith(ADDRESS + bytes.fromhex("00002904d0000000000000"))
    assert answer[4:12] == bytes.fromhex("0001000100000001")
    cookie = b"\0" + struct.pack("!HHIH", 41, 4096, 0x8000, 12) + b"\0\x0a\0\x08" + b"c" * 8
    answer = answered(query("pypi.org", rest=cookie))
    assert answer is not None
    assert rcode(answer) == 0
    assert b"cccc" not in answer


def test_a_future_edns_is_told_so() -> None:
    answer = answered(query("pypi.org", rest=b"\0" + struct.pack("!HHIH", 41, 1232, 1 << 16, 0)))
    assert rcode(answer) == 0
    assert answer is not None
    assert answer[-6:] == bytes((1, 0, 0, 0, 0, 0))  # BADVERS is 16


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xbe\xef\1\0\0\1\0\0\0\0\0",
        query("pypi.org", flags=0x8180),
        query("pypi.org", flags=0xA800),
        query("pypi.org") + b"\0" * 4096,
    ],
    ids=["empty", "short", "response", "update response", "long"],
)
def test_what_is_dropped(data: bytes) -> None:
    assert answered(data) is None


@pytest.mark.parametrize("opcode", [1, 2, 3, 4, 5, 6, 15])
def test_notify_update_and_the_rest_are_not_implemented(opcode: int) -> None:
    assert answered(query("pypi.org", flags=opcode << 11)) == bytes((0xBE, 0xEF, 0x80 | opcode << 3, 0x84)) + bytes(8)


@pytest.mark.parametrize(
    "data",
    [
        query("pypi.org", counts=(2, 0, 0, 0)) + labels("a.b") + b"\0\1\0\1",
        query("pypi.org", counts=(0, 0, 0, 0)),
        query("pypi.org", counts=(257, 0, 0, 0)),
        query("pypi.org", counts=(1, 1, 0, 0)),
        query("pypi.org", counts=(1, 0, 1, 0)),
        query("pypi.org", counts=(1, 0, 0, 2), rest=OPT * 2),
        query("pypi.org", rest=OPT * 2),
        query("pypi.org", rest=OPT + b"x"),
        query("pypi.org", rest=OPT[:-1]),
        query("pypi.org", rest=OPT[:-1] + b"\4" + b"\0\x0a\0\5"),
        query("pypi.org", rest=b"\0" + struct.pack("!HHIH", 250, 255, 0, 0)),
        query("pypi.org", counts=(1, 0, 0, 1)),
        query("pypi.org") + b"x",
        query("pypi.org")[:-1],
        query("pypi.org", flags=0x0300),
        query("pypi.org", flags=0x0140),
        query(b"\xc0\x0c"),
        query(b"\1a\xc0\x0c"),
        query(b"\xc0\x0c\0"),
        query(b"\x40a\0"),
        query(b"\x80a\0"),
        query(b"\x3fa\0"),
        query(b"\1a" * 127 + b"\1\0"),
        query(b"\1a" * 128 + b"\0"),
        query(b"\1a")[:14],
    ],
)
def test_what_is_malformed(data: bytes) -> None:
    assert answered(data) == b"\xbe\xef" + bytes((0x80 | data[2] & 0x79, 0x80 | data[3] & 0x10 | 1)) + bytes(8)


def test_the_longest_name_is_read() -> None:
    found = parse(query(b"\1a" * 127 + b"\0"))
    assert isinstance(found, Query)
    assert len(found.name) == 253


def test_a_used_up_pool_is_a_failure_of_the_server() -> None:
    def full(name: str) -> bytes:
        raise DeniedError(name, rule="network.names")

    assert rcode(Responder(lambda name: True, full).answer(query("pypi.org"), 0)) == dns.SERVFAIL


def test_an_answer_is_made_of_four_bytes_or_none() -> None:
    found = parse(query("pypi.org"))
    assert isinstance(found, Query)
    assert reply(found, dns.NOERROR, ADDRESS, ttl=300).endswith(b"\0\0\1\x2c\0\4" + ADDRESS)
    with pytest.raises(ValueError, match="four"):
        reply(found, dns.NOERROR, bytes(16))


def test_the_rate_is_bounded() -> None:
    made = responder(per_second=10, burst=3)
    asked, second = query("pypi.org"), 1_000_000_000
    assert [made.answer(asked, 5) is not None for _ in range(5)] == [True, True, True, False, False]
    assert made.answer(asked, 5 + second // 20) is None
    assert made.answer(asked, 5 + second // 10) is not None
    assert made.answer(asked, 0) is None, "a clock that goes backwards fills nothing"
    assert made.answer(asked, 5 + second // 10) is None
    assert [made.answer(asked, 100 * second) is not None for _ in range(4)] == [True, True, True, False]
    assert made.dropped == 6


messages = st.binary(max_size=600) | st.builds(
    lambda head, body: head + body, st.just(query("")[:12]), st.binary(max_size=300)
)


@given(messages)
@example(query("pypi.org", rest=OPT))
def test_any_bytes(data: bytes) -> None:
    answer = answered(data)
    if answer is None:
        return
    assert answer[:2] == data[:2]
    assert answer[2] & 0x80
    assert len(answer) <= len(data) + 16
    assert responder().answer(answer, 0) is None, "an answer is never answered"
    if answer[4:6] == b"\0\1":
        at = data.index(b"\0", 12) if len(data) > 12 else 12
        assert answer[12:at] == data[12:at]


@given(st.lists(st.binary(min_size=1, max_size=63), min_size=1, max_size=3), st.integers(0, 65535))
def test_names_of_any_bytes(parts: list[bytes], kind: int) -> None:
    asked = query(b"".join(bytes((len(part),)) + part for part in parts) + b"\0", kind)
    found = parse(asked)
    assert isinstance(found, Query)
    assert found.name.isascii()
    assert found.name.isprintable()
    assert found.name == found.name.lower()
    answer = answered(asked)
    assert answer is not None
    assert answer[12 : len(asked)] == asked[12:]
