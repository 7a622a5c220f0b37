"""Absolute paths in error text become `[sandbox]/…`, `[home]/…` or `[path]` (seed, "Error Handling").

Promises: no absolute path of the host or of the pod leaves in an error; what is inside the sandbox or a home keeps
its relative part, so that the agent can act on it. Linear time; our own patterns only ever see the text.
Does not: touch file contents or command output, which are data.
"""

from __future__ import annotations

import re

# A path starts with a slash that isn't part of a longer word, URL or fraction, and runs to a character that can't
# be in an unquoted path. Over-long is safe here: it only hides more.
_PATH = re.compile(r"(?<![\w./\]:])/(?=[^\s/])[^\s\"'`<>|;,)\]}]*")
_FILE_URL = re.compile(r"\bfile://(?=/)")
_SANDBOX_DIRECTORY = re.compile(r"^/var/(?:lib/nucleus/)?(?:sandbox|pods)/[^/]+")
_HOME = re.compile(r"^(?:/home/[^/]+|/root)")


def sanitize_paths(text: str, sandbox_roots: tuple[str, ...] = ("/workspace",)) -> str:
    """Return `text` with every absolute path mapped.

    Args:
        text: any message, of bounded length.
        sandbox_roots: absolute directories that are the sandbox (no trailing slash).
    """

    def replace(match: re.Match[str]) -> str:
        path = match.group(0)
        tail = path[len(path.rstrip(".:!?")) :]
        path = path[: len(path) - len(tail)]
        return _mapped(path, sandbox_roots) + tail

    return _PATH.sub(replace, _FILE_URL.sub("", text))


def _mapped(path: str, sandbox_roots: tuple[str, ...]) -> str:
    if "/../" in path + "/":
        return "[path]"
    for root in sandbox_roots:
        if path == root or path.startswith(root + "/"):
            return "[sandbox]" + path[len(root) :]
    for pattern, label in ((_SANDBOX_DIRECTORY, "[sandbox]"), (_HOME, "[home]")):
        if found := pattern.match(path):
            return label + path[found.end() :]
    return "[path]"
