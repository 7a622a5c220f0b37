"""Look-up, check, connect: what a name may answer, and that the peer is what was checked."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import pytest

from nucleus.errors import NoEgressError
from nucleus.network.upstream import ANSWERS, REASONS, UpstreamError, _in_turn, check, connect, resolve

T = TypeVar("T")


def run(body: Callable[[], Awaitable[T]]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(15):
            return await body()

    return asyncio.run(bounded())


def reason(body: Callable[[], Awaitable[Any]]) -> str:
    with pytest.raises(UpstreamError) as caught:
        run(body)
    assert caught.value.reason in REASONS
    assert caught.value.rule == f"network.{caught.value.reason}"
    assert isinstance(caught.value, NoEgressError)
    return caught.value.reason


def answering(monkeypatch: pytest.MonkeyPatch, *texts: str, wait: float = 0.0) -> None:
    """The host's resolver answers so."""

    async def getaddrinfo(_loop: Any, host: bytes, port: int, **_: Any) -> list[Any]:
        assert isinstance(host, bytes)  # else Python's own IDNA has a say
        await asyncio.sleep(wait)
        return [(0, 0, 0, "", (text, port)) for text in texts]

    monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "getaddrinfo", getaddrinfo)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


# --- resolve ---


def test_a_name_of_the_hosts_file() -> None:
    assert ipaddress.ip_address("127.0.0.1") in run(lambda: resolve("localhost", 80))


@pytest.mark.parametrize("text", ["192.0.2.7", "2001:db8::1"])
def test_a_literal_is_its_own_answer(text: str) -> None:
    assert run(lambda: resolve(text, 443)) == [ipaddress.ip_address(text)]


@pytest.mark.parametrize(
    "name",
    [
        *("127.1", "0x7f.1", "0x7f000001", "2130706433", "0177.0.0.1", "127.0.0.1.", "1.2.3.4.5", "a.0x10", "a.7"),
        *("", ".", "a..b", "-" * 64, "a" * 254, "ex ample.org", "a/b", "a\0b", "user@host", "[::1]", "a:b"),
        *("bücher.example", "ｌocalhost", "example。org", "１２７.0.0.1", "a.b%2e"),
    ],
)
def test_what_is_no_name_is_never_looked_up(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    async def never(*_: Any, **__: Any) -> list[Any]:
        raise AssertionError("looked up")

    monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "getaddrinfo", never)
    assert reason(lambda: resolve(name, 80)) == "name_not_found"


def test_a_name_that_does_not_exist() -> None:
    assert reason(lambda: resolve("no-such-host.invalid", 80)) in {"name_not_found", "unreachable", "timeout"}


@pytest.mark.parametrize(
    ("code", "expected"),
    [(socket.EAI_NONAME, "name_not_found"), (socket.EAI_NODATA, "name_not_found"), (socket.EAI_AGAIN, "unreachable")],
)
def test_the_resolvers_errors_have_stable_reasons(monkeypatch: pytest.MonkeyPatch, code: int, expected: str) -> None:
    async def fails(*_: Any, **__: Any) -> list[Any]:
        raise socket.gaierror(code, "no")

    monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "getaddrinfo", fails)
    assert reason(lambda: resolve("example.org", 80)) == expected


def test_a_resolver_that_hangs_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, "192.0.2.1", wait=10)
    started = time.monotonic()
    assert reason(lambda: resolve("example.org", 80, timeout=0.1)) == "timeout"
    assert time.monotonic() - started < 1


def test_answers_are_bounded_and_without_duplicates(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, "8.8.8.8", "8.8.8.8", *(f"8.8.4.{n}" for n in range(200)))
    found = run(lambda: resolve("example.org", 80))
    assert len(found) == len(set(found)) == ANSWERS


def test_an_answer_with_a_scope_refuses_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, "8.8.8.8", "fe80::1%eth0")
    assert reason(lambda: resolve("example.org", 80)) == "not_public"
    assert reason(lambda: resolve("fe80::1%lo", 80)) == "not_public"


# --- check ---


@pytest.mark.parametrize(
    "text",
    [
        *("127.0.0.1", "10.1.2.3", "169.254.169.254", "100.64.0.1", "0.0.0.0", "255.255.255.255", "224.0.0.1"),
        *("198.18.0.1", "::1", "::", "fe80::1", "fd00:ec2::254", "::ffff:127.0.0.1", "::ffff:10.0.0.1"),
        *("64:ff9b::7f00:1", "ff02::1"),
    ],
)
def test_one_answer_that_is_not_public_refuses_them_all(text: str) -> None:
    for found in ([text], ["8.8.8.8", text], [text, "2606:4700::1111"]):
        with pytest.raises(UpstreamError) as caught:
            check([ipaddress.ip_address(item) for item in found])
        assert caught.value.reason == "not_public"
        assert str(ipaddress.ip_address(text)) in str(caught.value)


def test_public_answers_pass() -> None:
    check([ipaddress.ip_address("8.8.8.8"), ipaddress.ip_address("2606:4700::1111")])
    check(["1.1.1.1"])


def test_a_range_that_a_rule_names_passes_and_no_other() -> None:
    check(["10.1.2.3", "8.8.8.8"], ["10.0.0.0/8"])
    check(["127.0.0.1"], ["127.0.0.1"])
    check(["fd00::7"], ["10.0.0.0/8", "fd00::/8"])
    for found in (["10.1.2.3", "192.168.0.1"], ["::ffff:10.1.2.3"], ["11.0.0.1", "127.0.0.1"]):
        with pytest.raises(UpstreamError):
            check(found, ["10.0.0.0/8"])


def test_no_answer_is_no_name() -> None:
    with pytest.raises(UpstreamError) as caught:
        check([])
    assert caught.value.reason == "name_not_found"
    assert reason(lambda: connect([], 80)) == "name_not_found"


# --- connect ---


def test_the_peer_is_the_address_that_was_checked(listener: socket.socket) -> None:
    port = listener.getsockname()[1]

    async def body() -> None:
        with await connect([ipaddress.ip_address("127.0.0.1")], port) as sock:
            assert sock.getpeername() == ("127.0.0.1", port)
            assert sock.getblocking() is False
            assert not sock.get_inheritable()
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)

    run(body)


def free_port(address: str = "127.0.0.1") -> int:
    with socket.create_server((address, 0)) as made:
        return int(made.getsockname()[1])


def test_refused() -> None:
    assert reason(lambda: connect(["127.0.0.1"], free_port())) == "refused"


def test_unreachable() -> None:
    assert reason(lambda: connect(["255.255.255.255"], 9)) == "unreachable"


def full_listener() -> tuple[socket.socket, list[socket.socket]]:
    """A listener whose queue is full: Linux drops further SYNs, as a black hole would."""
    made = socket.socket()
    made.bind(("127.0.0.2", 0))
    made.listen(0)
    held = []
    for _ in range(3):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(made.getsockname())
        held.append(sock)
    time.sleep(0.05)
    return made, held


def test_timeout_and_a_later_address_gets_its_turn() -> None:
    hole, held = full_listener()
    port = hole.getsockname()[1]
    try:
        started = time.monotonic()
        assert reason(lambda: connect(["127.0.0.2"], port, 0.4)) == "timeout"
        assert 0.3 < time.monotonic() - started < 1.5
        with socket.create_server(("127.0.0.3", port)):

            async def body() -> float:
                began = time.monotonic()
                with await connect(["127.0.0.2", "127.0.0.3"], port) as sock:
                    assert sock.getpeername()[0] == "127.0.0.3"
                return time.monotonic() - began

            assert 0.2 < run(body) < 1.0  # the stagger
    finally:
        for sock in (hole, *held):
            sock.close()


def test_a_refusal_starts_the_next_attempt_at_once() -> None:
    port = free_port("127.0.0.9")
    with socket.create_server(("127.0.0.9", port)):

        async def body() -> float:
            began = time.monotonic()
            with await connect(["127.0.0.4", "127.0.0.5", "127.0.0.9"], port) as sock:
                assert sock.getpeername()[0] == "127.0.0.9"
            return time.monotonic() - began

        assert run(body) < 0.2


def test_families_take_turns() -> None:
    found = [ipaddress.ip_address(text) for text in ("::1", "::2", "::3", "127.0.0.1", "127.0.0.2")]
    assert [str(item) for item in _in_turn(found)] == ["::1", "127.0.0.1", "::2", "127.0.0.2", "::3"]


def test_nothing_stays_open_behind_a_winner_an_error_or_a_cancellation(listener: socket.socket) -> None:
    hole, held = full_listener()
    port = hole.getsockname()[1]

    async def body() -> None:
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(UpstreamError):
            await connect(["127.0.0.2"] * 3, port, 0.6)
        task = asyncio.ensure_future(connect(["127.0.0.2"], port))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with socket.create_server(("127.0.0.3", port)):
            (await connect(["127.0.0.2", "127.0.0.3"], port)).close()
        for _ in range(50):
            racing = asyncio.ensure_future(connect(["127.0.0.1"] * 2, listener.getsockname()[1]))
            await asyncio.sleep(0.0002)
            racing.cancel()
            try:
                (await racing).close()
            except asyncio.CancelledError:
                pass
        await asyncio.sleep(0.05)
        assert len(os.listdir("/proc/self/fd")) == before

    try:
        run(body)
    finally:
        for sock in (hole, *held):
            sock.close()
