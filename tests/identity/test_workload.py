"""The Workload socket's decisions: own identity or nothing, and an audit event either way."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import Any

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from nucleus.errors import NucleusError
from nucleus.frames import encode
from nucleus.identity.ca import CertificateAuthority
from nucleus.identity.spiffe_id import SpiffeId
from nucleus.identity.svid import X509Svid
from nucleus.identity.workload import Peer, WorkloadListener, handle_workload_request, peer_credentials

from .certificates import AGENT, GATE, NOW

UID = 0x70100000
LISTENER = WorkloadListener("pod-1", UID, AGENT)
PEER = Peer(UID, 7)
FETCH: dict[str, Any] = {"id": 1, "op": "fetch_x509_svid"}


def fake(spiffe_id: SpiffeId) -> X509Svid:
    return X509Svid(spiffe_id, "CERT", "KEY", "BUNDLE", NOW + 1, NOW)


def never(spiffe_id: SpiffeId) -> X509Svid:
    raise AssertionError("issued")


@pytest.mark.parametrize("header", [FETCH, FETCH | {"spiffe_id": str(AGENT)}, FETCH | {"spiffe_id": None}])
def test_the_pods_own_identity(ca: CertificateAuthority, header: dict[str, Any]) -> None:
    reply, event = handle_workload_request(header, PEER, LISTENER, lambda spiffe_id: ca.issue(spiffe_id, now=NOW))
    svid = X509Svid.from_wire(reply["ok"], now=NOW)
    assert reply["id"] == 1
    assert svid.spiffe_id == AGENT
    assert (event["event"], event["decision"], event["outcome"]) == ("identity.issued", "allow", "ok")
    assert event["principal"] == str(AGENT)
    assert event["context"] == {
        "pod": "pod-1",
        "uid": UID,
        "pid": 7,
        "expires_ns": svid.expires_ns,
        "serial": f"{x509.load_pem_x509_certificate(svid.cert_pem.encode()).serial_number:x}",
    }
    assert "PRIVATE" not in json.dumps(event)


@pytest.mark.parametrize(
    "asked", [str(GATE), str(AGENT) + "2", str(AGENT)[:-1], str(AGENT).upper(), str(AGENT) + "\n", "", "\ud800"]
)
def test_any_other_identity_is_denied_and_audited(asked: str) -> None:
    reply, event = handle_workload_request(FETCH | {"spiffe_id": asked}, PEER, LISTENER, never)
    assert reply["error"]["code"] == "denied"
    assert (event["event"], event["decision"]) == ("identity.refused", "deny")
    assert event["context"]["requested"] == asked.encode("unicode_escape").decode()
    encode(reply)
    encode(event)


@pytest.mark.parametrize("uid", [0, UID + 1, UID + 2, os.getuid(), 65534])
def test_another_uid_gets_nothing(uid: int) -> None:
    reply, event = handle_workload_request(FETCH, Peer(uid, 7), LISTENER, never)
    assert reply["error"]["code"] == "unauthenticated"
    assert event["event"] == "identity.refused"
    assert event["context"]["uid"] == uid


def test_attestation_comes_before_the_request_is_read() -> None:
    reply, _ = handle_workload_request({"op": 7, "x": 1}, Peer(0, 7), LISTENER, never)
    assert reply["error"]["code"] == "unauthenticated"


MALFORMED: dict[str, dict[str, Any]] = {
    "empty": {},
    "no operation": {"id": 1},
    "another operation": {"id": 1, "op": "svid"},
    "operation is a list": {"id": 1, "op": ["fetch_x509_svid"]},
    "no id": {"op": "fetch_x509_svid"},
    "id is a bool": FETCH | {"id": True},
    "id is a float": FETCH | {"id": 1.0},
    "id is text": FETCH | {"id": "1"},
    "id below zero": FETCH | {"id": -1},
    "id too large": FETCH | {"id": 2**53},
    "unknown field": FETCH | {"uid": UID},
    "many unknown fields": FETCH | {f"f{n}": n for n in range(2_000)},
    "unknown field with a surrogate": FETCH | {"\ud800\x1b": 1},
    "identity is a number": FETCH | {"spiffe_id": 7},
    "identity is an object": FETCH | {"spiffe_id": {"a": 1}},
    "identity too long": FETCH | {"spiffe_id": "a" * 2_049},
}


@pytest.mark.parametrize("header", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_requests(header: dict[str, Any]) -> None:
    reply, event = handle_workload_request(header, PEER, LISTENER, never)
    assert reply["error"]["code"] == "invalid_request"
    assert type(reply["id"]) is int
    assert event["event"] == "invalid"
    assert len(encode(event)) < 2_000
    encode(reply)


def test_the_caller_is_told_a_code_and_a_plain_sentence() -> None:
    for header, peer in ((FETCH | {"spiffe_id": str(GATE)}, PEER), (FETCH, Peer(0, 1)), ({}, PEER)):
        error = handle_workload_request(header, peer, LISTENER, never)[0]["error"]
        assert (error["rule"], error["next_step"]) == ("", "")
        assert "pod-1" not in error["message"]
        assert str(UID) not in error["message"]


@pytest.mark.parametrize("problem", [NucleusError("key at /var/lib/x"), OSError(28, "No space left", "/var/lib/x")])
def test_a_ca_that_fails(problem: Exception) -> None:
    def broken(spiffe_id: SpiffeId) -> X509Svid:
        raise problem

    reply, event = handle_workload_request(FETCH, PEER, LISTENER, broken)
    assert reply["error"] == {
        "code": "internal_error",
        "message": "No identity can be issued now.",
        "rule": "",
        "next_step": "",
    }
    assert event["event"] == "error"


def test_a_ca_that_answers_with_another_identity() -> None:
    reply, event = handle_workload_request(FETCH, PEER, LISTENER, lambda _: fake(GATE))
    assert "ok" not in reply
    assert event["event"] == "error"


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=5)


@given(st.dictionaries(st.sampled_from(["id", "op", "spiffe_id"]) | st.text(), JSON, max_size=5))
def test_no_header_breaks_it(header: dict[str, Any]) -> None:
    reply, event = handle_workload_request(header, PEER, LISTENER, fake)
    encode(reply)
    encode(event)
    if "ok" in reply:
        assert reply["ok"]["spiffe_id"] == str(AGENT)


def test_peer_credentials_are_the_kernels() -> None:
    left, right = socket.socketpair()
    with left, right:
        assert peer_credentials(left) == Peer(os.getuid(), os.getpid())


def test_peer_credentials_of_another_uid(tmp_path: Any) -> None:
    if os.getuid() != 0:
        pytest.skip("needs root to become another uid")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0nucleus-identity-test-{os.getpid()}")
        listener.listen()
        code = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(chr(0) + sys.argv[1]); s.recv(1)"
        name = listener.getsockname().decode()[1:]
        child = subprocess.Popen([sys.executable, "-I", "-c", code, name], user=UID, group=UID, extra_groups=[])
        with child:
            accepted, _ = listener.accept()
            with accepted:
                assert peer_credentials(accepted) == Peer(UID, child.pid)
