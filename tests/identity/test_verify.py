"""One generated bad certificate for each rule of `verify`, and the good ones beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st

from nucleus.errors import UnauthenticatedError
from nucleus.identity import verify
from nucleus.identity.ca import CertificateAuthority
from nucleus.identity.svid import pem_to_der
from nucleus.identity.verify import verify_svid

from .certificates import AGENT, NOW, SECOND, TRUST_DOMAIN, Issuer, Spec, ca_spec, make, uri, usage

ID = str(AGENT)
ROOT = make(ca_spec())
ROOTS = {TRUST_DOMAIN: [ROOT.der]}


def refused(chain: Any, roots: Any = ROOTS, now: int = NOW, role: Any = "client") -> str:
    with pytest.raises(UnauthenticatedError) as caught:
        verify_svid(chain, roots, now, role=role)
    return caught.value.rule


@pytest.mark.parametrize("role", ["client", "server"])
def test_a_good_leaf(role: Any) -> None:
    assert verify_svid([make(Spec(), ROOT).der], ROOTS, NOW, role=role) == AGENT


def test_what_our_ca_issues(ca: CertificateAuthority) -> None:
    svid = ca.issue(AGENT, now=NOW)
    assert verify_svid(pem_to_der(svid.cert_pem), svid.roots(), NOW, role="server") == AGENT


GOOD = {
    "P-384 key and SHA-384": Spec(key=ec.generate_private_key(ec.SECP384R1()), digest=hashes.SHA384()),
    "no extended key usage": Spec(extended=None),
    "no basic constraints": Spec(basic=None),
    "a DNS name beside the URI": Spec(
        san=x509.SubjectAlternativeName([x509.DNSName("a.example"), x509.UniformResourceIdentifier(ID)])
    ),
    "a subject, SAN not critical": Spec(subject="x", san_critical=False),
    "starts in 59 s: within the skew": Spec(start_s=59),
}


@pytest.mark.parametrize("spec", GOOD.values(), ids=GOOD.keys())
def test_what_the_standard_allows(spec: Spec) -> None:
    assert verify_svid([make(spec, ROOT).der], ROOTS, NOW, role="client") == AGENT


CLIENT_ONLY = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
SERVER_ONLY = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
ANY_PURPOSE = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE])
UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4.5"), b"\x05\x00")

BAD_LEAVES: dict[str, tuple[Spec, str]] = {
    "no SAN": (Spec(san=None), "svid.one_uri"),
    "no URI": (Spec(san=x509.SubjectAlternativeName([x509.DNSName("a.example")])), "svid.one_uri"),
    "two URIs": (Spec(san=uri(ID, ID + "2")), "svid.one_uri"),
    "the same URI twice": (Spec(san=uri(ID, ID)), "svid.one_uri"),
    "an https URI": (Spec(san=uri("https://nucleus.test/ns/a")), "svid.spiffe_id"),
    "an upper-case trust domain": (Spec(san=uri("spiffe://Nucleus.test/a")), "svid.spiffe_id"),
    "a trailing newline": (Spec(san=uri(ID + "\n")), "svid.spiffe_id"),
    "a NUL": (Spec(san=uri(ID + "\0x")), "svid.spiffe_id"),
    "a trust domain of 256 bytes": (Spec(san=uri("spiffe://" + "a" * 256 + "/x")), "svid.spiffe_id"),
    "no path": (Spec(san=uri(f"spiffe://{TRUST_DOMAIN}")), "svid.path"),
    "empty subject, SAN not critical": (Spec(san_critical=False), "svid.san_critical"),
    "a CA": (Spec(basic=x509.BasicConstraints(True, None)), "svid.leaf_is_ca"),
    "no key usage": (Spec(usage=None), "svid.key_usage"),
    "key usage not critical": (Spec(usage_critical=False), "svid.key_usage"),
    "no digitalSignature": (Spec(usage=usage(key_agreement=True)), "svid.digital_signature"),
    "keyCertSign": (Spec(usage=usage(digital_signature=True, key_cert_sign=True)), "svid.leaf_signs"),
    "cRLSign": (Spec(usage=usage(digital_signature=True, crl_sign=True)), "svid.leaf_signs"),
    "for servers only": (Spec(extended=SERVER_ONLY), "svid.extended_key_usage"),
    "for any purpose": (Spec(extended=ANY_PURPOSE), "svid.extended_key_usage"),
    "an unknown critical extension": (Spec(extra=((UNKNOWN, True),)), "svid.path_validation"),
    "expired": (Spec(start_s=-100, end_s=-1), "svid.expired"),
    "starts in 61 s": (Spec(start_s=61), "svid.not_yet_valid"),
    "RSA key": (Spec(key=rsa.generate_private_key(65537, 2048)), "svid.key_algorithm"),
    "Ed25519 key": (Spec(key=ed25519.Ed25519PrivateKey.generate()), "svid.key_algorithm"),
    "P-521 key": (Spec(key=ec.generate_private_key(ec.SECP521R1())), "svid.key_algorithm"),
    "secp256k1 key": (Spec(key=ec.generate_private_key(ec.SECP256K1())), "svid.key_algorithm"),
    "SHA-512 signature": (Spec(digest=hashes.SHA512()), "svid.signature_algorithm"),
}


@pytest.mark.parametrize(("spec", "rule"), BAD_LEAVES.values(), ids=BAD_LEAVES.keys())
def test_bad_leaf(spec: Spec, rule: str) -> None:
    assert refused([make(spec, ROOT).der]) == rule


def test_a_client_certificate_is_no_server() -> None:
    leaf = make(Spec(extended=CLIENT_ONLY), ROOT)
    assert verify_svid([leaf.der], ROOTS, NOW, role="client") == AGENT
    assert refused([leaf.der], role="server") == "svid.extended_key_usage"


@pytest.mark.parametrize("role", ["", "Client", "any", None])
def test_an_unknown_role_is_refused(role: Any) -> None:
    assert refused([make(Spec(), ROOT).der], role=role) == "svid.role"


def test_expiry_is_to_the_second_without_skew() -> None:
    leaf = make(Spec(end_s=10), ROOT)
    last = (NOW // SECOND + 10) * SECOND
    assert verify_svid([leaf.der], ROOTS, last + SECOND - 1, role="client") == AGENT
    assert refused([leaf.der], now=last + SECOND) == "svid.expired"


# -- roots and trust domains ---------------------------------------------------------------------------------------


def test_no_roots_at_all() -> None:
    leaf = make(Spec(), ROOT).der
    assert refused([leaf], {}) == refused([leaf], {TRUST_DOMAIN: []}) == "svid.trust_domain"


def test_another_trust_domains_root_does_not_count() -> None:
    """Both roots are trusted, each for its own domain: a federated CA cannot make one of ours."""
    foreign = make(ca_spec(san=uri("spiffe://other.test"), subject="other"))
    leaf = make(Spec(), foreign)  # says nucleus.test, signed by other.test
    assert refused([leaf.der], ROOTS | {"other.test": [foreign.der]}) == "svid.path_validation"
    assert refused([leaf.der, foreign.der], ROOTS | {"other.test": [foreign.der]}) == "svid.path_validation"


def test_a_federated_peer_is_its_own_domains() -> None:
    foreign = make(ca_spec(san=uri("spiffe://other.test"), subject="other"))
    leaf = make(Spec(san=uri("spiffe://other.test/x")), foreign)
    assert str(verify_svid([leaf.der], ROOTS | {"other.test": [foreign.der]}, NOW, role="client")) == (
        "spiffe://other.test/x"
    )
    assert refused([leaf.der]) == "svid.trust_domain"


def test_a_self_signed_leaf() -> None:
    assert refused([make(Spec(subject="root")).der]) == "svid.path_validation"


def test_a_twin_of_the_root_by_name_only() -> None:
    twin = make(ca_spec())
    assert refused([make(Spec(), twin).der, twin.der]) == "svid.path_validation"


BAD_ROOTS: dict[str, tuple[Spec, str]] = {
    "expired root": (ca_spec(start_s=-200, end_s=-100), "svid.path_validation"),
    "root not valid yet": (ca_spec(start_s=200), "svid.path_validation"),
    "root that is no CA": (ca_spec(basic=x509.BasicConstraints(False, None)), "svid.path_validation"),
    "root without basic constraints": (ca_spec(basic=None), "svid.path_validation"),
    "root whose basic constraints are not critical": (ca_spec(basic_critical=False), "svid.path_validation"),
    "root without keyCertSign": (ca_spec(usage=usage(crl_sign=True)), "svid.issuer"),
    "root without key usage": (ca_spec(usage=None), "svid.path_validation"),
    "root of another trust domain": (ca_spec(san=uri("spiffe://other.test")), "svid.issuer_id"),
    "root whose ID has a path": (ca_spec(san=uri(f"spiffe://{TRUST_DOMAIN}/ca")), "svid.issuer_id"),
    "RSA root": (ca_spec(key=rsa.generate_private_key(65537, 2048)), "svid.signature_algorithm"),
    "P-521 root": (ca_spec(key=ec.generate_private_key(ec.SECP521R1())), "svid.key_algorithm"),
}


@pytest.mark.parametrize(("spec", "rule"), BAD_ROOTS.values(), ids=BAD_ROOTS.keys())
def test_bad_root(spec: Spec, rule: str) -> None:
    root = make(spec)
    assert refused([make(Spec(), root).der], {TRUST_DOMAIN: [root.der]}) == rule


# -- intermediates and chain bounds --------------------------------------------------------------------------------


def chain_of(depth: int, change: Callable[[int], dict[str, Any]] = lambda level: {}) -> list[bytes]:
    """Leaf first, root last, with `depth` intermediates."""
    signer: Issuer = ROOT
    chain = [ROOT.der]
    for level in range(depth):
        signer = make(ca_spec(**({"subject": f"ca{level}"} | change(level))), signer)
        chain.insert(0, signer.der)
    return [make(Spec(), signer).der, *chain]


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_intermediates(depth: int) -> None:
    chain = chain_of(depth)
    assert verify_svid(chain, ROOTS, NOW, role="client") == AGENT
    assert verify_svid(chain[:-1], ROOTS, NOW, role="client") == AGENT  # as a peer sends it, without the root


BAD_INTERMEDIATES: dict[str, tuple[dict[str, Any], str]] = {
    "not a CA": ({"basic": x509.BasicConstraints(False, None)}, "svid.path_validation"),
    "no keyCertSign": ({"usage": usage(crl_sign=True)}, "svid.issuer"),
    "a leaf that signs": (
        {"basic": x509.BasicConstraints(False, None), "usage": usage(digital_signature=True)},
        "svid.path_validation",
    ),
    "another trust domain": ({"san": uri("spiffe://other.test")}, "svid.issuer_id"),
    "an ID with a path": ({"san": uri(f"spiffe://{TRUST_DOMAIN}/x")}, "svid.issuer_id"),
    "expired": ({"start_s": -100, "end_s": -10}, "svid.path_validation"),
    "RSA": ({"key": rsa.generate_private_key(65537, 2048)}, "svid.signature_algorithm"),
    "an unknown critical extension": ({"extra": ((UNKNOWN, True),)}, "svid.path_validation"),
    "name constraints on URIs": (
        {"extra": ((x509.NameConstraints([x509.UniformResourceIdentifier("other.test")], None), True),)},
        "svid.path_validation",
    ),
}


@pytest.mark.parametrize(("change", "rule"), BAD_INTERMEDIATES.values(), ids=BAD_INTERMEDIATES.keys())
def test_bad_intermediate(change: dict[str, Any], rule: str) -> None:
    assert refused(chain_of(1, lambda _: change)) == rule


def test_path_length_zero_bounds_the_chain() -> None:
    root = make(ca_spec(basic=x509.BasicConstraints(True, 0)))
    middle = make(ca_spec(subject="ca"), root)
    assert refused([make(Spec(), middle).der, middle.der], {TRUST_DOMAIN: [root.der]}) == "svid.path_validation"


def test_chain_length() -> None:
    assert refused([]) == refused(chain_of(3)) == "svid.chain_length"


def test_a_missing_intermediate() -> None:
    chain = chain_of(1)
    assert refused([chain[0], chain[2]]) == "svid.path_validation"


def test_certificate_size_is_bounded_before_parsing() -> None:
    big = make(Spec(extra=((x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.9"), b"x" * 9000), False),)), ROOT)
    assert refused([big.der]) == "svid.certificate_size"
    assert refused(["text"]) == refused([bytearray(4)]) == "svid.certificate_size"


def test_too_many_roots() -> None:
    assert refused([make(Spec(), ROOT).der], {TRUST_DOMAIN: [ROOT.der] * (verify.MAX_ROOTS + 1)}) == "svid.roots"


@pytest.mark.parametrize("data", [b"", b"\x30", b"not a certificate", b"\x30\x80\x00\x00", b"\xff" * 8192])
def test_bytes_that_are_no_certificate(data: bytes) -> None:
    assert refused([data]) == "svid.parse"


def test_bytes_after_the_certificate() -> None:
    assert refused([make(Spec(), ROOT).der + b"\0"]) == "svid.parse"


def test_a_flipped_signature() -> None:
    der = bytearray(make(Spec(), ROOT).der)
    der[-3] ^= 1
    assert refused([bytes(der)]) in ("svid.path_validation", "svid.parse")


LEAF = make(Spec(), ROOT).der


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(LEAF) - 1), st.integers(1, 255))
def test_any_changed_byte_is_refused(position: int, change: int) -> None:
    der = bytearray(LEAF)
    der[position] ^= change
    refused([bytes(der)])
