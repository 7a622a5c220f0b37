"""`nucleus identity`: the trust domain, who is registered for which SPIFFE ID, and the SPIFFE Workload API.

Promises: a private key is written to a new file that is ours alone, and shown nowhere; what is refused says which
clause of the standard refused it.
Relies on: the authority, which keeps entries and keys, and records every change and issue.
Does not: parse certificates or tokens itself (`identity.verify`, `identity.jwt_svid`).
"""

from __future__ import annotations

import os
import sys

from nucleus.cli.options import FLAG, MANY, ONE, invalid, parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nucleus.cli.launcher import Launcher
    from nucleus.identity.jwt_svid import JwtSvid
    from nucleus.identity.listener import AuthorityChannel

USAGE = """\
usage: nucleus identity show [--json]
       nucleus identity trust-domain [NAME]
       nucleus identity ca request
       nucleus identity ca install FILE [--at-once] [--json]
       nucleus identity ca spire --server ADDRESS[:PORT] [--socket URI] [--id SPIFFE_ID] [--at-once] [--watch]
       nucleus identity ca signer [files | pkcs11:token=LABEL?module-path=FILE] [--pin-file FILE] [--env NAME=VALUE...]
       nucleus identity fetch x509 [--socket URI] [--id SPIFFE_ID] [--out DIR] [--json]
       nucleus identity fetch jwt --audience WHO... [--socket URI] [--id SPIFFE_ID] [--json]
       nucleus identity fetch validate FILE --audience WHO [--socket URI]
       nucleus identity fetch bundles [--socket URI]
       nucleus identity entries add --id SPIFFE_ID --selector SELECTOR... [--ttl 1h] [--hint TEXT]
                                    [--federates-with TRUST_DOMAIN...]
       nucleus identity entries list [--json]
       nucleus identity entries remove ENTRY
       nucleus identity serve [--socket PATH] [--refresh SECONDS]
       nucleus identity issue SPIFFE_ID --out DIR [--ttl 1h]
       nucleus identity issue SPIFFE_ID --audience WHO...
       nucleus identity verify FILE [--bundle FILE] [--role client|server]
       nucleus identity verify FILE --audience WHO [--bundle FILE]
       nucleus identity bundle [--format pem|jwks|spiffe]
       nucleus identity revoke SERIAL|SPIFFE_ID --reason TEXT
       nucleus identity restore SPIFFE_ID
       nucleus identity revoked [--json]
       nucleus identity endpoint --listen ADDRESS:PORT [--path /] [--cert FILE --key FILE | --id SPIFFE_ID]
       nucleus identity federate add TRUST_DOMAIN --url URL --profile https_web [--ca FILE]
       nucleus identity federate add TRUST_DOMAIN --url URL --profile https_spiffe --endpoint-id ID --bundle FILE
       nucleus identity federate list [--json]
       nucleus identity federate refresh [TRUST_DOMAIN | --watch]
       nucleus identity federate remove TRUST_DOMAIN

  show     the trust domain, its roots and keys
  trust-domain  what all identities here are named by (default: nucleus.local); chosen before the first is issued
  ca       our CA below another one: a signing request, and the chain that answers it (ours first, the root last); it
           signs once every peer knows its root, a day later. --at-once: now, as where nothing was issued yet
           spire: the CA above is a SPIRE server's; its agent on this host says who we are, a downstream entry
           --watch    renew the chain at half of its life, follow the bundle, publish our JWT keys, until interrupted
           signer: where private keys are made from now on: files of the authority's (the default), or a PKCS#11 token
           --pin-file  its PIN; - for stdin     --env  what the token's library reads of its environment
  fetch    from another Workload API, --socket or SPIFFE_ENDPOINT_SOCKET (a SPIRE agent's): what it says that we are
  entries  which processes of this host get which SPIFFE ID: all selectors of an entry must hold
             unix:uid:1000  unix:gid:1000  unix:supplementary_gid:27
             unix:path:/usr/bin/x  unix:sha256:<of the executable>  nucleus:pod:NAME
           --ttl    of its X.509-SVIDs: 1m to 24h (default: 1h)
           --hint   tells a workload that has several which is which
           --federates-with  it is given the bundle of this foreign trust domain too
  serve    the standard SPIFFE Workload API (gRPC) on a unix socket, until interrupted; prints SPIFFE_ENDPOINT_SOCKET
           --socket   default: /run/nucleus-workload/api.sock for root, else workload-api.sock in the runtime directory
           --refresh  push a new SVID at the latest after so many seconds (default: at half of its life)
  issue    an X.509-SVID with its key into DIR (svid.pem, key.pem, bundle.pem), or a JWT-SVID for --audience, printed
  verify   a certificate (PEM, leaf first), or with --audience a JWT-SVID, against our bundle or --bundle; - for stdin
  bundle   what verifies our SVIDs: roots as PEM, JWT keys as JWKS, or both as a SPIFFE bundle
  revoke   a certificate (its serial number is in the log's identity.issued and in openssl's -serial; its workload
           gets another), or all of a SPIFFE ID, to which nothing is issued then; live connections end at once
  restore  issue to a revoked SPIFFE ID again; what it had before stays refused
  revoked  what is revoked, while a certificate that it concerns can be alive
  endpoint our bundle over HTTPS for other trust domains, until interrupted: with a certificate of the web's (--cert,
           --key), or with an X.509-SVID (--id, default: /bundle-endpoint)
  federate other trust domains: where their bundle is, and how its endpoint is known. A foreign bundle verifies SVIDs
           of its own trust domain and no others, and is given to workloads whose entry names it
           --ca       roots for the endpoint's certificate (default: this machine's)
           --bundle   the first bundle, had from there by hand, in the SPIFFE format
           --watch    fetch each when its hint says so, until interrupted
"""
_TAKES = {
    "show": {"json": FLAG},
    "trust-domain": {},
    "ca request": {},
    "ca install": {"at-once": FLAG, "json": FLAG},
    "ca spire": {"server": ONE, "socket": ONE, "id": ONE, "at-once": FLAG, "watch": FLAG},
    "ca signer": {"pin-file": ONE, "env": MANY, "json": FLAG},
    "fetch x509": {"socket": ONE, "id": ONE, "out": ONE, "json": FLAG},
    "fetch jwt": {"socket": ONE, "id": ONE, "audience": MANY, "json": FLAG},
    "fetch validate": {"socket": ONE, "audience": MANY},
    "fetch bundles": {"socket": ONE},
    "entries add": {"id": ONE, "selector": MANY, "ttl": ONE, "hint": ONE, "federates-with": MANY},
    "entries list": {"json": FLAG},
    "entries remove": {},
    "serve": {"socket": ONE, "refresh": ONE},
    "issue": {"out": ONE, "ttl": ONE, "audience": MANY},
    "verify": {"bundle": ONE, "role": ONE, "audience": ONE},
    "bundle": {"format": ONE},
    "revoke": {"reason": ONE},
    "restore": {},
    "revoked": {"json": FLAG},
    "endpoint": {"listen": ONE, "path": ONE, "cert": ONE, "key": ONE, "id": ONE},
    "federate add": {"url": ONE, "profile": ONE, "ca": ONE, "endpoint-id": ONE, "bundle": ONE},
    "federate list": {"json": FLAG},
    "federate refresh": {"watch": FLAG},
    "federate remove": {},
}
_WORDS = {"ca install": 1, "entries remove": 1, "issue": 1, "verify": 1, "revoke": 1, "restore": 1}
_WORDS |= {"federate add": 1, "federate remove": 1, "fetch validate": 1}
_MAYBE_A_WORD = ("federate refresh", "trust-domain", "ca signer")
_UNITS = {"s": 1, "m": 60, "h": 3_600}
_FILE_BYTES = 262_144
ROOT_SOCKET = "/run/nucleus-workload/api.sock"


def main(argv: list[str]) -> int:
    """Run the verb. Raises NucleusError."""
    if not argv or "--help" in argv:
        sys.stdout.write(USAGE)
        return 0 if argv else 2
    verb, rest = argv[0], argv[1:]
    if verb in ("entries", "federate", "ca", "fetch") and rest:
        verb, rest = f"{verb} {rest[0]}", rest[1:]
    if verb not in _TAKES:
        verbs = ", ".join(sorted(_TAKES))
        raise invalid(f"the verbs of identity are {verbs}")
    options, words = _split(rest, _TAKES[verb])
    if (len(words) != _WORDS.get(verb, 0) and verb not in ("federate refresh", "trust-domain", "ca signer")) or len(
        words
    ) > 1:
        raise invalid(f"identity {verb} takes {_WORDS.get(verb, 0) or 'no'} word beside its options")
    if verb == "trust-domain":
        from nucleus.cli import trust_domain

        return trust_domain.run(options, words)
    if verb == "ca signer":
        from nucleus.cli import ca_signer

        return ca_signer.run(options, words)
    if verb == "ca spire":
        from nucleus.cli import ca_spire

        return ca_spire.run(options, words)
    if verb.startswith("fetch "):
        from nucleus.cli import identity_fetch as fetch

        verbs_of = {"x509": fetch.x509, "jwt": fetch.jwt, "validate": fetch.validate, "bundles": fetch.bundles}
        return verbs_of[verb.removeprefix("fetch ")](options, words)
    if verb.startswith("ca "):
        from nucleus.cli import ca

        return (ca.request if verb == "ca request" else ca.install)(options, words)
    if verb == "endpoint" or verb.startswith("federate"):
        from nucleus.cli import federation

        foreign = {"endpoint": federation.endpoint, "federate add": federation.add, "federate list": federation.listed}
        foreign |= {"federate refresh": federation.refresh, "federate remove": federation.remove}
        return foreign[verb](options, words)
    return _VERBS[verb](options, words)


def _split(argv: list[str], table: dict[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Options before, between and behind the words, and the words."""
    options, rest = parse(argv, table)
    words: list[str] = []
    while rest:
        words.append(rest[0])
        more, rest = parse(rest[1:], table)
        for key, value in more.items():
            if value and options[key] and table[key] == ONE:
                raise invalid(f"--{key} is given twice")
            options[key] = options[key] + value if table[key] == MANY else value or options[key]
    return options, words


class Authority:
    """The person's channel to the authority, for one command."""

    def __enter__(self) -> AuthorityChannel:
        from nucleus.cli.launcher import Launcher

        self._launcher = Launcher.open()
        self._channel = _attach(self._launcher, "identity")
        return self._channel

    def __exit__(self, *_: object) -> None:
        self._channel.close()
        self._launcher.close()


def _attach(launcher: Launcher, role: str) -> AuthorityChannel:
    from nucleus.identity.listener import AuthorityChannel

    return AuthorityChannel(_channel(launcher, role))


def _channel(launcher: Launcher, role: str) -> Any:
    import socket

    from nucleus.errors import SandboxError

    fds = launcher.call("attach_identity", role=role).fds
    if len(fds) != 1:
        raise SandboxError("the builder sent no channel", rule="launcher.builder")
    return socket.socket(fileno=fds[0])


# -- the verbs -----------------------------------------------------------------------------------------------------


def _show(options: dict[str, Any], _: list[str]) -> int:
    with Authority() as authority:
        found = authority.call("show")
    if options["json"]:
        say_json(found)
        return 0
    say(f"trust domain: {found['trust_domain']}\nentries: {found['entries']}\n")
    for root in found["roots"]:
        state = "" if root["key"] else ", signs no more"
        state += ", of a CA above ours" if root["upstream"] else ""
        say(f"root: {root['serial']} until {stamp(root['expires_ns'])}{state}\n")
    for kid in found["jwt_keys"]:
        say(f"jwt key: {kid}\n")
    return 0


def _entries_add(options: dict[str, Any], _: list[str]) -> int:
    if not options["id"] or not options["selector"]:
        raise invalid("entries add needs --id and at least one --selector")
    fields: dict[str, Any] = {"spiffe_id": options["id"], "selectors": options["selector"], "hint": options["hint"]}
    if options["federates-with"]:
        fields["federates_with"] = options["federates-with"]
    if options["ttl"]:
        fields["ttl_s"] = _seconds(options["ttl"])
    with Authority() as authority:
        made = authority.call("entry_add", **fields)["entry"]
    _entry(made)
    if not any(one.startswith(("unix:uid:", "nucleus:pod:")) for one in made["selectors"]):
        sys.stderr.write("note: every user of this host can run that program; add unix:uid:N to name one user\n")
    return 0


def _entries_list(options: dict[str, Any], _: list[str]) -> int:
    with Authority() as authority:
        found = authority.call("entries")["entries"]
    if options["json"]:
        say_json({"entries": found})
        return 0
    for entry in found:
        _entry(entry)
    if not found:
        say("no entries: `nucleus identity entries add`\n")
    return 0


def _entries_remove(_: dict[str, Any], words: list[str]) -> int:
    with Authority() as authority:
        authority.call("entry_remove", entry=words[0])
    say(f"removed {words[0]}\n")
    return 0


def _serve(options: dict[str, Any], _: list[str]) -> int:
    from nucleus.cli.launcher import Launcher
    from nucleus.identity.listener import serve

    path = os.path.abspath(options["socket"]) if options["socket"] else _default_socket()
    refresh = options["refresh"] or "0"
    if not refresh.isascii() or not refresh.isdigit() or len(refresh) > 6:
        raise invalid("--refresh is a number of seconds")

    def ready() -> None:
        say_json({"SPIFFE_ENDPOINT_SOCKET": f"unix://{path}"})
        sys.stdout.flush()

    with Launcher.open() as launcher:
        # As root anybody may ask, and gets what is theirs; a user's own authority answers that user.
        mode = 0o666 if os.geteuid() == 0 else 0o600
        channel = _channel(launcher, "workload_api")
        with channel:
            serve(path, mode, channel, lambda: _pods(launcher), refresh_s=int(refresh), ready=ready)
    return 0


def _pods(launcher: Launcher) -> list[dict[str, Any]]:
    pods = launcher.call("status").body.get("pods")
    return pods if isinstance(pods, list) else []


def _default_socket() -> str:
    from nucleus.pod.runtime import runtime_dir

    if os.geteuid() == 0 and not os.environ.get("NUCLEUS_RUNTIME"):
        return ROOT_SOCKET  # the runtime directory is closed to others
    return os.path.join(runtime_dir(), "workload-api.sock")


def _issue(options: dict[str, Any], words: list[str]) -> int:
    if bool(options["out"]) == bool(options["audience"]):
        raise invalid("identity issue needs --out DIR for an X.509-SVID, or --audience for a JWT-SVID")
    fields: dict[str, Any] = {"spiffe_id": words[0]}
    if options["audience"]:
        if options["ttl"]:
            raise invalid("a JWT-SVID lives for 5 minutes; --ttl is for X.509-SVIDs")
        fields["audience"] = options["audience"]
    elif options["ttl"]:
        fields["ttl_s"] = _seconds(options["ttl"])
    if options["out"]:
        check_directory(options["out"])
    with Authority() as authority:
        made = authority.call("issue", **fields)
    if options["audience"]:
        say(made["token"] + "\n")
        return 0
    for name, part in (("svid.pem", "cert_pem"), ("key.pem", "key_pem"), ("bundle.pem", "bundle_pem")):
        write_new(os.path.join(options["out"], name), made[part])
    say(f"{made['spiffe_id']} until {stamp(made['expires_ns'])} in {options['out']}\n")
    return 0


def _verify(options: dict[str, Any], words: list[str]) -> int:
    import time

    text = read_text(words[0])
    if options["audience"]:
        from nucleus.identity import jwt_svid

        # The one trust domain that the bundle is of: its own, or that which the token names.
        bundle = read_text(options["bundle"]) if options["bundle"] else ""
        with _maybe(not bundle) as found:
            if found:
                keys = {one.trust_domain: jwt_svid.read_jwks(one.jwks) for one in found["foreign"]}
                keys[found["trust_domain"]] = jwt_svid.read_jwks(found["jwks"])
            else:
                keys = {_domain_of(text.strip()): jwt_svid.read_jwks(bundle)}
        token = jwt_svid.validate(text.strip(), options["audience"], keys, time.time_ns())
        if found:
            _check_not_revoked(token)
        say(f"{token.spiffe_id} for {', '.join(token.audience)} until {stamp(token.expires_ns)}\n")
        return 0
    from nucleus.identity.svid import pem_to_der
    from nucleus.identity.verify import leaf_trust_domain, verify_svid

    role = options["role"] or "client"
    if role not in ("client", "server"):
        raise invalid("--role is client or server")
    chain = pem_to_der(text)
    bundle = read_text(options["bundle"]) if options["bundle"] else ""
    with _maybe(not bundle) as found:
        if found:
            roots = {one.trust_domain: one.x509 for one in found["foreign"]}
            roots[found["trust_domain"]] = tuple(pem_to_der(found["pem"]))
        else:
            roots = {leaf_trust_domain(chain): tuple(pem_to_der(bundle))}
    name = verify_svid(chain, roots, time.time_ns(), role="client" if role == "client" else "server")
    say(f"{name}\n")
    return 0


def _check_not_revoked(token: JwtSvid) -> None:
    """Of one that is valid; foreign names are not revoked here, so the answer is no."""
    from nucleus.errors import UnauthenticatedError
    from nucleus.identity.jwt_svid import issued_ns

    with Authority() as authority:
        if authority.call("token", spiffe_id=str(token.spiffe_id), issued_ns=issued_ns(token))["revoked"]:
            raise UnauthenticatedError("the token's SPIFFE ID is revoked", rule="jwt.revoked")


def _domain_of(token: str) -> str:
    """The trust domain that an unverified token claims; with a bundle given by hand it is the bundle's."""
    import base64
    import json

    from nucleus.errors import InvalidError
    from nucleus.identity.spiffe_id import SpiffeId

    try:
        body = token.split(".")[1]
        return SpiffeId.parse(json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))["sub"]).trust_domain
    except (ValueError, KeyError, IndexError, TypeError, RecursionError, InvalidError):
        return ""  # `validate` says what is wrong with it


class _maybe:
    """The authority's bundles where they are wanted, else nothing."""

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted

    def __enter__(self) -> dict[str, Any]:
        if not self._wanted:
            return {}
        from nucleus.cli.federation import foreign

        with Authority() as authority:
            return {**authority.call("show"), **authority.call("bundle"), "foreign": foreign(authority)}

    def __exit__(self, *_: object) -> None:
        return


def _bundle(options: dict[str, Any], _: list[str]) -> int:
    kind = options["format"] or "pem"
    if kind not in ("pem", "jwks", "spiffe"):
        raise invalid("--format is pem, jwks or spiffe")
    with Authority() as authority:
        found = authority.call("bundle")
    if kind == "pem":
        say(found["pem"])
        return 0
    say((found["jwks"] if kind == "jwks" else found["document"]) + "\n")
    return 0


def _revoke(options: dict[str, Any], words: list[str]) -> int:
    if not options["reason"]:
        raise invalid("identity revoke needs --reason")
    with Authority() as authority:
        _revocation(authority.call("revoke", what=words[0], reason=options["reason"])["revoked"])
    return 0


def _restore(_: dict[str, Any], words: list[str]) -> int:
    with Authority() as authority:
        found = authority.call("restore", what=words[0])["revoked"]
    say(f"restored {found['spiffe_id']}; what was issued until {stamp(found['at_ns'])} stays refused\n")
    return 0


def _revoked(options: dict[str, Any], _: list[str]) -> int:
    with Authority() as authority:
        found = authority.call("revocations")["revoked"]
    if options["json"]:
        say_json({"revoked": found})
        return 0
    for one in found:
        _revocation(one)
    if not found:
        say("nothing is revoked\n")
    return 0


def _revocation(one: dict[str, Any]) -> None:
    what = f"serial {one['serial']}" if one["serial"] else one["spiffe_id"]
    until = "until restored" if one["blocked"] else f"until {stamp(one['until_ns'])}"
    say(f"revoked {what}  {until}  {one['reason']}\n")


# -- small things --------------------------------------------------------------------------------------------------


def _seconds(text: str) -> int:
    number, unit = text[:-1], text[-1:]
    if unit not in _UNITS or not number.isascii() or not number.isdigit() or len(number) > 6:
        raise invalid("--ttl is a number with s, m or h, such as 30m")
    return int(number) * _UNITS[unit]


def _entry(entry: dict[str, Any]) -> None:
    hint = f"  hint {entry['hint']}" if entry["hint"] else ""
    say(f"{entry['entry']}  {entry['spiffe_id']}  ttl {entry['ttl_s']}s{hint}\n")
    for selector in entry["selectors"]:
        say(f"  {selector}\n")
    for domain in entry["federates_with"]:
        say(f"  federates with {domain}\n")


def check_directory(path: str) -> None:
    try:
        os.makedirs(path, 0o700, exist_ok=True)
        there = [name for name in ("svid.pem", "key.pem", "bundle.pem") if os.path.lexists(os.path.join(path, name))]
    except OSError as error:
        raise invalid(f"--out {path}: {error.strerror}") from None
    if there:
        raise invalid(f"--out {path}: {there[0]} is there already")


def write_new(path: str, text: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags, 0o600), "w", encoding="ascii") as file:
        file.write(text)


def read_text(path: str) -> str:
    """A file of bounded ASCII; - for stdin. Raises InvalidError."""
    try:
        if path == "-":
            data = sys.stdin.buffer.read(_FILE_BYTES + 1)
        else:
            with open(path, "rb") as file:
                data = file.read(_FILE_BYTES + 1)
    except OSError as error:
        raise invalid(f"{path}: {error.strerror}") from None
    if len(data) > _FILE_BYTES or not data.isascii():
        raise invalid(f"{path} is not ASCII of at most {_FILE_BYTES} bytes")
    return data.decode("ascii")


def stamp(ns: int) -> str:
    """Nanoseconds since the epoch, for the person."""
    import time

    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ns // 1_000_000_000))


def say(text: str) -> None:
    """For the person."""
    from nucleus.cli.main import printable

    sys.stdout.write(printable(text))


def say_json(value: Any) -> None:
    """For programs."""
    import json

    sys.stdout.write(json.dumps(value) + "\n")


_VERBS = {
    "show": _show,
    "entries add": _entries_add,
    "entries list": _entries_list,
    "entries remove": _entries_remove,
    "serve": _serve,
    "issue": _issue,
    "verify": _verify,
    "bundle": _bundle,
    "revoke": _revoke,
    "restore": _restore,
    "revoked": _revoked,
}
