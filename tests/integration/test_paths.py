"""What each kind of path comes to, for each operation that names one, through the public door."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .held import Held
from .site import USER, Site

POLICY = """
version: 1
name: all
capabilities: {read_files: always, write_files: always, edit_files: always, run_bash: always, glob_search: always,
  grep_search: always}
paths: {allow: everything, block: [".env", "secrets/", "caf\u00e9.txt"]}
commands: {allow: everything}
"""
OUT, LEADS_OUT = "invalid_request paths.escape", "operation_failed hands.escape"
BLOCKED, GONE = "denied paths.block", "operation_failed hands.not_found"
NO_FILE, DIRECTORY = "operation_failed hands.not_a_file", "operation_failed hands.is_a_directory"
TEXT, LONG, CLOSED = (
    "invalid_request text.characters",
    "invalid_request limits.path",
    "operation_failed hands.permission",
)
LARGE = 99_990  # with what else is there, as many names as a workspace may have


def workspace(site: Site) -> None:
    w = site.workspace
    plain = {
        "a.txt": "alpha\nbeta\n", ".env": "SECRET=1\n", "secrets/key": "k\n", "sub/.env": "SECRET=2\n",
        "sub/b.txt": "bee\n",
        ".ENV": "SECRET=3\n", "\uff0eenv": "SECRET=4\n", "cafe\u0301.txt": "NFD\n", "caf\u00e9.txt": "NFC\n",
        "trail.": "T\n", "new\nline": "NL\n", "x" * 255: "long\n", "suid": "old\n", "mode": "old\n",
        "to-write": "old\n",
    }  # fmt: skip
    for name, text in plain.items():
        site.write(name, text)
    (w / "suid").chmod(0o4755)
    (w / "mode").chmod(0o640)
    links = {
        "link": "a.txt", "notes.txt": ".env", "out": "/etc/passwd", "loop": "loop", "dangling": "nowhere", "up": "..",
        "dirlink": "sub", "write-link": "to-write",
    }  # fmt: skip
    for name, target in links.items():
        (w / name).symlink_to(target)
    os.mkfifo(w / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(w / "sock"))
    with (w / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    for name in (*links, "fifo", "sock", "sparse"):
        os.lchown(w / name, site.uid, site.uid)


class Pod:
    """A pod held open over one workspace."""

    def __init__(self, site: Site, held: Held) -> None:
        self.site, self.held = site, held

    def __call__(self, kind: str, path: str, **fields: Any) -> dict[str, Any]:
        name = "cwd" if kind == "run" else "path"
        return self.held.operate(kind=kind, **{name: path}, **fields)


@pytest.fixture(scope="module", params=["root", "user"])
def pod(request: pytest.FixtureRequest) -> Iterator[Pod]:
    site = Site(0 if request.param == "root" else USER)
    workspace(site)
    policy = site.directory / "all.yaml"
    policy.write_text(POLICY)
    policy.chmod(0o644)
    with Held(site, policy=str(policy)) as held:
        yield Pod(site, held)
    site.close()


def said(answer: dict[str, Any]) -> str:
    """In two words, or ``ok``."""
    return "ok" if answer.get("status") == "ok" else f"{answer['kind']} {answer['rule']}"


READ = {
    "a.txt": "alpha\nbeta\n", "./a.txt": "alpha\nbeta\n", "sub//b.txt": "bee\n", "sub/./b.txt": "bee\n",
    "sub/../a.txt": "alpha\nbeta\n", "/workspace/a.txt": "alpha\nbeta\n", "/workspace//sub/../a.txt": "alpha\nbeta\n",
    "a.txt/": "alpha\nbeta\n", "trail.": "T\n", "link": "alpha\nbeta\n", "dirlink/b.txt": "bee\n", "x" * 255: "long\n",
}  # fmt: skip
NOT_READ = {
    # outside, however it is written
    "../x": OUT, "sub/../../x": OUT, "/etc/passwd": OUT, "/proc/self/fd/3": OUT, "/proc/self/root/etc/passwd": OUT,
    "/dev/fd/0": OUT, "/workspace/../etc/passwd": OUT, "/workspacex/a": OUT, "out": LEADS_OUT, "up": LEADS_OUT,
    "up/x": LEADS_OUT, "loop": LEADS_OUT, "dangling": GONE,
    # a blocked name, however it is spelled: by case, by normal form, by compatible letters, behind a link
    ".env": BLOCKED, "./.env": BLOCKED, ".env/": BLOCKED, ".ENV": BLOCKED, ".Env": BLOCKED, "sub/.env": BLOCKED,
    "\uff0eenv": BLOCKED, ".en\uff56": BLOCKED, "caf\u00e9.txt": BLOCKED, "cafe\u0301.txt": BLOCKED,
    "CAF\u00c9.TXT": BLOCKED, "secrets": BLOCKED, "secrets/key": BLOCKED, "SECRETS/key": BLOCKED,
    "secrets\uff0fkey": BLOCKED, "notes.txt": BLOCKED,
    # near misses are names of their own
    ".env.": GONE, ".env ": GONE, " .env": GONE,
    # what is no file
    "fifo": NO_FILE, "sub": DIRECTORY, ".": DIRECTORY, "sock": CLOSED,
    # what no path is
    "": "invalid_request paths.empty", "new\nline": TEXT, "a\u202eb": TEXT, "a\u200bb": TEXT, "a\0b": TEXT,
    "x" * 256: LONG, "y/" * 2_048 + "z": LONG, "\ud800": "invalid_request text.surrogate",
}  # fmt: skip


@pytest.mark.parametrize("path", READ)
def test_what_is_read(pod: Pod, path: str) -> None:
    answer = pod("read", path)
    assert answer["result"]["content"] == READ[path], answer


@pytest.mark.parametrize("path", NOT_READ)
def test_what_is_not_read(pod: Pod, path: str) -> None:
    assert said(pod("read", path)) == NOT_READ[path]


WRITE = {
    "out": LEADS_OUT, "up/x": LEADS_OUT, "loop": LEADS_OUT, "dangling": GONE, "/etc/x": OUT, "../x": OUT,
    "fifo": NO_FILE, "sub": DIRECTORY, "sock": CLOSED, "a.txt/x": GONE, ".env": BLOCKED, ".ENV": BLOCKED,
    "notes.txt": BLOCKED, "\uff0eenv": BLOCKED, "secrets/new": BLOCKED, ".git/hooks/x": "denied paths.protected",
}  # fmt: skip


@pytest.mark.parametrize("path", WRITE)
def test_what_is_not_written(pod: Pod, path: str) -> None:
    before = Path("/etc/passwd").read_bytes()
    assert said(pod("write", path, content="W")) == WRITE[path]
    assert said(pod("edit", path, old="a", new="b")) != "ok"
    assert Path("/etc/passwd").read_bytes() == before
    assert not (pod.site.directory / "x").exists()


def test_what_is_written_keeps_its_place_and_mode(pod: Pod) -> None:
    w = pod.site.workspace
    assert said(pod("write", "write-link", content="new\n")) == "ok"
    assert (w / "write-link").is_symlink()
    assert (w / "to-write").read_text() == "new\n"
    assert said(pod("write", "dirlink/made/deep.txt", content="new\n")) == "ok"
    assert (w / "sub/made/deep.txt").read_text() == "new\n"
    for name, mode in (("suid", 0o755), ("mode", 0o640)):  # nobody's program becomes another's
        assert said(pod("write", name, content="new\n")) == "ok"
        assert (w / name).stat().st_mode & 0o7777 == mode


def test_an_edit_is_exact_and_shows_what_it_did(pod: Pod) -> None:
    pod.site.write("edit.txt", "one\ntwo\none\n")
    assert said(pod("edit", "edit.txt", old="one", new="1")) == "operation_failed hands.count_mismatch"
    assert said(pod("edit", "edit.txt", old="three", new="3")) == "operation_failed hands.no_match"
    found = pod("edit", "edit.txt", old="one", new="1", count=2)["result"]
    assert found["replaced"] == 2
    assert "-one\n+1\n" in found["diff"]
    assert (pod.site.workspace / "edit.txt").read_text() == "1\ntwo\n1\n"


def test_a_reader_sees_the_old_file_or_the_new_one(pod: Pod) -> None:
    path = pod.site.write("atomic.txt", "a" * 200_000)
    stop, torn = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            text = path.read_text()
            if len(text) != 200_000 or len(set(text)) != 1:
                torn.append(text[:20])

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(40):
            assert said(pod("write", "atomic.txt", content="ab"[number % 2] * 200_000)) == "ok"
    finally:
        stop.set()
        reader.join()
    assert not torn
    assert not [name for name in os.listdir(pod.site.workspace) if name.startswith(".nucleus")]


def test_a_link_that_is_swapped_under_a_reader(pod: Pod) -> None:
    """Whatever it points at when it is looked at: the file that it may be, or nothing."""
    w, stop = pod.site.workspace, threading.Event()
    targets = ("a.txt", ".env", "/etc/passwd", "secrets/key", "sub")

    def swap() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            new = w / "swap.new"
            new.symlink_to(targets[number % len(targets)])
            new.rename(w / "swapped")

    (w / "swapped").symlink_to("a.txt")
    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        seen = [pod("read", "swapped") for _ in range(200)]
    finally:
        stop.set()
        swapper.join()
    contents = {answer["result"]["content"] for answer in seen if answer.get("status") == "ok"}
    assert contents <= {"alpha\nbeta\n"}, contents


def test_pages_of_a_file_that_is_larger_than_any_disk(pod: Pod) -> None:
    first = pod("read", "sparse", limit=10)["result"]
    assert (first["size"], first["truncated"], len(first["content"])) == (1 << 40, True, 10)
    last = pod("read", "sparse", offset=(1 << 40) - 4, limit=10)["result"]
    assert (len(last["content"]), last["truncated"]) == (4, False)
    assert said(pod("grep", "sparse", pattern="x")) == "ok"  # binary: passed over


GLOB = {
    ".": "ok",
    "sub": "ok",
    "dirlink": "ok",
    "a.txt": "ok",
    "up": LEADS_OUT,
    "..": OUT,
    "/etc": OUT,
    "secrets": BLOCKED,
}


@pytest.mark.parametrize("path", GLOB)
def test_where_is_searched(pod: Pod, path: str) -> None:
    assert said(pod("glob", path, pattern="**")) == GLOB[path]
    assert said(pod("grep", path, pattern="SECRET")) == GLOB[path]


def test_a_search_shows_no_blocked_name_and_no_line_of_one(pod: Pod) -> None:
    names = pod("glob", ".", pattern="**")["result"]["paths"]
    assert "a.txt" in names
    assert "new\nline" in names
    assert not {".env", ".ENV", "sub/.env", "\uff0eenv", "secrets/key", "caf\u00e9.txt", "cafe\u0301.txt"} & set(
        names
    ), names
    assert pod("grep", ".", pattern="SECRET")["result"]["matches"] == []
    assert said(pod("glob", ".", pattern="../*")) == OUT


RUN = {
    ".": "/workspace\n", "sub": "/workspace/sub\n", "dirlink": "/workspace/sub\n", "/workspace/sub": "/workspace/sub\n",
    "up": LEADS_OUT, "..": OUT, "/etc": OUT, "secrets": BLOCKED, "a.txt": GONE, "fifo": GONE, "nope": GONE,
}  # fmt: skip


@pytest.mark.parametrize("path", RUN)
def test_where_a_command_runs(pod: Pod, path: str) -> None:
    answer = pod("run", path, argv=["pwd"])
    assert (answer["result"]["stdout"] if answer.get("status") == "ok" else said(answer)) == RUN[path]


def test_a_program_sees_none_of_the_blocked_spellings(pod: Pod) -> None:
    """By open(2), not by the gate: what is blocked is covered in the view of the workspace."""
    code = """
import os
for name in sorted(os.listdir(".")):
    try:
        print(repr(name), open(name).read(20)) if os.path.isfile(name) else 0
    except OSError:
        pass
"""
    out = pod("run", ".", argv=["python3", "-c", code])
    assert "alpha" in out["result"]["stdout"], out
    assert "SECRET" not in out["result"]["stdout"]
    assert "NFC" not in out["result"]["stdout"]
    assert "NFD" not in out["result"]["stdout"]


def test_a_blob_of_gits_history_is_decided_by_its_name(root_site: Site) -> None:
    def git(*words: str) -> None:
        command = ["git", "-c", "user.name=n", "-c", "user.email=e", *words]
        subprocess.run(command, cwd=root_site.workspace, check=True, capture_output=True)

    git("init", "-q")
    root_site.write(".env", "SECRET=1\n")
    root_site.write("a.txt", "alpha\n")
    git("add", "-A")
    git("commit", "-qm", "one")
    assert root_site.exec("git", "show", "HEAD:a.txt").stdout == "alpha\n"
    for name in ("HEAD:.env", "HEAD:./.env", ":.env", "HEAD:.ENV"):
        done = root_site.exec("git", "show", name)
        assert done.returncode != 0, done
        assert "SECRET" not in done.stdout


def test_an_archive_leaves_nothing_outside(pod: Pod) -> None:
    import io
    import tarfile

    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name in ("../escaped", "/tmp/nucleus-escaped", "ok.txt"):
            item = tarfile.TarInfo(name)
            item.size = 1
            tar.addfile(item, io.BytesIO(b"x"))
        link = tarfile.TarInfo("away")
        link.type, link.linkname = tarfile.SYMTYPE, "/tmp"
        tar.addfile(link)
        through = tarfile.TarInfo("away/nucleus-escaped-2")
        through.size = 1
        tar.addfile(through, io.BytesIO(b"x"))
    (pod.site.workspace / "evil.tar").write_bytes(made.getvalue())
    os.chown(pod.site.workspace / "evil.tar", pod.site.uid, pod.site.uid)
    pod("run", ".", argv=["tar", "-xPf", "evil.tar"])
    assert not (pod.site.directory / "escaped").exists()
    assert not Path("/tmp/nucleus-escaped").exists()
    assert not Path("/tmp/nucleus-escaped-2").exists()


def test_a_directory_of_a_hundred_thousand(root_site: Site) -> None:
    many = root_site.workspace / "many"
    many.mkdir()
    for number in range(LARGE):
        os.close(os.open(many / f"{number:06d}", os.O_CREAT | os.O_WRONLY))
    with Held(root_site) as held:
        found = held.operate(kind="glob", pattern="*", path="many")["result"]
        assert found["truncated"]
        assert found["limits"]
        assert found["paths"][0] == "many/000000"
        assert held.operate(kind="read", path=f"many/{LARGE - 1:06d}")["result"]["size"] == 0
    for number in range(LARGE, LARGE + 20):
        os.close(os.open(many / f"{number:06d}", os.O_CREAT | os.O_WRONLY))
    refused = root_site.exec("true")
    assert refused.returncode == 6
    assert "more than 100000 names" in refused.stderr
