"""`nucleus identity ca signer`: where the trust domain's private keys are made: files, or a PKCS#11 token.

Promises: a PIN comes from a file or standard input, and is kept 0600 by who keeps the keys; the token is tried before
this ends, and what was there before comes back when it does not sign.
Relies on: `identity.keys`, which reads what is written here; no authority running meanwhile.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

from nucleus.cli.identity import Authority, say, say_json
from nucleus.cli.options import invalid
from nucleus.cli.trust_domain import locked, write_of_state
from nucleus.errors import NucleusError
from nucleus.identity.keys import CONFIG, PIN, RULE, TokenConfig, check_config
from nucleus.pod import runtime

_PIN_BYTES = 256


def run(options: dict[str, Any], words: list[str]) -> int:
    """Show it, or choose it. Raises NucleusError."""
    if words:
        _choose(None if words[0] == "files" else read_uri(words[0], options))
    with Authority() as authority:
        found = authority.call("ca_signer")
    if options["json"]:
        say_json(found)
    elif found["kind"] == "files":
        say("keys: files of the authority's\n")
    else:
        say(f"keys: token {found['token']} ({found['manufacturer']} {found['model']})\n")
    return 0


def read_uri(text: str, options: dict[str, Any]) -> TokenConfig:
    """A ``pkcs11:`` URI (RFC 7512): ``token``, ``module-path``, and ``pin-source=file:…`` where there is no --pin-file.

    Raises:
        InvalidError.
    """
    path, _, query = text.removeprefix("pkcs11:").partition("?")
    if not text.startswith("pkcs11:"):
        raise invalid("ca signer takes `files`, or pkcs11:token=LABEL?module-path=/path/of/the/library.so")
    found: dict[str, str] = {}
    for part in [*path.split(";"), *query.split("&")]:
        name, equals, value = part.partition("=")
        if not part:
            continue
        if not equals or name not in ("token", "module-path", "pin-source") or name in found:
            raise invalid(f"of a pkcs11: URI token, module-path and pin-source are taken, once each: {name!r}")
        found[name] = unquote(value)
    source = found.get("pin-source", "")
    if source and (options["pin-file"] or not source.startswith(("file:/", "/"))):
        raise invalid("pin-source is file:/path, and not given beside --pin-file")
    environment = {}
    for pair in options["env"]:
        name, equals, value = pair.partition("=")
        if not equals:
            raise invalid("--env is NAME=VALUE")
        environment[name] = value
    pin = _pin(options["pin-file"] or source.removeprefix("file:"))
    return check_config(found.get("token"), found.get("module-path"), environment, pin)


def _pin(path: str) -> str:
    if not path:
        raise invalid("ca signer needs the token's PIN: --pin-file FILE, or - for standard input")
    try:
        fd = 0 if path == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb", closefd=fd != 0) as file:
            if fd and os.fstat(fd).st_mode & 0o077:
                raise invalid(f"{path} can be read by others: chmod 600")
            return file.read(_PIN_BYTES + 1).decode("utf-8").rstrip("\n")
    except OSError as error:
        raise invalid(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise invalid(f"{path} is no text") from None


def _choose(config: TokenConfig | None) -> None:
    state = runtime.state_dir()
    runtime.prepare_state(state)
    lock = locked(state)
    try:
        before = {name: _kept(os.path.join(state, name)) for name in (PIN, CONFIG)}
        after: dict[str, str | None] = {PIN: None, CONFIG: None}
        if config is not None:
            after = {PIN: config.pin, CONFIG: config.to_json()}
        _put(state, after)
    finally:
        if lock >= 0:
            os.close(lock)
    try:
        with Authority() as authority:
            authority.call("ca_signer")
    except NucleusError as error:
        if error.rule == RULE:
            _put(state, before)
        raise


def _put(state: str, files: dict[str, str | None]) -> None:
    for name, text in files.items():
        if text is None:
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(state, name))
        else:
            write_of_state(state, name, text)


def _kept(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return None
