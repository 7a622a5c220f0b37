"""URLs that a fetch may name, parsed once and strictly.

Promises: scheme http or https, an ASCII host (a DNS name, a dotted-quad IPv4 or a bracketed IPv6 literal), no user
information, no fragment games, no backslash, no invisible character; `split_url` is the only parser, so that the
host that was decided is the host that is fetched.
Does not: resolve names, or decide whether a host is allowed.
"""

from __future__ import annotations

import string
from typing import NamedTuple

from nucleus.limits import LIMITS
from nucleus.validate.text import check_size, check_visible, refuse

_LABEL = frozenset(string.ascii_lowercase + string.digits + "-_")
_HEX = frozenset(string.hexdigits + ":.")


class Url(NamedTuple):
    """The parts of a checked URL. `target` is path and query, "" for none."""

    scheme: str
    host: str
    port: int
    target: str


def split_url(field: str, url: str) -> Url:
    """Parse and check.

    Raises:
        InvalidError: ``limits.url``, ``text.characters`` or ``urls.form``.
    """
    if (usual := _usual(url)) is not None:
        return usual
    check_size(field, url, LIMITS.url_bytes, "limits.url")
    check_visible(field, url)
    if " " in url or "\\" in url or not url.isascii():
        refuse(field, "blanks, backslashes and non-ASCII characters must be percent-encoded", "urls.form")
    scheme, mark, rest = url.partition("://")
    scheme = scheme.lower()
    if not mark or scheme not in ("http", "https"):
        refuse(field, "only http:// and https:// URLs", "urls.form")
    end = min((i for i in (rest.find(c) for c in "/?#") if i >= 0), default=len(rest))
    authority, target = rest[:end], rest[end:]
    if "@" in authority:
        refuse(field, "a URL cannot carry user information", "urls.form")
    host, port = _host_and_port(field, authority)
    return Url(scheme, host, port or (443 if scheme == "https" else 80), target)


def _usual(url: str) -> Url | None:
    """What most URLs are: a short DNS name in lower case whose last label is no number, no port, a slash. Else None."""
    if len(url) > LIMITS.url_bytes or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        return None
    scheme, mark, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    letters = host.replace(".", "").replace("-", "").replace("_", "")
    if not mark or scheme not in ("https", "http") or not letters.isalnum() or len(host) > 63 or host.lower() != host:
        return None  # "?", "#", "@", ":" and "[" are no letters
    if ".." in host or host[0] == "." or host[-1] == "." or host[host.rfind(".") + 1].isdigit():
        return None
    return Url(scheme, host, 443 if scheme == "https" else 80, slash + path)


def _host_and_port(field: str, authority: str) -> tuple[str, int]:
    if authority.startswith("["):
        host, mark, after = authority[1:].partition("]")
        if not mark or not host or not set(host) <= _HEX or ":" not in host:
            refuse(field, "malformed IPv6 address", "urls.form")
        host = f"[{host.lower()}]"
        if after and not after.startswith(":"):
            refuse(field, "malformed authority", "urls.form")
        port_text = after[1:]
    else:
        host, _, port_text = authority.partition(":")
        host = _dns_name(field, host.lower())
    if not port_text:
        return host, 0
    if not port_text.isdigit() or len(port_text) > 5 or not 0 < int(port_text) < 65_536:
        refuse(field, "malformed port", "urls.form")
    return host, int(port_text)


def _dns_name(field: str, host: str) -> str:
    host = host.removesuffix(".")
    labels = host.split(".")
    if not host or len(host) > 253 or any(not 0 < len(x) < 64 or not set(x) <= _LABEL for x in labels):
        refuse(field, "malformed host", "urls.form")
    last = labels[-1]
    # 0x7f.1 and 2130706433 are addresses to some resolvers: only a strict dotted quad is one here.
    numeric = last.isdigit() or (last.startswith("0x") and set(last[2:]) <= set(string.hexdigits))
    quad = len(labels) == 4 and all(x.isdigit() and str(int(x)) == x and int(x) < 256 for x in labels)
    if numeric and not quad:
        refuse(field, "an IPv4 address must be a plain dotted quad", "urls.form")
    return host
