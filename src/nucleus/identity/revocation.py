"""Revoked identities: the authority's list, kept as one file, and what a verifier holds against a peer with it.

Two kinds. A *serial number*: that certificate is refused, its workload gets another. A *SPIFFE ID*: every certificate
of it so far is refused, and no new one is issued until a person restores the name; what was issued before the
revocation stays refused for good.
Promises: a revocation is kept until the certificates that it concerns have ended (an SVID lives `LIFE_NS` at most); one
of a name that was not restored is kept without end, so that nothing is issued to it. The file is replaced whole and a
damaged one is refused: then nothing is issued and no door opens.
Relies on: serial numbers that say when they were given (`new_serial`), so that "issued before" needs neither an index
of what was issued nor not_before, which is backdated. A serial of another form counts as issued before everything.
Does not: record, push or cut; read a clock. Imports no cryptography.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from nucleus.errors import DeniedError, InvalidError, NucleusError
from nucleus.identity.entries import read_whole, write_whole
from nucleus.identity.spiffe_id import SpiffeId

LIFE_NS = 24 * 3_600 * 1_000_000_000  # the longest that an SVID lives (ca.MAX_TTL_NS)
MAX_SERIALS = 2_048  # a gate's answer stays under 256 KiB
MAX_NAMES = 256
MAX_REASON_BYTES = 256
_MAX_FILE_BYTES = 4 << 20
_RANDOM_BITS = 64
_OURS = 1 << 127
_SERIAL = re.compile(r"[0-9a-f]{1,40}")  # 20 octets (RFC 5280 4.1.2.2)


def new_serial(now_ns: int) -> int:
    """A certificate's serial number: nanoseconds since the epoch, then 64 random bits (what CA/B Forum 7.1 asks for).

    The time is no secret: not_before says it to the second.
    """
    return (max(now_ns, 1) << _RANDOM_BITS) | secrets.randbits(_RANDOM_BITS)


def issued_ns(serial: int) -> int:
    """When a certificate of this serial number was issued; 0 for one that `new_serial` did not make."""
    return serial >> _RANDOM_BITS if 0 < serial < _OURS else 0


def read_serial(text: str) -> int | None:
    """A serial number as tools write it: hexadecimal, in either case, with or without colons; None: it is none."""
    plain = text.replace(":", "").lower()
    return int(plain, 16) if _SERIAL.fullmatch(plain) and int(plain, 16) else None


@dataclass(frozen=True, slots=True)
class Revocation:
    """One. `serial` (hex) or `spiffe_id` is set, the other is "". Times are nanoseconds since the epoch.

    Args:
        at_ns: when; of a name: what was issued until then is refused.
        until_ns: when the last certificate that it concerns has ended.
        blocked: of a name: nothing is issued to it.
    """

    serial: str
    spiffe_id: str
    reason: str
    at_ns: int
    until_ns: int
    blocked: bool

    def to_wire(self) -> dict[str, Any]:
        """Its fields: the file's form, and a person's."""
        return {name: getattr(self, name) for name in self.__slots__}

    def to_gate(self) -> dict[str, Any]:
        """What a verifier needs of it."""
        return {name: getattr(self, name) for name in ("serial", "spiffe_id", "at_ns", "until_ns")}


def make(what: object, reason: object, trust_domain: str, now_ns: int) -> Revocation:
    """A checked revocation of a serial number or a SPIFFE ID.

    Raises:
        InvalidError: it is neither, of another trust domain, or a serial number of no certificate that is still valid.
    """
    if not isinstance(reason, str) or not reason.strip() or len(reason.encode("utf-8", "replace")) > MAX_REASON_BYTES:
        raise InvalidError(f"a reason is 1 to {MAX_REASON_BYTES} bytes", rule="identity.revoke")
    if not isinstance(what, str):
        raise InvalidError("a serial number or a SPIFFE ID is text", rule="identity.revoke")
    if what.startswith("spiffe:"):
        name = SpiffeId.parse(what)
        if name.trust_domain != trust_domain or not name.path:
            raise InvalidError(f"only names of {trust_domain} with a path are revoked here", rule="identity.revoke")
        return Revocation("", str(name), reason, now_ns, now_ns + LIFE_NS, blocked=True)
    serial = read_serial(what)
    if serial is None:
        raise InvalidError("neither a serial number (hexadecimal) nor a SPIFFE ID", rule="identity.revoke")
    born = issued_ns(serial)
    if not born or born > now_ns:
        raise InvalidError(
            "no SVID of this authority has that serial number",
            rule="identity.revoke",
            next_step="Revoke its SPIFFE ID: that concerns every certificate of it.",
        )
    if born + LIFE_NS <= now_ns:
        raise InvalidError("a certificate of that serial number has ended already", rule="identity.revoke")
    return Revocation(f"{serial:x}", "", reason, now_ns, born + LIFE_NS, blocked=False)


class DenyList:
    """What a verifier refuses. Filled from `Revocation.to_gate`'s form."""

    def __init__(self) -> None:
        self._serials: dict[int, int] = {}  # serial -> until
        self._names: dict[str, int] = {}  # name -> refused when issued at or before this

    def add(self, fields: dict[str, Any]) -> None:
        """One more. Raises InvalidError: it is no revocation."""
        serial, name, at_ns, until_ns = (fields.get(key) for key in ("serial", "spiffe_id", "at_ns", "until_ns"))
        if not (isinstance(serial, str) and isinstance(name, str) and type(at_ns) is int and type(until_ns) is int):
            raise InvalidError("not a revocation", rule="identity.revoke")
        if name:
            self._names[name] = max(at_ns, self._names.get(name, 0))
            return
        number = read_serial(serial)
        if number is None:
            raise InvalidError("not a revocation", rule="identity.revoke")
        self._serials[number] = until_ns

    def prune(self, now_ns: int) -> None:
        """Forget serial numbers whose certificates have ended; names stay, they are few."""
        self._serials = {serial: until for serial, until in self._serials.items() if until > now_ns}

    def refuses(self, spiffe_id: str, serial: int) -> bool:
        """Whether a certificate of this name and serial number is revoked."""
        return serial in self._serials or issued_ns(serial) <= self._names.get(spiffe_id, -1)

    def refuses_token(self, spiffe_id: str, issued_ns: int) -> bool:
        """Whether a JWT-SVID of this name is revoked. `issued_ns`: its ``iat``, a whole second.

        One that was issued in the second of the revocation is refused, also if it came after a restore.
        """
        return issued_ns <= self._names.get(spiffe_id, -1)


class Revocations:
    """The authority's list.

    Args:
        path: the file; need not exist.

    Raises:
        NucleusError: rule ``identity.revocations``: the file is not what this class writes, or is not ours alone.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._all: dict[str, Revocation] = {}
        self._deny = DenyList()
        self._install(self._load())

    def all(self, now_ns: int) -> list[Revocation]:
        """Those that still concern something, in the order in which they were made."""
        return [one for one in self._all.values() if one.blocked or one.until_ns > now_ns]

    def refuses(self, spiffe_id: str, serial: int) -> bool:
        """See `DenyList.refuses`."""
        return self._deny.refuses(spiffe_id, serial)

    def refuses_token(self, spiffe_id: str, issued_ns: int) -> bool:
        """See `DenyList.refuses_token`."""
        return self._deny.refuses_token(spiffe_id, issued_ns)

    def check(self, spiffe_id: str) -> None:
        """Raises DeniedError: nothing is issued to this name."""
        if self.blocked(spiffe_id):
            raise DeniedError(
                "this identity is revoked", rule="identity.revoked", next_step="`nucleus identity restore` lifts it."
            )

    def blocked(self, spiffe_id: str) -> bool:
        """Whether nothing is issued to this name."""
        found = self._all.get(spiffe_id)
        return found is not None and found.blocked

    def check_new(self, new: Revocation, now_ns: int) -> None:
        """Raises InvalidError: there are too many."""
        rest = [one for one in self.all(now_ns) if _key(one) != _key(new) and bool(one.serial) == bool(new.serial)]
        most = MAX_SERIALS if new.serial else MAX_NAMES
        if len(rest) >= most:
            raise InvalidError(f"{most} are revoked already", rule="identity.revoke")

    def add(self, new: Revocation, now_ns: int) -> None:
        """Keep one; a name or serial number that is there already is replaced. Raises OSError: nothing changed."""
        self._replace([*(one for one in self.all(now_ns) if _key(one) != _key(new)), new])

    def restorable(self, name: object) -> Revocation:
        """The revocation of a name to which nothing is issued. Raises InvalidError: there is none."""
        found = self._all.get(name) if isinstance(name, str) else None
        if found is None or not found.blocked:
            raise InvalidError("that SPIFFE ID is not revoked", rule="identity.revoke")
        return found

    def restore(self, name: str, now_ns: int) -> Revocation:
        """Issue to a name again; what it had until now stays refused.

        Raises:
            InvalidError: it is not revoked. OSError: cannot be written, nothing changed.
        """
        kept = replace(self.restorable(name), blocked=False)
        self._replace([*(one for one in self.all(now_ns) if _key(one) != name), kept])
        return kept

    def _replace(self, kept: list[Revocation]) -> None:
        text = json.dumps({"version": 1, "revoked": [one.to_wire() for one in kept]}, indent=1) + "\n"
        write_whole(self._path, text.encode())
        self._install(kept)

    def _install(self, kept: Iterable[Revocation]) -> None:
        self._all = {_key(one): one for one in kept}
        self._deny = DenyList()
        for one in self._all.values():
            self._deny.add(one.to_gate())

    def _load(self) -> list[Revocation]:
        data = read_whole(self._path, _MAX_FILE_BYTES, "identity.revocations")
        if data is None:
            return []
        try:
            content = json.loads(data)
            if content.keys() != {"version", "revoked"} or content["version"] != 1:
                raise ValueError("version")
            found = [_read(one) for one in content["revoked"]]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, InvalidError) as error:
            raise NucleusError(
                f"the list of revoked identities does not read as one ({error})",
                rule="identity.revocations",
                next_step=f"Restore {self._path} from a copy; without it, what was revoked would be valid again.",
            ) from error
        if len({_key(one) for one in found}) != len(found):
            raise NucleusError("an identity is revoked twice in the list", rule="identity.revocations")
        return found


_TYPES: dict[str, Callable[[Any], bool]] = {
    "serial": lambda one: one == "" or (isinstance(one, str) and _SERIAL.fullmatch(one) is not None),
    "spiffe_id": lambda one: isinstance(one, str),
    "reason": lambda one: isinstance(one, str),
    "at_ns": lambda one: type(one) is int,
    "until_ns": lambda one: type(one) is int,
    "blocked": lambda one: type(one) is bool,
}


def _read(fields: dict[str, Any]) -> Revocation:
    if fields.keys() != _TYPES.keys() or not all(holds(fields[name]) for name, holds in _TYPES.items()):
        raise ValueError("a revocation's fields")
    if bool(fields["serial"]) == bool(fields["spiffe_id"]):
        raise ValueError("a serial number or a SPIFFE ID")
    if fields["spiffe_id"]:
        SpiffeId.parse(fields["spiffe_id"])
    return Revocation(**fields)


def _key(one: Revocation) -> str:
    return one.serial or one.spiffe_id
