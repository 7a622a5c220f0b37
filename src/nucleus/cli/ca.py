"""`nucleus identity ca`: our CA below another one, whose root may be offline.

Promises: nothing of it needs the other CA's key here: a request goes out, a chain comes back, and is checked by the
authority before it counts.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from nucleus.cli.identity import Authority, say, say_json, stamp
from nucleus.cli.options import invalid

_CHAIN_BYTES = 16_384


def request(options: dict[str, Any], _: list[str]) -> int:
    """Print the signing request."""
    with Authority() as authority:
        pem = authority.call("ca_request")["pem"]
    sys.stdout.write(pem)
    return 0


def install(options: dict[str, Any], words: list[str]) -> int:
    """Hand the chain over."""
    try:
        fd = os.open(words[0], os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK) if words[0] != "-" else 0
        with open(fd, "rb", closefd=fd != 0) as file:
            data = file.read(_CHAIN_BYTES + 1)
    except OSError as error:
        raise invalid(f"{words[0]}: {error.strerror}") from None
    if len(data) > _CHAIN_BYTES or not data.isascii():
        raise invalid(f"{words[0]} is not a chain: PEM of at most {_CHAIN_BYTES} bytes")
    with Authority() as authority:
        found = authority.call("ca_install", pem=data.decode("ascii"), at_once=options["at-once"])["installed"]
    if options["json"]:
        say_json(found)
        return 0
    say(f"installed {found['serial']}, until {stamp(found['expires_ns'])}; signs from {stamp(found['signs_ns'])}\n")
    return 0
