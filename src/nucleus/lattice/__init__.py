"""The permission lattice: capabilities, policies, and the one decision function.

The names below are loaded when first used: a compartment needs the globs of `paths` and must not pay for the rest.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nucleus.lattice.decision import Context, decide, decide_path
    from nucleus.lattice.load import load_policy, parse_policy, policy_digest
    from nucleus.lattice.policy import Policy, delegate, leq, meet, normalize

__all__ = [
    "Context", "Policy", "decide", "decide_path", "delegate", "leq", "load_policy", "meet", "normalize",
    "parse_policy", "policy_digest",
]  # fmt: skip

_HOME = {
    "Context": "decision", "decide": "decision", "decide_path": "decision",
    "load_policy": "load", "parse_policy": "load", "policy_digest": "load",
    "Policy": "policy", "delegate": "policy", "leq": "policy", "meet": "policy",
    "normalize": "policy",
}  # fmt: skip


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib  # loaded already; spares the module a name

    value: object = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
