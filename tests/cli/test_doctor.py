"""`nucleus doctor`: exit codes, what a person reads and what a program reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nucleus.cli import doctor
from nucleus.errors import InvalidError
from nucleus.kernel import seccomp, syscalls
from nucleus.pod import detect
from nucleus.pod.detect import REQUIRED, Fact

GOOD = [Fact(name, True, "done", "every pod") for name in sorted(REQUIRED)]
ROOT = Fact("root", True, "uid 0", "uids")
USER = Fact("root", False, "uid 1000", "uids", "Run as root.")
APPARMOR = next(advice for path, _, advice in detect._SWITCHES if "apparmor" in path)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[Fact]:
    """Facts of a machine that is not this one; `doctor` itself is the real one."""
    facts: list[Fact] = [ROOT, *GOOD]
    monkeypatch.setattr(detect, "detect", lambda workspace: facts)
    return facts


def run(*argv: str, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nucleus.cli.main", "doctor", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **more)


def test_this_machine(tmp_path: Path) -> None:
    done = run("--json", "--workspace", str(tmp_path))
    said = json.loads(done.stdout)
    assert done.returncode == said["exit_code"] == (0 if said["backend"] == "namespaces" else 6)
    assert done.stderr == ""
    facts = {fact["name"]: fact for fact in said["facts"]}
    assert set(facts) >= REQUIRED
    assert {name for name in REQUIRED if not facts[name]["ok"]} == set(said["missing"])
    assert set(said["not_stronger"]) == {"gvisor", "qemu", "firecracker"}


def test_this_machine_in_words() -> None:
    done = run()
    assert done.returncode in (0, 6)
    assert "advisory only" in done.stdout
    assert ("A pod can be made: namespaces" in done.stdout) is (done.returncode == 0)
    assert all(len(row) < 200 for row in done.stdout.splitlines())


def test_a_kernel_without_openat2_is_6_for_real() -> None:
    """The `commands` filter alone makes a machine without openat2."""

    def prepare() -> None:
        syscalls.set_no_new_privs()
        seccomp.install(seccomp.compile_profile("commands"))

    done = run(preexec_fn=prepare)
    assert done.returncode == 6
    assert "No pod can be made" in done.stdout
    assert "NO  openat2" in done.stdout
    assert "next: A kernel of 5.12" in done.stdout


def test_as_an_ordinary_user_the_shared_uid_and_the_missing_limits_are_named(
    machine: list[Fact], capsys: pytest.CaptureFixture[str]
) -> None:
    machine[0] = USER
    machine += [Fact("cgroup memory", False, "denied", "a pod's memory limit"), Fact("cgroup cpu", True, "x", "y")]
    assert doctor.main([]) == 0
    out = capsys.readouterr().out
    assert doctor.SHARED_UID in out
    assert "share one uid" in out
    assert "Missing cgroup limits: memory." in out
    assert "next: Run as root." in out
    assert doctor.main(["--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["missing_limits"] == ["cgroup memory"]
    assert said["weaker"] == ["root", "cgroup memory"]


def test_as_root_it_is_not_said(machine: list[Fact], capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([]) == 0
    out = capsys.readouterr().out
    assert "one uid" not in out
    assert "Missing" not in out
    assert doctor.ADVISORY in out


def test_what_is_missing_comes_with_its_next_step(machine: list[Fact], capsys: pytest.CaptureFixture[str]) -> None:
    machine[:] = [Fact(f.name, f.name != "user namespaces", f.detail, f.needed_for) for f in machine]
    at = next(i for i, fact in enumerate(machine) if fact.name == "user namespaces")
    machine[at] = Fact("user namespaces", False, "Operation not permitted", "every pod", APPARMOR)
    assert doctor.main([]) == 6
    out = capsys.readouterr().out
    assert "kernel.apparmor_restrict_unprivileged_userns=0" in out
    assert "NO  user namespaces" in out
    assert doctor.main(["--json"]) == 6
    assert json.loads(capsys.readouterr().out)["missing"] == ["user namespaces"]


def test_a_floor_that_this_machine_does_not_reach(machine: list[Fact], capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--floor", "firecracker"]) == 6
    assert "asks for at least firecracker" in capsys.readouterr().out
    assert doctor.main(["--floor", "namespaces"]) == 0


def test_a_hostile_name_does_not_reach_the_terminal(
    tmp_path: Path, machine: list[Fact], capsys: pytest.CaptureFixture[str]
) -> None:
    machine.append(Fact("git", False, "\x1b]0;owned\x07", "git"))
    assert doctor.main([]) == 0
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize("argv", [["--what"], ["extra"], ["--floor", "vm"], ["--json", "--workspace"]])
def test_a_wrong_command_line(argv: list[str]) -> None:
    with pytest.raises(InvalidError):
        doctor.main(argv)


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--help"]) == 0
    assert "--workspace DIR" in capsys.readouterr().out


def test_it_starts_nothing_and_writes_nothing(tmp_path: Path) -> None:
    environment = os.environ | {"NUCLEUS_STATE": f"{tmp_path}/state", "NUCLEUS_RUNTIME": f"{tmp_path}/runtime"}
    assert run("--workspace", str(tmp_path), env=environment).returncode in (0, 6)
    assert list(tmp_path.iterdir()) == []
