"""What a hijacked process reaches from either compartment: nothing but its workspace."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import HERE, USER, Builder

SCRIPT = (HERE / "probes.py").read_bytes()
# The only things that may succeed.
ALLOWED = {"work": {"write_workspace"}, "agent": set()}


@pytest.fixture
def host(builder: Builder) -> Iterator[dict[str, Any]]:
    """Things on the host that would answer, owned by the user the pod belongs to."""
    directory = Path(tempfile.mkdtemp(prefix="pod-host-", dir="/tmp"))
    directory.chmod(0o777)
    secret = directory / "planted-secret"
    secret.write_text("PLANTED")
    secret.chmod(0o644)
    marker = "MARKER" + os.urandom(8).hex()
    uid = USER if builder.who == "user" else 0
    sleeper = subprocess.Popen(["/bin/sleep", "60"], env={"SECRET": marker}, user=uid, group=uid, extra_groups=[])
    tcp = socket.create_server(("127.0.0.1", 0))
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    by_path, by_name = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    by_path.bind(str(directory / "sock"))
    (directory / "sock").chmod(0o777)
    by_name.bind("\0nucleus-test-" + marker)
    for each in (by_path, by_name):
        each.listen()

    def echo() -> None:
        while True:
            data, peer = udp.recvfrom(16)
            if data == b"end":
                return
            udp.sendto(data, peer)

    thread = threading.Thread(target=echo)
    thread.start()
    yield {
        "secret": str(secret),
        "outside": str(directory / "written"),
        "tcp": tcp.getsockname()[1],
        "udp": udp.getsockname()[1],
        "unix_path": str(directory / "sock"),
        "unix_abstract": "nucleus-test-" + marker,
        "pid": sleeper.pid,
        "marker": marker,
    }
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
        last.sendto(b"end", udp.getsockname())
    thread.join()
    sleeper.kill()
    sleeper.wait()
    for each in (tcp, udp, by_path, by_name):
        each.close()
    assert not (directory / "written").exists()
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()


def probe_work(builder: Builder, host: dict[str, Any]) -> dict[str, Any]:
    pod = builder.create()
    done = pod.run("/usr/bin/python3", "-I", "-", json.dumps(host), stdin=SCRIPT)
    pod.close()
    assert done.code == 0, done.err
    return json.loads(done.out)


def probe_agent(builder: Builder, host: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryFile() as script, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        script.write(SCRIPT)
        script.seek(0)
        agent = {"argv": ["/usr/bin/python3", "-I", "-", json.dumps(host)], "stdio": "pipes", "env": {"MINE": "1"}}
        pod = builder.create(agent=agent, stdio=(script.fileno(), out.fileno(), err.fileno()))
        event = builder.event()
        pod.close()
        err.seek(0)
        assert event == {"event": "agent_exit", "pod": pod.name, "code": 0, "signal": 0}, err.read().decode()
        out.seek(0)
        return json.loads(out.read())


@pytest.mark.parametrize("kind", ["work", "agent"])
def test_probes(builder: Builder, host: dict[str, Any], kind: str) -> None:
    answers = (probe_work if kind == "work" else probe_agent)(builder, host)
    opened = {name for name, answer in answers.items() if answer == "open"}
    assert opened == ALLOWED[kind], {name: answers[name] for name in opened ^ ALLOWED[kind]}
    assert answers["inherited"] == []
    assert answers["terminal_injection"].startswith("PermissionError")
    status = answers["status"]
    assert {status[name] for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb", "CapInh")} == {"0" * 16}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert status["Uid"].split() == status["Gid"].split() == ["1000"] * 4
    assert answers["uid_map"][0] == "1000"
    assert answers["uid_map"][2] == "1"
    assert set(answers["root"]) <= {
        "bin", "dev", "etc", "home", "lib", "lib32", "lib64", "libx32", "proc", "run", "sbin", "tmp", "usr", "var",
        "workspace",
    }  # fmt: skip
    environment = answers["environment"]
    assert {"PATH", "HOME", "LANG"} <= environment.keys()
    if kind == "agent":
        assert environment["NUCLEUS_GATE_ID"].startswith("spiffe://nucleus.local/ns/default/sa/")
        assert environment["MINE"] == "1"
    # The mount table names where a bind came from, from its file system's root on; nothing else of ours may be mounted.
    ours = {line.split()[4] for line in answers["mounts"] if builder.directory.name in line}
    assert ours == ({"/workspace"} if kind == "work" else {"/run/nucleus/workload.sock", "/run/nucleus/spiffe.sock"})


def test_identity_on_the_host(builder: Builder) -> None:
    """No compartment ever runs as host 0; as root each has a uid of its own. Files belong to the workspace's owner."""
    agent = {"argv": ["/bin/sleep", "30"], "stdio": "pty"}
    pod = builder.create(agent=agent)
    assert pod.sh("echo x > mine; mkdir sub; touch sub/deep; chmod 600 mine").code == 0
    found = builder.call("status").body["ok"]["pods"][0]
    pids, slot = found["pids"], found["slot"]  # another pod of this machine's root may hold slot 0
    assert len(pids) == 2
    uids = [int(Path(f"/proc/{pid}/status").read_text().split("Uid:")[1].split()[0]) for pid in pids]
    assert uids == ([0x70100001 + 2 * slot, 0x70100000 + 2 * slot] if builder.who == "root" else [USER, USER])
    for name in ("mine", "sub", "sub/deep"):
        made = os.stat(builder.workspace / name)
        assert (made.st_uid, made.st_gid) == (builder.owner, builder.owner)
    assert pod.sh("rm -r mine sub").code == 0
    pod.close()
