"""X509-SVID and SPIFFE-ID, one test for each clause, in both roles: the peer as a client and as a server.

The names carry the ID of the public conformance catalogue (docs/spiffe-conformance.md). Each refusal has its
counterpart that is accepted beside it, so that nothing passes by refusing everything.
"""

from __future__ import annotations

from typing import Any

import pytest
from cryptography import x509

from nucleus.errors import UnauthenticatedError
from nucleus.identity.verify import verify_svid

from .certificates import AGENT, NOW, TRUST_DOMAIN, Spec, ca_spec, make, uri, usage

ID = str(AGENT)
ROOT = make(ca_spec())
ROOTS = {TRUST_DOMAIN: [ROOT.der]}
both_roles = pytest.mark.parametrize("role", ["client", "server"])


def accepted(role: Any, spec: Spec | None = None, roots: Any = None) -> str:
    return str(verify_svid([make(spec or Spec(), ROOT).der], roots or ROOTS, NOW, role=role))


def refused(role: Any, spec: Spec, roots: Any = None) -> UnauthenticatedError:
    assert accepted(role) == ID
    with pytest.raises(UnauthenticatedError) as caught:
        verify_svid([make(spec, ROOT).der], roots or ROOTS, NOW, role=role)
    return caught.value


@both_roles
def test_xv_1_a_valid_peer(role: Any) -> None:
    assert accepted(role) == ID


@both_roles
def test_xv_2_through_an_intermediate(role: Any) -> None:
    middle = make(ca_spec(subject="middle"), ROOT)
    assert str(verify_svid([make(Spec(), middle).der, middle.der], ROOTS, NOW, role=role)) == ID


@both_roles
def test_xv_3_dns_names_beside_the_uri(role: Any) -> None:
    names = [x509.DNSName("a.example"), x509.UniformResourceIdentifier(ID), x509.DNSName("b.example")]
    assert accepted(role, Spec(san=x509.SubjectAlternativeName(names))) == ID


@both_roles
def test_xv_4_an_empty_subject_wants_a_critical_san(role: Any) -> None:
    assert accepted(role, Spec(subject="", san_critical=True)) == ID
    assert accepted(role, Spec(subject="x", san_critical=False)) == ID
    assert refused(role, Spec(subject="", san_critical=False)).rule == "svid.san_critical"


@both_roles
def test_xv_5_another_ca_of_the_same_name(role: Any) -> None:
    with pytest.raises(UnauthenticatedError) as caught:
        verify_svid([make(Spec(), make(ca_spec())).der], ROOTS, NOW, role=role)
    assert caught.value.rule == "svid.path_validation"


@both_roles
def test_xv_6_expired(role: Any) -> None:
    assert refused(role, Spec(start_s=-100, end_s=-2)).rule == "svid.expired"


@both_roles
def test_xv_7_not_yet_valid(role: Any) -> None:
    assert refused(role, Spec(start_s=300)).rule == "svid.not_yet_valid"


@both_roles
def test_xv_8_a_leaf_that_is_a_ca(role: Any) -> None:
    error = refused(role, Spec(basic=x509.BasicConstraints(True, None)))
    assert (error.rule, "X509-SVID 5.2" in error.message) == ("svid.leaf_is_ca", True)


@both_roles
@pytest.mark.parametrize("bit", ["key_cert_sign", "crl_sign"])
def test_xv_9_and_10_a_leaf_that_signs(role: Any, bit: str) -> None:
    assert refused(role, Spec(usage=usage(digital_signature=True, **{bit: True}))).rule == "svid.leaf_signs"


@both_roles
def test_xv_11_two_uri_sans_are_said_in_plain_words(role: Any) -> None:
    error = refused(role, Spec(san=uri(ID, ID + "2")))
    assert error.message == "the peer's certificate has two URI SANs; X509-SVID 2 allows one"


@both_roles
def test_xv_12_no_uri_san(role: Any) -> None:
    error = refused(role, Spec(san=x509.SubjectAlternativeName([x509.DNSName("a.example")])))
    assert error.message == "the peer's certificate has no URI SANs; X509-SVID 2 allows one"
    assert refused(role, Spec(san=None, subject="x")).rule == "svid.one_uri"


@both_roles
def test_xv_13_a_uri_of_another_scheme(role: Any) -> None:
    assert refused(role, Spec(san=uri("https://nucleus.test/a"))).rule == "svid.spiffe_id"


@both_roles
def test_xv_14_a_leaf_without_a_path(role: Any) -> None:
    assert refused(role, Spec(san=uri(f"spiffe://{TRUST_DOMAIN}"))).rule == "svid.path"


@both_roles
def test_xv_15_a_trust_domain_without_a_bundle(role: Any) -> None:
    assert refused(role, Spec(san=uri("spiffe://other.test/x"))).rule == "svid.trust_domain"


@both_roles
def test_xf_1_to_3_bundles_are_never_merged(role: Any) -> None:
    foreign = make(ca_spec(san=uri("spiffe://other.test"), subject="other"))
    theirs = make(Spec(san=uri("spiffe://other.test/x")), foreign)
    federated = {**ROOTS, "other.test": [foreign.der]}
    assert str(verify_svid([theirs.der], federated, NOW, role=role)) == "spiffe://other.test/x"
    with pytest.raises(UnauthenticatedError):
        verify_svid([make(Spec(), foreign).der], federated, NOW, role=role)
    with pytest.raises(UnauthenticatedError):
        verify_svid([theirs.der], ROOTS, NOW, role=role)


@both_roles
def test_xs_4_and_5_each_root_of_a_bundle_counts_while_it_is_there(role: Any) -> None:
    second = make(ca_spec(subject="second"))
    leaf = make(Spec(), second)
    assert str(verify_svid([leaf.der], {TRUST_DOMAIN: [ROOT.der, second.der]}, NOW, role=role)) == ID
    with pytest.raises(UnauthenticatedError):
        verify_svid([leaf.der], ROOTS, NOW, role=role)


@both_roles
def test_x509_svid_3_1_a_trust_domain_of_256_bytes(role: Any) -> None:
    longest = "a" * 255
    root = make(ca_spec(san=uri(f"spiffe://{longest}"), subject="long"))
    leaf = make(Spec(san=uri(f"spiffe://{longest}/x")), root)
    assert verify_svid([leaf.der], {longest: [root.der]}, NOW, role=role).trust_domain == longest
    assert refused(role, Spec(san=uri(f"spiffe://{'a' * 256}/x"))).rule == "svid.spiffe_id"


@both_roles
def test_x509_svid_4_3_a_leaf_without_digital_signature(role: Any) -> None:
    assert refused(role, Spec(usage=usage(key_agreement=True))).rule == "svid.digital_signature"
    assert refused(role, Spec(usage=None)).rule == "svid.key_usage"
    assert refused(role, Spec(usage_critical=False)).rule == "svid.key_usage"


@both_roles
@pytest.mark.parametrize(
    "text",
    [
        "spiffe:///a", "spiffe://td:8080/a", "spiffe://u@td/a", "spiffe://td/a?x=1", "spiffe://td/a#f", "spiffe://td/%41",
        "spiffe://td/a//b", "spiffe://td/a/./b", "spiffe://td/a/../b", "spiffe://td/a/", "spiffe://td/a!b",
        "spiffe://t$d/a", "spiffe://TD/a", "spiffe://td/a\n",
    ],
)  # fmt: skip
def test_id_1_invalid_ids_in_a_certificate(role: Any, text: str) -> None:
    assert refused(role, Spec(san=uri(text))).rule == "svid.spiffe_id"


@both_roles
@pytest.mark.parametrize(
    "text",
    ["spiffe://td/a.b-c_D", "spiffe://a_1.b-2/x", "spiffe://10.0.0.1/x", "spiffe://td/" + "p" * (2048 - 12)],
)
def test_id_2_valid_ids_at_the_edges(role: Any, text: str) -> None:
    domain = text.split("/")[2]
    root = make(ca_spec(san=uri(f"spiffe://{domain}"), subject="edge"))
    assert str(verify_svid([make(Spec(san=uri(text)), root).der], {domain: [root.der]}, NOW, role=role)) == text
