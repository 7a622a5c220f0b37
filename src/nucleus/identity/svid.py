"""An X.509-SVID as it is handed over: certificate, private key, trust bundle, all PEM text.

Promises: no `repr` shows the key. Relies on nothing heavy: PEM is armour around base64, so no ssl or cryptography.
Does not: check a certificate; holding one of these proves nothing (`verify` does).
"""

from __future__ import annotations

import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nucleus.errors import InvalidError
from nucleus.identity.spiffe_id import SpiffeId

Roots = Mapping[str, Sequence[bytes]]
"""Trust domain -> its root certificates (DER). A root counts for its own trust domain and for no other."""

MAX_PEM_BYTES = 131_072
_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


@dataclass(frozen=True, slots=True)
class X509Svid:
    """One identity document.

    Args:
        spiffe_id: whose it is.
        cert_pem: the leaf first, then intermediates if any.
        key_pem: PKCS#8, unencrypted; "" when the holder made its own key (`issue_for_csr`).
        bundle_pem: the trust domain's roots.
        expires_ns: when the leaf ends, nanoseconds since the epoch.
        issued_ns: when it was issued, or received.
        serial: the leaf's serial number, where its issuer holds it; 0 once it came over a wire.
    """

    spiffe_id: SpiffeId
    cert_pem: str
    key_pem: str = field(repr=False)
    bundle_pem: str = field(repr=False)
    expires_ns: int
    issued_ns: int
    serial: int = field(default=0, compare=False)

    def roots(self) -> dict[str, tuple[bytes, ...]]:
        """The bundle as `Roots`: this SVID's own trust domain and nothing else."""
        return {self.spiffe_id.trust_domain: tuple(pem_to_der(self.bundle_pem))}

    def renew_at_ns(self) -> int:
        """When to fetch the next one: half-way through this one's life (as SPIRE does)."""
        return self.issued_ns + (self.expires_ns - self.issued_ns) // 2

    def to_wire(self) -> dict[str, Any]:
        """The answer of `svid` and `fetch_x509_svid` (docs/design.md). Holds the private key."""
        return {
            "spiffe_id": str(self.spiffe_id),
            "cert_pem": self.cert_pem,
            "key_pem": self.key_pem,
            "bundle_pem": self.bundle_pem,
            "expires_ns": self.expires_ns,
        }

    @classmethod
    def from_wire(cls, fields: Mapping[str, Any], *, now: int) -> X509Svid:
        """Read `to_wire`'s form, received at `now` (nanoseconds since the epoch), which becomes `issued_ns`.

        Raises:
            InvalidError: a field is missing, of the wrong type or oversize. Values are never repeated in the error.
        """
        texts = [fields.get(name) for name in ("spiffe_id", "cert_pem", "key_pem", "bundle_pem")]
        if not all(isinstance(text, str) and len(text) <= MAX_PEM_BYTES for text in texts):
            raise InvalidError("SVID fields are not bounded text", rule="svid.wire")
        expires_ns = fields.get("expires_ns")
        if type(expires_ns) is not int:
            raise InvalidError("expires_ns is not an integer", rule="svid.wire")
        spiffe_id, cert_pem, key_pem, bundle_pem = (str(text) for text in texts)
        return cls(SpiffeId.parse(spiffe_id), cert_pem, key_pem, bundle_pem, expires_ns, now)


def pem_to_der(pem: str) -> list[bytes]:
    """The certificates in `pem`, in order, as DER.

    Raises:
        InvalidError: no certificate, broken armour, broken base64, anything but certificates, or oversize.
    """
    if len(pem) > MAX_PEM_BYTES:
        raise InvalidError(f"PEM over {MAX_PEM_BYTES} bytes", rule="svid.pem")
    found: list[bytes] = []
    rest = pem.strip()
    while rest:
        if not rest.startswith(_BEGIN) or _END not in rest:
            raise InvalidError("PEM has something that is not a certificate", rule="svid.pem")
        body, _, rest = rest[len(_BEGIN) :].partition(_END)
        try:
            found.append(binascii.a2b_base64("".join(body.split()), strict_mode=True))
        except (binascii.Error, ValueError) as error:
            raise InvalidError("PEM is not base64", rule="svid.pem") from error
        rest = rest.lstrip()
    if not found:
        raise InvalidError("PEM has no certificate", rule="svid.pem")
    return found
