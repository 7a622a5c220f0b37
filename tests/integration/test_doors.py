"""The seed's length limits, and malformed requests, at every door: HTTP (SDK, raw), MCP, a person's channel, CLI."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from nucleus.limits import LIMITS

from .held import Held
from .site import Site

# Field → (operation with a text of n bytes, limit). The text is inert: what is within its limit may fail later.
FIELDS: dict[str, tuple[str, int]] = {
    "pattern": ("""{"kind": "grep", "pattern": "a" * n}""", LIMITS.pattern_bytes),
    "glob": ("""{"kind": "glob", "pattern": "a" * n}""", LIMITS.pattern_bytes),
    "include": ("""{"kind": "grep", "pattern": "x", "include": "a" * n}""", LIMITS.pattern_bytes),
    "query": ("""{"kind": "web_search", "query": "a" * n}""", LIMITS.query_bytes),
    "query in two bytes": ("""{"kind": "web_search", "query": "\\u00e9" * (n // 2) + "a" * (n % 2)}""", 512),
    "path": ("""{"kind": "read", "path": ("a" * 99 + "/") * (n // 100) + "b" * (n % 100)}""", LIMITS.path_bytes),
    "cwd": (
        """{"kind": "run", "argv": ["true"], "cwd": ("a" * 99 + "/") * (n // 100) + "b" * (n % 100)}""",
        LIMITS.path_bytes,
    ),
    "argv": ("""{"kind": "run", "argv": ["true", "a" * (n - 6)]}""", LIMITS.argv_bytes),
    "argv in many": (
        """{"kind": "run", "argv": ["true", *(["a" * 31] * (n // 32 - 1)), "a" * (n % 32 + 26)]}""",
        16_384,
    ),
    "stdin": ("""{"kind": "run", "argv": ["wc", "-c"], "stdin": "a" * n}""", LIMITS.stdin_bytes),
    "url": ("""{"kind": "web_fetch", "url": "https://a.test/" + "a" * (n - 15)}""", LIMITS.url_bytes),
}
CASES = [(name, offset) for name in FIELDS for offset in (-1, 0, 1)]
# What no operation is: (body, header), as the raw door gets it.
MALFORMED: dict[str, tuple[str, dict[str, str], str]] = {
    "nul": ('{"path": "a\\u0000b"}', {}, "NUL"),
    "bidi": ('{"path": "a\\u202eb"}', {}, "U+202E"),
    "zero width": ('{"path": "a\\u200bb"}', {}, "U+200B"),
    "surrogate": ('{"path": "a\\ud800b"}', {}, "surrogate"),
    "duplicate": ('{"path": "a", "path": "b"}', {}, "duplicate"),
    "deep": ('{"path": ' + "[" * 5_000 + "]" * 5_000 + "}", {}, "deep"),
    "deeper": ('{"path": ' + "[" * 20 + "]" * 20 + "}", {}, "deep"),
    "nan": ('{"path": "a", "offset": NaN}', {}, "NaN"),
    "infinity": ('{"path": "a", "offset": 1e999}', {}, "offset"),
    "float": ('{"path": "a", "offset": 1.5}', {}, "offset"),
    "negative": ('{"path": "a", "offset": -1}', {}, "offset"),
    "huge": ('{"path": "a", "offset": ' + "9" * 5_000 + "}", {}, "JSON"),
    "beyond 64 bits": ('{"path": "a", "offset": 18446744073709551616}', {}, "offset"),
    "bool": ('{"path": "a", "offset": true}', {}, "offset"),
    "unknown": ('{"path": "a", "extra": 1}', {}, "extra"),
    "list": ("[]", {}, "object"),
    "empty": ("", {}, "JSON"),
    "trailing": ('{"path": "a"} {}', {}, "JSON"),
    "bom": ('\\ufeff{"path": "a"}', {}, "JSON"),
    "kind": ('{"kind": "write", "path": "a", "content": ""}', {}, "kind"),
    "gzip": ('{"path": "a"}', {"Content-Encoding": "gzip"}, "compressed"),
    "deflate": ('{"path": "a"}', {"Content-Encoding": "deflate"}, "compressed"),
}

AGENT = """
import json, subprocess, sys
from nucleus.sdk.client import Gate, GateError
fields, malformed = json.load(sys.stdin)
out = {"sdk": {}, "mcp": {}, "raw": {}}
gate = Gate()
asked = []
for name, offset, text, limit in fields:
    operation = eval(text, {"n": limit + offset})
    key = f"{name} {offset}"
    asked.append((key, operation))
    fields_ = {k: v for k, v in operation.items() if k != "kind"}
    try:
        gate.exchange(operation["kind"], fields_)
        out["sdk"][key] = ["ok", ""]
    except GateError as error:
        out["sdk"][key] = [error.code, str(error)]
lines = [{"jsonrpc": "2.0", "id": "i", "method": "initialize", "params": {"protocolVersion": "2025-06-18",
    "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}},
    {"jsonrpc": "2.0", "method": "notifications/initialized"}]
bridge = [sys.executable, "-m", "nucleus.sdk.mcp"]
child = subprocess.Popen(bridge, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
def say(message):
    child.stdin.write(json.dumps(message) + "\\n"); child.stdin.flush()
say(lines[0]); json.loads(child.stdout.readline()); say(lines[1])
for key, operation in asked:
    arguments = {k: v for k, v in operation.items() if k != "kind"}
    params = {"name": operation["kind"], "arguments": arguments}
    say({"jsonrpc": "2.0", "id": key, "method": "tools/call", "params": params})
    answer = json.loads(child.stdout.readline())
    out["mcp"][key] = answer.get("result", answer)
child.stdin.close(); child.wait(20)
for name, body, headers in malformed:
    connection = gate._take()
    connection.sock.settimeout(20)
    headers = {"Content-Type": "application/json", **headers}
    connection.request("POST", "/v1/read", body.encode("utf-8", "surrogatepass"), headers)
    response = connection.getresponse()
    out["raw"][name] = [response.status, response.read().decode()]
    connection.close()
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    made = Site(0)
    yield made
    made.close()


@pytest.fixture(scope="module")
def agent(site: Site) -> dict[str, Any]:
    """What one agent got at its doors."""
    fields = [(name, offset, *FIELDS[name]) for name, offset in CASES]
    malformed = [(name, body, headers) for name, (body, headers, _) in MALFORMED.items()]
    words = ("run", "--profile", "codegen", "--workdir", str(site.workspace), "--", "python3", "-c", AGENT)
    done = site.cli(*words, feed=json.dumps([fields, malformed]))
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def judge(name: str, offset: int, code: str, said: str) -> None:
    """Over the limit: refused, with field, limit and what was got. Else: whatever comes, it is not the limit."""
    if offset > 0:
        assert code == "invalid_request", (code, said)
        assert f"limit {FIELDS[name][1]}" in said
        assert "got" in said
    else:
        assert code != "invalid_request", (code, said)
        assert "limit" not in said or "time" in said, said


@pytest.mark.parametrize(("name", "offset"), CASES)
def test_limits_at_the_agents_http_door(agent: dict[str, Any], name: str, offset: int) -> None:
    judge(name, offset, *agent["sdk"][f"{name} {offset}"])


@pytest.mark.parametrize(("name", "offset"), CASES)
def test_limits_at_the_mcp_door(agent: dict[str, Any], name: str, offset: int) -> None:
    answer = agent["mcp"][f"{name} {offset}"]
    said = json.dumps(answer)
    judge(name, offset, "invalid_request" if "invalid_request" in said else "other", said if offset > 0 else "")


@pytest.mark.parametrize(("name", "offset"), CASES)
def test_limits_at_the_persons_channel(held: Held, name: str, offset: int) -> None:
    answer = held.operate(**eval(FIELDS[name][0], {"n": FIELDS[name][1] + offset}))
    judge(name, offset, answer.get("kind", "ok") if "error" in answer else "ok", answer.get("error", ""))


@pytest.fixture(scope="module")
def held(site: Site) -> Iterator[Held]:
    with Held(site) as made:
        yield made


@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_limits_of_the_command_line(site: Site, offset: int) -> None:
    size = LIMITS.argv_bytes + offset
    words = ("exec", "--profile", "codegen", "--workdir", str(site.workspace), "--", "true", "a" * (size - 6))
    done = site.cli(*words)
    assert done.returncode == (2 if offset > 0 else 0), done.stderr
    if offset > 0:
        assert f"limit {LIMITS.argv_bytes} bytes, got" in done.stderr
    words = ("exec", "--profile", "codegen", "--workdir", str(site.workspace), "--stdin", "--", "wc", "-c")
    done = site.cli(*words, feed="a" * (LIMITS.stdin_bytes + offset))
    assert done.returncode == (2 if offset > 0 else 0), done.stderr
    if offset > 0:
        assert f"limit {LIMITS.stdin_bytes} bytes, got" in done.stderr
    else:
        assert int(done.stdout) == LIMITS.stdin_bytes + offset


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_requests_get_a_clear_error(agent: dict[str, Any], name: str) -> None:
    status, text = agent["raw"][name]
    body = json.loads(text)
    assert (status, body["kind"]) == (400, "invalid_request"), body
    assert MALFORMED[name][2] in body["error"], body
