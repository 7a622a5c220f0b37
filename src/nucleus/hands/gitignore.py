"""`.gitignore` files as RE2 programs, in the language of gitignore(5).

Promises: nothing of git is run and no configuration is read; the last pattern that matches decides, the deepest file
first; what lies below an ignored directory cannot come back; a pattern that git would never match matches nothing.
Linear whatever the pattern: a run of patterns of one kind (ignored, or taken back) is one automaton.
Relies on: its caller reading only files that the policy shows, and asking for directories with a "/" behind them.
Does not: know which files git tracks; a tracked file that a pattern matches is left out, as ripgrep does.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import re2

from nucleus.hands.globs import options
from nucleus.limits import LIMITS

FILE_BYTES = 256 << 10  # of one .gitignore
PATTERNS = 8_192  # of one .gitignore
_CLASSES = frozenset(("alnum", "alpha", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space", "upper",
                      "xdigit"))  # fmt: skip


class Level(NamedTuple):
    """The patterns of one directory. `base`: its path as the walk writes it, empty or with a "/" behind."""

    base: str
    runs: tuple[tuple[bool, Any], ...]  # (ignores, program), the last one first

    def any_of(self, block: bytes) -> bool:
        """Whether a pattern matches one of the names (from `base`) in `block`, a NUL around each."""
        found: bool = any(program.search(block) is not None for _, program in self.runs)
        return found

    def verdict(self, name: bytes) -> bool | None:
        """Whether `name` (from `base`) is ignored; None when no pattern says."""
        name = b"\0" + name + b"\0"
        for ignores, program in self.runs:
            if program.search(name) is not None:
                return ignores
        return None


def level(base: str, texts: list[bytes]) -> tuple[Level | None, bool]:
    """The patterns of `texts` (the later ones win), and whether all of them were taken."""
    whole = True
    runs: list[tuple[bool, list[str]]] = []
    for text in texts:
        lines = text.removeprefix(b"\xef\xbb\xbf").split(b"\n")
        if len(text) > FILE_BYTES or len(lines) > PATTERNS:
            whole = False
            continue
        for line in lines:
            parsed = _pattern(line)
            if parsed is None:
                continue
            if not runs or runs[-1][0] is not parsed[0]:
                runs.append((parsed[0], []))
            runs[-1][1].append(parsed[1])
    programs: list[tuple[bool, Any]] = []
    for ignores, sources in reversed(runs):
        try:
            programs.append((ignores, re2.compile(f"\\x00(?:{'|'.join(dict.fromkeys(sources))})\\x00", options())))
        except re2.error:
            whole = False
    return (Level(base, tuple(programs)) if programs else None), whole


def kept(levels: tuple[Level, ...], prefix: str, names: list[str]) -> list[str]:
    """Those of `names`, in directory `prefix`, that no level ignores."""
    asked = False
    for one in levels:
        before = "\0" + prefix[len(one.base) :]
        if one.any_of((before.join(("", *names)) + "\0").encode("utf-8")):
            asked = True
            break
    return [name for name in names if not _ignored(levels, prefix + name)] if asked else names


def _ignored(levels: tuple[Level, ...], path: str) -> bool:
    for one in reversed(levels):
        verdict: bool | None = one.verdict(path[len(one.base) :].encode("utf-8"))
        if verdict is not None:
            return verdict
    return False


def _pattern(line: bytes) -> tuple[bool, str] | None:
    """(ignores, RE2 source) of one line; None for a blank, a comment, and what can match nothing."""
    line = line.removesuffix(b"\r")
    if not line or line.startswith(b"#") or len(line) > LIMITS.pattern_bytes:
        return None
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        return None
    text = _trimmed(text)
    ignores = not text.startswith("!")
    text = text if ignores else text[1:]
    only_directories = text.endswith("/")
    text = text.removesuffix("/")
    if not text or "\0" in text:
        return None
    rooted = "/" in text
    source = _translate(text.removeprefix("/"))
    if source is None:
        return None
    return ignores, ("" if rooted else "(?:[^/\\x00]+/)*") + source + ("/" if only_directories else "/?")


def _trimmed(text: str) -> str:
    """Without the blanks at the end, save one that a backslash keeps."""
    end = len(text)
    while end and text[end - 1] == " ":
        slashes = 0
        while end - 2 - slashes >= 0 and text[end - 2 - slashes] == "\\":
            slashes += 1
        if slashes % 2:
            break
        end -= 1
    return text[:end]


def _translate(text: str) -> str | None:
    out: list[str] = []
    at, size = 0, len(text)
    while at < size:
        character = text[at]
        if character == "*":
            end = at
            while end < size and text[end] == "*":
                end += 1
            alone = (at == 0 or text[at - 1] == "/") and (end == size or text[end] == "/")
            whole = alone and end - at == 2
            if whole and end < size:
                out.append("(?:[^/\\x00]+/)*")
                end += 1
            elif whole:
                out.append("[^\\x00]+")
            else:
                out.append("[^/\\x00]+" if alone else "[^/\\x00]*")  # no name is empty: "d/*" is not "d/"
            at = end
        elif character == "?":
            out.append("[^/\\x00]")
            at += 1
        elif character == "[":
            found = _set(text, at)
            if found is None:
                return None
            source, at = found
            out.append(source)
        else:
            if character == "\\":
                at += 1
                if at == size:
                    return None
            out.append(_literal(text[at]))
            at += 1
    return "".join(out)


def _set(text: str, at: int) -> tuple[str, int] | None:
    """(RE2 source, where the pattern goes on) of the set at `at`; None when it is not closed or not known."""
    at += 1
    negated = text[at : at + 1] in ("!", "^")
    at += negated
    first, members = at, []
    while at < len(text) and (text[at] != "]" or at == first):
        if text.startswith("[:", at):
            end = text.find(":]", at)
            if end < 0 or text[at + 2 : end] not in _CLASSES:
                return None
            members.append(text[at : end + 2])
            at = end + 2
            continue
        low, at = _member(text, at)
        high = low
        if text[at : at + 1] == "-" and text[at + 1 : at + 2] not in ("", "]"):
            high, at = _member(text, at + 1)
        if low and high and low <= high:
            members.append(f"{_literal(low)}-{_literal(high)}")
    if at >= len(text):
        return None
    if negated:
        return f"[^/\\x00{''.join(members)}]", at + 1
    # A set never matches "/": RE2 has no intersection, so the one range that could hold it is cut.
    return _without_slash(members), at + 1


def _member(text: str, at: int) -> tuple[str, int]:
    if text[at] == "\\":
        at += 1
    return text[at : at + 1], at + 1


def _without_slash(members: list[str]) -> str:
    parts: list[str] = []
    for member in members:
        if member == "[:punct:]" or member in ("[:graph:]", "[:print:]"):
            low = {"[:punct:]": "!", "[:graph:]": "!", "[:print:]": " "}[member]
            rest = "0-~" if member != "[:punct:]" else ":-@\\[-`{-~"
            parts.append(f"{low}-.{rest}")
        elif member.startswith("[:"):
            parts.append(member)
        else:
            parts.extend(_cut(member))
    return f"[{''.join(parts)}]" if parts else "[^\\x00-\\x{10FFFF}]"


def _cut(member: str) -> list[str]:
    low, high = (int(end[3:-1], 16) for end in member.split("-"))
    pieces = [(low, min(high, 0x2E)), (max(low, 0x30), high)]
    return [f"\\x{{{first:X}}}-\\x{{{last:X}}}" for first, last in pieces if first <= last]


def _literal(character: str) -> str:
    return f"\\x{{{ord(character):X}}}"
