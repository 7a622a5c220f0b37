"""The keys that sign JWT-SVIDs: ECDSA P-256, renewed by themselves, kept in one file of the authority's.

Promises: a key is in the bundle for `PUBLISH_NS` before it signs (but for the very first), and stays there for hours
after its last token has expired; no `repr` shows one. The file is replaced whole, 0600.
Relies on: the authority's lock on its state; the caller's clock. Not thread-safe.
Does not: share a key with the X.509 CA.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from nucleus.errors import NucleusError
from nucleus.identity.entries import read_whole, write_whole
from nucleus.identity.jwt_svid import thumbprint
from nucleus.identity.keys import Keys

HOUR_NS = 3_600_000_000_000
KEY_TTL_NS = 24 * HOUR_NS
RENEW_NS = 12 * HOUR_NS  # the next one is made when the newest is this old
PUBLISH_NS = HOUR_NS
_MAX_KEYS = 16
_MAX_FILE_BYTES = 65_536
_RULE = "identity.jwt_keys"


@dataclass(frozen=True, slots=True)
class _Key:
    kid: str
    made_ns: int
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    kept: str = field(repr=False)  # as `keys` has it


class JwtKeys:
    """See the module.

    Args:
        path: the file; made on first use.
        now: nanoseconds since the epoch.
        keys: where private keys are made and kept; default: in the file.

    Raises:
        NucleusError: rule ``identity.jwt_keys``: the file is damaged or not ours alone.
        OSError: it cannot be written.
    """

    def __init__(self, path: str, *, now: int, keys: Keys | None = None) -> None:
        self._path = path
        self._made_by = keys or Keys()
        self._keys = self._load()
        self.maintain(now)

    def __repr__(self) -> str:
        return f"<JwtKeys {len(self._keys)}>"

    def public(self, now: int) -> dict[str, ec.EllipticCurvePublicKey]:
        """Every key that counts, by ID, the newest first."""
        self.maintain(now)
        return {key.kid: key.key.public_key() for key in reversed(self._keys)}

    def signer(self, now: int) -> tuple[str, ec.EllipticCurvePrivateKey]:
        """The newest key that every validator knows; where there is none, the oldest."""
        self.maintain(now)
        known = [key for key in self._keys if key.made_ns + PUBLISH_NS <= now]
        chosen = known[-1] if known else self._keys[0]
        return chosen.kid, chosen.key

    def maintain(self, now: int) -> None:
        """Drop what is over, make the next one when it is due; cheap when nothing is."""
        live = [key for key in self._keys if now < key.made_ns + KEY_TTL_NS]
        # One from the future: the clock went back. It counts, but not as the newest.
        if not any(now - RENEW_NS < key.made_ns <= now for key in live):
            if len(live) >= _MAX_KEYS:
                raise NucleusError(f"{len(live)} live JWT keys: is the clock jumping?", rule=_RULE)
            try:
                key, kept = self._made_by.make(f"nucleus jwt {now}")
            except NucleusError:  # a token that is gone: those that live are as good as before
                if not live:
                    raise
            else:
                live.append(_Key(thumbprint(key.public_key()), now, key, kept.decode("ascii")))
                live.sort(key=lambda one: one.made_ns)
        if live != self._keys:
            self._write(live)
            for gone in [one for one in self._keys if one not in live]:
                self._made_by.remove(gone.kept.encode())
            self._keys = live

    def _write(self, keys: list[_Key]) -> None:
        content = [{"made_ns": one.made_ns, "pkcs8": one.kept} for one in keys]
        write_whole(self._path, json.dumps({"version": 1, "keys": content}).encode())

    def _load(self) -> list[_Key]:
        data = read_whole(self._path, _MAX_FILE_BYTES, _RULE)
        if data is None:
            return []
        try:
            content = json.loads(data)
            if content.keys() != {"version", "keys"} or content["version"] != 1:
                raise ValueError("version")
            return sorted((self._parse(one) for one in content["keys"]), key=lambda one: one.made_ns)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            # What is wrong with it is not said: the message must not hold a part of a key.
            raise NucleusError(
                "the JWT keys cannot be read",
                rule=_RULE,
                next_step=f"Move {self._path} away: new keys are made, and tokens that are out become invalid.",
            ) from error

    def _parse(self, fields: dict[str, Any]) -> _Key:
        kept = fields["pkcs8"]
        key = self._made_by.load(kept.encode("ascii"))
        if type(fields["made_ns"]) is not int:
            raise ValueError("made_ns")
        return _Key(thumbprint(key.public_key()), fields["made_ns"], key, kept)
