"""The dispatcher: exit codes, errors with a next step, and what `--version` is allowed to cost."""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Callable

import pytest

import nucleus as package
from nucleus import errors
from nucleus.cli import main as cli

from .stand_in import StandIn

Nucleus = Callable[..., subprocess.CompletedProcess[bytes]]


def test_version_imports_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"nucleus {package.__version__}\n"
    code = (
        "import sys; before = set(sys.modules); import nucleus.cli.main as m; m.main(['--version']); "
        "print(sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1] == "['__future__', 'nucleus', 'nucleus.cli', 'nucleus.cli.main']"


@pytest.mark.parametrize("argv", [["help"], ["--help"], ["-h"]])
def test_help(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert all(verb in out for verb in cli.VERBS)


@pytest.mark.parametrize("verb", ["exec", "run", "helper"])
def test_help_of_a_verb_names_every_option(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    import importlib

    assert cli.main(["help", verb]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: nucleus {verb}")
    options = getattr(importlib.import_module(f"nucleus.cli.{verb}"), "OPTIONS", {})
    assert all(f"--{name}" in out for name in options if name != "help")


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "no verb"),
        (["frobnicate"], "unknown verb 'frobnicate'"),
        (["--frob"], "unknown option '--frob'"),
        (["exec", "--frob", "--", "x"], "unknown option '--frob'"),
        (["exec", "-x"], "unknown option '-x'"),
        (["exec", "--json=1", "--", "x"], "--json takes no value"),
        (["exec", "--workdir"], "--workdir needs a value"),
        (["exec", "--workdir", "a", "--workdir=b", "--", "x"], "given twice"),
        (["exec"], "no command"),
        (["exec", "--timeout", "-1", "--", "x"], "--timeout"),
        (["exec", "--timeout", "nan", "--", "x"], "--timeout"),
        (["exec", "--timeout", "inf", "--", "x"], "--timeout"),
        (["exec", "--profile", "a", "--policy", "b", "--", "x"], "exclude each other"),
        (["run"], "no agent"),
        (["run", "--approvals", "maybe", "--", "x"], "--approvals is auto or none"),
        (["helper"], "helper status"),
        (["helper", "frob"], "helper status"),
        (["helper", "status", "x"], "helper status"),
    ],
)
def test_a_wrong_command_line_is_exit_2(argv: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("invalid_request: ")
    assert says in err
    assert "next:" in err


@pytest.mark.parametrize("family", errors.FAMILIES)
def test_errors_have_their_exit_code(
    family: type[errors.NucleusError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(argv: list[str]) -> int:
        raise family("what \x1b[2J happened", rule="a.rule", next_step="do this")

    monkeypatch.setitem(sys.modules, "nucleus.cli.doctor", types.SimpleNamespace(main=fail))
    assert cli.main(["doctor"]) == family.exit_code
    err = capsys.readouterr().err
    assert err == f"{family.code}: what \\x1b[2J happened\n  rule: a.rule\n  next: do this\n"


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (ValueError("bug"), 1)])
def test_other_exits(error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(argv: list[str]) -> int:
        raise error

    monkeypatch.setitem(sys.modules, "nucleus.cli.doctor", types.SimpleNamespace(main=fail))
    assert cli.main(["doctor"]) == code


def test_no_helper_reaches_the_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []

    def look(argv: list[str]) -> int:
        import os

        seen.append(os.environ.get("NUCLEUS_NO_HELPER"))
        return 0

    monkeypatch.setitem(sys.modules, "nucleus.cli.doctor", types.SimpleNamespace(main=look))
    monkeypatch.setenv("NUCLEUS_NO_HELPER", "0")
    cli.main(["doctor"])
    cli.main(["--no-helper", "doctor"])
    assert seen == ["0", "1"]


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    script = f"{sys.executable} -c 'import nucleus.cli.main as m, sys; sys.exit(m.main([\"help\"]))' | true"
    done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\nlines", "plain\nlines"),
        ("\x1b[31m", "\\x1b[31m"),
        ("a\rb\tc", "a\\rb\\tc"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\u200b\u2066x", "\\u200b\\u2066x"),
        ("\x9b2J", "\\x9b2J"),
        ("käse ✓", "käse ✓"),
        ("\ud800", "\\ud800"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert cli.printable(text) == shown


def test_helper_verbs(nucleus: Nucleus, stand_in: StandIn) -> None:
    done = nucleus("helper", "status")
    assert (done.returncode, done.stdout) == (0, b'pods: []\npids: {"builder": 1}\nhelper: true\n')
    done = nucleus("helper", "stop")
    assert (done.returncode, done.stdout) == (0, b"stopped\n")
    assert [request["op"] for request in stand_in.requests] == ["status", "stop"]


def test_no_helper_runs(tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("NUCLEUS_RUNTIME", str(tmp_path / "r"))
    assert cli.main(["helper", "status"]) == 1
    assert "no helper runs" in capsys.readouterr().out
