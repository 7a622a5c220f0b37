"""Our CA below another one: which chains are taken, when they sign, and that no root of ours comes back by itself."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from nucleus.errors import InvalidError, NucleusError
from nucleus.identity.ca import HOUR_NS, CertificateAuthority
from nucleus.identity.spiffe_id import SpiffeId
from nucleus.identity.svid import pem_to_der
from nucleus.identity.verify import verify_svid

NOW = 1_800_000_000_000_000_000
DAY_NS = 24 * HOUR_NS
APP = SpiffeId("nucleus.local", "/app")
Pem = serialization.Encoding.PEM


def moment(ns: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(ns / 1e9, datetime.UTC)


class Above:
    """Another CA, with a root that is kept elsewhere."""

    def __init__(self, name: str = "an offline root", start: int = NOW) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self.root = self.sign(self.key.public_key(), self.name, days=3_650, path_length=None, start=start)

    def sign(
        self, key: Any, subject: x509.Name, *, days: float = 30, path_length: int | None = 0, ca: bool = True,
        signs: bool = True, identified: bool = True, names: tuple[str, ...] = (), start: int = NOW,
    ) -> x509.Certificate:  # fmt: skip
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(moment(start - HOUR_NS))
            .not_valid_after(moment(start + int(days * DAY_NS)))
            .add_extension(x509.BasicConstraints(ca, path_length if ca else None), critical=True)
            .add_extension(
                x509.KeyUsage(not signs, False, False, False, False, signs, signs, False, False), critical=True
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        )
        if identified and hasattr(self, "root"):
            builder = builder.add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False
            )
        if names:
            uris = [x509.UniformResourceIdentifier(name) for name in names]
            builder = builder.add_extension(x509.SubjectAlternativeName(uris), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def answer(self, request: str, **more: Any) -> bytes:
        csr = x509.load_pem_x509_csr(request.encode())
        assert csr.is_signature_valid
        more.setdefault("names", ("spiffe://nucleus.local",))
        ours = self.sign(csr.public_key(), csr.subject, **more)
        return ours.public_bytes(Pem) + self.root.public_bytes(Pem)


@pytest.fixture
def ca(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority.load_or_create(tmp_path / "ca", "nucleus.local", now=NOW)


def again(tmp_path: Path, now: int) -> CertificateAuthority:
    return CertificateAuthority.load_or_create(tmp_path / "ca", "nucleus.local", now=now)


def proven(ca: CertificateAuthority, now: int, roots: dict[str, tuple[bytes, ...]] | None = None) -> int:
    """Of a new SVID: how many certificates come with it. It is verified, against these roots."""
    svid = ca.issue(APP, now=now)
    chain = pem_to_der(svid.cert_pem)
    assert str(verify_svid(chain, roots or ca.roots(now), now, role="server")) == "spiffe://nucleus.local/app"
    return len(chain)


def test_a_chain_signs_once_every_peer_knows_its_root(ca: CertificateAuthority, tmp_path: Path) -> None:
    above = Above()
    before = ca.roots(NOW)
    assert proven(ca, NOW) == 1
    found = ca.install(above.answer(ca.request()), NOW)
    assert found["signs_ns"] == NOW + DAY_NS
    assert proven(ca, NOW, before) == 1  # with what peers have had all the time
    both = ca.roots(NOW + 1)
    assert above.root.public_bytes(serialization.Encoding.DER) in both["nucleus.local"]
    later = NOW + DAY_NS
    assert proven(ca, later, both) == 2
    only = {"nucleus.local": (above.root.public_bytes(serialization.Encoding.DER),)}
    assert proven(ca, later, only) == 2
    assert proven(again(tmp_path, later), later, only) == 2
    end = NOW + 5 * DAY_NS  # our own root has ended, and no other was made
    assert again(tmp_path, end).roots(end) == only
    assert [fact["upstream"] for fact in ca.facts(end)] == [True]
    assert not list((tmp_path / "ca").glob("root-*"))


def test_at_once_and_another_chain_of_the_same_root_sign_at_once(ca: CertificateAuthority, tmp_path: Path) -> None:
    above = Above()
    assert ca.install(above.answer(ca.request()), NOW, at_once=True)["signs_ns"] == NOW
    assert proven(ca, NOW) == 2
    assert not list((tmp_path / "ca").glob("root-*.key"))
    now = NOW + 10 * DAY_NS
    old = ca.issue(APP, now=now)
    found = ca.install(above.answer(ca.request(), start=now), now)
    assert found["signs_ns"] == now
    fresh = ca.issue(APP, now=now)
    assert pem_to_der(fresh.cert_pem)[1] != pem_to_der(old.cert_pem)[1]
    assert fresh.bundle_pem == old.bundle_pem
    for svid in (old, fresh):
        verify_svid(pem_to_der(svid.cert_pem), ca.roots(now), now, role="client")


def test_when_the_chain_ends_nothing_is_signed_and_another_one_helps(ca: CertificateAuthority, tmp_path: Path) -> None:
    above = Above()
    ca.install(above.answer(ca.request(), days=2), NOW, at_once=True)
    svid = ca.issue(APP, now=NOW + 2 * DAY_NS - 60 * 10**9)
    assert svid.expires_ns <= NOW + 2 * DAY_NS
    for one in (ca, again(tmp_path, NOW + 3 * DAY_NS)):
        with pytest.raises(NucleusError, match="the upstream chain has ended"):
            one.issue(APP, now=NOW + 3 * DAY_NS)
        assert not list((tmp_path / "ca").glob("root-*.key"))
    now = NOW + 3 * DAY_NS
    one = again(tmp_path, now)
    one.install(above.answer(one.request(), start=now), now)
    assert proven(one, now) == 2


def test_an_intermediate_between_is_served(ca: CertificateAuthority) -> None:
    above, between = Above(), Above("between")
    middle = above.sign(between.key.public_key(), between.name, path_length=1)
    ours = between.answer(ca.request()).split(b"-----END CERTIFICATE-----\n")[0] + b"-----END CERTIFICATE-----\n"
    ca.install(ours + middle.public_bytes(Pem) + above.root.public_bytes(Pem), NOW, at_once=True)
    assert proven(ca, NOW) == 3


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        ("another key", "not of the key"), ("no CA", "may not sign"), ("no signing", "may not sign"),
        ("another domain", "URI name"), ("two names", "URI name"), ("ends soon", "within the hour"),
        ("root missing", "2 to 4"), ("wrong root", "not issued by the next"), ("wrong order", "not of the key"),
        ("junk", "not certificates"), ("too long", "longer than"), ("path length", "allows 0 CAs"),
        ("not yet", "would not verify"), ("no identifier", "key identifier"),
    ],
)  # fmt: skip
def test_what_fails_a_step_changes_nothing(ca: CertificateAuthority, tmp_path: Path, harm: str, said: str) -> None:
    above, request = Above(), ca.request()
    good = above.answer(request)
    bad = {
        "another key": lambda: above.answer(
            CertificateAuthority.load_or_create(tmp_path / "other", "nucleus.local", now=NOW).request()
        ),
        "no CA": lambda: above.answer(request, ca=False),
        "no signing": lambda: above.answer(request, signs=False),
        "another domain": lambda: above.answer(request, names=("spiffe://example.org",)),
        "two names": lambda: above.answer(request, names=("spiffe://nucleus.local", "spiffe://example.org")),
        "ends soon": lambda: above.answer(request, days=0.03),
        "root missing": lambda: good[: good.index(b"-----BEGIN", 10)],
        "wrong root": lambda: good[: good.index(b"-----BEGIN", 10)] + Above().root.public_bytes(Pem),
        "wrong order": lambda: good[good.index(b"-----BEGIN", 10) :] + good[: good.index(b"-----BEGIN", 10)],
        "junk": lambda: b"junk",
        "too long": lambda: good + b"#" * 20_000,
        "path length": lambda: good[: good.index(b"-----BEGIN", 10)] + _short(above),
        "no identifier": lambda: above.answer(request, identified=False),
        "not yet": lambda: above.answer(request, start=NOW + 2 * DAY_NS),
    }[harm]()  # fmt: skip
    before = sorted(path.name for path in (tmp_path / "ca").iterdir())
    with pytest.raises(InvalidError, match=said):
        ca.install(bad, NOW)
    assert sorted(path.name for path in (tmp_path / "ca").iterdir()) == before
    assert proven(ca, NOW) == 1
    ca.install(good, NOW)


def _short(above: Above) -> bytes:
    return above.sign(above.key.public_key(), above.name, days=3_650, path_length=0).public_bytes(Pem)


def test_without_a_request_there_is_no_chain(ca: CertificateAuthority) -> None:
    with pytest.raises(InvalidError, match="no request"):
        ca.install(b"", NOW)


def test_a_request_is_the_same_until_it_is_answered(ca: CertificateAuthority, tmp_path: Path) -> None:
    first = x509.load_pem_x509_csr(ca.request().encode()).public_key()
    assert x509.load_pem_x509_csr(again(tmp_path, NOW).request().encode()).public_key() == first
    assert (tmp_path / "ca" / "upstream-pending.key").stat().st_mode & 0o777 == 0o600
    ca.install(Above().answer(ca.request()), NOW)
    assert x509.load_pem_x509_csr(ca.request().encode()).public_key() != first


def test_a_crash_between_the_two_names_is_mended_by_the_same_chain(ca: CertificateAuthority, tmp_path: Path) -> None:
    above = Above()
    good = above.answer(ca.request())
    (tmp_path / "ca" / f"upstream-{NOW:020d}.pem").write_bytes(good)  # as after the first of the two renames
    (tmp_path / "ca" / f"upstream-{NOW:020d}.pem").chmod(0o600)
    one = again(tmp_path, NOW + 1)
    assert proven(one, NOW + 1) == 1  # our own root still signs
    one.install(good, NOW + 2, at_once=True)
    assert proven(one, NOW + 2) == 2
