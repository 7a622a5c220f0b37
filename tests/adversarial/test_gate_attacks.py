"""What a hijacked agent tried at the gate's door, and the rule that stops it now. Each case here once got through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nucleus import frames
from nucleus.approval.display import escape_lines
from nucleus.approval.rules import DENIALS, PAUSE_NS, AskRules
from nucleus.errors import ApprovalRequiredError
from nucleus.gate.display import display_lines
from nucleus.hands import git, search
from nucleus.hands.commands import Result
from nucleus.hands.root import Root
from nucleus.lattice import Context, decide, parse_policy
from nucleus.model.decision import Decision, Verdict
from nucleus.model.operation import Edit, GitCommit, Run, Write
from nucleus.sdk import wire
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


def test_a_command_too_long_to_be_shown_is_not_put_to_a_person() -> None:
    quiet = "x" * 4_000
    shown = "\n".join(escape_lines(list(display_lines(Run(argv=("bash", "-c", f"true {quiet}; rm -rf x"))))))
    assert "rm -rf x" in shown
    for operation in (
        Run(argv=("bash", "-c", "\u202e" * 4_000 + "; rm -rf x")),
        Run(argv=("bash", "-s"), stdin="\n" * 100_000 + "rm -rf x"),
        GitCommit(message="m", paths=tuple("p" * 200 + str(i) for i in range(500))),
    ):
        with pytest.raises(ApprovalRequiredError) as caught:
            display_lines(operation)
        assert caught.value.rule == "approval.display"


def test_a_long_files_text_says_that_it_is_cut_and_shows_its_end() -> None:
    lines = display_lines(Write(path="x", content="a" * 100_000 + "evil"))
    assert any(line.startswith("content (NOT SHOWN WHOLE)") and line.endswith("evil") for line in lines)
    assert any("NOT SHOWN WHOLE" in line for line in display_lines(Edit(path="x", old="a", new="b" * 5_000)))


def test_a_person_is_not_worn_down_by_ever_new_words() -> None:
    rules = AskRules()
    for number in range(DENIALS):
        assert rules.refusal(f"h{number}", number) == ""
        rules.opened()
        rules.closed(f"h{number}", number, denied=True)
    assert "in a row" in rules.refusal("another", DENIALS + PAUSE_NS - 2)
    assert rules.refusal("another", DENIALS + PAUSE_NS) == ""
    rules.opened()
    rules.closed("another", DENIALS + PAUSE_NS, denied=False)  # withdrawn: asking and leaving forgets nothing
    rules.opened()
    rules.closed("one more", DENIALS + PAUSE_NS, denied=True)
    assert "in a row" in rules.refusal("third", DENIALS + 3 * PAUSE_NS - 1)
    rules.opened()
    rules.closed("fine", DENIALS + 4 * PAUSE_NS, denied=False, approved=True)
    rules.opened()
    rules.closed("no", DENIALS + 4 * PAUSE_NS, denied=True)
    assert rules.refusal("next", DENIALS + 4 * PAUSE_NS) == ""


def test_what_lies_outside_the_allow_list_is_not_counted(tmp_path: Path) -> None:
    """`withheld` and a limit of one told, guess by guess, what the hidden file holds."""
    for name in ("config/prod.yaml", "src/a.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("key=abc\n")
    root = Root(str(tmp_path))
    shown: dict[str, Any] = {"allow": [["src/"]], "exclude": []}
    try:
        assert search.grep(root, {"pattern": "^key=a", "limit": 1, **shown}) == {
            "matches": [["src/a.txt", 1, "key=abc"]], "truncated": False, "scanned_bytes": 8,
        }  # fmt: skip
        hidden = search.grep(root, {"pattern": "^key=a", "path": "config/prod.yaml", **shown})
        assert hidden == {"matches": [], "truncated": False, "scanned_bytes": 0}
        assert search.glob(root, {"pattern": "**", **shown})["paths"] == ["src/a.txt"]
        assert search.glob(root, {"pattern": "**", "allow": [[]]})["paths"] == []
    finally:
        root.close()


@pytest.mark.parametrize("operation", ["git_diff", "git_status", "git_commit"])
def test_git_keeps_to_the_allow_list(operation: str) -> None:
    """diff showed, and commit took, files that the policy's allow list does not name."""
    prefix = b"" if operation == "git_diff" else b" M "
    listing = prefix + b"config/prod.yaml\0" + prefix + b"src/a.txt\0"
    steps = git.OPERATIONS[operation]({"message": "m", "exclude": [], "allow": [["src/"]]})
    call, said = next(steps), b""
    try:
        while True:
            assert "config/prod.yaml" not in call.arguments
            assert b"config/prod.yaml" not in call.stdin
            named = "--name-only" in call.arguments or "--porcelain=v1" in call.arguments
            call = steps.send(Result(0, None, False, listing if named else b"", b"", False, False, 1))
    except StopIteration as stop:
        said = stop.value[1]
    assert b"prod" not in said


@pytest.mark.parametrize("text", ["\ud800", "a\udcff"])
def test_a_lone_surrogate_from_a_hostile_pod_breaks_no_channel(text: str) -> None:
    raw = frames.encode({"id": 1, "commit": text})
    assert [frame.header["commit"] for frame in frames.Decoder().feed(raw)] == [text]
    reader = wire.Reader()
    reader.feed(raw)
    frame = reader.take()
    assert frame is not None
    assert frame[0]["commit"] == text
