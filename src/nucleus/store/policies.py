"""Where policy text comes from: a bundled profile, or a file that a person names.

Promises: a profile's or file's text is returned whole or not at all; the size is checked before a byte is read; an
unknown profile is an error that lists the known ones; nothing falls back to another policy. The default, when neither
is named, is `restrictive`.
Does not: parse (`lattice.load`), or look for policies in a workspace: one that lay there would be the agent's.
"""

from __future__ import annotations

import os
import stat

from nucleus.errors import InvalidError
from nucleus.limits import LIMITS

DEFAULT_PROFILE = "restrictive"
_PROFILES = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "lattice", "profiles")


def profile_names() -> tuple[str, ...]:
    """The bundled profiles, sorted: one YAML file each."""
    return tuple(
        sorted(entry.name.removesuffix(".yaml") for entry in os.scandir(_PROFILES) if entry.name.endswith(".yaml"))
    )


def profile_text(name: str) -> str:
    """The YAML text of a bundled profile.

    Raises:
        InvalidError: ``policy.profile``: no such profile (the message lists them).
    """
    names = profile_names()
    if name not in names:
        shown = name if name.isprintable() and len(name) <= 64 else "that"
        raise InvalidError(
            f"no profile named {shown!r}; the profiles are: {', '.join(names)}",
            rule="policy.profile",
            next_step="Name one of them, or give your own file with --policy FILE.",
        )
    return _read(os.path.join(_PROFILES, f"{name}.yaml"))


def bundled() -> dict[str, str]:
    """The bundled profiles' texts by name: what a policy may extend."""
    return {name: _read(os.path.join(_PROFILES, f"{name}.yaml")) for name in profile_names()}


def load_policy_text(profile: str | None = None, path: str | None = None) -> tuple[str, str]:
    """The text that a command line chose.

    Args:
        profile: a bundled profile's name.
        path: a policy file.

    Returns:
        (text, source): source names it in errors, ``profile codegen`` or the path.

    Raises:
        InvalidError: both given; unknown profile; a file that is missing, not regular, not UTF-8 or too long.
    """
    if profile is not None and path is not None:
        raise InvalidError("give a profile or a policy file, not both", rule="policy.profile")
    if path is not None:
        return _read(path), path
    name = DEFAULT_PROFILE if profile is None else profile
    return profile_text(name), f"profile {name}"


def _read(path: str) -> str:
    try:
        # O_NONBLOCK: a FIFO must not hold us before it is seen to be one.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a path"
        raise InvalidError(f"{path}: {why}", rule="policy.file", next_step="Check the path of --policy.") from None
    try:
        data = _bounded(descriptor, path)
    finally:
        os.close(descriptor)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidError(f"{path}: not UTF-8 at byte {error.start}", rule="policy.file") from None


def _bounded(descriptor: int, path: str) -> bytes:
    """All of a regular file, or an InvalidError; never more than the limit and one byte in memory."""
    facts = os.fstat(descriptor)
    if not stat.S_ISREG(facts.st_mode):
        raise InvalidError(f"{path}: not a regular file", rule="policy.file")
    limit, data = LIMITS.policy_bytes, b""
    if facts.st_size <= limit:
        while len(data) <= limit and (piece := os.read(descriptor, limit + 1 - len(data))):
            data += piece
    if facts.st_size > limit or len(data) > limit:
        got = max(facts.st_size, len(data))
        raise InvalidError(f"{path}: too long: limit {limit} bytes, got {got}", rule="limits.policy")
    return data
