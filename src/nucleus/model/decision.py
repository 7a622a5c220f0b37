"""What the policy says of one operation. Frozen; made by `lattice.decide` alone."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

TWO_PEOPLE = "people:2"


class Verdict(StrEnum):
    """allow: unattended. ask: a human must say yes. deny: never."""

    ALLOW = "allow"
    ASK = "ask"
    DENY = "deny"


class Decision(NamedTuple):
    """One decision.

    Args:
        verdict: allow, ask or deny.
        rule: the rule that fired, a dotted name (``capabilities.run_bash``, ``paths.block``, ``trifecta.static`` ...).
        reason: one plain sentence that the agent may see (it is sanitized on its way out).
        detail: for people only: the deciding line, e.g. the glob that matched.
        next_step: for people only: what to change or whom to ask.
        met: the rules that the operation met, in order, each with its own verdict; `rule` is the one that decided.
        obligations: what has to happen first, e.g. ``("approval:run_bash",)``; non-empty exactly when verdict is ask.
            `TWO_PEOPLE` is the last one where two different people have to say yes.
    """

    verdict: Verdict
    rule: str
    reason: str
    detail: str = ""
    next_step: str = ""
    obligations: tuple[str, ...] = ()
    met: tuple[tuple[str, Verdict], ...] = ()
