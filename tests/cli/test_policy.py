"""`nucleus policy`: the words people type, and the exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nucleus.cli.policy import main
from nucleus.errors import InvalidError
from nucleus.store.policies import profile_names


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
        ("explain --profile codegen run bash -c ls", 4, "commands.allow"),
        ("explain --profile codegen write .git/hooks/x", 3, "paths.protected"),
        ("explain --profile codegen edit a.py", 0, "capabilities.edit_files"),
        ("explain --profile codegen git_commit a.py", 0, "capabilities.git_commit"),
        ("explain --profile web_research web_fetch https://x.org/", 4, "hosts.allow"),
        ("explain --profile web_research web_search a b", 4, "trifecta.static"),
        ("explain --profile fix_issue git_push", 4, "approve.git_push"),
        ("explain --profile fix_issue create_pr t", 4, "approve.create_pr"),
        ("explain --profile orchestrator manage_pods create x", 0, "capabilities.manage_pods"),
        ("explain glob **/*.py", 0, "capabilities.glob_search"),
        ("explain grep x secrets", 3, "paths.block"),
        ("explain git_status", 0, "capabilities.read_files"),
        ("explain git_diff", 0, "capabilities.read_files"),
    ],
)
def test_explain(line: str, code: int, rule: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == code
    assert f"rule: {rule}\n" in capsys.readouterr().out


def test_explain_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--json", "read", "./a/../.env"]) == 3
    data = json.loads(capsys.readouterr().out)
    assert data["verdict"] == "deny"
    assert data["operation"]["path"] == ".env"
    assert set(data) == {"policy", "operation", "verdict", "rule", "reason", "detail", "next_step", "obligations"}


@pytest.mark.parametrize(
    "line",
    [
        "nope", "explain", "explain fly", "explain read", "explain read a b", "explain read ../x", "explain run",
        "explain --profile nope read a", "explain --isolation x read a", "explain web_fetch https://x/ STEAL",
        "explain grep (a+)+", "show x", "show --profile", "check", "check /nonexistent", "compare a", "list x",
        "show --profile a --policy b",
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
    assert "restrictive is at most as permissive as read_only" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [[], ["--help"], ["show", "--help"]])
def test_help(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 0
    assert capsys.readouterr().out.startswith("usage: nucleus policy")
