"""The pod's HTTP proxy: for programs that are told of one; whatever they ask for goes the transparent way's steps.

CONNECT (RFC 9110 §9.3.6) names host and port; what follows is then read as the rule for it says. Any other method is an
HTTP request in absolute form, and each request is asked for by itself.

Promises: the head is bounded in size and time; an address in any spelling is taken for the address that it is; a
refusal is a 403 with the reason before any byte is sent on. Does not: cache, authenticate, or speak HTTP/2.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from nucleus.errors import InvalidError, NucleusError
from nucleus.network import addresses
from nucleus.network.httphead import refusal

if TYPE_CHECKING:
    from nucleus.network.gateway import Gateway

HEAD_BYTES = 16_384
HEAD_S = 10.0
ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


async def serve_proxy(gateway: Gateway, client: socket.socket) -> None:
    """One client of the proxy's port."""
    head, rest = await _head(client)
    method = head.split(b" ", 1)[0]
    if method != b"CONNECT":
        await gateway.requests(client, "", 0, early=head + rest)
        return
    loop = asyncio.get_running_loop()
    try:
        host, port = authority(head)
    except NucleusError as error:
        await loop.sock_sendall(client, refusal(400, error.code, error.message))
        return
    rule = gateway.listed(host, port)
    if rule is None:
        await gateway.carry(client, gateway.target(host, port), listed=False, early=head)
        return
    await loop.sock_sendall(client, ESTABLISHED)
    await gateway.arrived(client, host, port, early=rest)


async def _head(client: socket.socket) -> tuple[bytes, bytes]:
    """The first request's head, its blank line included, and what came behind it."""
    loop = asyncio.get_running_loop()
    read = bytearray()
    async with asyncio.timeout(HEAD_S):
        while (end := read.find(b"\r\n\r\n")) < 0:
            if len(read) > HEAD_BYTES:
                raise InvalidError("the request's head is too long", rule="network.head")
            data = await loop.sock_recv(client, 16_384)
            if not data:
                raise ConnectionResetError("the client went away")
            read += data
    return bytes(read[: end + 4]), bytes(read[end + 4 :])


def authority(head: bytes) -> tuple[str, int]:
    """Host (lower case, or an address as `ipaddress` writes it) and port of a CONNECT's head.

    Raises:
        InvalidError: rule ``network.authority``.
    """
    line = head.split(b"\r\n", 1)[0].split(b" ")
    try:
        target = line[1].decode("ascii")
        host, _, port = target.rpartition(":")
        if len(line) != 3 or not line[2].startswith(b"HTTP/1.") or not port.isdigit() or not 0 < int(port) < 65_536:
            raise ValueError
    except (IndexError, ValueError):
        raise InvalidError("CONNECT needs host:port", rule="network.authority") from None
    literal = addresses.literal(host)
    if literal is not None:
        return str(literal), int(port)
    name = host.lower().removesuffix(".")
    labels = name.split(".")
    if len(name) > 253 or not all(_is_label(label) for label in labels):
        raise InvalidError("CONNECT needs a plain host name", rule="network.authority")
    return name, int(port)


def _is_label(label: str) -> bool:
    plain = label.replace("-", "").replace("_", "")
    return 0 < len(label) <= 63 and plain.isascii() and plain.isalnum() and label[0] != "-" and label[-1] != "-"
