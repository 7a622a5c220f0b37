"""IP addresses: in whatever spelling, which one is meant, and whether it is one of the public internet.

Promises: what `inet_aton`, `getaddrinfo`, or a browser (WHATWG URL §3.5) would take for an address, `literal` takes
for the same one, so that no spelling walks past a rule as a "name". An IPv6 address that only carries an IPv4 one means
that one. `is_public` says no to everything that the IANA special-purpose registries (RFC 6890) do not call globally
reachable, to the metadata services of clouds, and to every tunnel or translation of such an address; it does not lean
on `ipaddress.is_global`, which says yes to 64:ff9b::127.0.0.1 and changes between versions of Python.
Does not: resolve names. What is neither a literal nor a name (`256.1.1.1`, `08.8.8.8`) is refused by `names.is_name`.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address

TEXT_CHARACTERS = 1_024  # longer is no spelling that anything takes

_DIGITS = {8: frozenset("01234567"), 10: frozenset("0123456789"), 16: frozenset("0123456789abcdefABCDEF")}
_IGNORED = dict.fromkeys((0xAD, 0x34F, 0x180B, 0x180C, 0x180D, 0x200B, 0x2060, 0x2064, 0xFEFF, *range(0xFE00, 0xFE10)))

# Most specific first; both tables are walked to the first hit.
_V4 = [
    (IPv4Network(network), reason)
    for network, reason in (
        ("169.254.169.254/32", "metadata"),  # AWS, Azure, Google, and most others
        ("169.254.170.2/32", "metadata"),  # AWS: credentials of ECS tasks
        ("169.254.170.23/32", "metadata"),  # AWS: credentials of EKS pods
        ("100.100.100.200/32", "metadata"),  # Alibaba
        ("192.0.0.192/32", "metadata"),  # Oracle
        ("168.63.129.16/32", "metadata"),  # Azure's wire server, in public space
        ("0.0.0.0/32", "unspecified"),
        ("0.0.0.0/8", "unspecified"),  # "this network", RFC 791: Linux connects 0.0.0.0 to itself
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "shared (CGNAT)"),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "reserved"),
        ("192.0.2.0/24", "documentation"),
        ("192.88.99.0/24", "reserved"),  # 6to4 relays, RFC 7526
        ("192.168.0.0/16", "private"),
        ("198.18.0.0/15", "benchmark"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("224.0.0.0/4", "multicast"),
        ("255.255.255.255/32", "broadcast"),
        ("240.0.0.0/4", "reserved"),
    )
]
_V6 = [
    (IPv6Network(network), reason)
    for network, reason in (
        ("fd00:ec2::254/128", "metadata"),  # AWS
        ("fd00:ec2::23/128", "metadata"),  # AWS: credentials of EKS pods
        ("fd20:ce::254/128", "metadata"),  # Google
        ("fd00:42::42/128", "metadata"),  # Scaleway
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("100::/64", "reserved"),  # discard
        ("2001:db8::/32", "documentation"),
        ("3fff::/20", "documentation"),
        ("2001:2::/48", "benchmark"),
        ("2001::/23", "reserved"),  # IETF protocol assignments
        ("2002::/16", "reserved"),  # 6to4
        ("fc00::/7", "private"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "private"),  # site-local, RFC 3879
        ("ff00::/8", "multicast"),
    )
]
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")


def literal(text: str) -> Address | None:
    """The address that `text` means; None if it is no address in any spelling.

    Read are: 1 to 4 parts in decimal, octal or hexadecimal, a trailing dot, brackets, a zone id (dropped), blanks
    around it, percent-encoding, compatibility characters (full-width digits and dots); IPv4 inside IPv6 as mapped,
    compatible, translated (RFC 6052, RFC 7915), 6to4 or Teredo (the client's) is the IPv4 address.
    """
    if len(text) > TEXT_CHARACTERS:
        return None
    if text[text.rfind(".") + 1 :].isalpha() and text.isascii() and text.isprintable() and not {" ", ":"} & set(text):
        return None  # a label of letters at the end, the usual name
    text = _plain(text)
    if text.startswith("["):
        inside, mark, after = text[1:].partition("]")
        if not mark or after not in ("", "."):
            return None
        text = inside
    if ":" not in text:
        return _aton(text)
    try:
        six = IPv6Address(text.partition("%")[0].removesuffix("."))
    except ValueError:
        return None
    inner = _embedded(six)
    return six if not inner else inner[-1]


def is_public(address: Address | str) -> str | None:
    """None if `address` is globally routable, else what it is instead.

    Args:
        address: as resolved, or in any spelling that `literal` reads; text that is no address is not public.

    Returns:
        ``loopback``, ``private``, ``link-local``, ``metadata``, ``multicast``, ``reserved``, ``documentation``,
        ``benchmark``, ``shared (CGNAT)``, ``unspecified``, ``broadcast``, with ``, inside ADDRESS`` where it is carried
        by another; ``scoped`` with a zone id; ``not an address``.
    """
    if isinstance(address, str):
        try:
            found: Address | None = ip_address(address)
        except ValueError:
            found = literal(address)
        if found is None:
            return "not an address"
        address = found
    if isinstance(address, IPv4Address):
        return next((reason for network, reason in _V4 if address in network), None)
    inner = _embedded(address)
    for carried in inner:
        if (reason := is_public(carried)) is not None:
            return f"{reason}, inside {address}"
    if inner and (address.ipv4_mapped is not None or address in _NAT64):
        return None
    reason = next((reason for network, reason in _V6 if address in network), None)
    if reason is None and address not in _GLOBAL_UNICAST:
        return "reserved"
    return reason or ("scoped" if address.scope_id is not None else None)


def _embedded(address: IPv6Address) -> list[IPv4Address]:
    """The IPv4 addresses that `address` carries, the one it leads to last."""
    number = int(address)
    low = IPv4Address(number & 0xFFFF_FFFF)
    top = number >> 32
    # Mapped (RFC 4291 §2.5.5.2), translated (RFC 2765), NAT64's well-known prefix (RFC 6052).
    if top in (0xFFFF, 0xFFFF_0000, 0x64_FF9B << 64):
        return [low]
    if top == 0 and number > 0xFFFF:  # compatible (RFC 4291 §2.5.5.1); :: and ::1 are themselves, as 0.0.x.x is nothing
        return [low]
    if number >> 112 == 0x2002:
        return [IPv4Address(number >> 80 & 0xFFFF_FFFF)]
    if number >> 96 == 0x2001_0000:  # Teredo, RFC 4380 §4: server, then client with its bits inverted
        return [IPv4Address(number >> 64 & 0xFFFF_FFFF), IPv4Address(~number & 0xFFFF_FFFF)]
    return []


def _plain(text: str) -> str:
    """Without what browsers take away before they read a host (UTS 46), and what `inet_aton` does not look at."""
    if "%" in text and ":" not in text:
        from urllib.parse import unquote  # rare

        text = unquote(text, errors="replace")
    if not text.isascii():
        from unicodedata import normalize  # rare

        text = normalize("NFKC", text.translate(_IGNORED)).translate({0x3002: "."})
    first = text.split(None, 1)  # glibc's inet_aton ends at a blank
    return first[0] if first else ""


def _aton(text: str) -> IPv4Address | None:
    parts = text.removesuffix(".").split(".")
    if len(parts) > 4:
        return None
    numbers = []
    for part in parts:
        number = _number(part)
        if number is None:
            return None
        numbers.append(number)
    last = numbers.pop()
    if last >= 256 ** (4 - len(numbers)) or any(number > 255 for number in numbers):
        return None
    for at, number in enumerate(numbers):
        last += number << 8 * (3 - at)
    return IPv4Address(last)


def _number(part: str) -> int | None:
    """One part, as C's strtoul with base 0 and no sign; a bare ``0x`` is 0, as browsers have it."""
    base, digits = 10, part
    if part[:2] in ("0x", "0X"):
        base, digits = 16, part[2:] or "0"
    elif len(part) > 1 and part[0] == "0":
        base, digits = 8, part[1:]
    return int(digits, base) if digits and _DIGITS[base].issuperset(digits) else None
