"""The CA: what it writes, what it refuses to read, what a leaf says, and that renewal strands nobody."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from nucleus.errors import InvalidError, NucleusError, UnauthenticatedError
from nucleus.identity.ca import BACKDATE_NS, HOUR_NS, MAX_TTL_NS, ROOT_TTL_NS, CertificateAuthority
from nucleus.identity.jwt_keys import JwtKeys
from nucleus.identity.keys import Keys
from nucleus.identity.spiffe_id import SpiffeId
from nucleus.identity.svid import X509Svid, pem_to_der
from nucleus.identity.verify import verify_svid

from .certificates import AGENT, GATE, NOW, SECOND, TRUST_DOMAIN, uri


def reopen(tmp_path: Path, now: int = NOW, trust_domain: str = TRUST_DOMAIN) -> CertificateAuthority:
    return CertificateAuthority.load_or_create(tmp_path / "ca", trust_domain, now=now)


def leaf_of(svid: X509Svid) -> x509.Certificate:
    return x509.load_pem_x509_certificate(svid.cert_pem.encode())


def files(tmp_path: Path, suffix: str) -> list[Path]:
    return sorted((tmp_path / "ca").glob(f"root-*.{suffix}"))


# -- the leaf ------------------------------------------------------------------------------------------------------


def test_what_a_leaf_says(ca: CertificateAuthority) -> None:
    svid = ca.issue(AGENT, now=NOW)
    leaf, root = leaf_of(svid), x509.load_pem_x509_certificate(svid.bundle_pem.encode())
    get = leaf.extensions.get_extension_for_class
    san, usage, basic = get(x509.SubjectAlternativeName), get(x509.KeyUsage), get(x509.BasicConstraints)
    assert san.critical
    assert list(san.value) == [x509.UniformResourceIdentifier(str(AGENT))]
    assert not leaf.subject.rdns
    assert usage.critical
    flags = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    assert [name for name in (*flags, "key_cert_sign", "crl_sign") if getattr(usage.value, name)] == [flags[0]]
    assert basic.critical
    assert not basic.value.ca
    assert set(get(x509.ExtendedKeyUsage).value) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    key_id = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert get(x509.AuthorityKeyIdentifier).value.key_identifier == key_id
    assert get(x509.SubjectKeyIdentifier).value.digest != key_id
    assert leaf.serial_number.bit_length() > 96  # 159 random bits; 96 leaves no room for a flaky test
    assert isinstance(leaf.signature_hash_algorithm, hashes.SHA256)


def test_a_leafs_life(ca: CertificateAuthority) -> None:
    svid = ca.issue(AGENT, ttl_ns=90 * SECOND, now=NOW)
    leaf = leaf_of(svid)
    assert (
        int(leaf.not_valid_after_utc.timestamp()) * SECOND == svid.expires_ns == (NOW + 90 * SECOND) // SECOND * SECOND
    )
    assert int(leaf.not_valid_before_utc.timestamp()) == (NOW - BACKDATE_NS) // SECOND
    assert svid.issued_ns == NOW
    assert NOW < svid.renew_at_ns() < NOW + 46 * SECOND


def test_the_key_is_pkcs8_p256_and_the_leafs(ca: CertificateAuthority) -> None:
    svid = ca.issue(AGENT, now=NOW)
    assert svid.key_pem.startswith("-----BEGIN PRIVATE KEY-----")
    key = serialization.load_pem_private_key(svid.key_pem.encode(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(key.curve, ec.SECP256R1)
    assert key.public_key() == leaf_of(svid).public_key()


def test_keys_and_serials_are_never_repeated(ca: CertificateAuthority) -> None:
    svids = [ca.issue(AGENT, now=NOW) for _ in range(20)]
    assert len({svid.key_pem for svid in svids}) == len({leaf_of(svid).serial_number for svid in svids}) == 20


@pytest.mark.parametrize(
    ("spiffe_id", "ttl_ns"),
    [
        (SpiffeId("other.test", "/x"), HOUR_NS),
        (SpiffeId(TRUST_DOMAIN), HOUR_NS),
        (AGENT, 0),
        (AGENT, -HOUR_NS),
        (AGENT, SECOND - 1),
        (AGENT, MAX_TTL_NS + 1),
    ],
)
def test_what_it_does_not_issue(ca: CertificateAuthority, spiffe_id: SpiffeId, ttl_ns: int) -> None:
    with pytest.raises(InvalidError):
        ca.issue(spiffe_id, ttl_ns=ttl_ns, now=NOW)


def test_reprs_hold_no_key(ca: CertificateAuthority) -> None:
    svid = ca.issue(AGENT, now=NOW)
    shown = repr(svid) + repr(ca) + repr(ca._roots) + str(svid)
    assert "PRIVATE" not in shown
    assert svid.key_pem.splitlines()[1] not in shown


# -- CSR -----------------------------------------------------------------------------------------------------------


def csr(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, name: str = str(GATE)) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(uri(name), True)
    builder = builder.add_extension(x509.BasicConstraints(True, None), True)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()])
def test_a_csr_gives_its_key_and_nothing_else(ca: CertificateAuthority, curve: ec.EllipticCurve) -> None:
    key = ec.generate_private_key(curve)
    svid = ca.issue_for_csr(AGENT, csr(key), now=NOW)  # the CSR asks to be GATE, and a CA
    assert svid.key_pem == ""
    assert leaf_of(svid).public_key() == key.public_key()
    assert verify_svid(pem_to_der(svid.cert_pem), svid.roots(), NOW, role="client") == AGENT


def tampered() -> bytes:
    """Somebody else's public key in a CSR that they did not sign."""
    mine, theirs = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    form = (serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    return csr(mine).replace(mine.public_key().public_bytes(*form), theirs.public_key().public_bytes(*form))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x30\x00",
        b"x" * 9_000,
        tampered(),
        csr(ec.generate_private_key(ec.SECP256R1())) + b"\0",
        csr(ec.generate_private_key(ec.SECP521R1())),
        csr(rsa.generate_private_key(65537, 2048)),
    ],
    ids=["empty", "not a CSR", "too large", "no proof of possession", "trailing byte", "P-521", "RSA"],
)
def test_bad_csr(ca: CertificateAuthority, data: bytes) -> None:
    with pytest.raises(InvalidError) as caught:
        ca.issue_for_csr(AGENT, data, now=NOW)
    assert caught.value.rule == "identity.csr"


# -- the root and its files ----------------------------------------------------------------------------------------


def test_what_a_root_says(ca: CertificateAuthority) -> None:
    root = x509.load_pem_x509_certificate(ca.bundle_pem(NOW).encode())
    get = root.extensions.get_extension_for_class
    assert list(get(x509.SubjectAlternativeName).value) == [x509.UniformResourceIdentifier(f"spiffe://{TRUST_DOMAIN}")]
    assert get(x509.BasicConstraints).critical
    assert get(x509.BasicConstraints).value.ca
    usage = get(x509.KeyUsage)
    assert usage.critical
    assert (usage.value.key_cert_sign, usage.value.crl_sign, usage.value.digital_signature) == (True, True, False)
    assert isinstance(root.public_key(), ec.EllipticCurvePublicKey)
    assert (root.not_valid_after_utc - root.not_valid_before_utc).total_seconds() == (
        ROOT_TTL_NS + BACKDATE_NS
    ) / SECOND
    root.verify_directly_issued_by(root)


def test_files_are_closed_to_others(ca: CertificateAuthority, tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        CertificateAuthority.load_or_create(tmp_path / "open-umask", TRUST_DOMAIN, now=NOW)
    finally:
        os.umask(old)
    for directory in (tmp_path / "ca", tmp_path / "open-umask"):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert len(list(directory.iterdir())) == 3
        assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}


def test_the_key_is_on_the_disk_before_its_certificate_has_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut can leave is a key without a certificate, never a certificate without its key."""
    steps: list[str] = []
    real_open, real_sync, real_rename = os.open, os.fsync, os.rename

    def spy_open(path: str, flags: int, *mode: int) -> int:
        if flags & os.O_CREAT and not str(path).endswith("lock"):
            assert flags & os.O_EXCL
            steps.append("create " + Path(path).suffix)
        return real_open(path, flags, *mode)

    def spy_sync(fd: int) -> None:
        steps.append("sync " + Path(os.readlink(f"/proc/self/fd/{fd}")).suffix)
        real_sync(fd)

    def spy_rename(source: Path, target: Path) -> None:
        steps.append(f"rename {source.suffix} {target.suffix}")
        real_rename(source, target)

    monkeypatch.setattr(os, "open", spy_open)
    monkeypatch.setattr(os, "fsync", spy_sync)
    monkeypatch.setattr(os, "rename", spy_rename)
    reopen(tmp_path)
    wanted = ["create .key", "sync .key", "sync ", "create .tmp", "sync .tmp", "rename .tmp .pem", "sync "]
    assert steps[: len(wanted)] == wanted


def test_reopened_it_is_the_same_ca(ca: CertificateAuthority, tmp_path: Path) -> None:
    again = reopen(tmp_path)
    assert again.bundle_pem(NOW) == ca.bundle_pem(NOW)
    svid = again.issue(AGENT, now=NOW)
    assert verify_svid(pem_to_der(svid.cert_pem), ca.roots(NOW), NOW, role="client") == AGENT


def test_it_is_a_ca_of_one_trust_domain(ca: CertificateAuthority, tmp_path: Path) -> None:
    with pytest.raises(NucleusError, match="another trust domain"):
        reopen(tmp_path, trust_domain="elsewhere.test")
    with pytest.raises(InvalidError):
        reopen(tmp_path, trust_domain="Not.A.Domain")


def loose_mode(directory: Path) -> None:
    next(directory.glob("*.key")).chmod(0o640)


def loose_directory(directory: Path) -> None:
    directory.chmod(0o755)


def linked_key(directory: Path) -> None:
    key = next(directory.glob("*.key"))
    key.rename(directory.parent / "moved")
    key.symlink_to(directory.parent / "moved")


def hard_linked_key(directory: Path) -> None:
    os.link(next(directory.glob("*.key")), directory.parent / "copy")


def swapped_key(directory: Path) -> None:
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    next(directory.glob("*.key")).write_bytes(pem)


def cut_key(directory: Path) -> None:
    os.truncate(next(directory.glob("*.key")), 60)


def cut_certificate(directory: Path) -> None:
    os.truncate(next(directory.glob("*.pem")), 60)


def huge_key(directory: Path) -> None:
    os.truncate(next(directory.glob("*.key")), 1_000_000)


def fifo_key(directory: Path) -> None:
    key = next(directory.glob("*.key"))
    key.unlink()
    os.mkfifo(key, 0o600)


def stranger(directory: Path) -> None:
    (directory / "notes.txt").write_text("?")


def linked_lock(directory: Path) -> None:
    (directory / "lock").unlink()
    (directory / "lock").symlink_to("/etc/hostname")


DAMAGES = (loose_mode, loose_directory, linked_key, hard_linked_key, swapped_key, cut_key, cut_certificate)
DAMAGES += (huge_key, fifo_key, stranger)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused_and_nothing_replaced(
    ca: CertificateAuthority, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    damage(tmp_path / "ca")
    before = sorted(os.listdir(tmp_path / "ca"))
    with pytest.raises(NucleusError) as caught:
        reopen(tmp_path)
    assert caught.value.rule == "identity.ca"
    assert sorted(os.listdir(tmp_path / "ca")) == before


def test_a_linked_lock_is_not_followed(ca: CertificateAuthority, tmp_path: Path) -> None:
    linked_lock(tmp_path / "ca")
    with pytest.raises(OSError):
        reopen(tmp_path)


def test_a_crash_between_key_and_certificate(ca: CertificateAuthority, tmp_path: Path) -> None:
    for orphan in ("root-00.key", "root-00.tmp"):
        (tmp_path / "ca" / orphan).write_bytes(b"half")
    assert reopen(tmp_path).bundle_pem(NOW) == ca.bundle_pem(NOW)
    assert len(files(tmp_path, "key")) == len(files(tmp_path, "pem")) == 1


# -- renewal -------------------------------------------------------------------------------------------------------


def test_no_renewal_in_the_first_half(ca: CertificateAuthority, tmp_path: Path) -> None:
    ca.issue(AGENT, now=NOW + ROOT_TTL_NS // 2 - SECOND)
    assert len(files(tmp_path, "pem")) == 1


def test_the_next_root_is_published_before_it_signs(ca: CertificateAuthority, tmp_path: Path) -> None:
    first = ca.roots(NOW)
    due = NOW + ROOT_TTL_NS // 2 + SECOND
    svid = ca.issue(AGENT, now=due)
    assert len(svid.roots()[TRUST_DOMAIN]) == 2
    assert verify_svid(pem_to_der(svid.cert_pem), first, due, role="client") == AGENT  # still the old signer
    assert reopen(tmp_path, due).roots(due) == ca.roots(due)
    later = due + MAX_TTL_NS
    after = ca.issue(AGENT, now=later)
    with pytest.raises(UnauthenticatedError):
        verify_svid(pem_to_der(after.cert_pem), first, later, role="client")
    assert verify_svid(pem_to_der(after.cert_pem), svid.roots(), later, role="client") == AGENT


def test_any_two_live_svids_trust_each_other_over_two_weeks(tmp_path: Path) -> None:
    """Each holder has only the bundle that came with its SVID; an idle gap and a restart are in it too."""
    ca, now, live = reopen(tmp_path), NOW, list[X509Svid]()
    for step in range(14 * 12):
        now += 2 * HOUR_NS if step != 50 else 100 * HOUR_NS
        if step % 7 == 0:
            ca = reopen(tmp_path, now)
        live = [svid for svid in live if svid.expires_ns > now]
        live.append(ca.issue(AGENT, ttl_ns=(MAX_TTL_NS, HOUR_NS)[step % 2], now=now))
        for holder in live:
            assert verify_svid(pem_to_der(live[-1].cert_pem), holder.roots(), now, role="client") == AGENT
            assert verify_svid(pem_to_der(holder.cert_pem), live[-1].roots(), now, role="client") == AGENT
        assert len(files(tmp_path, "pem")) <= 3


def test_a_replaced_roots_key_is_destroyed_and_the_root_kept(ca: CertificateAuthority, tmp_path: Path) -> None:
    old = files(tmp_path, "key")
    due = NOW + ROOT_TTL_NS // 2 + SECOND
    ca.maintain(due)
    assert len(files(tmp_path, "key")) == 2
    ca.maintain(due + MAX_TTL_NS)
    assert len(files(tmp_path, "key")) == 1
    assert files(tmp_path, "key") != old
    assert len(files(tmp_path, "pem")) == len(ca.roots(due + MAX_TTL_NS)[TRUST_DOMAIN]) == 2
    assert len(reopen(tmp_path, due + MAX_TTL_NS).roots(due + MAX_TTL_NS)[TRUST_DOMAIN]) == 2


def test_expired_roots_go(ca: CertificateAuthority, tmp_path: Path) -> None:
    first = files(tmp_path, "pem")
    later = NOW + 2 * ROOT_TTL_NS
    svid = ca.issue(AGENT, now=later)
    assert len(svid.roots()[TRUST_DOMAIN]) == 1
    assert files(tmp_path, "pem") != first
    assert len(os.listdir(tmp_path / "ca")) == 3


def test_a_leaf_never_outlives_its_root(ca: CertificateAuthority) -> None:
    for hours in range(0, 160, 12):
        svid = ca.issue(AGENT, ttl_ns=MAX_TTL_NS, now=NOW + hours * HOUR_NS)
        ends = [x509.load_der_x509_certificate(der).not_valid_after_utc for der in svid.roots()[TRUST_DOMAIN]]
        assert leaf_of(svid).not_valid_after_utc <= max(ends)
        assert svid.expires_ns > NOW + hours * HOUR_NS


def test_the_clock_goes_back(ca: CertificateAuthority, tmp_path: Path) -> None:
    before = NOW - 5 * HOUR_NS
    svid = ca.issue(AGENT, now=before)
    assert verify_svid(pem_to_der(svid.cert_pem), svid.roots(), before, role="client") == AGENT
    again = reopen(tmp_path, before)
    assert len(again.roots(before)[TRUST_DOMAIN]) == 2  # and does not grow with each start


def test_a_clock_that_keeps_going_back_does_not_fill_the_disk(ca: CertificateAuthority, tmp_path: Path) -> None:
    def run_backwards() -> None:
        for hours in range(1, 64):
            ca.maintain(NOW - hours * HOUR_NS)

    with pytest.raises(NucleusError, match="clock"):
        run_backwards()
    assert len(files(tmp_path, "pem")) == 16


# -- the SVID as it travels ----------------------------------------------------------------------------------------


def test_the_wire_form(ca: CertificateAuthority) -> None:
    svid = ca.issue(AGENT, now=NOW)
    wire = svid.to_wire()
    assert X509Svid.from_wire(wire, now=NOW) == svid
    for name in wire:
        for bad in (None, 7.5, ["x"], b"x"):
            with pytest.raises(InvalidError):
                X509Svid.from_wire(wire | {name: bad}, now=NOW)
    with pytest.raises(InvalidError):
        X509Svid.from_wire(wire | {"cert_pem": "x" * 200_000}, now=NOW)
    with pytest.raises(InvalidError):
        X509Svid.from_wire(wire | {"expires_ns": True}, now=NOW)


@pytest.mark.parametrize(
    "pem",
    [
        "",
        "hello",
        "-----BEGIN CERTIFICATE-----\nAAAA",
        "-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----",
        "-----BEGIN CERTIFICATE-----\nAAA\n-----END CERTIFICATE-----",
        "-----BEGIN CERTIFICATE-----\n\u00e9\u00e9\u00e9\u00e9\n-----END CERTIFICATE-----",
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\nmore",
    ],
)
def test_bad_pem(pem: str) -> None:
    with pytest.raises(InvalidError):
        pem_to_der(pem)


class Gone:
    """A token that makes no key any more."""

    def __init__(self) -> None:
        self.gone = False

    def make(self, label: str) -> tuple[ec.EllipticCurvePrivateKey, bytes]:
        if self.gone:
            raise NucleusError("gone", rule="identity.signer")
        return Keys().make(label)

    def load(self, kept: bytes) -> ec.EllipticCurvePrivateKey:
        return Keys().load(kept)

    def remove(self, kept: bytes) -> None: ...

    def check(self) -> dict[str, str]:
        return {}


def test_roots_and_jwt_keys_that_live_count_although_no_next_one_can_be_made(tmp_path: Path) -> None:
    token = Gone()
    keys = Keys(token)
    made = CertificateAuthority.load_or_create(tmp_path / "ca", "nucleus.test", now=NOW, keys=keys)
    jwt = JwtKeys(str(tmp_path / "jwt.json"), now=NOW, keys=keys)
    bundle, names = made.bundle_pem(NOW), list(jwt.public(NOW))
    token.gone = True
    later = NOW + 60 * HOUR_NS  # past the half of the root's life
    assert made.bundle_pem(later) == bundle
    assert made.issue(SpiffeId("nucleus.test", "/a"), now=later)
    assert list(jwt.public(NOW + 13 * HOUR_NS)) == names
    with pytest.raises(NucleusError):
        made.issue(SpiffeId("nucleus.test", "/a"), now=NOW + 97 * HOUR_NS)
    with pytest.raises(NucleusError):
        jwt.public(NOW + 25 * HOUR_NS)
    token.gone = False
    assert made.issue(SpiffeId("nucleus.test", "/a"), now=NOW + 97 * HOUR_NS)
