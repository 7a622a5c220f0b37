"""Whose SVID is whose: the names of a pod's gate, agent and orchestrator, and the CA behind them.

Promises: a pod's names contain the pod; only this module asks the CA for an SVID, and only for those names.
Relies on: pod names being DNS labels. Imports `cryptography` (through `identity.ca`) on the first issue alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from nucleus.errors import AuditError, InvalidError, NucleusError
from nucleus.identity.revocation import Revocations
from nucleus.identity.spiffe_id import SpiffeId

if TYPE_CHECKING:
    from nucleus.identity.bundle import Bundle
    from nucleus.identity.ca import CertificateAuthority
    from nucleus.identity.jwt_keys import JwtKeys
    from nucleus.identity.keys import Keys
    from nucleus.identity.svid import X509Svid


def gate_id(trust_domain: str, namespace: str, pod: str) -> SpiffeId:
    """The gate of a pod."""
    return SpiffeId.for_workload(trust_domain, namespace, f"gate-{pod}")


def agent_id(trust_domain: str, namespace: str, pod: str) -> SpiffeId:
    """The agent in a pod."""
    return SpiffeId.for_workload(trust_domain, namespace, f"agent-{pod}")


def orchestrator_id(trust_domain: str, namespace: str, pod: str) -> SpiffeId:
    """The launcher that made a pod."""
    return SpiffeId.for_workload(trust_domain, namespace, f"orchestrator-{pod}")


class Issuer:
    """The keys of this trust domain, X.509 and JWT, opened on first use."""

    def __init__(self, state_dir: str, trust_domain: str) -> None:
        self._state_dir = state_dir
        self._kept: Keys | None = None
        self._directory = os.path.join(state_dir, "ca")
        self._trust_domain = trust_domain
        self._ca: CertificateAuthority | None = None
        self.entries_file = os.path.join(state_dir, "identity-entries.json")
        self.federations_file = os.path.join(state_dir, "federations.json")
        self.sequence_file = os.path.join(state_dir, "bundle-sequence.json")
        self._jwt_file = os.path.join(state_dir, "jwt-keys.json")
        self._jwt: JwtKeys | None = None
        self._authorities_file = os.path.join(state_dir, "upstream-bundle.json")
        self._authorities: Bundle | None = None
        self._revocations_file = os.path.join(state_dir, "revocations.json")
        self._revocations: Revocations | None = None

    @property
    def revocations(self) -> Revocations:
        """What is revoked, read on first use. Raises NucleusError: the file is damaged; then nothing is issued."""
        if self._revocations is None:
            try:
                self._revocations = Revocations(self._revocations_file)
            except OSError as error:
                why = f"the list of revoked identities cannot be read: {error}"
                raise NucleusError(why, rule="identity.revocations") from error
        return self._revocations

    def issue(self, spiffe_id: SpiffeId, now_ns: int, ttl_ns: int = 0) -> X509Svid:
        """An SVID with its key; `ttl_ns` 0: of the CA's default life.

        Raises:
            NucleusError: the CA cannot sign. DeniedError: the name is revoked.
        """
        self.revocations.check(str(spiffe_id))
        with _usable():
            ca = self._open(now_ns)
            return ca.issue(spiffe_id, now=now_ns, ttl_ns=ttl_ns) if ttl_ns else ca.issue(spiffe_id, now=now_ns)

    def roots(self, now_ns: int) -> tuple[bytes, ...]:
        """The trust domain's roots, DER, the newest first. Raises NucleusError."""
        with _usable():
            return self._open(now_ns).roots(now_ns)[self._trust_domain]

    def bundle_pem(self, now_ns: int) -> str:
        """The same as PEM. Raises NucleusError."""
        with _usable():
            return self._open(now_ns).bundle_pem(now_ns)

    def root_facts(self, now_ns: int) -> list[dict[str, Any]]:
        """Serial numbers and ends of the roots, for people. Raises NucleusError."""
        with _usable():
            return self._open(now_ns).facts(now_ns)

    def request(self, now_ns: int) -> str:
        """A signing request for a CA above ours (`identity.upstream`), PEM. Raises NucleusError."""
        with _usable():
            return self._open(now_ns).request()

    def examine(self, pem: str, now_ns: int) -> None:
        """Whether `install` would take it. Raises NucleusError."""
        with _usable():
            self._open(now_ns).examine(pem.encode(), now_ns)

    def install(self, pem: str, now_ns: int, *, at_once: bool) -> dict[str, Any]:
        """The chain that answers it: see `CertificateAuthority.install`. Raises NucleusError."""
        with _usable():
            return self._open(now_ns).install(pem.encode(), now_ns, at_once=at_once)

    def trust_also(self, found: Bundle, document: str, now_ns: int) -> None:
        """The trust domain's keys as a CA above ours tells them; kept. Raises NucleusError."""
        from nucleus.identity.entries import write_whole

        with _usable():
            ca = self._open(now_ns)
            write_whole(self._authorities_file, document.encode())
            self._authorities = found
            ca.trust_also(found.x509)

    def others(self, now_ns: int) -> Bundle | None:
        """What `trust_also` was told last; None: nothing. Raises NucleusError."""
        with _usable():
            self._open(now_ns)
        return self._authorities

    def jwt_keys(self, now_ns: int) -> JwtKeys:
        """What signs JWT-SVIDs. Raises NucleusError."""
        with _usable():
            if self._jwt is None:
                from nucleus.identity.jwt_keys import JwtKeys  # weight

                self._jwt = JwtKeys(self._jwt_file, now=now_ns, keys=self._keys())
            self._jwt.maintain(now_ns)
            return self._jwt

    def _open(self, now_ns: int) -> CertificateAuthority:
        if self._ca is None:
            from nucleus.identity.ca import CertificateAuthority  # weight

            keys = self._keys()
            ca = CertificateAuthority.load_or_create(self._directory, self._trust_domain, now=now_ns, keys=keys)
            self._authorities = self._read_authorities()
            if self._authorities is not None:
                ca.trust_also(self._authorities.x509)
            self._ca = ca
        return self._ca

    def _keys(self) -> Keys:
        """Where private keys are: what was chosen when this process began. Raises NucleusError."""
        if self._kept is None:
            from nucleus.identity.keys import Keys, read_config  # weight

            config = read_config(self._state_dir)
            if config is None:
                self._kept = Keys()
            else:
                from nucleus.identity.pkcs11_token import Token

                self._kept = Keys(Token(config))
        return self._kept

    def signer(self) -> dict[str, str]:
        """Where the next private keys are made, tried. Raises NucleusError: they cannot be."""
        with _usable():
            token = self._keys().token
            try:
                return {"kind": "files"} if token is None else {"kind": "pkcs11", **token.check()}
            except NucleusError:
                if self._ca is None and self._jwt is None:
                    self._kept = None  # it was tried, no more: the choice is read again
                raise

    def _read_authorities(self) -> Bundle | None:
        from nucleus.identity.bundle import MAX_DOCUMENT_BYTES, read
        from nucleus.identity.entries import read_whole

        data = read_whole(self._authorities_file, MAX_DOCUMENT_BYTES, "identity.upstream")
        try:
            return None if data is None else read(data, self._trust_domain)
        except InvalidError as error:
            why = f"{self._authorities_file} cannot be read: {error.message}"
            step = "Move it away, and `nucleus identity ca spire` again."
            raise NucleusError(why, rule="identity.upstream", next_step=step) from error


@contextmanager
def _usable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NucleusError(f"the CA cannot be used: {error}", rule="identity.ca") from error


def unavailable() -> AuditError:
    """What a workload is told when its SVID's record cannot be written."""
    return AuditError("No identity can be issued now.")
