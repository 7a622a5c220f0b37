"""`identities` of a policy through the public door: callers by their SVIDs, approvers by who they are on this host."""

from __future__ import annotations

import copy
import http.client
import json
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from nucleus.sdk import identity

from .held import Held
from .site import BIN, USER, Site
from .test_wider import Person

RELEASE, REVIEW = "spiffe://nucleus.local/ci/release", "spiffe://nucleus.local/team/review/ann"
POLICY = f"""version: 1
name: shared
capabilities: {{read_files: always, write_files: always, run_bash: always}}
commands: {{allow: everything}}
identities:
  agents: [own, {RELEASE}, "spiffe://nucleus.local/team/*"]
  operations:
    write_files: [{RELEASE}]
    run_bash: [own]
"""


def policy(site: Site, text: str, name: str = "policy.yaml") -> str:
    path = site.directory / name
    path.write_text(text)
    path.chmod(0o644)
    return str(path)


class Door:
    """A `nucleus serve` under a policy, and callers of their own SVIDs."""

    def __init__(self, site: Site, text: str) -> None:
        self.site = site
        argv = [str(BIN / "nucleus"), "serve", "--policy", policy(site, text), "--workdir", str(site.workspace)]
        self.child = site.start(argv)
        assert self.child.stdout is not None
        self.names: dict[str, str] = json.loads(self.child.stdout.readline())

    def own(self) -> identity.Svid:
        return identity.fetch(self.names["workload"])

    def issued(self, name: str) -> identity.Svid:
        """What the owner of the helper has made for somebody."""
        out = Path(tempfile.mkdtemp(dir=self.site.directory)) / "svid"
        done = self.site.cli("identity", "issue", name, "--out", str(out))
        assert done.returncode == 0, done.stderr
        return identity.Svid(name, *((out / f"{which}.pem").read_text() for which in ("svid", "key", "bundle")))

    def ask(self, svid: identity.Svid, kind: str, **body: Any) -> tuple[int, dict[str, Any]]:
        host = urlsplit(self.names["gate"])
        assert host.hostname is not None
        made = http.client.HTTPSConnection(host.hostname, host.port, timeout=20, context=identity.tls_context(svid))
        try:
            made.request("POST", f"/v1/{kind}", json.dumps(body))
            response = made.getresponse()
            return response.status, json.loads(response.read())
        finally:
            made.close()

    def stop(self) -> None:
        self.child.terminate()
        self.child.communicate(timeout=30)


@pytest.fixture
def door(root_site: Site) -> Iterator[Door]:
    made = Door(root_site, POLICY)
    yield made
    made.stop()


def test_each_caller_does_what_the_policy_names_it_for(door: Door) -> None:
    (door.site.workspace / "a.txt").write_text("text")
    own, release, review, other = door.own(), *map(door.issued, (RELEASE, REVIEW, "spiffe://nucleus.local/ci/other"))
    for svid in (own, release, review):
        assert door.ask(svid, "read", path="a.txt")[0] == 200, svid.spiffe_id
    assert door.ask(release, "write", path="b.txt", content="x")[0] == 200
    assert door.ask(own, "run", argv=["true"])[0] == 200
    for svid, kind, body in (
        (own, "write", {"path": "c.txt", "content": "x"}),
        (review, "write", {"path": "c.txt", "content": "x"}),
        (review, "run", {"argv": ["true"]}),
        (release, "run", {"argv": ["true"]}),
    ):
        status, answer = door.ask(svid, kind, **body)
        assert (status, answer["kind"]) == (403, "denied"), answer
    assert not (door.site.workspace / "c.txt").exists()
    status, answer = door.ask(other, "read", path="a.txt")
    assert (status, answer["kind"]) == (401, "unauthenticated")
    records = door.site.records()
    denied = [one for one in records if one["event"] == "denied"]
    assert {one["principal"] for one in denied} == {own.spiffe_id, REVIEW, RELEASE}
    assert {one["decision"]["rule"] for one in denied} == {"identity.operation"}
    refused = [one for one in records if one["event"] == "unauthenticated"]
    assert any("spiffe://nucleus.local/ci/other is not this pod's" in one["outcome"]["reason"] for one in refused)
    done = [one["principal"] for one in records if one["event"] == "outcome" and one["operation"]["kind"] == "write"]
    assert done == [RELEASE]
    assert door.site.verify().returncode == 0


def test_a_named_caller_is_cut_when_its_name_is_revoked(door: Door) -> None:
    (door.site.workspace / "a.txt").write_text("text")
    svid = door.issued(REVIEW)
    assert door.ask(svid, "read", path="a.txt")[0] == 200
    assert door.site.cli("identity", "revoke", REVIEW, "--reason", "left").returncode == 0
    assert door.ask(svid, "read", path="a.txt")[0] == 401


def test_a_name_revoked_before_the_pod_was_there_is_refused(root_site: Site) -> None:
    first = Door(root_site, POLICY)
    try:
        svid = first.issued(REVIEW)
        assert root_site.cli("identity", "revoke", REVIEW, "--reason", "left").returncode == 0
        second = Door(root_site, POLICY)
        try:
            assert second.ask(svid, "read", path="a.txt")[0] == 401
        finally:
            second.stop()
    finally:
        first.stop()


def test_what_one_caller_was_allowed_once_is_not_anothers(root_site: Site) -> None:
    """No charge, no orchestrator's say, for a caller that is not the pod's own."""
    made = Door(root_site, POLICY)
    try:
        body = {"id": "a", "micro_dollars": 5, "reason": "model"}
        assert made.ask(made.issued(RELEASE), "charge", **body)[0] == 404
        assert made.ask(made.own(), "charge", **body)[0] == 200
    finally:
        made.stop()


ASKS = """version: 1
name: asks
capabilities: {read_files: always, run_bash: always}
approve: [run_bash]
commands: {allow: everything}
identities: {approvers: ["spiffe://nucleus.local/people/*"]}
"""


def test_only_a_named_person_says_yes(root_site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = root_site.environment
    monkeypatch.setattr(root_site, "environment", lambda **more: environment(NUCLEUS_APPROVERS=str(USER), **more))
    user = copy.copy(root_site)
    user.uid = USER

    def says(*words: str) -> subprocess.CompletedProcess[str]:
        return user.cli("approvals", *words, "--root")

    name = "spiffe://nucleus.local/people/user"
    with Held(root_site, policy=policy(root_site, ASKS)) as held, ThreadPoolExecutor(1) as pool:
        # Root watches, and is not one of those whose yes counts: nobody is there.
        with Person(root_site) as person:
            assert "no approver is present" in held.operate(kind="run", argv=["true"])["error"]
            added = root_site.cli("identity", "entries", "add", "--id", name, "--selector", "unix:uid:0")
            assert added.returncode == 0, added.stderr
            reply = pool.submit(held.operate, kind="run", argv=["echo", "hello"])
            ident = person.request()["request"]
            refused = says("approve", ident, "--reason", "let me")
            assert (refused.returncode, "does not count" in refused.stderr) == (3, True), refused
            assert f"approvers: {name.rpartition('/')[0]}/*" in says("show", ident).stdout
            assert root_site.cli("approvals", "approve", ident, "--reason", "fine").returncode == 0
            assert reply.result(60)["result"]["stdout"] == "hello\n"
    verdicts = [
        (one["decision"]["verdict"], one["outcome"]["approver"], one["outcome"]["identity"])
        for one in root_site.records()
        if one["event"] == "approval"
    ]
    assert verdicts == [("refused", f"uid:{USER}", ""), ("approve", "uid:0", name)]
    assert root_site.cli("approvals", "rotate-key", "--reason", "habit").stdout.startswith("approvals are made with")


def test_only_who_is_named_starts_a_pod(root_site: Site) -> None:
    text = ASKS.replace(
        '{approvers: ["spiffe://nucleus.local/people/*"]}', "{pods: [spiffe://nucleus.local/people/ann]}"
    )
    path = policy(root_site, text)
    (root_site.workspace / "a.txt").write_text("text")
    refused = root_site.cli("exec", "--policy", path, "--workdir", str(root_site.workspace), "--", "true")
    assert refused.returncode == 3, refused
    assert "does not let uid 0 start a pod" in refused.stderr
    mine = policy(root_site, text.replace("people/ann", "user/uid/0"), "mine.yaml")
    with Held(root_site, policy=mine) as held:
        assert held.operate(kind="read", path="a.txt")["status"] == "ok"
        (record,) = [one for one in root_site.records() if one["event"] == "identity.refused"]
        assert record["context"]["owner"] == "uid:0"
        assert not [one for one in root_site.records() if one["event"] == "pod.start" and one["pod"] == record["pod"]]
