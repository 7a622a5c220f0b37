"""The host's credentials: kept whole or not at all, read from closed files alone, and shown nowhere."""

from __future__ import annotations

import copy
import json
import os
import pickle
import random
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nucleus.errors import InvalidError, NucleusError, SandboxError
from nucleus.store import credentials as room
from nucleus.store.credentials import FILE_BYTES, KINDS, LEAST, MOST, Credential, Credentials, check_name

SECRET = "s3cret-which-nobody-sees"
KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\nBBBB\n-----END OPENSSH PRIVATE KEY-----"
USER = 40_322  # an ordinary user that no machine knows
ONE_OF_EACH = (
    Credential("bearer", SECRET),
    Credential("basic", SECRET, user="x-access-token"),
    Credential("header", SECRET, header="X-Api-Key"),
    Credential("key", SECRET),
    Credential("ssh", KEY),
)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: other owners, mounts")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    path = tmp_path / "state"
    path.mkdir(0o700)
    return path


@pytest.fixture
def store(state: Path) -> Credentials:
    return Credentials(state / "credentials")


def in_child(work: Callable[[], None]) -> int:
    """A process that does `work` and ends; its pid."""
    if (pid := os.fork()) != 0:
        return pid
    try:
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def became(uid: int, work: Callable[[], None]) -> None:
    """Do `work` as `uid`, in a process of its own."""

    def other() -> None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        work()

    assert os.waitpid(in_child(other), 0)[1] == 0


def everything(error: BaseException | None) -> Iterator[str]:
    """What an error and whatever led to it say, with all their attributes."""
    while error is not None:
        yield from (str(error), repr(error), repr(error.args), repr(vars(error)))
        if isinstance(error, json.JSONDecodeError):
            yield error.doc
        error = error.__cause__ or error.__context__


def raw(store: Credentials, name: str = "one") -> dict[str, Any]:
    return dict(json.loads((store._directory / name).read_bytes()))


# What a credential is


@pytest.mark.parametrize("made", ONE_OF_EACH, ids=KINDS)
def test_round_trip(store: Credentials, made: Credential) -> None:
    before = time.time_ns()
    store.set("one", made)
    found = store.get("one")
    assert found.to_wire() == made.to_wire()
    assert before <= found.created_ns <= time.time_ns()
    assert Credential.from_wire(found.to_wire()) == made
    (info,) = store.names()
    assert (info.name, info.kind, info.user, info.header) == ("one", made.kind, made.user, made.header)
    assert not hasattr(info, "value")
    store.remove("one")
    assert store.names() == []


@given(
    value=st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=LEAST, max_size=300).filter(
        lambda text: text == text.strip()
    )
)
def test_any_printable_value_comes_back(tmp_path_factory: pytest.TempPathFactory, value: str) -> None:
    store = Credentials(tmp_path_factory.getbasetemp() / "any")
    store.set("one", Credential("bearer", value))
    assert store.get("one").value == value


@pytest.mark.parametrize("char", ['"', "\\", "x"])
def test_the_longest_can_be_read_again(store: Credentials, char: str) -> None:
    longest = Credential("basic", char * MOST, user=char * 256)
    store.set("one", longest)
    assert store.get("one").to_wire() == longest.to_wire()
    lines = "\n".join(["\\"] * (MOST // 2)) + "\\"
    assert len(lines) == MOST
    store.set("key", Credential("ssh", lines))
    assert store.get("key").value == lines
    assert (store._directory / "one").stat().st_size <= FILE_BYTES


def test_how_it_is_carried() -> None:
    bearer, basic, header, key, ssh = ONE_OF_EACH
    assert bearer.headers() == ((b"Authorization", b"Bearer " + SECRET.encode()),)
    ((name, value),) = basic.headers()
    assert (name, value.split()[0]) == (b"Authorization", b"Basic")
    assert value.split()[1] in basic.secrets()  # the encoded pair is as good as the value
    assert header.headers() == ((b"X-Api-Key", SECRET.encode()),)
    assert key.headers() == ssh.headers() == ()
    assert all(SECRET.encode() in one.secrets() for one in (bearer, basic, header, key))


@pytest.mark.parametrize("made", ONE_OF_EACH, ids=KINDS)
def test_a_value_is_shown_nowhere(store: Credentials, made: Credential) -> None:
    store.set("one", made)
    for one in (made, store.get("one"), store.names(), [made], {"one": made}):
        for text in (repr(one), str(one), f"{one}", f"{one!a}"):
            assert made.value not in text
            assert repr(made.value)[1:-1] not in text
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="pickled") as caught:
            pickle.dumps(made, protocol)
        assert made.value not in str(caught.value)
    for copied in (copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            copied(made)


CONTROL = [*range(0x20), 0x7F, 0x80, 0x85, 0xA0, 0xE9, 0x2028, 0x212A, 0xD800, 0x1F600]


@pytest.mark.parametrize("code", CONTROL, ids=hex)
@pytest.mark.parametrize("kind", KINDS)
def test_no_control_character_gets_in(kind: str, code: int) -> None:
    """Lesson: CR LF in a header's value is a second header, or a second request."""
    for value in (f"abcdef{chr(code)}X: y", f"{chr(code)}abcdef", f"abcdef{chr(code)}"):
        if kind == "ssh" and value == "abcdef\nX: y":
            continue
        with pytest.raises(InvalidError) as caught:
            Credential(kind, value, user="u" if kind == "basic" else "", header="X-A" if kind == "header" else "")
        assert caught.value.rule == "credentials.value"
        assert not any("abcdef" in text for text in everything(caught.value))


@pytest.mark.parametrize("value", ["", "x", "x" * (LEAST - 1), "x" * (MOST + 1), "x" * 1_000_000, " abcdef", "abcdef "])
@pytest.mark.parametrize("kind", ["bearer", "ssh"])
def test_sizes(kind: str, value: str) -> None:
    with pytest.raises(InvalidError) as caught:
        Credential(kind, value)
    assert caught.value.rule == "credentials.value"
    assert len(caught.value.message) < 200
    assert (Credential(kind, "x" * LEAST).value, len(Credential(kind, "x" * MOST).value)) == ("x" * LEAST, MOST)


@pytest.mark.parametrize(
    ("kind", "more", "rule"),
    [
        ("", {}, "kind"), ("Bearer", {}, "kind"), ("bearer ", {}, "kind"), ("client", {}, "kind"),
        ("basic", {}, "user"), ("basic", {"user": "a:b"}, "user"), ("basic", {"user": "a\r\nb"}, "user"),
        ("basic", {"user": "\0"}, "user"), ("basic", {"user": "é"}, "user"), ("basic", {"user": "u" * 257}, "user"),
        ("bearer", {"user": "u"}, "user"), ("ssh", {"user": "git"}, "user"),
        ("header", {}, "header"), ("bearer", {"header": "X-A"}, "header"), ("key", {"header": "X-A"}, "header"),
        *(("header", {"header": name}, "header") for name in (
            "X A", "X:A", "X-A\r\nY", "X\0", " X", "X_A", "Host", "HOST", "content-length", "Transfer-Encoding", "TE",
            "Connection", "Upgrade", "Trailer", "Expect", "Keep-Alive", "x-é", "x" * 257, "x" * 100_000,
            "X-\u212aey",  # the Kelvin sign, whose lower case is a k
            "\u212aeep-alive",
        )),
    ],
)  # fmt: skip
def test_what_is_no_credential(kind: str, more: dict[str, str], rule: str) -> None:
    with pytest.raises(InvalidError) as caught:
        Credential(kind, SECRET, **more)
    assert caught.value.rule == f"credentials.{rule}"
    assert not any(SECRET in text for text in everything(caught.value))


@pytest.mark.parametrize(
    "change",
    [{"value": 5}, {"kind": None}, {"user": None}, {"more": ""}, {"created_ns": 1}, {"value": None}, {"value": "x"}],
)
def test_from_wire_takes_what_to_wire_made(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidError):
        Credential.from_wire(ONE_OF_EACH[0].to_wire() | change)
    short = ONE_OF_EACH[0].to_wire()
    del short["user"]
    with pytest.raises(InvalidError):
        Credential.from_wire(short)


# Names


@pytest.mark.parametrize("name", ["a", "github-token", "a.b_c-9", "x" * 63, "clients", "client2"])
def test_names(store: Credentials, name: str) -> None:
    store.set(name, ONE_OF_EACH[0])
    assert [one.name for one in store.names()] == [name]


@pytest.mark.parametrize(
    "name",
    ["", "client", ".", "..", ".hidden", "-a", "_a", "9a", "A", "a/b", "../state", "/etc/passwd", "a\0", "a\n", "a b",
     "é", "a" * 64, "a" * 100_000, "a\u212a", "*", "a:b", "~"],
)  # fmt: skip
def test_what_is_no_name(store: Credentials, name: str) -> None:
    for work in (store.get, store.remove, check_name, lambda one: store.set(one, ONE_OF_EACH[0])):
        with pytest.raises(InvalidError) as caught:
            work(name)
        assert caught.value.rule == "credentials.name"
        assert len(caught.value.message) < 200
    assert not store._directory.exists()


def test_an_unknown_name(store: Credentials) -> None:
    for _ in range(2):  # without a directory, and with one
        for work in (store.get, store.remove):
            with pytest.raises(InvalidError) as caught:
                work("nope")
            assert caught.value.rule == "credentials.unknown"
            assert "nucleus credentials set nope" in caught.value.next_step
        store.set("one", ONE_OF_EACH[0])


def test_what_could_be_no_credential_is_not_listed(store: Credentials) -> None:
    store.set("one", ONE_OF_EACH[0])
    for name in ("client", "one~", "README", ".one.swp", "UPPER", "x" * 64):
        (store._directory / name).write_text("what an editor or a killed write left")
    assert [one.name for one in store.names()] == ["one"]


# Who may read and write


@pytest.mark.parametrize("mask", [0, 0o022, 0o077])
def test_modes(store: Credentials, state: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        store.set("one", ONE_OF_EACH[0])
    finally:
        os.umask(before)
    for path, mode in ((store._directory, 0o700), (store._directory / "one", 0o600)):
        found = path.lstat()
        assert stat.S_IMODE(found.st_mode) == mode
        assert (found.st_uid, found.st_gid) == (state.stat().st_uid, state.stat().st_gid)


def refused(store: Credentials, *works: Callable[[], object], rule: str = "credentials.mode") -> None:
    for work in works or (lambda: store.get("one"), store.names):
        with pytest.raises(NucleusError) as caught:
            work()
        assert caught.value.rule == rule
        assert caught.value.exit_code == (6 if rule == "credentials.mode" else 2)
        assert not any(SECRET in text for text in everything(caught.value))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o666, 0o777])
def test_an_open_file_is_refused_and_not_mended(store: Credentials, mode: int) -> None:
    store.set("one", ONE_OF_EACH[0])
    (store._directory / "one").chmod(mode)
    refused(store)
    assert stat.S_IMODE((store._directory / "one").stat().st_mode) == mode
    store.set("one", ONE_OF_EACH[1])  # in place of it: a new file
    assert store.get("one").kind == "basic"


@pytest.mark.parametrize("mode", [0o750, 0o705, 0o710, 0o701, 0o720, 0o777])
@pytest.mark.parametrize("empty", [True, False])
def test_an_open_directory_is_refused_and_not_mended(store: Credentials, mode: int, empty: bool) -> None:
    store.set("one", ONE_OF_EACH[0])
    if empty:
        store.remove("one")
    store._directory.chmod(mode)
    every = (store.names, lambda: store.get("one"), lambda: store.set("one", ONE_OF_EACH[0]))
    refused(store, *every, lambda: store.remove("one"))
    assert stat.S_IMODE(store._directory.stat().st_mode) == mode
    assert os.listdir(store._directory) == ([] if empty else ["one"])


@pytest.mark.parametrize("dangling", [True, False])
def test_a_symlink_for_the_directory(store: Credentials, tmp_path: Path, dangling: bool) -> None:
    other = tmp_path / "other"
    if not dangling:
        other.mkdir(0o700)
        Credentials(other).set("one", ONE_OF_EACH[0])
    store._directory.symlink_to(other)
    every = (store.names, lambda: store.get("one"), lambda: store.set("one", ONE_OF_EACH[0]))
    refused(store, *every, lambda: store.remove("one"))
    assert other.exists() is not dangling
    assert store._directory.is_symlink()


def test_a_file_for_the_directory(store: Credentials) -> None:
    store._directory.write_text("")
    refused(store, store.names, lambda: store.get("one"), lambda: store.set("one", ONE_OF_EACH[0]))


def odd_symlink(path: Path) -> None:
    path.with_name("other").write_bytes(path.read_bytes())
    path.with_name("other").chmod(0o600)
    path.unlink()
    path.symlink_to("other")


def odd_socket(path: Path) -> None:
    path.unlink()
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))
    path.chmod(0o600)


def odd_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def odd_directory(path: Path) -> None:
    path.unlink()
    path.mkdir(0o700)


def odd_length(path: Path) -> None:
    path.write_bytes(path.read_bytes().ljust(FILE_BYTES + 1))


def odd_sparse(path: Path) -> None:
    os.truncate(path, 1 << 40)


@pytest.mark.parametrize("odd", [odd_symlink, odd_socket, odd_fifo, odd_directory, odd_length, odd_sparse])
def test_what_is_no_small_plain_file(store: Credentials, odd: Callable[[Path], None]) -> None:
    store.set("one", ONE_OF_EACH[0])
    odd(store._directory / "one")
    began = time.monotonic()
    refused(store)
    assert time.monotonic() - began < 1, "nobody waits for a FIFO's writer"


def test_a_symlink_is_replaced_and_not_followed(store: Credentials, tmp_path: Path) -> None:
    store.set("one", ONE_OF_EACH[0])
    (store._directory / "one").unlink()
    target = tmp_path / "target"
    target.write_text("mine")
    (store._directory / "one").symlink_to(target)
    store.set("one", ONE_OF_EACH[1])
    assert store.get("one").kind == "basic"
    assert target.read_text() == "mine"


@needs_root
@pytest.mark.parametrize("which", ["", "one"])
def test_another_owner(store: Credentials, which: str) -> None:
    store.set("one", ONE_OF_EACH[0])
    os.chown(store._directory / which, USER, -1)
    refused(store)
    assert (store._directory / which).stat().st_uid == USER
    if not which:
        refused(store, lambda: store.set("one", ONE_OF_EACH[0]))


@needs_root
def test_root_writes_for_the_authority(state: Path, store: Credentials) -> None:
    """The state directory is the authority's: it reads by itself what root set."""
    os.chown(state, USER, USER)
    state.parent.chmod(0o711)
    store.set("one", ONE_OF_EACH[0])
    for path in (store._directory, store._directory / "one"):
        assert (path.stat().st_uid, path.stat().st_gid) == (USER, USER)
    about = store._directory.stat()
    assert stat.S_IMODE(about.st_mode) == 0o700
    assert store.get("one").value == SECRET


@needs_root
def test_root_that_was_killed_after_making_the_directory(state: Path, store: Credentials) -> None:
    os.chown(state, USER, USER)
    store._directory.mkdir(0o700)  # root's still
    store.set("one", ONE_OF_EACH[0])
    assert store._directory.stat().st_uid == USER


@needs_root
def test_no_chown_through_a_symlink(state: Path, store: Credentials, tmp_path: Path) -> None:
    """The authority, were it hijacked, swaps the directory that root is just making."""
    os.chown(state, USER, USER)
    victim = tmp_path / "victim"
    victim.mkdir(0o755)
    mkdir = Path.mkdir

    def swapped(path: Path, *args: Any, **more: Any) -> None:
        mkdir(path, *args, **more)
        path.rmdir()
        path.symlink_to(victim)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "mkdir", swapped)
        refused(store, lambda: store.set("one", ONE_OF_EACH[0]))
    assert (victim.stat().st_uid, stat.S_IMODE(victim.stat().st_mode)) == (0, 0o755)


@needs_root
def test_an_ordinary_user(tmp_path: Path) -> None:
    for path in (tmp_path, *tmp_path.parents[:2]):  # pytest's own
        path.chmod(path.stat().st_mode | 0o011)
    state = tmp_path / "hers"
    state.mkdir(0o700)
    os.chown(state, USER, 0)  # of a group that she is not in: that of a setgid directory, say
    store = Credentials(state / "credentials")

    def hers() -> None:
        store.set("one", ONE_OF_EACH[0])
        assert store.get("one").value == SECRET
        store._directory.chmod(0o500)
        for work in (lambda: store.set("one", ONE_OF_EACH[1]), lambda: store.remove("one")):
            with pytest.raises(SandboxError, match="Permission denied") as caught:
                work()
            assert caught.value.rule == "credentials.write"
        assert store.get("one").kind == "bearer"

    became(USER, hers)

    def somebody_else_s() -> None:
        refused(store, store.names, lambda: store.get("one"), lambda: store.set("one", ONE_OF_EACH[0]))

    state.chmod(0o755)
    became(USER + 1, somebody_else_s)


# What a file says


def bad(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def made(data: bytes) -> bytes:
        raw = json.loads(data)
        change(raw)
        return json.dumps(raw).encode()

    return made


@pytest.mark.parametrize(
    "changed",
    {
        "empty": lambda data: b"",
        "cut": lambda data: data[:-1],
        "cut in the value": lambda data: data[: data.index(b"nobody")],
        "more": lambda data: data + b"{}",
        "the bare value": lambda data: SECRET.encode(),
        "a list": lambda data: b"[" + data + b"]",
        "a string": lambda data: json.dumps(data.decode()).encode(),
        "null": lambda data: b"null",
        "deep": lambda data: b"[" * FILE_BYTES,
        "deep objects": lambda data: b'{"a":' * (FILE_BYTES // 5),
        "binary": lambda data: b"\xff\xfe" + data,
        "utf-16": lambda data: data.decode().encode("utf-16"),
        "bom": lambda data: b"\xef\xbb\xbf" + data,
        "not ascii": lambda data: data.replace(b"nobody", "nöbody".encode()),
        "NULs": lambda data: bytes(len(data)),
        "duplicate value": lambda data: data[:-1] + b', "value": "another-value"}',
        "duplicate version": lambda data: b'{"version": 1, ' + data[1:],
        "unknown": bad(lambda raw: raw.update(extra=SECRET)),
        "no kind": bad(lambda raw: raw.pop("kind")),
        "no version": bad(lambda raw: raw.pop("version")),
        "no time": bad(lambda raw: raw.pop("created_ns")),
        "version 2": bad(lambda raw: raw.update(version=2)),
        "version true": bad(lambda raw: raw.update(version=True)),
        "version 1.0": bad(lambda raw: raw.update(version=1.0)),
        "time of text": bad(lambda raw: raw.update(created_ns="1")),
        "time of the value": bad(lambda raw: raw.update(created_ns=SECRET)),
        "time infinite": lambda data: bad(lambda raw: raw.update(created_ns=float("inf")))(data),
        "time negative": bad(lambda raw: raw.update(created_ns=-1)),
        "value a number": bad(lambda raw: raw.update(value=123456)),
        "value of two lines": bad(lambda raw: raw.update(value=f"{SECRET}\r\nX: y")),
        "value short": bad(lambda raw: raw.update(value="x")),
        "kind unknown": bad(lambda raw: raw.update(kind=SECRET)),
        "user of a bearer": bad(lambda raw: raw.update(user=SECRET)),
        "header of the connection": bad(lambda raw: raw.update(kind="header", header="host")),
    }.items(),
    ids=lambda one: one[0],
)
def test_a_file_that_set_did_not_write(store: Credentials, changed: tuple[str, Callable[[bytes], bytes]]) -> None:
    store.set("one", ONE_OF_EACH[0])
    path = store._directory / "one"
    path.write_bytes(changed[1](path.read_bytes()))
    refused(store, rule="credentials.format")
    with pytest.raises(InvalidError, match="credential one cannot be read"):
        store.names()
    store.set("one", ONE_OF_EACH[0])
    assert store.get("one").value == SECRET


# Whole, or not at all


OLD, NEW = Credential("bearer", "old-" * 1500), Credential("basic", "new-" * 2000, user="new")
EITHER = [OLD.to_wire(), NEW.to_wire()]


def test_writers_and_readers_in_threads(store: Credentials) -> None:
    store.set("one", OLD)
    end, wrong = time.monotonic() + 0.6, []

    def work(writes: bool) -> None:
        try:
            while time.monotonic() < end:
                if writes:
                    store.set("one", random.choice((OLD, NEW)))
                assert store.get("one").to_wire() in EITHER
                assert [info.name for info in store.names()] == ["one"]
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number < 4,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert os.listdir(store._directory) == ["one"]


def test_writers_and_readers_in_processes(store: Credentials) -> None:
    store.set("one", OLD)
    end = time.monotonic() + 0.6

    def writer() -> None:
        while time.monotonic() < end:
            store.set("one", random.choice((OLD, NEW)))

    def reader() -> None:
        while time.monotonic() < end:
            assert store.get("one").to_wire() in EITHER
            assert [info.name for info in store.names()] == ["one"]

    pids = [in_child(work) for work in (writer, writer, writer, reader, reader)]
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 5
    assert os.listdir(store._directory) == ["one"]


def test_listing_while_others_are_removed(store: Credentials) -> None:
    store.set("stays", OLD)
    end = time.monotonic() + 0.4

    def coming_and_going() -> None:
        while time.monotonic() < end:
            for name in ("a", "b", "c"):
                store.set(name, OLD)
            for name in ("a", "b", "c"):
                store.remove(name)

    pid = in_child(coming_and_going)
    while time.monotonic() < end:
        assert "stays" in [info.name for info in store.names()]
    assert os.waitpid(pid, 0)[1] == 0


def test_the_first_of_several_at_once(tmp_path: Path) -> None:
    for number in range(15):
        state = tmp_path / str(number)
        state.mkdir(0o700)
        if os.geteuid() == 0:
            os.chown(state, USER, USER)
        store = Credentials(state / "credentials")
        begin = time.monotonic() + 0.01

        def first(store: Credentials = store, begin: float = begin) -> None:
            while time.monotonic() < begin:
                pass
            store.set("one", OLD)

        pids = [in_child(first) for _ in range(3)]
        assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 3
        assert store.get("one").to_wire() == OLD.to_wire()


def test_a_writer_killed_at_any_time(store: Credentials) -> None:
    store.set("one", OLD)

    def writer() -> None:
        while True:
            store.set("one", NEW)
            store.set("one", OLD)

    for _ in range(40):
        pid = in_child(writer)
        time.sleep(random.uniform(0.0005, 0.02))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert store.get("one").to_wire() in EITHER
        assert [info.name for info in store.names()] == ["one"]
    store.set("one", NEW)
    store.set("one.1", NEW)
    store.remove("one")
    assert os.listdir(store._directory) == ["one.1"], "nothing of it stays"


@pytest.mark.parametrize("point", ["open", "fchmod", "write", "fsync", "rename"])
def test_a_writer_killed_at_each_step(store: Credentials, point: str) -> None:
    store.set("one", OLD)
    store.set("one.2", OLD)
    call = getattr(os, point)

    def killed(*args: Any, **more: Any) -> Any:
        if point != "open" or args[1] & os.O_CREAT:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **more)

    def writer() -> None:
        setattr(room.os, point, killed)
        store.set("one", NEW)

    assert os.waitpid(in_child(writer), 0)[1] == signal.SIGKILL
    assert store.get("one").to_wire() == OLD.to_wire()
    assert [info.name for info in store.names()] == ["one", "one.2"]
    left = {name for name in os.listdir(store._directory) if name.startswith(".")}
    assert len(left) == (point != "open")
    assert all(stat.S_IMODE((store._directory / name).stat().st_mode) == 0o600 for name in left)
    store.remove("one.2")
    assert left <= set(os.listdir(store._directory)), "they are not of that name"
    store.remove("one")
    assert os.listdir(store._directory) == []


def test_a_write_that_is_cut_short(store: Credentials) -> None:
    """The kernel took a part: a disk with little room, or a limit of the process's."""
    store.set("one", OLD)

    def writer() -> None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        with pytest.raises(SandboxError, match="credential one was not written: File too large") as caught:
            store.set("one", NEW)
        assert (caught.value.rule, caught.value.exit_code) == ("credentials.write", 6)
        assert not any("new-new-" in text for text in everything(caught.value))

    assert os.waitpid(in_child(writer), 0)[1] == 0
    assert store.get("one").to_wire() == OLD.to_wire()
    assert os.listdir(store._directory) == ["one"]


def test_small_writes_add_up(store: Credentials, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(room.os, "write", lambda fd, data: write(fd, data[:100]))
    store.set("one", NEW)
    assert store.get("one").to_wire() == NEW.to_wire()


FULL = """
import os, subprocess, sys
from pathlib import Path
from nucleus.errors import SandboxError
from nucleus.store.credentials import Credential, Credentials
state = Path(sys.argv[1])
mount = lambda *words: subprocess.run(["mount", *words, str(state)], check=True)
mount("-t", "tmpfs", "-o", "size=128k,mode=700", "none")
store = Credentials(state / "credentials")
store.set("one", Credential("bearer", "old-old-old"))
def fails(why):
    before = sorted(os.listdir(store._directory))
    for work in (lambda: store.set("one", Credential("bearer", "new-" * 2000)), lambda: store.set("two", long)):
        try:
            work()
        except SandboxError as error:
            assert why in error.message and error.rule == "credentials.write", error.diagnostics()
        else:
            raise AssertionError("written")
    assert store.get("one").value == "old-old-old"
    assert sorted(os.listdir(store._directory)) == before, os.listdir(store._directory)
long = Credential("ssh", "new-" * 2000)
filler = os.open(state / "filler", os.O_WRONLY | os.O_CREAT)
try:
    while True:
        os.write(filler, bytes(4096))
except OSError:
    pass
fails("No space left")
os.truncate(state / "filler", os.fstat(filler).st_size - 4096)  # room for a part of it
fails("No space left")
os.close(filler)
mount("-o", "remount,ro")
fails("Read-only file system")
try:
    store.remove("one")
except SandboxError as error:
    assert "Read-only" in error.message
else:
    raise AssertionError("removed")
assert [one.name for one in store.names()] == ["one"]
"""


@needs_root
def test_a_full_disk_and_one_that_cannot_be_written(state: Path) -> None:
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no mount namespace of our own here")
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", FULL, str(state)], capture_output=True, check=False, timeout=30
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_without_a_state_directory(tmp_path: Path) -> None:
    store = Credentials(tmp_path / "none" / "credentials")
    assert store.names() == []
    with pytest.raises(InvalidError):
        store.get("one")
    with pytest.raises(SandboxError, match="No such file"):
        store.set("one", ONE_OF_EACH[0])


def test_no_descriptor_stays_open(store: Credentials) -> None:
    store.set("one", ONE_OF_EACH[0])
    before = os.listdir("/proc/self/fd")
    for odd in (odd_fifo, odd_directory):
        odd(store._directory / "one")
        refused(store)
        (store._directory / "one").rmdir() if odd is odd_directory else (store._directory / "one").unlink()
        store.set("one", ONE_OF_EACH[0])
    store._directory.chmod(0o750)
    refused(store)
    assert len(os.listdir("/proc/self/fd")) == len(before)
