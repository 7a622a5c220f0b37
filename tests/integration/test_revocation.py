"""Revoked identities through the public door: live connections of `nucleus serve` and streams of the Workload API."""

from __future__ import annotations

import asyncio
import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from integration.site import BIN, Site
from integration.test_identity_api import NAME, Served
from integration.workload_client import connected
from nucleus.sdk import identity

WITHIN_S = 1.0


class Door:
    """A `nucleus serve` and connections of its orchestrator's, which is this process."""

    def __init__(self, site: Site) -> None:
        self.site = site
        argv = [str(BIN / "nucleus"), "serve", "--profile", "codegen", "--workdir", str(site.workspace)]
        self.child = site.start(argv)
        assert self.child.stdout is not None
        self.names: dict[str, str] = json.loads(self.child.stdout.readline())

    def fetch(self) -> identity.Svid:
        return identity.fetch(self.names["workload"])

    def connect(self, svid: identity.Svid) -> http.client.HTTPSConnection:
        host = urlsplit(self.names["gate"])
        assert host.hostname is not None
        made = http.client.HTTPSConnection(host.hostname, host.port, timeout=20, context=identity.tls_context(svid))
        made.connect()
        return made

    def stop(self) -> None:
        self.child.terminate()
        self.child.communicate(timeout=30)


def ask(connection: http.client.HTTPSConnection, path: str = "/v1/health") -> int:
    connection.request("GET", path)
    response = connection.getresponse()
    response.read()
    return response.status


def serial(cert: bytes) -> str:
    return f"{x509.load_pem_x509_certificate(cert).serial_number:x}"


def ends_after(connection: http.client.HTTPSConnection) -> float:
    """Seconds until the other side has ended it."""
    start = time.monotonic()
    with suppress(OSError):  # reset, or an end without TLS's goodbye: cut either way
        assert connection.sock.recv(1) == b""
    return time.monotonic() - start


@pytest.fixture
def door() -> Iterator[Door]:
    site = Site(0)
    made = Door(site)
    yield made
    made.stop()
    site.close()


def revoke(site: Site, what: str) -> subprocess.CompletedProcess[str]:
    done = site.cli("identity", "revoke", what, "--reason", "key on a stolen laptop")
    assert done.returncode == 0, done.stderr
    return done


def test_a_revoked_certificate_is_cut_with_what_it_waits_for_and_another_is_served(door: Door) -> None:
    svid = door.fetch()
    idle, busy = door.connect(svid), door.connect(svid)
    assert ask(idle) == 200
    busy.request("POST", "/v1/run", json.dumps({"argv": ["sleep", "60"]}))
    time.sleep(0.5)
    ended: list[float] = []

    def watch(connection: http.client.HTTPSConnection) -> None:
        ends_after(connection)
        ended.append(time.monotonic())

    watching = [threading.Thread(target=watch, args=(one,)) for one in (idle, busy)]
    for one in watching:
        one.start()
    asked = time.monotonic()
    assert revoke(door.site, serial(svid.cert_pem.encode())).stdout.startswith("revoked serial ")
    for one in watching:
        one.join(20)
    took = max(ended) - asked
    print(f"revoke to cut: {took:.3f} s")
    assert took < WITHIN_S
    again = door.connect(svid)  # TLS knows nothing of it; the gate does
    assert ask(again) == 401
    other = door.connect(door.fetch())
    assert ask(other) == 200
    for connection in (idle, busy, again, other):
        connection.close()
    records = door.site.records()
    (said,) = [r for r in records if r["event"] == "identity.revoked"]
    assert said["principal"] == "uid:0"
    assert said["context"]["reason"] == "key on a stolen laptop"
    (run,) = [r for r in records if r["event"] == "outcome"]  # what it waited for was ended, too
    assert "cancel" in json.dumps(run)
    assert any("2 connections cut" in json.dumps(r) for r in records if r["event"] == "unauthenticated"), records
    assert door.site.verify().returncode == 0


def test_a_revoked_name_gets_nothing_until_it_is_restored(door: Door) -> None:
    svid = door.fetch()
    open_one = door.connect(svid)
    assert ask(open_one) == 200
    revoke(door.site, svid.spiffe_id)
    assert ends_after(open_one) < WITHIN_S
    open_one.close()
    with pytest.raises(identity.IdentityError):
        door.fetch()
    listed: dict[str, Any] = json.loads(door.site.cli("identity", "revoked", "--json").stdout)
    assert [(one["spiffe_id"], one["blocked"]) for one in listed["revoked"]] == [(svid.spiffe_id, True)]
    assert door.site.cli("identity", "restore", svid.spiffe_id).returncode == 0
    for one, status in ((svid, 401), (door.fetch(), 200)):
        connection = door.connect(one)
        assert ask(connection) == status
        connection.close()


def test_streams_of_the_workload_api_hear_of_it_within_a_second() -> None:
    served = Served(0)
    try:
        served.add("streamed", "unix:uid:0")
        asyncio.run(_streams(served))
    finally:
        served.close()


async def _cli(served: Served, *words: str) -> float:
    done = await asyncio.to_thread(served.cli, "identity", *words)
    assert done.returncode == 0, done.stderr
    return time.monotonic()


async def _streams(served: Served) -> None:
    async with connected(served.socket) as client:
        async with client.stream("FetchX509SVID") as stream:
            first = x509.load_der_x509_certificate((await stream.next()).svids[0].x509_svid)
            asked = time.monotonic()
            await _cli(served, "revoke", f"{first.serial_number:x}", "--reason", "test")
            second = x509.load_der_x509_certificate((await stream.next(WITHIN_S)).svids[0].x509_svid)
            print(f"revoke to another SVID: {time.monotonic() - asked:.3f} s")
            assert second.serial_number != first.serial_number
            await _cli(served, "revoke", NAME + "streamed", "--reason", "test")
            with pytest.raises(GRPCError) as caught:
                await stream.next(WITHIN_S)
            assert caught.value.status is Status.PERMISSION_DENIED
    async with connected(served.socket) as client:
        with pytest.raises(GRPCError) as caught:
            await client.first("FetchX509SVID")
        assert caught.value.status is Status.PERMISSION_DENIED
        await _cli(served, "restore", NAME + "streamed")
        assert (await client.first("FetchX509SVID")).svids[0].spiffe_id == NAME + "streamed"


@pytest.mark.parametrize(
    "words",
    [("revoke", NAME + "x"), ("revoke", "zz", "--reason", "x"), ("revoke", "abc", "--reason", "x"),
     ("revoke", "spiffe://other/x", "--reason", "x"), ("restore", NAME + "x"), ("revoke", "--reason", "x")],
)  # fmt: skip
def test_what_cannot_be_revoked_is_said(root_site: Site, words: tuple[str, ...]) -> None:
    done = root_site.cli("identity", *words)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert done.stderr


def test_a_revocation_outlives_the_helper_and_a_damaged_list_issues_nothing() -> None:
    site = Site(0)
    try:
        revoke(site, NAME + "lost")
        assert site.cli("helper", "stop").returncode == 0
        refused = site.cli("identity", "issue", NAME + "lost", "--out", str(site.directory / "lost"))
        assert refused.returncode != 0
        assert "this identity is revoked" in refused.stderr
        token = site.cli("identity", "issue", NAME + "lost", "--audience", "somebody")
        assert token.returncode != 0
        assert token.stdout == ""
        assert site.cli("identity", "issue", NAME + "other", "--out", str(site.directory / "a")).returncode == 0
        assert site.cli("helper", "stop").returncode == 0
        listed = site.directory / "state" / "revocations.json"
        listed.write_bytes(damaged := listed.read_bytes()[:-5])
        refused = site.cli("identity", "issue", NAME + "other", "--out", str(site.directory / "b"))
        assert refused.returncode != 0
        assert "revoked identities" in refused.stderr
        client = "from nucleus.sdk.client import Gate; print(Gate().health())"
        served = site.cli("serve", "--workdir", str(site.workspace), "--", sys.executable, "-c", client)
        assert (served.returncode != 0, served.stdout) == (True, "")
        assert listed.read_bytes() == damaged
    finally:
        site.close()
