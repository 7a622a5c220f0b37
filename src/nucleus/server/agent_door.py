"""The agent's door of one gate: its SVID, the TLS context that follows rotation, the peer check, and revocation.

Who may come in: whom the policy's `identities.agents` name, by the SPIFFE ID that their X509-SVID proves; where it says
nothing, this pod's own agent (or orchestrator) alone. What they may do there is the decision's.
Promises: a rotation drops no connection and swaps leaf and trust store together; a revoked peer is cut as soon as the
authority says so; a gate whose own SVID is revoked cuts everybody and serves nobody until it has another.
A peer is verified by the bundle of its own trust domain; a foreign one that the policy does not name is refused under
its own name. A foreign bundle that cannot be had or used counts as none.
Relies on: the authority, which tells of revocations on the gate's channel after it has answered `revoked`, and of other
foreign bundles after it has answered `federated`.
Imported only by gates that have an agent: aiohttp, ssl and cryptography are most of a gate's start-up time.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from typing import TYPE_CHECKING, Any, Literal

from aiohttp import web
from cryptography import x509

from nucleus.errors import InvalidError, NucleusError, UnauthenticatedError
from nucleus.identity import tls
from nucleus.identity.revocation import DenyList
from nucleus.identity.spiffe_id import SpiffeId
from nucleus.identity.svid import Roots, X509Svid, pem_to_der
from nucleus.lattice.identities import OWN, Patterns, admits
from nucleus.model.principal import Principal
from nucleus.server.app import Door, Listing
from nucleus.server.authority import Authority
from nucleus.server.driver import Driver
from nucleus.server.handshakes import Handshakes
from nucleus.server.peers import Peer, Peers

if TYPE_CHECKING:
    from nucleus.server.gate import Config

_RETRY_S = 5
_OWN_ALONE = (frozenset((OWN,)),)


class AgentDoor:
    """See the module. `told` may be called from the start, `open` once, `close` at the end.

    Args:
        config: of the gate.
        driver, authority: the gate's.
        may_call: the policy's lists of who may come in (`lattice.identities`).
    """

    def __init__(
        self, config: Config, driver: Driver, authority: Authority, may_call: tuple[Patterns, ...] = _OWN_ALONE
    ) -> None:
        self._role: Literal["agent", "orchestrator"] = "agent" if config.door == "agent" else "orchestrator"
        self._expected = config.agent_id if self._role == "agent" else config.orchestrator_id
        self._may_call = may_call
        self._driver = driver
        self._authority = authority
        self._deny = DenyList()
        self._peers = Peers(self._authenticate, self._deny)
        self._renew = asyncio.Event()  # something is to be fetched: foreign roots, and if `_again` an SVID
        self._again = False
        self._own_serial = 0
        self._records: set[asyncio.Task[Any]] = set()

    async def open(self, listener: socket.socket, tools: Listing) -> None:
        """Serve on `listener`. Raises NucleusError: there is no SVID, or nobody can say what is revoked."""
        for one in await self._authority.revoked(everybody=self._may_call != _OWN_ALONE):
            self._deny.add(one)
        svid = await self._authority.svid()
        self._holder = tls.RotatingServerContext(svid)
        self._install(svid, await self._foreign(svid))
        self._own_serial = _serial(svid)
        Handshakes(self._driver).watch(self._holder.context)
        charge = self._authority.charge if self._role == "orchestrator" else None
        self._runner: web.AppRunner = await Door(self._driver, self._peers, tools, charge).serve(
            listener, self._holder.context
        )
        self._rotation = asyncio.ensure_future(self._rotate())
        if self._own_revoked():  # between the answers of the authority
            self.renew()

    async def close(self) -> None:
        """Stop serving."""
        self._rotation.cancel()
        self._peers.close()
        await self._runner.cleanup()

    def told(self, header: dict[str, Any]) -> None:
        """A revocation, from the authority. Raises InvalidError: it is none, which ends the channel and the gate."""
        self._deny.prune(time.time_ns())
        self._deny.add(header)
        if self._own_revoked():
            self._peers.cut(lambda _: True)
            self.renew()
        elif cut := self._peers.cut_revoked():
            self._record(f"{cut} connection{'s' if cut > 1 else ''} cut: the peer's SVID is revoked")

    def renew(self) -> None:
        """Fetch a new SVID now and not at half-life."""
        self._again = True
        self._renew.set()

    def federated(self, *, own: bool = False) -> None:
        """Foreign bundles are others now, says the authority; `own`: that of our trust domain is."""
        if own:
            self.renew()
        self._renew.set()

    async def _foreign(self, svid: X509Svid) -> Roots:
        """The foreign roots. None of them may stand in the way of ours in OpenSSL's store, which looks by subject."""
        try:
            found = await self._authority.federated()
        except (NucleusError, ValueError):
            return {}
        # An intermediate of ours, too: OpenSSL asks its store before it looks at what a peer has sent.
        ours = [*(der for ders in svid.roots().values() for der in ders), *pem_to_der(svid.cert_pem)[1:]]
        taken = {None, *map(_subject, ours)}
        return {name: tuple(der for der in ders if _subject(der) not in taken) for name, ders in found.items()}

    def _install(self, svid: X509Svid, foreign: Roots) -> None:
        """New connections see these; those of foreign trust domains whose roots are others now end.

        Ours end when a root is gone before its time: who stands above our CA has withdrawn it.
        """
        before = self._holder.roots
        try:
            self._holder.update(svid, {**foreign, **svid.roots()})
        except InvalidError:
            self._holder.update(svid)  # what OpenSSL cannot read of others does not keep us from our own
        roots, own = self._holder.roots, svid.spiffe_id.trust_domain
        changed = {name for name in before if name != own and before[name] != roots.get(name)}
        if any(_lives(der) for der in set(before.get(own, ())) - set(roots.get(own, ()))):
            changed.add(own)
        if changed:
            self._peers.cut(lambda peer: SpiffeId.parse(peer.principal.spiffe_id).trust_domain in changed)

    def _own_revoked(self) -> bool:
        return self._deny.refuses(str(self._holder.svid.spiffe_id), self._own_serial) if self._own_serial else False

    def _authenticate(self, peer: ssl.SSLObject) -> Peer:
        """The peer must be whom this door is for, proven by its X509-SVID: see the module."""
        if self._own_revoked():
            raise UnauthenticatedError("this gate's own SVID is revoked", rule="svid.revoked")
        proven = tls.proven(peer, self._holder.roots, time.time_ns(), "client")
        name = str(proven.spiffe_id)
        own = name == self._expected
        # Another pod's SVID is genuine and still not the peer of this channel, unless the policy names it.
        if not admits(self._may_call, name, own=own):
            if own:
                raise UnauthenticatedError(f"the policy does not name {name} as a caller", rule="identity.agent")
            raise UnauthenticatedError(f"{name} is not this pod's {self._role}", rule="svid.pod")
        # Who is no orchestrator of this pod has no more than an agent has.
        return Peer(Principal(name, "x509-svid", self._role if own else "agent"), proven.serial, proven.expires_ns)

    async def _rotate(self) -> None:
        """Renew at half-life; on failure try again while the old SVID lasts (then TLS fails closed by itself)."""
        failed = False
        while True:
            left_s = (self._holder.svid.renew_at_ns() - time.time_ns()) / 1e9
            wanted = failed
            try:
                async with asyncio.timeout(_RETRY_S if failed else max(_RETRY_S, left_s)):
                    await self._renew.wait()
            except TimeoutError:
                wanted = True
            self._renew.clear()
            wanted, self._again = wanted or self._again, False
            try:
                svid = await self._authority.svid() if wanted else self._holder.svid
                self._install(svid, await self._foreign(svid))
            except NucleusError:
                failed = True
                continue
            failed = False
            self._own_serial = _serial(svid)

    def _record(self, what: str) -> None:
        """On record as `unauthenticated`, as a handshake that fails is."""
        refusal = UnauthenticatedError(what, rule="svid.revoked")

        def authenticate() -> Principal:
            raise refusal

        task = asyncio.get_running_loop().create_task(self._driver.run({}, authenticate))
        self._records.add(task)
        task.add_done_callback(self._recorded)

    def _recorded(self, task: asyncio.Task[Any]) -> None:
        self._records.discard(task)
        if not task.cancelled():
            task.exception()  # the log cannot be written, say: nobody waits for this answer


def _serial(svid: X509Svid) -> int:
    return x509.load_der_x509_certificate(pem_to_der(svid.cert_pem)[0]).serial_number


def _lives(der: bytes) -> bool:
    return x509.load_der_x509_certificate(der).not_valid_after_utc.timestamp() > time.time()


def _subject(der: bytes) -> tuple[frozenset[tuple[str, str]], ...] | None:
    """A certificate's subject for comparing as OpenSSL does: without case, however blank; None: it cannot be read."""
    try:
        found = x509.load_der_x509_certificate(der).subject
        return tuple(
            frozenset((one.oid.dotted_string, " ".join(str(one.value).casefold().split())) for one in part)
            for part in found.rdns
        )
    except ValueError:
        return None
