"""Another trust domain's bundle, as it may come (SPIFFE_Trust_Domain_and_Bundle 4, X509-SVID 6.1, JWT-SVID 6.2)."""

from __future__ import annotations

import base64
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from nucleus.errors import InvalidError, NucleusError
from nucleus.identity import bundle, federation, jwt_svid
from nucleus.identity.ca import CertificateAuthority
from nucleus.identity.jwt_keys import JwtKeys

NAME = "foreign.example"


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory, now = tmp_path_factory.mktemp("bundle"), time.time_ns()
    ca = CertificateAuthority.load_or_create(directory / "ca", NAME, now=now)
    keys = json.dumps(jwt_svid.jwks(JwtKeys(str(directory / "jwt"), now=now).public(now)))
    return bundle.document(ca.bundle_pem(now), keys, spiffe_sequence=7)


def read(document: dict[str, Any], *more: dict[str, Any], **fields: Any) -> bundle.Bundle:
    return bundle.read(json.dumps({**document, **fields, "keys": [*document["keys"], *more]}), NAME)


def refused(document: dict[str, Any], *more: dict[str, Any], **fields: Any) -> str:
    with pytest.raises(InvalidError) as caught:
        read(document, *more, **fields)
    assert caught.value.rule == "identity.bundle"
    return caught.value.message


def test_ours_reads_back(document: dict[str, Any]) -> None:
    found = read(document)
    root, token = document["keys"]
    assert (found.sequence, found.refresh_s) == (7, bundle.REFRESH_HINT_S)
    assert found.x509 == (base64.b64decode(root["x5c"][0]),)
    assert json.loads(found.jwks)["keys"] == [{name: value for name, value in token.items() if name != "alg"}]
    assert jwt_svid.read_jwks(found.jwks).keys() == {token["kid"]}


def test_tb_4_2_2_a_key_without_use_or_of_one_that_is_not_known_is_passed_over(document: dict[str, Any]) -> None:
    root, token = document["keys"]
    without = [{name: value for name, value in key.items() if name != "use"} for key in (root, token)]
    others = [{**token, "use": use} for use in ("sig", "wit-svid", 7, None)]
    untyped = [{**root, "kty": kty} for kty in ("", None, 7)]
    assert read(document, *without, *others, *untyped) == read(document)


def test_tb_4_1_3_no_keys_trust_nothing_and_are_not_left_out(document: dict[str, Any]) -> None:
    found = bundle.read('{"keys": []}', NAME)
    assert (found.x509, json.loads(found.jwks), found.sequence) == ((), {"keys": []}, 0)
    for text in ("{}", '{"keys": null}', '{"keys": {}}', '{"keys": [7]}', "[]", "7", "", "nothing"):
        with pytest.raises(InvalidError):
            bundle.read(text, NAME)


@pytest.mark.parametrize("field", ["spiffe_sequence", "spiffe_refresh_hint"])
@pytest.mark.parametrize("value", [-1, 1.5, "7", None, True, 1 << 80])
def test_tb_4_1_1_and_2_whole_numbers(document: dict[str, Any], field: str, value: object) -> None:
    assert field in refused(document, **{field: value})


def test_tb_4_1_2_a_hint_is_held_within_bounds(document: dict[str, Any]) -> None:
    assert read(document, spiffe_refresh_hint=0).refresh_s == bundle.MIN_REFRESH_S
    assert read(document, spiffe_refresh_hint=1 << 30).refresh_s == bundle.MAX_REFRESH_S


@pytest.mark.parametrize("x5c", [None, [], "x", [7], ["AAAA"], ["not base64"], "twice"])
def test_x509_svid_6_1_exactly_one_certificate(document: dict[str, Any], x5c: Any) -> None:
    root = document["keys"][0]
    refused(document, {**root, "x5c": root["x5c"] * 2 if x5c == "twice" else x5c})


def test_a_root_of_another_trust_domain_is_refused_and_one_that_is_there_twice_counts_once(
    document: dict[str, Any],
) -> None:
    with pytest.raises(InvalidError, match="SPIFFE ID is not that of"):
        bundle.read(json.dumps(document), "third.example")
    assert read(document, document["keys"][0]) == read(document)


def test_jwt_svid_6_2_every_key_has_a_name_of_its_own(document: dict[str, Any]) -> None:
    token = document["keys"][1]
    assert "one kid" in refused(document, token)
    for kid in ("", None, 7, "x" * 2_000):
        assert "no kid" in refused(document, {**token, "kid": kid})


def test_keys_that_are_none_and_types_that_are_not_known(document: dict[str, Any]) -> None:
    token = document["keys"][1]
    for change in ({"x": token["y"]}, {"x": ""}, {"x": "+"}, {"y": None}):
        assert "no public key" in refused(document, {**token, "kid": "other", **change})
    assert read(document, {"kty": "OKP", "use": "jwt-svid", "kid": "other", "crv": "Ed25519"}) == read(document)


def test_a_private_part_is_a_refusal(document: dict[str, Any]) -> None:
    for name in ("d", "k", "p"):
        assert "private" in refused(document, {**document["keys"][1], "kid": "other", name: "AAAA"})


def test_an_rsa_key_is_given_on_and_a_short_one_is_not(document: dict[str, Any]) -> None:
    def jwk(bits: int) -> dict[str, str]:
        numbers = rsa.generate_private_key(65_537, bits).public_key().public_numbers()
        n = base64.urlsafe_b64encode(numbers.n.to_bytes(bits // 8)).rstrip(b"=").decode()
        return {"kty": "RSA", "use": "jwt-svid", "kid": "rsa", "n": n, "e": "AQAB"}

    good = jwk(2_048)
    assert good in json.loads(read(document, {**good, "x-other": "<script>"}).jwks)["keys"]
    assert "no public key" in refused(document, jwk(1_024))


def test_a_repeated_member_and_a_document_that_is_too_large(document: dict[str, Any]) -> None:
    with pytest.raises(InvalidError, match="repeated"):
        bundle.read('{"keys": [], "keys": []}', NAME)
    refused(document, more="x" * bundle.MAX_DOCUMENT_BYTES)
    refused(document, *({"kty": "EC"} for _ in range(bundle.MAX_KEYS)))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["EC", "RSA", "x509-svid"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["keys", "kty", "use", "kid", "x5c", "x", "y", "n", "e", "crv"]), inner)
    ),
    max_leaves=20,
)


@given(JSON)
def test_nothing_but_a_refusal_comes_of_anything(value: Any) -> None:
    for text in (json.dumps(value), json.dumps({"keys": [value]}), json.dumps({"keys": value})):
        with suppress(InvalidError):
            bundle.read(text, NAME)


# -- what is kept --------------------------------------------------------------------------------------------------


def relationship(content: dict[str, Any], **more: str) -> dict[str, Any]:
    return {
        "trust_domain": NAME, "url": "https://x.example/b?c", "profile": "https_web", "endpoint_id": "",
        "web_roots": "", "document": json.dumps(content), **more,
    }  # fmt: skip


@pytest.mark.parametrize(
    "more",
    [
        {"url": "http://x.example/"}, {"url": "https://user@x.example/"}, {"url": "https://:p@x.example/"},
        {"url": "https://x.example/#f"}, {"url": "https:///x"}, {"url": "https://x.example:99999/"},
        {"url": "https://x.example/\r\nX: y"}, {"url": "https://x.example/ü"},
        {"url": "https://x.example/" + "x" * 3_000},
        {"profile": "web"}, {"endpoint_id": f"spiffe://{NAME}/x"}, {"profile": "https_spiffe"},
        {"profile": "https_spiffe", "endpoint_id": f"spiffe://{NAME}"},
        {"profile": "https_spiffe", "endpoint_id": "spiffe://own.example/x"},
        {"trust_domain": "own.example"}, {"trust_domain": f"{NAME}/x"}, {"trust_domain": "UPPER"},
        {"document": "{}"}, {"other": ""},
    ],
)  # fmt: skip
def test_a_relationship_that_is_none(document: dict[str, Any], more: dict[str, str]) -> None:
    with pytest.raises(InvalidError):
        federation.make(relationship(document, **more), "own.example", 1)


def test_what_is_kept_is_there_again_and_a_damaged_file_is_refused(document: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "federations.json"
    kept = federation.Federations(str(path), "own.example")
    kept.put(federation.make(relationship(document), "own.example", 1))
    again = federation.Federations(str(path), "own.example")
    assert again.all() == kept.all()
    assert again.bundles(["third.example", NAME]) == [read(document)]
    with pytest.raises(InvalidError, match="went back"):
        again.updated(NAME, json.dumps({**document, "spiffe_sequence": 6}), 2)
    with pytest.raises(NucleusError):  # where it is our own name, it is refused
        federation.Federations(str(path), NAME)
    for damaged in (b"", b"{", b"[]", path.read_bytes().replace(b"x5c", b"x5d"), path.read_bytes()[:-9]):
        path.write_bytes(damaged)
        with pytest.raises(NucleusError) as caught:
            federation.Federations(str(path), "own.example")
        assert caught.value.rule == "identity.federation"


def test_our_sequence_goes_up_also_when_its_file_is_lost(tmp_path: Path) -> None:
    path, second = tmp_path / "sequence.json", 1_000_000_000
    published = federation.Published(str(path))
    first = published.sequence("a", 50 * second)
    assert first == published.sequence("a", 90 * second) == federation.Published(str(path)).sequence("a", 99 * second)
    assert published.sequence("b", 10 * second) == first + 1  # the clock went back
    path.unlink()
    assert federation.Published(str(path)).sequence("c", 60 * second) > first + 1
