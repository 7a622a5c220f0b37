"""SPIFFE IDs: parsed exactly by the standard, never normalized.

Promises: a `SpiffeId` that exists is valid by SPIFFE-ID sections 2.1 to 2.3, and `str` of it is byte for byte the text
it was parsed from. There is no folding, decoding or trimming: two IDs are the same when their texts are.
Relies on: nothing but strings (pure; safe to import anywhere).
Does not: say whether an ID exists, may be issued, or was proven; that is `ca`, `workload` and `verify`.

The checks, in order:
1. length, before any other work (2,048 bytes)
2. the literal scheme ``spiffe://``
3. trust domain: 1 to 255 of ``[a-z0-9._-]``: no user info, port, percent-encoding or capitals
4. path: empty, or ``/``-led segments of ``[A-Za-z0-9._-]``, none empty, ``.`` or ``..`` (so no trailing slash,
   query, fragment, white space or line end)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nucleus.errors import InvalidError

MAX_ID_BYTES = 2_048
MAX_TRUST_DOMAIN_BYTES = 255
SCHEME = "spiffe://"
_DOMAIN_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789.-_")
_SEGMENT_CHARACTERS = _DOMAIN_CHARACTERS | frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


@dataclass(frozen=True, slots=True)
class SpiffeId:
    """One valid SPIFFE ID.

    Args:
        trust_domain: the authority part, e.g. ``example.org``.
        path: "" for the trust domain itself, else starting with ``/``.

    Raises:
        InvalidError: the parts do not make a valid ID.
    """

    trust_domain: str
    path: str = ""

    def __post_init__(self) -> None:
        _check_text(self.trust_domain)
        _check_text(self.path)
        if len(SCHEME) + len(self.trust_domain) + len(self.path) > MAX_ID_BYTES:  # 1
            raise InvalidError(f"SPIFFE ID over {MAX_ID_BYTES} bytes", rule="spiffe.length")
        if not self.trust_domain or len(self.trust_domain) > MAX_TRUST_DOMAIN_BYTES:  # 3
            raise InvalidError(f"trust domain is not 1 to {MAX_TRUST_DOMAIN_BYTES} bytes", rule="spiffe.trust_domain")
        if not _DOMAIN_CHARACTERS.issuperset(self.trust_domain):
            raise InvalidError("trust domain has a character outside a-z 0-9 . - _", rule="spiffe.trust_domain")
        if self.path:  # 4
            head, *segments = self.path.split("/")
            if head:
                raise InvalidError("path does not start with a slash", rule="spiffe.path")
            for segment in segments:
                _check_segment(segment)

    @classmethod
    def parse(cls, text: str) -> SpiffeId:
        """Return the ID that `text` is.

        Raises:
            InvalidError: it is not a SPIFFE ID (SPIFFE-ID sections 2.1 to 2.3); the text is not repeated in the error.
        """
        _check_text(text)
        if len(text) > MAX_ID_BYTES:  # 1
            raise InvalidError(f"SPIFFE ID over {MAX_ID_BYTES} bytes", rule="spiffe.length")
        if not text.startswith(SCHEME):  # 2
            raise InvalidError("not a spiffe:// URI", rule="spiffe.scheme")
        trust_domain, slash, rest = text[len(SCHEME) :].partition("/")
        return cls(trust_domain, slash + rest)

    @classmethod
    def for_workload(cls, trust_domain: str, namespace: str, name: str) -> SpiffeId:
        """Return ``spiffe://<trust_domain>/ns/<namespace>/sa/<name>``; namespace and name are one segment each.

        Raises:
            InvalidError: a part is not a valid segment (a slash in it is not: it would name something else).
        """
        for segment in (namespace, name):
            _check_text(segment)
            _check_segment(segment)
        return cls(trust_domain, f"/ns/{namespace}/sa/{name}")

    def __str__(self) -> str:
        return f"{SCHEME}{self.trust_domain}{self.path}"


def _check_text(value: Any) -> None:
    # Values come from JSON and certificates: the annotation alone proves nothing.
    if not isinstance(value, str):
        raise InvalidError("a SPIFFE ID is made of text", rule="spiffe.type")


def _check_segment(segment: str) -> None:
    if segment in ("", ".", ".."):
        raise InvalidError("path has an empty or dot segment", rule="spiffe.path")
    if not _SEGMENT_CHARACTERS.issuperset(segment):
        raise InvalidError("path has a character outside A-Z a-z 0-9 . - _", rule="spiffe.path")
