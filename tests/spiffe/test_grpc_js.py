"""npm's @grpc/grpc-js, with the standard's service described in its own words, against `serve` and in a pod."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.test_identity_api import NAME, OTHER, Served

from .conftest import SPIFFE, in_a_pod

PROGRAM = str(Path(__file__).with_name("grpc_js.js"))
MODULES = f"{SPIFFE}/node/node_modules"
DENIED, INVALID = 7, 3  # gRPC's codes
CLAIMS = ["aud", "exp", "iat", "sub"]
pytestmark = pytest.mark.skipif(not Path(MODULES).is_dir(), reason="needs node and npm")


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    made = Served(0, "--refresh", "1")
    made.add("js", "unix:uid:0")
    yield made
    made.close()


def workload(served: Served, *words: str, uid: int = 0) -> dict[str, Any]:
    done = subprocess.run(
        ["node", PROGRAM, MODULES, f"unix://{served.socket}", *words],
        capture_output=True, text=True, timeout=90, cwd="/", user=uid, group=uid, extra_groups=[],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2_000:]
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def check(found: dict[str, Any], name: str) -> None:
    assert found["names"] == [name]
    assert (found["jwt"], found["valid"]) == (name, name)
    assert found["claims"] == CLAIMS
    assert found["trusted"]
    assert found["keys_fit"]
    assert (found["other"], found["bare"], found["stranger"]) == (INVALID, INVALID, DENIED)
    assert found["jwks"] == [1]
    assert found["secrets"] == ["Secret", "Secret"]


def test_every_call_and_six_rotations(served: Served) -> None:
    found = workload(served, "6")
    check(found, NAME + "js")
    assert found["serials"] == 6


def test_a_workload_without_an_entry_is_denied(served: Served) -> None:
    assert workload(served, uid=OTHER) == {"code": DENIED}


def test_in_a_pod() -> None:
    found = json.loads(in_a_pod("node", PROGRAM, MODULES, "unix:///run/nucleus/spiffe.sock"))
    (name,) = found["names"]
    assert "/sa/agent-pod-" in name
    check(found, name)
