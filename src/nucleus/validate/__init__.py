"""Lengths, paths (lexical), patterns, argv, URLs: everything a caller sends is checked here before it is decided."""

from nucleus.validate.operation import validate_operation

__all__ = ["validate_operation"]
