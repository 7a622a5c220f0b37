"""The beginning of a git push as the server gets it: which refs are to change, from what to what (gitprotocol-pack(5)).

Promises: `Commands` reads nothing but pkt-lines up to the first flush, strictly and bounded; what is not one plain
list of commands (push certificates, shallow pushes, push options) is refused, and stays refused. How the bytes are cut
into pieces makes no difference. Pure.
Does not: read the pack behind it: a server checks each object's id against what was announced.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from nucleus.errors import InvalidError

COMMANDS = 256
LIST_BYTES = 65_536
LINE_BYTES = 65_520
_OID = re.compile(rb"[0-9a-f]{40}(?:[0-9a-f]{24})?\Z")
_LENGTH = re.compile(rb"[0-9a-fA-F]{4}\Z")
_REF = re.compile(r"refs/(?:heads|tags)/[A-Za-z0-9][A-Za-z0-9._/+@-]{0,240}\Z")
_REFUSED = frozenset((b"push-options", b"push-cert"))
_PLAIN = re.compile(rb"[\x20-\x7e]*\Z")


@dataclass(frozen=True, slots=True)
class Update:
    """One ref's change. Zeros for `old`: it is created; for `new`: it is deleted."""

    ref: str
    old: str
    new: str


def is_ref(name: str) -> bool:
    """A branch or tag that may be pushed: plain ASCII, nothing that git, a shell or a person could read otherwise."""
    parts = name.split("/")
    odd = ".." in name or "@{" in name or name.endswith((".", "/"))
    return bool(_REF.match(name)) and not odd and all(p and p[0] not in ".-" and not p.endswith(".lock") for p in parts)


class Commands:
    """Incremental. `rest`: what was fed behind the list."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._updates: list[Update] = []
        self._read = 0
        self._done = False

    @property
    def rest(self) -> bytes:
        """The bytes behind the list, once it is whole."""
        return bytes(self._buffer) if self._done else b""

    def feed(self, data: bytes) -> tuple[Update, ...] | None:
        """Read on; the updates once the list is whole, None until then.

        Raises:
            InvalidError: rules ``git.pktline``, ``git.command``, ``git.ref``, ``git.capability``.
        """
        self._buffer += data
        while not self._done:
            if len(self._buffer) < 4:
                return None
            if not _LENGTH.match(self._buffer[:4]):
                raise InvalidError("not a pkt-line", rule="git.pktline")
            size = int(bytes(self._buffer[:4]), 16)
            if size == 0:
                del self._buffer[:4]
                self._done = True
                break
            if size < 5 or size > LINE_BYTES or self._read + size > LIST_BYTES or len(self._updates) >= COMMANDS:
                raise InvalidError("a pkt-line of this size has no place there", rule="git.pktline")
            if len(self._buffer) < size:
                return None
            self._command(bytes(self._buffer[4:size]))
            del self._buffer[:size]  # not what was refused: it is refused again
            self._read += size
        return tuple(self._updates)

    def _command(self, line: bytes) -> None:
        text, mark, capabilities = line.removesuffix(b"\n").partition(b"\0")
        if mark:
            names = {item.partition(b"=")[0] for item in capabilities.split(b" ")}
            # git reads up to a second NUL, and splits at any white space: there is none but spaces.
            if self._updates or names & _REFUSED or not _PLAIN.match(capabilities):
                raise InvalidError("push options and certificates are not sent on", rule="git.capability")
        old, _, tail = text.partition(b" ")
        new, _, name = tail.partition(b" ")
        if not _OID.match(old) or not _OID.match(new) or len(old) != len(new) or not self._fits(old):
            raise InvalidError("not a command of a push", rule="git.command")
        ref = name.decode("utf-8", "replace")
        if not is_ref(ref) or any(one.ref == ref for one in self._updates):
            raise InvalidError("a ref's name that is not pushed", rule="git.ref")
        self._updates.append(Update(ref, old.decode(), new.decode()))

    def _fits(self, oid: bytes) -> bool:
        """One list is of one repository: its ids are all SHA-1 or all SHA-256."""
        return not self._updates or len(self._updates[0].old) == len(oid)


def difference(wanted: Iterable[Update], got: Iterable[Update]) -> str:
    """Why `got` is not exactly `wanted`, in one sentence; "" when it is."""
    left, right = set(wanted), set(got)
    if left == right:
        return ""
    for one in sorted(right - left, key=lambda update: update.ref):
        same = next((other for other in left if other.ref == one.ref), None)
        if same is None:
            return f"{one.ref} was not approved"
        if same.old != one.old:
            return (
                f"{one.ref} is at {one.old[:12]} on the remote, approved was from {same.old[:12]}: fetch and ask again"
            )
        return f"{one.ref} would go to {one.new[:12]}, approved was {same.new[:12]}"
    missing = min(one.ref for one in left - right)
    return f"{missing} was approved and is missing"
