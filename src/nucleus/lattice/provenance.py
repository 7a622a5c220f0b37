"""Where a destination came from: the user's own words, a trusted answer, or anywhere else.

Promises: a destination is *known* only when the whole of it was named, as itself: as whole words of a text (`learn`)
or as a whole value of structured data (`learn_value`). But for letter case, Unicode compatibility forms, ``mailto:``,
brackets, a mention's ``@`` or ``#``, and a URL's scheme and ``www.``, nothing is bent. A part of a word is never known:
not ``bob`` by ``bob@x.org``, not ``x.org`` by ``evil-x.org``, not ``x.org/path?q`` by ``x.org``. Bounded: beyond
`CAPACITY` nothing is learnt, so more is asked.
Relies on: whoever calls `learn` for what is trusted.
Does not: judge meaning. A word of the task that happens to be somebody's name is known; a name that the agent puts
together itself is not.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

CAPACITY = 1_048_576  # characters that one session learns
_BREAKS = str.maketrans(dict.fromkeys("\0\"'`´’‘“”„«»,;()[]{}<>|\\*\u00a0", " "))
_EDGE = ".:!?…"  # punctuation at a word's end
_MARK = "@#"  # a mention's sign before a name
_QUOTES = tuple(tuple(pair) for pair in ("''", '""', "``", "“”", "‘’", "«»", "„“"))
_NUMBERED = ("id", "number", "no", "nr")  # "ID '13'", "number 13", "#13"


def words(text: str) -> list[str]:
    """`text` as normalized words: what quotes, brackets, commas, blanks part."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).translate(_BREAKS)
    out = []
    for raw in folded.split():
        word = raw.rstrip(_EDGE)
        if word.startswith("mailto:"):
            word = word[7:]
        if word[:1] == "#" and word[1:].isdigit():
            out += ["number", word[1:]]
            continue
        word = word.lstrip(_MARK) if word.count("@") < 2 else word
        if word:
            out.append(_address(word))
    return out


def _address(word: str) -> str:
    """A URL or bare host in one spelling; any other word as it is."""
    scheme, mark, rest = word.partition("://")
    if mark:
        if scheme not in ("http", "https"):
            return word
        host, slash, path = _cut(rest)
        host = host.removesuffix(":443" if scheme == "https" else ":80").removesuffix(".")
    else:
        host, slash, path = _cut(word)
        if "." not in host or "@" in host:
            return word
    host = host.removeprefix("www.")
    return f"{host}{slash}{path}" if path else host


def _cut(text: str) -> tuple[str, str, str]:
    """Host, the character that ends it, and the rest."""
    end = min((at for at in (text.find(mark) for mark in "/?#") if at >= 0), default=len(text))
    return text[:end], text[end : end + 1], text[end + 1 :]


class Knowledge:
    """The destinations that one session knows.

    Args:
        task: the user's own words.
    """

    __slots__ = ("_task", "_texts", "_used", "_values")

    def __init__(self, task: str = "") -> None:
        self._texts: list[tuple[str, str]] = []  # (who said it, its words with a blank around each)
        self._values: dict[str, str] = {}  # words of a whole value -> who said it
        self._used = 0
        self._task = task.casefold()
        self.learn("the task", task)

    def learn(self, origin: str, text: str, besides: frozenset[str] = frozenset()) -> None:
        """Take in a text: any run of whole words in it is named.

        Args:
            origin: who said it, for people.
            text: the text.
            besides: normalized words that are not to be learnt (the agent's own, handed back to it).
        """
        if not text or not self._room(text):
            return
        # A word that is left out leaves a gap that no destination bridges.
        kept = ["\0" if word in besides else word for word in words(text)]
        if kept:
            self._texts.append((origin, f" {' '.join(kept)} "))

    def learn_value(self, origin: str, value: str, besides: frozenset[str] = frozenset()) -> None:
        """Take in one value: it is named as a whole, nothing in it is."""
        if not value or not self._room(value):
            return
        found = words(value)
        if found and besides.isdisjoint(found):
            self._values.setdefault(" ".join(found), origin)

    def _room(self, text: str) -> bool:
        if self._used + len(text) > CAPACITY:
            return False
        self._used += len(text)
        return True

    def origin(self, destination: str) -> str | None:
        """Who named `destination`, or None."""
        found = words(destination)
        if not found or (len(found) == 1 and len(found[0]) == 1 and not found[0].isdigit()):
            return None  # one letter is in every text
        whole = " ".join(found)
        if whole in self._values:
            return self._values[whole]
        # A bare number stands in every text with a date: it is named only as the number of something.
        said = [f" {noun} {whole} " for noun in _NUMBERED] if whole.isdigit() else [f" {whole} "]
        return next((origin for origin, text in self._texts if any(needle in text for needle in said)), None)

    def quoted(self, words_of_call: str) -> bool:
        """Does the task say exactly this in quotation marks?"""
        said = words_of_call.strip().casefold()
        return bool(said) and any(f"{before}{said}{after}" in self._task for before, after in _QUOTES)

    def unknown(self, destinations: Iterable[str]) -> str | None:
        """The first destination that nobody named, or None when all are known."""
        return next((value for value in destinations if self.origin(value) is None), None)


def values(argument: object) -> list[str]:
    """The leaves of plain data as text: what has to be known. Nothing for null and empty values."""
    out: list[str] = []
    stack = [argument]
    while stack:
        item = stack.pop()
        if item is None or isinstance(item, bool):
            continue
        if isinstance(item, dict):
            stack += item.values()
        elif isinstance(item, list | tuple):
            stack += item
        elif str(item).strip():
            out.append(str(item))
    return out[::-1]
