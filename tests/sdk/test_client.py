"""Gate: one POST per operation over mutual TLS 1.3; refusals, broken connections, rotation."""

from __future__ import annotations

import base64
import pathlib
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from nucleus.limits import LIMITS
from nucleus.sdk import client
from nucleus.sdk.client import Cancellation, Gate, GateError, GateLost
from nucleus.sdk.identity import IdentityError, Source, Svid

from .stand_in import AGENT_ID, GATE_ID, Authority, StandInGate, Workload, no, ok

Start = Callable[..., StandInGate]
Connect = Callable[..., Gate]

CALLS: list[tuple[str, Callable[[Gate], Any], dict[str, Any]]] = [
    ("read", lambda g: g.read("a", 1, 2), {"path": "a", "offset": 1, "limit": 2}),
    ("read", lambda g: g.read("a"), {"path": "a", "offset": 0}),
    ("write", lambda g: g.write("a", "x"), {"path": "a", "content": "x"}),
    ("write", lambda g: g.write("a", b"\xff"), {"path": "a", "content": "/w==", "encoding": "base64"}),
    ("edit", lambda g: g.edit("a", "o", "n"), {"path": "a", "old": "o", "new": "n", "count": 1}),
    ("glob", lambda g: g.glob("**/*.py"), {"pattern": "**/*.py", "path": "."}),
    ("grep", lambda g: g.grep("x", limit=3),
     {"pattern": "x", "path": ".", "include": "**", "ignore_case": False, "limit": 3}),
    ("run", lambda g: g.run(("ls", "-l")), {"argv": ["ls", "-l"], "cwd": ".", "stdin": "", "timeout_ms": 120_000}),
    ("git_status", lambda g: g.git_status(), {}),
    ("git_diff", lambda g: g.git_diff(True), {"staged": True}),
    ("git_commit", lambda g: g.git_commit("m", ["a"]), {"message": "m", "paths": ["a"]}),
    ("web_fetch", lambda g: g.web_fetch("https://x/"), {"url": "https://x/", "method": "GET", "body": ""}),
    ("web_search", lambda g: g.web_search("q"), {"query": "q"}),
    ("git_push", lambda g: g.git_push(), {"remote": "origin", "ref": "HEAD", "force": False, "delete": False}),
    (
        "create_pr",
        lambda g: g.create_pr("t"),
        {"title": "t", "body": "", "base": "main", "head": "HEAD", "draft": False, "remote": "origin"},
    ),
    ("manage_pods", lambda g: g.manage_pods("list"), {"action": "list", "name": ""}),
    ("tool", lambda g: g.call_tool("s", "t", {"a": 1}), {"server": "s", "tool": "t", "arguments": {"a": 1}}),
]  # fmt: skip


def test_every_operation_is_one_post_on_one_connection(start_gate: Start, connect: Connect) -> None:
    from nucleus.model.operation import ADAPTER, OPERATIONS

    gate = start_gate(lambda kind, body: ok({"content": ""}))
    agent = connect(gate)
    for kind, call, body in CALLS:
        call(agent)
        assert (gate.seen[-1].path, gate.seen[-1].body) == (f"/v1/{kind}", body)
        ADAPTER.validate_python({"kind": kind, **body})  # the models take it
    assert {kind for kind, _, _ in CALLS} == {cls.model_fields["kind"].default for cls in OPERATIONS}
    assert {seen.port for seen in gate.seen} == {gate.seen[0].port}  # keep-alive
    assert {seen.peer for seen in gate.seen} == {AGENT_ID}
    assert {seen.tls for seen in gate.seen} == {"TLSv1.3"}


def test_defaults_are_the_models(start_gate: Start) -> None:
    assert LIMITS.run_timeout_ms == client.RUN_TIMEOUT_MS
    assert LIMITS.approval_ttl_ns < client.APPROVAL_WAIT_S * 1e9


def test_health(start_gate: Start, connect: Connect) -> None:
    gate = start_gate(lambda kind, body: (200, {"status": "ok"}))
    assert connect(gate).health() == {"status": "ok"}
    assert gate.seen[0].path == "/v1/health"


def test_binary_read(start_gate: Start, connect: Connect) -> None:
    raw = base64.b64encode(b"\xff\0").decode()
    gate = start_gate(lambda kind, body: ok({"content": raw, "encoding": "base64"}))
    assert connect(gate).read("x") == b"\xff\0"


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "invalid_request"),
        (401, "unauthenticated"),
        (402, "budget_exhausted"),
        (403, "denied"),
        (403, "approval_required"),
        (422, "operation_failed"),
        (503, "no_egress"),
    ],
)
def test_refusals(start_gate: Start, connect: Connect, status: int, code: str) -> None:
    gate = start_gate(lambda kind, body: no(status, code, "because"))
    with pytest.raises(GateError) as caught:
        connect(gate).run(["x"])
    error = caught.value
    assert (error.status, error.code, error.reason, error.request_id, error.audit) == (
        status,
        code,
        "because",
        "r-2",
        8,
    )
    assert str(error) == f"{code}: because"
    assert not isinstance(error, GateLost)


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_nonsense_is_an_error(start_gate: Start, connect: Connect, raw: bytes) -> None:
    gate = start_gate(lambda kind, body: (200, raw))
    with pytest.raises(GateError, match="bad_reply"):
        connect(gate).git_status()


def test_an_oversize_reply_is_not_buffered(
    start_gate: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "MAX_REPLY", 1000)
    gate = start_gate(lambda kind, body: ok({"text": "x" * 2000}))
    with pytest.raises(GateError, match="bad_reply"):
        connect(gate).git_status()


def test_a_broken_connection_is_never_retried(start_gate: Start, connect: Connect) -> None:
    gate = start_gate(lambda kind, body: ok({}))
    agent = connect(gate)
    agent.git_status()
    gate.drop = True
    with pytest.raises(GateLost, match="unknown"):
        agent.run(["pay"])
    assert [seen.path for seen in gate.seen] == ["/v1/git_status", "/v1/run"]
    gate.drop = False
    assert agent.git_status() == {}  # and the next call has a new connection


def test_an_idle_connection_that_the_gate_closed_is_replaced(start_gate: Start, connect: Connect) -> None:
    gate = start_gate(lambda kind, body: ok({}))
    agent = connect(gate)
    agent.git_status()
    agent._idle[0].sock.settimeout(None)
    gate_side = [thread for thread in threading.enumerate() if "process_request_thread" in thread.name]
    import socket as plain

    plain.socket.shutdown(agent._idle[0].sock, plain.SHUT_RDWR)
    for thread in gate_side:
        thread.join(2)
    agent.git_status()
    assert gate.seen[0].port != gate.seen[1].port


@pytest.mark.parametrize("more", [{"names": ("spiffe://test.example/ns/default/sa/agent",)},
                                  {"names": (GATE_ID, "spiffe://test.example/ns/default/sa/b")},
                                  {"dns": "localhost"}])  # fmt: skip
def test_a_peer_that_is_not_the_gate_gets_no_request(start_gate: Start, connect: Connect, more: Any) -> None:
    gate = start_gate(lambda kind, body: ok({}), **more)
    with pytest.raises(IdentityError, match="wrong_peer"):
        connect(gate).run(["secret"])
    assert gate.seen == []


def test_another_ca_is_refused(start_gate: Start, connect: Connect) -> None:
    gate = start_gate(lambda kind, body: ok({}), authority=Authority())
    with pytest.raises(GateError, match="unreachable"):
        connect(gate).git_status()
    assert gate.seen == []


def test_tls_12_is_refused(start_gate: Start, connect: Connect) -> None:
    gate = start_gate(lambda kind, body: ok({}), tls12=True)
    with pytest.raises(GateError, match="unreachable"):
        connect(gate).git_status()


def test_rotation_moves_to_a_new_connection(
    start_gate: Start, authority: Authority, svid_reply: Callable[..., dict[str, Any]]
) -> None:
    fetched: list[int] = []

    def fetcher() -> Svid:
        life = 0.4 if not fetched else 600
        fetched.append(1)
        ok_ = svid_reply(seconds=60)["ok"]
        now = time.time_ns()
        return Svid(AGENT_ID, ok_["cert_pem"], ok_["key_pem"], ok_["bundle_pem"], now + int(life * 1e9), now)

    gate = start_gate(lambda kind, body: ok({}))
    with Gate(gate.url, GATE_ID, Source(fetcher=fetcher)) as agent:
        agent.git_status()
        agent.git_status()
        assert len(fetched) == 1
        time.sleep(0.45)
        agent.git_status()
    assert len(fetched) == 2
    assert gate.seen[0].port == gate.seen[1].port != gate.seen[2].port


def test_cancellation_hangs_up(start_gate: Start, connect: Connect) -> None:
    entered, leave = threading.Event(), threading.Event()

    def slow(kind: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        entered.set()
        leave.wait(5)
        return ok({})

    gate = start_gate(slow)
    agent, cancellation, caught = connect(gate), Cancellation(), []

    def call() -> None:
        try:
            agent.call("run", {"argv": ["sleep"]}, cancellation)
        except GateError as error:
            caught.append(error.code)

    thread = threading.Thread(target=call)
    thread.start()
    assert entered.wait(5)
    started = time.monotonic()
    cancellation.cancel()
    thread.join(5)
    assert caught == ["cancelled"]
    assert time.monotonic() - started < 2
    leave.set()


def test_cancelled_before_it_started_is_not_sent(start_gate: Start, connect: Connect) -> None:
    gate = start_gate(lambda kind, body: ok({}))
    cancellation = Cancellation()
    cancellation.cancel()
    with pytest.raises(GateError, match="cancelled"):
        connect(gate).call("run", {"argv": ["x"]}, cancellation)
    assert gate.seen == []


def test_threads_share_one_gate(start_gate: Start, connect: Connect) -> None:
    gate = start_gate(lambda kind, body: ok({"echo": body["path"]}))
    agent, wrong = connect(gate), []

    def work(number: int) -> None:
        for index in range(5):
            name = f"{number}-{index}"
            if agent.call("read", {"path": name}) != {"echo": name}:
                wrong.append(name)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert wrong == []
    assert len(gate.seen) == 30


@pytest.mark.parametrize("kind", ["../x", "a b", "", "a/b", "é"])
def test_kinds_are_words(start_gate: Start, connect: Connect, kind: str) -> None:
    gate = start_gate(lambda k, body: ok({}))
    with pytest.raises(ValueError):
        connect(gate).call(kind, {})


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "https://", "ftp://x"])
def test_only_https(url: str) -> None:
    with pytest.raises(ValueError):
        Gate(url, GATE_ID)


def test_from_the_environment(start_gate: Start, workload: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = start_gate(lambda kind, body: ok({"text": "clean"}))
    monkeypatch.setenv("NUCLEUS_GATE", gate.url)
    monkeypatch.setenv("NUCLEUS_GATE_ID", GATE_ID)
    monkeypatch.setenv("NUCLEUS_WORKLOAD_SOCKET", workload.endpoint)
    with Gate() as agent:
        assert agent.git_status() == {"text": "clean"}


def test_the_gate_must_be_named(start_gate: Start, connect: Connect, tmp_path: pathlib.Path) -> None:
    gate = start_gate(lambda kind, body: ok({}))
    with pytest.raises(IdentityError, match="NUCLEUS_GATE_ID"):
        connect(gate, "").git_status()
