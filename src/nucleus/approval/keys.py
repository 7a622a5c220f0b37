"""The keys of approval tokens: one that mints, and those before it, each for as long as a token of it may live.

Promises: a key mints for `LIFE_NS` at most; one that is replaced (by age, or because a person says so) mints nothing
from that moment on, and verifies until the last token that it minted has expired by the monotonic clock, then it is
forgotten. A token of a key that is not held is refused as a forged one is: each key that is held is tried.
Relies on: the caller, for randomness and the clock (monotonic nanoseconds: no wall clock lengthens a key's life).
Does not: keep a key on disk. A restart has new ones, and every token before it is void.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from nucleus.approval import token
from nucleus.errors import InvalidError

LIFE_NS = 3_600_000_000_000  # a new key every hour in which anybody is asked
MAX_KEYS = 8  # held at a time: each rotation within one token's life adds one


@dataclass(frozen=True, slots=True)
class Key:
    """`ends_ns`: when it is forgotten, monotonic; 0 for the one that mints."""

    key_id: str
    key: bytes = field(repr=False)
    made_ns: int
    ends_ns: int = 0


class Keys:
    """See the module.

    Args:
        fresh: `n` random bytes.
        mono_ns: now.
    """

    def __init__(self, fresh: Callable[[int], bytes], mono_ns: int) -> None:
        self._fresh = fresh
        self._current = self._new(mono_ns)
        self._before: list[Key] = []

    def __repr__(self) -> str:
        return f"<Keys, minting with {self._current.key_id}, {len(self._before)} before it>"

    @property
    def key_id(self) -> str:
        """Of the key that mints."""
        return self._current.key_id

    def __len__(self) -> int:
        return 1 + len(self._before)

    def rotate(self, mono_ns: int) -> None:
        """Another key mints from now on. Raises InvalidError: too many are held; the first of them ends within 30 s."""
        self._forget(mono_ns)
        if len(self) >= MAX_KEYS:
            raise InvalidError(
                f"{MAX_KEYS} keys are held already",
                rule="approval.keys",
                next_step="Wait half a minute: each ends with the last token that it made.",
            )
        old = self._current
        self._before.append(Key(old.key_id, old.key, old.made_ns, mono_ns + token.TTL_NS))
        self._current = self._new(mono_ns)

    def maintain(self, mono_ns: int) -> None:
        """Forget what has ended, and rotate where the time has come."""
        self._forget(mono_ns)
        if mono_ns - self._current.made_ns >= LIFE_NS and len(self) < MAX_KEYS:
            self.rotate(mono_ns)

    def mint(self, claims: token.Claims, mono_ns: int) -> str:
        """The token of `claims`, whose `key_id` is set here."""
        self.maintain(mono_ns)
        return token.mint(self._current.key, claims.with_key(self._current.key_id))

    def verify(
        self, text: str, *, operation_hash: str, principal: str, pod: str, now_ns: int, mono_ns: int
    ) -> token.Claims:
        """See `token.verify`. Raises DeniedError."""
        self._forget(mono_ns)
        held = {one.key_id: one.key for one in (self._current, *self._before)}
        return token.verify_any(text, held, operation_hash=operation_hash, principal=principal, pod=pod, now_ns=now_ns)

    def _new(self, mono_ns: int) -> Key:
        return Key(self._fresh(8).hex(), self._fresh(token.KEY_BYTES), mono_ns)

    def _forget(self, mono_ns: int) -> None:
        self._before = [one for one in self._before if mono_ns < one.ends_ns]
