"""Every error that crosses a room's border: few, flat, each with a stable code.

Promises: each family has one `code` (what the agent sees), one HTTP status and one process exit code
(0 ok, 2 invalid, 3 denied, 4 approval needed, 5 budget, 6 sandbox unavailable; 1 is anything else).
`message` is for people and may name internals; what a client sees of it is made by `sanitize` alone.
Does not: format, log or translate anything.
"""

from __future__ import annotations

TYPE_CHECKING = False  # what mypy reads as true; importing typing costs a tenth of `nucleus --version`
if TYPE_CHECKING:
    from typing import ClassVar


class NucleusError(Exception):
    """Base of the family.

    Args:
        message: what happened, for the person who runs Nucleus (unsanitized).
        rule: the rule that fired, as a dotted name such as ``paths.block`` or ``limits.path``.
        next_step: what that person can do about it, one sentence, or "".
    """

    code: ClassVar[str] = "internal_error"
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, rule: str = "", next_step: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.rule = rule
        self.next_step = next_step

    def diagnostics(self) -> str:
        """The error as lines for a person: code, message, the rule that fired, the next step."""
        lines = [f"{self.code}: {self.message}"]
        if self.rule:
            lines.append(f"  rule: {self.rule}")
        if self.next_step:
            lines.append(f"  next: {self.next_step}")
        return "\n".join(lines)


class InvalidError(NucleusError):
    """The request is malformed, too long, or names something that cannot exist."""

    code = "invalid_request"
    http_status = 400
    exit_code = 2


class UnauthenticatedError(NucleusError):
    """The peer did not prove an identity that this door accepts."""

    code = "unauthenticated"
    http_status = 401
    exit_code = 3


class DeniedError(NucleusError):
    """The policy says no."""

    code = "denied"
    http_status = 403
    exit_code = 3


class ApprovalRequiredError(NucleusError):
    """The policy asks for a human and none said yes."""

    code = "approval_required"
    http_status = 403
    exit_code = 4


class BudgetError(NucleusError):
    """The budget cannot carry this operation."""

    code = "budget_exhausted"
    http_status = 402
    exit_code = 5


class SandboxError(NucleusError):
    """The pod cannot be made, is gone, or is weaker than the policy's floor. Not "the command failed"."""

    code = "sandbox_unavailable"
    http_status = 503
    exit_code = 6


class AuditError(NucleusError):
    """The audit log cannot be written or does not verify: the operation does not run."""

    code = "audit_unavailable"
    http_status = 503
    exit_code = 6


class OperationError(NucleusError):
    """The operation was allowed and tried, and failed (no such file, no match, timeout ...)."""

    code = "operation_failed"
    http_status = 422
    exit_code = 1


class NoEgressError(NucleusError):
    """The operation was decided, and this pod has no way out to carry it."""

    code = "no_egress"
    http_status = 503
    exit_code = 6


FAMILIES: tuple[type[NucleusError], ...] = (
    InvalidError,
    UnauthenticatedError,
    DeniedError,
    ApprovalRequiredError,
    BudgetError,
    SandboxError,
    AuditError,
    OperationError,
    NoEgressError,
    NucleusError,
)


def by_code(code: str) -> type[NucleusError]:
    """The family of a stable code; `NucleusError` for an unknown one."""
    return next((family for family in FAMILIES if family.code == code), NucleusError)
