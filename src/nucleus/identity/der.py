"""Certificates as bytes and as text: DER that stands one behind the other (X509-SVID, Workload API), and PEM.

Does not: parse a certificate.
"""

from __future__ import annotations

import base64
import textwrap

from nucleus.errors import InvalidError


def pem(label: str, der: bytes) -> str:
    """PEM (RFC 7468)."""
    body = "\n".join(textwrap.wrap(base64.b64encode(der).decode("ascii"), 64))
    return f"-----BEGIN {label}-----\n{body}\n-----END {label}-----\n"


def split(data: bytes) -> list[bytes]:
    """Certificates that stand one behind the other, each a DER SEQUENCE. Raises InvalidError: they are none."""
    found = []
    while data:
        if len(data) < 2 or data[0] != 0x30 or data[1] == 0x80:
            raise InvalidError("not DER certificates", rule="sds.der")
        size, head = data[1], 2
        if size & 0x80:
            head += size & 0x7F
            size = int.from_bytes(data[2:head])
        if head + size > len(data):
            raise InvalidError("a certificate is cut short", rule="sds.der")
        found.append(data[: head + size])
        data = data[head + size :]
    return found
