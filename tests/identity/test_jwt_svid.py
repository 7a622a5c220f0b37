"""JWT-SVIDs by the clauses of the standard (JWT-SVID), and what a hostile token may try."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st

from nucleus.errors import InvalidError, NucleusError, UnauthenticatedError
from nucleus.identity import jwt_keys, jwt_svid
from nucleus.identity.jwt_keys import JwtKeys
from nucleus.identity.spiffe_id import SpiffeId

from .certificates import AGENT, NOW, SECOND, TRUST_DOMAIN

KEY = ec.generate_private_key(ec.SECP256R1())
KID = jwt_svid.thumbprint(KEY.public_key())
ROOTS = {TRUST_DOMAIN: {KID: KEY.public_key()}}
T = NOW // SECOND
HEADER = {"alg": "ES256", "kid": KID, "typ": "JWT"}
CLAIMS = {"aud": ["a"], "exp": T + 300, "iat": T, "sub": str(AGENT)}


def b64(data: bytes | dict[str, Any]) -> str:
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def token(header: Any = None, claims: Any = None, key: ec.EllipticCurvePrivateKey = KEY) -> str:
    """A token that is signed properly, whatever it says."""
    signed = f"{b64(HEADER if header is None else header)}.{b64(CLAIMS if claims is None else claims)}"
    r, s = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{signed}.{b64(r.to_bytes(32) + s.to_bytes(32))}"


def refused(text: Any, audience: str = "a", now: int = NOW, roots: Any = None) -> str:
    with pytest.raises(UnauthenticatedError) as caught:
        jwt_svid.validate(text, audience, ROOTS if roots is None else roots, now)
    return caught.value.rule


def without(claims: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in claims.items() if key != name}


def test_what_we_sign_is_valid_and_says_what_it_should() -> None:
    made = jwt_svid.sign(AGENT, ["a", "b"], KEY, KID, now=NOW)
    found = jwt_svid.validate(made, "b", ROOTS, NOW)
    assert (found.spiffe_id, found.audience) == (AGENT, ("a", "b"))
    assert found.expires_ns == (T + 300) * SECOND
    header = json.loads(base64.urlsafe_b64decode(made.split(".")[0] + "=="))
    assert header == HEADER


def test_another_implementation_reads_ours_and_we_read_theirs() -> None:
    jwt = pytest.importorskip("jwt")
    now = time.time_ns()  # its clock is the real one, and the suite may take longer than a token lives
    made = jwt_svid.sign(AGENT, ["a"], KEY, KID, now=now)
    jwk = jwt_svid.jwks(ROOTS[TRUST_DOMAIN])["keys"][0]
    key = jwt.PyJWK(jwk).key
    assert jwt.decode(made, key, algorithms=["ES256"], audience="a")["sub"] == str(AGENT)
    theirs = jwt.encode(CLAIMS, KEY, algorithm="ES256", headers={"kid": KID})
    assert jwt_svid.validate(theirs, "a", ROOTS, NOW).spiffe_id == AGENT


@pytest.mark.parametrize(
    "alg", ["none", "None", "NONE", "", None, 7, "HS256", "HS512", "RS256", "PS256", "ES384", "es256"]
)
def test_jwt_svid_2_1_algorithm(alg: Any) -> None:
    assert refused(token({**HEADER, "alg": alg})) == "jwt.algorithm"


def test_jwt_svid_2_1_no_algorithm_and_no_signature() -> None:
    assert refused(token({"kid": KID})) == "jwt.algorithm"
    unsigned = f"{b64({'alg': 'none'})}.{b64(CLAIMS)}."
    assert refused(unsigned) == "jwt.form"


def test_jwt_svid_2_1_a_public_key_is_no_hmac_secret() -> None:
    import hmac

    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    secret = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    signed = f"{b64({'alg': 'HS256', 'kid': KID})}.{b64(CLAIMS)}"
    assert refused(f"{signed}.{b64(hmac.digest(secret, signed.encode(), 'sha256'))}") == "jwt.algorithm"


@pytest.mark.parametrize("kid", ["other", "", None, 7, ["x"]])
def test_jwt_svid_2_2_key_id(kid: Any) -> None:
    assert refused(token({**HEADER, "kid": kid})) == "jwt.key"


def test_jwt_svid_2_2_a_key_id_is_optional() -> None:
    nameless, other = without(HEADER, "kid"), ec.generate_private_key(ec.SECP256R1())
    several = {TRUST_DOMAIN: {"x": other.public_key(), **ROOTS[TRUST_DOMAIN]}}
    assert jwt_svid.validate(token(nameless), "a", several, NOW).spiffe_id == AGENT
    assert refused(token(nameless, key=other)) == "jwt.signature"


def test_jwt_svid_2_2_a_key_of_the_header_is_never_used() -> None:
    own = ec.generate_private_key(ec.SECP256R1())
    jwk = jwt_svid.jwks({"x": own.public_key()})["keys"][0]
    assert refused(token({**HEADER, "jwk": jwk, "jku": "https://evil.test"}, key=own)) == "jwt.signature"


@pytest.mark.parametrize("typ", ["JWT", "JOSE"])
def test_jwt_svid_2_3_type(typ: str) -> None:
    assert jwt_svid.validate(token({**HEADER, "typ": typ}), "a", ROOTS, NOW)
    assert jwt_svid.validate(token(without(HEADER, "typ")), "a", ROOTS, NOW)
    assert refused(token({**HEADER, "typ": "at+jwt"})) == "jwt.type"
    assert refused(token({**HEADER, "typ": None})) == "jwt.type"


def test_critical_extensions_are_not_understood() -> None:
    assert refused(token({**HEADER, "crit": ["b64"], "b64": False})) == "jwt.critical"


@pytest.mark.parametrize(
    "subject",
    [None, "", 7, "agent", f"spiffe://{TRUST_DOMAIN}", f"spiffe://{TRUST_DOMAIN}/", "https://nucleus.test/a",
     f"spiffe://{TRUST_DOMAIN.upper()}/a", f"spiffe://{TRUST_DOMAIN}/a\n", f"spiffe://{'a' * 256}/a"],
)  # fmt: skip
def test_jwt_svid_3_1_subject(subject: Any) -> None:
    assert refused(token(claims={**CLAIMS, "sub": subject})) == "jwt.subject"
    assert refused(token(claims=without(CLAIMS, "sub"))) == "jwt.subject"


def test_jwt_svid_3_1_a_subject_of_another_trust_domain_has_that_ones_keys() -> None:
    claims = {**CLAIMS, "sub": "spiffe://other.test/admin"}
    assert refused(token(claims=claims)) == "jwt.trust_domain"
    other = ec.generate_private_key(ec.SECP256R1())
    both = {**ROOTS, "other.test": {KID: other.public_key()}}
    assert refused(token(claims=claims), roots=both) == "jwt.signature"
    assert str(jwt_svid.validate(token(claims=claims, key=other), "a", both, NOW).spiffe_id) == claims["sub"]


@pytest.mark.parametrize("audience", [None, [], "", [""], [7], {"a": 1}, ["b"], "b", ["A"]])
def test_jwt_svid_3_2_audience(audience: Any) -> None:
    assert refused(token(claims={**CLAIMS, "aud": audience})) == "jwt.audience"
    assert refused(token(claims=without(CLAIMS, "aud"))) == "jwt.audience"
    assert refused(token(), audience="") == "jwt.audience"


def test_jwt_svid_3_2_one_audience_may_be_plain_text() -> None:
    assert jwt_svid.validate(token(claims={**CLAIMS, "aud": "a"}), "a", ROOTS, NOW).audience == ("a",)


@pytest.mark.parametrize("bad", [[], [""], ["a"] * 17, ["x" * 1025], ["a\n"], "a", None, [7]])
def test_jwt_svid_3_2_nothing_is_issued_for_nobody(bad: Any) -> None:
    with pytest.raises(InvalidError):
        jwt_svid.check_audience(bad)


def test_jwt_svid_3_3_expiration_with_a_minute_of_skew() -> None:
    end = (T + 300) * SECOND
    assert jwt_svid.validate(token(), "a", ROOTS, end + 59 * SECOND)
    assert refused(token(), now=end + 60 * SECOND) == "jwt.expired"
    assert refused(token(claims=without(CLAIMS, "exp"))) == "jwt.expiry"


@pytest.mark.parametrize("value", ["1", True, None, -1, 1e30, [1], 1 << 60])
@pytest.mark.parametrize("name", ["exp", "nbf", "iat"])
def test_jwt_svid_3_3_dates_are_numbers(name: str, value: Any) -> None:
    assert refused(token(claims={**CLAIMS, name: value})) == "jwt.time"


def test_jwt_svid_4_neither_issued_nor_valid_in_the_future() -> None:
    for name in ("nbf", "iat"):
        assert refused(token(claims={**CLAIMS, name: T + 62})) == "jwt.not_yet_valid"
        assert jwt_svid.validate(token(claims={**CLAIMS, name: T + 59}), "a", ROOTS, NOW)
    assert refused(token(claims={**CLAIMS, "exp": T + 90_000})) == "jwt.life"


def test_jwt_svid_4_signature() -> None:
    assert refused(token(key=ec.generate_private_key(ec.SECP256R1()))) == "jwt.signature"
    signed = token().rpartition(".")[0]
    for raw in (bytes(64), b"\xff" * 64, bytes(63), bytes(65), bytes(70)):
        assert refused(f"{signed}.{b64(raw)}") == "jwt.signature"
    other = b64({**CLAIMS, "sub": f"spiffe://{TRUST_DOMAIN}/admin"})
    head, _, tail = token().split(".")
    assert refused(f"{head}.{other}.{tail}") == "jwt.signature"


@pytest.mark.parametrize(
    "text",
    ["", ".", "..", "a.b", "a.b.c.d", "a.b.c.d.e", "é.b.c", 7, None, "=.=.=", "a b.c.d", "x" * 9000, '{"payload":""}'],
)
def test_jwt_svid_5_1_compact_form(text: Any) -> None:
    assert refused(text) in ("jwt.form", "jwt.size", "jwt.json")


def test_jwt_svid_5_1_one_spelling_of_a_token() -> None:
    good = token()
    head, body, tail = good.split(".")
    twisted = tail[:-1] + chr(ord(tail[-1]) + 1)  # the last character has bits that no byte has
    for text in (
        good + "=",
        good + "\n",
        " " + good,
        f"{head}.{body}.{twisted}",
        good.replace("-", "+").replace("_", "/") + "+",
    ):
        assert refused(text).startswith("jwt.")


@pytest.mark.parametrize(
    "raw", [b"[]", b"null", b"{", b'{"alg":"ES256","alg":"none"}', b"\xff", b'{"alg":NaN}', b"[" * 3000]
)
def test_json_that_two_readers_could_read_differently(raw: bytes) -> None:
    assert refused(token(header=raw)) in ("jwt.json", "jwt.size")
    assert refused(token(claims=raw)) in ("jwt.json", "jwt.subject")


def test_the_message_names_the_clause_and_not_the_token() -> None:
    made = token(claims={**CLAIMS, "aud": ["secret-4711"]})
    with pytest.raises(UnauthenticatedError, match=r"not for this audience \(3.2\)") as caught:
        jwt_svid.validate(made, "a", ROOTS, NOW)
    assert "4711" not in str(caught.value)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 400), st.integers(1, 255))
def test_any_changed_byte_is_refused(position: int, change: int) -> None:
    data = bytearray(GOOD.encode())
    data[position % len(data)] ^= change
    refused(data.decode("latin-1"))


GOOD = token()


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=300))
def test_any_text_is_refused_and_nothing_else_happens(text: str) -> None:
    refused(text)
    refused(f"{b64(HEADER)}.{b64(text.encode('utf-8', 'replace'))}.{b64(bytes(64))}")


# -- the bundle ----------------------------------------------------------------------------------------------------


def test_jwt_svid_6_1_a_bundle_says_its_use_and_names_its_keys() -> None:
    bundle = jwt_svid.jwks(ROOTS[TRUST_DOMAIN])
    assert [(key["use"], key["kid"], key["kty"]) for key in bundle["keys"]] == [("jwt-svid", KID, "EC")]
    assert not any("d" in key for key in bundle["keys"])
    read = jwt_svid.read_jwks(json.dumps(bundle))
    assert jwt_svid.validate(token(), "a", {TRUST_DOMAIN: read}, NOW).spiffe_id == AGENT


def test_jwt_svid_6_2_keys_for_other_uses_are_passed_over() -> None:
    key = jwt_svid.jwks(ROOTS[TRUST_DOMAIN])["keys"][0]
    others = [{**key, "use": "x509-svid"}, {**key, "use": "sig"}, {**key, "kty": "RSA"}, {"use": "future"}]
    assert jwt_svid.read_jwks(json.dumps({"keys": others})) == {}


@pytest.mark.parametrize(
    "bad", ["", "[]", "{}", '{"keys":7}', '{"keys":[7]}', '{"keys":[{"use":"jwt-svid","kty":"EC","crv":"P-256"}]}']
)
def test_jwt_svid_6_2_what_is_no_bundle(bad: str) -> None:
    with pytest.raises(InvalidError):
        jwt_svid.read_jwks(bad)


def test_jwt_svid_6_2_two_keys_of_one_name_or_off_the_curve() -> None:
    key = jwt_svid.jwks(ROOTS[TRUST_DOMAIN])["keys"][0]
    for keys in ([key, key], [{**key, "kid": ""}], [{**key, "x": key["y"]}], [{**key, "x": 7}]):
        with pytest.raises(InvalidError):
            jwt_svid.read_jwks(json.dumps({"keys": keys}))


# -- the keys ------------------------------------------------------------------------------------------------------


def test_a_key_is_known_before_it_signs_and_long_after(tmp_path: Path) -> None:
    path = str(tmp_path / "keys.json")
    keys = JwtKeys(path, now=NOW)
    first, _ = keys.signer(NOW)
    later = NOW + jwt_keys.RENEW_NS
    assert keys.signer(later)[0] == first
    assert len(keys.public(later)) == 2
    assert keys.signer(later + jwt_keys.PUBLISH_NS - 1)[0] == first
    assert keys.signer(later + jwt_keys.PUBLISH_NS)[0] != first
    assert first in keys.public(NOW + jwt_keys.KEY_TTL_NS - 1)
    assert first not in keys.public(NOW + jwt_keys.KEY_TTL_NS)
    assert list(JwtKeys(path, now=later).public(later)) == list(keys.public(later))


def test_any_token_is_valid_by_the_bundle_of_an_hour_before_over_a_week(tmp_path: Path) -> None:
    path, bundles = str(tmp_path / "keys.json"), list[dict[str, Any]]()
    for step in range(7 * 24 * 2):
        now = NOW + step * jwt_keys.HOUR_NS // 2
        keys = JwtKeys(path, now=now)
        bundles.append(dict(keys.public(now)))
        kid, key = keys.signer(now)
        made = jwt_svid.sign(AGENT, ["a"], key, kid, now=now)
        assert jwt_svid.validate(made, "a", {TRUST_DOMAIN: bundles[max(0, step - 2)]}, now)
        assert len(bundles[-1]) <= 3


def test_the_clock_goes_back(tmp_path: Path) -> None:
    keys = JwtKeys(str(tmp_path / "keys.json"), now=NOW)
    for days in range(jwt_keys._MAX_KEYS):
        keys.signer(NOW - days * jwt_keys.KEY_TTL_NS)
    with pytest.raises(NucleusError, match="clock"):
        keys.maintain(NOW - 20 * jwt_keys.KEY_TTL_NS)


def test_keys_are_closed_to_others_and_in_no_repr(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    keys = JwtKeys(str(path), now=NOW)
    assert path.stat().st_mode & 0o777 == 0o600
    secret = str(keys.signer(NOW)[1].private_numbers().private_value)
    assert secret not in repr(keys) + repr(keys._keys)
    path.chmod(0o644)
    with pytest.raises(NucleusError):
        JwtKeys(str(path), now=NOW)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b'{"version":1,"keys":[{}]}', b'{"version":1,"keys":[{"made_ns":1,"pkcs8":"x"}]}']
)
def test_damaged_keys_are_refused_and_left(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(NucleusError):
        JwtKeys(str(path), now=NOW)
    assert path.read_bytes() == content


def test_a_trust_domain_gets_no_token() -> None:
    with pytest.raises(InvalidError):
        jwt_svid.sign(SpiffeId(TRUST_DOMAIN), ["a"], KEY, KID, now=NOW)
