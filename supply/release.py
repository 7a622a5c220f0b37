"""What a release says of itself, signed: in-toto's provenance (SLSA v1) of every file in dist, in a DSSE envelope.

Promises: `attest` speaks only of a commit (a tree with changes is refused); `verify` accepts a directory only if the
envelope's signature is of this key, every file that it names has the digest that it says, and no other file is there.
Relies on: an ECDSA P-256 or Ed25519 key that is kept elsewhere than the repository (docs/release.md).
Does not: reach a transparency log. Who has the key can sign what they like, unseen.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import subprocess
import zipfile
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from nucleus.cli import own_files
from supply import lock

ENVELOPE = "nucleus.intoto.jsonl"
PAYLOAD = "application/vnd.in-toto+json"
STATEMENT, PREDICATE = "https://in-toto.io/Statement/v1", "https://slsa.dev/provenance/v1"
BY_HAND = "urn:nucleus:builder:by-hand"
BUILD = "urn:nucleus:make-dist:v1"
_LARGEST = 1 << 20  # bytes of an envelope


class Refused(Exception):
    """The release is not what it should be; the message says how."""


def attest(dist: Path, key: bytes, builder: str = BY_HAND, root: Path = lock.ROOT) -> Path:
    """Write the envelope into `dist` and return its path.

    Args:
        dist: what `make dist` made.
        key: the private key, PEM (PKCS #8), not encrypted.
        builder: a URI of who builds.
        root: the repository.

    Raises:
        Refused: changes that are in no commit, no wheel, or a key of another kind.
    """
    if _git(root, "status", "--porcelain"):
        raise Refused("the tree has changes that are in no commit: what is released is a commit")
    private = serialization.load_pem_private_key(key, None)
    payload = json.dumps(statement(dist, _git(root, "rev-parse", "HEAD"), builder, root), sort_keys=True).encode()
    if isinstance(private, ed25519.Ed25519PrivateKey):
        signature = private.sign(_to_sign(PAYLOAD, payload))
    elif isinstance(private, ec.EllipticCurvePrivateKey) and isinstance(private.curve, ec.SECP256R1):
        signature = private.sign(_to_sign(PAYLOAD, payload), ec.ECDSA(hashes.SHA256()))
    else:
        raise Refused("the key is neither ECDSA P-256 nor Ed25519")
    envelope = {
        "payloadType": PAYLOAD,
        "payload": base64.b64encode(payload).decode(),
        "signatures": [{"keyid": _key_id(private.public_key()), "sig": base64.b64encode(signature).decode()}],
    }
    path = dist / ENVELOPE
    path.write_text(json.dumps(envelope) + "\n")
    return path


def statement(dist: Path, commit: str, builder: str, root: Path = lock.ROOT) -> dict[str, Any]:
    """The in-toto statement. Nothing in it but what the commit determines, and who builds."""
    wheel = _wheel(dist)
    materials = [{"uri": "git+nucleus", "digest": {"gitCommit": commit}}]
    for name in ("uv.lock", "supply/build.txt", "supply/uv.txt"):
        materials.append({"uri": f"file:{name}", "digest": {"sha256": _digest(root / name)}})
    files = {"name": "sha256 of nucleus --version --json", "digest": {"sha256": own_digest(wheel)}}
    return {
        "_type": STATEMENT,
        "subject": [{"name": path.name, "digest": {"sha256": _digest(path)}} for path in _files(dist)],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD,
                "externalParameters": {"target": "dist"},
                "resolvedDependencies": materials,
            },
            "runDetails": {"builder": {"id": builder}, "byproducts": [files]},
        },
    }


def verify(dist: Path, key: bytes) -> dict[str, Any]:
    """The statement, once everything in `dist` is what it says.

    Args:
        dist: the files of a release.
        key: the public key, PEM, from elsewhere than the release.

    Raises:
        Refused: the first thing that is not so.
    """
    public = serialization.load_pem_public_key(key)
    payload = _signed(dist / ENVELOPE, public)
    said = json.loads(payload)
    if said.get("_type") != STATEMENT or said.get("predicateType") != PREDICATE:
        raise Refused("the envelope holds no provenance")
    named = {one["name"]: one["digest"]["sha256"] for one in said["subject"]}
    there = {path.name: _digest(path) for path in _files(dist)}
    for name in sorted(named.keys() | there.keys()):
        if name not in there:
            raise Refused(f"{name} is missing")
        if name not in named:
            raise Refused(f"{name} is not in the provenance")
        if there[name] != named[name]:
            raise Refused(f"{name} is another file than the one that was released")
    (files,) = said["predicate"]["runDetails"]["byproducts"]
    if files["digest"]["sha256"] != own_digest(_wheel(dist)):
        raise Refused("the digest of the wheel's own files is another")
    return dict(said)


def own_digest(wheel: Path) -> str:
    """What `nucleus --version --json` of an install of this wheel says."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith(f"{own_files.PACKAGE}/")]
        return own_files.together({name: hashlib.sha256(archive.read(name)).digest() for name in names})


def _signed(path: Path, public: Any) -> bytes:
    """The payload of an envelope, once a signature of it is `public`'s."""
    try:
        with path.open("rb") as file:
            envelope = json.loads(file.read(_LARGEST))
        kind, payload = envelope["payloadType"], base64.b64decode(envelope["payload"], validate=True)
        signatures = [base64.b64decode(one["sig"], validate=True) for one in envelope["signatures"]]
    except FileNotFoundError:
        raise Refused(f"there is no {ENVELOPE}") from None
    except (ValueError, KeyError, TypeError, binascii.Error):
        raise Refused(f"{ENVELOPE} is no DSSE envelope") from None
    if kind != PAYLOAD:
        raise Refused(f"{ENVELOPE} holds no in-toto statement")
    for signature in signatures:
        try:
            if isinstance(public, ed25519.Ed25519PublicKey):
                public.verify(signature, _to_sign(kind, payload))
            elif isinstance(public, ec.EllipticCurvePublicKey) and isinstance(public.curve, ec.SECP256R1):
                public.verify(signature, _to_sign(kind, payload), ec.ECDSA(hashes.SHA256()))
            else:
                raise Refused("the key is neither ECDSA P-256 nor Ed25519")
        except InvalidSignature:
            continue
        return payload
    raise Refused("no signature of this key")


def _to_sign(kind: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding (secure-systems-lab/dsse, protocol.md)."""
    return b"DSSEv1 %d %s %d %s" % (len(kind.encode()), kind.encode(), len(payload), payload)


def _key_id(public: Any) -> str:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(public.public_bytes(serialization.Encoding.DER, form)).hexdigest()


def _files(dist: Path) -> list[Path]:
    return [path for path in sorted(dist.iterdir()) if path.name != ENVELOPE]


def _wheel(dist: Path) -> Path:
    wheels = sorted(dist.glob("*.whl"))
    if len(wheels) != 1:
        raise Refused(f"{len(wheels)} wheels in {dist}, not one")
    return wheels[0]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _git(root: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout.strip()
