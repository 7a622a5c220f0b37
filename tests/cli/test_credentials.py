"""`nucleus credentials`: a value comes in by standard input or the terminal, and is seen nowhere on its way."""

from __future__ import annotations

import array
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nucleus.cli.credentials import LINE_BYTES, TERMINAL_BYTES, USAGE, main
from nucleus.errors import InvalidError
from nucleus.store.credentials import KINDS, LEAST, MOST, Credentials

from .stand_in import OnTerminal

SECRET = "s3cret-which-nobody-sees"
KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\nBBBB\n-----END OPENSSH PRIVATE KEY-----\n"
USER = 40_322  # an ordinary user that no machine knows
Done = subprocess.CompletedProcess[bytes]


@dataclass
class Place:
    """A person's state directory, and the command line as theirs."""

    top: Path
    uid: int
    terminals: list[OnTerminal] = field(default_factory=list)

    @property
    def state(self) -> Path:
        return self.top / "state"

    @property
    def directory(self) -> Path:
        return self.state / "credentials"

    @property
    def store(self) -> Credentials:
        return Credentials(self.directory)

    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"], "HOME": str(self.top), "LANG": "C.UTF-8", "TERM": "xterm",
            "NUCLEUS_STATE": str(self.state), "NUCLEUS_RUNTIME": str(self.top / "run"), "PYTHONDONTWRITEBYTECODE": "1",
        }  # fmt: skip

    def start(self, *argv: str, env: dict[str, str] | None = None, **more: Any) -> subprocess.Popen[bytes]:
        whose = {"user": self.uid, "group": self.uid, "extra_groups": []} if self.uid != os.geteuid() else {}
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen(
            [sys.executable, "-m", "nucleus.cli.main", "credentials", *argv],
            env=self.environment() | (env or {}), cwd=self.top, start_new_session=True, **(whose | pipes | more),
        )  # fmt: skip

    def run(self, *argv: str, feed: bytes | str = b"", **more: Any) -> Done:
        process = self.start(*argv, **more)
        out, err = process.communicate(feed.encode() if isinstance(feed, str) else feed, timeout=20)
        return subprocess.CompletedProcess(argv, process.returncode, out, err)

    def terminal(self, *argv: str) -> OnTerminal:
        self.terminals.append(OnTerminal(self, ["credentials", *argv], on=(0, 1, 2), cwd=self.top))
        return self.terminals[-1]


def place(uid: int) -> Iterator[Place]:
    top = Path(tempfile.mkdtemp(prefix="nucleus-credentials-", dir="/tmp"))
    top.chmod(0o711)  # the authority's uid walks through
    if uid != os.geteuid():
        os.chown(top, uid, uid)
    here = Place(top, uid)
    yield here
    for one in here.terminals:
        one.close()
    shutil.rmtree(top)


@pytest.fixture
def mine() -> Iterator[Place]:
    yield from place(os.geteuid())


@pytest.fixture(params=["the person's", "an ordinary user's"])
def theirs(request: pytest.FixtureRequest) -> Iterator[Place]:
    if request.param == "the person's":
        yield from place(os.geteuid())
    elif os.geteuid() != 0:
        pytest.skip("needs root, to be an ordinary user as well")
    else:
        yield from place(USER)


@pytest.fixture
def here(mine: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """`main` in this process."""
    for name, value in mine.environment().items():
        monkeypatch.setenv(name, value)
    return mine


def unseen(*texts: bytes | str, value: str = SECRET) -> None:
    for text in texts:
        data = text if isinstance(text, bytes) else text.encode()
        assert all(line.encode() not in data for line in value.split("\n") if line)


# The verbs


@pytest.mark.parametrize(
    ("kind", "options", "value", "listed"),
    [
        ("bearer", [], SECRET, "one  bearer\n"),
        ("bearer", ["--kind", "bearer"], SECRET, "one  bearer\n"),
        ("basic", ["--kind", "basic", "--user", "x"], SECRET, "one  basic user x\n"),
        ("header", ["--kind=header", "--header=X-Api-Key"], SECRET, "one  header X-Api-Key\n"),
        ("key", ["--kind", "key"], SECRET, "one  key\n"),
        ("ssh", ["--kind", "ssh"], KEY, "one  ssh\n"),
    ],
)
def test_each_kind_as_each_person(theirs: Place, kind: str, options: list[str], value: str, listed: str) -> None:
    done = theirs.run("set", "one", *options, feed=value + "\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"set one ({kind})\n".encode(), b"")
    found = theirs.store.get("one") if theirs.uid == os.geteuid() else None
    if found is not None:
        assert (found.kind, found.value) == (kind, value.strip())
    for path, mode in ((theirs.state, 0o700), (theirs.directory, 0o700), (theirs.directory / "one", 0o600)):
        about = path.stat()
        assert about.st_mode & 0o777 == mode
        assert about.st_uid == theirs.state.stat().st_uid
        assert about.st_uid != 0
    done = theirs.run("list")
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, listed, b"")
    done = theirs.run("rm", "one")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"removed one\n", b"")
    assert theirs.run("list").stdout == b"no credentials: `nucleus credentials set NAME`\n"
    assert os.listdir(theirs.directory) == []


def test_before_anything_was_set(theirs: Place) -> None:
    assert theirs.run("list").stdout == b"no credentials: `nucleus credentials set NAME`\n"
    assert json.loads(theirs.run("list", "--json").stdout) == {"credentials": []}
    done = theirs.run("rm", "one")
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"there is no credential one\n  rule: credentials.unknown\n" in done.stderr
    assert not theirs.state.exists()


def test_the_list(mine: Place) -> None:
    began = time.time_ns()
    mine.run("set", "b", feed=SECRET)
    mine.run("set", "a", "--kind", "basic", "--user", "git", feed=SECRET)
    mine.run("set", "k", "--kind", "ssh", feed=KEY)
    plain, data = mine.run("list"), mine.run("list", "--json")
    assert plain.stdout == b"a  basic user git\nb  bearer\nk  ssh\n"
    found = json.loads(data.stdout)["credentials"]
    assert [one["name"] for one in found] == ["a", "b", "k"]
    assert all(set(one) == {"name", "kind", "user", "header", "created_ns"} for one in found)
    assert all(began <= one["created_ns"] <= time.time_ns() for one in found)
    for done in (plain, data):
        assert (done.returncode, done.stderr) == (0, b"")
        unseen(done.stdout)
        unseen(done.stdout, value=KEY)
    assert mine.run("--json", "list").stdout == data.stdout


def test_set_again_and_forgotten(mine: Place) -> None:
    assert mine.run("set", "one", feed=SECRET).returncode == 0
    assert mine.run("set", "one", "--kind", "key", feed="another-value").returncode == 0
    assert mine.store.get("one").value == "another-value"
    assert mine.run("rm", "one").returncode == 0
    again = mine.run("rm", "one")
    assert (again.returncode, again.stdout) == (2, b"")
    assert b"credentials.unknown" in again.stderr


def test_an_open_directory_is_refused(mine: Place) -> None:
    mine.run("set", "one", feed=SECRET)
    mine.directory.chmod(0o750)
    for words in (("list",), ("rm", "one"), ("set", "one")):
        done = mine.run(*words, feed=SECRET)
        assert (done.returncode, done.stdout) == (6, b"")
        assert b"rule: credentials.mode\n  next: Make it 0700" in done.stderr
        unseen(done.stderr)


def test_a_broken_file_is_named_and_not_shown(mine: Place) -> None:
    mine.run("set", "one", feed=SECRET)
    path = mine.directory / "one"
    path.write_bytes(path.read_bytes()[:-1])
    for words in (("list",), ("list", "--json")):
        done = mine.run(*words)
        assert (done.returncode, done.stdout) == (2, b"")
        assert b"credential one cannot be read\n  rule: credentials.format\n" in done.stderr
        unseen(done.stderr)
    debug = mine.run("list", env={"NUCLEUS_DEBUG": "1"})
    unseen(debug.stderr)


def test_a_directory_that_cannot_be_written(mine: Place) -> None:
    """An error of the system's, said in our words and without a traceback."""
    mine.run("set", "one", feed=SECRET)
    (mine.directory / "one").unlink()
    (mine.directory / "one").mkdir(0o700)
    done = mine.run("set", "one", feed=SECRET)
    assert (done.returncode, done.stdout) == (6, b"")
    assert done.stderr.startswith(b"sandbox_unavailable: credential one was not written: Is a directory\n")
    done = mine.run("rm", "one")
    assert (done.returncode, done.stderr[:58]) == (6, b"sandbox_unavailable: credential one was not removed: Is a ")


# Where the value is not


def waits_for_input(process: subprocess.Popen[bytes]) -> None:
    """Until it took what was written, and waits for more."""
    assert process.stdin is not None
    left = array.array("i", [1])
    deadline = time.monotonic() + 20
    while left[0]:
        assert time.monotonic() < deadline
        fcntl.ioctl(process.stdin, termios.FIONREAD, left)
        time.sleep(0.002)


def test_a_value_is_in_nobody_s_sight(theirs: Place) -> None:
    process = theirs.start("set", "one")
    assert process.stdin is not None
    process.stdin.write(SECRET.encode())
    process.stdin.flush()
    waits_for_input(process)
    about = Path(f"/proc/{process.pid}")
    for name in ("cmdline", "environ", "comm", "status"):
        unseen((about / name).read_bytes())
    assert SECRET not in str([os.readlink(fd) for fd in (about / "fd").iterdir()])
    assert (about / "task" / str(process.pid) / "children").read_text() == "", "no program that could be given it"
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0
    unseen(out, err)
    holders = [path for path in theirs.top.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert holders == [theirs.directory / "one"]


@pytest.mark.parametrize("value", ["AB_SECRET", KEY, "-secret-value", "--secret=value", "--secret-value", "=secret"])
@pytest.mark.parametrize(
    "words", [("set", "one"), ("set",), ("rm", "one"), ("list",), (), ("set", "one", "--value"), ("set", "one", "-v")]
)
def test_a_value_as_an_argument_is_not_repeated(mine: Place, words: tuple[str, ...], value: str) -> None:
    done = mine.run(*words, value, feed=SECRET)
    assert (done.returncode, done.stdout) == (2, b"")
    unseen(done.stderr, value=value)
    assert not mine.state.exists()


def test_the_environment_is_not_looked_at(mine: Place) -> None:
    every = dict.fromkeys(("NUCLEUS_CREDENTIAL", "CREDENTIAL", "VALUE", "ONE", "TOKEN", "GITHUB_TOKEN"), SECRET)
    done = mine.run("set", "one", env=every)
    assert done.returncode == 2
    assert not mine.directory.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_ended_while_it_waits(mine: Place, number: int) -> None:
    mine.run("set", "one", feed="the-old-value")
    process = mine.start("set", "one")
    assert process.stdin is not None
    process.stdin.write(SECRET.encode())
    process.stdin.flush()
    waits_for_input(process)
    process.send_signal(number)
    process.wait(20)  # first: with standard input still open
    out, err = process.communicate(timeout=20)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    unseen(out, err)
    assert mine.store.get("one").value == "the-old-value"
    assert os.listdir(mine.directory) == ["one"]


# Standard input


@pytest.mark.parametrize(
    ("feed", "value"),
    [
        (SECRET, SECRET), (f"{SECRET}\n", SECRET), (f"{SECRET}\r\n", SECRET), (f"\n  {SECRET} \t\n\n", SECRET),
        ("two words", "two words"), ("x" * LEAST, "x" * LEAST), ("x" * MOST + "\n", "x" * MOST),
        ("\\\"'$(id)`id`", "\\\"'$(id)`id`"),
    ],
)  # fmt: skip
def test_what_is_taken(mine: Place, feed: str, value: str) -> None:
    assert mine.run("set", "one", feed=feed).returncode == 0
    assert mine.store.get("one").value == value


@pytest.mark.parametrize(
    ("feed", "says"),
    [
        (b"", b"6 to 8192 bytes"), (b"\n", b"6 to 8192 bytes"), (b" \t\r\n", b"6 to 8192 bytes"),
        (b"short", b"6 to 8192 bytes"), (b"x" * (MOST + 1), b"6 to 8192 bytes"),
        (b"x" * (LINE_BYTES + 1), b"longer than"), (b"x" * 2_000_000, b"longer than"),
        (b"secret-1\nsecret-2\n", b"one line"), (b"secret-1\n\nsecret-2", b"one line"),
        (b"secret-1\r\nX: secret-2", b"one line"), (b"secret-1\rX: y", b"printable ASCII"),
        (b"secret-1\0", b"printable ASCII"), (b"secret\0-1", b"printable ASCII"), (b"sec\x1b[2Jr", b"printable ASCII"),
        (b"secret\x7f", b"printable ASCII"), ("secrét-1".encode(), b"not ASCII"), (b"secret\xff\xfe", b"not ASCII"),
        (bytes(range(256)), b"not ASCII"), (b"\x7fELF\0\0\0\0", b"printable ASCII"), (bytes(1000), b"printable ASCII"),
    ],
)  # fmt: skip
def test_what_is_not(mine: Place, feed: bytes, says: bytes) -> None:
    done = mine.run("set", "one", feed=feed)
    assert (done.returncode, done.stdout) == (2, b"")
    assert says in done.stderr
    assert len(done.stderr) < 400
    assert b"secr" not in done.stderr
    assert not mine.directory.exists()


def test_a_key_of_many_lines(mine: Place) -> None:
    assert mine.run("set", "one", "--kind", "ssh", feed=KEY).returncode == 0
    assert mine.store.get("one").value == KEY.strip()
    for feed in (KEY.replace("\n", "\r\n"), KEY + "\0", "x\n" * MOST):
        done = mine.run("set", "one", "--kind", "ssh", feed=feed)
        assert done.returncode == 2
        unseen(done.stdout, done.stderr, value=KEY)
    assert mine.store.get("one").value == KEY.strip()


def test_standard_input_is_closed(mine: Place) -> None:
    shell = f'exec "{sys.executable}" -m nucleus.cli.main credentials set one <&-'
    done = subprocess.run(["sh", "-c", shell], env=mine.environment(), capture_output=True, timeout=20, check=False)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"standard input, which is closed" in done.stderr
    assert not mine.directory.exists()


def test_standard_input_that_never_ends(mine: Place) -> None:
    with open("/dev/zero", "rb") as endless:
        process = mine.start("set", "one", stdin=endless)
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (2, b"")
    assert b"longer than" in err


def test_a_file_as_standard_input(mine: Place) -> None:
    path = mine.top / "key"
    path.write_text(KEY)
    with path.open("rb") as file:
        assert mine.run("set", "one", "--kind=ssh", stdin=file).returncode == 0
    assert mine.store.get("one").value == KEY.strip()


# A terminal


def asked(terminal: OnTerminal) -> None:
    terminal.wait_for(b"value (not shown): ")
    assert not terminal.settings()[3] & termios.ECHO


def test_typed_without_echo(mine: Place) -> None:
    terminal = mine.terminal("set", "one")
    before = terminal.settings()
    asked(terminal)
    terminal.type(f"{SECRET}\n".encode())
    assert terminal.wait() == 0
    assert b"set one (bearer)" in terminal.shown
    unseen(terminal.shown)
    assert terminal.settings() == before
    assert mine.store.get("one").value == SECRET


@pytest.mark.parametrize(
    ("typed", "code", "says"),
    [
        (b"\n", 2, b"6 to 8192 bytes"), (b"short\n", 2, b"6 to 8192 bytes"), (b"\x04", 2, b"no value was typed"),
        (b"\x03", 130, b""), (b"secr\x03", 130, b""), (b"secr\xc3\xa9t-1\n", 2, b"ASCII"),
        (b"secret\xff-1\n", 2, b"ASCII"),
        (b"secret\x16\x01-1\n", 2, b"printable ASCII"),
        (b"s" * TERMINAL_BYTES + b"\n", 2, b"a terminal cuts a line"),
        (b"s" * (TERMINAL_BYTES + 500) + b"\n", 2, b"a terminal cuts a line"),
    ],
)  # fmt: skip
def test_what_is_not_taken_from_a_terminal(mine: Place, typed: bytes, code: int, says: bytes) -> None:
    """Lesson: the kernel drops what a line has behind 4,095 bytes: half a token was kept."""
    terminal = mine.terminal("set", "one")
    before = terminal.settings()
    asked(terminal)
    terminal.type(typed)
    assert terminal.wait() == code
    assert says in terminal.shown
    assert b"secr" not in terminal.shown
    assert b"Traceback" not in terminal.shown
    assert terminal.settings() == before
    assert not mine.directory.exists()


def test_the_longest_that_can_be_typed(mine: Place) -> None:
    terminal = mine.terminal("set", "one")
    asked(terminal)
    terminal.type(b"s" * (TERMINAL_BYTES - 1) + b"\n")
    assert terminal.wait() == 0
    assert mine.store.get("one").value == "s" * (TERMINAL_BYTES - 1)


def test_a_key_is_not_pasted(mine: Place) -> None:
    """Its first line would be kept as the key, and the shell be given the others."""
    terminal = mine.terminal("set", "one", "--kind", "ssh")
    assert terminal.wait() == 2
    assert b"read it from its file" in terminal.shown
    assert b"value (not shown)" not in terminal.shown
    assert not mine.directory.exists()


@pytest.mark.parametrize("words", [["--kind", "nope"], ["--kind", "basic"], ["--user", "x"], ["--header", "X-A"]])
def test_nobody_is_asked_in_vain(mine: Place, words: list[str]) -> None:
    terminal = mine.terminal("set", "one", *words)
    assert terminal.wait() == 2
    assert b"value (not shown)" not in terminal.shown


# Wrong words


@pytest.mark.parametrize(
    "line",
    [
        "nope", "get one", "show one", "set", "rm", "set a b", "rm a b", "list one", "set Client", "set client",
        "rm client",
        "set ../one", "rm ../one", "set .one", "set one/two", "set " + "x" * 64, "set one --kind",
        "set one --kind nope",
        "set one --kind basic", "set one --kind basic --user a:b", "set one --user x", "set one --kind header",
        "set one --kind header --header Host", "set one --kind header --header X:Y", "set one --header X-A",
        "set one --nope", "set one -k bearer", "--nope list", "list --nope", "list --json=1", "list --kind bearer",
        "rm one --json", "set one --json", "rm one --user x", "set --kind ssh one --kind bearer",
        "--kind bearer set one --kind bearer", "set one --kind bearer --kind bearer", "set one --user",
    ],
)  # fmt: skip
def test_wrong_words(here: Place, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InvalidError) as caught:
        main(line.split())
    assert caught.value.exit_code == 2
    assert len(caught.value.diagnostics()) < 500
    assert capsys.readouterr().out == ""
    assert not here.state.exists()


@pytest.mark.parametrize("words", [["set", "a\nb"], ["set", ""], ["rm", "\x1b[2J"], ["set", "é"], ["rm", "a\0"]])
def test_names_that_are_none(here: Place, words: list[str]) -> None:
    with pytest.raises(InvalidError) as caught:
        main(words)
    assert caught.value.rule == "credentials.name"
    assert caught.value.diagnostics().isascii()


def test_an_unknown_option_as_a_process(mine: Place) -> None:
    done = mine.run("set", "one", "--nope", feed=SECRET)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"invalid_request: unknown option")
    unseen(done.stderr)


@pytest.mark.parametrize(
    ("words", "code"), [([], 2), (["--help"], 0), (["set", "--help"], 0), (["rm", "x", "--help"], 0)]
)
def test_usage(here: Place, words: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == code
    out = capsys.readouterr().out
    assert out == USAGE
    assert all(kind in out for kind in KINDS)


@pytest.mark.parametrize(
    "words",
    [
        ["set", "one", "--kind", "basic", "--user", "u"], ["set", "--kind", "basic", "--user", "u", "one"],
        ["--kind", "basic", "--user", "u", "set", "one"], ["--kind=basic", "set", "--user=u", "one"],
        ["--user", "u", "set", "one", "--kind", "basic"],
    ],
)  # fmt: skip
def test_options_anywhere(mine: Place, words: list[str]) -> None:
    assert mine.run(*words, feed=SECRET).returncode == 0
    found = mine.store.get("one")
    assert (found.kind, found.user, found.value) == ("basic", "u", SECRET)


def test_our_output_s_reader_went_away(mine: Place) -> None:
    mine.run("set", "one", feed=SECRET)
    reader, writer = os.pipe()
    os.close(reader)
    process = mine.start("list", stdout=writer)
    os.close(writer)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (141, b"")


def test_at_once(mine: Place) -> None:
    """Several people's scripts: one of the values is kept, whole."""
    processes = [mine.start("set", "one", "--kind", "key") for _ in range(5)]
    values = [f"value-{number}-" * 600 for number in range(5)]
    for process, value in zip(processes, values, strict=True):
        assert process.stdin is not None
        process.stdin.write(value.encode())
        process.stdin.flush()
    told: list[tuple[bytes, bytes]] = [process.communicate(timeout=30) for process in processes]
    assert [process.returncode for process in processes] == [0] * 5, told
    assert mine.store.get("one").value in values
    assert os.listdir(mine.directory) == ["one"]
