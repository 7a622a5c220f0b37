"""SVIDs: the gate's own, and the Workload socket of a pod's agent, against the real process."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from nucleus.authority.peers import WORKLOAD_BURST, WORKLOAD_CONNECTIONS, WORKLOAD_EVERY_NS, WorkloadDoor
from nucleus.errors import NucleusError

from .harness import Authority, Client


def listen(authority: Authority, path: Path, uid: int, pod: str = "p1") -> str:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(16)
    try:
        return str(authority.order("attach", (listener.fileno(),), role="workload", pod=pod, uid=uid)["spiffe_id"])
    finally:
        listener.close()


def dial(path: Path) -> Client:
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.connect(str(path))
    except OSError:
        sock.close()
        raise
    return Client(sock)


def events(authority: Authority) -> list[str]:
    return [json.loads(line)["event"] for line in authority.log.read_bytes().splitlines()]


def test_a_gate_gets_its_own_svid_and_it_is_recorded(authority: Authority) -> None:
    names = authority.register("p1", namespace="team-a")
    assert names == {
        "gate_id": "spiffe://nucleus.local/ns/team-a/sa/gate-p1",
        "agent_id": "spiffe://nucleus.local/ns/team-a/sa/agent-p1",
        "orchestrator_id": "spiffe://nucleus.local/ns/team-a/sa/orchestrator-p1",
    }
    svid = authority.gate(register=False).call("svid")
    assert svid["spiffe_id"] == names["gate_id"]
    assert "PRIVATE KEY" in svid["key_pem"]
    assert events(authority)[-1] == "identity.issued"
    assert "PRIVATE" not in authority.log.read_text()
    assert (authority.state / "ca").stat().st_mode & 0o777 == 0o700


def test_the_agents_socket_gives_the_agents_svid_to_the_agents_uid(authority: Authority, tmp_path: Path) -> None:
    authority.register()
    name = listen(authority, tmp_path / "w", os.geteuid())
    client = dial(tmp_path / "w")
    assert client.call("fetch_x509_svid")["spiffe_id"] == name == "spiffe://nucleus.local/ns/default/sa/agent-p1"
    with pytest.raises(NucleusError):
        client.call("fetch_x509_svid", spiffe_id="spiffe://nucleus.local/ns/default/sa/gate-p1")
    assert events(authority)[-2:] == ["identity.issued", "identity.refused"]
    client.close()


def test_another_uid_gets_nothing(authority: Authority, tmp_path: Path) -> None:
    authority.register()
    listen(authority, tmp_path / "w", os.geteuid() + 1)
    client = dial(tmp_path / "w")
    with pytest.raises(NucleusError):
        client.call("fetch_x509_svid")
    assert events(authority)[-1] == "identity.refused"
    with pytest.raises(NucleusError):
        client.call("append", record={})
    client.close()


def test_a_flood_is_cut_counted_and_said(authority: Authority, tmp_path: Path) -> None:
    authority.register()
    listen(authority, tmp_path / "w", os.geteuid())
    client = dial(tmp_path / "w")
    answered = 0
    with contextlib.suppress(EOFError, OSError):
        while answered < 1_000:
            try:
                client.call("nonsense")
            except NucleusError:
                answered += 1
    assert WORKLOAD_BURST <= answered < WORKLOAD_BURST + 5
    client.close()
    many = [dial(tmp_path / "w") for _ in range(WORKLOAD_CONNECTIONS + 4)]
    over = 0
    for one in many:
        one.sock.settimeout(0.05)
        try:
            over += one.sock.recv(1) == b""
        except TimeoutError:
            pass
        one.close()
    assert over >= 3  # the flooder's own connection may still have counted
    authority.order("close_pod", pod="p1", reason="test")
    last = json.loads(authority.log.read_bytes().splitlines()[-1])
    assert last["context"]["workload_requests_refused"] >= 1 + over


def test_the_rate(in_process: object) -> None:
    door = WorkloadDoor(None, None)  # type: ignore[arg-type]
    now = 10**12
    assert [door.take(now) for _ in range(WORKLOAD_BURST + 2)] == [True] * WORKLOAD_BURST + [False] * 2
    assert door.take(now + WORKLOAD_EVERY_NS)
    assert not door.take(now + WORKLOAD_EVERY_NS)
    assert door.refused == 3


def test_a_closed_pods_socket_answers_nobody(authority: Authority, tmp_path: Path) -> None:
    authority.register()
    listen(authority, tmp_path / "w", os.geteuid())
    client = dial(tmp_path / "w")
    authority.order("close_pod", pod="p1", reason="test")
    with pytest.raises((EOFError, OSError)):
        client.call("fetch_x509_svid")
    with pytest.raises(OSError):
        dial(tmp_path / "w")
    client.close()


def test_what_does_not_listen_is_not_attached(start: Callable[..., Authority]) -> None:
    authority = start()
    authority.register()
    with pytest.raises(NucleusError):
        authority.attach("workload", pod="p1", uid=1)
