"""What the gateway asks of a service for the gate: a web search, a pull request. One request each, no redirects.

Promises: the host's credential is added here and scrubbed from what comes back; the service's answer is parsed here,
by a process that has neither policy nor ledger. Relies on: `searches` and `forges` for both ends, `fetch` for the wire.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from nucleus.errors import OperationError
from nucleus.network.scrub import scrub

if TYPE_CHECKING:
    from nucleus.network.gateway import Gateway

TIMEOUT_S = 30


async def call(gateway: Gateway, header: dict[str, Any], body: bytes) -> dict[str, Any]:
    """Carry out what the gate orders.

    Args:
        header: ``search {provider, base, query, limit, credential}``, or ``pull {kind, base, remote, title, head,
            target, draft, credential}``.
        body: a pull request's text.

    Returns:
        ``{results}`` or ``{number, url}``, with ``bytes`` moved.

    Raises:
        NucleusError: it came to nothing.
    """
    from nucleus.network import forges, searches  # weight: only who searches, or opens a pull request

    provider = str(header.get("provider") or header.get("kind"))
    if header["op"] == "search":
        wire = searches.request(provider, header["base"], header["query"], header["limit"])
    else:
        remote = forges.parse_remote(header["remote"])
        wire = forges.pull_request(
            provider,
            header["base"],
            remote,
            header["title"],
            body.decode("utf-8"),
            header["head"],
            header["target"],
            header["draft"],
        )
    key = searches.key_header if header["op"] == "search" else forges.key_header
    add, secrets = await gateway.key(header["credential"], lambda value: key(provider, value))
    status, data = await _sent(wire, add)
    data = scrub(data, secrets)
    moved = len(wire.body) + len(wire.url) + len(data)
    if header["op"] == "search":
        found = searches.results(provider, data, header["limit"], status)
        return {"results": [asdict(one) for one in found], "bytes": moved}
    return {**forges.created(provider, status, data), "bytes": moved}


async def _sent(wire: Any, add: tuple[tuple[bytes, bytes], ...]) -> tuple[int, bytes]:
    from nucleus.network import fetch, searches

    lines = [*wire.headers, *((name.decode(), value.decode()) for name, value in add)]
    status, data = await fetch.exchange(wire.method, wire.url, dict(lines), wire.body, searches.BODY_BYTES, TIMEOUT_S)
    if len(data) > searches.BODY_BYTES:
        raise OperationError("the service's answer is too long", rule="network.limit")
    return status, data
