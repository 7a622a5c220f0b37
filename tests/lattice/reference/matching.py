"""How globs, hosts, command rules and destinations match, the slow way: by recursion over words and characters."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Any

from nucleus.lattice import tables

from .facts import EVERYTHING, Argument, Rule

# --- globs ---


@lru_cache(maxsize=1 << 18)
def one_spelling(text: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def covers(glob: str, path: str, fold: bool) -> bool:
    """Does a glob of a policy cover a path: match it, or a directory above it?"""
    if fold:
        glob, path = one_spelling(glob), one_spelling(path)
    glob = re.sub(r"\*{3,}", "**", glob).rstrip("/")
    at_root = "/" in glob
    while glob.endswith("/**"):  # all below a directory, and the directory
        glob = glob.removesuffix("/**").rstrip("/")
    glob = glob.lstrip("/")
    if re.fullmatch(r"(\*\*/)+[^/]*", glob) and "**" not in glob.rpartition("/")[2]:  # as without
        at_root, glob = False, glob.rpartition("/")[2]
    names = path.split("/")
    above = ["/".join(names[: count + 1]) for count in range(len(names))]
    if not at_root and "**" not in glob:  # a name at any depth; the root of the workspace has none
        return path != "." and any(matches(glob, name) for name in names)
    return any(matches(glob if at_root else "**/" + glob, name) for name in above)


def matches(glob: str, text: str, begins: bool = True) -> bool:
    """The whole of `text` by the whole of `glob`; `begins`: a name begins here."""
    if not glob:
        return not text
    if begins and glob.startswith("**/"):  # any number of whole directories
        below = [text[at + 1 :] for at, character in enumerate(text) if character == "/" and at > 0]
        return any(matches(glob[3:], rest) for rest in (text, *below))
    if glob.startswith("**"):
        return matches(glob[2:], text, False) or (bool(text) and matches(glob, text[1:], False))
    if glob[0] == "*":
        return matches(glob[1:], text, False) or (text[:1] not in ("", "/") and matches(glob, text[1:], False))
    if not text:
        return False
    if glob[0] == "?":
        return text[0] != "/" and matches(glob[1:], text[1:], False)
    first = 3 if glob[:2] == "[!" else 2  # a bracket that comes first is a member
    if glob[0] == "[" and "]" in glob[first:]:
        end = glob.index("]", first)
        return text[0] != "/" and in_set(glob[1:end], text[0]) and matches(glob[end + 1 :], text[1:], False)
    return glob[0] == text[0] and matches(glob[1:], text[1:], glob[0] == "/")


def in_set(members: str, character: str) -> bool:
    """``a-z``, ``abc``, ``!x``."""
    if members.startswith("!"):
        return not in_set(members[1:], character)
    while members:
        if len(members) >= 3 and members[1] == "-":
            if members[0] <= character <= members[2]:
                return True
            members = members[3:]
        else:
            if members[0] == character:
                return True
            members = members[1:]
    return False


def any_covers(globs: tuple[str, ...], path: str, fold: bool) -> bool:
    return any(covers(glob, path, fold) for glob in globs)


def allowed(lists: str | tuple[tuple[str, ...], ...], path: str) -> bool:
    """On every one of the lists; an empty list has nothing on it."""
    return lists == EVERYTHING or all(any_covers(globs, path, False) for globs in lists)


# --- hosts ---


def names_host(line: str, host: str) -> bool:
    """Itself, or ``*.parent`` for anything below the parent."""
    return host.endswith(line[1:]) and host != line[2:] if line.startswith("*.") else host == line


def host_of(url: str) -> str:
    """The host of a URL that has passed validation."""
    rest = url.split("://", 1)[1]
    for mark in "/?":
        rest = rest.split(mark, 1)[0]
    rest = rest[: rest.index("]") + 1] if rest.startswith("[") else rest.split(":", 1)[0]
    return rest.lower().rstrip(".")


def listed_host(lists: str | tuple[tuple[str, ...], ...], host: str) -> bool:
    return lists == EVERYTHING or all(any(names_host(line, host) for line in lines) for lines in lists)


# --- commands ---


def names_program(rule: Rule, program: str) -> bool:
    if rule.group:
        bare = program.rstrip("0123456789.")  # python3.11 is an interpreter as python3 is
        versioned = tables.SETS[rule.group] & (tables.INTERPRETERS | tables.SHELLS)
        return program in tables.SETS[rule.group] or bare in versioned
    return rule.program in ("*", program)


def inside(word: str) -> bool:
    """Is `word` a path in the workspace?"""
    if word.startswith("/"):
        if word != "/workspace" and not word.startswith("/workspace/"):
            return False
        word = word[len("/workspace") :]
    depth = 0
    for name in word.split("/"):
        depth += -1 if name == ".." else 0 if name in ("", ".") else 1
        if depth < 0:
            return False
    return True


def is_path(word: str) -> bool:
    return word != "" and not word.startswith("-") and inside(word)


def admits_word(argument: Argument, word: str) -> bool:
    if argument.kind == "literal":
        return word in argument.values
    if argument.kind == "integer":
        return word.isascii() and word.removeprefix("-").isdigit()
    if argument.kind == "path":
        return is_path(word)
    return True


def admits(rule: Rule, program: str, args: tuple[str, ...], flagged: bool) -> bool:
    """An allow rule: exact places, and after them only what `rest` admits. A set has plain commands only."""
    count = len(rule.args)
    if rule.group and (flagged or rule.group == "shell_strings"):  # strings are no single commands
        return False
    if not names_program(rule, program) or len(args) < count:
        return False
    if not all(admits_word(argument, word) for argument, word in zip(rule.args, args, strict=False)):
        return False
    rest = args[count:]
    return rule.rest == "any" or not rest or (rule.rest == "paths" and all(is_path(word) for word in rest))


def catches(rule: Rule, program: str, args: tuple[str, ...]) -> bool:
    """An ask or deny rule: its arguments in that order, whatever stands between; `/opt/x/git` is git too."""
    called = names_program(rule, program) or ("/" in program and names_program(rule, program.rpartition("/")[2]))
    return called and in_order(rule.args, args)


def in_order(wanted: tuple[Argument, ...], words: tuple[str, ...]) -> bool:
    if not wanted:
        return True
    if not words:
        return False
    return (admits_word(wanted[0], words[0]) and in_order(wanted[1:], words[1:])) or in_order(wanted, words[1:])


# --- destinations ---

NUMBERED = ("id", "number", "no", "nr")  # a bare number is named as the number of something, not by a date
BREAKS = "\x00\"'`´’‘“”„«»,;()[]{}<>|\\*"


@lru_cache(maxsize=1 << 16)
def words_of(text: str) -> tuple[str, ...]:
    """`text` as words, in one spelling each."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    for mark in BREAKS:
        text = text.replace(mark, " ")
    return tuple(word for raw in text.split() for word in spellings(raw))


def spellings(word: str) -> list[str]:
    """One word without what people put around it: two words for ``#13``, none for mere punctuation."""
    word = word.rstrip(".:!?…").removeprefix("mailto:")
    if re.fullmatch(r"#\d+", word):
        return ["number", word[1:]]
    if word.count("@") < 2:
        word = word.lstrip("@#")
    return [address(word)] if word else []


def address(word: str) -> str:
    """A web address without scheme, usual port, ``www.`` and an empty path; any other word as it is."""
    parts = re.fullmatch(r"(?:([^/?#]*?)://)?([^/?#]*)(.*)", word, re.DOTALL)
    assert parts
    scheme, host, rest = parts.groups()
    if scheme is None and ("." not in host or "@" in host):
        return word
    if scheme not in (None, "http", "https"):
        return word
    if scheme:
        host = re.sub(":443$" if scheme == "https" else ":80$", "", host).removesuffix(".")
    return host.removeprefix("www.") + (rest if len(rest) > 1 else "")


def named(destination: str, texts: tuple[str, ...], values: tuple[str, ...]) -> bool:
    """Is the whole of `destination` whole words of a text, or a whole value?"""
    wanted = words_of(destination)
    if not wanted or (len(wanted) == 1 and len(wanted[0]) == 1 and not wanted[0].isdigit()):
        return False  # one letter is in every text
    if any(words_of(value) == wanted for value in values):
        return True
    for text in texts:
        words = words_of(text)
        for at in range(len(words)):
            if words[at : at + len(wanted)] != wanted:
                continue
            if len(wanted) > 1 or not wanted[0].isdigit() or (at > 0 and words[at - 1] in NUMBERED):
                return True
    return False


def leaves(data: Any) -> list[str]:
    """The leaves of plain data as text; nothing for null and empty ones."""
    if data is None or data == "" or data == [] or data == {}:
        return []
    if isinstance(data, dict):
        return [leaf for key in data for leaf in leaves(data[key])]
    if isinstance(data, list | tuple):
        return [leaf for item in data for leaf in leaves(item)]
    if isinstance(data, bool) or not str(data).strip():
        return []
    return [str(data)]
