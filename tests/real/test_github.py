"""The request of `create_pr` is what GitHub's own description of its API wants: prism says so."""

from __future__ import annotations

import json
import subprocess

import pytest

from integration.held import Held
from integration.world import World

from .conftest import REAL, end, ready

POLICY = """
version: 1
name: github
capabilities: {create_pr: always, run_bash: always}
commands: {allow: everything}
trifecta: session
network:
  allow:
    - {service: github, host: api.test, credential: forge, paths: ["/acme/*"]}
"""
DESCRIPTION = f"{REAL}/node_modules/@octokit/openapi/generated/api.github.com.json"
URL = "http://api.test:4010"


def git(world: World, *words: str) -> None:
    subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@t.invalid", *words], cwd=world.workspace, check=True
    )


def opened(world: World, **more: object) -> dict[str, object]:
    """What `create_pr` sent."""
    assert world.cli("credentials", "set", "forge", feed="a-token-of-nobody").returncode == 0
    git(world, "init", "-q", "-b", "main")
    git(world, "commit", "-q", "--allow-empty", "-m", "one")
    git(world, "checkout", "-q", "-b", "topic")
    git(world, "remote", "add", "origin", "https://api.test/acme/repo.git")
    owner = world.workspace.stat()
    subprocess.run(["chown", "-R", f"{owner.st_uid}:{owner.st_gid}", str(world.workspace)], check=True)
    with Held(world, policy=world.policy(POLICY)) as held:
        answer = held.operate(kind="create_pr", title="Mend it", body="Because.", **more)
    assert answer["status"] == "ok", answer
    return world.seen(method="POST", address="93.184.216.36")[-1]


@pytest.mark.timeout(300)
def test_prism_accepts_it(world: World) -> None:
    sent = opened(world, draft=True)
    prism = world.server(f"{REAL}/node_modules/.bin/prism", "mock", "-h", "0.0.0.0", "-p", "4010", DESCRIPTION)
    try:
        ready(world, prism, f"{URL}/meta")
        path = str(sent["target"]).removeprefix("/api/v3")
        assert ask(world, path, str(sent["body"]), dict(sent["headers"])) == "201"  # type: ignore[call-overload]
        wrong = json.dumps({**json.loads(str(sent["body"])), "base": 7})
        assert ask(world, path, wrong, dict(sent["headers"])) == "422"  # type: ignore[call-overload]
    finally:
        end(prism)


def ask(world: World, path: str, body: str, headers: dict[str, str]) -> str:
    """The status of prism's answer to the same request."""
    # GitHub answers application/vnd.github+json; its description knows application/json alone.
    headers = {**headers, "accept": "application/json"}
    kept = {name: value for name, value in headers.items() if name not in ("host", "content-length", "connection")}
    words = [word for name, value in kept.items() for word in ("-H", f"{name}: {value}")]
    status = world.outside / "status"
    done = world.server("curl", "-sS", "-D", str(status), "-o", "/dev/null", "-d", body, *words, f"{URL}{path}")
    assert done.wait(60) == 0
    return status.read_text().split()[1]
