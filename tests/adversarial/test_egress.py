"""Out of a pod: every attempt of `egress_probes`, run inside, against an outside that records what reaches it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.world import World

HERE = Path(__file__).parent
POLICY = """\
version: 1
name: egress
capabilities: {read_files: always, run_bash: always}
commands: {allow: everything}
budget: {limit_usd: "100.00"}  # sixty connections at once hold as many reservations
network:
  allow:
    - {host: allowed.test, trusted: true}
    - {host: allowed.test, port: 80, trusted: true}
    - {host: other.test, port: 22, trusted: true}
    - {host: private.test, port: 80, trusted: true}
    - {host: meta.test, port: 80, trusted: true}
    - {host: loop.test, port: 80, trusted: true}
    - {host: mixed.test, port: 80, trusted: true}
"""
LISTED = {("93.184.216.34", "allowed.test"), ("93.184.216.34", None)}


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    made = World()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def attempts(world: World) -> dict[str, dict[str, object]]:
    """All attempts, in one pod."""
    world.write("probes.py", PROBES)
    arguments = ["exec", "--policy", world.policy(POLICY), "--workdir", str(world.workspace), "--"]
    with socket.socket(socket.AF_UNIX) as outside:
        outside.bind("\0nucleus-test-outside")
        outside.listen()
        done = world.cli(*arguments, "python3", "probes.py", timeout=110)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {one["name"]: one for one in found}


PROBES = (HERE / "egress_probes.py").read_text()
NAMES = [part.split("(")[0].strip() for part in PROBES.split("@probe\ndef ")[1:]]


def test_there_are_many() -> None:
    assert len(NAMES) >= 80


@pytest.mark.parametrize("name", NAMES)
def test_no_way_out(attempts: dict[str, dict[str, object]], name: str) -> None:
    attempt = attempts[name]
    assert not attempt["through"], attempt["reason"]
    assert attempt["reason"]
    # At once, not after a client's patience: a timeout is no reason.
    assert "timed out" not in str(attempt["reason"])


def test_nothing_reached_the_outside_but_what_is_listed(attempts: dict[str, dict[str, object]], world: World) -> None:
    assert attempts
    seen = world.seen()
    assert {(one["address"], one["headers"]["host"]) for one in seen} <= LISTED
    assert not [one for one in seen if "smuggled" in one["target"] or "second" in one["target"]]
    assert not world.seen(server="udp")


def test_each_refusal_is_on_record_with_the_line_to_add(attempts: dict[str, dict[str, object]], world: World) -> None:
    assert attempts
    denied = [one for one in world.records() if one["event"] == "denied"]
    rules = {one["decision"]["rule"] for one in denied}
    assert {"network.allow", "network.inner"} <= rules
    assert any("evil.test:443" in one["decision"]["detail"] for one in denied)
    assert world.verify().returncode == 0


def test_why_says_which_line_to_add(world: World) -> None:
    run(world, "curl", "-sS", "-x", "http://127.0.0.1:3128", "http://evil.test/asked")
    told = world.cli("why", "--last")
    assert told.returncode == 0, told.stderr
    assert "- evil.test:80" in told.stdout


def run(world: World, *argv: str, policy: str = POLICY) -> tuple[int, str]:
    done = world.cli("exec", "--policy", world.policy(policy), "--workdir", str(world.workspace), "--", *argv)
    return done.returncode, done.stdout + done.stderr


def test_what_is_listed_works(world: World) -> None:
    assert run(world, "curl", "-sS", "http://allowed.test/x") == (0, "hello from allowed.test/x\n")
    ca = (world.outside / "ca.pem").read_text()
    world.write("ca.crt", ca)
    assert run(world, "curl", "-sS", "--cacert", "ca.crt", "https://allowed.test/y") == (
        0,
        "hello from allowed.test/y\n",
    )
    code, out = run(world, "curl", "-sS", "-x", "http://127.0.0.1:3128", "--cacert", "ca.crt", "https://allowed.test/z")
    assert (code, out) == (0, "hello from allowed.test/z\n")
    banner = """
import socket
s = socket.create_connection(("other.test", 22)); print(s.recv(20)); s.sendall(b"hi"); print(s.recv(9))
"""
    assert run(world, "python3", "-c", banner) == (0, "b'SSH-2.0-test\\r\\n'\nb'hi'\n")


def test_large_and_many(world: World) -> None:
    """Eight megabytes and back again, past the first allowance; and many connections of one program."""
    assert (
        run(world, "curl", "-sS", "-o", "/dev/null", "-w", "%{size_download}", "http://allowed.test/big")[1]
        == "8388608"
    )
    twice = "for i in 1 2 3; do curl -sS http://allowed.test/big; done | wc -c"
    assert run(world, "sh", "-c", twice)[1].strip() == str(3 * 8_388_608)
    many = """
import socket, threading
def one():
    s = socket.create_connection(("other.test", 22), 20); assert s.recv(40); s.close()
ts = [threading.Thread(target=one) for _ in range(60)]
[t.start() for t in ts]; [t.join() for t in ts]; print("ok")
"""
    assert run(world, "python3", "-c", many) == (0, "ok\n")


def test_a_connection_is_charged_and_on_record(world: World) -> None:
    run(world, "curl", "-sS", "http://allowed.test/charged")
    closing = [one for one in world.records() if one["event"] == "outcome" and one["operation"]["kind"] == "connect"][
        -1
    ]
    assert closing["operation"]["path"] == "/charged"
    assert closing["outcome"]["ended"] == "closed"
    assert closing["outcome"]["up"] > 0 < closing["outcome"]["down"]
    assert closing["context"]["charged"] >= 500


UNTRUSTED = """\
version: 1
name: asks
capabilities: {read_files: always, run_bash: always}
approve: []
commands: {allow: everything}
trifecta: session
network: {allow: [allowed.test, "allowed.test:80"]}
"""


def test_a_complete_trifecta_holds_the_connection(world: World) -> None:
    """The command itself has read something private and something untrusted; nobody is there to ask."""
    code, out = run(world, "curl", "-sS", "http://allowed.test/held", policy=UNTRUSTED)
    assert code != 0 or "403" in out or "approval" in out
    assert not [one for one in world.seen() if one.get("target") == "/held"]
    assert "trifecta.session" in {one["decision"].get("rule") for one in world.records()}


def test_a_policy_without_rules_has_no_gateway(world: World) -> None:
    none = POLICY.split("network:")[0]
    code = "import socket; socket.create_connection(({!r}, 80), 5)"
    tried, out = run(world, "python3", "-c", code.format("93.184.216.34"), policy=none)
    assert tried == 1
    assert "ConnectionRefusedError" in out
    assert "gaierror" in run(world, "python3", "-c", code.format("allowed.test"), policy=none)[1]
