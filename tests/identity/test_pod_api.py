"""The process behind a pod's Workload API, with an authority of the test's: when it ends, and whom it reports."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from nucleus.frames import Decoder, encode
from nucleus.identity import pod_api


class Stage:
    """Its three descriptors' other ends."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "s")
        self.door = socket.socket(socket.AF_UNIX)
        self.door.bind(self.path)
        self.door.listen(16)
        self.control, self.inside = socket.socketpair()
        self.authority, self.channel = socket.socketpair()
        self.seen: list[dict[str, Any]] = []

    async def answer(self) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=self.authority)
        decoder = Decoder(1 << 20)
        while data := await reader.read(65_536):
            for frame in decoder.feed(data):
                self.seen.append(frame.header)
                writer.write(encode({"id": frame.header["id"], "ok": {"version": "1"}}))
        writer.close()

    async def run(self, *others: Any) -> None:
        """Until the process is over; `others` play meanwhile."""
        answering = asyncio.create_task(self.answer())
        playing = [asyncio.create_task(one) for one in others]
        async with asyncio.timeout(20):
            await pod_api.run(self.inside, self.door, self.channel)
            await asyncio.gather(*playing)
        await answering  # its channel has been closed
        await asyncio.sleep(0.05)

    def close(self) -> None:
        for one in (self.door, self.control, self.inside, self.authority, self.channel):
            one.close()


def played(directory: Path, *plays: Any) -> Stage:
    stage = Stage(directory)
    try:
        asyncio.run(stage.run(*(play(stage) for play in plays)))
    finally:
        stage.close()
    return stage


def test_it_ends_when_nobody_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pod_api, "IDLE_S", 0.2)
    times: list[float] = []

    async def stay(stage: Stage) -> None:
        loop = asyncio.get_running_loop()
        _, writer = await asyncio.open_unix_connection(stage.path)
        await asyncio.sleep(0.5)
        times.append(loop.time())
        writer.close()

    async def run() -> None:
        stage = Stage(tmp_path)
        try:
            await stage.run(stay(stage))
            times.append(asyncio.get_running_loop().time())
        finally:
            stage.close()

    asyncio.run(run())
    assert times[1] - times[0] >= 0.15, "not while somebody is connected"


def test_it_ends_with_the_builder_and_with_the_authority(tmp_path: Path) -> None:
    async def builder(stage: Stage) -> None:
        await asyncio.sleep(0.1)
        stage.control.close()

    async def authority(stage: Stage) -> None:
        await asyncio.sleep(0.1)
        stage.authority.shutdown(socket.SHUT_RDWR)

    for number, play in enumerate((builder, authority)):
        (tmp_path / str(number)).mkdir()
        played(tmp_path / str(number), play)


def test_so_many_connections_and_no_more(tmp_path: Path) -> None:
    async def many(stage: Stage) -> None:
        made = [await asyncio.open_unix_connection(stage.path) for _ in range(pod_api.CONNECTIONS + 3)]
        await asyncio.sleep(0.2)
        # A server's first frame comes at once; where there is none the connection has been closed.
        first = await asyncio.gather(*(reader.read(9) for reader, _ in made))
        assert [bool(one) for one in first].count(True) == pod_api.CONNECTIONS
        for _, writer in made:
            writer.close()
        await asyncio.sleep(0.2)
        stage.control.close()

    played(tmp_path, many)


def test_who_calls_is_who_the_kernel_says(tmp_path: Path) -> None:
    from grpclib.client import Channel, UnaryStreamMethod
    from grpclib.exceptions import GRPCError

    from nucleus.identity import workload_proto as proto

    async def call(stage: Stage) -> None:
        channel = Channel(path=stage.path)
        method = UnaryStreamMethod(
            channel, "/SpiffeWorkloadAPI/FetchX509Bundles", proto.X509BundlesRequest, proto.X509BundlesResponse
        )
        with pytest.raises(GRPCError):  # the test's authority knows no bundle
            await method(proto.X509BundlesRequest(), metadata={"workload.spiffe.io": "true"})
        channel.close()
        await asyncio.sleep(0.2)
        stage.control.close()

    stage = played(tmp_path, call)
    (asked,) = [one for one in stage.seen if one["op"] == "bundles"]
    nothing = {"gid": 0, "groups": [], "path": None, "sha256": None, "pod": None}
    assert asked["facts"] == {"uid": os.getuid(), "pid": os.getpid(), **nothing}
