"""`web_fetch` and `web_search` on the wire: one HTTP request from outside the pod, for the gate that has decided it.

 1. The host is resolved here, once, every answer checked to be public, and the connection made to one of these.
 2. No cookie, no credential, no proxy, no redirect: a Location goes back to the gate, which decides it as a new URL.
 3. Size and time are capped while the answer streams in, after decompression, so a bomb ends at the cap.
 4. What comes back is text: decoded by its declared charset, HTML made readable (markdownify), anything else told only
    by type and size unless it was asked for raw (base64).

Relies on: aiohttp for HTTP and TLS against the system's trust store. Does not: decide, retry, or keep anything.
"""

from __future__ import annotations

import asyncio
import base64
import socket
from codecs import lookup
from typing import Any

import aiohttp
from aiohttp import hdrs
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from nucleus.errors import NucleusError, OperationError
from nucleus.network import addresses, upstream

HTML_BYTES = 524_288  # of a page that is made readable
CHUNK = 65_536
REDIRECTS = frozenset((301, 302, 303, 307, 308))
TEXT = ("text/", "application/json", "application/xml", "application/javascript", "application/x-ndjson")
AGENT = "nucleus"


class _Resolver(AbstractResolver):
    """Step 1. What it answers is what the connector connects to."""

    async def resolve(self, host: str, port: int = 0, family: int = socket.AF_UNSPEC) -> list[ResolveResult]:
        found = await upstream.resolve(host, port)
        upstream.check(found, [])
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=socket.AF_INET6 if address.version == 6 else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in found
        ]

    async def close(self) -> None:
        """Nothing is kept."""


async def fetch(request: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
    """One request.

    Args:
        request: ``{url, method, headers: {name: value}, limit (bytes), timeout_ms, raw: bool}``, as it was decided.
        body: what is sent; empty for none.

    Returns:
        ``({status, content_type, location, truncated, bytes, text: "text"|"base64"|"none"}, content)``.

    Raises:
        OperationError: it came to nothing; the message is ours, never the server's.
    """
    host = URL(request["url"]).host or ""
    literal = addresses.literal(host)
    if literal is not None:  # aiohttp would ask no resolver
        try:
            upstream.check([literal], [])
        except upstream.UpstreamError as error:
            raise OperationError(str(error), rule="network.address") from None
    try:
        async with asyncio.timeout(request["timeout_ms"] / 1000), _session() as session:
            return await _exchange(session, request, body)
    except TimeoutError:
        raise OperationError("the server took too long", rule="network.timeout") from None
    except NucleusError:
        raise
    except (aiohttp.ClientError, OSError, ValueError, upstream.UpstreamError) as error:
        raise OperationError(_plain(error), rule="network.fetch") from None


async def exchange(
    method: str, url: str, headers: dict[str, str], body: bytes, limit: int, seconds: int
) -> tuple[int, bytes]:
    """One request to a service that the policy names; status and body, of which at most a byte more than `limit`.

    Raises:
        OperationError: it came to nothing; the message is ours, never the server's.
    """
    try:
        async with asyncio.timeout(seconds), _session() as session:
            sent = session.request(method, url, data=body or None, headers=headers, allow_redirects=False)
            async with sent as answer:
                kept = bytearray()
                async for chunk in answer.content.iter_chunked(CHUNK):
                    kept += chunk
                    if len(kept) > limit:
                        break
                return answer.status, bytes(kept[: limit + 1])
    except TimeoutError:
        raise OperationError("the service took too long", rule="network.timeout") from None
    except NucleusError:
        raise
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise OperationError(_plain(error), rule="network.fetch") from None


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(resolver=_Resolver(), use_dns_cache=False, limit=1, force_close=True),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        headers={hdrs.USER_AGENT: AGENT, hdrs.ACCEPT: "text/html, text/*;q=0.9, application/json;q=0.9, */*;q=0.5"},
        raise_for_status=False,
        max_line_size=8_190,
        max_field_size=8_190,
    )


async def _exchange(
    session: aiohttp.ClientSession, request: dict[str, Any], body: bytes
) -> tuple[dict[str, Any], bytes]:
    sent = session.request(
        request["method"],
        request["url"],
        data=body or None,
        headers=request.get("headers") or {},
        allow_redirects=False,  # 2
    )
    async with sent as answer:
        facts: dict[str, Any] = {"status": answer.status, "content_type": answer.content_type[:200], "truncated": False}
        location = answer.headers.get(hdrs.LOCATION)
        if answer.status in REDIRECTS and location is not None:
            target = answer.url.join(URL(location)) if len(location) <= 2_048 else None
            return {**facts, "location": str(target or "")[:2_048], "bytes": 0, "text": "none"}, b""
        kept = bytearray()
        limit = request["limit"]
        async for chunk in answer.content.iter_chunked(CHUNK):  # 3
            kept += chunk
            if len(kept) > limit:
                facts["truncated"] = True
                break
        data = bytes(kept[:limit])
        shown, how = await _shown(data, answer.content_type, answer.charset, raw=bool(request.get("raw")))
        if how == "text" and len(shown) > limit:
            shown, facts["truncated"] = shown[:limit], True
        return {**facts, "location": "", "bytes": len(data), "text": how}, shown


async def _shown(data: bytes, kind: str, charset: str | None, *, raw: bool) -> tuple[bytes, str]:
    """Step 4: (content, how it is to be read)."""
    if raw:
        return base64.b64encode(data), "base64"
    if not kind.startswith(TEXT) and not kind.endswith(("+json", "+xml")):
        return b"", "none"
    try:
        codec = lookup(charset or "utf-8").name
        text = data.decode(codec, "replace")
    except (LookupError, UnicodeError):  # binary "codecs" of Python are no charsets
        text = data.decode("utf-8", "replace")
    if kind in ("text/html", "application/xhtml+xml"):
        text = await asyncio.to_thread(readable, text[:HTML_BYTES])
    return text.encode("utf-8", "replace"), "text"


def readable(html: str) -> str:
    """A page as Markdown, without scripts, styles and images; the plain source where it is nested too deeply."""
    from bs4 import BeautifulSoup  # weight: only who fetches a page
    from markdownify import MarkdownConverter

    try:
        soup = BeautifulSoup(html, "html.parser")
        for found in soup(["script", "style", "template", "noscript", "iframe", "object", "svg", "img"]):
            found.decompose()
        text: str = MarkdownConverter(heading_style="ATX").convert_soup(soup)
    except RecursionError:
        return html
    lines = [line.rstrip() for line in text.splitlines()]
    return "\n".join(line for at, line in enumerate(lines) if line or (at and lines[at - 1])).strip() + "\n"


def _plain(error: Exception) -> str:
    """What went wrong in words of ours."""
    if isinstance(error, upstream.UpstreamError):
        return str(error)
    if isinstance(error, aiohttp.ClientSSLError | aiohttp.ClientConnectorCertificateError):
        return "the server's certificate is not valid for this name"
    if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.__cause__, upstream.UpstreamError):
        return str(error.__cause__)
    if isinstance(error, aiohttp.ClientConnectionError | OSError):
        return "the server cannot be reached"
    if isinstance(error, aiohttp.InvalidURL | ValueError):
        return "the address cannot be read"
    return "the server's answer is not HTTP"
