"""Nucleus in a SPIRE trust domain: its CA below SPIRE's server, callers with the agent's SVIDs, SPIRE's bundle."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from nucleus.identity import jwt_svid
from nucleus.identity.svid import pem_to_der
from nucleus.identity.verify import verify_svid

from .site import BIN, Site
from .spire import HOUR, Root, Spire
from .test_identities import Door

DOMAIN = "example.org"
AGENT = "from nucleus.sdk.client import Gate; print(Gate().read('note.txt'))"
CLIENT = "import json; from nucleus.sdk.client import Gate; print(Gate().read('note.txt'))"


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site(0)
    assert made.cli("identity", "trust-domain", DOMAIN).returncode == 0
    yield made
    made.close()


@pytest.fixture
def spire(tmp_path: Path) -> Iterator[Spire]:
    made = Spire(DOMAIN, tmp_path)
    yield made
    made.close()


def below(site: Site, spire: Spire, *more: str) -> subprocess.CompletedProcess[str]:
    return site.cli(
        "identity", "ca", "spire", "--server", f"127.0.0.1:{spire.port}", "--socket", f"unix://{spire.socket}", *more
    )


def until(condition: Callable[[], Any], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def shown(site: Site) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(site.cli("identity", "show", "--json").stdout)
    return found


def ran(site: Site) -> str:
    run = ["run", "--profile", "codegen", "--trust-workspace", "--workdir", str(site.workspace)]
    done = site.cli(*run, "--", "python3", "-c", AGENT)
    return done.stdout or done.stderr


def test_svids_of_pods_lead_to_spires_root_and_spires_bundle_is_ours(site: Site, spire: Spire) -> None:
    site.write("note.txt", "through the gate")
    done = below(site, spire, "--at-once")
    assert done.returncode == 0, done.stderr
    assert "bundle of example.org: 1 X.509 authorities" in done.stdout
    assert "installed " in done.stdout
    assert ran(site) == "through the gate\n"
    out = site.home / "svid"
    assert site.cli("identity", "issue", "spiffe://example.org/app", "--out", str(out)).returncode == 0
    chain = pem_to_der((out / "svid.pem").read_text())
    # Whoever knows SPIRE's root and nothing of Nucleus.
    proven = verify_svid(chain, {DOMAIN: (spire.roots[0].der,)}, time.time_ns(), role="client")
    assert (str(proven), len(chain)) == ("spiffe://example.org/app", 2)
    # Its server has our JWT keys, and a token of ours is valid by its bundle.
    assert set(shown(site)["jwt_keys"]) == set(spire.jwt)
    token = site.cli("identity", "issue", "spiffe://example.org/app", "--audience", "them").stdout.strip()
    assert jwt_svid.validate(token, "them", {DOMAIN: spire.jwt}, time.time_ns()).spiffe_id
    # Again: nothing is due, but that the bundle has our JWT key by now.
    assert below(site, spire).stdout == "bundle of example.org: 1 X.509 authorities, 1 JWT keys\n"
    assert below(site, spire).stdout == ""
    assert spire.asked == 1
    operations = [r["operation"] for r in site.records() if r["event"] == "identity.entry"]
    assert operations == ["ca_authorities", "ca_install", "ca_authorities"]
    assert site.verify().returncode == 0
    assert not any(path.suffix == ".key" and "pending" in path.name for path in site.directory.rglob("*.key"))


def test_a_workload_of_spires_calls_the_gate_with_the_agents_svid(site: Site, spire: Spire) -> None:
    site.write("note.txt", "for a workload")
    spire.change(lambda: spire.names.__setitem__(slice(None), ["/ci/release", "/nucleus"]))
    assert below(site, spire, "--at-once", "--id", "spiffe://example.org/nucleus").returncode == 0
    policy = "version: 1\nname: p\ncapabilities: {read_files: always}\nidentities: {agents: [own, spiffe://example.org/ci/*]}\n"
    door = Door(site, policy)
    try:
        variables = {
            "NUCLEUS_GATE": door.names["gate"],
            "NUCLEUS_GATE_ID": door.names["gate_id"],
            "SPIFFE_ENDPOINT_SOCKET": f"unix://{spire.socket}",
        }
        with site.script(f"import os; os.environ.update({variables!r})\n{CLIENT}") as child:
            out, err = child.communicate(timeout=30)
        assert out == "for a workload\n", err
        spire.change(lambda: spire.names.__setitem__(0, "/other"))
        with site.script(f"import os; os.environ.update({variables!r})\n{CLIENT}") as child:
            out, err = child.communicate(timeout=30)
        assert "is not this pod's" in err or "unauthenticated" in err, (out, err)
    finally:
        door.stop()
    outcome = [r for r in site.records() if r["event"] == "outcome"]
    assert {r["principal"] for r in outcome} == {"spiffe://example.org/ci/release"}


def reads(door: Door) -> bool:
    try:
        return door.ask(door.own(), "read", path="note.txt")[0] == 200
    except OSError:  # not yet: it still shows the old certificate
        return False


@pytest.fixture
def watching(site: Site, spire: Spire) -> Iterator[subprocess.Popen[str]]:
    site.cli("helper", "start")
    argv = ["identity", "ca", "spire", "--server", f"127.0.0.1:{spire.port}", "--at-once", "--watch"]
    child = site.start(["env", f"SPIFFE_ENDPOINT_SOCKET=unix://{spire.socket}", str(BIN / "nucleus"), *argv])
    yield child
    if child.poll() is None:
        child.kill()
    child.communicate()


def test_rotation_and_withdrawal_at_spire_are_followed(
    site: Site, spire: Spire, watching: subprocess.Popen[str]
) -> None:
    site.write("note.txt", "held")
    until(lambda: any(one["upstream"] for one in shown(site)["roots"]))
    policy = "version: 1\nname: p\ncapabilities: {read_files: always}\n"
    door = Door(site, policy)
    try:
        assert door.ask(door.own(), "read", path="note.txt")[0] == 200
        before = door.own()
        old, new = spire.roots[0], Root(DOMAIN)
        spire.change(lambda: spire.roots.append(new))  # prepared
        until(lambda: new.der in pem_to_der(site.cli("identity", "bundle").stdout))
        # Activated: it signs from now on. The old one was compromised, and is withdrawn.
        spire.change(lambda: spire.roots.remove(old))
        until(lambda: spire.asked == 2)
        until(lambda: old.der not in pem_to_der(site.cli("identity", "bundle").stdout))
        out = site.home / "svid"
        until(lambda: site.cli("identity", "issue", "spiffe://example.org/a", "--out", str(out)).returncode == 0)
        chain = pem_to_der((out / "svid.pem").read_text())
        verify_svid(chain, {DOMAIN: (new.der,)}, time.time_ns(), role="client")
        # The door has followed, and what is signed below the withdrawn root counts no more.
        until(lambda: reads(door))
        with pytest.raises(OSError):  # in the handshake, or cut: the client's words differ
            door.ask(before, "read", path="note.txt")
    finally:
        door.stop()
    watching.send_signal(signal.SIGTERM)
    assert watching.wait(20) == 0


def test_an_agent_that_is_gone_leaves_what_there_is_and_says_so(site: Site, spire: Spire, tmp_path: Path) -> None:
    site.write("note.txt", "still here")
    assert below(site, spire, "--at-once").returncode == 0
    gone = site.cli(
        "identity", "ca", "spire", "--server", f"127.0.0.1:{spire.port}", "--socket", f"unix://{tmp_path}/none.sock"
    )
    assert (gone.returncode, "no Workload API at unix://" in gone.stderr) == (1, True)
    assert ran(site) == "still here\n"


@pytest.mark.parametrize("path", ["/spire/agent", "/nucleus"])
def test_another_than_the_server_is_told_nothing(site: Site, tmp_path: Path, path: str) -> None:
    made = Spire(DOMAIN, tmp_path, server_path=path)
    try:
        done = below(site, made, "--at-once")
        assert done.returncode == 3
        assert f"the peer is spiffe://example.org{path}, not spiffe://example.org/spire/server" in done.stderr
        assert made.asked == 0
    finally:
        made.close()


def test_what_a_server_answers_wrong_changes_nothing(site: Site, spire: Spire) -> None:
    stranger = Root(DOMAIN)
    for forge, why in (
        (lambda answer: _without(answer, "x509_authorities"), "no certificate, or no authorities"),
        (lambda answer: _without(answer, "ca_cert_chain"), "no certificate, or no authorities"),
        (lambda answer: _other_authorities(answer, stranger), "leads to none of its authorities"),
    ):
        spire.forge = forge
        done = below(site, spire, "--at-once")
        assert done.returncode == 1, done
        assert why in done.stderr
    spire.forge = lambda answer: answer
    spire.life = HOUR / 2
    done = below(site, spire, "--at-once")
    assert done.returncode == 2
    assert "it ends within the hour" in done.stderr
    assert not any(one["upstream"] for one in shown(site)["roots"])
    spire.life = 24 * HOUR
    assert below(site, spire, "--at-once").returncode == 0


def _without(answer: Any, name: str) -> Any:
    if hasattr(answer, name):
        answer.ClearField(name)
    return answer


def _other_authorities(answer: Any, stranger: Root) -> Any:
    if hasattr(answer, "x509_authorities"):
        answer.ClearField("x509_authorities")
        answer.x509_authorities.append(stranger.der)
    return answer


def test_of_another_trust_domain_nothing_is_taken(site: Site, tmp_path: Path) -> None:
    made = Spire("example.com", tmp_path)
    try:
        done = below(site, made)
        assert done.returncode == 2
        assert "our trust domain is example.org: the agent knows no bundle of it" in done.stderr
    finally:
        made.close()


def test_fetch_from_the_agent(site: Site, spire: Spire) -> None:
    at = ("--socket", f"unix://{spire.socket}")
    spire.change(lambda: spire.federated.update({"spiffe://example.com": Root("example.com").der}))
    out = site.home / "fetched"
    done = site.cli("identity", "fetch", "x509", *at, "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("spiffe://example.org/nucleus until ")
    key = serialization.load_pem_private_key((out / "key.pem").read_bytes(), None)
    assert key.public_key() == _leaf(out).public_key()
    assert (out / "key.pem").stat().st_mode & 0o777 == 0o600
    listed = json.loads(site.cli("identity", "fetch", "x509", *at, "--json").stdout)
    assert (listed["svids"][0]["spiffe_id"], listed["federated"]) == ("spiffe://example.org/nucleus", ["example.com"])
    bundles = json.loads(site.cli("identity", "fetch", "bundles", *at).stdout)
    assert sorted(bundles) == ["example.com", "example.org"]
    assert site.cli("identity", "fetch", "x509", *at, "--id", "spiffe://example.org/none").returncode == 2
    spire.change(lambda: spire.names.clear())
    refused = site.cli("identity", "fetch", "x509", *at)
    assert (refused.returncode, "PERMISSION_DENIED: no identity issued" in refused.stderr) == (1, True)


def _leaf(out: Path) -> Any:
    from cryptography import x509

    return x509.load_pem_x509_certificates((out / "svid.pem").read_bytes())[0]
