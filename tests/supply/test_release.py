"""A release's provenance: what was signed verifies; another file, or another's signature, does not."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from nucleus.cli import own_files
from supply import __main__ as program
from supply import release

Keys = tuple[bytes, bytes]
KINDS = [ed25519.Ed25519PrivateKey.generate, lambda: ec.generate_private_key(ec.SECP256R1())]


def pair(make: Callable[[], ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey]) -> Keys:
    """(private, public), PEM."""
    key, pem = make(), serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return private, key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository of one commit, with what a release names of it."""
    made = tmp_path / "repository"
    (made / "supply").mkdir(parents=True)
    for name in ("uv.lock", "supply/build.txt", "supply/uv.txt"):
        (made / name).write_text(name)
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "one"]):
        subprocess.run(["git", *words], cwd=made, check=True)
    return made


@pytest.fixture
def dist(tmp_path: Path) -> Path:
    made = tmp_path / "dist"
    made.mkdir()
    with zipfile.ZipFile(made / "nucleus-0.1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("nucleus/__init__.py", "x = 1\n")
        archive.writestr("nucleus/gate/pipeline.py", "y = 1\n")
        archive.writestr("nucleus-0.1.0.dist-info/METADATA", "Name: nucleus\n")
    (made / "nucleus.cdx.json").write_text("{}")
    return made


@pytest.mark.parametrize("make", KINDS)
def test_what_was_signed_verifies(make: Callable[[], ed25519.Ed25519PrivateKey], root: Path, dist: Path) -> None:
    private, public = pair(make)
    release.attest(dist, private, root=root)
    said = release.verify(dist, public)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True).stdout
    definition = said["predicate"]["buildDefinition"]
    assert definition["resolvedDependencies"][0]["digest"] == {"gitCommit": commit.strip()}
    assert [one["name"] for one in said["subject"]] == ["nucleus-0.1.0-py3-none-any.whl", "nucleus.cdx.json"]
    envelope = json.loads((dist / release.ENVELOPE).read_text())
    assert base64.b64decode(envelope["payload"]) == json.dumps(said, sort_keys=True).encode()


def test_the_digest_is_the_one_that_an_install_tells(root: Path, dist: Path, tmp_path: Path) -> None:
    release.attest(dist, pair(KINDS[0])[0], root=root)
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as archive:
        archive.extractall(tmp_path / "site")
    assert release.own_digest(next(dist.glob("*.whl"))) == own_files.report(str(tmp_path / "site"))["sha256"]


def changed(dist: Path) -> None:
    (dist / "nucleus.cdx.json").write_text("{ }")


def added(dist: Path) -> None:
    (dist / "other-1-py3-none-any.tar.gz").write_text("")


def removed(dist: Path) -> None:
    (dist / "nucleus.cdx.json").unlink()


def unsigned(dist: Path) -> None:
    (dist / release.ENVELOPE).unlink()


def reworded(dist: Path) -> None:
    path = dist / release.ENVELOPE
    envelope = json.loads(path.read_text())
    said = json.loads(base64.b64decode(envelope["payload"]))
    said["subject"][1]["digest"]["sha256"] = hashlib.sha256(b"{ }").hexdigest()
    (dist / "nucleus.cdx.json").write_text("{ }")
    path.write_text(json.dumps({**envelope, "payload": base64.b64encode(json.dumps(said).encode()).decode()}))


def retyped(dist: Path) -> None:
    path = dist / release.ENVELOPE
    path.write_text(json.dumps({**json.loads(path.read_text()), "payloadType": "text/plain"}))


def nonsense(dist: Path) -> None:
    (dist / release.ENVELOPE).write_text("[]")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (changed, "another file"), (added, "not in the provenance"), (removed, "missing"), (unsigned, "there is no"),
        (reworded, "no signature"), (retyped, "no in-toto"), (nonsense, "no DSSE envelope"),
    ],
)  # fmt: skip
def test_what_is_not_what_was_signed(harm: Callable[[Path], None], said: str, root: Path, dist: Path) -> None:
    private, public = pair(KINDS[0])
    release.attest(dist, private, root=root)
    harm(dist)
    with pytest.raises(release.Refused, match=said):
        release.verify(dist, public)


def test_another_key_is_refused(root: Path, dist: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    private, public = pair(KINDS[0])
    release.attest(dist, private, root=root)
    for name, data in (("own.pem", public), ("other.pem", pair(KINDS[0])[1]), ("third.pem", pair(KINDS[1])[1])):
        (tmp_path / name).write_bytes(data)
    assert program.main(["verify", str(dist), "--key", str(tmp_path / "own.pem")]) == 0
    assert "2 files of commit" in capsys.readouterr().out
    for name in ("other.pem", "third.pem"):
        assert program.main(["verify", str(dist), "--key", str(tmp_path / name)]) == 1
        assert "no signature of this key" in capsys.readouterr().out


def test_what_is_in_no_commit_is_not_released(root: Path, dist: Path) -> None:
    (root / "uv.lock").write_text("changed")
    with pytest.raises(release.Refused, match="no commit"):
        release.attest(dist, pair(KINDS[0])[0], root=root)
    assert not (dist / release.ENVELOPE).exists()


def test_a_key_of_another_kind_is_refused(root: Path, dist: Path) -> None:
    with pytest.raises(release.Refused, match="neither"):
        release.attest(dist, pair(lambda: ec.generate_private_key(ec.SECP384R1()))[0], root=root)
