"""The SPIFFE Workload API inside a pod, through the public door: an agent that speaks gRPC, as root and as a user."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_private_key

from nucleus.identity.svid import pem_to_der
from nucleus.identity.verify import verify_svid

from . import workload_client
from .held import Held
from .site import BIN, REPOSITORY, USER, Site

CLIENT = str(Path(workload_client.__file__))
PYTHON = os.path.realpath(sys.executable)
LIBRARIES = sysconfig.get_paths()["purelib"]
SHOWN = (str(Path(CLIENT).parent), str(Path(LIBRARIES)), str(REPOSITORY / "src"))
# The agent's own PYTHONPATH is the pod's; a program of the test adds its libraries itself.
RUN = (
    f"import sys, runpy; sys.path[:0] = {SHOWN!r}; sys.argv = sys.argv[1:]; "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)
ENDPOINT = "import os; print(os.environ['SPIFFE_ENDPOINT_SOCKET'], os.environ['NUCLEUS_WORKLOAD_SOCKET'])"
SOCKET = "/run/nucleus/spiffe.sock"


class Agents:
    """Agents of one site."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def start(self, *argv: str) -> subprocess.Popen[str]:
        shown = [word for path in SHOWN for word in ("--toolchain", path)]
        options = ["--profile", "codegen", "--workdir", str(self.site.workspace), *shown]
        return self.site.start([str(BIN / "nucleus"), "run", *options, "--", *argv])

    def client(self, *words: str) -> subprocess.Popen[str]:
        return self.start(PYTHON, "-c", RUN, CLIENT, SOCKET, *words)

    def ask(self, *words: str) -> dict[str, Any]:
        with self.client(*words) as child:
            out, err = child.communicate(timeout=60)
        assert child.returncode == 0, err
        answer: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
        return answer


@pytest.fixture(scope="module", params=["root", "user"])
def agents(request: pytest.FixtureRequest) -> Iterator[Agents]:
    site = Site(0 if request.param == "root" else USER)
    yield Agents(site)
    site.close()


def issued(site: Site, name: str) -> list[dict[str, Any]]:
    return [one for one in site.records() if one["event"] == "identity.issued" and one["principal"] == name]


def servers() -> set[int]:
    """Processes that serve a pod's Workload API."""
    found = set()
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if b"nucleus.identity.pod_api" in Path(f"/proc/{name}/cmdline").read_bytes():
                    found.add(int(name))
            except OSError:
                continue
    return found


def test_an_agent_gets_its_own_identity_and_nothing_else_by_the_standards_calls(agents: Agents) -> None:
    before = servers()
    found = agents.ask("all")
    (name,) = found["x509"]
    assert "/sa/agent-pod-" in name
    assert found["jwt"] == found["valid"] == name
    assert found["jwks"] == list(found["roots"]) == ["spiffe://nucleus.local"]
    chain = [bytes.fromhex(found["chain"])]
    roots = {"nucleus.local": pem_to_der(agents.site.cli("identity", "bundle").stdout)}
    assert str(verify_svid(chain, roots, time.time_ns(), role="client")) == name
    leaf = x509.load_der_x509_certificate(chain[0])
    key = load_der_private_key(bytes.fromhex(found["key"]), None)
    der = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    assert key.public_key().public_bytes(*der) == leaf.public_key().public_bytes(*der)
    pod = name.rpartition("/agent-")[2]
    records = issued(agents.site, name)
    assert {one["operation"] for one in records} == {"fetch_x509_svid", "fetch_jwt_svid"}
    assert {one["pod"] for one in records} == {pod}
    assert servers() == before, "its process ends with the pod"


def test_both_sockets_are_named(agents: Agents) -> None:
    with agents.start(PYTHON, "-c", ENDPOINT) as child:
        out, err = child.communicate(timeout=60)
    assert out.split() == [f"unix://{SOCKET}", "unix:///run/nucleus/workload.sock"], err


def test_two_pods_have_two_processes_and_two_identities(agents: Agents) -> None:
    before = servers()
    with agents.client("watch") as one, agents.client("watch") as other:
        try:
            names = {json.loads(child.stdout.readline())["id"] for child in (one, other) if child.stdout is not None}
            assert len(names) == 2
            own = servers() - before
            assert len(own) == 2
            status = [Path(f"/proc/{pid}/status").read_text() for pid in own]
            uids = {line.split()[1] for text in status for line in text.splitlines() if line.startswith("Uid:")}
            assert len(uids) == (2 if agents.site.uid == 0 else 1)
            for text in status:
                rows = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
                assert int(rows["CapPrm"], 16) == int(rows["CapEff"], 16) == 0
                assert rows["NoNewPrivs"] == "1"
        finally:
            one.terminate()
            other.terminate()


def test_a_revoked_certificate_is_replaced_at_once_and_a_revoked_identity_ends_the_stream(agents: Agents) -> None:
    with agents.client("watch") as child:
        assert child.stdout is not None
        first = json.loads(child.stdout.readline())
        serial = x509.load_der_x509_certificate(bytes.fromhex(first["chain"])).serial_number
        done = agents.site.cli("identity", "revoke", f"{serial:x}", "--reason", "test")
        assert done.returncode == 0, done.stderr
        second = json.loads(child.stdout.readline())
        assert second["id"] == first["id"]
        assert second["chain"] != first["chain"]
        assert agents.site.cli("identity", "revoke", first["id"], "--reason", "test").returncode == 0
        assert json.loads(child.stdout.readline()) == {"status": "PERMISSION_DENIED"}
        child.communicate(timeout=30)
    refused = [one for one in agents.site.records() if one["event"] == "identity.refused"]
    assert refused[-1]["context"]["reason"] == "the pod's identity is revoked"


def test_a_pod_that_does_not_ask_has_no_process(agents: Agents) -> None:
    before = servers()
    with Held(agents.site, spec={"agent": {"argv": ["sleep", "60"], "stdio": "pipes"}}):
        assert servers() == before


def test_an_orchestrator_has_it_too(agents: Agents) -> None:
    code = RUN.replace("sys.argv[1:]", "[sys.argv[1], os.environ['SPIFFE_ENDPOINT_SOCKET'][7:], 'x509']")
    options = ["--profile", "codegen", "--workdir", str(agents.site.workspace)]
    done = agents.site.cli("serve", *options, "--", PYTHON, "-c", f"import os; {code}", CLIENT)
    assert done.returncode == 0, done.stderr
    (name,) = json.loads(done.stdout)["svids"]
    assert "/sa/orchestrator-pod-" in name


def test_one_that_was_killed_is_started_again_for_who_connects(agents: Agents) -> None:
    before = servers()
    code = (
        "import json, os, socket, sys, time\n"
        "def ask():\n"
        "    s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.settimeout(30)\n"
        "    s.sendall(b'PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n' + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))\n"
        "    got = s.recv(9)\n"
        "    return s, len(got) == 9 and got[3] == 4\n"  # a SETTINGS frame: HTTP/2 is spoken
        "s, first = ask(); print(json.dumps(first), flush=True)\n"
        "try:\n    while s.recv(4096): pass\n"
        "except ConnectionResetError: pass\n"
        "print(json.dumps(ask()[1]), flush=True); time.sleep(30)\n"
    )
    with agents.start(PYTHON, "-c", code, SOCKET) as child:
        try:
            assert child.stdout is not None
            assert json.loads(child.stdout.readline()) is True
            (first,) = servers() - before
            os.kill(first, 9)
            assert json.loads(child.stdout.readline()) is True
            (second,) = servers() - before
            assert second != first
        finally:
            child.terminate()
    for _ in range(100):
        if servers() == before:
            break
        time.sleep(0.05)
    assert servers() == before


def test_what_the_agent_has_it_compute_is_the_agents(agents: Agents) -> None:
    if agents.site.uid:
        pytest.skip("an ordinary user has no cgroups to divide here")
    before = servers()
    with agents.client("watch") as child:
        try:
            assert child.stdout is not None
            child.stdout.readline()
            (pid,) = servers() - before
            assert "/pod-" in Path(f"/proc/{pid}/cgroup").read_text()
        finally:
            child.terminate()
