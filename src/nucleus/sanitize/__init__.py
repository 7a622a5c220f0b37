"""What may leave: error text without the host's paths and without secrets (the seed's "Error Handling" table)."""

from nucleus.sanitize.paths import sanitize_paths
from nucleus.sanitize.secrets import redact

__all__ = ["redact", "sanitize", "sanitize_paths"]


def sanitize(text: str, sandbox_roots: tuple[str, ...] = ("/workspace",)) -> str:
    """Text for the agent: secrets redacted, paths mapped, control characters escaped, at most 2,000 characters."""
    mapped = sanitize_paths(redact(text), sandbox_roots)
    printable = "".join(c if c.isprintable() or c in "\n\t" else f"\\u{ord(c):04x}" for c in mapped)
    return printable if len(printable) <= 2000 else printable[:1999] + "…"
