"""`nucleus policy`: the words people type, and the exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nucleus.cli.main import main as program
from nucleus.cli.policy import main
from nucleus.errors import InvalidError
from nucleus.lattice import meet, parse_policy
from nucleus.lattice.schema import policy_schema
from nucleus.store.policies import bundled, profile_names

TOOLS = """\
version: 1
name: tools
capabilities: {read_files: always}
tools:
  mail/send: {legs: [exfiltration], destination: [to], level: always}
  mail/*: {legs: [private], level: always}
trifecta: provenance
"""


@pytest.fixture
def tools(tmp_path: Path) -> str:
    path = tmp_path / "tools.yaml"
    path.write_text(TOOLS)
    return str(path)


@pytest.mark.parametrize(
    ("line", "code", "rule"),
    [
        ("explain read .env", 3, "paths.block"),
        ("explain read README.md", 0, "capabilities.read_files"),
        ("explain run -- git push", 3, "capabilities.run_bash"),
        ("explain -- run true", 3, "capabilities.run_bash"),
        ("explain --profile codegen run -- git push", 3, "capabilities.git_push"),
        ("explain --profile codegen -- run python3 -m unittest", 0, "capabilities.run_bash"),
        ("explain --profile codegen --egress -- run true", 4, "trifecta.static"),
        ("explain --profile codegen run bash -c $x", 4, "commands.allow"),
        ("explain --profile codegen write .git/hooks/x", 3, "paths.protected"),
        ("explain --profile codegen edit a.py", 0, "capabilities.edit_files"),
        ("explain --profile codegen git_commit a.py", 0, "capabilities.git_commit"),
        ("explain --profile web_research web_fetch https://x.org/", 4, "hosts.allow"),
        ("explain --profile web_research web_search a b", 4, "trifecta.static"),
        ("explain --profile network_only --seen private web_search a b", 4, "trifecta.static"),
        ("explain --profile network_only web_search a b", 0, "capabilities.web_search"),
        ("explain --profile fix_issue git_push", 4, "approve.git_push"),
        ("explain --profile fix_issue create_pr t", 4, "approve.create_pr"),
        ("explain --profile orchestrator manage_pods create x", 0, "capabilities.manage_pods"),
        ("explain glob **/*.py", 0, "capabilities.glob_search"),
        ("explain grep x secrets", 3, "paths.block"),
        ("explain git_status", 0, "capabilities.read_files"),
        ("explain git_diff", 0, "capabilities.read_files"),
        ("explain tool mail/send {}", 4, "tools.undeclared"),
    ],
)
def test_explain(line: str, code: int, rule: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == code
    out = capsys.readouterr().out
    assert f"rule: {rule}\n" in out
    assert sum(entry.startswith("  > ") for entry in out.splitlines()) == 1
    assert f"{rule}  (decides)" in out


@pytest.mark.parametrize(
    ("words", "code", "rule"),
    [
        (["tool", "mail/read"], 0, "tools.mail"),
        (["tool", "mail/send"], 4, "trifecta.provenance"),
        (["tool", "mail/send", '{"to": "a@example.org"}'], 4, "trifecta.provenance"),
        (["--seen", "private,untrusted", "tool", "mail/send", '{"to": "a@example.org"}'], 4, "trifecta.provenance"),
        (
            ["--seen", "private,untrusted", "--task", "write to a@example.org", "tool", "mail/send",
             '{"to": "a@example.org"}'],
            0, "tools.mail",
        ),
        (["tool", "cal/add", "{}"], 4, "tools.undeclared"),
    ],
)  # fmt: skip
def test_explain_a_tool(tools: str, words: list[str], code: int, rule: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--policy", tools, *words]) == code
    assert f"rule: {rule}\n" in capsys.readouterr().out


def test_explain_as_a_caller(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(
        "version: 1\nname: p\ncapabilities: {read_files: always}\n"
        "identities: {agents: [own, 'spiffe://td/*'], operations: {read_files: ['spiffe://td/ci/*']}}\n"
    )
    for who, code in (("spiffe://td/ci/a", 0), ("spiffe://td/ci", 3), ("spiffe://other/ci/a", 3)):
        assert main(["explain", "--policy", str(path), "--as", who, "read", "a"]) == code, who
        assert ("identity.operation" in capsys.readouterr().out) == (code == 3) or code == 0
    assert main(["explain", "--policy", str(path), "read", "a"]) == 3  # the pod's own
    with pytest.raises(InvalidError, match="--as"):
        main(["explain", "--policy", str(path), "--as", "ci", "read", "a"])
    assert main(["show", "--policy", str(path)]) == 0
    assert "identities.operations.read_files: spiffe://td/ci/*" in capsys.readouterr().out


def test_explain_says_when_there_is_no_egress(capsys: pytest.CaptureFixture[str]) -> None:
    for line, said in (
        ("--profile fix_issue git_push", True),
        ("--profile fix_issue --egress git_push", False),
        ("--profile codegen git_push", False),
        ("--profile fix_issue run -- ls", False),
    ):
        main(["explain", *line.split()])
        assert ("no egress in this pod" in capsys.readouterr().out) is said, line
    main(["explain", "--profile", "fix_issue", "--json", "git_push"])
    assert json.loads(capsys.readouterr().out)["pod"] == "no_egress"


def test_explain_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--json", "read", "./a/../.env"]) == 3
    data = json.loads(capsys.readouterr().out)
    assert data["verdict"] == "deny"
    assert data["operation"]["path"] == ".env"
    assert set(data) == {
        "policy", "operation", "verdict", "rule", "reason", "detail", "next_step", "obligations", "met", "pod",
    }  # fmt: skip
    assert {"rule": "paths.block", "verdict": "deny"} in data["met"]


@pytest.mark.parametrize(
    "line",
    [
        "nope", "explain", "explain fly", "explain read", "explain read a b", "explain read ../x", "explain run",
        "explain --profile nope read a", "explain --isolation x read a", "explain web_fetch https://x/ STEAL",
        "explain grep (a+)+", "show x", "show --profile", "check", "check /nonexistent", "compare a", "list x",
        "show --profile a --policy b", "explain --seen everything read a", "explain tool mail", "explain tool /x",
        "explain tool a/b []", "explain tool a/b {", "explain tool A/b", "explain tool", "diff", "diff a", "meet a",
        "meet codegen nope", "diff codegen demo release", "diff --loud codegen demo", "schema x", "check a b",
    ],
)  # fmt: skip
def test_invalid(line: str) -> None:
    with pytest.raises(InvalidError):
        main(line.split())


def test_list_show_check_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in profile_names())
    assert main(["show", "--profile", "codegen"]) == 0
    assert "run_bash      low_risk" in capsys.readouterr().out
    assert main(["show", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "restrictive"
    file = tmp_path / "p.yaml"
    file.write_text("version: 1\nname: mine\ncapabilities: {run_bash: always}\n")
    assert main(["check", str(file)]) == 0
    assert capsys.readouterr().out.startswith("mine: valid")
    assert main(["explain", "--policy", str(file), "run", "true"]) == 0
    capsys.readouterr()
    assert main(["compare", "fix_issue", str(file)]) == 0
    assert "LOST ASK" in capsys.readouterr().out
    assert main(["compare", "read_only", "restrictive"]) == 0
    assert "restrictive is tighter than read_only" in capsys.readouterr().out


def test_lists_and_tools_as_json(tools: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--json"]) == 0
    assert {item["name"] for item in json.loads(capsys.readouterr().out)} == set(profile_names())
    assert main(["show", "--json", "--policy", tools]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["tools"]["mail/send"]["destination"] == ["to"]
    assert not any(facts["trifecta_asks"] for facts in data["capabilities"].values())
    assert main(["show", "--policy", tools]) == 0
    assert "  tool mail/send: always; exfiltration, destination to\n" in capsys.readouterr().out


def test_check_warns_of_what_can_never_matter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(
        "version: 1\nname: mine\nextends: codegen\nisolation: {floor: firecracker}\n"
        "commands: {deny: [{set: ordinary}]}\n"
    )
    assert main(["check", str(file)]) == 0
    out, err = capsys.readouterr()
    assert "mine: valid, sha256 " in out
    assert "extends codegen" in out
    assert "warning: isolation.floor: firecracker is not in this version" in err
    for name in ("ordinary", "shell_strings"):
        assert f"warning: commands.allow: set {name} never matters: commands.deny covers it" in err
    assert main(["check", "--json", str(file)]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["valid"], data["extends"], len(data["warnings"])) == (True, ["codegen"], 3)
    assert main(["show", "--policy", str(file)]) == 0
    assert "extends: codegen" in capsys.readouterr().out


def test_a_looser_policy_is_refused_at_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("version: 1\nname: mine\nextends: codegen\ncapabilities:\n  git_push: always\n")
    assert program(["policy", "check", str(file)]) == 2
    assert f"{file}:5:13: capabilities.git_push: always is looser" in capsys.readouterr().err


def test_meet_is_a_policy_that_parses_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = bundled()
    assert main(["meet", "codegen", "fix_issue"]) == 0
    text = capsys.readouterr().out
    found = parse_policy(text, "meet")
    expected = meet(parse_policy(texts["codegen"], "a"), parse_policy(texts["fix_issue"], "b"))
    assert found.name == "codegen-and-fix_issue"
    assert found.capabilities == expected.capabilities
    assert found.paths_block == expected.paths_block
    file = tmp_path / "meet.yaml"
    file.write_text(text)
    for name in ("codegen", "fix_issue"):
        assert main(["diff", "--fail-if-looser", name, str(file)]) == 0


def test_diff_as_a_gate_in_ci(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts, file = bundled(), tmp_path / "p.yaml"
    file.write_text(texts["fix_issue"].replace("git_push: low_risk", "git_push: always"))
    assert main(["diff", "fix_issue", str(file)]) == 0
    assert main(["diff", "--fail-if-looser", "fix_issue", str(file)]) == 3
    assert main(["diff", "fix_issue", str(file), "--fail-if-looser"]) == 3
    capsys.readouterr()
    assert main(["diff", "--fail-if-looser", str(file), "fix_issue"]) == 0
    assert "fix_issue is tighter than fix_issue" in capsys.readouterr().out
    assert main(["diff", "--fail-if-looser", "fix_issue", "fix_issue"]) == 0
    # An ask that is lost by leaving a leg out is looser too.
    without = dict.fromkeys(("read_files", "glob_search", "grep_search", "run_bash", "web_fetch"), "never")
    text = texts["fix_issue"].replace("approve: [web_search, ", "approve: [")
    for name, level in without.items():
        text = "\n".join(f"  {name}: {level}" if line.startswith(f"  {name}:") else line for line in text.splitlines())
    file.write_text(text + "\n")
    assert main(["diff", "--fail-if-looser", "fix_issue", str(file)]) == 3


def test_diff_shows_the_lost_ask_and_the_command_that_shows_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "p.yaml"
    file.write_text("version: 1\nname: a\ncapabilities: {read_files: always, web_fetch: low_risk, git_push: always}\n")
    other = tmp_path / "q.yaml"
    other.write_text("version: 1\nname: b\ncapabilities: {git_push: always}\n")
    assert main(["diff", "--fail-if-looser", str(file), str(other)]) == 3
    out = capsys.readouterr().out
    assert out.startswith("b is tighter than a in some ways and LOOSER in others\n")
    assert "  looser        capabilities.git_push      always, asks -> always, unattended\n" in out
    assert "LOST ASK  git_push  (no egress, untrusted workspace)\n" in out
    assert "  a  ask    trifecta.static: " in out
    assert "  b  allow  capabilities.git_push: " in out
    (command,) = {
        line[4:] for line in out.splitlines() if line.startswith("  $ nucleus") and line.endswith("-- git_push")
    }
    assert program(command.split()[1:]) == 0


def test_diff_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", "--json", "demo", "local_dev"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["a"], data["b"], data["relation"], data["looser"]) == ("demo", "local_dev", "incomparable", True)
    assert data["lost_asks"] == sum(item["lost_ask"] for item in data["witnesses"]) > 0
    assert {item["relation"] for item in data["dimensions"]} <= {"same", "tighter", "looser", "incomparable"}
    for item in data["witnesses"]:
        command = [*item["explain"][1:3], "--json", *item["explain"][3:]]
        if item["a"]["rule"] == "time_window":
            continue
        program(command)
        again = json.loads(capsys.readouterr().out)
        assert (again["verdict"], again["rule"]) == (item["b"]["verdict"], item["b"]["rule"]), command


def test_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == policy_schema()
    committed = Path(__file__).resolve().parents[2] / "docs" / "policy.schema.json"
    main(["schema"])
    assert capsys.readouterr().out == committed.read_text()


@pytest.mark.parametrize("argv", [[], ["--help"], ["show", "--help"], ["diff", "-h"]])
def test_help(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 0
    assert capsys.readouterr().out.startswith("usage: nucleus policy")


def test_words_of_a_policy_obey_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "p.yaml"
    file.write_text('version: 1\nname: a\ndescription: "\\e[2J\\u202e"\ncapabilities: {}\n')
    main(["show", "--policy", str(file)])
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\u202e" not in out


def test_as_a_process(tmp_path: Path) -> None:
    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "nucleus.cli.main", "policy", *argv]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=20, check=False)

    (tmp_path / "bad.yaml").write_text("version: 1\nname: a\ncapabilities: {}\nbudget: {limit_usd: 5.00}\n")
    done = run("check", "bad.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("invalid_request: bad.yaml:4:21: budget.limit_usd must be quoted")
    done = run("diff", "--fail-if-looser", "codegen", "bad.yaml")
    assert done.returncode == 2
    assert run("diff", "--fail-if-looser", "codegen", "permissive").returncode == 3
    assert run("explain", "--profile", "fix_issue", "git_push").returncode == 4


def test_every_policy_of_the_page_is_one() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "policy.md").read_text()
    examples = [block.split("```", 1)[0] for block in page.split("```yaml\n")[1:]]
    assert len(examples) == 2
    for text in examples:
        parse_policy(text, "docs/policy.md", bundled())
