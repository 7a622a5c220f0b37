"""Signatures at the edges of Ed25519, by name (after RFC 8032 and the cases that Wycheproof made a list of)."""

from __future__ import annotations

import base64

import pytest

from nucleus.audit.note import ED25519, VerifierKey
from nucleus.errors import InvalidError

L = 2**252 + 27742317777372353535851937790883648493
P = 2**255 - 19

# RFC 8032 section 7.1: public key, message, signature.
VECTORS = [
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe2465"
        "5141438e7a100b",
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb0"
        "0d291612bb0c00",
    ),
    (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025", "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc0"
        "27beceea1ec40a",
    ),
]  # fmt: skip


def key(public: bytes) -> VerifierKey:
    return VerifierKey("log", ED25519, public)


@pytest.mark.parametrize(("public", "message", "signature"), VECTORS)
def test_the_published_vectors(public: str, message: str, signature: str) -> None:
    assert key(bytes.fromhex(public)).verifies(bytes.fromhex(message), bytes.fromhex(signature))


def _number(value: int) -> bytes:
    return value.to_bytes(32, "little")


PUBLIC, MESSAGE, SIGNATURE = (bytes.fromhex(text) for text in VECTORS[2])
R, S = SIGNATURE[:32], int.from_bytes(SIGNATURE[32:], "little")


@pytest.mark.parametrize(
    ("name", "signature"),
    [
        ("empty", b""),
        ("truncated by one", SIGNATURE[:-1]),
        ("one byte more", SIGNATURE + b"\0"),
        ("R alone", R),
        ("all zero", bytes(64)),
        ("all ones", b"\xff" * 64),
        ("S is 0", R + _number(0)),
        ("S is 1", R + _number(1)),
        ("malleable: S + L", R + _number(S + L)),
        ("malleable: S + 2 L", R + _number(S + 2 * L)),
        ("S is L", R + _number(L)),
        ("the top bit of S set", R + _number(S | 1 << 255)),
        ("the sign of R flipped", R[:31] + bytes([R[31] ^ 0x80]) + SIGNATURE[32:]),
        ("R is the neutral element", _number(1) + SIGNATURE[32:]),
        ("R not reduced: p", _number(P) + SIGNATURE[32:]),
        ("R not reduced: p + 1", _number(P + 1) + SIGNATURE[32:]),
        ("R and S changed places", SIGNATURE[32:] + R),
        ("another message's", bytes.fromhex(VECTORS[1][2])),
    ],
)  # fmt: skip
def test_a_signature_that_is_none_is_refused(name: str, signature: bytes) -> None:
    assert not key(PUBLIC).verifies(MESSAGE, signature), name


def test_every_bit_of_a_signature_and_of_its_message_counts() -> None:
    good = key(PUBLIC)
    for data, other in ((SIGNATURE, False), (MESSAGE, True)):
        for bit in range(8 * len(data)):
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            assert not good.verifies(*((bytes(changed), SIGNATURE) if other else (MESSAGE, bytes(changed)))), bit


# y = 1, -1, 0, and the two pairs of order 8; with either sign, and where it is below 2**255, not reduced
_ORDER_8 = (
    0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7,
    0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826,
)
SMALL = [y | sign << 255 for y in (0, 1, P - 1, P, P + 1, *_ORDER_8) for sign in (0, 1)]


def _add(one: tuple[int, int], two: tuple[int, int]) -> tuple[int, int]:
    """RFC 8032 section 5.1.4, affine."""
    d = -121665 * pow(121666, -1, P) % P
    (a, b), (c, e) = one, two
    k = d * a * b * c * e % P
    return (a * e + b * c) * pow(1 + k, -1, P) % P, (b * e + a * c) * pow(1 - k, -1, P) % P


def _x(y: int) -> int:
    """Section 5.1.3: one of the two."""
    d = -121665 * pow(121666, -1, P) % P
    square = (y * y - 1) * pow(d * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    x = x if x * x % P == square else x * pow(2, (P - 1) // 4, P) % P
    assert x * x % P == square
    return x


def test_the_list_is_the_whole_torsion() -> None:
    """Eight points: order 1, 2, twice 4, four times 8."""
    points = {(x, y % P) for y in (0, 1, P - 1, *_ORDER_8) for x in (_x(y % P), -_x(y % P) % P)}
    assert len(points) == 8
    for point in points:
        sum_ = (0, 1)
        for _ in range(8):
            sum_ = _add(sum_, point)
        assert sum_ == (0, 1)


@pytest.mark.parametrize("value", SMALL)
def test_a_public_key_of_small_order_is_none(value: int) -> None:
    """Under such a key one signature can be good for any message."""
    with pytest.raises(InvalidError) as caught:
        key(_number(value))
    assert caught.value.rule == "audit.key"


def test_nor_is_it_one_as_text() -> None:
    public = _number(1)
    text = base64.b64encode(bytes([ED25519]) + public).decode()
    with pytest.raises(InvalidError):
        VerifierKey.parse(f"log+00000000+{text}")


def test_a_key_that_is_not_on_the_curve_verifies_nothing() -> None:
    assert not key(_number(2)).verifies(MESSAGE, SIGNATURE)
