"""`web_search` on the wire: the request to a search provider, and its answer as a few plain results. No I/O.

 1. A query is one visible line within what the provider takes; it is quoted here, so that it cannot add a parameter.
 2. An answer is bounded before it is parsed: bytes, then values, each of which may cost a hundred bytes once parsed.
 3. Titles and snippets are text that anybody on the web can write for an agent to read: markup and every character that
    a person would not see (control, bidirectional, zero-width, tags, variation selectors) are taken away, then cut.
 4. A URL is given only if `web_fetch` would take it (`validate.urls`, the only parser): http or https, ASCII, no user.
    It is never cut, which would name another page; one that is too long is left out with its result.

Promises: `results` raises OperationError ``search.answer`` or InvalidError for a wrong argument, nothing else; no word
of the server is in a message.
Relies on: whoever sends a `Wire` to add `key_header`, and to keep the answer's size below `BODY_BYTES` while it comes.
Does not: send, decide, or tell what a snippet says from an instruction: results are untrusted text.
Sources: SearXNG's "Search API", Brave's "Web Search API", Tavily's "Search" endpoint, as their documentation has them.
"""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass
from html import unescape
from typing import Any, Never
from urllib.parse import quote

from nucleus.errors import InvalidError, OperationError
from nucleus.limits import LIMITS
from nucleus.validate.text import check_size, check_visible
from nucleus.validate.urls import split_url

BODY_BYTES = 2_097_152
VALUES = 200_000  # commas and brackets of an answer
TITLE = 300  # characters
SNIPPET = 1_000  # characters
RESULTS = 20  # at most, as the providers have it
KEY_BYTES = 4_096
AGENT = "nucleus"  # GitHub refuses a request without one

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})
# Of other categories, and rendered as nothing: fillers, joiners, variation selectors.
_BLANK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0") | {
    chr(c) for c in (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))
}
_INLINE = re.compile(r"</?(?:strong|b|em|i|mark|span|a|u|code|small|sup|sub|wbr)(?:\s[^<>]*)?/?>", re.IGNORECASE)
_TAG = re.compile(r"<(?:[A-Za-z/!?][^<>]*)>")
_LONG = re.compile(r"&#[0-9]{9,};?")  # no character; beyond 4,300 digits `unescape` fails
_TARGET = "%/:?#[]@!$&'()*+,;=~"  # what RFC 3986 lets stand, and what is quoted already


@dataclass(frozen=True, slots=True)
class Wire:
    """One HTTP request, without its credential.

    Args:
        method, url: as sent; the URL is quoted already.
        headers: names in lower case.
        body: empty for none.
    """

    method: str
    url: str
    headers: tuple[tuple[str, str], ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class Result:
    """One result: text of foreign origin, cleaned and bounded. `title` and `snippet` may be empty, `url` not."""

    title: str
    url: str
    snippet: str


@dataclass(frozen=True, slots=True)
class Provider:
    """One provider's API.

    Args:
        base: where it is, unless a policy says otherwise; "" if it has no home.
        path: of its search.
        query_characters, query_words: what it takes; 0 for no bound of its own.
        key_name, key_prefix: the header that carries the key.
        needs_key: it answers nobody without one.
        snippet: the field of a result that holds it.
    """

    base: str
    path: str
    query_characters: int
    query_words: int
    key_name: bytes
    key_prefix: bytes
    needs_key: bool
    snippet: str


PROVIDERS: dict[str, Provider] = {
    "searxng": Provider("", "/search", 0, 0, b"authorization", b"Bearer ", False, "content"),
    "brave": Provider(
        "https://api.search.brave.com",
        "/res/v1/web/search",
        400,
        50,
        b"x-subscription-token",
        b"",
        True,
        "description",
    ),
    "tavily": Provider("https://api.tavily.com", "/search", 400, 0, b"authorization", b"Bearer ", True, "content"),
}


def request(provider: str, base_url: str, query: str, limit: int) -> Wire:
    """The request for a search.

    Args:
        provider: a key of `PROVIDERS`.
        base_url: of the policy; "" for the provider's own.
        query: one line, at most 512 bytes, and what the provider takes.
        limit: results wanted; brought into 1..`RESULTS`. SearXNG has no such parameter.

    Raises:
        InvalidError: ``search.provider``, ``search.base``, ``search.query``, ``limits.query``, ``text.characters``, or
            ``text.surrogate``.
    """
    api = _provider(provider)
    url = checked_base("search.base", base_url or api.base) + api.path
    _check_query(provider, api, query)
    headers = (("accept", "application/json"), ("user-agent", AGENT))
    count = max(1, min(limit, RESULTS))
    if provider == "tavily":
        sent = json.dumps({"query": query, "max_results": count}).encode()
        return Wire("POST", url, (*headers, ("content-type", "application/json")), sent)
    more = "format=json" if provider == "searxng" else f"count={count}"
    return Wire("GET", f"{url}?q={quote(query, safe='')}&{more}", headers, b"")


def key_header(provider: str, key: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """The header lines that carry `key`; none for SearXNG without one.

    Raises:
        InvalidError: ``search.provider``, or ``credentials.value`` for what is no key (or none where one is needed).
    """
    api = _provider(provider)
    if not key and not api.needs_key:
        return ()
    return ((api.key_name, api.key_prefix + check_key(key)),)


def results(provider: str, body: bytes, limit: int, status: int = 200) -> list[Result]:
    """What a provider answered.

    Args:
        provider: a key of `PROVIDERS`.
        body: the whole answer, decompressed.
        limit: at most so many results, and never more than `RESULTS`.
        status: of the answer.

    Returns:
        The provider's order; an entry without a URL that can be fetched is left out.

    Raises:
        OperationError: ``search.answer``: a status that is not 200, too long, or not what this provider answers.
        InvalidError: ``search.provider``.
    """
    api = _provider(provider)
    if status != 200:
        _refused(provider, status)
    try:
        found = _entries(provider, load(body))  # 2
    except ValueError:
        raise OperationError("the search server's answer cannot be read", rule="search.answer") from None
    kept: list[Result] = []
    for entry in found:
        if len(kept) >= min(limit, RESULTS):
            break
        if not isinstance(entry, dict) or not (url := page(entry.get("url"))):
            continue
        kept.append(Result(clean(entry.get("title"), TITLE), url, clean(entry.get(api.snippet), SNIPPET)))
    return kept


def clean(text: object, limit: int) -> str:
    """Step 3: `text` on one line, at most `limit` characters; "" for what is no text.

    Tags go before entities are decoded: ``&lt;b&gt;`` is the text "<b>" of a page about HTML.
    """
    if not isinstance(text, str):
        return ""
    text = text[: limit * 8]  # markup is longer than what it shows
    text = unescape(_LONG.sub("\ufffd", _TAG.sub(" ", _INLINE.sub("", text))))
    if not (text.isascii() and text.isprintable()):
        text = "".join(map(_seen, text))
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def page(url: object) -> str:
    """Step 4: `url` as `web_fetch` takes it (an IRI as the URI that it means, RFC 3987 §3.1); "" if it takes none."""
    if not isinstance(url, str) or len(url) > LIMITS.url_bytes:
        return ""
    scheme, mark, rest = url.strip().partition("://")
    if not mark or scheme.lower() not in ("http", "https") or not rest.isprintable() or "\\" in rest:
        return ""
    end = min((at for at in map(rest.find, "/?#") if at >= 0), default=len(rest))
    host, target = rest[:end], rest[end:]
    try:
        if not host.isascii():
            name, colon, port = host.partition(":")
            host = name.encode("idna").decode("ascii") + colon + port
        found = f"{scheme.lower()}://{host}{quote(target, safe=_TARGET)}"
        split_url("url", found)
    except (InvalidError, UnicodeError):
        return ""
    return found


def load(body: bytes) -> Any:
    """Step 2: a JSON answer. Raises ValueError, whatever is wrong with it."""
    if len(body) > BODY_BYTES or sum(map(body.count, (b",", b"[", b"{"))) > VALUES:
        raise ValueError("too long")
    try:
        return json.loads(body.decode("utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def checked_base(rule: str, url: str) -> str:
    """A policy's base URL, checked, without a slash at its end. Raises InvalidError `rule`."""
    try:
        target = split_url("base URL", url).target
    except InvalidError as error:
        raise InvalidError(error.message, rule=rule) from None
    if "?" in target or "#" in target:
        raise InvalidError("base URL: no query and no fragment", rule=rule)
    return url.rstrip("/")


def check_key(key: bytes) -> bytes:
    """`key`, if it can stand in a header line. Raises InvalidError ``credentials.value``, without a byte of it."""
    if not 0 < len(key) <= KEY_BYTES or not all(0x21 <= byte <= 0x7E for byte in key):
        raise InvalidError("the credential is not a key of visible ASCII characters", rule="credentials.value")
    return key


def _provider(name: str) -> Provider:
    found = PROVIDERS.get(name)
    if found is None:
        raise InvalidError(f"no such search provider; there are {', '.join(PROVIDERS)}", rule="search.provider")
    return found


def _check_query(provider: str, api: Provider, query: str) -> None:
    """Step 1."""
    check_size("query", query, LIMITS.query_bytes, "limits.query")
    check_visible("query", query)
    if not query.strip():
        raise InvalidError("query: it is blank", rule="search.query")
    if api.query_characters and len(query) > api.query_characters:
        raise InvalidError(f"query: {provider} takes {api.query_characters} characters", rule="search.query")
    if api.query_words and len(query.split()) > api.query_words:
        raise InvalidError(f"query: {provider} takes {api.query_words} words", rule="search.query")


def _refused(provider: str, status: int) -> Never:
    """What a status says, in words of ours."""
    problem, step = f"the search server answered with status {status}", ""
    if status == 403 and provider == "searxng":
        step = "Add json to search.formats in the settings of SearXNG; it refuses the format otherwise."
    elif status in (401, 403):
        problem, step = f"the search server does not accept the key (status {status})", "Give it a valid key."
    elif status in (429, 432, 433):  # Tavily: 432 is the plan's limit, 433 the pay-as-you-go one
        problem, step = f"the search server's limit for this key is reached (status {status})", "Try again later."
    raise OperationError(problem, rule="search.answer", next_step=step)


def _entries(provider: str, answer: Any) -> list[Any]:
    """The list of results in an answer. Raises ValueError for any other shape."""
    if not isinstance(answer, dict):
        raise ValueError("no object")
    if provider == "brave":
        web = answer.get("web")
        if web is None and answer.get("type") == "search":  # nothing was found on the web
            return []
        answer = web if isinstance(web, dict) else {}
    found = answer.get("results")
    if not isinstance(found, list):
        raise ValueError("no results")
    return found


def _seen(c: str) -> str:
    if c.isspace():
        return " "
    return "" if c in _BLANK or unicodedata.category(c) in _HIDDEN else c
