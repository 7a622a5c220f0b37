"""Secrets in error text become `[redacted]`.

Promises: the well-known shapes below never leave in an error, a reason or a person's prompt. A net under the other
measures (nothing secret is in the pod, errors are ours), not a scanner of contents.
"""

from __future__ import annotations

import re

# Prefixes as their issuers document them. Bounded repeats: linear on any text.
_SHAPES = re.compile(
    r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.{0,8192}?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)"
    r"|\b(?:gh[pousr]_|github_pat_|glpat-|xox[abprs]-|sk-|sk_live_|rk_live_|AIza|npm_|pypi-)[A-Za-z0-9_\-]{12,255}"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"
    r"|\beyJ[A-Za-z0-9_\-]{8,2048}\.[A-Za-z0-9_\-]{8,4096}\.[A-Za-z0-9_\-]{8,1024}"
    r"|(?<=://)[^\s/@:]{1,255}:[^\s/@]{1,255}(?=@)",
    re.DOTALL,
)
_ASSIGNMENT = re.compile(
    r"(?i)\b((?:[a-z0-9]+[_\-])?(?:password|passwd|secret|token|api[_\-]?key|authorization))(\s{0,4}[=:]\s{0,4})"
    r"(?!\[redacted\])([^\s,;\"']{4,1024})"
)


def redact(text: str) -> str:
    """Return `text` with every known secret shape replaced by ``[redacted]``."""
    return _ASSIGNMENT.sub(r"\1\2[redacted]", _SHAPES.sub("[redacted]", text))
