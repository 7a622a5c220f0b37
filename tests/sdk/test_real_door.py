"""The SDK and the gate's real door, CA and Workload rules: what one side says, the other understands."""

from __future__ import annotations

import asyncio
import pathlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nucleus.errors import NucleusError
from nucleus.identity import tls
from nucleus.identity.ca import CertificateAuthority
from nucleus.identity.revocation import DenyList
from nucleus.identity.spiffe_id import SpiffeId
from nucleus.identity.workload import Peer, WorkloadListener, handle_workload_request
from nucleus.model.principal import Principal
from nucleus.model.receipt import Reply
from nucleus.sdk.client import Cancellation, Gate, GateError
from nucleus.sdk.identity import IdentityError, Source, fetch
from nucleus.server.app import Door
from nucleus.server.peers import Peer as Proven
from nucleus.server.peers import Peers

from .stand_in import Workload

GATE = SpiffeId.parse("spiffe://nucleus.local/ns/default/sa/gate-pod-1")
AGENT = SpiffeId.parse("spiffe://nucleus.local/ns/default/sa/agent-pod-1")


class Driver:
    """Stands in for the pipeline behind the door."""

    def __init__(self) -> None:
        self.seen: list[tuple[dict[str, Any], str]] = []
        self.cancelled = threading.Event()
        self.entered = threading.Event()

    async def run(self, raw: dict[str, Any] | NucleusError, authenticate: Callable[[], Principal]) -> Reply:
        if isinstance(raw, NucleusError):
            return Reply("r", raw.code, reason=raw.message)
        self.seen.append((raw, authenticate().spiffe_id))
        if raw["kind"] == "git_push":
            return Reply("r", "approval_required", reason="nobody is there", operation="git_push", audit=5)
        if raw["kind"] == "run":
            self.entered.set()
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        content = "\ud800 käse" if raw["path"] == "odd" else "x"
        return Reply("r", "ok", result={"content": content, "encoding": "utf-8"}, audit=9, cost=2)


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority.load_or_create(tmp_path_factory.mktemp("ca"), "nucleus.local", now=time.time_ns())


@pytest.fixture
def driver() -> Driver:
    return Driver()


@pytest.fixture
def endpoint(ca: CertificateAuthority, tmp_path: pathlib.Path) -> Iterator[str]:
    listener = WorkloadListener("pod-1", 1000, AGENT)

    def workload(header: dict[str, Any]) -> dict[str, Any]:
        issue = lambda spiffe_id: ca.issue(spiffe_id, now=time.time_ns())  # noqa: E731
        return handle_workload_request(header, Peer(1000, 1), listener, issue)[0]

    listening = Workload(tmp_path / "w.sock", workload)
    yield listening.endpoint
    listening.close()


@pytest.fixture
def agent(ca: CertificateAuthority, driver: Driver, endpoint: str) -> Iterator[Gate]:
    svid = ca.issue(GATE, now=time.time_ns())
    door_socket = socket.create_server(("127.0.0.1", 0))
    ready, stop, loop = threading.Event(), asyncio.Event(), asyncio.new_event_loop()

    def authenticate(peer: ssl.SSLObject) -> Proven:
        found = tls.proven(peer, svid.roots(), time.time_ns(), "client")
        return Proven(Principal(str(found.spiffe_id), "x509-svid", "agent"), found.serial, found.expires_ns)

    async def serve() -> None:
        runner = await Door(driver, Peers(authenticate, DenyList())).serve(door_socket, tls.server_context(svid))  # type: ignore[arg-type]
        ready.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(10)
    url = f"https://127.0.0.1:{door_socket.getsockname()[1]}"
    with Gate(url, str(GATE), Source(endpoint)) as client:
        yield client
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)
    loop.close()
    door_socket.close()


def test_an_operation(agent: Gate, driver: Driver) -> None:
    assert agent.read("a") == "x"
    assert agent.read("b") == "x"
    assert driver.seen[0] == ({"kind": "read", "path": "a", "offset": 0}, str(AGENT))
    assert agent.health()["status"] == "ok"


def test_a_refusal(agent: Gate) -> None:
    with pytest.raises(GateError) as caught:
        agent.git_push()
    assert (caught.value.status, caught.value.code, caught.value.audit) == (403, "approval_required", 5)


@pytest.mark.parametrize(
    ("kind", "fields", "status", "code"),
    [("frobnicate", {}, 404, "not_found"), ("read", {"kind": "write"}, 400, "invalid_request")],
)
def test_faults(agent: Gate, kind: str, fields: dict[str, Any], status: int, code: str) -> None:
    with pytest.raises(GateError) as caught:
        agent.call(kind, fields)
    assert (caught.value.status, caught.value.code) == (status, code)


def test_odd_text_survives(agent: Gate) -> None:
    assert "käse" in str(agent.read("odd"))


def test_hanging_up_cancels_the_operation(agent: Gate, driver: Driver) -> None:
    cancellation = Cancellation()

    def call() -> None:
        with pytest.raises(GateError, match="cancelled"):
            agent.call("run", {"argv": ["sleep"]}, cancellation)

    thread = threading.Thread(target=call)
    thread.start()
    assert driver.entered.wait(5)
    cancellation.cancel()
    thread.join(5)
    assert driver.cancelled.wait(5)


def test_asking_for_the_gates_identity_is_refused(endpoint: str) -> None:
    with pytest.raises(IdentityError) as caught:
        fetch(endpoint, spiffe_id=str(GATE))
    assert caught.value.code == "denied"
