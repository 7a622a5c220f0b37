"""Names of hosts, and the synthetic address that stands for each of them inside one pod.

Promises: an address of 198.18.0.0/15 (RFC 2544: no host of the internet has one) means one name for the pod's life, and
a name one address; nothing is ever taken back, so an address that a program kept cannot come to mean another host. A
wildcard rule gives at most `WILDCARD_NAMES` addresses, so that a pod that makes up names cannot take those of others.
Does not: decide; that a name has an address says nothing about whether it may be connected to.
"""

from __future__ import annotations

from nucleus.errors import DeniedError, InvalidError

NAME_BYTES = 253  # RFC 1035 §2.3.4, as text without the last dot
WILDCARD_NAMES = 4_096
FIRST = 0xC612_0000  # 198.18.0.0
BLOCKS = 512  # of 256 addresses: a /15
USABLE = 254  # of a block: .0 and .255 are network and broadcast to some

_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_")
_HEX = frozenset("0123456789abcdef")


def is_name(text: str) -> bool:
    """Is `text` a host name: lower-case LDH labels (RFC 1123 §2.1; and "_", which real hosts have), no trailing dot?

    No spelling of an IPv4 address is one: the last label is not a number, decimal or ``0x``.
    """
    if not text or len(text) > NAME_BYTES or not _PLAIN.issuperset(text.replace(".", "")):
        return False
    labels = text.split(".")
    for label in labels:
        if not 0 < len(label) <= 63 or label[0] == "-" or label[-1] == "-":
            return False
    last = labels[-1]
    return not (last.isdigit() or (last.startswith("0x") and _HEX.issuperset(last[2:])))


def covers(pattern: str, name: str) -> bool:
    """Does `pattern` name `name`?

    Args:
        pattern: a host name, or ``*.`` and a host name: everything below it at any depth, not that name itself.
        name: lower case, no trailing dot; anything else is covered by nothing.
    """
    if pattern.startswith("*."):
        return len(pattern) > 2 and name.endswith(pattern[1:]) and is_name(name) and is_name(pattern[2:])
    return pattern == name and is_name(name)


class Pool:
    """The synthetic addresses of one pod.

    Args:
        capacity: names altogether; at most all that the range has.
        wildcard_names: names for each wildcard rule.
    """

    def __init__(self, capacity: int = BLOCKS * USABLE, wildcard_names: int = WILDCARD_NAMES) -> None:
        self._capacity = min(capacity, BLOCKS * USABLE)
        self._wildcard_names = wildcard_names
        self._packed: dict[str, bytes] = {}
        self._names: dict[bytes, str] = {}
        self._taken: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._packed)

    def address(self, name: str, rule: str = "") -> bytes:
        """The address of `name`, the same every time; a new one for a name that has none.

        Args:
            name: a host name in lower case.
            rule: the pattern that covers it; a wildcard's names are counted.

        Returns:
            Four bytes in network order.

        Raises:
            InvalidError: ``network.name``, that is no host name.
            DeniedError: ``network.names``, the pool or this wildcard's part of it is used up.
        """
        packed = self._packed.get(name)
        if packed is not None:
            return packed
        if not is_name(name):
            raise InvalidError("that is no host name", rule="network.name")
        if len(self._packed) >= self._capacity:
            raise DeniedError("this pod has used up its host names", rule="network.names")
        if rule.startswith("*"):
            taken = self._taken.get(rule, 0)
            if taken >= self._wildcard_names:
                raise DeniedError(
                    f"this pod has used up the host names under {rule}",
                    rule="network.names",
                    next_step="List the names it needs one by one.",
                )
            self._taken[rule] = taken + 1
        block, offset = divmod(len(self._packed), USABLE)
        packed = (FIRST + block * 256 + offset + 1).to_bytes(4, "big")
        self._packed[name], self._names[packed] = packed, name
        return packed

    def name(self, packed: bytes) -> str | None:
        """The name behind an address of four bytes; None for one that stands for nothing."""
        return self._names.get(packed)
