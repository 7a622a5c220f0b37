"""`apiVersion: nucleus/v1` files: what they say, and what is wrong with others, with line and column."""

from __future__ import annotations

from pathlib import Path

import pytest

from nucleus.cli.pod_file import read
from nucleus.errors import InvalidError

GOOD = """\
apiVersion: nucleus/v1
kind: Pod
metadata:
  name: build
  namespace: web
  labels: {team: web, tier: "1"}
spec:
  work_dir: src
  policy: {type: profile, name: codegen}
  timeout_seconds: 3600
  session: web
  budget_account: team/web
  task: fix the bug
  trust_workspace: true
  toolchains: [/opt/python]
  resources: {cpu_cores: 1.5, memory_mib: 1024, pids: 128}
  agent: {command: [python3, agent.py], env: {MODE: batch}}
"""


def test_what_a_file_says(tmp_path: Path) -> None:
    path = tmp_path / "pod.yaml"
    path.write_text(GOOD)
    found = read(str(path))
    assert (found.name, found.namespace, found.labels) == ("build", "web", {"team": "web", "tier": "1"})
    assert (found.work_dir, found.timeout_s, found.agent) == (str(tmp_path / "src"), 3600, ("python3", "agent.py"))
    assert found.spec["resources"] == {"cpu_percent": 150, "memory_mib": 1024, "pids": 128}
    assert found.spec["agent"] == {"argv": ["python3", "agent.py"], "env": {"MODE": "batch"}, "stdio": "pipes"}
    assert found.spec["policy_source"] == "profile codegen"
    assert (found.spec["trust_workspace"], found.spec["account"], found.spec["session"]) == (True, "team/web", "web")
    assert "capabilities" not in repr(found)


def test_a_policy_by_file_or_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "pod.yaml"
    (tmp_path / "mine.yaml").write_text("extends: codegen\n")
    path.write_text(GOOD.replace("{type: profile, name: codegen}", "{type: file, path: mine.yaml}"))
    assert read(str(path)).spec["policy_text"] == "extends: codegen\n"
    path.write_text(GOOD.replace("{type: profile, name: codegen}", '{type: inline, text: "extends: codegen"}'))
    assert read(str(path)).spec["policy_text"] == "extends: codegen"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("nucleus/v1", "nucleus/v2", ":1:13: apiVersion is nucleus/v1"),
        ("kind: Pod", "kind: Job", ":2:7: kind is Pod"),
        ("name: build", "name: Build_1", ":4:9: metadata.name is of a-z"),
        ("name: build", "name: ../x", ":4:9: metadata.name is of a-z"),
        ("  name: build\n", "", "metadata.name is needed"),
        ("  work_dir: src", "  work_dir: src\n  network: {allow: [x]}", "network.allow"),
        ("  work_dir: src", "  work_dir: src\n  image: {kernel_path: x}", "spec has no 'image'"),
        ("  work_dir: src", "  workdir: src", ":8:3: spec has no 'workdir'"),
        ("timeout_seconds: 3600", "timeout_seconds: 1h", ":10:20: spec.timeout_seconds is a whole number"),
        ("timeout_seconds: 3600", "timeout_seconds: 9999999", "at most 604800"),
        ("trust_workspace: true", "trust_workspace: yes", "trust_workspace is true or false"),
        ("trust_workspace: true", 'trust_workspace: "true"', "trust_workspace is true or false"),
        ("cpu_cores: 1.5", "cpu_cores: 0.01", "cpu_cores is in 0.05..256"),
        ("cpu_cores: 1.5", "cpu_cores: -1", "cpu_cores is a number"),
        ("memory_mib: 1024", "memory_mib: 1", "memory_mib is in 64..1048576"),
        ("pids: 128", "pids: 1e3", "pids is a whole number"),
        ("{type: profile, name: codegen}", "{type: profile, path: x}", "spec.policy is {type: profile"),
        ("{type: profile, name: codegen}", "codegen", "spec.policy is a map"),
        ("{type: profile, name: codegen}", "{type: profile, name: none}", "none"),
        ("command: [python3, agent.py], ", "", "spec.agent.command is needed"),
        ("command: [python3, agent.py]", "command: python3", "spec.agent.command is a list"),
        ("{MODE: batch}", "{1MODE: batch}", "agent.env has a malformed name"),
        ("[/opt/python]", "[/etc]", "too wide for a toolchain"),
        ("budget_account: team/web", "budget_account: ../x", "account"),
        ("labels: {team", "labels: {Team", "the name of a label"),
        ("task: fix the bug", "task: &a fix\n  session: *a", "pod.yaml:1"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(old: str, new: str, said: str, tmp_path: Path) -> None:
    assert GOOD.replace(old, new) != GOOD
    path = tmp_path / "pod.yaml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(InvalidError) as caught:
        read(str(path))
    assert said in caught.value.message, caught.value.message


@pytest.mark.parametrize("text", ["", "[]", "- a", "a: [", "\x00", "apiVersion: nucleus/v1\n", "x" * 200_000])
def test_what_is_no_pod_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "pod.yaml"
    path.write_text(text)
    with pytest.raises(InvalidError):
        read(str(path))
