"""read, write, edit through the channel: names that the kernel keeps inside, writes that are whole."""

from __future__ import annotations

import os
import signal
import socket
import stat
from pathlib import Path

import pytest

from nucleus.kernel.openat2 import RENAME_EXCHANGE, renameat2
from nucleus.limits import LIMITS

from .client import Gate


def test_write_read_edit(gate: Gate, root: Path) -> None:
    assert gate.ok("write", b"one\ntwo\n", path="f")[0] == {"bytes": 8, "created": True}
    assert gate.ok("write", b"one\nTWO\n", path="f")[0] == {"bytes": 8, "created": False}
    assert gate.ok("read", path="f") == ({"size": 8, "truncated": False, "mode": 0o644}, b"one\nTWO\n")
    ok, _ = gate.ok("edit", path="f", old="TWO", new="three", count=1)
    assert (ok["replaced"], ok["bytes"]) == (1, 10)
    assert ok["diff"] == "--- a/f\n+++ b/f\n@@ -1,2 +1,2 @@\n one\n-TWO\n+three\n"
    assert (root / "f").read_bytes() == b"one\nthree\n"
    assert os.listdir(root) == ["f"], "no temporary file stays"


def test_read_in_parts(gate: Gate, root: Path) -> None:
    (root / "f").write_bytes(bytes(range(256)) * 100)
    ok, body = gate.ok("read", path="f", offset=250, limit=10)
    assert body == bytes([*range(250, 256), 0, 1, 2, 3])
    assert ok["truncated"] is True
    assert ok["size"] == 25_600
    assert gate.ok("read", path="f", offset=25_590, limit=10)[0]["truncated"] is False
    assert gate.ok("read", path="f", offset=1 << 62)[1] == b""
    (root / "empty").touch()
    assert gate.ok("read", path="empty") == ({"size": 0, "truncated": False, "mode": 0o644}, b"")


def test_largest_read_and_write(gate: Gate, root: Path) -> None:
    data = os.urandom(LIMITS.content_bytes)
    gate.ok("write", data, path="big")
    assert gate.ok("read", path="big")[1] == data
    with (root / "big").open("ab") as file:
        file.write(b"x")
    ok, body = gate.ok("read", path="big")
    assert ok["truncated"] is True
    assert body == data
    assert gate.error("write", data + b"x", path="more")["code"] == "too_large"
    assert gate.error("edit", path="big", old="x", new="y")["code"] == "too_large"


def test_a_proc_like_file_without_a_size_is_read(root: Path) -> None:
    gate = Gate("/proc/self")
    try:
        assert b"Name:" in gate.ok("read", path="status")[1]
    finally:
        gate.close()


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("../outside/secret", "escape"),
        ("dir/../../outside/secret", "escape"),
        ("/etc/passwd", "escape"),
        ("..", "escape"),
        ("f\0.txt", "protocol"),
        ("\ud800", "protocol"),
        ("", "protocol"),
        ("a//b", "protocol"),
        ("./f", "protocol"),
        ("x" * 300, "not_found"),
        ("missing", "not_found"),
        ("f/below", "not_found"),
        ("dir", "is_a_directory"),
        (".", "is_a_directory"),
        (7, "protocol"),
        (None, "protocol"),
        (["f"], "protocol"),
    ],
)
def test_names_that_do_not_work(gate: Gate, root: Path, path: object, code: str) -> None:
    (root / "f").write_text("f")
    (root / "dir").mkdir()
    if path == "\ud800":
        # JSON can spell a lone surrogate; our encoder cannot, so as raw bytes.
        raw = b'{"id":1,"op":"read","path":"\\ud800"}'
        gate.socket.sendall((4 + len(raw)).to_bytes(4, "big") + len(raw).to_bytes(4, "big") + raw)
        assert gate.receive().header["error"]["code"] == code
        return
    assert gate.error("read", path=path)["code"] == code
    if code == "protocol" or path in ("..", "/etc/passwd"):
        assert gate.error("write", b"x", path=path)["code"] == code
        assert gate.error("edit", path=path, old="a", new="b")["code"] == code


def test_a_symlink_is_answered_with_the_name_behind_it_and_has_no_effect(gate: Gate, root: Path) -> None:
    (root / "real").mkdir()
    (root / "real" / ".env").write_text("SECRET=1")
    (root / "notes.txt").symlink_to("real/.env")
    (root / "link").symlink_to("real")
    (root / "hop").symlink_to("link/../notes.txt")
    for path, resolved in [
        ("notes.txt", "real/.env"),
        ("link/.env", "real/.env"),
        ("hop", "real/.env"),
        ("link", "real"),
        ("link/new/deep", "real/new/deep"),
    ]:
        for op, extra in (("read", {}), ("write", {}), ("edit", {"old": "S", "new": "T"})):
            error = gate.error(op, **extra, path=path)
            assert (error["code"], error.get("resolved")) == ("symlink", resolved), (op, path)
    for op in ("glob", "grep"):
        assert gate.error(op, pattern="x", path="link")["resolved"] == "real"
        assert gate.error(op, pattern="x", path="notes.txt")["resolved"] == "real/.env"
    assert gate.error("run", argv=["true"], cwd="link")["resolved"] == "real"
    assert (root / "real" / ".env").read_text() == "SECRET=1"
    assert os.listdir(root / "real") == [".env"]
    assert (root / "link").is_symlink()


def test_symlinks_that_lead_out_or_nowhere(gate: Gate, root: Path) -> None:
    (root / "out").symlink_to("../outside")
    (root / "absolute").symlink_to("/etc/passwd")
    (root / "magic").symlink_to("/proc/self/root/etc/passwd")
    (root / "loop").symlink_to("loop")
    (root / "dangling").symlink_to("missing")
    for path in ("out", "out/secret", "out/new", "absolute", "magic", "loop"):
        for op in ("read", "write"):
            assert gate.error(op, path=path)["code"] == "escape", (op, path)
    for op in ("read", "write"):
        assert gate.error(op, path="dangling")["code"] == "not_found"
    assert os.listdir(root.parent / "outside") == ["secret"]
    assert not (root / "missing").exists()


def test_a_magic_link_below_the_root_is_refused() -> None:
    gate = Gate("/")
    try:
        assert gate.error("read", path="proc/self/root/etc/passwd")["code"] == "escape"
        assert gate.error("read", path=f"proc/{os.getpid()}/root/etc/passwd")["code"] == "escape"
    finally:
        gate.close()


def test_only_regular_files(gate: Gate, root: Path) -> None:
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(root)  # a socket's path is short
        server.bind("socket")
        os.chdir(here)
        names = ["fifo", "socket"]
        if os.geteuid() == 0:
            try:
                os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
                names.append("null")
            except PermissionError:
                pass
        for name in names:
            for op in ("read", "write"):
                assert gate.error(op, b"x", path=name)["code"] == "not_a_file", (op, name)
        assert gate.error("write", b"x", path=".")["code"] == "is_a_directory"
        (root / "d").mkdir()
        assert gate.error("write", b"x", path="d")["code"] == "is_a_directory"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to own a file as another user")
def test_hard_links(gate: Gate, root: Path) -> None:
    foreign = root.parent / "outside" / "foreign"
    foreign.write_text("foreign")
    os.chown(foreign, 12_345, 12_345)
    os.link(foreign, root / "theirs")
    for op, extra in (("read", {}), ("write", {}), ("edit", {"old": "f", "new": "g"})):
        assert gate.error(op, path="theirs", **extra)["code"] == "hard_link"
    assert gate.ok("grep", pattern="foreign")[0]["matches"] == []
    os.link(root.parent / "outside" / "secret", root / "ours")  # the documented rule: our own are allowed
    assert gate.ok("read", path="ours")[1] == b"secret"
    gate.ok("write", b"new", path="ours")
    assert (root.parent / "outside" / "secret").read_text() == "secret", "a write replaces the name, not the inode"


def test_modes_are_kept_and_special_bits_are_not(gate: Gate, root: Path) -> None:
    (root / "script").write_text("#!/bin/sh\n")
    (root / "script").chmod(0o4755)
    gate.ok("write", b"#!/bin/sh\necho\n", path="script")
    assert stat.S_IMODE((root / "script").stat().st_mode) == 0o755
    gate.ok("write", b"", path="plain")
    assert stat.S_IMODE((root / "plain").stat().st_mode) == 0o644


def test_parents_are_made(gate: Gate, root: Path) -> None:
    assert gate.ok("write", b"x", path="a/b/c/d")[0]["created"] is True
    assert (root / "a/b/c/d").read_bytes() == b"x"
    assert stat.S_IMODE((root / "a").stat().st_mode) == 0o755
    (root / "file").touch()
    assert gate.error("write", b"x", path="file/below")["code"] == "not_found"


def test_a_mount_point_is_not_replaced(root: Path) -> None:
    """What the pod shows read-only is a bind mount on the name itself."""
    import ctypes

    if os.geteuid() != 0:
        pytest.skip("needs root to mount")
    pid = os.fork()
    if pid == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        try:
            if libc.unshare(0x00020000) or libc.mount(None, b"/", None, 0x4000 | 0x40000, None):
                os._exit(3)
            (root / "protected").write_text("old")
            target = bytes(root / "protected")
            if libc.mount(target, target, None, 0x1000, None) or libc.mount(None, target, None, 0x1000 | 0x21, None):
                os._exit(3)
            gate = Gate(str(root))
            error = gate.error("write", b"new", path="protected")["code"]
            gate.close()
            os._exit(0 if error == "permission" else 1)
        finally:
            os._exit(2)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status == 3:
        pytest.skip("mounts are not possible here")
    assert status == 0
    assert (root / "protected").read_text() == "old"
    assert os.listdir(root) == ["protected"]


def test_edit_counts_exactly(gate: Gate, root: Path) -> None:
    (root / "f").write_text("aXbXc\n")
    assert gate.error("edit", path="f", old="Y", new="Z")["code"] == "no_match"
    error = gate.error("edit", path="f", old="X", new="Z")
    assert (error["code"], error["found"]) == ("count_mismatch", 2)
    assert "2" in error["message"]
    assert (root / "f").read_text() == "aXbXc\n"
    assert gate.ok("edit", path="f", old="X", new="", count=2)[0]["replaced"] == 2
    assert (root / "f").read_text() == "abc\n"
    for bad in ({"old": ""}, {"old": 1}, {"count": 0}, {"count": True}, {"new": None}):
        assert gate.error("edit", **{"path": "f", "old": "a", "new": "b", **bad})["code"] == "protocol"


def test_reads_never_escape_a_swapper(gate: Gate, root: Path) -> None:
    """The whole path through hands against a process that swaps a directory with a symlink to the outside."""
    (root / "dir").mkdir()
    (root / "dir" / "secret").write_text("inside")
    (root / "swap").symlink_to("../outside")
    fd = os.open(root, os.O_PATH)
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(30)
            while True:
                renameat2(fd, b"dir", fd, b"swap", RENAME_EXCHANGE)
        finally:
            os._exit(1)
    answers: dict[str, int] = {}
    try:
        for _ in range(3_000):
            frame = gate.call("read", path="dir/secret")
            if "ok" in frame.header:
                assert frame.body == b"inside"
                answers["ok"] = answers.get("ok", 0) + 1
            else:
                code = frame.header["error"]["code"]
                assert "resolved" not in frame.header["error"] or ".." not in frame.header["error"]["resolved"]
                answers[code] = answers.get(code, 0) + 1
        for index in range(200):
            gate.call("write", b"mine", path=f"dir/new{index}")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(fd)
    assert answers.get("ok", 0) > 10, answers
    assert sum(answers.values()) - answers["ok"] > 10, answers
    assert set(answers) <= {"ok", "symlink", "escape", "io", "not_found"}, answers
    assert os.listdir(root.parent / "outside") == ["secret"], "nothing was written outside"
