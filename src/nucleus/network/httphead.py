"""The head of one HTTP/1.1 request: read so strictly that nobody behind can read it otherwise (RFC 9112).

 1. The block's raw bytes: CRLF alone ends a line, no folded lines, no control characters, bounded in size and number.
    (h11 reads a bare LF, a folded line, and Content-Length beside Transfer-Encoding; here they are refused before it.)
 2. One Host, equal to where the connection goes; in absolute form, equal to the URI's authority.
 3. Framing is said once: one plain Content-Length, or `chunked` alone, never both.
 4. The path that is decided is the path that is sent: unreserved escapes are decoded, and dot segments are refused in
    every spelling (`%2e%2e`, `%252e`, `..%2f`, `..;x`, `%c0%ae`).
 5. What would have a server take the request for another one (method and URL overrides, Upgrade, CONNECT, TRACE) is
    refused; what speaks of hops is taken away, and what a client says of forwarding.

Promises: pure; a refusal is a `HeadError` with status, stable code and reason. Does not: decide, or look at bodies.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import unquote_plus, unquote_to_bytes

import h11

from nucleus.sanitize import sanitize

HEAD_BYTES = 65_536
HEADERS = 256
NEXT = "ask the person in charge: nucleus why --last"
UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")  # RFC 3986 §2.3

HOP_BY_HOP = frozenset(
    [
        "connection",
        "keep-alive",
        "proxy-connection",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-authentication-info",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "http2-settings",
    ]
)
FORWARDING = frozenset(["forwarded", "x-original-url", "x-original-host", "x-rewrite-url", "x-host", "x-real-ip"])
OVERRIDES = frozenset(["x-http-method-override", "x-http-method", "x-method-override"])
CREDENTIALS = frozenset(
    [
        "authorization",
        "proxy-authorization",
        "x-api-key",
        "api-key",
        "x-goog-api-key",
        "private-token",
        "job-token",
        "deploy-token",
        "x-auth-token",
        "x-access-token",
        "x-amz-security-token",
        "apikey",
        "openai-organization",
        "openai-project",
        "anthropic-workspace-id",
        "anthropic-user-profile-id",
    ]
)
QUERY_CREDENTIALS = frozenset(
    [
        "access_token",
        "key",
        "api_key",
        "apikey",
        "private_token",
        "job_token",
        "oauth_token",
        "x-amz-signature",
        "x-amz-credential",
        "x-amz-security-token",
        "x-goog-signature",
        "x-goog-credential",
    ]
)
UNSUPPORTED = frozenset(("CONNECT", "TRACE", "TRACK", "PRI"))

_BAD_BYTES = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})?")
_LABELS = re.compile(r"(?=.{1,253}\Z)(?!-)[a-z0-9_-]{1,63}(?:\.(?!-)[a-z0-9_-]{1,63})*\Z")

Headers = tuple[tuple[bytes, bytes], ...]


class HeadError(Exception):
    """A request that is not sent on. `status` is the answer's, `code` stable (``http.host``), `reason` for people."""

    def __init__(self, status: int, code: str, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.status = status
        self.code = code
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Head:
    """One request as it will be sent on. `query`: with its question mark, or "". `length`: None when chunked."""

    method: str
    host: str
    port: int
    path: str
    query: str
    headers: Headers
    version: str
    length: int | None
    expects: bool
    body: bytes = field(default=b"", repr=False)  # whole, where it was read before the decision

    @property
    def has_body(self) -> bool:
        """Whether bytes follow the head."""
        return self.length is None or self.length > 0

    def header(self, name: str) -> str:
        """The first value of a header (lower-case name), or ""."""
        wanted = name.encode("ascii")
        return next((value.decode("latin-1") for raw, value in self.headers if raw.lower() == wanted), "")

    @property
    def plain_body(self) -> bool:
        """Whether a server reads the body as it stands: not encoded, UTF-8, whoever joins or renames headers."""
        values = [(_plain(name), value.strip().lower()) for name, value in self.headers]
        coded = any(name == "content-encoding" and value not in (b"", b"identity") for name, value in values)
        kinds = [value for name, value in values if name == "content-type" and b"charset" in value]
        return not coded and all(re.search(rb"charset\s*=\s*\"?utf-?8\"?\s*(?:;|\Z)", kind) for kind in kinds)


def refusal(status: int, code: str, reason: str, *, keep: bool = False, bodiless: bool = False) -> bytes:
    """A whole answer: status, and the error body of every door of ours.

    Args:
        keep: the connection can carry another request; else `Connection: close`.
        bodiless: an answer to HEAD.
    """
    body = json.dumps({"error": sanitize(reason), "kind": code, "next": NEXT}).encode() + b"\n"
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    lines = [f"HTTP/1.1 {status} {phrase}", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    lines += ["Cache-Control: no-store"] + ([] if keep else ["Connection: close"])
    return "\r\n".join((*lines, "", "")).encode() + (b"" if bodiless else body)


def check_block(block: bytes) -> None:
    """Step 1, on the bytes up to and with the blank line. Raises HeadError."""
    if len(block) > HEAD_BYTES:
        raise HeadError(431, "http.head", f"the request's head is longer than {HEAD_BYTES} bytes")
    lines = block[:-4].split(b"\r\n")
    if len(lines) > HEADERS + 1:
        raise HeadError(431, "http.head", f"more than {HEADERS} headers")
    for line in lines:
        if not line or line[0] in b" \t" or _BAD_BYTES.search(line):
            raise HeadError(400, "http.head", "a line of the head is folded, empty, or has control characters")
    lengths = [line.partition(b":")[2].strip() for line in lines if line[:15].lower() == b"content-length:"]
    if len(lengths) > 1 or not all(length.isdigit() for length in lengths):  # h11 makes one of two equal ones
        raise HeadError(400, "http.framing", "Content-Length is not one number")


def parse(request: h11.Request, expected: tuple[str, int] | None, default_port: int = 80) -> Head:
    """Steps 2 to 5.

    Args:
        request: what h11 has read from a block that `check_block` has passed.
        expected: host (lower case, or an address as `ipaddress` writes it) and port of the connection; None where the
            request itself names them (a proxy's client), and absolute form is required.
        default_port: of the scheme, when an authority names none.

    Raises:
        HeadError: 400, 403, 417, 501 or 505.
    """
    method = request.method.decode("ascii")
    version = request.http_version.decode("ascii")
    if version not in ("1.0", "1.1"):
        raise HeadError(505, "http.version", "HTTP/1.1 is spoken here")
    if method in UNSUPPORTED:
        raise HeadError(403, "http.method", f"{method} is not sent on")
    names = [_plain(name) for name, _ in request.headers]
    if OVERRIDES.intersection(names):
        raise HeadError(403, "http.override", "a header that overrides the method is not sent on")
    length = _framing(request, names, version)
    _no_upgrade(request)
    scheme, authority, target = _split(request.target.decode("ascii"))
    host, port = _authority(request, authority, expected, scheme, default_port)
    path, _, query = target.partition("?")
    return Head(
        method=method,
        host=host,
        port=port,
        path=clean_path(path),
        query=_query(query) if "?" in target else "",
        headers=tuple((bytes(name), bytes(value)) for name, value in request.headers.raw_items()),
        version=version,
        length=length,
        expects=_expects(request, version),
    )


def _split(target: str) -> tuple[str, str, str]:
    """Scheme, authority and the rest of a request target; "" twice in origin form."""
    if target.startswith("/"):
        return "", "", target
    scheme, found, rest = target.partition("://")
    if not found or scheme.lower() not in ("http", "https"):
        raise HeadError(400, "http.target", "the request's target is neither a path nor an http URL")
    at = min((rest.index(mark) for mark in "/?#" if mark in rest), default=len(rest))
    tail = rest[at:]
    return scheme.lower(), rest[:at], tail if tail.startswith("/") else "/" + tail


def _authority(
    request: h11.Request, authority: str, expected: tuple[str, int] | None, scheme: str, default_port: int
) -> tuple[str, int]:
    """Step 2."""
    hosts = [value for name, value in request.headers if name == b"host"]
    if len(hosts) != 1:
        raise HeadError(400, "http.host", "a request needs exactly one Host")
    if scheme == "https":
        raise HeadError(400, "http.target", "https is asked for with CONNECT")
    if scheme and expected is not None and default_port != 80:
        raise HeadError(400, "http.target", "an http URL inside TLS")
    host = parse_authority(hosts[0].decode("latin-1"), default_port)
    named = parse_authority(authority, default_port) if scheme else host
    if expected is None and not scheme:
        raise HeadError(400, "http.target", "a proxy needs the whole URL")
    if host is None or named is None:
        raise HeadError(400, "http.host", "Host is not a plain name or address")
    if host != named or (expected is not None and host != expected):
        raise HeadError(403, "http.host", "Host is another than the one connected to")
    return host


def parse_authority(text: str, default_port: int) -> tuple[str, int] | None:
    """`host[:port]` in lower case without a trailing dot, addresses canonical; None for anything else (user@host)."""
    host, port = text, default_port
    head, colon, tail = text.rpartition(":")
    if colon and not text.endswith("]"):
        if not (tail.isascii() and tail.isdigit() and len(tail) <= 5 and 0 < int(tail) < 65_536):
            return None
        host, port = head, int(tail)
    if host.startswith("[") and host.endswith("]"):
        try:
            address = ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            return None
        return (str(address), port) if address.scope_id is None else None
    host = host.lower().removesuffix(".")
    last = host.rpartition(".")[2]
    if last.isdigit() or last.startswith("0x"):
        try:
            return str(ipaddress.IPv4Address(host)), port
        except ValueError:
            return None
    return (host, port) if _LABELS.match(host) else None


def _framing(request: h11.Request, names: list[str], version: str) -> int | None:
    """Step 3: the body's length, None for chunked."""
    lengths = [value for name, value in request.headers if name == b"content-length"]
    codings = [value for name, value in request.headers if name == b"transfer-encoding"]
    # `_plain` takes Content_Length for the header that a CGI server would make of it.
    if names.count("content-length") > 1 or names.count("transfer-encoding") > 1 or (lengths and codings):
        raise HeadError(400, "http.framing", "the body's length is said more than once")
    if names.count("content-length") != len(lengths) or names.count("transfer-encoding") != len(codings):
        raise HeadError(400, "http.framing", "a framing header in another spelling")
    if codings:
        if version != "1.1" or codings[0].lower() != b"chunked":
            raise HeadError(501, "http.framing", "no other transfer coding than chunked")
        return None
    return int(lengths[0]) if lengths else 0


def _no_upgrade(request: h11.Request) -> None:
    """Step 5: `h2c` is only ever an offer, which may be ignored; anything else would change the protocol."""
    for name, value in request.headers:
        if name == b"upgrade" and value.strip().lower() != b"h2c":
            raise HeadError(403, "http.upgrade", "a change of protocol (WebSocket) is not possible on this connection")


def _expects(request: h11.Request, version: str) -> bool:
    wanted = [value.strip().lower() for name, value in request.headers if name == b"expect"]
    if wanted and (wanted != [b"100-continue"]):
        raise HeadError(417, "http.expect", "no other expectation than 100-continue")
    return bool(wanted) and version == "1.1"


def clean_path(path: str) -> str:
    """Step 4: `path` with unreserved escapes decoded and the others in upper case. Raises HeadError."""

    def one(match: re.Match[str]) -> str:
        if match[1] is None:
            raise HeadError(400, "http.path", "a broken escape in the path")
        character = chr(int(match[1], 16))
        if character < " " or character == "\x7f":
            raise HeadError(400, "http.path", "a control character in the path")
        return character if character in UNRESERVED else match[0].upper()

    if not path.startswith("/") or "\\" in path or "#" in path:
        raise HeadError(400, "http.path", "the path is not one of RFC 3986")
    clean = _ESCAPE.sub(one, path)
    seen, raw = b"", clean.encode("ascii")
    for _ in range(4):  # what is decoded once more behind us
        if seen == raw:
            return clean
        seen = raw
        if any(part.split(b";")[0].strip() in (b".", b"..") for part in re.split(rb"[/\\]", raw)):
            raise HeadError(400, "http.path", "a dot segment in the path")
        if b"\xc0" in raw or b"\xc1" in raw:  # in no UTF-8 but the overlong spelling of a dot or a slash
            raise HeadError(400, "http.path", "an overlong character in the path")
        raw = unquote_to_bytes(raw)
    if seen != raw:
        raise HeadError(400, "http.path", "escapes within escapes in the path")
    return clean


def _query(query: str) -> str:
    if "#" in query:
        raise HeadError(400, "http.path", "a fragment in the request's target")
    return "?" + query


def forwarded(
    head: Head,
    *,
    default_port: int,
    add: Iterable[tuple[bytes, bytes]] = (),
    strip: bool = False,
    cookies: bool = False,
    identity: bool = False,
) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """Target and headers as they are sent on, in the client's order, ours last.

    Args:
        default_port: of the scheme: not named in Host.
        add: the gateway's own headers; the client's of the same names are taken away.
        strip: take the client's own credentials away, in headers and query.
        cookies: with `strip`, its cookies too.
        identity: ask for an uncompressed, whole answer (one that can be scrubbed).
    """
    added = [(name, value) for name, value in add]
    gone = {"host", "expect", "content-length"} | HOP_BY_HOP | FORWARDING | {_plain(name) for name, _ in added}
    gone |= nominated(head.headers)
    if strip:
        gone |= CREDENTIALS | ({"cookie", "cookie2"} if cookies else set())
    if identity:
        # A range of an answer could have half of a secret in it, which nothing recognizes.
        gone |= {"accept-encoding", "range", "if-range"}
        added.append((b"Accept-Encoding", b"identity"))
    shown = f"[{head.host}]" if ":" in head.host else head.host
    shown += f":{head.port}" if head.port != default_port else ""
    headers = [(b"Host", shown.encode("ascii"))]
    for name, value in head.headers:
        plain = _plain(name)
        if plain not in gone and not plain.startswith("x-forwarded-"):
            headers.append((name, value))
    if head.length is None:
        headers.append((b"Transfer-Encoding", b"chunked"))
    elif head.has_body or any(name.lower() == b"content-length" for name, _ in head.headers):
        headers.append((b"Content-Length", b"%d" % head.length))
    query = strip_query(head.query) if strip else head.query
    return (head.path + query).encode("ascii"), headers + added


def nominated(headers: Iterable[tuple[bytes, bytes]]) -> set[str]:
    """The header names that `Connection` declares to be of this hop."""
    values = [value for name, value in headers if name.lower() == b"connection"]
    return {_plain(token.strip()) for value in values for token in value.split(b",")}


def strip_query(query: str) -> str:
    """`query` (with its "?") without the parameters that carry credentials, in any spelling of their names."""
    kept = ""
    for piece in re.findall(r"[?&;][^&;]*", query):
        name = unquote_plus(unquote_plus(piece[1:].partition("=")[0])).strip().lower()
        if name not in QUERY_CREDENTIALS:
            kept += piece
    return "?" + kept[1:] if kept else ""


def _plain(name: bytes) -> str:
    """A header's name as a server that turns names into variables would read it."""
    return name.decode("latin-1").lower().replace("_", "-")
