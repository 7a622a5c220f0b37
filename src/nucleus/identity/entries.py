"""Registration entries: which selectors of a caller give it which SPIFFE ID, kept as one file of the authority's.

Promises: an entry matches a caller when every one of its selectors holds, and has at least one; a selector about which
nothing is known of the caller does not hold; the file is replaced whole (written, synced, renamed) and a damaged one is
refused, never repaired; the IDs of pods (``/ns/…/sa/{gate,gateway,agent,orchestrator}-…``) and of local users
(``/user/uid/…``, `local_user`) cannot be given by an entry.
Relies on: the authority's lock on its state; `attestation` for what is known of a caller.
Does not: attest, issue or record.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from nucleus.errors import InvalidError, NucleusError
from nucleus.identity.spiffe_id import SpiffeId

MIN_TTL_S = 60
MAX_TTL_S = 86_400
DEFAULT_TTL_S = 3_600
MAX_ENTRIES = 1_024
MAX_SELECTORS = 16
MAX_PATH_BYTES = 4_096
MAX_HINT_BYTES = 64
MAX_FEDERATES = 8
MATCHES = 32  # entries that one caller may have at a time: an answer stays one packet
KINDS = ("unix:uid", "unix:gid", "unix:supplementary_gid", "unix:path", "unix:sha256", "nucleus:pod")
_MAX_FILE_BYTES = 16 << 20
_HEX64 = re.compile(r"[0-9a-f]{64}")
_POD = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,9}")
_HINT = re.compile(r"[A-Za-z0-9._-]{0,64}")
_ID = re.compile(r"[0-9a-f]{12}")
_POD_IDS = re.compile(r"/ns/[^/]+/sa/(?:gate|gateway|agent|orchestrator)-.*")
_USER_IDS = re.compile(r"/user/uid(?:/.*)?")


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a caller. None: not known, and no selector of that kind holds.

    Args:
        uid, gid: when it connected, by the kernel.
        groups: its supplementary groups.
        path: of its executable, where that name is this file also for us.
        sha256: of its executable's content, hex; "" when nobody has asked for it yet.
        pod: the pod that it runs in.
        pid: for the record alone.
    """

    uid: int
    gid: int
    groups: frozenset[int] = frozenset()
    path: str | None = None
    sha256: str | None = None
    pod: str | None = None
    pid: int = 0

    def to_wire(self) -> dict[str, Any]:
        """As the authority reads them."""
        return asdict(self) | {"groups": sorted(self.groups)}

    def holds(self, selector: str) -> bool:
        """Whether one selector is true of the caller."""
        kind, value = split(selector)
        match kind:
            case "unix:uid":
                return value == str(self.uid)
            case "unix:gid":
                return value == str(self.gid)
            case "unix:supplementary_gid":
                return int(value) in self.groups
            case "unix:path":
                return self.path is not None and value == self.path
            case "unix:sha256":
                return self.sha256 is not None and value == self.sha256
            case "nucleus:pod":
                return self.pod is not None and value == self.pod
        return False


@dataclass(frozen=True, slots=True)
class Entry:
    """One registration. `ttl_s`: of its X.509-SVIDs, seconds. `hint` tells a workload with several apart.

    `federates_with`: the foreign trust domains of which the workload is given the bundle.
    """

    entry: str
    spiffe_id: str
    selectors: tuple[str, ...]
    ttl_s: int = DEFAULT_TTL_S
    hint: str = ""
    federates_with: tuple[str, ...] = ()

    def matches(self, facts: Facts) -> bool:
        """Every selector holds."""
        return bool(self.selectors) and all(facts.holds(selector) for selector in self.selectors)

    def wants_hash(self, facts: Facts) -> bool:
        """All holds but what the executable's hash would say, which is not known yet."""
        others = [one for one in self.selectors if split(one)[0] != "unix:sha256"]
        return facts.sha256 == "" and len(others) < len(self.selectors) and all(facts.holds(one) for one in others)

    def to_wire(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self) | {"selectors": list(self.selectors), "federates_with": list(self.federates_with)}


def split(selector: str) -> tuple[str, str]:
    """(kind, value) of a selector such as ``unix:uid:1000``; ("", "") when it is none."""
    parts = selector.split(":", 2)
    return (f"{parts[0]}:{parts[1]}", parts[2]) if len(parts) == 3 else ("", "")


def check_selector(selector: object) -> str:
    """A valid selector.

    Raises:
        InvalidError: unknown kind, or a value that can never hold.
    """
    if not isinstance(selector, str) or len(selector) > MAX_PATH_BYTES + 32:
        raise _invalid("a selector is text of bounded length", "identity.selector")
    kind, value = split(selector)
    if kind not in KINDS:
        raise _invalid(f"unknown selector; the kinds are {', '.join(KINDS)}", "identity.selector")
    match kind:
        case "unix:uid" | "unix:gid" | "unix:supplementary_gid":
            good = bool(_NUMBER.fullmatch(value)) and int(value) < 0xFFFFFFFF
        case "unix:path":
            # The name as the kernel says it: absolute, without dots; a name with " (deleted)" is never the caller's.
            good = value.startswith("/") and os.path.normpath(value) == value and value.isprintable()
        case "unix:sha256":
            good = bool(_HEX64.fullmatch(value))
        case _:
            good = bool(_POD.fullmatch(value))
    if not good:
        raise _invalid(f"{kind} cannot have this value", "identity.selector")
    return selector


def check_name(text: object, trust_domain: str) -> SpiffeId:
    """An ID that may be given to a workload of this trust domain which is no pod's.

    Raises:
        InvalidError: not a SPIFFE ID, another trust domain's, without a path, or a pod's.
    """
    if not isinstance(text, str):
        raise _invalid("a SPIFFE ID is text", "spiffe.type")
    spiffe_id = SpiffeId.parse(text)
    if spiffe_id.trust_domain != trust_domain:
        raise _invalid(f"this authority vouches for {trust_domain} alone", "identity.trust_domain")
    if not spiffe_id.path:
        raise _invalid("a workload's SPIFFE ID has a path (X509-SVID 5.2)", "identity.path")
    if _POD_IDS.fullmatch(spiffe_id.path):
        raise _invalid("this name is a pod's: only the pod's own sockets give it", "identity.reserved")
    if _USER_IDS.fullmatch(spiffe_id.path):
        raise _invalid("this name is a local user's: the kernel alone says who that is", "identity.reserved")
    return spiffe_id


def local_user(trust_domain: str, uid: int) -> str:
    """What a user of this host is called, by uid: it needs no name service, and no other ID is like it."""
    return str(SpiffeId(trust_domain, f"/user/uid/{uid}"))


def make(fields: dict[str, Any], trust_domain: str, entry: str = "") -> Entry:
    """A checked entry from `to_wire`'s form; without `entry`, a new one.

    Raises:
        InvalidError: a field is missing, unknown, or out of its bounds.
    """
    unknown = fields.keys() - {"entry", "spiffe_id", "selectors", "ttl_s", "hint", "federates_with"}
    selectors, ttl_s, hint = fields.get("selectors"), fields.get("ttl_s", DEFAULT_TTL_S), fields.get("hint", "")
    if unknown:
        raise _invalid("an entry has spiffe_id, selectors, ttl_s, hint and federates_with", "identity.entry")
    if not isinstance(selectors, list | tuple) or not 1 <= len(selectors) <= MAX_SELECTORS:
        raise _invalid(f"an entry has 1 to {MAX_SELECTORS} selectors", "identity.entry")
    if type(ttl_s) is not int or not MIN_TTL_S <= ttl_s <= MAX_TTL_S:
        raise _invalid(f"an entry's ttl is {MIN_TTL_S} s to {MAX_TTL_S} s", "identity.ttl")
    if not isinstance(hint, str) or not _HINT.fullmatch(hint):
        raise _invalid(f"a hint is at most {MAX_HINT_BYTES} of A-Z a-z 0-9 . - _", "identity.entry")
    name = check_name(fields.get("spiffe_id"), trust_domain)
    checked = tuple(sorted({check_selector(selector) for selector in selectors}))
    federates = _foreign(fields.get("federates_with", []), trust_domain)
    return Entry(entry or secrets.token_hex(6), str(name), checked, ttl_s, hint, federates)


def _foreign(names: object, trust_domain: str) -> tuple[str, ...]:
    if not isinstance(names, list | tuple) or len(names) > MAX_FEDERATES:
        raise _invalid(f"an entry federates with at most {MAX_FEDERATES} trust domains", "identity.entry")
    found = set()
    for name in names:
        parsed = SpiffeId.parse(f"spiffe://{name}") if isinstance(name, str) else None
        if parsed is None or parsed.path or parsed.trust_domain == trust_domain:
            raise _invalid("an entry federates with other trust domains, by name", "identity.entry")
        found.add(parsed.trust_domain)
    return tuple(sorted(found))


class Entries:
    """All entries of one authority, by ID.

    Args:
        path: the file; need not exist.
        trust_domain: of every name in it.

    Raises:
        NucleusError: rule ``identity.entries``: the file is not what this class writes, or is not ours alone.
    """

    def __init__(self, path: str, trust_domain: str) -> None:
        self._path = path
        self._trust_domain = trust_domain
        self.version = 0  # of the content, counted from this process's start
        self._entries = {one.entry: one for one in self._load()}

    def all(self) -> list[Entry]:
        """In the order in which they were made."""
        return list(self._entries.values())

    def matching(self, facts: Facts) -> list[Entry]:
        """The entries of a caller, the first `MATCHES` of them, one for each SPIFFE ID."""
        found: dict[str, Entry] = {}
        for entry in self._entries.values():
            if entry.spiffe_id not in found and entry.matches(facts):
                found[entry.spiffe_id] = entry
        return list(found.values())[:MATCHES]

    def wants_hash(self, facts: Facts) -> bool:
        """Some entry may match once the executable's hash is known."""
        return any(entry.wants_hash(facts) for entry in self._entries.values())

    def check_new(self, entry: Entry) -> None:
        """Raises InvalidError: there are too many, or there is one like it."""
        if len(self._entries) >= MAX_ENTRIES:
            raise _invalid(f"there are {MAX_ENTRIES} entries already", "identity.entries")
        if any((one.spiffe_id, one.selectors) == (entry.spiffe_id, entry.selectors) for one in self._entries.values()):
            raise _invalid("there is an entry with this ID and these selectors", "identity.entry")

    def get(self, ident: object) -> Entry:
        """Raises InvalidError: no such entry."""
        found = self._entries.get(ident) if isinstance(ident, str) else None
        if found is None:
            raise _invalid("there is no such entry", "identity.entry")
        return found

    def add(self, entry: Entry) -> None:
        """Keep an entry. Raises OSError: it cannot be written; nothing has changed then."""
        self._replace([*self._entries.values(), entry])

    def remove(self, ident: str) -> None:
        """Forget an entry. Raises OSError: it cannot be written; nothing has changed then."""
        self._replace([one for one in self._entries.values() if one.entry != ident])

    def _replace(self, entries: Iterable[Entry]) -> None:
        kept = list(entries)
        text = json.dumps({"version": 1, "entries": [one.to_wire() for one in kept]}, indent=1) + "\n"
        write_whole(self._path, text.encode())
        self._entries = {one.entry: one for one in kept}
        self.version += 1

    def _load(self) -> list[Entry]:
        data = read_whole(self._path, _MAX_FILE_BYTES, "identity.entries")
        if data is None:
            return []
        try:
            content = json.loads(data)
            if content.keys() != {"version", "entries"} or content["version"] != 1:
                raise ValueError("version")
            found = [make(one, self._trust_domain, _own(one)) for one in content["entries"]]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, InvalidError) as error:
            raise _broken(self._path, f"it does not read as entries ({error})", "identity.entries") from error
        if len({one.entry for one in found}) != len(found):
            raise _broken(self._path, "an entry is there twice", "identity.entries")
        return found


def _own(fields: dict[str, Any]) -> str:
    ident = fields["entry"]
    if not isinstance(ident, str) or not _ID.fullmatch(ident):
        raise ValueError("an entry's id")
    return ident


def write_whole(path: str, data: bytes) -> None:
    """Replace a file of ours, 0600: written beside it, synced, renamed, the directory synced. Raises OSError."""
    beside = path + ".new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with suppress(FileNotFoundError):
        os.unlink(beside)  # of a write that crashed
    with open(os.open(beside, flags, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def read_whole(path: str, limit: int, rule: str) -> bytes | None:
    """A file of ours; None: there is none.

    Raises:
        NucleusError: it is a link, not a regular file, somebody else's, open to others, or over `limit` bytes.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _broken(path, str(error.strerror), rule) from error
    if stat.S_ISDIR(os.fstat(fd).st_mode):  # which cannot be made a file object
        os.close(fd)
        raise _broken(path, "it is a directory", rule)
    with open(fd, "rb") as file:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o077 or info.st_nlink != 1:
            raise _broken(path, "it is not a 0600 file of ours", rule)
        if info.st_size > limit:
            raise _broken(path, f"it is over {limit} bytes", rule)
        return file.read(limit)


def _broken(path: str, why: str, rule: str) -> NucleusError:
    name = os.path.basename(path)
    return NucleusError(f"{name}: {why}", rule=rule, next_step=f"Move {path} away to start with a new one.")


def _invalid(message: str, rule: str) -> InvalidError:
    return InvalidError(message, rule=rule)
