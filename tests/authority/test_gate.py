"""A gate's channel, against the real process: what it may ask, and whatever else it may send."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from nucleus.audit.verify import Verifier
from nucleus.errors import AuditError, BudgetError, InvalidError, NucleusError
from nucleus.frames import encode

from .harness import HASH, WHO, Authority, Client, ids, record, state_directory

NAMES = ids()


def lines(authority: Authority) -> list[dict[str, Any]]:
    return [json.loads(line) for line in authority.log.read_bytes().splitlines()]


def hold(gate: Client, amount: int = 600) -> str:
    name = next(NAMES)
    gate.reserve(name, amount)
    gate.append("intent", reservation=name, reserved=amount)
    return name


def test_one_operation(authority: Authority) -> None:
    gate = authority.gate(limit=1000)
    name = next(NAMES)
    assert gate.reserve(name, 600) == {}
    assert gate.call("budget") == {"limit": 1000, "spent": 0, "reserved": 600}
    intent = gate.append("intent", reservation=name, reserved=600)
    assert gate.call("settle", reservation=name, actual=100) == {"spent": 100}
    outcome = gate.append("outcome", reservation=name, reserved=600, charged=100)
    assert outcome["seq"] == intent["seq"] + 1
    assert gate.call("budget") == {"limit": 1000, "spent": 100, "reserved": 0}
    found = lines(authority)
    assert [line["event"] for line in found] == ["pod.start", "intent", "outcome"]
    assert {line["pod"] for line in found} == {"p1"}
    assert found[-1]["hash"] == outcome["hash"]
    assert all(line["time_ns"] > 10**18 and line["mono_ns"] > 0 for line in found)


def test_a_reservation_resolves_once_and_for_no_more_than_was_reserved(authority: Authority) -> None:
    gate = authority.gate()
    name = hold(gate)
    for refused in (
        lambda: gate.call("release", reservation=name),
        lambda: gate.call("settle", reservation=name, actual=601),
        lambda: gate.append("intent", reservation=name, reserved=600),
        lambda: gate.append("outcome", reservation=name, reserved=600, charged=600),
        lambda: gate.reserve(name, 1),
    ):
        with pytest.raises(InvalidError):
            refused()
    gate.call("settle", reservation=name, actual=600)
    for refused in (
        lambda: gate.call("settle", reservation=name, actual=1),
        lambda: gate.append("outcome", reservation=name, reserved=600, charged=1),
    ):
        with pytest.raises(InvalidError):
            refused()
    gate.append("outcome", reservation=name, reserved=600, charged=600)
    with pytest.raises(InvalidError):
        gate.append("outcome", reservation=name, reserved=600, charged=600)
    assert gate.call("budget")["spent"] == 600


def test_an_intent_must_fit_its_reservation(authority: Authority) -> None:
    gate = authority.gate()
    name = next(NAMES)
    with pytest.raises(InvalidError):
        gate.append("intent", reservation=name, reserved=600)
    gate.reserve(name, 600)
    for context in ({"reservation": name, "reserved": 599}, {"reservation": name}, {}, {"reservation": "x"}):
        with pytest.raises(InvalidError):
            gate.append("intent", **context)
    with pytest.raises(InvalidError):
        gate.call("settle", reservation=name, actual=1)  # no intent, no charge
    gate.call("release", reservation=name)
    assert gate.call("budget") == {"limit": 1_000_000, "spent": 0, "reserved": 0}


def test_a_gate_speaks_for_its_own_pod_only(authority: Authority) -> None:
    one, other = authority.gate("p1"), authority.gate("p2")
    name = hold(one)
    for refused in (
        lambda: other.call("settle", reservation=name, actual=1),
        lambda: other.call("release", reservation=name),
        lambda: other.append("outcome", reservation=name, reserved=600, charged=1),
        lambda: other.call("settle", reservation=name, actual=1, pod="p1"),
        lambda: other.call("append", record={**record("denied"), "pod": "p1"}),
        lambda: other.reserve(name, 1),
    ):
        with pytest.raises(InvalidError):
            refused()
    other.append("denied", pod="p1")
    assert lines(authority)[-1]["pod"] == "p2"
    assert one.call("budget")["reserved"] == 600


@pytest.mark.parametrize(
    "event", ["pod.start", "pod.stop", "recovery", "approval", "identity.issued", "identity.refused", "x", 7, None]
)
def test_a_gate_cannot_append_what_is_the_authoritys(authority: Authority, event: Any) -> None:
    gate = authority.gate()
    with pytest.raises(InvalidError):
        gate.call("append", record={**record("denied"), "event": event})
    assert len(lines(authority)) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"seq": 1},
        {"time_ns": 1},
        {"hash": "x"},
        {"operation": [1]},
        {"operation": None},
        {"operation_hash": "zz"},
        {"context": "x"},
        {"principal": 1},
        {"context": {"x": "x" * 40_000}},
    ],
)
def test_a_record_that_is_none_is_refused_and_the_channel_lives(authority: Authority, changes: dict[str, Any]) -> None:
    gate = authority.gate()
    with pytest.raises(InvalidError):
        gate.call("append", record={**record("denied"), **changes})
    gate.append("denied")
    assert len(lines(authority)) == 2


def test_text_that_no_log_should_hold_raw_is_escaped_and_verifies(authority: Authority) -> None:
    gate = authority.gate()
    body = record("denied")
    body["operation"] = {"path": "a\n\x00\u202e\u2028\x1b[2J", "x": 1e308, "y": 10**40}
    gate.call("append", record=body)
    raw = authority.log.read_bytes()
    assert raw.isascii()
    assert raw.count(b"\n") == 2
    assert lines(authority)[-1]["operation"] == body["operation"]


@pytest.mark.parametrize(
    ("op", "fields"),
    [
        ("reserve", {"reservation": "A" * 32}),
        ("reserve", {"reservation": "a" * 31}),
        ("reserve", {"reservation": 1}),
        ("reserve", {"amount": -1}),
        ("reserve", {"amount": 1.0}),
        ("reserve", {"amount": True}),
        ("reserve", {"amount": 1 << 63}),
        ("reserve", {"operation_hash": "x"}),
        ("reserve", {"principal": "x" * 3_000}),
        ("reserve", {"principal": None}),
        ("reserve", {"token": 7}),
        ("settle", {"reservation": "a" * 32, "actual": "1"}),
        ("open_budget", {"limit": -1, "window_ns": 0}),
        ("open_budget", {"limit": 2_000_000, "window_ns": 0}),
        ("open_budget", {"limit": 1_000_000, "window_ns": 5}),
        ("open_budget", {}),
        ("append", {"record": []}),
        ("append", {"record": {"event": "denied"}}),
        ("ask", {}),
        ("register_pod", {"pod": "p2"}),
        ("approve", {"request": "x"}),
        ("nonsense", {}),
    ],
)
def test_malformed_requests_are_refused_and_change_nothing(
    authority: Authority, op: str, fields: dict[str, Any]
) -> None:
    gate = authority.gate()
    base: dict[str, Any] = {}
    if op == "reserve":
        base = {"reservation": "a" * 32, "amount": 1, "operation_hash": HASH, "principal": WHO}
    if op == "ask":
        authority.approver()
    with pytest.raises(NucleusError):
        gate.call(op, **{**base, **fields})
    assert gate.call("budget") == {"limit": 1_000_000, "spent": 0, "reserved": 0}


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 64,
        struct.pack(">II", 8, 4) + b"null",
        struct.pack(">II", 6, 2) + b"{}",
        encode({"id": "x", "op": "budget"}),
        encode({"id": -1, "op": "budget"}),
        encode({"id": True, "op": "budget"}),
        encode({"id": 1 << 60, "op": "budget"}),
        struct.pack(">II", 100, 4_000_000_000) + b"x" * 96,
        struct.pack(">II", 200_004, 200_000) + b"[" * 200_000,
    ],
)
def test_a_broken_frame_closes_that_channel_and_no_other(authority: Authority, data: bytes) -> None:
    bad, good = authority.gate("p1"), authority.gate("p2")
    bad.sock.sendall(data)
    with pytest.raises(EOFError):
        bad.receive()
    assert good.call("budget")["spent"] == 0


def test_a_gate_that_does_not_read_is_dropped_and_holds_nobody_up(authority: Authority) -> None:
    slow, good = authority.gate("p1"), authority.gate("p2")
    slow.sock.settimeout(0.2)
    frame = encode({"id": 1, "op": "x" * 3_000}) * 100

    def flood() -> None:
        for _ in range(2_000):
            slow.sock.sendall(frame)
            good.call("budget")

    with pytest.raises((TimeoutError, ConnectionError)):
        flood()
    assert good.call("budget")["spent"] == 0


def test_room_for_100_is_given_to_exactly_100_of_400(authority: Authority) -> None:
    gates = [authority.gate("p1", limit=100_000)]
    idents = [
        gates[0].send("reserve", reservation=next(NAMES), amount=1_000, operation_hash=HASH, principal=WHO)
        for _ in range(400)
    ]
    granted = 0
    for ident in idents:
        try:
            gates[0].wait(ident)
            granted += 1
        except BudgetError:
            pass
    assert granted == 100
    assert gates[0].call("budget") == {"limit": 100_000, "spent": 0, "reserved": 100_000}


def test_without_a_budget_or_after_its_window_nothing_is_reserved(authority: Authority) -> None:
    gate = authority.gate(limit=None)
    with pytest.raises(BudgetError):
        gate.reserve(next(NAMES), 0)
    gate.call("open_budget", limit=100, window_ns=1)
    with pytest.raises(BudgetError) as caught:
        gate.reserve(next(NAMES), 0)
    assert caught.value.rule == "budget.window"


def test_a_pod_has_one_gate_and_after_its_close_none(authority: Authority) -> None:
    gate = authority.gate()
    with pytest.raises(InvalidError):
        authority.attach("gate", pod="p1")
    authority.order("close_pod", pod="p1", reason="test")
    with pytest.raises((EOFError, ConnectionError)):
        gate.call("budget")
    for refused in (
        lambda: authority.attach("gate", pod="p1"),
        lambda: authority.register("p1"),
        lambda: authority.order("close_pod", pod="p1", reason="test"),
        lambda: authority.attach("gate", pod="p9"),
        lambda: authority.register("../x"),
        lambda: authority.register("UP"),
        lambda: authority.register("p3", namespace="a/b"),
        lambda: authority.attach("root"),
        lambda: authority.order("configure"),
    ):
        with pytest.raises(InvalidError):
            refused()


def test_closing_a_pod_resolves_what_is_open(authority: Authority) -> None:
    gate = authority.gate()
    tried, settled, untried, done = hold(gate), hold(gate), next(NAMES), hold(gate)
    gate.call("settle", reservation=settled, actual=5)
    gate.reserve(untried, 50)
    gate.call("settle", reservation=done, actual=7)
    gate.append("outcome", reservation=done, reserved=600, charged=7)
    authority.order("close_pod", pod="p1", reason="test")
    *_, last = found = lines(authority)
    recovered = {
        line["context"]["reservation"]: line["context"]["charged"] for line in found if line["event"] == "recovery"
    }
    assert recovered == {tried: 600, settled: 5}
    assert last["event"] == "pod.stop"
    assert last["context"] == {"reason": "test", "spent": 612}


def test_a_lost_gate_leaves_nothing_open_for_the_next(authority: Authority) -> None:
    gate = authority.gate()
    hold(gate)
    gate.close()
    for _ in range(100):
        try:
            gate = authority.gate(register=False)
            break
        except InvalidError:
            continue
    assert gate.call("budget") == {"limit": 1_000_000, "spent": 600, "reserved": 0}


def test_what_is_not_a_stream_socket_is_not_attached(authority: Authority) -> None:
    authority.register()
    reader, writer = os.pipe()
    with pytest.raises(InvalidError):
        authority.order("attach", (reader,), role="gate", pod="p1")
    os.close(reader)
    os.close(writer)
    packets = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with pytest.raises(InvalidError):
        authority.order("attach", (packets[0].fileno(),), role="gate", pod="p1")
    with pytest.raises(InvalidError):
        authority.order("attach", role="gate", pod="p1")
    for end in packets:
        end.close()
    authority.gate(register=False)


def test_on_a_full_disk_nothing_runs_and_the_log_still_verifies(tmp_path: Path) -> None:
    top = tmp_path / "disk"
    top.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m,mode=755", "none", str(top)], check=False).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        for directory in (tmp_path, *tmp_path.parents[:2]):
            directory.chmod(directory.stat().st_mode | 0o011)
        authority = Authority(state_directory(top / "state"))
        try:
            full_disk(authority, top / "filler")
        finally:
            authority.stop()
        verifier = Verifier()
        verifier.feed(authority.log.read_bytes())
        assert verifier.finish().ok
        assert verifier.finish().head.seq == len(lines(authority))
    finally:
        subprocess.run(["umount", str(top)], check=True)


def full_disk(authority: Authority, filler: Path) -> None:
    gate = authority.gate(limit=10**9)
    name, other = hold(gate), next(NAMES)
    gate.reserve(other, 5)
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 4096) == 4096:
            pass

    def fill() -> int:
        for number in range(100):  # what is left of the last block is filled up first
            try:
                gate.append("denied")
            except AuditError:
                return number
        raise AssertionError

    appended = fill()
    with pytest.raises(AuditError):
        gate.append("intent", reservation=other, reserved=5)
    assert len(lines(authority)) == 2 + appended
    filler.unlink()
    gate.call("release", reservation=other)  # its intent is not on record
    gate.call("settle", reservation=name, actual=1)
    gate.append("outcome", reservation=name, reserved=600, charged=1)
    assert gate.call("budget") == {"limit": 10**9, "spent": 1, "reserved": 0}
