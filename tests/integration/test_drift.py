"""A pod whose network is changed from outside ends, whatever the change was; the log says why."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable

import pytest

from .held import Held
from .site import Site

CHANGES: dict[str, list[str]] = {
    "flush": ["nft", "flush", "ruleset"],
    "rule": ["nft", "insert", "rule", "inet", "nucleus", "output", "accept"],
    "policy": ["nft", "add", "chain", "inet", "nucleus", "output", "{", "policy", "accept", ";", "}"],
    "legacy": ["iptables-legacy", "-I", "OUTPUT", "-j", "ACCEPT"],
    "iptables": ["iptables-nft", "-I", "OUTPUT", "-j", "ACCEPT"],
    "link": ["ip", "link", "add", "leak0", "type", "veth", "peer", "name", "leak1"],
    "address": ["ip", "address", "add", "192.0.2.9/32", "dev", "lo"],
    "route": ["ip", "route", "add", "blackhole", "192.0.2.0/24"],
    "sysctl": ["sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"],
}


@pytest.mark.parametrize("change", CHANGES)
def test_drift_ends_the_pod(root_site: Site, change: str) -> None:
    command = CHANGES[change]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    with Held(root_site) as held:
        pid = held.status()["pods"][0]["pids"][0]
        began = time.monotonic()
        subprocess.run(["nsenter", f"--net=/proc/{pid}/ns/net", *command], check=True, capture_output=True)
        wait_for(lambda: _dead(pid), 3)
        assert time.monotonic() - began < 2.5  # an event at once, a comparison within a second
        wait_for(lambda: any(one["event"] == "pod.stop" for one in root_site.records()), 5)
    stop = [one for one in root_site.records() if one["event"] == "pod.stop"][-1]
    assert "network was changed" in stop["context"]["reason"]


def test_a_pod_that_nobody_touches_lives(root_site: Site) -> None:
    with Held(root_site) as held:
        assert held.operate(kind="run", argv=["true"])["status"] == "ok"
        time.sleep(2.2)  # two comparisons
        assert held.operate(kind="run", argv=["true"])["status"] == "ok"


def _dead(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def wait_for(done: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)
