"""A shell string in a form that can be decided: plain commands, joined by ``|  &&  ||  ;`` and plain redirects.

 1. `parse` reads a small part of POSIX's grammar (XCU 2.10): words of literals and quotes, assignments before a
    command, redirects of files. Expansions, substitutions, functions, compound commands, here-documents, jobs: not it.
 2. `Script.text` writes what was read, quoting whatever is not plainly a word. This text is what is decided, shown,
    run and put on record: if a shell would have read the original otherwise, it does not matter: no shell gets it.

Promises: total (a reason, never an exception), linear; ``parse(script.text)`` is that script again. ``*`` and ``?`` are
read behind a directory only (``src/*.py``), so that no file's name can turn into an option.
Relies on: quotes, ``|``, ``&&``, ``||``, ``;`` and redirects meaning the same to sh, dash and bash.
Does not: know what a program does; `lattice.commands` asks that of each command.
"""

from __future__ import annotations

from typing import NamedTuple

SHELLS = frozenset(("sh", "bash", "dash"))
COMMANDS = 64  # of one script
# fmt: off
_RESERVED = frozenset(
    ("if", "then", "else", "elif", "fi", "do", "done", "case", "esac", "while", "until", "for", "in", "function",
     "select", "time", "coproc", "!", "{", "}", "[[", "]]")
)
# fmt: on
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_")
_NAME = _LETTERS | frozenset("0123456789")
_PLAIN = _NAME | frozenset("@%+,./:-")
_REDIRECTS = ("&>>", "&>", ">&", ">|", ">>", ">", "<<<", "<<", "<>", "<&", "<")  # the longest first
_BLANK = " \t"
_ENDS_WORD = " \t\n;&|<>()"
_SPECIAL = frozenset("`$~[{}\r")
_BEHIND_DOLLAR = " \t\n|)/.,:;%=&<>]^+"  # before these a `$` is itself
_MORE = "a construct of the shell that is not read: "


class Unclear(NamedTuple):
    """Why a string is not read, in words for a person."""

    reason: str


class Word(NamedTuple):
    """`text` with the parts between `stars` literal: ``src/*.py`` is ("src/", "*", ".py")."""

    pieces: tuple[str, ...]  # literal, glob, literal, glob, …

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def quoted(self) -> str:
        return "".join(piece if at % 2 else _quote(piece) for at, piece in enumerate(self.pieces) if piece or at == 0)


class Redirect(NamedTuple):
    """`fd` to or from a file, or (``>&``) to another descriptor."""

    fd: int
    kind: str  # ">", ">>", "<", ">&"
    target: str

    @property
    def quoted(self) -> str:
        number = "" if self.fd == (0 if self.kind == "<" else 1) else str(self.fd)
        return f"{number}{self.kind}{self.target if self.kind == '>&' else _quote(self.target)}"


class Simple(NamedTuple):
    """One command, and how it is joined to the next: ``|``, ``&&``, ``||``, ``;`` or nothing."""

    words: tuple[Word, ...]
    redirects: tuple[Redirect, ...]
    joined: str

    @property
    def argv(self) -> tuple[str, ...]:
        return tuple(word.text for word in self.words)


class Script(NamedTuple):
    """At least one command; the last one is joined to nothing."""

    commands: tuple[Simple, ...]

    @property
    def text(self) -> str:
        """The canonical form."""
        out: list[str] = []
        for command in self.commands:
            out += [word.quoted for word in command.words]
            out += [redirect.quoted for redirect in command.redirects]
            out += [command.joined] if command.joined else []
        return " ".join(out)


def canonical(argv: tuple[str, ...]) -> tuple[str, ...] | None:
    """``sh -c STRING`` with its string in the canonical form; None where it is not that, or not read.

    ``-lc`` becomes ``-c``: what a profile file would do is in no decision.
    """
    script = of(argv)
    return (argv[0], "-c", script.text) if isinstance(script, Script) else None


def of(argv: tuple[str, ...]) -> Script | Unclear | None:
    """What ``sh -c STRING`` holds; None where `argv` is something else."""
    if len(argv) != 3 or argv[1] not in ("-c", "-lc") or argv[0].rpartition("/")[2] not in SHELLS:
        return None
    return parse(argv[2])


def parse(text: str) -> Script | Unclear:
    """Read one string."""
    reader = _Reader(text)
    try:
        return Script(tuple(reader.script()))
    except _UnclearError as error:
        return Unclear(error.args[0])


class _UnclearError(Exception):
    pass


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def script(self) -> list[Simple]:
        found: list[Simple] = []
        while True:
            words, redirects = self.command()
            joined = self.joint()
            if not words:
                if not joined and found and not redirects and found[-1].joined == ";":
                    break  # a `;` or a line's end at the end
                raise _UnclearError("a command is missing" if found or joined else "there is no command")
            found.append(Simple(words, redirects, joined))
            if len(found) > COMMANDS:
                raise _UnclearError(f"more than {COMMANDS} commands")
            if not joined:
                break
        found[-1] = found[-1]._replace(joined="")
        return found

    def joint(self) -> str:
        """What ends a command; line ends count as ``;`` and are passed over after an operator."""
        self.blanks()
        rest = self.text[self.at : self.at + 2]
        if not rest:
            return ""
        for operator in ("&&", "||", "|&", ";;", "|", ";", "\n"):
            if rest.startswith(operator):
                break
        else:
            raise _UnclearError(_MORE + ("a job (&)" if rest[0] == "&" else rest[0]))
        if operator in ("|&", ";;"):
            raise _UnclearError(_MORE + operator)
        self.at += len(operator)
        self.blanks(lines=True)
        return ";" if operator == "\n" else operator

    def blanks(self, *, lines: bool = False) -> None:
        text = self.text
        while self.at < len(text):
            character = text[self.at]
            if character in _BLANK or (lines and character == "\n"):
                self.at += 1
            elif text.startswith("\\\n", self.at):
                self.at += 2
            elif character == "#":
                end = text.find("\n", self.at)
                self.at = len(text) if end < 0 else end
            else:
                return

    def command(self) -> tuple[tuple[Word, ...], tuple[Redirect, ...]]:
        words: list[Word] = []
        redirects: list[Redirect] = []
        settings: list[Word] = []
        self.blanks(lines=True)
        while self.at < len(self.text) and self.text[self.at] not in "\n;|":
            if self.text[self.at] == "&" and not self.text.startswith("&>", self.at):
                break
            if not self.redirect(redirects):
                word, bare, entire = self.word()
                if words:
                    words.append(word)
                elif (entire and bare in _RESERVED) or _behind_name(bare).startswith(("[", "+=")):
                    raise _UnclearError(_MORE + bare[:32])
                elif len(word.pieces) > 1:
                    raise _UnclearError("a program or a value that the shell expands")
                elif word.text[:1] in ("-", "+"):
                    raise _UnclearError("a program's name that a shell could take for its own option")
                elif _behind_name(bare).startswith("="):
                    settings.append(word)
                else:
                    words.append(word)
            self.blanks()
        if settings and not words:
            raise _UnclearError("an assignment without a command")
        return (Word(("env",)), *settings, *words) if settings else tuple(words), tuple(redirects)

    def redirect(self, found: list[Redirect]) -> bool:
        number = self.text[self.at] if self.text[self.at] in "012" else ""
        kind = next((kind for kind in _REDIRECTS if self.text.startswith(kind, self.at + len(number))), "")
        if not kind:
            return False
        if kind not in (">", ">>", "<", ">&", "&>", "&>>") or (number and kind[0] == "&"):
            raise _UnclearError(_MORE + number + kind)
        self.at += len(number) + len(kind)
        self.blanks()
        fd = int(number) if number else 0 if kind == "<" else 1
        if kind == ">&":
            target = self.text[self.at : self.at + 1]
            if target not in ("1", "2") or self.text[self.at + 1 : self.at + 2] not in ("", *_ENDS_WORD):
                raise _UnclearError(_MORE + ">& to something else than 1 or 2")
            self.at += 1
            found.append(Redirect(fd, kind, target))
            return True
        if self.at >= len(self.text) or self.text[self.at] in _ENDS_WORD:
            raise _UnclearError("a redirect without a file")
        word, _, _ = self.word()
        if len(word.pieces) > 1 or not word.text:
            raise _UnclearError("a redirect whose file the shell expands")
        found.append(Redirect(fd, kind.lstrip("&"), word.text))
        if kind[0] == "&":
            found.append(Redirect(2, ">&", "1"))
        return True

    def word(self) -> tuple[Word, str, bool]:
        """One word; what of its beginning stands there without quotes; whether that is all of it."""
        text, start = self.text, self.at
        pieces: list[str] = []
        literal: list[str] = []
        bare = -1  # where the unquoted beginning ends
        slashed = False
        while self.at < len(text) and (character := text[self.at]) not in _ENDS_WORD:
            self.at += 1
            if character in "'\"\\*?" and bare < 0:
                bare = self.at - 1
            if character == "'":
                end = text.find("'", self.at)
                if end < 0:
                    raise _UnclearError("a quote without its end")
                literal.append(text[self.at : end])
                self.at = end + 1
            elif character == '"':
                literal.append(self.double())
            elif character == "\\":
                if self.at >= len(text):
                    raise _UnclearError("a backslash at the end")
                if text[self.at] != "\n":
                    literal.append(text[self.at])
                self.at += 1
            elif character in "*?":
                slashed = slashed or "/" in "".join(literal)
                if not slashed:
                    raise _UnclearError(f"{character} without a directory before it (write ./{character})")
                pieces += ["".join(literal), character]
                literal = []
            else:
                self.plain(character, start)
                literal.append(character)
        if self.at == start:
            raise _UnclearError(_MORE + text[start])
        unquoted = text[start : self.at if bare < 0 else bare]
        if text[self.at : self.at + 1] in ("<", ">") and bare < 0 and unquoted.isdigit():
            raise _UnclearError("a descriptor that is not 0, 1 or 2")
        return Word((*pieces, "".join(literal))), unquoted, bare < 0

    def plain(self, character: str, start: int) -> None:
        """Step 1: a character without quotes that may be more than itself."""
        if character not in _SPECIAL:
            return
        text, at = self.text, self.at - 1
        following = text[at + 1 : at + 2]
        if character == "`" or (character == "$" and following not in ("", *_BEHIND_DOLLAR)):
            raise _UnclearError("an expansion")
        if character == "~" and (at == start or text[at - 1] in "=:"):
            raise _UnclearError("~ is another directory than it says")
        if character == "[" and not (at == start and following in ("", *_ENDS_WORD)):
            raise _UnclearError("a set of characters that the shell expands")
        if character in "{}" and not (
            text.startswith("{}", start) and text[start + 2 : start + 3] in ("", *_ENDS_WORD)
        ):
            raise _UnclearError("braces that the shell may expand")
        if character == "\r":
            raise _UnclearError("a control character")

    def double(self) -> str:
        """The rest of a text in double quotes."""
        text = self.text
        out: list[str] = []
        while self.at < len(text):
            character, following = text[self.at], text[self.at + 1 : self.at + 2]
            self.at += 1
            if character == '"':
                return "".join(out)
            if character == "\\" and following and following in '$`"\\\n':
                if following != "\n":
                    out.append(following)
                self.at += 1
            elif character == "`" or (character == "$" and following not in ("", '"', "'", *_BEHIND_DOLLAR)):
                raise _UnclearError("an expansion")
            else:
                out.append(character)
        raise _UnclearError("a quote without its end")


def _behind_name(text: str) -> str:
    """What follows a variable's name at the beginning of `text`; "" where there is none."""
    if text[:1] not in _LETTERS:
        return ""
    at = 1
    while at < len(text) and text[at] in _NAME:
        at += 1
    return text[at:]


def _quote(text: str) -> str:
    if text and _PLAIN.issuperset(text) and text not in _RESERVED:
        return text
    return "'" + text.replace("'", "'\\''") + "'"
