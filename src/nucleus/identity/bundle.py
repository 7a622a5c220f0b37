"""A trust domain's bundle in the SPIFFE format: X.509 roots as JWKs (Trust_Domain_and_Bundle 4; X509-SVID 6.1)."""

from __future__ import annotations

import base64
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from nucleus.identity.svid import pem_to_der


def x509_keys(pem: str) -> list[dict[str, Any]]:
    """One JWK for each root: `use` x509-svid, and exactly one certificate in `x5c`.

    Raises:
        InvalidError: not certificates.
    """
    return [_jwk(der) for der in pem_to_der(pem)]


def _jwk(der: bytes) -> dict[str, Any]:
    key = x509.load_der_x509_certificate(der).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)  # our CA makes no other
    size = (key.curve.key_size + 7) // 8
    numbers = key.public_numbers()
    x, y = (base64.urlsafe_b64encode(n.to_bytes(size)).rstrip(b"=").decode() for n in (numbers.x, numbers.y))
    certificate = base64.b64encode(der).decode()
    return {"kty": "EC", "use": "x509-svid", "crv": f"P-{key.curve.key_size}", "x": x, "y": y, "x5c": [certificate]}
