"""`nucleus net`: rules of a running pod, tightened and widened by a person, on record before they hold."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .held import Held
from .world import World

POLICY = """
version: 1
name: net
capabilities: {read_files: always, run_bash: always}
commands: {allow: everything}
trifecta: session
network:
  allow:
    - {host: other.test, port: 9999, trusted: true}
    - {host: allowed.test, port: 80, trusted: true}
"""
FETCH = "curl -sS -m 5 http://%s/; echo"
# A connection that stays open, and says when it is gone.
HOLD = """
import socket, sys
s = socket.create_connection(("other.test", 9999))
s.recv(100)
print("open", flush=True)
open("/workspace/opened", "w").close()
try:
    left = s.recv(100)
    print("ended" if not left else "more")
except OSError:
    print("cut")
"""


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    try:
        yield made
    finally:
        made.close()


def net(world: World, *words: str, code: int = 0) -> Any:
    done = world.cli("net", *words, *(["--json"] if words[0] != "log" else []))
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if code == 0 and words[0] != "log" else done.stdout + done.stderr


def run(held: Held, code: str) -> str:
    answer = held.operate(kind="run", argv=["sh", "-c", code])
    assert answer.get("status") == "ok", answer
    return str(answer["result"]["stdout"] + answer["result"]["stderr"])


def test_a_person_widens_and_tightens(world: World) -> None:
    with Held(world, policy=world.policy(POLICY)) as held:
        pod = held.start["pod"]
        assert "hello" in run(held, FETCH % "allowed.test")
        assert "hello" not in run(held, FETCH % "api.test")
        assert net(world, "allow", "www.allowed.test:80", "--trusted")["changed"] is True
        assert "hello" in run(held, FETCH % "www.allowed.test")
        assert ["allowed.test:80 (trusted)", "other.test:9999 (trusted)", "www.allowed.test:80 (trusted)"] in net(
            world, "show"
        )["pods"][pod]["allow"]
        assert net(world, "deny", "allowed.test:80", "--pod", pod)["changed"] is True
        assert "hello" not in run(held, FETCH % "allowed.test")
        log = net(world, "log")
        assert "allow www.allowed.test:80 by uid:0" in log
        assert "network.allow" in log
    changes = [one for one in world.records() if one["event"] == "network.changed"]
    assert [(one["context"]["change"], one["principal"]) for one in changes] == [("allow", "uid:0"), ("deny", "uid:0")]
    assert world.verify().returncode == 0


def test_what_is_open_is_cut_when_its_rule_goes(world: World) -> None:
    """An established flow does not outlive its rule."""
    (world.workspace / "hold.py").write_text(HOLD)
    with Held(world, policy=world.policy(POLICY)) as held:
        said: list[str] = []
        thread = threading.Thread(target=lambda: said.append(run(held, "python3 hold.py")))
        thread.start()
        wait_for((world.workspace / "opened").exists)
        shown = net(world, "show")["pods"][held.start["pod"]]["connections"]
        assert [(one["host"], one["port"]) for one in shown] == [("other.test", 9999)]
        began = time.monotonic()
        assert net(world, "deny", "other.test:9999")["cut"] == 1
        thread.join(10)
        assert time.monotonic() - began < 5
        assert said
        assert "cut" in said[0] or "ended" in said[0]
        ended = [one for one in world.records() if one["operation"].get("host") == "other.test"][-1]
        assert ended["outcome"]["ended"] == "cut"


def test_a_way_out_that_nobody_vouches_for_is_asked_about(world: World) -> None:
    """Widening a running pod does not get round the trifecta."""
    with Held(world, policy=world.policy(POLICY)) as held:
        net(world, "allow", "api.test:80")
        asked = held.operate(kind="run", argv=["sh", "-c", FETCH % "api.test"])
        assert (asked["kind"], asked["rule"]) == ("approval_required", "trifecta.session")


def test_what_is_no_change(world: World) -> None:
    assert "not up" in net(world, "show", code=2)
    with Held(world, policy=world.policy(POLICY)):
        for rule in ("https://x/", "*", "a b", "x:99999", "--"):
            net(world, "allow", rule, code=2)
        net(world, "allow", "x.test", "--pod", "pod-0000000000", code=2)
    closed = POLICY.partition("network:")[0]
    with Held(world, policy=world.policy(closed)):
        assert "no gateway" in net(world, "allow", "x.test", code=2)


def wait_for(done: Callable[[], bool], seconds: float = 8) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.02)
