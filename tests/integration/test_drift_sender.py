"""A pod that sends 10,000 packets a second when somebody opens its network: what gets out, and until when."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nucleus.testing.drift import UPLINK, Uplink

from .held import Held
from .site import Site

SENDER = """
import socket, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
open("sending", "w").close()
begin = time.monotonic()
end = begin + 8
sent = 0
while (now := time.monotonic()) < end:
    while sent < (now - begin) * 10_000:
        sent += 1
        try:
            s.sendto(b"%%d" %% time.monotonic_ns(), ("%s", 9))
        except OSError:
            pass
    time.sleep(0.001)
""" % (UPLINK,)  # noqa: UP031 (braces and format are Python's own in there)
RECEIVER = """
import socket, sys, time
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0x0008)
s.bind((sys.argv[1], 0x0800))
s.settimeout(4)
print("ready", flush=True)
found = []
while True:
    try:
        data = s.recv(2000)
    except TimeoutError:
        break
    except OSError:  # the other end is being moved
        continue
    if data[23] == 17:
        found.append(time.monotonic_ns())
print(*found)
"""


class Receiver:
    """Arrival times at the uplink, monotonic nanoseconds."""

    def __init__(self, name: str) -> None:
        self._child = subprocess.Popen(
            ["ip", "netns", "exec", name, sys.executable, "-c", RECEIVER, f"{name}0"], stdout=subprocess.PIPE, text=True
        )
        assert self._child.stdout is not None
        assert self._child.stdout.readline().strip() == "ready"

    def arrived(self) -> list[int]:
        """All of them, once nothing has come for some seconds."""
        return [int(line) for line in self._child.communicate(timeout=30)[0].split()]


@pytest.fixture
def uplink() -> Iterator[Uplink]:
    with Uplink("nucdrift") as made:
        yield made


def test_no_packet_later_than_20_ms(root_site: Site, uplink: Uplink) -> None:
    (root_site.workspace / "sender.py").write_text(SENDER)
    started = root_site.workspace / "sending"
    with Held(root_site) as held:
        pid = held.status()["pods"][0]["pids"][0]
        operation = {"kind": "run", "argv": ["python3", "sender.py"]}
        thread = threading.Thread(target=lambda: held.operate(**operation))
        thread.start()
        _wait(started)
        receiver = Receiver(uplink.name)
        began = uplink.open_into(pid)
        arrived = receiver.arrived()
        thread.join(20)
    late = [at for at in arrived if at - began > 20_000_000]
    print(f"{len(arrived)} packets got out, the last {max(arrived, default=began) - began} ns after the first change")
    assert not late
    stop = [one for one in root_site.records() if one["event"] == "pod.stop"][-1]
    assert "network was changed" in stop["context"]["reason"]


def test_the_way_that_was_opened_is_one(uplink: Uplink, tmp_path: Path) -> None:
    """The control: without anybody who watches, the same change lets the same sender out."""
    (tmp_path / "sender.py").write_text(SENDER)
    sender = subprocess.Popen(["unshare", "--net", sys.executable, "sender.py"], cwd=tmp_path)
    try:
        _wait(tmp_path / "sending")
        receiver = Receiver(uplink.name)
        began = uplink.open_into(sender.pid)
        sender.wait(20)
        arrived = receiver.arrived()
    finally:
        sender.kill()
        sender.wait()
    assert sum(at - began > 20_000_000 for at in arrived) > 20_000


def _wait(path: Path) -> None:
    end = time.monotonic() + 10
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.01)
