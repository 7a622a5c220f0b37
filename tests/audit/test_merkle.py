"""RFC 6962's own examples, published roots, and every proof against the naive definition."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nucleus.audit.merkle import (
    EMPTY_ROOT,
    Prover,
    Roots,
    Tree,
    consistency_ranges,
    consistent,
    included,
    inclusion_ranges,
    leaf_hash,
    node_hash,
    root_from_inclusion,
)
from nucleus.errors import InvalidError

# The eight leaves and roots that certificate-transparency's and transparency-dev/merkle's tests share.
LEAVES = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def mth(lines: Sequence[bytes]) -> bytes:
    """RFC 6962 section 2.1, word by word."""
    if not lines:
        return hashlib.sha256().digest()
    if len(lines) == 1:
        return hashlib.sha256(b"\x00" + lines[0]).digest()
    k = 1
    while k * 2 < len(lines):
        k *= 2
    return hashlib.sha256(b"\x01" + mth(lines[:k]) + mth(lines[k:])).digest()


def path(m: int, lines: Sequence[bytes]) -> list[bytes]:
    """Section 2.1.1."""
    if len(lines) == 1:
        return []
    k = 1
    while k * 2 < len(lines):
        k *= 2
    if m < k:
        return [*path(m, lines[:k]), mth(lines[k:])]
    return [*path(m - k, lines[k:]), mth(lines[:k])]


def subproof(m: int, lines: Sequence[bytes], b: bool) -> list[bytes]:
    """Section 2.1.2."""
    if m == len(lines):
        return [] if b else [mth(lines)]
    k = 1
    while k * 2 < len(lines):
        k *= 2
    if m <= k:
        return [*subproof(m, lines[:k], b), mth(lines[k:])]
    return [*subproof(m - k, lines[k:], False), mth(lines[:k])]


def lines_of(count: int) -> list[bytes]:
    return [b"line %d" % number for number in range(count)]


def proof_of(ranges: list[tuple[int, int]], lines: list[bytes], piece: int = 3) -> list[bytes]:
    prover = Prover(ranges)
    for at in range(0, len(lines), piece):
        prover.extend(lines[at : at + piece])
    return prover.proof()


def test_the_published_roots() -> None:
    tree = Tree()
    assert (
        tree.root() == EMPTY_ROOT == bytes.fromhex("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
    )
    for leaf, root in zip(LEAVES, ROOTS, strict=True):
        tree.append(leaf_hash(leaf))
        assert tree.root().hex() == root
        assert mth(LEAVES[: tree.size]).hex() == root


def test_the_published_proofs() -> None:
    """RFC 6962 section 2.1.3: the seven leaves d0..d6 with the nodes a..l."""
    d = LEAVES[:7]
    a, b, c, dd, e, f, j = (leaf_hash(leaf) for leaf in d)
    g, h, i = node_hash(a, b), node_hash(c, dd), node_hash(e, f)
    k, m = node_hash(g, h), node_hash(i, j)
    assert proof_of(inclusion_ranges(0, 7), d) == [b, h, m]
    assert proof_of(inclusion_ranges(3, 7), d) == [c, g, m]
    assert proof_of(inclusion_ranges(4, 7), d) == [f, j, k]
    assert proof_of(inclusion_ranges(6, 7), d) == [i, k]
    assert proof_of(consistency_ranges(3, 7), d) == [c, dd, g, m]
    assert proof_of(consistency_ranges(4, 7), d) == [m]
    assert proof_of(consistency_ranges(6, 7), d) == [i, j, k]


def test_every_proof_of_every_small_tree() -> None:
    lines = lines_of(34)
    roots = [mth(lines[:size]) for size in range(35)]
    for size in range(1, 35):
        for index in range(size):
            proof = proof_of(inclusion_ranges(index, size), lines[:size])
            assert proof == path(index, lines[:size])
            assert included(leaf_hash(lines[index]), index, size, proof, roots[size])
            for other in range(size):
                assert other == index or not included(leaf_hash(lines[index]), other, size, proof, roots[size])
        for old in range(size + 1):
            proof = proof_of(consistency_ranges(old, size), lines[:size])
            assert proof == (subproof(old, lines[:size], True) if old else [])
            assert consistent(old, size, roots[old], roots[size], proof)


@given(st.integers(2, 3000), st.randoms(use_true_random=False))
def test_a_changed_proof_proves_nothing(size: int, rng: random.Random) -> None:
    lines = lines_of(size)
    tree = Tree()
    tree.extend(lines)
    index, old = rng.randrange(size), rng.randrange(1, size)
    leaf = leaf_hash(lines[index])
    proof = proof_of(inclusion_ranges(index, size), lines, 500)
    assert included(leaf, index, size, proof, tree.root())
    before = Tree()
    before.extend(lines[:old])
    grown = proof_of(consistency_ranges(old, size), lines, 77)
    assert consistent(old, size, before.root(), tree.root(), grown)
    for number in range(len(proof)):
        bad = [*proof[:number], bytes(32), *proof[number + 1 :]]
        assert not included(leaf, index, size, bad, tree.root())
        assert not included(leaf, index, size, proof[:number] + proof[number + 1 :], tree.root())
    assert not included(leaf, index, size, [*proof, bytes(32)], tree.root())
    assert not included(leaf_hash(b"other"), index, size, proof, tree.root())
    for number in range(len(grown)):
        bad = [*grown[:number], bytes(32), *grown[number + 1 :]]
        assert not consistent(old, size, before.root(), tree.root(), bad)
        assert not consistent(old, size, before.root(), tree.root(), grown[:number] + grown[number + 1 :])
    assert not consistent(old, size, before.root(), tree.root(), [*grown, bytes(32)])
    assert not consistent(old, size, bytes(32), tree.root(), grown)
    assert not consistent(old, size, before.root(), bytes(32), grown)


@given(
    st.integers(-2, 70), st.integers(-2, 70), st.lists(st.binary(max_size=33), max_size=9),
    st.binary(min_size=31, max_size=33),
)  # fmt: skip
def test_hostile_proofs_are_refused_without_an_exception(
    index: int, size: int, proof: list[bytes], root: bytes
) -> None:
    root_from_inclusion(root, index, size, proof)
    assert not included(bytes(32), index, size, proof, b"\x01" * 32)
    consistent(index, size, root, root, proof)


def test_the_bounds_of_the_arguments() -> None:
    for index, size in ((0, 0), (-1, 4), (4, 4), (0, 1 << 63)):
        with pytest.raises(InvalidError):
            inclusion_ranges(index, size)
    for old, new in ((5, 4), (-1, 4)):
        with pytest.raises(InvalidError):
            consistency_ranges(old, new)
    assert consistency_ranges(0, 9) == consistency_ranges(9, 9) == []
    assert not consistent(5, 4, EMPTY_ROOT, EMPTY_ROOT, [])
    assert not consistent(0, 4, bytes(32), bytes(32), [])
    with pytest.raises(InvalidError):
        Prover(inclusion_ranges(1, 5)).proof()


@given(st.lists(st.binary(max_size=20).map(lambda b: b.replace(b"\n", b"")), max_size=40), st.data())
def test_a_stream_in_any_pieces_has_the_same_roots(lines: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(line + b"\n" for line in lines) + b"torn"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    start = data.draw(st.integers(0, len(lines)))
    tree = Tree()
    tree.extend(lines[:start])
    tree = Tree.unpack(tree.pack()).copy()
    skipped = sum(len(line) + 1 for line in lines[:start])
    roots = Roots(range(60), tree)
    pieces = zip([0, *cuts], [*cuts, len(stream)], strict=True)
    for begin, end in pieces:
        roots.feed(stream[max(begin, skipped) : max(end, skipped)])
    assert roots.at == {size: mth(lines[:size]) for size in range(start, len(lines) + 1)}
    assert roots.offset == len(stream) - skipped - 4
    assert roots.tree.root() == mth(lines)


def test_a_packed_tree_has_one_spelling() -> None:
    tree = Tree()
    tree.extend(lines_of(5))
    for text in ("", "x", "5", "05 " + tree.pack()[2:], tree.pack() + "00", "7" + tree.pack()[1:], tree.pack().upper(),
                 "-1 ", "9" * 20 + " "):  # fmt: skip
        with pytest.raises(InvalidError):
            Tree.unpack(text)
