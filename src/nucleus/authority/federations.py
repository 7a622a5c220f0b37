"""Foreign trust domains, for the person who federates and for the workloads that may know them; our own bundle.

Promises: a change is on record before it holds, and told to the Workload API's listeners; a bundle reaches only the
callers of whom an entry names its trust domain. A bundle that came again unchanged is no record.
Relies on: `identity.federation`, which checks every bundle anew, whoever brought it.
Does not: fetch: the authority speaks to no network (`identity.bundle_client` does, as the person).
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING, Any

from nucleus.errors import DeniedError, NucleusError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from nucleus.authority.batch import Batch
    from nucleus.authority.identities import Issuer
    from nucleus.authority.peers import Channel
    from nucleus.identity.entries import Entry
    from nucleus.identity.federation import Federations, Published, Relationship


class Foreign:
    """See the module.

    Args:
        issuer: the trust domain's keys, and where the files are.
        trust_domain: ours.
        changed: tells the listeners.
    """

    def __init__(self, issuer: Issuer, trust_domain: str, changed: Callable[[], None]) -> None:
        self._issuer = issuer
        self._trust_domain = trust_domain
        self._changed = changed
        self._opened: Federations | None = None
        self._sequence: Published | None = None

    @property
    def all(self) -> Federations:
        """The foreign trust domains, read on first use. Raises NucleusError: the file is damaged."""
        if self._opened is None:
            from nucleus.identity.federation import Federations  # weight

            try:
                self._opened = Federations(self._issuer.federations_file, self._trust_domain)
            except OSError as error:
                raise _unusable(error) from error
        return self._opened

    # -- the person's ----------------------------------------------------------------------------------------------

    def listed(self, channel: Channel, ident: int, _: dict[str, Any], batch: Batch) -> None:
        """All, with what their bundles hold in numbers."""
        batch.answer(channel, ident, {"federations": [_shown(one) for one in self.all.all()]})

    def get(self, channel: Channel, ident: int, header: dict[str, Any], batch: Batch) -> None:
        """One, whole."""
        batch.answer(channel, ident, {"federation": self.all.get(header.get("trust_domain")).to_wire()})

    def add(self, channel: Channel, ident: int, header: dict[str, Any], batch: Batch) -> None:
        """A new one, with its first bundle."""
        from nucleus.identity.federation import make  # weight

        asked = {name: value for name, value in header.items() if name not in ("id", "op")}
        new = make(asked, self._trust_domain, batch.now_ns)
        self.all.check_new(new)

        def change() -> None:
            self.all.check_new(new)
            self.all.put(new)

        self._change(channel, ident, batch, "add", new, change)

    def update(self, channel: Channel, ident: int, header: dict[str, Any], batch: Batch) -> None:
        """Another bundle, or the same again."""
        name, document = header.get("trust_domain"), header.get("document")
        new = self.all.updated(name, document, batch.now_ns)
        before = self.all.get(name).bundle()

        def change() -> None:
            self.all.put(self.all.updated(name, document, new.fetched_ns))

        self._change(channel, ident, batch, "refresh", new, change, quiet=new.bundle() == before)

    def remove(self, channel: Channel, ident: int, header: dict[str, Any], batch: Batch) -> None:
        """Nothing of it counts any more."""
        found = self.all.get(header.get("trust_domain"))
        self._change(channel, ident, batch, "remove", found, lambda: self.all.remove(found.trust_domain))

    def _change(
        self,
        channel: Channel,
        ident: int,
        batch: Batch,
        verb: str,
        what: Relationship,
        change: Callable[[], None],
        *,
        quiet: bool = False,
    ) -> None:
        """On record, then done and told, then answered. `quiet`: it changes nothing but when it was looked at."""
        shown = _shown(what)
        if not quiet:
            who, context = f"uid:{channel.uid}", {"change": verb, **shown}
            batch.record("identity.federated", principal=who, operation=f"federation_{verb}", context=context)

        def then(error: NucleusError | None) -> None:
            try:
                if error is not None:
                    raise error
                change()
            except OSError as failed:
                channel.fail(ident, _unusable(failed))
            except NucleusError as failed:
                channel.fail(ident, failed)
            else:
                if not quiet:
                    self._changed()
                channel.answer(ident, {"federation": shown, "changed": not quiet})

        batch.answer(None, 0, None, recorded=not quiet, then=then)

    def document(self, pem: str, jwks: str, now_ns: int) -> str:
        """Our own bundle as a SPIFFE document, with its sequence. Raises NucleusError."""
        from nucleus.identity import bundle  # weight
        from nucleus.identity.federation import Published  # weight

        digest = hashlib.sha256(f"{pem}\0{jwks}".encode()).hexdigest()
        try:
            if self._sequence is None:
                self._sequence = Published(self._issuer.sequence_file)
            sequence = self._sequence.sequence(digest, now_ns)
        except OSError as error:
            raise _unusable(error) from error
        return json.dumps(bundle.document(pem, jwks, spiffe_sequence=sequence))

    # -- a workload's ----------------------------------------------------------------------------------------------

    def names(self, found: Iterable[Entry]) -> list[str]:
        """The foreign trust domains that a caller with these entries may know."""
        wanted = {name for entry in found for name in entry.federates_with}
        return [one.trust_domain for one in self.all.bundles(wanted)]

    def answer(self, found: Iterable[Entry], name: object) -> dict[str, Any]:
        """The bundle of one of those. Raises DeniedError: it is none of them."""
        if name not in self.names(found):
            raise DeniedError("no entry of this caller names that trust domain", rule="identity.federation")
        (one,) = self.all.bundles([str(name)])
        return {"x509": base64.b64encode(b"".join(one.x509)).decode("ascii"), "jwks": one.jwks}

    def of_gate(self, channel: Channel, ident: int, header: dict[str, Any], batch: Batch) -> None:
        """For a door, which has to know of whom it hears: all names, or the roots of one."""
        if "trust_domain" in header:
            one = self.all.get(header["trust_domain"]).bundle()
            batch.answer(channel, ident, {"x509": [base64.b64encode(der).decode("ascii") for der in one.x509]})
        else:
            batch.answer(channel, ident, {"trust_domains": [one.trust_domain for one in self.all.all()]})

    def digest(self, found: Iterable[Entry] | None = None) -> str:
        """A word that changes when the bundles of these entries do; None: any."""
        names = [one.trust_domain for one in self.all.all()] if found is None else self.names(found)
        return hashlib.sha256(repr(self.all.bundles(names)).encode()).hexdigest()


def _shown(one: Relationship) -> dict[str, Any]:
    """For people and for the record: what it is, and how much is in it."""
    found = one.bundle()
    fields = {name: value for name, value in one.to_wire().items() if name not in ("document", "web_roots")}
    return fields | {
        "sequence": found.sequence,
        "refresh_s": found.refresh_s,
        "x509_roots": len(found.x509),
        "jwt_keys": len(json.loads(found.jwks)["keys"]),
        "digest": hashlib.sha256(one.document.encode()).hexdigest(),
    }


def _unusable(error: OSError) -> NucleusError:
    return NucleusError(f"the foreign trust domains cannot be used: {error}", rule="identity.federation")
