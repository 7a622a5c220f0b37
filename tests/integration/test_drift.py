"""A pod whose network is changed from outside ends, whatever the change was; the log says why."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from nucleus.testing.drift import CHANGES, inject, missing

from .held import Held
from .site import Site


@pytest.mark.parametrize("change", CHANGES)
def test_drift_ends_the_pod(root_site: Site, change: str) -> None:
    if program := missing(change):
        pytest.skip(f"{program} is not installed")
    with Held(root_site) as held:
        pid = held.status()["pods"][0]["pids"][0]
        began = inject(pid, change)
        wait_for(lambda: _dead(pid), 3)
        assert time.monotonic_ns() - began < 2_500_000_000  # an event at once, a comparison within a second
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
