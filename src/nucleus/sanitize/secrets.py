"""Secrets in a text that leaves become ``[redacted]``: well-known shapes, and values by the name before them.

How: one test of the whole text for a run of 16 token characters; only then a search for each issuer's literal; only at
a hit a pattern, which starts with that literal. Names (`password=`, `"token": "…"`, `Authorization: …`) are looked for
as words in the lower-cased text and read from there. All rules see the same text; what they find is merged, and
replaced once.

Promises: linear (each pattern starts with a literal and ends in its one unbounded repetition, or is bounded); never
looks anything up. A net under the other measures (nothing secret is in the pod, errors are ours).
Does not: judge by entropy, or find a secret that has neither a shape nor a name, or one that is encoded.
"""

from __future__ import annotations

from nucleus.sanitize.characters import in_word
from nucleus.sanitize.patterns import Pattern
from nucleus.sanitize.rules import DIRECT, EXPANDED, NAMES, STEMS, Span

REDACTED = "[redacted]"
_RUN = b"x" * 16
_TOKEN = bytes(ord("x") if (chr(c).isalnum() and c < 128) or chr(c) in "_-" else c % 64 for c in range(256))

# After a name: quotes (escaped ones too), a separator, a scheme, the value up to its closing quote or a blank.
SEPARATOR = Pattern(r"[a-z0-9_\-]{0,40}\]?[\\\"']{0,4}\s{0,4}(?:=>|:=|==?|:)\s{0,4}")
OPTION = Pattern(r"[a-z0-9_\-]{0,40}\s{1,4}")
# Each of these always matches from where it is tried, and the next is tried after its end: linear.
ESCAPED = {q: Pattern(rf"[^{q}\n]*") for q in "\"'`"}
QUOTED = {q: Pattern(rf"[^{q}\\\n]*(?:\\.[^{q}\\\n]*)*") for q in "\"'`"}
PLAIN = Pattern(r"(?:(?:bearer|basic|digest|token|negotiate|apikey)\s{1,4})?[^\s,;&]+")
LINE = Pattern(r"[^\n]+")
NETRC = Pattern(r"login\s{1,4}[^\s]{1,255}\s{1,4}password\s{1,4}")
USER = Pattern(r"(?:-u|--user|--proxy-user)[ =]{0,4}[\"']?[^\s:\"'/]{1,255}:")
USERINFO = Pattern(r"://(?:[^\s/@:\"'<>\[\]]{0,255}:[^\s\"'<>]{1,512}@|[^\s/@:\"'<>\[\]]{20,255}@)")
DSN = Pattern(r"[^\s\"'=@/:]{1,99}:[^\s\"'@]{1,255}@(?:tcp|unix)\(")
PORT = Pattern(r"[^\s/@:]{0,255}:\d{1,5}(?:/|$)")
BEGIN = Pattern(r"-{4,5} ?BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY[A-Z ]{0,10}-{4,5}")
END = Pattern(r"-{4,5} ?END [A-Z0-9 ]{0,40}PRIVATE KEY[A-Z ]{0,10}-{4,5}")
_SUFFIXES = ("key", "name", "id", "value", "data", "string", "hash")
APPROVAL = Pattern(r"[0-9a-f]{64}\.[0-9a-f]{64}")  # our own approval tokens
SCHEME = Pattern(r"(?:bearer|basic)\s{1,4}[a-z0-9._~+/\-]{12,}={0,2}")


def spans(text: str, low: str) -> list[Span]:
    """Where the secrets are in `text` (`low`: the same in lower case, of the same length)."""
    found: list[Span] = []
    if _RUN in text.encode("latin-1", "replace").translate(_TOKEN):
        _shapes(text, found)
    if "private key" in low:
        _private_keys(text, found)
    if "@" in text:
        if "://" in text:
            _userinfo(text, found)
        if "@tcp(" in low or "@unix(" in low:
            found.extend((m.start(), m.start() + m.group().rindex("@"), REDACTED) for m in DSN.finditer(low))
    if "bearer " in low or "basic " in low:
        found.extend((m.start() + 6, m.end(), REDACTED) for m in SCHEME.finditer(low))
    if "=" in low or ":" in low or "-p" in low or "--" in low or "-u" in low or "login " in low:
        _named(text, low, found)
    return found


def _shapes(text: str, found: list[Span]) -> None:
    for literal, whole, pattern in DIRECT:
        if literal in text:
            for match in pattern.finditer(text):
                start = match.start()
                if whole and in_word(text, start):
                    continue
                found.append((start, match.end(), REDACTED))
    for literal, kept, least in EXPANDED:
        at = text.find(literal)
        done = 0
        while at >= 0:
            start, end = at, at + len(literal)
            while start > done and (text[start - 1].isalnum() or text[start - 1] in kept):
                start -= 1
            while end < len(text) and (text[end].isalnum() or text[end] in kept):
                end += 1
            if end - start >= least:
                found.append((start, end, REDACTED))
            done = end
            at = text.find(literal, end)
    if "." in text:
        found.extend((_hex(text, m.start()), m.end(), REDACTED) for m in APPROVAL.finditer(text))


def _hex(text: str, start: int) -> int:
    while start > 0 and text[start - 1] in "0123456789abcdef":
        start -= 1
    return start


def _private_keys(text: str, found: list[Span]) -> None:
    """From BEGIN to END; to the end of the text when it is cut short; and what stands before an END alone."""
    done = 0
    while match := BEGIN.search(text, done):
        _ends(text, done, match.start(), found)
        end = END.search(text, match.end())
        stop = end.end() if end else len(text)
        found.append((match.start(), stop, REDACTED))
        done = stop
    _ends(text, done, len(text), found)


def _ends(text: str, begin: int, stop: int, found: list[Span]) -> None:
    for alone in END.finditer(text, begin, stop):
        start = alone.start()
        while start > begin and (text[start - 1].isalnum() or text[start - 1] in "+/=\n\r\\ \t"):
            start -= 1
        found.append((start, alone.end(), REDACTED))
        begin = alone.end()


def _userinfo(text: str, found: list[Span]) -> None:
    for match in USERINFO.finditer(text):
        start, end = match.start() + 3, match.end() - 1
        inside = text[start:end]
        if (PORT.match(inside) and "/" in inside) or inside == REDACTED:
            continue  # a port, and an "@" in the path
        found.append((start, end, REDACTED))


def _named(text: str, low: str, found: list[Span]) -> None:
    if not any(stem in low for stem in STEMS):
        return
    for name, how in NAMES:
        at = low.find(name)
        done = 0
        while at >= 0:
            end = at + len(name)
            start = _after(low, at, end, how) if at >= done else None
            if start is not None:
                begin, done = _value(text, low, at, start, how)
                value = text[begin:done].strip()
                if value and not text.startswith(REDACTED, begin) and not _plain_word(name, value):
                    found.append((begin, done, REDACTED))
            at = low.find(name, max(end, done))
    for pattern, hint in ((NETRC, "login "), (USER, "-u")):
        if hint in low:
            for match in pattern.finditer(low):
                begin, end = _value(text, low, match.start(), match.end(), "name")
                if not text.startswith(REDACTED, begin):
                    found.append((begin, end, REDACTED))


def _plain_word(name: str, value: str) -> bool:
    """`tokens: 4096`, `token: expired`, `credential: github` are said of secrets, and are none."""
    return name in ("token", "credential") and (
        value.isdigit() or (len(value) <= 12 and value.isascii() and value.isalpha() and value.islower())
    )


def _after(low: str, at: int, end: int, how: str) -> int | None:
    """Where the value of the name at [at, end) begins, or None when none follows.

    how: "line" (a header: all of its line), "name" (may be the last word of a longer one, and an option's),
    "word" (only as a whole word of a name).
    """
    before = in_word(low, at) and low[at - 1].isalpha()
    if how == "word" and (before or low[end : end + 1].isalpha()):
        return None
    separator = SEPARATOR.match(low, end) or (OPTION.match(low, end) if _option(low, at) else None)
    if separator is None or low.startswith("unexpected ", max(at - 11, 0)):
        return None
    tail = separator.group()
    if ":" in tail and tail[-1:].isspace() and low[_word(low, at) - 1 : _word(low, at)] == "/":
        return None  # "/run/secrets/token: Permission denied"
    # `tokenizer = fast` and `secretary: x` are no secrets: a longer word must go on after a joint.
    plural = tail[:1] == "s" and not tail[1:2].isalpha()
    if tail[:1].isalpha() and not plural and not tail.startswith(_SUFFIXES):
        return None
    return separator.end()


def _option(low: str, at: int) -> bool:
    before = low[_word(low, at) : at]
    return before.startswith("-") or "--" in before


def _word(low: str, at: int) -> int:
    """Where the word that holds `at` begins, at most 40 characters back."""
    start = at
    while start > 0 and at - start < 40 and (low[start - 1].isalnum() or low[start - 1] in "-_"):
        start -= 1
    return start


def _value(text: str, low: str, at: int, start: int, how: str) -> tuple[int, int]:
    """The bounds of the value that begins at `start`, without its quotes."""
    bare = start
    while bare < len(text) and text[bare] == "\\" and bare - start < 4:
        bare += 1
    quote = text[bare : bare + 1]
    if quote and quote in QUOTED:
        match = (ESCAPED if bare > start else QUOTED)[quote].match(text, bare + 1)
        return bare + 1, _stripped(text, bare + 1, match.end() if match else bare + 1, "\\")
    if how != "line":
        found = PLAIN.match(low, start)
        return start, _stripped(text, start, found.end() if found else start, "\"'`.)]}>\\")
    before = _word(low, at) - 1
    closing = text[before] if before >= 0 and text[before] in QUOTED else ""
    found = ESCAPED[closing].match(text, start) if closing else LINE.match(text, start)
    return start, _stripped(text, start, found.end() if found else start, "\\")


def _stripped(text: str, begin: int, end: int, what: str) -> int:
    while end > begin and text[end - 1] in what:
        end -= 1
    return end
