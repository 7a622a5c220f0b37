"""What one argv list really runs, as far as its words say.

Promises: works on words, never on a joined string; known wrappers are unwrapped (`env`, `nice`, `timeout`, `xargs`,
`find -exec`, `git -C`), so that `env git -C x push` is a push; every way of leaving a known program's job that we know
of sets a flag, and a flagged command is never low risk. Everything unknown is flagged or unlisted, so it asks.
Relies on: executing exactly the argv that was analysed.
Does not: look inside scripts or follow what a program does once it runs (isolation does), or resolve PATH (the work
compartment's PATH holds system directories only). Shell strings are scanned for words only to deny more, never to
allow.
"""

from __future__ import annotations

from typing import NamedTuple

from nucleus.lattice import tables as t
from nucleus.lattice.traits import RUNNABLE, Trait, trait_of
from nucleus.validate.paths import collapse

_DEPTH = 8
_SEPARATORS = str.maketrans(dict.fromkeys(";&|()<>$`\"'{}\n\r\t=!\\", " "))
_SCANNED_WORDS = 400
_RUNS_TEXT = t.INTERPRETERS | t.SHELLS
# Long options of git that can run something, and every abbreviation of theirs.
_GIT_LONG = frozenset(
    name[:end] for name in t.GIT_SUBCOMMAND_ESCAPES if name.startswith("--") for end in range(3, len(name) + 1)
)
_GIT = trait_of("git")
_GIT_MESSAGES = frozenset(("-m", "--message", "-am", "--author", "--date", "-S", "-G", "--grep"))
# Subcommands that need nothing and flag nothing but by their options.
_GIT_QUIET = t.GIT_UNATTENDED - t.GIT_COMMITS - t.GIT_NETWORK - t.GIT_PUSHES - {"stash", "worktree", "init"}


Words = tuple[str, ...]


class Layer(NamedTuple):
    """One program that the command runs: resolved name and its words; for git, `args` starts with the subcommand."""

    program: str
    args: Words


class Command:
    """The analysis.

    Args:
        layers: outermost first; the last one does the work. A shell string adds every program that it could name.
        flags: why the command cannot be low risk, in words for a person; empty for a plain one.
        runs_code: an interpreter's name where one runs code or a script, else "".
        requires: capabilities needed besides run_bash.
        paths: workspace paths named by the words (normalized, relative).
        weak: those of them that may be no path at all (`pkg.module`, `1.5`): block lists count, allow lists do not.
        written: those of them that the command would change.
        urls: words that are URLs.
        credentials: what of it handles credentials, in words; "" for nothing.
        plain: what decides listing: the layer behind transparent wrappers; where a wrapper is flagged, the outermost.
    """

    __slots__ = (
        "credentials", "flags", "layers", "paths", "plain", "requires", "runs_code", "urls", "weak", "written",
    )  # fmt: skip

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self.flags: list[str] = []
        self.runs_code = ""
        self.credentials = ""
        self.requires: set[str] = set()
        self.paths: list[str] = []
        self.weak: set[str] = set()
        self.written: list[str] = []
        self.urls: list[str] = []
        self.plain: Layer | None = None

    def work(self, layer: Layer, flags_before: int) -> None:
        """Add the layer that does the work (not a wrapper)."""
        self.layers.append(layer)
        if self.plain is None:
            self.plain = layer if flags_before == 0 else self.layers[0]


def analyse(argv: tuple[str, ...], cwd: str = ".") -> Command:
    """Analyse a validated argv that would run in directory `cwd` (normalized, relative)."""
    command = Command()
    _analyse(command, argv, cwd, 0)
    if command.plain is None:
        command.plain = command.layers[0] if command.layers else Layer(argv[0] if argv else "", argv[1:])
    return command


def resolve_program(word: str) -> str:
    """The name that rules speak of: a system program's bare name, any other path as it is written."""
    directory, slash, name = word.rpartition("/")
    return name if not slash or directory in t.SYSTEM_DIRECTORIES else word


def _analyse(command: Command, argv: Words, cwd: str, depth: int) -> None:
    if not argv or not argv[0]:
        command.flags.append("a wrapper without a command")
        return
    if depth > _DEPTH:
        command.flags.append("too many wrappers")
        return
    named = program = argv[0]
    args, before = argv[1:], len(command.flags)
    if "/" in named:
        named = resolve_program(named)
        # What its last name suggests it does; what lists say goes by `named`.
        program = named.rpartition("/")[2]
        if "/" in named:
            command.runs_code = named
            _note_path(command, named, cwd)
    if program == "git" or program.startswith("git-"):
        _git(command, (program.removeprefix("git-"), *args) if program != "git" else args, cwd, named)
        return
    trait = trait_of(program)
    if trait.wrapper:
        command.layers.append(Layer(named, args))
        _wrapper(command, program, args, cwd, depth)
        return
    command.work(Layer(named, args), before)
    if program in t.CREDENTIALS:
        _credentials(command, program, args)
    if trait.shell:
        _shell(command, program, args, cwd, depth)
        return
    if trait.interpreter:
        _interpreter(command, program, trait.family, args, cwd)
    writes = trait.writer
    if program == "sed":
        escapes, writes = _sed(args)
        if escapes:
            command.flags.append("sed can run a command or write a file here")
    if trait.escapes:
        _options(command, trait, program, args, cwd, depth)
    if trait.client:
        _needs(command, program, args)
    if writes:
        command.requires.add("write_files")
    _words(command, trait, args, cwd, writes=writes)


# --- wrappers ---


def _wrapper(command: Command, program: str, args: Words, cwd: str, depth: int) -> None:
    if program == "env":
        _env(command, args, cwd, depth)
        return
    if program in t.TRANSPARENT:
        values, operands = t.TRANSPARENT[program]
    else:
        values, operands = t.OPAQUE_WRAPPERS[program]
        command.flags.append(f"{program} runs another command")
        _scan_shell(command, " ".join(args), cwd)  # su -c, watch, parallel take strings
    _unwrap(command, args, values, operands, cwd, depth)


def _unwrap(command: Command, args: Words, values: frozenset[str], operands: int, cwd: str, depth: int) -> None:
    """Find the inner argv after the wrapper's own options and `operands` words."""
    at = 0
    while at < len(args) and args[at].startswith("-") and args[at] != "-":
        if args[at] == "--":
            at += 1
            break
        if not _clear(args[at], values):
            command.flags.append("a wrapper with options that can be read in two ways")
            _scan_shell(command, " ".join(args), cwd)
        at += 2 if args[at] in values else 1
    at += operands
    if at >= len(args):
        return  # the wrapper alone does nothing of its own
    if resolve_program(args[at]) not in RUNNABLE:
        # Perhaps an option that we read wrongly (`timeout -vs KILL 5 git push`): deny by any of the words.
        _scan_shell(command, " ".join(args), cwd)
    _analyse(command, args[at:], cwd, depth + 1)


def _clear(word: str, values: frozenset[str]) -> bool:
    """Is a wrapper's option read as the wrapper reads it? Abbreviations (`--out f`) and bundles (`-ao f`) are not."""
    if word.startswith("--"):
        name, equals, _ = word.partition("=")
        return name in values or (not equals and name in t.PLAIN_WRAPPER_OPTIONS)
    return len(word) == 2 or word[:2] in values or word[1:].isdigit()


def _env(command: Command, args: Words, cwd: str, depth: int) -> None:
    at = 0
    while at < len(args):
        word = args[at]
        if word in ("-S", "--split-string") or word.startswith(("-S", "--split-string=", "-vS")):
            command.flags.append("env -S splits a string")
            _scan_shell(command, " ".join(args[at:]), cwd)
            return
        if word in ("-C", "--chdir") or word.startswith("--chdir="):
            inside = collapse(f"{cwd}/{word.partition('=')[2] or ''.join(args[at + 1 : at + 2])}")
            cwd = inside or cwd
            if inside is None:
                command.flags.append("env changes to a directory outside the workspace")
            at += 1 if "=" in word else 2
        elif word in ("-u", "--unset"):
            at += 2
        elif word == "--":
            at += 1
            break
        elif word.startswith("-"):
            if word not in t.PLAIN_ENV_OPTIONS and not word.startswith(("-u", "--unset=")):
                command.flags.append("env with options that can be read in two ways")
                _scan_shell(command, " ".join(args[at:]), cwd)
            at += 1
        elif "=" in word:
            name = word.partition("=")[0]
            if name in t.LOADER_VARIABLES or name.startswith(t.LOADER_PREFIXES):
                command.flags.append(f"sets {name}, which can load other code")
            _note_value(command, word.partition("=")[2], cwd)
            at += 1
        else:
            break
    if at < len(args):
        _analyse(command, args[at:], cwd, depth + 1)


def _shell(command: Command, program: str, args: Words, cwd: str, depth: int) -> None:
    """A shell string cannot be decided by its words: it asks, and is scanned to deny what it names."""
    string = any(word.startswith("-") and not word.startswith("--") and "c" in word for word in args)
    script, from_input = _script(args)
    if string or from_input or not script or program == "busybox":
        command.flags.append(f"{program} runs a string or its input")
        if program == "busybox" and args:
            _analyse(command, args, cwd, depth + 1)
    else:
        command.runs_code = program
    _scan_shell(command, " ".join(args) if string else "", cwd)
    _words(command, trait_of(program), args, cwd)


def _script(args: Words) -> tuple[str, bool]:
    """(the script's name, is it read from the shell's input or given by a long option all the same)."""
    at = 0
    while at < len(args) and args[at].startswith(("-", "+")):
        if args[at].startswith("--comm") or (not args[at].startswith("--") and "s" in args[at]):
            return "", True
        at += 2 if args[at] in ("-o", "+o", "-O", "+O", "--rcfile", "--init-file") else 1
    script = args[at] if at < len(args) else ""
    return script, script.startswith(("/dev/", "/proc/"))


def _scan_shell(command: Command, text: str, cwd: str) -> None:
    """Every word of `text` could begin a command: add what each would need, for denial only.

    None of them is what the command is listed by: ``nice "./x > git"`` runs a program of that odd name.
    """
    plain = command.plain
    _scan_words(command, text, cwd)
    command.plain = plain


def _scan_words(command: Command, text: str, cwd: str) -> None:
    words = tuple(text.translate(_SEPARATORS).split())
    if len(words) > _SCANNED_WORDS:
        command.flags.append("a long shell string")
        words = words[:_SCANNED_WORDS]
    for index, word in enumerate(words):
        program = resolve_program(word).rpartition("/")[2]  # `x/gh` does what gh does, as in `_analyse`
        if program == "git" or program.startswith("git-"):
            rest = words[index + 1 : index + 12]
            _git(command, (program.removeprefix("git-"), *rest) if program != "git" else rest, cwd, "git")
        elif program in t.NETWORK or program in t.OPAQUE_WRAPPERS or t.unversioned(program) in _RUNS_TEXT:
            command.layers.append(Layer(program, words[index + 1 : index + 12]))
            _needs(command, program, words[index + 1 : index + 12])
        elif "-" in program or program.isalnum() or "_" in program:
            command.layers.append(Layer(program, words[index + 1 : index + 12]))
        if "." in word or "/" in word:
            _note_value(command, word, cwd)


def _interpreter(command: Command, program: str, family: str, args: Words, cwd: str) -> None:
    """Any use but asking for the version runs code."""
    if len(args) == 1 and args[0] in ("--version", "-V", "-v", "--help", "-h") and family != "java":
        return
    command.runs_code = program
    options = t.CODE_OPTIONS.get(family, ())
    short = tuple([option for option in options if len(option) == 2]) or ("\0",)
    for index, word in enumerate(args):
        if word in options or (word[:1] == "-" and word[:2] != "--" and word.endswith(short)):
            code = "".join(args[index + 1 : index + 2])
            # A file that the code names in quotes is as good as an argument.
            for piece in code.replace('"', "'").split("'")[1 : 2 * _SCANNED_WORDS : 2]:
                if "." in piece or "/" in piece:
                    _note_value(command, piece, cwd)


def _credentials(command: Command, program: str, args: Words) -> None:
    """Wherever the word stands: which options take a value is the program's to say (`gh -R a/b auth token`)."""
    words = t.CREDENTIALS[program]
    found = next((word for word in args if word in words), "*" if "*" in words else "")
    if found and not command.credentials:
        command.credentials = program if found == "*" else f"{program} {found}"
        command.flags.append(f"{command.credentials} handles credentials")


# --- options, requirements, words ---


def _options(command: Command, trait: Trait, program: str, args: Words, cwd: str, depth: int) -> None:
    if program in t.ESCAPING:
        command.flags.append(f"{program} can run other commands")
    for word in args if trait.options else ():
        for option in trait.options:
            if _is_option(word, option, program):
                command.flags.append(f"{program} {option} runs or removes more than it says")
    if args and args[0] in t.EXEC_SUBCOMMANDS.get(program, frozenset()):
        command.flags.append(f"{program} {args[0]} runs another command")
        _scan_shell(command, " ".join(args[1:]), cwd)
    if program in ("find", "fd"):
        for index, word in enumerate(args):
            if word in ("-exec", "-execdir", "-ok", "-okdir", "-x", "-X", "--exec", "--exec-batch"):
                _analyse(command, args[index + 1 :], cwd, depth + 1)
    if program in ("awk", "gawk", "mawk", "nawk") and any(map(_awk_escapes, args)):
        command.flags.append("awk can run a command or write a file here")
    if program == "tar" and args and args[0].isalpha() and set("IFP") & set(args[0]):
        command.flags.append("tar with I, F or P in its old-style options")


def _is_option(word: str, option: str, program: str) -> bool:
    """Is `word` this option: itself, with a value, glued, abbreviated (`--to-com`), or in a bundle (`-xIf`)?"""
    if option[0] != "-":
        return option in word
    name = word.partition("=")[0]
    if name == option or (len(option) == 2 and word.startswith(option)):
        return True
    if len(name) > 3 and name.startswith("--") and option.startswith(name):
        return True
    bundle = program in t.BUNDLING and len(option) == 2 and word.startswith("-") and not word.startswith("--")
    return bundle and option[1] in word


def _awk_escapes(word: str) -> bool:
    if word.startswith("-") and word not in ("-", "--") and not word.startswith(("-F", "-v")):
        return True  # -f, -E, -i, -l, -W exec, and every long option
    return any(mark in word for mark in ("system", "|", "getline", ">", "@"))


def _sed(args: Words) -> tuple[bool, bool]:
    """(is there a script that is not plainly editing, are files edited in place), options read as sed reads them."""
    scripts: list[str] = []
    operands: list[str] = []
    escapes = in_place = False
    at = 0
    while at < len(args):
        word, at = args[at], at + 1
        if word == "--":
            operands += args[at:]
            break
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            if name in ("--expression", "--line-length"):
                value, at = (value, at) if equals else ("".join(args[at : at + 1]), at + 1)
                scripts += [value] if name == "--expression" else []
            elif name == "--in-place":
                in_place = True
            elif name not in t.PLAIN_SED_OPTIONS:
                escapes = in_place = True  # --file, an abbreviation, or unknown
        elif word.startswith("-") and word != "-":
            for index, letter in enumerate(word[1:], 2):
                if letter in "efl":
                    value, at = (word[index:], at) if word[index:] else ("".join(args[at : at + 1]), at + 1)
                    scripts += [value] if letter == "e" else []
                    escapes |= letter == "f"
                    break
                in_place |= letter == "i"
                if letter == "i":
                    break
        else:
            operands.append(word)
    if not scripts and not escapes:
        scripts = operands[:1]
    return escapes or not all(_plain_sed(script) for script in scripts), in_place


def _plain_sed(script: str) -> bool:
    """A script of addresses, `s`, `y` and one-letter commands that stay in sed."""
    at = 0
    while at < len(script):
        character = script[at]
        if character in " \t\n;{}0123456789,$~!+":
            at += 1
        elif character == "/":
            at = _sed_field(script, at + 1, "/")
            while script[at : at + 1] in ("I", "M"):
                at += 1
        elif character in "pdqDPnNgGhHx=l":
            at += 1
        elif character in "sy" and at + 1 < len(script):
            delimiter = script[at + 1]
            at = _sed_field(script, _sed_field(script, at + 2, delimiter), delimiter)
            while at < len(script) and script[at] in "gpIim0123456789":
                at += 1
            if at < len(script) and script[at] not in " \t\n;}":
                return False
        else:
            return False
    return True


def _sed_field(script: str, at: int, delimiter: str) -> int:
    """The index after the next unescaped `delimiter`, or the end."""
    while at < len(script) and script[at] != delimiter:
        at += 2 if script[at] == "\\" else 1
    return at + 1


def _needs(command: Command, program: str, args: Words) -> None:
    operands = tuple(word for word in args if not word.startswith("-"))
    if program in ("gh", "glab", "hub"):
        pull = operands[:2] in (("pr", "create"), ("pr", "new"), ("mr", "create"), ("mr", "new"))
        pull = pull or operands[:1] == ("pull-request",)
        # `gh -R owner/repo pr create`: the words count wherever they stand.
        pull = pull or ({"create", "new"} & set(operands) and {"pr", "mr"} & set(operands)) != set()
        command.requires.add("create_pr" if pull else "web_fetch")
        if "push" in operands or operands[:1] == ("repo",) or operands[:1] == ("api",):
            command.requires |= {"git_push", "web_fetch"}
    elif program in t.NETWORK or set(operands[:2]) & t.NETWORK_SUBCOMMANDS.get(program, frozenset()):
        command.requires.add("web_fetch")


def _words(command: Command, trait: Trait, args: Words, cwd: str, *, writes: bool = False) -> None:
    """Which paths and URLs do the words name?"""
    first = len(command.paths)
    if trait.expression:
        args = _operands(args)
    if _is_plain("\0".join(args)):
        _plain_words(command, args, trait.reader, "" if cwd == "." else f"{cwd}/")
    else:
        for word in args:
            if "://" in word:
                command.urls.append(word[word.find("http") if "http" in word else 0 :])
            else:
                _note_value(command, word, cwd, bare=trait.reader)
    if writes:
        command.written += command.paths[first:]


def _operands(args: Words) -> Words:
    """`args` of a program whose first operand, or what follows -e, is an expression, without the expressions."""
    given = any(word in ("-e", "-f", "--regexp", "--file") for word in args)
    out = []
    for index, word in enumerate(args):
        if not given and not word.startswith("-"):
            given = True
        elif index == 0 or args[index - 1] not in ("-e", "--regexp"):
            out.append(word)
    return tuple(out)


def _is_plain(text: str) -> bool:
    """Can each of these words be read in one way only, and is it as it stands what `collapse` would make of it?

    What begins or ends with a slash, and what is only dots, is left to `_plain_words`.
    """
    return not (
        "=" in text or ":" in text or "," in text or "@" in text or "'" in text or '"' in text
        or "//" in text or "/." in text or "./" in text
    )  # fmt: skip


def _plain_words(command: Command, args: Words, bare: bool, prefix: str) -> None:
    """What `_note_value` would note of each, for words that are plain."""
    for word in args:
        if word[:1] == "-":
            word = "" if word[1:2] == "-" else word[2:]
        slash = "/" in word
        if not word or not (bare or slash or "." in word):
            continue
        if len(word) > 4096 or word[0] == "/" or word[-1] == "/" or word in (".", "..") or "\0" in word:
            _note_path(command, word, prefix[:-1] or ".", weak=not bare and not slash)
            continue
        command.paths.append(prefix + word)
        if not bare and not slash:
            command.weak.add(prefix + word)


def _note_value(command: Command, word: str, cwd: str, *, bare: bool = False) -> None:
    """Note every reading of `word` as a path: `x`, `--file=x`, `-fx`, `@x`, `REV:x`, `a,b`."""
    candidates = {word}
    if word.startswith("-"):
        candidates = {word[2:]} if not word.startswith("--") and len(word) > 2 else set()
    if "=" in word:
        candidates.add(word.rpartition("=")[2])
        candidates.add(word.partition("=")[2])
    for text in tuple(candidates):
        for mark in (":", ",", "@"):
            if mark in text:
                candidates.update(text.split(mark))
    for text in candidates:
        text = text.strip("\"'")
        if text and (bare or "." in text or "/" in text):
            _note_path(command, text, cwd, weak=not bare and "/" not in text)


def _note_path(command: Command, text: str, cwd: str, *, weak: bool = False) -> None:
    if len(text) > 4096 or "\0" in text:
        return
    inside = collapse(text if text.startswith("/") else f"{cwd}/{text}")
    if inside is not None and inside != ".":
        command.paths.append(inside)
        if weak:
            command.weak.add(inside)


# --- git ---


def _git(command: Command, args: Words, cwd: str, named: str) -> None:
    at, before = 0, len(command.flags)
    while at < len(args) and args[at][:1] == "-":
        option, equals, value = args[at].partition("=")
        if option in t.GIT_ESCAPES:
            command.flags.append(f"git {option} changes what git runs or reads")
        if option == "-C":
            inside = collapse(f"{cwd}/{''.join(args[at + 1 : at + 2])}")
            cwd = inside or cwd
            if inside is None:
                command.flags.append("git -C leads out of the workspace")
        elif option not in t.GIT_ESCAPES | t.GIT_VALUE_OPTIONS | t.GIT_PLAIN_OPTIONS:
            # Perhaps one that takes a value (`--shallow-file f push`): deny by any of the words.
            command.flags.append("git with options that we do not know")
            for place, word in enumerate(args[at + 1 : at + 12], at + 1):
                command.layers.append(Layer("git", args[place:]))
                _git_subcommand(command, word, args[place + 1 :])
        _note_value(command, value, cwd)
        at += 2 if option in t.GIT_VALUE_OPTIONS and not equals else 1
    sub = args[at] if at < len(args) else ""
    rest = args[at + 1 :]
    # Options such as -c come before the subcommand: with one of them nothing that names the subcommand lists it.
    plainly = before == len(command.flags)
    command.work(Layer(named, (args[at:] if sub else ()) if plainly else args), before)
    if not plainly:
        command.layers.append(Layer("git", (sub, *rest)))
    _git_subcommand(command, sub, rest)
    words = _git_words(sub, rest)
    _words(command, _GIT, words, cwd)
    for word in words:
        if ":" in word:  # `REV:path` and `:/path` start at the root, wherever git runs
            _note_value(command, word.rpartition(":")[2].rpartition(")")[2].lstrip("/!^"), ".")
    if sub in ("rm", "mv", "checkout", "restore", "clean", "init"):
        command.requires.add("write_files")
        command.written += [path for path in command.paths if path not in command.written]


def _git_words(sub: str, rest: Words) -> Words:
    """`rest` without messages and without the expression of `git grep`: they name no file."""
    if sub != "grep" and _GIT_MESSAGES.isdisjoint(rest):
        return rest
    expression = next((word for word in rest if not word.startswith("-")), "") if sub == "grep" else None
    return tuple(
        word
        for index, word in enumerate(rest)
        if word != expression and not (index > 0 and rest[index - 1] in _GIT_MESSAGES)
    )


def _git_subcommand(command: Command, sub: str, rest: Words) -> None:
    if sub not in _GIT_QUIET:
        _git_reach(command, sub, rest)
    for word in rest:
        if word[:1] != "-":
            continue
        option = word.partition("=")[0]
        # git takes abbreviations (`--ex`), values that are glued (`-xcmd`) and bundles (`-nOsh`).
        bundle = word[:2] not in ("--", "-e") and t.GIT_BUNDLED.get(sub, "\0") in word
        if option in _GIT_LONG or option in t.GIT_SUBCOMMAND_ESCAPES or bundle:
            command.flags.append(f"git {sub} {option} can run a program or write elsewhere")
    if sub in _GIT_QUIET:
        return
    known = sub in t.GIT_UNATTENDED or sub in t.GIT_COMMITS or sub in t.GIT_NETWORK or sub in t.GIT_PUSHES
    if sub and not known:
        # An unknown word may be an alias, and an alias may be a shell command; cat-file, archive, bundle and
        # fast-export print whole histories, blocked files included.
        command.flags.append(f"git {sub} is not on the list")
    if sub in ("worktree", "submodule") and rest[:1] not in ((), ("list",)):
        command.flags.append(f"git {sub} reaches beyond this tree")
    if sub in ("init", "filter-branch", "fast-import", "svn", "daemon"):
        command.flags.append(f"git {sub} is not ordinary work")


def _git_reach(command: Command, sub: str, rest: Words) -> None:
    if sub in t.CREDENTIALS["git"]:
        _credentials(command, "git", (sub,))
    if sub in t.GIT_PUSHES or (sub in ("subtree", "lfs", "annex") and "push" in rest):
        command.requires.add("git_push")
    if (
        sub in t.GIT_COMMITS
        or (sub == "subtree" and "push" not in rest)
        or (sub == "stash" and rest[:1] == ("create",))
    ):
        command.requires.add("git_commit")
    if sub in t.GIT_NETWORK or (sub == "remote" and rest[:1] in (("update",), ("show",), ("prune",))):
        command.requires.add("web_fetch")
    if sub == "submodule" or (sub == "archive" and any(word.startswith("--remote") for word in rest)):
        command.requires.add("web_fetch")
