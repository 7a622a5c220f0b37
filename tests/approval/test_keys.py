"""Approval keys come and go; what they minted stays good for its own time, and for no longer."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nucleus.approval.keys import LIFE_NS, MAX_KEYS, Keys
from nucleus.approval.token import TTL_NS, Claims, mint, verify_any
from nucleus.errors import DeniedError, InvalidError

WALL = 1_700_000_000_000_000_000
CLAIMS = Claims("ab" * 32, "spiffe://td/a", "p1", bytes(32), WALL, WALL + TTL_NS, "")


def fresh() -> Keys:
    numbers = itertools.count(1)
    return Keys(lambda size: next(numbers).to_bytes(size, "big"), 0)


def good(keys: Keys, text: str, mono_ns: int, now_ns: int = WALL) -> bool:
    try:
        keys.verify(
            text, operation_hash=CLAIMS.operation_hash, principal=CLAIMS.principal, pod="p1", now_ns=now_ns,
            mono_ns=mono_ns,
        )  # fmt: skip
    except DeniedError:
        return False
    return True


def test_a_token_outlives_its_key_by_its_own_life() -> None:
    keys = fresh()
    text = keys.mint(CLAIMS, 10)
    first = keys.key_id
    keys.rotate(20)
    assert keys.key_id != first
    other = keys.mint(CLAIMS, 30)
    assert good(keys, text, 40)
    assert good(keys, other, 40)
    assert good(keys, text, 20 + TTL_NS - 1)
    assert not good(keys, text, 20 + TTL_NS)  # by the monotonic clock, whatever the other one says
    assert good(keys, other, 20 + TTL_NS)
    assert len(keys) == 1


def test_the_wall_clock_ends_a_token_too() -> None:
    keys = fresh()
    text = keys.mint(CLAIMS, 10)
    keys.rotate(20)
    assert good(keys, text, 21, WALL + TTL_NS - 1)
    assert not good(keys, text, 21, WALL + TTL_NS)


def test_unknown_keys_and_lying_key_ids_are_refused() -> None:
    keys, others = fresh(), Keys(lambda size: b"\7" * size, 0)
    assert not good(keys, others.mint(CLAIMS, 0), 0)
    # A held key's MAC over another key's id: which key made it is not the token's to say.
    held = {"k1": b"\1" * 32, "k2": b"\2" * 32}
    facts = {"operation_hash": CLAIMS.operation_hash, "principal": CLAIMS.principal, "pod": "p1", "now_ns": WALL}
    assert verify_any(mint(held["k1"], replace(CLAIMS, key_id="k1")), held, **facts).key_id == "k1"  # type: ignore[arg-type]
    for key_id in ("k2", "k3", ""):
        with pytest.raises(DeniedError) as caught:
            verify_any(mint(held["k1"], replace(CLAIMS, key_id=key_id)), held, **facts)  # type: ignore[arg-type]
        assert caught.value.rule == "approval.token"
    with pytest.raises(DeniedError):
        verify_any(mint(held["k1"], replace(CLAIMS, key_id="k1")), {}, **facts)  # type: ignore[arg-type]


def test_every_held_key_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not which key fits, and not whether one does, is in the time that it takes."""
    from nucleus.approval import token

    keys = fresh()
    text = keys.mint(CLAIMS, 0)
    for _ in range(3):
        keys.rotate(1)
    newest = keys.mint(CLAIMS, 1)
    made: list[bytes] = []
    mac = token._mac

    def counted(key: bytes, payload: bytes) -> bytes:
        made.append(key)
        return mac(key, payload)

    monkeypatch.setattr(token, "_mac", counted)
    for one in (text, newest, newest[:-1] + ("0" if newest[-1] != "0" else "1")):
        made.clear()
        good(keys, one, 2)
        assert len(made) == 4


def test_a_key_changes_by_itself() -> None:
    keys = fresh()
    first = keys.key_id
    keys.maintain(LIFE_NS - 1)
    assert keys.key_id == first
    text = keys.mint(CLAIMS, LIFE_NS - 1)
    keys.maintain(LIFE_NS)
    assert keys.key_id != first
    assert good(keys, text, LIFE_NS + 1)
    keys.mint(CLAIMS, 3 * LIFE_NS)  # nobody was asked for two hours: the old one does not mint
    assert len(keys) == 2


def test_so_many_and_no_more() -> None:
    keys = fresh()
    texts = [keys.mint(CLAIMS, 0)]
    for _ in range(MAX_KEYS - 1):
        keys.rotate(0)
        texts.append(keys.mint(CLAIMS, 0))
    with pytest.raises(InvalidError) as caught:
        keys.rotate(TTL_NS - 1)
    assert caught.value.rule == "approval.keys"
    assert all(good(keys, text, TTL_NS - 1) for text in texts)  # none was forgotten for it
    keys.rotate(TTL_NS)
    assert [good(keys, text, TTL_NS) for text in texts] == [False] * (MAX_KEYS - 1) + [True]


@given(st.lists(st.tuples(st.sampled_from(("mint", "rotate", "maintain")), st.integers(0, TTL_NS)), max_size=30))
def test_a_token_is_good_until_it_ends_and_no_key_outlives_its_tokens(steps: list[tuple[str, int]]) -> None:
    keys, now, out = fresh(), 0, []
    for verb, wait in steps:
        now += wait
        if verb == "mint":
            out.append((now, keys.mint(replace(CLAIMS, not_before_ns=WALL + now, expires_ns=WALL + now + TTL_NS), now)))
        elif verb == "maintain":
            keys.maintain(now)
        elif len(keys) < MAX_KEYS:
            keys.rotate(now)
        for made, text in out:
            assert good(keys, text, now, WALL + now) == (now < made + TTL_NS)
    assert len(keys) <= MAX_KEYS


def test_neither_keys_nor_tokens_are_in_what_is_printed() -> None:
    keys = fresh()
    assert "0000" not in repr(keys).replace(keys.key_id, "")
    assert "key=" not in repr(keys._current)
