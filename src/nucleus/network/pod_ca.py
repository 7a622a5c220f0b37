"""The certificate authority of one pod, for the hosts whose TLS a rule opens. Only that pod trusts it.

 1. Its key is made when the pod is, lives in this process alone, and ends with it.
 2. Its certificate is constrained to the rules' hosts (RFC 5280 §4.2.1.10): even its own key cannot vouch for another.
    A name permits all below it as well: ``api.example.com`` also ``x.api.example.com``, and ``*.example.com`` also
    ``example.com`` itself, for a constraint has no way to say less. A kind of name (DNS, IPv4, IPv6) without a rule is
    excluded as a whole.
 3. A leaf is for exactly one host that a rule covers, made when a client first asks for it, and short-lived: here the
    rules' own words decide, not the wider subtrees of 2.
 4. `ssl` takes a key by a path alone. It is a memfd's: memory, not a file system. Where there is none, a file that
    holds the key encrypted, under a password that is used once and never written.

Relies on: `cryptography` (imported here, so import this late: 50 ms with `ssl`). Does not: revoke, or end a connection
that outlives its leaf.
"""

from __future__ import annotations

import os
import secrets
import ssl
import tempfile
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from nucleus.errors import DeniedError, InvalidError
from nucleus.network.names import covers, is_name

BACKDATED = timedelta(minutes=5)
AUTHORITY_LIFE = timedelta(days=30)
LEAF_LIFE = timedelta(hours=24)
RENEW = timedelta(hours=1)  # before a leaf's end, the next one is made
CONTEXTS = 256
SESSIONS = 1_024  # that OpenSSL may keep for TLS 1.2 in one context; Python cannot switch that off

_PEM = serialization.Encoding.PEM
_Network = IPv4Network | IPv6Network


class PodCa:
    """See the module.

    Args:
        hosts: what it may ever vouch for, as rules say it: names, ``*.`` names, addresses and CIDR ranges.
        now: of its making, with a time zone.

    Raises:
        InvalidError: there is none, or one of them is neither.
    """

    def __init__(self, hosts: Sequence[str], now: datetime) -> None:
        if not hosts:
            raise InvalidError("an authority for no host", rule="network.name")
        self._ranges = [found for host in hosts if (found := _range(host)) is not None]
        self._patterns = sorted({host for host in hosts if _range(host) is None})
        if wrong := [host for host in self._patterns if not is_name(host.removeprefix("*."))]:
            raise InvalidError(f"{wrong[0][:64]!r} is no host", rule="network.name")
        self._key = ec.generate_private_key(ec.SECP256R1())  # 1
        self._leaf_key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Nucleus pod CA")])
        self._end = now + AUTHORITY_LIFE
        self._contexts: OrderedDict[str, tuple[datetime, datetime, ssl.SSLContext]] = OrderedDict()
        public = self._key.public_key()
        self._identifier = x509.SubjectKeyIdentifier.from_public_key(public)
        self._certificate = (
            self._builder(self._name, public, now, self._end)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(sign_certificates=True), critical=True)
            .add_extension(self._constraints(), critical=True)
            .add_extension(self._identifier, critical=False)
            .sign(self._key, hashes.SHA256())
        )

    def __repr__(self) -> str:
        return "PodCa()"

    def __reduce__(self) -> str:
        raise TypeError("the authority of a pod stays in its process")

    def certificate_pem(self) -> bytes:
        """What the pod is to trust."""
        return self._certificate.public_bytes(_PEM)

    def context(self, host: str, now: datetime | None = None) -> ssl.SSLContext:
        """A server's context for exactly `host`, TLS 1.2 or later, HTTP/1.1 alone.

        Args:
            host: in lower case, as in the client's hello.
            now: with a time zone; the clock's without.

        Raises:
            DeniedError: no rule covers `host`.
        """
        if not self._may(host):
            raise DeniedError("this pod's authority does not vouch for that host", rule="network.name")
        at = now or datetime.now(UTC)
        begin, end, context = self._contexts.get(host) or (at, at, None)
        if context is None or not begin <= at < end - RENEW or context.session_stats()["number"] > SESSIONS:
            begin, end = at - BACKDATED, min(at + LEAF_LIFE, self._end)
            context = self._made(host, at, end)
            self._contexts[host] = (begin, end, context)
            if len(self._contexts) > CONTEXTS:
                self._contexts.popitem(last=False)
        self._contexts.move_to_end(host)
        return context

    def _may(self, host: str) -> bool:
        """Step 3."""
        if is_name(host):
            return any(covers(pattern, host) for pattern in self._patterns)
        with suppress(ValueError):
            address = ip_address(host)
            return any(address.version == listed.version and address in listed for listed in self._ranges)
        return False

    def _constraints(self) -> x509.NameConstraints:
        """Step 2."""
        names = dict.fromkeys(pattern.removeprefix("*.") for pattern in self._patterns)
        permitted: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
        permitted += [x509.IPAddress(listed) for listed in dict.fromkeys(self._ranges)]
        excluded: list[x509.GeneralName] = [] if names else [x509.DNSName("")]
        every: tuple[_Network, ...] = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))
        versions = {listed.version for listed in self._ranges}
        excluded += [x509.IPAddress(network) for network in every if network.version not in versions]
        return x509.NameConstraints(permitted, excluded or None)

    def _made(self, host: str, now: datetime, end: datetime) -> ssl.SSLContext:
        """Step 3."""
        name = x509.DNSName(host) if is_name(host) else x509.IPAddress(ip_address(host))
        leaf = (
            self._builder(x509.Name([]), self._leaf_key.public_key(), now, end)
            .add_extension(x509.SubjectAlternativeName([name]), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(self._identifier), False)
            .sign(self._key, hashes.SHA256())
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        context.num_tickets = 0  # of TLS 1.3, where OP_NO_TICKET only means that they are kept here
        context.set_alpn_protocols(["http/1.1"])
        _load(context, leaf.public_bytes(_PEM), self._leaf_key)
        return context

    def _builder(
        self, subject: x509.Name, public: ec.EllipticCurvePublicKey, now: datetime, end: datetime
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATED)
            .not_valid_after(end)
        )


def _range(host: str) -> _Network | None:
    try:
        return ip_network(host, strict=False)
    except ValueError:
        return None


def _load(context: ssl.SSLContext, chain: bytes, key: ec.EllipticCurvePrivateKey) -> None:
    """Step 4."""
    form = serialization.PrivateFormat.PKCS8
    try:
        memory = os.memfd_create("leaf", os.MFD_CLOEXEC)
        try:
            os.write(memory, chain + key.private_bytes(_PEM, form, serialization.NoEncryption()))
            context.load_cert_chain(f"/proc/self/fd/{memory}")
        finally:
            os.close(memory)
    except OSError:
        password = secrets.token_urlsafe(32).encode()
        with tempfile.NamedTemporaryFile(prefix="nucleus-leaf-") as file:
            file.write(chain + key.private_bytes(_PEM, form, serialization.BestAvailableEncryption(password)))
            file.flush()
            context.load_cert_chain(file.name, password=password)


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
