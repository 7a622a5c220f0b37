"""What a command plants for the host to run later is set aside when the pod ends, and said (root and user)."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.site import USER, Site
from nucleus.pod.aftermath import SUFFIX, set_aside
from nucleus.pod.names import matcher

PLANT = """
import os, subprocess
open('.envrc', 'w').write('evil')
os.makedirs('sub/.vscode'); open('sub/.vscode/tasks.json', 'w').write('{}')
open('x', 'w').write('{}'); os.rename('x', '.mcp.json')
subprocess.run(['git', 'init', '-q', 'new'], check=True)
open('new/.git/hooks/post-commit', 'w').write('#!/bin/sh')
open('new/.git/config', 'a').write('[core]\\n\\tfsmonitor = /workspace/evil\\n')
open('new/.git/commondir', 'w').write('/workspace/evil')
os.makedirs('file'); open('file/.git', 'w').write('gitdir: /workspace/evil')
os.symlink('/etc', '.claude')
open('honest.py', 'w').write('x = 1')
"""


@pytest.fixture(params=["root", "user"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    made = Site(0 if request.param == "root" else USER)
    yield made
    made.close()


def test_planted_names_are_set_aside_and_said(site: Site) -> None:
    site.write(".vscode/settings.json", "{}")
    site.write("plant.py", PLANT)
    agent = "from nucleus.sdk.client import Gate; print(Gate().run(['python3', 'plant.py'])['stderr'])"
    done = site.cli(
        "run", "--profile", "codegen", "--workdir", str(site.workspace), "--json", "--", "python3", "-c", agent
    )
    work = site.workspace
    assert done.returncode == 0, done.stderr
    for name in (".envrc", ".mcp.json", "sub/.vscode", "new/.git/hooks", "new/.git/commondir", "file/.git", ".claude"):
        assert not os.path.lexists(work / name), (name, done.stdout)
        assert os.path.lexists(work / (name + SUFFIX)), name
    config = (work / "new/.git/config").read_text()
    assert "fsmonitor" not in config
    assert "repositoryformatversion" in config
    assert subprocess.run(["git", "-c", "safe.directory=*", "status"], cwd=work / "new", check=False).returncode == 0
    assert (work / "honest.py").exists()
    assert (work / ".vscode/settings.json").read_text() == "{}"
    assert (work / ("sub/.vscode" + SUFFIX)).stat().st_uid == site.uid
    summary = json.loads(done.stderr.strip().splitlines()[-1])
    assert any(line.startswith(".envrc was made in the pod") for line in summary["set_aside"])
    stop = next(r for r in site.records() if r["event"] == "pod.stop")
    assert ".envrc" in json.dumps(stop)


def test_nothing_is_done_to_an_honest_workspace(site: Site) -> None:
    site.write("a.py", "x")
    assert site.exec("python3", "-c", "open('b.py', 'w').write('y')").returncode == 0
    site.cli("helper", "stop")
    assert sorted(p.name for p in site.workspace.iterdir()) == ["a.py", "b.py"]


def test_an_honest_git_init_stays_as_it_is(site: Site) -> None:
    site.write("init.py", "import subprocess; subprocess.run(['git', 'init', '-q', 'repo'], check=True)")
    assert site.exec("python3", "init.py").returncode == 0
    site.cli("helper", "stop")
    assert not list(site.workspace.rglob("*" + SUFFIX))
    assert (site.workspace / "repo/.git/hooks").is_dir()


def test_links_are_renamed_not_followed(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / ".envrc").write_text("the host's own")
    (tmp_path / "work" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "work" / ".git").symlink_to(tmp_path / "outside")
    root = os.open(tmp_path / "work", os.O_PATH)
    try:
        assert len(set_aside(root, matcher([".envrc", ".git"]), frozenset())) == 1
    finally:
        os.close(root)
    assert (tmp_path / "outside" / ".envrc").read_text() == "the host's own"
