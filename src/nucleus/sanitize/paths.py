"""Absolute paths in a text become `[sandbox]/…`, `[home]/…` or `[path]` (the seed's "Error Handling" table).

A path starts at a slash (or `~user/`, `file://`, an encoded slash) that is not inside a relative path or a URL, and
runs to a character that ends it where it is written: the closing quote, a blank, a bracket that it did not open.
Joined paths (`/a:/b`, `x=/a,/b`) are judged one by one. Line numbers behind `[path]` stay.

Promises: no absolute path of the host or of the pod leaves; what is inside the sandbox or a home keeps its relative
part, so that the agent can act on it; where it is unclear how far a path goes, more is hidden. Linear: no pattern has
a repetition that can meet its neighbour; looks around are of fixed width, and most context is judged at the match.
Does not: touch file contents or command output, which are data, or hide relative paths and paths in URLs.
"""

from __future__ import annotations

from functools import lru_cache

from nucleus.sanitize.characters import after_escape, in_word
from nucleus.sanitize.patterns import Pattern

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re

_ENDS = r"\s\x00-\x1f\x7f-\x9f\"'`<>|()\[\]{}"
_IN = rf"[^{_ENDS}]*"
_COLOUR = r"\x1b\[[0-9;]{0,16}[A-Za-z]"  # a search's mark in the middle of a path
RUN = rf"{_IN}(?:(?:\({_IN}\)|\[{_IN}\]|\{{{_IN}\}}|{_COLOUR}){_IN})*"
SLASH = r"(?:%(?:25){0,2}2[fF]|\\{1,4}/|\\{1,4}u002[fF]|\\{1,4}x2[fF]|&#47;|&#[xX]2[fF];|&sol;)"
LABEL = r"\[(?:sandbox|home|path|host|redacted|stack trace)\]"
# To where a joined path could begin; what follows is seen on its own, and is relative behind a letter.
URL = r"://[^\s\x00-\x1f\"'`<>|?#/,;]*(?:/[^\s\x00-\x1f\"'`<>|()\[\]{}?#,;=:!&\\]*)?"
PATH = Pattern(rf"/{RUN}|{URL}|~[A-Za-z0-9_.\-]{{0,32}}/{RUN}|{LABEL}{RUN}|{SLASH}{RUN}")
ENCODED = Pattern(SLASH)
FILE_URL = Pattern(r"(?i)file://[^\s/\"'`<>]{0,255}")
# A quoted path may hold blanks: up to its closing quote, which an escaped one ends too when it opened escaped.
QUOTED = Pattern("|".join(rf"\\{{1,4}}{q}~?/[^{q}\n]*{q}?|{q}~?/[^{q}\\\n]*(?:\\.[^{q}\\\n]*)*{q}?" for q in "\"'`"))
# Inside a run: where another path begins, or an escaped end of line ends this one.
JOINT = Pattern(
    r"([:,;=&?!@]{1,4})(?:~?/|\[(?:sandbox|home|path)\])"
    r"|\\{1,4}[nrt]|\\{1,4}u00[01][0-9a-fA-F]|\\{1,4}x[01][0-9a-fA-F]"
)
POSITION = Pattern(r":\d{1,9}(?::\d{1,9})?:?")
# A name may hold blanks between plain words; in quotes that do not belong together another path may follow one.
_NAME = r"[^/\s]+(?: [A-Za-z0-9_.\-]+)*"
SANDBOX_DIRECTORY = Pattern(rf"/var/(?:lib/nucleus/)?(?:sandbox|pods)/{_NAME}(?:$|(?=/))")
HOME = Pattern(rf"/(?:var/|export/|usr/)?home/{_NAME}|/Users/{_NAME}|/root")
TAG = Pattern(r"/[A-Za-z][A-Za-z0-9:\-]{0,40}$")
FLAG = Pattern(r"-(?:[A-Za-z]|isystem|iquote|idirafter|isysroot|include|imacros|B|rpath)$")
# The plainest paths: nothing strange before (a look back of two), nothing joined to their end.
_ALONE = r"/(?!/)(?:(?<![^ \n\t\"'`(=:,;]/)|(?<=[ \n\t\"']-[A-Za-z]/))"
_OVER = r"(?=(?:[.,;:]|:\d{1,9}(?::\d{1,9})?[.,;:]?)?(?:[ \n\t\"'`)]|$))"
# What the plain patterns may have left: a slash behind anything but a letter or a label, or behind an option's.
LEFT = Pattern(
    r"/(?:(?<![A-Za-z0-9_]/)(?:(?<![.\]/]/)(?<![a-z]:/(?=/))|(?<=[A-Za-z0-9_)\]]\./)|(?<=\]/)(?<!sandbox\]/)(?<!home\]/))"
    r"|(?<=-[A-Za-z]/)|(?<=-include/))"
)
_MARKS = ("%", "\\", "&", "\x1b")
_FLAGS = ("isystem/", "iquote/", "dirafter/", "sysroot/", "imacros/", "rpath/")
TILDE = Pattern(r"~[A-Za-z0-9_.\-]{0,32}/")
BROKEN = Pattern(r"/[^\s/]*\n[^\s\[\](){}<>|\\\"'`:,;/]")
BLANKS = Pattern(r"[\"'`]~?/[^\"'`\n ]* |\\[\"'`]")
ROOTS = frozenset(
    ("bin", "boot", "dev", "etc", "home", "lib", "lib64", "media", "mnt", "opt", "proc", "root", "run", "sbin", "srv",
     "sys", "tmp", "usr", "var", "workspace", "nix", "snap", "Users", "private")
)  # fmt: skip
_OPEN = frozenset(" \n\t\"'`(=:,;|&>{!?$^\u2018\u201c\u00ab")
_SPECIAL = frozenset(":,;=&?!@\\")
_WIDTHS = frozenset((64, 70, 72, 76, 78, 79, 80, 99, 100, 119, 120, 132))  # where terminals and formatters wrap


def map_paths(text: str, roots: tuple[str, ...]) -> tuple[str, bool]:
    """Every absolute path of `text` mapped, in one pass of each step, and whether a second pass could find more.

    `roots` are as `sanitize_paths` has them, the innermost first and without slashes at the end.
    """
    if "/" not in text and "%" not in text and "\\" not in text and "&" not in text:
        return text, False
    before = text
    if "://" in text and "file://" in text.lower():
        text = FILE_URL.sub(_file_url, text)
    if "\n" in text and BROKEN.search(text):
        text = _unwrapped(text, roots)
    if ('"/' in text or "'/" in text or "`/" in text or '"~' in text or "'~" in text) and BLANKS.search(text):
        text = QUOTED.sub(lambda match: _quoted(match, roots), text)
    changed = text is not before and text != before
    if "/.." not in text and "/./" not in text and text.count("//") == text.count("://"):
        in_roots, in_homes, elsewhere = _plain_paths(roots)
        text = elsewhere.sub("[path]", text)
        if "/var/" in text or any(root in text for root in roots):
            text = in_roots.sub("[sandbox]", text)
        if "/home/" in text or "/root/" in text:
            text = in_homes.sub("[home]", text)
    # What is left, by lines: none of what follows reaches over a line's end.
    if not _more(text):
        return text, changed
    lines = text.split("\n")
    after = "\n".join([PATH.sub(lambda match: _found(match, roots), line) if _more(line) else line for line in lines])
    return after, changed or after != text


def _more(text: str) -> bool:
    if LEFT.search(text) is not None or any(mark in text for mark in _MARKS):
        return True
    if ("-i" in text or "-sysroot/" in text or "-rpath/" in text) and any(flag in text for flag in _FLAGS):
        return True
    return "~" in text and TILDE.search(text) is not None


@lru_cache(maxsize=32)
def _plain_paths(roots: tuple[str, ...]) -> tuple[Pattern, Pattern, Pattern]:
    """The three rows of the table for the plainest paths: most of all there are, without a call for each."""
    import re  # late

    inside = [root for root in roots if root[:1] == "/"]
    kept = "|".join(re.escape(root[1:]) for root in inside)
    first = "|".join(
        ("home", "root", "Users", "var", "export", "usr/home", *(re.escape(r.split("/")[1]) for r in inside))
    )
    sandbox = r"var/(?:lib/nucleus/)?(?:sandbox|pods)/[A-Za-z0-9_\-]{1,255}"
    return (
        Pattern(rf"{_ALONE}(?:{kept + '|' if kept else ''}{sandbox})(?=/[A-Za-z0-9_])"),
        Pattern(rf"{_ALONE}(?:home/[A-Za-z0-9_][A-Za-z0-9_.\-]{{0,255}}|root)(?=/[A-Za-z0-9_.])"),
        Pattern(rf"{_ALONE}(?!(?:{first})(?![A-Za-z0-9_.\-]))[A-Za-z0-9_./+\-]*[A-Za-z0-9_+\-]{_OVER}"),
    )


def _file_url(match: re.Match[str]) -> str:
    return match.group() if in_word(match.string, match.start()) else ""


def _unwrapped(text: str, roots: tuple[str, ...]) -> str:
    """Join a path that a line's end has broken: what follows would be left over as if it were relative."""
    lines = text.split("\n")
    out = [lines[0]]
    for line in lines[1:]:
        first = line[:1]
        if not (first.isalnum() or (first and first in "._-~%@+")):
            out.append(line)
            continue
        last = out[-1]
        word = last[max(last.rfind(" "), last.rfind("\t")) + 1 :].lstrip("\"'`([{=<")
        if word[:1] == "/" and len(last) <= 8_192:  # or joining many would be quadratic
            following = line.split(None, 1)[0]
            broken = "/" in following and ":" not in following and not any(word.startswith(r + "/") for r in roots)
            if broken or (len(word) > 1 and word[-1] == "/") or (len(last) in _WIDTHS and word[-1] not in ".,:;"):
                out[-1] = last + line
                continue
        out.append(line)
    return "\n".join(out)


def _quoted(match: re.Match[str], roots: tuple[str, ...]) -> str:
    whole = match.group()
    if whole[-1] not in "\"'`" or " " not in whole:
        return whole  # nothing closes it, or the next step sees all of it
    inner = whole.strip("\\\"'`")
    start = whole.index(inner)
    return whole[:start] + _mapped(inner, roots) + whole[start + len(inner) :]


def _found(match: re.Match[str], roots: tuple[str, ...]) -> str:
    run, start, text = match.group(), match.start(), match.string
    before = text[start - 1] if start else " "
    first = run[0]
    if first == "/":
        if before not in _OPEN and not _absolute(text, start, before, run):
            return run if _SPECIAL.isdisjoint(run) else _pieces(run, roots, whole=False)
        return _mapped(_bare(run), roots) + run[len(_bare(run)) :] if _SPECIAL.isdisjoint(run) else _pieces(run, roots)
    if first == ":":
        return run if before.isascii() and before.isalnum() else ":" + _pieces(run[1:], roots)
    if first == "[":
        return run if _SPECIAL.isdisjoint(run[1:]) else _pieces(run, roots, whole=False)
    if first == "~":
        inside = before in ".~/" or in_word(text, start)
        if run[1].isdigit() or inside:
            return run if _SPECIAL.isdisjoint(run) else _pieces(run, roots, whole=False)
        return _pieces(run, roots)
    return _encoded(text, start, before, run, roots)


def _encoded(text: str, start: int, before: str, run: str, roots: tuple[str, ...]) -> str:
    plain = ENCODED.sub("/", run)
    if plain.startswith("//") and before in ":A":  # https:\/\/ and https%3A%2F%2F
        return run
    if before not in _OPEN and not _absolute(text, start, before, plain):
        return run
    mapped = _pieces(plain, roots)
    return run if mapped == plain else mapped


def _absolute(text: str, start: int, before: str, run: str) -> bool:
    """Whether the slash at `start` begins an absolute path, by what stands before it."""
    if before == ".":  # ./ and ../ are relative; a sentence's end is not
        return start > 1 and (text[start - 2].isalnum() or text[start - 2] in ")]")
    if before == "_" or (before.isalnum() and before < "\u2e80"):
        head = text[max(start - 24, 0) : start]
        if (flag := FLAG.search(head)) and not head[: flag.start()][-1:].isalnum():
            return True
        if before in "DdAaFf" and ENCODED.search(head[-5:]) is None and head[-3:-1] in ("%3", "%2"):
            return True  # %3D/etc
        return after_escape(text, start)
    if before == "<":
        tag = TAG.match(run) is not None and text.startswith(">", start + len(run))
        return not tag or run[1:] in ROOTS
    if before in "*#":
        return run.lstrip("/").partition("/")[0].rstrip(".,;:*") in ROOTS
    if before == "+":  # a diff's line, but not c++/x or +/-
        return start == 1 or (text[start - 2] != "+" and not text[start - 2].isalnum() and run[1:2] != "-")
    return True


def _pieces(run: str, roots: tuple[str, ...], *, whole: bool = True) -> str:
    """A run that may hold several paths; `whole`: its first piece is one."""
    out: list[str] = []
    begin = 0
    for joint in JOINT.finditer(run):
        at = joint.start()
        escaped = run[at] == "\\"
        end = joint.end() if escaped else joint.end(1)
        url = run.startswith("//", end) and run[at - 1 : at].isalnum() and run[at:end] == ":"
        if url or (at == 0 and whole and not escaped):
            continue
        out.append(_piece(run[begin:at], roots, whole=whole))
        out.append(run[at:end])
        begin = end
        whole = True
    out.append(_piece(run[begin:], roots, whole=whole))
    return "".join(out)


def _piece(piece: str, roots: tuple[str, ...], *, whole: bool) -> str:
    if not whole or piece[:1] not in ("/", "~") or "/" not in piece:
        return piece
    bare = _bare(piece)
    tail = piece[len(bare) :]
    if ":" in bare:
        at = bare.find(":")
        position = POSITION.match(bare, at)
        if position:  # compiler positions, and what is joined to them, are no part of the path
            where = _mapped(bare[:at], roots)
            return where + bare[at:] + tail if where != "[path]" else where + position.group() + tail
    return _mapped(bare, roots) + tail


def _bare(path: str) -> str:
    return path.rstrip(".:!?,;*\\\u2026&")


def _mapped(path: str, roots: tuple[str, ...]) -> str:
    """The table, for one path."""
    if not path.strip("/*"):
        return path  # the root itself, a comment's slashes, a glob's end
    if path[0] == "~":
        if "/" not in path:
            return path  # nobody's home: a joint took what followed
        return "[path]" if "/.." in path else "[home]" + path[path.index("/") :]
    if "//" in path or "/./" in path:
        path = _plain(path)
    if "/../" in path + "/" or ("%" in path and "%2e" in path.lower()):
        return "[path]"
    for root in roots:
        if path == root or path.startswith(root + "/"):
            return "[sandbox]" + path[len(root) :]
    if path.startswith("/var/") and (found := SANDBOX_DIRECTORY.match(path)):
        return "[sandbox]" + path[found.end() :]
    found = HOME.match(path)
    if found and path[found.end() : found.end() + 1] in ("", "/"):
        return "[home]" + path[found.end() :]
    return "[path]"


def _plain(path: str) -> str:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return "/" + "/".join(parts)
