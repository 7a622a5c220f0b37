"""Commands in virtual machines, through the CLI, as root and as an ordinary user; and their images."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nucleus.errors import SandboxError
from nucleus.pod import guest_image
from nucleus.pod.qemu import PROGRAM, VIRTIOFSD

from .site import BIN, USER, Site
from .test_pod_changes import on_another_rung
from .test_pods_that_stay import write

POLICY = """\
version: 1
name: strong
capabilities: {read_files: always, write_files: always, run_bash: always}
paths: {block: [secret.txt]}
commands: {allow: everything}
isolation: {floor: qemu}
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> guest_image.Image:
    if os.geteuid() != 0 or os.uname().machine != "x86_64":
        pytest.skip("needs root, on x86_64")
    for path in (PROGRAM, *VIRTIOFSD):
        if not os.path.exists(path):
            pytest.skip(f"there is no {path}")
    store = tmp_path_factory.mktemp("images")
    try:
        return guest_image.build(str(store))
    except SandboxError as error:
        pytest.skip(f"no image: {error}")


@pytest.fixture(params=["root", "user"])
def site(request: pytest.FixtureRequest, image: guest_image.Image) -> Iterator[Site]:
    made = Site(0 if request.param == "root" else USER)
    (made.directory / "strong.yaml").write_text(POLICY)
    store = made.directory / "state-images"
    shutil.copytree(image.directory, store / image.sha256)
    for path in (store, store / image.sha256, *(store / image.sha256).iterdir()):
        os.chown(path, made.uid, made.uid)
    yield made
    made.close()


def ran(site: Site, *argv: str, verb: str = "exec") -> subprocess.CompletedProcess[str]:
    policy = str(site.directory / "strong.yaml")
    return site.cli(verb, "--policy", policy, "--workdir", str(site.workspace), "--", *argv, timeout=100)


def test_a_command_in_a_machine(site: Site) -> None:
    """Another kernel, the host's workspace with what is hidden and protected, uid 1000, a signal as a signal."""
    site.write("secret.txt", "no")
    site.write("seen.txt", "yes")
    site.write(
        "script.sh",
        "uname -v; id -u; cat seen.txt; cat secret.txt; echo made > made.txt; chmod 4755 made.txt; echo evil > .envrc\n"
        "ln -s /etc/shadow link; cat link\n"
        "for p in /proc/[0-9]*; do\n"
        "if [ $p != /proc/$$ ] && kill -9 ${p#/proc/} 2>/dev/null; then echo killed $p; fi\n"
        "done\n"
        "kill -SEGV $$\n",
    )
    done = ran(site, "sh", "script.sh")
    assert done.returncode == 139, done.stderr
    version, *rest = done.stdout.splitlines()
    assert version != os.uname().version
    assert rest == ["1000", "yes"]
    made = site.workspace / "made.txt"
    assert (made.read_text(), made.stat().st_uid) == ("made\n", site.uid)
    assert not stat.S_IMODE(made.stat().st_mode) & 0o7000
    end = time.monotonic() + 15
    while not (site.workspace / ".envrc.set-aside-by-nucleus").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not (site.workspace / ".envrc").exists()
    (started,) = [one for one in site.records() if one["event"] == "pod.start"]
    assert started["context"]["isolation"]["backend"] == "qemu"
    assert "KVM (software emulation)" in started["context"]["isolation"]["missing"]


def test_the_host_s_side_and_the_end(site: Site) -> None:
    """QEMU and virtiofsd have the pod's uid, filters and no new privileges, QEMU no capability; both are gone after."""
    words = [
        "exec",
        "--policy",
        str(site.directory / "strong.yaml"),
        "--workdir",
        str(site.workspace),
        "--",
        "sleep",
        "3",
    ]
    with site.start([str(BIN / "nucleus"), *words]) as process:
        found: dict[int, str] = {}
        end = time.monotonic() + 40
        while len(found) < 2 and time.monotonic() < end:
            time.sleep(0.1)
            found = {
                pid: name for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if (name := mine(site, pid))
            }
        assert {"qemu-system-x86", "virtiofsd"} <= set(found.values())
        for pid, name in found.items():
            status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
            assert status["NoNewPrivs"].strip() == "1"
            assert status["Seccomp"].strip() == "2"
            assert name != "qemu-system-x86" or int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
            for kind in ("user", "net", "mnt", "pid"):
                assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
        assert process.wait(60) == 0
    end = time.monotonic() + 10
    while (left := [pid for pid in found if mine(site, pid)]) and time.monotonic() < end:
        time.sleep(0.05)
    assert left == []


def mine(site: Site, pid: int) -> str:
    """The program's name, if it is one of this site's machines."""
    try:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    except OSError:
        return ""
    uid, name = int(status["Uid"].split()[0]), status["Name"].strip()
    ours = uid == site.uid if site.uid else uid >= 0x70000000
    return name if ours and name in ("qemu-system-x86", "virtiofsd") and status["State"].split()[0] != "Z" else ""


def test_an_agent_is_refused_and_not_put_anywhere_weaker(site: Site) -> None:
    done = ran(site, "true", verb="run")
    assert done.returncode == 6
    assert "rule: isolation.agent" in done.stderr


def test_an_image_that_was_changed_is_not_booted(site: Site, image: guest_image.Image) -> None:
    directory = site.directory / "state-images" / image.sha256
    assert site.cli("image", "verify").returncode == 0
    with open(directory / "initrd", "r+b") as file:
        file.write(b"x")
    done = ran(site, "true")
    assert done.returncode == 6
    assert "initrd was changed" in done.stderr
    assert site.cli("image", "verify").returncode == 6
    assert site.cli("image", "rm", image.sha256[:12]).returncode == 0
    assert json.loads(site.cli("image", "list", "--json").stdout) == []
    done = ran(site, "true")
    assert done.returncode == 6
    assert "nucleus image build" in done.stderr


def test_two_builds_of_the_same_packages_agree(image: guest_image.Image, tmp_path: Path) -> None:
    again = guest_image.build(str(tmp_path))
    assert again.sha256 == image.sha256
    for name in (guest_image.KERNEL, guest_image.INITRD):
        assert Path(again.directory, name).read_bytes() == Path(image.directory, name).read_bytes()


def test_a_workspace_that_is_a_copy(site: Site) -> None:
    made = site.cli("pod", "create", write(site, "work", "workspace: copy\n  isolation: qemu"), timeout=100)
    assert made.returncode == 0, made.stderr
    on_another_rung(site)
