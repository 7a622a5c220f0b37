"""The firewall as the kernel has it, and what it does to packets, in a network namespace of the test's own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

EXPECTED = """\
table inet nucleus {
	chain output {
		type filter hook output priority filter; policy drop;
		oifname "lo" ip daddr 127.0.0.0/8 accept
		ct status dnat accept
		meta l4proto tcp reject with tcp reset
		reject with icmpx admin-prohibited
	}

	chain input {
		type filter hook input priority filter; policy drop;
		iifname "lo" accept
	}

	chain forward {
		type filter hook forward priority filter; policy drop;
	}

	chain gateway {
		type nat hook output priority -100; policy accept;
		ip daddr != 127.0.0.0/8 meta l4proto tcp redirect to :3129
	}
}
"""
INSIDE = """
import json, os, socket, subprocess, struct, sys, time
from nucleus.kernel import syscalls
from nucleus.network import netlink, netns
user = len(sys.argv) > 1 and sys.argv[1] == "user"
if user:
    uid = os.getuid()
    syscalls.unshare(syscalls.CLONE_NEWUSER)
    open("/proc/self/setgroups", "w").write("deny")
    open("/proc/self/uid_map", "w").write(f"0 {uid} 1")
    open("/proc/self/gid_map", "w").write(f"0 {uid} 1")
syscalls.unshare(syscalls.CLONE_NEWNET)
started = time.perf_counter()
syscalls.bring_loopback_up()
netns.configure(rules=True)
fds = netns.listeners()
watchers = [socket.socket(fileno=fd) for fd in netns.watchers()]
digest = netns.digest()
found = {"ms": (time.perf_counter() - started) * 1e3, "same": digest == netns.digest()}

def outcome(make):
    try:
        return make()
    except OSError as error:
        return type(error).__name__

def udp():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", ("8.8.8.8", 53)); return "sent"

def tcp():
    transparent = socket.socket(fileno=os.dup(fds[0]))
    with socket.create_connection(("8.8.8.8", 443), 2), transparent:
        client, _ = transparent.accept()
        with client:
            raw = client.getsockopt(socket.SOL_IP, 80, 16)
            return f"{socket.inet_ntoa(raw[4:8])}:{struct.unpack('!H', raw[2:4])[0]}"

def six():
    with socket.socket(socket.AF_INET6) as sock:
        sock.connect(("2606:4700::1", 443)); return "connected"

found |= {"udp": outcome(udp), "tcp": outcome(tcp), "six": outcome(six)}
nft = os.environ.get("NFT")
found["rules"] = subprocess.run([nft, "list", "ruleset"], capture_output=True, text=True).stdout if nft else ""
found["quiet"] = [outcome(lambda sock=sock: len(sock.recv(9000))) for sock in watchers]
netlink.links_down()
found["loud"] = [outcome(lambda sock=sock: len(sock.recv(9000))) for sock in watchers]
found["down"] = outcome(lambda: socket.create_connection(("127.0.0.1", 3128), 1))
print(json.dumps(found))
"""


def inside(uid: int) -> dict[str, object]:
    command = [sys.executable, "-c", INSIDE, *(["user"] if uid else [])]
    identity = {"user": uid, "group": uid, "extra_groups": []} if uid else {}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=30,
        env={"NFT": shutil.which("nft") or "", "PATH": "/usr/sbin:/usr/bin:/bin"}, **identity,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def found() -> dict[str, object]:
    import os

    if os.geteuid() != 0:
        pytest.skip("needs root, to make a network namespace")
    return inside(0)


def test_rules(found: dict[str, object]) -> None:
    if not shutil.which("nft"):
        pytest.skip("nft is not installed: nothing to print the rules with")
    assert found["rules"] == EXPECTED


def test_tcp_to_anywhere_lands_at_the_gateway(found: dict[str, object]) -> None:
    assert found["tcp"] == "8.8.8.8:443"


def test_nothing_else_leaves_and_says_so_at_once(found: dict[str, object]) -> None:
    assert found["udp"] == "PermissionError"
    assert found["six"] in ("OSError", "PermissionError")


def test_changes_are_heard_and_links_go_down(found: dict[str, object]) -> None:
    assert found["same"]
    assert found["quiet"] == ["BlockingIOError", "BlockingIOError"]
    assert isinstance(found["loud"], list)
    assert isinstance(found["loud"][0], int)
    assert found["down"] in ("OSError", "TimeoutError", "ConnectionRefusedError")


def test_it_is_quick(found: dict[str, object]) -> None:
    assert isinstance(found["ms"], float)
    assert found["ms"] < 100  # the aim is 20, the usual 3
