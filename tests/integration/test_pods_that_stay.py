"""`nucleus pod`: pods from files that stay, through the command line, as root and as an ordinary user."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nucleus.testing.conformance.lifecycle import kept

from .site import BIN, USER, Site

FILE = """\
apiVersion: nucleus/v1
kind: Pod
metadata: {{name: {name}}}
spec:
  work_dir: {work}
  policy: {{type: profile, name: codegen}}
  {more}
"""


def write(site: Site, name: str, more: str = "") -> str:
    path = site.home / f"{name}.yaml"
    path.write_text(FILE.format(name=name, work=site.workspace, more=more))
    os.chown(path, site.uid, site.uid)
    return str(path)


def pod(site: Site, *arguments: str, code: int | None = 0, feed: str | None = None) -> str:
    done = site.cli("pod", *arguments, feed=feed)
    assert code is None or done.returncode == code, (arguments, done)
    return done.stdout


def create(site: Site, name: str, more: str = "") -> dict[str, Any]:
    made: dict[str, Any] = json.loads(pod(site, "create", write(site, name, more), "--json"))
    return made


def show(site: Site, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(pod(site, "show", name))
    return found


def ended(site: Site, name: str) -> dict[str, Any]:
    for _ in range(200):
        if (found := show(site, name))["state"] != "running":
            return found
        time.sleep(0.05)
    raise AssertionError(found)


def gone(pid: int) -> bool:
    for _ in range(200):
        if not Path(f"/proc/{pid}").exists():
            return True
        time.sleep(0.05)
    return False


def helper(site: Site) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(site.cli("helper", "status", "--json").stdout)
    return found


def test_a_pod_stays_between_commands_until_it_is_killed(site: Site) -> None:
    made = create(site, "build")
    assert made["state"] == "running"
    assert pod(site, "exec", "build", "--", "sh", "-c", "exit 3", code=None) == ""
    pod(site, "exec", "build", "--", "python3", "-c", "open('kept', 'w').write('x')")
    assert pod(site, "exec", "build", "--", "cat", "kept") == "x"
    assert pod(site, "exec", "build", "--stdin", "--", "cat", feed="y") == "y"
    said = site.cli("pod", "exec", "build", "--", "git", "push")
    assert said.returncode == 3
    assert "capabilities.git_push" in said.stderr
    assert json.loads(pod(site, "exec", "build", "--json", "--", "true"))["status"] == "ok"
    assert pod(site, "shell", "build", feed="echo 'a  b'\n\necho \"\nfalse\n", code=1) == "a  b\n"
    events = {record["pod"] for record in site.records()}
    assert events == {made["pod"]}
    assert [row["name"] for row in json.loads(pod(site, "list", "--json"))] == ["build"]
    pod(site, "rm", "build", code=2)  # it runs
    pod(site, "kill", "build")
    assert show(site, "build")["state"] == "killed"
    assert helper(site)["pods"] == []
    assert gone(made["keeper"])
    pod(site, "exec", "build", "--", "true", code=6)
    pod(site, "create", write(site, "build"), code=2)  # the name is taken until it is forgotten
    pod(site, "rm", "build")
    assert json.loads(pod(site, "list", "--json")) == []
    create(site, "build")
    pod(site, "rm", "build", "--force")
    assert site.records()[-1]["event"] == "pod.stop"
    assert site.verify().returncode == 0


def test_an_agents_log_and_exit_code_are_kept(site: Site) -> None:
    code = "import os,sys,time; print('hello', os.environ['MODE'], flush=True); time.sleep(0.5); sys.exit('bye')"
    create(site, "agent", f"agent: {{command: [python3, -c, {json.dumps(code)}], env: {{MODE: batch}}}}")
    assert pod(site, "logs", "agent", "--follow") == "hello batch\nbye\n"
    found = ended(site, "agent")
    assert (found["state"], found["code"]) == ("exited", 1)
    assert "exited (1)" in pod(site, "list")
    assert pod(site, "logs", "agent") == "hello batch\nbye\n"


def test_many_commands_at_once_and_one_who_leaves_holds_nobody_up(site: Site) -> None:
    create(site, "many")
    argv = [str(BIN / "nucleus"), "pod", "exec", "many", "--"]
    slow = site.start([*argv, "sleep", "60"])
    loud = site.start([*argv, "python3", "-c", "print('y' * 3_000_000)"])  # its output is not read
    time.sleep(0.3)
    slow.kill()
    slow.communicate()
    children = [site.start([*argv, "echo", str(number)]) for number in range(8)]
    assert sorted(child.communicate(timeout=30)[0] for child in children) == [f"{number}\n" for number in range(8)]
    loud.kill()
    loud.communicate()
    assert pod(site, "exec", "many", "--", "echo", "still") == "still\n"
    pod(site, "rm", "many", "--force")


def test_a_pod_ends_at_its_timeout(site: Site) -> None:
    create(site, "short", "timeout_seconds: 1")
    said = site.cli("pod", "exec", "short", "--", "sleep", "30")
    assert said.returncode == 6
    assert "timed out" in said.stderr
    assert ended(site, "short")["state"] == "timed out"
    assert helper(site)["pods"] == []


def test_a_keeper_that_is_killed_takes_its_pod_along_and_the_pod_is_lost(site: Site) -> None:
    made = create(site, "orphan", "agent: {command: [sleep, '600']}")
    os.kill(made["keeper"], signal.SIGKILL)
    assert gone(made["keeper"])
    assert show(site, "orphan")["state"] == "lost"
    for _ in range(100):
        if not helper(site)["pods"]:
            break
        time.sleep(0.05)
    assert helper(site)["pods"] == []
    pod(site, "exec", "orphan", "--", "true", code=6)
    pod(site, "rm", "orphan")


def test_when_the_helper_ends_its_pods_have_failed_and_say_so(site: Site) -> None:
    create(site, "one")
    site.cli("helper", "stop")
    found = ended(site, "one")
    assert found["state"] == "failed"
    assert "has ended" in found["why"]


def test_what_cannot_start_says_why_and_leaves_nothing(site: Site) -> None:
    path = Path(write(site, "bad"))
    path.write_text(path.read_text().replace(str(site.workspace), "/"))
    said = site.cli("pod", "create", str(path))
    assert said.returncode == 2
    assert "it is the root directory" in said.stderr
    path.write_text(path.read_text().replace("work_dir: /", f"work_dir: {site.workspace}").replace(
        "{type: profile, name: codegen}", "{type: inline, text: 'capabilities: 3'}"
    ))  # fmt: skip
    said = site.cli("pod", "create", str(path))
    assert said.returncode == 2
    assert "the policy needs the key" in said.stderr
    assert "bad" not in [row["name"] for row in json.loads(pod(site, "list", "--json"))]
    for name in ("..", "a/b", "", ".x"):
        assert site.cli("pod", "show", name).returncode == 2


def test_limits_of_a_file_hold(root_site: Site) -> None:
    create(root_site, "small", "resources: {cpu_cores: 0.5, memory_mib: 96, pids: 24}")
    fork = "import os\ntry:\n  for n in range(100): os.fork() or os._exit(__import__('time').sleep(3) or 0)\n"
    fork += "except BlockingIOError: print(n < 24)"
    assert pod(root_site, "exec", "small", "--", "python3", "-c", fork) == "True\n"
    pod(root_site, "exec", "small", "--", "python3", "-c", "x = bytearray(200 << 20)", code=137)
    spin = "import time, resource\nb = time.monotonic()\nwhile time.monotonic() < b + 1: pass\n"
    spin += "print(resource.getrusage(resource.RUSAGE_SELF).ru_utime < 0.8)"
    assert pod(root_site, "exec", "small", "--", "python3", "-c", spin) == "True\n"
    pod(root_site, "rm", "small", "--force")
    assert root_site.exec("python3", "-c", "x = bytearray(200 << 20)").returncode == 0  # the next has the usual ones


@pytest.fixture
def user_site() -> Iterator[Site]:
    made = Site(USER)
    yield made
    made.close()


def test_limits_that_cannot_be_had_are_no_pod(user_site: Site) -> None:
    said = user_site.cli("pod", "create", write(user_site, "small", "resources: {memory_mib: 96}"))
    if said.returncode == 0:
        pytest.skip("an ordinary user has cgroups here")
    assert said.returncode == 6
    assert "pod.resources" in said.stderr


def test_nothing_is_left_of_many_pods(root_site: Site) -> None:
    create(root_site, "first")
    pod(root_site, "rm", "first", "--force")
    before = census(root_site)
    for number in range(15):
        made = create(root_site, f"pod-{number}")
        if number % 3 == 0:
            os.kill(made["keeper"], signal.SIGKILL)
        pod(root_site, "rm", f"pod-{number}", "--force")
    for _ in range(100):
        if helper(root_site)["pods"] == [] and census(root_site) == before:
            break
        time.sleep(0.1)
    assert census(root_site) == before


def census(site: Site) -> dict[str, Any]:
    """What there is of pods: processes, mounts, network namespaces, cgroups, files, the helper's descriptors."""
    pids = helper(site)["pids"]
    found = subprocess.run(["ps", "-eo", "uid"], capture_output=True, text=True, check=True).stdout.split()[1:]
    return {
        "processes": sum(0x70010000 <= int(uid) < 0x70200000 for uid in found),
        "mounts": len(Path(f"/proc/{pids['builder']}/mounts").read_text().splitlines()),
        "cgroups": sum(1 for path in Path("/sys/fs/cgroup").glob(f"*/nucleus/pod-*-{pids['builder']}-*")),
        "files": sorted(str(path) for path in (site.directory / "run").glob("*/*")),
        "descriptors": {
            name: sum(not kept(pid, fd) for fd in os.listdir(f"/proc/{pid}/fd")) for name, pid in pids.items()
        },
    }


def test_a_helper_that_nobody_uses_ends_and_not_while_a_pod_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(0)
    try:
        environment = site.environment
        monkeypatch.setattr(site, "environment", lambda **more: environment(NUCLEUS_HELPER_IDLE="1", **more))
        create(site, "stays")
        builder = helper(site)["pids"]["builder"]
        time.sleep(3)
        assert pod(site, "exec", "stays", "--", "echo", "here") == "here\n"
        assert helper(site)["pids"]["builder"] == builder
        pod(site, "rm", "stays", "--force")
        assert gone(builder)
        assert site.cli("helper", "status").returncode == 1
        assert site.verify().returncode == 0
        monkeypatch.setattr(site, "environment", lambda **more: environment(NUCLEUS_HELPER_IDLE="never", **more))
        assert "NUCLEUS_HELPER_IDLE" in site.exec("true").stderr
    finally:
        monkeypatch.undo()
        site.close()
