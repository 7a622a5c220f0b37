"""Verify a peer's X.509-SVID against the roots of that peer's own trust domain.

Promises: an ID comes back only when every rule below held; anything else is an `UnauthenticatedError` whose `rule`
names the one that did not. Also for bytes that were never a certificate.
Relies on: `cryptography` for path building and signatures; on TLS for the proof that the peer holds the leaf's key.
Does not: revocation (`revocation`, which knows the serial number that `prove` returns), or say what the ID may do.

Rules (X509-SVID sections in brackets; RFC 5280 for the path):
1. chain: 1 to `MAX_CHAIN` certificates of at most `MAX_CERT_BYTES` each; DER and nothing after it; version 3
2. leaf: exactly one URI SAN, a SPIFFE ID with a path [2, 3.1]; SAN critical when the subject is empty [3.1]
3. leaf: not a CA [4.1]; key usage present, critical, with digitalSignature and without keyCertSign, cRLSign [4.3];
   extended key usage, if present, includes the peer's role [4.4]
4. roots: only those of the leaf's own trust domain; none is a refusal
5. path: to one of those roots; unknown critical extensions and name constraints that cannot be checked refuse
6. every issuer on the path: CA, critical basic constraints and keyCertSign; its SPIFFE ID, if any, is the trust
   domain's, without a path [3.2; stricter than its SHOULD]
7. every certificate on the path: ECDSA on P-256 or P-384, signed with ECDSA and SHA-256 or SHA-384
8. every certificate on the path is valid now; not_before may lie `SKEW_NS` ahead, not_after never behind
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID, SignatureAlgorithmOID

from nucleus.errors import InvalidError, UnauthenticatedError
from nucleus.identity.spiffe_id import SpiffeId
from nucleus.identity.svid import Roots

Role = Literal["client", "server"]
MAX_CHAIN = 4  # leaf, two intermediates, root
MAX_CERT_BYTES = 8_192
MAX_ROOTS = 64
SKEW_NS = 60_000_000_000  # 60 s
_SECOND_NS = 1_000_000_000
_EKU = {"client": ExtendedKeyUsageOID.CLIENT_AUTH, "server": ExtendedKeyUsageOID.SERVER_AUTH}
_SIGNATURES = frozenset({SignatureAlgorithmOID.ECDSA_WITH_SHA256, SignatureAlgorithmOID.ECDSA_WITH_SHA384})
_T = TypeVar("_T", bound=x509.ExtensionType)


class Proven(NamedTuple):
    """What a chain has proved: whose it is, its leaf's serial number, and the first end of a certificate on the path.

    `expires_ns` is the first nanosecond (since the epoch) at which the same chain would be refused.
    """

    spiffe_id: SpiffeId
    serial: int
    expires_ns: int


def verify_svid(chain: Sequence[bytes], roots: Roots, now_ns: int, *, role: Role) -> SpiffeId:
    """The proven ID of a peer; see `prove`."""
    return prove(chain, roots, now_ns, role=role).spiffe_id


def prove(chain: Sequence[bytes], roots: Roots, now_ns: int, *, role: Role) -> Proven:
    """Return what a peer has proved.

    Args:
        chain: DER, the leaf first, as the peer sent it or as TLS built it.
        roots: trust domain -> its roots, DER.
        now_ns: nanoseconds since the epoch.
        role: what the *peer* is: a ``client`` when we are the server.

    Raises:
        UnauthenticatedError: a rule of this module does not hold.
    """
    if role not in _EKU:
        raise _refuse("svid.role", "role is neither client nor server")
    try:
        leaf, *rest = _parse_chain(chain)  # 1
        spiffe_id = _leaf_id(leaf)  # 2
        _check_leaf(leaf, role)  # 3
        anchors = tuple(roots.get(spiffe_id.trust_domain, ()))  # 4
        if not anchors:
            raise _refuse("svid.trust_domain", "no roots for the peer's trust domain")
        _check_validity(leaf, now_ns)  # 8, here first: "expired" says more than "no valid path"
        now = _effective_time([leaf, *rest], now_ns)
        path = _build_path(leaf, rest, anchors, now)  # 5
        for issuer in path[1:]:
            _check_issuer(issuer, spiffe_id.trust_domain)  # 6
        for cert in path:
            _check_algorithms(cert)  # 7
            _check_validity(cert, now_ns)  # 8
    except UnauthenticatedError:
        raise
    except Exception as error:  # hostile bytes: a parser may raise anything, and the answer is no
        raise _refuse("svid.parse", f"the chain cannot be read ({type(error).__name__})") from error
    return Proven(spiffe_id, leaf.serial_number, min(_end_ns(cert) for cert in path))


def leaf_trust_domain(chain: Sequence[bytes]) -> str:
    """The trust domain that a leaf claims, nothing verified: which bundle to hold against it.

    Raises:
        UnauthenticatedError: it cannot be read, or names none.
    """
    try:
        return _leaf_id(_parse_chain(chain)[0]).trust_domain
    except UnauthenticatedError:
        raise
    except Exception as error:  # hostile bytes, as above
        raise _refuse("svid.parse", f"the chain cannot be read ({type(error).__name__})") from error


def _refuse(rule: str, message: str) -> UnauthenticatedError:
    return UnauthenticatedError(message, rule=rule)


def _parse_chain(chain: Sequence[bytes]) -> list[x509.Certificate]:
    if not 1 <= len(chain) <= MAX_CHAIN:
        raise _refuse("svid.chain_length", f"chain of {len(chain)} certificates, 1 to {MAX_CHAIN} allowed")
    for der in chain:
        if not isinstance(der, bytes) or len(der) > MAX_CERT_BYTES:
            raise _refuse("svid.certificate_size", f"certificate over {MAX_CERT_BYTES} bytes")
    certs = [x509.load_der_x509_certificate(der) for der in chain]
    if any(cert.version is not x509.Version.v3 for cert in certs):
        raise _refuse("svid.version", "certificate is not version 3")
    return certs


def _count(found: list[str]) -> str:
    return {0: "no", 2: "two", 3: "three"}.get(len(found), str(len(found)))


def _extension(cert: x509.Certificate, kind: type[_T]) -> x509.Extension[_T] | None:
    try:
        return cert.extensions.get_extension_for_class(kind)
    except x509.ExtensionNotFound:
        return None


def _uris(cert: x509.Certificate) -> list[str]:
    names = _extension(cert, x509.SubjectAlternativeName)
    return names.value.get_values_for_type(x509.UniformResourceIdentifier) if names else []


def _leaf_id(leaf: x509.Certificate) -> SpiffeId:
    uris = _uris(leaf)
    if len(uris) != 1:
        raise _refuse("svid.one_uri", f"the peer's certificate has {_count(uris)} URI SANs; X509-SVID 2 allows one")
    try:
        spiffe_id = SpiffeId.parse(uris[0])
    except InvalidError as error:
        raise _refuse("svid.spiffe_id", f"the URI SAN is not a SPIFFE ID (X509-SVID 2): {error.message}") from error
    if not spiffe_id.path:
        raise _refuse("svid.path", "the leaf's SPIFFE ID has no path; X509-SVID 5.2 wants one")
    names = _extension(leaf, x509.SubjectAlternativeName)
    if not leaf.subject.rdns and not (names and names.critical):
        raise _refuse(
            "svid.san_critical",
            "the subject is empty and the SAN not critical; RFC 5280 4.2.1.6 wants it",
        )
    return spiffe_id


def _check_leaf(leaf: x509.Certificate, role: Role) -> None:
    basic = _extension(leaf, x509.BasicConstraints)
    if basic and basic.value.ca:
        raise _refuse("svid.leaf_is_ca", "the leaf is a CA certificate; X509-SVID 5.2 refuses it")
    usage = _extension(leaf, x509.KeyUsage)
    if not usage or not usage.critical:
        raise _refuse("svid.key_usage", "the leaf's key usage is missing or not critical; X509-SVID 4.3 wants it so")
    if not usage.value.digital_signature:
        raise _refuse("svid.digital_signature", "the leaf has no digitalSignature; X509-SVID 4.3 wants it")
    if usage.value.key_cert_sign or usage.value.crl_sign:
        raise _refuse("svid.leaf_signs", "the leaf has keyCertSign or cRLSign; X509-SVID 4.3 and 5.2 forbid them")
    extended = _extension(leaf, x509.ExtendedKeyUsage)
    if extended and _EKU[role] not in extended.value:
        raise _refuse("svid.extended_key_usage", f"the leaf's extended key usage is not for a {role} (X509-SVID 4.4)")


@lru_cache(maxsize=32)
def _store(anchors: tuple[bytes, ...]) -> verification.Store:
    if len(anchors) > MAX_ROOTS:
        raise _refuse("svid.roots", f"over {MAX_ROOTS} roots in one trust domain")
    return verification.Store([x509.load_der_x509_certificate(der) for der in anchors])


@lru_cache(maxsize=1)
def _policies() -> tuple[verification.ExtensionPolicy, verification.ExtensionPolicy]:
    """(CA, leaf). The web's defaults want DNS names and refuse SVIDs; what they would check is in rules 2, 3 and 6."""
    critical = verification.Criticality.CRITICAL
    everything = verification.ExtensionPolicy.permit_all()
    ca = everything.require_present(x509.BasicConstraints, critical, None)
    return ca.require_present(x509.KeyUsage, critical, None), everything


def _build_path(
    leaf: x509.Certificate, rest: list[x509.Certificate], anchors: tuple[bytes, ...], now: datetime.datetime
) -> list[x509.Certificate]:
    ca_policy, leaf_policy = _policies()
    builder = verification.PolicyBuilder().store(_store(anchors)).time(now).max_chain_depth(MAX_CHAIN - 1)
    # A client verifier for both roles: a server verifier would want a DNS name. Rule 3 has checked the role.
    verifier = builder.extension_policies(ca_policy=ca_policy, ee_policy=leaf_policy).build_client_verifier()
    try:
        return verifier.verify(leaf, rest).chain
    except verification.VerificationError as error:
        raise _refuse("svid.path_validation", f"no valid path to a root of the trust domain: {error}") from error


def _check_issuer(issuer: x509.Certificate, trust_domain: str) -> None:
    basic, usage = _extension(issuer, x509.BasicConstraints), _extension(issuer, x509.KeyUsage)
    if not (basic and basic.critical and basic.value.ca and usage and usage.value.key_cert_sign):
        raise _refuse("svid.issuer", "an issuer on the path is not a CA (X509-SVID 4.1, 4.3)")
    uris = _uris(issuer)
    if uris and uris != [f"spiffe://{trust_domain}"]:
        raise _refuse("svid.issuer_id", "an issuer's SPIFFE ID is not the peer's trust domain (X509-SVID 3.2)")


def _check_algorithms(cert: x509.Certificate) -> None:
    key = cert.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
        raise _refuse("svid.key_algorithm", "a key on the path is not ECDSA P-256 or P-384")
    if cert.signature_algorithm_oid not in _SIGNATURES:
        raise _refuse("svid.signature_algorithm", "a signature on the path is not ECDSA with SHA-256 or SHA-384")


def _effective_time(certs: list[x509.Certificate], now_ns: int) -> datetime.datetime:
    """The time for the path builder: now, or up to `SKEW_NS` later when a certificate starts only then."""
    now = datetime.datetime.fromtimestamp(now_ns // _SECOND_NS, datetime.UTC)
    latest = max(cert.not_valid_before_utc for cert in certs)
    return max(now, min(latest, now + datetime.timedelta(seconds=SKEW_NS // _SECOND_NS)))


def _check_validity(cert: x509.Certificate, now_ns: int) -> None:
    if now_ns + SKEW_NS < round(cert.not_valid_before_utc.timestamp()) * _SECOND_NS:
        raise _refuse("svid.not_yet_valid", "a certificate on the path is not valid yet")
    if now_ns >= _end_ns(cert):
        raise _refuse("svid.expired", "a certificate on the path has expired")


def _end_ns(cert: x509.Certificate) -> int:
    """The first nanosecond after it: not_after is inclusive, to the second (RFC 5280 4.1.2.5)."""
    return (round(cert.not_valid_after_utc.timestamp()) + 1) * _SECOND_NS
