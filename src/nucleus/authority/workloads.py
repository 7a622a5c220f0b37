"""What the SPIFFE Workload API hands out: registration entries of workloads that are no pods, and pods' identities.

Three kinds of channel (docs/design.md): IDENTITY, the person's, who lists and changes entries and may have an SVID
made; WORKLOAD_API, the attesting listener's, which says what the kernel told of a caller and gets what is the caller's;
and POD_WORKLOAD_API, of one pod, on which there is one identity, whatever is said
(docs/adr/0019-workload-api-in-pods.md).

Steps for a caller:
1. strict facts; a fact that is not there lets no selector hold
2. the entries of which every selector holds; none: refused, on record. In a pod: its one ID, for its one uid
3. an SVID for each, each on record, durable before the answer leaves
Promises: an entry changes only after its change is on record. A flood of refusals of one uid is one record of each
reason every `REFUSED_EVERY_NS`, with the number of those that are not written.
Does not: attest (`identity.attestation`), speak gRPC (`identity.workload_api`).
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING, Any

from nucleus.authority import fields
from nucleus.authority.federations import Foreign
from nucleus.authority.peers import (
    IDENTITY,
    POD_READ_BURST,
    POD_READ_EVERY_NS,
    POD_WORKLOAD_API,
    WORKLOAD_API,
    WORKLOAD_BURST,
    WORKLOAD_EVERY_NS,
    Bucket,
)
from nucleus.errors import BudgetError, DeniedError, InvalidError, NucleusError
from nucleus.identity import entries as registration
from nucleus.identity import revocation
from nucleus.identity.entries import Entries, Entry, Facts
from nucleus.identity.spiffe_id import SpiffeId
from nucleus.identity.svid import X509Svid, pem_to_der

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from nucleus.authority.batch import Batch
    from nucleus.authority.identities import Issuer
    from nucleus.authority.peers import Channel

SECOND_NS = 1_000_000_000
JWT_TTL_NS = 300 * SECOND_NS
REFUSED_EVERY_NS = 10 * SECOND_NS
_REFUSED = 1_024  # uids and reasons of which the last refusal is remembered
_FACTS = frozenset({"uid", "gid", "groups", "path", "sha256", "pod", "pid"})
_MAX_GROUPS = 65_536  # Linux's own bound, limits.h NGROUPS_MAX
_ISSUING = frozenset({"x509", "jwt"})


class _Rates:
    """How much one pod has asked for, whichever of its processes asked."""

    def __init__(self) -> None:
        self._issuing = Bucket(WORKLOAD_BURST, WORKLOAD_EVERY_NS)
        self._reading = Bucket(POD_READ_BURST, POD_READ_EVERY_NS)
        self.refused = 0

    def take(self, op: object, mono_ns: int) -> bool:
        within = (self._issuing if op in _ISSUING else self._reading).take(mono_ns)
        self.refused += not within
        return within


class Workloads:
    """See the module.

    Args:
        issuer: the trust domain's keys, and where the entries are.
        trust_domain: of every name here.
        gates: the channels of the gates that run, by pod: told of a revocation, and of other foreign bundles, as soon
            as it is durable.
    """

    def __init__(self, issuer: Issuer, trust_domain: str, gates: Mapping[str, Channel]) -> None:
        self._issuer = issuer
        self._trust_domain = trust_domain
        self._gates = gates
        self._listeners: set[Channel] = set()
        self._opened: Entries | None = None
        self.foreign = Foreign(issuer, trust_domain, self._federated_otherwise)
        # (uid, pod, reason) -> when the last was written, how many were not since
        self._refused: dict[tuple[int, str, str], tuple[int, int]] = {}
        self._rates: dict[str, _Rates] = {}

    @property
    def entries(self) -> Entries:
        """The entries, read on first use. Raises NucleusError: the file is damaged."""
        if self._opened is None:
            try:
                self._opened = Entries(self._issuer.entries_file, self._trust_domain)
            except OSError as error:
                raise NucleusError(f"the entries cannot be read: {error}", rule="identity.entries") from error
        return self._opened

    def handle(self, channel: Channel, ident: int, header: dict[str, Any], batch: Batch) -> None:
        """One request of any of the kinds of channel. Raises NucleusError."""
        serve = _REQUESTS[channel.kind].get(str(header.get("op")))
        if serve is None:
            raise InvalidError("unknown request for an identity channel", rule="frames.op")
        if channel.kind == POD_WORKLOAD_API:
            rates = self._rates.setdefault(channel.pod, _Rates())
            if not rates.take(header.get("op"), batch.mono_ns):
                raise BudgetError("too many requests of this pod", rule="identity.rate")
        serve(self, channel, ident, header, batch)

    # -- the person's ----------------------------------------------------------------------------------------------

    def _show(self, channel: Channel, ident: int, _: dict[str, Any], batch: Batch) -> None:
        now = batch.now_ns
        answer = {
            "trust_domain": self._trust_domain,
            "roots": self._issuer.root_facts(now),
            "jwt_keys": list(self._issuer.jwt_keys(now).public(now)),
            "entries": len(self.entries.all()),
        }
        batch.answer(channel, ident, answer)

    def _bundle(self, channel: Channel, ident: int, _: dict[str, Any], batch: Batch) -> None:
        now = batch.now_ns
        pem, jwks = self._issuer.bundle_pem(now), self._jwks(now)
        document = self.foreign.document(pem, jwks, now)
        batch.answer(channel, ident, {"pem": pem, "jwks": jwks, "document": document})

    def _federations(self, channel: Channel, ident: int, header: dict[str, Any], batch: Batch) -> None:
        self.foreign.listed(channel, ident, header, batch)

    def _federation(self, channel: Channel, ident: int, header: dict[str, Any], batch: Batch) -> None:
        self.foreign.get(channel, ident, header, batch)

    def _federate(self, channel: Channel, ident: int, header: dict[str, Any], batch: Batch) -> None:
        self.foreign.add(channel, ident, header, batch)

    def _federation_update(self, channel: Channel, ident: int, header: dict[str, Any], batch: Batch) -> None:
        self.foreign.update(channel, ident, header, batch)

    def _federation_remove(self, channel: Channel, ident: int, header: dict[str, Any], batch: Batch) -> None:
        self.foreign.remove(channel, ident, header, batch)

    def _list(self, channel: Channel, ident: int, _: dict[str, Any], batch: Batch) -> None:
        batch.answer(channel, ident, {"entries": [entry.to_wire() for entry in self.entries.all()]})

    def _add(self, channel: Channel, ident: int, header: dict[str, Any], batch: Batch) -> None:
        asked = {name: value for name, value in header.items() if name not in ("id", "op")}
        if "entry" in asked:
            raise InvalidError("an entry's id is not chosen", rule="identity.entry")
        entry = registration.make(asked, self._trust_domain)
        self.entries.check_new(entry)
        self._change(channel, ident, batch, "add", entry)

    def _remove(self, channel: Channel, ident: int, header: dict[str, Any], batch: Batch) -> None:
        self._change(channel, ident, batch, "remove", self.entries.get(header.get("entry")))

    def _change(self, channel: Channel, ident: int, batch: Batch, verb: str, entry: Entry) -> None:
        context = {"change": verb, **entry.to_wire()}
        batch.record("identity.entry", principal=f"uid:{channel.uid}", operation=f"entry_{verb}", context=context)

        def then(error: NucleusError | None) -> None:
            try:
                if error is not None:
                    raise error
                # Two of one turn may be alike: each is checked again where it is done.
                if verb == "add":
                    self.entries.check_new(entry)
                    self.entries.add(entry)
                else:
                    self.entries.remove(self.entries.get(entry.entry).entry)
            except OSError as failed:
                why = NucleusError(f"the entries cannot be written: {failed}", rule="identity.entries")
                channel.fail(ident, why)
            except NucleusError as failed:
                channel.fail(ident, failed)
            else:
                channel.answer(ident, {"entry": entry.to_wire()})

        batch.answer(None, 0, None, recorded=True, then=then)

    def _revocations(self, channel: Channel, ident: int, _: dict[str, Any], batch: Batch) -> None:
        found = self._issuer.revocations.all(batch.now_ns)
        batch.answer(channel, ident, {"revoked": [one.to_wire() for one in found]})

    def _revoke(self, channel: Channel, ident: int, header: dict[str, Any], batch: Batch) -> None:
        now = batch.now_ns
        new = revocation.make(header.get("what"), header.get("reason"), self._trust_domain, now)
        self._issuer.revocations.check_new(new, now)

        def change() -> dict[str, Any]:
            self._issuer.revocations.check_new(new, now)
            self._issuer.revocations.add(new, now)
            for gate in self._gates.values():
                gate.send({"id": 0, "op": "revoked", **new.to_gate()})
            return new.to_wire()

        self._revoking(channel, ident, batch, "revoke", new, change)

    def _restore(self, channel: Channel, ident: int, header: dict[str, Any], batch: Batch) -> None:
        now = batch.now_ns
        found = self._issuer.revocations.restorable(header.get("what"))

        def change() -> dict[str, Any]:
            return self._issuer.revocations.restore(found.spiffe_id, now).to_wire()

        self._revoking(channel, ident, batch, "restore", found, change)

    def _revoking(
        self,
        channel: Channel,
        ident: int,
        batch: Batch,
        verb: str,
        what: revocation.Revocation,
        change: Callable[[], dict[str, Any]],
    ) -> None:
        """On record, then done and told to those whom it concerns, then answered."""
        context = {"change": verb, **what.to_wire()}
        who = f"uid:{channel.uid}"
        batch.record("identity.revoked", principal=who, operation=f"identity_{verb}", context=context)

        def then(error: NucleusError | None) -> None:
            try:
                if error is not None:
                    raise error
                changed = change()
            except OSError as failed:
                why = NucleusError(f"the list cannot be written: {failed}", rule="identity.revocations")
                channel.fail(ident, why)
            except NucleusError as failed:
                channel.fail(ident, failed)
            else:
                self._tell()
                channel.answer(ident, {"revoked": changed})

        batch.answer(None, 0, None, recorded=True, then=then)

    def _ca_request(self, channel: Channel, ident: int, _: dict[str, Any], batch: Batch) -> None:
        batch.answer(channel, ident, {"pem": self._issuer.request(batch.now_ns)})

    def _ca_install(self, channel: Channel, ident: int, header: dict[str, Any], batch: Batch) -> None:
        """A chain of another CA: looked at, on record, then installed, then told."""
        pem, at_once = fields.text(header, "pem", 16_384), header.get("at_once") is True
        now = batch.now_ns
        self._issuer.examine(pem, now)
        context = {"sha256": hashlib.sha256(pem.encode()).hexdigest(), "at_once": at_once}
        who = f"uid:{channel.uid}"
        batch.record("identity.entry", principal=who, operation="ca_install", context=context)

        def then(error: NucleusError | None) -> None:
            try:
                if error is not None:
                    raise error
                installed = self._issuer.install(pem, now, at_once=at_once)
            except NucleusError as failed:
                channel.fail(ident, failed)
            else:
                self._federated_otherwise(own=True)
                channel.answer(ident, {"installed": installed})

        batch.answer(None, 0, None, recorded=True, then=then)

    def _workspace_applied(self, channel: Channel, ident: int, header: dict[str, Any], batch: Batch) -> None:
        """A person takes a pod's changes over into their workspace: on record before they do."""
        context: dict[str, Any] = {
            name: fields.text(header, name, limit)
            for name, limit in (("name", 63), ("workspace", 16_384), ("digest", 80))
        }
        for name in ("changes", "paths"):
            if type(header.get(name)) is not int or not 0 <= header[name] < 1 << 32:
                raise InvalidError(f"{name} is not a count", rule="frames.field")
            context[name] = header[name]
        pod = fields.pod(header) if header.get("pod") else ""
        batch.record("workspace.applied", pod=pod, principal=f"uid:{channel.uid}", context=context)
        batch.answer(channel, ident, {}, recorded=True)

    def _ca_signer(self, channel: Channel, ident: int, _: dict[str, Any], batch: Batch) -> None:
        batch.answer(channel, ident, self._issuer.signer())

    def _ca_authorities(self, channel: Channel, ident: int, header: dict[str, Any], batch: Batch) -> None:
        """The trust domain's keys, as a CA above ours tells them: read, on record, then kept, then told."""
        from nucleus.identity.bundle import MAX_DOCUMENT_BYTES, read  # weight

        document, now = fields.text(header, "document", MAX_DOCUMENT_BYTES), batch.now_ns
        found, before = read(document, self._trust_domain), self._issuer.others(now)
        if not found.x509:
            raise InvalidError("a trust domain without X.509 authorities", rule="identity.upstream")
        if before is not None and (found.x509, found.jwks) == (before.x509, before.jwks):
            batch.answer(channel, ident, {"changed": False})
            return
        context = {"sha256": hashlib.sha256(document.encode()).hexdigest(), "x509_authorities": len(found.x509)}
        who = f"uid:{channel.uid}"
        batch.record("identity.entry", principal=who, operation="ca_authorities", context=context)

        def then(error: NucleusError | None) -> None:
            try:
                if error is not None:
                    raise error
                self._issuer.trust_also(found, document, now)
            except NucleusError as failed:
                channel.fail(ident, failed)
            else:
                self._federated_otherwise(own=True)
                channel.answer(ident, {"changed": True})

        batch.answer(None, 0, None, recorded=True, then=then)

    def _tell(self) -> None:
        """The listeners: what they would answer has changed."""
        for listener in self._listeners:
            listener.send({"id": 0, "event": "changed"})

    def _federated_otherwise(self, *, own: bool = False) -> None:
        self._tell()
        for gate in self._gates.values():
            gate.send({"id": 0, "op": "federated", **({"own": True} if own else {})})

    def lost(self, channel: Channel) -> None:
        """A channel is gone."""
        self._listeners.discard(channel)

    def forget(self, pod: str) -> int:
        """A pod is closed: how many of its requests were over its rate."""
        rates = self._rates.pop(pod, None)
        return rates.refused if rates is not None else 0

    def _issue(self, channel: Channel, ident: int, header: dict[str, Any], batch: Batch) -> None:
        name = registration.check_name(header.get("spiffe_id"), self._trust_domain)
        who = {"requested_by": f"uid:{channel.uid}"}
        if "audience" in header:
            batch.answer(channel, ident, self._token(name, header["audience"], who, "", batch), recorded=True)
            return
        ttl_s = header.get("ttl_s", registration.DEFAULT_TTL_S)
        if type(ttl_s) is not int or not registration.MIN_TTL_S <= ttl_s <= registration.MAX_TTL_S:
            raise InvalidError("a ttl is 60 s to 86400 s", rule="identity.ttl")
        svid = self._issuer.issue(name, batch.now_ns, ttl_s * SECOND_NS)
        context = {**who, "expires_ns": svid.expires_ns, "serial": f"{svid.serial:x}"}
        batch.record("identity.issued", principal=str(name), operation="issue", context=context)
        batch.answer(channel, ident, svid.to_wire(), recorded=True)

    # -- the listener's --------------------------------------------------------------------------------------------

    def _state(self, channel: Channel, ident: int, _: dict[str, Any], batch: Batch) -> None:
        """A word that changes when any caller's answer may."""
        self._listeners.add(channel)
        now = batch.now_ns
        revoked = [one.to_wire() for one in self._issuer.revocations.all(now)]
        content = (self._issuer.bundle_pem(now), self._jwks(now), self.entries.version, revoked, self.foreign.digest())
        version = hashlib.sha256(repr(content).encode()).hexdigest()
        batch.answer(channel, ident, {"version": version, "trust_domain": self._trust_domain})

    def _x509(self, channel: Channel, ident: int, header: dict[str, Any], batch: Batch) -> None:
        facts, found = self._caller(channel, header, "fetch_x509_svid", batch)
        if not found:
            batch.answer(channel, ident, {"need": ["sha256"]})
            return
        found = self._asked(found, header, facts, "fetch_x509_svid", batch)
        svids = []
        for entry in found:
            svid = self._issuer.issue(SpiffeId.parse(entry.spiffe_id), batch.now_ns, entry.ttl_s * SECOND_NS)
            serial = f"{svid.serial:x}"
            self._issued("fetch_x509_svid", entry, facts, svid.expires_ns, serial, batch)
            svids.append({**_x509_wire(svid, entry.hint), "serial": serial})
        bundle = _b64(b"".join(self._issuer.roots(batch.now_ns)))
        digest = self._digest(found, [], batch.now_ns)
        answer = {"svids": svids, "bundle": bundle, "digest": digest, "federated": self.foreign.names(found)}
        batch.answer(channel, ident, answer, recorded=True)

    def _look(self, channel: Channel, ident: int, header: dict[str, Any], batch: Batch) -> None:
        """Whether an answer of `x509` would differ from the one with this digest, time aside; issues nothing.

        ``serials``: of the certificates that the caller has; a revoked one of them makes the answer another.
        """
        serials = header.get("serials", [])
        if not isinstance(serials, list) or len(serials) > registration.MATCHES:
            raise InvalidError("serials is not a short list", rule="frames.field")
        facts, found = self._caller(channel, header, "fetch_x509_svid", batch)
        if not found:
            batch.answer(channel, ident, {"need": ["sha256"]})
            return
        found = self._asked(found, header, facts, "fetch_x509_svid", batch)
        batch.answer(channel, ident, {"digest": self._digest(found, serials, batch.now_ns)})

    def _digest(self, found: list[Entry], serials: list[Any], now: int) -> str:
        numbers = [revocation.read_serial(one) for one in serials if isinstance(one, str)]
        # A name's own revocation takes it out of `found`, or, restored, has changed the answer before.
        revoked = [number for number in numbers if number and self._issuer.revocations.refuses("", number)]
        return hashlib.sha256(
            repr((found, self._issuer.roots(now), revoked, self.foreign.digest(found))).encode()
        ).hexdigest()

    def _refused_before(self, channel: Channel, ident: int, header: dict[str, Any], batch: Batch) -> None:
        """The listener has refused a caller by itself."""
        self._refuse("connect", _facts(header.get("facts")), fields.text(header, "reason", 256), batch)

    def _jwt(self, channel: Channel, ident: int, header: dict[str, Any], batch: Batch) -> None:
        facts, found = self._caller(channel, header, "fetch_jwt_svid", batch)
        if not found:
            batch.answer(channel, ident, {"need": ["sha256"]})
            return
        found = self._asked(found, header, facts, "fetch_jwt_svid", batch)
        svids = []
        for entry in found:
            name = SpiffeId.parse(entry.spiffe_id)
            made = self._token(name, header.get("audience"), _shown(facts), entry.entry, batch)
            svids.append({"spiffe_id": entry.spiffe_id, "svid": made["token"], "hint": entry.hint})
        batch.answer(channel, ident, {"svids": svids}, recorded=True)

    def _asked(
        self, found: list[Entry], header: dict[str, Any], facts: Facts, operation: str, batch: Batch
    ) -> list[Entry]:
        """Those of the ID that is asked for, where one is. Raises DeniedError: it is not this caller's."""
        asked = fields.text(header, "spiffe_id", 2_048, default="")
        found = [entry for entry in found if asked in ("", entry.spiffe_id)]
        if not found:
            self._refuse(operation, facts, "the ID asked for is not this caller's", batch)
        return found

    def _bundles(self, channel: Channel, ident: int, header: dict[str, Any], batch: Batch) -> None:
        _, found = self._caller(channel, header, "fetch_bundles", batch)
        now = batch.now_ns
        answer: dict[str, Any] = {"need": ["sha256"]}
        if found:
            bundle = _b64(b"".join(self._issuer.roots(now)))
            answer = {"trust_domain": self._trust_domain, "x509": bundle, "jwks": self._jwks(now)}
            answer["federated"] = self.foreign.names(found)
        batch.answer(channel, ident, answer)

    def _federated(self, channel: Channel, ident: int, header: dict[str, Any], batch: Batch) -> None:
        """The bundle of one foreign trust domain, for a caller of whom an entry names it."""
        _, found = self._caller(channel, header, "fetch_bundles", batch)
        answer: dict[str, Any] = {"need": ["sha256"]}
        if found:
            answer = self.foreign.answer(found, header.get("trust_domain"))
        batch.answer(channel, ident, answer)

    def _revoked_token(self, channel: Channel, ident: int, header: dict[str, Any], batch: Batch) -> None:
        """Whether a JWT-SVID of ours, of this name and issued then, is revoked."""
        name, issued_ns = fields.text(header, "spiffe_id", 2_048), header.get("issued_ns")
        if type(issued_ns) is not int:
            raise InvalidError("issued_ns is not an integer", rule="frames.field")
        batch.answer(channel, ident, {"revoked": self._issuer.revocations.refuses_token(name, issued_ns)})

    def _caller(
        self, channel: Channel, header: dict[str, Any], operation: str, batch: Batch
    ) -> tuple[Facts, list[Entry]]:
        """The caller's facts and entries; no entries: the executable's hash decides. Raises DeniedError: it has none.

        The hash is asked for whenever an entry may need it, so that the answer never depends on who asked before.
        """
        facts = _facts(header.get("facts"))  # 1
        if channel.kind == POD_WORKLOAD_API:
            return self._in_pod(channel, facts, operation, batch)
        matching = self.entries.matching(facts)  # 2
        found = [entry for entry in matching if not self._issuer.revocations.blocked(entry.spiffe_id)]
        if self.entries.wants_hash(facts):
            return facts, []
        if not found and matching:
            self._refuse(operation, facts, "each identity of this caller is revoked", batch)
        if not found:
            self._refuse(operation, facts, "no entry has only selectors that hold for this caller", batch)
        return facts, found

    def _in_pod(self, channel: Channel, facts: Facts, operation: str, batch: Batch) -> tuple[Facts, list[Entry]]:
        """The pod's one identity. What the process there says of a uid can only refuse; the pid is for the record."""
        listener = channel.listener
        assert listener is not None
        facts = Facts(facts.uid, facts.gid, pod=listener.pod, pid=facts.pid)
        name = str(listener.spiffe_id)
        if facts.uid != listener.expected_uid:
            self._refuse(operation, facts, "the caller is not whom this pod's Workload API is for", batch)
        if self._issuer.revocations.blocked(name):
            self._refuse(operation, facts, "the pod's identity is revoked", batch)
        return facts, [Entry("", name, ())]

    def _refuse(self, operation: str, facts: Facts, reason: str, batch: Batch) -> None:
        about = (facts.uid, facts.pod or "", reason)
        last, left_out = self._refused.pop(about, (-REFUSED_EVERY_NS, 0))
        if batch.mono_ns - last >= REFUSED_EVERY_NS:
            context = {**_shown(facts), "reason": reason, "not_written": left_out}
            outcome = {"decision": "deny", "outcome": "denied"}
            pod = facts.pod or ""
            batch.record("identity.refused", pod=pod, operation=operation, context=context, **outcome)
            last, left_out = batch.mono_ns, -1
        self._refused[about] = (last, left_out + 1)
        while len(self._refused) > _REFUSED:
            del self._refused[next(iter(self._refused))]
        raise DeniedError(reason, rule="identity.entry", next_step="`nucleus identity entries add` registers one.")

    def _token(self, name: SpiffeId, audience: Any, who: dict[str, Any], entry: str, batch: Batch) -> dict[str, Any]:
        from nucleus.identity import jwt_svid  # weight

        self._issuer.revocations.check(str(name))
        now = batch.now_ns
        kid, key = self._issuer.jwt_keys(now).signer(now)
        checked = jwt_svid.check_audience(audience)
        token = jwt_svid.sign(name, checked, key, kid, now=now, ttl_ns=JWT_TTL_NS)
        expires_ns = (now // SECOND_NS) * SECOND_NS + JWT_TTL_NS
        context = {**who, "audience": list(checked), "kid": kid, "expires_ns": expires_ns}
        if entry:
            context["entry"] = entry
        pod = str(who.get("pod") or "")
        batch.record("identity.issued", pod=pod, principal=str(name), operation="fetch_jwt_svid", context=context)
        return {"spiffe_id": str(name), "token": token, "expires_ns": expires_ns}

    def _issued(self, operation: str, entry: Entry, facts: Facts, expires_ns: int, serial: str, batch: Batch) -> None:
        context = {**_shown(facts), "expires_ns": expires_ns, "serial": serial}
        if entry.entry:
            context["entry"] = entry.entry
        more = {"decision": "allow", "outcome": "ok", "context": context}
        batch.record("identity.issued", pod=facts.pod or "", principal=entry.spiffe_id, operation=operation, **more)

    def _jwks(self, now: int) -> str:
        from nucleus.identity import jwt_svid  # weight

        found = jwt_svid.jwks(self._issuer.jwt_keys(now).public(now))
        others = self._issuer.others(now)
        if others is not None:
            ours = {key["kid"] for key in found["keys"]}
            found["keys"] += [key for key in json.loads(others.jwks)["keys"] if key["kid"] not in ours]
        return json.dumps(found, separators=(",", ":"))


def _facts(value: Any) -> Facts:
    """Step 1."""
    if not isinstance(value, dict) or value.keys() != _FACTS:
        raise InvalidError("facts of a caller have exactly their fields", rule="frames.field")
    numbers = [value["uid"], value["gid"], value["pid"]]
    groups = value["groups"]
    if not isinstance(groups, list) or len(groups) > _MAX_GROUPS:
        raise InvalidError("groups is not a list", rule="frames.field")
    if not all(type(one) is int and 0 <= one < 1 << 32 for one in [*numbers, *groups]):
        raise InvalidError("a fact is not an id", rule="frames.field")
    texts = {
        name: None if value[name] is None else fields.text(value, name, 4_096) for name in ("path", "sha256", "pod")
    }
    return Facts(value["uid"], value["gid"], frozenset(groups), **texts, pid=value["pid"])


def _shown(facts: Facts) -> dict[str, Any]:
    """For the record."""
    shown: dict[str, Any] = {"uid": facts.uid, "gid": facts.gid, "pid": facts.pid}
    for name in ("path", "sha256", "pod"):
        if getattr(facts, name):
            shown[name] = getattr(facts, name)
    return shown


def _x509_wire(svid: X509Svid, hint: str) -> dict[str, Any]:
    body = "".join(line for line in svid.key_pem.splitlines() if not line.startswith("-----"))
    return {
        "spiffe_id": str(svid.spiffe_id),
        "chain": _b64(b"".join(pem_to_der(svid.cert_pem))),
        "key": body,  # PEM is base64 of the DER, which is what leaves
        "hint": hint,
        "expires_ns": svid.expires_ns,
        "renew_ns": svid.renew_at_ns(),
    }


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


_PERSON = {
    "show": Workloads._show,
    "bundle": Workloads._bundle,
    "entries": Workloads._list,
    "entry_add": Workloads._add,
    "entry_remove": Workloads._remove,
    "issue": Workloads._issue,
    "ca_request": Workloads._ca_request,
    "ca_install": Workloads._ca_install,
    "ca_authorities": Workloads._ca_authorities,
    "ca_signer": Workloads._ca_signer,
    "workspace_applied": Workloads._workspace_applied,
    "revoke": Workloads._revoke,
    "restore": Workloads._restore,
    "revocations": Workloads._revocations,
    "token": Workloads._revoked_token,
    "federations": Workloads._federations,
    "federation": Workloads._federation,
    "federate": Workloads._federate,
    "federation_update": Workloads._federation_update,
    "federation_remove": Workloads._federation_remove,
}
_LISTENER = {
    "state": Workloads._state,
    "refused": Workloads._refused_before,
    "look": Workloads._look,
    "x509": Workloads._x509,
    "jwt": Workloads._jwt,
    "bundles": Workloads._bundles,
    "federated": Workloads._federated,
    "token": Workloads._revoked_token,
}
_REQUESTS = {
    IDENTITY: _PERSON,
    WORKLOAD_API: _LISTENER,
    POD_WORKLOAD_API: {name: serve for name, serve in _LISTENER.items() if name != "refused"},
}
