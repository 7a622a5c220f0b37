"""PyPI's `spiffe` (WorkloadApiClient, X509Source, JwtSource) against `nucleus identity serve`, and in a pod."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.test_identity_api import NAME, OTHER, Served

from .conftest import SPIFFE, in_a_pod

PROGRAM = Path(__file__).with_name("py_spiffe.py")


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    made = Served(0, "--refresh", "1")
    made.add("py", "unix:uid:0", hint="main")
    yield made
    made.close()


def workload(served: Served, what: str, uid: int = 0) -> dict[str, Any]:
    done = subprocess.run(
        [f"{SPIFFE}/venv/bin/python", "-W", "ignore", "-c", PROGRAM.read_text(), f"unix://{served.socket}", what],
        capture_output=True, text=True, timeout=90, cwd="/", user=uid, group=uid, extra_groups=[], env={},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2_000:]
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_everything_is_fetched_and_a_token_validated(served: Served) -> None:
    found = workload(served, "fetched")
    assert (found["x509"], found["jwt"], found["valid"]) == (NAME + "py",) * 3
    assert found["bundles"] == found["jwt_bundles"]
    assert "nucleus.local" in found["bundles"][0]
    assert "not for this audience" in found["refused"]


def test_an_x509_source_sees_ten_rotations_and_trusts_each(served: Served) -> None:
    found = workload(served, "rotations")
    assert found["rotations"] == 11
    assert found["trusted"] >= 11


def test_a_jwt_source(served: Served) -> None:
    assert workload(served, "jwt") == {"jwt": NAME + "py", "keys": 1}


def test_a_workload_without_an_entry_is_denied(served: Served) -> None:
    assert "PERMISSION_DENIED" in workload(served, "denied", OTHER)["denied"]


def test_in_a_pod() -> None:
    words = (f"{SPIFFE}/venv/bin/python", "-I", "-W", "ignore", str(PROGRAM))
    found = json.loads(in_a_pod(*words, "unix:///run/nucleus/spiffe.sock", "fetched"))
    assert "/sa/agent-pod-" in found["x509"]
    assert found["x509"] == found["jwt"] == found["valid"]
    assert "not for this audience" in found["refused"]
    assert found["bundles"] == found["jwt_bundles"]
