"""Whose SVID is whose: the names of a pod's gate, agent and orchestrator, and the CA behind them.

Promises: a pod's names contain the pod; only this module asks the CA for an SVID, and only for those names.
Relies on: pod names being DNS labels. Imports `cryptography` (through `identity.ca`) on the first issue alone.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from nucleus.errors import AuditError, NucleusError
from nucleus.identity.spiffe_id import SpiffeId

if TYPE_CHECKING:
    from nucleus.identity.ca import CertificateAuthority
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
    """The CA of this trust domain, opened on first use."""

    def __init__(self, state_dir: str, trust_domain: str) -> None:
        self._directory = os.path.join(state_dir, "ca")
        self._trust_domain = trust_domain
        self._ca: CertificateAuthority | None = None

    def issue(self, spiffe_id: SpiffeId, now_ns: int) -> X509Svid:
        """An SVID with its key.

        Raises:
            NucleusError: the CA cannot sign.
        """
        try:
            if self._ca is None:
                from nucleus.identity.ca import CertificateAuthority  # weight

                self._ca = CertificateAuthority.load_or_create(self._directory, self._trust_domain, now=now_ns)
            return self._ca.issue(spiffe_id, now=now_ns)
        except OSError as error:
            raise NucleusError(f"the CA cannot be used: {error}", rule="identity.ca") from error


def unavailable() -> AuditError:
    """What a workload is told when its SVID's record cannot be written."""
    return AuditError("No identity can be issued now.")
