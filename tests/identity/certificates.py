"""Names, a clock, and a builder of deliberately bad certificates, for the tests of this room."""

from __future__ import annotations

import datetime
import time
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from nucleus.identity.spiffe_id import SpiffeId

NOW = time.time_ns()
TRUST_DOMAIN = "nucleus.test"
AGENT = SpiffeId.for_workload(TRUST_DOMAIN, "default", "agent")
GATE = SpiffeId.for_workload(TRUST_DOMAIN, "default", "gate")
SECOND = 1_000_000_000


def usage(**on: bool) -> x509.KeyUsage:
    names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    names += ("key_cert_sign", "crl_sign", "encipher_only", "decipher_only")
    return x509.KeyUsage(**{name: on.get(name, False) for name in names})


def uri(*texts: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(text) for text in texts])


BOTH = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])


@dataclass
class Issuer:
    """A hand-made signing certificate, so that tests can break one thing at a time."""

    cert: x509.Certificate
    key: Any

    @property
    def der(self) -> bytes:
        return self.cert.public_bytes(Encoding.DER)


@dataclass
class Spec:
    """A certificate to make; the defaults are a good leaf."""

    san: x509.SubjectAlternativeName | None = field(default_factory=lambda: uri(str(AGENT)))
    san_critical: bool = True
    subject: str = ""
    basic: x509.BasicConstraints | None = field(default_factory=lambda: x509.BasicConstraints(False, None))
    basic_critical: bool = True
    usage: x509.KeyUsage | None = field(default_factory=lambda: usage(digital_signature=True))
    usage_critical: bool = True
    extended: x509.ExtendedKeyUsage | None = field(default_factory=lambda: BOTH)
    extra: tuple[tuple[x509.ExtensionType, bool], ...] = ()
    start_s: int = -60
    end_s: int = 3_600
    key: Any = None
    digest: Any = field(default_factory=hashes.SHA256)
    identifiers: bool = True


def ca_spec(**changes: Any) -> Spec:
    """A good signing certificate of TRUST_DOMAIN."""
    good: dict[str, Any] = {
        "san": uri(f"spiffe://{TRUST_DOMAIN}"),
        "san_critical": False,
        "subject": "root",
        "basic": x509.BasicConstraints(True, None),
        "usage": usage(key_cert_sign=True, crl_sign=True),
        "extended": None,
        "end_s": 86_400,
    }
    return Spec(**(good | changes))


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)] if text else [])


def make(spec: Spec, issuer: Issuer | None = None) -> Issuer:
    """Sign `spec` by `issuer`, or by itself."""
    key = spec.key or ec.generate_private_key(ec.SECP256R1())
    at = datetime.datetime.fromtimestamp(NOW // SECOND, datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(spec.subject))
        .issuer_name(issuer.cert.subject if issuer else name(spec.subject))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(at + datetime.timedelta(seconds=spec.start_s))
        .not_valid_after(at + datetime.timedelta(seconds=spec.end_s))
    )
    signing_key = issuer.key if issuer else key
    extensions: list[tuple[x509.ExtensionType | None, bool]] = [
        (spec.san, spec.san_critical),
        (spec.basic, spec.basic_critical),
        (spec.usage, spec.usage_critical),
        (spec.extended, False),
        *spec.extra,
    ]
    if spec.identifiers:
        extensions.append((x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False))
        extensions.append((x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()), False))
    for extension, critical in extensions:
        if extension is not None:
            builder = builder.add_extension(extension, critical=critical)
    return Issuer(builder.sign(signing_key, spec.digest), key)
