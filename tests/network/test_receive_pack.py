"""The commands of a push: read as git's own server reads them, and nothing that could be read in two ways."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nucleus.errors import InvalidError
from nucleus.network.receive_pack import COMMANDS, LINE_BYTES, LIST_BYTES, Commands, Update, difference, is_ref

ZERO, ONE, TWO, THREE = ("0" * 40, "1" * 40, "2" * 40, "3" * 40)
LONG = "a1" * 32  # an id of SHA-256
MAIN, TAG = "refs/heads/main", "refs/tags/v1"
CAPS = b" report-status-v2 side-band-64k quiet atomic object-format=sha1 agent=git/2.39.5"
FLUSH = b"0000"


def pkt(data: bytes) -> bytes:
    return b"%04x" % (len(data) + 4) + data


def line(ref: str | bytes = MAIN, old: str = ONE, new: str = TWO, caps: bytes | None = None, end: bytes = b"") -> bytes:
    name = ref if isinstance(ref, bytes) else ref.encode()
    return pkt(f"{old} {new} ".encode() + name + (b"" if caps is None else b"\0" + caps) + end)


def read(data: bytes) -> tuple[Update, ...] | None:
    return Commands().feed(data)


def fed(commands: Commands, pieces: Iterable[bytes]) -> None:
    for piece in pieces:
        assert commands.feed(piece) is None


def refused(data: bytes, rule: str) -> None:
    """It is, whole and byte by byte, and it stays so."""
    for pieces in ([data], [data[at : at + 1] for at in range(len(data))]):
        commands = Commands()
        with pytest.raises(InvalidError) as caught:
            fed(commands, pieces)
        assert caught.value.rule == rule
        assert len(caught.value.message) < 200
        for more in (b"", FLUSH, line() + FLUSH):
            with pytest.raises(InvalidError):
                commands.feed(more)
        assert commands.rest == b""


# What is read


def test_one_command_and_the_pack_behind_it() -> None:
    commands = Commands()
    assert commands.rest == b""
    assert commands.feed(line(caps=CAPS) + FLUSH + b"PACK\0\0\0\2") == (Update(MAIN, ONE, TWO),)
    assert commands.rest == b"PACK\0\0\0\2"
    assert commands.feed(b"more") == (Update(MAIN, ONE, TWO),)
    assert commands.rest == b"PACK\0\0\0\2more"


def test_what_follows_is_no_command() -> None:
    """Not even a list as good as the first: the server reads the pack there."""
    behind = line(TAG) + FLUSH
    commands = Commands()
    assert commands.feed(line(caps=CAPS) + FLUSH + behind) == (Update(MAIN, ONE, TWO),)
    assert commands.rest == behind


def test_creating_and_deleting() -> None:
    found = read(line(old=ZERO, caps=CAPS) + line(TAG, new=ZERO) + FLUSH)
    assert found == (Update(MAIN, ZERO, TWO), Update(TAG, ONE, ZERO))


def test_the_order_is_kept() -> None:
    refs = [f"refs/heads/{name}" for name in "zaqmb"]
    found = read(b"".join(line(ref) for ref in refs) + FLUSH)
    assert found is not None
    assert [one.ref for one in found] == refs


def test_sha_256() -> None:
    assert read(line(old=LONG, new="0" * 64) + FLUSH) == (Update(MAIN, LONG, "0" * 64),)


@pytest.mark.parametrize("end", [b"", b"\n"])
@pytest.mark.parametrize("caps", [None, b"", b" ", CAPS, CAPS[1:], b"  atomic  quiet "])
def test_capabilities_and_the_line_s_end(caps: bytes | None, end: bytes) -> None:
    assert read(line(caps=caps, end=end) + line(TAG, end=end) + FLUSH) is not None


def test_an_empty_list() -> None:
    assert read(FLUSH) == ()
    assert difference([Update(MAIN, ONE, TWO)], ()) != ""


@pytest.mark.parametrize("end", range(1, 60))
def test_without_its_end(end: int) -> None:
    whole = line(caps=CAPS) + line(TAG) + FLUSH
    assert read(whole[:-end]) is None


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64, 1000])
def test_pieces_make_no_difference(size: int) -> None:
    whole = line(caps=CAPS) + b"".join(line(f"refs/heads/b{n}") for n in range(COMMANDS - 1)) + FLUSH + b"PACK"
    commands, found = Commands(), None
    for at in range(0, len(whole), size):
        found = commands.feed(whole[at : at + size])
    assert found == read(whole)
    assert found is not None
    assert (len(found), commands.rest) == (COMMANDS, b"PACK")


def test_upper_case_lengths_are_git_s_too() -> None:
    padded = f"{ONE} {TWO} refs/heads/".encode() + b"m" * 76
    assert pkt(padded)[:4] == b"00ad"
    assert read(b"00AD" + padded + FLUSH) == read(pkt(padded) + FLUSH) != ()


# pkt-lines that are none


@pytest.mark.parametrize(
    "length",
    [b"0001", b"0002", b"0003", b"0004", b"fff1", b"fff4", b"ffff", b"FFFF", b"-001", b"+067", b" 067", b"0x67",
     b"067 ", b"00g7", b"\0\0\0\0", b"\n067", b"0_67", b"\xef\xbc\x90\xef", b"    ", b"zzzz", b"PACK", b"ERR "],
)  # fmt: skip
@pytest.mark.parametrize("before", [b"", line(TAG)])
def test_lengths(before: bytes, length: bytes) -> None:
    refused(before + length, "git.pktline")


def test_the_longest_line_is_read_and_refused_for_what_it_says() -> None:
    refused(line() + b"%04x" % (LINE_BYTES + 1), "git.pktline")
    refused(pkt(b"x" * (LINE_BYTES - 4)), "git.command")
    caps = b" agent=" + b"x" * 65_000
    assert read(line(caps=caps) + FLUSH) == (Update(MAIN, ONE, TWO),)
    refused(line(caps=caps) + b"".join(line(f"refs/heads/b{n}") for n in range(10)), "git.pktline")


def test_too_many_commands() -> None:
    lines = [line(f"refs/heads/b{n}") for n in range(COMMANDS + 1)]
    assert len(read(b"".join(lines[:-1]) + FLUSH) or ()) == COMMANDS
    refused(b"".join(lines) + FLUSH, "git.pktline")


def test_too_many_bytes() -> None:
    """Lesson: what a line announces was counted again with each piece of it."""
    one = len(line("refs/heads/" + "x" * 200 + "000"))
    most = LIST_BYTES // one
    lines = [line("refs/heads/" + "x" * 200 + f"{n:03}") for n in range(most + 1)]
    assert most < COMMANDS
    assert len(read(b"".join(lines[:most]) + FLUSH) or ()) == most
    refused(b"".join(lines) + FLUSH, "git.pktline")


def test_memory_is_bounded() -> None:
    """What never ends is refused after `LIST_BYTES`, whatever a peer announces and however it is cut."""
    for endless in (itertools.repeat(line(caps=b" agent=" + b"x" * 60_000)), itertools.repeat(b"f"), iter_lines()):
        commands, total = Commands(), 0

        def counted(pieces: Iterable[bytes]) -> Iterator[bytes]:
            nonlocal total
            for piece in pieces:
                yield piece
                total += len(piece)

        tracemalloc.start()
        try:
            with pytest.raises(InvalidError):
                fed(commands, counted(endless))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert total <= LIST_BYTES
        assert peak < 8 * LIST_BYTES


def iter_lines() -> itertools.chain[bytes]:
    return itertools.chain.from_iterable(
        (line(f"refs/heads/b{n}")[at : at + 1] for at in range(len(line(f"refs/heads/b{n}"))))
        for n in itertools.count()
    )


# Commands that are none


@pytest.mark.parametrize(
    "data",
    [
        b"\n", b" ", b"x", b"\0", f"{ONE}  {TWO} {MAIN}".encode(),
        f" {ONE} {TWO} {MAIN}".encode(), f"{ONE}\t{TWO}\t{MAIN}".encode(), f"{ONE}\0{TWO} {MAIN}".encode(),
        f"{ONE[:-1]} {TWO[:-1]} {MAIN}".encode(), f"{ONE}1 {TWO}2 {MAIN}".encode(),
        f"{'A' * 40} {TWO} {MAIN}".encode(), f"{'g' * 40} {TWO} {MAIN}".encode(), f"{LONG} {TWO} {MAIN}".encode(),
        f"{ONE} {LONG} {MAIN}".encode(), f"{ONE}\n {TWO} {MAIN}".encode(), b"\xff" * 100,
        f"shallow {ONE}".encode(), f"shallow {ONE}\n".encode(), f"shallow {LONG}".encode(), f"unshallow {ONE}".encode(),
        b"push-cert\0" + CAPS, b"push-cert\n", b"push-cert-end\n", b"certificate version 0.1\n",
        b"ERR access denied", b"\2progress", b"version 1",
    ],
)  # fmt: skip
@pytest.mark.parametrize("before", [b"", line(TAG)])
def test_no_command(before: bytes, data: bytes) -> None:
    refused(before + pkt(data), "git.capability" if before and b"\0" in data else "git.command")


@pytest.mark.parametrize("data", [f"{ONE} {TWO}", f"{ONE} {TWO} ", f"{ONE} {TWO}\0 {MAIN}", f"{ONE} {TWO}  {MAIN}"])
def test_a_command_without_a_ref(data: str) -> None:
    refused(pkt(data.encode()) + FLUSH, "git.ref")


def test_ids_of_one_kind() -> None:
    for first, second in ((ONE, LONG), (LONG, ONE)):
        refused(line(old=first, new=first) + line(TAG, old=second, new=second) + FLUSH, "git.command")


@pytest.mark.parametrize(
    "caps",
    [
        b" push-options", b"push-options", b" report-status push-options", b" push-options=x", b" push-cert=nonce",
        b" push-cert", b" quiet push-options atomic\n", b" quiet  push-options",
        b" push-options\0", b" push-options\0x", b" report-status\0 push-options", b"\0push-options", b"\0",
        b" quiet\tpush-options", b"quiet\npush-options", b"push-options\r", b"\x0bpush-options",
        b"quiet\x0cpush-options", b" quiet\n\n", b" agent=\x1b[2J", b" agent=\xff", b" agent=\x7f",
    ],
)  # fmt: skip
def test_capabilities_that_are_not_sent_on(caps: bytes) -> None:
    """Lesson: git reads up to the second NUL, and finds the word before it; we saw one word of both."""
    refused(line(caps=caps) + FLUSH, "git.capability")


@pytest.mark.parametrize("caps", [b"", CAPS, b" push-options"])
def test_capabilities_stand_with_the_first(caps: bytes) -> None:
    """git's server heeds those of any line."""
    refused(line(caps=CAPS) + line(TAG, caps=caps) + FLUSH, "git.capability")
    refused(line() + line(TAG, caps=caps) + FLUSH, "git.capability")


def test_duplicates() -> None:
    refused(line() + line() + FLUSH, "git.ref")
    refused(line() + line(TAG) + line(old=TWO, new=THREE) + FLUSH, "git.ref")


REFS = ["refs/heads/a", "refs/heads/feature/x.y_z-1", "refs/tags/v1.0+build@2", "refs/heads/a/b/c/d", "refs/heads/0"]
NO_REFS = [
    "", "HEAD", "main", "refs/heads", "refs/heads/", "refs/heads//a", "/refs/heads/a", "refs/heads/a/",
    "refs/heads/a//b", "refs/notes/x", "refs/for/main", "refs/pull/1/head", "refs/remotes/origin/a",
    "refs/replace/x", "refs/HEADS/a",
    "refs/heads/..", "refs/heads/a..b", "refs/heads/.a", "refs/heads/a/.b", "refs/heads/-a", "refs/heads/a/-b",
    "refs/heads/a.lock", "refs/heads/a.lock/b", "refs/heads/a.", "refs/heads/a@{0}", "refs/heads/a b", "refs/heads/a~1",
    "refs/heads/a^", "refs/heads/a:b", "refs/heads/a?", "refs/heads/*", "refs/heads/[a", "refs/heads/a\\b",
    "refs/heads/a\n", "refs/heads/a\r", "refs/heads/a\t", "refs/heads/a\x7f", "refs/heads/\x1b[2J", "refs/heads/é",
    "refs/heads/a\u202e", "refs/heads/\u0430", "refs/heads/a;b", "refs/heads/$a", "refs/heads/`a`", "refs/heads/a'b",
    "refs/heads/a|b", "refs/heads/+a", "refs/heads/@", "refs/heads/" + "x" * 242, "refs/heads/../../config",
    " refs/heads/a", "refs/heads/a ",
]  # fmt: skip


@pytest.mark.parametrize("ref", NO_REFS)
def test_refs_that_are_not_pushed(ref: str) -> None:
    assert not is_ref(ref)
    if ref == "refs/heads/a\n":  # what git takes for the line's end
        return
    refused(line(ref) + FLUSH, "git.ref")
    refused(line(TAG) + line(ref) + FLUSH, "git.ref")


def test_the_line_s_end_stands_at_its_end() -> None:
    refused(line(b"refs/heads/main\n", caps=CAPS) + FLUSH, "git.ref")
    refused(line(end=b"\n\n") + FLUSH, "git.ref")
    refused(line(end=b"\r\n") + FLUSH, "git.ref")


@pytest.mark.parametrize("ref", [b"refs/heads/\xff", b"refs/heads/\xc0\xae", b"refs/heads/a\xed\xa0\x80"])
def test_refs_that_are_no_text(ref: bytes) -> None:
    refused(line(ref) + FLUSH, "git.ref")


@pytest.mark.parametrize("ref", [*REFS, MAIN, TAG, "refs/heads/" + "x" * 241])
def test_refs(ref: str) -> None:
    assert is_ref(ref)
    assert read(line(ref) + FLUSH) == (Update(ref, ONE, TWO),)
    assert subprocess.run(["git", "check-ref-format", ref], check=False).returncode == 0


# What any peer may say


refs = st.from_regex(r"refs/(heads|tags)/[a-z0-9]{1,8}(/[a-z][a-z0-9._+@-]{0,5}[a-z0-9]){0,2}", fullmatch=True).filter(
    is_ref
)


@st.composite
def pushes(draw: st.DrawFn) -> tuple[list[Update], bytes]:
    width = draw(st.sampled_from((40, 64)))
    ids = st.text("0123456789abcdef", min_size=width, max_size=width)
    updates = [Update(ref, draw(ids), draw(ids)) for ref in draw(st.lists(refs, max_size=6, unique=True))]
    caps = draw(
        st.none() | st.just(CAPS) | st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E)).map(str.encode)
    )
    if caps is not None and b"push-" in caps:
        caps = CAPS
    data = b"".join(
        line(one.ref, one.old, one.new, caps if number == 0 else None, draw(st.sampled_from((b"", b"\n"))))
        for number, one in enumerate(updates)
    )
    return updates, data + FLUSH


@given(pushes(), st.binary(max_size=40), st.data())
def test_round_trip(push: tuple[list[Update], bytes], rest: bytes, data: st.DataObject) -> None:
    updates, sent = push
    assert read(sent + rest) == tuple(updates)
    commands, found, at = Commands(), None, 0
    while at < len(sent + rest):
        size = data.draw(st.integers(1, 60))
        found = commands.feed((sent + rest)[at : at + size])
        at += size
    assert (found, commands.rest) == (tuple(updates), rest)
    assert difference(updates, found or ()) == ""


@given(st.binary(max_size=300) | st.lists(st.binary(max_size=120).map(pkt), max_size=4).map(b"".join))
def test_any_bytes(data: bytes) -> None:
    """Read, or refused; the same whole and byte by byte."""

    def outcome(pieces: list[bytes]) -> object:
        commands, found = Commands(), None
        try:
            for piece in pieces:
                found = commands.feed(piece)
        except InvalidError as error:
            return error.rule
        return found, commands.rest

    assert outcome([data]) == outcome([data[at : at + 1] for at in range(len(data))]) or not data


@given(pushes(), st.data())
def test_one_byte_changed(push: tuple[list[Update], bytes], data: st.DataObject) -> None:
    """It is refused, or `difference` tells it, or it says the same."""
    updates, sent = push
    at = data.draw(st.integers(0, len(sent) - 1))
    changed = sent[:at] + bytes([data.draw(st.integers(0, 255))]) + sent[at + 1 :]
    try:
        found = read(changed)
    except InvalidError:
        return
    if found is not None and difference(updates, found) == "":
        assert sorted(found, key=lambda one: one.ref) == sorted(updates, key=lambda one: one.ref)


# What was approved


A, B, C = Update(MAIN, ONE, TWO), Update(TAG, ZERO, TWO), Update("refs/heads/z", ONE, ZERO)


@pytest.mark.parametrize("got", list(itertools.permutations((A, B, C))))
def test_the_same_in_any_order(got: tuple[Update, ...]) -> None:
    assert difference((A, B, C), got) == ""
    assert difference(iter((A, B, C)), iter(got)) == ""


@pytest.mark.parametrize(
    ("got", "says"),
    [
        ((), f"{MAIN} was approved and is missing"),
        ((A, B), "refs/heads/z was approved and is missing"),
        ((B, C), f"{MAIN} was approved and is missing"),
        ((A, B, C, Update("refs/heads/evil", ZERO, ONE)), "refs/heads/evil was not approved"),
        ((Update("refs/heads/evil", ZERO, ONE),), "refs/heads/evil was not approved"),
        ((Update(MAIN, ONE, THREE), B, C), f"{MAIN} would go to {THREE[:12]}, approved was {TWO[:12]}"),
        ((Update(MAIN, ONE, ZERO), B, C), f"{MAIN} would go to {ZERO[:12]}, approved was {TWO[:12]}"),
        (
            (Update(MAIN, THREE, TWO), B, C),
            f"{MAIN} is at {THREE[:12]} on the remote, approved was from {ONE[:12]}: fetch and ask again",
        ),
        (
            (Update(MAIN, ZERO, TWO), B, C),
            f"{MAIN} is at {ZERO[:12]} on the remote, approved was from {ONE[:12]}: fetch and ask again",
        ),
        ((Update("refs/heads/Main", ONE, TWO), B, C), "refs/heads/Main was not approved"),
        ((Update("refs/tags/main", ONE, TWO), B, C), "refs/tags/main was not approved"),
    ],
)
def test_what_differs_is_said(got: tuple[Update, ...], says: str) -> None:
    assert difference((A, B, C), got) == says


@given(st.lists(st.sampled_from([A, B, C, Update(MAIN, ONE, THREE), Update(TAG, ONE, TWO)]), unique=True))
def test_there_is_a_difference_unless_there_is_none(got: list[Update]) -> None:
    assert (difference((A, B), got) == "") is (set(got) == {A, B})


def test_the_last_digit_counts() -> None:
    assert difference([A], [Update(MAIN, ONE, TWO[:-1] + "3")]) != ""
    assert difference([A], [Update(MAIN, ONE[:-1] + "2", TWO)]) != ""


# git's own


def git(*words: str, cwd: Path) -> str:
    hers = {"HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1", "PATH": os.environ["PATH"]}
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main", "-c", "gc.auto=0")
    return subprocess.run(
        ["git", *who, *words], cwd=cwd, env=hers, capture_output=True, text=True, check=True, timeout=30
    ).stdout.strip()


@pytest.fixture(params=["sha1", "sha256"])
def pushed(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path, Path]:
    """A work tree, its remote, and the file where what git sent to it is kept."""
    work, bare = tmp_path / "work", tmp_path / "bare"
    for path, more in ((work, ()), (bare, ("--bare",))):
        path.mkdir()
        git("init", "-q", f"--object-format={request.param}", *more, cwd=path)
    git("config", "receive.advertisePushOptions", "true", cwd=bare)
    git("commit", "-q", "--allow-empty", "-m", "one", cwd=work)
    sent = tmp_path / "sent"
    tee = tmp_path / "tee"
    tee.write_text(f'#!/bin/sh\ntee {sent} | git-receive-pack "$@"\n')
    tee.chmod(0o755)
    return work, bare, sent


def push(where: tuple[Path, Path, Path], *words: str) -> bytes:
    work, bare, sent = where
    git("push", "-q", f"--receive-pack={sent.parent / 'tee'}", *words[:-1], str(bare), *words[-1].split(), cwd=work)
    return sent.read_bytes()


def test_what_git_sends(pushed: tuple[Path, Path, Path]) -> None:
    head = git("rev-parse", "HEAD", cwd=pushed[0])
    zero = "0" * len(head)
    commands = Commands()
    assert commands.feed(push(pushed, "--atomic", "main main:refs/tags/v1")) == (
        Update(MAIN, zero, head), Update(TAG, zero, head),
    )  # fmt: skip
    assert commands.rest.startswith(b"PACK")
    git("commit", "-q", "--allow-empty", "-m", "two", cwd=pushed[0])
    second = git("rev-parse", "HEAD", cwd=pushed[0])
    assert read(push(pushed, "main :refs/tags/v1")) == (Update(MAIN, head, second), Update(TAG, head, zero))
    assert git("rev-parse", MAIN, cwd=pushed[1]) == second


def test_git_s_push_options_are_refused(pushed: tuple[Path, Path, Path]) -> None:
    refused(push(pushed, "--push-option=ci.skip", "main"), "git.capability")


@pytest.mark.parametrize("caps", [b" push-options", b" push-options\0", b" report-status\tpush-options"])
def test_what_git_s_server_heeds_is_refused(tmp_path: Path, caps: bytes) -> None:
    """A line that git's own server takes for push options: a hook is told of one."""
    bare = tmp_path / "bare"
    bare.mkdir()
    git("init", "-q", "--bare", cwd=bare)
    git("config", "receive.advertisePushOptions", "true", cwd=bare)
    told = tmp_path / "told"
    hook = bare / "hooks" / "pre-receive"
    hook.write_text(f'#!/bin/sh\necho "$GIT_PUSH_OPTION_0" > {told}\n')
    hook.chmod(0o755)
    commit = git("commit-tree", "-m", "x", git("hash-object", "-wt", "tree", "/dev/null", cwd=bare), cwd=bare)
    git("update-ref", MAIN, commit, cwd=bare)
    data = line(old=commit, new=ZERO, caps=caps) + FLUSH
    # (deleting needs no pack; the options stand behind the list)
    subprocess.run(
        ["git-receive-pack", "--stateless-rpc", str(bare)],
        input=data + pkt(b"smuggled") + FLUSH,
        capture_output=True,
        check=False,
        timeout=20,
    )
    assert told.read_text() == "smuggled\n"
    refused(data, "git.capability")


def test_the_import_is_light() -> None:
    code = "import sys, nucleus.network.receive_pack as r; print({'asyncio', 'ssl', 'socket'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
