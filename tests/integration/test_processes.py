"""ADR 1: every row of the process table, read from /proc on a live pod, as root and as an ordinary user."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .held import Held
from .site import USER, Site

AGENT = {"argv": ["sleep", "300"], "env": {}, "stdio": "pipes"}
AUTHORITY_UID = 0x70000001
GATE_UID, POD_UID = 0x70010000, 0x70100000


class Process:
    """What /proc says of one process."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        rows = [line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
        self.status = {name: value.split() for name, value in rows}

    @property
    def uids(self) -> set[int]:
        return {int(uid) for uid in self.status["Uid"]}

    @property
    def capabilities(self) -> int:
        return int(self.status["CapEff"][0], 16) | int(self.status["CapPrm"][0], 16) | int(self.status["CapAmb"][0], 16)

    def namespace(self, kind: str) -> str:
        return os.readlink(f"/proc/{self.pid}/ns/{kind}")

    def descriptors(self) -> list[str]:
        return [os.readlink(f"/proc/{self.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{self.pid}/fd")]

    def environment(self) -> bytes:
        return Path(f"/proc/{self.pid}/environ").read_bytes()

    def root(self) -> list[str]:
        return os.listdir(f"/proc/{self.pid}/root/")


def children(pid: int) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                stat = Path(f"/proc/{name}/stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(stat.rpartition(")")[2].split()[1]) == pid:
                found.append(int(name))
    return found


class Live:
    def __init__(self, site: Site, status: dict[str, Any], launcher: int) -> None:
        self.site = site
        (pod,) = status["pods"]
        self.slot = pod["slot"]
        names = status["pids"]
        self.launcher, self.builder = Process(launcher), Process(names["builder"])
        self.authority, self.zygote, self.template = (Process(names[n]) for n in ("authority", "zygote", "template"))
        self.gate = Process(pod["gate"])
        compartments = [Process(pid) for pid in pod["pids"]]
        self.work = next(
            p for p in compartments if "workspace" in p.root() and os.listdir(f"/proc/{p.pid}/root/workspace")
        )
        self.agent_init = next(p for p in compartments if p is not self.work)
        self.agent = Process(children(self.agent_init.pid)[0])

    @property
    def ours(self) -> list[Process]:
        return [self.builder, self.authority, self.zygote, self.template, self.gate]


@pytest.fixture(scope="module", params=["root", "user"])
def live(request: pytest.FixtureRequest) -> Iterator[Live]:
    site = Site(0 if request.param == "root" else USER)
    site.write("in-the-workspace", "x")
    os.environ["NUCLEUS_TEST_SECRET"] = "must-not-travel"
    try:
        with Held(site, spec={"agent": AGENT}) as held:
            yield Live(site, held.status(), held.child.pid)
    finally:
        del os.environ["NUCLEUS_TEST_SECRET"]
        site.close()


def test_builder_and_templates_run_as_who_started_them(live: Live) -> None:
    for process in (live.builder, live.zygote, live.template):
        assert process.uids == {live.site.uid}


def test_the_authority_has_its_own_uid_and_no_capabilities(live: Live) -> None:
    assert live.authority.uids == ({AUTHORITY_UID} if live.site.uid == 0 else {live.site.uid})
    assert live.authority.capabilities == 0


def test_the_gate_has_its_own_uid_no_capabilities_and_no_new_privs(live: Live) -> None:
    assert live.gate.uids == ({GATE_UID + live.slot} if live.site.uid == 0 else {live.site.uid})
    assert live.gate.capabilities == 0
    assert live.gate.status["NoNewPrivs"] == ["1"]
    assert live.gate.status["Groups"] == [] or live.site.uid


@pytest.mark.parametrize("who", ["agent_init", "agent", "work"])
def test_compartments_are_never_host_root_and_have_nothing(live: Live, who: str) -> None:
    process: Process = getattr(live, who)
    expected = POD_UID + 2 * live.slot + (who == "work")
    assert process.uids == ({expected} if live.site.uid == 0 else {live.site.uid})
    assert 0 not in process.uids
    assert process.capabilities == 0
    assert int(process.status["CapBnd"][0], 16) == 0
    assert process.status["NoNewPrivs"] == ["1"]
    assert process.status["Seccomp"] == ["2"]


def test_compartments_share_the_network_and_nothing_else(live: Live) -> None:
    assert live.agent.namespace("net") == live.work.namespace("net") != live.builder.namespace("net")
    for kind in ("user", "mnt", "pid", "ipc", "uts", "cgroup"):
        names = {live.agent.namespace(kind), live.work.namespace(kind), live.gate.namespace(kind)}
        assert len(names) == 3, kind


def test_the_gate_is_outside_the_pod(live: Live) -> None:
    for kind in ("user", "mnt", "pid", "net"):
        assert live.gate.namespace(kind) == live.builder.namespace(kind), kind


def test_nothing_of_the_callers_environment_travels(live: Live) -> None:
    for process in (*live.ours, live.agent, live.work):
        assert b"must-not-travel" not in process.environment(), process.pid
        assert b"NUCLEUS_TEST_SECRET" not in process.environment()
    assert live.zygote.environment().count(b"=") <= 2


def test_no_secret_in_any_argv(live: Live) -> None:
    for process in (*live.ours, live.agent, live.work):
        assert b"KEY" not in Path(f"/proc/{process.pid}/cmdline").read_bytes()


def test_the_agent_inherits_only_its_stdio(live: Live) -> None:
    assert len(live.agent.descriptors()) == 3


def test_work_holds_its_channel_and_no_other_socket(live: Live) -> None:
    sockets = [name for name in live.work.descriptors() if name.startswith("socket:")]
    assert len(sockets) <= 2, live.work.descriptors()  # the gate's channel, and the search worker's
    assert not [n for n in live.work.descriptors() if "state" in n or "audit" in n or "ledger" in n]


def test_only_the_authority_has_the_ledger_and_the_log_open(live: Live) -> None:
    state = str(live.site.directory / "state")
    holders = [p.pid for p in live.ours if any(name.startswith(state) for name in p.descriptors())]
    assert holders == [live.authority.pid]


def test_the_agent_compartment_has_no_workspace_and_work_has_no_workload_socket(live: Live) -> None:
    agent_workspace = Path(f"/proc/{live.agent.pid}/root/workspace")
    assert not agent_workspace.exists() or not os.listdir(agent_workspace)
    assert "workload.sock" in os.listdir(f"/proc/{live.agent.pid}/root/run/nucleus")
    assert "spiffe.sock" in os.listdir(f"/proc/{live.agent.pid}/root/run/nucleus")
    assert not Path(f"/proc/{live.work.pid}/root/run/nucleus/workload.sock").exists()
    assert not Path(f"/proc/{live.work.pid}/root/run/nucleus/spiffe.sock").exists()


def test_key_holders_are_not_dumpable(live: Live) -> None:
    # A process that is not dumpable has its /proc entries owned by root, whoever it runs as.
    for process in (live.authority, live.gate, live.zygote, live.template, live.work):
        assert os.stat(f"/proc/{process.pid}/environ").st_uid == 0


def test_the_helper_socket_is_in_a_closed_directory(live: Live) -> None:
    run = live.site.directory / "run"
    assert run.stat().st_mode & 0o077 == 0
