"""Lengths, paths (lexical), patterns, argv, URLs: everything a caller sends is checked here before it is decided.

`validate_operation` is loaded when first used: whoever needs only paths or URLs must not pay for pydantic.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from nucleus.validate.operation import validate_operation

__all__ = ["validate_operation"]


def __getattr__(name: str) -> object:
    if name != "validate_operation":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nucleus.validate.operation import validate_operation  # weight: pydantic

    globals()[name] = validate_operation
    return validate_operation
