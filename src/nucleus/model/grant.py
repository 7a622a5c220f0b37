"""A grant: the right to execute one decided operation, once.

Promises: there is no public constructor; a grant is bound to one operation by hash; it is spent once. Every executor
takes a grant and spends it before its first effect, so nothing reaches a syscall undecided. Only `gate.pipeline`
imports `mint` (tests/test_architecture.py shows it).
Does not: survive a process, travel over a wire, or protect against code in our own process that means harm.
"""

from __future__ import annotations

from nucleus.errors import DeniedError
from nucleus.model.operation import Base, operation_hash


class Grant:
    """See the module. `operation_hash` is what it is bound to."""

    __slots__ = ("_spent", "operation_hash")
    operation_hash: str
    _spent: bool

    def __init__(self) -> None:
        raise TypeError("a Grant is minted by gate.pipeline after a decision; it has no public constructor")

    def spend(self, operation: Base) -> None:
        """Use the grant up for `operation`. Raises DeniedError when it is spent already or is another operation's."""
        if self._spent:
            raise DeniedError("grant already spent", rule="grant.once")
        self._spent = True
        if operation_hash(operation) != self.operation_hash:
            raise DeniedError("grant is for another operation", rule="grant.binding")

    def __repr__(self) -> str:
        return f"<Grant {self.operation_hash[:12]} {'spent' if self._spent else 'unspent'}>"


def mint(operation: Base) -> Grant:
    """Make the grant of an operation that was just decided. For `gate.pipeline` alone."""
    grant = object.__new__(Grant)
    grant.operation_hash = operation_hash(operation)
    grant._spent = False
    return grant
