"""`nucleus serve`: an orchestrator on the host, its own SVID, mutual TLS 1.3, and nobody else."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from .site import BIN, USER, Site

CLIENT = """
import json, sys
from nucleus.sdk.client import Gate, GateError
gate = Gate()
try:
    print(json.dumps({"health": gate.health(), "run": gate.run(["python3", "-c", "print(6*7)"])["stdout"]}))
except GateError as error:
    print(json.dumps({"code": error.code, "status": error.status}))
"""


class Served:
    def __init__(self, site: Site) -> None:
        self.site = site
        argv = [str(BIN / "nucleus"), "serve", "--profile", "codegen", "--workdir", str(site.workspace)]
        self.child = site.start(argv)
        assert self.child.stdout is not None
        self.door: dict[str, str] = json.loads(self.child.stdout.readline())

    def stop(self) -> int:
        self.child.send_signal(signal.SIGTERM)
        self.child.communicate(timeout=30)
        return self.child.returncode


@pytest.fixture(scope="module", params=["root", "user"])
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    site = Site(0 if request.param == "root" else USER)
    made = Served(site)
    yield made
    assert made.stop() == 0
    site.close()


def client(site: Site, door: dict[str, str]) -> tuple[str, str]:
    """(stdout, stderr) of `CLIENT` behind this door."""
    names = {"NUCLEUS_GATE": "gate", "NUCLEUS_GATE_ID": "gate_id", "NUCLEUS_WORKLOAD_SOCKET": "workload"}
    variables = {name: door[key] for name, key in names.items()}
    with site.script(f"import os; os.environ.update({variables!r})" + CLIENT) as child:
        return child.communicate(timeout=30)


def call(site: Site, door: dict[str, str]) -> dict[str, Any]:
    out, err = client(site, door)
    assert out, err
    answer: dict[str, Any] = json.loads(out)
    return answer


def test_the_orchestrator_works_under_its_own_name_and_the_policy(served: Served) -> None:
    answer = call(served.site, served.door)
    pod = served.door["gate_id"].rpartition("gate-")[2]
    assert answer["health"]["principal"] == f"spiffe://nucleus.local/ns/default/sa/orchestrator-{pod}"
    assert answer["run"] == "42\n"
    outcome = [r for r in served.site.records() if r["event"] == "outcome"][-1]
    assert outcome["principal"] == answer["health"]["principal"]


def test_without_an_svid_nobody_is_served(served: Served) -> None:
    host, port = served.door["gate"].removeprefix("https://").rsplit(":", 1)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection((host, int(port)), 5) as raw, context.wrap_socket(raw) as sock:
        assert sock.version() == "TLSv1.3"
        sock.settimeout(5)
        try:
            sock.sendall(b"GET /v1/health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert sock.recv(100) == b""
        except OSError:
            pass  # reset, or the alert: refused either way


def test_another_pods_orchestrator_is_genuine_and_still_refused(served: Served) -> None:
    other = Served(served.site)
    try:
        mixed = {**served.door, "workload": other.door["workload"]}
        assert call(served.site, mixed)["code"] == "unauthenticated"
    finally:
        other.stop()


def test_a_client_that_expects_another_gate_says_nothing_to_this_one(served: Served) -> None:
    wrong = {**served.door, "gate_id": "spiffe://nucleus.local/ns/default/sa/gate-other"}
    _, err = client(served.site, wrong)
    assert "IdentityError" in err


def test_a_command_gets_the_door_in_its_environment(root_site: Site) -> None:
    done = root_site.cli(
        "serve", "--profile", "codegen", "--workdir", str(root_site.workspace), "--", sys.executable, "-c", CLIENT
    )
    assert json.loads(done.stdout)["run"] == "42\n", done.stderr


@pytest.mark.parametrize("address", ["0.0.0.0:0", "8.8.8.8:1", "127.0.0.1", "127.0.0.1:99999", "localhost:1"])
def test_only_loopback(root_site: Site, address: str) -> None:
    done: subprocess.CompletedProcess[str] = root_site.cli("serve", "--listen", address)
    assert done.returncode == 2
