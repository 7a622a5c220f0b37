"""Fixtures: a CA, a Workload socket, a stand-in gate."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nucleus.sdk.client import Gate
from nucleus.sdk.identity import Source

from .stand_in import AGENT_ID, GATE_ID, Authority, Handler, StandInGate, Workload


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def svid_reply(authority: Authority) -> Callable[..., dict[str, Any]]:
    def reply(seconds: float = 600, spiffe_id: str = AGENT_ID) -> dict[str, Any]:
        cert, key = authority.issue(spiffe_id, seconds=seconds)
        expires = time.time_ns() + int(seconds * 1e9)
        return {
            "ok": {
                "spiffe_id": spiffe_id,
                "cert_pem": cert,
                "key_pem": key,
                "bundle_pem": authority.bundle,
                "expires_ns": expires,
            }
        }

    return reply


@pytest.fixture
def workload(tmp_path: pathlib.Path, svid_reply: Callable[..., dict[str, Any]]) -> Iterator[Workload]:
    listener = Workload(tmp_path / "w.sock", lambda request: svid_reply())
    yield listener
    listener.close()


@pytest.fixture
def start_gate(tmp_path: pathlib.Path, authority: Authority) -> Iterator[Callable[..., StandInGate]]:
    running: list[StandInGate] = []

    def start(handler: Handler, **more: Any) -> StandInGate:
        gate = StandInGate(more.pop("authority", authority), handler, **more).start(tmp_path)
        running.append(gate)
        return gate

    yield start
    for gate in running:
        gate.stop()


@pytest.fixture
def connect(workload: Workload) -> Iterator[Callable[[StandInGate], Gate]]:
    made: list[Gate] = []

    def connect(gate: StandInGate, gate_id: str = GATE_ID) -> Gate:
        client = Gate(gate.url, gate_id, Source(workload.endpoint))
        made.append(client)
        return client

    yield connect
    for client in made:
        client.close()
