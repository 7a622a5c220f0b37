"""A yes to a command is a yes to the files that it names, as they were when it was asked for."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from .held import Held
from .site import BIN, Site
from .test_wider import Person

POLICY = """
version: 1
name: asks
capabilities: {read_files: always, write_files: always, edit_files: always, run_bash: always}
approve: [run_bash]
commands: {allow: everything}
"""
AGENT = """
import json, threading, time
from nucleus.sdk.client import Gate, GateError
gate = Gate()
time.sleep(1)
said = []
def ask(argv):
    try:
        said.append(gate.run(argv)["stdout"])
    except GateError as error:
        said.append(str(error))
asking = threading.Thread(target=ask, args=(["sh", "a.sh"],))
asking.start()
time.sleep(1.5)
gate.write("a.sh", "echo swapped")
asking.join()
print(json.dumps(said))
"""


def asked(site: Site, person: Person, held: Held, *argv: str) -> tuple[dict[str, Any], Future[dict[str, Any]]]:
    pool = ThreadPoolExecutor(1)
    reply = pool.submit(held.operate, kind="run", argv=list(argv))
    pool.shutdown(wait=False)
    return person.request(), reply


@pytest.fixture
def policy(root_site: Site) -> str:
    path = root_site.directory / "asks.yaml"
    path.write_text(POLICY)
    path.chmod(0o644)
    return str(path)


def test_the_files_are_shown_and_an_unchanged_one_runs(root_site: Site, policy: str) -> None:
    (root_site.workspace / "a.sh").write_text("echo one\n")
    (root_site.workspace / "link.sh").symlink_to("a.sh")
    (root_site.workspace / "big").write_bytes(b"x" * 9_000_000)
    digest = hashlib.sha256(b"echo one\n").hexdigest()
    with Person(root_site) as person, Held(root_site, policy=policy) as held:
        request, reply = asked(root_site, person, held, "sh", "link.sh", "./big", "nothing.txt")
        assert f"file link.sh: sha256 {digest}" in request["display"]
        assert "file nothing.txt: no file now" in request["display"]
        assert any(line.startswith("file big: NOT BOUND") for line in request["display"])
        person.says("approve", request["request"])
        answer = reply.result(60)
    assert answer["result"]["stdout"] == "one\n", answer
    intent = [one for one in root_site.records() if one["event"] == "intent"][-1]
    assert intent["operation"]["files"][0] == ["link.sh", digest]


def test_a_file_that_has_changed_since_does_not_run(root_site: Site, policy: str) -> None:
    script = root_site.workspace / "a.sh"
    for change in ("content", "created", "link"):
        script.unlink(missing_ok=True)
        other = root_site.workspace / "b.sh"
        other.write_text("echo swapped\n")
        if change != "created":
            script.write_text("echo one\n")
        with Person(root_site) as person, Held(root_site, policy=policy) as held:
            request, reply = asked(root_site, person, held, "sh", "a.sh")
            if change == "link":
                script.unlink()
                script.symlink_to("b.sh")
            else:
                script.write_text("echo swapped\n")
            person.says("approve", request["request"])
            answer = reply.result(60)
        assert (answer["kind"], answer["rule"]) == ("operation_failed", "approval.changed"), (change, answer)


def test_an_agent_that_swaps_the_file_while_it_is_asked_about(root_site: Site, policy: str) -> None:
    (root_site.workspace / "a.sh").write_text("echo one\n")
    words = ("run", "--policy", policy, "--workdir", str(root_site.workspace), "--", "python3", "-c", AGENT)
    with Person(root_site) as person, root_site.start([str(BIN / "nucleus"), *words]) as child:
        request = person.request()
        while (root_site.workspace / "a.sh").read_text() != "echo swapped":
            pass
        person.says("approve", request["request"])
        out, err = child.communicate(timeout=60)
    assert "has changed since" in json.loads(out)[0], err


def test_an_agent_cannot_bring_digests_of_its_own(root_site: Site, policy: str) -> None:
    with Held(root_site, policy=policy) as held:
        answer = held.operate(kind="run", argv=["true"], files=[["a.sh", "0" * 64]])
    assert (answer["kind"], answer["rule"]) == ("invalid_request", "schema")
