"""Opens the agent's door of one gate: its SVID, the TLS context that follows rotation, and the peer check.

Imported only by gates that have an agent: aiohttp, ssl and cryptography are most of a gate's start-up time.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from typing import TYPE_CHECKING, Literal

from aiohttp import web

from nucleus.errors import NucleusError, UnauthenticatedError
from nucleus.identity import tls
from nucleus.identity.svid import X509Svid
from nucleus.model.principal import Principal
from nucleus.server.app import Authenticator, Door, Listing
from nucleus.server.authority import Authority
from nucleus.server.driver import Driver
from nucleus.server.handshakes import Handshakes

if TYPE_CHECKING:
    from nucleus.server.gate import Config

_RETRY_S = 5


async def open_agent_door(
    config: Config, driver: Driver, authority: Authority, listener: socket.socket, tools: Listing
) -> tuple[web.AppRunner, asyncio.Task[None]]:
    """Serve the agent's door on `listener`. Returns its runner and the task that renews the SVID at half-life."""
    current = [await authority.svid()]
    holder = tls.RotatingServerContext(current[0])
    Handshakes(driver).watch(holder.context)
    charge = authority.charge if config.door == "orchestrator" else None
    runner = await Door(driver, _authenticator(config, current), tools, charge).serve(listener, holder.context)
    return runner, asyncio.ensure_future(_rotate(authority, holder, current))


def _authenticator(config: Config, current: list[X509Svid]) -> Authenticator:
    """The peer must be whom this door is for (this pod's agent, or its orchestrator), proven by its X509-SVID."""
    role: Literal["agent", "orchestrator"] = "agent" if config.door == "agent" else "orchestrator"
    expected = config.agent_id if role == "agent" else config.orchestrator_id

    def authenticate(peer: ssl.SSLObject) -> Principal:
        spiffe_id = str(tls.authenticate(peer, current[0].roots(), time.time_ns(), "client"))
        # Another pod's SVID is genuine and still not the peer of this channel.
        if spiffe_id != expected:
            raise UnauthenticatedError(f"{spiffe_id} is not this pod's {role}", rule="svid.pod")
        return Principal(spiffe_id, "x509-svid", role)

    return authenticate


async def _rotate(authority: Authority, holder: tls.RotatingServerContext, current: list[X509Svid]) -> None:
    """Renew at half-life; on failure try again while the old SVID lasts (then TLS fails closed by itself)."""
    while True:
        await asyncio.sleep(max(_RETRY_S, (current[0].renew_at_ns() - time.time_ns()) / 1e9))
        try:
            current[0] = await authority.svid()
        except NucleusError:
            continue
        holder.update(current[0])
