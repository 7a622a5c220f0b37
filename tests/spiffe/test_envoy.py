"""Envoy, unchanged, as a client of the secret discovery service: of `nucleus identity serve`, and of a pod's."""

from __future__ import annotations

import json
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.test_identity_api import NAME, Served

from . import envoy as program
from .conftest import SPIFFE, in_a_pod
from .envoy import Envoy

BINARY = next(map(str, Path(SPIFFE).glob("venv/lib/*/site-packages/envoy/_bin/envoy")), "")
ROTATIONS = 6


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    made = Served(0, "--refresh", "1")
    made.add("server", "unix:uid:0")
    made.add("client", "unix:uid:0")
    yield made
    made.close()


def answer(served: Served, port: int, directory: Path, own: str) -> str:
    """The first line of what Envoy's server answers a TLS client of ours with this identity ("": with none)."""
    name = own or "nobody"
    (directory / name).mkdir()
    made = served.cli("identity", "issue", NAME + name, "--out", str(directory / name))
    assert made.returncode == 0, made.stderr
    context = ssl.create_default_context(cafile=str(directory / name / "bundle.pem"))
    context.check_hostname = False
    if own:
        context.load_cert_chain(directory / name / "svid.pem", directory / name / "key.pem")
    try:
        with socket.create_connection(("127.0.0.1", port), 10) as raw, context.wrap_socket(raw) as tls:
            assert ("URI", NAME + "server") in (tls.getpeercert() or {})["subjectAltName"]
            tls.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return tls.recv(4_096).split(b"\r\n")[0].decode()
    except (ssl.SSLError, ConnectionResetError):
        return "refused"


@pytest.mark.parametrize("roots", ["ROOTCA", "ALL"])
def test_mutual_tls_both_ways_across_rotations_without_a_failed_request(
    served: Served, tmp_path: Path, roots: str
) -> None:
    envoy = Envoy(BINARY, served.socket, NAME + "server", NAME + "client", roots)
    try:
        serials: set[str] = set()
        requests, failed, until = 0, [], time.monotonic() + 60
        before = envoy.updates()
        while len(serials) < ROTATIONS and time.monotonic() < until:
            status, client, serial = envoy.request()
            requests += 1
            if (status, client) != (200, NAME + "client"):
                failed.append((status, client))
            serials.add(serial)
        after = envoy.updates()
        assert failed == [], envoy.log()
        assert len(serials) == ROTATIONS
        assert requests > ROTATIONS * 20
        assert all(after[name] - before[name] >= ROTATIONS - 2 for name in ("listener", "cluster")), (before, after)
        assert answer(served, envoy.ports[1], tmp_path, "client") == "HTTP/1.1 200 OK"
        assert answer(served, envoy.ports[1], tmp_path, "another") == "refused"
        assert answer(served, envoy.ports[1], tmp_path, "") == "refused"
    finally:
        envoy.close()


def test_in_a_pod_both_ends_are_the_pods_own_agent() -> None:
    found = json.loads(in_a_pod("python3", program.__file__, BINARY, "50"))
    assert found["statuses"] == [200]
    (name,) = found["clients"]
    assert "/sa/agent-pod-" in name
