"""The firewall of a pod's network: a second, independent layer under the namespace that has no way out anyway.

    table inet nucleus {
      chain output  { type filter hook output priority 0; policy drop;
                      oifname "lo" ip daddr 127.0.0.0/8 accept     the pod's own programs among themselves
                      ct status dnat accept                        what the chain below has sent to the gateway
                      meta l4proto tcp reject with tcp reset       so that a client fails at once, not after minutes
                      reject with icmpx admin-prohibited }
      chain input   { type filter hook input priority 0; policy drop; iifname "lo" accept }
      chain forward { type filter hook forward priority 0; policy drop; }
      chain gateway { type nat hook output priority -100; policy accept;
                      ip daddr != 127.0.0.0/8 meta l4proto tcp redirect to :3129 }
    }

IPv4 and IPv6 alike: nothing of IPv6 leaves, `::1` included (it is off by sysctl, too).
Promises: one transaction, made once at import; `install` costs a write and an acknowledgement.
"""

from __future__ import annotations

import socket
import struct

from nucleus.network import netlink as nl

TABLE = "nucleus"
TRANSPARENT_PORT = 3129
INET, IPV4 = 1, 2
ACCEPT, DROP = 1, 0
_LOCAL_IN, _FORWARD, _LOCAL_OUT = 1, 2, 3
_OUTPUT, _INPUT = "output", "input"
_EQUAL, _NOT_EQUAL = 0, 1
_NFPROTO, _L4PROTO, _IIFNAME, _OIFNAME = 15, 16, 6, 7
_DNAT = 1 << 5  # IPS_DST_NAT
_REG = 1  # NFT_REG_1


def _expression(name: str, *data: bytes) -> bytes:
    return nl.nested(1, nl.text(1, name), nl.nested(2, *data))


def _value(kind: int, data: bytes) -> bytes:
    return nl.nested(kind, nl.attribute(1, data))


def _meta(key: int, operator: int, data: bytes) -> bytes:
    return _expression("meta", nl.number(1, _REG), nl.number(2, key)) + _compare(operator, data)


def _compare(operator: int, data: bytes) -> bytes:
    return _expression("cmp", nl.number(1, _REG), nl.number(2, operator), _value(3, data))


def _name(key: int, name: str) -> bytes:
    return _meta(key, _EQUAL, name.encode().ljust(16, b"\0"))


def _to_loopback(operator: int) -> bytes:
    """``ip daddr [!=] 127.0.0.0/8`` (IPv4 alone)."""
    load = _expression("payload", nl.number(1, _REG), nl.number(2, 1), nl.number(3, 16), nl.number(4, 4))
    return _meta(_NFPROTO, _EQUAL, bytes([IPV4])) + load + _masked(b"\xff\0\0\0") + _compare(operator, b"\x7f\0\0\0")


def _masked(mask: bytes) -> bytes:
    """The register's four bytes under `mask`."""
    registers = nl.number(1, _REG) + nl.number(2, _REG) + nl.number(3, 4)
    return _expression("bitwise", registers, _value(4, mask), _value(5, bytes(4)))


def _verdict(code: int) -> bytes:
    return _expression("immediate", nl.number(1, 0), nl.nested(2, nl.nested(2, nl.number(1, code))))


def _dnat() -> bytes:
    """``ct status dnat``."""
    load = _expression("ct", nl.number(1, _REG), nl.number(2, 2))
    return load + _masked(struct.pack("=I", _DNAT)) + _compare(_NOT_EQUAL, bytes(4))


def _reject(kind: int, code: int) -> bytes:
    return _expression("reject", nl.number(1, kind), nl.attribute(2, bytes([code])))


def _redirect(port: int) -> bytes:
    load = _expression("immediate", nl.number(1, _REG), _value(2, struct.pack("!H", port)))
    return load + _expression("redir", nl.number(1, _REG))


def _chain(name: str, kind: str, hook: int, priority: int, policy: int) -> bytes:
    hooked = nl.nested(4, nl.number(1, hook), nl.number(2, priority))
    return nl.nft(
        nl.NEWCHAIN, INET, nl.CREATE | nl.ACK, nl.text(1, TABLE), nl.text(3, name), hooked, nl.number(5, policy),
        nl.text(7, kind),
    )  # fmt: skip


def _rule(chain: str, expressions: bytes) -> bytes:
    return nl.nft(
        nl.NEWRULE,
        INET,
        nl.CREATE | nl.APPEND | nl.ACK,
        nl.text(1, TABLE),
        nl.text(2, chain),
        nl.nested(4, expressions),
    )


_TCP = bytes([socket.IPPROTO_TCP])
_MESSAGES = (
    nl.nft(nl.NEWTABLE, INET, nl.CREATE | nl.ACK, nl.text(1, TABLE)),
    _chain("output", "filter", _LOCAL_OUT, 0, DROP),
    _chain("input", "filter", _LOCAL_IN, 0, DROP),
    _chain("forward", "filter", _FORWARD, 0, DROP),
    _chain("gateway", "nat", _LOCAL_OUT, -100, ACCEPT),
    _rule("output", _name(_OIFNAME, "lo") + _to_loopback(_EQUAL) + _verdict(ACCEPT)),
    _rule("output", _dnat() + _verdict(ACCEPT)),
    _rule("output", _meta(_L4PROTO, _EQUAL, _TCP) + _reject(1, 0)),
    _rule("output", _reject(2, 3)),  # icmpx admin-prohibited
    _rule("input", _name(_IIFNAME, "lo") + _verdict(ACCEPT)),
    _rule("gateway", _to_loopback(_NOT_EQUAL) + _meta(_L4PROTO, _EQUAL, _TCP) + _redirect(TRANSPARENT_PORT)),
)
_BATCH = nl.batch(*_MESSAGES)


def install() -> None:
    """Make the table in this network namespace. Raises OSError."""
    nl.send(nl.NETLINK_NETFILTER, _BATCH, acknowledgements=len(_MESSAGES))
