"""A policy that extends a bundled one, in a real pod: the gate that parses it may read no file (root and user)."""

from __future__ import annotations

import json

from nucleus.lattice import load_policy
from nucleus.store.policies import bundled

from .site import Site

CHILD = """\
version: 1
name: child
extends: codegen
capabilities: {write_files: never}
commands: {deny: [{program: ls, match: [env ls -l]}]}
"""


def test_a_gate_knows_what_a_policy_extends(site: Site) -> None:
    policy = site.write("../child.yaml", CHILD)
    options = ("--policy", str(policy), "--workdir", str(site.workspace), "--")
    assert site.cli("exec", *options, "echo", "hello").stdout == "hello\n"
    denied = site.cli("exec", *options, "timeout", "5", "ls")
    assert (denied.returncode, denied.stdout) == (3, "")
    assert "rule: commands.deny" in denied.stderr
    said = json.loads(site.cli("policy", "check", "--json", str(policy)).stdout)
    start = next(record for record in site.records() if record["event"] == "pod.start")
    assert said["extends"] == ["codegen"]
    assert said["sha256"] == load_policy(CHILD, "child", bundled()).digest
    assert said["sha256"] in json.dumps(start)


def test_a_policy_that_would_widen_a_profile_makes_no_pod(site: Site) -> None:
    policy = site.write("../child.yaml", CHILD.replace("write_files: never", "git_push: always"))
    done = site.cli("exec", "--policy", str(policy), "--workdir", str(site.workspace), "--", "true")
    assert (done.returncode, done.stdout) == (2, "")
    assert ":4:26: capabilities.git_push: always is looser" in done.stderr
