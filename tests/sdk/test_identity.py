"""The agent's SVID: fetched, loaded without touching a disk, refreshed, and the peer's name checked."""

from __future__ import annotations

import contextlib
import os
import pathlib
import ssl
import time
from collections.abc import Callable
from typing import Any

import pytest

from nucleus.sdk import identity
from nucleus.sdk.identity import IdentityError, Source, Svid

from .stand_in import AGENT_ID, Workload


def test_fetch_parses_the_answer_and_hides_the_key(workload: Workload) -> None:
    svid = identity.fetch(workload.endpoint)
    assert svid.spiffe_id == AGENT_ID
    assert "PRIVATE KEY" in svid.key_pem
    assert "PRIVATE KEY" not in repr(svid)
    assert workload.requests == [{"id": 1, "op": "fetch_x509_svid"}]


def test_fetch_names_the_id_that_it_wants(workload: Workload) -> None:
    identity.fetch(workload.endpoint, spiffe_id=AGENT_ID)
    assert workload.requests[0]["spiffe_id"] == AGENT_ID


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ({"error": {"code": "denied", "message": "not yours"}}, "denied"),
        ({"ok": {}}, "bad_reply"),
        ({"ok": {"spiffe_id": "a", "cert_pem": "b", "key_pem": "c", "bundle_pem": "d"}}, "bad_reply"),
        ({"ok": {"spiffe_id": 1, "cert_pem": "b", "key_pem": "c", "bundle_pem": "d", "expires_ns": 1}}, "bad_reply"),
        (b"\xff\xff\xff\xffnonsense", "bad_reply"),
        (b"", "unreachable"),
    ],
)
def test_hostile_answers(tmp_path: pathlib.Path, answer: Any, code: str) -> None:
    listener = Workload(tmp_path / "h.sock", lambda request: answer)
    try:
        with pytest.raises(IdentityError) as caught:
            identity.fetch(listener.endpoint)
        assert caught.value.code == code
    finally:
        listener.close()


def test_no_listener(tmp_path: pathlib.Path) -> None:
    with pytest.raises(IdentityError, match="unreachable"):
        identity.fetch(f"unix://{tmp_path}/none.sock")


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:1", "/run/x.sock", "unix:x", "unix:///a\0b"])
def test_bad_endpoints(endpoint: str) -> None:
    with pytest.raises(IdentityError, match="bad_endpoint"):
        identity.socket_path(endpoint)


def test_endpoint_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUCLEUS_WORKLOAD_SOCKET", "unix:///tmp/w")
    assert identity.socket_path() == "/tmp/w"
    monkeypatch.delenv("NUCLEUS_WORKLOAD_SOCKET")
    assert identity.socket_path() == "/run/nucleus/workload.sock"


def open_files() -> list[str]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own descriptor, or another thread's
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return found


def test_context_is_strict_and_leaves_no_descriptor(workload: Workload, tmp_path: pathlib.Path) -> None:
    svid = identity.fetch(workload.endpoint)
    context = identity.tls_context(svid)
    assert not [link for link in open_files() if "memfd" in link]
    assert context.minimum_version is context.maximum_version is ssl.TLSVersion.TLSv1_3
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert [path.name for path in tmp_path.iterdir()] == ["w.sock"]  # nothing on disk


def test_unusable_pem_is_an_identity_error() -> None:
    with pytest.raises(IdentityError, match="bad_svid"):
        identity.tls_context(Svid("a", "b", "c", "d"))


class _Peer:
    def __init__(self, *names: tuple[str, str]) -> None:
        self._names = names

    def getpeercert(self) -> dict[str, Any]:
        return {"subjectAltName": self._names} if self._names else {}


@pytest.mark.parametrize(
    "names",
    [
        (),
        (("URI", "spiffe://x/other"),),
        (("URI", "spiffe://x/gate"), ("URI", "spiffe://x/other")),
        (("URI", "spiffe://x/gate"), ("DNS", "gate")),
        (("DNS", "spiffe://x/gate"),),
        (("URI", "spiffe://x/gate\n"),),
        (("URI", "spiffe://X/gate"),),
    ],
)
def test_wrong_peers(names: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(IdentityError, match="wrong_peer"):
        identity.check_peer(_Peer(*names), "spiffe://x/gate")  # type: ignore[arg-type]


def test_an_unnamed_gate_is_never_right() -> None:
    with pytest.raises(IdentityError, match="NUCLEUS_GATE_ID"):
        identity.check_peer(_Peer(("URI", "")), "")  # type: ignore[arg-type]


class _Clock:
    def __init__(self) -> None:
        self.now = time.time_ns()

    def __call__(self) -> int:
        return self.now


def test_source_refreshes_at_half_life_and_survives_a_refusal_until_expiry(
    svid_reply: Callable[..., dict[str, Any]],
) -> None:
    clock, refuse, fetches = _Clock(), [False], [0]

    def fetcher() -> Svid:
        fetches[0] += 1
        if refuse[0]:
            raise IdentityError("unreachable", "gone")
        ok = svid_reply()["ok"]
        life = 600 * 10**9
        return Svid(AGENT_ID, ok["cert_pem"], ok["key_pem"], ok["bundle_pem"], clock.now + life, clock.now)

    source = Source(fetcher=fetcher, clock_ns=clock)
    first = source.current()
    clock.now += 299 * 10**9
    assert source.current() is first
    clock.now += 2 * 10**9
    second = source.current()
    assert second is not first
    assert fetches[0] == 2
    refuse[0] = True
    clock.now += 400 * 10**9
    assert source.current() is second  # past half-life, before expiry
    clock.now += 200 * 10**9
    with pytest.raises(IdentityError, match="unreachable"):
        source.current()


def test_source_refuses_an_expired_svid(svid_reply: Callable[..., dict[str, Any]]) -> None:
    ok = svid_reply()["ok"]
    old = Svid(AGENT_ID, ok["cert_pem"], ok["key_pem"], ok["bundle_pem"], 1, 0)
    with pytest.raises(IdentityError, match="expired"):
        Source(fetcher=lambda: old).current()
