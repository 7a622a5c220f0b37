"""Nucleus: run AI agents that you do not trust, behind one gate outside the sandbox.

This module stays empty but for the version, so that `nucleus --version` costs no imports.
"""

__version__ = "0.1.0"
