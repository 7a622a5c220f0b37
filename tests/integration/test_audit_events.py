"""The kinds of events at the door, each with the fields that it is on record for (root and user)."""

from __future__ import annotations

import datetime
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from nucleus.server.handshakes import BURST

from .held import Held
from .site import Site
from .test_serve import Served

ADMIN = "spiffe://nucleus.local/ns/default/sa/admin"


def of_pod(site: Site, pod: str) -> list[dict[str, Any]]:
    return [record for record in site.records() if record["pod"] == pod]


def test_the_kinds_and_their_fields(site: Site) -> None:
    site.write("a.txt", "hello")
    with Held(site) as held:
        pod = held.start["pod"]
        ok = held.operate(kind="read", path="a.txt")
        refused = held.operate(kind="read", path=".env")
        invalid = held.operate(kind="read", path="a.txt", limit=-1)
        failed = held.operate(kind="read", path="missing")
    deadline = time.monotonic() + 10
    while (found := of_pod(site, pod))[-1]["event"] != "pod.stop" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [found[0]["event"], found[-1]["event"]] == ["pod.start", "pod.stop"]
    assert found[0]["context"]["policy_digest"]
    assert found[-1]["context"]["reason"]
    by = {record["seq"]: record for record in found}
    for record in found[1:-1]:
        assert record["principal"] == f"spiffe://nucleus.local/ns/default/sa/orchestrator-{pod}"
        assert record["time_ns"] > 10**18
        assert record["mono_ns"] > 0
    success = by[ok["audit"]]  # operation, subject, result
    assert success["operation"]["path"] == "a.txt"
    assert (success["event"], success["outcome"]["status"]) == ("outcome", "ok")
    denial = by[refused["audit"]]  # reason, attempted operation
    assert (denial["event"], denial["operation"]["path"]) == ("denied", ".env")
    assert denial["outcome"]["reason"]
    assert denial["decision"]["rule"]
    wrong = by[invalid["audit"]]  # field, error
    assert wrong["event"] == "invalid"
    assert "limit" in wrong["outcome"]["reason"]
    error = by[failed["audit"]]  # error code, context
    assert (error["event"], error["outcome"]["status"]) == ("outcome", "operation_failed")
    assert error["outcome"]["reason"]
    assert error["context"]["charged"] >= 0


@pytest.fixture
def served(site: Site) -> Iterator[Served]:
    made = Served(site)
    yield made
    assert made.stop() == 0


def self_signed(directory: Path) -> str:
    """A certificate of nobody's, with a name that it has no right to."""
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")]), datetime.datetime.now(datetime.UTC)
    cert = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(ADMIN)]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    path = directory / "cert.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        + cert.public_bytes(serialization.Encoding.PEM)
    )  # fmt: skip
    return str(path)


def knock(served: Served, cert: str = "", *, plain: bool = False) -> None:
    """A connection whose handshake fails."""
    parts = urlsplit(served.door["gate"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if cert:
        context.load_cert_chain(cert)
    with socket.create_connection((parts.hostname, parts.port), 5) as sock:
        try:
            if plain:
                sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
                sock.recv(100)
                return
            with context.wrap_socket(sock) as tls:
                assert tls.recv(1) == b""
        except OSError:
            return


def refusals(served: Served, count: int) -> list[dict[str, Any]]:
    """The handshakes on record, once there are so many, or it has been long enough."""
    pod = served.door["gate_id"].rpartition("gate-")[2]
    deadline = time.monotonic() + 5
    while True:
        found = [r for r in of_pod(served.site, pod) if r["event"] == "unauthenticated"]
        if len(found) >= count or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def test_a_handshake_that_fails_is_on_record_with_its_reason(served: Served, tmp_path: Path) -> None:
    knock(served)
    knock(served, self_signed(tmp_path))
    knock(served, plain=True)
    none, wrong, plain = (record["outcome"] for record in refusals(served, 3))
    assert {record["rule"] for record in (none, wrong, plain)} == {"tls.handshake"}
    assert "peer did not return a certificate" in none["reason"]
    assert "certificate verify failed" in wrong["reason"]
    assert "self-signed certificate" in wrong["reason"]
    assert "http request" in plain["reason"]


def test_a_flood_of_handshakes_is_capped_and_counted(served: Served) -> None:
    for _ in range(40):
        knock(served, plain=True)
    assert BURST <= len(refusals(served, BURST + 3)) <= BURST + 2
    time.sleep(6.5)
    knock(served, plain=True)
    found = refusals(served, BURST + 3)
    counted = [record for record in found if "more failed since" in record["outcome"]["reason"]]
    assert counted
    more = sum(int(record["outcome"]["reason"].split("; ")[-1].split()[0]) for record in counted)
    assert len(found) + more == 41
