"""The certificate authority of one pod, for the hosts whose TLS a rule opens. Only that pod trusts it.

 1. Its key is made when the pod is, lives in this process alone, and ends with it.
 2. Its certificate is constrained to the rules' hosts (RFC 5280 §4.2.1.10): even its own key cannot vouch for another.
    ``*.example.com`` permits the subtree ``example.com``: a name constraint has no way to leave the parent out.
 3. A leaf is for exactly one host, made when a client first asks for it, and short-lived.

Relies on: `cryptography`; a memfd, since `ssl` takes keys by path alone (never a file system). Does not: revoke.
"""

from __future__ import annotations

import os
import ssl
from collections import OrderedDict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Network, IPv6Network
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

BACKDATED = timedelta(minutes=5)
AUTHORITY_LIFE = timedelta(days=30)
LEAF_LIFE = timedelta(hours=24)
RENEW = timedelta(hours=1)  # before a leaf's end, the next one is made
CONTEXTS = 256


class PodCa:
    """See the module.

    Args:
        hosts: names, and ``*.`` names, that it may ever vouch for; at least one.
        now: of its making, UTC.
    """

    def __init__(self, hosts: Sequence[str], now: datetime) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Nucleus pod CA")])
        self._leaf_key = ec.generate_private_key(ec.SECP256R1())
        self._contexts: OrderedDict[str, tuple[datetime, ssl.SSLContext]] = OrderedDict()
        permitted = [x509.DNSName(host.removeprefix("*.")) for host in sorted(set(hosts))]
        nowhere = [x509.IPAddress(IPv4Network("0.0.0.0/0")), x509.IPAddress(IPv6Network("::/0"))]
        public = self._key.public_key()
        self._identifier = x509.SubjectKeyIdentifier.from_public_key(public)
        self._certificate = (
            self._builder(self._name, public, now, AUTHORITY_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(sign_certificates=True), critical=True)
            .add_extension(x509.NameConstraints(permitted, nowhere), critical=True)  # 2
            .add_extension(self._identifier, critical=False)
            .sign(self._key, hashes.SHA256())
        )

    def __repr__(self) -> str:
        return "PodCa()"

    def certificate_pem(self) -> bytes:
        """What the pod is to trust."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def context(self, host: str, now: datetime | None = None) -> ssl.SSLContext:
        """A server's context for exactly `host`, TLS 1.2 or later, HTTP/1.1 alone."""
        at = now or datetime.now(UTC)
        found = self._contexts.get(host)
        if found is None or found[0] - RENEW < at:
            found = at + LEAF_LIFE, self._made(host, at)
            self._contexts[host] = found
            if len(self._contexts) > CONTEXTS:
                self._contexts.popitem(last=False)
        self._contexts.move_to_end(host)
        return found[1]

    def _made(self, host: str, now: datetime) -> ssl.SSLContext:
        """Step 3."""
        leaf = (
            self._builder(x509.Name([]), self._leaf_key.public_key(), now, LEAF_LIFE)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(self._identifier), False)
            .sign(self._key, hashes.SHA256())
        )
        key = self._leaf_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        context.set_alpn_protocols(["http/1.1"])
        memory = os.memfd_create("leaf", os.MFD_CLOEXEC)
        try:
            os.write(memory, leaf.public_bytes(serialization.Encoding.PEM) + key)
            context.load_cert_chain(f"/proc/self/fd/{memory}")
        finally:
            os.close(memory)
        return context

    def _builder(self, subject: x509.Name, public: Any, now: datetime, life: timedelta) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATED)
            .not_valid_after(now + life)
        )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
