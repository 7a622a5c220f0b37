"""A CA below another one: our signing key has a certificate of an offline root, which signs nothing else of ours.

Files, in the CA's directory: ``upstream-pending.key`` (a request is out for it), ``upstream-<installed, ns>.key`` and
``.pem`` (the chain: ours first, perhaps others, the root last).

Steps by which a chain is taken:
 1. it is PEM certificates, at most `MAX_CHAIN`, and nothing else that counts
 2. the first is of the key that waits
 3. each is issued by the next, the last by itself; all are CAs that may sign certificates, with room below them, and
    have what OpenSSL's strict check wants of a CA (RFC 5280: both key identifiers, names, critical basic constraints)
 4. where ours has URI names, they are one: the trust domain's own ID (X509-SVID, section 2)
 5. it lives for another hour at least
 6. an SVID that it would sign is verified, with our own verifier, against this root alone
Promises: what fails a step changes nothing; the root's key is never here.
Does not: say when it signs (`ca` does: a root that peers do not know yet is published a day before).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtensionOID, NameOID

from nucleus.errors import InvalidError, UnauthenticatedError

if TYPE_CHECKING:
    from nucleus.identity.spiffe_id import SpiffeId

MAX_CHAIN = 4
MAX_BYTES = 16_384
LEAST_NS = 3_600_000_000_000
PENDING = "upstream-pending"
PREFIX = "upstream-"


@dataclass(frozen=True, slots=True)
class Chain:
    """Our certificate, those between it and the root, the root; and how long all of them live."""

    issuing: x509.Certificate
    between: tuple[x509.Certificate, ...]
    root: x509.Certificate
    key: ec.EllipticCurvePrivateKey | None = field(repr=False)

    @property
    def expires_s(self) -> int:
        """Seconds since the epoch: the first of them ends."""
        return min(round(one.not_valid_after_utc.timestamp()) for one in (self.issuing, *self.between, self.root))

    @property
    def served(self) -> str:
        """What goes with a leaf: all but the root, PEM."""
        return "".join(_pem(one) for one in (self.issuing, *self.between))

    @property
    def published(self) -> str:
        """What goes into the bundle: the root, PEM."""
        return _pem(self.root)

    @property
    def text(self) -> bytes:
        """As it is kept."""
        return (self.served + self.published).encode("ascii")


def request(key: ec.EllipticCurvePrivateKey, trust_domain: SpiffeId) -> str:
    """The certificate signing request, PEM: a CA of this trust domain, with nothing below it but leaves."""
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Nucleus")]))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(trust_domain))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
        .decode("ascii")
    )


def read(data: bytes, key: ec.EllipticCurvePrivateKey | None, trust_domain: SpiffeId) -> Chain:
    """Steps 1 to 4. `key` None: it is gone, because another one signs by now.

    Raises:
        InvalidError: rule ``identity.upstream``.
    """
    try:
        if len(data) > MAX_BYTES:
            raise _wrong(f"longer than {MAX_BYTES} bytes")
        found = x509.load_pem_x509_certificates(data)  # 1
    except ValueError:
        raise _wrong("not certificates in PEM") from None
    if not 2 <= len(found) <= MAX_CHAIN:
        raise _wrong(f"a chain has 2 to {MAX_CHAIN} certificates, ours first and the root last: {len(found)} found")
    if key is not None and found[0].public_key() != key.public_key():  # 2
        raise _wrong("the first certificate is not of the key that was requested for")
    for depth, one in enumerate(found):  # 3
        try:
            one.verify_directly_issued_by(found[min(depth + 1, len(found) - 1)])
        except (ValueError, TypeError, InvalidSignature):
            whose = "by itself" if depth == len(found) - 1 else "by the next one"
            raise _wrong(f"certificate {depth + 1} is not issued {whose}") from None
        _check_ca(one, depth)
    _check_names(found[0], trust_domain)  # 4
    return Chain(found[0], tuple(found[1:-1]), found[-1], key)


def check(chain: Chain, leaf_der: bytes, trust_domain: SpiffeId, now: int) -> None:
    """Steps 5 and 6, with an SVID that it has signed for nobody. Raises InvalidError."""
    from nucleus.identity.verify import verify_svid

    if chain.expires_s * 1_000_000_000 < now + LEAST_NS:  # 5
        raise _wrong("it ends within the hour")
    der = [one.public_bytes(serialization.Encoding.DER) for one in (chain.issuing, *chain.between)]
    roots = {trust_domain.trust_domain: (chain.root.public_bytes(serialization.Encoding.DER),)}
    try:
        verify_svid([leaf_der, *der], roots, now, role="client")  # 6
    except UnauthenticatedError as error:
        raise _wrong(f"an SVID of it would not verify: {error.message}") from None


def _check_ca(one: x509.Certificate, below: int) -> None:
    try:
        constraints = one.extensions.get_extension_for_class(x509.BasicConstraints)
        basic = constraints.value
        usage = one.extensions.get_extension_for_class(x509.KeyUsage).value
    except (x509.ExtensionNotFound, ValueError):
        raise _wrong(f"certificate {below + 1} does not say that it is a CA") from None
    kinds = {extension.oid: extension.critical for extension in one.extensions}
    identifiers = [ExtensionOID.SUBJECT_KEY_IDENTIFIER]
    if one.issuer != one.subject:
        identifiers.append(ExtensionOID.AUTHORITY_KEY_IDENTIFIER)
    if any(kinds.get(oid, True) for oid in identifiers):
        raise _wrong(f"certificate {below + 1} lacks a key identifier (RFC 5280, 4.2.1.1 and 4.2.1.2)")
    if not constraints.critical or not one.subject.rdns or not one.issuer.rdns:
        raise _wrong(
            f"certificate {below + 1} has no name, or basic constraints that are not critical (RFC 5280, 4.2.1.9)"
        )
    if not basic.ca or not usage.key_cert_sign:
        raise _wrong(f"certificate {below + 1} may not sign certificates")
    if basic.path_length is not None and basic.path_length < below:
        raise _wrong(f"certificate {below + 1} allows {basic.path_length} CAs below it, {below} are")


def _check_names(one: x509.Certificate, trust_domain: SpiffeId) -> None:
    try:
        names = one.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if uris and uris != [str(trust_domain)]:
        raise _wrong(f"its URI name is not {trust_domain}")


def _pem(one: x509.Certificate) -> str:
    return one.public_bytes(serialization.Encoding.PEM).decode("ascii")


def _wrong(why: str) -> InvalidError:
    return InvalidError(
        f"the chain cannot be taken: {why}",
        rule="identity.upstream",
        next_step="Have the request signed as a CA (`nucleus identity ca`), ours first in the file, the root last.",
    )
