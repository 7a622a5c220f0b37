"""Pods from the launcher's side: workspaces, git, agents, failure, and that nothing is left."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import signal
import struct
import tempfile
import termios
import time
from pathlib import Path

import pytest
from harness import Builder

POLICY = {
    "block": [".env*", "secrets/", "**/.git/config"],
    "protect": [".git", ".mcp.json", ".vscode/", ".gitmodules"],
}


def tree(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


def alive(pid: int) -> bool:
    """Is there a process (a zombie that its parent has not looked at is none)?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def read_until(fd: int, text: bytes, seconds: float = 10) -> bytes:
    seen = b""
    deadline = time.monotonic() + seconds
    while text not in seen and time.monotonic() < deadline:
        if select.select([fd], [], [], 0.1)[0]:
            try:
                seen += os.read(fd, 4096)
            except OSError:  # EIO: the other side of the pty is closed
                break
    assert text in seen, seen
    return seen


def test_blocked_names_are_hidden(builder: Builder) -> None:
    for name in (".env", "deep/er/.env.local", "secrets/key.txt", "open.txt"):
        builder.write(name, "TEXT")
    os.symlink(".env", builder.workspace / "innocent")
    pod = builder.create(POLICY)
    for name in (".env", "deep/er/.env.local", "secrets/key.txt", "innocent"):
        done = pod.sh(f"cat {name}")
        assert (done.code, done.out) == (1, ""), name
    assert (
        pod.sh("mv .env env; rm -f .env; echo x > .env; chmod 644 .env; ls secrets; cp -r . /tmp/all; true").code == 0
    )
    assert "TEXT" not in pod.sh("cat env /tmp/all/.env; cat /tmp/all/secrets/*").out
    assert pod.sh("cat open.txt").out == "TEXT"
    pod.close()
    assert (builder.workspace / ".env").read_text() == "TEXT"


def test_protected_names_are_read_only(builder: Builder) -> None:
    builder.write(".mcp.json", "true")
    builder.write(".vscode/tasks.json", "{}")
    pod = builder.create(POLICY)
    for attempt in (
        "echo evil > .mcp.json",
        "rm .mcp.json",
        "mv .mcp.json x",
        "echo evil > .vscode/tasks.json",
        "touch .vscode/new",
    ):
        assert pod.sh(attempt).code != 0, attempt
    assert pod.sh("cat .mcp.json").out == "true"
    pod.close()


def test_git_is_usable_and_cannot_be_poisoned(builder: Builder) -> None:
    config = """[core]
	repositoryformatversion = 0
	fsmonitor = "touch /tmp/evil"
	hooksPath = /tmp/hooks
[user]
	name = A
	email = a@example.org
[alias]
	x = !touch /tmp/evil
[remote "origin"]
	url = https://me:PASSWORD@example.org/x.git
[include]
	path = ../evil
"""
    builder.write(".git/HEAD", "ref: refs/heads/main\n")
    builder.write(".git/config", config)
    builder.write(".git/objects/info/keep", "")
    builder.write(".git/refs/heads/keep", "")
    (builder.workspace / ".git/refs/heads/keep").unlink()
    before = tree(builder.workspace)
    pod = builder.create(POLICY)
    seen = pod.sh("cat .git/config").out
    assert "A" in seen
    assert 'url = "https://example.org/x.git"' in seen
    for bad in ("PASSWORD", "evil", "hooksPath", "alias", "include", "fsmonitor"):
        assert bad.lower() not in seen.lower()
    for attempt in (
        "echo evil > .git/hooks/pre-commit", "mv .git/hooks .git/h", "rmdir .git/hooks", "mv .git .g",
        "rm -rf .git/hooks", "echo evil >> .git/config", "mv .git/config x",
        "git config core.fsmonitor evil", "chmod 777 .git/hooks",
    ):  # fmt: skip
        assert pod.sh(attempt).code != 0, attempt
    done = pod.sh("echo hi > f && git add f && git commit -q -m one && git log --oneline | wc -l")
    assert done.out.strip() == "1", done.err
    pod.close()
    assert (builder.workspace / ".git/config").read_text() == config
    ghosts = {name for name in tree(builder.workspace) - before if "objects" not in name and "hooks" in name}
    assert ghosts == set()
    assert not (builder.workspace / ".git/hooks").exists()


def test_a_linked_worktree_is_hidden_with_a_reason(builder: Builder) -> None:
    builder.write("linked/.git", "gitdir: /elsewhere\n")
    pod = builder.create(POLICY)
    assert pod.sh("cat linked/.git").code != 0
    assert any("linked/.git" in note for note in pod.isolation["notes"])
    pod.close()


def test_pty_agent(builder: Builder) -> None:
    script = "tty; stty size; id -u; ls -a ~ /workspace; echo $HOME; readlink /proc/self/exe; read x; exit 7"
    pod = builder.create(agent={"argv": ["/bin/sh", "-c", script], "stdio": "pty", "rows": 33, "cols": 99})
    assert pod.pty is not None
    seen = read_until(pod.pty, b"/usr/bin/readlink")
    assert b"/dev/pts/0" in seen
    assert b"33 99" in seen
    assert b"\n1000\r" in seen
    fcntl.ioctl(pod.pty, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    os.write(pod.pty, b"x\n")
    assert builder.event() == {"event": "agent_exit", "pod": pod.name, "code": 7, "signal": 0}
    assert pod.run("/bin/true").code == 0  # the pod goes on without its agent
    pod.close()


def test_an_agent_that_is_not_there(builder: Builder) -> None:
    pod = builder.create(agent={"argv": ["no-such-agent"], "stdio": "pty"})
    read_until(pod.pty, b"not found in the pod")
    assert builder.event()["code"] == 127
    pod.close()


def test_agent_has_the_sdk_and_no_workspace(builder: Builder) -> None:
    builder.write("private.txt", "TEXT")
    code = (
        "import json, os, sys; import nucleus.sdk; "
        "print(json.dumps([os.listdir('/workspace'), sorted(os.listdir('/run/nucleus')), nucleus.sdk.__file__, "
        "os.access('/run/nucleus/bin/nucleus-tools', os.X_OK), os.path.exists('/etc/shadow'), os.listdir('/etc/ssl')]))"
    )
    with tempfile.TemporaryFile() as out, open("/dev/null", "rb") as null:
        stdio = (null.fileno(), out.fileno(), out.fileno())
        pod = builder.create(agent={"argv": ["/usr/bin/python3", "-c", code], "stdio": "pipes"}, stdio=stdio)
        assert builder.event()["code"] == 0, out.read()
        pod.close()
        out.seek(0)
        workspace, run, sdk, executable, shadow, ssl = json.loads(out.read())
    assert workspace == []
    assert run == ["bin", "lib", "spiffe.sock", "workload.sock"]
    assert sdk == "/run/nucleus/lib/nucleus/sdk/__init__.py"
    assert executable
    assert not shadow
    assert "private" not in ssl


def test_shared_workspace_is_read_only_and_masked(builder: Builder) -> None:
    builder.write(".env", "TEXT")
    builder.write("open.txt", "OPEN")
    script = "pwd; cat open.txt; cat .env; echo x > new; echo x >> open.txt"
    with tempfile.TemporaryFile() as out, open("/dev/null", "rb") as null:
        stdio = (null.fileno(), out.fileno(), null.fileno())
        pod = builder.create(
            POLICY, stdio, agent={"argv": ["/bin/sh", "-c", script], "stdio": "pipes"}, share_workspace=True
        )
        assert builder.event()["code"] != 0
        pod.close()
        out.seek(0)
        assert out.read() == b"/workspace\nOPEN"
    assert (builder.workspace / "open.txt").read_text() == "OPEN"


@pytest.mark.parametrize(
    ("policy", "spec", "rule"),
    [
        ("not a policy", {}, "policy"),
        ({"floor": "firecracker"}, {}, "isolation.floor"),
        ({"floor": "no such thing"}, {}, "isolation.floor"),
        ({}, {"unknown": 1}, "spec"),
        ({}, {"toolchains": ["/"]}, "spec.toolchains"),
        ({}, {"toolchains": ["/usr/nowhere"]}, "spec.toolchains"),
        ({}, {"agent": {"argv": ["x"], "stdio": "pipes"}}, "spec.descriptors"),
    ],
)
def test_a_pod_that_cannot_be_is_undone(builder: Builder, policy: dict | str, spec: dict, rule: str) -> None:
    answer = builder.try_create(policy, **spec)
    assert answer.body["error"]["rule"] == rule, answer.body
    assert builder.call("status").body["ok"]["pods"] == []
    assert list((builder.directory / "runtime/pods").iterdir()) == []
    if builder.who == "user":  # root's are the machine's
        assert list((builder.directory / "runtime/slots").iterdir()) == []


def test_toolchains_are_read_only_at_their_own_path(builder: Builder) -> None:
    directory = builder.directory / "tools"
    pod = builder.try_create(toolchains=[str(directory)])
    assert pod.body["error"]["rule"] == "spec.toolchains"  # /tmp is the pod's own
    place = Path("/opt") if os.path.isdir("/opt") else None
    if place is None:
        pytest.skip("no /opt on this machine")
    with tempfile.TemporaryDirectory(dir=place) as name:
        os.chmod(name, 0o755)
        Path(name, "bin").mkdir()
        Path(name, "bin/tool").write_text("#!/bin/sh\necho tool\n")
        Path(name, "bin/tool").chmod(0o755)
        made = builder.create(toolchains=[name])
        assert made.run("tool").out == "tool\n"
        assert made.sh(f"echo x > {name}/bin/tool").code != 0
        assert made.sh("ls /opt").out == Path(name).name + "\n"
        made.close()


def test_destroy_leaves_nothing(builder: Builder) -> None:
    mounts = Path("/proc/self/mountinfo").read_text()
    pod = builder.create(agent={"argv": ["/bin/sleep", "1000"], "stdio": "pty"})
    pod.sh("setsid sleep 1000 & setsid sh -c 'trap \"\" TERM HUP; sleep 1000' & echo started")
    entry = builder.call("status").body["ok"]["pods"][0]
    groups = [
        path
        for path in Path("/sys/fs/cgroup").glob("*/nucleus/*/")
        if {int(pid) for pid in (path / "cgroup.procs").read_text().split()} & set(entry["pids"])
    ]
    if builder.who == "root" and not pod.isolation["missing"]:
        assert groups, "as root the compartments are in cgroups"
    inside = {int(pid) for path in groups for pid in (path / "cgroup.procs").read_text().split()}
    pod.close()
    for pid in {*entry["pids"], entry["gate"], *inside}:
        assert not alive(pid), pid
    assert [path for path in groups if path.exists()] == []
    assert Path("/proc/self/mountinfo").read_text() == mounts
    assert list((builder.directory / "runtime/pods").iterdir()) == []
    assert builder.call("status").body["ok"]["pods"] == []


def test_the_death_of_hands_or_gate_ends_the_pod(builder: Builder) -> None:
    for victim in ("hands", "gate"):
        pod = builder.create()
        entry = builder.call("status").body["ok"]["pods"][0]
        os.kill(entry["pids"][0] if victim == "hands" else entry["gate"], signal.SIGKILL)
        event = builder.event()
        assert (event["event"], event["pod"]) == ("pod_failed", pod.name)
        deadline = time.monotonic() + 10
        while builder.call("status").body["ok"]["pods"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert not os.path.exists(f"/proc/{entry['pids'][0]}")
        pod.close()


def test_two_pods_at_once_are_apart(builder: Builder) -> None:
    one, two = builder.create(), builder.create()
    slots = [entry["slot"] for entry in builder.call("status").body["ok"]["pods"]]
    assert len(set(slots)) == 2
    assert one.sh("echo x > /tmp/mine; ls /tmp").out == "mine\n"
    assert two.sh("ls /tmp").out == ""
    one.close()
    assert two.run("/bin/true").code == 0
    two.close()


def test_limits(builder: Builder) -> None:
    pod = builder.create()
    done = pod.sh("ulimit -c; ulimit -n; (for i in $(seq 400); do sleep 0.3 & done) 2>&1 | grep -c -i 'fork' ; true")
    lines = done.out.split()
    assert lines[:2] == ["0", "4096"]
    assert int(lines[2]) >= 1
    pod.close()


@pytest.mark.parametrize("who", ["root", "user"])
def test_nothing_outlives_a_killed_builder(who: str) -> None:
    made = Builder.start(who)
    pod = made.create(agent={"argv": ["/bin/sleep", "1000"], "stdio": "pty"})
    pod.sh("setsid sleep 1000 & echo")
    status = made.call("status").body["ok"]
    inside = [int(path.name) for path in Path("/proc").glob("[0-9]*") if _in_pid_namespace_of(path, status)]
    assert len(inside) >= 3  # both first processes and the agent (hands ends what a command leaves behind)
    os.kill(made.pid, signal.SIGKILL)
    os.waitpid(made.pid, 0)
    pids = [*inside, *(pid for name, pid in status["pids"].items() if name != "builder"), status["pods"][0]["gate"]]
    deadline = time.monotonic() + 5
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline, [pid for pid in pids if alive(pid)]
        time.sleep(0.01)
    made.control.close()
    pod.channel.close()
    os.close(pod.pty)
    for group in Path("/sys/fs/cgroup").glob(f"*/nucleus/pod-{made.pid}-*/"):
        group.rmdir()  # nobody was left to do it
    shutil.rmtree(made.directory)


def _in_pid_namespace_of(path: Path, status: dict) -> bool:
    try:
        return os.readlink(path / "ns/pid") in {os.readlink(f"/proc/{pid}/ns/pid") for pid in status["pods"][0]["pids"]}
    except OSError:
        return False
