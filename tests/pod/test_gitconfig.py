"""Nothing that runs a program survives in the pod's copy of a git configuration."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from nucleus.pod.gitconfig import sanitize

EVIL = """
[core]
    repositoryFormatVersion = 0
    fsmonitor = /tmp/evil
    sshCommand = evil
    hooksPath = evil
    pager = evil
    editor = evil
    worktree = /elsewhere
    attributesFile = evil
[credential]
    helper = !evil
[filter "x"]
    clean = evil
    process = evil
[diff "x"]
    textconv = evil
[alias]
    st = !evil
[include]
    path = evil
[includeIf "gitdir:/"]
    path = evil
[url "ext::evil"]
    insteadOf = https://
[protocol "ext"]
    allow = always
[gpg]
    program = evil
[remote "o"]
    url = ext::sh -c evil
    uploadpack = evil
    vcs = evil
    fetch = +refs/heads/*:refs/remotes/o/*
[remote "p"]
    url = https://user:PASSWORD@example.org/r.git
    pushurl = git@example.org:r.git
[branch "main"]
    remote = p
    merge = refs/heads/main
[user]
    name = "Ann # \\"B\\""
    email = a@example.org ; comment
    signingkey = evil
"""


def test_only_harmless_keys_survive() -> None:
    out = sanitize(EVIL)
    assert "evil" not in out
    assert "PASSWORD" not in out
    assert '"https://example.org/r.git"' in out
    assert '"git@example.org:r.git"' in out  # the account of every repository at a forge


def test_git_reads_it_as_we_meant(tmp_path) -> None:
    git = shutil.which("git")
    if git is None:
        pytest.skip("no git on this machine")
    (tmp_path / "config").write_text(sanitize(EVIL))
    out = subprocess.run([git, "config", "--file", "config", "--list"], cwd=tmp_path, capture_output=True, check=True)
    assert sorted(out.stdout.decode().splitlines()) == [
        "branch.main.merge=refs/heads/main",
        "branch.main.remote=p",
        "core.repositoryformatversion=0",
        "remote.o.fetch=+refs/heads/*:refs/remotes/o/*",
        "remote.p.pushurl=git@example.org:r.git",
        "remote.p.url=https://example.org/r.git",
        "user.email=a@example.org",
        'user.name=Ann # "B"',
    ]


@pytest.mark.parametrize(
    "text",
    [
        "[user]\n name = x\\\n[core]\n hooksPath = evil\n",
        '[user "\n"]\n[core]\tfsmonitor=evil',
        "[core] fsmonitor = evil",
        '[core ""]\nfsmonitor = evil',
        "[core\0]\nfsmonitor = evil",
        '[branch "x\\"]\n[core] \n fsmonitor = evil\n["]\n merge = 1',
        '[branch "a]\n[core]\nfsmonitor = evil"]\nmerge=x',
        "[CORE]\nFSMONITOR = evil",
        "[user]\nname = a\r[core]\rfsmonitor = evil",
    ],
)
def test_tricks_of_quoting(text: str, tmp_path) -> None:
    out = sanitize(text)
    git = shutil.which("git")
    if git is None:
        assert "fsmonitor" not in out.lower()
        return
    (tmp_path / "config").write_text(out)
    listed = subprocess.run(
        [git, "config", "--file", "config", "--list"], cwd=tmp_path, capture_output=True, check=True
    )
    keys = {line.split("=")[0].lower() for line in listed.stdout.decode().splitlines()}
    assert not keys & {"core.fsmonitor", "core.hookspath"}
