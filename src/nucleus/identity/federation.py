"""Foreign trust domains: where each publishes its bundle, how that endpoint is known, and the bundle that was had last.

Promises: a foreign trust domain is never our own, and its bundle counts for it alone; a bundle is replaced whole, never
by one of a lower sequence; the file is written, synced and renamed, and a damaged one is refused, never repaired.
Relies on: the authority's lock on its state; `bundle.read`, for what is new and, at the start, for what was kept.
Does not: fetch (`bundle_client`), record, or say to whom a bundle is given (`entries`, ``federates_with``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from nucleus.errors import InvalidError, NucleusError
from nucleus.identity import bundle
from nucleus.identity.entries import read_whole, write_whole
from nucleus.identity.spiffe_id import SpiffeId

WEB, SPIFFE = "https_web", "https_spiffe"
MAX_DOMAINS = 32
MAX_URL_BYTES = 2_048
MAX_WEB_ROOTS_BYTES = 16_384  # with a bundle, one frame of a person
_MAX_FILE_BYTES = 8 << 20
_RULE = "identity.federation"


@dataclass(frozen=True, slots=True)
class Relationship:
    """One foreign trust domain (SPIFFE_Federation 4).

    Args:
        url: of its bundle endpoint.
        profile: ``https_web`` or ``https_spiffe``.
        endpoint_id: https_spiffe: the SPIFFE ID that the endpoint has to prove; else "".
        web_roots: https_web: PEM of the roots for the endpoint's certificate; "": this machine's.
        document: the bundle that was had last, as it came.
        fetched_ns: when, nanoseconds since the epoch.
    """

    trust_domain: str
    url: str
    profile: str
    endpoint_id: str
    web_roots: str
    document: str
    fetched_ns: int

    def bundle(self) -> bundle.Bundle:
        """Its keys. Raises InvalidError, which for one that was kept cannot be."""
        return bundle.read(self.document, self.trust_domain)

    def to_wire(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def make(fields: dict[str, Any], own: str, now_ns: int) -> Relationship:
    """A checked relationship of `own` with another trust domain.

    Raises:
        InvalidError: a field is missing, of the wrong form, or the bundle is refused.
    """
    names = ("trust_domain", "url", "profile", "endpoint_id", "web_roots", "document")
    if fields.keys() != set(names) or not all(isinstance(fields[name], str) for name in names):
        raise _invalid(f"a relationship has {', '.join(names)}")
    domain = check_trust_domain(fields["trust_domain"], own)
    check_url(fields["url"])
    check_profile(fields["profile"], fields["endpoint_id"], own)
    if len(fields["web_roots"]) > MAX_WEB_ROOTS_BYTES or (fields["web_roots"] and fields["profile"] != WEB):
        raise _invalid("roots for the endpoint are bounded, and of https_web alone")
    made = Relationship(**fields | {"trust_domain": domain}, fetched_ns=now_ns)
    made.bundle()
    return made


def check_trust_domain(text: str, own: str) -> str:
    """A foreign trust domain's name. Raises InvalidError: it is none, or ours."""
    name = SpiffeId.parse(text if text.startswith("spiffe://") else f"spiffe://{text}")
    if name.path:
        raise _invalid("a trust domain is a name without a path")
    if name.trust_domain == own:
        raise _invalid(f"{own} is our own trust domain: no foreign bundle counts for it")
    return name.trust_domain


def check_url(url: str) -> tuple[str, int, str]:
    """(host, port, target) of an endpoint's URL (SPIFFE_Federation 5.2). Raises InvalidError: it is none."""
    try:
        parts = urlsplit(url)
        port = parts.port or 443
    except ValueError as error:
        raise _invalid("the endpoint's URL cannot be read") from error
    if len(url) > MAX_URL_BYTES or not url.isascii() or not url.isprintable() or " " in url:
        raise _invalid(f"the endpoint's URL is not ASCII of at most {MAX_URL_BYTES} bytes")
    if parts.scheme != "https" or not parts.hostname:
        raise _invalid("the endpoint's URL is not https (5.2)")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise _invalid("the endpoint's URL has user information or a fragment (5.2.1.1)")
    return parts.hostname, port, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def check_profile(profile: str, endpoint_id: str, own: str) -> None:
    """Raises InvalidError: not a profile, or not with the endpoint ID that it needs."""
    if profile not in (WEB, SPIFFE):
        raise _invalid(f"the profile is {WEB} or {SPIFFE} (5.2)")
    if profile == WEB:
        if endpoint_id:
            raise _invalid(f"an endpoint's SPIFFE ID is of {SPIFFE} alone (5.2.1)")
        return
    name = SpiffeId.parse(endpoint_id)
    if not name.path or name.trust_domain == own:
        raise _invalid("the endpoint's SPIFFE ID has a path and is of another trust domain (5.2.2)")


def check_successor(before: bundle.Bundle, after: bundle.Bundle) -> None:
    """Raises InvalidError: `after` is older."""
    if after.sequence < before.sequence:
        raise InvalidError(
            f"the bundle's sequence went back from {before.sequence} to {after.sequence}",
            rule="identity.sequence",
            next_step="An old bundle may hold keys that were withdrawn. If it is meant, remove the trust domain and"
            " add it again.",
        )


class Federations:
    """All foreign trust domains of one authority, by name.

    Args:
        path: the file; need not exist.
        own: our trust domain.

    Raises:
        NucleusError: rule ``identity.federation``: the file is not what this class writes, or is not ours alone.
    """

    def __init__(self, path: str, own: str) -> None:
        self._path = path
        self._own = own
        self._install(self._load())

    def all(self) -> list[Relationship]:
        """By name."""
        return [self._all[name] for name in sorted(self._all)]

    def get(self, name: object) -> Relationship:
        """Raises InvalidError: there is none."""
        found = self._all.get(name) if isinstance(name, str) else None
        if found is None:
            raise _invalid("there is no federation with that trust domain")
        return found

    def bundles(self, names: Iterable[str]) -> list[bundle.Bundle]:
        """Of those of `names` that there are, by name."""
        return [self._bundles[name] for name in sorted(set(names)) if name in self._bundles]

    def check_new(self, new: Relationship) -> None:
        """Raises InvalidError: there are too many, or it is there."""
        if new.trust_domain in self._all:
            raise _invalid(f"{new.trust_domain} is federated already")
        if len(self._all) >= MAX_DOMAINS:
            raise _invalid(f"there are {MAX_DOMAINS} foreign trust domains already")

    def updated(self, name: object, document: object, now_ns: int) -> Relationship:
        """One with a newer bundle, not kept yet. Raises InvalidError: it is refused, or older."""
        found = self.get(name)
        if not isinstance(document, str):
            raise _invalid("a bundle is text")
        new = replace(found, document=document, fetched_ns=now_ns)
        check_successor(found.bundle(), new.bundle())
        return new

    def put(self, one: Relationship) -> None:
        """Keep it, in the place of what there is. Raises OSError: nothing has changed then."""
        self._replace([*(other for other in self.all() if other.trust_domain != one.trust_domain), one])

    def remove(self, name: str) -> None:
        """Forget it. Raises OSError: nothing has changed then."""
        self._replace([other for other in self.all() if other.trust_domain != name])

    def _replace(self, kept: list[Relationship]) -> None:
        text = json.dumps({"version": 1, "federations": [one.to_wire() for one in kept]}, indent=1) + "\n"
        write_whole(self._path, text.encode())
        self._install(kept)

    def _install(self, kept: list[Relationship]) -> None:
        self._all = {one.trust_domain: one for one in kept}
        self._bundles = {one.trust_domain: one.bundle() for one in kept}

    def _load(self) -> list[Relationship]:
        data = read_whole(self._path, _MAX_FILE_BYTES, _RULE)
        if data is None:
            return []
        try:
            content = json.loads(data)
            if content.keys() != {"version", "federations"} or content["version"] != 1:
                raise ValueError("version")
            found = [self._read(dict(one)) for one in content["federations"]]
            if len({one.trust_domain for one in found}) != len(found):
                raise ValueError("a trust domain is there twice")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, InvalidError) as error:
            raise NucleusError(
                f"the foreign trust domains cannot be read ({error})",
                rule=_RULE,
                next_step=f"Move {self._path} away, and add them again.",
            ) from error
        return found

    def _read(self, fields: dict[str, Any]) -> Relationship:
        fetched_ns = fields.pop("fetched_ns")
        if type(fetched_ns) is not int:
            raise ValueError("fetched_ns")
        return make(fields, self._own, fetched_ns)


class Published:
    """The sequence of our own bundle: higher whenever its content has changed, also after the file was lost.

    Args:
        path: the file; made on first use.

    Raises:
        NucleusError: rule ``identity.federation``: the file is damaged, or is not ours alone.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._digest, self._sequence = "", 0
        data = read_whole(path, 4_096, _RULE)
        if data is None:
            return
        try:
            content = json.loads(data)
            self._digest, self._sequence = str(content["digest"]), int(content["sequence"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise NucleusError("our bundle's sequence cannot be read", rule=_RULE) from error

    def sequence(self, digest: str, now_ns: int) -> int:
        """Of the content with this digest. Raises OSError: it cannot be written, so it is not published."""
        if digest != self._digest:
            # Seconds since the epoch: a lost file does not take it back (Trust_Domain_and_Bundle 4.1.1).
            sequence = max(self._sequence + 1, now_ns // 1_000_000_000)
            write_whole(self._path, json.dumps({"digest": digest, "sequence": sequence}).encode())
            self._digest, self._sequence = digest, sequence
        return self._sequence


def due_ns(one: Relationship) -> int:
    """When to fetch again, nanoseconds since the epoch."""
    return one.fetched_ns + one.bundle().refresh_s * 1_000_000_000


def _invalid(message: str) -> InvalidError:
    return InvalidError(message, rule=_RULE)
