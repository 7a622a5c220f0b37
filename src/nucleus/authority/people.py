"""People by their SPIFFE IDs: what a local user, proven by the kernel, is called; which lists of a policy name them.

Steps, for a uid that SO_PEERCRED gave (the builder stamps it on the channel; nothing that arrives there changes it):
 1. ``spiffe://<trust domain>/user/uid/<uid>``, which no entry and no request can give to anybody else
 2. beside it, the IDs of the registration entries of which the uid alone fulfils every selector (``unix:uid:1000``)
 3. less what is revoked; who is revoked by the name of step 1 is nobody at all
A program of theirs may have a name by more than the uid (its path, its digest): `may_be` has these, too, for whose
request it is.
Promises: read anew for each question, so that an entry that goes and a revocation hold from the next answer on; a list
of entries or of revocations that is damaged makes nobody of everybody (the error is the caller's).
Does not: attest, or know what a policy's lists are about.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nucleus.errors import InvalidError
from nucleus.identity.entries import Facts, local_user

if TYPE_CHECKING:
    from nucleus.authority.identities import Issuer
    from nucleus.authority.workloads import Workloads

MAX_LISTS, MAX_PATTERNS, PATTERN_BYTES = 64, 64, 2_048
_NOBODY = 0xFFFFFFFF  # as a gid: no selector holds for it
Lists = tuple[frozenset[str], ...]


class People:
    """See the module.

    Args:
        trust_domain: of the names.
        issuer: whose revocations count.
        workloads: whose entries count.
    """

    def __init__(self, trust_domain: str, issuer: Issuer, workloads: Workloads) -> None:
        self._trust_domain = trust_domain
        self._issuer = issuer
        self._workloads = workloads

    def of(self, uid: int) -> tuple[str, ...]:
        """The SPIFFE IDs of a local user, those of entries first; () where they are revoked. Raises NucleusError."""
        blocked = self._issuer.revocations.blocked
        local = local_user(self._trust_domain, uid)  # 1
        if blocked(local):
            return ()
        entries = self._workloads.entries.matching(Facts(uid, _NOBODY))  # 2
        return (*(one.spiffe_id for one in entries if not blocked(one.spiffe_id)), local)  # 3

    def may_be(self, uid: int) -> frozenset[str]:
        """Whatever a program of this user's can be called: also by entries that ask for more than the uid.

        Raises NucleusError.
        """
        wanted = f"unix:uid:{uid}"
        entries = {one.spiffe_id for one in self._workloads.entries.all() if wanted in one.selectors}
        return frozenset((*self.of(uid), *entries))


def named(lists: Lists, names: tuple[str, ...]) -> str:
    """The first of these names that every list admits, "" for none."""
    from nucleus.lattice.identities import admits  # weight: only where a policy names people

    return next((name for name in names if admits(lists, name)), "")


def read_lists(header: dict[str, Any], name: str) -> Lists:
    """Lists of SPIFFE IDs as a gate or the builder sends them; () for everybody. Raises InvalidError."""
    value = header.get(name, [])
    if not isinstance(value, list) or len(value) > MAX_LISTS:
        raise InvalidError(f"{name} is not a short list", rule="frames.field")
    for patterns in value:
        if not isinstance(patterns, list) or len(patterns) > MAX_PATTERNS:
            raise InvalidError(f"{name} is not lists of SPIFFE IDs", rule="frames.field")
        if not all(isinstance(one, str) and one.isascii() and len(one) <= PATTERN_BYTES for one in patterns):
            raise InvalidError(f"{name} is not lists of SPIFFE IDs", rule="frames.field")
    return tuple(map(frozenset, value))
