"""A gRPC client of the Workload API, and raw HTTP/2 where a client has to misbehave. Run as a program, it is a caller:

``workload_client.py SOCKET x509|jwt|all [AUDIENCE]`` prints what it got as JSON, or ``{"status": …}``; ``watch`` prints
a line for each SVID that is pushed, until the server ends the stream.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from grpclib.client import Channel, UnaryStreamMethod, UnaryUnaryMethod
from grpclib.exceptions import GRPCError

from nucleus.identity import workload_proto as proto

HEADER = {"workload.spiffe.io": "true"}


class Client:
    """The five calls of a standard client."""

    def __init__(self, channel: Channel, metadata: dict[str, str] | None = None) -> None:
        self.channel = channel
        self.metadata = HEADER if metadata is None else metadata

    def stream(self, name: str, message: Any = None) -> Any:
        asked, answered = proto.message(f"{name[5:]}Request"), proto.message(f"{name[5:]}Response")
        method = UnaryStreamMethod(self.channel, f"/SpiffeWorkloadAPI/{name}", asked, answered)
        return _Stream(method, asked() if message is None else message, self.metadata)

    async def call(self, name: str, message: Any) -> Any:
        base = name.removeprefix("Fetch")
        answered = proto.message(f"{base}Response")
        method = UnaryUnaryMethod(self.channel, f"/SpiffeWorkloadAPI/{name}", type(message), answered)
        return await method(message, timeout=20, metadata=self.metadata)

    async def first(self, name: str) -> Any:
        async with self.stream(name) as messages:
            return await messages.next()


class _Stream:
    def __init__(self, method: Any, message: Any, metadata: dict[str, str]) -> None:
        self._context = method.open(metadata=metadata)
        self._message = message

    async def __aenter__(self) -> _Stream:
        self._stream = await self._context.__aenter__()
        await self._stream.send_message(self._message, end=True)
        return self

    async def next(self, seconds: float = 20) -> Any:
        """The next message. Raises GRPCError when the server has ended the call."""
        async with asyncio.timeout(seconds):
            message = await self._stream.recv_message()
            if message is None:
                await self._stream.recv_trailing_metadata()
                raise EOFError
            return message

    async def __aexit__(self, *error: Any) -> Any:
        if not self._stream._recv_trailing_metadata_done and self._stream._stream.closable:
            await self._stream.cancel()
        return await self._context.__aexit__(*error)


@asynccontextmanager
async def connected(path: str, **keywords: Any) -> AsyncIterator[Client]:
    channel = Channel(path=path)
    try:
        yield Client(channel, **keywords)
    finally:
        channel.close()


async def everything(client: Client) -> dict[str, Any]:
    """What each of the five calls says."""
    found = (await client.first("FetchX509SVID")).svids
    token = (await client.call("FetchJWTSVID", proto.JWTSVIDRequest(audience=["service"]))).svids[0]
    asked = proto.ValidateJWTSVIDRequest(audience="service", svid=token.svid)
    return {
        "x509": [one.spiffe_id for one in found],
        "chain": found[0].x509_svid.hex(),
        "key": found[0].x509_svid_key.hex(),
        "roots": {name: roots.hex() for name, roots in (await client.first("FetchX509Bundles")).bundles.items()},
        "jwt": token.spiffe_id,
        "jwks": sorted((await client.first("FetchJWTBundles")).bundles),
        "valid": (await client.call("ValidateJWTSVID", asked)).spiffe_id,
    }


async def watch(client: Client) -> None:
    """A line for each SVID."""
    async with client.stream("FetchX509SVID") as messages:
        while True:
            (svid,) = (await messages.next(120)).svids
            print(json.dumps({"id": svid.spiffe_id, "chain": svid.x509_svid.hex()}), flush=True)


async def main(path: str, what: str, *audience: str) -> dict[str, Any]:
    try:
        async with connected(path) as client:
            if what == "all":
                return await everything(client)
            if what == "watch":
                await watch(client)
            if what == "x509":
                answer = await client.first("FetchX509SVID")
                return {"svids": [one.spiffe_id for one in answer.svids]}
            answer = await client.call("FetchJWTSVID", proto.JWTSVIDRequest(audience=audience))
            return {"svids": [one.spiffe_id for one in answer.svids], "tokens": [one.svid for one in answer.svids]}
    except GRPCError as error:
        return {"status": error.status.name}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(*sys.argv[1:]))))
