"""`nucleus selftest`: on a machine that is whole, as a user, and with each layer broken in turn."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nucleus.cli import selftest
from nucleus.pod import runtime

from .site import USER, Site

POLICY = """\
version: 1
name: theirs
capabilities: {read_files: always, write_files: low_risk, run_bash: low_risk, glob_search: always, grep_search: always}
paths: {block: ["@sensitive", "private/**"]}
commands: {allow: everything}
"""
GATEWAY = POLICY + "network: {allow: [{host: allowed.test, trusted: true}]}\n"
EVERYTHING = """\
version: 1
name: everything
capabilities: {read_files: always, write_files: always, edit_files: always, run_bash: always, glob_search: always,
  grep_search: always, web_search: always, web_fetch: always, git_commit: always, git_push: always, create_pr: always,
  manage_pods: always}
approve: []
paths: {block: []}
commands: {allow: everything}
hosts: {allow: everything}
trifecta: session
"""


@pytest.fixture(params=["root", "user"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    made = Site(0 if request.param == "root" else USER)
    yield made
    made.close()


@pytest.fixture
def root() -> Iterator[Site]:
    made = Site(0)
    yield made
    made.close()


def said(site: Site, policy: str, *flags: str) -> dict[str, Any]:
    """The report of a run as a person starts it."""
    path = site.directory / "policy.yaml"
    path.write_text(policy)
    path.chmod(0o644)
    done = site.cli("selftest", "--policy", str(path), "--json", *flags, timeout=120)
    assert done.stdout, done.stderr
    body: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == body["exit_code"]
    return body


def which(body: dict[str, Any], verdict: str) -> dict[str, str]:
    return {found["id"]: found["evidence"] for found in body["findings"] if found["verdict"] == verdict}


def left() -> set[Path]:
    return set(Path("/tmp").glob("nucleus-conformance-*"))


def test_all_holds_on_a_whole_machine(site: Site) -> None:
    """As root and as an ordinary user; nothing of theirs is changed, nothing is left."""
    secret = site.write("private/customers.csv", "REAL CONTENT")
    before = left()
    body = said(site, POLICY, "--workspace", str(site.workspace))
    assert which(body, "does not hold") == {}
    unchecked = which(body, "not checked")
    assert unchecked == {}
    # A machine whose cgroups a user may not use says so, and that is no failure of a probe.
    assert (body["exit_code"], bool(body["cannot_enforce"])) in {(0, False), (0, True)}
    groups = {found["id"].split(".")[0] for found in body["findings"]}
    assert groups == {"containment", "egress", "policy", "approval", "budget", "tamper"}
    assert body["counts"]["holds"] >= 130
    assert all(found["tried"] and found["layer"] for found in body["findings"])
    assert body["seconds"] < 60
    assert secret.read_text() == "REAL CONTENT"
    assert [str(path.relative_to(site.workspace)) for path in site.workspace.rglob("*") if path.is_file()] == [
        "private/customers.csv"
    ]
    assert not site.audit_log.exists()  # the log of its own is gone with it
    assert left() <= before


def test_a_gateway_is_tried(root: Site) -> None:
    body = said(root, GATEWAY)
    holds = which(body, "holds")
    assert which(body, "does not hold") == {}
    for where in ("agent", "command"):
        assert {f"egress.{where}.{name}" for name in (
            "gateway-unlisted", "gateway-metadata", "gateway-to-the-host", "fronting-by-sni", "fronting-by-host",
        )} <= set(holds)  # fmt: skip
        assert "403" in holds[f"egress.{where}.gateway-unlisted"]


def test_what_a_policy_allows_is_said(root: Site) -> None:
    body = said(root, EVERYTHING)
    allowed = which(body, "allowed by your policy")
    assert {"policy.blocked-by-read", "policy.sensitive", "policy.capabilities"} <= set(allowed)
    # Only the trifecta is left, and it asks.
    assert "trifecta.session" in which(body, "holds")["approval.outward.a-command-that-sends-a-file"]
    assert "run_bash" in allowed["policy.capabilities"]
    assert which(body, "does not hold") == {}  # the pod holds all the same


def test_no_pod_is_not_checked(root: Site) -> None:
    """A policy that wants what this machine has not."""
    body = said(root, POLICY + "isolation: {floor: firecracker}\n")
    assert body["exit_code"] == 6
    assert {"containment.agent", "policy"} <= set(which(body, "not checked"))


def test_a_table_for_people(root: Site) -> None:
    done = root.cli("selftest", "--profile", "codegen", timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = done.stdout.splitlines()
    assert any(row.startswith("ok  containment.agent.io-uring ") for row in rows)
    assert rows[-1].startswith("profile codegen: ")
    assert root.cli("selftest", "word").returncode == 2
    assert root.cli("selftest", "--workspace", "/nonexistent").returncode == 2
    assert root.cli("selftest", "--policy", "/nonexistent").returncode == 2


def test_a_policy_under_which_the_probes_are_no_command_is_not_said_to_hold_for_others(root: Site) -> None:
    report = said(root, POLICY.replace("{allow: everything}", "{allow: everything, deny: [{program: python3}]}"))
    found = {one["id"]: one for one in report["findings"]}
    assert found["containment.command"]["verdict"] == "not checked"
    assert "commands.deny" in found["containment.command"]["evidence"]
    assert report["exit_code"] == 6


# --- a layer that is broken is found: the builder starts a child with it patched out (`commands` of `boot.main`) ---

BUILDER = """\
import sys
from nucleus.pod import boot
def planted(command, code):
    return (*command[:-1], code + "\\n" + command[-1])
{here}
sys.exit(boot.main(sys.argv[1:], boot.COMMANDS | {{{child!r}: planted(boot.COMMANDS[{child!r}], {plant!r})}}))
"""
DECISION = "import nucleus.server.bare_pydantic\nimport nucleus.lattice.decision as d\n"
BROKEN = {
    "seccomp": (
        "zygote", "import nucleus.kernel.seccomp as s; s.install = lambda program: None", "",
        {"containment.agent.io-uring", "containment.agent.netlink", "containment.agent.nested-userns"},
    ),
    "limits": (
        "zygote",
        "import resource as r; real = r.setrlimit\n"
        "r.setrlimit = lambda what, how: None if what == r.RLIMIT_NPROC else real(what, how)",
        "import nucleus.pod.cgroups as c; c.Limits.__init__.__defaults__ = tuple(\n"
        "    4096 if value == 256 else value for value in c.Limits.__init__.__defaults__)",
        {"containment.agent.fork-bomb", "containment.command.fork-bomb"},
    ),
    "paths": (
        "template", DECISION + "d._refusal = lambda *_: None", "",
        {"policy.blocked-by-read"},  # for all else the pod's view of the workspace still holds, which is told
    ),
    "capabilities": (
        "template", DECISION + "d._capability = lambda *_: None", "",
        {"policy.never.edit-files"},
    ),
    "asking": (
        "template", DECISION + "d._Case.ask = lambda *_, **__: None", "",
        {"approval.nobody", "approval.denied", "approval.once", "approval.outward.a-shell-string"},
    ),
    "record": (  # a log whose hashes say nothing
        "authority",
        "import hashlib, nucleus.audit.record as r\n"
        "class Same:\n"
        "    sha256 = staticmethod(lambda data=b'': hashlib.sha256(b''))\n"
        "r.hashlib = Same",
        "", {"tamper.untouched"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("layer", BROKEN)
def test_a_broken_layer_is_found(
    layer: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, for the layers to be the ones that are named")
    child, plant, here, wanted = BROKEN[layer]
    monkeypatch.setattr(runtime, "BUILDER", BUILDER.format(child=child, plant=plant, here=here))
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY)
    code = selftest.main(["--policy", str(policy), "--json"])
    body = json.loads(capsys.readouterr().out)
    found = which(body, "does not hold")
    assert code == body["exit_code"] == 1, which(body, "not checked")
    assert wanted <= set(found), (found, which(body, "not checked"))
