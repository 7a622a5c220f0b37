"""Taking a secret out of a stream: each occurrence replaced by asterisks of the same length, across any chunk border.

Promises: what comes out has the length of what went in once `end` was called; an ordinary stream is not held back, only
a tail that may be the beginning of a secret is. The secret is also found in the encodings that a service is likely to
echo it in: base64 (at each of the three offsets, both alphabets), hex, percent, JSON and HTML escapes.
Does not: find it in a compressed stream, or in an encoding that a service was made to choose (spelt backwards, a letter
at a time): it is a net under a rule that names who gets the credential, not the rule.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable
from urllib.parse import quote_from_bytes

LEAST_BYTES = 6  # of a secret: what is shorter cannot be told from ordinary text


class Scrubber:
    """One stream. `secrets`: bytes, each at least `LEAST_BYTES` long (ValueError otherwise: nothing is sent then)."""

    __slots__ = ("_held", "_masked", "_patterns")

    def __init__(self, secrets: Iterable[bytes]) -> None:
        self._patterns = patterns(secrets)
        self._held = b""  # the tail as it came, to match against
        self._masked = b""  # and as it will go out

    def feed(self, data: bytes) -> bytes:
        """What can go out, with `data` added."""
        if not self._patterns:
            return data
        seen = self._held + data
        out = bytearray(self._masked + data)
        for pattern in self._patterns:
            at = seen.find(pattern)
            while at >= 0:
                out[at : at + len(pattern)] = b"*" * len(pattern)
                at = seen.find(pattern, at + 1)
        keep = len(seen) - self._tail(seen)
        self._held, self._masked = seen[keep:], bytes(out[keep:])
        return bytes(out[:keep])

    def end(self) -> bytes:
        """The rest: the stream ended within what might have become a secret."""
        rest, self._held, self._masked = self._masked, b"", b""
        return rest

    def _tail(self, seen: bytes) -> int:
        """How many of the last bytes are the beginning of a pattern."""
        longest = 0
        for pattern in self._patterns:
            at = seen.find(pattern[:1], max(0, len(seen) - len(pattern) + 1))
            while at >= 0:
                if pattern.startswith(seen[at:]):
                    longest = max(longest, len(seen) - at)
                    break
                at = seen.find(pattern[:1], at + 1)
        return longest


def scrub(data: bytes, secrets: Iterable[bytes]) -> bytes:
    """`data`, whole, without the secrets."""
    scrubber = Scrubber(secrets)
    return scrubber.feed(data) + scrubber.end()


def patterns(secrets: Iterable[bytes]) -> tuple[bytes, ...]:
    """Every spelling that is looked for, longest first."""
    found: set[bytes] = set()
    for secret in secrets:
        if len(secret) < LEAST_BYTES:
            raise ValueError(f"a secret of fewer than {LEAST_BYTES} bytes cannot be kept out of an answer")
        found |= {secret, secret.hex().encode(), secret.hex().upper().encode()}
        found |= {quote_from_bytes(secret, safe="").encode(), quote_from_bytes(secret).encode()}
        text = secret.decode("latin-1")
        escaped = json.dumps(text)[1:-1]
        found |= {escaped.encode(), escaped.replace("/", "\\/").encode(), html.escape(text).encode("latin-1")}
        for offset in range(3):
            coded = base64.b64encode(bytes(offset) + secret)[(0, 2, 3)[offset] :]
            # The characters that also hold bits of what stands before or after it are not the secret's alone.
            whole = coded.rstrip(b"=")[: None if (offset + len(secret)) % 3 == 0 else -1]
            found |= {whole, whole.replace(b"+", b"-").replace(b"/", b"_")}
    return tuple(sorted(found, key=lambda pattern: (-len(pattern), pattern)))
