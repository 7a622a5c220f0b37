"""`network.hello`: real ClientHellos in every cut, and what is wrong with others."""

from __future__ import annotations

import ssl
import struct
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nucleus.errors import InvalidError
from nucleus.network.hello import ACCESS_DENIED, HELLO_BYTES, UNRECOGNIZED_NAME, Hello, Reader, alert

NAME = "api.example.com"


@cache
def real(
    name: str | None = NAME,
    alpn: tuple[str, ...] = (),
    least: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2,
    most: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
) -> bytes:
    """What OpenSSL says first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = name is not None
    context.minimum_version, context.maximum_version = least, most
    if alpn:
        context.set_alpn_protocols(list(alpn))
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def extension(kind: int, data: bytes) -> bytes:
    return struct.pack("!HH", kind, len(data)) + data


def vector(data: bytes, width: int = 2) -> bytes:
    return len(data).to_bytes(width, "big") + data


def sni(*names: bytes, kind: int = 0) -> bytes:
    return extension(0, vector(b"".join(bytes((kind,)) + vector(name) for name in names)))


def body(extensions: bytes | None = b"", *, version: int = 0x0303, session: bytes = b"", ciphers: bytes = b"\x13\1", compression: bytes = b"\0") -> bytes:  # fmt: skip  # noqa: E501
    made = struct.pack("!H", version) + b"r" * 32 + vector(session, 1) + vector(ciphers) + vector(compression, 1)
    return made if extensions is None else made + vector(extensions)


def message(content: bytes, kind: int = 1) -> bytes:
    return bytes((kind,)) + vector(content, 3)


def records(content: bytes, size: int = 16_384, version: bytes = b"\3\1") -> bytes:
    return b"".join(b"\x16" + version + vector(content[at : at + size]) for at in range(0, len(content), size))


def read(stream: bytes, size: int = 0) -> Hello | None:
    reader, hello = Reader(), None
    for at in range(0, len(stream), size or len(stream) or 1):
        hello = reader.feed(stream[at : at + (size or len(stream))])
    return hello


def refused(stream: bytes) -> str:
    """The rule, the same whole and byte by byte."""
    rules = set()
    for size in (0, 1):
        with pytest.raises(InvalidError) as error:
            read(stream, size)
        rules.add((error.value.rule, error.value.message))
    assert len(rules) == 1
    return rules.pop()[0]


def wrong(extensions: bytes | None = b"", **kwargs: object) -> str:
    return refused(records(message(body(extensions, **kwargs))))  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0, 1, 3, 100])
@pytest.mark.parametrize("alpn", [(), ("h2", "http/1.1"), ("x" * 255,)])
@pytest.mark.parametrize("name", [NAME, "a", None, "127.0.0.1", "x." * 100 + "example"])
def test_openssl(name: str | None, alpn: tuple[str, ...], size: int) -> None:
    expected = None if name in (None, "127.0.0.1") else name
    assert read(real(name, alpn), size) == Hello(expected, alpn, False, (0x0304, 0x0303))


def test_openssl_of_one_version() -> None:
    two, three = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
    assert read(real(most=two)) == Hello(NAME, (), False, (0x0303,))
    assert read(real(least=three)) == Hello(NAME, (), False, (0x0304,))


def test_names_are_lower_case() -> None:
    assert read(real("API.Example.COM")) == read(real())
    hello = read(records(message(body(sni(b"A_b.EXAMPLE")))))
    assert hello is not None
    assert hello.sni == "a_b.example"


@pytest.mark.parametrize("size", [1, 2, 7, 64, 16_384])
@pytest.mark.parametrize("cut", [0, 1, 11])
def test_a_hello_over_several_records(size: int, cut: int) -> None:
    assert read(records(real(alpn=("h2",))[5:], size), cut) == read(real(alpn=("h2",)))


def test_nothing_is_known_before_the_last_byte() -> None:
    stream = real()
    reader = Reader()
    assert reader.feed(b"") is None
    assert reader.feed(stream[:-1]) is None
    hello = reader.feed(stream[-1:])
    assert hello is not None
    assert reader.feed(b"anything") is hello


def test_what_follows_the_record_is_not_looked_at() -> None:
    early = b"\x14\3\3\0\1\1" + b"\x17\3\3\0\5hello"  # 0-RTT of TLS 1.3
    assert read(real() + early) == read(real() + early, 1) == read(real())


def test_a_hello_without_extensions() -> None:
    assert read(records(message(body(None)))) == Hello(None, (), False, (0x0303,))
    assert read(records(message(body(b"", version=0x0301)))) == Hello(None, (), False, (0x0301,))


@pytest.mark.parametrize("kind", [0xFE0D, 0xFFCE, 0xFE09, 0xFE0A])
def test_hidden_names_are_flagged(kind: int) -> None:
    hello = read(records(message(body(sni(b"public.example") + extension(kind, b"\0sealed")))))
    assert hello == Hello("public.example", (), True, (0x0303,))


def test_grease_is_no_fault() -> None:
    greased = (
        extension(0x0A0A, b"") + sni(b"a.example") + extension(43, vector(b"\x0a\x0a\3\4", 1))
        + extension(16, vector(vector(b"\x0a\x0a", 1) + vector(b"h2", 1))) + extension(0xFAFA, b"\0")
    )  # fmt: skip
    hello = read(records(message(body(greased, ciphers=b"\x0a\x0a\x13\1"))))
    assert hello == Hello("a.example", ("\n\n", "h2"), False, (0x0A0A, 0x0304))


@pytest.mark.parametrize(
    "stream",
    [
        b"GET / HTTP/1.1\r\n\r\n", b"SSH-2.0-x\r\n", b"\x80\x2e\1\3\1", b"\x15\3\3\0\2\2\x28", b"\x14\3\3\0\1\1",
        b"\x17\3\3",
        b"\x16\2", b"\x16\4\0", b"\x16\3\1\0\0", b"\x16\3\1\x40\1", b"\x16\3\1\xff\xff", b"\0",
        records(b"\1\0\0\x80") + b"\x17\3\3\0\1x", records(b"\1\0\0\x80") + b"\x16\3\3\0\0",
    ],
)  # fmt: skip
def test_what_is_no_record_of_a_handshake(stream: bytes) -> None:
    assert refused(stream) == "tls.record"


@pytest.mark.parametrize(
    "stream",
    [
        records(b"\2"), records(b"\0\0\0\0"), records(b"\x18\0\0\1\1"),
        records(b"\1" + (HELLO_BYTES - 3).to_bytes(3, "big")), records(b"\1\xff\xff\xff"),
        records(message(body()) + b"x"), records(message(body()) * 2), records(message(b"")), records(message(b"\3\3")),
        records(message(body() + b"x")), records(message(body()[:-1])), records(message(body(None) + b"\0")),
    ],
)  # fmt: skip
def test_what_is_no_hello(stream: bytes) -> None:
    assert refused(stream) == "tls.hello"


def test_the_longest_hello_and_one_more() -> None:
    room = HELLO_BYTES - 4 - len(body()) - 4
    stream = records(message(body(extension(21, bytes(room)))))
    assert len(stream) == HELLO_BYTES + 5
    assert read(stream) == Hello(None, (), False, (0x0303,))
    assert wrong(extension(21, bytes(room + 1))) == "tls.hello"


def test_fields_out_of_bounds() -> None:
    assert wrong(version=0x0300) == wrong(version=0x0002) == wrong(version=0x0400) == "tls.hello"
    assert wrong(session=b"s" * 33) == wrong(ciphers=b"") == wrong(ciphers=b"\x13\1\x13") == "tls.hello"
    assert wrong(compression=b"") == "tls.hello"
    assert read(records(message(body(session=b"s" * 32)))) is not None


@pytest.mark.parametrize(
    "extensions",
    [
        b"\0", b"\0\0\0", extension(21, b"")[:-1], extension(21, b"")[:-1] + b"\1", extension(21, b"") * 2,
        sni(b"a.example") + sni(b"a.example"), sni(b"a.example") + sni(b"b.example"),
        extension(0xFE0D, b"") * 2,
        extension(16, b""), extension(16, b"\0\0"), extension(16, vector(b"\0")), extension(16, vector(b"\0\1x")),
        extension(16, vector(b"\3h2")), extension(16, vector(b"\2h2") + b"x"),
        extension(43, b""), extension(43, b"\0"), extension(43, b"\3\3\4\3"), extension(43, b"\4\3\4"), extension(43,
        b"\2\3\4\3"),
    ],
)  # fmt: skip
def test_malformed_extensions(extensions: bytes) -> None:
    assert wrong(extensions) == "tls.hello"


@pytest.mark.parametrize(
    "extensions",
    [
        extension(0, b""), extension(0, b"\0"), extension(0, b"\0\0"), extension(0, b"\0\1\0"), extension(0,
        b"\0\3\0\0\0"),
        sni(b""), sni(b"a.example", b"b.example"), sni(b"a.example", kind=1),
        extension(0, b"\0\5\0\0\2ab" + b"x"), extension(0, b"\0\4\0\0\2ab"), extension(0, b"\0\6\0\0\2abx"),
        *(sni(name) for name in (
            b"a.example.", b".", b".a", b"a..b", b"127.0.0.1", b"2130706433", b"0x7f.1", b"0177.1", b"::1", b"[::1]",
            b"a.1",
            b"a b", b"a\0.example", b"a/b", b"*.example", b"\xc3\xa4.example", b"\xef\xbc\x91.1",
            b"\xe2\x84\xaa.example",
            b"-a.example", b"x" * 64, b"a." * 127 + b"a", b"a:443", b"user@a.example", b"a\n",
        )),
    ],
)  # fmt: skip
def test_malformed_server_names(extensions: bytes) -> None:
    assert wrong(extensions) == "tls.sni"


def test_a_refusal_is_final() -> None:
    reader = Reader()
    for data in (b"GET", real(), b""):
        with pytest.raises(InvalidError):
            reader.feed(data)


@pytest.mark.parametrize("description", [ACCESS_DENIED, UNRECOGNIZED_NAME, 50])
@pytest.mark.parametrize("most", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_openssl_understands_our_alerts(description: int, most: ssl.TLSVersion) -> None:
    assert alert(description) == bytes((21, 3, 3, 0, 2, 2, description))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.maximum_version = most
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=NAME)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    incoming.write(alert(description))
    with pytest.raises(ssl.SSLError) as error:
        client.do_handshake()
    words = {49: "ACCESS_DENIED", 112: "UNRECOGNIZED_NAME", 50: "DECODE_ERROR"}
    assert words[description] in str(error.value.reason)


def outcome(pieces: list[bytes]) -> object:
    reader, hello = Reader(), None
    try:
        for piece in pieces:
            hello = reader.feed(piece)
    except InvalidError as error:
        return error.rule, error.message
    return hello


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """A hello that is whole, or damaged somewhere, or anything."""
    hidden = message(body(sni(b"a.example") + extension(0xFE0D, b"x")))
    good = draw(st.sampled_from((real(), real(alpn=("h2",)), records(real()[5:], 50), records(hidden))))
    damaged = bytearray(good)
    for at, byte in draw(st.lists(st.tuples(st.integers(0, len(good) - 1), st.integers(0, 255)), max_size=3)):
        damaged[at] = byte
    return draw(st.sampled_from((good, bytes(damaged)))) + draw(st.binary(max_size=20))


@given(streams() | st.binary(max_size=300) | st.binary(max_size=200).map(lambda raw: records(b"\1" + vector(raw, 3))),
       st.lists(st.integers(0, 600), max_size=12))  # fmt: skip
def test_however_the_bytes_are_cut(stream: bytes, cuts: list[int]) -> None:
    borders = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    pieces = [stream[start:end] for start, end in pairwise(borders)]
    whole = outcome([stream])
    assert outcome(pieces) == whole
    assert outcome([stream[at : at + 1] for at in range(len(stream))]) == whole


@given(st.binary(max_size=200))
def test_a_body_of_any_bytes(raw: bytes) -> None:
    result = outcome([records(message(b"\3\3" + raw))])
    assert isinstance(result, (Hello, tuple))
