"""The in-pod client of the gate: `Gate` (a library) and `nucleus.sdk.mcp` (an MCP stdio server in front of it).

Promises: standard library only, Python 3.9 or newer, nothing else of nucleus imported: this directory is mounted
read-only into the agent's compartment and run by the pod's own interpreter, with no site-packages.
Does not: decide anything. The agent owns this process; every check that counts is on the gate's side.
"""

from __future__ import annotations

__all__ = ["Gate", "GateError", "GateLost", "IdentityError"]

_HOMES = {"Gate": "client", "GateError": "client", "GateLost": "client", "IdentityError": "identity"}


def __getattr__(name: str) -> object:
    # Lazy: `nucleus.sdk.wire` is also on the path of `nucleus exec`, which must not pay for ssl and http.client.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
