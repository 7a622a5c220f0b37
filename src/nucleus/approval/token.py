"""Approval tokens: HMAC-SHA256 over canonical bytes, bound to one operation of one principal in one pod.

token = hex(payload) "." hex(HMAC-SHA256(key, DOMAIN || payload))
payload = each of {operation hash, principal, pod, nonce, not before, expiry, key id} as u32 length || bytes

Checks of `verify`, in order:
 1. bounded, and exactly the one form
 2. the MAC, in constant time, by each key that is held, before any field is looked at
 3. by the key that it names, of those that are held (`keys`; a restart has others: old tokens are void)
 4. bound to this operation, principal and pod, each compared in constant time
 5. not before its time, and not after
That it is used once is the ledger's to enforce: the nonce burns in the same transaction as the reservation.

Promises: canonical: one claim set has one token. Relies on: a key of 32 random bytes that never leaves the authority.
Does not: read a clock or make randomness. No error says which check failed beyond its rule, and none repeats the token.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from nucleus.errors import DeniedError, InvalidError
from nucleus.limits import LIMITS

DOMAIN = b"nucleus/approval/v1\0"
NONCE_DOMAIN = b"nucleus/approval/nonce/v1\0"
KEY_BYTES = 32
NONCE_BYTES = 32
TTL_NS = 30_000_000_000  # from the decision to the reservation, which follows at once
MAX_TOKEN = 16_384  # characters
_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token says. Times: nanoseconds since the epoch; `not_before_ns` <= now < `expires_ns`."""

    operation_hash: str
    principal: str
    pod: str
    nonce: bytes = field(repr=False)
    not_before_ns: int
    expires_ns: int
    key_id: str

    def with_key(self, key_id: str) -> Claims:
        """The same, of another key."""
        return replace(self, key_id=key_id)


def mint(key: bytes, claims: Claims) -> str:
    """The token. Raises InvalidError for a key, nonce or lifetime that is not as it must be."""
    if len(key) != KEY_BYTES or len(claims.nonce) != NONCE_BYTES:
        raise InvalidError("an approval key and a nonce are 32 bytes", rule="approval.key")
    if not 0 < claims.expires_ns - claims.not_before_ns <= LIMITS.approval_ttl_ns:
        raise InvalidError("an approval lives at most 300 s", rule="approval.ttl")
    payload = _payload(claims)
    return f"{payload.hex()}.{_mac(key, payload).hex()}"


def verify(
    token: str, key: bytes, key_id: str, *, operation_hash: str, principal: str, pod: str, now_ns: int
) -> Claims:
    """The claims of a token that is good for exactly this operation, now.

    Raises:
        DeniedError: it is not (rules ``approval.token``, ``approval.binding``, ``approval.expired``).
    """
    return verify_any(token, {key_id: key}, operation_hash=operation_hash, principal=principal, pod=pod, now_ns=now_ns)


def verify_any(
    token: str, keys: Mapping[str, bytes], *, operation_hash: str, principal: str, pod: str, now_ns: int
) -> Claims:
    """`verify` with several keys by their ids. How long it takes does not say which of them fitted.

    Raises:
        DeniedError: as `verify`.
    """
    payload, mac = _split(token)  # 1
    made_by = ""
    for key_id, key in keys.items():  # 2: all of them, whichever fits
        if hmac.compare_digest(mac, _mac(key, payload)):
            made_by = key_id
    if not made_by:
        raise _bad()
    claims = _parse(payload)
    if not hmac.compare_digest(claims.key_id.encode("utf-8", "surrogatepass"), made_by.encode()):  # 3
        raise _bad()
    wanted = Claims(operation_hash, principal, pod, claims.nonce, claims.not_before_ns, claims.expires_ns, made_by)
    if not hmac.compare_digest(_payload(wanted), payload):  # 4
        raise DeniedError("the approval is for something else", rule="approval.binding")
    if not claims.not_before_ns <= now_ns < claims.expires_ns:  # 5
        raise DeniedError("the approval has expired", rule="approval.expired")
    return claims


def nonce_digest(nonce: bytes) -> bytes:
    """What is stored of a nonce."""
    return hashlib.sha256(NONCE_DOMAIN + nonce).digest()


def _mac(key: bytes, payload: bytes) -> bytes:
    return hmac.digest(key, DOMAIN + payload, "sha256")


def _payload(claims: Claims) -> bytes:
    parts = (
        claims.operation_hash.encode("utf-8", "surrogatepass"),
        claims.principal.encode("utf-8", "surrogatepass"),
        claims.pod.encode("utf-8", "surrogatepass"),
        claims.nonce,
        _U64.pack(claims.not_before_ns),
        _U64.pack(claims.expires_ns),
        claims.key_id.encode("utf-8", "surrogatepass"),
    )
    return b"".join(_U32.pack(len(part)) + part for part in parts)


def _split(token: str) -> tuple[bytes, bytes]:
    if not isinstance(token, str) or len(token) > MAX_TOKEN:
        raise _bad()
    try:
        left, right = token.split(".")
        payload, mac = bytes.fromhex(left), bytes.fromhex(right)
    except ValueError:
        raise _bad() from None
    if f"{payload.hex()}.{mac.hex()}" != token:  # fromhex skips blanks and takes capitals
        raise _bad()
    return payload, mac


def _parse(payload: bytes) -> Claims:
    """Only ever sees bytes that `mint` has authenticated."""
    parts: list[bytes] = []
    at = 0
    while at < len(payload):
        (length,) = _U32.unpack_from(payload, at)
        parts.append(payload[at + 4 : at + 4 + length])
        at += 4 + length
    operation_hash, principal, pod, nonce, begin, end, key_id = parts
    return Claims(
        operation_hash.decode("utf-8", "surrogatepass"),
        principal.decode("utf-8", "surrogatepass"),
        pod.decode("utf-8", "surrogatepass"),
        nonce,
        _U64.unpack(begin)[0],
        _U64.unpack(end)[0],
        key_id.decode("utf-8", "surrogatepass"),
    )


def _bad() -> DeniedError:
    return DeniedError("the approval token is not valid", rule="approval.token")
