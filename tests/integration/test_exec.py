"""`nucleus exec` through the whole path: exit codes, output, the record, the budget."""

from __future__ import annotations

import json
import os
import pty

import pytest

from .site import BIN, Site


def test_42(site: Site) -> None:
    done = site.exec("python3", "-c", "print(6*7)")
    assert (done.returncode, done.stdout) == (0, "42\n"), done.stderr


def test_the_default_profile_is_restrictive(site: Site) -> None:
    done = site.cli("exec", "--workdir", str(site.workspace), "--", "true")
    assert done.returncode == 3


def test_a_denial_says_which_rule_and_what_to_do(site: Site) -> None:
    done = site.exec("true", profile="read_only")
    assert done.returncode == 3
    assert "rule: capabilities.run_bash" in done.stderr
    assert "next: " in done.stderr


@pytest.mark.parametrize(
    ("argv", "code"),
    [(["false"], 1), (["sh", "-c", "exit 7"], 7),
     (["sh", "-c", "exit $((7))"], 4), (["python3", "-c", "raise SystemExit(7)"], 7),
     (["python3", "-c", "import os; os.kill(os.getpid(), 9)"], 137), (["no-such-program-here"], 4)],
)  # fmt: skip
def test_exit_codes(site: Site, argv: list[str], code: int) -> None:
    done = site.exec(*argv)
    assert done.returncode == code, done.stderr


@pytest.mark.parametrize(
    ("flags", "code"),
    [(("--no-such-flag",), 2), (("--profile", "no_such_profile"), 2), (("--policy", "/no/such/file"), 2),
     (("--workdir", "/no/such/dir"), 2), (("--timeout", "never"), 2)],
)  # fmt: skip
def test_bad_input_is_a_clear_error(site: Site, flags: tuple[str, ...], code: int) -> None:
    done = site.cli("exec", *flags, "--", "true")
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert done.stderr


def test_an_approval_with_nobody_there_exits_4_and_names_the_obligation(site: Site) -> None:
    done = site.exec("bash", "-c", "eval true")
    assert done.returncode == 4
    assert "approval:" in done.stderr


def test_binary_output_and_stderr_arrive_exactly(site: Site) -> None:
    done = site.exec("python3", "-c", "import sys; sys.stdout.write('é\\n' * 1000); sys.stderr.write('err')")
    assert done.stdout == "é\n" * 1000
    assert done.stderr == "err"


def test_a_shell_string_runs_as_it_was_decided(site: Site) -> None:
    """What is on record is what ran, and a command that is denied alone is denied in a string."""
    line = 'mkdir -p a && cd a && printf \'%s\\n\' "it\'s" "b  c" > out && cat out | tail -n 1; cat missing 2>/dev/null'
    done = site.exec("bash", "-lc", line)
    assert (done.returncode, done.stdout) == (1, "b  c\n"), done.stderr
    assert (site.workspace / "a/out").read_text() == "it's\nb  c\n"
    intent = [one for one in site.records() if one["event"] == "intent"][-1]
    written = (
        "mkdir -p a && cd a && printf '%s\\n' 'it'\\''s' 'b  c' >out && cat out | tail -n 1 ; cat missing 2>/dev/null"
    )
    assert intent["operation"]["argv"] == ["bash", "-c", written]
    denied = site.exec("sh", "-c", "cd a && git -C .. push")
    assert denied.returncode == 3
    assert "capabilities.git_push" in denied.stderr
    asked = site.exec("sh", "-c", "echo $HOME")
    assert asked.returncode == 4
    assert "a shell string with an expansion" in asked.stderr


def test_a_deadline_kills_the_whole_group(site: Site) -> None:
    code = "import os, time\nos.fork() or time.sleep(60)\ntime.sleep(60)"
    done = site.exec("python3", "-c", code, flags=("--timeout", "1"))
    assert done.returncode == 143
    code = "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(0))\ntime.sleep(60)"
    assert site.exec("python3", "-c", code, flags=("--timeout", "1")).returncode == 124
    stubborn = "import signal, time\nsignal.signal(15, signal.SIG_IGN)\ntime.sleep(60)"
    assert site.exec("python3", "-c", stubborn, flags=("--timeout", "1")).returncode == 137
    assert site.exec("true").returncode == 0


def test_the_budget_says_no(site: Site) -> None:
    policy = site.write(
        "../policy.yaml",
        "version: 1\nname: poor\ncapabilities: {run_bash: low_risk}\nbudget: {limit_usd: '0.000200'}\n",
    )
    done = site.cli("exec", "--policy", str(policy), "--workdir", str(site.workspace), "--", "true")
    assert done.returncode == 5, done.stderr
    assert "budget" in done.stderr


def test_every_operation_is_on_record_and_the_log_verifies(site: Site) -> None:
    before = len(site.records())
    assert site.exec("true").returncode == 0
    assert site.exec("true", profile="read_only").returncode == 3
    events = [r["event"] for r in site.records()[before:]]
    for expected in ("pod.start", "intent", "outcome", "denied", "pod.stop"):
        assert expected in events, events
    verified = site.verify()
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert "completeness unknown" in verified.stdout


def test_a_tampered_log_does_not_verify(site: Site) -> None:
    lines = site.audit_log.read_text().splitlines(keepends=True)
    forged = site.directory / "forged.jsonl"
    record = json.loads(lines[1])
    forged.write_text(
        "".join(
            [
                lines[0],
                lines[1].replace(record["event"], "outcome" if record["event"] != "outcome" else "denied"),
                *lines[2:],
            ]
        )
    )
    forged.chmod(0o644)
    assert site.cli("verify", str(forged), program="nucleus-audit").returncode == 1


def test_files_made_in_the_workspace_are_the_owners(site: Site) -> None:
    assert site.exec("python3", "-c", "open('made', 'w').write('x')").returncode == 0
    made = site.workspace / "made"
    assert made.stat().st_uid == site.uid
    made.unlink()


def test_without_the_helper_it_works_the_same(site: Site) -> None:
    site.cli("helper", "stop")
    done = site.cli("--no-helper", "exec", "--profile", "codegen", "--workdir", str(site.workspace), "--", "true")
    assert done.returncode == 0, done.stderr


def test_a_shared_workspace_is_on_record_as_unmediated(site: Site) -> None:
    site.write("a.txt", "hello")
    flags = ("run", "--profile", "codegen", "--share-workspace", "--workdir", str(site.workspace))
    done = site.cli(*flags, "--", "cat", "/workspace/a.txt")
    assert done.stdout == "hello", done.stderr
    started = [r for r in site.records() if r["event"] == "pod.start"][-1]
    assert started["context"]["isolation"]["unmediated"] is True


def test_records_never_go_elsewhere_than_asked(site: Site) -> None:
    assert site.exec("true").returncode == 0  # a helper runs, with its own state directory
    argv = [str(BIN / "nucleus"), "exec", "--profile", "codegen", "--workdir", str(site.workspace), "--", "true"]
    other = {**site.environment(), "NUCLEUS_STATE": str(site.directory / "other")}
    with site.start(["/usr/bin/env", *(f"{name}={value}" for name, value in other.items()), *argv]) as child:
        _, err = child.communicate(timeout=30)
    assert child.returncode == 6
    assert "rule: helper.state" in err


def test_a_commands_output_obeys_no_terminal(site: Site) -> None:
    master, slave = pty.openpty()
    code = r"print('\x1b[2J\x1b]0;title\x07FAKE PROMPT')"
    argv = [str(BIN / "nucleus"), "exec", "--profile", "codegen", "--approvals", "none"]
    with site.start(
        [*argv, "--workdir", str(site.workspace), "--", "python3", "-c", code], stdout=slave, stderr=slave
    ) as child:
        os.close(slave)
        shown = b""
        while b"FAKE PROMPT" not in shown:
            shown += os.read(master, 4096)
        child.wait(timeout=30)
    os.close(master)
    assert b"\x1b" not in shown
    assert b"\x07" not in shown
