"""Who may do what: lists of SPIFFE IDs, each under the subject that it is about (docs/adr/0023).

Subjects: `AGENTS` (who may call at all), `APPROVERS` (whose yes counts), `PODS` (who may start a pod under the policy),
and ``operations.NAME`` for each capability, ``tools`` and ``network``. A list holds exact IDs, prefixes that end in
``/*``, and `OWN`: what the pod itself is given (its agent, its orchestrator, what its gateway speaks for).

Promises: an entry names its trust domain, whole, so no list admits an ID of a domain that it does not name; a prefix
ends at a slash, so ``…/team/*`` is neither ``…/team`` nor ``…/teams/x``. Every list of a subject has to admit.
Relies on: the door, which has proven the ID. Does not: prove one. The grammar is the one of SPIFFE-ID, sections 2.1
to 2.3, as `identity.spiffe_id` has it (a shell room; a test holds the two together).
"""

from __future__ import annotations

import string
from collections.abc import Iterable

OWN = "own"
AGENTS, APPROVERS, PODS, OPERATIONS = "agents", "approvers", "pods", "operations"
MAX_LIST = 64
_SCHEME = "spiffe://"
_MAX_BYTES, _MAX_DOMAIN = 2_048, 255
_DOMAIN = frozenset(string.ascii_lowercase + string.digits + ".-_")
_SEGMENT = _DOMAIN | frozenset(string.ascii_uppercase)

Patterns = frozenset[str]
Identities = frozenset[tuple[str, Patterns]]  # subject and list; every list of a subject has to admit
DEFAULT: Identities = frozenset(((AGENTS, frozenset((OWN,))),))  # as it is where a policy says nothing


def complete(found: Identities) -> Identities:
    """With the pod's own as who may call, where nobody is named: no list at all would be the top."""
    return found if any(subject == AGENTS for subject, _ in found) else found | DEFAULT


def problem(pattern: str, *, own: bool) -> str:
    """Why this is no entry of a list, or "". `own`: the word for the pod's own is one."""
    if pattern == OWN:
        return "" if own else f"{OWN!r} is who runs in the pod, and no person"
    if len(pattern) > _MAX_BYTES:
        return f"a SPIFFE ID has at most {_MAX_BYTES} bytes"
    if not pattern.startswith(_SCHEME):
        return "a SPIFFE ID begins with spiffe://"
    domain, slash, path = pattern.removesuffix("/*")[len(_SCHEME) :].partition("/")
    if not 0 < len(domain) <= _MAX_DOMAIN or not set(domain) <= _DOMAIN:
        return "the trust domain is 1 to 255 of a-z 0-9 . - _, whole: no wildcard"
    for segment in path.split("/") if slash else ():
        if segment in ("", ".", "..") or not set(segment) <= _SEGMENT:
            return "a path has segments of A-Z a-z 0-9 . - _, none empty; only the last may be *"
    return ""


def matches(patterns: Iterable[str], spiffe_id: str, *, own: bool) -> bool:
    """Is this ID on one list? `own`: it is the pod's own."""
    return any(
        spiffe_id == pattern
        or (pattern == OWN and own)
        or (pattern.endswith("/*") and len(spiffe_id) >= len(pattern) and spiffe_id.startswith(pattern[:-1]))
        for pattern in patterns
        if spiffe_id or pattern == OWN
    )


def lists_of(found: Identities, subject: str) -> tuple[Patterns, ...]:
    """The lists of a subject in a fixed order; none: everybody."""
    return tuple(sorted((patterns for name, patterns in found if name == subject), key=sorted))


def admits(lists: Iterable[Patterns], spiffe_id: str, *, own: bool = False) -> bool:
    """Is this ID on every one of these lists?"""
    return all(matches(patterns, spiffe_id, own=own) for patterns in lists)


def covered(pattern: str, patterns: Patterns) -> bool:
    """Does a list admit whatever `pattern` does?"""
    return pattern in patterns or (
        pattern != OWN and any(one.endswith("/*") and pattern.startswith(one[:-1]) for one in patterns)
    )


def leq(a: Identities, b: Identities) -> bool:
    """Each list of b is implied by one of a of the same subject."""
    return all(
        any(name == subject and all(covered(one, theirs) for one in mine) for name, mine in a) for subject, theirs in b
    )
