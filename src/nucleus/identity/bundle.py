"""A trust domain's bundle in the SPIFFE format: ours, written; another's, read (Trust_Domain_and_Bundle 4).

Promises of `read`: what comes back is bounded, names its keys once, and holds only keys that can be used: roots that
are certificates of that trust domain (X509-SVID 6.1) and JWT keys that are valid public keys (JWT-SVID 6.2), written
anew from their numbers, so that nothing else of a foreign document reaches a workload's parser.
Relies on: `cryptography` for certificates and keys. Does not: fetch (`bundle_client`), keep (`federation`),
verify SVIDs.

Steps of `read`:
1. size; one JSON object, no member twice [4.1]
2. `spiffe_sequence` and `spiffe_refresh_hint` are whole numbers [4.1.1, 4.1.2]; `keys` is there, bounded [4.1.3]
3. a key without `kty` or `use`, or of a use that is not known, is passed over [4.2.1, 4.2.2]
4. a private part is a refusal: such a key is everybody's
5. x509-svid: one certificate in `x5c`, whose SPIFFE ID, if any, is the trust domain's [X509-SVID 6.1]
6. jwt-svid: a `kid` that no other key has [JWT-SVID 6.2]; types other than EC and RSA are passed over
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from nucleus.errors import InvalidError
from nucleus.identity.svid import pem_to_der

MAX_DOCUMENT_BYTES = 98_304  # with what JSON adds on the way, an answer about one trust domain stays one packet
MAX_KEYS = 64
REFRESH_HINT_S = 300
MIN_REFRESH_S, MAX_REFRESH_S = 10, 86_400
_MAX_CERT_BYTES = 8_192
_MAX_KID_BYTES = 1_024
_CURVES: dict[str, ec.EllipticCurve] = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
_RSA_BITS = (2_048, 8_192)
_PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})  # RFC 7518 6


@dataclass(frozen=True, slots=True)
class Bundle:
    """Another trust domain's keys.

    Args:
        trust_domain: whose, by what was configured: a document does not say it.
        x509: roots, DER.
        jwks: the JWT keys as a JWK set, JSON.
        sequence: 0 where the document has none.
        refresh_s: when to look again: the hint within our bounds.
    """

    trust_domain: str
    x509: tuple[bytes, ...]
    jwks: str
    sequence: int
    refresh_s: int


def document(pem: str, jwks: str, **more: int) -> dict[str, Any]:
    """Our own bundle. Args: the roots; the JWT keys as a JWK set; `more`: ``spiffe_sequence``."""
    return {**more, "spiffe_refresh_hint": REFRESH_HINT_S, "keys": [*x509_keys(pem), *json.loads(jwks)["keys"]]}


def x509_keys(pem: str) -> list[dict[str, Any]]:
    """One JWK for each root: `use` x509-svid, and exactly one certificate in `x5c`.

    Raises:
        InvalidError: not certificates.
    """
    return [_jwk(der) for der in pem_to_der(pem)]


def _jwk(der: bytes) -> dict[str, Any]:
    key = x509.load_der_x509_certificate(der).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)  # our CA makes no other
    certificate = base64.b64encode(der).decode()
    return {"kty": "EC", "use": "x509-svid", **_ec(key), "x5c": [certificate]}


def _ec(key: ec.EllipticCurvePublicKey) -> dict[str, str]:
    size = (key.curve.key_size + 7) // 8
    numbers = key.public_numbers()
    return {"crv": f"P-{key.curve.key_size}", "x": _encode(numbers.x, size), "y": _encode(numbers.y, size)}


def read(text: str | bytes, trust_domain: str) -> Bundle:
    """The bundle of `trust_domain` in a document that came from elsewhere.

    Raises:
        InvalidError: rule ``identity.bundle``: a step of this module does not hold.
    """
    if len(text) > MAX_DOCUMENT_BYTES:  # 1
        raise _broken(f"it is over {MAX_DOCUMENT_BYTES} bytes")
    try:
        content = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _broken("it is not JSON without repeated members") from error
    if not isinstance(content, dict):
        raise _broken("it is not a JSON object")
    sequence = _whole(content, "spiffe_sequence", 0, 1 << 63)  # 2
    hint = _whole(content, "spiffe_refresh_hint", REFRESH_HINT_S, 1 << 31)
    keys = content.get("keys")
    if not isinstance(keys, list) or len(keys) > MAX_KEYS:
        raise _broken(f"it has no array of at most {MAX_KEYS} keys (4.1.3)")
    roots: dict[bytes, None] = {}
    tokens: dict[str, dict[str, str]] = {}
    for key in keys:
        if not isinstance(key, dict):
            raise _broken("a key is not a JSON object (RFC 7517 5)")
        if not (isinstance(key.get("kty"), str) and key["kty"]):  # 3
            continue
        use = key.get("use")
        if use in ("x509-svid", "jwt-svid") and not _PRIVATE.isdisjoint(key):  # 4
            raise _broken("a key shows its private part")
        if use == "x509-svid":
            roots[_root(key, trust_domain)] = None  # 5
        elif use == "jwt-svid":
            _token_key(key, tokens)  # 6
    jwks = json.dumps({"keys": list(tokens.values())}, separators=(",", ":"))
    return Bundle(trust_domain, tuple(roots), jwks, sequence, min(max(hint, MIN_REFRESH_S), MAX_REFRESH_S))


def _root(key: dict[str, Any], trust_domain: str) -> bytes:
    chain = key.get("x5c")
    if not isinstance(chain, list) or len(chain) != 1 or not isinstance(chain[0], str):
        raise _broken("an x509-svid key does not have exactly one certificate in x5c (X509-SVID 6.1)")
    try:
        der = base64.b64decode(chain[0], validate=True)
        if len(der) > _MAX_CERT_BYTES:
            raise ValueError("size")
        cert = x509.load_der_x509_certificate(der)
        names = [name for name in cert.extensions if isinstance(name.value, x509.SubjectAlternativeName)]
        found = [uri for name in names for uri in name.value.get_values_for_type(x509.UniformResourceIdentifier)]
    except Exception as error:  # hostile bytes: a parser may raise anything, and the answer is no
        raise _broken("the certificate of an x509-svid key cannot be read (X509-SVID 6.1)") from error
    if found and found != [f"spiffe://{trust_domain}"]:
        raise _broken(f"a root's SPIFFE ID is not that of {trust_domain} (X509-SVID 3.2)")
    return der


def _token_key(key: dict[str, Any], found: dict[str, dict[str, str]]) -> None:
    kid = key.get("kid")
    if not isinstance(kid, str) or not 1 <= len(kid.encode("utf-8", "replace")) <= _MAX_KID_BYTES:
        raise _broken("a jwt-svid key has no kid (JWT-SVID 6.2)")
    if kid in found:
        raise _broken("two jwt-svid keys have one kid (JWT-SVID 6.2)")
    try:
        numbers = _public(key)
    except (KeyError, ValueError, TypeError) as error:
        raise _broken("a jwt-svid key is no public key (RFC 7518 6)") from error
    if numbers is not None:
        found[kid] = {"kty": key["kty"], "use": "jwt-svid", "kid": kid, **numbers}


def _public(key: dict[str, Any]) -> dict[str, str] | None:
    """The key's members, from its numbers; None: of a type that we do not know."""
    if key["kty"] == "EC" and key.get("crv") in _CURVES:
        x, y = (_decode(key[name]) for name in ("x", "y"))
        return _ec(ec.EllipticCurvePublicNumbers(x, y, _CURVES[key["crv"]]).public_key())
    if key["kty"] == "RSA":
        n, e = (_decode(key[name]) for name in ("n", "e"))
        if not _RSA_BITS[0] <= n.bit_length() <= _RSA_BITS[1]:
            raise ValueError("size")
        rsa.RSAPublicNumbers(e, n).public_key()
        return {"n": _encode(n, (n.bit_length() + 7) // 8), "e": _encode(e, (e.bit_length() + 7) // 8)}
    return None


def _whole(content: dict[str, Any], name: str, missing: int, limit: int) -> int:
    value = content.get(name, missing)
    if type(value) is not int or not 0 <= value < limit:
        raise _broken(f"{name} is not a whole number (4.1)")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a member is repeated")
    return found


def _no_constant(_: str) -> Any:
    raise ValueError("not a JSON number")


def _encode(number: int, size: int) -> str:
    return base64.urlsafe_b64encode(number.to_bytes(size)).rstrip(b"=").decode("ascii")


def _decode(text: Any) -> int:
    if not isinstance(text, str) or not text or not set("=+/").isdisjoint(text):
        raise ValueError("not base64url")
    try:
        return int.from_bytes(base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True))
    except binascii.Error as error:
        raise ValueError("not base64url") from error


def _broken(why: str) -> InvalidError:
    return InvalidError(f"the trust bundle is refused: {why}", rule="identity.bundle")
