"""Heads: what is refused, and what is sent instead of what came."""

from __future__ import annotations

import h11
import pytest

from nucleus.network.httphead import (
    HeadError,
    check_block,
    clean_path,
    forwarded,
    parse,
    parse_authority,
    refusal,
    strip_query,
)


def head(block: bytes, expected: tuple[str, int] | None = ("api.example.com", 80), default_port: int = 80):  # type: ignore[no-untyped-def]
    check_block(block)
    http = h11.Connection(h11.SERVER, max_incomplete_event_size=65_536)
    http.receive_data(block)
    try:
        request = http.next_event()
    except h11.RemoteProtocolError as error:
        raise HeadError(400, "h11", str(error)) from None
    assert isinstance(request, h11.Request), request
    return parse(request, expected, default_port)


HOST = b"Host: api.example.com\r\n"


def get(*lines: bytes, first: bytes = b"GET /v1/x?y=1 HTTP/1.1", host: bytes = HOST) -> bytes:
    return first + b"\r\n" + host + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


SMUGGLING = {
    "content-length and transfer-encoding": get(b"Content-Length: 4", b"Transfer-Encoding: chunked"),
    "two content-lengths": get(b"Content-Length: 4", b"Content-Length: 5"),
    "two equal content-lengths": get(b"Content-Length: 4", b"Content-Length: 4"),
    "list of content-lengths": get(b"Content-Length: 4, 4"),
    "signed content-length": get(b"Content-Length: +4"),
    "hex content-length": get(b"Content-Length: 0x4"),
    "empty content-length": get(b"Content-Length:"),
    "content_length": get(b"Content_Length: 4"),
    "transfer_encoding": get(b"Transfer_Encoding: chunked"),
    "chunked twice": get(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    "chunked, identity": get(b"Transfer-Encoding: chunked, identity"),
    "gzip, chunked": get(b"Transfer-Encoding: gzip, chunked"),
    "xchunked": get(b"Transfer-Encoding: xchunked"),
    "quoted chunked": get(b'Transfer-Encoding: "chunked"'),
    "vertical tab chunked": get(b"Transfer-Encoding: \x0bchunked"),
    "space before colon": get(b"Transfer-Encoding : chunked"),
    "space before content-length": get(b" Content-Length: 4"),
    "folded value": get(b"Transfer-Encoding:", b" chunked"),
    "folded with tab": get(b"X: a", b"\tb"),
    "bare LF header": get(b"X: a\nTransfer-Encoding: chunked"),
    "bare CR header": get(b"X: a\rTransfer-Encoding: chunked"),
    "NUL": get(b"X: a\0b"),
    "DEL": get(b"X: a\x7fb"),
    "control in value": get(b"X: a\x01b"),
    "no colon": get(b"X"),
    "empty name": get(b": x"),
    "name with a space": get(b"X Y: z"),
    "non-ASCII name": get(b"X\xc3\xa9: z"),
    "LF in the request line": get(first=b"GET / HTTP/1.1\nX: y"),
    "two hosts": get(b"Host: api.example.com"),
    "two different hosts": get(b"Host: evil.example"),
    "no host": get(host=b""),
    "empty host": get(host=b"Host:\r\n"),
    "other host": get(host=b"Host: evil.example\r\n"),
    "other port": get(host=b"Host: api.example.com:8080\r\n"),
    "user@host": get(host=b"Host: api.example.com@evil.example\r\n"),
    "two names in host": get(host=b"Host: api.example.com, evil.example\r\n"),
    "host with a path": get(host=b"Host: api.example.com/x\r\n"),
    "absolute form, other host": get(first=b"GET http://evil.example/ HTTP/1.1"),
    "absolute form, other Host": get(first=b"GET http://api.example.com/ HTTP/1.1", host=b"Host: evil.example\r\n"),
    "absolute form with user": get(first=b"GET http://u:p@api.example.com/ HTTP/1.1"),
    "absolute form, other scheme": get(first=b"GET ftp://api.example.com/ HTTP/1.1"),
    "absolute form, https": get(first=b"GET https://api.example.com/ HTTP/1.1"),
    "asterisk form": get(first=b"OPTIONS * HTTP/1.1"),
    "authority form": get(first=b"GET api.example.com:80 HTTP/1.1"),
    "CONNECT": get(first=b"CONNECT api.example.com:80 HTTP/1.1"),
    "TRACE": get(first=b"TRACE / HTTP/1.1"),
    "two spaces": get(first=b"GET  / HTTP/1.1"),
    "tab": get(first=b"GET\t/ HTTP/1.1"),
    "space in target": get(first=b"GET /a b HTTP/1.1"),
    "no version": get(first=b"GET /"),
    "HTTP/2.0": get(first=b"GET / HTTP/2.0"),
    "HTTP/1.2": get(first=b"GET / HTTP/1.2"),
    "lower-case version": get(first=b"GET / http/1.1"),
    "websocket": get(b"Upgrade: websocket", b"Connection: Upgrade"),
    "h2c and websocket": get(b"Upgrade: h2c, websocket"),
    "method override": get(b"X-HTTP-Method-Override: DELETE"),
    "method override, underscores": get(b"X_HTTP_Method_Override: DELETE"),
    "strange expectation": get(b"Expect: 200-ok"),
    "chunked in 1.0": get(b"Transfer-Encoding: chunked", first=b"POST / HTTP/1.0"),
    "fragment": get(first=b"GET /a#b HTTP/1.1"),
    "fragment in the query": get(first=b"GET /a?b#c HTTP/1.1"),
    "too many headers": get(*[b"a: b"] * 300),
    "too long": get(b"X: " + b"a" * 70_000),
}


@pytest.mark.parametrize("name", SMUGGLING)
def test_ambiguous_and_foreign_heads_are_refused(name: str) -> None:
    with pytest.raises(HeadError) as caught:
        head(SMUGGLING[name])
    assert 400 <= caught.value.status <= 505


def test_an_ordinary_head() -> None:
    found = head(get(b"Content-Length: 4", b"Accept: */*", first=b"POST /v1/%7euser/a%2fb?q=%0a HTTP/1.1"))
    assert (found.method, found.host, found.port) == ("POST", "api.example.com", 80)
    assert (found.path, found.query, found.length) == ("/v1/~user/a%2Fb", "?q=%0a", 4)
    assert found.has_body
    assert found.header("accept") == "*/*"
    assert not head(get()).has_body
    assert head(get(b"Transfer-Encoding: Chunked")).length is None
    assert head(get(b"Expect: 100-continue", b"Content-Length: 3")).expects


def test_a_proxys_client_names_the_host_in_full() -> None:
    found = head(get(first=b"GET http://API.example.com:80/x HTTP/1.1"), expected=None)
    assert (found.host, found.port, found.path) == ("api.example.com", 80, "/x")
    assert head(get(first=b"GET http://api.example.com?q HTTP/1.1"), expected=None).query == "?q"
    with pytest.raises(HeadError):
        head(get(), expected=None)
    with pytest.raises(HeadError):  # plain http asked for inside TLS
        head(get(first=b"GET http://api.example.com:443/ HTTP/1.1"), ("api.example.com", 443), 443)
    assert head(get(), ("api.example.com", 443), 443).port == 443


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Example.COM.", ("example.com", 80)),
        ("example.com:8080", ("example.com", 8080)),
        ("192.0.2.1:1", ("192.0.2.1", 1)),
        ("[2001:DB8::0:1]:443", ("2001:db8::1", 443)),
        ("[::1]", ("::1", 80)),
        *[(text, None) for text in ("", ":80", "a:", "a:0", "a:65536", "a:+80", "a:８０", "[::1", "::1", "[::1%lo]")],
        *[(text, None) for text in ("127.1", "0x7f.1", "2130706433", "a..b", "-a", "a b", "u@a", "a/b", "é", "a\\b")],
    ],
)
def test_authorities(text: str, expected: tuple[str, int] | None) -> None:
    assert parse_authority(text, 80) == expected


@pytest.mark.parametrize(
    "path",
    [
        *("/..", "/a/../b", "/.", "/a/./b", "/%2e%2e/b", "/a/%2E./b", "/a/..%2fb", "/a%2f..%2fb", "/a/..%5cb"),
        *(
            "/a\\..\\b",
            "/%252e%252e/b",
            "/%25252e./b",
            "/a/..;x/b",
            "/a/%2e%2e;/b",
            "/a%00",
            "/a%0d%0aX: y",
            "/%zz",
            "/%",
            "/a%7f",
        ),
        *("a", "", "/%2525252525252e"),
    ],
)
def test_paths_that_could_be_read_as_another_are_refused(path: str) -> None:
    with pytest.raises(HeadError):
        clean_path(path)


@pytest.mark.parametrize(
    ("path", "clean"),
    [
        ("/", "/"),
        ("/v1/models", "/v1/models"),
        ("/%41%2d%7E", "/A-~"),
        ("/@scope%2fname", "/@scope%2Fname"),
        ("/a//b", "/a//b"),
        ("/..a/b..", "/..a/b.."),
        ("/100%25", "/100%25"),
        ("/%c3%a9", "/%C3%A9"),
        ("/a.b;v=1/c", "/a.b;v=1/c"),
    ],
)
def test_ordinary_paths(path: str, clean: str) -> None:
    assert clean_path(path) == clean


def sent(*lines: bytes, first: bytes = b"GET /v1/x HTTP/1.1", **kwargs: object) -> tuple[bytes, dict[bytes, bytes]]:
    target, headers = forwarded(head(get(*lines, first=first)), default_port=80, **kwargs)  # type: ignore[arg-type]
    assert len({name.lower() for name, _ in headers}) == len(headers)
    return target, {name.lower(): value for name, value in headers}


def test_headers_of_the_hop_and_of_forwarding_are_taken_away() -> None:
    _, headers = sent(
        *(b"Connection: close, X-Mine, Host, Content-Length", b"X-Mine: 1", b"Keep-Alive: 5", b"TE: trailers"),
        *(b"Proxy-Authorization: Basic x", b"Proxy-Connection: x", b"Upgrade: h2c", b"HTTP2-Settings: AA"),
        *(b"X-Forwarded-Host: evil", b"X_Forwarded_For: 1", b"Forwarded: host=evil", b"X-Original-URL: /admin"),
        *(b"Expect: 100-continue", b"Content-Length: 3", b"X-Yours: 2", b"Accept-Encoding: gzip"),
    )
    assert headers == {
        b"host": b"api.example.com",
        b"x-yours": b"2",
        b"accept-encoding": b"gzip",
        b"content-length": b"3",
    }


def test_the_clients_credentials_are_replaced() -> None:
    lines = (b"Authorization: Bearer mine", b"X-Api-Key: mine", b"x_api_key: mine", b"Api-Key: mine", b"Cookie: a=b")
    lines += (b"X-Goog-Api-Key: mine", b"Range: bytes=0-3", b"If-Range: x", b"Accept-Encoding: gzip", b"X-Other: mine")
    first = b"GET /v1/x?a=1&KEY=mine&api%5Fkey=mine;access_token=mine&b=%61&%6bey=mine HTTP/1.1"
    target, headers = sent(*lines, first=first, strip=True, identity=True, add=((b"authorization", b"Bearer ours"),))
    assert target == b"/v1/x?a=1&b=%61"
    assert headers == {
        b"host": b"api.example.com",
        b"cookie": b"a=b",
        b"x-other": b"mine",
        b"authorization": b"Bearer ours",
        b"accept-encoding": b"identity",
    }
    _, headers = sent(*lines, strip=True, cookies=True)
    assert b"cookie" not in headers
    _, headers = sent(*lines[:2], add=((b"X-API-KEY", b"ours"),))
    assert headers[b"x-api-key"] == b"ours"
    assert headers[b"authorization"] == b"Bearer mine"


def test_stripping_a_query_keeps_the_rest_as_it_was() -> None:
    assert strip_query("") == ""
    assert strip_query("?") == "?"
    assert strip_query("?a=1&&b=2;c") == "?a=1&&b=2;c"
    assert strip_query("?key=1") == ""
    assert strip_query("?key=1&a=2") == "?a=2"
    assert strip_query("?monkey=1&key2=3") == "?monkey=1&key2=3"
    assert strip_query("?%256bey=1") == ""


def test_a_refusal_says_who_to_ask() -> None:
    answer = refusal(403, "denied", 'no "rule"\r\nX: y')
    assert answer.startswith(b"HTTP/1.1 403 Forbidden\r\n")
    assert b"nucleus why --last" in answer
    assert b"Connection: close" in answer
    assert answer.count(b"\r\n\r\n") == 1
    assert b"Connection" not in refusal(403, "denied", "no", keep=True)
    assert refusal(502, "x", "y", bodiless=True).endswith(b"\r\n\r\n")
