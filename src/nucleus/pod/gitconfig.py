"""A `.git/config` with nothing in it that runs a program: what a pod sees in place of the repository's own.

Promises: only the keys of an allowlist come through, re-quoted from parsed values; what does not parse is dropped;
URLs lose their credentials. Pure: text in, text out. Relies on the grammar of git-config(1), "Syntax".
Does not: follow `include`; keep comments or order within other sections.
"""

from __future__ import annotations

import re

CORE = frozenset(
    {"repositoryformatversion", "filemode", "bare", "ignorecase", "precomposeunicode", "symlinks", "logallrefupdates"}
)
USER = frozenset({"name", "email"})
BRANCH = frozenset({"remote", "merge", "rebase", "description"})
EXTENSIONS = frozenset({"objectformat", "refstorage"})  # without them git misreads the repository
LIMIT = 1_048_576  # bytes of a config that is read at all
_SECTION = re.compile(r'\[\s*([A-Za-z0-9.-]+)(?:\s+"((?:[^"\\\n]|\\.)*)")?\s*\](.*)')
_ENTRY = re.compile(r"([A-Za-z][A-Za-z0-9-]*)\s*(?:=\s*(.*))?")
_PLAIN = re.compile(r"\t([a-z]+) = [a-z0-9]+")
_REMOTE_URL = re.compile(r"(https?|git)://(?:[^/@\s]*@)?([^\s]*)")
_SSH_URL = re.compile(r"(ssh://)(?:(git@)|[^/@\s]*@)?([^\s]*)")
_SCP_URL = re.compile(r"()(?:(git@)|[A-Za-z0-9._-]+@)?([A-Za-z0-9.-]+:(?!:)[^\s:][^\s]*)")


def sanitize(text: str) -> str:
    """Return the harmless part of a git configuration."""
    lines: list[str] = []
    last: tuple[str, str | None] | None = None
    for section, subsection, key, value in _entries(text):
        kept = _kept(section, subsection, key, value)
        if kept is None:
            continue
        if (section, subsection) != last:
            lines.append(f"[{section}]" if subsection is None else f'[{section} "{_escape(subsection)}"]')
            last = (section, subsection)
        lines.append(f'\t{key} = "{_escape(kept)}"')
    return "\n".join(lines) + "\n" if lines else ""


def has_worktree_config(text: str) -> bool:
    """Whether git would read a `config.worktree` beside this; what is unclear counts as yes."""
    return "worktreeconfig" in text.lower()


def is_plain(text: str) -> bool:
    """Whether this is no more than what ``git init`` writes: core keys of ours with one-word values, line by line.

    Deliberately not `sanitize(text) == text`: what our parser and git's read differently must not pass as harmless.
    """
    lines = text.splitlines()
    return bool(lines) and lines[0] == "[core]" and all(_plain_entry(line) for line in lines[1:])


def _plain_entry(line: str) -> bool:
    match = _PLAIN.fullmatch(line)
    return match is not None and match[1] in CORE


def _kept(section: str, subsection: str | None, key: str, value: str) -> str | None:
    if subsection is None:
        allowed = {"core": CORE, "user": USER, "extensions": EXTENSIONS}.get(section, frozenset())
        return value if key in allowed else None
    if section == "branch" and key in BRANCH:
        return value
    if section == "remote" and key == "fetch":
        return value
    if section == "remote" and key in ("url", "pushurl"):
        return _url(value)
    return None


def _url(value: str) -> str | None:
    """The URL without user and password; None for a transport that runs a program (`ext::`) or names a local path.

    `git` stays: by SSH it is the account of every repository at a forge, and says nothing about anybody.
    """
    if match := _REMOTE_URL.fullmatch(value):
        return f"{match[1]}://{match[2]}"
    if match := _SSH_URL.fullmatch(value) or _SCP_URL.fullmatch(value):
        return f"{match[1]}{match[2] or ''}{match[3]}"
    return None


def _entries(text: str) -> list[tuple[str, str | None, str, str]]:
    found = []
    section, subsection = "", None
    for line in re.sub(r"\\\r?\n", "", text).splitlines():
        line = line.strip()
        if match := _SECTION.match(line):
            section, subsection = match[1].lower(), match[2]
            if subsection is not None:
                subsection = re.sub(r"\\(.)", r"\1", subsection)
            line = match[3].strip()
        if not line or line[0] in "#;" or not section:
            continue
        entry = _ENTRY.fullmatch(line)
        value = None if entry is None else _value(entry[2])
        if entry is not None and value is not None:
            found.append((section, subsection, entry[1].lower(), value))
    return found


def _value(raw: str | None) -> str | None:
    """Unquote one value; None when it is malformed. A key without a value is true."""
    if raw is None:
        return "true"
    out: list[str] = []
    quoted = escaped = False
    for char in raw:
        if escaped:
            plain = {"n": "\n", "t": "\t", '"': '"', "\\": "\\"}.get(char)
            if plain is None:
                return None
            out.append(plain)
            escaped = False
        elif char == "\\":
            escaped = True
        elif char == '"':
            quoted = not quoted
        elif char in "#;" and not quoted:
            break
        else:
            out.append(char)
    return None if quoted or escaped else "".join(out).strip()


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
