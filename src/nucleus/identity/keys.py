"""Where the trust domain's private keys are: files of the authority's, or a PKCS#11 token that they never leave.

A key is whatever signs as `cryptography`'s `ec.EllipticCurvePrivateKey` does (`sign` and `public_key`): that is the
signer's whole protocol here, so certificates and tokens are signed by the same code wherever their key is. What is
kept on disk for a key is made and read here alone: PKCS#8 in PEM, or a `pkcs11:` URI (RFC 7512) and the public key.
Promises: keys that are there stay usable when the choice changes; the next ones are made by the new one.
Does not: choose (`nucleus identity ca signer` writes the file), or open a token before something is to be signed.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any, Protocol

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from nucleus.errors import InvalidError, NucleusError
from nucleus.identity.entries import read_whole

CONFIG, PIN = "signer.json", "signer-pin"
RULE = "identity.signer"
SCHEME = b"pkcs11:"
_MAX_CONFIG, _MAX_PIN = 16_384, 256


class Token(Protocol):
    """What holds keys outside of us: `pkcs11_token.Token`."""

    def make(self, label: str) -> tuple[ec.EllipticCurvePrivateKey, bytes]:
        """A new P-256 key, and what is kept for it. Raises NucleusError."""

    def load(self, kept: bytes) -> ec.EllipticCurvePrivateKey:
        """The key of what was kept; the token is not asked. Raises ValueError."""

    def remove(self, kept: bytes) -> None:
        """It is signed with no more. Raises NucleusError."""

    def check(self) -> dict[str, str]:
        """Sign something with a key for nothing else; what the token calls itself. Raises NucleusError."""


class Keys:
    """See the module. `token` None: files."""

    def __init__(self, token: Token | None = None) -> None:
        self.token = token

    def make(self, label: str) -> tuple[ec.EllipticCurvePrivateKey, bytes]:
        """A new P-256 key, and what is to be kept for it, before anything is signed. Raises NucleusError."""
        if self.token is not None:
            return self.token.make(label)
        key = ec.generate_private_key(ec.SECP256R1())
        return key, pkcs8(key)

    def load(self, kept: bytes) -> ec.EllipticCurvePrivateKey:
        """The key of what was kept.

        Raises:
            ValueError: it is no P-256 key. NucleusError: it is in a token, and none is configured.
        """
        if kept.startswith(SCHEME):
            if self.token is None:
                raise _none()
            return self.token.load(kept)
        key = serialization.load_pem_private_key(kept, None)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise ValueError("not a P-256 key")
        return key

    def remove(self, kept: bytes) -> None:
        """Before what was kept is unlinked. A token that is gone keeps what nobody refers to any more."""
        if kept.startswith(SCHEME) and self.token is not None:
            try:
                self.token.remove(kept)
            except NucleusError:
                return


def pkcs8(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A key of ours as PEM."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@dataclass(frozen=True, slots=True)
class TokenConfig:
    """Which token.

    Attributes:
        token: its label.
        module: the PKCS#11 library's absolute path.
        environment: what the library reads of it.
        pin: the user's.
    """

    token: str
    module: str
    environment: dict[str, str]
    pin: str = field(repr=False)

    def to_json(self) -> str:
        """Without the PIN, which has a file of its own."""
        return json.dumps({"version": 1, "token": self.token, "module": self.module, "environment": self.environment})


def read_config(state_dir: str) -> TokenConfig | None:
    """What was chosen; None: files.

    Raises:
        NucleusError: rule ``identity.signer``: it cannot be read. Nothing is signed then.
    """
    path = os.path.join(state_dir, CONFIG)
    data = read_whole(path, _MAX_CONFIG, RULE)
    if data is None:
        return None
    pin = read_whole(os.path.join(state_dir, PIN), _MAX_PIN, RULE)
    try:
        found = json.loads(data)
        if found.keys() != {"version", "token", "module", "environment"} or found["version"] != 1 or pin is None:
            raise ValueError("fields")
        return check_config(found["token"], found["module"], found["environment"], pin.decode())
    except (ValueError, TypeError, AttributeError, RecursionError, InvalidError) as error:
        step = "`nucleus identity ca signer` again."
        raise NucleusError(f"{path} cannot be read", rule=RULE, next_step=step) from error


def check_config(token: Any, module: Any, environment: Any, pin: str) -> TokenConfig:
    """Raises InvalidError."""
    if not isinstance(token, str) or not 0 < len(token.encode()) <= 32:
        raise _wrong("token=LABEL of at most 32 bytes is missing")
    if not isinstance(module, str) or not module.startswith("/") or "\0" in module:
        raise _wrong("module-path=/absolute/path of the PKCS#11 library is missing")
    if not isinstance(environment, dict) or len(environment) > 16:
        raise _wrong("the environment is at most 16 names")
    for name, value in environment.items():
        plain = name.isascii() and name.replace("_", "a").isalnum() and not name[:1].isdigit()
        if not plain or name.startswith(("LD_", "PYTHON", "GLIBC_")) or name in ("PATH", "HOME"):
            raise _wrong(f"{name} is no name for a library's own setting")
        if not isinstance(value, str) or "\0" in value or len(value) > 4_096:
            raise _wrong(f"the value of {name} is no short text")
    if not pin or "\0" in pin or len(pin) > _MAX_PIN:
        raise _wrong("the PIN is missing or too long")
    return TokenConfig(token, module, dict(environment), pin)


def _wrong(why: str) -> InvalidError:
    step = "pkcs11:token=LABEL?module-path=/usr/lib/….so, the PIN by --pin-file."
    return InvalidError(f"not a token that can be used: {why}", rule=RULE, next_step=step)


def _none() -> NucleusError:
    step = "`nucleus identity ca signer` with the token that has it."
    return NucleusError("a key is in a PKCS#11 token, and none is configured", rule=RULE, next_step=step)
