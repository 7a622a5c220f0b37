"""JWT-SVIDs: signed with ES256, validated strictly (JWT-SVID; RFC 7515, 7517, 7518, 7519).

Promises: a token that `validate` accepts was signed with ES256 by a key of its own trust domain's bundle, names one
SPIFFE ID of that domain, is for the audience that was asked for, and has not expired. Anything else is an
`UnauthenticatedError` whose message names the clause; also for bytes that were never a token.
Relies on: `cryptography` for ECDSA alone. Compact form and JSON are read here, stricter than JOSE libraries do: there
is one algorithm, so there is nothing to confuse (no ``none``, no HMAC with a public key, no key from the header).
Does not: hold keys (`jwt_keys`), or say what the ID may do.

Steps of `validate`:
1. size, before anything is decoded; ASCII; three parts, unpadded canonical base64url [JWT-SVID 5.1, RFC 7515]
2. header: one JSON object without repeated members; `alg` is ES256 [2.1]; `typ`, if any, JWT or JOSE [2.3]; no `crit`
3. claims: one JSON object; `sub` a SPIFFE ID with a path [3.1]; `aud` [3.2]; `exp`, `nbf`, `iat` numbers [3.3]
4. key: of `sub`'s own trust domain, by `kid`; without a kid any of them [2.2, 6.2]
5. signature over the exact bytes that came
6. time: `exp` is not behind by more than `SKEW_NS`, `nbf` and `iat` not ahead by more; life at most `MAX_LIFE_NS`
7. the expected audience is one of `aud` [3.2, 4]
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from nucleus.errors import InvalidError, UnauthenticatedError
from nucleus.identity.spiffe_id import SpiffeId

SECOND_NS = 1_000_000_000
TTL_NS = 300 * SECOND_NS
SKEW_NS = 60 * SECOND_NS
MAX_LIFE_NS = 24 * 3_600 * SECOND_NS  # of a token that we accept, whoever made it
MAX_TOKEN_BYTES = 8_192
MAX_AUDIENCES = 16
MAX_KEYS_TRIED = 16  # of a bundle, for a token that names none
MAX_AUDIENCE_BYTES = 1_024
_COORDINATE = 32  # bytes of P-256

JwtRoots = Mapping[str, Mapping[str, ec.EllipticCurvePublicKey]]
"""Trust domain -> key ID -> public key."""


@dataclass(frozen=True, slots=True)
class JwtSvid:
    """A validated token's words."""

    spiffe_id: SpiffeId
    audience: tuple[str, ...]
    expires_ns: int
    claims: dict[str, Any]


def check_audience(audience: object) -> tuple[str, ...]:
    """The audiences of a request: at least one, bounded, none empty, none twice.

    Raises:
        InvalidError: otherwise (JWT-SVID 3.2: a token without audience is never issued).
    """
    if not isinstance(audience, list | tuple) or not 1 <= len(audience) <= MAX_AUDIENCES:
        raise InvalidError(f"1 to {MAX_AUDIENCES} audiences are required (JWT-SVID 3.2)", rule="jwt.audience")
    for one in audience:
        if not isinstance(one, str) or not one or len(one.encode("utf-8", "replace")) > MAX_AUDIENCE_BYTES:
            raise InvalidError(f"an audience is 1 to {MAX_AUDIENCE_BYTES} bytes of text", rule="jwt.audience")
        if not one.isprintable():
            raise InvalidError("an audience is printable", rule="jwt.audience")
    return tuple(dict.fromkeys(audience))


def sign(
    spiffe_id: SpiffeId,
    audience: Sequence[str],
    key: ec.EllipticCurvePrivateKey,
    kid: str,
    *,
    now: int,
    ttl_ns: int = TTL_NS,
) -> str:
    """A JWT-SVID in compact form.

    Args:
        spiffe_id: the subject, with a path.
        audience: from `check_audience`.
        key: on P-256; kid: its name in the bundle.
        now: nanoseconds since the epoch; ttl_ns: the token's life.

    Raises:
        InvalidError: the ID has no path, or there is no audience.
    """
    if not spiffe_id.path:
        raise InvalidError("a workload's ID has a path", rule="identity.path")
    issued = now // SECOND_NS
    claims = {
        "aud": list(check_audience(audience)),
        "exp": issued + ttl_ns // SECOND_NS,
        "iat": issued,
        "sub": str(spiffe_id),
    }
    signed = f"{_packed({'alg': 'ES256', 'kid': kid, 'typ': 'JWT'})}.{_packed(claims)}"
    r, s = decode_dss_signature(key.sign(signed.encode("ascii"), ec.ECDSA(hashes.SHA256())))
    return f"{signed}.{_encode(r.to_bytes(_COORDINATE) + s.to_bytes(_COORDINATE))}"


def validate(token: str, audience: str, roots: JwtRoots, now: int) -> JwtSvid:
    """The proven words of a token.

    Args:
        token: compact form, hostile.
        audience: what the caller is called; one of the token's.
        roots: the keys that count, by trust domain.
        now: nanoseconds since the epoch.

    Raises:
        UnauthenticatedError: a step of this module does not hold. The token is not repeated in the message.
    """
    head, body, signature, signed = _parts(token)  # 1
    header = _object(head, "header")
    if header.get("alg") != "ES256":  # 2
        raise _refuse("algorithm", "the token's alg is not ES256, which is the only one of this trust domain (2.1)")
    if header.get("typ", "JWT") not in ("JWT", "JOSE"):
        raise _refuse("type", "the token's typ is neither JWT nor JOSE (2.3)")
    if "crit" in header:
        raise _refuse("critical", "the token's header has critical extensions (RFC 7515 4.1.11)")
    claims = _object(body, "claims")
    spiffe_id = _subject(claims)  # 3
    found = _audience(claims)
    times = {name: _date(claims, name) for name in ("exp", "nbf", "iat")}
    if times["exp"] is None:
        raise _refuse("expiry", "the token has no exp (3.3)")
    _check_signature(spiffe_id, header, roots, signature, signed)  # 4, 5
    _check_times(times["exp"], times["nbf"], times["iat"], now)  # 6
    if not audience or audience not in found:  # 7
        raise _refuse("audience", "the token is not for this audience (3.2)")
    return JwtSvid(spiffe_id, found, times["exp"], claims)


def issued_ns(token: JwtSvid) -> int:
    """When a validated token says that it was issued, nanoseconds since the epoch; 0: it does not say."""
    return _date(token.claims, "iat") or 0


def jwks(keys: Mapping[str, ec.EllipticCurvePublicKey], **more: Any) -> dict[str, Any]:
    """A bundle of JWT keys (JWT-SVID 6.1; SPIFFE_Trust_Domain_and_Bundle 4)."""
    return {"keys": [_jwk(key, kid) for kid, key in keys.items()], **more}


def _jwk(key: ec.EllipticCurvePublicKey, kid: str) -> dict[str, str]:
    numbers = key.public_numbers()
    x, y = (_encode(number.to_bytes(_COORDINATE)) for number in (numbers.x, numbers.y))
    return {"kty": "EC", "use": "jwt-svid", "kid": kid, "crv": "P-256", "alg": "ES256", "x": x, "y": y}


def thumbprint(key: ec.EllipticCurvePublicKey) -> str:
    """The key's name: its JWK thumbprint (RFC 7638)."""
    jwk = _jwk(key, "")
    digest = hashes.Hash(hashes.SHA256())
    digest.update(json.dumps({name: jwk[name] for name in ("crv", "kty", "x", "y")}, separators=(",", ":")).encode())
    return _encode(digest.finalize())


def read_jwks(data: bytes | str) -> dict[str, ec.EllipticCurvePublicKey]:
    """The keys of a bundle that can have signed a JWT-SVID; others are passed over (JWT-SVID 6.2).

    Raises:
        InvalidError: it is no JWK set.
    """
    try:
        content = json.loads(data)
        listed = content["keys"]
        if not isinstance(listed, list) or len(listed) > 256:
            raise ValueError("keys")
        found: dict[str, ec.EllipticCurvePublicKey] = {}
        for one in listed:
            if one.get("use") != "jwt-svid" or one.get("kty") != "EC" or one.get("crv") != "P-256":
                continue
            kid = one["kid"]
            if not isinstance(kid, str) or not kid or kid in found:
                raise ValueError("kid")
            x, y = (int.from_bytes(_decode(one[name])) for name in ("x", "y"))
            found[kid] = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidError("the bundle is not a JWK set (JWT-SVID 6.2)", rule="jwt.bundle") from error
    return found


# -- reading what is hostile ---------------------------------------------------------------------------------------


def _parts(token: object) -> tuple[bytes, bytes, bytes, bytes]:
    if not isinstance(token, str) or not token.isascii() or len(token) > MAX_TOKEN_BYTES:
        raise _refuse("size", f"the token is not ASCII of at most {MAX_TOKEN_BYTES} bytes (5.1)")
    parts = token.split(".")
    if len(parts) != 3 or not all(parts):
        raise _refuse("form", "the token is not a signed JWT in compact form: three parts with dots between (5.1)")
    try:
        head, body, signature = (_decode(part) for part in parts)
    except ValueError as error:
        raise _refuse("form", "a part of the token is not base64url (5.1, RFC 7515 2)") from error
    return head, body, signature, token.rpartition(".")[0].encode("ascii")


def _object(data: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _refuse("json", f"the token's {what} is not JSON without repeated members (RFC 7515 4)") from error
    if not isinstance(value, dict):
        raise _refuse("json", f"the token's {what} is not a JSON object (RFC 7515 4)")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a member is repeated")
    return found


def _no_constant(_: str) -> Any:
    raise ValueError("not a JSON number")


def _subject(claims: dict[str, Any]) -> SpiffeId:
    subject = claims.get("sub")
    try:
        if not isinstance(subject, str):
            raise InvalidError("it is missing")
        spiffe_id = SpiffeId.parse(subject)
    except InvalidError as error:
        raise _refuse("subject", f"the token's sub is not a SPIFFE ID: {error.message} (3.1)") from error
    if not spiffe_id.path:
        raise _refuse("subject", "the token's sub is a trust domain, not a workload (3.1)")
    return spiffe_id


def _audience(claims: dict[str, Any]) -> tuple[str, ...]:
    found = claims.get("aud")
    listed = [found] if isinstance(found, str) else found
    if not isinstance(listed, list) or not listed or not all(isinstance(one, str) and one for one in listed):
        raise _refuse("audience", "the token has no aud, or one that is not text (3.2)")
    return tuple(listed)


def _date(claims: dict[str, Any], name: str) -> int | None:
    """A NumericDate as nanoseconds; fractions count, as RFC 7519 2 allows them."""
    value = claims.get(name)
    if value is None and name not in claims:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1 << 40:
        raise _refuse("time", f"the token's {name} is not a date (RFC 7519 2)")
    return int(value * SECOND_NS)


def _check_signature(
    spiffe_id: SpiffeId, header: dict[str, Any], roots: JwtRoots, signature: bytes, signed: bytes
) -> None:
    keys = roots.get(spiffe_id.trust_domain)
    if not keys:
        raise _refuse("trust_domain", "no bundle for the trust domain of the token's sub (4)")
    kid = header.get("kid")
    # A kid is optional: without one, any key of the bundle may have signed.
    tried = [keys[kid]] if isinstance(kid, str) and kid in keys else list(keys.values()) if "kid" not in header else []
    if not tried:
        raise _refuse("key", "the token's kid names no key of its trust domain's bundle (2.2)")
    if len(signature) != 2 * _COORDINATE:
        raise _refuse("signature", "the token's signature is not of ES256's length (RFC 7518 3.4)")
    r, s = (int.from_bytes(part) for part in (signature[:_COORDINATE], signature[_COORDINATE:]))
    for key in tried[:MAX_KEYS_TRIED]:
        try:
            key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            continue
        return
    raise _refuse("signature", "the token's signature does not verify (4)")


def _check_times(expires: int, not_before: int | None, issued: int | None, now: int) -> None:
    if now >= expires + SKEW_NS:
        raise _refuse("expired", "the token has expired (3.3)")
    for name, start in (("nbf", not_before), ("iat", issued)):
        if start is not None and start > now + SKEW_NS:
            raise _refuse("not_yet_valid", f"the token's {name} lies ahead (4, RFC 7519 4.1)")
    if expires > now + MAX_LIFE_NS + SKEW_NS:
        raise _refuse("life", "the token lives for more than a day (3.3)")


def _packed(value: dict[str, Any]) -> str:
    return _encode(json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8"))


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _decode(text: str) -> bytes:
    """Unpadded base64url; ValueError on padding, other characters, or bits left over (two spellings of one token)."""
    if not isinstance(text, str) or "=" in text or "+" in text or "/" in text:
        raise ValueError("not base64url")
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError("not base64url") from error
    if _encode(data) != text:
        raise ValueError("not canonical")
    return data


def _refuse(rule: str, message: str) -> UnauthenticatedError:
    return UnauthenticatedError(message, rule=f"jwt.{rule}")
