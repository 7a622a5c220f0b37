"""`nucleus identity ca spire`: our CA below a SPIRE server's, as one of its downstream servers, kept current.

Steps of one turn (docs/adr/0027-spire.md):
 1. the agent on this host, by the Workload API: the trust domain's bundle, X.509 and JWT; the authority takes it
 2. where our chain is past half of its life, or there is none, or a JWT key of ours is not in that bundle:
 3. the X.509-SVID of our downstream entry, from the agent; with it to the server, which has to prove its ID
 4. a signing request of the authority's out, a chain back; its root has to be in the agent's bundle by now
 5. our JWT keys into the server's bundle
Promises: no key of the authority's comes here. A turn that fails leaves what there is: the chain signs until it ends.
Relies on: `identity.workload_client`, `identity.spire`; the authority, which checks everything anew.
"""

from __future__ import annotations

import json
import select
import sys
import time
from typing import Any

from nucleus.cli.identity import Authority, say, stamp
from nucleus.cli.options import invalid
from nucleus.errors import InvalidError, NucleusError
from nucleus.identity import spire
from nucleus.identity.jwt_svid import read_jwks
from nucleus.identity.listener import AuthorityChannel, Signals
from nucleus.identity.svid import X509Svid, pem_to_der
from nucleus.identity.workload_client import Client, read_x509_bundles

TURN_S = 60.0  # between two looks where nothing is pushed: the JWT bundle is asked for
FIRST_RETRY_S, MAX_RETRY_S = 1.0, 30.0
BUNDLE_S = 30.0  # for the agent to hear of a root that its server signs with
JWT_KEY_S = 86_400  # `jwt_keys.KEY_TTL_NS`
_PORT = 8081


class _Upstream:
    """What one command knows."""

    def __init__(self, authority: AuthorityChannel, options: dict[str, Any]) -> None:
        self._authority = authority
        self._host, self._port = address(options["server"])
        self._id: str = options["id"]
        self._at_once: bool = options["at-once"]
        self._domain: str = authority.call("show")["trust_domain"]
        self._published: set[str] = set()

    def turn(self, client: Client) -> None:
        """One turn. Raises NucleusError."""
        known = self._take_bundle(client)  # 1
        shown = self._authority.call("show")
        keys = [kid for kid in shown["jwt_keys"] if kid not in known and kid not in self._published]
        chain_due = due(shown["roots"], time.time_ns())
        if not chain_due and not keys:  # 2
            return
        with spire.Server(self._host, self._port, self._downstream(client)) as server:  # 3
            if chain_due:
                chain, _ = server.new_ca(self._authority.call("ca_request")["pem"])  # 4
                self._await_root(client, pem_to_der(chain)[-1])
                made = self._authority.call("ca_install", pem=chain, at_once=self._at_once)["installed"]
                until, signs = stamp(made["expires_ns"]), stamp(made["signs_ns"])
                _say(f"installed {made['serial']}, until {until}; signs from {signs}")
            ours = read_jwks(self._authority.call("bundle")["jwks"])
            for kid in keys:  # 5
                server.publish(kid, ours[kid], round(time.time()) + JWT_KEY_S)
                self._published.add(kid)
                _say(f"published JWT key {kid}")

    def _take_bundle(self, client: Client) -> set[str]:
        """Step 1: the names of its JWT keys."""
        roots = client.x509_bundles().get(self._domain)
        if not roots:
            raise self._elsewhere("the agent knows no bundle of it")
        jwks = client.jwt_bundles().get(self._domain, '{"keys": []}')
        answer = self._authority.call("ca_authorities", document=spire.authorities(roots, jwks))
        keys = {str(one.get("kid")) for one in json.loads(jwks)["keys"] if isinstance(one, dict)}
        if answer["changed"]:
            _say(f"bundle of {self._domain}: {len(roots)} X.509 authorities, {len(keys)} JWT keys")
        return keys

    def _downstream(self, client: Client) -> X509Svid:
        svids = client.x509().svids
        for one in svids:
            if one.spiffe_id.trust_domain == self._domain and self._id in ("", str(one.spiffe_id)):
                return one
        raise self._elsewhere(f"the agent's SVIDs for us are {', '.join(str(one.spiffe_id) for one in svids)}")

    def _await_root(self, client: Client, root: bytes) -> None:
        stream, deadline = client.watch_x509_bundles(), time.monotonic() + BUNDLE_S
        try:
            while (message := stream.next(max(deadline - time.monotonic(), 0.0))) is not None:
                if root in read_x509_bundles(message).get(self._domain, ()):
                    self._take_bundle(client)
                    return
        finally:
            stream.cancel()
        raise NucleusError("the agent does not know the root of the server's chain", rule="identity.spire")

    def _elsewhere(self, why: str) -> InvalidError:
        return InvalidError(
            f"our trust domain is {self._domain}: {why}",
            rule="identity.spire",
            next_step="`nucleus identity trust-domain NAME` before the first identity, and a downstream entry for us "
            "(`spire-server entry create -downstream …`).",
        )


def run(options: dict[str, Any], _: list[str]) -> int:
    """One turn, or with --watch until interrupted. Raises NucleusError."""
    if not options["server"]:
        raise invalid("ca spire needs --server ADDRESS[:PORT]")
    with Authority() as authority:
        upstream = _Upstream(authority, options)
        if options["watch"]:
            return _watch(upstream, options["socket"] or None)
        with Client(options["socket"] or None) as client:
            upstream.turn(client)
    return 0


def _watch(upstream: _Upstream, uri: str | None) -> int:
    retry = FIRST_RETRY_S
    with Signals() as stop:
        while True:
            try:
                with Client(uri) as client:
                    stream = client.watch_x509_bundles()
                    stream.next(BUNDLE_S)
                    while True:
                        with Client(uri) as asking:  # of its own: one connection, one call at a time
                            upstream.turn(asking)
                        retry = FIRST_RETRY_S
                        ready: list[Any] = select.select([stop, client.fileno()], [], [], TURN_S)[0]
                        if stop in ready:
                            return 0
                        if ready:
                            stream.next(0.1)  # a bundle, or the reason why the stream has ended
            except NucleusError as error:
                if error.rule == "identity.authority":
                    raise
                sys.stderr.write(f"{error.message}; again in {retry:g} s\n")
                sys.stderr.flush()
            if select.select([stop], [], [], retry)[0]:
                return 0
            retry = min(2 * retry, MAX_RETRY_S)


def due(roots: list[dict[str, Any]], now_ns: int) -> bool:
    """Whether another chain is wanted: the newest that signs, or will, is past half of its life, or there is none."""
    chains = [one for one in roots if one["upstream"] and one["key"]]
    return not any(now_ns < (one["begins_ns"] + one["expires_ns"]) // 2 for one in chains)


def address(text: str) -> tuple[str, int]:
    """``ADDRESS``, ``ADDRESS:PORT``, ``[v6]:PORT``; else SPIRE's own port. Raises InvalidError."""
    host, colon, port = text.rpartition(":")
    if not colon or (text.startswith("[") and text.endswith("]")):
        host, port = text, str(_PORT)
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not host or not host.isprintable() or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536:
        raise invalid("--server is ADDRESS:PORT")
    return host, int(port)


def _say(text: str) -> None:
    say(text + "\n")
    sys.stdout.flush()
