"""rtnetlink and nfnetlink messages as bytes: the few that a pod's network takes (rtnetlink(7), linux/netfilter/*.h).

Promises: one message or one batch, one acknowledgement; an error of the kernel is an OSError. No library: what there is
costs a start many times what these hundred lines do (docs/adr/0009-netlink.md).
Does not: know what a pod may do (`firewall`).
"""

from __future__ import annotations

import errno
import os
import socket
import struct

REQUEST, ACK, CREATE, EXCL, APPEND = 1, 4, 0x400, 0x200, 0x800
NLMSG_ERROR = 2
NETLINK_ROUTE, NETLINK_NETFILTER = 0, 12
RTM_NEWLINK, RTM_NEWROUTE = 16, 24
BATCH_BEGIN, BATCH_END = 0x10, 0x11
NFTABLES = 10
NEWTABLE, NEWCHAIN, NEWRULE, GETGEN = 0, 3, 6, 16
_NESTED = 0x8000


def attribute(kind: int, data: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    return struct.pack("=HH", 4 + len(data), kind) + data + b"\0" * (-len(data) % 4)


def nested(kind: int, *parts: bytes) -> bytes:
    """An attribute of attributes."""
    return attribute(kind | _NESTED, b"".join(parts))


def text(kind: int, value: str) -> bytes:
    """A string attribute."""
    return attribute(kind, value.encode("ascii") + b"\0")


def number(kind: int, value: int) -> bytes:
    """A 32-bit number as nfnetlink has them: big-endian."""
    return attribute(kind, struct.pack("!I", value & 0xFFFFFFFF))


def message(kind: int, flags: int, body: bytes, sequence: int = 1) -> bytes:
    """One message."""
    return struct.pack("=IHHII", 16 + len(body), kind, REQUEST | flags, sequence, 0) + body


def nft(kind: int, family: int, flags: int, *attributes: bytes) -> bytes:
    """One message of nftables."""
    return message(NFTABLES << 8 | kind, flags, struct.pack("!BBH", family, 0, 0) + b"".join(attributes))


def batch(*messages: bytes) -> bytes:
    """A transaction of nftables: all of it or nothing; the end asks for no acknowledgement, each message does."""
    edge = struct.pack("!BBH", 0, 0, NFTABLES)
    return b"".join((message(BATCH_BEGIN, 0, edge), *messages, message(BATCH_END, 0, edge)))


def send(protocol: int, data: bytes, acknowledgements: int = 1) -> None:
    """Send and wait for the kernel's answers. Raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol) as sock:
        sock.settimeout(5)
        sock.bind((0, 0))
        sock.send(data)
        while acknowledgements > 0:
            answer = sock.recv(65_536)
            while len(answer) >= 20:
                size, kind = struct.unpack_from("=IH", answer)
                if kind == NLMSG_ERROR:
                    code = -struct.unpack_from("=i", answer, 16)[0]
                    if code:
                        raise OSError(code, os.strerror(code))
                    acknowledgements -= 1
                answer = answer[max(16, size + 3 & ~3) :]


def route_local_everything() -> None:
    """``ip route add local default dev lo``: every IPv4 address is this host's (AnyIP)."""
    index = socket.if_nametoindex("lo")
    # family, destination bits, source bits, tos, table local, protocol boot, scope host, type local
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, 255, 3, 254, 2, 0) + attribute(
        4, struct.pack("=I", index)
    )
    send(NETLINK_ROUTE, message(RTM_NEWROUTE, ACK | CREATE | EXCL, body))


def links_down() -> None:
    """Take every link of this network namespace down."""
    for index, _ in socket.if_nameindex():
        body = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, 0, 1)  # flags 0, change IFF_UP
        try:
            send(NETLINK_ROUTE, message(RTM_NEWLINK, ACK, body))
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise


def watch(protocol: int, groups: int) -> socket.socket:
    """A non-blocking socket that is told of every change of these groups (a bit mask)."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, protocol)
    sock.bind((0, groups))
    return sock
