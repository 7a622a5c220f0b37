"""`nucleus identity federate` and `nucleus identity endpoint`: foreign trust domains, and our bundle for them.

Promises: a foreign bundle is fetched by this process, as the person, and handed to the authority, which checks it anew;
nothing is kept of an endpoint that did not prove to be the configured one. A fetch that fails leaves the last bundle.
Relies on: `identity.bundle_client`, `identity.bundle_endpoint`. Does not: hold a key of the authority's.
"""

from __future__ import annotations

import select
import sys
import time

from nucleus.cli.identity import Authority, read_text, say, say_json, stamp
from nucleus.cli.options import invalid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from nucleus.identity.federation import Relationship
    from nucleus.identity.listener import AuthorityChannel
    from nucleus.identity.svid import Roots

RETRY_S = 30  # after a fetch that failed, at the latest
_ENDPOINT = "/bundle-endpoint"


def add(options: dict[str, Any], words: list[str]) -> int:
    """Fetch once, then keep. Raises NucleusError."""
    from nucleus.identity import federation
    from nucleus.identity.bundle import read
    from nucleus.identity.bundle_client import fetch
    from nucleus.identity.spiffe_id import SpiffeId

    profile = options["profile"]
    if not options["url"] or profile not in (federation.WEB, federation.SPIFFE):
        raise invalid("federate add needs --url and --profile https_web or https_spiffe")
    if bool(options["endpoint-id"]) != (profile == federation.SPIFFE):
        raise invalid("--endpoint-id is what https_spiffe needs, and https_web does not take")
    if (profile == federation.WEB and options["bundle"]) or (profile == federation.SPIFFE and options["ca"]):
        raise invalid("--ca is for https_web, --bundle for https_spiffe")
    with Authority() as authority:
        own = authority.call("show")["trust_domain"]
        domain = federation.check_trust_domain(words[0], own)
        federation.check_profile(profile, options["endpoint-id"], own)
        web_roots = read_text(options["ca"]) if options["ca"] else ""
        one = federation.Relationship(domain, options["url"], profile, options["endpoint-id"], web_roots, "", 0)
        roots: Roots = {}
        first = None
        if profile == federation.SPIFFE:
            of = SpiffeId.parse(options["endpoint-id"]).trust_domain
            if of != domain:
                if options["bundle"]:
                    raise invalid(f"--bundle is {domain}'s; the endpoint is of {of}, which has to be federated itself")
                roots = _roots(authority, of)
            elif not options["bundle"]:
                raise invalid("https_spiffe needs the trust domain's first bundle: --bundle FILE")
            else:
                first = read(read_text(options["bundle"]), domain)
                roots = {domain: first.x509}
        document = fetch(one, roots)
        if first is not None:
            federation.check_successor(first, read(document, domain))
        fields = {name: value for name, value in one.to_wire().items() if name != "fetched_ns"}
        made = authority.call("federate", **fields | {"document": document})["federation"]
    _show(made)
    return 0


def listed(options: dict[str, Any], words: list[str]) -> int:
    """What there is. Raises NucleusError."""
    with Authority() as authority:
        found = authority.call("federations")["federations"]
    if options["json"]:
        say_json({"federations": found})
        return 0
    for one in found:
        _show(one)
    if not found:
        say("no foreign trust domains: `nucleus identity federate add`\n")
    return 0


def remove(options: dict[str, Any], words: list[str]) -> int:
    """Nothing of it counts any more. Raises NucleusError."""
    with Authority() as authority:
        authority.call("federation_remove", trust_domain=words[0])
    say(f"removed {words[0]}\n")
    return 0


def refresh(options: dict[str, Any], words: list[str]) -> int:
    """Fetch one, or all; with --watch those that are due, until interrupted. 1: one failed. Raises NucleusError."""
    if len(words) > 1 or (words and options["watch"]):
        raise invalid("federate refresh takes one trust domain, or none, or --watch")
    with Authority() as authority:
        if options["watch"]:
            return _watch(authority)
        names = words or [one["trust_domain"] for one in authority.call("federations")["federations"]]
        done = [_refreshed(authority, name) for name in names]  # each, also after one that failed
        return int(not all(done))


def _watch(authority: AuthorityChannel) -> int:
    from nucleus.identity.listener import Signals

    tried: dict[str, float] = {}
    with Signals() as stop:
        while True:
            wait = float(RETRY_S)
            for one in authority.call("federations")["federations"]:
                name = one["trust_domain"]
                age_s = (time.time_ns() - one["fetched_ns"]) / 1e9
                left = max(one["refresh_s"] - age_s, tried.get(name, 0) - time.monotonic())
                if left <= 0 or age_s < 0:  # the clock went back: fetched in the future says nothing
                    if not _refreshed(authority, name):
                        tried[name] = time.monotonic() + min(RETRY_S, one["refresh_s"])
                    left = one["refresh_s"]
                wait = min(wait, left)
            if select.select([stop], [], [], max(wait, 1.0))[0]:
                return 0


def _refreshed(authority: AuthorityChannel, name: str) -> bool:
    from nucleus.errors import NucleusError
    from nucleus.identity.bundle_client import fetch
    from nucleus.identity.federation import SPIFFE
    from nucleus.identity.spiffe_id import SpiffeId

    try:
        one = _relationship(authority, name)
        roots: Roots = {}
        if one.profile == SPIFFE:
            roots = _roots(authority, SpiffeId.parse(one.endpoint_id).trust_domain)
        answer = authority.call("federation_update", trust_domain=name, document=fetch(one, roots))
    except NucleusError as error:
        if error.rule == "identity.authority":
            raise
        sys.stderr.write(f"{name}: {error.message}\n")
        sys.stderr.flush()
        return False
    say(
        f"{name}: {'a new bundle' if answer['changed'] else 'unchanged'}, sequence {answer['federation']['sequence']}\n"
    )
    sys.stdout.flush()
    return True


def _relationship(authority: AuthorityChannel, name: str) -> Relationship:
    from nucleus.identity.federation import Relationship

    return Relationship(**authority.call("federation", trust_domain=name)["federation"])


def _roots(authority: AuthorityChannel, name: str) -> Roots:
    return {name: _relationship(authority, name).bundle().x509}


def foreign(authority: AuthorityChannel) -> list[Any]:
    """The bundles of all foreign trust domains."""
    found = authority.call("federations")["federations"]
    return [_relationship(authority, one["trust_domain"]).bundle() for one in found]


def _show(one: dict[str, Any]) -> None:
    endpoint = f" ({one['endpoint_id']})" if one["endpoint_id"] else ""
    say(f"{one['trust_domain']}  {one['profile']}  {one['url']}{endpoint}\n")
    say(f"  {one['x509_roots']} roots, {one['jwt_keys']} JWT keys, sequence {one['sequence']}, ")
    say(f"fetched {stamp(one['fetched_ns'])}, again after {one['refresh_s']}s\n")


# -- our own -------------------------------------------------------------------------------------------------------


def endpoint(options: dict[str, Any], words: list[str]) -> int:
    """Serve our bundle until interrupted. Raises NucleusError."""
    from nucleus.identity import bundle_endpoint

    host, port = _address(options["listen"])
    if bool(options["cert"]) != bool(options["key"]) or (options["cert"] and options["id"]):
        raise invalid("https_web needs --cert and --key; https_spiffe takes --id, or nothing")
    path = options["path"] or "/"
    if not path.startswith("/") or not path.isascii() or not path.isprintable() or not set("?# ").isdisjoint(path):
        raise invalid("--path is that of a URL")
    with Authority() as authority:
        spiffe_id = ""
        credentials: Callable[[], tuple[str, str]]
        if options["cert"]:
            credentials = _Files(options["cert"], options["key"])
        else:
            spiffe_id = options["id"] or f"spiffe://{authority.call('show')['trust_domain']}{_ENDPOINT}"
            credentials = _Svid(authority, spiffe_id)
        door = bundle_endpoint.listen(host, port)
        shown = f"[{host}]" if ":" in host else host
        url = f"https://{shown}:{door.getsockname()[1]}{path}"

        def ready() -> None:
            about = {"profile": "https_spiffe", "endpoint_id": spiffe_id} if spiffe_id else {"profile": "https_web"}
            say_json({"url": url, **about})
            sys.stdout.flush()

        bundle_endpoint.serve(door, lambda: str(authority.call("bundle")["document"]), credentials, path, ready)
    return 0


class _Files:
    """A certificate and its key by file, read again when they change; while they cannot be, the last."""

    def __init__(self, cert: str, key: str) -> None:
        self._names = (cert, key)
        self._read: tuple[str, str] | None = None

    def __call__(self) -> tuple[str, str]:
        from nucleus.errors import InvalidError
        from nucleus.identity.tls import bundle_context

        try:
            found = (read_text(self._names[0]), read_text(self._names[1]))
            if found != self._read:
                bundle_context(*found)  # half of a replacement is none
        except InvalidError:
            if self._read is None:
                raise
            return self._read
        self._read = found
        return found


class _Svid:
    """An X509-SVID, a new one at half of its life."""

    def __init__(self, authority: AuthorityChannel, spiffe_id: str) -> None:
        self._authority = authority
        self._spiffe_id = spiffe_id
        self._renew_ns = 0
        self._held = ("", "")

    def __call__(self) -> tuple[str, str]:
        from nucleus.identity.svid import X509Svid

        now = time.time_ns()
        if now >= self._renew_ns:
            svid = X509Svid.from_wire(self._authority.call("issue", spiffe_id=self._spiffe_id), now=now)
            self._held, self._renew_ns = (svid.cert_pem, svid.key_pem), svid.renew_at_ns()
        return self._held


def _address(text: str) -> tuple[str, int]:
    import ipaddress

    host, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdigit() or len(port) > 5 or int(port) > 65_535:
        raise invalid("--listen is ADDRESS:PORT, such as 0.0.0.0:8443 or [::]:8443")
    try:
        return str(ipaddress.ip_address(host.strip("[]"))), int(port)
    except ValueError:
        raise invalid("--listen is ADDRESS:PORT, such as 0.0.0.0:8443 or [::]:8443") from None
