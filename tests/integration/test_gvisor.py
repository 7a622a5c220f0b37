"""Pods on gVisor's kernel, through the CLI, as root and as an ordinary user."""

from __future__ import annotations

import os
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nucleus.pod.gvisor import Gvisor

from .site import BIN, USER, Site

LACKING = Gvisor().lacking()
pytestmark = pytest.mark.skipif(bool(LACKING), reason=f"no gVisor: {LACKING}")
POLICY = """\
version: 1
name: strong
capabilities: {read_files: always, write_files: always, run_bash: always}
paths: {block: [secret.txt]}
commands: {allow: everything}
isolation: {floor: gvisor}
"""


@pytest.fixture(params=["root", "user"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    if request.param == "root" and os.geteuid() != 0:
        pytest.skip("needs root")
    made = Site(0 if request.param == "root" else USER)
    (made.directory / "strong.yaml").write_text(POLICY)
    yield made
    made.close()


def ran(site: Site, *argv: str, verb: str = "exec") -> subprocess.CompletedProcess[str]:
    policy = str(site.directory / "strong.yaml")
    return site.cli(verb, "--policy", policy, "--workdir", str(site.workspace), "--", *argv, timeout=90)


def test_a_floor_in_the_policy_is_enough(site: Site) -> None:
    """The kernel is another one, and the log says which."""
    done = ran(site, "uname", "-v")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() not in ("", os.uname().version)
    (started,) = [one for one in site.records() if one["event"] == "pod.start"]
    assert started["context"]["isolation"]["backend"] == "gvisor"
    assert started["context"]["isolation"]["kernel"] == "own"


@pytest.mark.parametrize(
    ("words", "code"), [("exit 7", 7), ("kill -9 $$", 137), ("kill -SEGV $$", 139), ("exit 137", 137)]
)
def test_how_a_command_ended(site: Site, words: str, code: int) -> None:
    assert ran(site, "sh", "-c", words).returncode == code


def test_the_workspace_is_the_hosts_with_what_is_hidden_and_protected(site: Site) -> None:
    site.write("secret.txt", "no")
    site.write("seen.txt", "yes")
    script = (
        "cat seen.txt; cat secret.txt; echo made > made.txt; chmod 4755 made.txt; echo evil > .envrc; "
        "mkfifo pipe; ln -s /etc/shadow link; cat link; true"
    )
    site.write("script.sh", script)
    done = ran(site, "sh", "script.sh")
    assert done.stdout == "yes", (done.returncode, done.stderr)
    made = site.workspace / "made.txt"
    assert made.read_text() == "made\n"
    assert made.stat().st_uid == site.uid
    assert not stat.S_IMODE(made.stat().st_mode) & 0o7000
    end = time.monotonic() + 10  # the helper ends the pod after the command
    while (site.workspace / ".envrc").exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert (site.workspace / ".envrc.set-aside-by-nucleus").exists()


def test_hands_cannot_be_killed_or_traced_by_a_command(site: Site) -> None:
    script = (
        "import os, ctypes\nfor pid in os.listdir('/proc'):\n  if pid.isdigit() and int(pid) != os.getpid():\n"
        "    try: os.kill(int(pid), 9); print('killed', pid)\n    except OSError as error: print(error.strerror)\n"
        "    try: open(f'/proc/{pid}/mem', 'rb').read(1); print('read', pid)\n    except OSError as error: pass\n"
    )
    done = ran(site, "python3", "-c", script)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split("\n")) == {"Operation not permitted", ""}


def test_an_agent_inside_asks_its_gate(site: Site) -> None:
    """Sockets, identity and gate as in any pod; its exit code is ours."""
    script = (
        "from nucleus.sdk.client import Gate\ngate = Gate()\ngate.write('from-agent.txt', 'hello')\n"
        "print(gate.run(['uname', '-r'])['stdout'])\nimport sys; sys.exit(5)\n"
    )
    done = ran(site, "python3", "-c", script, verb="run")
    assert done.returncode == 5, done.stderr
    assert (site.workspace / "from-agent.txt").read_text() == "hello"
    assert "4.4.0" in done.stdout


def test_the_host_s_side_is_the_pod_s(site: Site) -> None:
    """Its uid, no capability of the host's, its filter, its cgroup, and nothing is left at the end."""
    words = [
        "exec",
        "--policy",
        str(site.directory / "strong.yaml"),
        "--workdir",
        str(site.workspace),
        "--",
        "sleep",
        "4.25",
    ]
    with site.start([str(BIN / "nucleus"), *words]) as process:
        found = processes(site)
        for pid in found:
            status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
            uid = int(status["Uid"].split()[0])
            assert uid >= 0x70000000 if site.uid == 0 else uid == site.uid
            assert status["NoNewPrivs"].strip() == "1", (cmdline(pid), status)
            assert status["Seccomp"].strip() == "2"
            assert os.readlink(f"/proc/{pid}/ns/user") != os.readlink("/proc/self/ns/user")
            assert os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")
            if site.uid == 0:
                groups = Path(f"/proc/{pid}/cgroup").read_text()
                assert "/nucleus/pod-" in next(
                    line for line in groups.splitlines() if ":memory:" in line or "0::" in line
                )
        assert process.wait(60) == 0
    end = time.monotonic() + 10
    while (left := [pid for pid in found if mine(site, pid)]) and time.monotonic() < end:
        time.sleep(0.02)
    assert left == []


def processes(site: Site) -> list[int]:
    """Sentry and gofer of the pod, once they are there."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        found = [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and mine(site, int(pid))]
        if len(found) >= 2 and any("sandbox" in cmdline(pid) for pid in found):
            return found
        time.sleep(0.02)
    raise AssertionError("no runsc")


def mine(site: Site, pid: int) -> bool:
    try:
        uid = os.stat(f"/proc/{pid}").st_uid
        named = cmdline(pid).startswith(("runsc-sandbox", "runsc-gofer")) and "/run/guest/state" in cmdline(pid)
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    uid = int(status.split("Uid:")[1].split()[0])
    return named and (uid == site.uid if site.uid else uid >= 0x70000000)


def cmdline(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
