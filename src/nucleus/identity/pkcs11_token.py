"""A PKCS#11 token (an HSM, a smart card, a cloud's key service by its module) that holds the trust domain's keys.

Promises: keys are made in the token, sensitive and not extractable; what is kept outside is a name and the public key,
and each signature is checked with it before it leaves. A token that is gone, locked, or another one than before signs
nothing: the error says so, and the next try opens a session anew. The PIN is in no argument, environment or message.
Relies on: `pkcs11` (the extra ``nucleus[pkcs11]``), and the library that was configured: native code in the process
that calls this, the authority (docs/adr/0029-pkcs11.md). It is loaded only where it is root's or ours alone.
Does not: initialise tokens or change PINs; the library's own tools do.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn, TypeVar
from urllib.parse import quote, unquote_to_bytes

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

from nucleus.errors import NucleusError
from nucleus.identity.keys import RULE, SCHEME, TokenConfig

_T = TypeVar("_T")
_P256 = bytes.fromhex("06082a8648ce3d030107")  # the curve's OID, DER: CKA_EC_PARAMS
_COORDINATE = 32


class Token:
    """See the module. Not thread-safe. Made by the authority, opened when something is to be signed."""

    def __init__(self, config: TokenConfig) -> None:
        self._config = config
        self._session: Any = None
        self._library: Any = None

    def __repr__(self) -> str:
        return f"<Token {self._config.token}>"

    def make(self, label: str) -> tuple[ec.EllipticCurvePrivateKey, bytes]:
        """As `keys.Token`."""
        ident = secrets.token_bytes(16)
        public = self._do(lambda session: _generate(session, ident, label, store=True)[0])
        uri = f"pkcs11:token={quote(self._config.token)};object={quote(label)};id={quote(ident)};type=private"
        spki = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        kept = uri.encode() + b"\n" + spki
        return self.load(kept), kept

    def load(self, kept: bytes) -> ec.EllipticCurvePrivateKey:
        """As `keys.Token`."""
        uri, _, spki = kept.partition(b"\n")
        public = serialization.load_pem_public_key(spki)
        if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
            raise ValueError("not a P-256 key")
        return TokenKey(self, _ident(uri), public)

    def remove(self, kept: bytes) -> None:
        """As `keys.Token`."""
        import pkcs11

        ident = _ident(kept.partition(b"\n")[0])

        def destroy(session: Any) -> None:
            for kind in (pkcs11.ObjectClass.PRIVATE_KEY, pkcs11.ObjectClass.PUBLIC_KEY):
                for found in list(session.get_objects(_named(ident, kind))):
                    found.destroy()

        self._do(destroy)

    def check(self) -> dict[str, str]:
        """As `keys.Token`."""
        digest = hashlib.sha256(b"nucleus").digest()

        def trial(session: Any) -> dict[str, str]:
            public, private = _generate(session, secrets.token_bytes(16), "nucleus-trial", store=False)
            _verified(public, _signed(private, digest), digest)
            token = session.token
            return {
                "token": token.label.strip(), "manufacturer": str(token.manufacturer_id).strip(),
                "model": str(token.model).strip(),
            }  # fmt: skip

        return self._do(trial)

    def sign(self, ident: bytes, public: ec.EllipticCurvePublicKey, digest: bytes) -> bytes:
        """ECDSA of a SHA-256 digest, DER. Raises NucleusError."""
        import pkcs11

        def sign(session: Any) -> bytes:
            found = list(session.get_objects(_named(ident, pkcs11.ObjectClass.PRIVATE_KEY)))
            if len(found) != 1:
                raise _broken(f"it has {len(found)} keys of that id")
            return _verified(public, _signed(found[0], digest), digest)

        return self._do(sign)

    def _do(self, what: Callable[[Any], _T]) -> _T:
        """With a session; with a new one where the old one is no more: what is signed twice is the same."""
        try:
            import pkcs11
            from pkcs11.exceptions import PKCS11Error
        except ImportError as error:
            raise NucleusError(
                "the PKCS#11 client is not installed", rule=RULE, next_step="Install nucleus[pkcs11]."
            ) from error
        for last in (False, True):
            try:
                if self._session is None:
                    self._session = self._open(pkcs11)
                return what(self._session)
            except (PKCS11Error, OSError, RuntimeError) as error:
                self._forget()
                if last:
                    # The library's words may hold anything; its error's name says what happened.
                    raise _broken(type(error).__name__) from None
            except NucleusError:  # a session of a token that was taken out may still look alive
                self._forget()
                if last:
                    raise
        raise AssertionError("unreachable")

    def _open(self, pkcs11: Any) -> Any:
        """Login included."""
        if self._library is None:
            _check_module(self._config.module)
            os.environ.update(self._config.environment)
            self._library = pkcs11.lib(self._config.module)
        else:
            self._library.reinitialize()  # a token that came back is seen by a new start alone
        token = self._library.get_token(token_label=self._config.token)
        return token.open(user_pin=self._config.pin, rw=True)

    def _forget(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            with suppress(Exception):  # it is gone already
                session.close()


class TokenKey(ec.EllipticCurvePrivateKey):
    """A private key that is elsewhere: it signs, and that is all."""

    def __init__(self, token: Token, ident: bytes, public: ec.EllipticCurvePublicKey) -> None:
        self._token = token
        self._ident = ident
        self._public = public

    def __repr__(self) -> str:
        return f"<TokenKey {self._ident.hex()}>"

    def sign(self, data: Any, signature_algorithm: ec.EllipticCurveSignatureAlgorithm) -> bytes:
        """ECDSA with SHA-256, DER. Raises NucleusError: the token does not."""
        if not isinstance(signature_algorithm, ec.ECDSA) or not isinstance(
            signature_algorithm.algorithm, hashes.SHA256
        ):
            raise UnsupportedAlgorithm("a token's key signs by ECDSA with SHA-256")
        return self._token.sign(self._ident, self._public, hashlib.sha256(data).digest())

    def public_key(self) -> ec.EllipticCurvePublicKey:
        """Its public half."""
        return self._public

    @property
    def curve(self) -> ec.EllipticCurve:
        """P-256."""
        return self._public.curve

    @property
    def key_size(self) -> int:
        """256."""
        return self._public.key_size

    def exchange(self, algorithm: ec.ECDH, peer_public_key: ec.EllipticCurvePublicKey) -> NoReturn:
        """Never."""
        raise UnsupportedAlgorithm("a signing key")

    def private_numbers(self) -> NoReturn:
        """Never."""
        raise UnsupportedAlgorithm("the key does not leave its token")

    def private_bytes(self, encoding: Any, format: Any, encryption_algorithm: Any) -> NoReturn:
        """Never."""
        raise UnsupportedAlgorithm("the key does not leave its token")

    def __copy__(self) -> TokenKey:
        return self

    def __deepcopy__(self, memo: Any) -> TokenKey:
        return self


def _named(ident: bytes, kind: Any) -> dict[Any, Any]:
    import pkcs11

    return {pkcs11.Attribute.CLASS: kind, pkcs11.Attribute.ID: ident}


def _generate(session: Any, ident: bytes, label: str, *, store: bool) -> tuple[ec.EllipticCurvePublicKey, Any]:
    import pkcs11

    curve = session.create_domain_parameters(pkcs11.KeyType.EC, {pkcs11.Attribute.EC_PARAMS: _P256}, local=True)
    public, private = curve.generate_keypair(
        store=store, id=ident, label=label,
        private_template={
            pkcs11.Attribute.SENSITIVE: True, pkcs11.Attribute.EXTRACTABLE: False, pkcs11.Attribute.PRIVATE: True,
            pkcs11.Attribute.SIGN: True, pkcs11.Attribute.DERIVE: False,
        },
    )  # fmt: skip
    if private[pkcs11.Attribute.EXTRACTABLE] or not private[pkcs11.Attribute.SENSITIVE]:
        raise _broken("it makes keys that can leave it")
    point = bytes(public[pkcs11.Attribute.EC_POINT])
    if len(point) == 2 * _COORDINATE + 3:  # a DER OCTET STRING around it, as the standard has it
        point = point[2:]
    return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point), private


def _signed(private: Any, digest: bytes) -> bytes:
    import pkcs11

    raw = bytes(private.sign(digest, mechanism=pkcs11.Mechanism.ECDSA))
    if len(raw) != 2 * _COORDINATE:
        raise _broken("its signature has another length")
    return utils.encode_dss_signature(
        int.from_bytes(raw[:_COORDINATE], "big"), int.from_bytes(raw[_COORDINATE:], "big")
    )


def _verified(public: ec.EllipticCurvePublicKey, signature: bytes, digest: bytes) -> bytes:
    try:
        public.verify(signature, digest, ec.ECDSA(utils.Prehashed(hashes.SHA256())))
    except InvalidSignature:
        raise _broken("what it signed does not verify") from None
    return signature


def _ident(uri: bytes) -> bytes:
    if not uri.startswith(SCHEME):
        raise ValueError("no pkcs11: URI")
    for part in uri.removeprefix(SCHEME).split(b";"):
        name, _, value = part.partition(b"=")
        if name == b"id":
            return unquote_to_bytes(value)
    raise ValueError("no id")


def _check_module(path: str) -> None:
    """Native code comes into the authority from nobody but root, or who runs it."""
    try:
        info = os.stat(path)
    except OSError as error:
        raise NucleusError(f"the PKCS#11 library {path}: {error.strerror}", rule=RULE) from None
    if not stat.S_ISREG(info.st_mode) or info.st_uid not in (0, os.geteuid()) or info.st_mode & 0o022:
        raise NucleusError(f"{path} can be changed by others than root: not loaded", rule=RULE)


def _broken(why: str) -> NucleusError:
    return NucleusError(
        f"the PKCS#11 token does not sign: {why}",
        rule=RULE,
        next_step="Is the token there, and its PIN right? What was issued is valid until it ends.",
    )
