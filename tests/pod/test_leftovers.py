"""What a killed builder has left is removed by the next one, and nothing of one that lives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from integration.site import Site
from nucleus.pod import cgroups, leftovers
from nucleus.pod.leftovers import Directories

MAKER = """
import os, sys, time
from nucleus.pod.leftovers import Directories, mark
path, lock = Directories(sys.argv[1]).make("pod-of-another")
os.makedirs(f"{path}/deep"); print(mark(), flush=True)
time.sleep(600)
"""


@pytest.fixture
def other(tmp_path: Path) -> tuple[subprocess.Popen[str], str]:
    child = subprocess.Popen([sys.executable, "-c", MAKER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    mark = child.stdout.readline().strip()
    child.stdout.close()
    return child, mark


def test_only_what_nobody_has_is_removed(tmp_path: Path, other: tuple[subprocess.Popen[str], str]) -> None:
    child, mark = other
    directories = Directories(str(tmp_path))
    path, lock = directories.make("pod-of-ours")
    (tmp_path / "a-file").touch()
    assert directories.reap() == []
    assert leftovers.lives(mark)
    child.send_signal(signal.SIGKILL)
    time.sleep(0.1)
    assert not leftovers.lives(mark)  # although nobody has waited for it yet
    child.wait()
    assert not leftovers.lives(mark)
    assert Directories(str(tmp_path)).reap() == ["pod-of-another"]
    assert sorted(os.listdir(tmp_path)) == ["a-file", "pod-of-ours"]
    assert path == str(tmp_path / "pod-of-ours")
    os.close(lock)


def test_a_mark_is_of_one_process() -> None:
    namespace, pid, start = leftovers.mark().split("-")
    assert leftovers.lives(leftovers.mark())
    assert not leftovers.lives(f"{namespace}-{pid}-{int(start) - 1}")  # the pid is another's by now
    for unknown in (f"{int(namespace) + 1}-{pid}-{start}", "", "10056", "1-2", "a-b-c", "1-2-3-4"):
        assert leftovers.lives(unknown)


def test_a_directory_that_is_there_is_refused(tmp_path: Path) -> None:
    from nucleus.errors import SandboxError

    directories = Directories(str(tmp_path))
    _, lock = directories.make("x")
    with pytest.raises(SandboxError):
        directories.make("x")
    os.close(lock)


def test_the_next_builder_removes_what_a_killed_one_left() -> None:
    site = Site(0)
    try:
        import json

        path = site.home / "pod.yaml"
        path.write_text(
            "apiVersion: nucleus/v1\nkind: Pod\nmetadata: {name: left}\nspec:\n"
            f"  work_dir: {site.workspace}\n  policy: {{type: profile, name: codegen}}\n"
        )
        assert site.cli("pod", "create", str(path)).returncode == 0
        pids = json.loads(site.cli("helper", "status", "--json").stdout)["pids"]
        mark = f"{os.stat('/proc/self/ns/pid').st_ino}-{pids['builder']}-"
        os.kill(pids["builder"], signal.SIGKILL)
        pods = site.directory / "run" / "pods"
        assert len(os.listdir(pods)) == 1
        if not cgroups.missing():
            assert groups(mark)
        assert site.exec("true").returncode == 0  # another builder
        for _ in range(100):
            if not os.listdir(pods) and not groups(mark):
                break
            time.sleep(0.1)
        assert os.listdir(pods) == []
        assert groups(mark) == []
    finally:
        site.close()


def groups(mark: str) -> list[str]:
    return [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/nucleus/pod-{mark}*")]
