"""The CA of one trust domain: ECDSA P-256 roots that renew themselves, and the X.509-SVIDs that they sign.

Promises: private keys are 0600 in a 0700 directory, made with O_EXCL and synced before the certificate that needs them
exists; no `repr` shows one; a leaf says only what the CA decided, never what a CSR asked for.
Relies on: one process (the authority) that owns the directory; the caller's clock, in nanoseconds since the epoch.
Does not: decide who may have an ID (`workload` does), revoke (leaves are short), or open a socket.

Below another CA (`upstream`): once the chain of an offline root has been installed, no root of ours is made again, and
SVIDs come with the chain. The same rule holds: a root that peers do not know yet is published for `MAX_TTL_NS` first.
When the chain ends and no other was installed, nothing is signed. Where the trust domain's bundle is told to us
(`trust_also`: a SPIRE server's), its authorities are published beside our roots, and a chain whose root it has
withdrawn counts no more.

Roots: each lives `ROOT_TTL_NS` (96 h). When less than half is left, the next one is made and *published* in the bundle,
but it signs only after `MAX_TTL_NS` (24 h): by then every SVID that was handed out with the older bundle has expired,
so no peer meets a leaf whose root it has never seen. An older root stays in the bundle until it expires.
Files: `root-<serial>.key` (gone once the root has been replaced), `root-<serial>.pem`, those of `upstream`, `lock`.

Security steps of `load_or_create`:
1. The directory is ours and closed to others; one process at a time (flock).
2. Each file is opened without following links, is a regular file of ours, closed to others, bounded.
3. A key belongs to its certificate; a certificate is a root of this very trust domain.
4. A key without a certificate is a creation that crashed: removed. Anything else that is wrong is refused, and left.
"""

from __future__ import annotations

import datetime
import fcntl
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from nucleus.errors import InvalidError, NucleusError
from nucleus.identity import upstream
from nucleus.identity.keys import Keys
from nucleus.identity.revocation import new_serial
from nucleus.identity.spiffe_id import SpiffeId
from nucleus.identity.svid import X509Svid, pem_to_der

SECOND_NS = 1_000_000_000
HOUR_NS = 3_600 * SECOND_NS
ROOT_TTL_NS = 96 * HOUR_NS
RENEW_LEFT_NS = ROOT_TTL_NS // 2
DEFAULT_TTL_NS = HOUR_NS
MAX_TTL_NS = 24 * HOUR_NS
BACKDATE_NS = 60 * SECOND_NS  # not_before lies this far back, for peers whose clock is behind
MAX_CSR_BYTES = 8_192
_MAX_FILE_BYTES = 16_384
_MAX_CHAINS = 64
_MAX_ROOTS = 16  # expired ones are pruned; more than a few means that the clock jumps about


@dataclass(frozen=True, slots=True)
class _Root:
    name: str
    cert: x509.Certificate
    pem: str
    not_before_ns: int
    expires_ns: int
    key: ec.EllipticCurvePrivateKey | None = field(repr=False)
    chain: str = ""  # what goes with a leaf, PEM; "" where peers have the signer itself
    known_ns: int = 0  # since when its root is in the bundle; 0: since it was made

    @property
    def published_ns(self) -> int:
        return self.known_ns or self.not_before_ns + BACKDATE_NS


class CertificateAuthority:
    """See the module. Made by `load_or_create`. Not thread-safe: the authority calls it from one thread."""

    def __init__(self, directory: Path, trust_domain: SpiffeId, roots: list[_Root], keys: Keys) -> None:
        self._directory = directory
        self._keys = keys
        self._id = trust_domain
        self._roots = roots
        self._below = False  # a chain of another CA has been installed, at any time
        self._others: dict[str, int] = {}  # authorities of the trust domain beside ours, PEM, and when each ends

    def __repr__(self) -> str:
        return f"<CertificateAuthority {self._id.trust_domain}, {len(self._roots)} roots>"

    @property
    def trust_domain(self) -> str:
        """The trust domain that this CA, and nobody else, vouches for."""
        return self._id.trust_domain

    @classmethod
    def load_or_create(
        cls, directory: str | os.PathLike[str], trust_domain: str, *, now: int, keys: Keys | None = None
    ) -> CertificateAuthority:
        """Open the CA kept in `directory`, or make one there (also the directory; its parent exists).

        Args:
            directory: e.g. ``<state>/ca``; 0700.
            trust_domain: must be the one the directory was made for.
            now: nanoseconds since the epoch.
            keys: where private keys are made and kept; default: files.

        Raises:
            InvalidError: not a trust domain name.
            NucleusError: the directory or a file in it is not what this module writes (``identity.ca``).
            OSError: the directory cannot be made or written.
        """
        authority = cls(Path(directory), SpiffeId(trust_domain), [], keys or Keys())
        with suppress(FileExistsError):
            os.mkdir(authority._directory, 0o700)
        with authority._locked():  # 1
            authority._roots = authority._load()
            authority._renew(now)
        return authority

    def bundle_pem(self, now: int) -> str:
        """All roots that still count, newest first. Renews when due."""
        return "".join(self._published(now))

    def roots(self, now: int) -> dict[str, tuple[bytes, ...]]:
        """`bundle_pem` as `svid.Roots`."""
        return {self.trust_domain: tuple(der for pem in self._published(now) for der in pem_to_der(pem))}

    def trust_also(self, authorities: Iterable[bytes]) -> None:
        """The trust domain's authorities, DER, as who stands above us tells them; none: nobody does.

        Raises:
            InvalidError: one is no certificate.
        """
        found: dict[str, int] = {}
        try:
            for der in authorities:
                cert = x509.load_der_x509_certificate(der)
                pem = cert.public_bytes(serialization.Encoding.PEM).decode()
                found[pem] = round(cert.not_valid_after_utc.timestamp()) * SECOND_NS
        except ValueError as error:
            raise InvalidError("an authority is no certificate", rule="identity.upstream") from error
        self._others = found

    def facts(self, now: int) -> list[dict[str, Any]]:
        """Each root's serial number (hex), begin and end (nanoseconds since the epoch), whether it has its key."""
        self.maintain(now)
        return [
            {
                "serial": f"{root.cert.serial_number:x}",
                "begins_ns": root.not_before_ns,
                "expires_ns": root.expires_ns,
                "key": root.key is not None,
                "upstream": bool(root.chain),
            }
            for root in self._counting()
        ]

    def issue(self, spiffe_id: SpiffeId, *, ttl_ns: int = DEFAULT_TTL_NS, now: int) -> X509Svid:
        """Make a key and an SVID for a workload (Workload API semantics: the answer holds the private key).

        Args:
            spiffe_id: in this CA's trust domain, with a path.
            ttl_ns: 1 s to `MAX_TTL_NS`; the SVID ends with its root at the latest.
            now: nanoseconds since the epoch.

        Raises:
            InvalidError: foreign trust domain, no path, or ttl out of range.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        svid = self._certify(spiffe_id, key.public_key(), ttl_ns, now)
        pkcs8 = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return replace(svid, key_pem=pkcs8.decode())

    def issue_for_csr(self, spiffe_id: SpiffeId, csr_der: bytes, *, ttl_ns: int = DEFAULT_TTL_NS, now: int) -> X509Svid:
        """Make an SVID for a key that the workload made. Only the CSR's public key is used: names and extensions in
        it are ignored. `key_pem` of the answer is "".

        Raises:
            InvalidError: as `issue`; or the CSR is malformed, oversize, not P-256 or P-384, or not signed by its key.
        """
        if len(csr_der) > MAX_CSR_BYTES:
            raise InvalidError(f"CSR over {MAX_CSR_BYTES} bytes", rule="identity.csr")
        try:
            csr = x509.load_der_x509_csr(csr_der)
            key, proven = csr.public_key(), csr.is_signature_valid
        except Exception as error:  # hostile bytes: whatever the parser says, it is not a CSR
            raise InvalidError("not a certificate signing request", rule="identity.csr") from error
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
            raise InvalidError("CSR key is not ECDSA P-256 or P-384", rule="identity.csr")
        if not proven:
            raise InvalidError("CSR is not signed by its own key", rule="identity.csr")
        return self._certify(spiffe_id, key, ttl_ns, now)

    def maintain(self, now: int) -> None:
        """Drop what expired, make the next root when it is due. All of the above call it; cheap when nothing is due."""
        if self._due(now):
            with self._locked():
                self._renew(now)

    # -- signing -------------------------------------------------------------------------------------------------

    def _certify(self, spiffe_id: SpiffeId, key: ec.EllipticCurvePublicKey, ttl_ns: int, now: int) -> X509Svid:
        if spiffe_id.trust_domain != self.trust_domain:
            raise InvalidError("this CA does not vouch for that trust domain", rule="identity.trust_domain")
        if not spiffe_id.path:
            raise InvalidError("a workload's ID has a path", rule="identity.path")
        if not SECOND_NS <= ttl_ns <= MAX_TTL_NS:
            raise InvalidError(f"ttl is not 1 s to {MAX_TTL_NS // SECOND_NS} s", rule="identity.ttl")
        self.maintain(now)
        if not any(root.key is not None for root in self._counting()):
            raise NucleusError(
                "no key signs here: the upstream chain has ended or was withdrawn, and no other is installed",
                rule="identity.upstream",
                next_step="`nucleus identity ca request`, have it signed, `nucleus identity ca install FILE`.",
            )
        root = self._signer(now, ttl_ns)
        if root.key is None:
            raise NucleusError("the signing root has no key", rule="identity.ca")
        leaf = _leaf(root, spiffe_id, key, ttl_ns, now)
        expires_s = round(leaf.not_valid_after_utc.timestamp())
        pem = leaf.public_bytes(serialization.Encoding.PEM).decode() + root.chain
        bundle = "".join(self._published(now))
        return X509Svid(spiffe_id, pem, "", bundle, expires_s * SECOND_NS, now, leaf.serial_number)

    def _signer(self, now: int, ttl_ns: int) -> _Root:
        """The newest root that every live peer knows, unless it ends too soon: then the newest."""
        keyed = [root for root in self._counting() if root.key is not None and root.not_before_ns <= now]
        known = next((root for root in keyed if root.published_ns + MAX_TTL_NS <= now), keyed[-1])
        return known if known.expires_ns - now >= ttl_ns else keyed[0]

    # -- roots ---------------------------------------------------------------------------------------------------

    def _counting(self) -> list[_Root]:
        """All but those below a root that the trust domain's bundle has no more."""
        return [root for root in self._roots if not (root.chain and self._others and root.pem not in self._others)]

    def _published(self, now: int) -> list[str]:
        """The bundle, PEM, each root once."""
        self.maintain(now)
        others = [pem for pem, expires_ns in self._others.items() if expires_ns > now]
        return list(dict.fromkeys([*(root.pem for root in self._counting()), *others]))

    def _due(self, now: int) -> bool:
        if (not self._roots and not self._below) or any(root.expires_ns <= now for root in self._roots):
            return True
        retired = self._retired(self._roots, now)
        return (not self._below and _needs_next(self._roots[0], now)) or any(root.key is not None for root in retired)

    def _renew(self, now: int) -> None:
        """Prune, then add a root when the newest is past half its life (or lies in the future: the clock went back)."""
        for root in self._roots:
            if root.expires_ns <= now:
                self._drop_key(root.name)
                if not root.chain:  # a chain that has ended still says that no root is made here
                    self._unlink(root.name + ".pem")
        live = [root for root in self._roots if root.expires_ns > now]
        live.sort(key=lambda root: (root.not_before_ns <= now, root.not_before_ns), reverse=True)
        if not self._below and (not live or _needs_next(live[0], now)):
            if len(live) >= _MAX_ROOTS:
                raise _broken(f"{len(live)} live roots: is the clock jumping?")
            try:
                live.insert(0, self._create(now))
            except NucleusError:  # a token that is gone: the roots that live are as good as before
                if not live:
                    raise
        retired = self._retired(live, now)
        for root in retired:
            self._drop_key(root.name)
        self._sync()
        self._roots = [replace(root, key=None) if root in retired else root for root in live]

    @staticmethod
    def _retired(roots: list[_Root], now: int) -> list[_Root]:
        """The roots (newest first) that a newer one, published for long enough, has replaced: they sign no more."""
        for position, root in enumerate(roots):
            if root.key is not None and root.published_ns + MAX_TTL_NS <= now:
                return roots[position + 1 :]
        return []

    def _create(self, now: int) -> _Root:
        serial = x509.random_serial_number()
        stem = f"root-{serial:040x}"
        key, kept = self._keys.make(f"nucleus {self.trust_domain} {stem}")
        not_before, expires = now - BACKDATE_NS, now + ROOT_TTL_NS
        name = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Nucleus"),
                x509.NameAttribute(NameOID.SERIAL_NUMBER, f"{serial:040x}"),  # two roots never share a name
            ]
        )
        public = key.public_key()
        cert = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(public)
            .serial_number(serial)
            .not_valid_before(_date(not_before))
            .not_valid_after(_date(expires))
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(self._id))]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_ROOT_USAGE, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
            .sign(key, hashes.SHA256())
        )
        pem = cert.public_bytes(serialization.Encoding.PEM)
        self._write(stem + ".key", kept)
        self._sync()  # the key is on the disk before its certificate is
        self._write(stem + ".tmp", pem)
        os.rename(self._directory / (stem + ".tmp"), self._directory / (stem + ".pem"))
        self._sync()
        return _root(stem, pem, key)

    # -- files ---------------------------------------------------------------------------------------------------

    def _load(self) -> list[_Root]:
        roots: list[_Root] = []
        chains: list[_Root] = []
        names = set(os.listdir(self._directory))
        for name in sorted(names):
            stem, _, suffix = name.rpartition(".")
            if name == "lock" or (suffix == "key" and stem + ".pem" in names):
                continue
            if suffix in ("key", "tmp") and stem.startswith(("root-", upstream.PREFIX)):  # 4
                if stem != upstream.PENDING:
                    with suppress(NucleusError):  # half written: whatever it is
                        self._drop_key(stem)
                    self._unlink(name)
            elif suffix == "pem" and stem.startswith(upstream.PREFIX):
                chains.append(self._load_chain(stem, has_key=stem + ".key" in names))
            elif suffix == "pem" and stem.startswith("root-"):
                roots.append(self._load_root(stem, has_key=stem + ".key" in names))
            else:
                raise _broken(f"unexpected file {name!r} in the CA directory")
        if len(roots) + len(chains) > _MAX_CHAINS:
            raise _broken("too many roots in the CA directory")
        self._below = bool(chains)
        since: dict[str, int] = {}
        for one in sorted(chains, key=lambda root: root.not_before_ns):
            known = since.setdefault(one.pem, one.published_ns)
            roots.append(replace(one, known_ns=known))
        return sorted(roots, key=lambda root: (root.not_before_ns, root.name), reverse=True)

    def _load_root(self, stem: str, *, has_key: bool) -> _Root:
        try:
            key = None
            if has_key:
                key = self._key(stem)
            root = _root(stem, self._read(stem + ".pem"), key)
            self._check_root(root)
        except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound) as error:
            raise _broken(f"{stem}: cannot be read ({type(error).__name__})") from error
        return root

    def _load_chain(self, stem: str, *, has_key: bool) -> _Root:
        key = None
        try:
            if has_key:
                key = self._key(stem)
            chain = upstream.read(self._read(stem + ".pem"), key, self._id)
            installed_ns = int(stem.removeprefix(upstream.PREFIX))
        except (ValueError, TypeError) as error:
            raise _broken(f"{stem}: cannot be read ({type(error).__name__})") from error
        except InvalidError as error:
            raise _broken(f"{stem}: {error.message}") from error
        return _below(stem, chain, installed_ns)

    # -- below another CA ------------------------------------------------------------------------------------------

    def request(self) -> str:
        """A signing request, PEM, for a key that is made and kept for it, until a chain of it is installed."""
        with self._locked():
            name = upstream.PENDING + ".key"
            if not os.path.lexists(self._directory / name):
                _, kept = self._keys.make(f"nucleus {self.trust_domain} upstream {secrets.token_hex(4)}")
                self._write(name, kept)
                self._sync()
            return upstream.request(self._key(upstream.PENDING), self._id)

    def examine(self, pem: bytes, now: int) -> upstream.Chain:
        """The chain that answers the last request, after all steps of `upstream`. Raises as `install`."""
        pending = upstream.PENDING + ".key"
        with self._locked():
            if not os.path.lexists(self._directory / pending):
                step = "`nucleus identity ca request`"
                raise InvalidError("no request is out", rule="identity.upstream", next_step=step)
            key = self._key(upstream.PENDING)
        chain = upstream.read(pem, key, self._id)
        probe = SpiffeId(self.trust_domain, "/upstream/probe")
        public = ec.generate_private_key(ec.SECP256R1()).public_key()
        leaf = _leaf(_below("trial", chain, now), probe, public, HOUR_NS, now)
        upstream.check(chain, leaf.public_bytes(serialization.Encoding.DER), self._id, now)
        return chain

    def install(self, pem: bytes, now: int, *, at_once: bool = False) -> dict[str, Any]:
        """Take the chain of the last request.

        Args:
            pem: ours first, the root last.
            now: nanoseconds since the epoch.
            at_once: it signs from now on, although peers that got their bundle before do not know its root yet.

        Returns:
            its `serial` (hex), `expires_ns`, and `signs_ns`: from when it signs.

        Raises:
            InvalidError: rule ``identity.upstream``: there is no request, or a step of `upstream` does not hold.
        """
        chain = self.examine(pem, now)
        pending = upstream.PENDING + ".key"
        with self._locked():
            if len(self._roots) >= _MAX_ROOTS:
                raise InvalidError("too many roots are published", rule="identity.upstream")
            stem = f"{upstream.PREFIX}{now:020d}"
            self._write(stem + ".tmp", chain.text)
            # A crash after the first of these leaves the key where the next try finds it.
            os.rename(self._directory / (stem + ".tmp"), self._directory / (stem + ".pem"))
            self._sync()
            os.rename(self._directory / pending, self._directory / (stem + ".key"))
            self._sync()
            if at_once:
                for root in self._roots:
                    self._drop_key(root.name)
            self._roots = self._load()
            self._renew(now)
        made = next(root for root in self._roots if root.name == stem)
        alone = not any(root.key is not None for root in self._roots if root.name != stem)
        signs = now if alone else max(now, made.published_ns + MAX_TTL_NS)
        return {"serial": f"{chain.issuing.serial_number:x}", "expires_ns": made.expires_ns, "signs_ns": signs}

    def _check_root(self, root: _Root) -> None:  # 3
        if root.key is not None and root.key.public_key() != root.cert.public_key():
            raise _broken(f"{root.name}: the key is not the certificate's")
        root.cert.verify_directly_issued_by(root.cert)
        extensions = root.cert.extensions
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        if list(names) != [x509.UniformResourceIdentifier(str(self._id))]:
            raise _broken(f"{root.name}: is a root of another trust domain than {self.trust_domain}")
        if not extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            raise _broken(f"{root.name}: is not a CA")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        info = os.stat(self._directory, follow_symlinks=False)
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o077:
            raise _broken("the CA directory is not a 0700 directory of ours")
        lock = os.open(self._directory / "lock", flags, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _read(self, name: str) -> bytes:  # 2
        try:
            fd = os.open(self._directory / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise _broken(f"{name}: {error.strerror}") from error
        with open(fd, "rb") as file:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o077:
                raise _broken(f"{name}: not a 0600 file of ours")
            if info.st_nlink != 1 or info.st_size > _MAX_FILE_BYTES:
                raise _broken(f"{name}: linked twice or over {_MAX_FILE_BYTES} bytes")
            return file.read(_MAX_FILE_BYTES)

    def _write(self, name: str, data: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(self._directory / name, flags, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def _key(self, stem: str) -> ec.EllipticCurvePrivateKey:
        try:
            return self._keys.load(self._read(stem + ".key"))
        except (ValueError, TypeError) as error:
            raise _broken(f"{stem}: the key is not P-256, or cannot be read") from error

    def _drop_key(self, stem: str) -> None:
        """Where it is, and then its file."""
        if os.path.lexists(self._directory / (stem + ".key")):
            self._keys.remove(self._read(stem + ".key"))
            self._unlink(stem + ".key")

    def _unlink(self, name: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self._directory / name)

    def _sync(self) -> None:
        fd = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _leaf(root: _Root, spiffe_id: SpiffeId, key: ec.EllipticCurvePublicKey, ttl_ns: int, now: int) -> x509.Certificate:
    """A leaf of `root`, which has its key."""
    assert root.key is not None
    expires_s = min(now + ttl_ns, root.expires_ns) // SECOND_NS
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(root.cert.subject)
        .public_key(key)
        .serial_number(new_serial(now))
        .not_valid_before(_date(now - BACKDATE_NS))
        .not_valid_after(_date(expires_s * SECOND_NS))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(spiffe_id))]), critical=True)
        .add_extension(_LEAF_BASIC, critical=True)
        .add_extension(_LEAF_USAGE, critical=True)
        .add_extension(_LEAF_EXTENDED, critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(_authority_key(root.cert), critical=False)
        .sign(root.key, hashes.SHA256())
    )


def _below(name: str, chain: upstream.Chain, installed_ns: int) -> _Root:
    """A chain as what signs; it begins when it was installed."""
    served, published = chain.served, chain.published
    return _Root(
        name, chain.issuing, published, installed_ns - BACKDATE_NS, chain.expires_s * SECOND_NS, chain.key, served
    )


def _usage(*, leaf: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=leaf,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=not leaf,
        crl_sign=not leaf,
        encipher_only=False,
        decipher_only=False,
    )


_LEAF_USAGE = _usage(leaf=True)
_ROOT_USAGE = _usage(leaf=False)
_LEAF_BASIC = x509.BasicConstraints(ca=False, path_length=None)
_LEAF_EXTENDED = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])


def _authority_key(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    subject_key = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(subject_key)


def _root(stem: str, pem: bytes, key: ec.EllipticCurvePrivateKey | None) -> _Root:
    cert = x509.load_pem_x509_certificate(pem)
    start, end = (round(date.timestamp()) for date in (cert.not_valid_before_utc, cert.not_valid_after_utc))
    # Our own canonical armour, not the file's bytes: the bundle holds certificates and nothing else.
    text = cert.public_bytes(serialization.Encoding.PEM).decode()
    return _Root(stem, cert, text, start * SECOND_NS, end * SECOND_NS, key)


def _needs_next(newest: _Root, now: int) -> bool:
    return newest.key is None or newest.not_before_ns > now or newest.expires_ns - now < RENEW_LEFT_NS


def _date(ns: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(ns // SECOND_NS, datetime.UTC)


def _broken(message: str) -> NucleusError:
    return NucleusError(
        message, rule="identity.ca", next_step="Move the ca directory away: a new CA is made, all pods must restart."
    )
