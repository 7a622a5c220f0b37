"""Packets are whole, bounded JSON objects; a descriptor that nobody expects is closed."""

from __future__ import annotations

import array
import os
import socket

import pytest

from nucleus.errors import BudgetError, InvalidError, NucleusError, SandboxError
from nucleus.pod import packets


@pytest.fixture
def ends():
    ours, theirs = packets.pair()
    with ours, theirs:
        yield ours, theirs


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_round_trip_with_descriptors(ends) -> None:
    ours, theirs = ends
    read, write = os.pipe()
    packets.send_packet(ours, {"id": 1, "text": "ü"}, [read])
    packet = packets.recv_packet(theirs)
    assert packet is not None
    assert packet.body == {"id": 1, "text": "ü"}
    assert not os.get_inheritable(packet.fds[0])
    os.write(write, b"x")
    assert os.read(packet.fds[0], 1) == b"x"
    packets.close_all([read, write, *packet.fds])


def test_end_is_none(ends) -> None:
    ours, theirs = ends
    ours.close()
    assert packets.recv_packet(theirs) is None


@pytest.mark.parametrize("data", [b"[]", b"1", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_object_is_refused_and_its_descriptors_closed(ends, data: bytes) -> None:
    ours, theirs = ends
    read, write = os.pipe()
    before = open_fds()
    ours.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [read]))])
    with pytest.raises(InvalidError):
        packets.recv_packet(theirs)
    assert open_fds() == before
    packets.close_all([read, write])


def test_unexpected_descriptors_are_closed(ends) -> None:
    ours, theirs = ends
    before = open_fds()
    packets.send_packet(ours, {}, [0, 0])
    with pytest.raises(InvalidError, match="at most 1"):
        packets.recv_packet(theirs, max_fds=1)
    assert open_fds() == before


def test_more_descriptors_than_the_bound_are_cut_and_refused(ends) -> None:
    ours, theirs = ends
    before = open_fds()
    with pytest.raises(InvalidError):
        packets.send_packet(ours, {}, [0] * (packets.MAX_FDS + 1))
    ours.sendmsg([b"{}"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * (packets.MAX_FDS + 8)))])
    with pytest.raises(InvalidError, match="cut"):
        packets.recv_packet(theirs)
    assert open_fds() == before


def test_an_oversize_packet_is_refused_on_both_sides(ends) -> None:
    ours, theirs = ends
    with pytest.raises(InvalidError):
        packets.send_packet(ours, {"x": "y" * packets.PACKET_BYTES})
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * packets.PACKET_BYTES)
    ours.send(b'{"x": "' + b"y" * packets.PACKET_BYTES + b'"}')
    with pytest.raises(InvalidError, match="cut"):
        packets.recv_packet(theirs)


def test_answers_carry_errors_by_family() -> None:
    body = packets.error_body(BudgetError("empty", rule="budget", next_step="Wait."))
    with pytest.raises(BudgetError) as caught:
        packets.checked({"error": body})
    assert (caught.value.message, caught.value.rule, caught.value.next_step) == ("empty", "budget", "Wait.")
    assert packets.error_body(ValueError("x"))["code"] == "internal_error"
    with pytest.raises(NucleusError):
        packets.checked({"error": {"code": 7, "message": []}})
    with pytest.raises(SandboxError):
        packets.checked({"neither": 1})
