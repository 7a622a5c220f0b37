"""The trust domain's keys in a PKCS#11 token (SoftHSM), through the public door."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator

import pytest

from nucleus.identity.svid import pem_to_der
from nucleus.identity.verify import verify_svid
from nucleus.pod.runtime import AUTHORITY_UID

from .site import USER, Site

MODULE = "/usr/lib/softhsm/libsofthsm2.so"
AGENT = "from nucleus.sdk.client import Gate; print(Gate().read('note.txt'))"

pytestmark = pytest.mark.skipif(
    not os.path.exists(MODULE) or shutil.which("softhsm2-util") is None, reason="no SoftHSM (Debian's softhsm2)"
)


class Hsm:
    """A token of a site's, in the hands of its authority."""

    def __init__(self, site: Site, uid: int) -> None:
        self.site = site
        self.tokens = site.directory / "tokens"
        self.tokens.mkdir(mode=0o700)
        self.conf = site.directory / "softhsm2.conf"
        self.conf.write_text(f"directories.tokendir = {self.tokens}\nobjectstore.backend = file\nlog.level = ERROR\n")
        self.conf.chmod(0o644)
        self.pin = site.home / "pin"
        self.pin.write_text("pin-of-the-user-123\n")
        self.pin.chmod(0o600)
        init = ["softhsm2-util", "--init-token", "--free", "--label", "nucleus ca", "--so-pin", "so-pin", "--pin"]
        env = {**os.environ, "SOFTHSM2_CONF": str(self.conf)}
        subprocess.run([*init, "pin-of-the-user-123"], env=env, check=True, capture_output=True)
        for path in [self.tokens, *self.tokens.rglob("*")]:
            os.chown(path, uid, uid)
        os.chown(self.pin, site.uid, site.uid)

    def choose(self, *more: str, uri: str = f"pkcs11:token=nucleus%20ca?module-path={MODULE}") -> tuple[int, str]:
        pin = ("--pin-file", str(self.pin), "--env", f"SOFTHSM2_CONF={self.conf}")
        done = self.site.cli("identity", "ca", "signer", uri, *(more or pin))
        return done.returncode, done.stdout + done.stderr

    def objects(self) -> int:
        return len(list(self.tokens.rglob("*.object"))) - 1  # one is the token itself


@pytest.fixture(params=["root", "user"])
def hsm(request: pytest.FixtureRequest) -> Iterator[Hsm]:
    site = Site(0 if request.param == "root" else USER)
    yield Hsm(site, AUTHORITY_UID if request.param == "root" else USER)
    site.close()


def issued(site: Site, name: str) -> list[bytes]:
    out = site.home / name
    done = site.cli("identity", "issue", f"spiffe://nucleus.local/{name}", "--out", str(out))
    assert done.returncode == 0, done.stderr
    return pem_to_der((out / "svid.pem").read_text())


def private_keys(site: Site) -> list[str]:
    state = [path for path in site.directory.rglob("*") if path.is_file() and "tokens" not in path.parts]
    return [path.name for path in state if b"PRIVATE KEY" in path.read_bytes()]


def test_pods_tokens_and_rotation_with_keys_that_never_leave_the_token(hsm: Hsm) -> None:
    site = hsm.site
    site.write("note.txt", "signed in a token")
    assert hsm.choose() == (0, "keys: token nucleus ca (SoftHSM project SoftHSM v2)\n")
    run = ["run", "--profile", "codegen", "--trust-workspace", "--workdir", str(site.workspace)]
    ran = site.cli(*run, "--", "python3", "-c", AGENT)
    assert ran.stdout == "signed in a token\n", ran.stderr
    roots = {"nucleus.local": tuple(pem_to_der(site.cli("identity", "bundle").stdout))}
    assert str(verify_svid(issued(site, "a"), roots, time.time_ns(), role="client")) == "spiffe://nucleus.local/a"
    token = site.cli("identity", "issue", "spiffe://nucleus.local/a", "--audience", "b").stdout
    checked = site.home / "token"
    checked.write_text(token)
    os.chmod(checked, 0o644)
    assert site.cli("identity", "verify", str(checked), "--audience", "b").returncode == 0
    # A root and a JWT key, each two objects; nothing else here is a private key, but that of the log's checkpoints
    # and of the SVIDs that were written out.
    assert hsm.objects() == 4
    assert {name for name in private_keys(site) if name not in ("key.pem",)} <= {"checkpoint.key"}
    assert b"pin-of-the-user-123" not in b"".join(
        path.read_bytes()
        for path in site.directory.rglob("*")
        if path.is_file() and path.name not in ("pin", "signer-pin")
    )
    # Another start finds them again.
    assert site.cli("helper", "stop").returncode == 0
    assert verify_svid(issued(site, "c"), roots, time.time_ns(), role="client")
    assert hsm.objects() == 4
    shown = json.loads(site.cli("identity", "ca", "signer", "--json").stdout)
    assert (shown["kind"], shown["token"]) == ("pkcs11", "nucleus ca")
    assert site.verify().returncode == 0


def test_a_token_that_is_gone_signs_nothing_and_comes_back(hsm: Hsm) -> None:
    site = hsm.site
    assert hsm.choose()[0] == 0
    issued(site, "before")
    bundle = site.cli("identity", "bundle").stdout
    away = site.directory / "away"
    hsm.tokens.rename(away)
    gone = site.cli("identity", "issue", "spiffe://nucleus.local/x", "--out", str(site.home / "x"))
    assert gone.returncode == 1
    assert "rule: identity.signer" in gone.stderr
    assert "the PKCS#11 token does not sign" in gone.stderr
    assert site.cli("identity", "bundle").stdout == bundle  # what verifies is not gone
    away.rename(hsm.tokens)
    issued(site, "after")


def test_keys_in_files_stay_usable_and_the_next_are_the_tokens(hsm: Hsm) -> None:
    site = hsm.site
    before = issued(site, "before")
    assert "an authority runs" in hsm.choose()[1]
    assert site.cli("helper", "stop").returncode == 0
    assert hsm.choose()[0] == 0
    assert hsm.objects() == 0  # the root of the files signs until it is replaced
    roots = {"nucleus.local": tuple(pem_to_der(site.cli("identity", "bundle").stdout))}
    for chain in (before, issued(site, "after")):
        verify_svid(chain, roots, time.time_ns(), role="client")
    before_request = hsm.objects()  # the first JWT key, of the bundle
    request = site.cli("identity", "ca", "request")
    assert request.returncode == 0, request.stderr
    assert "BEGIN CERTIFICATE REQUEST" in request.stdout
    assert hsm.objects() == before_request + 2 == 4  # made in the token, and signed with
    assert site.cli("helper", "stop").returncode == 0
    assert hsm.choose("--json", uri="files")[0] == 0
    issued(site, "again")


@pytest.mark.parametrize("hsm", ["root"], indirect=True)
def test_what_cannot_be_used_is_not_kept(hsm: Hsm) -> None:
    site = hsm.site
    env = ("--env", f"SOFTHSM2_CONF={hsm.conf}")
    wrong = site.home / "wrong"
    wrong.write_text("another pin")
    wrong.chmod(0o600)
    for uri, more, code, why in (
        (f"pkcs11:token=nobody?module-path={MODULE}", ("--pin-file", str(hsm.pin), *env), 1, "does not sign"),
        (f"pkcs11:token=nucleus%20ca?module-path={MODULE}", ("--pin-file", str(wrong), *env), 1, "PinIncorrect"),
        ("pkcs11:token=nucleus%20ca?module-path=/none.so", ("--pin-file", str(hsm.pin), *env), 1, "No such file"),
        ("pkcs11:token=a?module-path=relative.so", ("--pin-file", str(hsm.pin)), 2, "module-path=/absolute"),
        ("pkcs11:token=a;object=b?module-path=/x.so", ("--pin-file", str(hsm.pin)), 2, "'object'"),
        ("pkcs11:token=a?module-path=/x.so&pin-value=1234", ("--pin-file", str(hsm.pin)), 2, "'pin-value'"),
        (f"pkcs11:token=a?module-path={MODULE}", ("--env", "A=B"), 2, "needs the token's PIN"),
        (
            f"pkcs11:token=a?module-path={MODULE}",
            ("--pin-file", str(hsm.pin), "--env", "LD_PRELOAD=/x"),
            2,
            "LD_PRELOAD",
        ),
        ("kms:token=a", ("--pin-file", str(hsm.pin)), 2, "ca signer takes"),
    ):
        site.cli("helper", "stop")
        status, said = hsm.choose(*more, uri=uri)
        assert (status, why in said) == (code, True), said
        assert "pin-of-the-user-123" not in said
        assert not (site.directory / "state" / "signer.json").exists()
        assert not (site.directory / "state" / "signer-pin").exists()
    foreign = site.directory / "module.so"
    shutil.copy(MODULE, foreign)
    foreign.chmod(0o666)
    site.cli("helper", "stop")
    status, said = hsm.choose("--pin-file", str(hsm.pin), *env, uri=f"pkcs11:token=nucleus%20ca?module-path={foreign}")
    assert (status, "can be changed by others than root: not loaded" in said) == (1, True)
    hsm.pin.chmod(0o644)
    assert "can be read by others" in hsm.choose()[1]
    issued(site, "still")
