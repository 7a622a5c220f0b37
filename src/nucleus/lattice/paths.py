"""Globs on workspace paths, the sensitive set, and the names that are always read-only.

A glob of a policy: ``*`` and ``?`` stay inside a name, ``**`` crosses directories, ``[abc]``, ``[a-z]``, ``[!x]``; no
escapes. Without a slash (a trailing one aside) it means a name at any depth; with one it starts at the root of the
workspace. A glob that matches a directory matches everything below it.
Promises: `glob_match` is our own bit-parallel automaton, linear in the path for a bounded pattern; caller's text never
reaches ``re``. Block lists and protected names ignore case (``.ENV``).
Does not: touch a file system.
"""

from __future__ import annotations

from functools import lru_cache

from nucleus.globs import anchored, folded, folded_glob

# Tokens of the automaton.
_SET, _STAR, _DIRS, _DIRS_INSIDE, _GLOBSTAR = range(5)


def glob_match(pattern: str, path: str, *, ignore_case: bool = False) -> bool:
    """Does the whole of `path` match `pattern`? Anchored at both ends, no expansion to any depth.

    Args:
        pattern: a glob as the module describes; an unclosed ``[`` is a literal.
        path: a normalized relative path.
    """
    if ignore_case:
        pattern, path = folded_glob(pattern), folded(path)
    return _compile(pattern, ignore_case).matches(path)


class _Automaton:
    """Shift-and over the tokens of one glob: bit i of the state is "the first i tokens have matched".

    Args:
        pattern: the glob; with `fold` its `folded_glob`, for paths that are folded.
        fold: a set has a character in both its cases.
    """

    __slots__ = ("dirs", "dirs_inside", "final", "fold", "globstars", "literals", "sets", "stars")

    def __init__(self, pattern: str, fold: bool) -> None:
        self.fold = fold
        self.stars = self.dirs = self.dirs_inside = self.globstars = 0
        self.literals: dict[str, int] = {}
        self.sets: list[tuple[int, bool, tuple[tuple[str, str], ...]]] = []
        position = 0
        for kind, value in _tokens(pattern):
            bit = 1 << position
            if kind == _STAR:
                self.stars |= bit
            elif kind == _GLOBSTAR:
                self.globstars |= bit
            elif kind == _DIRS:
                self.dirs |= bit
                position += 1
                self.dirs_inside |= 1 << position
            elif isinstance(value, str):
                self.literals[value] = self.literals.get(value, 0) | bit
            else:
                self.sets.append((bit, value[0], value[1]))
            position += 1
        self.final = 1 << position

    def _skip(self, state: int) -> int:
        """The empty transitions: past a star, past a whole ``**/``."""
        while True:
            new = state | (state & (self.stars | self.globstars)) << 1 | (state & self.dirs) << 2
            if new == state:
                return state
            state = new

    def matches(self, path: str) -> bool:
        state = self._skip(1)
        for character in path:
            slash = character == "/"
            step = self.literals.get(character, 0)
            if not slash:
                for bit, negated, ranges in self.sets:
                    if (_within(character, ranges) or (self.fold and _within(character.upper(), ranges))) != negated:
                        step |= bit
            new = (state & step) << 1 | state & self.globstars
            if slash:
                new |= (state & self.dirs_inside) >> 1
            else:
                new |= state & (self.stars | self.dirs_inside) | (state & self.dirs) << 1
            if not new:
                return False
            state = self._skip(new)
        return bool(state & self.final)


def _within(character: str, ranges: tuple[tuple[str, str], ...]) -> bool:
    return len(character) == 1 and any(low <= character <= high for low, high in ranges)


def _tokens(pattern: str) -> list[tuple[int, str | tuple[bool, tuple[tuple[str, str], ...]]]]:
    out: list[tuple[int, str | tuple[bool, tuple[tuple[str, str], ...]]]] = []
    at, size = 0, len(pattern)
    while at < size:
        character = pattern[at]
        if character == "*":
            end = at
            while end < size and pattern[end] == "*":
                end += 1
            whole = end - at >= 2 and (at == 0 or pattern[at - 1] == "/")
            if whole and end < size and pattern[end] == "/":
                if not (out and out[-1][0] == _DIRS):
                    out.append((_DIRS, ""))
                end += 1
            else:
                out.append((_STAR if end - at == 1 else _GLOBSTAR, ""))
            at = end
        elif character == "?":
            out.append((_SET, (True, ())))
            at += 1
        elif character == "[" and (found := _set(pattern, at)) is not None:
            out.append((_SET, found[0]))
            at = found[1]
        else:
            out.append((_SET, character))
            at += 1
    return out


def _set(pattern: str, at: int) -> tuple[tuple[bool, tuple[tuple[str, str], ...]], int] | None:
    negated = pattern[at + 1 : at + 2] in ("!", "^") and at + 1 < len(pattern)
    start = at + 2 if negated else at + 1
    end = pattern.find("]", start + 1)
    if end < 0:
        return None
    body, ranges, i = pattern[start:end], [], 0
    while i < len(body):
        if i + 2 < len(body) and body[i + 1] == "-":
            ranges.append((body[i], body[i + 2]))
            i += 3
        else:
            ranges.append((body[i], body[i]))
            i += 1
    return (negated, tuple(ranges)), end + 1


@lru_cache(maxsize=2048)
def _compile(pattern: str, fold: bool) -> _Automaton:
    return _Automaton(pattern, fold)


# --- sets of policy globs ---

_SPECIAL = frozenset("*?[")


_KEY = 4  # characters of a name's two ends that say whether it can match at all


class PathSet:
    """A list of policy globs, compiled: which of them, if any, covers a path or a directory above it?

    Most paths are covered by none, so that is found first, by look-ups alone: no name of the path is a literal one, and
    none begins or ends as a pattern does. Only then are the globs tried, in their order.
    """

    __slots__ = (
        "_anchored", "_ending", "_fold", "_heads", "_key", "_literal", "_names", "_prefix", "_quick", "_root",
        "_suffix", "_tails", "_whole",
    )  # fmt: skip

    def __init__(self, globs: tuple[str, ...], fold: bool) -> None:
        self._fold = fold
        self._literal: dict[str, str] = {}
        self._prefix: list[tuple[str, str]] = []
        self._suffix: list[tuple[str, str]] = []
        self._names: list[tuple[str, str]] = []
        self._anchored: list[tuple[str, str]] = []  # last part is a pattern
        self._ending: dict[str, list[tuple[str, str]]] = {}  # last part is this literal
        for glob in globs:
            self._add(glob)
        self._root = self._anchor(".")
        self._index()

    def _index(self) -> None:
        """What `find` asks first. `_quick`: it can answer for every path that holds nothing of what is indexed."""
        self._whole = frozenset((*self._literal, *self._ending))
        self._key = min((_KEY, *(len(text) for text, _ in (*self._prefix, *self._suffix))))
        self._quick = not self._names and not self._anchored and self._key > 0
        self._heads: dict[str, list[tuple[str, str]]] = {}
        self._tails: dict[str, list[tuple[str, str]]] = {}
        for text, glob in self._prefix if self._key else ():
            self._heads.setdefault(text[: self._key], []).append((text, glob))
        for text, glob in self._suffix if self._key else ():
            self._tails.setdefault(text[-self._key :], []).append((text, glob))

    def _add(self, glob: str) -> None:
        text = anchored(folded_glob(glob) if self._fold else glob)
        if text[0] == "/":
            last = text.rpartition("/")[2]
            same = self._anchored if _SPECIAL & set(last) else self._ending.setdefault(last, [])
            same.append((text[1:], glob))
        elif not _SPECIAL & set(text):
            self._literal.setdefault(text, glob)
        elif not _SPECIAL & set(text[1:]) and text[0] == "*":
            self._suffix.append((text[1:], glob))
        elif not _SPECIAL & set(text[:-1]) and text[-1] == "*":
            self._prefix.append((text[:-1], glob))
        else:
            self._names.append((text, glob))

    def find(self, path: str) -> str | None:
        """The glob that covers `path` (relative, normalized), or None."""
        if path == ".":
            return self._root
        if self._fold:
            path = folded(path)
        names = path.split("/")
        if self._quick and self._whole.isdisjoint(names) and not self._suspect(names):
            return None
        literal, key, heads, tails = self._literal, self._key, self._heads, self._tails
        for name in names:
            if (glob := literal.get(name)) is not None:
                return glob
            if (not key or self._names or name[:key] in heads or name[-key:] in tails) and (
                glob := self._name(name)
            ) is not None:
                return glob
        if not self._anchored and self._ending.keys().isdisjoint(names):
            return None
        end = len(path)
        while end > 0:
            if (found := self._anchor(path[:end])) is not None:
                return found
            end = path.rfind("/", 0, end)
        return None

    def covers(self, path: str) -> bool:
        """Does a glob cover `path`? Less work than to say which."""
        if path == ".":
            return self._root is not None
        names = (folded(path) if self._fold else path).split("/")
        return not self._literal.keys().isdisjoint(names) or self.find(path) is not None

    def _name(self, name: str) -> str | None:
        """The pattern that covers one name by itself."""
        key = self._key
        for text, glob in self._heads.get(name[:key], ()) if key else self._prefix:
            if name.startswith(text):
                return glob
        for text, glob in self._tails.get(name[-key:], ()) if key else self._suffix:
            if name.endswith(text):
                return glob
        return next((glob for text, glob in self._names if _compile(text, self._fold).matches(name)), None)

    def _suspect(self, names: list[str]) -> bool:
        """Does a name begin or end as a pattern does?"""
        key, heads, tails = self._key, self._heads, self._tails
        if heads or tails:
            for name in names:
                if name[:key] in heads or name[-key:] in tails:
                    return True
        return False

    def _anchor(self, path: str) -> str | None:
        ending = self._ending.get(path.rpartition("/")[2], ())
        fold = self._fold
        return next((glob for text, glob in (*ending, *self._anchored) if _compile(text, fold).matches(path)), None)


@lru_cache(maxsize=256)
def path_set(globs: frozenset[str], fold: bool) -> PathSet:
    """The compiled set of `globs`; `fold` ignores case."""
    return PathSet(tuple(sorted(globs)), fold)


# Credentials by their customary names. "token" and "password" count as whole names of data files (`api_token.txt`,
# `password.json`), never as a part of one: `tokenizer.rs`, `token.py` and `password_reset.html` are ordinary.
_WORDS = ("token", "tokens", "password", "passwords", "passwd")
_DATA = ("", ".txt", ".json", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".conf", ".csv", ".enc", ".bak")
SENSITIVE: tuple[str, ...] = (
    ".env*", "*.env", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx",
    "secrets/", ".secrets/", "secrets.yaml", "secrets.yml", "secrets.json", "secrets.toml",
    ".ssh/", "credentials*", ".credentials*", ".aws/", ".gnupg/", ".azure/", "**/.config/gcloud/", "**/.kube/config",
    "**/.docker/config.json", ".dockercfg", "**/.git/config", ".git-credentials", ".netrc", "_netrc",
    "id_rsa*", "id_ed25519*", "id_ecdsa*", "id_dsa*", ".npmrc", ".pypirc", ".pgpass", ".my.cnf", ".htpasswd",
    *(f"{before}{word}{data}" for word in _WORDS for before in ("", ".") for data in _DATA),
    *(f"*{mark}{word}{data}" for word in _WORDS for mark in "_-." for data in _DATA),
)  # fmt: skip

# They would run on the host later, by a person's own git, editor, shell or agent: shown read-only, whatever the
# policy says.
PROTECTED: tuple[str, ...] = (
    ".git", ".gitmodules", ".envrc", ".vscode/", ".idea/", ".claude/", ".mcp.json", ".cursor/", ".cursorrules",
    ".codex/", ".gemini/", ".husky/", ".githooks/", ".pre-commit-config.yaml", ".lefthook.yml", "lefthook.yml",
    ".devcontainer/", ".direnv/", ".bashrc", ".bash_profile", ".profile", ".zshrc", ".zshenv", ".vimrc", ".exrc",
    ".nvimrc", ".nvim.lua", ".gdbinit", ".lldbinit", ".inputrc", ".mise.toml", ".fleet/", ".zed/", "**/.hg/hgrc",
    "**/.jj/repo/config.toml",
)  # fmt: skip

_SENSITIVE_SET = path_set(frozenset(SENSITIVE), True)
_PROTECTED_SET = path_set(frozenset(PROTECTED), True)


def is_sensitive(path: str) -> str | None:
    """The glob of `SENSITIVE` that covers `path`, or None."""
    return _SENSITIVE_SET.find(path)


def is_protected(path: str) -> str | None:
    """The glob of `PROTECTED` that covers `path`, or None: writing there is refused by every policy."""
    return _PROTECTED_SET.find(path)
