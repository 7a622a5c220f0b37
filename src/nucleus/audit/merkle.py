"""The Merkle tree over the log (RFC 6962 section 2.1, RFC 9162 section 2.1): roots, proofs and their checks.

leaf  = SHA-256(0x00 || the line's stored bytes without LF);  node = SHA-256(0x01 || left || right)
The tree of n leaves is split at the largest power of two below n; the empty tree's root is SHA-256 of nothing.

Promises: a `Tree` grows in amortized two hashes a line and O(log n) memory, and its state can be packed and gone on
with; a proof is made in one pass over the log with O(log n) memory; the checks bound what they read by the tree's
size and never raise on hostile input.
Does not: say whose root it is (`note`, `checkpoint`), or look into a line (`verify`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from nucleus.errors import InvalidError

HASH_BYTES = 32
MAX_SIZE = (1 << 63) - 1
EMPTY_ROOT = hashlib.sha256(b"").digest()
Range = tuple[int, int]
"""Leaves [first, end)."""


def leaf_hash(line: bytes) -> bytes:
    """The leaf of one line, given without its LF."""
    return hashlib.sha256(b"\0" + line).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """An inner node."""
    return hashlib.sha256(b"\1" + left + right).digest()


class Tree:
    """A growing tree's right edge: the roots of its perfect subtrees, largest first (one for each 1 bit of `size`)."""

    __slots__ = ("_edge", "size")

    def __init__(self) -> None:
        self.size = 0
        self._edge: list[bytes] = []

    def append(self, leaf: bytes) -> None:
        """One more leaf hash."""
        edge = self._edge
        size = self.size
        while size & 1:
            leaf = hashlib.sha256(b"\1" + edge.pop() + leaf).digest()
            size >>= 1
        edge.append(leaf)
        self.size += 1

    def extend(self, lines: Iterable[bytes]) -> None:
        """The lines' leaves, each line without its LF."""
        sha256, append = hashlib.sha256, self.append
        for line in lines:
            append(sha256(b"\0" + line).digest())

    def root(self) -> bytes:
        """The root over everything so far."""
        if not self._edge:
            return EMPTY_ROOT
        *rest, root = self._edge
        for left in reversed(rest):
            root = node_hash(left, root)
        return root

    def copy(self) -> Tree:
        """Another tree in the same state."""
        other = Tree()
        other.size, other._edge = self.size, self._edge.copy()
        return other

    def pack(self) -> str:
        """The state as text: the size, then the edge in hex."""
        return f"{self.size} {b''.join(self._edge).hex()}"

    @classmethod
    def unpack(cls, text: str) -> Tree:
        """The tree that `pack` wrote. Raises InvalidError."""
        size, _, edge = text.partition(" ")
        if not (size.isascii() and size.isdigit()) or len(size) > 19:
            raise InvalidError("not a tree's state", rule="audit.tree")
        try:
            data = bytes.fromhex(edge)
        except ValueError:
            raise InvalidError("not a tree's state", rule="audit.tree") from None
        tree = cls()
        tree.size = int(size)
        tree._edge = [data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)]
        if len(data) != HASH_BYTES * tree.size.bit_count() or tree.pack() != text:
            raise InvalidError("not a tree's state", rule="audit.tree")
        return tree


class Roots:
    """A log's bytes in, the tree's root at given sizes out, in one pass.

    Args:
        sizes: where to note the root in `at`; those below the start are never met.
        tree: to go on from, changed in place; default: the beginning of the log.
    """

    def __init__(self, sizes: Iterable[int] = (), tree: Tree | None = None) -> None:
        self.tree = tree if tree is not None else Tree()
        self.at: dict[int, bytes] = {}
        self.offset = 0  # bytes fed that belong to whole lines
        self._wanted = sorted({size for size in sizes if size >= self.tree.size}, reverse=True)
        self._rest = b""
        self._note()

    def feed(self, chunk: bytes) -> None:
        """The next bytes; what follows the last LF is kept for the next chunk."""
        data = self._rest + chunk
        lines = data.split(b"\n")
        self._rest = lines.pop()
        self.offset += len(data) - len(self._rest)
        done = 0
        while self._wanted and self._wanted[-1] - self.tree.size <= len(lines) - done:
            upto = done + self._wanted[-1] - self.tree.size
            self.tree.extend(lines[done:upto])
            done = upto
            self._note()
        self.tree.extend(lines[done:] if done else lines)

    def _note(self) -> None:
        if self._wanted and self._wanted[-1] == self.tree.size:
            self.at[self._wanted.pop()] = self.tree.root()


class Prover:
    """Feed the log's lines; out come the hashes of a proof, given as `inclusion_ranges` or `consistency_ranges`."""

    def __init__(self, ranges: Sequence[Range]) -> None:
        self._ranges = list(ranges)
        self._todo = sorted(ranges, reverse=True)
        self._done: dict[Range, bytes] = {}
        self._tree = Tree()
        self._at = 0

    def extend(self, lines: Sequence[bytes]) -> None:
        """The next lines, each without its LF."""
        at, end = self._at, self._at + len(lines)
        start = at
        while self._todo and self._todo[-1][0] < end:
            wanted = self._todo[-1]
            stop = min(wanted[1], end)
            self._tree.extend(lines[max(wanted[0], at) - start : stop - start])
            if stop < wanted[1]:
                break
            self._done[self._todo.pop()] = self._tree.root()
            self._tree = Tree()
            at = stop
        self._at = end

    def proof(self) -> list[bytes]:
        """The hashes, in the proof's order. Raises InvalidError: the log was shorter than the proof's tree."""
        if self._todo:
            raise InvalidError("the log ends before the proof's tree", rule="audit.proof")
        return [self._done[wanted] for wanted in self._ranges]


def inclusion_ranges(index: int, size: int) -> list[Range]:
    """PATH(index, D[size]) of RFC 6962 section 2.1.1: the subtrees whose roots prove a leaf, leaf's sibling first.

    Raises:
        InvalidError: no such leaf.
    """
    if not 0 <= index < size <= MAX_SIZE:
        raise InvalidError("no such leaf in a tree of that size", rule="audit.proof")
    path: list[Range] = []
    first, end = 0, size
    while end - first > 1:
        middle = first + _split(end - first)
        if index < middle:
            path.append((middle, end))
            end = middle
        else:
            path.append((first, middle))
            first = middle
    return path[::-1]


def consistency_ranges(old: int, new: int) -> list[Range]:
    """PROOF(old, D[new]) of RFC 6962 section 2.1.2: the subtrees whose roots prove that D[old] is a prefix of D[new].

    Empty for equal sizes and for an old tree that is empty. Raises InvalidError: the old tree is the larger one.
    """
    if not 0 <= old <= new <= MAX_SIZE:
        raise InvalidError("a tree does not grow to a smaller size", rule="audit.proof")
    if old in (0, new):
        return []
    path: list[Range] = []
    first, end, whole = 0, new, True  # `whole`: what is left of the old tree is the old tree itself
    while first + old != end:
        split = _split(end - first)
        if old <= split:
            path.append((first + split, end))
            end = first + split
        else:
            path.append((first, first + split))
            first, old, whole = first + split, old - split, False
    if not whole:
        path.append((first, end))
    return path[::-1]


def root_from_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes]) -> bytes | None:
    """The root that an inclusion proof leads to (RFC 9162 section 2.1.3.2); None when it proves nothing."""
    if not 0 <= index < size <= MAX_SIZE or not _hashes([leaf, *proof]):
        return None
    at, last, root = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            return None
        if at & 1 or at == last:
            root = node_hash(sibling, root)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            root = node_hash(root, sibling)
        at, last = at >> 1, last >> 1
    return root if last == 0 else None


def included(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """The leaf is at `index` (from 0) in the tree of `size` leaves with that root."""
    return root_from_inclusion(leaf, index, size, proof) == root


def consistent(old: int, new: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]) -> bool:
    """The tree of `old` leaves is a prefix of the tree of `new` leaves (RFC 9162 section 2.1.4.2)."""
    if not 0 <= old <= new <= MAX_SIZE or not _hashes([old_root, new_root, *proof]):
        return False
    if old == new:
        return not proof and old_root == new_root
    if old == 0:
        return not proof and old_root == EMPTY_ROOT
    path = list(proof)
    if old & (old - 1) == 0:
        path.insert(0, old_root)
    if not path:
        return False
    at, last = old - 1, new - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    was = now = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if at & 1 or at == last:
            was, now = node_hash(sibling, was), node_hash(sibling, now)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            now = node_hash(now, sibling)
        at, last = at >> 1, last >> 1
    return last == 0 and was == old_root and now == new_root


def _split(size: int) -> int:
    """The largest power of two below `size` (2 or more)."""
    return 1 << ((size - 1).bit_length() - 1)


def _hashes(values: Sequence[bytes]) -> bool:
    return len(values) <= 130 and all(len(value) == HASH_BYTES for value in values)
