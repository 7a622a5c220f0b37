"""Two people for one yes, and how another user than root answers at all."""

from __future__ import annotations

import copy
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from .held import Held
from .site import USER, Site
from .test_wider import Person

POLICY = """
version: 1
name: two
capabilities: {read_files: always, write_files: always, run_bash: always}
two_people: [run_bash]
commands: {allow: everything}
"""
STRANGER = USER + 1


def policy(site: Site) -> str:
    path = site.directory / "two.yaml"
    path.write_text(POLICY)
    path.chmod(0o644)
    return str(path)


def says(site: Site, uid: int, *words: str) -> subprocess.CompletedProcess[str]:
    """`nucleus approvals` of another user."""
    twin = copy.copy(site)
    twin.uid = uid
    return twin.cli("approvals", *words, "--root")


@pytest.fixture
def site(root_site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    environment = root_site.environment
    monkeypatch.setattr(root_site, "environment", lambda **more: environment(NUCLEUS_APPROVERS=str(USER), **more))
    return root_site


def answers(site: Site, steps: Any) -> tuple[dict[str, Any], str]:
    """One command that two people are asked about; `steps(person, request)` in between. Its reply and the request."""
    with Person(site) as person, Held(site, policy=policy(site)) as held, ThreadPoolExecutor(1) as pool:
        reply = pool.submit(held.operate, kind="run", argv=["echo", "hello"])
        request = person.request()
        try:
            steps(person, request)
        except BaseException:
            site.cli("approvals", "deny", request["request"])  # or the pool waits for it
            raise
        return reply.result(60), request["request"]


def test_two_different_people(site: Site) -> None:
    def steps(person: Person, request: dict[str, Any]) -> None:
        ident = request["request"]
        assert (request["people"], request["assents"], request["scopes"]) == (2, [], [])
        assert "one more person has to say yes" in person.says("approve", ident, "--reason", "looks right").stdout
        again = site.cli("approvals", "approve", ident)
        assert (again.returncode, "uid:0 has said yes already" in again.stderr) == (2, True), again
        shown = says(site, USER, "show", ident).stdout
        assert "needs two people: uid:0 has said yes" in shown
        assert "echo" in shown
        done = says(site, USER, "approve", ident, "--reason", "me too")
        assert done.returncode == 0, done.stderr

    answer, ident = answers(site, steps)
    assert answer["result"]["stdout"] == "hello\n", answer
    records = [one for one in site.records() if one["context"].get("request") == ident]
    assert [(one["decision"]["verdict"], one["outcome"]["approver"]) for one in records] == [
        ("assent", "uid:0"), ("approve", f"uid:{USER}"),
    ]  # fmt: skip
    assert records[1]["context"]["assents"] == [{"approver": "uid:0", "reason": "looks right"}]
    (intent,) = [one for one in site.records() if one["event"] == "intent" and one["operation"]["kind"] == "run"]
    assert intent["decision"]["approver"] == f"uid:0, uid:{USER}"


def test_the_second_may_say_no(site: Site) -> None:
    def steps(person: Person, request: dict[str, Any]) -> None:
        assert says(site, USER, "approve", request["request"]).returncode == 0
        person.says("deny", request["request"])

    answer, _ = answers(site, steps)
    assert answer["kind"] == "approval_required", answer


def test_the_door_lets_nobody_else_in_and_does_nothing_else(site: Site) -> None:
    def steps(person: Person, request: dict[str, Any]) -> None:
        stranger = says(site, STRANGER, "list")
        assert (stranger.returncode, stranger.stdout) == (3, "")
        assert "may not use this helper" in stranger.stderr
        for order in (
            {"op": "stop"},
            {"op": "status"},
            {"op": "close_pod", "pod": request["pod"]},
            {"op": "create_pod"},
        ):
            code = f"""
import socket
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.connect({str(site.directory / "run-approvers" / "approve.sock")!r})
import json
from nucleus.pod.packets import send_packet, recv_packet
send_packet(s, {{"id": 1, **{order!r}}})
print(json.dumps(recv_packet(s).body))
"""
            twin = copy.copy(site)
            twin.uid = USER
            with twin.script(code) as child:
                out, err = child.communicate(timeout=30)
            assert '"helper.approver"' in out, (out, err)
        # What waits is answered by no one else: the request is still there.
        assert request["request"] in says(site, USER, "list").stdout
        person.says("deny", request["request"])

    answers(site, steps)


def test_without_a_door(root_site: Site) -> None:
    with Person(root_site):
        twin = says(root_site, USER, "list")
    assert (twin.returncode, "NUCLEUS_APPROVERS" in twin.stderr) == (2, True), twin


def test_wrong_names(root_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = root_site.environment
    monkeypatch.setattr(root_site, "environment", lambda **more: environment(NUCLEUS_APPROVERS="no-such-user", **more))
    done = root_site.exec("true")
    assert done.returncode == 6
    assert "no such user or group: no-such-user" in done.stderr
