"""Names and addresses of machines inside somebody's network become ``[host]``.

Inside: the private, shared, link-local (cloud metadata with it) and unique-local ranges of IANA's special-purpose
registries (RFC 1918, 6598, 3927, 4193, 4291), and names under the suffixes below (RFC 6762's and 8375's, ICANN's
``internal``, and those that its name-collision reports found in use).
Stays, on purpose: ``localhost``, 127.0.0.0/8, ``::1``, 0.0.0.0 and public names and addresses, which tell nothing of
the network, and the names that the caller says are its own.

Promises: linear. Does not: know a name of one label (``db01``), or an address written as one number.
"""

from __future__ import annotations

from nucleus.sanitize.patterns import Pattern

HOST = "[host]"
SUFFIXES = (
    ".internal", ".local", ".corp", ".lan", ".intranet", ".localdomain", ".svc", ".home.arpa", ".consul", ".private",
)  # fmt: skip
# In front of each address rule a literal, so that the search for it is one pass; context is judged in `spans`.
V4 = tuple(
    (literal, Pattern(pattern + r"(?:/\d{1,2})?"))
    for literal, pattern in (
        ("10.", r"10\.\d{1,3}\.\d{1,3}\.\d{1,3}"),
        ("192.168.", r"192\.168\.\d{1,3}\.\d{1,3}"),
        ("169.254.", r"169\.254\.\d{1,3}\.\d{1,3}"),
        ("172.", r"172\.(?:1[6-9]|2\d|3[01])\.\d{1,3}\.\d{1,3}"),
        ("100.", r"100\.(?:6[4-9]|[7-9]\d|1[01]\d|12[0-7])\.\d{1,3}\.\d{1,3}"),
    )
)
V6 = Pattern(r"f[cde][0-9a-f]{2}:[0-9a-f:]{1,40}(?:%[a-z0-9]{1,16})?")
DASHED = Pattern(r"ip-(?:10|172|192|100)(?:-\d{1,3}){2,3}")

Span = tuple[int, int, str]


def spans(text: str, low: str, own: tuple[str, ...]) -> list[Span]:
    """Where the names and addresses are in `text` (`low`: the same in lower case, of the same length)."""
    found: list[Span] = []
    if "." in low:
        for suffix in SUFFIXES:
            if suffix in low:
                _names(low, suffix, own, found)
        for literal, pattern in V4:
            if literal in low:
                _addresses(low, pattern, own, found)
    if "::" in low or low.count(":") >= 7:
        for match in V6.finditer(low):
            address = match.group()
            if not address.endswith("::"):
                address = address.rstrip(":")
            before = low[match.start() - 1 : match.start()] if match.start() else ""
            inside = not before.isalnum() and before != ":" and ("::" in address or address.count(":") == 7)
            if inside and _link_or_unique_local(address) and address not in own:
                found.append((match.start(), match.start() + len(address), HOST))
    if "ip-1" in low:
        found.extend((m.start(), m.end(), HOST) for m in DASHED.finditer(low))
    return found


def _link_or_unique_local(address: str) -> bool:
    return address[:2] in ("fc", "fd") or address[:3] in ("fe8", "fe9", "fea", "feb")


def _addresses(low: str, pattern: Pattern, own: tuple[str, ...], found: list[Span]) -> None:
    for match in pattern.finditer(low):
        start, end = match.span()
        before, after = low[start - 1 : start] if start else "", low[end : end + 2]
        if before.isdigit() or before == "." or after[:1].isdigit() or (after[:1] == "." and after[1:].isdigit()):
            continue
        if match.group() not in own:
            found.append((start, end, HOST))


def _names(low: str, suffix: str, own: tuple[str, ...], found: list[Span]) -> None:
    done = 0
    at = low.find(suffix)
    while at >= 0:
        end = at + len(suffix)
        start = at
        while start > done and (low[start - 1].isalnum() or low[start - 1] in "-._"):
            start -= 1
        done = end
        name = low[start:end].lstrip(".-_")
        after = low[end : end + 2]
        # Not `.env.local`, `settings.local.json`, `threading.local()` or `.localised`.
        hidden = low[start : start + 1] == "." or after[:1] in ("(", "-", "_") or after[:1].isalnum()
        longer = after[:1] == "." and after[1:].isalnum()
        if not hidden and not longer and len(name) > len(suffix) and name not in own:
            found.append((end - len(name), end, HOST))
        at = low.find(suffix, end)
