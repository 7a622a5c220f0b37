"""`nucleus identity fetch`: what another Workload API (a SPIRE agent's, or ours) says that this process is.

Promises: answers are verified before anything of them is written or shown; a private key goes to a new file that is
ours alone. Relies on: `identity.workload_client`. Does not: need an authority of ours.
"""

from __future__ import annotations

import os
from typing import Any

from nucleus.cli.identity import check_directory, read_text, say, say_json, stamp, write_new
from nucleus.cli.options import invalid
from nucleus.identity.workload_client import Client, armour


def x509(options: dict[str, Any], _: list[str]) -> int:
    """Our X.509-SVIDs; with --out the first, or the one of --id, into files. Raises NucleusError."""
    if options["out"]:
        check_directory(options["out"])
    with Client(options["socket"] or None) as client:
        found = client.x509()
    wanted = [
        (one, hint)
        for one, hint in zip(found.svids, found.hints, strict=True)
        if options["id"] in ("", str(one.spiffe_id))
    ]
    if not wanted:
        raise invalid(
            f"no X.509-SVID of {options['id']} is ours: {', '.join(str(one.spiffe_id) for one in found.svids)}"
        )
    if options["out"]:
        svid = wanted[0][0]
        for name, text in (("svid.pem", svid.cert_pem), ("key.pem", svid.key_pem), ("bundle.pem", svid.bundle_pem)):
            write_new(os.path.join(options["out"], name), text)
        wanted = wanted[:1]
    rows: list[dict[str, Any]] = [
        {"spiffe_id": str(one.spiffe_id), "serial": f"{one.serial:x}", "expires_ns": one.expires_ns, "hint": hint}
        for one, hint in wanted
    ]
    if options["json"]:
        say_json({"svids": rows, "federated": sorted(found.federated)})
        return 0
    for row in rows:
        where = f" in {options['out']}" if options["out"] else ""
        say(f"{row['spiffe_id']} until {stamp(row['expires_ns'])}{where}\n")
    return 0


def jwt(options: dict[str, Any], _: list[str]) -> int:
    """Tokens, one a line; the first is the default. Raises NucleusError."""
    if not options["audience"]:
        raise invalid("identity fetch jwt needs --audience")
    with Client(options["socket"] or None) as client:
        found = client.jwt(options["audience"], options["id"])
    if options["json"]:
        say_json({"svids": [{"spiffe_id": name, "svid": token, "hint": hint} for name, token, hint in found]})
        return 0
    for _name, token, _hint in found:
        say(token + "\n")
    return 0


def bundles(options: dict[str, Any], _: list[str]) -> int:
    """The trust domains that we are told of, with their keys, as JSON. Raises NucleusError."""
    import json

    with Client(options["socket"] or None) as client:
        roots, tokens = client.x509_bundles(), client.jwt_bundles()
    names = sorted({*roots, *tokens})
    say_json(
        {
            name: {"x509": armour(roots.get(name, ())), "jwks": json.loads(tokens.get(name, '{"keys": []}'))}
            for name in names
        }
    )
    return 0


def validate(options: dict[str, Any], words: list[str]) -> int:
    """Ask the endpoint whether a token is valid. Raises NucleusError: it is not."""
    if len(options["audience"]) != 1:
        raise invalid("identity fetch validate needs one --audience")
    with Client(options["socket"] or None) as client:
        name, claims = client.validate(read_text(words[0]).strip(), options["audience"][0])
    say_json({"spiffe_id": name, "claims": claims})
    return 0
