"""Which wider answers the gate puts on offer for an operation: `approval.scope`, with what it needs of URL and policy.

Promises: a host is the one that was decided (the same parser); a tool's destinations are on offer only where every one
of the policy's tables declares some and the call gives each a value: what is undeclared could be the destination.
Pure.
"""

from __future__ import annotations

from typing import Any

from nucleus.approval import scope
from nucleus.errors import InvalidError
from nucleus.lattice.exposure import tool_rules
from nucleus.lattice.policy import Policy
from nucleus.lattice.trifecta import outward_tool
from nucleus.model.decision import Decision
from nucleus.model.operation import Base
from nucleus.validate.urls import split_url


def offered(operation: Base, digest: str, decision: Decision, policy: Policy | None) -> tuple[scope.Scope, ...]:
    """The scopes of `operation` that a person may choose; `digest` is its hash, `decision` what asks."""
    kind = str(getattr(operation, "kind", ""))
    return scope.scopes(
        operation,
        digest,
        decision,
        origin=_origin(operation) if kind == "web_fetch" else None,
        destinations=_destinations(policy, operation) if kind == "tool" and policy is not None else None,
    )


def _origin(operation: Any) -> tuple[str, str, int] | None:
    try:
        url = split_url("url", operation.url)
    except InvalidError:
        return None
    return url.scheme, url.host, url.port


def _destinations(policy: Policy, operation: Any) -> dict[str, Any] | None:
    rules = tool_rules(policy, operation)
    if not all(outward_tool(rule, operation.arguments).destinations for rule in rules):
        return None
    names = {name for rule in rules for name in rule.destination}
    return {name: operation.arguments[name] for name in sorted(names) if name in operation.arguments}
