from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nucleus.approval.token import DOMAIN, TTL_NS, Claims, mint, nonce_digest, verify
from nucleus.errors import DeniedError, InvalidError

KEY = bytes(range(32))
NONCE = bytes(reversed(range(32)))
CLAIMS = Claims("ab" * 32, "spiffe://nucleus.local/ns/default/sa/agent-p1", "p1", NONCE, 1_000, 1_000 + TTL_NS, "k1")
GOOD: dict[str, Any] = {
    "operation_hash": CLAIMS.operation_hash, "principal": CLAIMS.principal, "pod": CLAIMS.pod, "now_ns": 1_000,
}  # fmt: skip


def test_a_token_is_good_for_what_it_says() -> None:
    token = mint(KEY, CLAIMS)
    assert verify(token, KEY, "k1", **GOOD) == CLAIMS
    assert verify(token, KEY, "k1", **{**GOOD, "now_ns": CLAIMS.expires_ns - 1}) == CLAIMS


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"operation_hash": "ac" * 32}, "approval.binding"),
        ({"principal": "spiffe://nucleus.local/ns/default/sa/agent-p2"}, "approval.binding"),
        ({"pod": "p2"}, "approval.binding"),
        ({"pod": ""}, "approval.binding"),
        ({"now_ns": 999}, "approval.expired"),
        ({"now_ns": CLAIMS.expires_ns}, "approval.expired"),
    ],
)
def test_and_for_nothing_else(change: dict[str, Any], rule: str) -> None:
    with pytest.raises(DeniedError) as caught:
        verify(mint(KEY, CLAIMS), KEY, "k1", **{**GOOD, **change})
    assert caught.value.rule == rule


def test_another_key_or_key_id_makes_it_void() -> None:
    token = mint(KEY, CLAIMS)
    for key, key_id in ((bytes(32), "k1"), (KEY, "k2")):
        with pytest.raises(DeniedError) as caught:
            verify(token, key, key_id, **GOOD)
        assert caught.value.rule == "approval.token"


@given(st.integers(0, 10_000), st.sampled_from("0123456789abcdef.X "))
def test_no_changed_token_is_good(at: int, letter: str) -> None:
    token = mint(KEY, CLAIMS)
    at %= len(token)
    changed = token[:at] + letter + token[at + 1 :]
    if changed != token:
        with pytest.raises(DeniedError):
            verify(changed, KEY, "k1", **GOOD)


@pytest.mark.parametrize(
    "text", ["", ".", "a.b", "zz.zz", "00" * 9_000 + ".00", mint(KEY, CLAIMS).upper(), "é.é", "..."]
)
def test_what_is_no_token_is_denied_not_crashed_on(text: str) -> None:
    with pytest.raises(DeniedError) as caught:
        verify(text, KEY, "k1", **GOOD)
    assert text not in caught.value.diagnostics() or len(text) < 4


def test_the_mac_has_its_own_domain() -> None:
    payload = bytes.fromhex(mint(KEY, CLAIMS).split(".")[0])
    assert mint(KEY, CLAIMS).split(".")[1] == hmac.new(KEY, DOMAIN + payload, hashlib.sha256).hexdigest()
    bare = f"{payload.hex()}.{hmac.new(KEY, payload, hashlib.sha256).hexdigest()}"
    with pytest.raises(DeniedError):
        verify(bare, KEY, "k1", **GOOD)


@given(st.lists(st.text(max_size=8), min_size=4, max_size=4), st.lists(st.text(max_size=8), min_size=4, max_size=4))
def test_the_encoding_is_injective(one: list[str], other: list[str]) -> None:
    tokens = {mint(KEY, Claims(a, b, c, NONCE, 1, 2, d)) for a, b, c, d in (one, other)}
    assert len(tokens) == (1 if one == other else 2)


def test_the_nonce_is_in_no_repr_and_not_at_rest() -> None:
    assert NONCE.hex() not in repr(CLAIMS)
    assert repr(NONCE) not in repr(CLAIMS)
    assert nonce_digest(NONCE) != NONCE
    assert nonce_digest(NONCE) != hashlib.sha256(NONCE).digest()


def test_what_cannot_be_minted() -> None:
    for claims in (replace(CLAIMS, nonce=b"x"), replace(CLAIMS, expires_ns=1_000), replace(CLAIMS, expires_ns=1 << 62)):
        with pytest.raises(InvalidError):
            mint(KEY, claims)
    with pytest.raises(InvalidError):
        mint(b"short", CLAIMS)
