"""What a hijacked agent tried at the gate's door, and the rule that stops it now. Each case here once got through."""

from __future__ import annotations

import pytest

from nucleus.lattice import Context, decide, parse_policy
from nucleus.model.decision import Decision, Verdict
from nucleus.model.operation import Run
from nucleus.validate import validate_operation

QUIET = Context(now_ns=10, started_ns=5)
POLICY = """version: 1
name: t
capabilities: {read_files: always, write_files: low_risk, run_bash: low_risk, git_commit: low_risk}
paths: {block: ["@sensitive", "config/prod.yaml"]}
commands: {allow: [{set: ordinary}], ask: [{program: git, args: [tag], rest: any}]}
"""


def decided(*argv: str) -> Decision:
    return decide(parse_policy(POLICY, "t"), validate_operation(Run(argv=argv)), QUIET)


@pytest.mark.parametrize(
    "argv",
    [
        # env and other wrappers: abbreviated and bundled options shift what the command is
        ["env", "--split=git push", "true"], ["env", "-a", "true", "git", "push"],
        ["time", "--out", "true", "git", "push"], ["time", "-ao", "true", "git", "push"],
        ["cmake", "-E", "env", "git", "push"], ["npm", "exec", "git", "push"],
        # git's own: an undocumented option with a value
        ["git", "--shallow-file", "status", "push"],
    ],
)  # fmt: skip
def test_a_push_by_another_reading_is_denied(argv: list[str]) -> None:
    assert decided(*argv).rule == "capabilities.git_push"


@pytest.mark.parametrize(
    "argv",
    [
        ["env", "--sp=git tag -m", "true", "v1"], ["time", "--form", "true", "git", "tag", "x"],
        ["git", "--shallow-file", "status", "tag", "x"], ["setsid", "-wf", "git", "tag", "x"],
        ["git", "grep", "--open-files=sh", "x"], ["git", "grep", "-nOsh", "x"],
        ["git", "rebase", "-xid", "HEAD~1"], ["git", "rebase", "--ex", "id", "HEAD~1"],
        ["git", "rebase", "-ix", "id"], ["git", "diff", "--outp=x"], ["git", "diff", "--ext-d"],
        ["sed", "--expr=1e id"], ["sed", "-ne1e id"], ["sed", "-l", "5", "1e id"], ["sed", "-se1e id", "p"],
        ["sed", "--fil=x", "p"], ["mawk", "-W", "exec", "x"], ["gawk", "-E", "x"], ["gawk", '@include "x"'],
        ["gawk", 'BEGIN{f="sys" "tem"; @f("id")}'], ["tar", "xIf", "prog", "x"], ["tar", "-xPf", "a"],
        ["tar", "cf", "x", "y", "--checkpoint-act=exec=id"], ["tar", "xf", "x", "--to-com=id"],
        ["zip", "-qTT", "id", "a", "b"], ["sort", "--compress-p=id", "x"], ["split", "--filt=id", "x"],
        ["make", "-kE", "x"], ["fd", "-Hx", "id"], ["install", "--strip-prog=id", "-s", "a", "b"],
        ["bash", "-s", "x"], ["bash", "-o", "posix", "-s", "x"], ["bash", "/dev/stdin"],
    ],
)  # fmt: skip
def test_an_escape_in_another_spelling_is_asked_for(argv: list[str]) -> None:
    assert decided(*argv).verdict is Verdict.ASK


def test_a_name_that_starts_at_the_repositorys_root_is_decided_from_there() -> None:
    assert decided("git", "-C", "src", "show", "HEAD:config/prod.yaml").rule == "paths.block"
    assert decided("git", "-C", "src", "diff", "--", ":/config/prod.yaml").rule == "paths.block"
    assert decided("git", "-C", "src", "diff", "--", ":(top)config/prod.yaml").rule == "paths.block"


def test_files_are_edited_in_place_by_any_spelling() -> None:
    policy = parse_policy("version: 1\nname: t\ncapabilities: {run_bash: low_risk}\n", "t")
    for argv in (["sed", "-Ei", "s/a/b/", "x"], ["sed", "--in-p", "s/a/b/", "x"], ["sed", "-i.bak", "s/a/b/", "x"]):
        found = decide(policy, validate_operation(Run(argv=tuple(argv))), QUIET)
        assert found.rule == "capabilities.write_files"
