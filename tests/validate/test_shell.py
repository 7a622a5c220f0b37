"""Shell strings: what is read, what is not, and that real shells read the canonical text as it was decided."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nucleus.validate.shell import Script, Simple, Unclear, Word, canonical, parse

READ = {
    "ls | head -5 && git log > out.txt": "ls | head -5 && git log >out.txt",
    "cd src && make; echo ok": "cd src && make ; echo ok",
    "A=b make 2>&1 | tee log": "env 'A=b' make 2>&1 | tee log",
    "echo \"it's\" 'a\"b' \\$x": "echo 'it'\\''s' 'a\"b' '$x'",
    'grep -E "^foo$" src/*.py': "grep -E '^foo$' src/*.py",
    "find . -name '*.py' -exec grep x {} +": "find . -name '*.py' -exec grep x '{}' +",
    "ls 2>/dev/null || true  # comment": "ls 2>/dev/null || true",
    "x &> log": "x >log 2>&1",
    "echo a\nls\n\n": "echo a ; ls",
    "\n\n ls ;": "ls",
    "a &&\n  b": "a && b",
    "ec\\\nho 1": "echo 1",
    "cat<here>out": "cat <here >out",
    "echo 2 >f": "echo 2 >f",
    "echo 2>f": "echo 2>f",
    "'if' x": "'if' x",
    "echo if": "echo 'if'",
    "echo ''": "echo ''",
    "[ -f a ]": "'[' -f a ']'",
    "echo a#b": "echo 'a#b'",
    "'A=b' c": "'A=b' c",
    "echo ./a*b?c": "echo ./a*b?c",
    "echo 'a b'/*": "echo 'a b/'*",
    "echo '*'": "echo '*'",
    "echo Ünï": "echo 'Ünï'",
}
UNREAD = {
    "echo $HOME": "expansion", "echo `id`": "expansion", 'echo "$(id)"': "expansion", "echo $'a'": "expansion",
    "echo ${a}": "expansion", "echo $((1))": "expansion", "echo $?": "expansion", 'echo $"a"': "expansion",
    "(ls)": "(", "ls)": ")", "a & b": "job", "a &": "job", "a |& b": "|&", "a;;b": ";;", "! ls": "!",
    "if true; then ls; fi": "if", "for a in b; do c; done": "for", "{ ls; }": "braces", "f() { ls; }": "(",
    "cat <<EOF\nx\nEOF": "<<", "cat <<< a": "<<<", "cat <> f": "<>", "ls >| f": ">|", "ls 2>&-": ">&", "ls >&3": ">&",
    "diff <(a) b": "file", "ls *.py": "./*", "ls a[bc]": "set", "ls {a,b}": "braces", "ls {}{a,b}": "braces",
    "ls ~/x": "~", "make P=~/x": "~", "~/x": "~", "A=~/x b": "~", "A=b": "assignment", "a+=b c": "a+=",
    "a[0]=b c": "set",
    "./a* b": "program", "echo 10>f": "descriptor", "": "no command", "  # a comment": "no command", "| a": "missing",
    "a ||": "missing", "a && ; b": "missing", "a ; ; b": "missing", "> f": "no command", "a >": "without a file",
    "a > ./*": "expands", "'a": "quote", '"a': "quote", "a\\": "backslash", "a\rb": "control", "function f": "function",
    "time ls": "time", "[[ -f a ]]": "set", "; ls": "missing", "a; " * 65: "64",
    "-x": "option", " -x": "option", "'-x'; a": "option", "+x": "option",
}  # fmt: skip


@pytest.mark.parametrize("text", READ)
def test_what_is_read(text: str) -> None:
    found = parse(text)
    assert isinstance(found, Script), found
    assert found.text == READ[text]
    assert parse(found.text) == found


@pytest.mark.parametrize("text", UNREAD)
def test_what_is_not_read_says_why(text: str) -> None:
    found = parse(text)
    assert isinstance(found, Unclear), found
    assert UNREAD[text] in found.reason


def test_only_a_string_of_a_shell_that_we_know() -> None:
    assert canonical(("sh", "-c", "ls  -l")) == ("sh", "-c", "ls -l")
    assert canonical(("/bin/bash", "-lc", "ls")) == ("/bin/bash", "-c", "ls")
    for argv in (("zsh", "-c", "ls"), ("sh", "-c", "ls", "x"), ("sh", "-ec", "ls"), ("sh", "x"), ("env", "-c", "ls")):
        assert canonical(argv) is None


PIECES = ["a", "b/c", "-x", "'q r'", '"d q"', "\\ ", "\\\n", "|", "&&", "||", ";", "\n", " ", ">", ">>", "2>&1", "<",
          "A=b", "./*", "{}", "#", "$", "~", "!", "[", "]", "=", "2", "é", "''", '""', "'", '"', "&>", "if", "*", "\t",
          "%s"]  # fmt: skip
PLAIN = ["a", "b", " ", " ", "'q r'", '"d q"', "\\ ", ";", "&&", "\n", ">o", "2>&1", "A=b ", "-x", "{}", "#", "%", "''",
         "é", "'\"'", "\\'"]  # fmt: skip
SHELLS = [path for path in map(shutil.which, ("bash", "dash")) if path]


@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join) | st.text(max_size=40))
@settings(max_examples=3_000, deadline=None)
def test_total_and_stable(text: str) -> None:
    found = parse(text)
    if isinstance(found, Script):
        assert parse(found.text) == found
        assert len(found.text) <= 4 * len(text) + 8 * len(found.commands)


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory whose programs all say their words, and nothing else is to be found."""
    made = tmp_path_factory.mktemp("room")
    show = made / "bin/show"
    show.parent.mkdir()
    # Written by the shell itself: an interpreter for each would take a minute.
    loop = 'for w in "$0" "$@"; do printf "%s\\036" "$w" >&9; done; printf "\\035" >&9'
    show.write_text(f"#!/bin/sh\n{loop}\n")
    show.chmod(0o755)
    for name in ("a", "b", "echo", "-x", "2", "if", "%s"):
        (show.parent / name).symlink_to(show)
    return made


def said(shell: str, text: str, room: Path) -> list[list[str]]:
    """What the programs of a string get as their words, one list each, sorted: a pipe's sides run at once."""
    where = room / "cwd"
    shutil.rmtree(where, ignore_errors=True)
    where.mkdir()
    log = room / "log"
    subprocess.run(
        ["/bin/sh", "-c", 'exec 9>../log; exec "$@"', "sh", shell, "-c", text],
        cwd=where, env={"PATH": str(room / "bin")}, timeout=20, stdin=subprocess.DEVNULL, capture_output=True,
        check=False,
    )  # fmt: skip
    found = log.read_bytes().decode().split("\x1d")[:-1]
    return sorted([Path(words.split("\x1e")[0]).name, *words.split("\x1e")[1:-1]] for words in found)


@pytest.mark.skipif(len(SHELLS) < 2, reason="bash and dash are not both installed")
@given(st.lists(st.sampled_from(PLAIN), max_size=12).map("".join))
@settings(max_examples=120, deadline=None)
def test_bash_runs_the_original_and_the_canonical_text_alike(room: Path, text: str) -> None:
    found = parse(text)
    if not isinstance(found, Script) or any(command.argv[0] == "env" for command in found.commands):
        return
    bash, dash = SHELLS
    assert said(bash, text, room) == said(bash, found.text, room) == said(dash, found.text, room)


@pytest.mark.skipif(len(SHELLS) < 2, reason="bash and dash are not both installed")
@given(
    st.lists(
        st.text(st.characters(exclude_characters="\0\x1d\x1e", exclude_categories=["Cs"]), max_size=12), max_size=4
    )
)
@settings(max_examples=120, deadline=None)
def test_any_words_reach_a_program_as_they_were_decided(room: Path, words: list[str]) -> None:
    script = Script((Simple((Word(("a",)), *(Word((word,)) for word in words)), (), ""),))
    for shell in SHELLS:
        assert said(shell, script.text, room) == [["a", *words]]
