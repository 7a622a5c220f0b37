"""Who asks: a SPIFFE ID that a door has verified, and the way in which it did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller.

    Args:
        spiffe_id: ``spiffe://<trust domain>/ns/<namespace>/sa/<name>``.
        proof: ``x509-svid`` (mutual TLS) or ``inherited-channel`` (a socketpair that our parent made).
        role: ``agent`` (inside the pod), ``orchestrator`` (the launcher) or ``pod`` (whatever runs in it and connects).
    """

    spiffe_id: str
    proof: Literal["x509-svid", "inherited-channel"]
    role: Literal["agent", "orchestrator", "pod"]
