"""A pod's network namespace, from the inside: made without a way out, described so that any change of it can be seen.

 1. `lo` is up; IPv6 is off; what could make a router or a redirect of it is pinned off (`SYSCTLS`).
 2. Every IPv4 address is this host's (AnyIP on `lo`): a connection to any of them stays inside, and the firewall sends
    it to the gateway's listener. There is no other link, address or route, so nothing to leave by.
 3. The listeners of the gate and the gateway are made here; a socket stays in the namespace in which it was made.
 4. `watchers` are told by the kernel of every later change of rules, links, addresses and routes; `digest` covers what
    raises no event (sysctls, the legacy tables), and all the rest once more.

Promises: called in the namespace (unshare or setns is the caller's); a step that fails is an OSError.
Relies on: `netlink`, `firewall`; /proc of a process in this namespace. Does not: run after the pod is started, but for
`digest` and `netlink.links_down`.
"""

from __future__ import annotations

import hashlib
import socket

from nucleus.network import firewall, netlink

TRANSPARENT = ("127.0.0.1", firewall.TRANSPARENT_PORT)
PROXY = ("127.0.0.1", 3128)
RESOLVER = ("127.0.0.1", 53)
BACKLOG = 256
_V4 = "/proc/sys/net/ipv4"
# Missing files (a kernel without IPv6) are nothing to pin.
SYSCTLS: tuple[tuple[str, str], ...] = (
    ("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1"),
    ("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1"),
    ("/proc/sys/net/ipv6/conf/lo/disable_ipv6", "1"),
    ("/proc/sys/net/ipv6/conf/all/forwarding", "0"),
    (f"{_V4}/ip_forward", "0"),
    (f"{_V4}/ip_unprivileged_port_start", "1024"),
    (f"{_V4}/conf/all/route_localnet", "0"),
    (f"{_V4}/conf/lo/route_localnet", "0"),
    (f"{_V4}/conf/all/accept_redirects", "0"),
    (f"{_V4}/conf/all/accept_source_route", "0"),
    (f"{_V4}/conf/all/send_redirects", "0"),
    (f"{_V4}/conf/all/rp_filter", "1"),
)
# Nobody may ping in a new namespace, and a user namespace cannot say so again: looked at, not written.
_AS_FOUND = (f"{_V4}/ping_group_range",)
_TABLES = ("ip_tables_names", "ip6_tables_names", "arp_tables_names", "route", "ipv6_route", "if_inet6", "packet")
# linux/rtnetlink.h: link, IPv4 address, route and rule, IPv6 address and route; linux/nfnetlink.h: nftables.
_ROUTE_GROUPS = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400
_NFTABLES_GROUP = 1 << 6


def configure(*, rules: bool) -> None:
    """Steps 1 and 2; `lo` is up already. `rules`: this machine has nftables."""
    for path, value in SYSCTLS:
        try:
            with open(path, "w", encoding="ascii") as file:
                file.write(value)
        except FileNotFoundError:
            continue
    netlink.route_local_everything()
    if rules:
        firewall.install()


def listeners() -> list[int]:
    """Step 3, the gateway's: transparent TCP, the proxy, the resolver by UDP and by TCP. The caller owns them."""
    made: list[socket.socket] = []
    try:
        for address, kind in (
            (TRANSPARENT, socket.SOCK_STREAM), (PROXY, socket.SOCK_STREAM), (RESOLVER, socket.SOCK_DGRAM),
            (RESOLVER, socket.SOCK_STREAM),
        ):  # fmt: skip
            sock = socket.socket(socket.AF_INET, kind | socket.SOCK_CLOEXEC)
            made.append(sock)
            sock.bind(address)
            if kind == socket.SOCK_STREAM:
                sock.listen(BACKLOG)
    except OSError:
        for sock in made:
            sock.close()
        raise
    return [sock.detach() for sock in made]


def watchers() -> list[int]:
    """Step 4: two descriptors that become readable at any change from now on. The caller owns them."""
    rules = netlink.watch(netlink.NETLINK_NETFILTER, _NFTABLES_GROUP)
    try:
        return [netlink.watch(netlink.NETLINK_ROUTE, _ROUTE_GROUPS).detach(), rules.detach()]
    except OSError:
        rules.close()
        raise


def digest() -> dict[str, str]:
    """What this namespace looks like: short hashes by source. Never raises: what cannot be read is a value, too."""
    found = {path.removeprefix("/proc/sys/net/"): _read(path) for path in (*dict(SYSCTLS), *_AS_FOUND)}
    found |= {name: _hash(_read(f"/proc/thread-self/net/{name}")) for name in _TABLES}
    found["links"] = ",".join(f"{index}:{name}" for index, name in socket.if_nameindex())
    found["rules"] = _generation()
    return found


def _generation() -> str:
    """The number of the rule set's generation: it moves with every change of it."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, netlink.NETLINK_NETFILTER) as sock:
            sock.settimeout(1)
            sock.bind((0, 0))
            sock.send(netlink.nft(netlink.GETGEN, 0, 0))
            return sock.recv(4_096)[20:28].hex()
    except OSError as error:
        return f"unreadable: {error.errno}"


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(65_536).strip()
    except OSError as error:
        return f"unreadable: {error.errno}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16] if text else ""
