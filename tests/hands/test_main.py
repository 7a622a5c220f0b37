"""hands itself: hostile frames, many things at once, its end."""

from __future__ import annotations

import json
import os
import random
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nucleus.hands.protocol import CODES

from .client import Gate

REPOSITORY = Path(__file__).resolve().parents[2]


def raw_frame(header: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">II", 4 + len(header) + len(body), len(header)) + header + body


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 64,
        struct.pack(">I", 0),
        struct.pack(">I", 1 << 31),
        struct.pack(">II", 8, 400) + b"{}{}",
        raw_frame(b"not json"),
        raw_frame(b"[]"),
        raw_frame(b"\xff\xfe{}"),
        raw_frame(b"[" * 100_000),
        raw_frame(b"{}"),
        raw_frame(b'{"id":"1","op":"read"}'),
        raw_frame(b'{"id":true,"op":"read"}'),
        raw_frame(b'{"id":-1,"op":"read"}'),
        raw_frame(b'{"id":1e9,"op":"read"}'),
    ],
)
def test_what_is_no_request_ends_hands(root: Path, data: bytes) -> None:
    gate = Gate(str(root))
    gate.socket.sendall(data)
    assert gate.socket.recv(100) == b"", "no answer, end of file"
    assert gate.close() == 1


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"op": None},
        {"op": "unknown"},
        {"op": "__class__"},
        {"op": "read"},
        {"op": "read", "path": {"a": 1}},
        {"op": "read", "path": "f", "offset": -1},
        {"op": "read", "path": "f", "limit": 1 << 40},
        {"op": "read", "path": "f", "limit": 1.5},
        {"op": "run", "argv": []},
        {"op": "run", "argv": "true"},
        {"op": "run", "argv": ["a\u0000b"]},
        {"op": "run", "argv": ["true"], "timeout_ms": 0},
        {"op": "run", "argv": ["true"], "output_bytes": -1},
        {"op": "run", "argv": ["x"] * 2_000},
        {"op": "run", "argv": ["x" * 16_384]},
        {"op": "run", "argv": ["true", 1]},
        {"op": "git_diff", "staged": "yes"},
        {"op": "git_commit"},
        {"op": "git_commit", "message": "m", "paths": [".."]},
        {"op": "cancel"},
        {"op": "cancel", "target": "1"},
    ],
)
def test_wrong_fields_are_an_error_and_nothing_else(gate: Gate, root: Path, fields: dict[str, object]) -> None:
    (root / "f").touch()
    gate.socket.sendall(raw_frame(json.dumps({"id": 5, **fields}).encode()))
    frame = gate.receive()
    assert frame.header["id"] == 5
    assert frame.header["error"]["code"] in {"protocol", "escape"}
    assert gate.ok("read", path="f")[0]["size"] == 0, "and it goes on"


def test_every_byte_alone(gate: Gate, root: Path) -> None:
    (root / "f").write_text("x")
    for byte in raw_frame(b'{"id":9,"op":"read","path":"f"}'):
        gate.socket.sendall(bytes([byte]))
    assert gate.receive().body == b"x"


def test_random_frames_never_crash_it(root: Path) -> None:
    chance = random.Random(3)
    words = [None, 0, -1, 1 << 70, "", "f", "../x", "a\u0000", [], ["f"], {}, True, 1.5, "x" * 5_000, "git_diff"]
    gate = Gate(str(root))
    names = ["path", "offset", "limit", "old", "new", "count", "pattern", "exclude", "argv", "cwd", "target", "staged"]
    operations = ["read", "write", "edit", "glob", "grep", "git_status", "git_diff", "cancel"]
    for number in range(400):
        header = {name: chance.choice(words) for name in chance.sample(names, 5)}
        header.update(id=number + 1, op=chance.choice(operations))
        gate.socket.sendall(raw_frame(json.dumps(header).encode(), b"body"))
    seen = set()
    for _ in range(400):
        frame = gate.receive()
        seen.add(frame.header["id"])
        assert "ok" in frame.header or frame.header["error"]["code"] in CODES
    assert seen == set(range(1, 401))
    assert gate.close() == 0


def test_an_id_in_use_is_refused(gate: Gate) -> None:
    request = raw_frame(json.dumps({"id": 7, "op": "run", "argv": ["sleep", "0.2"]}).encode())
    gate.socket.sendall(request + request)
    assert gate.receive().header["error"]["code"] == "protocol"
    assert gate.receive().header["ok"]["exit_code"] == 0


def test_many_at_once(gate: Gate, root: Path) -> None:
    (root / "f").write_text("needle")
    started = time.monotonic()
    runs = {gate.send("run", argv=["sh", "-c", f"sleep 0.4; echo {n}"]): f"{n}\n".encode() for n in range(20)}
    others = {gate.send("grep", pattern="needle") for _ in range(20)} | {gate.send("read", path="f") for _ in range(20)}
    order = []
    for _ in range(60):
        frame = gate.receive()
        assert "ok" in frame.header
        order.append(frame.header["id"])
        if frame.header["id"] in runs:
            assert frame.body == runs[frame.header["id"]]
    assert set(order[:40]) == others
    assert time.monotonic() - started < 4


def test_too_many_commands_are_refused_not_queued(gate: Gate) -> None:
    idents = [gate.send("run", argv=["sleep", "5"]) for _ in range(66)]
    for _ in range(2):
        assert gate.receive().header["error"]["code"] == "io"
    for ident in idents:
        gate.send("cancel", target=ident)


def _resident(pid: int) -> int:
    """Resident memory in KiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if "VmRSS" in line)


def test_a_gate_that_does_not_read_is_not_buffered_for_ever(gate: Gate, root: Path) -> None:
    (root / "big").write_bytes(b"x" * (8 << 20))
    idents = []
    before = _resident(gate.pid)  # hands is forked from the tests here, whatever they weigh
    gate.socket.settimeout(0.5)
    for _ in range(60):  # they all fit one read of hands
        idents.append(gate.send("read", path="big"))
    time.sleep(0.5)
    assert _resident(gate.pid) - before < 80_000, "KiB"
    gate.socket.settimeout(20)
    for ident in idents:
        frame = gate.receive()
        assert (frame.header["id"], len(frame.body)) == (ident, 8 << 20)


def test_the_end_of_the_channel_ends_everything(root: Path) -> None:
    gate = Gate(str(root))
    gate.send("run", argv=["sh", "-c", "sleep 60 & echo $$ $! > pids; wait"])
    (root / "f").write_bytes(random.Random(1).randbytes(10 << 20).translate(bytes(b"ab"[i & 1] for i in range(256))))
    gate.send("grep", pattern="[ab]*a[ab]{200}z")
    while not (root / "pids").exists() or not (root / "pids").read_text().strip():
        time.sleep(0.01)
    pids = [int(word) for word in (root / "pids").read_text().split()]
    started = time.monotonic()
    assert gate.close() == 0
    assert time.monotonic() - started < 2
    for pid in pids:
        end = time.monotonic() + 2
        while alive(pid) and time.monotonic() < end:
            time.sleep(0.01)
        assert not alive(pid)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_hands_imports_nothing_late_and_little(tmp_path: Path) -> None:
    """It is forked from a process that has imported it: nothing may be imported afterwards."""
    code = f"""
import sys, socket, os, builtins
from nucleus.hands import main
heavy = {{"asyncio", "ssl", "pydantic", "cryptography", "yaml", "aiohttp", "subprocess"}} & set(sys.modules)
assert not heavy, heavy
before = set(sys.modules)
ours, theirs = socket.socketpair()
if os.fork() == 0:
    from nucleus.frames import Decoder, encode
    theirs.close()
    requests = [
        ({{"op": "write", "path": "a/f"}}, b"needle"), ({{"op": "read", "path": "a/f"}}, b""),
        ({{"op": "edit", "path": "a/f", "old": "n", "new": "m"}}, b""), ({{"op": "read", "path": "x"}}, b""),
        ({{"op": "glob", "pattern": "**"}}, b""), ({{"op": "grep", "pattern": "x"}}, b""),
        ({{"op": "run", "argv": ["true"]}}, b""), ({{"op": "git_status"}}, b""),
        ({{"op": "run", "argv": ["nope"]}}, b""),
    ]
    for number, (header, body) in enumerate(requests):
        ours.sendall(encode({{"id": number, **header}}, body))
    decoder, count = Decoder(), 0
    while count < len(requests):
        count += len(list(decoder.feed(ours.recv(65536))))
    os._exit(0)
ours.close()
assert main.serve(theirs, {str(tmp_path)!r}, {{"PATH": "/usr/bin:/bin"}}, None, False) == 0
late = set(sys.modules) - before
assert not late, late
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=30)
    assert done.returncode == 0, done.stderr.decode()


def test_our_own_descriptors_are_given_back(root: Path) -> None:
    """serve leaves nothing open in its process."""
    from nucleus.hands import main

    before = set(os.listdir("/proc/self/fd"))
    ours, theirs = socket.socketpair()
    ours.shutdown(socket.SHUT_WR)
    assert main.serve(theirs, str(root), {}, None, False) == 0
    ours.close()
    assert set(os.listdir("/proc/self/fd")) == before
