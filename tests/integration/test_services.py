"""web_search, git_push and create_pr through the gateway: real git against git's own server, the host's credentials."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .held import Held
from .site import BIN
from .test_wider import Person
from .world import World

SECRET = "planted-git-secret"
POLICY = """
version: 1
name: services
capabilities: {read_files: always, run_bash: always, git_commit: always, git_push: always, create_pr: always,
  web_search: always}
commands: {allow: everything}
trifecta: session
network:
  allow:
    - {service: searxng, host: search.test}
    - {service: git, host: git.test, credential: git, paths: ["/acme/*"]}
    - {service: github, host: api.test, credential: forge, paths: ["/acme/repo"]}
"""


def git(*words: str, cwd: Path) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@t.invalid", "-c", "safe.directory=*"]
    done = subprocess.run(["git", *identity, *words], cwd=cwd, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    try:
        feed = f"{SECRET}\n"
        assert made.cli("credentials", "set", "git", "--kind", "basic", "--user", "x", feed=feed).returncode == 0
        assert made.cli("credentials", "set", "forge", feed=f"{SECRET}-forge").returncode == 0
        bare = made.outside / "repositories/acme/repo.git"
        bare.mkdir(parents=True)
        git("init", "-q", "--bare", "-b", "main", cwd=bare)
        git("config", "http.receivepack", "true", cwd=bare)
        work = made.workspace
        git("init", "-q", "-b", "main", cwd=work)
        git("remote", "add", "origin", "https://git.test/acme/repo.git", cwd=work)
        commit(made, "one")
        git("push", "-q", str(bare), "main", cwd=work)
        git("fetch", "-q", str(bare), "refs/heads/main:refs/remotes/origin/main", cwd=work)
        subprocess.run(["chown", "-R", f"{work.stat().st_uid}:{work.stat().st_gid}", str(work)], check=True)
        yield made
    finally:
        made.close()


def commit(world: World, text: str) -> str:
    (world.workspace / "file.txt").write_text(text)
    git("add", "file.txt", cwd=world.workspace)
    git("commit", "-q", "-m", text, cwd=world.workspace)
    return git("rev-parse", "HEAD", cwd=world.workspace)


def remote(world: World, ref: str = "main") -> str:
    listed = git("for-each-ref", "--format=%(objectname) %(refname:short)", cwd=bare(world))
    return dict(reversed(line.split()) for line in listed.splitlines()).get(ref, "")


def bare(world: World) -> Path:
    return world.outside / "repositories/acme/repo.git"


def operate(world: World, policy: str = POLICY, **operation: Any) -> dict[str, Any]:
    with Held(world, policy=world.policy(policy)) as held:
        answer = held.operate(**operation)
    return answer if "status" in answer else {**answer, "status": answer["kind"]}


def test_a_push_changes_what_was_decided(world: World) -> None:
    old = remote(world)
    new = commit(world, "two")
    answer = operate(world, kind="git_push")
    assert answer["status"] == "ok", answer
    assert remote(world) == new
    result = answer["result"]
    assert (result["ref"], result["old"], result["new"]) == ("refs/heads/main", old, new)
    assert world.seen(target="/acme/repo.git/git-receive-pack")[-1]["headers"]["authorization"].startswith("Basic ")
    intent = [one for one in world.records() if one["event"] == "intent"][-1]
    assert intent["operation"]["url"] == "https://git.test/acme/repo.git"
    assert intent["operation"]["new"] == new
    assert SECRET not in world.audit_log.read_text()


def test_a_new_branch_and_a_tag(world: World) -> None:
    new = commit(world, "two")
    git("branch", "topic", cwd=world.workspace)
    git("tag", "v1", cwd=world.workspace)
    assert operate(world, kind="git_push", ref="topic")["status"] == "ok"
    assert remote(world, "topic") == new
    assert operate(world, kind="git_push", ref="refs/tags/v1")["status"] == "ok"
    assert remote(world, "v1") == new
    assert operate(world, kind="git_push", ref="main:other")["status"] == "ok"
    assert remote(world, "other") == new


def test_history_is_not_lost_without_a_person(world: World) -> None:
    old = remote(world)
    git("commit", "-q", "--amend", "-m", "another one", cwd=world.workspace)
    answer = operate(world, kind="git_push")
    assert answer["status"] == "operation_failed"
    assert "ask with force" in answer["error"]
    asked = operate(world, kind="git_push", force=True)
    assert (asked["status"], asked["rule"]) == ("approval_required", "git_push.lossy")
    asked = operate(world, kind="git_push", ref="main", delete=True)
    assert (asked["status"], asked["rule"]) == ("approval_required", "git_push.lossy")
    assert remote(world) == old


def test_a_forged_commit_proves_no_ancestry(world: World) -> None:
    """A commit object under another's name, graft or replacement does not make a forced push a plain one."""
    git("commit", "-q", "--amend", "-m", "another one", cwd=world.workspace)
    old, new = remote(world), git("rev-parse", "HEAD", cwd=world.workspace)
    (world.workspace / ".git/info").mkdir(exist_ok=True)
    (world.workspace / ".git/info/grafts").write_text(f"{new} {old}\n")
    git("replace", "--graft", new, old, cwd=world.workspace)
    answer = operate(world, kind="git_push")
    assert answer["status"] == "operation_failed"
    assert remote(world) == old


def test_a_remote_that_has_moved(world: World) -> None:
    """What was approved is from one id to another: anything else is not let through."""
    other = world.directory / "other"
    git("clone", "-q", str(bare(world)), str(other), cwd=world.directory)
    (other / "file.txt").write_text("theirs")
    git("commit", "-q", "-a", "-m", "theirs", cwd=other)
    git("push", "-q", "origin", "main", cwd=other)
    theirs = remote(world)
    commit(world, "two")
    answer = operate(world, kind="git_push")
    assert answer["status"] == "operation_failed", answer
    assert remote(world) == theirs


def test_where_no_rule_leads(world: World) -> None:
    git("remote", "set-url", "origin", "https://git.test/evil/repo.git", cwd=world.workspace)
    answer = operate(world, kind="git_push")
    assert (answer["status"], answer["rule"]) == ("denied", "network.service")
    for url in ("ext::sh -c evil", "https://evil.test/acme/repo.git", "/etc", "https://git.test:8443/acme/repo"):
        git("remote", "set-url", "origin", url, cwd=world.workspace)
        assert operate(world, kind="git_push")["status"] != "ok"
    assert not world.seen(server="http")
    nowhere = operate(world, POLICY.partition("network:")[0], kind="git_push")
    assert nowhere["rule"] == "pod.egress"


def test_what_the_gate_fills_in_is_not_the_agent_s_to_say(world: World) -> None:
    answer = operate(world, kind="git_push", new="1" * 40)
    assert (answer["status"], answer["rule"]) == ("invalid_request", "operation.resolved")


def test_hooks_and_rewrites_of_the_repository_do_not_run(world: World) -> None:
    new = commit(world, "two")
    hook = world.workspace / ".git/hooks/pre-push"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\ntouch /workspace/ran\n")
    hook.chmod(0o755)
    git("config", "url.https://evil.test/.insteadOf", "https://git.test/", cwd=world.workspace)
    assert operate(world, kind="git_push")["status"] == "ok"
    assert remote(world) == new
    assert not (world.workspace / "ran").exists()


def test_a_search(world: World) -> None:
    answer = operate(world, kind="web_search", query="what is it")
    assert answer["status"] == "ok", answer
    assert answer["result"]["results"][0]["title"] == "First"
    assert "q=what%20is%20it" in world.seen(address="93.184.216.37")[-1]["target"]


def test_a_pull_request(world: World) -> None:
    git("remote", "set-url", "origin", "https://api.test/acme/repo.git", cwd=world.workspace)
    git("checkout", "-q", "-b", "topic", cwd=world.workspace)
    answer = operate(world, kind="create_pr", title="Mend it", body="Because.")
    assert answer["status"] == "ok", answer
    assert answer["result"]["number"] == 7
    seen = world.seen(method="POST", address="93.184.216.36")[-1]
    assert seen["target"] == "/api/v3/repos/acme/repo/pulls"
    assert json.loads(seen["body"])["head"] == "topic"
    assert seen["headers"]["authorization"] == f"Bearer {SECRET}-forge"
    git("remote", "set-url", "origin", "https://api.test/acme/else.git", cwd=world.workspace)
    assert operate(world, kind="create_pr", title="x")["rule"] == "network.service"


def test_git_itself_clones_and_fetches_with_the_host_s_credential(world: World) -> None:
    """An ordinary `git clone` in the pod, over TLS that is opened; nothing of the credential in the clone."""
    policy = POLICY + (
        '    - {host: git.test, methods: [GET, POST], paths: ["/acme/repo.git/info/refs", '
        '"/acme/repo.git/git-upload-pack"], credential: git, trusted: true}\n'
    )
    script = (
        "git clone -q https://git.test/acme/repo.git /tmp/c && cd /tmp/c && git log --format=%s && git config --list"
        " && git -c user.name=a -c user.email=a@a commit -q --allow-empty -m x && git push -q origin main"
    )
    answer = operate(world, policy, kind="run", argv=["sh", "-c", script])
    assert answer["status"] == "ok", answer
    said = answer["result"]["stdout"] + answer["result"]["stderr"]
    assert "one" in said
    assert SECRET not in said
    assert answer["result"]["exit_code"] != 0  # the push is not what the rule lists
    assert "403" in said


def by_ssh(world: World, host_key: str = "") -> str:
    known = host_key or " ".join((world.outside / "ssh_host_key.pub").read_text().split()[:2])
    rule = f'{{service: git, host: git.test, port: 2222, host_key: "{known}", credential: key, paths: ["/acme/*"]}}'
    return f"{POLICY.partition('    - {service: searxng')[0]}    - {rule}\n"


def test_a_push_by_ssh(world: World) -> None:
    """The gateway signs in; the pod has neither key nor agent, and the server proves itself by the rule's host key."""
    key = (world.outside / "ssh_client_key").read_text()
    assert world.cli("credentials", "set", "key", "--kind", "ssh", feed=key).returncode == 0
    git("remote", "set-url", "origin", "ssh://git@git.test:2222/acme/repo.git", cwd=world.workspace)
    new = commit(world, "by ssh")
    answer = operate(world, by_ssh(world), kind="git_push")
    assert answer["status"] == "ok", answer
    assert remote(world) == new
    assert {one["command"] for one in world.seen(server="ssh")} == {"git-receive-pack 'acme/repo.git'"}
    assert key.splitlines()[2] not in world.audit_log.read_text()


PUSHER = """
import json, threading, time
from nucleus.sdk.client import Gate, GateError
gate, ended = Gate(), []
time.sleep(1)  # until the person has sat down
def work():
    gate.run(["sleep", "8"])
    ended.append(time.monotonic())
worker = threading.Thread(target=work)
worker.start()
time.sleep(0.7)
try:
    gate.git_push()
    pushed = time.monotonic()
except GateError as error:
    pushed = str(error)
worker.join()
print(json.dumps([ended[0], pushed]))
"""


def test_a_push_has_the_pod_to_itself(world: World) -> None:
    """A program of the agent beside git could be first at the endpoint that git is told of."""
    new = commit(world, "two")
    words = ("run", "--policy", world.policy(POLICY), "--workdir", str(world.workspace), "--", "python3", "-c", PUSHER)
    with Person(world) as person, world.start([str(BIN / "nucleus"), *words]) as child:
        person.says("approve", person.request()["request"])
        out, err = child.communicate(timeout=60)
    assert out, err
    ended, pushed = json.loads(out)
    assert isinstance(pushed, float), pushed
    assert pushed > ended
    assert remote(world) == new


def test_an_ssh_key_is_in_no_request(world: World) -> None:
    key = "one-line-of-a-private-key"
    assert world.cli("credentials", "set", "forge", "--kind", "ssh", feed=key).returncode == 0
    git("remote", "set-url", "origin", "https://api.test/acme/repo.git", cwd=world.workspace)
    git("checkout", "-q", "-b", "topic", cwd=world.workspace)
    answer = operate(world, kind="create_pr", title="Mend it")
    assert "SSH key" in answer["error"], answer
    assert not world.seen(method="POST", address="93.184.216.36")


def test_another_host_key_is_another_server(world: World) -> None:
    import asyncssh

    key = (world.outside / "ssh_client_key").read_text()
    assert world.cli("credentials", "set", "key", "--kind", "ssh", feed=key).returncode == 0
    git("remote", "set-url", "origin", "ssh://git@git.test:2222/acme/repo.git", cwd=world.workspace)
    old = remote(world)
    commit(world, "by ssh")
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode().strip()
    answer = operate(world, by_ssh(world, " ".join(other.split()[:2])), kind="git_push")
    assert answer["status"] == "operation_failed"
    assert "host key is not the one" in answer["error"]
    wrong = asyncssh.generate_private_key("ssh-ed25519").export_private_key().decode()
    assert world.cli("credentials", "set", "key", "--kind", "ssh", feed=wrong).returncode == 0
    answer = operate(world, by_ssh(world), kind="git_push")
    assert "does not accept the credential" in answer["error"]
    assert remote(world) == old
    assert not world.seen(server="ssh")
