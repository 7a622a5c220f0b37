"""What may leave: text without the host's paths, names, secrets and stack traces (the seed's "Error Handling" table).

 1. stack traces collapse                       traces
 2. secrets, and machines' names, are replaced  secrets, rules, hosts
 3. paths are mapped                            paths
 4. unseen characters are written out           characters
 5. the whole is cut to 2,000 characters        (`sanitize` only)

Promises, for `sanitize`, `redact` and `sanitize_paths` alike: applied twice it changes nothing more (the steps are
repeated until the text rests; one that does not within `_ROUNDS` is withheld whole); linear time; never raises on a
string; a result of at most ten times the length of what came in, and of `sanitize` at most `LIMIT` characters.
Relies on Python's `re`, with patterns that cannot backtrack more than a bounded way (tests scan and time each): RE2
needs two to five times as long to replace in a `str`, and would be one more thing to load (bench/sanitize.py).
Does not: look anything up, keep anything, or find what has neither a shape nor a name.
"""

from __future__ import annotations

from collections.abc import Callable

from nucleus.sanitize import hosts, secrets
from nucleus.sanitize.characters import printable
from nucleus.sanitize.paths import map_paths
from nucleus.sanitize.traces import collapse

__all__ = ["LIMIT", "redact", "sanitize", "sanitize_paths"]

LIMIT = 2_000  # characters of one sanitized text
_INPUT = 65_536  # characters looked at; what is cut away here is not shown anyhow, as the result is cut to LIMIT
_ROUNDS = 6
_WITHHELD = "[withheld]"


def sanitize(text: str, sandbox_roots: tuple[str, ...] = ("/workspace",), own_hosts: tuple[str, ...] = ()) -> str:
    """Text for whoever is outside: all five steps.

    Args:
        text: any message; at most 65,536 characters of it are looked at.
        sandbox_roots: absolute directories that are the sandbox.
        own_hosts: internal names and addresses that may be shown, in lower case.
    """
    roots = _ordered(sandbox_roots)

    def once(value: str) -> tuple[str, bool]:
        collapsed, traced = collapse(value)
        replaced, found = _replaced(collapsed, True, own_hosts)
        mapped, moved = map_paths(replaced, roots)
        shown = printable(mapped)
        more = traced or found or moved or shown is not mapped or len(shown) > LIMIT
        return _cut(shown), more

    if len(text) > _INPUT:
        # A secret that the cut would halve must not be shown: cut once more at a blank before it.
        text = text[:_INPUT]
        text = text[: max(text.rfind(" "), text.rfind("\n"), 0)] + "…"
    return _rested(text, once)


def redact(text: str) -> str:
    """Return `text` with every known secret replaced by ``[redacted]``."""
    return _rested(text, lambda value: _replaced(value, False, ()))


def sanitize_paths(text: str, sandbox_roots: tuple[str, ...] = ("/workspace",)) -> str:
    """Return `text` with every absolute path mapped.

    Args:
        text: any message, of bounded length.
        sandbox_roots: absolute directories that are the sandbox.
    """
    roots = _ordered(sandbox_roots)
    return _rested(text, lambda value: map_paths(value, roots))


def _rested(text: str, once: Callable[[str], tuple[str, bool]]) -> str:
    """Repeat `once` (the text, and whether another round could change it) until the text rests."""
    for _ in range(_ROUNDS):
        after, more = once(text)
        if not more or after == text:
            return after
        text = after
    return _WITHHELD


def _ordered(roots: tuple[str, ...]) -> tuple[str, ...]:
    """Without slashes at the end, the innermost first; the root directory is nobody's sandbox."""
    if len(roots) == 1 and roots[0][-1:] not in ("/", ""):
        return roots
    return tuple(sorted((root.rstrip("/") for root in roots if root.strip("/")), key=len, reverse=True))


def _replaced(text: str, with_hosts: bool, own_hosts: tuple[str, ...]) -> tuple[str, bool]:
    low = text.lower()
    if len(low) != len(text):  # a letter whose small form is longer: only ASCII is folded, so that places agree
        low = "".join([c.lower() if c.isascii() else c for c in text])
    found = secrets.spans(text, low)
    if with_hosts:
        found += hosts.spans(text, low, own_hosts)
    if not found:
        return text, False
    out: list[str] = []
    done = 0
    for start, end, label in sorted(found):
        if start < done:
            done = max(done, end)
            continue
        out += (text[done:start], label)
        done = end
    return "".join(out) + text[done:], True


def _cut(text: str) -> str:
    return text if len(text) <= LIMIT else text[: LIMIT - 1] + "…"
